//! The production NVMe driver on the NVMe model: random I/O, faults by seed, and what must hold whatever happens.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use base::{BufferPool, CoreId, DataBuf, Instant, PoolClass, Prng};
use bdev::{BlockDevice, BlockError, BlockIo, BlockOp, CoreShared, IoChannel, IoCompletion, IoTag};
use nvme_backend::{Controller, ControllerOptions, ControllerState, Namespace, TimeoutAction};
use reactor::{HugeMemory, PciDevice};
use sim::nvme::{AbortManner, Config, Lies, Model, ModelDevice, NamespaceConfig, Rates, Rule};

use crate::nvme_oracle::BlockHistory;
use crate::oracle::{Moment, Violation, fill};

/// What a freed buffer is filled with. Whatever the device still writes there is seen.
const CANARY: u8 = 0xC5;
/// Simulated time after the faults end, by which everything must work again.
const RECOVERY_MAX: Duration = Duration::from_secs(300);

/// What a seed makes of a world.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// The seed.
    pub seed: u64,
    /// I/O requests before the faults end.
    pub commands: u64,
    cores: u16,
    namespaces: u32,
    format: u8,
    blocks: u64,
    queue_pairs: u16,
    rates: Rates,
    abort: AbortManner,
    /// One in so many turns something drastic happens: a reset, fatal status, removal, a hang, a resize; 0 is never.
    drama: u64,
    lies: bool,
    options: ControllerOptions,
}

impl Scenario {
    /// The scenario of a seed.
    pub fn new(seed: u64, commands: u64) -> Scenario {
        let mut prng = Prng::new(seed ^ 0x4E56_4D65);
        let calm = prng.chance(1, 8);
        let mut rate = |most: u64| if calm || prng.chance(1, 2) { 0 } else { prng.below(most) as u32 };
        let rates = Rates {
            late: rate(100_000),
            late_max: Duration::ZERO,
            lost: rate(3000),
            duplicate: rate(3000),
            wrong_phase: rate(500),
            unknown_cid: rate(5000),
            wrong_queue: rate(1000),
            wild_head: rate(3000),
            media: rate(10_000),
            transient: rate(20_000),
            internal: rate(5000),
            fatal: rate(500),
        };
        let late_max = Duration::from_micros(prng.between(1, 300_000));
        let abort = match prng.below(5) {
            0 => AbortManner::Nothing,
            1 => AbortManner::Late(Duration::from_millis(prng.between(1, 400))),
            2 => AbortManner::Lies,
            _ => AbortManner::Honest,
        };
        let options = ControllerOptions {
            timeout: Duration::from_millis(prng.between(50, 500)),
            timeout_admin: Duration::from_millis(prng.between(200, 2000)),
            timeout_action: if prng.chance(1, 4) { TimeoutAction::Reset } else { TimeoutAction::Abort },
            queue_depth: prng.between(1, 40) as u16,
            hugepages: false,
            interrupts: prng.chance(1, 2),
            shadow_doorbells: prng.chance(1, 2),
            sgl: prng.chance(1, 2),
            ..ControllerOptions::default()
        };
        Scenario {
            seed,
            commands,
            cores: prng.between(1, 3) as u16,
            namespaces: prng.between(1, 2) as u32,
            format: prng.below(2) as u8,
            blocks: prng.between(64, 300),
            queue_pairs: prng.between(1, 5) as u16,
            rates: Rates { late_max, ..rates },
            abort,
            drama: if calm { 0 } else { prng.between(0, 3) * 700 },
            lies: prng.chance(1, 10),
            options,
        }
    }

    fn block_size(&self) -> usize {
        512 << (3 * usize::from(self.format))
    }

    fn config(&self, prng: &mut Prng) -> Config {
        let namespaces = (0..self.namespaces)
            .map(|_| NamespaceConfig {
                bytes: self.blocks * self.block_size() as u64,
                format: self.format,
                ..NamespaceConfig::default()
            })
            .collect();
        let slow = Duration::from_nanos(prng.below(200_000));
        Config {
            seed: self.seed,
            queue_pairs: self.queue_pairs,
            entries_max: prng.between(2, 200) as u16,
            doorbell_stride: prng.below(4) as u8,
            vectors: prng.between(1, 8) as u16,
            mdts: prng.below(6) as u8,
            write_cache: prng.chance(2, 3),
            sgl: prng.chance(1, 2),
            shadow_doorbells: prng.chance(1, 2),
            ready_after: Duration::from_micros(prng.below(3000)),
            latency: (Duration::ZERO, slow),
            namespaces,
            ..Config::default()
        }
    }
}

/// What a world did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Requests that ended well.
    pub good: u64,
    /// Requests that ended with an error.
    pub failed: u64,
    /// Turns of the loop.
    pub steps: u64,
    /// Controller resets the driver made.
    pub resets: u64,
    /// Doorbells that cores rang after a reset had begun.
    pub late_doorbells: u64,
    /// A number that any other history would change.
    pub fingerprint: u64,
}

struct Request {
    op: BlockOp,
    lba: u64,
    blocks: u64,
    sent: Moment,
    /// The write's name in the history.
    id: u64,
}

/// A core's channel to one namespace.
struct Lane {
    namespace: usize,
    channel: Box<dyn IoChannel>,
    outstanding: BTreeMap<IoTag, Request>,
}

struct Core {
    pool: BufferPool,
    /// Kept for the channels.
    _shared: CoreShared,
    lanes: Vec<Lane>,
    /// Freed buffers, full of canaries, until a moment of the clock.
    quarantine: VecDeque<(Instant, DataBuf)>,
}

struct World {
    scenario: Scenario,
    prng: Prng,
    now: Instant,
    device: ModelDevice,
    controller: Arc<Controller>,
    namespaces: Vec<Arc<Namespace>>,
    histories: Vec<BlockHistory>,
    cores: Vec<Core>,
    next_tag: u64,
    sent: u64,
    healed: bool,
    removed_until: Option<Instant>,
    summary: Summary,
}

type Judged<T> = Result<T, String>;

/// Runs the world of a scenario to its end.
pub fn run(scenario: &Scenario) -> Result<Summary, Violation> {
    let mut world = World::new(scenario.clone()).map_err(|what| Violation { at: Instant::ZERO, what })?;
    let outcome = world.live();
    outcome.map(|()| world.summary).map_err(|what| Violation { at: world.now, what })
}

impl World {
    fn new(scenario: Scenario) -> Judged<World> {
        let mut prng = Prng::new(scenario.seed);
        let model = Model::new(scenario.config(&mut prng))?;
        let device = ModelDevice::new("0000:00:00.0", model);
        let function: Arc<dyn PciDevice> = Arc::new(device.clone());
        let controller =
            Controller::new(function, scenario.options, scenario.cores).map_err(|e| e.to_string())?;
        let histories = (0..scenario.namespaces).map(|_| BlockHistory::new(scenario.blocks)).collect();
        Ok(World {
            prng,
            now: Instant::from_nanos(1),
            device,
            controller,
            namespaces: Vec::new(),
            histories,
            cores: Vec::new(),
            next_tag: 0,
            sent: 0,
            healed: false,
            removed_until: None,
            summary: Summary::default(),
            scenario,
        })
    }

    fn live(&mut self) -> Judged<()> {
        if self.scenario.lies {
            self.be_lied_to()?;
        }
        self.bring_up()?;
        self.open()?;
        {
            let mut model = self.device.model();
            model.faults_mut().rates = self.scenario.rates;
            model.faults_mut().abort = self.scenario.abort;
        }
        while self.sent < self.scenario.commands {
            self.turn(true)?;
            self.drama()?;
        }
        self.heal()?;
        self.settle()?;
        self.read_everything()?;
        self.cut_power()?;
        self.summary.resets = self.controller.statistics().controller_resets;
        Ok(())
    }

    /// A controller that reports nonsense: nothing may break, and when it stops lying everything must work.
    fn be_lied_to(&mut self) -> Judged<()> {
        let prng = &mut self.prng;
        let lies = match prng.below(9) {
            0 => Lies { data_shift: Some(prng.below(64) as u8), ..Lies::default() },
            1 => Lies {
                blocks: Some([0, 1, u64::MAX, u64::MAX / 512][prng.below(4) as usize]),
                ..Lies::default()
            },
            2 => Lies { mdts: Some(prng.below(256) as u8), ..Lies::default() },
            3 => Lies { namespaces: Some([0, u32::MAX][prng.below(2) as usize]), ..Lies::default() },
            4 => Lies { queues: Some([(0, 0), (0xFFFF, 0xFFFF)][prng.below(2) as usize]), ..Lies::default() },
            5 => Lies { flbas: Some(prng.below(256) as u8), ..Lies::default() },
            6 => Lies { formats: Some(prng.below(256) as u8), ..Lies::default() },
            7 => {
                Lies { entry_sizes: Some((prng.next_u64() as u8, prng.next_u64() as u8)), ..Lies::default() }
            }
            _ => Lies { metadata: Some(prng.next_u64() as u16), ..Lies::default() },
        };
        self.device.model().faults_mut().lies = lies;
        let until = self.now + Duration::from_secs(60);
        while self.now < until
            && !matches!(self.controller.state(), ControllerState::Failed | ControllerState::Ready)
        {
            self.turn(false)?;
        }
        trace!(self.now, "lied to with {lies:?}: {:?}", self.controller.state());
        self.device.model().faults_mut().heal();
        // A host that believed a lie about queues asked for what is not there; that is not held against it.
        drop(self.device.model().take_violations());
        self.controller.request_reset();
        Ok(())
    }

    fn bring_up(&mut self) -> Judged<()> {
        let until = self.now + RECOVERY_MAX;
        let expected = self.scenario.namespaces as usize;
        loop {
            self.turn(false)?;
            let usable =
                |namespace: &Arc<Namespace>| namespace.is_present() && namespace.unusable().is_none();
            let found: Vec<_> = self.controller.namespaces().into_iter().filter(usable).collect();
            if self.controller.state() == ControllerState::Ready
                && found.len() == expected
                && found.iter().all(|namespace| namespace.geometry().blocks == self.scenario.blocks)
            {
                self.namespaces = found;
                self.namespaces.sort_by_key(|namespace| namespace.nsid());
                return Ok(());
            }
            if self.now > until {
                return Err(format!(
                    "not ready within {RECOVERY_MAX:?}: {:?}, {:?}, {} namespaces",
                    self.controller.state(),
                    self.controller.failure(),
                    found.len()
                ));
            }
        }
    }

    fn open(&mut self) -> Judged<()> {
        for core in 0..self.scenario.cores {
            let classes = [PoolClass { size: 4096, count: 96 }, PoolClass { size: 1 << 17, count: 24 }];
            let memory = HugeMemory::shared(BufferPool::memory_length(&classes), false)?;
            let pool = BufferPool::new(Box::new(memory), &classes);
            let shared = CoreShared::with_pool(CoreId(core), &pool);
            let mut lanes = Vec::new();
            for (namespace, device) in self.namespaces.iter().enumerate() {
                let mut channel = device.open_channel(&shared).map_err(|e| format!("no channel: {e:?}"))?;
                channel.register_pool(&pool);
                lanes.push(Lane { namespace, channel, outstanding: BTreeMap::new() });
            }
            self.cores.push(Core { pool, _shared: shared, lanes, quarantine: VecDeque::new() });
        }
        Ok(())
    }

    /// One turn of everything, at one instant; then time goes on.
    fn turn(&mut self, submit: bool) -> Judged<()> {
        self.summary.steps += 1;
        self.device.step(self.now);
        let mut progress = self.controller.poll(self.now) == base::Progress::Busy;
        if submit {
            for core in 0..self.cores.len() {
                for lane in 0..self.cores[core].lanes.len() {
                    while self.prng.chance(1, 2) {
                        if !self.submit(core, lane) {
                            break;
                        }
                        progress = true;
                    }
                }
            }
        }
        for core in 0..self.cores.len() {
            for lane in 0..self.cores[core].lanes.len() {
                self.cores[core].lanes[lane].channel.flush();
            }
        }
        self.device.step(self.now);
        for core in 0..self.cores.len() {
            for lane in 0..self.cores[core].lanes.len() {
                progress |= self.reap(core, lane)?;
            }
            self.check_quarantine(core)?;
        }
        for violation in self.device.model().take_violations() {
            // A core learns of a reset at its next poll, so its doorbell may come after; see docs of the rule.
            if violation.rule != Rule::LateDoorbell {
                return Err(format!("the driver broke a rule: {violation}"));
            }
            self.summary.late_doorbells += 1;
        }
        self.come_back()?;
        self.advance(progress);
        Ok(())
    }

    fn advance(&mut self, progress: bool) {
        let soon = self.now + Duration::from_micros(if progress { 1 } else { 50 });
        if progress {
            self.now = soon;
            return;
        }
        let channels =
            self.cores.iter().flat_map(|core| &core.lanes).filter_map(|lane| lane.channel.next_timeout());
        let next = [self.device.next_event(), self.controller.next_timeout(), self.removed_until]
            .into_iter()
            .flatten()
            .chain(channels)
            .min();
        let far = self.now + Duration::from_millis(10);
        self.now = next.map_or(far, |at| at.clamp(soon, far));
    }

    fn submit(&mut self, core: usize, lane: usize) -> bool {
        let (namespace, held) = {
            let lane = &self.cores[core].lanes[lane];
            (lane.namespace, lane.outstanding.len())
        };
        if held >= 24 || self.sent >= self.scenario.commands && !self.healed {
            return false;
        }
        let size = self.scenario.block_size();
        let op = match self.prng.below(100) {
            0..40 => BlockOp::Read,
            40..75 => BlockOp::Write { fua: self.prng.chance(1, 5) },
            75..82 => BlockOp::Flush,
            82..88 => {
                BlockOp::WriteZeroes { may_deallocate: self.prng.chance(1, 2), fua: self.prng.chance(1, 5) }
            }
            88..93 => BlockOp::Discard,
            _ => BlockOp::Read,
        };
        let most = ((128 << 10) / size as u64).min(40);
        let most = if self.prng.chance(1, 4) { most } else { 4 };
        let blocks = self.prng.between(1, most).min(self.scenario.blocks);
        let lba = self.prng.below(self.scenario.blocks - blocks + 1);
        self.send(core, lane, namespace, op, lba, blocks)
    }

    fn send(
        &mut self,
        core: usize,
        lane: usize,
        namespace: usize,
        op: BlockOp,
        lba: u64,
        blocks: u64,
    ) -> bool {
        let size = self.scenario.block_size();
        let mut data = None;
        if op.has_payload() {
            let Some(buffer) = self.cores[core].pool.acquire((blocks as usize * size) as u32) else {
                return false;
            };
            data = Some(buffer);
        }
        let history = &mut self.histories[namespace];
        let zeros = matches!(op, BlockOp::WriteZeroes { .. } | BlockOp::Discard);
        let writes = zeros || matches!(op, BlockOp::Write { .. });
        let sent = history.tick();
        let id = if writes { history.invoke(lba, blocks, zeros) } else { 0 };
        if let (BlockOp::Write { .. }, Some(buffer)) = (op, data.as_mut()) {
            for (i, block) in buffer.chunks_mut(size).enumerate() {
                let content = fill(id, lba + i as u64);
                block.chunks_mut(content.len()).for_each(|part| part.copy_from_slice(&content));
            }
        }
        self.next_tag += 1;
        let tag = IoTag(self.next_tag);
        let io = BlockIo { tag, op, lba, blocks, data };
        let lane = &mut self.cores[core].lanes[lane];
        if lane.channel.submit(io).is_err() {
            if writes {
                self.histories[namespace].withdraw(lba, blocks, id);
            }
            return false;
        }
        trace!(self.now, "core {core} {tag:?} {op:?} {lba}+{blocks} sent");
        lane.outstanding.insert(tag, Request { op, lba, blocks, sent, id });
        self.sent += 1;
        true
    }

    fn reap(&mut self, core: usize, lane: usize) -> Judged<bool> {
        let mut done: Vec<IoCompletion> = Vec::new();
        let lane_ref = &mut self.cores[core].lanes[lane];
        let _ = lane_ref.channel.poll(self.now, &mut |completion| done.push(completion));
        let namespace = lane_ref.namespace;
        let worked = !done.is_empty();
        for completion in done {
            let request = self.cores[core].lanes[lane].outstanding.remove(&completion.tag);
            let Some(request) = request else {
                return Err(format!(
                    "{:?} completed, which is not outstanding: {:?}",
                    completion.tag, completion.result
                ));
            };
            trace!(self.now, "core {core} {:?} ended: {:?}", completion.tag, completion.result);
            self.judge(core, namespace, &request, completion)?;
        }
        let lane = &self.cores[core].lanes[lane];
        let mut held = 0;
        let mut stranger = None;
        lane.channel.for_each_held(&mut |tag| {
            held += 1;
            if !lane.outstanding.contains_key(&tag) {
                stranger = Some(tag);
            }
        });
        if stranger.is_some() || held != lane.outstanding.len() {
            return Err(format!(
                "the channel holds {held} requests, not {}: {stranger:?}",
                lane.outstanding.len()
            ));
        }
        Ok(worked)
    }

    fn oldest(&self, namespace: usize) -> Moment {
        let lanes = self.cores.iter().flat_map(|core| &core.lanes).filter(|lane| lane.namespace == namespace);
        lanes
            .flat_map(|lane| lane.outstanding.values())
            .map(|request| request.sent)
            .min()
            .unwrap_or(Moment::MAX)
    }

    fn judge(
        &mut self,
        core: usize,
        namespace: usize,
        request: &Request,
        completion: IoCompletion,
    ) -> Judged<()> {
        let Request { op, lba, blocks, sent, id } = *request;
        let good = completion.result.is_ok();
        let (tag, result) = (completion.tag, completion.result);
        self.summary.good += u64::from(good);
        self.summary.failed += u64::from(!good);
        let word = tag.0 << 8 | u64::from(good) << 1 | (self.now.as_nanos() << 40);
        self.summary.fingerprint =
            (self.summary.fingerprint.rotate_left(7) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        if op.has_payload() != completion.data.is_some() {
            return Err(format!("{tag:?}, {op:?}: the buffer came back: {}", completion.data.is_some()));
        }
        if self.healed && !good && !matches!(result, Err(BlockError::FlushFailed)) {
            return Err(format!("{tag:?}, {op:?} {lba}+{blocks} failed after the faults ended: {result:?}"));
        }
        let oldest = self.oldest(namespace).min(sent);
        let cached = self.write_cache(namespace);
        let size = self.scenario.block_size();
        let history = &mut self.histories[namespace];
        match op {
            BlockOp::Read if good => {
                let data = completion.data.as_deref().unwrap_or_default();
                for (i, block) in data.chunks(size).enumerate() {
                    let at = lba + i as u64;
                    let stamp = stamp_of(block, at).map_err(|what| format!("{tag:?}: {what}"))?;
                    history.read(at, sent, stamp).map_err(|what| format!("{tag:?}: {what}"))?;
                }
            }
            BlockOp::Write { fua } | BlockOp::WriteZeroes { fua, .. } => {
                history.end(lba, blocks, id, good, fua || !cached, oldest);
            }
            BlockOp::Discard => history.end(lba, blocks, id, good, false, oldest),
            BlockOp::Flush if good => history.flushed(sent),
            _ => {}
        }
        if let Some(mut data) = completion.data {
            data.fill(CANARY);
            let until = self.now + Duration::from_micros(self.prng.below(700_000));
            let quarantine = &mut self.cores[core].quarantine;
            // The pool is finite: of many freed buffers only some are watched for long.
            if quarantine.len() >= 40
                && let Some((_, oldest)) = quarantine.pop_front()
            {
                intact(&oldest)?;
            }
            quarantine.push_back((until, data));
        }
        Ok(())
    }

    fn write_cache(&self, namespace: usize) -> bool {
        self.namespaces[namespace].geometry().write_cache
    }

    fn check_quarantine(&mut self, core: usize) -> Judged<()> {
        let quarantine = &mut self.cores[core].quarantine;
        while quarantine.front().is_some_and(|(until, _)| *until <= self.now) {
            if let Some((_, buffer)) = quarantine.pop_front() {
                intact(&buffer)?;
            }
        }
        Ok(())
    }

    /// Something drastic, sometimes.
    fn drama(&mut self) -> Judged<()> {
        if self.scenario.drama == 0
            || !self.prng.chance(1, self.scenario.drama)
            || self.removed_until.is_some()
        {
            return Ok(());
        }
        let kind = self.prng.below(9);
        trace!(self.now, "drama {kind}");
        let queue = self.prng.between(1, u64::from(self.scenario.queue_pairs)) as u16;
        let nsid = self.prng.between(1, u64::from(self.scenario.namespaces)) as u32;
        let larger = self.scenario.blocks + self.prng.below(100);
        let mut model = self.device.model();
        match kind {
            0 => model.fail(),
            1 => {
                model.hang_queue(queue);
            }
            2 => model.faults_mut().admin_hung = true,
            3 => model.event_storm(3),
            4 => {
                model.resize_namespace(nsid, larger).map_err(|e| e.to_string())?;
            }
            5 => {
                model.attach_namespace(nsid, false);
                drop(model);
                for _ in 0..self.prng.below(200) {
                    self.turn(true)?;
                }
                self.device.model().attach_namespace(nsid, true);
            }
            6 => {
                drop(model);
                self.controller.request_reset();
            }
            7 => {
                model.remove();
                drop(model);
                self.removed_until = Some(self.now + Duration::from_millis(self.prng.between(1, 500)));
            }
            _ => {
                model.faults_mut().never_ready = self.prng.chance(1, 2);
                model.faults_mut().never_disabled = self.prng.chance(1, 2);
                model.fail();
            }
        }
        Ok(())
    }

    /// A removed device is plugged in again; a driver that gave up is told to try again.
    fn come_back(&mut self) -> Judged<()> {
        if self.removed_until.is_some_and(|at| at <= self.now) {
            let state = self.controller.state();
            let mut model = self.device.model();
            if !model.is_present() {
                if state != ControllerState::Gone && !self.healed {
                    return Ok(());
                }
                model.restore();
                model.pci_mut().write(4, &[0x02]);
                trace!(self.now, "plugged in again");
            }
            drop(model);
            if self.controller.state() == ControllerState::Gone {
                let function: Arc<dyn PciDevice> = Arc::new(self.device.clone());
                self.controller.replace(function).map_err(|e| format!("the device is back: {e}"))?;
            }
            self.removed_until = None;
        }
        if self.removed_until.is_none() {
            match self.controller.state() {
                ControllerState::Failed => {
                    let mut model = self.device.model();
                    model.faults_mut().never_ready = false;
                    model.faults_mut().never_disabled = false;
                    model.faults_mut().admin_hung = false;
                    drop(model);
                    self.controller.request_reset();
                }
                ControllerState::Gone => {
                    let function: Arc<dyn PciDevice> = Arc::new(self.device.clone());
                    self.controller.replace(function).map_err(|e| format!("the device is there: {e}"))?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn heal(&mut self) -> Judged<()> {
        trace!(self.now, "the faults end");
        let mut model = self.device.model();
        model.faults_mut().heal();
        for nsid in 1..=self.scenario.namespaces {
            model.resize_namespace(nsid, self.scenario.blocks).map_err(|e| e.to_string())?;
            model.attach_namespace(nsid, true);
        }
        Ok(())
    }

    /// Without faults everything outstanding ends, and the controller serves again, within bounded time.
    fn settle(&mut self) -> Judged<()> {
        let until = self.now + RECOVERY_MAX;
        let mut calm = 0;
        loop {
            self.turn(false)?;
            let outstanding: usize =
                self.cores.iter().flat_map(|core| &core.lanes).map(|lane| lane.outstanding.len()).sum();
            let shaped = |namespace: &Arc<Namespace>| {
                namespace.is_present() && namespace.geometry().blocks == self.scenario.blocks
            };
            let ready =
                self.controller.state() == ControllerState::Ready && self.namespaces.iter().all(shaped);
            calm = if outstanding == 0 && ready { calm + 1 } else { 0 };
            if calm > 300 {
                break;
            }
            if self.now > until {
                return Err(format!(
                    "no recovery within {RECOVERY_MAX:?}: {outstanding} requests outstanding, {:?}, {:?}",
                    self.controller.state(),
                    self.controller.failure()
                ));
            }
        }
        self.namespaces.iter().for_each(|namespace| namespace.acknowledge_loss());
        self.healed = true;
        Ok(())
    }

    /// Every block is read by some core, and all of it must be legal and without error.
    fn read_everything(&mut self) -> Judged<()> {
        for namespace in 0..self.namespaces.len() {
            let mut lba = 0;
            while lba < self.scenario.blocks {
                let blocks = 8.min(self.scenario.blocks - lba);
                let core = self.prng.below(self.cores.len() as u64) as usize;
                if self.send(core, namespace, namespace, BlockOp::Read, lba, blocks) {
                    lba += blocks;
                }
                self.turn(false)?;
            }
        }
        let until = self.now + RECOVERY_MAX;
        while self.cores.iter().flat_map(|core| &core.lanes).any(|lane| !lane.outstanding.is_empty()) {
            self.turn(false)?;
            if self.now > until {
                return Err("reads without faults do not end".to_owned());
            }
        }
        Ok(())
    }

    /// Power fails, and what was promised as stable is there.
    fn cut_power(&mut self) -> Judged<()> {
        let mut model = self.device.model();
        model.power_cut().map_err(|e| e.to_string())?;
        for (namespace, history) in self.histories.iter_mut().enumerate() {
            for lba in 0..self.scenario.blocks {
                let Some(block) = model.block(namespace as u32 + 1, lba) else {
                    return Err(format!("block {lba} is not there"));
                };
                history.survived(lba, stamp_of(&block, lba)?)?;
            }
        }
        Ok(())
    }
}

fn intact(buffer: &DataBuf) -> Judged<()> {
    match buffer.iter().position(|&byte| byte != CANARY) {
        None => Ok(()),
        Some(at) => Err(format!(
            "the device wrote to byte {at} of a buffer of {} after its request was over",
            buffer.len()
        )),
    }
}

/// The stamp a block carries; every part of it must be of one write.
fn stamp_of(block: &[u8], lba: u64) -> Judged<u64> {
    let stamp = crate::disk::stamp_of(block);
    if stamp == 0 {
        return if block.iter().all(|&byte| byte == 0) {
            Ok(0)
        } else {
            Err(format!("block {lba} holds bytes nobody wrote"))
        };
    }
    let content = fill(stamp, lba);
    if block.chunks(content.len()).all(|part| part == content) {
        return Ok(stamp);
    }
    Err(format!("block {lba} is torn, or holds bytes of another place: stamp {stamp}"))
}
