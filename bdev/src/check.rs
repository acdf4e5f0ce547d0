//! The judgement of a request before any device looks at it, the same for every device.

use crate::{BlockError, BlockIo, BlockOp, Geometry, IoCompletion, IoValue};

/// The number a malformed request fails with: the submitter's own mistake, never the wire's.
pub const MALFORMED: BlockError = BlockError::System(libc::EINVAL);

/// What is to be done with a request, before any device looks at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The device must do it.
    Proceed,
    /// Nothing to do: no blocks.
    Empty,
    /// Refused.
    Refuse(BlockError),
}

/// Judges `io` against the device's shape: range, buffer, read-only.
#[must_use]
pub fn judge(io: &BlockIo, geometry: &Geometry) -> Verdict {
    if io.op == BlockOp::Flush {
        return Verdict::Proceed;
    }
    match io.lba.checked_add(io.blocks) {
        Some(end) if end <= geometry.blocks => {}
        _ => return Verdict::Refuse(BlockError::OutOfRange),
    }
    if io.op.has_payload() {
        let expected = io.blocks.checked_mul(u64::from(geometry.block_size));
        let given = io.data.as_ref().map(|data| data.len() as u64);
        if given.is_none() || given != expected {
            return Verdict::Refuse(MALFORMED);
        }
    }
    let reads = matches!(io.op, BlockOp::Read | BlockOp::Extent | BlockOp::Verify | BlockOp::Compare);
    if geometry.read_only && !reads {
        return Verdict::Refuse(BlockError::ReadOnly);
    }
    if let Some(error) = unsupported(io, geometry) {
        return Verdict::Refuse(error);
    }
    match (io.blocks, io.op) {
        (0, BlockOp::Extent) => Verdict::Refuse(MALFORMED),
        (0, _) => Verdict::Empty,
        _ => Verdict::Proceed,
    }
}

/// What is wrong about a request that needs a capability of the device.
fn unsupported(io: &BlockIo, geometry: &Geometry) -> Option<BlockError> {
    let capabilities = &geometry.capabilities;
    let able = match io.op {
        BlockOp::Verify => capabilities.verify,
        BlockOp::Compare => capabilities.compare,
        BlockOp::Copy { from } => {
            let source_end = from.checked_add(io.blocks);
            if source_end.is_none_or(|end| end > geometry.blocks) {
                return Some(BlockError::OutOfRange);
            }
            if capabilities.copy_blocks_max > 0 && from.abs_diff(io.lba) < io.blocks {
                return Some(MALFORMED);
            }
            capabilities.copy_blocks_max >= io.blocks.max(1)
        }
        _ => true,
    };
    (!able).then_some(BlockError::Unsupported)
}

/// The completion that ends `io` with `result`.
#[must_use]
pub fn finish(io: BlockIo, result: Result<IoValue, BlockError>) -> IoCompletion {
    IoCompletion { tag: io.tag, result, data: io.data }
}
