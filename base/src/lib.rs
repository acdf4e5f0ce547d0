//! The shared nouns of Pollux: time, cores, slabs, buffers, random numbers, limits.
//!
//! This room uses nothing of ours. Everything here is used by reference from a single core; nothing
//! holds hidden global state, so a simulation can run many cores in one thread.

#![deny(unsafe_code)]

mod core_id;
mod limits;
#[allow(unsafe_code)]
pub mod pool;
mod prng;
mod slab;
mod time;

pub use core_id::CoreId;
pub use limits::Limits;
pub use pool::{BufferPool, DataBuf, PlainMemory, PoolClass, PoolMemory, PoolStatistics};
pub use prng::Prng;
pub use slab::{Key, Slab};
pub use time::{Clock, Instant};

/// What one turn of a poller or a channel did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Nothing was there to do.
    Idle,
    /// Something moved; poll again before sleeping.
    Busy,
}

impl Progress {
    /// `Busy` if either is.
    #[must_use]
    pub fn or(self, other: Progress) -> Progress {
        if self == Progress::Busy { self } else { other }
    }

    /// `Busy` when `count` is not zero.
    #[must_use]
    pub fn from_count(count: usize) -> Progress {
        if count == 0 { Progress::Idle } else { Progress::Busy }
    }
}

/// One core's way to send messages to the others. A full ring gives the message back.
pub trait Outbox<M: Send> {
    /// Queues `message` for core `to`; `Err` returns it when that ring is full.
    ///
    /// # Errors
    /// The message itself, when the ring to that core has no room now.
    fn send(&mut self, to: CoreId, message: M) -> Result<(), M>;
}
