//! Block commands (SBC-4): from CDB to [`Plan`].

mod capacity;
mod unmap;

use wire::scsi::{Cdb, Sense, SenseKey};

pub(crate) use capacity::{read_capacity_10_data, read_capacity_16_data, read_defect_data};
pub(crate) use unmap::unmap_blocks_max;
pub use unmap::{
    LBA_STATUS_DESCRIPTORS_MAX, UNMAP_DESCRIPTORS_MAX, lba_status_descriptor, lba_status_header,
    lba_status_length, unmap_check, unmap_count, unmap_descriptor,
};

use crate::{Environment, ParameterIn, Plan, UnitChange, UnitView};

/// The most bytes one command moves. It keeps every offset of a transfer far inside 32 bits and bounds how long
/// one command can keep others waiting; 65,535 blocks of 512 bytes (READ(10)) fit.
pub const TRANSFER_BYTES_MAX: u32 = 64 * 1024 * 1024;

/// MAXIMUM TRANSFER LENGTH of the Block Limits page, in blocks.
#[must_use]
pub fn transfer_blocks_max(unit: &UnitView) -> u32 {
    (TRANSFER_BYTES_MAX / unit.geometry.block_size.max(1)).max(1)
}

/// MAXIMUM COMPARE AND WRITE LENGTH of the Block Limits page, in blocks: both halves of the data fit in one burst.
#[must_use]
pub fn compare_and_write_blocks_max(unit: &UnitView, burst_length_bytes: u32) -> u8 {
    let pair = u64::from(unit.geometry.block_size.max(1)) * 2;
    u8::try_from(u64::from(burst_length_bytes) / pair).unwrap_or(u8::MAX)
}

/// What WRITE ATOMIC (16) takes of a unit: the ATOMIC fields of the Block Limits page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AtomicLimits {
    /// MAXIMUM ATOMIC TRANSFER LENGTH.
    pub(crate) blocks_max: u32,
    /// ATOMIC ALIGNMENT; 0: any.
    pub(crate) alignment_blocks: u32,
    /// ATOMIC TRANSFER LENGTH GRANULARITY; 0: any.
    pub(crate) granularity_blocks: u32,
}

/// The atomic writes that the device promises and that fit in one burst; `None` when that is no block at all. A device
/// with boundaries gets an alignment that keeps every write inside them: SCSI knows no boundary on the medium.
pub(crate) fn atomic_limits(unit: &UnitView, burst_length_bytes: u32) -> Option<AtomicLimits> {
    let atomic = unit.geometry.atomic;
    let granularity = atomic.granularity_blocks.max(1);
    let in_burst = burst_length_bytes / unit.geometry.block_size.max(1);
    // TRANSFER LENGTH has 16 bits.
    let most = atomic.blocks_max.min(in_burst).min(transfer_blocks_max(unit)).min(u32::from(u16::MAX));
    let (most, alignment_blocks) = match atomic.boundary_blocks {
        0 => (most, 0),
        boundary => {
            // The greatest power of two that divides the boundary, and any smaller one, never leads across it.
            let fitting = 1 << most.checked_ilog2()?.min(boundary.trailing_zeros());
            (fitting, if fitting > 1 { fitting } else { 0 })
        }
    };
    let blocks_max = most - most % granularity;
    let granularity_blocks = if granularity > 1 { granularity } else { 0 };
    (blocks_max > 0).then_some(AtomicLimits { blocks_max, alignment_blocks, granularity_blocks })
}

/// LOGICAL BLOCK ADDRESS OUT OF RANGE.
const LBA_OUT_OF_RANGE: Sense = Sense::new(SenseKey::IllegalRequest, 0x21, 0x00);

/// MEDIUM REMOVAL PREVENTED.
const REMOVAL_PREVENTED: Sense = Sense::new(SenseKey::IllegalRequest, 0x53, 0x02);

/// The unit addressed. Commands of this module are only planned for LUNs that have one.
fn unit<'a>(environment: &Environment<'a>) -> Result<&'a UnitView, Sense> {
    environment.unit.ok_or(Sense::new(SenseKey::IllegalRequest, 0x25, 0x00))
}

/// The three shapes of block CDBs: where LBA and length stand.
#[derive(Clone, Copy)]
enum Shape {
    Ten,
    Twelve,
    Sixteen,
}

impl Shape {
    fn lba(self, cdb: &Cdb) -> u64 {
        match self {
            Shape::Ten | Shape::Twelve => u64::from(cdb.u32_at(2)),
            Shape::Sixteen => cdb.u64_at(2),
        }
    }

    fn length(self, cdb: &Cdb) -> u32 {
        match self {
            Shape::Ten => u32::from(cdb.u16_at(7)),
            Shape::Twelve => cdb.u32_at(6),
            Shape::Sixteen => cdb.u32_at(10),
        }
    }

    /// Byte offset of the length, for field pointers.
    fn length_at(self) -> u16 {
        match self {
            Shape::Ten => 7,
            Shape::Twelve => 6,
            Shape::Sixteen => 10,
        }
    }
}

/// Checks a range against the capacity. No blocks at the very end of the medium are no error, beyond it they are.
fn check_range(unit: &UnitView, lba: u64, blocks: u64) -> Result<(), Sense> {
    match lba.checked_add(blocks) {
        Some(end) if end <= unit.geometry.blocks => Ok(()),
        _ => Err(LBA_OUT_OF_RANGE),
    }
}

/// LBA and blocks of a command that moves data: inside the capacity, and not longer than the Block Limits page says.
fn transfer(cdb: &Cdb, environment: &Environment<'_>, shape: Shape) -> Result<(u64, u32), Sense> {
    let unit = unit(environment)?;
    let (lba, blocks) = (shape.lba(cdb), shape.length(cdb));
    check_range(unit, lba, u64::from(blocks))?;
    if blocks > transfer_blocks_max(unit) {
        return Err(Sense::invalid_field_in_cdb(shape.length_at(), None));
    }
    Ok((lba, blocks))
}

/// READ(6) and WRITE(6): 21 bits of LBA; a TRANSFER LENGTH of 0 means 256 blocks.
fn transfer_6(cdb: &Cdb, environment: &Environment<'_>) -> Result<(u64, u32), Sense> {
    let unit = unit(environment)?;
    let lba = u64::from(cdb.u32_at(0) & 0x001F_FFFF);
    let blocks = match cdb.u8_at(4) {
        0 => 256,
        blocks => u32::from(blocks),
    };
    check_range(unit, lba, u64::from(blocks))?;
    if blocks > transfer_blocks_max(unit) {
        return Err(Sense::invalid_field_in_cdb(4, None));
    }
    Ok((lba, blocks))
}

const FUA: u8 = 0x08;

pub(crate) fn read_6(cdb: &Cdb, environment: &Environment<'_>) -> Result<Plan, Sense> {
    let (lba, blocks) = transfer_6(cdb, environment)?;
    Ok(Plan::Read { lba, blocks, fua: false })
}

pub(crate) fn write_6(cdb: &Cdb, environment: &Environment<'_>) -> Result<Plan, Sense> {
    let (lba, blocks) = transfer_6(cdb, environment)?;
    Ok(Plan::Write { lba, blocks, fua: false })
}

fn read(cdb: &Cdb, environment: &Environment<'_>, shape: Shape) -> Result<Plan, Sense> {
    let (lba, blocks) = transfer(cdb, environment, shape)?;
    Ok(Plan::Read { lba, blocks, fua: cdb.u8_at(1) & FUA != 0 })
}

fn write(cdb: &Cdb, environment: &Environment<'_>, shape: Shape) -> Result<Plan, Sense> {
    let (lba, blocks) = transfer(cdb, environment, shape)?;
    Ok(Plan::Write { lba, blocks, fua: cdb.u8_at(1) & FUA != 0 })
}

fn write_and_verify(cdb: &Cdb, environment: &Environment<'_>, shape: Shape) -> Result<Plan, Sense> {
    let (lba, blocks) = transfer(cdb, environment, shape)?;
    Ok(Plan::WriteAndVerify { lba, blocks, compare: cdb.u8_at(1) & 0x02 != 0 })
}

fn verify(cdb: &Cdb, environment: &Environment<'_>, shape: Shape) -> Result<Plan, Sense> {
    match (cdb.u8_at(1) >> 1) & 0x03 {
        // Nothing is transferred, so MAXIMUM TRANSFER LENGTH does not apply.
        0b00 => {
            let (lba, blocks) = (shape.lba(cdb), shape.length(cdb));
            check_range(unit(environment)?, lba, u64::from(blocks))?;
            Ok(Plan::VerifyMedium { lba, blocks })
        }
        0b10 => Err(Sense::invalid_field_in_cdb(1, Some(2))),
        check => {
            let (lba, blocks) = transfer(cdb, environment, shape)?;
            Ok(Plan::VerifyCompare { lba, blocks, one_block: check == 0b11 })
        }
    }
}

fn pre_fetch(cdb: &Cdb, environment: &Environment<'_>, shape: Shape) -> Result<Plan, Sense> {
    let unit = unit(environment)?;
    let (lba, blocks) = (shape.lba(cdb), u64::from(shape.length(cdb)));
    check_range(unit, lba, blocks)?;
    // PREFETCH LENGTH 0: all blocks to the end of the medium (SBC-4 §5.12).
    let blocks = if blocks == 0 { unit.geometry.blocks.saturating_sub(lba) } else { blocks };
    Ok(Plan::PreFetch { lba, blocks, immediate: cdb.u8_at(1) & 0x02 != 0 })
}

fn synchronize_cache(cdb: &Cdb, environment: &Environment<'_>, shape: Shape) -> Result<Plan, Sense> {
    let (lba, blocks) = (shape.lba(cdb), u64::from(shape.length(cdb)));
    check_range(unit(environment)?, lba, blocks)?;
    Ok(Plan::Synchronize { lba, blocks, immediate: cdb.u8_at(1) & 0x02 != 0 })
}

fn write_same(cdb: &Cdb, environment: &Environment<'_>, shape: Shape) -> Result<Plan, Sense> {
    let unit = unit(environment)?;
    let (lba, blocks) = (shape.lba(cdb), u64::from(shape.length(cdb)));
    check_range(unit, lba, blocks)?;
    if blocks == 0 {
        // WSNZ is one: "to the end of the medium" is not offered (SBC-4 §5.50, §6.6.4).
        return Err(Sense::invalid_field_in_cdb(shape.length_at(), None));
    }
    let flags = cdb.u8_at(1);
    Ok(Plan::WriteSame { lba, blocks, unmap: flags & 0x08 != 0, no_data_out: flags & 0x01 != 0 })
}

macro_rules! shapes {
    ($($name:ident: $plan:ident, $shape:ident;)*) => {
        $(pub(crate) fn $name(cdb: &Cdb, environment: &Environment<'_>) -> Result<Plan, Sense> {
            $plan(cdb, environment, Shape::$shape)
        })*
    };
}

shapes! {
    read_10: read, Ten;
    read_12: read, Twelve;
    read_16: read, Sixteen;
    write_10: write, Ten;
    write_12: write, Twelve;
    write_16: write, Sixteen;
    write_and_verify_10: write_and_verify, Ten;
    write_and_verify_12: write_and_verify, Twelve;
    write_and_verify_16: write_and_verify, Sixteen;
    verify_10: verify, Ten;
    verify_12: verify, Twelve;
    verify_16: verify, Sixteen;
    pre_fetch_10: pre_fetch, Ten;
    pre_fetch_16: pre_fetch, Sixteen;
    synchronize_cache_10: synchronize_cache, Ten;
    synchronize_cache_16: synchronize_cache, Sixteen;
    write_same_10: write_same, Ten;
    write_same_16: write_same, Sixteen;
}

pub(crate) fn compare_and_write(cdb: &Cdb, environment: &Environment<'_>) -> Result<Plan, Sense> {
    let unit = unit(environment)?;
    let (lba, blocks) = (cdb.u64_at(2), cdb.u8_at(13));
    check_range(unit, lba, u64::from(blocks))?;
    if blocks > compare_and_write_blocks_max(unit, environment.limits.burst_length_bytes) {
        return Err(Sense::invalid_field_in_cdb(13, None));
    }
    Ok(Plan::CompareAndWrite { lba, blocks: u32::from(blocks), fua: cdb.u8_at(1) & FUA != 0 })
}

pub(crate) fn write_atomic_16(cdb: &Cdb, environment: &Environment<'_>) -> Result<Plan, Sense> {
    let unit = unit(environment)?;
    let (lba, boundary, blocks) = (cdb.u64_at(2), cdb.u16_at(10), u32::from(cdb.u16_at(12)));
    check_range(unit, lba, u64::from(blocks))?;
    if boundary != 0 {
        // MAXIMUM ATOMIC BOUNDARY SIZE is zero: not more than one atomic write operation.
        return Err(Sense::invalid_field_in_cdb(10, None));
    }
    let limits = atomic_limits(unit, environment.limits.burst_length_bytes);
    let limits = limits.ok_or(Sense::new(SenseKey::IllegalRequest, 0x20, 0x00))?;
    if blocks > limits.blocks_max || !blocks.is_multiple_of(limits.granularity_blocks.max(1)) {
        return Err(Sense::invalid_field_in_cdb(12, None));
    }
    if !lba.is_multiple_of(u64::from(limits.alignment_blocks.max(1))) {
        return Err(Sense::invalid_field_in_cdb(2, None));
    }
    Ok(Plan::WriteAtomic { lba, blocks, fua: cdb.u8_at(1) & FUA != 0 })
}

pub(crate) fn orwrite_16(cdb: &Cdb, environment: &Environment<'_>) -> Result<Plan, Sense> {
    let (lba, blocks) = transfer(cdb, environment, Shape::Sixteen)?;
    Ok(Plan::OrWrite { lba, blocks, fua: cdb.u8_at(1) & FUA != 0 })
}

pub(crate) fn unmap(cdb: &Cdb, _: &Environment<'_>) -> Result<Plan, Sense> {
    let length = u32::from(cdb.u16_at(7));
    if length > 8 + 16 * UNMAP_DESCRIPTORS_MAX {
        // More descriptors than the Block Limits page allows. The list is not fetched to find that out.
        return Err(Sense::invalid_field_in_cdb(7, None));
    }
    Ok(Plan::Unmap { length })
}

pub(crate) fn get_lba_status_16(cdb: &Cdb, environment: &Environment<'_>) -> Result<Plan, Sense> {
    let lba = cdb.u64_at(2);
    check_range(unit(environment)?, lba, 1)?;
    Ok(Plan::LbaStatus { lba, allocation_length: cdb.u32_at(10) })
}

pub(crate) fn start_stop_unit(cdb: &Cdb, environment: &Environment<'_>) -> Result<Plan, Sense> {
    let unit = unit(environment)?;
    let (start, load_eject) = (cdb.u8_at(4) & 0x01 != 0, cdb.u8_at(4) & 0x02 != 0);
    if load_eject {
        if !start && unit.removal_prevented {
            return Err(REMOVAL_PREVENTED);
        }
        // The medium is not removable (RMB is zero): there is nothing to load or eject.
        return Err(Sense::invalid_field_in_cdb(4, Some(1)));
    }
    if start && unit.state == crate::UnitState::MediumNotPresent {
        return Err(Sense::new(SenseKey::NotReady, 0x3A, 0x00));
    }
    let flush = !start && cdb.u8_at(4) & 0x04 == 0;
    Ok(Plan::Change(UnitChange::StartStop { start, load_eject: false, flush }))
}

pub(crate) fn prevent_allow(cdb: &Cdb, _: &Environment<'_>) -> Result<Plan, Sense> {
    Ok(Plan::Change(UnitChange::PreventRemoval(cdb.u8_at(4) & 0x01 != 0)))
}

pub(crate) fn read_capacity_10(_: &Cdb, _: &Environment<'_>) -> Result<Plan, Sense> {
    Ok(Plan::ParameterIn { kind: ParameterIn::ReadCapacity10, allocation_length: 8 })
}

pub(crate) fn read_capacity_16(cdb: &Cdb, _: &Environment<'_>) -> Result<Plan, Sense> {
    Ok(Plan::ParameterIn { kind: ParameterIn::ReadCapacity16, allocation_length: cdb.u32_at(10) })
}

/// REQ_PLIST, REQ_GLIST and DEFECT LIST FORMAT: 110b is vendor specific and 111b reserved.
fn defect_list_request(flags: u8, byte: u16) -> Result<u8, Sense> {
    if flags & 0x07 > 0x05 { Err(Sense::invalid_field_in_cdb(byte, Some(2))) } else { Ok(flags & 0x1F) }
}

pub(crate) fn read_defect_data_10(cdb: &Cdb, _: &Environment<'_>) -> Result<Plan, Sense> {
    let request = defect_list_request(cdb.u8_at(2), 2)?;
    let kind = ParameterIn::DefectData { long: false, request };
    Ok(Plan::ParameterIn { kind, allocation_length: u32::from(cdb.u16_at(7)) })
}

pub(crate) fn read_defect_data_12(cdb: &Cdb, _: &Environment<'_>) -> Result<Plan, Sense> {
    let request = defect_list_request(cdb.u8_at(1), 1)?;
    if cdb.u32_at(2) != 0 {
        // ADDRESS DESCRIPTOR INDEX into a list that is empty (SBC-4 §5.24).
        return Err(Sense::invalid_field_in_cdb(2, None));
    }
    let kind = ParameterIn::DefectData { long: true, request };
    Ok(Plan::ParameterIn { kind, allocation_length: cdb.u32_at(6) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fuzz::World, lookup};

    fn plan(cdb: &[u8], world: &World) -> Result<Plan, Sense> {
        let (cdb, environment) = (Cdb::new(cdb), world.environment());
        lookup(&cdb, &environment).and_then(|entry| entry.plan(&cdb, &environment))
    }

    fn sixteen(code: u8, flags: u8, lba: u64, blocks: u32) -> [u8; 16] {
        let mut cdb = [0; 16];
        cdb[..2].copy_from_slice(&[code, flags]);
        cdb[2..10].copy_from_slice(&lba.to_be_bytes());
        cdb[10..14].copy_from_slice(&blocks.to_be_bytes());
        cdb
    }

    /// Operation codes of the 16-byte commands with an LBA in byte 2 and a length in byte 10.
    const RANGES: [u8; 9] = [0x88, 0x8A, 0x8B, 0x8E, 0x8F, 0x90, 0x91, 0x93, 0x88];

    #[test]
    fn nothing_beyond_the_last_block() {
        let world = World::new();
        for code in RANGES {
            for (lba, blocks) in
                [(2049, 0), (2048, 1), (2047, 2), (0, 2049), (1 << 63, 1), (u64::MAX, 1), (u64::MAX, 0)]
            {
                assert_eq!(
                    plan(&sixteen(code, 0, lba, blocks), &world),
                    Err(LBA_OUT_OF_RANGE),
                    "{code:02x}h {lba}"
                );
            }
            for (lba, blocks) in [(0, 1), (2047, 1), (0, 2048), (2047, 0)] {
                if (code, blocks) == (0x93, 0) {
                    // WRITE SAME takes no length of zero: write_same_needs_a_length.
                    continue;
                }
                assert!(plan(&sixteen(code, 0, lba, blocks), &world).is_ok(), "{code:02x}h {lba}+{blocks}");
            }
        }
    }

    #[test]
    fn lengths_of_six_byte_commands() {
        let world = World::new();
        assert_eq!(
            plan(&[0x08, 0x00, 0x01, 0x02, 0, 0], &world),
            Ok(Plan::Read { lba: 0x102, blocks: 256, fua: false })
        );
        assert_eq!(plan(&[0x0A, 0x1F, 0xFF, 0xFF, 1, 0], &world), Err(LBA_OUT_OF_RANGE));
    }

    #[test]
    fn longer_than_the_block_limits_page_allows() {
        let mut world = World::new();
        if let Some(unit) = world.unit.as_mut() {
            unit.geometry.blocks = 1 << 30;
        }
        let most = TRANSFER_BYTES_MAX / 512;
        assert!(plan(&sixteen(0x88, 0, 0, most), &world).is_ok());
        assert_eq!(plan(&sixteen(0x88, 0, 0, most + 1), &world), Err(Sense::invalid_field_in_cdb(10, None)));
        // VERIFY without data has no such limit.
        assert!(plan(&sixteen(0x8F, 0, 0, most + 1), &world).is_ok());
        assert!(plan(&sixteen(0x8F, 2, 0, most + 1), &world).is_err());
    }

    #[test]
    fn compare_and_write_is_one_burst() {
        let mut world = World::new();
        let mut cdb = sixteen(0x89, 0x08, 5, 0);
        cdb[13] = 255;
        let expected = Plan::CompareAndWrite { lba: 5, blocks: 255, fua: true };
        assert_eq!(plan(&cdb, &world), Ok(expected));
        assert_eq!(expected.data_lengths(&world.environment()), (0, 2 * 255 * 512));
        world.limits.burst_length_bytes = 64 * 1024;
        assert_eq!(plan(&cdb, &world), Err(Sense::invalid_field_in_cdb(13, None)));
        cdb[13] = 64;
        let planned = plan(&cdb, &world).expect("64 blocks are half of a burst");
        let (environment, command) = (world.environment(), Cdb::new(&cdb));
        assert_eq!(planned.check_data_out(&environment, &command, Some(64 * 1024)), Ok(()));
        assert_eq!(planned.check_data_out(&environment, &command, None), Ok(()));
        let refused = Err(Sense::invalid_field_in_cdb(13, None));
        assert_eq!(planned.check_data_out(&environment, &command, Some(32 * 1024)), refused);
    }

    #[test]
    fn atomic_writes_keep_to_the_promise_of_the_device() {
        let mut world = World::new();
        let mut ask = |blocks_max, boundary_blocks, granularity_blocks| {
            let unit = world.unit.as_mut().expect("a unit");
            unit.geometry.atomic = bdev::AtomicWrites { blocks_max, boundary_blocks, granularity_blocks };
            atomic_limits(unit, 256 * 1024).map(|l| (l.blocks_max, l.alignment_blocks, l.granularity_blocks))
        };
        assert_eq!(ask(0, 0, 0), None);
        assert_eq!(ask(u32::MAX, 0, 1), Some((512, 0, 0)));
        assert_eq!(ask(33, 0, 4), Some((32, 0, 4)));
        assert_eq!(ask(3, 0, 4), None);
        assert_eq!(ask(8, 8, 1), Some((8, 8, 0)));
        assert_eq!(ask(100, 48, 16), Some((16, 16, 16)));
        assert_eq!(ask(100, 7, 1), Some((1, 0, 0)));
        assert_eq!(ask(u32::MAX, 1 << 20, 0), Some((512, 512, 0)));
    }

    #[test]
    fn atomic_writes_beyond_the_limits_are_refused_where_it_is_wrong() {
        let mut world = World::new();
        if let Some(unit) = world.unit.as_mut() {
            unit.geometry.atomic =
                bdev::AtomicWrites { blocks_max: 64, boundary_blocks: 32, granularity_blocks: 4 };
        }
        let ask = |lba: u64, boundary: u16, blocks: u16| {
            let mut cdb = sixteen(0x9C, 0x08, lba, 0);
            cdb[10..12].copy_from_slice(&boundary.to_be_bytes());
            cdb[12..14].copy_from_slice(&blocks.to_be_bytes());
            plan(&cdb, &world)
        };
        let at = |byte| Err(Sense::invalid_field_in_cdb(byte, None));
        let good = Plan::WriteAtomic { lba: 64, blocks: 32, fua: true };
        assert_eq!(ask(64, 0, 32), Ok(good));
        assert_eq!(good.data_lengths(&world.environment()), (0, 32 * 512));
        assert!(ask(32, 0, 4).is_ok() && ask(0, 0, 0).is_ok());
        assert_eq!((ask(0, 0, 33), ask(0, 0, 3), ask(4, 0, 4)), (at(12), at(12), at(2)));
        assert_eq!(ask(0, 4, 4), at(10));
        assert_eq!((ask(2048, 0, 4), ask(u64::MAX, 0, 8)), (Err(LBA_OUT_OF_RANGE), Err(LBA_OUT_OF_RANGE)));
        let refused =
            good.check_data_out(&world.environment(), &Cdb::new(&sixteen(0x9C, 0, 64, 32)), Some(512));
        assert_eq!(refused, Err(Sense::invalid_field_in_cdb(12, None)));
        if let Some(unit) = world.unit.as_mut() {
            unit.geometry.atomic.blocks_max = 0;
        }
        let none = plan(&sixteen(0x9C, 0, 0, 0), &world);
        assert_eq!(none, Err(Sense::new(SenseKey::IllegalRequest, 0x20, 0x00)));
    }

    #[test]
    fn byte_checks_of_verify() {
        let world = World::new();
        let verify = |flags| plan(&sixteen(0x8F, flags, 0, 4), &world);
        assert_eq!(verify(0), Ok(Plan::VerifyMedium { lba: 0, blocks: 4 }));
        assert_eq!(verify(2), Ok(Plan::VerifyCompare { lba: 0, blocks: 4, one_block: false }));
        assert_eq!(verify(4), Err(Sense::invalid_field_in_cdb(1, Some(2))));
        assert_eq!(verify(6), Ok(Plan::VerifyCompare { lba: 0, blocks: 4, one_block: true }));
        let environment = world.environment();
        assert_eq!(verify(6).map(|plan| plan.data_lengths(&environment)), Ok((0, 512)));
        assert_eq!(verify(2).map(|plan| plan.data_lengths(&environment)), Ok((0, 2048)));
    }

    #[test]
    fn write_same_needs_a_length() {
        let world = World::new();
        let expected = Plan::WriteSame { lba: 2000, blocks: 48, unmap: true, no_data_out: true };
        assert_eq!(plan(&sixteen(0x93, 0x09, 2000, 48), &world), Ok(expected));
        assert_eq!(expected.data_lengths(&world.environment()), (0, 0));
        assert_eq!(plan(&sixteen(0x93, 0x09, 2000, 0), &world), Err(Sense::invalid_field_in_cdb(10, None)));
        assert_eq!(plan(&sixteen(0x93, 0, 2049, 0), &world), Err(LBA_OUT_OF_RANGE));
        assert_eq!(plan(&sixteen(0x93, 0x10, 0, 1), &world), Err(Sense::invalid_field_in_cdb(1, Some(4))));
    }

    #[test]
    fn nothing_to_eject() {
        let mut world = World::new();
        let command = |bits| [0x1B, 1, 0, 0, bits, 0];
        let stop = Plan::Change(UnitChange::StartStop { start: false, load_eject: false, flush: true });
        assert_eq!(plan(&command(0), &world), Ok(stop));
        assert_eq!(plan(&command(2), &world), Err(Sense::invalid_field_in_cdb(4, Some(1))));
        if let Some(unit) = world.unit.as_mut() {
            unit.removal_prevented = true;
        }
        assert_eq!(plan(&command(2), &world), Err(REMOVAL_PREVENTED));
    }
}
