//! One world: cores, network, disks, hosts and time, all driven by one seed.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use base::{BufferPool, CoreId, Instant, Limits, Outbox, PoolClass, Prng, Progress};
use bdev::BlockDevice;
use fabrics::conductor::{
    Conductor, CoreLink, CoreMessage, CoreReply, CoreRequest, NumberedReply, NumberedRequest,
};
use fabrics::iscsi::{self, IscsiPort};
use initiator::{Config, OperationalKeys};
use reactor::{Poller, Turn};
use scsi::{
    ControlId, ControlOutcome, ControlRequest, LogicalUnitId, LunMap, LunMapping, TargetDeviceId,
    UnitIdentity,
};
use wire::scsi::{Lun, TaskAttribute};

use crate::client::Client;
use crate::disk::{DiskWeather, SimDisk};
use crate::network::{NetworkWeather, SimNetwork, WireHandle};
use crate::oracle::{History, Violation};

/// Everything a seed decides.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// The seed.
    pub seed: u64,
    cores: u16,
    hosts: usize,
    units: usize,
    blocks: u64,
    commands: u32,
    chaos_per_mille: u64,
    network: NetworkWeather,
    disk: DiskWeather,
    small_pool: bool,
    /// Hosts also send what is rarer than reads and writes.
    wide: bool,
}

impl Scenario {
    /// The scenario of a seed.
    pub fn new(seed: u64) -> Scenario {
        let mut prng = Prng::new(seed ^ 0x5CEA_A210);
        let faulty = prng.chance(1, 2);
        let stuck = faulty && prng.chance(1, 4);
        Scenario {
            seed,
            cores: [1, 2, 2, 3][prng.below(4) as usize],
            hosts: prng.between(1, 4) as usize,
            units: prng.between(1, 2) as usize,
            blocks: prng.between(32, 96),
            commands: prng.between(20, 150) as u32,
            chaos_per_mille: [0, 5, 20, 60, 150][prng.below(5) as usize],
            network: NetworkWeather {
                latency_max: Duration::from_micros(prng.between(1, 400)),
                capacity: prng.between(600, 100_000) as usize,
                chunk_max: [1, 50, 600, 9_000, 60_000][prng.below(5) as usize].max(if prng.chance(9, 10) {
                    40
                } else {
                    1
                }),
            },
            disk: DiskWeather {
                latency_max: Duration::from_micros(prng.between(1, 3_000)),
                errors_per_mille: if faulty { prng.below(30) } else { 0 },
                stuck_per_mille: if stuck { prng.below(10) } else { 0 },
                full_per_mille: if prng.chance(1, 3) { prng.below(300) } else { 0 },
                write_cache: prng.chance(1, 2),
            },
            small_pool: prng.chance(1, 3),
            // Low seeds keep the histories that they are pinned for.
            wide: seed >= 1024 && Prng::new(seed ^ 0x817D_E001).chance(1, 2),
        }
    }
}

/// One logical unit as the oracle sees it.
pub struct Unit {
    /// Its disk.
    pub disk: SimDisk,
    /// Its history.
    pub history: History,
    /// Which value of block 0 was replaced by which: COMPARE AND WRITE is atomic when no value is replaced twice.
    successors: HashMap<Vec<u8>, u64>,
}

impl Unit {
    /// A COMPARE AND WRITE on top of `old` was acknowledged.
    pub fn compare_and_write_done(&mut self, old: &[u8], stamp: u64) -> Result<(), String> {
        match self.successors.insert(old[..8].to_vec(), stamp) {
            None => Ok(()),
            Some(first) => Err(format!("COMPARE AND WRITE {stamp} and {first} both replaced the same value")),
        }
    }
}

/// What hosts and world share.
pub struct Shared {
    /// The units.
    pub units: Vec<Unit>,
    /// Blocks of each.
    pub blocks: u64,
    /// The disks keep writes in a volatile cache.
    pub write_cache: bool,
    /// Hosts also send what is rarer than reads and writes.
    pub wide: bool,
    /// The longest atomic write.
    pub atomic_blocks_max: u64,
    /// Chaos a host makes, in a thousand actions.
    pub chaos_per_mille: u64,
    /// Writes that reached a disk's queue: (unit, stamp).
    pub started: HashSet<(usize, u64)>,
    /// Writes sent and not known to be over: (unit, stamp).
    pub open_writes: BTreeSet<(usize, u64)>,
    /// The command of each write and its attribute: (unit, stamp).
    orders: HashMap<(usize, u64), (u64, TaskAttribute)>,
    commands: u64,
    /// Faults and chaos have ended.
    pub faults_over: bool,
    /// All hosts are idle and every core has forgotten every task.
    pub may_log_out: bool,
    /// The faults ended then.
    pub healed_at: Instant,
    /// A unit was fenced: errors are right.
    pub fenced: bool,
    /// Commands that ended well, for the summary.
    pub commands_good: u64,
    /// Commands that ended otherwise.
    pub commands_failed: u64,
    /// COMPARE AND WRITEs that found another value.
    pub miscompares: u64,
    violations: Vec<Violation>,
}

impl Shared {
    /// Notes a violation.
    pub fn violation(&mut self, at: Instant, what: String) {
        self.violations.push(Violation { at, what });
    }

    /// Notes a violation when there is one.
    pub fn check(&mut self, at: Instant, verdict: Result<(), String>) {
        if let Err(what) = verdict {
            self.violation(at, what);
        }
    }

    /// A command with these writes is about to be sent.
    pub fn note_order(&mut self, unit: usize, stamps: &[u64], attribute: TaskAttribute) {
        self.commands += 1;
        self.orders.extend(stamps.iter().map(|stamp| ((unit, *stamp), (self.commands, attribute))));
    }

    /// Two writes were in a disk together: not when one of them is ORDERED, whichever nexus and core they came by
    /// (SAM-5 §8.7). HEAD OF QUEUE passes everything.
    fn may_meet(&self, unit: usize, newer: u64, older: u64) -> Result<(), String> {
        let (Some(a), Some(b)) = (self.orders.get(&(unit, newer)), self.orders.get(&(unit, older))) else {
            return Ok(());
        };
        let ordered = [a.1, b.1].contains(&TaskAttribute::Ordered);
        if a.0 == b.0 || !ordered || [a.1, b.1].contains(&TaskAttribute::HeadOfQueue) {
            return Ok(());
        }
        Err(format!("unit {unit}: write {newer} ({:?}) ran beside write {older} ({:?})", a.1, b.1))
    }

    /// A write is over without an acknowledgement.
    pub fn end(&mut self, unit: usize, stamp: u64, reason: &'static str) {
        self.units[unit].history.end(stamp, reason);
        self.open_writes.remove(&(unit, stamp));
    }

    /// A write's status came.
    pub fn finish(&mut self, unit: usize, stamp: u64, good: bool, durable: bool) {
        if good {
            self.units[unit].history.acknowledge(stamp, durable);
            self.open_writes.remove(&(unit, stamp));
        } else {
            self.end(unit, stamp, "its command failed");
        }
    }
}

/// Mail between one core, the others and the control plane, without threads. A full ring gives the message back.
struct Mail {
    rings: Vec<VecDeque<(CoreId, CoreMessage)>>,
    requests: Vec<VecDeque<NumberedRequest>>,
    replies: VecDeque<NumberedReply>,
    capacity: usize,
}

struct SimLink {
    core: CoreId,
    mail: Rc<RefCell<Mail>>,
}

impl Outbox<CoreMessage> for SimLink {
    fn send(&mut self, to: CoreId, message: CoreMessage) -> Result<(), CoreMessage> {
        let mail = &mut *self.mail.borrow_mut();
        let capacity = mail.capacity;
        let ring = &mut mail.rings[to.index()];
        if to != self.core && ring.len() >= capacity {
            return Err(message);
        }
        ring.push_back((self.core, message));
        Ok(())
    }
}

impl CoreLink for SimLink {
    fn receive(&mut self) -> Option<(CoreId, CoreMessage)> {
        self.mail.borrow_mut().rings[self.core.index()].pop_front()
    }
    fn next_request(&mut self) -> Option<NumberedRequest> {
        self.mail.borrow_mut().requests[self.core.index()].pop_front()
    }
    fn reply(&mut self, reply: NumberedReply) -> Result<(), NumberedReply> {
        self.mail.borrow_mut().replies.push_back(reply);
        Ok(())
    }
}

/// How a world ended.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    /// Commands that ended with GOOD.
    pub commands_good: u64,
    /// Commands that ended otherwise.
    pub commands_failed: u64,
    /// Steps of the simulation.
    pub steps: u64,
    /// A number that depends on everything that happened.
    pub fingerprint: u64,
}

struct Core {
    conductor: Conductor<IscsiPort<SimNetwork>, SimLink>,
    pool: BufferPool,
}

/// A world under way.
struct World {
    scenario: Scenario,
    prng: Prng,
    now: Instant,
    cores: Vec<Core>,
    mail: Rc<RefCell<Mail>>,
    wire: WireHandle,
    shared: Shared,
    clients: Vec<Client>,
    steps: u64,
    fingerprint: u64,
    next_control: u64,
}

const TARGET_NAME: &str = "iqn.2026-01.io.pollux:sim";
/// Simulated time after the faults in which everything must have finished.
const LIVENESS: Duration = Duration::from_secs(400);
const STEPS_MAX: u64 = 20_000_000;

/// Runs the world of `seed` to its end.
///
/// # Errors
/// The first violation.
pub fn run(scenario: Scenario) -> Result<Summary, Violation> {
    World::new(scenario)?.run()
}

fn limits(scenario: &Scenario) -> Limits {
    Limits {
        sessions_max: 64,
        tasks_max: 256,
        tasks_per_nexus_max: 32,
        logical_units_max: 8,
        luns_per_target_max: 8,
        burst_length_bytes: if scenario.small_pool { 4096 } else { 16_384 },
        bursts_per_task_max: 3,
        unit_attentions_max: 4,
        task_management_deadline_ms: 30_000,
    }
}

/// What the disks promise, and what fits in one burst.
fn atomic_blocks_max(scenario: &Scenario, units: &[Unit]) -> u64 {
    let burst = limits(scenario).burst_length_bytes / crate::BLOCK as u32;
    let promised = units.iter().map(|unit| unit.disk.geometry().atomic.blocks_max).min();
    u64::from(promised.unwrap_or(0).min(burst))
}

fn pool_classes(scenario: &Scenario) -> Vec<PoolClass> {
    if scenario.small_pool {
        vec![
            PoolClass { size: 4096, count: 10 },
            PoolClass { size: 16_384, count: 10 },
            PoolClass { size: 262_144, count: 3 },
        ]
    } else {
        vec![
            PoolClass { size: 4096, count: 24 },
            PoolClass { size: 16_384, count: 24 },
            PoolClass { size: 262_144, count: 4 },
        ]
    }
}

fn iscsi_config(prng: &mut Prng) -> Arc<iscsi::Config> {
    let mut options = iscsi::Options::default();
    options.max_recv_data_segment_length = [512, 2048, 8192, 65_536][prng.below(4) as usize];
    options.max_burst_length = [1024, 4096, 16_384, 262_144][prng.below(4) as usize];
    options.first_burst_length =
        [512, 2048, 8192, 65_536][prng.below(4) as usize].min(options.max_burst_length);
    options.max_outstanding_r2t = prng.between(1, 4) as u16;
    options.immediate_data = prng.chance(3, 4);
    options.initial_r2t = prng.chance(1, 2);
    options.queue_depth_max = prng.between(2, 24) as u32;
    Arc::new(iscsi::Config {
        generation: 1,
        options,
        portal_groups: vec![iscsi::PortalGroup {
            tag: 1,
            portals: vec![iscsi::Portal { address: ([10, 0, 0, 1], 3260).into(), advertised: None }],
            private: false,
        }],
        initiator_groups: vec![iscsi::InitiatorGroup {
            tag: 1,
            initiators: vec!["ANY".into()],
            netmasks: vec!["ANY".into()],
        }],
        auth_groups: Vec::new(),
        targets: vec![iscsi::TargetNode {
            target: TargetDeviceId(1),
            name: TARGET_NAME.into(),
            alias: None,
            maps: vec![iscsi::PortalGroupMap { portal_group: 1, initiator_group: 1 }],
            auth: iscsi::AuthPolicy { disable_chap: true, ..Default::default() },
            header_digest: false,
            data_digest: false,
            queue_depth: 0,
        }],
        discovery_auth: iscsi::AuthPolicy::default(),
        ready: true,
    })
}

fn host_config(prng: &mut Prng, number: usize) -> Config {
    let mut config = Config::normal(&format!("iqn.2026-01.io.pollux:host{number}"), TARGET_NAME);
    config.isid = [0x80, 0, 0, 0, 0, number as u8];
    let digest = |prng: &mut Prng| if prng.chance(1, 4) { "CRC32C".to_owned() } else { "None".to_owned() };
    let max_burst_length = [1024, 4096, 16_384, 262_144][prng.below(4) as usize];
    config.keys = OperationalKeys {
        header_digest: digest(prng),
        data_digest: digest(prng),
        initial_r2t: prng.chance(1, 3),
        immediate_data: prng.chance(3, 4),
        max_recv_data_segment_length: [512, 1024, 4096, 65_536][prng.below(4) as usize],
        max_burst_length,
        first_burst_length: [512, 2048, 8192][prng.below(3) as usize].min(max_burst_length),
        max_outstanding_r2t: prng.between(1, 4) as u16,
        ..OperationalKeys::default()
    };
    config
}

impl World {
    fn new(scenario: Scenario) -> Result<World, Violation> {
        let mut prng = Prng::new(scenario.seed);
        let wire = WireHandle::new(scenario.cores, scenario.network, Prng::new(prng.next_u64()));
        let config = iscsi_config(&mut prng);
        let cores_count = scenario.cores;
        let mail = Rc::new(RefCell::new(Mail {
            rings: (0..cores_count).map(|_| VecDeque::new()).collect(),
            requests: (0..cores_count).map(|_| VecDeque::new()).collect(),
            replies: VecDeque::new(),
            capacity: prng.between(2, 64) as usize,
        }));
        let cores = (0..cores_count)
            .map(|number| {
                let core = CoreId(number);
                let limits = limits(&scenario);
                let pool = BufferPool::plain(&pool_classes(&scenario));
                let engine = scsi::Target::new(core, cores_count, limits.clone(), pool.clone());
                let port = IscsiPort::new(
                    core,
                    wire.network(core),
                    pool.clone(),
                    limits.clone(),
                    config.clone(),
                    prng.next_u64(),
                );
                let link = SimLink { core, mail: mail.clone() };
                Core {
                    conductor: Conductor::new(core, cores_count, engine, port, link, &limits, pool.clone()),
                    pool,
                }
            })
            .collect();
        let units: Vec<Unit> = (0..scenario.units)
            .map(|_| Unit {
                disk: SimDisk::new(scenario.blocks, scenario.disk, Prng::new(prng.next_u64())),
                history: History::default(),
                successors: HashMap::new(),
            })
            .collect();
        let clients = (0..scenario.hosts)
            .map(|number| {
                let config = host_config(&mut prng, number);
                Client::new(number, config, wire.clone(), Prng::new(prng.next_u64()), scenario.commands)
            })
            .collect();
        let atomic_blocks_max = atomic_blocks_max(&scenario, &units);
        let shared = Shared {
            units,
            blocks: scenario.blocks,
            write_cache: scenario.disk.write_cache,
            wide: scenario.wide,
            atomic_blocks_max,
            chaos_per_mille: scenario.chaos_per_mille,
            started: HashSet::new(),
            open_writes: BTreeSet::new(),
            orders: HashMap::new(),
            commands: 0,
            faults_over: false,
            may_log_out: false,
            healed_at: Instant::ZERO,
            fenced: false,
            commands_good: 0,
            commands_failed: 0,
            miscompares: 0,
            violations: Vec::new(),
        };
        let mut world = World {
            scenario,
            prng,
            now: Instant::from_nanos(1_000_000),
            cores,
            mail,
            wire,
            shared,
            clients,
            steps: 0,
            fingerprint: 0,
            next_control: 1,
        };
        world.configure()?;
        Ok(world)
    }

    fn configure(&mut self) -> Result<(), Violation> {
        let mut mappings = Vec::new();
        for unit in 0..self.shared.units.len() {
            let id = LogicalUnitId(unit as u32);
            let home = CoreId((unit % self.cores.len()) as u16);
            let mut naa = [0u8; 16];
            naa[0] = 0x60;
            naa[15] = unit as u8;
            let identity = UnitIdentity {
                vendor: "POLLUX".into(),
                product: "Simulated disk".into(),
                revision: "0001".into(),
                serial: format!("sim{unit}"),
                naa,
                uuid: naa,
            };
            let device = Arc::new(self.shared.units[unit].disk.clone());
            self.control(home, ControlRequest::AddLogicalUnit { unit: id, home, device, identity })?;
            mappings.push(LunMapping { lun: Lun::from_number(unit as u16), unit: id, read_only: false });
        }
        let map = Arc::new(LunMap { mappings });
        self.control(CoreId(0), ControlRequest::SetLunMap { target: TargetDeviceId(1), map })
    }

    /// Asks one core and waits for the answer.
    fn control(&mut self, core: CoreId, request: ControlRequest) -> Result<(), Violation> {
        let id = ControlId(self.next_control);
        self.next_control += 1;
        self.mail.borrow_mut().requests[core.index()]
            .push_back(NumberedRequest { id, request: CoreRequest::Scsi(request) });
        for _ in 0..1_000_000 {
            self.step();
            self.first_violation()?;
            let answered = self.take_replies().into_iter().find(|reply| reply.id == id);
            match answered.map(|reply| reply.reply) {
                Some(CoreReply::Outcome(ControlOutcome::Done)) => return Ok(()),
                Some(other) => return Err(self.fault(format!("a control request ended with {other:?}"))),
                None => {}
            }
        }
        Err(self.fault("a control request was never answered".into()))
    }

    fn take_replies(&mut self) -> Vec<NumberedReply> {
        let replies: Vec<NumberedReply> = self.mail.borrow_mut().replies.drain(..).collect();
        for reply in &replies {
            if let CoreReply::Notification(scsi::Notification::UnitFenced { .. }) = reply.reply {
                self.shared.fenced = true;
            }
        }
        replies
    }

    fn fault(&self, what: String) -> Violation {
        Violation { at: self.now, what }
    }

    fn first_violation(&mut self) -> Result<(), Violation> {
        match self.shared.violations.first() {
            Some(violation) => Err(violation.clone()),
            None => Ok(()),
        }
    }

    /// One step: time, bytes, cores in any order, hosts in any order.
    fn step(&mut self) {
        self.steps += 1;
        let mut moved = self.wire.advance(self.now);
        let mut met = Vec::new();
        for (number, unit) in self.shared.units.iter_mut().enumerate() {
            unit.disk.advance(self.now);
            self.shared.started.extend(unit.disk.take_started().into_iter().map(|stamp| (number, stamp)));
            met.extend(unit.disk.take_met().into_iter().map(|(newer, older)| (number, newer, older)));
            for applied in unit.disk.take_applied() {
                trace!(self.now, "unit {number} block {} now carries {}", applied.lba, applied.stamp);
                self.fingerprint =
                    self.fingerprint.rotate_left(5) ^ applied.stamp ^ (applied.lba << 32) ^ number as u64;
                // A fenced unit promises nothing: it said that tasks may still be in its device.
                if let (Err(what), false) = (unit.history.applied(&applied), self.shared.fenced) {
                    self.shared.violations.push(Violation { at: self.now, what });
                }
            }
        }
        for (unit, newer, older) in met {
            let verdict = self.shared.may_meet(unit, newer, older);
            self.shared.check(self.now, verdict);
        }
        let mut skipped = false;
        let first = self.prng.below(self.cores.len() as u64) as usize;
        let count = self.cores.len();
        for i in 0..count {
            if self.prng.chance(1, 5) {
                skipped = true;
                continue; // a slow core: its turn comes later
            }
            let mut turn = Turn { now: self.now, budget: self.prng.between(1, 64) as u32 };
            let core = &mut self.cores[(first + i) % count];
            moved |= core.conductor.poll(&mut turn) == Progress::Busy;
        }
        for i in 0..self.clients.len() {
            if self.prng.chance(4, 5) {
                moved |= self.clients[i].step(self.now, &mut self.shared);
            } else {
                skipped = true;
            }
        }
        if !moved {
            let before = self.now;
            self.sleep_until_next_event();
            if skipped {
                // Who was passed over may have work: slow, but not asleep.
                self.now = self.now.min(before + Duration::from_millis(5));
            }
        } else {
            self.now = self.now + Duration::from_nanos(self.prng.below(3_000));
        }
    }

    fn sleep_until_next_event(&mut self) {
        let disks = self.shared.units.iter().filter_map(|unit| unit.disk.next_event());
        let cores = self.cores.iter().filter_map(|core| core.conductor.next_timeout());
        let clients = self.clients.iter().filter_map(Client::next_event);
        let next = disks
            .chain(cores)
            .chain(clients)
            .chain(self.wire.next_arrival())
            .filter(|at| *at > self.now)
            .min();
        self.now =
            next.unwrap_or(self.now + Duration::from_millis(1)).max(self.now + Duration::from_nanos(1));
    }

    fn run(mut self) -> Result<Summary, Violation> {
        self.run_until("the commands", |world| world.clients.iter().all(|client| client.budget == 0))?;
        for unit in &self.shared.units {
            unit.disk.heal();
        }
        self.shared.faults_over = true;
        self.shared.healed_at = self.now;
        for client in &mut self.clients {
            client.begin_verification(self.shared.units.len(), self.shared.blocks);
        }
        self.run_until("all hosts to be idle", |world| world.clients.iter().all(Client::is_idle))?;
        self.run_until("every task to be forgotten", |world| {
            world.cores.iter().all(|core| core.conductor.report().tasks == 0)
        })?;
        self.shared.may_log_out = true;
        self.run_until("the end of all sessions", |world| world.clients.iter().all(Client::finished))?;
        self.run_until("everything to come home", |world| {
            world.cores.iter().all(|core| {
                let report = core.conductor.report();
                report.tasks == 0 && report.nexuses == 0 && report.connections.is_empty()
            })
        })?;
        self.everything_is_home()?;
        self.power_cut()?;
        Ok(Summary {
            commands_good: self.shared.commands_good,
            commands_failed: self.shared.commands_failed,
            steps: self.steps,
            fingerprint: self.fingerprint ^ self.steps ^ self.now.as_nanos(),
        })
    }

    fn run_until(&mut self, what: &str, done: impl Fn(&World) -> bool) -> Result<(), Violation> {
        let began = self.now;
        let before = self.steps;
        while !done(self) {
            self.step();
            let _ = self.take_replies();
            self.first_violation()?;
            let overdue = self.now.since(began)
                > LIVENESS + Duration::from_secs(u64::from(self.scenario.commands) * 20);
            if overdue || self.steps - before > STEPS_MAX {
                let waiting: Vec<String> =
                    self.clients.iter().filter(|c| !c.finished()).map(Client::waits_for).collect();
                let reports: Vec<String> = self
                    .cores
                    .iter()
                    .map(|core| {
                        let report = core.conductor.report();
                        format!(
                            "tasks {} nexuses {} connections {} buffers {}",
                            report.tasks,
                            report.nexuses,
                            report.connections.len(),
                            report.buffers_outstanding
                        )
                    })
                    .collect();
                let disks: usize = self.shared.units.iter().map(|unit| unit.disk.outstanding()).sum();
                return Err(self.fault(format!(
                    "no end: waiting for {what}; {}; cores: {}; disk requests {disks}",
                    waiting.join(" | "),
                    reports.join(" | ")
                )));
            }
        }
        Ok(())
    }

    fn everything_is_home(&mut self) -> Result<(), Violation> {
        for (number, core) in self.cores.iter().enumerate() {
            let statistics = core.pool.statistics();
            if statistics.outstanding != 0 {
                return Err(self
                    .fault(format!("core {number}: {} buffers did not come home", statistics.outstanding)));
            }
        }
        for unit in &self.shared.units {
            if unit.disk.outstanding() != 0 {
                return Err(self.fault(format!("{} requests are still in the disk", unit.disk.outstanding())));
            }
        }
        Ok(())
    }

    /// The power fails at the end: what was acknowledged as durable must be there.
    fn power_cut(&mut self) -> Result<(), Violation> {
        let now = self.now;
        for unit in &mut self.shared.units {
            unit.disk.power_cut();
            for lba in 0..self.scenario.blocks {
                let block = unit.disk.block(lba);
                unit.history.survived(lba, &block).map_err(|what| Violation { at: now, what })?;
            }
        }
        Ok(())
    }
}
