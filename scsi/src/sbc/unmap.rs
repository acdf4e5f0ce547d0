//! UNMAP parameter lists and GET LBA STATUS parameter data.

use bdev::{Extent, ExtentState};
use wire::scsi::parameter_data::{self, LBA_STATUS_DESCRIPTOR_LENGTH};
use wire::scsi::{Sense, SenseKey};

use super::check_range;
use crate::{Environment, UnitView};

/// MAXIMUM UNMAP BLOCK DESCRIPTOR COUNT of the Block Limits page.
pub const UNMAP_DESCRIPTORS_MAX: u32 = 256;

/// The most descriptors GET LBA STATUS returns; the initiator asks again from where they end.
pub const LBA_STATUS_DESCRIPTORS_MAX: u32 = 64;

const HEADER: usize = 8;
const DESCRIPTOR: usize = 16;

/// MAXIMUM UNMAP LBA COUNT of the Block Limits page: FFFFFFFFh is no limit.
pub(crate) fn unmap_blocks_max(unit: &UnitView) -> u32 {
    match unit.geometry.provisioning.discard_blocks_max {
        0 => u32::MAX,
        blocks => u32::try_from(blocks).unwrap_or(u32::MAX),
    }
}

/// PARAMETER LIST LENGTH ERROR.
const LENGTH_ERROR: Sense = Sense::new(SenseKey::IllegalRequest, 0x1A, 0x00);

/// How many whole descriptors an UNMAP parameter list says it has; an incomplete last one is ignored
/// (SBC-4 §5.35.2). 0 for a list without a header.
#[must_use]
pub fn unmap_count(list: &[u8]) -> u32 {
    match list {
        &[_, _, high, low, ..] if list.len() >= HEADER => {
            u32::from(u16::from_be_bytes([high, low])) / DESCRIPTOR as u32
        }
        _ => 0,
    }
}

/// Descriptor `index` as (LBA, blocks), its range checked; `None` past the last one.
#[must_use]
pub fn unmap_descriptor(
    list: &[u8],
    index: u32,
    environment: &Environment<'_>,
) -> Option<Result<(u64, u32), Sense>> {
    if index >= unmap_count(list) {
        return None;
    }
    let start = HEADER + DESCRIPTOR * index as usize;
    let Some(&[a, b, c, d, e, f, g, h, i, j, k, l, ..]) = list.get(start..start + DESCRIPTOR) else {
        return Some(Err(LENGTH_ERROR));
    };
    let (lba, blocks) = (u64::from_be_bytes([a, b, c, d, e, f, g, h]), u32::from_be_bytes([i, j, k, l]));
    let checked = environment.unit.ok_or(LENGTH_ERROR);
    Some(checked.and_then(|unit| check_range(unit, lba, u64::from(blocks))).map(|()| (lba, blocks)))
}

/// Checks a whole UNMAP parameter list before anything is deallocated. An empty list is no error.
///
/// # Errors
/// PARAMETER LIST LENGTH ERROR for a truncated list; INVALID FIELD IN PARAMETER LIST for more descriptors or
/// blocks than the Block Limits page allows; LOGICAL BLOCK ADDRESS OUT OF RANGE.
pub fn unmap_check(list: &[u8], environment: &Environment<'_>) -> Result<(), Sense> {
    if list.is_empty() {
        return Ok(());
    }
    if list.len() < HEADER {
        return Err(LENGTH_ERROR);
    }
    let count = unmap_count(list);
    if count > UNMAP_DESCRIPTORS_MAX {
        return Err(Sense::invalid_field_in_parameter_list(2, None));
    }
    let limit = environment.unit.map_or(0, unmap_blocks_max);
    let mut total = 0_u64;
    for index in 0..count {
        let Some(descriptor) = unmap_descriptor(list, index, environment) else { break };
        total += u64::from(descriptor?.1);
        if limit != u32::MAX && total > u64::from(limit) {
            let at = HEADER + DESCRIPTOR * index as usize + 8;
            return Err(Sense::invalid_field_in_parameter_list(at as u16, None));
        }
    }
    Ok(())
}

/// Bytes of GET LBA STATUS parameter data with `descriptors` descriptors.
#[must_use]
pub fn lba_status_length(descriptors: u32) -> usize {
    8 + LBA_STATUS_DESCRIPTOR_LENGTH * descriptors as usize
}

/// Writes the header for `descriptors` descriptors to the beginning of `out`.
pub fn lba_status_header(descriptors: u32, out: &mut [u8]) {
    parameter_data::emit_lba_status_header(descriptors, out);
}

/// Writes descriptor `index` to its place in `out`, as far as it fits: the extent beginning at `lba`. Returns the
/// blocks it tells of, which are fewer than the extent's when they do not fit 32 bits.
pub fn lba_status_descriptor(index: u32, lba: u64, extent: Extent, out: &mut [u8]) -> u32 {
    let blocks = u32::try_from(extent.blocks).unwrap_or(u32::MAX);
    let status = match extent.state {
        ExtentState::Mapped => 0,
        ExtentState::Deallocated => 1,
        ExtentState::Anchored => 2,
    };
    if let Some(out) = out.get_mut(lba_status_length(index)..) {
        parameter_data::emit_lba_status(lba, blocks, status, out);
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::World;

    fn list(descriptors: &[(u64, u32)]) -> Vec<u8> {
        let length = (descriptors.len() * DESCRIPTOR) as u16;
        let mut list = vec![0; HEADER];
        list[..2].copy_from_slice(&(length + 6).to_be_bytes());
        list[2..4].copy_from_slice(&length.to_be_bytes());
        for (lba, blocks) in descriptors {
            list.extend(lba.to_be_bytes());
            list.extend(blocks.to_be_bytes());
            list.extend([0; 4]);
        }
        list
    }

    #[test]
    fn descriptors_are_read_and_checked() {
        let mut world = World::new();
        let good = list(&[(0, 1), (2047, 1), (2048, 0)]);
        assert_eq!(unmap_check(&good, &world.environment()), Ok(()));
        assert_eq!(unmap_descriptor(&good, 1, &world.environment()), Some(Ok((2047, 1))));
        assert_eq!(unmap_descriptor(&good, 3, &world.environment()), None);
        let beyond = unmap_check(&list(&[(0, 1), (2047, 2)]), &world.environment());
        assert_eq!(beyond.map_err(|sense| sense.asc), Err(0x21));
        let many = unmap_check(&list(&[(0, 0); 257]), &world.environment());
        assert_eq!(many, Err(Sense::invalid_field_in_parameter_list(2, None)));
        assert_eq!(unmap_check(&list(&[(0, 0); 256]), &world.environment()), Ok(()));
        if let Some(unit) = world.unit.as_mut() {
            unit.geometry.provisioning.discard_blocks_max = 10;
        }
        let total = unmap_check(&list(&[(0, 6), (100, 5)]), &world.environment());
        assert_eq!(total, Err(Sense::invalid_field_in_parameter_list(32, None)));
    }

    #[test]
    fn truncated_lists() {
        let world = World::new();
        let whole = list(&[(0, 1), (8, 1)]);
        for length in 0..whole.len() {
            let expected = if length == 0 { Ok(()) } else { Err(LENGTH_ERROR) };
            assert_eq!(unmap_check(&whole[..length], &world.environment()), expected);
        }
        // An incomplete last descriptor is ignored.
        let mut odd = list(&[(0, 1)]);
        odd[3] += 8;
        odd.extend([0xFF; 8]);
        assert_eq!(unmap_count(&odd), 1);
        assert_eq!(unmap_check(&odd, &world.environment()), Ok(()));
    }

    #[test]
    fn lba_status_layout() {
        let mut out = vec![0xEE; lba_status_length(2)];
        lba_status_header(2, &mut out);
        let extent = Extent { state: ExtentState::Deallocated, blocks: u64::MAX };
        assert_eq!(lba_status_descriptor(1, 7, extent, &mut out), u32::MAX);
        assert_eq!(&out[..8], &[0, 0, 0, 36, 0, 0, 0, 0]);
        assert_eq!(&out[24..], &[0, 0, 0, 0, 0, 0, 0, 7, 0xFF, 0xFF, 0xFF, 0xFF, 1, 0, 0, 0]);
        lba_status_descriptor(1, 7, extent, &mut out[..26]);
    }
}
