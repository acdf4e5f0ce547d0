//! One core's channels to the devices of the logical units: submission with a queue behind a full device, traffic
//! counters, and which channels need polling.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use base::{Instant, Key, Limits, Progress, Slab};
use bdev::{BlockDevice, BlockError, BlockIo, BlockOp, CoreShared, IoChannel, IoCompletion, IoTag};
use scsi::LogicalUnitId;

use crate::conductor::UnitTraffic;

/// The system's EBUSY: the request was refused because too many wait already.
const BUSY: i32 = 16;

/// One unit's channel.
struct Slot {
    channel: Box<dyn IoChannel>,
    block_size: u32,
    traffic: UnitTraffic,
    /// Requests the channel had no room for, oldest first.
    first_waiting: Option<Key>,
    last_waiting: Option<Key>,
    /// Something was submitted or cancelled since the last flush.
    dirty: bool,
    /// It is in `ChannelTable::active`.
    active: bool,
}

/// A request that waits for room, in its unit's list.
struct Waiting {
    io: BlockIo,
    next: Option<Key>,
}

/// What the counters need to know of a request until it completes.
struct Started {
    at: Instant,
    op: BlockOp,
    bytes: u64,
}

/// Mixes the two integers of a request's name. The names are the engine's own, so nobody outside can aim collisions.
#[derive(Default)]
struct TagHasher(u64);

impl Hasher for TagHasher {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }
    fn write_u32(&mut self, value: u32) {
        self.write_u64(u64::from(value));
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(23) ^ value).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

/// One core's channels, by logical unit.
pub struct ChannelTable {
    core: CoreShared,
    slots: Vec<Option<Slot>>,
    /// Units with requests outstanding: only these are polled, and only these can have timeouts or wake a reactor.
    active: Vec<LogicalUnitId>,
    waiting: Slab<Waiting>,
    started: HashMap<(u32, u64), Started, BuildHasherDefault<TagHasher>>,
    started_max: usize,
    /// Requests that ended without the device's help; reported by the next poll.
    ended: VecDeque<(LogicalUnitId, IoCompletion)>,
}

impl ChannelTable {
    /// The empty table of `core`. Memory for every request the engine may have outstanding is reserved now.
    #[must_use]
    pub fn new(core: CoreShared, limits: &Limits) -> ChannelTable {
        // The engine keeps a quarter more tasks for commands it refuses; they have no requests, but their aborts may.
        let tasks = (limits.tasks_max as usize).saturating_add((limits.tasks_max as usize / 4).max(64));
        let requests = tasks.saturating_mul(limits.bursts_per_task_max.max(1) as usize);
        let units = limits.logical_units_max as usize;
        ChannelTable {
            core,
            slots: Vec::with_capacity(units),
            active: Vec::with_capacity(units),
            waiting: Slab::with_capacity(requests),
            // Twice as much as there can be: a hash table half empty never has to grow to get rid of its tombstones.
            started: HashMap::with_capacity_and_hasher(
                requests.saturating_mul(2),
                BuildHasherDefault::default(),
            ),
            started_max: requests,
            ended: VecDeque::with_capacity(requests),
        }
    }

    /// Opens this core's channel to `device` for `unit`; an older one is closed first.
    ///
    /// # Errors
    /// The device's.
    pub fn open(&mut self, unit: LogicalUnitId, device: &Arc<dyn BlockDevice>) -> Result<(), BlockError> {
        self.close(unit);
        let channel = device.open_channel(&self.core)?;
        let index = unit.0 as usize;
        if index >= self.slots.len() {
            self.slots.resize_with(index + 1, || None);
        }
        let slot = Slot {
            channel,
            block_size: device.geometry().block_size,
            traffic: UnitTraffic { unit: Some(unit), ..UnitTraffic::default() },
            first_waiting: None,
            last_waiting: None,
            dirty: false,
            active: false,
        };
        if let Some(place) = self.slots.get_mut(index) {
            *place = Some(slot);
        }
        Ok(())
    }

    /// Closes the unit's channel. The engine does it when nothing is outstanding; requests that still wait for room
    /// end with [`BlockError::Gone`].
    pub fn close(&mut self, unit: LogicalUnitId) {
        let Some(mut slot) = self.slots.get_mut(unit.0 as usize).and_then(Option::take) else { return };
        while let Some(io) = slot.pop_waiting(&mut self.waiting) {
            self.started.remove(&(unit.0, io.tag.0));
            self.ended.push_back((unit, refused(io, BlockError::Gone)));
        }
        self.active.retain(|&active| active != unit);
    }

    /// Submits `io`, or lets it wait behind others when the channel is full. The completion comes out of
    /// [`ChannelTable::poll`], whatever happens.
    pub fn submit(&mut self, now: Instant, unit: LogicalUnitId, io: BlockIo) {
        let Some(slot) = self.slots.get_mut(unit.0 as usize).and_then(Option::as_mut) else {
            self.ended.push_back((unit, refused(io, BlockError::Gone)));
            return;
        };
        let (tag, op) = (io.tag, io.op);
        let bytes = match &io.data {
            Some(data) => data.len() as u64,
            None => io.blocks.saturating_mul(u64::from(slot.block_size)),
        };
        let unsubmitted = if slot.first_waiting.is_some() { Some(io) } else { slot.channel.submit(io).err() };
        match unsubmitted {
            None => slot.dirty = true,
            Some(io) => {
                if let Err(Waiting { io, .. }) = slot.push_waiting(&mut self.waiting, io) {
                    self.ended.push_back((unit, refused(io, BlockError::System(BUSY))));
                    return;
                }
            }
        }
        slot.traffic.outstanding = slot.traffic.outstanding.saturating_add(1);
        if !slot.active {
            slot.active = true;
            self.active.push(unit);
        }
        if self.started.len() < self.started_max {
            self.started.insert((unit.0, tag.0), Started { at: now, op, bytes });
        }
    }

    /// Hints that nobody wants `tag` any more. A request that still waits for room ends at once with
    /// [`BlockError::Cancelled`]; the others are the device's to end.
    pub fn cancel(&mut self, unit: LogicalUnitId, tag: IoTag) {
        let Some(slot) = self.slots.get_mut(unit.0 as usize).and_then(Option::as_mut) else { return };
        if let Some(io) = slot.take_waiting(&mut self.waiting, tag) {
            slot.traffic.outstanding = slot.traffic.outstanding.saturating_sub(1);
            self.started.remove(&(unit.0, tag.0));
            self.ended.push_back((unit, refused(io, BlockError::Cancelled)));
        } else {
            slot.channel.cancel(tag);
            slot.dirty = true;
        }
    }

    /// Hands every finished request to `on`, and gives the room they leave to those that wait.
    pub fn poll(&mut self, now: Instant, on: &mut dyn FnMut(LogicalUnitId, IoCompletion)) -> Progress {
        let mut progress = Progress::from_count(self.ended.len());
        while let Some((unit, completion)) = self.ended.pop_front() {
            on(unit, completion);
        }
        let (slots, started, waiting) = (&mut self.slots, &mut self.started, &mut self.waiting);
        self.active.retain(|&unit| {
            let Some(slot) = slots.get_mut(unit.0 as usize).and_then(Option::as_mut) else { return false };
            let traffic = &mut slot.traffic;
            let polled = slot.channel.poll(now, &mut |completion| {
                let begun = started.remove(&(unit.0, completion.tag.0));
                traffic.count(now, begun.as_ref(), completion.result.is_ok());
                on(unit, completion);
            });
            if slot.first_waiting.is_some() {
                progress = progress.or(slot.resubmit(waiting));
            }
            progress = progress.or(polled);
            // What was submitted or cancelled must still be flushed.
            slot.active = slot.traffic.outstanding > 0 || slot.dirty;
            slot.active
        });
        progress
    }

    /// Rings the doorbell of every channel that was given something.
    pub fn flush(&mut self) {
        for unit in &self.active {
            let Some(slot) = self.slots.get_mut(unit.0 as usize).and_then(Option::as_mut) else { continue };
            if slot.dirty {
                slot.dirty = false;
                slot.channel.flush();
            }
        }
    }

    /// When `poll` wants to be called although no descriptor is ready.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        let ended = (!self.ended.is_empty()).then_some(Instant::ZERO);
        self.active_slots().filter_map(|slot| slot.channel.next_timeout()).chain(ended).min()
    }

    /// The descriptors that tell of finished requests.
    pub fn wake_descriptors(&self, visit: &mut dyn FnMut(i32)) {
        self.active_slots().filter_map(|slot| slot.channel.wake_descriptor()).for_each(visit);
    }

    /// Counters of every open channel.
    pub fn traffic(&self) -> impl Iterator<Item = UnitTraffic> {
        self.slots.iter().flatten().map(|slot| slot.traffic)
    }

    /// Requests taken and not completed.
    #[must_use]
    pub fn outstanding(&self) -> u64 {
        self.active_slots().map(|slot| u64::from(slot.traffic.outstanding)).sum()
    }

    fn active_slots(&self) -> impl Iterator<Item = &Slot> {
        self.active.iter().filter_map(|unit| self.slots.get(unit.0 as usize)?.as_ref())
    }
}

impl Slot {
    fn push_waiting(&mut self, waiting: &mut Slab<Waiting>, io: BlockIo) -> Result<(), Waiting> {
        let key = waiting.insert(Waiting { io, next: None })?;
        match self.last_waiting.and_then(|last| waiting.get_mut(last)) {
            Some(last) => last.next = Some(key),
            None => self.first_waiting = Some(key),
        }
        self.last_waiting = Some(key);
        Ok(())
    }

    fn pop_waiting(&mut self, waiting: &mut Slab<Waiting>) -> Option<BlockIo> {
        let removed = waiting.remove(self.first_waiting?)?;
        self.first_waiting = removed.next;
        if removed.next.is_none() {
            self.last_waiting = None;
        }
        Some(removed.io)
    }

    fn take_waiting(&mut self, waiting: &mut Slab<Waiting>, tag: IoTag) -> Option<BlockIo> {
        let mut before: Option<Key> = None;
        let mut at = self.first_waiting;
        while let Some(key) = at {
            let entry = waiting.get(key)?;
            let next = entry.next;
            if entry.io.tag == tag {
                match before.and_then(|before| waiting.get_mut(before)) {
                    Some(before) => before.next = next,
                    None => self.first_waiting = next,
                }
                if next.is_none() {
                    self.last_waiting = before;
                }
                return waiting.remove(key).map(|removed| removed.io);
            }
            (before, at) = (at, next);
        }
        None
    }

    /// Submits what waits, in order, until the channel is full again.
    fn resubmit(&mut self, waiting: &mut Slab<Waiting>) -> Progress {
        let mut progress = Progress::Idle;
        while let Some(io) = self.pop_waiting(waiting) {
            if let Err(io) = self.channel.submit(io) {
                self.unpop_waiting(waiting, io);
                break;
            }
            self.dirty = true;
            progress = Progress::Busy;
        }
        progress
    }

    /// Puts back what [`Slot::pop_waiting`] has just taken out.
    fn unpop_waiting(&mut self, waiting: &mut Slab<Waiting>, io: BlockIo) {
        // The slot it came from is free, so there is room.
        if let Ok(key) = waiting.insert(Waiting { io, next: self.first_waiting }) {
            self.first_waiting = Some(key);
            self.last_waiting = self.last_waiting.or(Some(key));
        }
    }
}

impl UnitTraffic {
    fn count(&mut self, now: Instant, begun: Option<&Started>, good: bool) {
        self.outstanding = self.outstanding.saturating_sub(1);
        if !good {
            self.errors = self.errors.saturating_add(1);
            return;
        }
        let Some(begun) = begun else { return };
        let (operations, bytes, latency_ns) = match begun.op {
            BlockOp::Read => (&mut self.reads, &mut self.bytes_read, &mut self.read_latency_ns),
            BlockOp::Write { .. } => (&mut self.writes, &mut self.bytes_written, &mut self.write_latency_ns),
            BlockOp::WriteZeroes { .. } | BlockOp::Discard => {
                (&mut self.unmaps, &mut self.bytes_unmapped, &mut self.unmap_latency_ns)
            }
            BlockOp::Flush | BlockOp::Extent | BlockOp::Verify | BlockOp::Compare | BlockOp::Copy { .. } => {
                return;
            }
        };
        *operations = operations.saturating_add(1);
        *bytes = bytes.saturating_add(begun.bytes);
        let passed = now.as_nanos().saturating_sub(begun.at.as_nanos());
        *latency_ns = latency_ns.saturating_add(passed);
    }
}

fn refused(io: BlockIo, error: BlockError) -> IoCompletion {
    IoCompletion { tag: io.tag, result: Err(error), data: io.data }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::{BufferPool, CoreId};
    use bdev::{Geometry, IoValue, Provisioning};
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// A device with room for two requests a channel; completes what `allowed` says, oldest first.
    #[derive(Default)]
    struct Narrow {
        allowed: AtomicUsize,
        submitted: Mutex<Vec<u64>>,
        flushes: AtomicUsize,
        cancelled: Mutex<Vec<u64>>,
    }

    struct NarrowDevice(Arc<Narrow>);
    struct NarrowChannel(Arc<Narrow>, VecDeque<BlockIo>);

    impl BlockDevice for NarrowDevice {
        fn geometry(&self) -> Geometry {
            Geometry {
                block_size: 512,
                blocks: 1 << 20,
                physical_block_exponent: 0,
                lowest_aligned_block: 0,
                optimal_granularity_blocks: 0,
                optimal_transfer_blocks: 0,
                write_cache: false,
                read_only: false,
                rotational: false,
                provisioning: Provisioning::default(),
                buffer_alignment: 1,
                capabilities: bdev::Capabilities::default(),
                atomic: bdev::AtomicWrites::default(),
            }
        }
        fn product_name(&self) -> &'static str {
            "narrow"
        }
        fn open_channel(&self, _: &CoreShared) -> Result<Box<dyn IoChannel>, BlockError> {
            Ok(Box::new(NarrowChannel(Arc::clone(&self.0), VecDeque::new())))
        }
    }

    impl IoChannel for NarrowChannel {
        fn submit(&mut self, io: BlockIo) -> Result<(), BlockIo> {
            if self.1.len() == 2 {
                return Err(io);
            }
            self.0.submitted.lock().unwrap().push(io.tag.0);
            self.1.push_back(io);
            Ok(())
        }
        fn flush(&mut self) {
            self.0.flushes.fetch_add(1, Ordering::Relaxed);
        }
        fn cancel(&mut self, tag: IoTag) {
            self.0.cancelled.lock().unwrap().push(tag.0);
        }
        fn poll(&mut self, _: Instant, on: &mut dyn FnMut(IoCompletion)) -> Progress {
            let mut count = 0;
            while self.0.allowed.load(Ordering::Relaxed) > 0 {
                let Some(io) = self.1.pop_front() else { break };
                self.0.allowed.fetch_sub(1, Ordering::Relaxed);
                let result =
                    if io.lba == 666 { Err(BlockError::Medium { lba: None }) } else { Ok(IoValue::Done) };
                on(IoCompletion { tag: io.tag, result, data: io.data });
                count += 1;
            }
            Progress::from_count(count)
        }
        fn for_each_held(&self, visit: &mut dyn FnMut(IoTag)) {
            self.1.iter().for_each(|io| visit(io.tag));
        }
        fn wake_descriptor(&self) -> Option<i32> {
            Some(99)
        }
    }

    const UNIT: LogicalUnitId = LogicalUnitId(3);

    fn table(limits: &Limits) -> (ChannelTable, Arc<Narrow>) {
        let narrow = Arc::new(Narrow::default());
        let mut table = ChannelTable::new(CoreShared::new(CoreId(0)), limits);
        let device: Arc<dyn BlockDevice> = Arc::new(NarrowDevice(Arc::clone(&narrow)));
        table.open(UNIT, &device).unwrap();
        (table, narrow)
    }

    fn io(tag: u64, op: BlockOp) -> BlockIo {
        BlockIo { tag: IoTag(tag), op, lba: 0, blocks: 8, data: None }
    }

    fn poll(table: &mut ChannelTable, at: u64) -> Vec<(u64, Result<IoValue, BlockError>)> {
        let mut seen = Vec::new();
        table.poll(Instant::from_nanos(at), &mut |unit, completion| {
            assert_eq!(unit, UNIT);
            seen.push((completion.tag.0, completion.result));
        });
        seen
    }

    #[test]
    fn requests_wait_in_order_behind_a_full_channel() {
        let (mut table, narrow) = table(&Limits::default());
        for tag in 1..=5 {
            table.submit(Instant::ZERO, UNIT, io(tag, BlockOp::Discard));
        }
        table.flush();
        assert_eq!(narrow.flushes.load(Ordering::Relaxed), 1);
        assert_eq!(*narrow.submitted.lock().unwrap(), [1, 2]);
        assert_eq!(table.outstanding(), 5);
        // The fourth is cancelled while it waits, the first while the device has it.
        table.cancel(UNIT, IoTag(4));
        table.cancel(UNIT, IoTag(1));
        assert_eq!(*narrow.cancelled.lock().unwrap(), [1]);
        narrow.allowed.store(1, Ordering::Relaxed);
        assert_eq!(poll(&mut table, 10), [(4, Err(BlockError::Cancelled)), (1, Ok(IoValue::Done))]);
        assert_eq!(*narrow.submitted.lock().unwrap(), [1, 2, 3]);
        narrow.allowed.store(10, Ordering::Relaxed);
        assert_eq!(poll(&mut table, 20), [(2, Ok(IoValue::Done)), (3, Ok(IoValue::Done))]);
        assert_eq!(poll(&mut table, 30), [(5, Ok(IoValue::Done))]);
        assert_eq!(table.outstanding(), 0);
        assert!(table.waiting.is_empty() && table.started.is_empty());
    }

    #[test]
    fn the_last_of_the_waiting_can_be_cancelled_and_followed() {
        let (mut table, narrow) = table(&Limits::default());
        for tag in 1..=4 {
            table.submit(Instant::ZERO, UNIT, io(tag, BlockOp::Discard));
        }
        table.cancel(UNIT, IoTag(4));
        table.submit(Instant::ZERO, UNIT, io(5, BlockOp::Discard));
        narrow.allowed.store(10, Ordering::Relaxed);
        let mut seen = Vec::new();
        for _ in 0..3 {
            seen.extend(poll(&mut table, 1).into_iter().map(|(tag, _)| tag));
        }
        assert_eq!(seen, [4, 1, 2, 3, 5]);
    }

    #[test]
    fn traffic_counts_what_completed() {
        let pool = BufferPool::plain(&[base::PoolClass { size: 4096, count: 2 }]);
        let (mut table, narrow) = table(&Limits::default());
        let data = pool.acquire(4096);
        table.submit(Instant::from_nanos(100), UNIT, BlockIo { data, ..io(1, BlockOp::Read) });
        table.submit(
            Instant::from_nanos(150),
            UNIT,
            BlockIo { lba: 666, ..io(2, BlockOp::Write { fua: false }) },
        );
        narrow.allowed.store(10, Ordering::Relaxed);
        poll(&mut table, 400);
        table.submit(Instant::from_nanos(500), UNIT, io(3, BlockOp::Discard));
        poll(&mut table, 600);
        let expected = UnitTraffic {
            unit: Some(UNIT),
            reads: 1,
            bytes_read: 4096,
            read_latency_ns: 300,
            unmaps: 1,
            bytes_unmapped: 4096,
            unmap_latency_ns: 100,
            errors: 1,
            ..UnitTraffic::default()
        };
        assert_eq!(table.traffic().collect::<Vec<_>>(), [expected]);
    }

    #[test]
    fn a_closed_unit_refuses_and_only_active_ones_are_watched() {
        let (mut table, _) = table(&Limits { tasks_max: 2, bursts_per_task_max: 1, ..Limits::default() });
        let watched = |table: &ChannelTable| {
            let mut count = 0;
            table.wake_descriptors(&mut |_| count += 1);
            count
        };
        assert_eq!(watched(&table), 0);
        // Two in the device, 66 waiting (two tasks, and 64 in reserve), and one too many.
        for tag in 1..=69 {
            table.submit(Instant::ZERO, UNIT, io(tag, BlockOp::Flush));
        }
        assert_eq!(watched(&table), 1);
        assert_eq!(table.next_timeout(), Some(Instant::ZERO));
        assert_eq!(poll(&mut table, 1), [(69, Err(BlockError::System(BUSY)))]);
        assert_eq!(table.next_timeout(), None);
        table.close(UNIT);
        assert_eq!(watched(&table), 0);
        table.submit(Instant::ZERO, UNIT, io(100, BlockOp::Flush));
        let expected: Vec<_> = (3..=68).chain([100]).map(|tag| (tag, Err(BlockError::Gone))).collect();
        assert_eq!(poll(&mut table, 2), expected);
    }
}
