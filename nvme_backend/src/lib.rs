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
mod sweep;
mod tickets;
mod view;

pub use controller::{Controller, ControllerError, ControllerIdentity, ControllerState};
pub use events::{ControllerEvent, ResetReason};
pub use namespace::{Namespace, NamespaceIdentity};
pub use options::{ControllerOptions, TimeoutAction};
pub use request::{AdminAnswer, AdminError, AdminRequest, TRANSFER_BYTES_MAX, Ticket, Transfer};
pub use statistics::ControllerStatistics;

/// For fuzzing: makes of what a controller says what commands are made by, and checks that it can be lived with.
///
/// # Panics
/// When it cannot.
#[doc(hidden)]
pub fn fuzz_namespace(
    controller: &wire::nvme::IdentifyController,
    limits: &wire::nvme::NvmLimits,
    namespace: &wire::nvme::IdentifyNamespace,
    page_shift: u32,
) {
    let Ok(view) = view::View::new(1, controller, limits, namespace, page_shift) else { return };
    let geometry = view.geometry;
    assert!(geometry.blocks > 0 && (512..=65_536).contains(&geometry.block_size));
    assert!(geometry.blocks.checked_mul(u64::from(geometry.block_size)).is_some());
    assert!((1..=65_536).contains(&view.transfer_blocks_max));
    assert!(u64::from(view.transfer_blocks_max) << view.block_shift <= u64::from(queue_pair::TRANSFER_MAX));
    assert!(u64::from(view.bounce_blocks_max) << view.block_shift <= queue_pair::BOUNCE_BYTES as u64);
    assert!(geometry.atomic.blocks_max <= view.bounce_blocks_max);
    assert!(
        view.zeroes_blocks_max <= 65_536
            && view.verify_blocks_max <= 65_536
            && view.copy_blocks_max <= 65_536
    );
    assert!(geometry.capabilities.copy_blocks_max == u64::from(view.copy_blocks_max));
}

#[cfg(test)]
mod tests;
