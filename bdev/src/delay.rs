//! Middleware that makes a device slow: every read and write waits before it reaches the inner device.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base::{BufferPool, Instant, Prng, Progress};

use crate::shelf::Shelf;
use crate::{
    BlockDevice, BlockError, BlockIo, BlockOp, CoreShared, DeviceIdentity, Geometry, Health, IoChannel,
    IoCompletion, IoTag,
};

/// How long requests wait, in microseconds: `average` for 99 of 100, `p99` for the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Latencies {
    /// Reads, verifications and comparisons, most of them.
    pub average_read: u64,
    /// Of the same, one of a hundred.
    pub p99_read: u64,
    /// Writes, zero-writes and copies, most of them.
    pub average_write: u64,
    /// Of the same, one of a hundred.
    pub p99_write: u64,
}

#[derive(Debug, Default)]
struct Settings {
    average_read: AtomicU64,
    p99_read: AtomicU64,
    average_write: AtomicU64,
    p99_write: AtomicU64,
}

/// A device that delays what goes to an inner one. Discards, flushes and extent queries are not delayed.
pub struct DelayDevice {
    inner: Arc<dyn BlockDevice>,
    settings: Arc<Settings>,
}

impl DelayDevice {
    /// Wraps `inner`.
    #[must_use]
    pub fn new(inner: Arc<dyn BlockDevice>, latencies: Latencies) -> DelayDevice {
        let device = DelayDevice { inner, settings: Arc::new(Settings::default()) };
        device.change(latencies);
        device
    }

    /// Changes the latencies for requests that come from now on, on all cores.
    pub fn change(&self, latencies: Latencies) {
        let settings = &self.settings;
        settings.average_read.store(latencies.average_read, Ordering::Relaxed);
        settings.p99_read.store(latencies.p99_read, Ordering::Relaxed);
        settings.average_write.store(latencies.average_write, Ordering::Relaxed);
        settings.p99_write.store(latencies.p99_write, Ordering::Relaxed);
    }

    /// The latencies now.
    #[must_use]
    pub fn latencies(&self) -> Latencies {
        let settings = &self.settings;
        Latencies {
            average_read: settings.average_read.load(Ordering::Relaxed),
            p99_read: settings.p99_read.load(Ordering::Relaxed),
            average_write: settings.average_write.load(Ordering::Relaxed),
            p99_write: settings.p99_write.load(Ordering::Relaxed),
        }
    }
}

impl BlockDevice for DelayDevice {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }
    fn product_name(&self) -> &'static str {
        "delay"
    }
    fn open_channel(&self, core: &CoreShared) -> Result<Box<dyn IoChannel>, BlockError> {
        Ok(Box::new(DelayChannel {
            inner: self.inner.open_channel(core)?,
            settings: self.settings.clone(),
            shelf: Shelf::new(),
            random: Prng::new(u64::from(core.core().0)),
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

struct DelayChannel {
    inner: Box<dyn IoChannel>,
    settings: Arc<Settings>,
    shelf: Shelf,
    random: Prng,
}

impl DelayChannel {
    fn delay_of(&mut self, op: BlockOp) -> Duration {
        let settings = &self.settings;
        let (average, p99) = match op {
            BlockOp::Read | BlockOp::Verify | BlockOp::Compare => {
                (&settings.average_read, &settings.p99_read)
            }
            BlockOp::Write { .. } | BlockOp::WriteZeroes { .. } | BlockOp::Copy { .. } => {
                (&settings.average_write, &settings.p99_write)
            }
            BlockOp::Discard | BlockOp::Flush | BlockOp::Extent => return Duration::ZERO,
        };
        let setting = if self.random.chance(1, 100) { p99 } else { average };
        Duration::from_micros(setting.load(Ordering::Relaxed))
    }
}

impl IoChannel for DelayChannel {
    fn submit(&mut self, io: BlockIo) -> Result<(), BlockIo> {
        if self.shelf.is_full() {
            return Err(io);
        }
        let delay = self.delay_of(io.op);
        if delay.is_zero() {
            self.shelf.pass(io, self.inner.as_mut());
        } else {
            self.shelf.delay(io, delay);
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
        let moved = self.shelf.advance(now, self.inner.as_mut());
        if moved {
            self.inner.flush();
        }
        let mut progress = self.inner.poll(now, on).or(Progress::from_count(usize::from(moved)));
        while let Some(completion) = self.shelf.next_done() {
            progress = Progress::Busy;
            on(completion);
        }
        progress
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

    fn device(latencies: Latencies) -> DelayDevice {
        let ram = RamDisk::new(&RamOptions { blocks: 4096, ..RamOptions::default() }).unwrap();
        DelayDevice::new(Arc::new(ram), latencies)
    }

    const SLOW: Latencies =
        Latencies { average_read: 1000, p99_read: 1000, average_write: 3000, p99_write: 3000 };

    #[test]
    fn a_delayed_device_conforms() {
        let latencies = Latencies { average_read: 50, p99_read: 900, average_write: 0, p99_write: 400 };
        conformance::run(&device(latencies), 5, 500, Traits::default());
    }

    #[test]
    fn requests_wait_at_least_their_latency_and_not_much_longer() {
        let device = device(SLOW);
        let mut bench = Bench::new(&device);
        for (op, micros) in
            [(BlockOp::Read, 1000), (BlockOp::Write { fua: false }, 3000), (BlockOp::Flush, 0)]
        {
            // The clock runs on while nothing is asked: the wait must not be shortened by that.
            bench.advance(Duration::from_secs(1));
            let start = bench.now();
            let data = (op != BlockOp::Flush).then(|| bench.buffer(512));
            assert_eq!(bench.one(op, 0, 1, data).result, Ok(IoValue::Done));
            let took = bench.now() - start;
            let wanted = Duration::from_micros(micros);
            assert!(took >= wanted && took <= wanted + Duration::from_micros(60), "{op:?} took {took:?}");
        }
    }

    #[test]
    fn the_timeout_is_when_the_first_is_due_and_latencies_change_live() {
        let device = device(SLOW);
        let mut bench = Bench::new(&device);
        let data = bench.buffer(512);
        bench.submit(BlockOp::Write { fua: false }, 0, 1, Some(data)).unwrap();
        assert!(bench.turn().is_empty());
        let stamped = bench.now();
        device.change(Latencies { average_read: 100, p99_read: 100, ..SLOW });
        let data = bench.buffer(512);
        bench.submit(BlockOp::Read, 9, 1, Some(data)).unwrap();
        assert!(bench.turn().is_empty());
        assert_eq!(bench.channel().next_timeout(), Some(stamped + Duration::from_micros(120)));
        bench.advance(Duration::from_micros(100));
        assert_eq!(bench.turn().len(), 1);
        assert_eq!(bench.channel().next_timeout(), Some(stamped + Duration::from_micros(3000)));
        bench.drain();
        assert_eq!(bench.channel().next_timeout(), None);
    }

    #[test]
    fn a_held_request_is_cancelled_and_never_reaches_the_medium() {
        let device = device(SLOW);
        let mut bench = Bench::new(&device);
        for turns in 0..2 {
            let mut data = bench.buffer(512);
            data.fill(9);
            let tag = bench.submit(BlockOp::Write { fua: false }, 0, 1, Some(data)).unwrap();
            (0..turns).for_each(|_| assert!(bench.turn().is_empty()));
            bench.channel().cancel(tag);
            bench.channel().cancel(tag);
            let done = bench.turn();
            assert_eq!(done.len(), 1);
            assert_eq!(done[0].result, Err(BlockError::Cancelled));
            assert!(done[0].data.is_some());
        }
        assert_eq!(bench.read(0, 512, 1), [0; 512]);
    }

    #[test]
    fn the_shelf_is_bounded() {
        let device = device(SLOW);
        let mut bench = Bench::new(&device);
        let zeroes = BlockOp::WriteZeroes { may_deallocate: true, fua: false };
        for _ in 0..crate::shelf::CAPACITY {
            bench.submit(zeroes, 0, 1, None).unwrap();
        }
        assert!(bench.submit(zeroes, 0, 1, None).is_err());
        assert_eq!(bench.drain().len(), crate::shelf::CAPACITY);
    }
}
