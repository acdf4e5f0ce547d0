//! A user-space NVMe driver: a [`Controller`] on a [`reactor::PciDevice`], its [`Namespace`]s as block devices, and one
//! queue pair for each core.
//!
//! The administration is a state machine without a clock or a thread: [`Controller::poll`] takes it further, from the one
//! thread that serves all controllers, or from a simulation. The I/O path is [`bdev::IoChannel`]: polled on its core,
//! without locks, allocation or system calls.

#![forbid(unsafe_code)]

mod admin;
mod bring_up;
mod channel;
mod controller;
mod core_queue;
mod events;
mod gate;
mod namespace;
mod options;
mod outcome;
mod plan;
mod queue_pair;
mod request;
mod reset;
mod scan;
mod service;
mod shared;
mod statistics;
mod tickets;
mod view;

pub use controller::{Controller, ControllerError, ControllerIdentity, ControllerState};
pub use events::{ControllerEvent, ResetReason};
pub use namespace::{Namespace, NamespaceIdentity};
pub use options::{ControllerOptions, TimeoutAction};
pub use request::{AdminAnswer, AdminError, AdminRequest, TRANSFER_BYTES_MAX, Ticket, Transfer};
pub use statistics::ControllerStatistics;

#[cfg(test)]
mod tests;
