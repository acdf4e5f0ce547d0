//! Submission queue entries (Base 2.0 §3.3.3.1) and the opcodes this controller knows.

/// Admin opcodes (Base 2.0 figure "Opcodes for Admin Commands").
pub mod admin {
    /// Delete I/O Submission Queue.
    pub const DELETE_SQ: u8 = 0x00;
    /// Create I/O Submission Queue.
    pub const CREATE_SQ: u8 = 0x01;
    /// Get Log Page.
    pub const GET_LOG_PAGE: u8 = 0x02;
    /// Delete I/O Completion Queue.
    pub const DELETE_CQ: u8 = 0x04;
    /// Create I/O Completion Queue.
    pub const CREATE_CQ: u8 = 0x05;
    /// Identify.
    pub const IDENTIFY: u8 = 0x06;
    /// Abort.
    pub const ABORT: u8 = 0x08;
    /// Set Features.
    pub const SET_FEATURES: u8 = 0x09;
    /// Get Features.
    pub const GET_FEATURES: u8 = 0x0A;
    /// Asynchronous Event Request.
    pub const ASYNC_EVENT: u8 = 0x0C;
    /// Doorbell Buffer Config.
    pub const DOORBELL_BUFFER_CONFIG: u8 = 0x7C;
    /// Format NVM.
    pub const FORMAT_NVM: u8 = 0x80;
}

/// I/O opcodes (NVM Command Set 1.0 §3.2).
pub mod io {
    /// Flush.
    pub const FLUSH: u8 = 0x00;
    /// Write.
    pub const WRITE: u8 = 0x01;
    /// Read.
    pub const READ: u8 = 0x02;
    /// Write Uncorrectable.
    pub const WRITE_UNCORRECTABLE: u8 = 0x04;
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

/// NSID that means every namespace.
pub const NSID_ALL: u32 = 0xFFFF_FFFF;

/// A submission queue entry: sixteen little-endian words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Command(pub [u32; 16]);

impl Command {
    /// Of the bytes in a queue.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; 64]) -> Command {
        let (words, _) = bytes.as_chunks::<4>();
        Command(std::array::from_fn(|i| u32::from_le_bytes(words[i])))
    }

    /// OPC.
    #[must_use]
    pub fn opcode(&self) -> u8 {
        self.0[0] as u8
    }

    /// FUSE: 0 alone, 1 first, 2 second of a fused operation.
    #[must_use]
    pub fn fuse(&self) -> u32 {
        (self.0[0] >> 8) & 3
    }

    /// PSDT: 0 PRPs, 1 SGL with contiguous metadata, 2 SGL with an SGL for metadata.
    #[must_use]
    pub fn psdt(&self) -> u32 {
        (self.0[0] >> 14) & 3
    }

    /// CID.
    #[must_use]
    pub fn cid(&self) -> u16 {
        (self.0[0] >> 16) as u16
    }

    /// NSID.
    #[must_use]
    pub fn nsid(&self) -> u32 {
        self.0[1]
    }

    /// Command dword `n`.
    #[must_use]
    pub fn dword(&self, n: usize) -> u32 {
        self.0[n]
    }

    /// Command dwords `n` (low) and `n + 1` (high).
    #[must_use]
    pub fn qword(&self, n: usize) -> u64 {
        u64::from(self.0[n]) | u64::from(self.0[n + 1]) << 32
    }

    /// MPTR.
    #[must_use]
    pub fn metadata_pointer(&self) -> u64 {
        self.qword(4)
    }

    /// DPTR.PRP1.
    #[must_use]
    pub fn prp1(&self) -> u64 {
        self.qword(6)
    }

    /// DPTR.PRP2.
    #[must_use]
    pub fn prp2(&self) -> u64 {
        self.qword(8)
    }

    /// DPTR.SGL1, as it stands in the entry.
    #[must_use]
    pub fn sgl1(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        for (chunk, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(&self.0[6..10]) {
            *chunk = word.to_le_bytes();
        }
        bytes
    }
}

/// Bits with a meaning in command dwords 2, 3 and 10 to 15, and which other fields a command uses.
#[derive(Debug, Clone, Copy)]
pub struct Fields {
    /// Defined bits of dwords 10 to 15.
    pub dwords: [u32; 6],
    /// It uses NSID.
    pub nsid: bool,
    /// It uses DPTR.
    pub data: bool,
    /// It uses MPTR, and dwords 2 and 3 may carry upper tag bits.
    pub metadata: bool,
}

const fn fields(dwords: [u32; 6], nsid: bool, data: bool, metadata: bool) -> Fields {
    Fields { dwords, nsid, data, metadata }
}

const ALL: u32 = u32::MAX;

/// The fields of an admin command; `None` when the controller does not have it.
#[must_use]
pub fn admin_fields(opcode: u8) -> Option<Fields> {
    Some(match opcode {
        admin::DELETE_SQ | admin::DELETE_CQ => fields([0xFFFF, 0, 0, 0, 0, 0], false, false, false),
        admin::CREATE_SQ => fields([ALL, 0xFFFF_0007, 0xFFFF, 0, 0, 0], false, true, false),
        admin::CREATE_CQ => fields([ALL, 0xFFFF_0003, 0, 0, 0, 0], false, true, false),
        admin::GET_LOG_PAGE => fields([ALL, ALL, ALL, ALL, 0xFF80_007F, 0], true, true, false),
        admin::IDENTIFY => fields([0xFFFF_00FF, 0xFF00_FFFF, 0, 0, 0x7F, 0], true, true, false),
        admin::ABORT => fields([ALL, 0, 0, 0, 0, 0], false, false, false),
        admin::SET_FEATURES => fields([0x8000_00FF, ALL, ALL, ALL, 0x7F, ALL], true, true, false),
        admin::GET_FEATURES => fields([0x0000_07FF, ALL, 0, 0, 0x7F, 0], true, true, false),
        admin::ASYNC_EVENT => fields([0; 6], false, false, false),
        admin::DOORBELL_BUFFER_CONFIG => fields([0; 6], false, true, false),
        admin::FORMAT_NVM => fields([0x3FFF, 0, 0, 0, 0, 0], true, false, false),
        _ => return None,
    })
}

/// The fields of an I/O command; `None` when the controller does not have it.
#[must_use]
pub fn io_fields(opcode: u8) -> Option<Fields> {
    Some(match opcode {
        io::FLUSH => fields([0; 6], true, false, false),
        io::WRITE | io::READ | io::COMPARE => {
            fields([ALL, ALL, 0xFFF0_FFFF, 0xFFFF_00FF, ALL, ALL], true, true, true)
        }
        io::WRITE_UNCORRECTABLE => fields([ALL, ALL, 0x00F0_FFFF, 0xFFFF_0000, 0, 0], true, false, false),
        io::WRITE_ZEROES => fields([ALL, ALL, 0xFEF0_FFFF, 0xFFFF_0000, ALL, ALL], true, false, false),
        io::DATASET_MANAGEMENT => fields([0xFF, 7, 0, 0, 0, 0], true, true, false),
        io::VERIFY => fields([ALL, ALL, 0xFC00_FFFF, 0, ALL, ALL], true, false, false),
        io::COPY => fields([ALL, ALL, 0xFDF0_FFFF, 0xFFFF_0000, ALL, ALL], true, true, false),
        _ => return None,
    })
}
