//! Vital product data pages (SPC-5 §7.7, SBC-4 §6.6).

use super::{Writer, inquiry::Peripheral};

/// Page codes.
pub mod page {
    /// Supported VPD Pages.
    pub const SUPPORTED: u8 = 0x00;
    /// Unit Serial Number.
    pub const UNIT_SERIAL_NUMBER: u8 = 0x80;
    /// Device Identification.
    pub const DEVICE_IDENTIFICATION: u8 = 0x83;
    /// Extended INQUIRY Data.
    pub const EXTENDED_INQUIRY: u8 = 0x86;
    /// Mode Page Policy.
    pub const MODE_PAGE_POLICY: u8 = 0x87;
    /// Block Limits.
    pub const BLOCK_LIMITS: u8 = 0xB0;
    /// Block Device Characteristics.
    pub const BLOCK_DEVICE_CHARACTERISTICS: u8 = 0xB1;
    /// Logical Block Provisioning.
    pub const LOGICAL_BLOCK_PROVISIONING: u8 = 0xB2;
}

/// Writes a page: its four-byte header, what `body` writes, and then the page's length into the header. Returns
/// the full length.
fn emit(peripheral: Peripheral, code: u8, out: &mut [u8], body: impl FnOnce(&mut Writer<'_>)) -> usize {
    let mut writer = Writer::new(out);
    writer.bytes(&[peripheral.byte(), code, 0, 0]);
    body(&mut writer);
    let length = writer.length() - 4;
    writer.patch_u16(2, u16::try_from(length).unwrap_or(u16::MAX));
    writer.length()
}

/// Supported VPD Pages; `pages` in ascending order.
pub fn emit_supported(peripheral: Peripheral, pages: &[u8], out: &mut [u8]) -> usize {
    emit(peripheral, page::SUPPORTED, out, |writer| writer.bytes(pages))
}

/// Unit Serial Number.
pub fn emit_serial_number(peripheral: Peripheral, serial: &str, out: &mut [u8]) -> usize {
    emit(peripheral, page::UNIT_SERIAL_NUMBER, out, |writer| writer.text(serial, serial.len().min(252)))
}

/// What a designator names (ASSOCIATION).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Association {
    /// The logical unit.
    LogicalUnit = 0,
    /// The target port that received the command.
    TargetPort = 1,
    /// The target device.
    TargetDevice = 2,
}

/// One designation descriptor (SPC-5 §7.7.6).
#[derive(Debug, Clone, Copy)]
pub enum Designator<'a> {
    /// T10 vendor ID based: vendor and a vendor specific identifier.
    T10VendorId {
        /// T10 vendor identification.
        vendor: &'a str,
        /// Vendor specific identifier.
        identifier: &'a str,
    },
    /// NAA: 16 bytes for registered extended (6h), the first 8 for the other formats.
    Naa(&'a [u8; 16]),
    /// EUI-64 based, of 8 bytes, or of 16: an identifier extension, then an EUI-64 (SPC-5 §7.7.6.5).
    Eui64(&'a [u8]),
    /// UUID (SPC-5 §7.7.6.12).
    Uuid(&'a [u8; 16]),
    /// Relative target port identifier.
    RelativeTargetPort(u16),
    /// SCSI name string.
    Name(&'a str),
}

impl Designator<'_> {
    fn emit(&self, association: Association, protocol: u8, writer: &mut Writer<'_>) {
        // CODE SET: 1 binary, 2 ASCII, 3 UTF-8. DESIGNATOR TYPE.
        let (code_set, kind) = match self {
            Designator::T10VendorId { .. } => (2, 0x1),
            Designator::Eui64(_) => (1, 0x2),
            Designator::Naa(_) => (1, 0x3),
            Designator::RelativeTargetPort(_) => (1, 0x4),
            Designator::Name(_) => (3, 0x8),
            Designator::Uuid(_) => (1, 0xA),
        };
        // PIV says that PROTOCOL IDENTIFIER means something; not for logical units.
        let (piv, protocol) =
            if association == Association::LogicalUnit { (0, 0) } else { (0x80, protocol & 0x0F) };
        let start = writer.length();
        writer.bytes(&[protocol << 4 | code_set, piv | (association as u8) << 4 | kind, 0, 0]);
        match self {
            Designator::T10VendorId { vendor, identifier } => {
                writer.text(vendor, 8);
                writer.text(identifier, identifier.len().min(200));
            }
            Designator::Naa(naa) => match naa[0] >> 4 {
                6 => writer.bytes(&naa[..]),
                _ => writer.bytes(&naa[..8]),
            },
            Designator::Eui64(identifier) => writer.bytes(identifier.get(..16).unwrap_or(identifier)),
            Designator::Uuid(uuid) => {
                writer.bytes(&[0x10, 0]);
                writer.bytes(&uuid[..]);
            }
            Designator::RelativeTargetPort(port) => {
                writer.u16(0);
                writer.u16(*port);
            }
            Designator::Name(name) => {
                // At least one null, and a multiple of four bytes.
                let name = name.as_bytes();
                writer.bytes(name.get(..251).unwrap_or(name));
                writer.zeros(4 - (writer.length() - start) % 4);
            }
        }
        let length = writer.length() - start - 4;
        writer.patch_u8(start + 3, u8::try_from(length).unwrap_or(u8::MAX));
    }
}

/// Device Identification. `protocol` is the PROTOCOL IDENTIFIER of the target port (5 for iSCSI).
pub fn emit_device_identification(
    peripheral: Peripheral,
    protocol: u8,
    designators: &[(Association, Designator<'_>)],
    out: &mut [u8],
) -> usize {
    emit(peripheral, page::DEVICE_IDENTIFICATION, out, |writer| {
        for (association, designator) in designators {
            designator.emit(*association, protocol, writer);
        }
    })
}

/// Extended INQUIRY Data: SIMPLE, ORDERED and HEAD OF QUEUE are supported; `volatile_cache` is V_SUP.
pub fn emit_extended_inquiry(
    peripheral: Peripheral,
    volatile_cache: bool,
    sense_length_max: u8,
    out: &mut [u8],
) -> usize {
    emit(peripheral, page::EXTENDED_INQUIRY, out, |writer| {
        writer.bytes(&[0x00, 0x07, u8::from(volatile_cache)]);
        writer.zeros_to(13);
        writer.u8(sense_length_max);
        writer.zeros_to(64);
    })
}

/// Mode Page Policy: one set of mode pages, shared by every I_T nexus.
pub fn emit_mode_page_policy(peripheral: Peripheral, out: &mut [u8]) -> usize {
    emit(peripheral, page::MODE_PAGE_POLICY, out, |writer| writer.bytes(&[0x3F, 0xFF, 0x00, 0x00]))
}

/// Block Limits (SBC-4 §6.6.4). One atomic write command is one atomic write operation (MAXIMUM ATOMIC BOUNDARY SIZE is
/// zero); WSNZ is one: WRITE SAME with a length of zero is refused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BlockLimits {
    /// MAXIMUM COMPARE AND WRITE LENGTH, blocks.
    pub compare_and_write_blocks_max: u8,
    /// OPTIMAL TRANSFER LENGTH GRANULARITY, blocks; 0: not reported.
    pub optimal_granularity_blocks: u16,
    /// MAXIMUM TRANSFER LENGTH, blocks; 0: no limit.
    pub transfer_blocks_max: u32,
    /// OPTIMAL TRANSFER LENGTH, blocks; 0: not reported.
    pub optimal_transfer_blocks: u32,
    /// MAXIMUM UNMAP LBA COUNT; FFFFFFFFh: no limit; 0: no UNMAP.
    pub unmap_blocks_max: u32,
    /// MAXIMUM UNMAP BLOCK DESCRIPTOR COUNT.
    pub unmap_descriptors_max: u32,
    /// OPTIMAL UNMAP GRANULARITY, blocks; 0: not reported.
    pub unmap_granularity_blocks: u32,
    /// UNMAP GRANULARITY ALIGNMENT, blocks.
    pub unmap_alignment: Option<u32>,
    /// MAXIMUM WRITE SAME LENGTH, blocks; 0: no limit.
    pub write_same_blocks_max: u64,
    /// MAXIMUM ATOMIC TRANSFER LENGTH, blocks; 0: no atomic writes.
    pub atomic_blocks_max: u32,
    /// ATOMIC ALIGNMENT, blocks; 0: any.
    pub atomic_alignment_blocks: u32,
    /// ATOMIC TRANSFER LENGTH GRANULARITY, blocks; 0: any.
    pub atomic_granularity_blocks: u32,
}

impl BlockLimits {
    /// Writes the page; returns its full length.
    pub fn emit(&self, peripheral: Peripheral, out: &mut [u8]) -> usize {
        emit(peripheral, page::BLOCK_LIMITS, out, |writer| {
            writer.bytes(&[0x01, self.compare_and_write_blocks_max]);
            writer.u16(self.optimal_granularity_blocks);
            writer.u32(self.transfer_blocks_max);
            writer.u32(self.optimal_transfer_blocks);
            writer.u32(0);
            writer.u32(self.unmap_blocks_max);
            writer.u32(self.unmap_descriptors_max);
            writer.u32(self.unmap_granularity_blocks);
            writer.u32(self.unmap_alignment.map_or(0, |alignment| 0x8000_0000 | alignment));
            writer.u64(self.write_same_blocks_max);
            writer.u32(self.atomic_blocks_max);
            writer.u32(self.atomic_alignment_blocks);
            writer.u32(self.atomic_granularity_blocks);
            writer.zeros_to(64);
        })
    }
}

/// Block Device Characteristics: rotation rate 1 means a non-rotating medium, 0 says nothing.
pub fn emit_block_device_characteristics(peripheral: Peripheral, rotational: bool, out: &mut [u8]) -> usize {
    emit(peripheral, page::BLOCK_DEVICE_CHARACTERISTICS, out, |writer| {
        writer.u16(u16::from(!rotational));
        writer.zeros_to(64);
    })
}

/// Logical Block Provisioning (SBC-4 §6.6.6): `discard` makes LBPU, LBPWS, LBPWS10 and thin provisioning,
/// `reads_zeros` LBPRZ. Anchoring is not supported.
pub fn emit_logical_block_provisioning(
    peripheral: Peripheral,
    discard: bool,
    reads_zeros: bool,
    out: &mut [u8],
) -> usize {
    emit(peripheral, page::LOGICAL_BLOCK_PROVISIONING, out, |writer| {
        let flags = if discard { 0xE0 | u8::from(reads_zeros) << 2 } else { 0 };
        writer.bytes(&[0x00, flags, u8::from(discard) << 1, 0x00]);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_have_the_lengths_of_the_standard() {
        let mut out = [0xEE; 512];
        let unit = Peripheral::BlockDevice;
        let block_limits = BlockLimits {
            unmap_alignment: Some(3),
            atomic_blocks_max: 0x0102,
            atomic_alignment_blocks: 0x0304,
            atomic_granularity_blocks: 0x0506,
            ..BlockLimits::default()
        };
        assert_eq!(block_limits.emit(unit, &mut out), 64);
        assert_eq!(&out[..4], &[0, 0xB0, 0, 0x3C]);
        assert_eq!(&out[32..36], &[0x80, 0, 0, 3]);
        assert_eq!(&out[44..56], &[0, 0, 1, 2, 0, 0, 3, 4, 0, 0, 5, 6]);
        assert_eq!(&out[56..64], &[0; 8]);
        assert_eq!(emit_block_device_characteristics(unit, false, &mut out), 64);
        assert_eq!(&out[..6], &[0, 0xB1, 0, 0x3C, 0, 1]);
        assert_eq!(emit_logical_block_provisioning(unit, true, true, &mut out), 8);
        assert_eq!(&out[..8], &[0, 0xB2, 0, 4, 0, 0xE4, 2, 0]);
        assert_eq!(emit_extended_inquiry(unit, true, 28, &mut out), 64);
        assert_eq!(&out[..8], &[0, 0x86, 0, 0x3C, 0, 7, 1, 0]);
        assert_eq!(out[13], 28);
    }

    #[test]
    fn identifiers_of_the_ieee_are_of_8_or_16_bytes() {
        let mut out = [0xEE; 64];
        let bytes: Vec<u8> = (1..=16).collect();
        for length in [8, 16] {
            let designators = [(Association::LogicalUnit, Designator::Eui64(&bytes[..length]))];
            let total = emit_device_identification(Peripheral::BlockDevice, 5, &designators, &mut out);
            assert_eq!(total, 8 + length);
            assert_eq!(&out[4..8], &[0x01, 0x02, 0, length as u8]);
            assert_eq!(&out[8..total], &bytes[..length]);
        }
    }

    #[test]
    fn names_end_with_a_null_and_fill_words() {
        for length in 1..20 {
            let name = "x".repeat(length);
            let mut out = [0xEE; 64];
            let designators = [(Association::TargetPort, Designator::Name(&name))];
            let total = emit_device_identification(Peripheral::BlockDevice, 5, &designators, &mut out);
            assert_eq!(total % 4, 0);
            assert_eq!(usize::from(out[3]), total - 4);
            assert_eq!(&out[4..7], &[0x53, 0x98, 0]);
            assert_eq!(usize::from(out[7]), total - 8);
            assert!(total - 8 > length);
            assert_eq!(out[total - 1], 0);
        }
    }
}
