use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, Ordering};
use std::time::Duration;

use base::{Clock, Instant, Progress};

use crate::poll_fd::SleepSet;
use crate::statistics::{Counters, Tally};
use crate::{Doorbell, Poller, ReactorClock, ReactorMode, Turn};

/// Items a poller handles before it lets others run.
const BUDGET: u32 = 64;
/// How long an adaptive reactor keeps polling after the last turn that moved something.
const SPIN: Duration = Duration::from_micros(100);
/// The longest sleep. Nothing relies on it: it bounds the harm of a device whose descriptor stays silent.
const SLEEP_MAX: Duration = Duration::from_secs(1);
/// Idle turns between two offers of the CPU to other threads, where reactors share it.
const YIELD_EVERY: u64 = 16;

/// What a reactor's thread shares with everybody else.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) mode: AtomicU8,
    pub(crate) stop: AtomicBool,
    pub(crate) bell: Doorbell,
    pub(crate) counters: Counters,
    pub(crate) pinned: AtomicBool,
    /// The kernel's number of the thread; 0 before it runs.
    pub(crate) thread_id: AtomicI32,
}

impl Shared {
    pub(crate) fn mode(&self) -> ReactorMode {
        ReactorMode::from_bits(self.mode.load(Ordering::Relaxed))
    }

    fn must_stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// One reactor's poll loop.
pub(crate) struct PollLoop<'a> {
    pub(crate) poller: Box<dyn Poller>,
    pub(crate) clock: ReactorClock,
    pub(crate) shared: &'a Shared,
    /// Other threads need this CPU too.
    pub(crate) yields: bool,
    tally: Tally,
    descriptors: SleepSet,
    spin_until: Instant,
}

impl<'a> PollLoop<'a> {
    pub(crate) fn new(
        poller: Box<dyn Poller>,
        clock: ReactorClock,
        shared: &'a Shared,
        yields: bool,
    ) -> PollLoop<'a> {
        let tally = Tally { counted_until: clock.now(), ..Tally::default() };
        PollLoop {
            poller,
            clock,
            shared,
            yields,
            tally,
            descriptors: SleepSet::with_capacity(256),
            spin_until: Instant::ZERO,
        }
    }

    /// Polls until told to stop.
    pub(crate) fn run(&mut self) {
        let mut idle_turns = 0u64;
        while !self.shared.must_stop() {
            if self.turn() == Progress::Busy {
                idle_turns = 0;
                continue;
            }
            idle_turns += 1;
            if self.shared.mode() == ReactorMode::Adaptive && self.tally.counted_until >= self.spin_until {
                self.sleep();
            } else if self.yields && idle_turns.is_multiple_of(YIELD_EVERY) {
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
    }

    /// One turn: the clock is read once, at its end, and that reading is the next turn's `now`.
    fn turn(&mut self) -> Progress {
        let mut turn = Turn { now: self.tally.counted_until, budget: BUDGET };
        let progress = self.poller.poll(&mut turn);
        let now = self.clock.now();
        self.tally.polls += 1;
        self.tally.polls_busy += u64::from(progress == Progress::Busy);
        self.tally.count(now, progress == Progress::Busy);
        self.shared.counters.publish(&self.tally, false);
        if progress == Progress::Busy {
            self.spin_until = now + SPIN;
        }
        progress
    }

    /// Arms every bell, looks once more, and sleeps (crate documentation).
    fn sleep(&mut self) {
        self.descriptors.clear();
        self.descriptors.push(self.shared.bell.arm());
        let descriptors = &mut self.descriptors;
        self.poller.wake_descriptors(&mut |descriptor| descriptors.push(descriptor));
        let progress = self.turn();
        let now = self.tally.counted_until;
        let due = self.poller.next_timeout().map(|at| at.since(now));
        let may_sleep = progress == Progress::Idle
            && due != Some(Duration::ZERO)
            && !self.shared.must_stop()
            && self.shared.mode() == ReactorMode::Adaptive;
        if may_sleep {
            self.tally.sleeps += 1;
            self.shared.counters.publish(&self.tally, true);
            let woken = self.descriptors.sleep(Some(due.unwrap_or(SLEEP_MAX).min(SLEEP_MAX)));
            let now = self.clock.now();
            self.tally.count(now, false);
            self.shared.counters.publish(&self.tally, false);
            // After a timeout one turn is enough; where something arrived, more is likely to follow.
            if woken {
                self.spin_until = now + SPIN;
            }
        }
        self.shared.bell.disarm();
    }
}
