//! Parameter data of commands that have no page of their own.

use super::{Lun, Writer};

/// READ CAPACITY(10) data (SBC-4 §5.20.2); `last` is the last LBA, FFFFFFFFh when it does not fit.
pub fn emit_read_capacity_10(last: u64, block_size: u32, out: &mut [u8]) -> usize {
    let mut writer = Writer::new(out);
    writer.u32(u32::try_from(last).unwrap_or(u32::MAX));
    writer.u32(block_size);
    writer.length()
}

/// READ CAPACITY(16) data (SBC-4 §5.21.2), without protection information.
#[derive(Debug, Clone, Copy)]
pub struct ReadCapacity16 {
    /// Last LBA.
    pub last: u64,
    /// Bytes of a logical block.
    pub block_size: u32,
    /// LOGICAL BLOCKS PER PHYSICAL BLOCK EXPONENT, at most 15.
    pub physical_block_exponent: u8,
    /// LOWEST ALIGNED LOGICAL BLOCK ADDRESS, 14 bits.
    pub lowest_aligned_block: u16,
    /// LBPME: logical block provisioning management.
    pub provisioning: bool,
    /// LBPRZ: deallocated blocks read as zeros.
    pub reads_zeros: bool,
}

impl ReadCapacity16 {
    /// Writes the data; returns its full length.
    pub fn emit(&self, out: &mut [u8]) -> usize {
        let mut writer = Writer::new(out);
        writer.u64(self.last);
        writer.u32(self.block_size);
        writer.bytes(&[0, self.physical_block_exponent & 0x0F]);
        let flags =
            u16::from(self.provisioning) << 15 | u16::from(self.provisioning && self.reads_zeros) << 14;
        writer.u16(flags | self.lowest_aligned_block & 0x3FFF);
        writer.zeros_to(32);
        writer.length()
    }
}

/// READ DEFECT DATA with an empty list: `request` holds REQ_PLIST, REQ_GLIST and DEFECT LIST FORMAT, which are
/// answered by PLISTV, GLISTV and the same format.
pub fn emit_no_defects(long: bool, request: u8, out: &mut [u8]) -> usize {
    let mut writer = Writer::new(out);
    writer.bytes(&[0, request & 0x1F]);
    writer.zeros_to(if long { 8 } else { 4 });
    writer.length()
}

/// REPORT LUNS data.
pub fn emit_luns(luns: impl Iterator<Item = Lun>, out: &mut [u8]) -> usize {
    let mut writer = Writer::new(out);
    writer.u64(0);
    luns.for_each(|lun| writer.u64(lun.0));
    let length = writer.length() - 8;
    writer.patch_u32(0, u32::try_from(length).unwrap_or(u32::MAX));
    writer.length()
}

/// One command of REPORT SUPPORTED OPERATION CODES, reporting option 000b (SPC-5 §6.29.2).
pub fn emit_command_descriptor(
    writer: &mut Writer<'_>,
    operation_code: u8,
    service_action: Option<u16>,
    cdb_length: u8,
    timeouts: bool,
) {
    writer.bytes(&[operation_code, 0]);
    writer.u16(service_action.unwrap_or(0));
    // CTDP, SERVACTV.
    writer.bytes(&[0, u8::from(timeouts) << 1 | u8::from(service_action.is_some())]);
    writer.u16(u16::from(cdb_length));
    if timeouts {
        emit_command_timeouts(writer);
    }
}

/// The command timeouts descriptor (SPC-5 §6.29.4): no timeout is named.
pub fn emit_command_timeouts(writer: &mut Writer<'_>) {
    writer.u16(0x000A);
    writer.zeros(10);
}

/// The bytes of one LBA status descriptor.
pub const LBA_STATUS_DESCRIPTOR_LENGTH: usize = 16;

/// GET LBA STATUS header (SBC-4 §5.7.2) for `descriptors` descriptors.
pub fn emit_lba_status_header(descriptors: u32, out: &mut [u8]) -> usize {
    let mut writer = Writer::new(out);
    writer.u32(descriptors.saturating_mul(LBA_STATUS_DESCRIPTOR_LENGTH as u32).saturating_add(4));
    writer.u32(0);
    writer.length()
}

/// One LBA status descriptor; `status` 0 mapped, 1 deallocated, 2 anchored.
pub fn emit_lba_status(lba: u64, blocks: u32, status: u8, out: &mut [u8]) -> usize {
    let mut writer = Writer::new(out);
    writer.u64(lba);
    writer.u32(blocks);
    writer.bytes(&[status & 0x0F, 0, 0, 0]);
    writer.length()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capacities() {
        let mut out = [0xEE; 64];
        assert_eq!(emit_read_capacity_10(0x1_0000_0000, 512, &mut out), 8);
        assert_eq!(&out[..8], &[0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 2, 0]);
        let capacity = ReadCapacity16 {
            last: 7,
            block_size: 4096,
            physical_block_exponent: 3,
            lowest_aligned_block: 5,
            provisioning: true,
            reads_zeros: true,
        };
        assert_eq!(capacity.emit(&mut out), 32);
        assert_eq!(&out[..17], &[0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0x10, 0, 0, 3, 0xC0, 5, 0]);
    }

    #[test]
    fn lists_count_themselves() {
        let mut out = [0xEE; 64];
        assert_eq!(emit_luns([Lun::ZERO, Lun::from_number(3)].into_iter(), &mut out), 24);
        assert_eq!(&out[..8], &[0, 0, 0, 16, 0, 0, 0, 0]);
        assert_eq!(&out[16..24], &[0, 3, 0, 0, 0, 0, 0, 0]);
        assert_eq!(emit_lba_status_header(2, &mut out), 8);
        assert_eq!(&out[..4], &[0, 0, 0, 36]);
        assert_eq!(emit_no_defects(false, 0x1D, &mut out), 4);
        assert_eq!(&out[..4], &[0, 0x1D, 0, 0]);
    }
}
