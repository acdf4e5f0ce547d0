use wire::scsi::inquiry::{Peripheral, StandardInquiry};
use wire::scsi::vpd::{self, Association, BlockLimits, Designator, page};
use wire::scsi::{Lun, SENSE_LENGTH_MAX};

use crate::{Environment, UnitView, sbc};

/// Version descriptors (SPC-5 §6.7.2): SAM-5, SPC-4, SBC-3.
const VERSIONS: [u16; 3] = [0x00A0, 0x0460, 0x04C0];
/// The version descriptor of iSCSI, for ports with protocol identifier 5h.
const VERSION_ISCSI: u16 = 0x0960;
const PROTOCOL_ISCSI: u8 = 5;

/// VPD pages of a unit, ascending.
const PAGES: [u8; 8] = [
    page::SUPPORTED,
    page::UNIT_SERIAL_NUMBER,
    page::DEVICE_IDENTIFICATION,
    page::EXTENDED_INQUIRY,
    page::MODE_PAGE_POLICY,
    page::BLOCK_LIMITS,
    page::BLOCK_DEVICE_CHARACTERISTICS,
    page::LOGICAL_BLOCK_PROVISIONING,
];

/// VPD pages of a LUN without a unit.
const PAGES_WITHOUT_UNIT: [u8; 2] = [page::SUPPORTED, page::DEVICE_IDENTIFICATION];

/// Whether the LUN addressed has this VPD page.
pub(super) fn supported(page: u8, environment: &Environment<'_>) -> bool {
    pages(environment).contains(&page)
}

fn pages(environment: &Environment<'_>) -> &'static [u8] {
    if environment.unit.is_some() { &PAGES } else { &PAGES_WITHOUT_UNIT }
}

fn peripheral(environment: &Environment<'_>) -> Peripheral {
    match environment.unit {
        Some(_) => Peripheral::BlockDevice,
        None if environment.lun == Lun::REPORT_LUNS => Peripheral::WellKnown,
        None => Peripheral::Absent,
    }
}

pub(crate) fn inquiry_data(environment: &Environment<'_>, out: &mut [u8]) -> usize {
    let [sam, spc, sbc] = VERSIONS;
    let iscsi = environment.nexus.protocol == PROTOCOL_ISCSI;
    let versions: &[u16] = if iscsi { &[sam, VERSION_ISCSI, spc, sbc] } else { &[sam, spc, sbc] };
    let identity = environment.unit.map(|unit| &unit.identity);
    StandardInquiry {
        peripheral: peripheral(environment),
        vendor: identity.map_or("POLLUX", |identity| &identity.vendor),
        product: identity.map_or("", |identity| &identity.product),
        revision: identity.map_or("", |identity| &identity.revision),
        versions,
    }
    .emit(out)
}

pub(crate) fn vital_product_data(code: u8, environment: &Environment<'_>, out: &mut [u8]) -> usize {
    let peripheral = peripheral(environment);
    match (code, environment.unit) {
        (page::DEVICE_IDENTIFICATION, unit) => device_identification(peripheral, unit, environment, out),
        (page::UNIT_SERIAL_NUMBER, Some(unit)) => {
            vpd::emit_serial_number(peripheral, &unit.identity.serial, out)
        }
        (page::EXTENDED_INQUIRY, Some(unit)) => {
            vpd::emit_extended_inquiry(peripheral, unit.geometry.write_cache, SENSE_LENGTH_MAX as u8, out)
        }
        (page::MODE_PAGE_POLICY, Some(_)) => vpd::emit_mode_page_policy(peripheral, out),
        (page::BLOCK_LIMITS, Some(unit)) => block_limits(unit, environment).emit(peripheral, out),
        (page::BLOCK_DEVICE_CHARACTERISTICS, Some(unit)) => {
            vpd::emit_block_device_characteristics(peripheral, unit.geometry.rotational, out)
        }
        (page::LOGICAL_BLOCK_PROVISIONING, Some(unit)) => {
            let provisioning = &unit.geometry.provisioning;
            vpd::emit_logical_block_provisioning(
                peripheral,
                provisioning.discard,
                provisioning.reads_zeros,
                out,
            )
        }
        _ => vpd::emit_supported(peripheral, pages(environment), out),
    }
}

/// The logical unit's names, then the target port's and the target device's (SPC-5 §7.7.6).
fn device_identification(
    peripheral: Peripheral,
    unit: Option<&UnitView>,
    environment: &Environment<'_>,
    out: &mut [u8],
) -> usize {
    let nexus = environment.nexus;
    let port: &str = &nexus.target_port;
    let device = port.split_once(",t,").map_or(port, |(name, _)| name);
    let of_target = [
        (Association::TargetPort, Designator::RelativeTargetPort(nexus.relative_target_port)),
        (Association::TargetPort, Designator::Name(port)),
        (Association::TargetDevice, Designator::Name(device)),
    ];
    let Some(unit) = unit else {
        return vpd::emit_device_identification(peripheral, nexus.protocol, &of_target, out);
    };
    let identity = &unit.identity;
    let given = unit.device.0.identity();
    let [relative, port, device] = of_target;
    let of_unit = |designator| (Association::LogicalUnit, designator);
    // Our own names first, in the order they always had; then those that the device was given by its maker.
    let mut designators = [
        of_unit(Designator::Naa(&identity.naa)),
        of_unit(Designator::T10VendorId { vendor: &identity.vendor, identifier: &identity.serial }),
        of_unit(Designator::Uuid(&identity.uuid)),
        relative,
        port,
        device,
        // Places for the device's.
        relative,
        relative,
        relative,
    ];
    let nguid = given.nguid.as_ref().map(|bytes| Designator::Eui64(bytes));
    let eui64 = given.eui64.as_ref().map(|bytes| Designator::Eui64(bytes));
    let uuid = given.uuid.as_ref().filter(|bytes| **bytes != identity.uuid).map(Designator::Uuid);
    let mut count = 6;
    for designator in [nguid, eui64, uuid].into_iter().flatten() {
        if let Some(place) = designators.get_mut(count) {
            *place = of_unit(designator);
            count += 1;
        }
    }
    let designators = designators.get(..count).unwrap_or(&designators);
    vpd::emit_device_identification(peripheral, nexus.protocol, designators, out)
}

fn block_limits(unit: &UnitView, environment: &Environment<'_>) -> BlockLimits {
    let geometry = &unit.geometry;
    let provisioning = &geometry.provisioning;
    let transfer_blocks_max = sbc::transfer_blocks_max(unit);
    let mut limits = BlockLimits {
        compare_and_write_blocks_max: sbc::compare_and_write_blocks_max(
            unit,
            environment.limits.burst_length_bytes,
        ),
        optimal_granularity_blocks: geometry.optimal_granularity_blocks,
        transfer_blocks_max,
        optimal_transfer_blocks: geometry.optimal_transfer_blocks.min(transfer_blocks_max),
        ..BlockLimits::default()
    };
    if let Some(atomic) = sbc::atomic_limits(unit, environment.limits.burst_length_bytes) {
        limits.atomic_blocks_max = atomic.blocks_max;
        limits.atomic_alignment_blocks = atomic.alignment_blocks;
        limits.atomic_granularity_blocks = atomic.granularity_blocks;
    }
    if provisioning.discard {
        limits.unmap_blocks_max = sbc::unmap_blocks_max(unit);
        limits.unmap_descriptors_max = sbc::UNMAP_DESCRIPTORS_MAX;
        limits.unmap_granularity_blocks = provisioning.granularity_blocks.max(1);
    }
    limits
}

#[cfg(test)]
mod tests {
    use wire::scsi::{Lun, Sense};

    use crate::fuzz::World;

    /// INQUIRY data, as long as the allocation length lets it be.
    fn inquiry(vital: bool, page: u8, allocation_length: u16, world: &World) -> Result<Vec<u8>, Sense> {
        let [high, low] = allocation_length.to_be_bytes();
        world.data_in(&[0x12, u8::from(vital), page, high, low, 0])
    }

    #[test]
    fn every_supported_page_is_there_and_no_other() {
        let mut world = World::new();
        for unit in [world.unit.take(), None] {
            world.unit = unit;
            let supported = inquiry(true, 0x00, 255, &world).expect("page 00h");
            let pages = &supported[4..];
            assert!(pages.is_sorted());
            assert_eq!(usize::from(supported[3]), pages.len());
            for page in 0..=255 {
                let data = inquiry(true, page, 4096, &world);
                assert_eq!(data.is_ok(), pages.contains(&page), "page {page:02x}h");
                match data {
                    Ok(data) => {
                        assert_eq!(data[0], if world.unit.is_some() { 0x00 } else { 0x7F });
                        assert_eq!(data[1], page);
                        assert_eq!(usize::from(u16::from_be_bytes([data[2], data[3]])) + 4, data.len());
                    }
                    Err(sense) => assert_eq!(sense, Sense::invalid_field_in_cdb(2, None)),
                }
            }
        }
    }

    #[test]
    fn standard_data_is_truncated_to_the_byte() {
        let world = World::new();
        let whole = inquiry(false, 0, 260, &world).expect("standard data");
        assert_eq!(whole.len(), 96);
        assert_eq!(usize::from(whole[4]), whole.len() - 5);
        assert_eq!(&whole[58..66], &[0x00, 0xA0, 0x09, 0x60, 0x04, 0x60, 0x04, 0xC0]);
        for length in 0..96 {
            assert_eq!(inquiry(false, 0, length, &world).as_deref(), Ok(&whole[..usize::from(length)]));
        }
        assert_eq!(inquiry(false, 1, 260, &world), Err(Sense::invalid_field_in_cdb(2, None)));
    }

    #[test]
    fn what_a_lun_without_a_unit_says() {
        let mut world = World::new();
        world.unit = None;
        world.lun = Lun::from_number(5);
        assert_eq!(inquiry(false, 0, 260, &world).map(|data| data[0]), Ok(0x7F));
        world.lun = Lun::REPORT_LUNS;
        assert_eq!(inquiry(false, 0, 260, &world).map(|data| data[0]), Ok(0x1E));
    }

    #[test]
    fn block_limits_are_those_that_are_enforced() {
        let mut world = World::new();
        let limits = inquiry(true, 0xB0, 255, &world).expect("page B0h");
        assert_eq!(limits.len(), 64);
        // WSNZ, MAXIMUM COMPARE AND WRITE LENGTH.
        assert_eq!(limits[4..6], [1, 255]);
        assert_eq!(limits[8..12], (64 * 1024 * 1024 / 512_u32).to_be_bytes());
        assert_eq!(limits[20..28], [0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 1, 0]);
        if let Some(unit) = world.unit.as_mut() {
            unit.geometry.provisioning.discard = false;
        }
        let limits = inquiry(true, 0xB0, 255, &world).expect("page B0h");
        assert_eq!(limits[20..36], [0; 16]);
        // MAXIMUM ATOMIC TRANSFER LENGTH, ATOMIC ALIGNMENT, ATOMIC TRANSFER LENGTH GRANULARITY, and no boundaries.
        assert_eq!(limits[44..64], [0, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        if let Some(unit) = world.unit.as_mut() {
            unit.geometry.atomic =
                bdev::AtomicWrites { blocks_max: 200, boundary_blocks: 128, granularity_blocks: 8 };
        }
        let limits = inquiry(true, 0xB0, 255, &world).expect("page B0h");
        assert_eq!(limits[44..56], [0, 0, 0, 128, 0, 0, 0, 128, 0, 0, 0, 8]);
        if let Some(unit) = world.unit.as_mut() {
            unit.geometry.atomic.blocks_max = 0;
        }
        let limits = inquiry(true, 0xB0, 255, &world).expect("page B0h");
        assert_eq!(limits[44..56], [0; 12]);
        assert_eq!(inquiry(true, 0xB2, 255, &world).map(|data| data[5]), Ok(0));
    }

    #[test]
    fn the_device_and_its_port_are_named() {
        let mut world = World::new();
        let ask = |world: &World| {
            let data = inquiry(true, 0x83, 4096, world).expect("page 83h");
            let mut rest = &data[4..];
            let mut found = Vec::new();
            while let [first, second, _, length, after @ ..] = rest {
                let (body, next) = after.split_at(usize::from(*length));
                found.push((*first, *second, body.to_vec()));
                rest = next;
            }
            found
        };
        let all = ask(&world);
        world.set_device(crate::fuzz::Described::default());
        let found = ask(&world);
        assert_eq!(found.len(), 6);
        assert_eq!(all[..6], found, "the device's names change nothing about ours");
        let uuid = [vec![0x10, 0], vec![0x44; 16]].concat();
        let given = [(1, 2, vec![0x22; 16]), (1, 2, vec![0x33; 8]), (1, 0xA, uuid)];
        assert_eq!(all[6..], given);
        assert_eq!(found[0], (0x01, 0x03, vec![0x60; 16]));
        assert_eq!(found[1], (0x02, 0x01, b"POLLUX  0123456789".to_vec()));
        assert_eq!(found[3], (0x51, 0x94, vec![0, 0, 0, 1]));
        assert!(found[4].2.starts_with(b"iqn.2026-01.test:target,t,0x0001\0"));
        assert_eq!(found[5].1, 0xA8);
        assert!(found[5].2.starts_with(b"iqn.2026-01.test:target\0"));
    }
}
