//! The memory of a RAM disk, shared by all cores: one sparse anonymous mapping, a bitmap of the granules that are
//! allocated, and the locks that make every access sound.
//!
//! Locking: the mapping is divided into regions of 64 granules (one word of the bitmap). A region's bytes and its
//! bitmap word are touched only under the region's lock, shared for reading and exclusive for everything else. A
//! region's lock is a stripe of a fixed table, so several regions may share one; nobody ever holds two. A critical
//! section is one copy within one granule, or giving back the memory of one region.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Granules that share a word of the bitmap and a lock.
const REGION: u64 = 64;

/// Locks. Two cores collide when they are in the same of this many regions at the same moment.
const STRIPES: usize = 1024;

/// No storage is left below the allocation limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full;

/// A reader-writer lock that spins: held for one copy only. On a cache line of its own.
#[repr(align(64))]
struct Lock(AtomicU32);

const WRITER: u32 = 1 << 31;
/// A writer waits: no new readers, else a stream of them would starve it.
const WAITING: u32 = 1 << 30;
const READERS: u32 = WAITING - 1;

struct Shared<'a>(&'a Lock);
struct Exclusive<'a>(&'a Lock);

/// Waits a little; gives up the processor when the holder seems to have lost its own.
fn relax(spins: &mut u32) {
    *spins = spins.wrapping_add(1);
    if spins.is_multiple_of(256) {
        std::thread::yield_now();
    } else {
        std::hint::spin_loop();
    }
}

impl Lock {
    fn shared(&self) -> Shared<'_> {
        let mut spins = 0;
        loop {
            let state = self.0.load(Ordering::Relaxed);
            if state & (WRITER | WAITING) == 0
                && self
                    .0
                    .compare_exchange_weak(state, state + 1, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok()
            {
                return Shared(self);
            }
            relax(&mut spins);
        }
    }

    fn exclusive(&self) -> Exclusive<'_> {
        let mut spins = 0;
        loop {
            let state = self.0.load(Ordering::Relaxed);
            if state & (WRITER | READERS) == 0 {
                // Clears WAITING too; other writers that wait set it again.
                if self.0.compare_exchange_weak(state, WRITER, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                    return Exclusive(self);
                }
            } else if state & WAITING == 0 {
                self.0.fetch_or(WAITING, Ordering::Relaxed);
            }
            relax(&mut spins);
        }
    }
}

impl Drop for Shared<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Release);
    }
}

impl Drop for Exclusive<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_and(!WRITER, Ordering::Release);
    }
}

/// What lies in one granule of a byte range.
struct Piece {
    granule: u64,
    /// Bytes from the mapping's start.
    offset: usize,
    length: usize,
}

/// Sparse memory, addressed by byte offset. Blocks nobody wrote read as zeros and take no memory.
pub(crate) struct RamMemory {
    base: NonNull<u8>,
    length: usize,
    granule: usize,
    allocated: Box<[AtomicU64]>,
    locks: Box<[Lock]>,
    allocated_granules: AtomicU64,
    limit_granules: u64,
}

// SAFETY: the mapping is owned by this value. Its bytes are reached only by the methods below, each under the lock
// of the region the bytes are in (module doc); everything else is atomic or never changes.
unsafe impl Send for RamMemory {}
// SAFETY: as above.
unsafe impl Sync for RamMemory {}

impl RamMemory {
    /// `length` bytes, a positive multiple of `granule`, which is a power of two of at least a page. At most
    /// `limit` bytes are ever allocated. The error is the system's number.
    pub(crate) fn new(
        length: usize,
        granule: usize,
        limit: Option<u64>,
        huge_pages: bool,
    ) -> Result<Self, i32> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new private mapping at an address of the kernel's choice touches nothing that exists.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, -1, 0) };
        if address == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::ENOMEM));
        }
        let advice = if huge_pages { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
        // SAFETY: advice on the mapping just made; its failure (no such kernel option) changes nothing.
        unsafe { libc::madvise(address, length, advice) };
        let base = NonNull::new(address.cast::<u8>()).ok_or(libc::ENOMEM)?;
        let granules = (length / granule) as u64;
        let words = granules.div_ceil(REGION);
        Ok(RamMemory {
            base,
            length,
            granule,
            allocated: (0..words).map(|_| AtomicU64::new(0)).collect(),
            locks: (0..STRIPES).map(|_| Lock(AtomicU32::new(0))).collect(),
            allocated_granules: AtomicU64::new(0),
            limit_granules: limit.map_or(u64::MAX, |bytes| bytes / granule as u64),
        })
    }

    /// Bytes that are allocated.
    pub(crate) fn allocated_bytes(&self) -> u64 {
        self.allocated_granules.load(Ordering::Relaxed) * self.granule as u64
    }

    /// The lock and the bitmap word of a granule, and its bit.
    fn region(&self, granule: u64) -> (&Lock, &AtomicU64, u64) {
        let word = (granule / REGION) as usize;
        (&self.locks[word % STRIPES], &self.allocated[word], 1 << (granule % REGION))
    }

    /// The first piece of `length` bytes from `offset`. Panics when that is not inside the mapping: the caller has
    /// checked the range, and an unchecked one must never reach memory.
    fn piece(&self, offset: usize, length: usize) -> Piece {
        let end = offset.checked_add(length).expect("a range that fits in memory");
        assert!(length > 0 && end <= self.length, "{offset}+{length} is outside the RAM disk");
        let in_granule = offset % self.granule;
        Piece {
            granule: (offset / self.granule) as u64,
            offset,
            length: length.min(self.granule - in_granule),
        }
    }

    /// Copies out; zeros where nothing is allocated.
    pub(crate) fn read(&self, mut offset: usize, mut data: &mut [u8]) {
        while !data.is_empty() {
            let piece = self.piece(offset, data.len());
            let (into, rest) = data.split_at_mut(piece.length);
            let (lock, word, bit) = self.region(piece.granule);
            let guard = lock.shared();
            if word.load(Ordering::Relaxed) & bit == 0 {
                drop(guard);
                into.fill(0);
            } else {
                // SAFETY: `piece` is inside the mapping and inside one granule, whose region's lock is held shared:
                // nobody writes these bytes. `into` is a `&mut` slice of other memory.
                unsafe {
                    self.base
                        .add(piece.offset)
                        .copy_to_nonoverlapping(NonNull::from(&mut *into).cast(), piece.length)
                };
            }
            data = rest;
            offset += piece.length;
        }
    }

    /// True when the memory holds `data`.
    pub(crate) fn equals(&self, mut offset: usize, mut data: &[u8]) -> bool {
        while !data.is_empty() {
            let piece = self.piece(offset, data.len());
            let (wanted, rest) = data.split_at(piece.length);
            let (lock, word, bit) = self.region(piece.granule);
            let guard = lock.shared();
            let same = if word.load(Ordering::Relaxed) & bit == 0 {
                wanted.iter().all(|&byte| byte == 0)
            } else {
                // SAFETY: `piece` is inside the mapping and inside one granule, whose region's lock is held shared:
                // nobody writes these bytes while this reference to them lives.
                let held =
                    unsafe { std::slice::from_raw_parts(self.base.add(piece.offset).as_ptr(), piece.length) };
                held == wanted
            };
            drop(guard);
            if !same {
                return false;
            }
            data = rest;
            offset += piece.length;
        }
        true
    }

    /// Copies inside the memory, allocating; the ranges do not overlap. By way of the stack, since nobody may hold
    /// two locks.
    pub(crate) fn copy(&self, mut from: usize, mut to: usize, mut length: usize) -> Result<(), Full> {
        let mut bytes = [0; 4096];
        while length > 0 {
            let count = length.min(bytes.len());
            let part = bytes.get_mut(..count).unwrap_or_default();
            self.read(from, part);
            self.write(to, part)?;
            from += count;
            to += count;
            length -= count;
        }
        Ok(())
    }

    /// Copies in, allocating.
    pub(crate) fn write(&self, mut offset: usize, mut data: &[u8]) -> Result<(), Full> {
        while !data.is_empty() {
            let piece = self.piece(offset, data.len());
            let (from, rest) = data.split_at(piece.length);
            let (lock, word, bit) = self.region(piece.granule);
            let guard = lock.exclusive();
            self.allocate(word, bit)?;
            // SAFETY: `piece` is inside the mapping and inside one granule, whose region's lock is held exclusively:
            // nobody else touches these bytes. `from` is a slice of other memory.
            unsafe {
                self.base.add(piece.offset).copy_from_nonoverlapping(NonNull::from(from).cast(), piece.length)
            };
            drop(guard);
            data = rest;
            offset += piece.length;
        }
        Ok(())
    }

    /// Zeros a range that is allocated afterwards.
    pub(crate) fn write_zeros(&self, mut offset: usize, mut length: usize) -> Result<(), Full> {
        while length > 0 {
            let piece = self.piece(offset, length);
            let (lock, word, bit) = self.region(piece.granule);
            let _guard = lock.exclusive();
            // A granule that is new is zero already and need not be touched.
            if !self.allocate(word, bit)? {
                self.clear(&piece);
            }
            length -= piece.length;
            offset += piece.length;
        }
        Ok(())
    }

    /// Zeros a range, and gives back the memory of the granules wholly inside.
    pub(crate) fn deallocate(&self, mut offset: usize, mut length: usize) {
        while length > 0 {
            let piece = self.piece(offset, length);
            let advance = if piece.length < self.granule {
                self.zero_if_allocated(&piece);
                piece.length
            } else {
                // As many whole granules as the range has in this region.
                let whole = (length / self.granule) as u64;
                let count = whole.min(REGION - piece.granule % REGION);
                self.free(piece.granule, count);
                count as usize * self.granule
            };
            length -= advance;
            offset += advance;
        }
    }

    /// Whether the granule at `offset` is allocated, and for how many bytes from there, up to `length`, that holds.
    /// Looks at no more than 4,096 words, so the answer may be a part of the extent.
    pub(crate) fn extent(&self, offset: usize, length: usize) -> (bool, usize) {
        let piece = self.piece(offset, length);
        let first = piece.granule;
        let last = ((offset + length - 1) / self.granule) as u64;
        let (_, word, bit) = self.region(first);
        let state = word.load(Ordering::Acquire) & bit != 0;
        let mut granule = first;
        let word_limit = first / REGION + 4096;
        while granule <= last && granule / REGION < word_limit {
            let (_, word, _) = self.region(granule);
            let bits = word.load(Ordering::Acquire);
            // Ones where the state differs, from this granule on.
            let differs = (if state { !bits } else { bits }) >> (granule % REGION);
            let left_in_word = REGION - granule % REGION;
            if differs != 0 {
                granule += u64::from(differs.trailing_zeros());
                break;
            }
            granule += left_in_word;
        }
        let end = (granule.max(first + 1) as usize).saturating_mul(self.granule).min(offset + length);
        (state, end - offset)
    }

    /// Marks a granule allocated; true when it was not. The region's lock must be held exclusively.
    fn allocate(&self, word: &AtomicU64, bit: u64) -> Result<bool, Full> {
        if word.load(Ordering::Relaxed) & bit != 0 {
            return Ok(false);
        }
        let limit = self.limit_granules;
        self.allocated_granules
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| (count < limit).then_some(count + 1))
            .map_err(|_| Full)?;
        word.fetch_or(bit, Ordering::Release);
        Ok(true)
    }

    /// Zeros a piece. The region's lock must be held exclusively.
    fn clear(&self, piece: &Piece) {
        // SAFETY: `piece` is inside the mapping (made by `Self::piece` or `Self::free`), and every caller holds the
        // region's lock exclusively.
        unsafe { self.base.add(piece.offset).write_bytes(0, piece.length) };
    }

    fn zero_if_allocated(&self, piece: &Piece) {
        let (lock, word, bit) = self.region(piece.granule);
        let _guard = lock.exclusive();
        if word.load(Ordering::Relaxed) & bit != 0 {
            self.clear(piece);
        }
    }

    /// Deallocates `count` granules from `first`, all of one region.
    fn free(&self, first: u64, count: u64) {
        let (lock, word, bit) = self.region(first);
        let mask = if count >= REGION { u64::MAX } else { ((1 << count) - 1) * bit };
        let _guard = lock.exclusive();
        let bits = word.load(Ordering::Relaxed) & mask;
        if bits == 0 {
            return;
        }
        let (offset, length) = (first as usize * self.granule, count as usize * self.granule);
        // SAFETY: whole pages inside the mapping (the granule is a multiple of the page, the range was checked by
        // the caller's `piece`), under the region's exclusive lock; private anonymous memory reads as zeros after.
        let result =
            unsafe { libc::madvise(self.base.add(offset).as_ptr().cast(), length, libc::MADV_DONTNEED) };
        if result != 0 {
            // Locked memory (mlockall) cannot be given back; it must still read as zeros when allocated again.
            let mut left = bits;
            while left != 0 {
                let granule = first / REGION * REGION + u64::from(left.trailing_zeros());
                self.clear(&Piece { granule, offset: granule as usize * self.granule, length: self.granule });
                left &= left - 1;
            }
        }
        word.fetch_and(!bits, Ordering::Release);
        self.allocated_granules.fetch_sub(u64::from(bits.count_ones()), Ordering::Relaxed);
    }
}

impl Drop for RamMemory {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length, unmapped only here, and no reference into it is ever given out.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.length) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(granules: usize, limit: Option<u64>) -> RamMemory {
        RamMemory::new(granules * 4096, 4096, limit, false).unwrap()
    }

    #[test]
    fn extents_end_where_the_state_changes() {
        let memory = memory(300, None);
        memory.write(70 * 4096, &[1; 4096 * 130]).unwrap();
        assert_eq!(memory.extent(0, 300 * 4096), (false, 70 * 4096));
        assert_eq!(memory.extent(512, 1024), (false, 1024));
        assert_eq!(memory.extent(70 * 4096 + 512, 230 * 4096 - 512), (true, 130 * 4096 - 512));
        assert_eq!(memory.extent(200 * 4096, 100 * 4096), (false, 100 * 4096));
    }

    #[test]
    fn deallocation_zeros_the_edges_and_frees_the_middle() {
        let memory = memory(130, None);
        memory.write(0, &[7; 130 * 4096]).unwrap();
        memory.deallocate(100, 129 * 4096);
        assert_eq!(memory.allocated_bytes(), 2 * 4096);
        let mut all = vec![1; 130 * 4096];
        memory.read(0, &mut all);
        let expected = |at: usize| if (100..129 * 4096 + 100).contains(&at) { 0 } else { 7 };
        assert!(all.iter().enumerate().all(|(at, &byte)| byte == expected(at)));
    }

    #[test]
    fn the_limit_counts_granules_and_freeing_makes_room() {
        let memory = memory(8, Some(2 * 4096));
        memory.write(0, &[1; 8192]).unwrap();
        memory.write(0, &[2; 8192]).unwrap();
        assert_eq!(memory.write(4 * 4096, &[1]), Err(Full));
        assert_eq!(memory.write_zeros(4 * 4096, 4096), Err(Full));
        memory.deallocate(0, 4096);
        memory.write(4 * 4096, &[1]).unwrap();
        let mut granule = [9; 4096];
        memory.read(4 * 4096, &mut granule);
        assert_eq!((granule[0], granule[1], granule[4095]), (1, 0, 0));
    }

    #[test]
    #[should_panic(expected = "outside the RAM disk")]
    fn a_range_beyond_the_end_never_reaches_memory() {
        memory(1, None).read(4000, &mut [0; 97]);
    }

    /// Writers fill whole granules with one byte, a reader must see one byte all over; others free.
    #[test]
    fn granules_are_never_torn_between_threads() {
        let memory = memory(4, None);
        std::thread::scope(|scope| {
            for byte in 1..=3u8 {
                let memory = &memory;
                scope.spawn(move || {
                    for turn in 0..3000usize {
                        memory.write((turn % 4) * 4096, &[byte; 4096]).unwrap();
                        if byte == 3 && turn % 5 == 0 {
                            memory.deallocate(0, 4 * 4096);
                        }
                    }
                });
            }
            for turn in 0..6000usize {
                let mut granule = [9; 4096];
                memory.read((turn % 4) * 4096, &mut granule);
                assert!(granule.iter().all(|&byte| byte == granule[0]), "a torn granule");
            }
        });
    }
}
