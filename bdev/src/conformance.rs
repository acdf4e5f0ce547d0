//! The test kit every device must pass: random requests checked against a model, malformed requests, and
//! "every request completes exactly once with its buffer". For tests; it panics where a device breaks a promise.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use base::{BufferPool, CoreId, DataBuf, Instant, PoolClass, Prng};

use crate::{
    BlockDevice, BlockError, BlockIo, BlockOp, CoreShared, ExtentState, IoChannel, IoCompletion, IoTag,
    IoValue,
};

/// What is peculiar about the device under test.
#[derive(Debug, Clone, Copy, Default)]
pub struct Traits {
    /// Writes vanish and reads are zeros: the null disk.
    pub forgets_writes: bool,
}

/// One channel, a pool and a clock: the smallest thing that can drive a device.
pub struct Bench {
    channel: Box<dyn IoChannel>,
    pool: BufferPool,
    now: Instant,
    next_tag: u64,
    held: BTreeSet<IoTag>,
}

impl Bench {
    /// A bench with its own channel, opened for core 0.
    ///
    /// # Panics
    /// When the device opens no channel.
    #[must_use]
    pub fn new(device: &dyn BlockDevice) -> Bench {
        let classes = [PoolClass { size: 4096, count: 64 }, PoolClass { size: 1 << 20, count: 24 }];
        Bench {
            channel: device.open_channel(&CoreShared::new(CoreId(0))).expect("a channel"),
            pool: BufferPool::plain(&classes),
            now: Instant::from_nanos(1),
            next_tag: 1,
            held: BTreeSet::new(),
        }
    }

    /// The channel itself.
    pub fn channel(&mut self) -> &mut dyn IoChannel {
        self.channel.as_mut()
    }

    /// The pool that [`Bench::buffer`] draws from.
    #[must_use]
    pub fn pool(&self) -> &BufferPool {
        &self.pool
    }

    /// The bench's present time; every turn of polling advances it by 20 µs.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.now
    }

    /// Advances the clock.
    pub fn advance(&mut self, by: Duration) {
        self.now = self.now + by;
    }

    /// A buffer of `length` bytes.
    ///
    /// # Panics
    /// When the pool is empty.
    #[must_use]
    pub fn buffer(&self, length: usize) -> DataBuf {
        self.pool.acquire(u32::try_from(length).expect("a length below 4 GiB")).expect("a buffer")
    }

    /// Submits a request and returns its tag, or gives the request back when the channel is full.
    ///
    /// # Errors
    /// The request, when the channel is full.
    pub fn submit(
        &mut self,
        op: BlockOp,
        lba: u64,
        blocks: u64,
        data: Option<DataBuf>,
    ) -> Result<IoTag, BlockIo> {
        let tag = IoTag(self.next_tag);
        self.channel.submit(BlockIo { tag, op, lba, blocks, data })?;
        self.next_tag += 1;
        assert!(self.held.insert(tag));
        Ok(tag)
    }

    /// One flush and poll; the completions of this turn.
    ///
    /// # Panics
    /// When something completes that was not outstanding.
    pub fn turn(&mut self) -> Vec<IoCompletion> {
        self.now = self.now + Duration::from_micros(20);
        self.channel.flush();
        let mut done = Vec::new();
        let _ = self.channel.poll(self.now, &mut |completion| done.push(completion));
        for completion in &done {
            assert!(
                self.held.remove(&completion.tag),
                "{:?} completed twice or was never submitted",
                completion.tag
            );
        }
        let mut reported = BTreeSet::new();
        self.channel.for_each_held(&mut |tag| assert!(reported.insert(tag), "{tag:?} is held twice"));
        assert_eq!(reported, self.held, "what the channel says it holds");
        if done.is_empty() {
            std::thread::sleep(Duration::from_micros(20));
        }
        done
    }

    /// Polls until nothing is outstanding.
    ///
    /// # Panics
    /// When that takes more than 20 seconds.
    pub fn drain(&mut self) -> Vec<IoCompletion> {
        let mut all = Vec::new();
        let start = std::time::Instant::now();
        while !self.held.is_empty() {
            all.extend(self.turn());
            assert!(start.elapsed() < Duration::from_secs(20), "{:?} never completed", self.held);
        }
        all
    }

    /// Does one request from beginning to end, with nothing else outstanding.
    ///
    /// # Panics
    /// When the channel is full or does not answer.
    pub fn one(&mut self, op: BlockOp, lba: u64, blocks: u64, data: Option<DataBuf>) -> IoCompletion {
        assert!(self.held.is_empty());
        assert!(self.submit(op, lba, blocks, data).is_ok(), "an idle channel is full");
        self.drain().pop().expect("one completion")
    }

    /// Writes `byte` all over a range, and expects success.
    ///
    /// # Panics
    /// When the write fails.
    pub fn fill(&mut self, lba: u64, bytes: usize, blocks: u64, byte: u8) {
        let mut data = self.buffer(bytes);
        data.fill(byte);
        assert_eq!(
            self.one(BlockOp::Write { fua: false }, lba, blocks, Some(data)).result,
            Ok(IoValue::Done)
        );
    }

    /// Reads a range, and expects success.
    ///
    /// # Panics
    /// When the read fails.
    pub fn read(&mut self, lba: u64, bytes: usize, blocks: u64) -> Vec<u8> {
        let mut data = self.buffer(bytes);
        data.fill(0xA5);
        let done = self.one(BlockOp::Read, lba, blocks, Some(data));
        assert_eq!(done.result, Ok(IoValue::Done));
        done.data.expect("the buffer").to_vec()
    }
}

/// A request in flight, and what its completion must look like.
struct Expected {
    op: BlockOp,
    lba: u64,
    blocks: u64,
    /// Where a copy comes from.
    source: Option<u64>,
    content: Vec<u8>,
    fails_with: Option<BlockError>,
}

impl Expected {
    /// True when it touches one of these blocks.
    fn touches(&self, lba: u64, blocks: u64) -> bool {
        let touches = |own: u64| lba < own + self.blocks && own < lba + blocks;
        touches(self.lba) || self.source.is_some_and(touches)
    }
}

struct Trial<'a> {
    bench: Bench,
    random: Prng,
    model: Vec<u8>,
    block: usize,
    blocks: u64,
    expected: BTreeMap<IoTag, Expected>,
    traits: Traits,
    device: &'a dyn BlockDevice,
}

/// Runs `operations` random requests, several at once, then the malformed ones. The device must have been fresh
/// (all zeros) and be not shorter than 256 blocks; the first 16 MiB at most are used.
///
/// # Panics
/// When the device breaks a promise.
pub fn run(device: &dyn BlockDevice, seed: u64, operations: u32, traits: Traits) {
    let geometry = device.geometry();
    let block = geometry.block_size as usize;
    let blocks = geometry.blocks.min((16 << 20) / block as u64);
    let model = vec![0; blocks as usize * block];
    let bench = Bench::new(device);
    let mut trial = Trial {
        bench,
        random: Prng::new(seed),
        model,
        block,
        blocks,
        expected: BTreeMap::new(),
        traits,
        device,
    };
    for _ in 0..operations {
        trial.submit_one();
        if trial.random.chance(1, 3) {
            let done = trial.bench.turn();
            trial.settle(done);
        }
    }
    let done = trial.bench.drain();
    trial.settle(done);
    trial.read_all();
    promises_make_sense(device);
    trial.extents_are_truthful();
    trial.malformed();
    trial.cancel_completes_once();
    assert_eq!(trial.bench.pool.statistics().outstanding, 0, "a buffer did not come home");
}

/// The promises of the geometry do not contradict each other.
fn promises_make_sense(device: &dyn BlockDevice) {
    let geometry = device.geometry();
    let atomic = geometry.atomic;
    if atomic.blocks_max > 0 {
        let granularity = atomic.granularity_blocks.max(1);
        assert!(atomic.blocks_max >= granularity, "{atomic:?}");
        assert!(atomic.boundary_blocks.is_multiple_of(granularity), "{atomic:?}");
    }
    assert!(geometry.provisioning.granularity_blocks >= 1, "{:?}", geometry.provisioning);
    if let Some(health) = device.health() {
        assert!(health.available_spare_percent.is_none_or(|percent| percent <= 100), "{health:?}");
    }
}

impl Trial<'_> {
    /// A range that overlaps nothing in flight, so that the outcome is defined.
    fn range(&mut self) -> Option<(u64, u64)> {
        let longest = ((256 << 10) / self.block as u64).clamp(1, self.blocks);
        let blocks = if self.random.chance(1, 2) {
            self.random.between(1, 8)
        } else {
            self.random.between(1, longest)
        };
        let blocks = blocks.min(longest);
        let lba = self.random.below(self.blocks - blocks + 1);
        let free = !self.expected.values().any(|other| other.touches(lba, blocks));
        free.then_some((lba, blocks))
    }

    /// Where `blocks` may be copied from to `lba`.
    fn range_beside(&mut self, lba: u64, blocks: u64) -> Option<u64> {
        let from = self.random.below(self.blocks - blocks + 1);
        let busy = self.expected.values().any(|other| other.touches(from, blocks));
        (!busy && from.abs_diff(lba) >= blocks).then_some(from)
    }

    fn submit_one(&mut self) {
        let Some((lba, blocks)) = self.range() else { return };
        let length = blocks as usize * self.block;
        let (from, to) = (lba as usize * self.block, lba as usize * self.block + length);
        let geometry = self.device.geometry();
        let (provisioning, capabilities) = (geometry.provisioning, geometry.capabilities);
        let mut data = None;
        let fua = self.random.chance(1, 8);
        let op = match self.random.below(20) {
            0..5 => BlockOp::Read,
            5..11 => BlockOp::Write { fua },
            11 | 12 => BlockOp::WriteZeroes { may_deallocate: self.random.chance(1, 2), fua },
            13 if provisioning.discard && provisioning.reads_zeros => BlockOp::Discard,
            14 if provisioning.reports_extents => BlockOp::Extent,
            15 if capabilities.verify => BlockOp::Verify,
            16 | 17 if capabilities.compare => BlockOp::Compare,
            18 if capabilities.copy_blocks_max >= blocks => match self.range_beside(lba, blocks) {
                Some(from) => BlockOp::Copy { from },
                None => return,
            },
            _ => BlockOp::Flush,
        };
        if op.has_payload() {
            // Sometimes the buffer starts in the middle of a slot: unaligned.
            let skew = if self.random.chance(1, 4) { self.random.between(1, 600) as usize } else { 0 };
            let Some(mut buffer) = self.bench.pool.acquire((length + skew) as u32) else { return };
            drop(buffer.split_to(skew));
            self.random.fill(&mut buffer);
            data = Some(buffer);
        }
        let before = self.model.get(from..to).expect("a range of the model").to_vec();
        if op == BlockOp::Compare
            && let Some(buffer) = &mut data
        {
            buffer.copy_from_slice(&before);
            if self.random.chance(1, 2) {
                let at = self.random.below(length as u64) as usize;
                buffer[at] ^= self.random.between(1, 255) as u8;
            }
        }
        let content = data.as_deref().map(<[u8]>::to_vec).unwrap_or_default();
        let Ok(tag) = self.bench.submit(op, lba, blocks, data) else {
            let done = self.bench.drain();
            return self.settle(done);
        };
        let mut fails_with = None;
        let mut source = None;
        if let BlockOp::Copy { from } = op {
            source = Some(from);
            self.model.copy_within(
                from as usize * self.block..from as usize * self.block + length,
                lba as usize * self.block,
            );
        }
        let target = self.model.get_mut(from..to).expect("a range of the model");
        let content = match op {
            BlockOp::Write { .. } if self.traits.forgets_writes => content,
            BlockOp::Compare => {
                fails_with = (content != before).then_some(BlockError::Miscompare);
                content
            }
            BlockOp::Write { .. } => {
                target.copy_from_slice(&content);
                content
            }
            BlockOp::WriteZeroes { .. } | BlockOp::Discard => {
                target.fill(0);
                Vec::new()
            }
            _ => before,
        };
        self.expected.insert(tag, Expected { op, lba, blocks, source, content, fails_with });
    }

    fn settle(&mut self, completions: Vec<IoCompletion>) {
        for completion in completions {
            let expected = self.expected.remove(&completion.tag).expect("a completion that was asked for");
            let value = match (completion.result, expected.fails_with) {
                (Err(error), Some(wanted)) if error == wanted => IoValue::Done,
                (Ok(value), None) => value,
                (result, wanted) => panic!("{:?}: {result:?} instead of {wanted:?}", expected.op),
            };
            match (expected.op, value) {
                (BlockOp::Read | BlockOp::Write { .. } | BlockOp::Compare, IoValue::Done) => {
                    let data = completion.data.expect("the buffer comes back");
                    assert!(
                        *data == *expected.content,
                        "{:?} of {} blocks at {}",
                        expected.op,
                        expected.blocks,
                        expected.lba
                    );
                }
                (BlockOp::Extent, IoValue::Extent(extent)) => {
                    assert!(extent.blocks >= 1 && extent.blocks <= expected.blocks, "{extent:?}");
                    let bytes = extent.blocks as usize * self.block;
                    let zeros = expected.content.iter().take(bytes).all(|&byte| byte == 0);
                    assert!(extent.state == ExtentState::Mapped || zeros, "unmapped blocks that hold data");
                }
                (_, value) => assert_eq!(value, IoValue::Done),
            }
        }
    }

    fn read_all(&mut self) {
        let step = ((1 << 20) / self.block as u64).min(self.blocks);
        let mut lba = 0;
        while lba < self.blocks {
            let blocks = step.min(self.blocks - lba);
            let content = self.bench.read(lba, blocks as usize * self.block, blocks);
            let from = lba as usize * self.block;
            assert!(
                content == self.model[from..from + content.len()],
                "final content of {blocks} blocks at {lba}"
            );
            lba += blocks;
        }
    }

    fn extents_are_truthful(&mut self) {
        if !self.device.geometry().provisioning.reports_extents {
            return;
        }
        let mut lba = 0;
        while lba < self.blocks {
            let done = self.bench.one(BlockOp::Extent, lba, self.blocks - lba, None);
            let Ok(IoValue::Extent(extent)) = done.result else {
                panic!("Extent answered {:?}", done.result)
            };
            assert!(extent.blocks >= 1 && extent.blocks <= self.blocks - lba, "{extent:?}");
            let from = lba as usize * self.block;
            let zeros =
                self.model[from..from + extent.blocks as usize * self.block].iter().all(|&byte| byte == 0);
            assert!(extent.state == ExtentState::Mapped || zeros, "{extent:?} at {lba} holds data");
            lba += extent.blocks;
        }
    }

    fn malformed(&mut self) {
        let end = self.device.geometry().blocks;
        let block = self.block;
        let capabilities = self.device.geometry().capabilities;
        let compare = capabilities.compare.then_some(BlockOp::Compare);
        for op in [BlockOp::Read, BlockOp::Write { fua: false }].into_iter().chain(compare) {
            assert!(self.bench.one(op, 0, 1, None).result.is_err(), "no buffer");
            for length in [0, 1, block - 1, block + 1, 2 * block] {
                let data = self.bench.buffer(length);
                let done = self.bench.one(op, 0, 1, Some(data));
                assert!(done.result.is_err(), "a buffer of {length} bytes for a block of {block}");
                assert_eq!(done.data.map(|data| data.len()), Some(length));
            }
            let data = self.bench.buffer(block);
            assert!(self.bench.one(op, 0, u64::MAX, Some(data)).result.is_err());
            let data = self.bench.buffer(0);
            assert_eq!(
                self.bench.one(op, 0, 0, Some(data)).result,
                Ok(IoValue::Done),
                "no blocks is no error"
            );
            for lba in [end, u64::MAX] {
                let data = self.bench.buffer(block);
                assert_eq!(self.bench.one(op, lba, 1, Some(data)).result, Err(BlockError::OutOfRange));
            }
        }
        let zeroes = BlockOp::WriteZeroes { may_deallocate: true, fua: true };
        let verify = capabilities.verify.then_some(BlockOp::Verify);
        let copies = (capabilities.copy_blocks_max > 0).then_some(BlockOp::Copy { from: 0 });
        for op in [zeroes, BlockOp::Discard, BlockOp::Extent].into_iter().chain(verify).chain(copies) {
            for (lba, blocks) in [(end, 1), (0, end + 1), (1, u64::MAX), (u64::MAX, u64::MAX)] {
                assert_eq!(
                    self.bench.one(op, lba, blocks, None).result,
                    Err(BlockError::OutOfRange),
                    "{op:?}"
                );
            }
        }
        self.what_is_not_claimed_is_refused();
        assert!(self.bench.one(BlockOp::Extent, 0, 0, None).result.is_err());
        assert_eq!(self.bench.one(BlockOp::Flush, u64::MAX, u64::MAX, None).result, Ok(IoValue::Done));
    }

    fn what_is_not_claimed_is_refused(&mut self) {
        let geometry = self.device.geometry();
        let capabilities = geometry.capabilities;
        if !capabilities.verify {
            let done = self.bench.one(BlockOp::Verify, 0, 1, None);
            assert_eq!(done.result, Err(BlockError::Unsupported));
        }
        if !capabilities.compare {
            let data = self.bench.buffer(self.block);
            let done = self.bench.one(BlockOp::Compare, 0, 1, Some(data));
            assert_eq!(done.result, Err(BlockError::Unsupported));
            assert!(done.data.is_some());
        }
        let copied = |bench: &mut Bench, from, lba, blocks| {
            bench.one(BlockOp::Copy { from }, lba, blocks, None).result
        };
        if capabilities.copy_blocks_max == 0 {
            assert_eq!(copied(&mut self.bench, 0, 1, 1), Err(BlockError::Unsupported));
            return;
        }
        let end = geometry.blocks;
        assert_eq!(copied(&mut self.bench, end, 0, 1), Err(BlockError::OutOfRange));
        assert_eq!(copied(&mut self.bench, u64::MAX, 0, 2), Err(BlockError::OutOfRange));
        assert!(copied(&mut self.bench, 0, 1, 2).is_err(), "a copy onto a part of itself");
        assert!(copied(&mut self.bench, 9, 9, 1).is_err(), "a copy onto itself");
        if capabilities.copy_blocks_max < end / 2 {
            let done = copied(&mut self.bench, 0, end / 2, capabilities.copy_blocks_max + 1);
            assert_eq!(done, Err(BlockError::Unsupported), "more than it copies at once");
        }
    }

    fn cancel_completes_once(&mut self) {
        for round in 0..20u64 {
            let data = self.bench.buffer(self.block);
            let tag = self.bench.submit(BlockOp::Read, round, 1, Some(data)).expect("room for one");
            if round % 2 == 0 {
                self.bench.channel.flush();
            }
            self.bench.channel.cancel(tag);
            self.bench.channel.cancel(tag);
            self.bench.channel.cancel(IoTag(u64::MAX));
            let done = self.bench.drain();
            assert_eq!(done.len(), 1);
            assert!(
                matches!(done[0].result, Ok(IoValue::Done) | Err(BlockError::Cancelled)),
                "{:?}",
                done[0].result
            );
            assert!(done[0].data.is_some());
        }
    }
}
