//! The simulated disk: late, reordered, failing, stuck, with a volatile cache that a power cut empties. It shows every
//! write that reaches the medium to the oracle.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use base::{CoreId, Instant, Prng, Progress};
use bdev::{
    AtomicWrites, BlockDevice, BlockError, BlockIo, BlockOp, Capabilities, CoreShared, Extent, ExtentState,
    Geometry, IoChannel, IoCompletion, IoTag, IoValue, Provisioning,
};

use crate::BLOCK;

/// How nasty the disk is.
#[derive(Debug, Clone, Copy)]
pub struct DiskWeather {
    /// Longest ordinary service time.
    pub latency_max: Duration,
    /// Requests in a thousand that fail.
    pub errors_per_mille: u64,
    /// Requests in a thousand that do not complete while faults last.
    pub stuck_per_mille: u64,
    /// Submissions in a thousand that find the queue full.
    pub full_per_mille: u64,
    /// Writes stay in a volatile cache until a flush.
    pub write_cache: bool,
}

/// A write that took effect on the medium (or in its cache), for the oracle.
#[derive(Debug, Clone, Copy)]
pub struct Applied {
    /// When.
    pub at: Instant,
    /// The block.
    pub lba: u64,
    /// The stamp it now carries: 0 for zeros.
    pub stamp: u64,
}

#[derive(Debug)]
struct Request {
    core: CoreId,
    io: BlockIo2,
    apply_at: Instant,
    complete_at: Instant,
    applied: bool,
    fails: bool,
    /// A comparison found a difference.
    differs: bool,
    stuck: bool,
    /// The stamp of its first block, for writes.
    first_stamp: Option<u64>,
}

/// A request without its buffer: the data was copied, as DMA would.
#[derive(Debug)]
struct BlockIo2 {
    tag: IoTag,
    op: BlockOp,
    lba: u64,
    blocks: u64,
    data: Vec<u8>,
}

#[derive(Debug)]
struct State {
    now: Instant,
    prng: Prng,
    weather: DiskWeather,
    blocks: Vec<[u8; BLOCK]>,
    mapped: Vec<bool>,
    /// Blocks that a power cut may turn back: what stable media hold, and every version since.
    volatile: BTreeMap<u64, Vec<[u8; BLOCK]>>,
    requests: Vec<Request>,
    applied: Vec<Applied>,
    started: Vec<u64>,
    /// Writes that met in the queue: the newer one's first stamp, the older one's.
    met: Vec<(u64, u64)>,
    healed: bool,
}

/// The device; clones are one device.
#[derive(Clone)]
pub struct SimDisk(Arc<Mutex<State>>);

impl std::fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SimDisk")
    }
}

impl SimDisk {
    /// A disk of `blocks` zeroed blocks.
    pub fn new(blocks: u64, weather: DiskWeather, prng: Prng) -> SimDisk {
        SimDisk(Arc::new(Mutex::new(State {
            now: Instant::ZERO,
            prng,
            weather,
            blocks: vec![[0; BLOCK]; blocks as usize],
            mapped: vec![false; blocks as usize],
            volatile: BTreeMap::new(),
            requests: Vec::new(),
            applied: Vec::new(),
            started: Vec::new(),
            met: Vec::new(),
            healed: false,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("one thread")
    }

    /// Moves time; writes whose time has come reach the medium.
    pub fn advance(&self, now: Instant) {
        let mut state = self.state();
        state.now = now;
        let state = &mut *state;
        let mut order: Vec<usize> = (0..state.requests.len())
            .filter(|&i| !state.requests[i].applied && state.requests[i].apply_at <= now)
            .collect();
        order.sort_by_key(|&i| state.requests[i].apply_at);
        for i in order {
            apply(state, i);
        }
    }

    /// When something happens next.
    pub fn next_event(&self) -> Option<Instant> {
        let state = self.state();
        state
            .requests
            .iter()
            .filter(|request| !request.stuck)
            .map(|request| if request.applied { request.complete_at } else { request.apply_at })
            .filter(|at| *at > state.now)
            .min()
    }

    /// Writes that took effect since the last call.
    pub fn take_applied(&self) -> Vec<Applied> {
        std::mem::take(&mut self.state().applied)
    }

    /// Stamps of writes that were submitted since the last call.
    pub fn take_started(&self) -> Vec<u64> {
        std::mem::take(&mut self.state().started)
    }

    /// Pairs of writes that were in the queue together: first stamps of the newer and of the older one.
    pub fn take_met(&self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.state().met)
    }

    /// Ends the faults: what was stuck completes, nothing new fails.
    pub fn heal(&self) {
        let mut state = self.state();
        state.healed = true;
        let now = state.now;
        state.weather.errors_per_mille = 0;
        state.weather.stuck_per_mille = 0;
        state.weather.full_per_mille = 0;
        for request in state.requests.iter_mut().filter(|request| request.stuck) {
            request.stuck = false;
            request.apply_at = now + Duration::from_micros(10);
            request.complete_at = now + Duration::from_micros(20);
        }
    }

    /// Requests taken and not completed.
    pub fn outstanding(&self) -> usize {
        self.state().requests.len()
    }

    /// The content of a block.
    pub fn block(&self, lba: u64) -> [u8; BLOCK] {
        self.state().blocks[lba as usize]
    }

    /// Power fails: requests vanish, and every block that was not flushed holds any of its versions since.
    pub fn power_cut(&self) {
        let mut state = self.state();
        let state = &mut *state;
        state.requests.clear();
        for (lba, versions) in std::mem::take(&mut state.volatile) {
            let chosen = state.prng.below(versions.len() as u64 + 1) as usize;
            if let Some(version) = versions.get(chosen) {
                state.blocks[lba as usize] = *version;
            }
        }
    }
}

/// The stamp a block carries: its first eight bytes; 0 for zeros.
pub fn stamp_of(block: &[u8]) -> u64 {
    u64::from_be_bytes(block[..8].try_into().expect("eight bytes"))
}

fn store(state: &mut State, lba: u64, content: [u8; BLOCK], mapped: bool, fua: bool) {
    let index = lba as usize;
    if state.weather.write_cache && !fua {
        let before = state.blocks[index];
        state.volatile.entry(lba).or_default().push(before);
    } else {
        state.volatile.remove(&lba);
    }
    state.blocks[index] = content;
    state.mapped[index] = mapped;
    state.applied.push(Applied { at: state.now, lba, stamp: stamp_of(&content) });
}

fn apply(state: &mut State, index: usize) {
    state.requests[index].applied = true;
    let request = &mut state.requests[index];
    if request.fails {
        return;
    }
    let (lba, blocks, op) = (request.io.lba, request.io.blocks, request.io.op);
    let data = std::mem::take(&mut request.io.data);
    match op {
        BlockOp::Read => {
            let mut read = Vec::with_capacity(blocks as usize * BLOCK);
            for block in lba..lba + blocks {
                read.extend_from_slice(&state.blocks[block as usize]);
            }
            state.requests[index].io.data = read;
        }
        BlockOp::Write { fua } => {
            for (i, content) in data.chunks_exact(BLOCK).enumerate() {
                store(state, lba + i as u64, content.try_into().expect("a block"), true, fua);
            }
        }
        BlockOp::WriteZeroes { may_deallocate, fua } => {
            for block in lba..lba + blocks {
                store(state, block, [0; BLOCK], !may_deallocate, fua);
            }
        }
        BlockOp::Discard => {
            for block in lba..lba + blocks {
                store(state, block, [0; BLOCK], false, false);
            }
        }
        BlockOp::Flush => {
            // Everything acknowledged before the flush began is in `volatile` as a newer version; it is stable now.
            state.volatile.clear();
        }
        BlockOp::Copy { from } => {
            for i in 0..blocks {
                let content = state.blocks[(from + i) as usize];
                store(state, lba + i, content, true, false);
            }
        }
        BlockOp::Compare => {
            let range = lba as usize..(lba + blocks) as usize;
            let same = data.chunks_exact(BLOCK).eq(state.blocks[range].iter().map(|block| &block[..]));
            state.requests[index].differs = !same;
        }
        BlockOp::Extent | BlockOp::Verify => {}
    }
}

struct Channel {
    disk: SimDisk,
    core: CoreId,
    /// Buffers lent with their requests: the completion gives them back.
    buffers: Vec<(IoTag, Option<base::DataBuf>)>,
    early: Vec<IoCompletion>,
}

impl BlockDevice for SimDisk {
    fn geometry(&self) -> Geometry {
        let state = self.state();
        Geometry {
            block_size: BLOCK as u32,
            blocks: state.blocks.len() as u64,
            physical_block_exponent: 3,
            lowest_aligned_block: 0,
            optimal_granularity_blocks: 8,
            optimal_transfer_blocks: 0,
            write_cache: state.weather.write_cache,
            read_only: false,
            rotational: false,
            provisioning: Provisioning {
                discard: true,
                reads_zeros: true,
                reports_extents: true,
                granularity_blocks: 1,
                discard_blocks_max: 0,
            },
            buffer_alignment: 1,
            capabilities: Capabilities { verify: true, compare: true, copy_blocks_max: 64 },
            atomic: AtomicWrites {
                // What a power cut leaves of a cached write is decided block by block.
                blocks_max: if state.weather.write_cache { 1 } else { 32 },
                boundary_blocks: 0,
                granularity_blocks: 1,
            },
        }
    }

    fn product_name(&self) -> &'static str {
        "Simulated disk"
    }

    fn open_channel(&self, core: &CoreShared) -> Result<Box<dyn IoChannel>, BlockError> {
        Ok(Box::new(Channel {
            disk: self.clone(),
            core: core.core(),
            buffers: Vec::new(),
            early: Vec::new(),
        }))
    }
}

impl IoChannel for Channel {
    fn submit(&mut self, io: BlockIo) -> Result<(), BlockIo> {
        let mut state = self.disk.state();
        let state = &mut *state;
        if state.prng.below(1000) < state.weather.full_per_mille {
            return Err(io);
        }
        let length = io.data.as_ref().map_or(0, |data| data.len() as u64);
        let ranged = !matches!(io.op, BlockOp::Flush);
        let end = state.blocks.len() as u64;
        let inside = |lba: u64| lba.checked_add(io.blocks).is_some_and(|after| after <= end);
        let fits = inside(io.lba)
            && match io.op {
                BlockOp::Copy { from } => inside(from) && from.abs_diff(io.lba) >= io.blocks,
                _ => true,
            };
        if (ranged && !fits) || (io.op.has_payload() && length != io.blocks * BLOCK as u64) {
            self.early.push(IoCompletion { tag: io.tag, result: Err(BlockError::OutOfRange), data: io.data });
            return Ok(());
        }
        let latency = state.prng.below(state.weather.latency_max.as_nanos() as u64 + 1);
        let apply = state.prng.below(latency + 1);
        let stuck = state.prng.below(1000) < state.weather.stuck_per_mille;
        let far = if stuck { Duration::from_secs(86_400) } else { Duration::ZERO };
        let data = match (&io.data, io.op) {
            (Some(data), BlockOp::Write { .. } | BlockOp::Compare) => data.to_vec(),
            _ => Vec::new(),
        };
        let written: &[u8] = if io.op == BlockOp::Compare { &[] } else { &data };
        state.started.extend(written.chunks_exact(BLOCK).map(stamp_of));
        let fails =
            state.prng.below(1000) < state.weather.errors_per_mille && !matches!(io.op, BlockOp::Flush);
        let first_stamp = written.chunks_exact(BLOCK).next().map(stamp_of);
        if let Some(newer) = first_stamp {
            let met = state.requests.iter().filter_map(|older| Some((newer, older.first_stamp?)));
            state.met.extend(met);
        }
        state.requests.push(Request {
            core: self.core,
            io: BlockIo2 { tag: io.tag, op: io.op, lba: io.lba, blocks: io.blocks, data },
            apply_at: state.now + Duration::from_nanos(apply) + far,
            complete_at: state.now + Duration::from_nanos(latency) + far,
            applied: false,
            fails,
            differs: false,
            stuck,
            first_stamp,
        });
        self.buffers.push((io.tag, io.data));
        Ok(())
    }

    fn flush(&mut self) {}

    fn cancel(&mut self, tag: IoTag) {
        // Only a hint: half of the time a request that has not reached the medium never will.
        let mut state = self.disk.state();
        let state = &mut *state;
        let now = state.now;
        let honoured = state.prng.chance(1, 2);
        for request in &mut state.requests {
            if request.core == self.core && request.io.tag == tag && !request.applied && honoured {
                request.fails = true;
                request.stuck = false;
                request.apply_at = now;
                request.complete_at = now;
            }
        }
    }

    fn poll(&mut self, _now: Instant, on: &mut dyn FnMut(IoCompletion)) -> Progress {
        let mut done: Vec<IoCompletion> = std::mem::take(&mut self.early);
        {
            let mut state = self.disk.state();
            let state = &mut *state;
            let now = state.now;
            let mut i = 0;
            while i < state.requests.len() {
                let request = &state.requests[i];
                if request.core != self.core || !request.applied || request.complete_at > now {
                    i += 1;
                    continue;
                }
                let request = state.requests.swap_remove(i);
                let at = self
                    .buffers
                    .iter()
                    .position(|(tag, _)| *tag == request.io.tag)
                    .expect("the buffer that was lent");
                let (_, mut data) = self.buffers.swap_remove(at);
                let result = if request.fails {
                    Err(BlockError::Medium { lba: Some(request.io.lba) })
                } else if request.differs {
                    Err(BlockError::Miscompare)
                } else if request.io.op == BlockOp::Extent {
                    Ok(IoValue::Extent(extent(state, request.io.lba, request.io.blocks)))
                } else {
                    Ok(IoValue::Done)
                };
                if let (BlockOp::Read, Some(buffer), true) = (request.io.op, data.as_mut(), result.is_ok()) {
                    buffer.copy_from_slice(&request.io.data);
                }
                done.push(IoCompletion { tag: request.io.tag, result, data });
            }
        }
        let progress = Progress::from_count(done.len());
        for completion in done {
            on(completion);
        }
        progress
    }

    fn for_each_held(&self, visit: &mut dyn FnMut(IoTag)) {
        for (tag, _) in &self.buffers {
            visit(*tag);
        }
    }
}

fn extent(state: &State, lba: u64, blocks: u64) -> Extent {
    let mapped = state.mapped[lba as usize];
    let run = (lba..lba + blocks).take_while(|&block| state.mapped[block as usize] == mapped).count();
    let kind = if mapped { ExtentState::Mapped } else { ExtentState::Deallocated };
    Extent { state: kind, blocks: run.max(1) as u64 }
}
