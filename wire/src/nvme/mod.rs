//! NVM Express: registers, submission and completion queue entries, identify structures, log pages and features
//! (NVMe Base 2.0, NVM Command Set 1.0, NVMe over PCIe Transport 1.0). All fields are little endian.

pub mod command;
mod completion;
mod field;
pub mod identify;
pub mod log;
mod registers;

pub use command::Entry;
pub use completion::{Completion, Status, StatusType};
pub use identify::{
    ActiveNamespaces, IdentifyController, IdentifyNamespace, NamespaceIdentifiers, NvmLimits,
};
pub use log::{AsynchronousEvent, ChangedNamespaces, ErrorLogEntry, HealthLog};
pub use registers::{Capabilities, Configuration, ControllerStatus, doorbell_offset, register};

/// Namespace identifier that means every namespace.
pub const NSID_ALL: u32 = 0xFFFF_FFFF;

/// Bytes of an identify structure.
pub const IDENTIFY_LENGTH: usize = 4096;

/// Feature identifiers (NVMe Base 2.0 §5.27.1).
pub mod feature {
    /// Volatile Write Cache.
    pub const VOLATILE_WRITE_CACHE: u8 = 0x06;
    /// Number of Queues.
    pub const NUMBER_OF_QUEUES: u8 = 0x07;
    /// Asynchronous Event Configuration.
    pub const ASYNCHRONOUS_EVENTS: u8 = 0x0B;
    /// Host Memory Buffer.
    pub const HOST_MEMORY_BUFFER: u8 = 0x0D;
    /// Timestamp.
    pub const TIMESTAMP: u8 = 0x0E;
    /// Namespace Write Protection Config.
    pub const WRITE_PROTECTION: u8 = 0x84;
}
