//! Unit attention conditions of one I_T_L nexus (SAM-5 §5.14, SPC-5 §4.4.1).

use wire::scsi::{Sense, SenseKey};

/// A unit attention: its additional sense code and qualifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnitAttention {
    /// ADDITIONAL SENSE CODE.
    pub asc: u8,
    /// ADDITIONAL SENSE CODE QUALIFIER.
    pub ascq: u8,
}

impl UnitAttention {
    /// POWER ON, RESET, OR BUS DEVICE RESET OCCURRED.
    pub const POWER_ON: UnitAttention = UnitAttention { asc: 0x29, ascq: 0x00 };
    /// SCSI BUS RESET OCCURRED: what a target warm reset leaves.
    pub const TARGET_RESET: UnitAttention = UnitAttention { asc: 0x29, ascq: 0x02 };
    /// BUS DEVICE RESET FUNCTION OCCURRED: what a LOGICAL UNIT RESET leaves.
    pub const LOGICAL_UNIT_RESET: UnitAttention = UnitAttention { asc: 0x29, ascq: 0x03 };
    /// I_T NEXUS LOSS OCCURRED.
    pub const NEXUS_LOSS: UnitAttention = UnitAttention { asc: 0x29, ascq: 0x07 };
    /// NOT READY TO READY CHANGE, MEDIUM MAY HAVE CHANGED.
    pub const MEDIUM_CHANGED: UnitAttention = UnitAttention { asc: 0x28, ascq: 0x00 };
    /// MODE PARAMETERS CHANGED.
    pub const MODE_PARAMETERS_CHANGED: UnitAttention = UnitAttention { asc: 0x2A, ascq: 0x01 };
    /// CAPACITY DATA HAS CHANGED.
    pub const CAPACITY_CHANGED: UnitAttention = UnitAttention { asc: 0x2A, ascq: 0x09 };
    /// COMMANDS CLEARED BY ANOTHER INITIATOR.
    pub const COMMANDS_CLEARED: UnitAttention = UnitAttention { asc: 0x2F, ascq: 0x00 };
    /// REPORTED LUNS DATA HAS CHANGED.
    pub const REPORTED_LUNS_CHANGED: UnitAttention = UnitAttention { asc: 0x3F, ascq: 0x0E };

    /// As sense data.
    #[must_use]
    pub const fn sense(self) -> Sense {
        Sense::new(SenseKey::UnitAttention, self.asc, self.ascq)
    }

    /// Rank among the reset conditions: a lower one is included in a higher one (SAM-5 §5.14, table 27). `None` for
    /// everything else.
    fn rank(self) -> Option<u8> {
        match (self.asc, self.ascq) {
            (0x29, 0x00) => Some(5),
            (0x29, 0x01) => Some(4),
            (0x29, 0x02) => Some(3),
            (0x29, 0x03) => Some(2),
            (0x29, _) => Some(1),
            _ => None,
        }
    }
}

/// The unit attentions pending for one I_T_L nexus, oldest first. Bounded: when it would overflow, all that is
/// pending collapses into POWER ON, RESET, OR BUS DEVICE RESET OCCURRED, which tells the initiator to look at
/// everything anew; nothing is lost in silence.
#[derive(Debug, Clone, Default)]
pub struct AttentionQueue {
    pending: std::collections::VecDeque<UnitAttention>,
}

impl AttentionQueue {
    /// Establishes a condition. A reset condition clears what was pending before it, since the initiator has to ask for
    /// all of that again; a condition that is pending already is not queued twice.
    /// True when the queue changed.
    pub fn establish(&mut self, attention: UnitAttention, capacity: usize) -> bool {
        if let Some(rank) = attention.rank() {
            if self.pending.iter().any(|old| old.rank().is_some_and(|old| old >= rank)) {
                return false;
            }
            self.pending.clear();
            self.pending.push_back(attention);
            return true;
        }
        if self.pending.contains(&attention) {
            return false;
        }
        if self.pending.len() >= capacity.max(1) {
            self.pending.clear();
            self.pending.push_back(UnitAttention::POWER_ON);
            return true;
        }
        self.pending.push_back(attention);
        true
    }

    /// Takes the oldest condition.
    pub fn take(&mut self) -> Option<UnitAttention> {
        self.pending.pop_front()
    }

    /// Takes `attention` out. True when it was pending.
    pub fn clear(&mut self, attention: UnitAttention) -> bool {
        let Some(at) = self.pending.iter().position(|&pending| pending == attention) else { return false };
        self.pending.remove(at).is_some()
    }

    /// The oldest condition.
    #[must_use]
    pub fn first(&self) -> Option<UnitAttention> {
        self.pending.front().copied()
    }

    /// How many are pending.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pending.len()
    }

    /// True when none is pending.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_condition_is_reported_once_and_in_order() {
        let mut queue = AttentionQueue::default();
        assert!(queue.establish(UnitAttention::MODE_PARAMETERS_CHANGED, 4));
        assert!(queue.establish(UnitAttention::CAPACITY_CHANGED, 4));
        assert!(!queue.establish(UnitAttention::MODE_PARAMETERS_CHANGED, 4));
        assert_eq!(queue.take(), Some(UnitAttention::MODE_PARAMETERS_CHANGED));
        assert_eq!(queue.take(), Some(UnitAttention::CAPACITY_CHANGED));
        assert_eq!(queue.take(), None);
    }

    #[test]
    fn a_reset_supersedes_what_was_pending() {
        let mut queue = AttentionQueue::default();
        queue.establish(UnitAttention::MODE_PARAMETERS_CHANGED, 4);
        queue.establish(UnitAttention::NEXUS_LOSS, 4);
        queue.establish(UnitAttention::LOGICAL_UNIT_RESET, 4);
        assert!(!queue.establish(UnitAttention::NEXUS_LOSS, 4));
        queue.establish(UnitAttention::CAPACITY_CHANGED, 4);
        assert_eq!(queue.take(), Some(UnitAttention::LOGICAL_UNIT_RESET));
        assert_eq!(queue.take(), Some(UnitAttention::CAPACITY_CHANGED));
        assert!(queue.is_empty());
    }

    #[test]
    fn an_overflow_says_so() {
        let mut queue = AttentionQueue::default();
        for ascq in 0..10 {
            queue.establish(UnitAttention { asc: 0x2A, ascq }, 3);
            assert!(queue.len() <= 3);
        }
        assert_eq!(queue.take(), Some(UnitAttention::POWER_ON));
    }
}
