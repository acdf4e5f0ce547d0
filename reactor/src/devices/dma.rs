use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use base::{BufferPool, PoolMemory};

use crate::HugeMemory;

/// Memory for what a driver and its device write to each other: queues, lists, structures. The device may change it at any
/// moment, so it is only reached by loads and stores of a few bytes, never by reference.
///
/// A load is an acquire and a store a release: what a device wrote before the phase bit is seen after it, and entries
/// stored before a doorbell are seen behind it.
#[derive(Debug)]
pub struct DmaMemory {
    memory: HugeMemory,
}

// SAFETY: the memory stays at its place until the drop, and every access goes through atomics.
unsafe impl Send for DmaMemory {}
// SAFETY: as above.
unsafe impl Sync for DmaMemory {}

impl DmaMemory {
    /// At least `length` bytes of zeros, page-aligned, shareable with device servers; hugepages when `hugepages` is set and
    /// there are any.
    ///
    /// # Errors
    /// A sentence, when there is not so much memory.
    pub fn new(length: usize, hugepages: bool) -> Result<DmaMemory, String> {
        Ok(DmaMemory { memory: HugeMemory::shared(length, hugepages)? })
    }

    /// Bytes.
    #[must_use]
    pub fn length(&self) -> usize {
        self.memory.length()
    }

    /// The memory, for [`crate::PciDevice::map_dma`].
    #[must_use]
    pub fn region(&self) -> DmaRegion<'_> {
        DmaRegion {
            address: self.memory.base().as_ptr() as usize,
            length: self.memory.length(),
            descriptor: self.memory.descriptor(),
        }
    }

    fn place<T>(&self, offset: usize) -> *const T {
        let fits = offset.checked_add(size_of::<T>()).is_some_and(|end| end <= self.memory.length());
        assert!(fits && offset.is_multiple_of(align_of::<T>()), "offset {offset:#x} of DMA memory");
        // SAFETY: inside the mapping, by the line above.
        unsafe { self.memory.base().as_ptr().add(offset).cast() }
    }

    /// The little-endian word at `offset`.
    ///
    /// # Panics
    /// When the place is not aligned or not inside; offsets are the driver's own, never the device's.
    #[must_use]
    pub fn load32(&self, offset: usize) -> u32 {
        // SAFETY: valid and aligned by `place`; all access to the memory is atomic.
        u32::from_le(unsafe { &*self.place::<AtomicU32>(offset) }.load(Ordering::Acquire))
    }

    /// Stores a little-endian word at `offset`.
    ///
    /// # Panics
    /// As [`DmaMemory::load32`].
    pub fn store32(&self, offset: usize, value: u32) {
        // SAFETY: as in `load32`.
        unsafe { &*self.place::<AtomicU32>(offset) }.store(value.to_le(), Ordering::Release);
    }

    /// The little-endian double word at `offset`.
    ///
    /// # Panics
    /// As [`DmaMemory::load32`].
    #[must_use]
    pub fn load64(&self, offset: usize) -> u64 {
        // SAFETY: as in `load32`.
        u64::from_le(unsafe { &*self.place::<AtomicU64>(offset) }.load(Ordering::Acquire))
    }

    /// Stores a little-endian double word at `offset`.
    ///
    /// # Panics
    /// As [`DmaMemory::load32`].
    pub fn store64(&self, offset: usize, value: u64) {
        // SAFETY: as in `load32`.
        unsafe { &*self.place::<AtomicU64>(offset) }.store(value.to_le(), Ordering::Release);
    }

    /// Stores 8 little-endian double words one after another, in no order among themselves: a queue entry. What makes them
    /// visible to the device is the doorbell behind them.
    ///
    /// # Panics
    /// When `offset` is not a multiple of 64, or the entry is not inside.
    #[inline]
    pub fn store_entry(&self, offset: usize, words: &[u64; 8]) {
        let fits = offset.checked_add(64).is_some_and(|end| end <= self.memory.length());
        assert!(fits && offset.is_multiple_of(64), "entry at offset {offset:#x} of DMA memory");
        let place: *const AtomicU64 = self.memory.base().as_ptr().wrapping_add(offset).cast();
        for (at, &word) in words.iter().enumerate() {
            // SAFETY: `at` is below 8, so the word lies in the 64 bytes that the assertion found inside the mapping; the base
            // is page-aligned, so it is aligned; all access to the memory is atomic.
            unsafe { &*place.add(at) }.store(word.to_le(), Ordering::Relaxed);
        }
    }

    /// Copies bytes out, for structures that are read once.
    ///
    /// # Panics
    /// When the range is not inside.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) {
        let words = if offset.is_multiple_of(8) { bytes.len() & !7 } else { 0 };
        let (front, rest) = bytes.split_at_mut(words);
        for (at, word) in front.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            *word = self.load64(offset + 8 * at).to_le_bytes();
        }
        for (at, byte) in rest.iter_mut().enumerate() {
            // SAFETY: as in `load32`.
            *byte = unsafe { &*self.place::<AtomicU8>(offset + words + at) }.load(Ordering::Acquire);
        }
    }

    /// Copies bytes in.
    ///
    /// # Panics
    /// When the range is not inside.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        let words = if offset.is_multiple_of(8) { bytes.len() & !7 } else { 0 };
        let (front, rest) = bytes.split_at(words);
        for (at, word) in front.as_chunks::<8>().0.iter().enumerate() {
            self.store64(offset + 8 * at, u64::from_le_bytes(*word));
        }
        for (at, &byte) in rest.iter().enumerate() {
            // SAFETY: as in `load32`.
            unsafe { &*self.place::<AtomicU8>(offset + words + at) }.store(byte, Ordering::Release);
        }
    }
}

/// A range of this process that a device may be given. It can only be made of memory whose owner expects that: a
/// [`DmaMemory`], or the memory of a buffer pool, whose handles are out of reach while a device has them.
#[derive(Debug, Clone, Copy)]
pub struct DmaRegion<'a> {
    address: usize,
    length: usize,
    descriptor: Option<BorrowedFd<'a>>,
}

impl<'a> DmaRegion<'a> {
    /// All memory of `pool`.
    #[must_use]
    pub fn of_pool(pool: &'a BufferPool) -> DmaRegion<'a> {
        let (base, length) = pool.region();
        DmaRegion { address: base.as_ptr() as usize, length, descriptor: pool.descriptor() }
    }

    /// The address of its first byte in this process.
    #[must_use]
    pub fn address(&self) -> usize {
        self.address
    }

    /// Bytes.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }

    /// The file that it is the first `length` bytes of, when there is one.
    #[must_use]
    pub fn descriptor(&self) -> Option<BorrowedFd<'a>> {
        self.descriptor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_bytes_are_little_endian_and_bounded() {
        let memory = DmaMemory::new(8192, false).unwrap();
        memory.store64(16, 0x0807_0605_0403_0201);
        memory.store32(24, 0xA0B0_C0D0);
        let mut bytes = [0; 12];
        memory.read(16, &mut bytes);
        assert_eq!(bytes, [1, 2, 3, 4, 5, 6, 7, 8, 0xD0, 0xC0, 0xB0, 0xA0]);
        memory.write(memory.length() - 2, &[7, 9]);
        assert_eq!(memory.load32(memory.length() - 4), 0x0907_0000);
        assert_eq!((memory.load64(16), memory.load32(20)), (0x0807_0605_0403_0201, 0x0807_0605));
        assert_eq!(memory.region().length(), memory.length());
        assert!(memory.region().descriptor().is_some());
    }

    #[test]
    fn bytes_of_any_place_and_length_come_back() {
        let memory = DmaMemory::new(4096, false).unwrap();
        let bytes: Vec<u8> = (1..=61).collect();
        for offset in 0..17 {
            for length in 0..bytes.len() {
                memory.write(offset, &bytes[..length]);
                let mut back = vec![0; length];
                memory.read(offset, &mut back);
                assert_eq!(back, bytes[..length]);
                memory.write(offset, &[0; 64]);
            }
        }
        memory.store_entry(128, &std::array::from_fn(|word| 0x0101_0101_0101_0101 * word as u64));
        let mut entry = [0; 64];
        memory.read(128, &mut entry);
        assert!(entry.iter().enumerate().all(|(at, &byte)| usize::from(byte) == at / 8));
    }

    #[test]
    #[should_panic(expected = "of DMA memory")]
    fn nothing_is_stored_beyond_the_end() {
        let memory = DmaMemory::new(4096, false).unwrap();
        memory.store32(memory.length(), 1);
    }

    #[test]
    #[should_panic(expected = "of DMA memory")]
    fn words_are_aligned() {
        let memory = DmaMemory::new(4096, false).unwrap();
        let _ = memory.load64(4);
    }
}
