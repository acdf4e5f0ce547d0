//! Which addresses a device uses for our memory.

use std::collections::BTreeMap;

/// A hugepage: ranges that begin on one need fewer entries in the IOMMU.
const HUGE_PAGE: u64 = 2 * 1024 * 1024;
const PAGE: u64 = 4096;
/// Below this nothing is given out by choice: drivers and devices take low addresses for null pointers.
const LOW: u64 = 1 << 20;

/// The addresses that an IOMMU lets a device use, and those in use.
#[derive(Debug, Default)]
pub(super) struct IovaSpace {
    /// First and last address of each range that may be used, in order.
    ranges: Vec<(u64, u64)>,
    /// First address and bytes of what is in use; nothing overlaps.
    used: BTreeMap<u64, u64>,
}

impl IovaSpace {
    /// Sets what may be used: first and last address of each range.
    pub(super) fn set_ranges(&mut self, mut ranges: Vec<(u64, u64)>) {
        ranges.retain(|(first, last)| first <= last);
        ranges.sort_unstable();
        self.ranges = ranges;
    }

    /// Takes `length` bytes (whole pages): at `wanted` where that is allowed and free, otherwise wherever there is
    /// room. `None` when there is none.
    pub(super) fn take(&mut self, wanted: u64, length: u64) -> Option<u64> {
        if length == 0 || !length.is_multiple_of(PAGE) {
            return None;
        }
        let at = if self.fits(wanted, length) && wanted.is_multiple_of(PAGE) {
            wanted
        } else {
            self.search(length)?
        };
        self.used.insert(at, length);
        Some(at)
    }

    /// Gives back what begins at `address`; its bytes. `None` when nothing does.
    pub(super) fn give_back(&mut self, address: u64) -> Option<u64> {
        self.used.remove(&address)
    }

    /// Bytes of what begins at `address`.
    pub(super) fn length_of(&self, address: u64) -> Option<u64> {
        self.used.get(&address).copied()
    }

    fn fits(&self, at: u64, length: u64) -> bool {
        let Some(last) = at.checked_add(length - 1) else { return false };
        self.ranges.iter().any(|&(first, end)| first <= at && last <= end)
            && self.conflict(at, last).is_none()
    }

    /// The end of something in use that overlaps `first..=last`.
    fn conflict(&self, first: u64, last: u64) -> Option<u64> {
        let (&at, &length) = self.used.range(..=last).next_back()?;
        let end = at + (length - 1);
        (end >= first).then_some(end)
    }

    fn search(&self, length: u64) -> Option<u64> {
        let alignment = if length >= HUGE_PAGE { HUGE_PAGE } else { PAGE };
        for &(first, end) in &self.ranges {
            let mut at = first.max(LOW).checked_next_multiple_of(alignment)?;
            while let Some(last) = at.checked_add(length - 1).filter(|&last| last <= end) {
                match self.conflict(at, last) {
                    None => return Some(at),
                    // Whatever is in the way has an end, so this ends.
                    Some(busy) => {
                        match busy.checked_add(1).and_then(|next| next.checked_next_multiple_of(alignment)) {
                            Some(next) => at = next,
                            None => break,
                        }
                    }
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::Prng;

    /// What a VT-d with 39 bits reports, with the hole of the interrupt range.
    fn narrow() -> IovaSpace {
        let mut space = IovaSpace::default();
        space.set_ranges(vec![(0xFEF0_0000, (1 << 39) - 1), (0, 0xFEDF_FFFF)]);
        space
    }

    #[test]
    fn an_address_that_is_allowed_stays_what_it_is() {
        let mut space = IovaSpace::default();
        space.set_ranges(vec![(0, (1 << 48) - 1)]);
        assert_eq!(space.take(0x7F12_3450_0000, 8 << 20), Some(0x7F12_3450_0000));
        // Taken already: another place.
        let other = space.take(0x7F12_3450_0000, 4096).unwrap();
        assert_ne!(other, 0x7F12_3450_0000);
        assert_eq!(space.give_back(0x7F12_3450_0000), Some(8 << 20));
        assert_eq!(space.give_back(0x7F12_3450_0000), None);
        assert_eq!(space.take(0x7F12_3450_0000, 4096), Some(0x7F12_3450_0000));
    }

    #[test]
    fn an_iommu_with_39_bits_gets_addresses_it_can_use() {
        let mut space = narrow();
        let first = space.take(0x7F12_3450_0000, 8 << 20).unwrap();
        assert!(first >= LOW && first + (8 << 20) <= 1 << 39 && first.is_multiple_of(HUGE_PAGE));
        let second = space.take(0x7F12_3460_0000, 8 << 20).unwrap();
        assert!(second >= first + (8 << 20) || second + (8 << 20) <= first);
    }

    #[test]
    fn nothing_lies_in_the_hole_or_beyond_the_end() {
        let mut space = narrow();
        assert_eq!(space.take(0xFEE0_0000, 4096), Some(LOW));
        // Across the hole: the part below is too short.
        let across = space.take(0, 4 << 30).unwrap();
        assert!(across >= 0xFEF0_0000);
        assert_eq!(space.take(u64::MAX - 4095, 4096).map(|at| at < 1 << 39), Some(true));
        assert_eq!(space.take(0, 1 << 39), None);
        assert_eq!(space.take(4096, 0), None);
        assert_eq!(space.take(4096, 100), None);
        assert_eq!(IovaSpace::default().take(4096, 4096), None);
    }

    #[test]
    fn nothing_ever_overlaps() {
        let mut prng = Prng::new(7);
        let mut space = IovaSpace::default();
        space.set_ranges(vec![(0x1000, 0x3F_FFFF), (0x80_0000, 0xFF_FFFF)]);
        let mut held: Vec<(u64, u64)> = Vec::new();
        for _ in 0..20_000 {
            if prng.below(3) == 0 && !held.is_empty() {
                let (at, length) = held.swap_remove(prng.below(held.len() as u64) as usize);
                assert_eq!(space.length_of(at), Some(length));
                assert_eq!(space.give_back(at), Some(length));
                continue;
            }
            let length = 4096 * (1 + prng.below(700));
            if let Some(at) = space.take(4096 * prng.below(5000), length) {
                let last = at + length - 1;
                assert!((0x1000 <= at && last <= 0x3F_FFFF) || (0x80_0000 <= at && last <= 0xFF_FFFF));
                assert!(held.iter().all(|&(other, size)| last < other || other + size <= at));
                held.push((at, length));
            }
        }
        assert!(!held.is_empty());
    }
}
