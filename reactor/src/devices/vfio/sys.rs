//! The system calls of VFIO and iommufd (`linux/vfio.h`, `linux/iommufd.h`).
//!
//! Every structure begins with its own size, and the kernel reads and writes no more than that. [`call`] sets that
//! field from the slice it is given, so no message can make the kernel write elsewhere. Messages that hold addresses of
//! this process have functions of their own.

use std::io::{Error, Result};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::super::DmaRegion;

/// `VFIO_TYPE` and `IOMMUFD_TYPE`, with no direction and no size: `_IO(';', number)`.
const fn number(number: u8) -> libc::c_ulong {
    (b';' as libc::c_ulong) << 8 | number as libc::c_ulong
}

/// Messages without addresses, whose first word is their size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Message {
    GroupStatus,
    DeviceInfo,
    RegionInfo,
    IrqInfo,
    SetIrqs,
    BindIommufd,
    AttachIommufd,
    IommuInfo,
    UnmapDma,
    IoasAlloc,
    IoasUnmap,
}

impl Message {
    /// The number of the call, and the shortest message it takes.
    const fn facts(self) -> (libc::c_ulong, usize) {
        match self {
            Message::GroupStatus => (number(103), 8),
            Message::DeviceInfo => (number(107), 16),
            Message::RegionInfo => (number(108), 32),
            Message::IrqInfo => (number(109), 16),
            Message::SetIrqs => (number(110), 20),
            Message::BindIommufd => (number(118), 16),
            Message::AttachIommufd => (number(119), 12),
            Message::IommuInfo => (number(112), 24),
            Message::UnmapDma => (number(114), 24),
            Message::IoasAlloc => (number(0x81), 12),
            Message::IoasUnmap => (number(0x86), 24),
        }
    }
}

fn check(result: libc::c_int) -> Result<i32> {
    if result < 0 { Err(Error::last_os_error()) } else { Ok(result) }
}

/// Sends `bytes`, after its length is written into its first word.
pub(super) fn call(file: BorrowedFd<'_>, message: Message, bytes: &mut [u8]) -> Result<()> {
    let (request, shortest) = message.facts();
    assert!(bytes.len() >= shortest, "{message:?} of {} bytes", bytes.len());
    let length = u32::try_from(bytes.len()).map_err(|_| Error::from(rustix::io::Errno::INVAL))?;
    bytes[..4].copy_from_slice(&length.to_ne_bytes());
    // SAFETY: the kernel touches at most as many bytes as the first word says, which is the length of the slice, and
    // none of these messages holds an address.
    check(unsafe { libc::ioctl(file.as_raw_fd(), request as _, bytes.as_mut_ptr()) }).map(drop)
}

/// Calls whose argument is a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    ApiVersion,
    CheckExtension,
    SetIommu,
    Reset,
}

/// Makes a call whose argument is a number; what it returns.
pub(super) fn command(file: BorrowedFd<'_>, command: Command, argument: u32) -> Result<i32> {
    let request = match command {
        Command::ApiVersion => number(100),
        Command::CheckExtension => number(101),
        Command::SetIommu => number(102),
        Command::Reset => number(111),
    };
    // SAFETY: these calls take a number, not an address.
    check(unsafe { libc::ioctl(file.as_raw_fd(), request as _, libc::c_ulong::from(argument)) })
}

/// Puts a group into a container.
pub(super) fn set_container(group: BorrowedFd<'_>, container: BorrowedFd<'_>) -> Result<()> {
    let container: i32 = container.as_raw_fd();
    // SAFETY: the kernel reads one `i32` at the address given.
    check(unsafe { libc::ioctl(group.as_raw_fd(), number(104) as _, &raw const container) }).map(drop)
}

/// Opens the device of a group that has this name.
pub(super) fn device_of(group: BorrowedFd<'_>, name: &str) -> Result<OwnedFd> {
    let name = std::ffi::CString::new(name)?;
    // SAFETY: the kernel reads a string that ends with a zero.
    let device = check(unsafe { libc::ioctl(group.as_raw_fd(), number(106) as _, name.as_ptr()) })?;
    // SAFETY: a new descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(device) })
}

/// Lets the devices of a container read and write `region` at `iova`.
pub(super) fn map_dma(container: BorrowedFd<'_>, region: &DmaRegion<'_>, iova: u64) -> Result<()> {
    // argsz, flags (read, write), vaddr, iova, size.
    let mut message = [0u8; 32];
    message[..4].copy_from_slice(&32u32.to_ne_bytes());
    message[4..8].copy_from_slice(&3u32.to_ne_bytes());
    message[8..16].copy_from_slice(&(region.address() as u64).to_ne_bytes());
    message[16..24].copy_from_slice(&iova.to_ne_bytes());
    message[24..].copy_from_slice(&(region.length() as u64).to_ne_bytes());
    // SAFETY: the kernel reads 32 bytes. What the device does to the region from now on is what a `DmaRegion` is made
    // for: its memory is reached by atomics only, or its handles are out of reach while a device has them. The pages
    // are pinned, so that they outlive even their mapping in this process.
    check(unsafe { libc::ioctl(container.as_raw_fd(), number(113) as _, message.as_mut_ptr()) }).map(drop)
}

/// Lets the devices of an address space of an iommufd read and write `region` at `iova`.
pub(super) fn map_ioas(iommufd: BorrowedFd<'_>, ioas: u32, region: &DmaRegion<'_>, iova: u64) -> Result<()> {
    // size, flags (fixed IOVA, writeable, readable), IOAS, reserved, user address, length, IOVA.
    let mut message = [0u8; 40];
    message[..4].copy_from_slice(&40u32.to_ne_bytes());
    message[4..8].copy_from_slice(&7u32.to_ne_bytes());
    message[8..12].copy_from_slice(&ioas.to_ne_bytes());
    message[16..24].copy_from_slice(&(region.address() as u64).to_ne_bytes());
    message[24..32].copy_from_slice(&(region.length() as u64).to_ne_bytes());
    message[32..].copy_from_slice(&iova.to_ne_bytes());
    // SAFETY: as in `map_dma`.
    check(unsafe { libc::ioctl(iommufd.as_raw_fd(), number(0x85) as _, message.as_mut_ptr()) }).map(drop)
}

/// The most ranges of addresses that are taken into account.
const RANGES_MAX: usize = 64;

/// First and last address of each range that an address space of an iommufd allows.
pub(super) fn ioas_ranges(iommufd: BorrowedFd<'_>, ioas: u32) -> Result<Vec<(u64, u64)>> {
    let mut ranges = [[0u64; 2]; RANGES_MAX];
    // size, IOAS, number of ranges, reserved, address of the ranges, alignment (out).
    let mut message = [0u8; 32];
    message[..4].copy_from_slice(&32u32.to_ne_bytes());
    message[4..8].copy_from_slice(&ioas.to_ne_bytes());
    message[8..12].copy_from_slice(&(RANGES_MAX as u32).to_ne_bytes());
    message[16..24].copy_from_slice(&(ranges.as_mut_ptr() as u64).to_ne_bytes());
    // SAFETY: the kernel writes 32 bytes to the message and at most as many ranges of 16 bytes as the message says
    // there is room for.
    check(unsafe { libc::ioctl(iommufd.as_raw_fd(), number(0x84) as _, message.as_mut_ptr()) })?;
    let count = u32::from_ne_bytes([message[8], message[9], message[10], message[11]]) as usize;
    Ok(ranges.iter().take(count).map(|&[first, last]| (first, last)).collect())
}
