use std::time::{Duration, Instant as SystemInstant};

use base::{Clock, Instant};

/// How long the time stamp counter is compared with the system's clock.
const CALIBRATION: Duration = Duration::from_millis(10);

/// The reactors' clock: the time stamp counter where it is invariant, the system's monotonic clock elsewhere. One
/// value is made at start and copied to every core, so that instants of different cores compare.
#[derive(Debug, Clone, Copy)]
pub struct ReactorClock {
    source: Source,
}

#[derive(Debug, Clone, Copy)]
enum Source {
    #[cfg(target_arch = "x86_64")]
    Tsc {
        origin: u64,
        scale: u64,
    },
    System {
        origin: SystemInstant,
    },
}

impl ReactorClock {
    /// Finds the best clock. Takes 20 ms to calibrate the time stamp counter against CLOCK_MONOTONIC.
    #[must_use]
    pub fn new() -> ReactorClock {
        #[cfg(target_arch = "x86_64")]
        if let Some(clock) = x86_64::calibrate() {
            return clock;
        }
        ReactorClock::system()
    }

    /// The system's monotonic clock: no calibration, a few times slower to read.
    #[must_use]
    pub fn system() -> ReactorClock {
        ReactorClock { source: Source::System { origin: SystemInstant::now() } }
    }

    /// Ticks of the time stamp counter in a second; 1,000,000,000 for the system's clock.
    #[must_use]
    pub fn ticks_per_second(&self) -> u64 {
        match self.source {
            #[cfg(target_arch = "x86_64")]
            Source::Tsc { scale, .. } => {
                u64::try_from((1_000_000_000u128 << 32) / u128::from(scale.max(1))).unwrap_or(0)
            }
            Source::System { .. } => 1_000_000_000,
        }
    }

    /// `"tsc"` or `"monotonic"`, for reports.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self.source {
            #[cfg(target_arch = "x86_64")]
            Source::Tsc { .. } => "tsc",
            Source::System { .. } => "monotonic",
        }
    }
}

impl Default for ReactorClock {
    fn default() -> ReactorClock {
        ReactorClock::new()
    }
}

impl Clock for ReactorClock {
    fn now(&self) -> Instant {
        match self.source {
            #[cfg(target_arch = "x86_64")]
            Source::Tsc { origin, scale } => {
                // Saturating: another socket's counter may be a few ticks behind the one the origin was read from.
                let ticks = x86_64::ticks().saturating_sub(origin);
                Instant::from_nanos(
                    u64::try_from((u128::from(ticks) * u128::from(scale)) >> 32).unwrap_or(u64::MAX),
                )
            }
            Source::System { origin } => {
                Instant::from_nanos(u64::try_from(origin.elapsed().as_nanos()).unwrap_or(u64::MAX))
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use super::{CALIBRATION, ReactorClock, Source, SystemInstant};
    use std::arch::x86_64::{__cpuid, _rdtsc};

    pub(super) fn ticks() -> u64 {
        // SAFETY: RDTSC reads a counter and touches no memory. Linux lets user space execute it unless the process
        // asked for a trap (PR_SET_TSC), which this one does not.
        unsafe { _rdtsc() }
    }

    /// CPUID 80000007h EDX bit 8: the counter runs at one rate in every power and sleep state.
    fn is_invariant() -> bool {
        // Every x86-64 processor has CPUID and its extended leaf 80000000h.
        #[allow(unused_unsafe, clippy::undocumented_unsafe_blocks)]
        let (highest, features) = unsafe { (__cpuid(0x8000_0000).eax, __cpuid(0x8000_0007).edx) };
        highest >= 0x8000_0007 && features & (1 << 8) != 0
    }

    /// One reading of both clocks at once: the closest of a few tries.
    fn reading() -> (u64, SystemInstant) {
        let mut best = (u64::MAX, 0, SystemInstant::now());
        for _ in 0..8 {
            let before = ticks();
            let system = SystemInstant::now();
            let after = ticks();
            let width = after.saturating_sub(before);
            if width < best.0 {
                best = (width, before + width / 2, system);
            }
        }
        (best.1, best.2)
    }

    /// Nanoseconds of a tick, times 2^32.
    fn scale(from: (u64, SystemInstant), to: (u64, SystemInstant)) -> Option<u64> {
        let ticks = u128::from(to.0.checked_sub(from.0)?);
        let nanos = to.1.duration_since(from.1).as_nanos();
        u64::try_from((nanos << 32).checked_div(ticks)?).ok().filter(|&scale| scale > 0)
    }

    /// The counter as a clock, when it is invariant and two measurements of its rate agree within 0.1 %.
    pub(super) fn calibrate() -> Option<ReactorClock> {
        if !is_invariant() {
            return None;
        }
        let start = reading();
        std::thread::sleep(CALIBRATION);
        let middle = reading();
        std::thread::sleep(CALIBRATION);
        let end = reading();
        let (first, second) = (scale(start, middle)?, scale(middle, end)?);
        if first.abs_diff(second) > first / 1000 {
            return None;
        }
        Some(ReactorClock { source: Source::Tsc { origin: start.0, scale: scale(start, end)? } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_clocks_agree_with_the_system() {
        for clock in [ReactorClock::new(), ReactorClock::system()] {
            let (start, system) = (clock.now(), SystemInstant::now());
            std::thread::sleep(Duration::from_millis(30));
            let (passed, expected) = (clock.now().since(start), system.elapsed());
            let error = passed.abs_diff(expected);
            assert!(error < Duration::from_millis(3), "{}: {passed:?} instead of {expected:?}", clock.kind());
            assert!(clock.ticks_per_second() > 1_000_000);
        }
    }

    #[test]
    fn time_does_not_run_backwards() {
        let clock = ReactorClock::new();
        let mut last = clock.now();
        for _ in 0..10_000 {
            let now = clock.now();
            assert!(now >= last);
            last = now;
        }
    }
}
