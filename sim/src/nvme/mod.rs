//! A register-level model of an NVMe controller, written from the specifications: NVM Express Base 2.0, NVM Command Set
//! 1.0, NVMe over PCIe Transport 1.0.
//!
//! [`Model`] is the controller. It judges its host: every broken rule is a [`Violation`]. [`ModelDevice`] puts it under
//! a driver in the same process, and [`server`] under a virtual machine.

mod admin;
pub mod command;
pub mod config_space;
pub mod control;
mod device;
pub mod events;
pub mod faults;
mod features;
mod fetch;
mod identify;
mod io;
mod logs;
mod media;
pub mod memory;
mod model;
mod namespace;
mod protection;
mod queues;
pub mod registers;
pub mod server;
pub mod status;
mod transfer;
mod violation;

pub use device::ModelDevice;
pub use faults::{AbortManner, CommandFault, Faults, Lies, Rates};
pub use model::{Config, Model, Statistics};
pub use namespace::{FORMATS, LbaFormat, NamespaceConfig};
pub use protection::guard_of;
pub use violation::{Rule, Violation};
