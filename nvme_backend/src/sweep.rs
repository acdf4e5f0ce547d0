//! Commands that take too long. Nobody notes when a command was sent: now and then all are looked at, and counted older.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::TimeoutAction;
use crate::shared::{Report, Shared};

/// Sweeps in one timeout. A command is overdue when it was seen by one sweep more, and stuck three later.
const SWEEPS: u32 = 8;
const OVERDUE: u8 = SWEEPS as u8 + 1;
const STUCK: u8 = OVERDUE + 3;
/// What a sweep does about a command it has seen so often.
pub(crate) fn overdue(shared: &Shared, seat: usize, abort: Report, age: u8, epoch: u64) {
    let action = shared.options.timeout_action;
    if age == OVERDUE {
        if let Some(place) = shared.seats.get(seat) {
            place.counters.timeouts.fetch_add(1, Ordering::Relaxed);
        }
        match action {
            TimeoutAction::None => {}
            TimeoutAction::Abort => shared.report(abort),
            TimeoutAction::Reset => shared.report(Report::Stuck { core: seat, epoch }),
        }
    } else if age >= STUCK && action != TimeoutAction::None {
        shared.report(Report::Stuck { core: seat, epoch });
    }
}

/// The time between two sweeps; `None` when commands may take for ever.
pub(crate) fn sweep_interval(timeout: Duration) -> Option<Duration> {
    (!timeout.is_zero()).then(|| timeout / SWEEPS)
}
