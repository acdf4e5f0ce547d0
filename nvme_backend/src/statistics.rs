/// Counters of one controller since it was made, over all its queue pairs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ControllerStatistics {
    /// I/O queue pairs that exist now.
    pub queue_pairs: u16,
    /// Cores that have no queue pair of their own and send their commands to the service thread.
    pub cores_sharing: u16,
    /// I/O commands put into submission queues.
    pub commands: u64,
    /// Completions that belonged to a command.
    pub completions: u64,
    /// Completions that ended with an error status.
    pub errors: u64,
    /// Writes of submission queue doorbells.
    pub submission_doorbells: u64,
    /// Writes of completion queue doorbells.
    pub completion_doorbells: u64,
    /// Completions for no command, of another queue, or with an impossible submission queue head. Dropped.
    pub strange_completions: u64,
    /// I/O commands that were not answered in time.
    pub timeouts: u64,
    /// Commands sent again.
    pub retries: u64,
    /// Abort commands sent.
    pub aborts: u64,
    /// Queue resets.
    pub queue_resets: u64,
    /// Controller resets.
    pub controller_resets: u64,
    /// Asynchronous events received.
    pub asynchronous_events: u64,
    /// Payloads copied because the device cannot reach the buffer where it is.
    pub bounce_copies: u64,
    /// Events that nobody took in time.
    pub events_dropped: u64,
}
