//! Standard INQUIRY data (SPC-5 §6.7.2).

use super::Writer;

/// Peripheral qualifier and device type, byte 0 of INQUIRY data and of every VPD page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peripheral {
    /// 000b, 00h: a direct access block device that is there.
    BlockDevice,
    /// 000b, 1Eh: a well-known logical unit.
    WellKnown,
    /// 011b, 1Fh: no logical unit can be at this LUN now.
    Absent,
}

impl Peripheral {
    /// The byte.
    #[must_use]
    pub fn byte(self) -> u8 {
        match self {
            Peripheral::BlockDevice => 0x00,
            Peripheral::WellKnown => 0x1E,
            Peripheral::Absent => 0x7F,
        }
    }
}

/// Length of the standard INQUIRY data that is emitted: up to the end of the reserved bytes.
pub const STANDARD_INQUIRY_LENGTH: usize = 96;

/// Standard INQUIRY data of a target that conforms to SPC-4.
#[derive(Debug, Clone, Copy)]
pub struct StandardInquiry<'a> {
    /// What is at the LUN.
    pub peripheral: Peripheral,
    /// T10 vendor identification.
    pub vendor: &'a str,
    /// Product identification.
    pub product: &'a str,
    /// Product revision level.
    pub revision: &'a str,
    /// Version descriptors, at most eight.
    pub versions: &'a [u16],
}

impl StandardInquiry<'_> {
    /// Writes the data; returns its full length.
    pub fn emit(&self, out: &mut [u8]) -> usize {
        let mut writer = Writer::new(out);
        writer.u8(self.peripheral.byte());
        // RMB 0; VERSION 06h: SPC-4.
        writer.bytes(&[0x00, 0x06]);
        // HISUP: LUNs follow SAM's structures; RESPONSE DATA FORMAT 2.
        writer.bytes(&[0x12, (STANDARD_INQUIRY_LENGTH - 5) as u8]);
        // No SCC, ACC, TPGS, 3PC, PROTECT; no ENCSERV, MULTIP; CMDQUE.
        writer.bytes(&[0x00, 0x00, 0x02]);
        writer.text(self.vendor, 8);
        writer.text(self.product, 16);
        writer.text(self.revision, 4);
        writer.zeros_to(58);
        for version in self.versions.iter().take(8) {
            writer.u16(*version);
        }
        writer.zeros_to(STANDARD_INQUIRY_LENGTH);
        writer.length()
    }
}

#[cfg(test)]
mod tests {
    use super::{Peripheral, StandardInquiry};

    #[test]
    fn fields_stand_where_the_standard_puts_them() {
        let inquiry = StandardInquiry {
            peripheral: Peripheral::BlockDevice,
            vendor: "POLLUX",
            product: "A product name that is too long",
            revision: "1",
            versions: &[0x00A0, 0x0960],
        };
        let mut out = [0xEE; 128];
        assert_eq!(inquiry.emit(&mut out), 96);
        assert_eq!(&out[..8], &[0, 0, 6, 0x12, 91, 0, 0, 2]);
        assert_eq!(&out[8..36], b"POLLUX  A product name t1   ");
        assert_eq!(&out[58..64], &[0x00, 0xA0, 0x09, 0x60, 0, 0]);
        assert_eq!(inquiry.emit(&mut []), 96);
    }
}
