//! One core's queue to a file: every request is a row of steps, one with the kernel at a time.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::TrySendError;

use base::{BufferPool, Instant, Progress};

use super::Shared;
use super::engine::{Answer, Direction, Engine, Step};
use super::extents::{Mailbox, Query};
use crate::check::{Verdict, finish, judge};
use crate::{BlockError, BlockIo, BlockOp, IoChannel, IoCompletion, IoTag, IoValue};

/// How often one step is repeated because the kernel asked for it.
const RETRIES: u16 = 1000;

/// What a request is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Transfer(Direction),
    Allocate { mode: i32 },
    Zeros,
    Sync,
    Extent,
}

#[derive(Debug)]
struct Request {
    tag: IoTag,
    op: BlockOp,
    lba: u64,
    blocks: u64,
    stage: Stage,
    /// Bytes of this stage that are done.
    done: u64,
    retries: u16,
    cancelled: bool,
}

/// What follows a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Another step of this request.
    Step,
    /// The end.
    End(Result<IoValue, BlockError>),
}

/// One core's queue to a [`super::FileDevice`].
pub(super) struct FileChannel<E> {
    engine: E,
    shared: Arc<Shared>,
    requests: Vec<Option<Request>>,
    free: Vec<usize>,
    /// Slots whose next step found no room.
    waiting: VecDeque<usize>,
    ready: VecDeque<IoCompletion>,
    mailbox: Arc<Mailbox>,
    /// Queries that the extents thread has.
    queries: usize,
    now: Instant,
}

/// What an error number of the system means for a request.
pub(super) fn block_error(number: i32) -> BlockError {
    match number {
        libc::EIO | libc::ENODATA | libc::EILSEQ | libc::EREMOTEIO | libc::EUCLEAN => {
            BlockError::Medium { lba: None }
        }
        libc::ENOSPC | libc::EDQUOT => BlockError::OutOfSpace,
        libc::EROFS | libc::EPERM | libc::EBADF => BlockError::ReadOnly,
        libc::EOPNOTSUPP | libc::ENOSYS => BlockError::Unsupported,
        libc::ENODEV | libc::ENXIO | libc::ESTALE => BlockError::Gone,
        libc::ETIMEDOUT => BlockError::Timeout,
        libc::ECANCELED => BlockError::Cancelled,
        other => BlockError::System(other),
    }
}

impl<E: Engine> FileChannel<E> {
    pub(super) fn new(shared: Arc<Shared>, engine: E) -> std::io::Result<FileChannel<E>> {
        let depth = shared.queue_depth as usize;
        Ok(FileChannel {
            engine,
            requests: (0..depth).map(|_| None).collect(),
            free: (0..depth).rev().collect(),
            waiting: VecDeque::with_capacity(depth),
            ready: VecDeque::with_capacity(depth),
            mailbox: Arc::new(Mailbox::new(depth)?),
            queries: 0,
            now: Instant::ZERO,
            shared,
        })
    }

    /// The first stage of a request, or how it ends at once.
    fn first_stage(&self, io: &BlockIo) -> Result<Stage, Result<IoValue, BlockError>> {
        let geometry = self.shared.geometry();
        match judge(io, &geometry) {
            Verdict::Proceed => {}
            Verdict::Empty => return Err(Ok(IoValue::Done)),
            Verdict::Refuse(error) => return Err(Err(error)),
        }
        let fua = matches!(io.op, BlockOp::Write { fua: true } | BlockOp::WriteZeroes { fua: true, .. });
        if (fua || io.op == BlockOp::Flush) && self.shared.flush_failed.load(Ordering::Acquire) {
            return Err(Err(BlockError::FlushFailed));
        }
        let punch = Stage::Allocate { mode: libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE };
        let can_punch = geometry.provisioning.discard;
        Ok(match io.op {
            BlockOp::Read => Stage::Transfer(Direction::Read),
            BlockOp::Write { fua } => Stage::Transfer(Direction::Write { durable: fua }),
            BlockOp::Flush => Stage::Sync,
            BlockOp::Discard if can_punch => punch,
            BlockOp::Discard => return Err(Err(BlockError::Unsupported)),
            BlockOp::WriteZeroes { may_deallocate: true, .. } if can_punch => punch,
            BlockOp::WriteZeroes { .. } if self.shared.zero_range.load(Ordering::Relaxed) => {
                Stage::Allocate { mode: libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE }
            }
            BlockOp::WriteZeroes { .. } => Stage::Zeros,
            BlockOp::Extent if self.shared.extents.is_some() => Stage::Extent,
            BlockOp::Extent | BlockOp::Verify | BlockOp::Compare | BlockOp::Copy { .. } => {
                return Err(Err(BlockError::Unsupported));
            }
        })
    }

    /// Starts the next step of a slot, or has it wait.
    fn start(&mut self, slot: usize) {
        let Some(Some(request)) = self.requests.get(slot) else { return };
        let size = u64::from(self.shared.shape.block_size);
        let total = request.blocks * size;
        let start = request.lba.saturating_mul(size);
        let (offset, left) = (start.saturating_add(request.done), total.saturating_sub(request.done));
        let started = match request.stage {
            Stage::Transfer(direction) => {
                let length = usize::try_from(left).unwrap_or(0);
                let at = usize::try_from(request.done).unwrap_or(0);
                self.engine.start(slot, Step::Transfer { direction, at, length, offset })
            }
            Stage::Zeros => self.engine.start(slot, Step::Zeros { length: left, offset }),
            Stage::Allocate { mode } => {
                self.engine.start(slot, Step::Allocate { mode, offset: start, length: total })
            }
            Stage::Sync => self.engine.start(slot, Step::Sync),
            Stage::Extent => {
                let query =
                    Query { slot, lba: request.lba, blocks: request.blocks, mailbox: self.mailbox.clone() };
                return self.ask(query);
            }
        };
        if !started {
            self.waiting.push_back(slot);
        }
    }

    fn ask(&mut self, query: Query) {
        let slot = query.slot;
        match self.shared.extents.as_ref().map(|extents| extents.try_send(query)) {
            Some(Ok(())) => {
                self.queries += 1;
                self.engine.watch(self.mailbox.event().raw());
            }
            Some(Err(TrySendError::Full(_))) => self.waiting.push_back(slot),
            Some(Err(TrySendError::Disconnected(_))) | None => self.end(slot, Err(BlockError::Gone)),
        }
    }

    /// Ends a request: its slot is free, its completion is ready.
    fn end(&mut self, slot: usize, result: Result<IoValue, BlockError>) {
        let Some(request) = self.requests.get_mut(slot).and_then(Option::take) else { return };
        let data = self.engine.release(slot);
        self.free.push(slot);
        self.ready.push_back(IoCompletion { tag: request.tag, result, data });
    }

    fn answered(&mut self, answer: Answer) {
        let Some(Some(request)) = self.requests.get_mut(answer.slot) else { return };
        match request.next(answer.result, &self.shared) {
            Next::Step => self.start(answer.slot),
            Next::End(result) => self.end(answer.slot, result),
        }
    }

    fn collect_extents(&mut self) -> usize {
        let mut count = 0;
        while self.queries > 0
            && let Some((slot, answer)) = self.mailbox.take()
        {
            self.queries -= 1;
            count += 1;
            self.end(slot, answer.map(IoValue::Extent));
        }
        if self.queries > 0 {
            self.engine.watch(self.mailbox.event().raw());
        }
        count
    }
}

impl Request {
    /// What follows the kernel's `result`, a count or a negative error number.
    fn next(&mut self, result: i32, shared: &Shared) -> Next {
        if matches!(-result, libc::EINTR | libc::EAGAIN | libc::ECANCELED) {
            let untouched = self.done == 0 && self.stage != Stage::Sync;
            if -result == libc::ECANCELED && self.cancelled && untouched {
                return Next::End(Err(BlockError::Cancelled));
            }
            self.retries += 1;
            return if self.retries < RETRIES {
                Next::Step
            } else {
                Next::End(Err(BlockError::System(-result)))
            };
        }
        match self.stage {
            Stage::Transfer(direction) => self.transferred(direction, result, shared),
            Stage::Zeros => match self.advanced(result, shared) {
                Next::End(Ok(_)) => self.zeroed(),
                other => other,
            },
            Stage::Allocate { mode } if result == -libc::EOPNOTSUPP || result == -libc::ENOSYS => {
                let punch = mode & libc::FALLOC_FL_PUNCH_HOLE != 0;
                let ability = if punch { &shared.punch } else { &shared.zero_range };
                ability.store(false, Ordering::Relaxed);
                // What was promised about the content holds all the same.
                self.stage = Stage::Zeros;
                Next::Step
            }
            Stage::Allocate { .. } if result < 0 => Next::End(Err(block_error(-result))),
            Stage::Allocate { .. } => self.zeroed(),
            Stage::Sync => {
                if result < 0 {
                    shared.flush_failed.store(true, Ordering::Release);
                }
                Next::End(durable(shared))
            }
            Stage::Extent => Next::End(Err(BlockError::Unsupported)),
        }
    }

    fn transferred(&mut self, direction: Direction, result: i32, shared: &Shared) -> Next {
        let is_durable = direction == Direction::Write { durable: true };
        if is_durable && (result == -libc::EIO || result < 0 && !shared.direct) {
            // The kernel reports a failed write-back only once, and it may have been of an earlier write. Through the
            // page cache its reason may be any (a thin volume or a remote server that is full); past it, a full disk
            // is this write's own.
            shared.flush_failed.store(true, Ordering::Release);
        }
        if is_durable && result == -libc::EIO {
            return Next::End(Err(BlockError::Medium { lba: None }));
        }
        match self.advanced(result, shared) {
            Next::End(Ok(_)) if is_durable => Next::End(durable(shared)),
            other => other,
        }
    }

    /// Counts the bytes of one transfer; the end is reached when all are done.
    fn advanced(&mut self, result: i32, shared: &Shared) -> Next {
        let Ok(count) = u64::try_from(result) else { return Next::End(Err(block_error(-result))) };
        let size = u64::from(shared.shape.block_size);
        let total = self.blocks * size;
        let mut done = self.done + count;
        if done >= total {
            return Next::End(Ok(IoValue::Done));
        }
        if shared.direct {
            // The next step must begin at a block again.
            done -= done % size;
        }
        if done <= self.done {
            // The file ends, or the medium does not take any more.
            return Next::End(Err(BlockError::Medium { lba: Some(self.lba + self.done / size) }));
        }
        self.done = done;
        Next::Step
    }

    /// The zeros are there; force unit access asks for stable media yet.
    fn zeroed(&mut self) -> Next {
        if matches!(self.op, BlockOp::WriteZeroes { fua: true, .. }) {
            self.stage = Stage::Sync;
            return Next::Step;
        }
        Next::End(Ok(IoValue::Done))
    }
}

/// Success, unless a flush has failed meanwhile.
fn durable(shared: &Shared) -> Result<IoValue, BlockError> {
    if shared.flush_failed.load(Ordering::Acquire) { Err(BlockError::FlushFailed) } else { Ok(IoValue::Done) }
}

impl<E: Engine> IoChannel for FileChannel<E> {
    fn submit(&mut self, mut io: BlockIo) -> Result<(), BlockIo> {
        if self.ready.len() >= self.free.len() {
            // Every slot's completion needs room too.
            return Err(io);
        }
        match self.first_stage(&io) {
            Err(result) => self.ready.push_back(finish(io, result)),
            Ok(stage) => {
                let Some(slot) = self.free.pop() else { return Err(io) };
                self.engine.hold(slot, io.data.take());
                // The range of a flush is advice, and unchecked: it must not get into arithmetic.
                let (lba, blocks) = if io.op == BlockOp::Flush { (0, 0) } else { (io.lba, io.blocks) };
                let BlockIo { tag, op, .. } = io;
                if let Some(entry) = self.requests.get_mut(slot) {
                    *entry =
                        Some(Request { tag, op, lba, blocks, stage, done: 0, retries: 0, cancelled: false });
                }
                self.start(slot);
            }
        }
        Ok(())
    }

    fn flush(&mut self) {
        self.engine.submit();
    }

    fn cancel(&mut self, tag: IoTag) {
        let position =
            self.requests.iter_mut().position(|request| request.as_ref().is_some_and(|one| one.tag == tag));
        let Some(slot) = position else { return };
        let Some(Some(request)) = self.requests.get_mut(slot) else { return };
        let untouched = request.done == 0 && !matches!(request.stage, Stage::Sync | Stage::Zeros);
        request.cancelled = true;
        if request.stage == Stage::Extent && !self.waiting.contains(&slot) {
            return;
        }
        match self.waiting.iter().position(|&waiting| waiting == slot) {
            Some(position) if untouched => {
                self.waiting.remove(position);
                self.end(slot, Err(BlockError::Cancelled));
            }
            Some(_) => {}
            None => self.engine.cancel(slot),
        }
    }

    fn poll(&mut self, now: Instant, on: &mut dyn FnMut(IoCompletion)) -> Progress {
        self.now = now;
        self.engine.reap();
        let mut count = 0;
        while let Some(answer) = self.engine.next_answer() {
            count += 1;
            self.answered(answer);
        }
        count += self.collect_extents();
        for _ in 0..self.waiting.len() {
            if let Some(slot) = self.waiting.pop_front() {
                self.start(slot);
            }
        }
        while let Some(completion) = self.ready.pop_front() {
            count += 1;
            on(completion);
        }
        self.engine.submit();
        let copies = self.engine.take_bounce_copies();
        if copies > 0 {
            self.shared.bounces.fetch_add(copies, Ordering::Relaxed);
        }
        Progress::from_count(count)
    }

    fn for_each_held(&self, visit: &mut dyn FnMut(IoTag)) {
        self.ready.iter().for_each(|completion| visit(completion.tag));
        self.requests.iter().flatten().for_each(|request| visit(request.tag));
    }

    fn next_timeout(&self) -> Option<Instant> {
        // Whatever waits for an answer is woken by it; the rest wants to be polled again now. That is also so when all
        // that is here waits for room in a queue that other channels have filled.
        let held = self.requests.len() - self.free.len();
        let starved = held > 0 && held == self.waiting.len();
        let stuck = !self.ready.is_empty() || self.engine.has_unsubmitted() || starved;
        stuck.then_some(self.now)
    }

    fn wake_descriptor(&self) -> Option<i32> {
        Some(self.engine.descriptor())
    }

    fn register_pool(&mut self, pool: &BufferPool) -> bool {
        self.engine.register_pool(pool)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Scratch, open};
    use super::*;

    const ZEROES: BlockOp = BlockOp::WriteZeroes { may_deallocate: true, fua: true };
    const PUNCH: Stage = Stage::Allocate { mode: libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE };
    const FUA: Direction = Direction::Write { durable: true };

    fn request(op: BlockOp, stage: Stage) -> Request {
        Request { tag: IoTag(1), op, lba: 100, blocks: 8, stage, done: 0, retries: 0, cancelled: false }
    }

    fn shared(direct: bool) -> Option<(Scratch, Arc<Shared>)> {
        let scratch = Scratch::new(1 << 20);
        let device = open(&scratch.options(direct))?;
        Some((scratch, device.shared.clone()))
    }

    #[test]
    fn short_transfers_go_on_and_the_end_of_the_file_is_a_medium_error() {
        let Some((_scratch, shared)) = shared(false) else { return };
        let mut read = request(BlockOp::Read, Stage::Transfer(Direction::Read));
        assert_eq!((read.next(700, &shared), read.done), (Next::Step, 700));
        assert_eq!((read.next(-libc::EINTR, &shared), read.done), (Next::Step, 700));
        assert_eq!(read.next(0, &shared), Next::End(Err(BlockError::Medium { lba: Some(101) })));
        assert_eq!(read.next(8 * 512 - 700, &shared), Next::End(Ok(IoValue::Done)));
        assert_eq!(read.next(-libc::ENOSPC, &shared), Next::End(Err(BlockError::OutOfSpace)));
    }

    #[test]
    fn a_direct_transfer_goes_on_at_a_whole_block() {
        let Some((_scratch, shared)) = shared(true) else { return };
        let mut read = request(BlockOp::Read, Stage::Transfer(Direction::Read));
        assert_eq!((read.next(4096 + 700, &shared), read.done), (Next::Step, 4096));
        assert_eq!(read.next(700, &shared), Next::End(Err(BlockError::Medium { lba: Some(101) })));
    }

    #[test]
    fn retries_end() {
        let Some((_scratch, shared)) = shared(false) else { return };
        let mut read = request(BlockOp::Read, Stage::Transfer(Direction::Read));
        let turns = (0..2000).take_while(|_| read.next(-libc::EAGAIN, &shared) == Next::Step).count();
        assert_eq!(turns, usize::from(RETRIES) - 1);
    }

    #[test]
    fn only_a_cancelled_request_that_did_nothing_ends_as_cancelled() {
        let Some((_scratch, shared)) = shared(false) else { return };
        let mut read = request(BlockOp::Read, Stage::Transfer(Direction::Read));
        assert_eq!(read.next(-libc::ECANCELED, &shared), Next::Step);
        read.cancelled = true;
        assert_eq!(read.next(512, &shared), Next::Step);
        assert_eq!(read.next(-libc::ECANCELED, &shared), Next::Step);
        read.done = 0;
        assert_eq!(read.next(-libc::ECANCELED, &shared), Next::End(Err(BlockError::Cancelled)));
    }

    #[test]
    fn where_no_holes_are_punched_zeros_are_written_and_made_durable() {
        let Some((_scratch, shared)) = shared(false) else { return };
        let mut zeroes = request(ZEROES, PUNCH);
        assert_eq!((zeroes.next(-libc::EOPNOTSUPP, &shared), zeroes.stage), (Next::Step, Stage::Zeros));
        assert!(!shared.geometry().provisioning.discard);
        assert_eq!((zeroes.next(8 * 512, &shared), zeroes.stage), (Next::Step, Stage::Sync));
        assert_eq!(zeroes.next(0, &shared), Next::End(Ok(IoValue::Done)));
        let mut discard = request(BlockOp::Discard, PUNCH);
        assert_eq!(discard.next(0, &shared), Next::End(Ok(IoValue::Done)));
    }

    #[test]
    fn a_failed_sync_fails_all_that_wants_to_be_durable_from_then_on() {
        for broken in [request(BlockOp::Flush, Stage::Sync), request(ZEROES, Stage::Sync)] {
            let Some((_scratch, shared)) = shared(false) else { return };
            let mut broken = broken;
            assert_eq!(broken.next(-libc::EIO, &shared), Next::End(Err(BlockError::FlushFailed)));
            let mut other = request(BlockOp::Flush, Stage::Sync);
            assert_eq!(other.next(0, &shared), Next::End(Err(BlockError::FlushFailed)));
            let mut write = request(BlockOp::Write { fua: true }, Stage::Transfer(FUA));
            assert_eq!(write.next(4096, &shared), Next::End(Err(BlockError::FlushFailed)));
        }
    }

    #[test]
    fn a_full_disk_behind_the_page_cache_may_have_lost_an_earlier_write() {
        for number in [libc::ENOSPC, libc::EDQUOT] {
            let Some((_scratch, shared)) = shared(false) else { return };
            let mut write = request(BlockOp::Write { fua: true }, Stage::Transfer(FUA));
            assert_eq!(write.next(-number, &shared), Next::End(Err(BlockError::OutOfSpace)));
            let mut flush = request(BlockOp::Flush, Stage::Sync);
            assert_eq!(flush.next(0, &shared), Next::End(Err(BlockError::FlushFailed)));
        }
    }

    #[test]
    fn who_waits_for_a_queue_of_all_channels_asks_again_by_itself() {
        let scratch = Scratch::new(1 << 20);
        let Some(mut device) = open(&scratch.options(false)) else { return };
        // Nobody takes from this queue: it is always full.
        let (sender, _receiver) = std::sync::mpsc::sync_channel(0);
        let Some(shared) = Arc::get_mut(&mut device.shared) else { panic!("shared") };
        shared.extents = Some(sender);
        let mut channel = device.channel().unwrap();
        channel
            .submit(BlockIo { tag: IoTag(7), op: BlockOp::Extent, lba: 0, blocks: 8, data: None })
            .unwrap();
        let now = Instant::from_nanos(5);
        channel.poll(now, &mut |completion| panic!("{completion:?}"));
        assert_eq!(channel.next_timeout(), Some(now), "no answer of its own will wake it");
    }

    #[test]
    fn a_durable_write_that_fails_may_have_told_of_an_earlier_one() {
        let Some((_scratch, shared)) = shared(true) else { return };
        let mut write = request(BlockOp::Write { fua: true }, Stage::Transfer(FUA));
        assert_eq!(write.next(-libc::ENOSPC, &shared), Next::End(Err(BlockError::OutOfSpace)));
        assert!(!shared.flush_failed.load(Ordering::Acquire));
        assert_eq!(write.next(-libc::EIO, &shared), Next::End(Err(BlockError::Medium { lba: None })));
        assert!(shared.flush_failed.load(Ordering::Acquire));
    }
}
