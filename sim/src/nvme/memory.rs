//! The host's memory as the device sees it: ranges of addresses, each the part of a file, mapped while it is registered.

use std::cell::Cell;
use std::fs::File;
use std::sync::atomic::Ordering;

use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

/// The address is in no registered range, or the range has no memory behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotMapped {
    /// First byte of the access.
    pub address: u64,
    /// Bytes.
    pub length: u64,
}

struct Range {
    address: u64,
    length: u64,
    /// Nothing for ranges that came without a file: known, but out of reach.
    region: Option<MmapRegion>,
}

/// All ranges, ordered by address; they never overlap.
#[derive(Default)]
pub struct Memory {
    ranges: Vec<Range>,
    /// Index of the range that was hit last.
    last: Cell<usize>,
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.ranges.iter().map(|range| (range.address, range.length))).finish()
    }
}

impl Memory {
    /// Registers `length` bytes at `address`: those of `file` from `offset` on.
    ///
    /// # Errors
    /// A sentence, when the range is empty, wraps or overlaps, the file is too short, or it cannot be mapped.
    pub fn map(&mut self, address: u64, length: u64, file: Option<File>, offset: u64) -> Result<(), String> {
        let end = address.checked_add(length).filter(|_| length > 0);
        let Some(end) = end else {
            return Err(format!("DMA range {address:#x}+{length:#x} is empty or wraps"));
        };
        let at = self.ranges.partition_point(|range| range.address < address);
        let after = self.ranges.get(at).is_some_and(|next| next.address < end);
        let before = at > 0 && {
            let previous = &self.ranges[at - 1];
            previous.address + previous.length > address
        };
        if after || before {
            return Err(format!(
                "DMA range {address:#x}+{length:#x} overlaps one that is mapped; unmap it first"
            ));
        }
        let region = match file {
            Some(file) => Some(map_file(file, offset, length)?),
            None => None,
        };
        self.ranges.insert(at, Range { address, length, region });
        self.last.set(0);
        Ok(())
    }

    /// Forgets exactly the range that begins at `address`; `length` of 0 takes any length.
    pub fn unmap(&mut self, address: u64, length: u64) -> bool {
        let found = self
            .ranges
            .iter()
            .position(|range| range.address == address && (length == 0 || range.length == length));
        if let Some(at) = found {
            self.ranges.remove(at);
            self.last.set(0);
        }
        found.is_some()
    }

    /// Forgets every range.
    pub fn clear(&mut self) {
        self.ranges.clear();
        self.last.set(0);
    }

    /// Ranges registered.
    pub fn ranges(&self) -> usize {
        self.ranges.len()
    }

    /// Where `address` is, and how many bytes follow it there.
    #[inline]
    fn find(&self, address: u64) -> Option<(&MmapRegion, usize, u64)> {
        let hit = |range: &Range| address.wrapping_sub(range.address) < range.length;
        let mut at = self.last.get();
        if !self.ranges.get(at).is_some_and(hit) {
            at = self.ranges.partition_point(|range| range.address <= address).checked_sub(1)?;
            if !hit(&self.ranges[at]) {
                return None;
            }
            self.last.set(at);
        }
        let range = &self.ranges[at];
        let offset = address - range.address;
        Some((range.region.as_ref()?, offset as usize, range.length - offset))
    }

    /// Whether all of a range can be reached.
    #[must_use]
    pub fn reaches(&self, address: u64, length: u64) -> bool {
        let (mut address, mut left) = (address, length);
        while left > 0 {
            let Some((_, _, room)) = self.find(address) else { return false };
            let part = room.min(left);
            left -= part;
            address = address.wrapping_add(part);
        }
        true
    }

    /// Reads `bytes.len()` bytes at `address`.
    ///
    /// # Errors
    /// When not all of it is mapped; `bytes` may be partly filled.
    #[inline]
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), NotMapped> {
        let not = NotMapped { address, length: bytes.len() as u64 };
        let (mut address, mut rest) = (address, bytes);
        while !rest.is_empty() {
            let (region, offset, room) = self.find(address).ok_or(not)?;
            let part = rest.len().min(usize::try_from(room).unwrap_or(usize::MAX));
            let (now, later) = rest.split_at_mut(part);
            region.get_slice(offset, part).map_err(|_| not)?.copy_to(now);
            rest = later;
            address = address.wrapping_add(part as u64);
        }
        Ok(())
    }

    /// Writes `bytes` at `address`.
    ///
    /// # Errors
    /// When not all of it is mapped; a part may have been written.
    #[inline]
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), NotMapped> {
        let not = NotMapped { address, length: bytes.len() as u64 };
        let (mut address, mut rest) = (address, bytes);
        while !rest.is_empty() {
            let (region, offset, room) = self.find(address).ok_or(not)?;
            let part = rest.len().min(usize::try_from(room).unwrap_or(usize::MAX));
            let (now, later) = rest.split_at(part);
            region.get_slice(offset, part).map_err(|_| not)?.copy_from(now);
            rest = later;
            address = address.wrapping_add(part as u64);
        }
        Ok(())
    }

    /// The word at `address`, which must be aligned: an acquire.
    ///
    /// # Errors
    /// When it is not mapped or not aligned.
    pub fn load32(&self, address: u64) -> Result<u32, NotMapped> {
        let not = NotMapped { address, length: 4 };
        let (region, offset, _) = self.find(address).ok_or(not)?;
        let slice = region.get_slice(offset, 4).map_err(|_| not)?;
        slice.load::<u32>(0, Ordering::SeqCst).map(u32::from_le).map_err(|_| not)
    }

    /// Stores a word at `address`, which must be aligned.
    ///
    /// # Errors
    /// As [`Memory::load32`].
    pub fn store32(&self, address: u64, value: u32) -> Result<(), NotMapped> {
        let not = NotMapped { address, length: 4 };
        let (region, offset, _) = self.find(address).ok_or(not)?;
        let slice = region.get_slice(offset, 4).map_err(|_| not)?;
        slice.store(value.to_le(), 0, Ordering::SeqCst).map_err(|_| not)
    }

    /// Stores a completion queue entry: its first 12 bytes, then the word with the phase tag, so that whoever sees
    /// the phase sees the rest.
    ///
    /// # Errors
    /// As [`Memory::load32`].
    #[inline]
    pub fn store_entry(&self, address: u64, words: [u32; 4]) -> Result<(), NotMapped> {
        let not = NotMapped { address, length: 16 };
        let (region, offset, _) = self.find(address).ok_or(not)?;
        let slice = region.get_slice(offset, 16).map_err(|_| not)?;
        let low = u64::from(words[0]) | u64::from(words[1]) << 32;
        slice.store(low.to_le(), 0, Ordering::Relaxed).map_err(|_| not)?;
        slice.store(words[2].to_le(), 8, Ordering::Relaxed).map_err(|_| not)?;
        slice.store(words[3].to_le(), 12, Ordering::Release).map_err(|_| not)
    }
}

fn map_file(file: File, offset: u64, length: u64) -> Result<MmapRegion, String> {
    let size = file.metadata().map_err(|e| format!("the file of a DMA range: {e}"))?.len();
    if offset.checked_add(length).is_none_or(|end| end > size) {
        return Err(format!(
            "a DMA range of {length:#x} bytes at {offset:#x} of a file that has only {size:#x}"
        ));
    }
    let bytes = usize::try_from(length).map_err(|e| format!("a DMA range of {length:#x} bytes: {e}"))?;
    MmapRegion::from_file(FileOffset::new(file, offset), bytes)
        .map_err(|e| format!("a DMA range of {length:#x} bytes cannot be mapped: {e}"))
}
