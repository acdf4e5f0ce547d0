//! Events kept for `notify_get_notifications`, numbered from 0, the oldest forgotten first.

use std::collections::VecDeque;

use schemars::JsonSchema;
use serde::Serialize;

/// Events kept.
const KEPT_MAX: usize = 1024;

/// Every type of event there is.
pub const TYPES: [&str; 16] = [
    "bdev_register",
    "bdev_unregister",
    "unit_fenced",
    "flush_failed",
    "medium_error",
    "device_gone",
    "device_returned",
    "nvme_controller_failed",
    "nvme_controller_gone",
    "nvme_controller_returned",
    "nvme_reset_begun",
    "nvme_reset_done",
    "nvme_namespace_removed",
    "nvme_cache_lost",
    "nvme_health_warning",
    "nvme_queue_reset",
];

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Event {
    /// One of `notify_get_types`.
    pub r#type: &'static str,
    /// What it happened to: the name of a bdev, or of an NVMe controller.
    pub ctx: String,
    /// Its number.
    pub id: u64,
}

/// The ring of events.
#[derive(Debug, Default)]
pub struct Events {
    kept: VecDeque<Event>,
    next: u64,
}

impl Events {
    /// Adds an event.
    pub fn add(&mut self, r#type: &'static str, ctx: &str) {
        if self.kept.len() == KEPT_MAX {
            self.kept.pop_front();
        }
        self.kept.push_back(Event { r#type, ctx: ctx.to_owned(), id: self.next });
        self.next += 1;
    }

    /// Events from number `first` on, at most `max`.
    #[must_use]
    pub fn from(&self, first: u64, max: usize) -> Vec<Event> {
        self.kept.iter().filter(|event| event.id >= first).take(max).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_forgets_the_oldest() {
        let mut events = Events::default();
        for i in 0..KEPT_MAX + 10 {
            events.add("bdev_register", &i.to_string());
        }
        assert_eq!(events.from(0, usize::MAX).len(), KEPT_MAX);
        assert_eq!(events.from(0, 1)[0].id, 10);
        assert_eq!(events.from(1030, 2).iter().map(|event| event.id).collect::<Vec<_>>(), [1030, 1031]);
        assert!(events.from(5000, 1).is_empty());
    }
}
