//! Middleware that breaks things on purpose: failures, requests that hang, corruption, latency.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base::{BufferPool, Instant, Prng, Progress};

use crate::check::finish;
use crate::shelf::{CAPACITY, Shelf};
use crate::{
    BlockDevice, BlockError, BlockIo, BlockOp, CoreShared, DeviceIdentity, Geometry, Health, IoChannel,
    IoCompletion, IoTag,
};

/// Faults that a device has at most.
const FAULTS_MAX: usize = 64;

/// Which requests a fault may hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultOp {
    /// `BlockOp::Read`.
    Read,
    /// `BlockOp::Write`.
    Write,
    /// `BlockOp::WriteZeroes`.
    WriteZeroes,
    /// `BlockOp::Discard`.
    Discard,
    /// `BlockOp::Flush`.
    Flush,
    /// `BlockOp::Verify`.
    Verify,
    /// `BlockOp::Compare`.
    Compare,
    /// `BlockOp::Copy`.
    Copy,
    /// Every request.
    All,
}

/// What a fault does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// The request fails, and does not reach the inner device.
    Failure(BlockError),
    /// The request hangs until [`FaultDevice::resume_pending`], then goes on to the inner device.
    Pending,
    /// The byte `offset` bytes into the payload of a read, write or comparison is changed (exclusive or) by `value`.
    Corrupt {
        /// Bytes from the start of the payload; a shorter payload stays whole.
        offset: usize,
        /// The bits to flip; not 0.
        value: u8,
    },
    /// The request waits so long before it reaches the inner device.
    Latency(Duration),
}

/// One thing that goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Which requests.
    pub op: FaultOp,
    /// Only those that touch one of these blocks; a flush has no blocks. `None` is all.
    pub blocks: Option<RangeInclusive<u64>>,
    /// How many of a million of these requests are hit.
    pub per_million: u32,
    /// How many requests are hit before the fault ends by itself; `None` is no end.
    pub count: Option<u64>,
    /// What happens to them.
    pub kind: FaultKind,
}

impl Fault {
    fn matches(&self, io: &BlockIo) -> bool {
        let op = match io.op {
            BlockOp::Read => FaultOp::Read,
            BlockOp::Write { .. } => FaultOp::Write,
            BlockOp::WriteZeroes { .. } => FaultOp::WriteZeroes,
            BlockOp::Discard => FaultOp::Discard,
            BlockOp::Flush => FaultOp::Flush,
            BlockOp::Verify => FaultOp::Verify,
            BlockOp::Compare => FaultOp::Compare,
            BlockOp::Copy { .. } => FaultOp::Copy,
            BlockOp::Extent => FaultOp::All,
        };
        let touches = self.blocks.as_ref().is_none_or(|blocks| {
            let overlaps = |lba: u64| lba <= *blocks.end() && lba.saturating_add(io.blocks) > *blocks.start();
            match io.op {
                BlockOp::Flush => false,
                BlockOp::Copy { from } => overlaps(from) || overlaps(io.lba),
                _ => overlaps(io.lba),
            }
        });
        let possible = io.op.has_payload() || !matches!(self.kind, FaultKind::Corrupt { .. });
        (self.op == FaultOp::All || self.op == op) && touches && possible
    }
}

#[derive(Debug, Default)]
struct Plan {
    faults: Mutex<Vec<Fault>>,
    /// False when there are no faults: the usual case costs one load.
    armed: AtomicBool,
    /// Grows with every `resume_pending`.
    resumed: AtomicU64,
    hits: AtomicU64,
}

impl Plan {
    fn faults(&self) -> MutexGuard<'_, Vec<Fault>> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What happens to this request.
    fn strike(&self, io: &BlockIo, random: &mut Prng) -> Option<FaultKind> {
        if !self.armed.load(Ordering::Acquire) {
            return None;
        }
        let mut faults = self.faults();
        let hit = |fault: &Fault| fault.matches(io) && random.chance(u64::from(fault.per_million), 1_000_000);
        let index = faults.iter().position(hit)?;
        let fault = faults.get_mut(index)?;
        let kind = fault.kind;
        if let Some(count) = &mut fault.count {
            *count = count.saturating_sub(1);
            if *count == 0 {
                faults.remove(index);
                self.armed.store(!faults.is_empty(), Ordering::Release);
            }
        }
        self.hits.fetch_add(1, Ordering::Relaxed);
        Some(kind)
    }
}

/// A device that does wrong on request, on top of an inner one.
pub struct FaultDevice {
    inner: Arc<dyn BlockDevice>,
    plan: Arc<Plan>,
    seed: u64,
}

impl FaultDevice {
    /// Wraps `inner`; nothing is wrong yet. What is hit by chance follows from `seed` and the core's number.
    #[must_use]
    pub fn new(inner: Arc<dyn BlockDevice>, seed: u64) -> FaultDevice {
        let plan = Plan { faults: Mutex::new(Vec::with_capacity(FAULTS_MAX)), ..Plan::default() };
        FaultDevice { inner, plan: Arc::new(plan), seed }
    }

    /// Adds a fault. Where several hit, the one that was added first counts. False when there are 64 already, or it
    /// could never do anything.
    pub fn inject(&self, fault: Fault) -> bool {
        let idle = fault.count == Some(0)
            || fault.per_million == 0
            || fault.blocks.as_ref().is_some_and(RangeInclusive::is_empty)
            || matches!(fault.kind, FaultKind::Corrupt { value: 0, .. });
        let mut faults = self.plan.faults();
        if idle || faults.len() >= FAULTS_MAX {
            return false;
        }
        faults.push(fault);
        self.plan.armed.store(true, Ordering::Release);
        true
    }

    /// Ends all faults for `op`; [`FaultOp::All`] ends every fault. Requests that hang go on hanging.
    pub fn clear(&self, op: FaultOp) {
        let mut faults = self.plan.faults();
        faults.retain(|fault| op != FaultOp::All && fault.op != op);
        self.plan.armed.store(!faults.is_empty(), Ordering::Release);
    }

    /// Lets the requests that hang on every core go on to the inner device.
    pub fn resume_pending(&self) {
        self.plan.resumed.fetch_add(1, Ordering::AcqRel);
    }

    /// The faults now, with what is left of their counts.
    #[must_use]
    pub fn faults(&self) -> Vec<Fault> {
        self.plan.faults().clone()
    }

    /// Requests that were hit so far.
    #[must_use]
    pub fn hits(&self) -> u64 {
        self.plan.hits.load(Ordering::Relaxed)
    }
}

impl BlockDevice for FaultDevice {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }
    fn product_name(&self) -> &'static str {
        "Error Injection Disk"
    }
    fn open_channel(&self, core: &CoreShared) -> Result<Box<dyn IoChannel>, BlockError> {
        Ok(Box::new(FaultChannel {
            inner: self.inner.open_channel(core)?,
            plan: self.plan.clone(),
            shelf: Shelf::new(),
            random: Prng::new(self.seed.wrapping_add(u64::from(core.core().0))),
            resumed: self.plan.resumed.load(Ordering::Acquire),
            corrupted: Vec::with_capacity(CAPACITY),
        }))
    }
    fn bounce_copies(&self) -> u64 {
        self.inner.bounce_copies()
    }
    fn identity(&self) -> DeviceIdentity {
        self.inner.identity()
    }
    fn health(&self) -> Option<Health> {
        self.inner.health()
    }
}

/// A request whose payload is changed when it completes: a read's for the worse, any other's back to what it was.
struct Corrupted {
    tag: IoTag,
    is_read: bool,
    offset: usize,
    value: u8,
}

struct FaultChannel {
    inner: Box<dyn IoChannel>,
    plan: Arc<Plan>,
    shelf: Shelf,
    random: Prng,
    resumed: u64,
    corrupted: Vec<Corrupted>,
}

fn flip(data: Option<&mut [u8]>, offset: usize, value: u8) {
    if let Some(byte) = data.and_then(|data| data.get_mut(offset)) {
        *byte ^= value;
    }
}

/// Does to a completion what its corruption asks for.
fn settle(corrupted: &mut Vec<Corrupted>, completion: &mut IoCompletion) {
    if corrupted.is_empty() {
        return;
    }
    let Some(position) = corrupted.iter().position(|entry| entry.tag == completion.tag) else { return };
    let entry = corrupted.swap_remove(position);
    if !entry.is_read || completion.result.is_ok() {
        flip(completion.data.as_deref_mut(), entry.offset, entry.value);
    }
}

impl IoChannel for FaultChannel {
    fn submit(&mut self, mut io: BlockIo) -> Result<(), BlockIo> {
        if self.shelf.is_full() || self.corrupted.len() >= CAPACITY {
            return Err(io);
        }
        match self.plan.strike(&io, &mut self.random) {
            None => self.shelf.pass(io, self.inner.as_mut()),
            Some(FaultKind::Failure(error)) => self.shelf.complete(finish(io, Err(error))),
            Some(FaultKind::Pending) => self.shelf.park(io),
            Some(FaultKind::Latency(delay)) => self.shelf.delay(io, delay),
            Some(FaultKind::Corrupt { offset, value }) => {
                let is_read = io.op == BlockOp::Read;
                if !is_read {
                    flip(io.data.as_deref_mut(), offset, value);
                }
                self.corrupted.push(Corrupted { tag: io.tag, is_read, offset, value });
                self.shelf.pass(io, self.inner.as_mut());
            }
        }
        Ok(())
    }

    fn flush(&mut self) {
        self.inner.flush();
    }

    fn cancel(&mut self, tag: IoTag) {
        if !self.shelf.cancel(tag) {
            self.inner.cancel(tag);
        }
    }

    fn poll(&mut self, now: Instant, on: &mut dyn FnMut(IoCompletion)) -> Progress {
        let resumed = self.plan.resumed.load(Ordering::Acquire);
        if resumed != self.resumed {
            self.resumed = resumed;
            self.shelf.unpark();
        }
        let moved = self.shelf.advance(now, self.inner.as_mut());
        if moved {
            self.inner.flush();
        }
        let FaultChannel { inner, corrupted, shelf, .. } = self;
        let mut progress = inner.poll(now, &mut |mut completion| {
            settle(corrupted, &mut completion);
            on(completion);
        });
        while let Some(mut completion) = shelf.next_done() {
            progress = Progress::Busy;
            settle(corrupted, &mut completion);
            on(completion);
        }
        progress.or(Progress::from_count(usize::from(moved)))
    }

    fn for_each_held(&self, visit: &mut dyn FnMut(IoTag)) {
        self.shelf.for_each(visit);
        self.inner.for_each_held(visit);
    }

    fn next_timeout(&self) -> Option<Instant> {
        self.shelf.next_timeout(self.inner.next_timeout())
    }

    fn wake_descriptor(&self) -> Option<i32> {
        self.inner.wake_descriptor()
    }

    fn register_pool(&mut self, pool: &BufferPool) -> bool {
        self.inner.register_pool(pool)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::{self, Bench, Traits};
    use crate::{IoValue, RamDisk, RamOptions};

    fn device() -> FaultDevice {
        let ram = RamDisk::new(&RamOptions { blocks: 4096, ..RamOptions::default() }).unwrap();
        FaultDevice::new(Arc::new(ram), 42)
    }

    fn fault(op: FaultOp, kind: FaultKind) -> Fault {
        Fault { op, blocks: None, per_million: 1_000_000, count: None, kind }
    }

    const BAD: FaultKind = FaultKind::Failure(BlockError::Medium { lba: None });

    fn read(bench: &mut Bench, lba: u64) -> Result<IoValue, BlockError> {
        let data = bench.buffer(512);
        bench.one(BlockOp::Read, lba, 1, Some(data)).result
    }

    #[test]
    fn a_device_without_faults_and_one_with_latency_conform() {
        conformance::run(&device(), 6, 400, Traits::default());
        let slow = device();
        let kind = FaultKind::Latency(Duration::from_micros(300));
        assert!(slow.inject(Fault { per_million: 300_000, ..fault(FaultOp::All, kind) }));
        conformance::run(&slow, 7, 400, Traits::default());
        assert!(slow.hits() > 50);
    }

    #[test]
    fn failures_hit_the_operation_the_blocks_and_the_count() {
        let device = device();
        let mut bench = Bench::new(&device);
        assert!(device.inject(Fault { blocks: Some(10..=19), count: Some(2), ..fault(FaultOp::Read, BAD) }));
        assert_eq!(read(&mut bench, 9), Ok(IoValue::Done));
        assert_eq!(read(&mut bench, 20), Ok(IoValue::Done));
        bench.fill(10, 512, 1, 1);
        assert_eq!(bench.one(BlockOp::Flush, 10, 1, None).result, Ok(IoValue::Done));
        assert_eq!(read(&mut bench, 10), Err(BlockError::Medium { lba: None }));
        let data = bench.buffer(2048);
        assert!(bench.one(BlockOp::Read, 7, 4, Some(data)).result.is_err(), "the last block of four");
        assert_eq!(read(&mut bench, 10), Ok(IoValue::Done));
        assert!(device.faults().is_empty());
        assert_eq!(device.hits(), 2);
    }

    #[test]
    fn chance_follows_the_seed() {
        let outcomes = || {
            let device = device();
            let mut bench = Bench::new(&device);
            assert!(device.inject(Fault { per_million: 250_000, ..fault(FaultOp::Read, BAD) }));
            (0..400).map(|lba| read(&mut bench, lba).is_err()).collect::<Vec<bool>>()
        };
        let first = outcomes();
        assert_eq!(first, outcomes());
        let failed = first.iter().filter(|&&failed| failed).count();
        assert!((60..140).contains(&failed), "{failed} of 400 at one in four");
    }

    #[test]
    fn pending_requests_hang_until_resumed_or_cancelled() {
        let device = device();
        let mut bench = Bench::new(&device);
        assert!(device.inject(Fault { count: Some(2), ..fault(FaultOp::Write, FaultKind::Pending) }));
        let mut tags = Vec::new();
        for lba in 0..2 {
            let mut data = bench.buffer(512);
            data.fill(7);
            tags.push(bench.submit(BlockOp::Write { fua: false }, lba, 1, Some(data)).unwrap());
        }
        assert!((0..50).all(|_| bench.turn().is_empty()));
        bench.channel().cancel(tags[0]);
        let done = bench.turn();
        assert_eq!((done.len(), done[0].tag, done[0].result), (1, tags[0], Err(BlockError::Cancelled)));
        assert!(
            bench.channel().next_timeout().is_some(),
            "a sleeping reactor must notice that they may go on"
        );
        device.resume_pending();
        let done = bench.drain();
        assert_eq!((done.len(), done[0].tag, done[0].result), (1, tags[1], Ok(IoValue::Done)));
        assert_eq!((bench.read(0, 512, 1), bench.read(1, 512, 1)), (vec![0; 512], vec![7; 512]));
    }

    #[test]
    fn corruption_of_a_read_is_seen_once_and_of_a_write_stays_on_the_medium() {
        let device = device();
        let mut bench = Bench::new(&device);
        let kind = FaultKind::Corrupt { offset: 3, value: 0x80 };
        bench.fill(0, 512, 1, 1);
        assert!(device.inject(Fault { count: Some(1), ..fault(FaultOp::Read, kind) }));
        assert_eq!(bench.read(0, 512, 1)[..5], [1, 1, 1, 0x81, 1]);
        assert_eq!(bench.read(0, 512, 1)[..5], [1; 5]);
        assert!(device.inject(Fault { count: Some(1), ..fault(FaultOp::Write, kind) }));
        let mut data = bench.buffer(512);
        data.fill(2);
        let done = bench.one(BlockOp::Write { fua: false }, 0, 1, Some(data));
        assert!(
            done.data.unwrap().iter().all(|&byte| byte == 2),
            "the submitter's buffer comes back as it was"
        );
        assert_eq!(bench.read(0, 512, 1)[..5], [2, 2, 2, 0x82, 2]);
    }

    #[test]
    fn verifications_comparisons_and_copies_fail_too_and_a_copy_on_either_side() {
        let device = device();
        let mut bench = Bench::new(&device);
        bench.fill(0, 512, 1, 1);
        let kind = FaultKind::Corrupt { offset: 511, value: 1 };
        assert!(device.inject(Fault { count: Some(1), ..fault(FaultOp::Compare, kind) }));
        for expected in [Err(BlockError::Miscompare), Ok(IoValue::Done)] {
            let mut data = bench.buffer(512);
            data.fill(1);
            let done = bench.one(BlockOp::Compare, 0, 1, Some(data));
            assert_eq!(done.result, expected);
            assert!(done.data.unwrap().iter().all(|&byte| byte == 1));
        }
        for op in [FaultOp::Verify, FaultOp::Copy] {
            assert!(device.inject(Fault { blocks: Some(7..=7), count: Some(2), ..fault(op, BAD) }));
        }
        let mut failed = |op, lba| bench.one(op, lba, 2, None).result.is_err();
        assert!(!failed(BlockOp::Verify, 5) && failed(BlockOp::Verify, 6) && failed(BlockOp::Verify, 7));
        let copy = |from| BlockOp::Copy { from };
        assert!(!failed(copy(0), 5) && !failed(copy(8), 5) && failed(copy(0), 6) && failed(copy(7), 0));
        assert!(device.faults().is_empty());
    }

    #[test]
    fn faults_that_do_nothing_or_are_too_many_are_refused_and_clear_ends_them() {
        let device = device();
        let mut bench = Bench::new(&device);
        assert!(!device.inject(fault(FaultOp::All, FaultKind::Corrupt { offset: 0, value: 0 })));
        assert!(!device.inject(Fault { count: Some(0), ..fault(FaultOp::All, BAD) }));
        assert!((0..FAULTS_MAX).all(|_| device.inject(fault(FaultOp::Read, BAD))));
        assert!(!device.inject(fault(FaultOp::Read, BAD)));
        assert!(read(&mut bench, 0).is_err());
        device.clear(FaultOp::Write);
        assert_eq!(device.faults().len(), FAULTS_MAX);
        device.clear(FaultOp::Read);
        assert_eq!(read(&mut bench, 0), Ok(IoValue::Done));
    }
}
