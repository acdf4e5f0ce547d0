/// What a command that passed all checks wants done. `command_table` makes a plan of a CDB; the task executor
/// carries it out in bursts. Ranges are already checked against the capacity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// Nothing to move: ends with this status.
    Finish(wire::scsi::Status),
    /// Parameter data to the initiator, rendered when the command runs; at most `allocation_length` bytes.
    ParameterIn {
        /// What to render.
        kind: crate::ParameterIn,
        /// ALLOCATION LENGTH of the CDB.
        allocation_length: u32,
    },
    /// A parameter list from the initiator, then `ParameterOut::apply`.
    ParameterOut {
        /// What it is.
        kind: crate::ParameterOut,
        /// PARAMETER LIST LENGTH of the CDB, already checked against the bound for this command.
        length: u32,
    },
    /// A change of the unit's state without a parameter list (START STOP UNIT, PREVENT ALLOW MEDIUM REMOVAL).
    Change(crate::UnitChange),
    /// READ (6/10/12/16): medium to initiator.
    Read {
        /// First block.
        lba: u64,
        /// Blocks.
        blocks: u32,
        /// Force unit access: flush the range first when a volatile cache may hold other data.
        fua: bool,
    },
    /// WRITE (6/10/12/16): initiator to medium.
    Write {
        /// First block.
        lba: u64,
        /// Blocks.
        blocks: u32,
        /// Answer only when on stable media.
        fua: bool,
    },
    /// WRITE AND VERIFY: write, flush, read back from the medium; with `compare` compare byte by byte.
    WriteAndVerify {
        /// First block.
        lba: u64,
        /// Blocks.
        blocks: u32,
        /// BYTCHK = 01b.
        compare: bool,
    },
    /// VERIFY with BYTCHK = 00b: read and throw away.
    VerifyMedium {
        /// First block.
        lba: u64,
        /// Blocks.
        blocks: u32,
    },
    /// VERIFY with BYTCHK = 01b (each block has its own data) or 11b (`one_block`: one block for all).
    VerifyCompare {
        /// First block.
        lba: u64,
        /// Blocks.
        blocks: u32,
        /// BYTCHK = 11b.
        one_block: bool,
    },
    /// COMPARE AND WRITE: atomic under a range lock. Data-Out is twice `blocks`: compare data, then write data.
    CompareAndWrite {
        /// First block.
        lba: u64,
        /// Blocks.
        blocks: u32,
        /// Answer only when on stable media.
        fua: bool,
    },
    /// ORWRITE: read, OR, write, under a range lock.
    OrWrite {
        /// First block.
        lba: u64,
        /// Blocks.
        blocks: u32,
        /// Answer only when on stable media.
        fua: bool,
    },
    /// WRITE SAME (10/16).
    WriteSame {
        /// First block.
        lba: u64,
        /// Blocks.
        blocks: u64,
        /// UNMAP bit: deallocating is as good when the result reads the same.
        unmap: bool,
        /// NDOB: there is no Data-Out, write zeros.
        no_data_out: bool,
    },
    /// UNMAP: the parameter list's descriptors, each checked when it is reached.
    Unmap {
        /// PARAMETER LIST LENGTH.
        length: u32,
    },
    /// SYNCHRONIZE CACHE (10/16).
    Synchronize {
        /// First block.
        lba: u64,
        /// Blocks; 0 means to the end.
        blocks: u64,
        /// IMMED: answer at once.
        immediate: bool,
    },
    /// PRE-FETCH (10/16): CONDITION MET when the blocks fit in the cache, else GOOD.
    PreFetch {
        /// First block.
        lba: u64,
        /// Blocks.
        blocks: u64,
        /// IMMED: answer at once.
        immediate: bool,
    },
    /// GET LBA STATUS (16): extents of the device, rendered as descriptors.
    LbaStatus {
        /// Starting LBA.
        lba: u64,
        /// ALLOCATION LENGTH.
        allocation_length: u32,
    },
}
