use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering, fence};

use base::{Clock, Instant};

/// What a reactor does when there is nothing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReactorMode {
    /// Polls for ever: the shortest latency, a whole CPU.
    #[default]
    Poll,
    /// Polls while busy and a short while longer, then sleeps until a descriptor or a timeout wakes it.
    Adaptive,
}

impl ReactorMode {
    pub(crate) fn to_bits(self) -> u8 {
        match self {
            ReactorMode::Poll => 0,
            ReactorMode::Adaptive => 1,
        }
    }

    pub(crate) fn from_bits(bits: u8) -> ReactorMode {
        if bits == 0 { ReactorMode::Poll } else { ReactorMode::Adaptive }
    }
}

impl std::fmt::Display for ReactorMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            ReactorMode::Poll => "poll",
            ReactorMode::Adaptive => "adaptive",
        })
    }
}

impl std::str::FromStr for ReactorMode {
    type Err = String;
    fn from_str(text: &str) -> Result<ReactorMode, String> {
        match text {
            "poll" => Ok(ReactorMode::Poll),
            "adaptive" => Ok(ReactorMode::Adaptive),
            _ => Err(format!("{text:?} is not a reactor mode: poll or adaptive")),
        }
    }
}

/// What one reactor has done since start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReactorStatistics {
    /// Time in turns that moved something, in nanoseconds.
    pub busy_ns: u64,
    /// Time in turns that found nothing, and asleep, in nanoseconds.
    pub idle_ns: u64,
    /// Turns of the poll loop.
    pub polls: u64,
    /// Turns that moved something.
    pub polls_busy: u64,
    /// Times it slept.
    pub sleeps: u64,
    /// Its mode now.
    pub mode: ReactorMode,
}

/// The counters behind [`ReactorStatistics`], on cache lines of their own. Only the reactor writes them, with plain
/// stores; anybody reads. A sequence number (odd while the reactor writes) lets a reader see one moment, not a mixture.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Counters {
    sequence: AtomicU64,
    busy_ns: AtomicU64,
    idle_ns: AtomicU64,
    polls: AtomicU64,
    polls_busy: AtomicU64,
    sleeps: AtomicU64,
    /// Up to when busy and idle time is counted.
    counted_until_ns: AtomicU64,
    asleep: AtomicBool,
}

/// The reactor's own copy of its counters.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    pub(crate) busy_ns: u64,
    pub(crate) idle_ns: u64,
    pub(crate) polls: u64,
    pub(crate) polls_busy: u64,
    pub(crate) sleeps: u64,
    pub(crate) counted_until: Instant,
}

impl Tally {
    /// Counts the time since the last call as busy or idle.
    pub(crate) fn count(&mut self, now: Instant, busy: bool) {
        let passed = now.as_nanos().saturating_sub(self.counted_until.as_nanos());
        self.counted_until = self.counted_until.max(now);
        if busy { self.busy_ns += passed } else { self.idle_ns += passed }
    }
}

impl Counters {
    pub(crate) fn publish(&self, tally: &Tally, asleep: bool) {
        let sequence = self.sequence.load(Ordering::Relaxed);
        self.sequence.store(sequence.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        self.busy_ns.store(tally.busy_ns, Ordering::Relaxed);
        self.idle_ns.store(tally.idle_ns, Ordering::Relaxed);
        self.polls.store(tally.polls, Ordering::Relaxed);
        self.polls_busy.store(tally.polls_busy, Ordering::Relaxed);
        self.sleeps.store(tally.sleeps, Ordering::Relaxed);
        self.counted_until_ns.store(tally.counted_until.as_nanos(), Ordering::Relaxed);
        self.asleep.store(asleep, Ordering::Relaxed);
        self.sequence.store(sequence.wrapping_add(2), Ordering::Release);
    }

    /// The counters now. A sleep that is still going on is counted up to the time `clock` tells.
    pub(crate) fn snapshot(&self, clock: &dyn Clock, mode: &AtomicU8) -> ReactorStatistics {
        loop {
            let before = self.sequence.load(Ordering::Acquire);
            let mut seen = ReactorStatistics {
                busy_ns: self.busy_ns.load(Ordering::Relaxed),
                idle_ns: self.idle_ns.load(Ordering::Relaxed),
                polls: self.polls.load(Ordering::Relaxed),
                polls_busy: self.polls_busy.load(Ordering::Relaxed),
                sleeps: self.sleeps.load(Ordering::Relaxed),
                mode: ReactorMode::from_bits(mode.load(Ordering::Relaxed)),
            };
            if self.asleep.load(Ordering::Relaxed) {
                let until = Instant::from_nanos(self.counted_until_ns.load(Ordering::Relaxed));
                let nap = clock.now().as_nanos().saturating_sub(until.as_nanos());
                seen.idle_ns = seen.idle_ns.saturating_add(nap);
            }
            fence(Ordering::Acquire);
            if before.is_multiple_of(2) && self.sequence.load(Ordering::Relaxed) == before {
                return seen;
            }
            // The reactor was writing: a few nanoseconds, unless the system took its CPU away.
            std::thread::yield_now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct At(u64);
    impl Clock for At {
        fn now(&self) -> Instant {
            Instant::from_nanos(self.0)
        }
    }

    #[test]
    fn a_sleep_in_progress_counts_as_idle() {
        let counters = Counters::default();
        let mut tally = Tally::default();
        tally.count(Instant::from_nanos(100), true);
        tally.count(Instant::from_nanos(150), false);
        counters.publish(&tally, true);
        let seen = counters.snapshot(&At(1150), &AtomicU8::new(1));
        assert_eq!((seen.busy_ns, seen.idle_ns, seen.mode), (100, 1050, ReactorMode::Adaptive));
        counters.publish(&tally, false);
        assert_eq!(counters.snapshot(&At(1150), &AtomicU8::new(0)).idle_ns, 50);
    }

    #[test]
    fn modes_have_names() {
        for mode in [ReactorMode::Poll, ReactorMode::Adaptive] {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        assert!("fast".parse::<ReactorMode>().is_err());
    }
}
