//! The structures by which VFIO and vfio-user describe a device: `struct vfio_region_info` and its chain of
//! capabilities (`linux/vfio.h`). What is read here comes from another process as well as from the kernel.

use super::bar::WINDOWS_MAX;

/// The region of the configuration space.
pub(super) const CONFIG_REGION: u32 = 7;
/// The interrupts of MSI-X.
pub(super) const MSIX_INDEX: u32 = 2;
/// Bytes of `struct vfio_region_info` without capabilities.
pub(super) const REGION_INFO_LENGTH: usize = 32;
/// The longest answer about one region that is read.
pub(super) const REGION_INFO_MAX: usize = 4096;
/// The device can be reset by itself (`VFIO_DEVICE_FLAGS_RESET`).
pub(super) const DEVICE_RESET: u32 = 1;
/// It is a PCI device (`VFIO_DEVICE_FLAGS_PCI`).
pub(super) const DEVICE_PCI: u32 = 2;
/// `VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER`: with no interrupts named, all go off.
pub(super) const IRQS_OFF: u32 = 1 | 1 << 5;
/// `VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER`.
pub(super) const IRQS_EVENTS: u32 = 1 << 2 | 1 << 5;

const REGION_MMAP: u32 = 1 << 2;
const REGION_CAPABILITIES: u32 = 1 << 3;
const CAPABILITY_SPARSE_MMAP: u16 = 1;

/// The word at `at`, when it is inside.
pub(super) fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The double word at `at`, when it is inside.
pub(super) fn double_word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The capabilities of a message that are in order: each one's identifier and what follows its header. A chain that
/// leaves the message or turns back ends there.
pub(super) fn capabilities(bytes: &[u8], first: usize) -> impl Iterator<Item = (u16, &[u8])> {
    let mut at = first;
    std::iter::from_fn(move || {
        if at == 0 {
            return None;
        }
        let header = bytes.get(at..)?;
        let id = u16::from_ne_bytes(*header.first_chunk()?);
        let next = word(header, 4)? as usize;
        let body = header.get(8..)?;
        at = if next > at { next } else { 0 };
        Some((id, body))
    })
}

/// What is known of a region.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct RegionInfo {
    /// Bytes of the region; none: it is not there.
    pub(super) length: u64,
    /// Where it begins in the file that it is read and mapped by.
    pub(super) offset: u64,
    /// Offset in the region and length of each area that may be mapped, as they were given.
    pub(super) areas: Vec<(u64, u64)>,
}

impl RegionInfo {
    /// Reads `struct vfio_region_info` with what follows. `None` when it is too short.
    pub(super) fn parse(bytes: &[u8]) -> Option<RegionInfo> {
        let flags = word(bytes, 4)?;
        let mut info = RegionInfo {
            length: double_word(bytes, 16)?,
            offset: double_word(bytes, 24)?,
            areas: Vec::new(),
        };
        // An answer that needs more room than it was given leaves out which areas may be mapped: then none is.
        let cut = flags & REGION_CAPABILITIES != 0 && word(bytes, 0)? as usize > bytes.len();
        if flags & REGION_MMAP == 0 || cut {
            return Some(info);
        }
        let chain = if flags & REGION_CAPABILITIES == 0 { 0 } else { word(bytes, 12)? as usize };
        let mut sparse = capabilities(bytes, chain).filter(|(id, _)| *id == CAPABILITY_SPARSE_MMAP);
        match sparse.next() {
            // Without the list all of it may be mapped, also the MSI-X table: the kernel checks what matters there.
            None => info.areas.push((0, info.length)),
            Some((_, list)) => {
                let count = (word(list, 0)? as usize).min(WINDOWS_MAX);
                for area in 0..count {
                    let at = 8 + 16 * area;
                    info.areas.push((double_word(list, at)?, double_word(list, at + 8)?));
                }
            }
        }
        Some(info)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::Prng;

    fn region(flags: u32, chain: u32, length: u64, rest: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [32 + rest.len() as u32, flags, 0, chain] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(length.to_ne_bytes());
        bytes.extend(0x1000u64.to_ne_bytes());
        bytes.extend(rest);
        bytes
    }

    fn sparse(count: u32, areas: &[(u64, u64)], next: u32) -> Vec<u8> {
        let mut bytes = vec![1, 0, 1, 0];
        bytes.extend(next.to_ne_bytes());
        bytes.extend(count.to_ne_bytes());
        bytes.extend([0; 4]);
        for (offset, length) in areas {
            bytes.extend(offset.to_ne_bytes());
            bytes.extend(length.to_ne_bytes());
        }
        bytes
    }

    #[test]
    fn regions_may_be_mapped_whole_in_part_or_not() {
        let none = RegionInfo::parse(&region(3, 0, 16384, &[])).unwrap();
        assert_eq!((none.length, none.offset, none.areas.len()), (16384, 4096, 0));
        let whole = RegionInfo::parse(&region(7, 0, 16384, &[])).unwrap();
        assert_eq!(whole.areas, [(0, 16384)]);
        let areas = [(0, 4096), (8192, 8192)];
        let part = RegionInfo::parse(&region(15, 32, 16384, &sparse(2, &areas, 0))).unwrap();
        assert_eq!(part.areas, areas);
        // Another capability first: the chain is followed.
        let mut chain = vec![3, 0, 1, 0, 48, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        chain.extend(sparse(2, &areas, 0));
        assert_eq!(RegionInfo::parse(&region(15, 32, 16384, &chain)).unwrap().areas, areas);
    }

    #[test]
    fn lists_that_lie_are_refused_or_end() {
        assert_eq!(RegionInfo::parse(&[0; 31]), None);
        assert_eq!(RegionInfo::parse(&region(15, 32, 16384, &sparse(9, &[(0, 4096)], 0))), None);
        assert_eq!(
            RegionInfo::parse(&region(15, 32, 1, &sparse(u32::MAX, &[(0, 1); 20], 0))).unwrap().areas.len(),
            16
        );
        // A chain that leaves the message, and one that turns on itself.
        assert_eq!(RegionInfo::parse(&region(15, 4000, 8192, &[])).unwrap().areas, [(0, 8192)]);
        let turning = region(15, 32, 8192, &[3, 0, 1, 0, 32, 0, 0, 0]);
        assert_eq!(RegionInfo::parse(&turning).unwrap().areas, [(0, 8192)]);
    }

    #[test]
    fn an_answer_that_was_cut_maps_nothing() {
        let mut cut = region(15, 32, 16384, &sparse(2, &[(0, 4096), (8192, 8192)], 0));
        cut.truncate(32);
        assert_eq!(RegionInfo::parse(&cut).unwrap().areas, []);
    }

    #[test]
    fn no_bytes_make_it_fail() {
        let mut prng = Prng::new(3);
        for _ in 0..50_000 {
            let mut bytes = region(15, 32, 16384, &sparse(2, &[(0, 4096), (8192, 8192)], 0));
            for _ in 0..prng.between(1, 5) {
                let at = prng.below(bytes.len() as u64) as usize;
                bytes[at] = prng.next_u64() as u8;
            }
            bytes.truncate(prng.below(bytes.len() as u64 + 1) as usize);
            if let Some(info) = RegionInfo::parse(&bytes) {
                assert!(info.areas.len() <= WINDOWS_MAX);
            }
        }
    }
}
