//! Mapped registers.

use std::ffi::c_void;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{Ordering, compiler_fence};

use rustix::mm::{MapFlags, ProtFlags};

use super::sigbus::Guard;

const PAGE: u64 = 4096;

/// Registers of a device, mapped from a file: the VFIO device, or a region that a device server shares. Every access is
/// one volatile load or store of its own width.
///
/// # Order
/// VFIO maps BARs uncached. On x86 a store to uncached memory, and any store to shared memory, becomes visible after
/// all stores that stand before it in the program (Intel SDM vol. 3A §9.2, §12.3; the exceptions are non-temporal
/// stores, which `memcpy` ends with a fence of its own), and loads are not made before older loads. So the compiler is
/// all that has to be held back. Elsewhere a full barrier stands before each store and behind each load.
#[derive(Debug)]
pub(super) struct Mapping {
    base: NonNull<u8>,
    length: usize,
    /// `None` only while the mapping is taken down.
    guard: Option<Guard>,
}

// SAFETY: the mapping stays where it is until the drop, and every access is volatile on plain words that any thread may
// touch: they are registers, not Rust objects.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

#[inline]
fn before_store() {
    compiler_fence(Ordering::SeqCst);
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a barrier; it touches no register and no memory.
    unsafe {
        core::arch::asm!("dmb osh", options(nostack, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    std::sync::atomic::fence(Ordering::SeqCst);
}

#[inline]
fn after_load() {
    before_store();
}

impl Mapping {
    /// Maps `length` bytes of `file` from `offset`.
    ///
    /// # Errors
    /// A sentence, when the system refuses.
    pub(super) fn new(file: BorrowedFd<'_>, offset: u64, length: u64) -> Result<Mapping, String> {
        if length == 0 || !length.is_multiple_of(PAGE) || !offset.is_multiple_of(PAGE) {
            return Err(format!("{length:#x} bytes at {offset:#x} are not whole pages"));
        }
        let length = usize::try_from(length).map_err(|_| format!("{length:#x} bytes are too many"))?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses the address, so the new mapping replaces nothing.
        let base = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), length, protection, MapFlags::SHARED, file, offset)
        }
        .map_err(|error| format!("{length:#x} bytes at {offset:#x} cannot be mapped: {error}"))?;
        let mut mapping = Mapping {
            base: NonNull::new(base.cast()).ok_or("the kernel mapped memory at address 0")?,
            length,
            guard: None,
        };
        // From here on the drop of `mapping` takes it down.
        mapping.guard = Some(Guard::new(base as usize, length)?);
        Ok(mapping)
    }

    /// Bytes.
    pub(super) fn length(&self) -> u64 {
        self.length as u64
    }

    /// True once an access found nothing behind the mapping; what was read from then on has no meaning.
    #[inline]
    pub(super) fn has_faulted(&self) -> bool {
        self.guard.as_ref().is_none_or(Guard::has_faulted)
    }

    /// Lets go of the file: from here on the registers are memory of our own, which nothing looks at. Handles may be in
    /// use meanwhile; what they read has no meaning, and [`Mapping::has_faulted`] says so.
    ///
    /// # Errors
    /// A sentence, when the system refuses; then the file is still mapped.
    pub(super) fn retire(&self) -> Result<(), String> {
        // First the mark: who reads the new memory finds it set afterwards.
        if let Some(guard) = &self.guard {
            guard.mark();
        }
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
        // SAFETY: the range is this mapping, which is replaced in one step and reached by volatile accesses only.
        unsafe { rustix::mm::mmap_anonymous(self.base.as_ptr().cast(), self.length, protection, flags) }
            .map(drop)
            .map_err(|error| format!("{:#x} bytes of registers cannot be unmapped: {error}", self.length))
    }

    #[inline]
    fn place<T>(&self, offset: u64) -> *mut T {
        let fits = offset.checked_add(size_of::<T>() as u64).is_some_and(|end| end <= self.length as u64);
        assert!(fits && offset.is_multiple_of(align_of::<T>() as u64), "register {offset:#x} of a mapping");
        // SAFETY: inside the mapping, by the line above.
        unsafe { self.base.as_ptr().add(offset as usize).cast() }
    }

    /// The word at `offset`, which must be aligned and inside.
    #[inline]
    pub(super) fn read32(&self, offset: u64) -> u32 {
        // SAFETY: valid and aligned by `place`; no reference to it exists anywhere.
        let value = unsafe { self.place::<u32>(offset).read_volatile() };
        after_load();
        u32::from_le(value)
    }

    /// Stores a word at `offset`, which must be aligned and inside.
    #[inline]
    pub(super) fn write32(&self, offset: u64, value: u32) {
        before_store();
        // SAFETY: as in `read32`.
        unsafe { self.place::<u32>(offset).write_volatile(value.to_le()) };
    }

    /// The double word at `offset`, which must be aligned and inside.
    #[inline]
    pub(super) fn read64(&self, offset: u64) -> u64 {
        // SAFETY: as in `read32`.
        let value = unsafe { self.place::<u64>(offset).read_volatile() };
        after_load();
        u64::from_le(value)
    }

    /// Stores a double word at `offset`, which must be aligned and inside.
    #[inline]
    pub(super) fn write64(&self, offset: u64, value: u64) {
        before_store();
        // SAFETY: as in `read32`.
        unsafe { self.place::<u64>(offset).write_volatile(value.to_le()) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // The list first: an entry must not name a range that somebody else may get.
        self.guard = None;
        // SAFETY: mapped in `new` with this length, unmapped only here.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast::<c_void>(), self.length) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, OwnedFd};
    use std::os::unix::process::ExitStatusExt;

    use rustix::fs::MemfdFlags;

    use super::*;

    fn file(length: u64) -> OwnedFd {
        let file = rustix::fs::memfd_create("registers", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, length).unwrap();
        file
    }

    #[test]
    fn accesses_have_the_width_and_place_they_name() {
        use std::os::unix::fs::FileExt;
        let file = file(8192);
        let mapping = Mapping::new(file.as_fd(), 4096, 4096).unwrap();
        mapping.write32(4, 0x0403_0201);
        mapping.write64(8, 0x0C0B_0A09_0807_0605);
        let mut seen = [0; 16];
        std::fs::File::from(file).read_exact_at(&mut seen, 4096).unwrap();
        assert_eq!(seen, [0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
        assert_eq!((mapping.read32(4), mapping.read64(8)), (0x0403_0201, 0x0C0B_0A09_0807_0605));
        assert!(!mapping.has_faulted());
    }

    #[test]
    fn what_is_taken_away_reads_as_ones_page_by_page() {
        let file = file(16384);
        let mapping = Mapping::new(file.as_fd(), 0, 16384).unwrap();
        let other = Mapping::new(file.as_fd(), 0, 4096).unwrap();
        mapping.write32(12288, 5);
        other.write32(0, 7);
        rustix::fs::ftruncate(&file, 4096).unwrap();
        assert_eq!((mapping.read32(0), mapping.has_faulted()), (7, false));
        // A write that finds nothing is as harmless as a read.
        mapping.write32(8192, 9);
        assert!(mapping.has_faulted());
        assert_eq!((mapping.read32(12288), mapping.read64(4096)), (u32::MAX, u64::MAX));
        assert_eq!((other.read32(0), other.has_faulted()), (7, false));
        rustix::fs::ftruncate(&file, 0).unwrap();
        assert_eq!((other.read32(4092), other.has_faulted()), (u32::MAX, true));
    }

    #[test]
    fn a_mapping_lets_go_of_its_file_while_it_is_in_use() {
        for _ in 0..20 {
            let file = file(65536);
            let mapping = Mapping::new(file.as_fd(), 0, 65536).unwrap();
            mapping.write32(0, 1);
            std::thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| {
                        loop {
                            let value = mapping.read32(0);
                            // What is read before the mark is seen is the register.
                            if mapping.has_faulted() {
                                break;
                            }
                            assert_eq!(value, 1);
                        }
                    });
                }
                mapping.retire().unwrap();
            });
            mapping.write32(0, 77);
            let mut seen = [0; 4];
            rustix::io::pread(&file, &mut seen, 0).unwrap();
            assert_eq!(seen, [1, 0, 0, 0]);
            let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
            let place = format!("{:x}-", mapping.base.as_ptr() as usize);
            assert!(
                !maps.lines().any(|line| line.starts_with(&place) && line.contains("registers")),
                "{maps}"
            );
        }
    }

    #[test]
    fn many_threads_may_find_it_gone_at_once() {
        for _ in 0..50 {
            let file = file(65536);
            let mapping = Mapping::new(file.as_fd(), 0, 65536).unwrap();
            mapping.write32(0, 1);
            std::thread::scope(|scope| {
                for thread in 0..4u64 {
                    let mapping = &mapping;
                    scope.spawn(move || {
                        while !mapping.has_faulted() {
                            for page in 0..16 {
                                let value = mapping.read32(page * 4096 + thread * 4);
                                assert!(value <= 1 || value == u32::MAX, "{value:#x}");
                            }
                        }
                    });
                }
                rustix::fs::ftruncate(&file, 0).unwrap();
            });
        }
    }

    /// Runs this very test in a process of its own, where it does what ends it.
    #[test]
    fn a_bus_error_elsewhere_still_ends_the_process() {
        let name = "devices::mmio::tests::a_bus_error_elsewhere_still_ends_the_process";
        if std::env::var_os("POLLUX_TEST_SIGBUS").is_some() {
            let registers = file(4096);
            let _mapping = Mapping::new(registers.as_fd(), 0, 4096).unwrap();
            let elsewhere = file(4096);
            // SAFETY: a new mapping of a file of one page.
            let page = unsafe {
                let null = std::ptr::null_mut();
                rustix::mm::mmap(null, 4096, ProtFlags::READ, MapFlags::SHARED, &elsewhere, 0).unwrap()
            };
            rustix::fs::ftruncate(&elsewhere, 0).unwrap();
            // SAFETY: a mapped page; the kernel answers with SIGBUS, which is what is tested.
            let value = unsafe { page.cast::<u32>().read_volatile() };
            panic!("read {value:#x} from nowhere");
        }
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", name, "--nocapture"]).env("POLLUX_TEST_SIGBUS", "1");
        let output = command.output().unwrap();
        assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{output:?}");
    }

    #[test]
    #[should_panic(expected = "of a mapping")]
    fn nothing_is_read_beyond_the_end() {
        let _ = Mapping::new(file(4096).as_fd(), 0, 4096).unwrap().read64(4092);
    }

    #[test]
    fn parts_of_pages_are_refused() {
        let file = file(8192);
        assert!(Mapping::new(file.as_fd(), 0, 100).is_err());
        assert!(Mapping::new(file.as_fd(), 512, 4096).is_err());
        assert!(Mapping::new(file.as_fd(), 0, 0).is_err());
    }
}
