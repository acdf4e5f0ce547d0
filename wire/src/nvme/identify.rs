//! Identify structures (NVMe Base 2.0 §5.17.2, NVM Command Set 1.0 §4.1.5).

use super::IDENTIFY_LENGTH;
use super::field::{bytes, u8_at, u16_at, u32_at, u64_at, u128_at};

/// Controller or Namespace Structure: what IDENTIFY is asked for.
pub mod cns {
    /// Identify Namespace of the NVM Command Set.
    pub const NAMESPACE: u8 = 0x00;
    /// Identify Controller.
    pub const CONTROLLER: u8 = 0x01;
    /// Active Namespace ID list.
    pub const ACTIVE_NAMESPACES: u8 = 0x02;
    /// Namespace Identification Descriptor list.
    pub const NAMESPACE_IDENTIFIERS: u8 = 0x03;
    /// I/O Command Set specific Identify Controller.
    pub const COMMAND_SET_CONTROLLER: u8 = 0x06;
}

/// Identify Controller (CNS 01h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdentifyController {
    /// PCI Vendor ID (VID).
    pub vendor: u16,
    /// PCI Subsystem Vendor ID (SSVID).
    pub subsystem_vendor: u16,
    /// Serial Number (SN), padded with spaces.
    pub serial: [u8; 20],
    /// Model Number (MN), padded with spaces.
    pub model: [u8; 40],
    /// Firmware Revision (FR), padded with spaces.
    pub firmware: [u8; 8],
    /// Controller Multi-Path I/O and Namespace Sharing Capabilities (CMIC).
    pub sharing: u8,
    /// Maximum Data Transfer Size (MDTS), a power of two in units of the smallest page; 0: no limit.
    pub transfer_shift_max: u8,
    /// Controller ID (CNTLID).
    pub controller: u16,
    /// Version (VER).
    pub version: u32,
    /// Optional Asynchronous Events Supported (OAES).
    pub asynchronous_events: u32,
    /// Controller Attributes (CTRATT).
    pub attributes: u32,
    /// Optional Admin Command Support (OACS).
    pub admin_commands: u16,
    /// Abort commands that may be outstanding (ACL, 0's based, plus one).
    pub aborts_max: u16,
    /// Asynchronous Event Requests that may be outstanding (AERL, 0's based, plus one).
    pub event_requests_max: u16,
    /// Firmware Updates (FRMW).
    pub firmware_updates: u8,
    /// Log Page Attributes (LPA).
    pub log_attributes: u8,
    /// Entries of the error log (ELPE, 0's based, plus one).
    pub error_log_entries: u16,
    /// Warning Composite Temperature Threshold (WCTEMP), kelvins; 0: not reported.
    pub warning_temperature_kelvin: u16,
    /// Critical Composite Temperature Threshold (CCTEMP), kelvins; 0: not reported.
    pub critical_temperature_kelvin: u16,
    /// Total NVM Capacity (TNVMCAP), bytes.
    pub total_capacity: u128,
    /// Unallocated NVM Capacity (UNVMCAP), bytes.
    pub unallocated_capacity: u128,
    /// Number of Namespaces (NN).
    pub namespaces: u32,
    /// Optional NVM Command Support (ONCS).
    pub nvm_commands: u16,
    /// Fused Operation Support (FUSES).
    pub fused_operations: u16,
    /// Format NVM Attributes (FNA).
    pub format_attributes: u8,
    /// Volatile Write Cache (VWC).
    pub volatile_write_cache: u8,
    /// Atomic Write Unit Normal (AWUN), 0's based.
    pub atomic_write_unit: u16,
    /// Atomic Write Unit Power Fail (AWUPF), 0's based.
    pub atomic_write_unit_power_fail: u16,
    /// Copy Descriptor Formats Supported (OCFS).
    pub copy_formats: u16,
    /// SGL Support (SGLS).
    pub sgl: u32,
    /// NVM Subsystem NVMe Qualified Name (SUBNQN), ended by a zero.
    pub subsystem_name: [u8; 256],
}

impl IdentifyController {
    /// Takes the structure apart; `None` when it is shorter than [`IDENTIFY_LENGTH`].
    #[must_use]
    pub fn parse(data: &[u8]) -> Option<IdentifyController> {
        let data = data.get(..IDENTIFY_LENGTH)?;
        Some(IdentifyController {
            vendor: u16_at(data, 0),
            subsystem_vendor: u16_at(data, 2),
            serial: bytes(data, 4),
            model: bytes(data, 24),
            firmware: bytes(data, 64),
            sharing: u8_at(data, 76),
            transfer_shift_max: u8_at(data, 77),
            controller: u16_at(data, 78),
            version: u32_at(data, 80),
            asynchronous_events: u32_at(data, 92),
            attributes: u32_at(data, 96),
            admin_commands: u16_at(data, 256),
            aborts_max: u16::from(u8_at(data, 258)) + 1,
            event_requests_max: u16::from(u8_at(data, 259)) + 1,
            firmware_updates: u8_at(data, 260),
            log_attributes: u8_at(data, 261),
            error_log_entries: u16::from(u8_at(data, 262)) + 1,
            warning_temperature_kelvin: u16_at(data, 266),
            critical_temperature_kelvin: u16_at(data, 268),
            total_capacity: u128_at(data, 280),
            unallocated_capacity: u128_at(data, 296),
            namespaces: u32_at(data, 516),
            nvm_commands: u16_at(data, 520),
            fused_operations: u16_at(data, 522),
            format_attributes: u8_at(data, 524),
            volatile_write_cache: u8_at(data, 525),
            atomic_write_unit: u16_at(data, 526),
            atomic_write_unit_power_fail: u16_at(data, 528),
            copy_formats: u16_at(data, 534),
            sgl: u32_at(data, 536),
            subsystem_name: bytes(data, 768),
        })
    }

    /// FORMAT NVM (OACS bit 1).
    #[must_use]
    pub fn formats(&self) -> bool {
        self.admin_commands >> 1 & 1 == 1
    }

    /// DOORBELL BUFFER CONFIG (OACS bit 8).
    #[must_use]
    pub fn shadow_doorbells(&self) -> bool {
        self.admin_commands >> 8 & 1 == 1
    }

    /// COMPARE (ONCS bit 0).
    #[must_use]
    pub fn compares(&self) -> bool {
        self.nvm_commands & 1 == 1
    }

    /// DATASET MANAGEMENT (ONCS bit 2).
    #[must_use]
    pub fn deallocates(&self) -> bool {
        self.nvm_commands >> 2 & 1 == 1
    }

    /// WRITE ZEROES (ONCS bit 3).
    #[must_use]
    pub fn writes_zeroes(&self) -> bool {
        self.nvm_commands >> 3 & 1 == 1
    }

    /// VERIFY (ONCS bit 7).
    #[must_use]
    pub fn verifies(&self) -> bool {
        self.nvm_commands >> 7 & 1 == 1
    }

    /// COPY (ONCS bit 8) with source range format 0.
    #[must_use]
    pub fn copies(&self) -> bool {
        self.nvm_commands >> 8 & 1 == 1 && self.copy_formats & 1 == 1
    }

    /// A volatile write cache is present (VWC bit 0).
    #[must_use]
    pub fn has_write_cache(&self) -> bool {
        self.volatile_write_cache & 1 == 1
    }

    /// SGLs in NVM commands, and whether their addresses and lengths must be multiples of 4 (SGLS bits 1:0).
    #[must_use]
    pub fn sgl_alignment(&self) -> Option<u32> {
        match self.sgl & 3 {
            1 => Some(1),
            2 => Some(4),
            _ => None,
        }
    }

    /// Bytes of the longest transfer, with pages of at least `1 << page_shift_min` bytes; `None`: no limit.
    #[must_use]
    pub fn transfer_bytes_max(&self, page_shift_min: u32) -> Option<u64> {
        match self.transfer_shift_max {
            0 => None,
            shift => Some(1u64.checked_shl(u32::from(shift) + page_shift_min).unwrap_or(u64::MAX)),
        }
    }

    /// The subsystem's name up to its first zero; empty when it is not UTF-8.
    #[must_use]
    pub fn subsystem_name(&self) -> &str {
        let name = self.subsystem_name.split(|&byte| byte == 0).next().unwrap_or(&[]);
        std::str::from_utf8(name).unwrap_or("")
    }
}

/// What an LBA format is (LBAF, NVM Command Set 1.0 §4.1.5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LbaFormat {
    /// Metadata Size (MS), bytes.
    pub metadata_bytes: u16,
    /// LBA Data Size (LBADS), a power of two. Less than 9 means that the format is not available.
    pub data_shift: u8,
    /// Relative Performance (RP): 0 is best.
    pub relative_performance: u8,
}

/// Identify Namespace (CNS 00h, NVM Command Set 1.0 §4.1.5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdentifyNamespace {
    /// Namespace Size (NSZE), blocks.
    pub size: u64,
    /// Namespace Capacity (NCAP), blocks.
    pub capacity: u64,
    /// Namespace Utilization (NUSE), blocks.
    pub utilization: u64,
    /// Namespace Features (NSFEAT).
    pub features: u8,
    /// Number of LBA Formats (NLBAF), 0's based.
    pub formats: u8,
    /// Formatted LBA Size (FLBAS).
    pub formatted: u8,
    /// Metadata Capabilities (MC).
    pub metadata_capabilities: u8,
    /// End-to-end Data Protection Type Settings (DPS).
    pub protection: u8,
    /// Namespace Multi-path I/O and Namespace Sharing Capabilities (NMIC).
    pub sharing: u8,
    /// Deallocate Logical Block Features (DLFEAT).
    pub deallocate_features: u8,
    /// Namespace Atomic Write Unit Normal (NAWUN), 0's based.
    pub atomic_write_unit: u16,
    /// Namespace Atomic Write Unit Power Fail (NAWUPF), 0's based.
    pub atomic_write_unit_power_fail: u16,
    /// Namespace Atomic Boundary Size Normal (NABSN), 0's based; 0: no boundary.
    pub atomic_boundary: u16,
    /// Namespace Atomic Boundary Offset (NABO).
    pub atomic_boundary_offset: u16,
    /// Namespace Atomic Boundary Size Power Fail (NABSPF), 0's based; 0: no boundary.
    pub atomic_boundary_power_fail: u16,
    /// Namespace Optimal I/O Boundary (NOIOB), blocks; 0: none.
    pub optimal_boundary: u16,
    /// Namespace Preferred Write Granularity (NPWG), 0's based; valid with OPTPERF.
    pub preferred_write_granularity: u16,
    /// Namespace Preferred Write Alignment (NPWA), 0's based; valid with OPTPERF.
    pub preferred_write_alignment: u16,
    /// Namespace Preferred Deallocate Granularity (NPDG), 0's based; valid with OPTPERF.
    pub preferred_deallocate_granularity: u16,
    /// Namespace Preferred Deallocate Alignment (NPDA), 0's based; valid with OPTPERF.
    pub preferred_deallocate_alignment: u16,
    /// Namespace Optimal Write Size (NOWS), 0's based; valid with OPTPERF.
    pub optimal_write_size: u16,
    /// Maximum Single Source Range Length (MSSRL), blocks.
    pub copy_range_blocks_max: u16,
    /// Maximum Copy Length (MCL), blocks.
    pub copy_blocks_max: u32,
    /// Namespace Attributes (NSATTR): bit 0 is write protected.
    pub attributes: u8,
    /// Namespace Globally Unique Identifier (NGUID); all zeros: none.
    pub nguid: [u8; 16],
    /// IEEE Extended Unique Identifier (EUI64); all zeros: none.
    pub eui64: [u8; 8],
    /// The format it has.
    pub format: LbaFormat,
    /// All formats, as many as [`IdentifyNamespace::formats`] says plus one.
    pub format_list: [LbaFormat; 64],
}

impl IdentifyNamespace {
    /// Takes the structure apart; `None` when it is shorter than [`IDENTIFY_LENGTH`].
    #[must_use]
    pub fn parse(data: &[u8]) -> Option<IdentifyNamespace> {
        let data = data.get(..IDENTIFY_LENGTH)?;
        let formatted = u8_at(data, 26);
        let format_list: [LbaFormat; 64] =
            std::array::from_fn(|index| lba_format(u32_at(data, 128 + 4 * index)));
        let index = format_index(formatted, u8_at(data, 25));
        Some(IdentifyNamespace {
            size: u64_at(data, 0),
            capacity: u64_at(data, 8),
            utilization: u64_at(data, 16),
            features: u8_at(data, 24),
            formats: u8_at(data, 25),
            formatted,
            metadata_capabilities: u8_at(data, 27),
            protection: u8_at(data, 29),
            sharing: u8_at(data, 30),
            deallocate_features: u8_at(data, 33),
            atomic_write_unit: u16_at(data, 34),
            atomic_write_unit_power_fail: u16_at(data, 36),
            atomic_boundary: u16_at(data, 40),
            atomic_boundary_offset: u16_at(data, 42),
            atomic_boundary_power_fail: u16_at(data, 44),
            optimal_boundary: u16_at(data, 46),
            preferred_write_granularity: u16_at(data, 64),
            preferred_write_alignment: u16_at(data, 66),
            preferred_deallocate_granularity: u16_at(data, 68),
            preferred_deallocate_alignment: u16_at(data, 70),
            optimal_write_size: u16_at(data, 72),
            copy_range_blocks_max: u16_at(data, 74),
            copy_blocks_max: u32_at(data, 76),
            attributes: u8_at(data, 99),
            nguid: bytes(data, 104),
            eui64: bytes(data, 120),
            format: format_list[index],
            format_list,
        })
    }

    /// Thin provisioning: NCAP may be less than NSZE (NSFEAT bit 0).
    #[must_use]
    pub fn is_thin(&self) -> bool {
        self.features & 1 == 1
    }

    /// The namespace's own atomic fields hold, not the controller's (NSFEAT bit 1).
    #[must_use]
    pub fn has_own_atomics(&self) -> bool {
        self.features >> 1 & 1 == 1
    }

    /// NPWG, NPWA, NPDG, NPDA and NOWS are valid (NSFEAT bit 4, OPTPERF).
    #[must_use]
    pub fn has_preferences(&self) -> bool {
        self.features >> 4 & 1 == 1
    }

    /// Metadata stands at the end of each block of the data buffer (FLBAS bit 4).
    #[must_use]
    pub fn is_extended(&self) -> bool {
        self.formatted >> 4 & 1 == 1
    }

    /// Protection information type, 0 for none (DPS bits 2:0).
    #[must_use]
    pub fn protection_type(&self) -> u8 {
        self.protection & 7
    }

    /// Deallocated blocks read as zeros (DLFEAT bits 2:0 are 001b).
    #[must_use]
    pub fn deallocated_reads_zeros(&self) -> bool {
        self.deallocate_features & 7 == 1
    }

    /// WRITE ZEROES takes the Deallocate bit (DLFEAT bit 3).
    #[must_use]
    pub fn write_zeroes_deallocates(&self) -> bool {
        self.deallocate_features >> 3 & 1 == 1
    }

    /// It cannot be written now (NSATTR bit 0).
    #[must_use]
    pub fn is_write_protected(&self) -> bool {
        self.attributes & 1 == 1
    }

    /// Index of the format it has (FLBAS).
    #[must_use]
    pub fn format_index(&self) -> u8 {
        format_index(self.formatted, self.formats) as u8
    }
}

/// FLBAS bits 3:0, and 6:5 above them when there are more than 16 formats.
fn format_index(formatted: u8, formats: u8) -> usize {
    let upper = if formats > 15 { usize::from(formatted >> 5 & 3) << 4 } else { 0 };
    upper | usize::from(formatted & 0xF)
}

fn lba_format(field: u32) -> LbaFormat {
    LbaFormat {
        metadata_bytes: field as u16,
        data_shift: (field >> 16) as u8,
        relative_performance: (field >> 24) as u8 & 3,
    }
}

/// The identifiers of a Namespace Identification Descriptor list (CNS 03h); the first of each kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NamespaceIdentifiers {
    /// NIDT 1.
    pub eui64: Option<[u8; 8]>,
    /// NIDT 2.
    pub nguid: Option<[u8; 16]>,
    /// NIDT 3.
    pub uuid: Option<[u8; 16]>,
    /// NIDT 4: Command Set Identifier; 0 is the NVM Command Set.
    pub command_set: Option<u8>,
}

impl NamespaceIdentifiers {
    /// What the list says; descriptors that make no sense are passed over, and one that does not fit ends it.
    #[must_use]
    pub fn parse(data: &[u8]) -> NamespaceIdentifiers {
        let mut found = NamespaceIdentifiers::default();
        let mut rest = data.get(..IDENTIFY_LENGTH).unwrap_or(data);
        while let Some((header, tail)) = rest.split_first_chunk::<4>() {
            let length = usize::from(header[1]);
            let Some((value, tail)) = tail.split_at_checked(length).filter(|_| length > 0) else { break };
            match header[0] {
                1 => keep(&mut found.eui64, value),
                2 => keep(&mut found.nguid, value),
                3 => keep(&mut found.uuid, value),
                4 => found.command_set = found.command_set.or(value.first().copied()),
                _ => {}
            }
            rest = tail;
        }
        found
    }
}

/// Remembers an identifier of the right length that is not all zeros.
fn keep<const N: usize>(place: &mut Option<[u8; N]>, value: &[u8]) {
    if let Ok(value) = <[u8; N]>::try_from(value)
        && value != [0; N]
        && place.is_none()
    {
        *place = Some(value);
    }
}

/// An Active Namespace ID list (CNS 02h): at most 1,024 identifiers in ascending order.
#[derive(Debug, Clone, Copy)]
pub struct ActiveNamespaces<'a>(&'a [[u8; 4]]);

impl<'a> ActiveNamespaces<'a> {
    /// The list in `data`.
    #[must_use]
    pub fn parse(data: &'a [u8]) -> ActiveNamespaces<'a> {
        let entries = data.as_chunks::<4>().0;
        ActiveNamespaces(entries.get(..1024).unwrap_or(entries))
    }

    /// The identifiers up to the first zero that are greater than `after` and the one before: what is out of order ends
    /// the list, so that a list without end cannot be made of it.
    pub fn iter(&self, after: u32) -> impl Iterator<Item = u32> + 'a {
        let mut last = after;
        self.0.iter().map(|entry| u32::from_le_bytes(*entry)).take_while(move |&nsid| {
            let follows = nsid > last && nsid != super::NSID_ALL;
            last = nsid;
            follows
        })
    }

    /// True when the list is full: there may be more behind its last identifier.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.0.len() == 1024 && self.0.last() != Some(&[0; 4])
    }
}

/// Limits of the NVM Command Set (CNS 06h, CSI 00h; NVM Command Set 1.0 §4.1.5.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NvmLimits {
    /// Verify Size Limit (VSL), a power of two in units of the smallest page; 0: none is reported.
    pub verify_shift_max: u8,
    /// Write Zeroes Size Limit (WZSL), likewise.
    pub write_zeroes_shift_max: u8,
    /// Dataset Management Ranges Limit (DMRL); 0: none is reported.
    pub deallocate_ranges_max: u8,
    /// Dataset Management Range Size Limit (DMRSL), blocks; 0: none is reported.
    pub deallocate_range_blocks_max: u32,
    /// Dataset Management Size Limit (DMSL), blocks; 0: none is reported.
    pub deallocate_blocks_max: u64,
}

impl NvmLimits {
    /// Takes the structure apart; `None` when it is shorter than [`IDENTIFY_LENGTH`].
    #[must_use]
    pub fn parse(data: &[u8]) -> Option<NvmLimits> {
        let data = data.get(..IDENTIFY_LENGTH)?;
        Some(NvmLimits {
            verify_shift_max: u8_at(data, 0),
            write_zeroes_shift_max: u8_at(data, 1),
            deallocate_ranges_max: u8_at(data, 3),
            deallocate_range_blocks_max: u32_at(data, 4),
            deallocate_blocks_max: u64_at(data, 8),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fields_of_the_controller() {
        let mut data = vec![0u8; 4096];
        data[4..24].copy_from_slice(b"SERIAL              ");
        data[77] = 5;
        data[256] = 0x02;
        data[257] = 0x01;
        data[258] = 3;
        data[516..520].copy_from_slice(&16u32.to_le_bytes());
        data[520..522].copy_from_slice(&0x018Du16.to_le_bytes());
        data[525] = 7;
        data[534] = 1;
        data[536] = 1;
        data[768..774].copy_from_slice(b"nqn.\0x");
        let controller = IdentifyController::parse(&data).unwrap();
        assert_eq!(&controller.serial[..6], b"SERIAL");
        assert_eq!(controller.transfer_bytes_max(12), Some(128 * 1024));
        assert_eq!((controller.aborts_max, controller.event_requests_max, controller.namespaces), (4, 1, 16));
        assert!(controller.formats() && controller.shadow_doorbells() && controller.has_write_cache());
        assert!(controller.compares() && controller.deallocates() && controller.writes_zeroes());
        assert!(controller.verifies() && controller.copies());
        assert_eq!((controller.sgl_alignment(), controller.subsystem_name()), (Some(1), "nqn."));
        data[77] = 255;
        let controller = IdentifyController::parse(&data).unwrap();
        assert_eq!(controller.transfer_bytes_max(12), Some(u64::MAX));
        assert_eq!(IdentifyController::parse(&data[..4095]), None);
    }

    #[test]
    fn the_formatted_size_has_two_parts() {
        let mut data = vec![0u8; 4096];
        data[25] = 40;
        data[26] = 0x30 | 0x02;
        let entry = 128 + 4 * 0x12;
        data[entry..entry + 4].copy_from_slice(&[8, 0, 12, 1]);
        let namespace = IdentifyNamespace::parse(&data).unwrap();
        assert_eq!(
            (namespace.format, namespace.format_index()),
            (LbaFormat { metadata_bytes: 8, data_shift: 12, relative_performance: 1 }, 0x12)
        );
        assert!(namespace.is_extended());
        // With 16 formats or fewer the upper bits mean nothing.
        data[25] = 15;
        assert_eq!(IdentifyNamespace::parse(&data).unwrap().format_index(), 2);
    }

    #[test]
    fn identifiers() {
        let mut data = vec![0u8; 4096];
        data[..12].copy_from_slice(&[1, 8, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
        data[12..16].copy_from_slice(&[3, 16, 0, 0]);
        data[16..32].fill(9);
        data[32..37].copy_from_slice(&[4, 1, 0, 0, 2]);
        let found = NamespaceIdentifiers::parse(&data);
        assert_eq!(found.eui64, Some([1, 2, 3, 4, 5, 6, 7, 8]));
        assert_eq!((found.uuid, found.nguid, found.command_set), (Some([9; 16]), None, Some(2)));
    }

    #[test]
    fn a_list_ends_where_it_stops_to_ascend() {
        let list = |ids: &[u32]| ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>();
        let data = list(&[1, 2, 7, 0, 9]);
        assert_eq!(ActiveNamespaces::parse(&data).iter(0).collect::<Vec<_>>(), [1, 2, 7]);
        let data = list(&[3, 3, 4]);
        assert_eq!(ActiveNamespaces::parse(&data).iter(0).collect::<Vec<_>>(), [3]);
        assert_eq!(ActiveNamespaces::parse(&data).iter(3).count(), 0);
        let data = list(&(1..=1024).collect::<Vec<_>>());
        assert!(ActiveNamespaces::parse(&data).is_full());
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_parser_fail(mut data in proptest::collection::vec(any::<u8>(), 0..300), long: bool) {
            if long {
                data.resize(4096, 0xFF);
            }
            let _ = IdentifyController::parse(&data).map(|c| (c.transfer_bytes_max(27), c.subsystem_name().len()));
            let _ = IdentifyNamespace::parse(&data).map(|n| n.format);
            let _ = NamespaceIdentifiers::parse(&data);
            let _ = NvmLimits::parse(&data);
            let list = ActiveNamespaces::parse(&data);
            let ids: Vec<_> = list.iter(0).collect();
            prop_assert!(ids.len() <= 1024 && ids.is_sorted());
        }
    }
}
