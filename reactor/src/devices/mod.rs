//! Devices on a PCI bus, as user-space drivers see them: registers in BARs, memory the device may reach, interrupts.
//!
//! [`PciDevice`] is what a driver is written against. Behind it stands the kernel's VFIO, a server of the vfio-user
//! protocol in another process, or a model in the simulation.

mod bar;
mod config;
#[allow(unsafe_code)]
mod dma;
mod info;
mod iova;
#[allow(unsafe_code)]
mod mmio;
mod pci;
#[allow(unsafe_code)]
mod sigbus;
mod usage;
mod vfio;
mod vfio_user;

use std::os::fd::{OwnedFd, RawFd};

pub use dma::{DmaMemory, DmaRegion};
pub use pci::{CLASS_NVME, PciAddress, PciBus, PciChange, PciFunction, PciWatch};
pub use usage::Usage;
pub use vfio::VfioDevice;
pub use vfio_user::{ANSWER_TIMEOUT, VfioUserDevice};

/// Why a device could not be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceError {
    /// It was removed, or its server has gone. Nothing but closing it makes sense any more.
    Gone,
    /// An access outside the BAR, or not aligned to its own width. The device was not touched.
    OutOfBar {
        /// First byte of the access.
        offset: u64,
        /// Bytes of the BAR.
        length: u64,
    },
    /// The device has no such thing: a BAR that is not there, interrupts it does not have.
    Unsupported(String),
    /// The system refused: what, why, and what to do, for a person.
    Refused(String),
}

impl std::fmt::Display for DeviceError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DeviceError::Gone => f.write_str("the device is gone"),
            DeviceError::OutOfBar { offset, length } => {
                write!(f, "register {offset:#x} is outside its BAR of {length:#x} bytes, or is not aligned")
            }
            DeviceError::Unsupported(text) | DeviceError::Refused(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for DeviceError {}

/// What the configuration space says a function is (PCI Local Bus 3.0 §6.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PciIdentity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
    /// Base class, subclass and programming interface: `0x010802` is an NVMe I/O controller.
    pub class: u32,
    /// Revision ID.
    pub revision: u8,
}

/// One PCI function, owned by one user-space driver. Shared by the cores that drive its queues.
pub trait PciDevice: Send + Sync {
    /// What people call it: `0000:01:00.0`, or the path of a server's socket.
    fn name(&self) -> &str;

    /// Vendor, device, class.
    fn identity(&self) -> PciIdentity;

    /// Opens a base address register for access. Several handles to one BAR may be open.
    ///
    /// # Errors
    /// When there is no such BAR, or it cannot be mapped.
    fn open_bar(&self, index: u8) -> Result<Box<dyn Bar>, DeviceError>;

    /// Reads from the configuration space. Little endian, `bytes` of it as they stand there.
    ///
    /// # Errors
    /// When the device is gone or the range is not in its configuration space.
    fn read_config(&self, offset: u16, bytes: &mut [u8]) -> Result<(), DeviceError>;

    /// Lets the device start transfers of its own (Bus Master Enable), or stops it.
    ///
    /// # Errors
    /// When the device is gone.
    fn set_bus_master(&self, enabled: bool) -> Result<(), DeviceError>;

    /// Lets the device read and write `region`. Returns the address under which the device sees its first byte; the rest
    /// follows without gaps. The pages stay the device's until [`PciDevice::unmap_dma`], even if this process unmaps them.
    ///
    /// # Errors
    /// When the system refuses (locked-memory limit, IOMMU), or the device's server cannot map private memory.
    fn map_dma(&self, region: &DmaRegion<'_>) -> Result<u64, DeviceError>;

    /// Takes back what `map_dma` gave at this address. The device sees nothing of it when this returns.
    ///
    /// # Errors
    /// When nothing is mapped there.
    fn unmap_dma(&self, address: u64) -> Result<(), DeviceError>;

    /// Turns MSI-X on with this many vectors, or off with none. The device signals vector `n` through descriptor `n`, an
    /// eventfd that a reactor can sleep on.
    ///
    /// # Errors
    /// When the device has fewer vectors, or the system refuses.
    fn enable_interrupts(&self, vectors: u16) -> Result<Vec<OwnedFd>, DeviceError>;

    /// Resets the function, as far as the bus can.
    ///
    /// # Errors
    /// When there is no such reset, or the device is gone.
    fn reset(&self) -> Result<(), DeviceError>;

    /// False once the device is known to be gone, or was given back because the system wanted it. Cheap; no register is
    /// touched. Behind an IOMMU it has lost all memory by then. A server in another process keeps what it was given
    /// until it ends or lets go.
    fn is_present(&self) -> bool;

    /// A descriptor that becomes readable when the system wants the device back or it has gone.
    fn removal_descriptor(&self) -> Option<RawFd> {
        None
    }
}

/// A mapped base address register. Accesses are volatile, of exactly the width named, little endian, and in the order
/// they are made; whatever was stored to [`DmaMemory`] before a write is visible to the device when the write is.
///
/// A device that has gone reads as all ones, as the bus does.
pub trait Bar: Send + Sync {
    /// Bytes.
    fn length(&self) -> u64;

    /// Reads a register.
    ///
    /// # Errors
    /// [`DeviceError::OutOfBar`], or the device's server has gone.
    fn read32(&self, offset: u64) -> Result<u32, DeviceError>;

    /// Writes a register.
    ///
    /// # Errors
    /// As [`Bar::read32`].
    fn write32(&self, offset: u64, value: u32) -> Result<(), DeviceError>;

    /// Reads a register of 8 bytes: two halves, the low one first, where the bus has no such access.
    ///
    /// # Errors
    /// As [`Bar::read32`].
    fn read64(&self, offset: u64) -> Result<u64, DeviceError>;

    /// Writes a register of 8 bytes, the low half first where the bus has no such access.
    ///
    /// # Errors
    /// As [`Bar::read32`].
    fn write64(&self, offset: u64, value: u64) -> Result<(), DeviceError>;
}
