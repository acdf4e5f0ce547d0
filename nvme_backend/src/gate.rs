//! Who may touch a core's queue pair: the core, or the service thread while it resets things. One word, no lock.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a gate says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Door {
    /// There is a queue pair, and nobody uses it: the core may enter.
    Idle = 0,
    /// The core uses it.
    Busy = 1,
    /// The core uses it and is asked to stop at its next poll.
    ParkRequested = 2,
    /// The service thread has it. The core waits.
    Parked = 3,
    /// There is none for this core: it sends its commands to the service thread.
    Shared = 4,
    /// The controller failed, until it is reset.
    Failed = 5,
    /// The device is gone or was detached.
    Gone = 6,
}

/// What a gate says, and of which epoch it speaks. A new epoch means that no command of an older one will be answered,
/// and that the device touches no memory on their behalf any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GateState {
    pub(crate) epoch: u64,
    pub(crate) door: Door,
}

impl GateState {
    const fn bits(self) -> u64 {
        self.epoch << 8 | self.door as u64
    }

    const fn of(bits: u64) -> GateState {
        let door = match bits as u8 {
            0 => Door::Idle,
            1 => Door::Busy,
            2 => Door::ParkRequested,
            3 => Door::Parked,
            4 => Door::Shared,
            5 => Door::Failed,
            _ => Door::Gone,
        };
        GateState { epoch: bits >> 8, door }
    }
}

/// The word of one core.
#[derive(Debug)]
pub(crate) struct Gate(AtomicU64);

impl Gate {
    pub(crate) fn new() -> Gate {
        Gate(AtomicU64::new(GateState { epoch: 0, door: Door::Parked }.bits()))
    }

    pub(crate) fn state(&self) -> GateState {
        GateState::of(self.0.load(Ordering::Acquire))
    }

    fn exchange(&self, epoch: u64, from: Door, to: Door) -> bool {
        let (from, to) = (GateState { epoch, door: from }, GateState { epoch, door: to });
        self.0.compare_exchange(from.bits(), to.bits(), Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Core: takes the queue pair of `epoch`. False when it is not to be had.
    pub(crate) fn enter(&self, epoch: u64) -> bool {
        self.exchange(epoch, Door::Idle, Door::Busy)
    }

    /// Core: gives the queue pair back, with nothing in flight. True when the service thread was waiting for it.
    pub(crate) fn leave(&self, epoch: u64) -> bool {
        !self.exchange(epoch, Door::Busy, Door::Idle)
            && self.exchange(epoch, Door::ParkRequested, Door::Parked)
    }

    /// Core: follows a park request, whatever is in flight. True when there was one.
    pub(crate) fn park_if_requested(&self, epoch: u64) -> bool {
        self.exchange(epoch, Door::ParkRequested, Door::Parked)
    }

    /// Core: stops using the queue pair for ever, although commands are in flight; they stay the device's.
    pub(crate) fn abandon(&self, epoch: u64) {
        let _ = self.exchange(epoch, Door::Busy, Door::Parked)
            || self.exchange(epoch, Door::ParkRequested, Door::Parked);
    }

    /// Service thread: wants the queue pair. True when it has it now; otherwise the core will park at its next poll.
    pub(crate) fn park(&self) -> bool {
        loop {
            let state = self.state();
            match state.door {
                Door::Idle if self.exchange(state.epoch, Door::Idle, Door::Parked) => return true,
                Door::Busy if self.exchange(state.epoch, Door::Busy, Door::ParkRequested) => return false,
                Door::ParkRequested => return false,
                Door::Parked | Door::Shared | Door::Failed | Door::Gone => return true,
                // It changed under us: look again.
                Door::Idle | Door::Busy => {}
            }
        }
    }

    /// Service thread, which has it: begins a new epoch.
    pub(crate) fn begin_epoch(&self, door: Door) {
        let epoch = self.state().epoch + 1;
        self.0.store(GateState { epoch, door }.bits(), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_queue_is_taken_at_once_and_a_busy_one_when_its_core_agrees() {
        let gate = Gate::new();
        assert!(!gate.enter(0), "nobody made a queue pair yet");
        gate.begin_epoch(Door::Idle);
        assert!(gate.enter(1) && !gate.enter(1));
        assert!(!gate.leave(1));
        assert!(gate.park() && !gate.enter(1));
        gate.begin_epoch(Door::Idle);
        assert!(!gate.enter(1), "a stale epoch");
        assert!(gate.enter(2));
        assert!(!gate.park() && !gate.park());
        assert!(gate.park_if_requested(2));
        assert_eq!(gate.state(), GateState { epoch: 2, door: Door::Parked });
        gate.begin_epoch(Door::Idle);
        assert!(gate.enter(3) && !gate.park_if_requested(3) && !gate.park());
        assert!(gate.leave(3), "leaving is agreeing");
        gate.begin_epoch(Door::Shared);
        assert!(gate.park(), "there is nothing to take");
    }

    #[test]
    fn two_threads_never_have_it_both() {
        use std::sync::Arc;
        use std::sync::atomic::{AtomicBool, AtomicU32};
        let gate = Arc::new(Gate::new());
        gate.begin_epoch(Door::Idle);
        let inside = Arc::new(AtomicU32::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let core = std::thread::spawn({
            let (gate, inside, stop) = (gate.clone(), inside.clone(), stop.clone());
            move || {
                let mut entered = 0u32;
                while !stop.load(Ordering::Relaxed) {
                    let epoch = gate.state().epoch;
                    if gate.enter(epoch) {
                        entered += 1;
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        inside.fetch_sub(1, Ordering::SeqCst);
                        if !gate.park_if_requested(epoch) {
                            gate.leave(epoch);
                        }
                    }
                }
                entered
            }
        });
        for _ in 0..20_000 {
            while !gate.park() {
                if gate.state().door == Door::Parked {
                    break;
                }
                std::hint::spin_loop();
            }
            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
            inside.fetch_sub(1, Ordering::SeqCst);
            gate.begin_epoch(Door::Idle);
        }
        stop.store(true, Ordering::Relaxed);
        core.join().unwrap();
    }
}
