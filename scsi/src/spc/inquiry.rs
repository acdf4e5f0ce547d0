use wire::scsi::inquiry::{Peripheral, StandardInquiry};
use wire::scsi::vpd::{self, Association, BlockLimits, Designator, page};
use wire::scsi::{Lun, SENSE_LENGTH_MAX};

use crate::{Environment, UnitView, sbc};

/// Version descriptors (SPC-5 table 149 of the r22 numbering): SAM-5, SPC-4, SBC-3.
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
    let [relative, port, device] = of_target;
    let designators = [
        (Association::LogicalUnit, Designator::Naa(&identity.naa)),
        (
            Association::LogicalUnit,
            Designator::T10VendorId { vendor: &identity.vendor, identifier: &identity.serial },
        ),
        (Association::LogicalUnit, Designator::Uuid(&identity.uuid)),
        relative,
        port,
        device,
    ];
    vpd::emit_device_identification(peripheral, nexus.protocol, &designators, out)
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
    if provisioning.discard {
        limits.unmap_blocks_max = sbc::unmap_blocks_max(unit);
        limits.unmap_descriptors_max = sbc::UNMAP_DESCRIPTORS_MAX;
        limits.unmap_granularity_blocks = provisioning.granularity_blocks.max(1);
        limits.unmap_alignment = Some(u32::from(geometry.lowest_aligned_block));
    }
    limits
}
