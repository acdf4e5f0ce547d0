//! What a block device is: [`BlockDevice`], [`IoChannel`], [`BlockIo`]; the devices; and the middleware
//! (delay, fault) that ships with them.
//!
//! A device is shared by all cores; each core opens its own [`IoChannel`] and talks to nothing else. A request
//! moves its buffer out of reach of safe code; the completion brings it back, exactly once.

#![deny(unsafe_code)]

mod block_device;
pub mod check;
pub mod conformance;
mod core_shared;
mod delay;
mod fault;
mod immediate;
mod null;
mod ram;
#[allow(unsafe_code)]
mod ram_memory;
mod shelf;
mod uring;

pub use block_device::{
    AtomicWrites, BlockDevice, BlockError, BlockIo, BlockOp, Capabilities, CriticalWarnings, DeviceIdentity,
    DeviceText, Extent, ExtentState, Geometry, Health, IoChannel, IoCompletion, IoTag, IoValue, Provisioning,
};
pub use core_shared::CoreShared;
pub use delay::{DelayDevice, Latencies};
pub use fault::{Fault, FaultDevice, FaultKind, FaultOp};
pub use null::{NullDisk, NullOptions};
pub use ram::{RamDisk, RamError, RamOptions};
pub use uring::{Carrier, FileDevice, FileError, FileOptions, FileProblem, probe_io_uring};
