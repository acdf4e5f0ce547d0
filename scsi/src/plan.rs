/// What a command that passed all checks wants done. `command_table` makes a plan of a CDB; the task executor
/// carries it out in bursts. Ranges are already checked against the capacity; `blocks` may be 0 unless said
/// otherwise, which is no error and moves nothing (SBC-4 §5.16).
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
    /// WRITE ATOMIC (16): one request to the device, under a range lock.
    WriteAtomic {
        /// First block.
        lba: u64,
        /// Blocks; all of their data fits in one burst.
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
        /// Blocks, at least 1: a NUMBER OF LOGICAL BLOCKS of 0 was made the rest of the medium.
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
    /// PRE-FETCH (10/16): a hint. CONDITION MET would promise that all blocks fit in a cache of ours; there is none,
    /// so the answer is GOOD.
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

impl Plan {
    /// The bytes of Data-In and of Data-Out the command has, whatever the initiator expects. Data-In of
    /// `LbaStatus` is an upper bound: how many descriptors there are is only known when it runs.
    #[must_use]
    pub fn data_lengths(&self, environment: &crate::Environment<'_>) -> (u64, u64) {
        let block_size = environment.unit.map_or(0, |unit| u64::from(unit.geometry.block_size));
        let bytes = |blocks: u32| u64::from(blocks) * block_size;
        match *self {
            Plan::Finish(_)
            | Plan::Change(_)
            | Plan::VerifyMedium { .. }
            | Plan::Synchronize { .. }
            | Plan::PreFetch { .. } => (0, 0),
            Plan::ParameterIn { kind, allocation_length } => {
                ((kind.render(environment, &mut []) as u64).min(u64::from(allocation_length)), 0)
            }
            Plan::ParameterOut { length, .. } | Plan::Unmap { length } => (0, u64::from(length)),
            Plan::Read { blocks, .. } => (bytes(blocks), 0),
            Plan::Write { blocks, .. }
            | Plan::WriteAndVerify { blocks, .. }
            | Plan::WriteAtomic { blocks, .. }
            | Plan::OrWrite { blocks, .. }
            | Plan::VerifyCompare { blocks, one_block: false, .. } => (0, bytes(blocks)),
            Plan::VerifyCompare { blocks, one_block: true, .. } => (0, bytes(blocks.min(1))),
            Plan::CompareAndWrite { blocks, .. } => (0, 2 * bytes(blocks)),
            Plan::WriteSame { no_data_out, .. } => (0, if no_data_out { 0 } else { block_size }),
            Plan::LbaStatus { allocation_length, .. } => {
                let length =
                    crate::parameter::lba_status_length(crate::parameter::LBA_STATUS_DESCRIPTORS_MAX);
                ((length as u64).min(u64::from(allocation_length)), 0)
            }
        }
    }

    /// Refuses a command whose Data-Out the transport announced with another length than the CDB needs, where
    /// doing half of it would be wrong: COMPARE AND WRITE, whose halves would not match, WRITE ATOMIC, which is whole, and
    /// WRITE SAME, whose one block is the pattern. Other commands only get a residual. `expected` is the transport's length, if it has one.
    ///
    /// # Errors
    /// INVALID FIELD IN CDB pointing at the length.
    pub fn check_data_out(
        &self,
        environment: &crate::Environment<'_>,
        cdb: &wire::scsi::Cdb,
        expected: Option<u32>,
    ) -> Result<(), wire::scsi::Sense> {
        let Some(expected) = expected else { return Ok(()) };
        let length_at = match (self, cdb.operation_code()) {
            (Plan::CompareAndWrite { .. }, _) => 13,
            (Plan::WriteAtomic { .. }, _) => 12,
            (Plan::WriteSame { .. }, 0x41) => 7,
            (Plan::WriteSame { .. }, _) => 10,
            _ => return Ok(()),
        };
        if u64::from(expected) == self.data_lengths(environment).1 {
            Ok(())
        } else {
            Err(wire::scsi::Sense::invalid_field_in_cdb(length_at, None))
        }
    }
}
