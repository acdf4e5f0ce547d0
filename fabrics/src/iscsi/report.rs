//! What the port says of itself: connection reports, and log lines that a hostile peer cannot flood.

use std::time::Duration;

use base::Instant;

/// Lines that may come at once.
const BURST: u32 = 20;
/// One more line every so often.
const INTERVAL: Duration = Duration::from_millis(500);

/// A token bucket for log lines about peers.
#[derive(Debug)]
pub(super) struct LineBudget {
    tokens: u32,
    refilled: Instant,
    suppressed: u64,
}

impl LineBudget {
    pub fn new() -> LineBudget {
        LineBudget { tokens: BURST, refilled: Instant::ZERO, suppressed: 0 }
    }

    /// `Some(lines suppressed since the last one)` when a line may be written now.
    pub fn take(&mut self, now: Instant) -> Option<u64> {
        let gained = now.since(self.refilled).as_nanos() / INTERVAL.as_nanos();
        if gained > 0 {
            self.tokens = self.tokens.saturating_add(u32::try_from(gained).unwrap_or(BURST)).min(BURST);
            self.refilled = now;
        }
        if self.tokens == 0 {
            self.suppressed = self.suppressed.saturating_add(1);
            return None;
        }
        self.tokens -= 1;
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_counted() {
        let mut budget = LineBudget::new();
        let now = Instant::from_nanos(1_000_000_000);
        let written = (0..1000).filter(|_| budget.take(now).is_some()).count();
        assert!(written <= BURST as usize + 2, "{written}");
        let later = now + Duration::from_secs(1);
        assert_eq!(budget.take(later), Some(1000 - written as u64));
    }
}
