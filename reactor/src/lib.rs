//! The machine room: pinned cores, the poll loop, the TSC clock, rings between cores, mailboxes, hugepages.

#![deny(unsafe_code)]

mod poller;

pub use poller::{Poller, Turn};
