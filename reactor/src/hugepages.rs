use std::ffi::c_void;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use base::PoolMemory;
use rustix::fs::MemfdFlags;
use rustix::mm::{Advice, MapFlags, ProtFlags};

/// Bytes of a hugepage.
const HUGE_PAGE: usize = 2 * 1024 * 1024;
/// Bytes of an ordinary page.
const PAGE: usize = 4096;

/// What the memory is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Huge,
    Transparent,
    Plain,
}

/// Memory for a buffer pool: 2 MiB hugepages when the system has some reserved, otherwise ordinary memory for which
/// transparent hugepages are asked. Zeroed, every page touched (no page fault later), and locked when the process may.
#[derive(Debug)]
pub struct HugeMemory {
    mapping: *mut c_void,
    mapped: usize,
    base: NonNull<u8>,
    length: usize,
    kind: Kind,
    locked: bool,
    shortfall: Option<String>,
    /// The memory file behind it, which device servers in other processes map too.
    file: Option<OwnedFd>,
}

impl HugeMemory {
    /// At least `length` bytes, rounded up to whole hugepages, from hugepages if possible.
    ///
    /// # Errors
    /// A sentence, when there is not even ordinary memory.
    pub fn new(length: usize) -> Result<HugeMemory, String> {
        match HugeMemory::huge(length) {
            Ok(memory) => Ok(memory),
            Err(reason) => HugeMemory::plain(length, Some(reason)),
        }
    }

    /// At least `length` bytes of ordinary memory, with transparent hugepages where the kernel gives them.
    ///
    /// # Errors
    /// A sentence, when there is not so much memory.
    pub fn without_hugepages(length: usize) -> Result<HugeMemory, String> {
        HugeMemory::plain(length, None)
    }

    /// At least `length` bytes that other processes can map by [`PoolMemory::descriptor`]: hugepages when `hugepages` is
    /// set and there are any, otherwise ordinary shared memory.
    ///
    /// # Errors
    /// A sentence, when there is not so much memory.
    pub fn shared(length: usize, hugepages: bool) -> Result<HugeMemory, String> {
        let mut shortfall = None;
        if hugepages {
            match HugeMemory::huge(length) {
                Ok(memory) => return Ok(memory),
                Err(reason) => shortfall = Some(reason),
            }
        }
        let length = round_up(length)?;
        let (mapping, file) = map_file(length, MemfdFlags::CLOEXEC)
            .map_err(|error| format!("{length} bytes of shared memory cannot be had: {error}"))?;
        // SAFETY: the range is the mapping just made; the advice changes how it is backed, not what it contains.
        let advised = unsafe { rustix::mm::madvise(mapping, length, Advice::LinuxHugepage) }.is_ok();
        let kind = if advised { Kind::Transparent } else { Kind::Plain };
        HugeMemory::finish(mapping, length, length, kind, shortfall, Some(file))
    }

    /// Why there are no hugepages behind it, and what would help. `None` when there are, or when none were wanted.
    #[must_use]
    pub fn shortfall(&self) -> Option<&str> {
        self.shortfall.as_deref()
    }

    /// True when the memory cannot be swapped out. Hugepages never are.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.locked
    }

    fn huge(length: usize) -> Result<HugeMemory, String> {
        let length = round_up(length)?;
        // A file, not an anonymous mapping: hugepages are for devices, and some devices live in other processes.
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
        let (mapping, file) = map_file(length, flags).map_err(|error| {
            let pages = length / HUGE_PAGE;
            format!("{pages} hugepages of 2 MiB are not free ({error}); reserve them with: sysctl vm.nr_hugepages={pages}")
        })?;
        HugeMemory::finish(mapping, length, length, Kind::Huge, None, Some(file))
    }

    fn plain(length: usize, shortfall: Option<String>) -> Result<HugeMemory, String> {
        let length = round_up(length)?;
        // One hugepage more than asked for, so that the part used can begin on a hugepage boundary.
        let mapped = length.checked_add(HUGE_PAGE).ok_or_else(|| too_much(length))?;
        let mapping = map(mapped, MapFlags::PRIVATE)
            .map_err(|error| format!("{mapped} bytes of memory cannot be had: {error}"))?;
        // SAFETY: the range is the mapping just made; the advice changes how it is backed, not what it contains.
        let advised = unsafe { rustix::mm::madvise(mapping, mapped, Advice::LinuxHugepage) }.is_ok();
        let kind = if advised { Kind::Transparent } else { Kind::Plain };
        HugeMemory::finish(mapping, mapped, length, kind, shortfall, None)
    }

    fn finish(
        mapping: *mut c_void,
        mapped: usize,
        length: usize,
        kind: Kind,
        shortfall: Option<String>,
        file: Option<OwnedFd>,
    ) -> Result<HugeMemory, String> {
        let skip = if mapped == length {
            0
        } else {
            mapping.cast::<u8>().align_offset(HUGE_PAGE).min(mapped - length)
        };
        // SAFETY: `skip + length` is at most `mapped`, by the line above.
        let start = unsafe { mapping.cast::<u8>().add(skip) };
        let base = NonNull::new(start).ok_or("the kernel mapped memory at address 0")?;
        let mut memory =
            HugeMemory { mapping, mapped, base, length, kind, locked: kind == Kind::Huge, shortfall, file };
        for offset in (0..length).step_by(PAGE) {
            // SAFETY: the offset is inside the mapping, which this value owns; the write faults the page in.
            unsafe { base.as_ptr().add(offset).write_volatile(0) };
        }
        if !memory.locked {
            // Refused without CAP_IPC_LOCK beyond RLIMIT_MEMLOCK; the memory works all the same.
            // SAFETY: the range lies inside the mapping; locking changes nothing that is visible to the program.
            memory.locked = unsafe { rustix::mm::mlock(base.as_ptr().cast(), length) }.is_ok();
        }
        Ok(memory)
    }
}

fn too_much(length: usize) -> String {
    format!("{length} bytes are more than a process can address")
}

fn round_up(length: usize) -> Result<usize, String> {
    length.max(1).checked_next_multiple_of(HUGE_PAGE).ok_or_else(|| too_much(length))
}

fn map(length: usize, flags: MapFlags) -> rustix::io::Result<*mut c_void> {
    // SAFETY: the kernel chooses the address, so the new mapping replaces nothing.
    unsafe {
        rustix::mm::mmap_anonymous(std::ptr::null_mut(), length, ProtFlags::READ | ProtFlags::WRITE, flags)
    }
}

/// Maps a new memory file of `length` bytes. A hugepage file reserves its pages here, so that too few are an error
/// now and not a bus error later.
fn map_file(length: usize, flags: MemfdFlags) -> rustix::io::Result<(*mut c_void, OwnedFd)> {
    let file = rustix::fs::memfd_create("pollux-buffers", flags)?;
    rustix::fs::ftruncate(&file, length as u64)?;
    // SAFETY: the kernel chooses the address, so the new mapping replaces nothing.
    let mapping = unsafe {
        rustix::mm::mmap(
            std::ptr::null_mut(),
            length,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED,
            &file,
            0,
        )
    }?;
    Ok((mapping, file))
}

impl Drop for HugeMemory {
    fn drop(&mut self) {
        // SAFETY: mapped in `map` with this length, unmapped only here; the pool that used it is gone.
        let _ = unsafe { rustix::mm::munmap(self.mapping, self.mapped) };
    }
}

// SAFETY: a new mapping, anonymous or of a new memory file, is zeroed, page-aligned, owned by this value and stays where it is until the
// drop; `base + length` lies inside it.
unsafe impl PoolMemory for HugeMemory {
    fn base(&self) -> NonNull<u8> {
        self.base
    }
    fn length(&self) -> usize {
        self.length
    }
    fn kind(&self) -> &'static str {
        match self.kind {
            Kind::Huge => "2 MiB hugepages",
            Kind::Transparent => "plain, transparent hugepages asked for",
            Kind::Plain => "plain",
        }
    }
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(AsFd::as_fd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::{BufferPool, PoolClass};

    fn first_and_last(memory: &HugeMemory) -> (u8, u8) {
        // SAFETY: both bytes are inside the memory, and nobody else uses it.
        unsafe { (*memory.base().as_ptr(), *memory.base().as_ptr().add(memory.length() - 1)) }
    }

    #[test]
    fn ordinary_memory_begins_on_a_hugepage() {
        let memory = HugeMemory::without_hugepages(3 * 1024 * 1024).unwrap();
        assert_eq!(memory.length(), 4 * 1024 * 1024);
        assert_eq!(memory.base().as_ptr().align_offset(HUGE_PAGE), 0);
        assert_eq!(first_and_last(&memory), (0, 0));
        assert_eq!(memory.shortfall(), None);
        assert!(memory.kind().starts_with("plain"));
    }

    #[test]
    fn more_hugepages_than_there_are_fall_back_with_a_reason() {
        // 1 TiB of hugepages is nowhere reserved; the fallback itself is made with a size that exists.
        let reason = HugeMemory::huge(1 << 40).unwrap_err();
        assert!(reason.contains("524288 hugepages") && reason.contains("vm.nr_hugepages"), "{reason}");
        let memory = HugeMemory::plain(1, Some(reason.clone())).unwrap();
        assert_eq!(memory.shortfall(), Some(reason.as_str()));
        assert!(HugeMemory::new(usize::MAX).is_err());
    }

    #[test]
    fn shared_memory_is_seen_through_its_descriptor() {
        use std::os::unix::fs::FileExt;
        let classes = [PoolClass { size: 65536, count: 16 }];
        let memory = HugeMemory::shared(BufferPool::memory_length(&classes), false).unwrap();
        let pool = BufferPool::new(Box::new(memory), &classes);
        let mut data = pool.acquire(65536).unwrap();
        data.fill(0x5A);
        let offset = data.as_ptr() as usize - pool.region().0.as_ptr() as usize;
        let file = std::fs::File::from(pool.descriptor().unwrap().try_clone_to_owned().unwrap());
        let mut seen = vec![0; 65536];
        file.read_exact_at(&mut seen, offset as u64).unwrap();
        assert!(seen.iter().all(|&byte| byte == 0x5A));
        assert!(HugeMemory::without_hugepages(1).unwrap().descriptor().is_none());
    }

    #[test]
    fn a_pool_can_be_cut_from_it_either_way() {
        let classes = [PoolClass { size: 65536, count: 16 }];
        let memory = HugeMemory::new(BufferPool::memory_length(&classes)).unwrap();
        assert_eq!(memory.shortfall().is_none(), memory.kind() == "2 MiB hugepages");
        let pool = BufferPool::new(Box::new(memory), &classes);
        let mut data = pool.acquire(65536).unwrap();
        data.fill(0xA5);
        drop(pool);
        assert!(data.iter().all(|&byte| byte == 0xA5));
    }
}
