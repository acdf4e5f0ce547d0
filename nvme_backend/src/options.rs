use std::time::Duration;

/// What is done when a command is not answered in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TimeoutAction {
    /// It is counted, and waited for.
    None,
    /// Abort, then a queue reset, then a controller reset.
    #[default]
    Abort,
    /// A controller reset at once.
    Reset,
}

/// How one controller is driven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ControllerOptions {
    /// How long an I/O command may take before [`ControllerOptions::timeout_action`]; zero: for ever.
    pub timeout: Duration,
    /// How long an admin command may take before the controller is reset. Not zero: zero is taken as 60 s.
    pub timeout_admin: Duration,
    /// What happens when an I/O command took too long.
    pub timeout_action: TimeoutAction,
    /// I/O commands outstanding on one queue pair; 1 to 1,024. The controller may have room for fewer.
    pub queue_depth: u16,
    /// Queue pairs for I/O, at most; 0: one for each core and one for the service thread.
    pub queue_pairs_max: u16,
    /// Namespaces that are attached, at most; 1 to 1,024. Those beyond are left alone.
    pub namespaces_max: u32,
    /// Times a command that was lost in a reset, or failed with a passing error, is sent again.
    pub retries_max: u8,
    /// Controller resets in a row that may fail before the controller counts as failed.
    pub resets_max: u8,
    /// Queue memory in hugepages, where there are any.
    pub hugepages: bool,
    /// MSI-X, for reactors that sleep. Without it everything is polled.
    pub interrupts: bool,
    /// Shadow doorbells (Doorbell Buffer Config), where the controller has them.
    pub shadow_doorbells: bool,
    /// SGLs instead of PRP lists for long transfers, where the controller has them.
    pub sgl: bool,
    /// How often the controller's status register is looked at while nothing happens.
    pub watch_interval: Duration,
    /// How often the health log is read; zero: only when the controller reports a change.
    pub health_interval: Duration,
}

impl Default for ControllerOptions {
    fn default() -> ControllerOptions {
        ControllerOptions {
            timeout: Duration::from_secs(30),
            timeout_admin: Duration::from_secs(60),
            timeout_action: TimeoutAction::Abort,
            queue_depth: 256,
            queue_pairs_max: 0,
            namespaces_max: 256,
            retries_max: 2,
            resets_max: 3,
            hugepages: true,
            interrupts: false,
            shadow_doorbells: true,
            sgl: true,
            watch_interval: Duration::from_millis(500),
            health_interval: Duration::from_secs(60),
        }
    }
}
