//! One world: cores, network, disks, hosts and time, all driven by one seed.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use base::{BufferPool, CoreId, Instant, Limits, Outbox, PoolClass, Prng};
use fabrics::conductor::{Conductor, CoreReply, CoreRequest, NumberedReply, NumberedRequest};
use fabrics::iscsi;
use initiator::{Config, OperationalKeys};
use reactor::{Poller, Turn};
use scsi::{ControlId, ControlOutcome, ControlRequest, LogicalUnitId, LunMap, LunMapping, TargetDeviceId, UnitIdentity};
use wire::scsi::Lun;

use crate::BLOCK;
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
                chunk_max: [1, 50, 600, 9_000, 60_000][prng.below(5) as usize].max(if prng.chance(9, 10) { 40 } else { 1 }),
            },
            disk: DiskWeather {
                latency_max: Duration::from_micros(prng.between(1, 3_000)),
                errors_per_mille: if faulty { prng.below(30) } else { 0 },
                stuck_per_mille: if stuck { prng.below(10) } else { 0 },
                full_per_mille: if prng.chance(1, 3) { prng.below(300) } else { 0 },
                write_cache: prng.chance(1, 2),
            },
            small_pool: prng.chance(1, 3),
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
    /// Chaos a host makes, in a thousand actions.
    pub chaos_per_mille: u64,
    /// Stamps of writes that reached a disk's queue.
    pub started: HashSet<u64>,
    /// Writes sent and not known to be over: (unit, stamp).
    pub open_writes: BTreeSet<(usize, u64)>,
    /// Faults and chaos have ended.
    pub faults_over: bool,
    /// Since then.
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

/// A ring between cores that may be slow, and may be full.
struct SimOutbox<M> {
    from: CoreId,
    rings: Rc<RefCell<Vec<VecDeque<(CoreId, M)>>>>,
    capacity: usize,
}

impl<M: Send> Outbox<M> for SimOutbox<M> {
    fn send(&mut self, to: CoreId, message: M) -> Result<(), M> {
        let ring = &mut self.rings.borrow_mut()[to.index()];
        if ring.len() >= self.capacity {
            return Err(message);
        }
        ring.push_back((self.from, message));
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

