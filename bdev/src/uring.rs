//! Files and block devices of the host, through io_uring, or through threads where that is refused.

mod channel;
mod engine;
mod error;
mod extents;
#[allow(unsafe_code)]
mod ring;
#[allow(unsafe_code)]
mod slots;
#[allow(unsafe_code)]
mod system;
#[allow(unsafe_code)]
mod workers;

use std::fs::{File, OpenOptions, TryLockError};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;

use crate::{
    AtomicWrites, BlockDevice, BlockError, Capabilities, CoreShared, Geometry, IoChannel, Provisioning,
};
pub use error::{FileError, FileProblem};

/// What carries a file's requests to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// io_uring; opening fails where it is refused.
    Uring,
    /// A few threads of the device's own, with blocking system calls.
    Threads,
    /// io_uring, or threads where that is refused.
    Any,
}

/// How to open a file or block device as a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileOptions {
    /// The file or block device.
    pub path: PathBuf,
    /// Bytes of a logical block: 512 to 65,536, a power of two. `None` takes the smallest that works.
    pub block_size: Option<u32>,
    /// Past the page cache (O_DIRECT).
    pub direct: bool,
    /// Refuse writes.
    pub read_only: bool,
    /// Requests that one channel holds at most: 1 to 4,096.
    pub queue_depth: u32,
    /// What carries requests to the kernel.
    pub carrier: Carrier,
    /// What [`BlockDevice::product_name`] answers.
    pub product_name: &'static str,
}

impl FileOptions {
    /// Direct, writable, with the smallest block that works and room for 256 requests a channel.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> FileOptions {
        FileOptions {
            path: path.into(),
            block_size: None,
            direct: true,
            read_only: false,
            queue_depth: 256,
            carrier: Carrier::Uring,
            product_name: "URING bdev",
        }
    }
}

/// Tries whether the kernel lets this process use io_uring for all that a file needs.
///
/// # Errors
/// What the kernel said: where this fails, [`Carrier::Any`] takes threads.
pub fn probe_io_uring() -> std::io::Result<()> {
    ring::supported().map_err(std::io::Error::from_raw_os_error)
}

/// What all channels of a device share.
struct Shared {
    file: Arc<File>,
    path: PathBuf,
    /// The shape, but for what the atomics below say.
    shape: Geometry,
    blocks: AtomicU64,
    direct: bool,
    queue_depth: u32,
    /// A flush has failed: acknowledged writes may be lost, and the kernel will not say so twice.
    flush_failed: AtomicBool,
    /// Holes can be punched.
    punch: AtomicBool,
    /// Ranges can be zeroed without writing zeros.
    zero_range: AtomicBool,
    bounces: AtomicU64,
    zeros: Arc<slots::Zeros>,
    extents: Option<SyncSender<extents::Query>>,
    /// The threads, where there is no io_uring.
    crew: Option<workers::Crew>,
    product_name: &'static str,
}

/// A file or block device of the host as a disk.
pub struct FileDevice {
    shared: Arc<Shared>,
}

impl Shared {
    fn geometry(&self) -> Geometry {
        let mut shape = self.shape;
        shape.blocks = self.blocks.load(Ordering::Acquire);
        if !self.punch.load(Ordering::Relaxed) {
            shape.provisioning.discard = false;
            shape.provisioning.reads_zeros = false;
        }
        shape
    }

    /// The same file under a description of its own; the common one where that is impossible.
    fn reopen(&self) -> Arc<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(!self.shape.read_only);
        options.custom_flags(if self.direct { libc::O_DIRECT } else { 0 });
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        options.open(path).map_or_else(|_| self.file.clone(), Arc::new)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // The extents thread may hold the file a moment longer; whoever opens it next must not find it in use.
        let _ = self.file.unlock();
    }
}

impl FileDevice {
    /// Opens a disk. Block devices are claimed exclusively, files are locked, so that nothing else that asks (a
    /// mount, another disk) can use them meanwhile.
    ///
    /// # Errors
    /// [`FileError`], which names the path, the reason and a remedy.
    pub fn open(options: &FileOptions) -> Result<FileDevice, FileError> {
        let fail = |reason| FileError { path: options.path.clone(), reason };
        Self::open_file(options).map_err(fail)
    }

    fn open_file(options: &FileOptions) -> Result<FileDevice, FileProblem> {
        let crew = match (options.carrier, ring::supported()) {
            (Carrier::Uring, Err(number)) => return Err(FileProblem::Uring(number)),
            (Carrier::Uring | Carrier::Any, Ok(())) => None,
            (Carrier::Threads, _) | (Carrier::Any, Err(_)) => Some(workers::Crew::start().map_err(system)?),
        };
        let (file, is_block_device) = open_claimed(options)?;
        let metadata = file.metadata().map_err(system)?;
        let bytes = system::size(&file).map_err(system)?;
        let disk = if is_block_device { metadata.rdev() } else { metadata.dev() };
        let sectors = if is_block_device { Some(system::sector_sizes(&file).map_err(system)?) } else { None };
        let (memory_alignment, offset_alignment) = if options.direct {
            let guess = sectors.map_or(512, |(logical, _)| logical);
            system::direct_alignment(&file).unwrap_or((guess, guess))
        } else {
            (1, 1)
        };
        if memory_alignment == 0 || offset_alignment == 0 {
            return Err(FileProblem::Direct);
        }
        let needed = offset_alignment.max(sectors.map_or(512, |(logical, _)| logical)).max(512);
        let block_size = options.block_size.unwrap_or(needed);
        if !block_size.is_power_of_two() || !(512..=65536).contains(&block_size) {
            return Err(FileProblem::BlockSize(block_size));
        }
        if !block_size.is_multiple_of(needed) {
            return Err(FileProblem::Alignment { asked: block_size, needed });
        }
        let blocks = bytes / u64::from(block_size);
        if blocks == 0 {
            return Err(FileProblem::TooSmall(bytes));
        }
        let file_block = u32::try_from(metadata.blksize()).unwrap_or(4096).clamp(512, 4096);
        let physical = sectors.map_or(file_block, |(_, physical)| physical);
        let punch = !options.read_only
            && if is_block_device { discards(disk) } else { system::punches_holes(&file, bytes) };
        let granularity = if is_block_device { queue_number(disk, "discard_granularity") } else { None };
        let granularity = granularity.unwrap_or(u64::from(physical)) / u64::from(block_size);
        let write_through = is_block_device
            && options.direct
            && queue_attribute(disk, "write_cache").is_some_and(|cache| cache.trim() == "write through");
        let shape = Geometry {
            block_size,
            blocks,
            physical_block_exponent: (physical / block_size).max(1).ilog2().min(15) as u8,
            lowest_aligned_block: 0,
            optimal_granularity_blocks: u16::try_from((physical / block_size).max(1)).unwrap_or(0),
            optimal_transfer_blocks: 0,
            write_cache: !write_through,
            read_only: options.read_only,
            rotational: queue_number(disk, "rotational") == Some(1),
            provisioning: Provisioning {
                discard: punch,
                reads_zeros: punch,
                reports_extents: !is_block_device,
                granularity_blocks: u32::try_from(granularity).unwrap_or(1).max(1),
                discard_blocks_max: 0,
            },
            buffer_alignment: memory_alignment,
            capabilities: Capabilities::default(),
            atomic: AtomicWrites::default(),
        };
        let file = Arc::new(file);
        let extents = if is_block_device {
            None
        } else {
            Some(extents::start(file.clone(), block_size).map_err(system)?)
        };
        let zeros = Arc::new(slots::Zeros::new().ok_or(FileProblem::System(libc::ENOMEM))?);
        Ok(FileDevice {
            shared: Arc::new(Shared {
                file,
                path: options.path.clone(),
                shape,
                blocks: AtomicU64::new(blocks),
                direct: options.direct,
                queue_depth: options.queue_depth.clamp(1, 4096),
                flush_failed: AtomicBool::new(false),
                punch: AtomicBool::new(punch),
                zero_range: AtomicBool::new(true),
                bounces: AtomicU64::new(0),
                zeros,
                extents,
                crew,
                product_name: options.product_name,
            }),
        })
    }

    fn channel(&self) -> std::io::Result<Box<dyn IoChannel>> {
        let shared = &self.shared;
        let (depth, alignment) = (shared.queue_depth, shared.shape.buffer_alignment);
        // A description of its own: the kernel reports a failed write-back once to each, so that no channel can
        // take the news away from another.
        let (file, zeros) = (shared.reopen(), shared.zeros.clone());
        if let Some(crew) = &shared.crew {
            let engine = workers::Workers::new(crew, file, depth, alignment, zeros)?;
            return Ok(Box::new(channel::FileChannel::new(shared.clone(), engine)?));
        }
        let engine = ring::Ring::new(file, depth, alignment, zeros)?;
        Ok(Box::new(channel::FileChannel::new(shared.clone(), engine)?))
    }

    /// True when io_uring carries the requests, false when threads do.
    #[must_use]
    pub fn uses_uring(&self) -> bool {
        self.shared.crew.is_none()
    }

    /// The path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// True after a flush failed; the device must be opened anew before it can flush again.
    #[must_use]
    pub fn flush_failed(&self) -> bool {
        self.shared.flush_failed.load(Ordering::Acquire)
    }

    /// Reads the size again, and returns the number of blocks that the device has now.
    ///
    /// # Errors
    /// [`FileError`] when the system does not tell the size, or it is less than one block; nothing has changed then.
    pub fn rescan(&self) -> Result<u64, FileError> {
        let fail = |reason| FileError { path: self.shared.path.clone(), reason };
        let bytes = system::size(&self.shared.file).map_err(|error| fail(system(error)))?;
        let blocks = bytes / u64::from(self.shared.shape.block_size);
        if blocks == 0 {
            return Err(fail(FileProblem::TooSmall(bytes)));
        }
        self.shared.blocks.store(blocks, Ordering::Release);
        Ok(blocks)
    }
}

impl BlockDevice for FileDevice {
    fn geometry(&self) -> Geometry {
        self.shared.geometry()
    }
    fn product_name(&self) -> &'static str {
        self.shared.product_name
    }
    fn open_channel(&self, _core: &CoreShared) -> Result<Box<dyn IoChannel>, BlockError> {
        let number = |error: std::io::Error| error.raw_os_error().unwrap_or(libc::ENOSYS);
        self.channel().map_err(|error| BlockError::System(number(error)))
    }
    fn bounce_copies(&self) -> u64 {
        self.shared.bounces.load(Ordering::Relaxed)
    }
}

fn system(error: std::io::Error) -> FileProblem {
    FileProblem::System(error.raw_os_error().unwrap_or(libc::EIO))
}

/// Opens the file, and sees to it that nobody else uses it as a disk. The flag tells a block device.
fn open_claimed(options: &FileOptions) -> Result<(File, bool), FileProblem> {
    // Looked at before it is opened: opening a FIFO or a tape drive would wait or do something.
    let is_block_device = kind(&std::fs::metadata(&options.path).map_err(system)?)?;
    let direct = if options.direct { libc::O_DIRECT } else { 0 };
    let exclusive = if is_block_device { libc::O_EXCL } else { 0 };
    let file = OpenOptions::new()
        .read(true)
        .write(!options.read_only)
        .custom_flags(direct | exclusive)
        .open(&options.path)
        .map_err(|error| match error.raw_os_error() {
            Some(libc::EBUSY) => FileProblem::InUse,
            Some(libc::EINVAL) if options.direct => FileProblem::Direct,
            _ => system(error),
        })?;
    if kind(&file.metadata().map_err(system)?)? != is_block_device {
        return Err(FileProblem::Kind);
    }
    let locked = if options.read_only { file.try_lock_shared() } else { file.try_lock() };
    match locked {
        Err(TryLockError::WouldBlock) => Err(FileProblem::InUse),
        // A file system without locks: nothing more can be done to guard it.
        Ok(()) | Err(TryLockError::Error(_)) => Ok((file, is_block_device)),
    }
}

/// True for a block device, false for a regular file.
fn kind(metadata: &std::fs::Metadata) -> Result<bool, FileProblem> {
    if metadata.file_type().is_block_device() {
        return Ok(true);
    }
    if metadata.is_file() { Ok(false) } else { Err(FileProblem::Kind) }
}

/// An attribute of a disk's queue; a partition has that of its disk.
fn queue_attribute(device: u64, name: &str) -> Option<String> {
    let (major, minor) = (libc::major(device), libc::minor(device));
    let read =
        |place: &str| std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/{place}/{name}")).ok();
    read("queue").or_else(|| read("../queue"))
}

fn queue_number(device: u64, name: &str) -> Option<u64> {
    queue_attribute(device, name)?.trim().parse().ok()
}

/// Whether punching a hole in a block device deallocates, and leaves zeros.
fn discards(device: u64) -> bool {
    let supports = |name| queue_number(device, name).is_some_and(|bytes| bytes > 0);
    supports("discard_max_bytes") && supports("write_zeroes_max_bytes")
}

#[cfg(test)]
mod tests;
