//! What a controller's cores and its service thread have in common.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam_queue::ArrayQueue;
use reactor::{DmaMemory, Doorbell, PciDevice};
use wire::nvme::Status;

use crate::gate::Gate;
use crate::queue_pair::{Command, QueueCounters, QueuePair};
use crate::{ControllerOptions, ControllerState};

/// Reports of cores that may wait for the service thread; more are dropped and made again at the next sweep.
const REPORTS: usize = 1024;

/// What a core tells the service thread about its queue pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Report {
    /// A command took too long, or nobody wants it any more: abort it.
    Abort { queue: u16, epoch: u64, command: u16 },
    /// Aborting did not help.
    Stuck { core: usize, epoch: u64 },
    /// A doorbell could not be written.
    Broken,
}

/// A command of a core without a queue pair of its own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RemoteCommand {
    pub(crate) slot: u16,
    pub(crate) command: Command,
}

/// How a remote command ended.
#[derive(Debug, Clone, Copy)]
pub(crate) enum RemoteEnd {
    /// The controller answered.
    Answered(Status),
    /// It was lost in a reset; the device has forgotten it.
    Lost,
}

/// The answer to a [`RemoteCommand`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct RemoteAnswer {
    pub(crate) slot: u16,
    pub(crate) end: RemoteEnd,
}

/// A core's end of the rings to the service thread.
pub(crate) struct RemotePort {
    pub(crate) commands: rtrb::Producer<RemoteCommand>,
    pub(crate) answers: rtrb::Consumer<RemoteAnswer>,
}

/// Counters that one side writes and all may read.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    commands: AtomicU64,
    completions: AtomicU64,
    errors: AtomicU64,
    submission_doorbells: AtomicU64,
    completion_doorbells: AtomicU64,
    strange: AtomicU64,
    pub(crate) timeouts: AtomicU64,
    pub(crate) retries: AtomicU64,
}

impl Counters {
    /// Adds what a queue pair has counted, and takes it from there.
    pub(crate) fn add(&self, from: &mut QueueCounters) {
        let add = |to: &AtomicU64, value: &mut u64| {
            if *value > 0 {
                // One writer: no read-modify-write is needed.
                to.store(to.load(Ordering::Relaxed) + std::mem::take(value), Ordering::Relaxed);
            }
        };
        add(&self.commands, &mut from.commands);
        add(&self.completions, &mut from.completions);
        add(&self.errors, &mut from.errors);
        add(&self.submission_doorbells, &mut from.submission_doorbells);
        add(&self.completion_doorbells, &mut from.completion_doorbells);
        add(&self.strange, &mut from.strange);
    }

    pub(crate) fn sum_into(&self, sum: &mut crate::ControllerStatistics) {
        let load = |value: &AtomicU64| value.load(Ordering::Relaxed);
        sum.commands += load(&self.commands);
        sum.completions += load(&self.completions);
        sum.errors += load(&self.errors);
        sum.submission_doorbells += load(&self.submission_doorbells);
        sum.completion_doorbells += load(&self.completion_doorbells);
        sum.strange_completions += load(&self.strange);
        sum.timeouts += load(&self.timeouts);
        sum.retries += load(&self.retries);
    }
}

/// What the service thread leaves for a core to find.
#[derive(Default)]
pub(crate) struct Home {
    /// The queue pair of the present epoch, while the core has not taken it.
    pub(crate) pair: Option<Box<QueuePair>>,
    /// The rings, while no channel of the core is open.
    pub(crate) remote: Option<RemotePort>,
    /// Answers that will still come through them, and are nobody's.
    pub(crate) remote_stale: u16,
    /// Wakes the core when it sleeps on its interrupt.
    pub(crate) interrupt: Option<Arc<OwnedFd>>,
    /// Address of the core's queue memory on the bus, and its layout; `None` while nothing is mapped.
    pub(crate) memory: Option<(u64, crate::queue_pair::Layout)>,
}

/// One core's place at a controller.
pub(crate) struct Seat {
    pub(crate) gate: Gate,
    pub(crate) home: Mutex<Home>,
    /// Wakes the core when it does not sleep on an interrupt.
    pub(crate) bell: Doorbell,
    pub(crate) memory: Arc<DmaMemory>,
    pub(crate) counters: Counters,
    /// A core has channels open.
    pub(crate) open: AtomicBool,
}

impl Seat {
    pub(crate) fn home(&self) -> MutexGuard<'_, Home> {
        locked(&self.home)
    }

    /// Makes the core poll, if it sleeps.
    pub(crate) fn wake(&self) {
        self.bell.ring();
        if let Some(interrupt) = &self.home().interrupt {
            // Full means readable.
            let _ = rustix::io::write(interrupt.as_fd(), &1u64.to_ne_bytes());
        }
    }
}

/// The device, as far as cores map their pools on it.
#[derive(Default)]
pub(crate) struct Bus {
    /// `None` while nothing may be mapped.
    pub(crate) device: Option<Arc<dyn PciDevice>>,
    /// Changes whenever all mappings were taken back.
    pub(crate) generation: u64,
    /// Bus addresses of the pools that are mapped.
    pub(crate) pools: Vec<u64>,
}

/// See the module.
pub(crate) struct Shared {
    pub(crate) options: ControllerOptions,
    pub(crate) seats: Box<[Seat]>,
    /// Wakes the service thread.
    pub(crate) bell: Doorbell,
    pub(crate) reports: ArrayQueue<Report>,
    pub(crate) bus: Mutex<Bus>,
    pub(crate) state: AtomicU8,
    pub(crate) health: Mutex<Option<bdev::Health>>,
    pub(crate) bounce_copies: AtomicU64,
}

impl Shared {
    pub(crate) fn new(options: ControllerOptions, seats: Box<[Seat]>, bell: Doorbell) -> Shared {
        Shared {
            options,
            seats,
            bell,
            reports: ArrayQueue::new(REPORTS),
            bus: Mutex::new(Bus::default()),
            state: AtomicU8::new(ControllerState::Starting as u8),
            health: Mutex::new(None),
            bounce_copies: AtomicU64::new(0),
        }
    }

    pub(crate) fn bus(&self) -> MutexGuard<'_, Bus> {
        locked(&self.bus)
    }

    pub(crate) fn state(&self) -> ControllerState {
        match self.state.load(Ordering::Acquire) {
            0 => ControllerState::Starting,
            1 => ControllerState::Ready,
            2 => ControllerState::Resetting,
            3 => ControllerState::Failed,
            4 => ControllerState::Gone,
            5 => ControllerState::Detaching,
            _ => ControllerState::Detached,
        }
    }

    pub(crate) fn set_state(&self, state: ControllerState) {
        self.state.store(state as u8, Ordering::Release);
    }

    /// Tells the service thread something. When there is no room, the next sweep will say it again.
    pub(crate) fn report(&self, report: Report) {
        let _ = self.reports.push(report);
        self.bell.ring();
    }
}

/// The lock, also after a panic of another holder: what it guards is changed in single steps.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
