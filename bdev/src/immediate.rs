//! The channel of devices that do their work on the spot: a bounded queue, executed by `poll` within a budget so
//! that one turn of the reactor stays short.

use std::collections::VecDeque;
use std::sync::Arc;

use base::{Instant, Progress};

use crate::check::{Verdict, finish, judge};
use crate::{BlockError, BlockIo, BlockOp, Geometry, IoChannel, IoCompletion, IoTag, IoValue};

/// Requests that one channel holds at most.
pub(crate) const QUEUE_DEPTH: usize = 1024;

/// Bytes that one `poll` moves before it yields.
const POLL_BYTES: u64 = 1 << 20;

/// Discards, zeroing and copying advance in steps that end at a multiple of this many bytes.
const STEP_BYTES: u64 = 1 << 20;

/// A device that answers without waiting. Ranges are checked before these are called.
pub(crate) trait Medium: Send + Sync {
    /// The present shape.
    fn shape(&self) -> Geometry;
    /// Fills `data` from `lba` on.
    fn read(&self, lba: u64, data: &mut [u8]) -> Result<(), BlockError>;
    /// Stores `data` from `lba` on.
    fn write(&self, lba: u64, data: &[u8]) -> Result<(), BlockError>;
    /// Zeros `blocks` from `lba` on; deallocates them where `deallocate`.
    fn zero(&self, lba: u64, blocks: u64, deallocate: bool) -> Result<(), BlockError>;
    /// True when the medium holds `data` from `lba` on.
    fn equals(&self, lba: u64, data: &[u8]) -> Result<bool, BlockError>;
    /// The `blocks` from `from` on to `lba`; the two ranges do not overlap.
    fn copy(&self, from: u64, lba: u64, blocks: u64) -> Result<(), BlockError>;
    /// The extent that begins at `lba`, `blocks` long at most.
    fn extent(&self, lba: u64, blocks: u64) -> Result<crate::Extent, BlockError>;
}

/// One core's queue to a [`Medium`].
pub(crate) struct ImmediateChannel<M> {
    medium: Arc<M>,
    queue: VecDeque<BlockIo>,
    /// Blocks of the first request that are done already.
    progressed: u64,
    cancelled: VecDeque<IoCompletion>,
    now: Instant,
}

impl<M: Medium> ImmediateChannel<M> {
    pub(crate) fn new(medium: Arc<M>) -> ImmediateChannel<M> {
        ImmediateChannel {
            medium,
            queue: VecDeque::with_capacity(QUEUE_DEPTH),
            progressed: 0,
            cancelled: VecDeque::with_capacity(QUEUE_DEPTH),
            now: Instant::ZERO,
        }
    }

    /// Works on the first request. `None` when it needs another turn; the number is the work done, in bytes.
    fn step(&mut self) -> (u64, Option<Result<IoValue, BlockError>>) {
        let Some(io) = self.queue.front_mut() else { return (0, None) };
        let shape = self.medium.shape();
        match judge(io, &shape) {
            Verdict::Proceed => {}
            Verdict::Empty => return (0, Some(Ok(IoValue::Done))),
            Verdict::Refuse(error) => return (0, Some(Err(error))),
        }
        match io.op {
            // What cannot fail has nothing to verify.
            BlockOp::Flush | BlockOp::Verify => return (0, Some(Ok(IoValue::Done))),
            BlockOp::Extent => {
                return (4096, Some(self.medium.extent(io.lba, io.blocks).map(IoValue::Extent)));
            }
            BlockOp::Read | BlockOp::Write { .. } | BlockOp::Compare => {
                let data = io.data.as_deref_mut().unwrap_or(&mut []);
                let length = data.len() as u64;
                let result = match io.op {
                    BlockOp::Read => self.medium.read(io.lba, data),
                    BlockOp::Compare => match self.medium.equals(io.lba, data) {
                        Ok(false) => Err(BlockError::Miscompare),
                        result => result.map(|_| ()),
                    },
                    _ => self.medium.write(io.lba, data),
                };
                return (length, Some(result.map(|()| IoValue::Done)));
            }
            BlockOp::Discard | BlockOp::WriteZeroes { .. } | BlockOp::Copy { .. } => {}
        }
        let per_step = (STEP_BYTES / u64::from(shape.block_size)).max(1);
        let lba = io.lba + self.progressed;
        let left = io.blocks - self.progressed;
        let blocks = left.min(per_step - lba % per_step);
        let bytes = blocks * u64::from(shape.block_size);
        // Zeroing costs less than a copy: nothing is read.
        let (result, work) = match io.op {
            BlockOp::Copy { from } => (self.medium.copy(from + self.progressed, lba, blocks), bytes),
            BlockOp::WriteZeroes { may_deallocate, .. } => {
                (self.medium.zero(lba, blocks, may_deallocate), bytes / 4)
            }
            _ => (self.medium.zero(lba, blocks, true), bytes / 4),
        };
        if let Err(error) = result {
            return (0, Some(Err(error)));
        }
        self.progressed += blocks;
        (work, (blocks == left).then_some(Ok(IoValue::Done)))
    }
}

impl<M: Medium> IoChannel for ImmediateChannel<M> {
    fn submit(&mut self, io: BlockIo) -> Result<(), BlockIo> {
        if self.queue.len() + self.cancelled.len() >= QUEUE_DEPTH {
            return Err(io);
        }
        self.queue.push_back(io);
        Ok(())
    }

    fn flush(&mut self) {}

    fn cancel(&mut self, tag: IoTag) {
        let Some(position) = self.queue.iter().position(|io| io.tag == tag) else { return };
        if position == 0 && self.progressed > 0 {
            return;
        }
        if let Some(io) = self.queue.remove(position) {
            self.cancelled.push_back(finish(io, Err(BlockError::Cancelled)));
        }
    }

    fn poll(&mut self, now: Instant, on: &mut dyn FnMut(IoCompletion)) -> Progress {
        self.now = now;
        let mut count = 0;
        while let Some(completion) = self.cancelled.pop_front() {
            count += 1;
            on(completion);
        }
        let mut budget = POLL_BYTES;
        while budget > 0 && !self.queue.is_empty() {
            let (work, result) = self.step();
            count += 1;
            // Requests that cost nothing must not make a turn endless either.
            budget = budget.saturating_sub(work.max(1024));
            if let Some(result) = result {
                self.progressed = 0;
                if let Some(io) = self.queue.pop_front() {
                    on(finish(io, result));
                }
            }
        }
        Progress::from_count(count)
    }

    fn for_each_held(&self, visit: &mut dyn FnMut(IoTag)) {
        self.cancelled.iter().for_each(|completion| visit(completion.tag));
        self.queue.iter().for_each(|io| visit(io.tag));
    }

    fn next_timeout(&self) -> Option<Instant> {
        (!self.queue.is_empty() || !self.cancelled.is_empty()).then_some(self.now)
    }
}
