//! End-to-end protection information (NVM Command Set 1.0 §5.2), 16-bit guard, in eight bytes of metadata.

use super::command::Command;
use super::status::{self, Status};
use super::transfer::Refusal;
use super::violation::Rule;

/// PRCHK: check the guard.
pub const CHECK_GUARD: u32 = 4;
/// PRCHK: check the application tag.
pub const CHECK_APPLICATION: u32 = 2;
/// PRCHK: check the reference tag.
pub const CHECK_REFERENCE: u32 = 1;

/// What a command says about protection information.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Protection {
    /// Type 1 to 3.
    pub kind: u8,
    /// PRACT: the controller inserts and strips it.
    pub act: bool,
    /// PRCHK.
    pub check: u32,
    /// ILBRT or EILBRT.
    pub reference: u32,
    /// LBAT or ELBAT.
    pub application: u16,
    /// LBATM or ELBATM.
    pub mask: u16,
}

impl Protection {
    /// Of a command whose PRINFO is in bits 29:26 of dword 12; nothing when the namespace has no protection.
    ///
    /// # Errors
    /// Invalid Protection Information when the initial reference tag contradicts the type.
    pub fn of(command: &Command, kind: u8, lba: u64, write: bool) -> Result<Option<Protection>, Refusal> {
        let info = command.dword(12) >> 26 & 15;
        let tags = command.dword(15);
        Protection::new(kind, info, command.dword(14), (tags as u16, (tags >> 16) as u16), lba, write)
    }

    /// As [`Protection::of`], from the fields themselves: PRINFO, initial reference tag, application tag and mask.
    ///
    /// # Errors
    /// As [`Protection::of`].
    pub fn new(
        kind: u8,
        info: u32,
        reference: u32,
        (application, mask): (u16, u16),
        lba: u64,
        write: bool,
    ) -> Result<Option<Protection>, Refusal> {
        if kind == 0 {
            return Ok(None);
        }
        let (act, check) = (info & 8 != 0, info & 7);
        let used = check & CHECK_REFERENCE != 0 || (act && write);
        if kind == 1 && used && reference != lba as u32 {
            return Err(Refusal::broken(
                status::INVALID_PROTECTION_INFORMATION,
                Rule::Bounds,
                format!("type 1 with initial reference tag {reference:#x} for LBA {lba:#x}"),
            ));
        }
        if kind == 3 && check & CHECK_REFERENCE != 0 {
            // Type 3 has no reference tag to check. A host may not know yet that another one has formatted.
            return Err(Refusal::plain(status::INVALID_PROTECTION_INFORMATION | status::DNR));
        }
        Ok(Some(Protection { kind, act, check, reference, application, mask }))
    }

    fn expected(&self, block: u64) -> u32 {
        if self.kind == 3 { self.reference } else { self.reference.wrapping_add(block as u32) }
    }

    /// Checks the tuple of the command's `block`-th block.
    ///
    /// # Errors
    /// Guard, application tag or reference tag check error.
    pub fn verify(&self, data: &[u8], tuple: &[u8], block: u64) -> Result<(), Status> {
        let guard = u16::from_be_bytes([tuple[0], tuple[1]]);
        let application = u16::from_be_bytes([tuple[2], tuple[3]]);
        let reference = u32::from_be_bytes([tuple[4], tuple[5], tuple[6], tuple[7]]);
        let escape = application == 0xFFFF && (self.kind != 3 || reference == u32::MAX);
        if escape {
            return Ok(());
        }
        if self.check & CHECK_GUARD != 0 && guard != guard_of(data) {
            return Err(status::GUARD_CHECK_ERROR);
        }
        if self.check & CHECK_APPLICATION != 0 && (application ^ self.application) & self.mask != 0 {
            return Err(status::APPLICATION_TAG_CHECK_ERROR);
        }
        if self.check & CHECK_REFERENCE != 0 && reference != self.expected(block) {
            return Err(status::REFERENCE_TAG_CHECK_ERROR);
        }
        Ok(())
    }

    /// Makes the tuple of the command's `block`-th block.
    pub fn generate(&self, data: &[u8], tuple: &mut [u8], block: u64) {
        tuple[0..2].copy_from_slice(&guard_of(data).to_be_bytes());
        tuple[2..4].copy_from_slice(&self.application.to_be_bytes());
        tuple[4..8].copy_from_slice(&self.expected(block).to_be_bytes());
    }
}

/// CRC-16 T10-DIF.
#[must_use]
pub fn guard_of(data: &[u8]) -> u16 {
    // Polynomial 8BB7h, initial value 0, not reflected: by a table of bytes.
    const TABLE: [u16; 256] = {
        let mut table = [0u16; 256];
        let mut i = 0;
        while i < 256 {
            let mut crc = (i as u16) << 8;
            let mut bit = 0;
            while bit < 8 {
                crc = if crc & 0x8000 != 0 { crc << 1 ^ 0x8BB7 } else { crc << 1 };
                bit += 1;
            }
            table[i] = crc;
            i += 1;
        }
        table
    };
    data.iter().fold(0, |crc, &byte| crc << 8 ^ TABLE[usize::from((crc >> 8) as u8 ^ byte)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guard_is_the_crc_of_t10_dif() {
        // The check value of CRC-16/T10-DIF, and SBC-3's own examples.
        assert_eq!(guard_of(b"123456789"), 0xD0DB);
        assert_eq!(guard_of(&[0; 32]), 0);
        assert_eq!(guard_of(&[0xFF; 32]), 0xA293);
    }
}
