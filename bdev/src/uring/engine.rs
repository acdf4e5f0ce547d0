use base::{BufferPool, DataBuf};

/// Which way a transfer goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Read,
    Write { durable: bool },
}

/// What the kernel is asked to do for a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Moves bytes between the slot's buffer from `at` on and the file; `length` is the most, fewer may be asked for.
    Transfer { direction: Direction, at: usize, length: usize, offset: u64 },
    /// Writes up to `length` zeros.
    Zeros { length: u64, offset: u64 },
    /// `fdatasync`.
    Sync,
    /// `fallocate`.
    Allocate { mode: i32, offset: u64, length: u64 },
}

/// An answer of the kernel: the slot, and a count or a negative error number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) slot: usize,
    pub(super) result: i32,
}

/// What carries the steps of a channel's requests to the kernel: an io_uring, or threads.
pub(super) trait Engine {
    /// Puts a request's buffer into a free slot.
    fn hold(&mut self, slot: usize, data: Option<DataBuf>);

    /// Takes the buffer out of a slot that the kernel is done with.
    fn release(&mut self, slot: usize) -> Option<DataBuf>;

    /// Starts one step of a slot; its answer comes from [`Engine::next_answer`]. False when there is no room for it
    /// now: try again after an answer.
    fn start(&mut self, slot: usize, step: Step) -> bool;

    /// Asks the kernel to give up a slot's step. A hint.
    fn cancel(&mut self, slot: usize);

    /// Has the engine's own descriptor become readable when `fd` does.
    /// To be asked for again after every poll in which it is still wanted.
    fn watch(&mut self, fd: i32);

    /// Hands over what was started since the last call.
    fn submit(&mut self);

    /// True when something waits for [`Engine::submit`].
    fn has_unsubmitted(&self) -> bool;

    /// Moves the answers to where [`Engine::next_answer`] finds them.
    fn reap(&mut self);

    /// The next answer; its slot is no longer with the kernel.
    fn next_answer(&mut self) -> Option<Answer>;

    /// Copies made through bounce buffers since the last call.
    fn take_bounce_copies(&mut self) -> u64;

    /// Readable while answers wait.
    fn descriptor(&self) -> i32;

    /// See [`crate::IoChannel::register_pool`].
    fn register_pool(&mut self, pool: &BufferPool) -> bool;
}
