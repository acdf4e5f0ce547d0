//! From a request to commands.

use bdev::{BlockError, BlockIo, BlockOp, IoValue};
use wire::nvme::Entry;
use wire::nvme::command::{self, nvm, range_flag};

use crate::core_queue::Request;
use crate::queue_pair::{Command, Metadata, Payload};
use crate::view::View;

/// Whether the device must be asked, or how a well-formed request ends at once.
#[inline]
pub(crate) fn plan(io: &BlockIo, view: &View, flush_failed: bool) -> Result<(), Result<IoValue, BlockError>> {
    let durable = match io.op {
        // Without a cache, what is completed is on stable media.
        BlockOp::Flush if !view.geometry.write_cache => return Err(Ok(IoValue::Done)),
        BlockOp::Flush => true,
        BlockOp::Write { fua } | BlockOp::WriteZeroes { fua, .. } => fua && view.geometry.write_cache,
        BlockOp::Discard if view.discard_blocks_max == 0 => return Err(Err(BlockError::Unsupported)),
        // GET LBA STATUS is an admin command: not for a data path.
        BlockOp::Extent => return Err(Err(BlockError::Unsupported)),
        _ => false,
    };
    if durable && flush_failed { Err(Err(BlockError::FlushFailed)) } else { Ok(()) }
}

/// How many blocks the next command of a request takes; at least 1.
#[inline]
pub(crate) fn next_part(request: &Request, view: &View) -> u64 {
    let left = request.blocks - request.issued;
    let transfer = if request.bus.is_none() && request.data.is_some() {
        view.bounce_blocks_max
    } else {
        view.transfer_blocks_max
    };
    let most = match request.op {
        BlockOp::Read | BlockOp::Write { .. } | BlockOp::Compare => transfer,
        BlockOp::WriteZeroes { .. } if view.zeroes_blocks_max > 0 => view.zeroes_blocks_max,
        BlockOp::WriteZeroes { .. } => view.transfer_blocks_max,
        BlockOp::Discard => view.discard_blocks_max,
        BlockOp::Verify => view.verify_blocks_max,
        BlockOp::Copy { .. } => view.copy_blocks_max,
        BlockOp::Flush | BlockOp::Extent => 1,
    };
    let part = left.min(u64::from(most.max(1)));
    // What is promised to be whole is not cut for speed.
    let may_cut = request.op.has_payload() && request.blocks > u64::from(view.geometry.atomic.blocks_max);
    if view.boundary == 0 || !may_cut {
        return part;
    }
    let boundary = u64::from(view.boundary);
    part.min(boundary - (request.lba + request.issued) % boundary)
}

/// The command for `blocks` blocks of a request from `offset` on, whose data the device sees at `bus`.
#[inline]
pub(crate) fn command(request: &Request, offset: u64, blocks: u64, bus: u64, view: &View) -> Command {
    let lba = request.lba + offset;
    let count = blocks as u32;
    let length = count << view.block_shift;
    let cached = view.geometry.write_cache;
    let force = |fua: bool| if fua && cached { range_flag::FUA } else { 0 };
    let range = |opcode: u8, flags: u32| {
        let entry = Entry::new(opcode, view.nsid).range(lba, count, view.range_flags | flags);
        // Expected initial reference tag, or the one to write (ILBRT, EILBRT): the low half of the first LBA.
        if view.reference_tags { entry.dwords_14_15(lba as u32, 0) } else { entry }
    };
    let scratch = |metadata: Metadata| if view.scratch_metadata { metadata } else { Metadata::None };
    let data = Payload::Data { bus, length };
    let (entry, payload, metadata) = match request.op {
        BlockOp::Read => (range(nvm::READ, 0), data, scratch(Metadata::Dump)),
        BlockOp::Write { fua } => (range(nvm::WRITE, force(fua)), data, scratch(Metadata::Zeros)),
        BlockOp::Compare => (range(nvm::COMPARE, 0), data, scratch(Metadata::Zeros)),
        BlockOp::Verify => {
            // Nothing is transferred, so PRACT means nothing here.
            let mut entry = range(nvm::VERIFY, 0);
            entry.0[6] &= !u64::from(range_flag::PRACT);
            (entry, Payload::None, Metadata::None)
        }
        BlockOp::WriteZeroes { may_deallocate, fua } if view.zeroes_blocks_max > 0 => {
            let deallocate =
                if may_deallocate && view.zeroes_deallocate { range_flag::DEALLOCATE } else { 0 };
            (range(nvm::WRITE_ZEROES, force(fua) | deallocate), Payload::None, Metadata::None)
        }
        BlockOp::WriteZeroes { fua, .. } => {
            (range(nvm::WRITE, force(fua)), Payload::Zeros { length }, scratch(Metadata::Zeros))
        }
        BlockOp::Discard => {
            // One range (NR is 0's based).
            let entry = Entry::new(nvm::DATASET_MANAGEMENT, view.nsid).dwords_10_11(0, command::DEALLOCATE);
            (entry, Payload::Range(command::deallocate_range(lba, count)), Metadata::None)
        }
        BlockOp::Copy { from } => {
            // One source range in descriptor format 0; protection information is checked and made anew.
            let protection =
                if view.range_flags == 0 { 0 } else { view.range_flags | view.range_flags >> 14 };
            let entry = Entry::new(nvm::COPY, view.nsid)
                .dwords_10_11(lba as u32, (lba >> 32) as u32)
                .dwords_12_13(protection, 0)
                .dwords_14_15(if view.reference_tags { lba as u32 } else { 0 }, 0);
            (entry, Payload::Source(command::copy_source(from + offset, count)), Metadata::None)
        }
        BlockOp::Flush | BlockOp::Extent => {
            (Entry::new(nvm::FLUSH, view.nsid), Payload::None, Metadata::None)
        }
    };
    Command { entry, payload, metadata }
}
