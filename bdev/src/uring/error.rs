use std::path::PathBuf;

/// Why a file or block device cannot serve as a disk: which path, why, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileError {
    /// The path that was asked for.
    pub path: PathBuf,
    /// What stands in the way.
    pub reason: FileProblem,
}

/// What stands in the way of opening a file as a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileProblem {
    /// The system refuses to open it or to tell about it; its error number.
    System(i32),
    /// Mounted, part of another device, or already open as a disk.
    InUse,
    /// Neither a regular file nor a block device.
    Kind,
    /// The block size is not a power of two from 512 to 65,536.
    BlockSize(u32),
    /// The block size asked for is not a multiple of what the file or device can do.
    Alignment {
        /// The block size asked for, in bytes.
        asked: u32,
        /// The smallest that works, in bytes.
        needed: u32,
    },
    /// Smaller than one block; the size in bytes.
    TooSmall(u64),
    /// The file system does not do direct I/O.
    Direct,
    /// The kernel offers no io_uring, or not the operations needed; its error number.
    Uring(i32),
}

impl std::fmt::Display for FileError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: ", self.path.display())?;
        let system = |number: i32| std::io::Error::from_raw_os_error(number);
        match &self.reason {
            FileProblem::System(number) => {
                write!(f, "{}; check that it exists and that this process may use it", system(*number))
            }
            FileProblem::InUse => {
                write!(
                    f,
                    "is in use (mounted, part of another device, or already a disk here); release it first"
                )
            }
            FileProblem::Kind => write!(f, "is neither a regular file nor a block device; name one of these"),
            FileProblem::BlockSize(size) => {
                write!(f, "a block of {size} bytes is impossible; use a power of two from 512 to 65536")
            }
            FileProblem::Alignment { asked, needed } => write!(
                f,
                "a block of {asked} bytes is too small for it; use {needed} bytes, or buffered access for a file"
            ),
            FileProblem::TooSmall(size) => write!(f, "has {size} bytes, less than one block; make it larger"),
            FileProblem::Direct => write!(f, "its file system does no direct I/O; open it buffered"),
            FileProblem::Uring(number) => write!(
                f,
                "io_uring is not usable here ({}); allow it (kernel.io_uring_disabled=0, no seccomp filter against \
                 it, kernel 5.6 or later)",
                system(*number)
            ),
        }
    }
}

impl std::error::Error for FileError {}
