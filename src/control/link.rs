//! What the control plane needs of the rest of the daemon, as traits: the cores, the machine, and what makes devices.
//! The daemon gives the real ones; tests give fakes.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use base::CoreId;
use bdev::BlockDevice;
use fabrics::conductor::{CoreReply, CoreRequest};
use reactor::PciDevice;
use rpc::{RpcError, errno};

/// Why a core did not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// Its mailbox is full.
    #[error("the mailbox of {0} is full")]
    Full(CoreId),
    /// It has stopped.
    #[error("{0} has stopped")]
    Stopped(CoreId),
}

/// A boxed future, as `dyn` traits need.
pub type Waiting<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The way to the cores.
pub trait CoreLink: Send + Sync {
    /// How many cores there are.
    fn cores(&self) -> u16;
    /// Sends `request` to `core` and waits for the reply. The caller bounds the wait; a reply that comes after
    /// the future was dropped is thrown away.
    fn request(&self, core: CoreId, request: CoreRequest) -> Waiting<'_, Result<CoreReply, LinkError>>;
}

/// How a reactor spends idle time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReactorMode {
    /// Spins always.
    Poll,
    /// Spins while busy, then sleeps until something wakes it.
    Adaptive,
}

impl ReactorMode {
    /// `"poll"` or `"adaptive"`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            ReactorMode::Poll => "poll",
            ReactorMode::Adaptive => "adaptive",
        }
    }
}

impl std::str::FromStr for ReactorMode {
    type Err = String;
    fn from_str(text: &str) -> Result<ReactorMode, String> {
        match text {
            "poll" => Ok(ReactorMode::Poll),
            "adaptive" => Ok(ReactorMode::Adaptive),
            _ => Err(format!("{text:?} is not a reactor mode: use poll or adaptive")),
        }
    }
}

/// What one reactor has done since start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReactorReport {
    /// The reactor.
    pub core: CoreId,
    /// The operating system's number of the CPU it runs on; `None` when it is not pinned.
    pub cpu: Option<u32>,
    /// Nanoseconds in turns that did something.
    pub busy_ns: u64,
    /// Nanoseconds in turns that did nothing, and asleep.
    pub idle_ns: u64,
    /// Turns.
    pub turns: u64,
    /// Turns that did something.
    pub turns_busy: u64,
}

/// The reactors as machines.
pub trait Machine: Send + Sync {
    /// One report for each reactor, in order.
    fn reactors(&self) -> Vec<ReactorReport>;
    /// The mode of the moment.
    fn mode(&self) -> ReactorMode;
    /// Switches every reactor.
    fn set_mode(&self, mode: ReactorMode);
    /// Starts the end of the process: cores drain, then everything stops.
    fn stop(&self);
}

/// Why a device could not be made or changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct DeviceError {
    /// Positive error number.
    pub errno: i32,
    /// What and why.
    pub text: String,
}

impl DeviceError {
    /// An error with its number.
    #[must_use]
    pub fn new(errno: i32, text: impl Into<String>) -> DeviceError {
        DeviceError { errno, text: text.into() }
    }

    pub(crate) fn rpc(&self, method: &str) -> RpcError {
        RpcError::errno(self.errno, format!("{method}: {}", self.text))
    }
}

impl From<std::io::Error> for DeviceError {
    fn from(error: std::io::Error) -> DeviceError {
        DeviceError::new(error.raw_os_error().unwrap_or(errno::EIO), error.to_string())
    }
}

/// What to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recipe {
    /// A RAM disk.
    Malloc {
        /// Logical blocks.
        num_blocks: u64,
        /// Bytes of a logical block.
        block_size: u32,
        /// Bytes of a physical block.
        physical_block_size: u32,
        /// Blocks a transfer should not cross; 0 for none.
        optimal_io_boundary: u32,
    },
    /// A device that keeps nothing.
    Null {
        /// Logical blocks.
        num_blocks: u64,
        /// Bytes of a logical block.
        block_size: u32,
        /// Bytes of a physical block.
        physical_block_size: u32,
    },
    /// A file or block device.
    File {
        /// Its path.
        filename: String,
        /// Bytes of a logical block; `None` asks the device.
        block_size: Option<u32>,
        /// Refuses writes.
        readonly: bool,
        /// Past the page cache (`bdev_uring_create`) or through it (`bdev_aio_create`).
        direct: bool,
        /// Discards punch holes.
        fallocate: bool,
    },
    /// Adds latency to another device.
    Delay {
        /// The device below.
        base: String,
        /// Microseconds.
        latency: Latencies,
    },
    /// Injects errors into another device.
    Error {
        /// The device below.
        base: String,
    },
    /// A namespace of an NVMe controller that was attached; made by that, and not by itself.
    Nvme {
        /// The controller's name.
        controller: String,
        /// Namespace identifier.
        nsid: u32,
    },
}

impl Recipe {
    /// The name of the device below, when there is one.
    #[must_use]
    pub fn base(&self) -> Option<&str> {
        match self {
            Recipe::Delay { base, .. } | Recipe::Error { base } => Some(base),
            _ => None,
        }
    }
}

/// Latencies a delay device adds, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Latencies {
    /// Of most reads.
    pub avg_read: u64,
    /// Of one read in a hundred.
    pub p99_read: u64,
    /// Of most writes.
    pub avg_write: u64,
    /// Of one write in a hundred.
    pub p99_write: u64,
}

/// What an error device does to the next requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Injection {
    /// To which requests; `None` is all.
    pub io_type: Option<InjectedIo>,
    /// What; `None` clears.
    pub error: Option<InjectedError>,
    /// How many requests.
    pub count: u64,
}

/// Kinds of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum InjectedIo {
    Read,
    Write,
    Unmap,
    Flush,
    WriteZeroes,
}

/// Kinds of errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InjectedError {
    /// The request fails with a medium error.
    Failure,
    /// The request stays until `resume_pending`.
    Pending,
    /// The device's queue is full.
    NoMemory,
    /// One byte of the data is changed.
    Corrupt {
        /// Where in the buffer.
        offset: u32,
        /// What the byte is changed by (exclusive or); not 0.
        value: u8,
    },
}

/// What can be done to a device that exists. The defaults refuse.
pub trait DeviceControls: Send + Sync {
    /// Gives the device `blocks` logical blocks.
    ///
    /// # Errors
    /// `EOPNOTSUPP` when this kind of device has no size of its own to change.
    fn resize(&self, blocks: u64) -> Result<(), DeviceError> {
        let _ = blocks;
        Err(DeviceError::new(errno::EOPNOTSUPP, "this device cannot be resized"))
    }

    /// Asks the host for the size anew.
    ///
    /// # Errors
    /// The host's error.
    fn rescan(&self) -> Result<(), DeviceError> {
        Err(DeviceError::new(errno::EOPNOTSUPP, "this device cannot be rescanned"))
    }

    /// Sets latencies of a delay device.
    ///
    /// # Errors
    /// `EOPNOTSUPP` for other devices.
    fn set_latency(&self, latency: Latencies) -> Result<(), DeviceError> {
        let _ = latency;
        Err(DeviceError::new(errno::EOPNOTSUPP, "this is not a delay device"))
    }

    /// Sets what an error device does.
    ///
    /// # Errors
    /// `EOPNOTSUPP` for other devices and for combinations that are not built.
    fn inject(&self, injection: Injection) -> Result<(), DeviceError> {
        let _ = injection;
        Err(DeviceError::new(errno::EOPNOTSUPP, "this is not an error device"))
    }

    /// The namespace, of an NVMe disk.
    fn nvme(&self) -> Option<&super::nvme_disk::NvmeDisk> {
        None
    }

    /// False while the device behind it is away: what needs a medium then finds none. `None` while that is being found
    /// out, as during a reset.
    fn is_present(&self) -> Option<bool> {
        Some(true)
    }

    /// Lets pending requests of an error device go on.
    ///
    /// # Errors
    /// `EOPNOTSUPP` for other devices.
    fn resume_pending(&self) -> Result<(), DeviceError> {
        Err(DeviceError::new(errno::EOPNOTSUPP, "this is not an error device"))
    }
}

/// A device and what can be done to it.
#[derive(Clone)]
pub struct Device {
    /// For the data path.
    pub device: Arc<dyn BlockDevice>,
    /// For the control plane.
    pub controls: Arc<dyn DeviceControls>,
}

/// How an NVMe controller is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NvmeTransport {
    /// On the PCI bus, through VFIO.
    Pcie,
    /// In another process, through a socket of the vfio-user protocol.
    VfioUser,
}

impl NvmeTransport {
    /// As SPDK writes it: `"PCIe"` or `"VFIOUSER"`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            NvmeTransport::Pcie => "PCIe",
            NvmeTransport::VfioUser => "VFIOUSER",
        }
    }
}

/// Makes devices. Called off the reactors, on a thread that may block.
pub trait DeviceFactory: Send + Sync {
    /// Makes what `recipe` says; `base` is the device below when it names one.
    ///
    /// # Errors
    /// What the host said, or what is wrong with the recipe.
    fn create(&self, recipe: &Recipe, base: Option<Arc<dyn BlockDevice>>) -> Result<Device, DeviceError>;

    /// Opens a PCI function for a driver of ours.
    ///
    /// # Errors
    /// `ENODEV` when it is not there; otherwise why it cannot be had, and what to do.
    fn open_pci(&self, transport: NvmeTransport, address: &str) -> Result<Arc<dyn PciDevice>, DeviceError>;

    /// Addresses of the NVMe controllers on the PCI bus that are free for a driver of ours (`vfio-pci` has them).
    fn free_controllers(&self) -> Vec<String>;
}
