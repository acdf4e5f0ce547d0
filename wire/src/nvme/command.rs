//! Submission queue entries (NVMe Base 2.0 §3.3.3.1, NVM Command Set 1.0 §3.2).

/// Opcodes of admin commands (NVMe Base 2.0 §5).
pub mod admin {
    /// Delete I/O Submission Queue.
    pub const DELETE_SUBMISSION_QUEUE: u8 = 0x00;
    /// Create I/O Submission Queue.
    pub const CREATE_SUBMISSION_QUEUE: u8 = 0x01;
    /// Get Log Page.
    pub const GET_LOG_PAGE: u8 = 0x02;
    /// Delete I/O Completion Queue.
    pub const DELETE_COMPLETION_QUEUE: u8 = 0x04;
    /// Create I/O Completion Queue.
    pub const CREATE_COMPLETION_QUEUE: u8 = 0x05;
    /// Identify.
    pub const IDENTIFY: u8 = 0x06;
    /// Abort.
    pub const ABORT: u8 = 0x08;
    /// Set Features.
    pub const SET_FEATURES: u8 = 0x09;
    /// Get Features.
    pub const GET_FEATURES: u8 = 0x0A;
    /// Asynchronous Event Request.
    pub const ASYNCHRONOUS_EVENT_REQUEST: u8 = 0x0C;
    /// Doorbell Buffer Config.
    pub const DOORBELL_BUFFER_CONFIG: u8 = 0x7C;
    /// Format NVM.
    pub const FORMAT_NVM: u8 = 0x80;
}

/// Opcodes of NVM commands (NVM Command Set 1.0 §3.2).
pub mod nvm {
    /// Flush.
    pub const FLUSH: u8 = 0x00;
    /// Write.
    pub const WRITE: u8 = 0x01;
    /// Read.
    pub const READ: u8 = 0x02;
    /// Compare.
    pub const COMPARE: u8 = 0x05;
    /// Write Zeroes.
    pub const WRITE_ZEROES: u8 = 0x08;
    /// Dataset Management.
    pub const DATASET_MANAGEMENT: u8 = 0x09;
    /// Verify.
    pub const VERIFY: u8 = 0x0C;
    /// Copy.
    pub const COPY: u8 = 0x19;
}

/// Bits of dword 12 of the commands that name a range of blocks.
pub mod range_flag {
    /// Force Unit Access (FUA).
    pub const FUA: u32 = 1 << 30;
    /// Protection Information Action (PRACT): the controller makes and strips protection information.
    pub const PRACT: u32 = 1 << 29;
    /// Check the guard (PRCHK).
    pub const CHECK_GUARD: u32 = 1 << 28;
    /// Check the reference tag (PRCHK).
    pub const CHECK_REFERENCE_TAG: u32 = 1 << 26;
    /// Deallocate (DEAC) of WRITE ZEROES.
    pub const DEALLOCATE: u32 = 1 << 25;
}

/// Attribute - Deallocate (AD) of DATASET MANAGEMENT, dword 11.
pub const DEALLOCATE: u32 = 1 << 2;

/// A submission queue entry: 64 bytes as 8 little-endian double words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Entry(pub [u64; 8]);

impl Entry {
    /// A command without data.
    #[inline]
    #[must_use]
    pub const fn new(opcode: u8, nsid: u32) -> Entry {
        Entry([opcode as u64 | (nsid as u64) << 32, 0, 0, 0, 0, 0, 0, 0])
    }

    /// With its Command Identifier (CID).
    #[inline]
    #[must_use]
    pub const fn command(mut self, command: u16) -> Entry {
        self.0[0] = self.0[0] & !(0xFFFF << 16) | (command as u64) << 16;
        self
    }

    /// With PRP entries 1 and 2 (PSDT 00b).
    #[inline]
    #[must_use]
    pub const fn prp(mut self, first: u64, second: u64) -> Entry {
        self.0[0] &= !(0b11 << 14);
        self.0[3] = first;
        self.0[4] = second;
        self
    }

    /// With one SGL Data Block descriptor (NVMe Base 2.0 §4.1.2; PSDT 01b: metadata, if any, is one contiguous buffer).
    #[inline]
    #[must_use]
    pub const fn sgl_data_block(mut self, address: u64, length: u32) -> Entry {
        self.0[0] = self.0[0] & !(0b11 << 14) | 0b01 << 14;
        self.0[3] = address;
        self.0[4] = length as u64;
        self
    }

    /// With the Metadata Pointer (MPTR).
    #[inline]
    #[must_use]
    pub const fn metadata(mut self, address: u64) -> Entry {
        self.0[2] = address;
        self
    }

    /// With command dwords 10 and 11.
    #[inline]
    #[must_use]
    pub const fn dwords_10_11(mut self, dword10: u32, dword11: u32) -> Entry {
        self.0[5] = dword10 as u64 | (dword11 as u64) << 32;
        self
    }

    /// With command dwords 12 and 13.
    #[inline]
    #[must_use]
    pub const fn dwords_12_13(mut self, dword12: u32, dword13: u32) -> Entry {
        self.0[6] = dword12 as u64 | (dword13 as u64) << 32;
        self
    }

    /// With command dwords 14 and 15.
    #[inline]
    #[must_use]
    pub const fn dwords_14_15(mut self, dword14: u32, dword15: u32) -> Entry {
        self.0[7] = dword14 as u64 | (dword15 as u64) << 32;
        self
    }

    /// With the Starting LBA (SLBA) and the Number of Logical Blocks (NLB, 0's based) of a command on blocks; `blocks` is
    /// 1 to 65,536. `flags` are of [`range_flag`].
    #[inline]
    #[must_use]
    pub const fn range(mut self, lba: u64, blocks: u32, flags: u32) -> Entry {
        self.0[5] = lba;
        self.0[6] = self.0[6] & !0xFFFF_FFFF | (blocks.wrapping_sub(1) & 0xFFFF | flags) as u64;
        self
    }

    /// The entry whose 64 bytes are these.
    #[must_use]
    pub fn parse(bytes: &[u8; 64]) -> Entry {
        let words = bytes.as_chunks::<8>().0;
        Entry(std::array::from_fn(|index| words.get(index).map_or(0, |word| u64::from_le_bytes(*word))))
    }

    /// The 64 bytes.
    #[must_use]
    pub fn emit(&self) -> [u8; 64] {
        let mut bytes = [0; 64];
        for (to, from) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(self.0) {
            *to = from.to_le_bytes();
        }
        bytes
    }

    /// Opcode (OPC).
    #[must_use]
    pub const fn opcode(&self) -> u8 {
        self.0[0] as u8
    }
}

/// Create I/O Completion Queue (NVMe Base 2.0 §5.4): physically contiguous, `entries` 2 to 65,536.
#[must_use]
pub const fn create_completion_queue(queue: u16, entries: u32, address: u64, vector: Option<u16>) -> Entry {
    let interrupts = match vector {
        Some(vector) => 1 << 1 | (vector as u32) << 16,
        None => 0,
    };
    Entry::new(admin::CREATE_COMPLETION_QUEUE, 0)
        .prp(address, 0)
        .dwords_10_11(queue as u32 | (entries.wrapping_sub(1) & 0xFFFF) << 16, 1 | interrupts)
}

/// Create I/O Submission Queue (NVMe Base 2.0 §5.5): physically contiguous, its completions in the queue of the same
/// number.
#[must_use]
pub const fn create_submission_queue(queue: u16, entries: u32, address: u64) -> Entry {
    Entry::new(admin::CREATE_SUBMISSION_QUEUE, 0)
        .prp(address, 0)
        .dwords_10_11(queue as u32 | (entries.wrapping_sub(1) & 0xFFFF) << 16, 1 | (queue as u32) << 16)
}

/// Delete I/O Submission Queue or Completion Queue (NVMe Base 2.0 §5.6, §5.7).
#[must_use]
pub const fn delete_queue(queue: u16, completion: bool) -> Entry {
    let opcode = if completion { admin::DELETE_COMPLETION_QUEUE } else { admin::DELETE_SUBMISSION_QUEUE };
    Entry::new(opcode, 0).dwords_10_11(queue as u32, 0)
}

/// Identify (NVMe Base 2.0 §5.17).
#[must_use]
pub const fn identify(cns: u8, nsid: u32, csi: u8, address: u64) -> Entry {
    Entry::new(admin::IDENTIFY, nsid).prp(address, 0).dwords_10_11(cns as u32, (csi as u32) << 24)
}

/// Get Log Page (NVMe Base 2.0 §5.16) of `length` bytes, a multiple of 4; reading it lets further events of its type come.
#[must_use]
pub const fn get_log_page(page: u8, nsid: u32, length: u32) -> Entry {
    let dwords = (length / 4).saturating_sub(1);
    Entry::new(admin::GET_LOG_PAGE, nsid).dwords_10_11(page as u32 | (dwords & 0xFFFF) << 16, dwords >> 16)
}

/// Abort (NVMe Base 2.0 §5.1).
#[must_use]
pub const fn abort(queue: u16, command: u16) -> Entry {
    Entry::new(admin::ABORT, 0).dwords_10_11(queue as u32 | (command as u32) << 16, 0)
}

/// Set Features (NVMe Base 2.0 §5.27).
#[must_use]
pub const fn set_features(feature: u8, nsid: u32, save: bool, dword11: u32) -> Entry {
    Entry::new(admin::SET_FEATURES, nsid).dwords_10_11(feature as u32 | (save as u32) << 31, dword11)
}

/// Get Features (NVMe Base 2.0 §5.15).
#[must_use]
pub const fn get_features(feature: u8, nsid: u32, select: u8, dword11: u32) -> Entry {
    Entry::new(admin::GET_FEATURES, nsid).dwords_10_11(feature as u32 | (select as u32 & 7) << 8, dword11)
}

/// Format NVM (NVMe Base 2.0 §5.14).
#[must_use]
pub const fn format(nsid: u32, format: u8, extended: bool, protection: u8, secure_erase: u8) -> Entry {
    let dword10 = (format as u32 & 0xF)
        | (extended as u32) << 4
        | (protection as u32 & 7) << 5
        | (secure_erase as u32 & 7) << 9
        | (format as u32 >> 4 & 3) << 12;
    Entry::new(admin::FORMAT_NVM, nsid).dwords_10_11(dword10, 0)
}

/// A range of DATASET MANAGEMENT (NVM Command Set 1.0 §3.2.3.1), as two double words.
#[must_use]
pub const fn deallocate_range(lba: u64, blocks: u32) -> [u64; 2] {
    [(blocks as u64) << 32, lba]
}

/// A source range of COPY in descriptor format 0 (NVM Command Set 1.0 §3.2.2), as four double words. `blocks` is 1 to
/// 65,536.
#[must_use]
pub const fn copy_source(lba: u64, blocks: u32) -> [u64; 4] {
    [0, lba, (blocks.wrapping_sub(1) & 0xFFFF) as u64, lba & 0xFFFF_FFFF]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn commands_on_blocks() {
        let entry = Entry::new(nvm::READ, 5).command(0x1234).prp(0x1000, 0x2000);
        let entry = entry.range(0x11_2233_4455, 8, range_flag::FUA);
        let bytes = entry.emit();
        assert_eq!(bytes[..8], [0x02, 0, 0x34, 0x12, 5, 0, 0, 0]);
        assert_eq!(bytes[24..40], [0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[40..52], [0x55, 0x44, 0x33, 0x22, 0x11, 0, 0, 0, 7, 0, 0, 0x40]);
        assert_eq!(Entry::new(0, 0).range(0, 65_536, 0).emit()[48..50], [0xFF, 0xFF]);
    }

    #[test]
    fn a_data_block_descriptor() {
        let bytes = Entry::new(nvm::WRITE, 1).prp(1, 2).sgl_data_block(0xABCD_0000, 0x3000).emit();
        assert_eq!(bytes[1], 0x40);
        assert_eq!(bytes[24..40], [0, 0, 0xCD, 0xAB, 0, 0, 0, 0, 0, 0x30, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn admin_commands() {
        let bytes = create_completion_queue(3, 256, 0x5000, Some(2)).emit();
        assert_eq!((bytes[0], &bytes[40..48]), (0x05, &[3, 0, 255, 0, 3, 0, 2, 0][..]));
        let bytes = create_submission_queue(3, 256, 0x5000).emit();
        assert_eq!((bytes[0], &bytes[40..48]), (0x01, &[3, 0, 255, 0, 1, 0, 3, 0][..]));
        assert_eq!(abort(2, 0xBEEF).emit()[40..44], [2, 0, 0xEF, 0xBE]);
        assert_eq!(get_log_page(2, NSID, 512).emit()[40..48], [2, 0, 127, 0, 0, 0, 0, 0]);
        assert_eq!(format(1, 0x12, true, 1, 2).emit()[40..44], [0x32, 0x14, 0, 0]);
        assert_eq!(set_features(7, 0, true, 9).emit()[40..48], [7, 0, 0, 0x80, 9, 0, 0, 0]);
    }
    const NSID: u32 = super::super::NSID_ALL;

    #[test]
    fn ranges() {
        let [attributes, lba] = deallocate_range(0x99, 7);
        assert_eq!((attributes, lba), (7 << 32, 0x99));
        assert_eq!(copy_source(0x1_0000_0002, 1), [0, 0x1_0000_0002, 0, 2]);
    }

    proptest! {
        #[test]
        fn entries_are_their_bytes(words: [u64; 8], command: u16) {
            let entry = Entry(words);
            prop_assert_eq!(Entry::parse(&entry.emit()), entry);
            let named = entry.command(command).emit();
            prop_assert_eq!(&named[2..4], &command.to_le_bytes()[..]);
            prop_assert_eq!(&named[4..], &entry.emit()[4..]);
        }
    }
}
