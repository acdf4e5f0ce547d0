use std::collections::VecDeque;

/// Events that wait for [`crate::Controller::take_events`]; beyond that the oldest are dropped and counted.
const EVENTS_MAX: usize = 256;

/// Why a controller is reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetReason {
    /// Somebody asked for it.
    Requested,
    /// Controller Fatal Status (CSTS.CFS).
    FatalStatus,
    /// An I/O command was not answered, and neither abort nor a queue reset helped.
    IoTimeout,
    /// An admin command was not answered.
    AdminTimeout,
    /// Firmware was activated that needs a reset, or the controller asked for one.
    Firmware,
    /// A step of bringing it up failed.
    BringUp,
}

/// What happened to a controller, for the control plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControllerEvent {
    /// A namespace was attached and can be used.
    NamespaceAdded {
        /// Namespace identifier.
        nsid: u32,
    },
    /// A namespace was attached to the controller but cannot be used.
    NamespaceUnusable {
        /// Namespace identifier.
        nsid: u32,
        /// Why, and what to do.
        reason: String,
    },
    /// A namespace is not there any more. Its device answers [`bdev::BlockError::Gone`] until it returns.
    NamespaceRemoved {
        /// Namespace identifier.
        nsid: u32,
    },
    /// Size, format or write protection of a namespace changed: ask its geometry again.
    NamespaceChanged {
        /// Namespace identifier.
        nsid: u32,
        /// Logical blocks now.
        blocks: u64,
    },
    /// A reset has begun; I/O waits.
    ResetBegun(ResetReason),
    /// The reset is over; I/O goes on.
    ResetDone(ResetReason),
    /// One queue pair was deleted and created anew.
    QueueReset {
        /// Queue identifier.
        queue: u16,
    },
    /// The controller could not be brought back: what happened, and what to do.
    Failed(String),
    /// The device was removed.
    Gone,
    /// Acknowledged writes that were not flushed may be lost with the cache of a removed device.
    CacheLost {
        /// Namespace identifier.
        nsid: u32,
    },
    /// The same device, or its successor, is there again and works.
    Returned,
    /// Bits of Critical Warning are set (NVMe Base 2.0 §5.16.1.3).
    HealthWarning {
        /// The bits.
        critical_warning: u8,
    },
    /// The error log has a new entry.
    ErrorLogEntry {
        /// Error count: a number that grows for the life of the controller.
        count: u64,
        /// The status field of the command that failed, without the phase bit.
        status: u16,
        /// First logical block in error, when it means something.
        lba: u64,
        /// Namespace identifier.
        nsid: u32,
    },
    /// The controller sent completions that belong to nothing.
    StrangeCompletions {
        /// How many since the last such event.
        count: u64,
    },
    /// Firmware was activated, or activation starts now.
    FirmwareActivation,
}

/// A bounded queue of events.
#[derive(Debug, Default)]
pub(crate) struct Events {
    queue: VecDeque<ControllerEvent>,
    dropped: u64,
}

impl Events {
    pub(crate) fn push(&mut self, event: ControllerEvent) {
        if self.queue.len() == EVENTS_MAX {
            self.queue.pop_front();
            self.dropped += 1;
        }
        self.queue.push_back(event);
    }

    pub(crate) fn take(&mut self) -> Vec<ControllerEvent> {
        self.queue.drain(..).collect()
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }
}
