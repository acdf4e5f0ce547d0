//! Mode parameters: headers, block descriptors and pages (SPC-5 §7.5, SBC-4 §6.5).

use super::Writer;

/// Page codes.
pub mod page {
    /// Read-Write Error Recovery.
    pub const READ_WRITE_ERROR_RECOVERY: u8 = 0x01;
    /// Caching.
    pub const CACHING: u8 = 0x08;
    /// Control; subpage 01h is Control Extension.
    pub const CONTROL: u8 = 0x0A;
    /// Informational Exceptions Control.
    pub const INFORMATIONAL_EXCEPTIONS: u8 = 0x1C;
    /// All pages.
    pub const ALL: u8 = 0x3F;
    /// All subpages.
    pub const ALL_SUBPAGES: u8 = 0xFF;
}

/// Read-Write Error Recovery: the device decides for itself; nothing is promised.
#[must_use]
pub fn read_write_error_recovery() -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..2].copy_from_slice(&[page::READ_WRITE_ERROR_RECOVERY, 0x0A]);
    bytes
}

/// Caching: WCE.
#[must_use]
pub fn caching(write_cache_enabled: bool) -> [u8; 20] {
    let mut bytes = [0; 20];
    bytes[..3].copy_from_slice(&[page::CACHING, 0x12, u8::from(write_cache_enabled) << 2]);
    bytes
}

/// WCE of a Caching page.
#[must_use]
pub fn caching_enabled(page: &[u8]) -> bool {
    page.get(2).is_some_and(|byte| byte & 0x04 != 0)
}

/// The fields of the Control page that mean something here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Control {
    /// D_SENSE: descriptor format sense data.
    pub descriptor_sense: bool,
    /// SWP: software write protect.
    pub software_write_protect: bool,
    /// TAS: tasks aborted by another nexus end with TASK ABORTED.
    pub task_aborted_status: bool,
}

impl Control {
    /// The page: one task set for all nexuses, GLTSD, restricted reordering, QERR 00b.
    #[must_use]
    pub fn bytes(self) -> [u8; 12] {
        let mut bytes = [0; 12];
        bytes[..2].copy_from_slice(&[page::CONTROL, 0x0A]);
        bytes[2] = 0x02 | u8::from(self.descriptor_sense) << 2;
        bytes[4] = u8::from(self.software_write_protect) << 3;
        bytes[5] = u8::from(self.task_aborted_status) << 6;
        bytes
    }

    /// The fields of a page's bytes; missing ones are clear.
    #[must_use]
    pub fn parse(page: &[u8]) -> Control {
        let bit = |at: usize, mask: u8| page.get(at).is_some_and(|byte| byte & mask != 0);
        Control {
            descriptor_sense: bit(2, 0x04),
            software_write_protect: bit(4, 0x08),
            task_aborted_status: bit(5, 0x40),
        }
    }
}

/// Control Extension: no priorities, no limit of the sense data length.
#[must_use]
pub fn control_extension() -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&[0x40 | page::CONTROL, 0x01, 0x00, 0x1C]);
    bytes
}

/// Informational Exceptions Control: MRIE 6, they are reported when REQUEST SENSE asks; or DEXCPT, when there are none.
#[must_use]
pub fn informational_exceptions(reported: bool) -> [u8; 12] {
    let mut bytes = [0; 12];
    let (flags, method) = if reported { (0, 6) } else { (0x08, 0) };
    bytes[..4].copy_from_slice(&[page::INFORMATIONAL_EXCEPTIONS, 0x0A, flags, method]);
    bytes
}

/// What stands before the pages of MODE SENSE data.
#[derive(Debug, Clone, Copy)]
pub struct Header {
    /// MODE SENSE(10) form.
    pub long: bool,
    /// WP bit.
    pub write_protected: bool,
    /// Number of blocks and block length of the one block descriptor.
    pub block_descriptor: Option<(u64, u32)>,
    /// LONGLBA: the descriptor has 16 bytes instead of 8.
    pub long_lba: bool,
}

impl Header {
    /// Writes header and block descriptor. DPOFUA is set: DPO and FUA are supported everywhere.
    pub fn emit(&self, writer: &mut Writer<'_>) {
        let device_specific = 0x10 | u8::from(self.write_protected) << 7;
        let descriptor_length = match (self.block_descriptor, self.long_lba) {
            (None, _) => 0,
            (Some(_), false) => 8,
            (Some(_), true) => 16,
        };
        if self.long {
            let long_lba = u8::from(self.long_lba && self.block_descriptor.is_some());
            writer.bytes(&[0, 0, 0, device_specific, long_lba, 0, 0, descriptor_length]);
        } else {
            writer.bytes(&[0, 0, device_specific, descriptor_length]);
        }
        match (self.block_descriptor, self.long_lba) {
            (None, _) => {}
            (Some((blocks, length)), false) => {
                writer.u32(u32::try_from(blocks).unwrap_or(u32::MAX));
                writer.u32(length & 0x00FF_FFFF);
            }
            (Some((blocks, length)), true) => {
                writer.u64(blocks);
                writer.u32(0);
                writer.u32(length);
            }
        }
    }

    /// Writes MODE DATA LENGTH when everything is written.
    pub fn finish(&self, writer: &mut Writer<'_>) {
        let length = writer.length();
        if self.long {
            writer.patch_u16(0, u16::try_from(length - 2).unwrap_or(u16::MAX));
        } else {
            writer.patch_u8(0, u8::try_from(length - 1).unwrap_or(u8::MAX));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_lengths_are_true() {
        let pages: [&[u8]; 4] = [
            &read_write_error_recovery(),
            &caching(true),
            &Control { descriptor_sense: true, software_write_protect: true, task_aborted_status: true }
                .bytes(),
            &informational_exceptions(false),
        ];
        for page in pages {
            assert_eq!(usize::from(page[1]) + 2, page.len());
        }
        assert_eq!(usize::from(control_extension()[3]) + 4, control_extension().len());
    }

    #[test]
    fn control_bits_round_trip() {
        for bits in 0..8_u8 {
            let control = Control {
                descriptor_sense: bits & 1 != 0,
                software_write_protect: bits & 2 != 0,
                task_aborted_status: bits & 4 != 0,
            };
            assert_eq!(Control::parse(&control.bytes()), control);
        }
        assert!(caching_enabled(&caching(true)));
        assert!(!caching_enabled(&caching(false)));
        assert!(!caching_enabled(&[]));
    }
}
