use wire::scsi::parameter_data::{self, ReadCapacity16};

use crate::UnitView;

/// The last LBA; 0 for a device without blocks, which has no way to say so.
fn last(unit: &UnitView) -> u64 {
    unit.geometry.blocks.saturating_sub(1)
}

pub(crate) fn read_capacity_10_data(unit: &UnitView, out: &mut [u8]) -> usize {
    parameter_data::emit_read_capacity_10(last(unit), unit.geometry.block_size, out)
}

pub(crate) fn read_capacity_16_data(unit: &UnitView, out: &mut [u8]) -> usize {
    let geometry = &unit.geometry;
    ReadCapacity16 {
        last: last(unit),
        block_size: geometry.block_size,
        physical_block_exponent: geometry.physical_block_exponent.min(15),
        lowest_aligned_block: geometry.lowest_aligned_block,
        provisioning: geometry.provisioning.discard,
        reads_zeros: geometry.provisioning.reads_zeros,
    }
    .emit(out)
}

/// A device in this house hides its defects: both lists are valid and empty.
pub(crate) fn read_defect_data(long: bool, request: u8, out: &mut [u8]) -> usize {
    parameter_data::emit_no_defects(long, request, out)
}
