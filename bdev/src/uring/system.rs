//! System calls that the standard library does not offer.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Bytes of a file or block device. (`metadata` says 0 for block devices.)
pub(crate) fn size(file: &File) -> io::Result<u64> {
    let mut file = file;
    file.seek(SeekFrom::End(0))
}

/// Logical and physical sector size of a block device, in bytes.
pub(crate) fn sector_sizes(file: &File) -> io::Result<(u32, u32)> {
    let mut logical: libc::c_int = 0;
    let mut physical: libc::c_uint = 0;
    // SAFETY: BLKSSZGET stores an int at the address, which is that of a c_int.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::BLKSSZGET, &raw mut logical) })?;
    // SAFETY: BLKPBSZGET stores an unsigned int at the address, which is that of a c_uint.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::BLKPBSZGET, &raw mut physical) })?;
    let logical = u32::try_from(logical).unwrap_or(512).max(512);
    Ok((logical, physical.max(logical)))
}

/// What direct I/O demands, from `statx`: alignment of memory and of offsets, in bytes. `None` when the kernel does
/// not tell; zeros when it tells that the file does no direct I/O.
pub(crate) fn direct_alignment(file: &File) -> Option<(u32, u32)> {
    // SAFETY: `statx` is plain numbers, for which zeros are valid.
    let mut answer: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path is an empty C string, which with AT_EMPTY_PATH names the descriptor itself; the answer is
    // written to a `statx` of our own. The raw call works where the C library has no wrapper.
    let result = unsafe {
        libc::syscall(
            libc::SYS_statx,
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            &raw mut answer,
        )
    };
    let told = result == 0 && answer.stx_mask & libc::STATX_DIOALIGN != 0;
    told.then_some((answer.stx_dio_mem_align, answer.stx_dio_offset_align))
}

/// Whether the file can have holes punched. Tried beyond its end, where there is no data to lose.
pub(crate) fn punches_holes(file: &File, size: u64) -> bool {
    let Some(offset) = size.checked_next_multiple_of(1 << 20).and_then(|offset| i64::try_from(offset).ok())
    else {
        return false;
    };
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: no memory is involved.
    unsafe { libc::fallocate64(file.as_raw_fd(), mode, offset, 4096) == 0 }
}

/// The first data (or hole) at or after `offset`; `None` when there is none up to the end.
pub(crate) fn seek(file: &File, offset: u64, data: bool) -> io::Result<Option<u64>> {
    let offset = i64::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let whence = if data { libc::SEEK_DATA } else { libc::SEEK_HOLE };
    // SAFETY: no memory is involved.
    let found = unsafe { libc::lseek64(file.as_raw_fd(), offset, whence) };
    if let Ok(found) = u64::try_from(found) {
        return Ok(Some(found));
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::ENXIO) { Ok(None) } else { Err(error) }
}

/// An event counter that one thread adds to and another sleeps on.
#[derive(Debug)]
pub(crate) struct EventFd {
    fd: OwnedFd,
}

impl EventFd {
    pub(crate) fn new() -> io::Result<EventFd> {
        // SAFETY: no memory is involved.
        let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        check(fd)?;
        // SAFETY: the descriptor is new and belongs to nobody else.
        Ok(EventFd { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    pub(crate) fn raw(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    /// Makes the descriptor readable.
    pub(crate) fn signal(&self) {
        let one = 1u64;
        // SAFETY: writes eight bytes from a u64. Failure means the counter is full, so it is readable already.
        unsafe { libc::write(self.raw(), (&raw const one).cast(), 8) };
    }

    /// Makes the descriptor unreadable until the next signal.
    pub(crate) fn clear(&self) {
        let mut count = 0u64;
        // SAFETY: reads eight bytes into a u64. Failure means nothing was signalled.
        unsafe { libc::read(self.raw(), (&raw mut count).cast(), 8) };
    }
}

/// One descriptor that is readable while any of several is.
#[derive(Debug)]
pub(crate) struct Gathering {
    fd: OwnedFd,
}

impl Gathering {
    pub(crate) fn new() -> io::Result<Gathering> {
        // SAFETY: no memory is involved.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        check(fd)?;
        // SAFETY: the descriptor is new and belongs to nobody else.
        Ok(Gathering { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    pub(crate) fn raw(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    /// Adds a descriptor; an error when it is there already.
    pub(crate) fn add(&self, fd: i32) -> io::Result<()> {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
        // SAFETY: the kernel reads one event of our own.
        check(unsafe { libc::epoll_ctl(self.raw(), libc::EPOLL_CTL_ADD, fd, &raw mut event) })
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether a descriptor becomes readable within `milliseconds`.
#[cfg(test)]
pub(crate) fn readable(fd: i32, milliseconds: i32) -> bool {
    let mut entry = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one entry of our own.
    unsafe { libc::poll(&raw mut entry, 1, milliseconds) == 1 }
}
