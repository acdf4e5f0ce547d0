/// A completion queue entry (NVMe Base 2.0 §3.3.3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// Command specific.
    pub dword0: u32,
    /// Command specific.
    pub dword1: u32,
    /// SQ Head Pointer (SQHD).
    pub submission_head: u16,
    /// SQ Identifier (SQID).
    pub submission_queue: u16,
    /// Command Identifier (CID).
    pub command: u16,
    /// The Phase Tag (P).
    pub phase: bool,
    /// Status.
    pub status: Status,
}

impl Completion {
    /// The entry whose two halves are `low` (bytes 0 to 7) and `high` (bytes 8 to 15).
    #[inline]
    #[must_use]
    pub const fn parse(low: u64, high: u64) -> Completion {
        Completion {
            dword0: low as u32,
            dword1: (low >> 32) as u32,
            submission_head: high as u16,
            submission_queue: (high >> 16) as u16,
            command: (high >> 32) as u16,
            phase: high >> 48 & 1 == 1,
            status: Status((high >> 49) as u16),
        }
    }
}

/// The Status field of a completion (NVMe Base 2.0 §3.3.3.2.1), without the phase tag: 15 bits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Status(pub u16);

/// Status Code Type (SCT).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusType {
    /// Generic Command Status.
    Generic,
    /// Command Specific Status.
    CommandSpecific,
    /// Media and Data Integrity Errors.
    Media,
    /// Path Related Status.
    Path,
    /// Vendor specific, or reserved.
    Other,
}

impl Status {
    /// Successful Completion.
    pub const SUCCESS: Status = Status(0);
    /// Invalid Command Opcode.
    pub const INVALID_OPCODE: Status = Status(0x01);
    /// Invalid Field in Command.
    pub const INVALID_FIELD: Status = Status(0x02);
    /// Data Transfer Error.
    pub const DATA_TRANSFER_ERROR: Status = Status(0x04);
    /// Internal Error.
    pub const INTERNAL_ERROR: Status = Status(0x06);
    /// Command Abort Requested.
    pub const ABORT_REQUESTED: Status = Status(0x07);
    /// Command Aborted due to SQ Deletion.
    pub const SQ_DELETED: Status = Status(0x08);
    /// Invalid Namespace or Format.
    pub const INVALID_NAMESPACE: Status = Status(0x0B);
    /// Namespace is Write Protected.
    pub const WRITE_PROTECTED: Status = Status(0x20);
    /// Command Interrupted.
    pub const COMMAND_INTERRUPTED: Status = Status(0x21);
    /// Transient Transport Error.
    pub const TRANSIENT_TRANSPORT: Status = Status(0x22);
    /// LBA Out of Range.
    pub const LBA_OUT_OF_RANGE: Status = Status(0x80);
    /// Capacity Exceeded.
    pub const CAPACITY_EXCEEDED: Status = Status(0x81);
    /// Namespace Not Ready.
    pub const NAMESPACE_NOT_READY: Status = Status(0x82);
    /// Format In Progress.
    pub const FORMAT_IN_PROGRESS: Status = Status(0x84);
    /// Attempted Write to Read Only Range (command specific, NVM Command Set 1.0 §2).
    pub const READ_ONLY_RANGE: Status = Status(0x182);
    /// Firmware Activation Requires Controller Level Reset (command specific).
    pub const NEEDS_RESET: Status = Status(0x10B);
    /// Write Fault.
    pub const WRITE_FAULT: Status = Status(0x280);
    /// Unrecovered Read Error.
    pub const UNRECOVERED_READ: Status = Status(0x281);
    /// End-to-end Guard Check Error.
    pub const GUARD_CHECK: Status = Status(0x282);
    /// End-to-end Application Tag Check Error.
    pub const APPLICATION_TAG_CHECK: Status = Status(0x283);
    /// End-to-end Reference Tag Check Error.
    pub const REFERENCE_TAG_CHECK: Status = Status(0x284);
    /// Compare Failure.
    pub const COMPARE_FAILURE: Status = Status(0x285);
    /// Access Denied.
    pub const ACCESS_DENIED: Status = Status(0x286);
    /// Deallocated or Unwritten Logical Block.
    pub const DEALLOCATED: Status = Status(0x287);

    /// True for Successful Completion, whatever the other bits say.
    #[inline]
    #[must_use]
    pub const fn is_success(self) -> bool {
        self.0 & 0x7FF == 0
    }

    /// Status Code Type and Status Code alone, to compare with the constants.
    #[must_use]
    pub const fn code(self) -> Status {
        Status(self.0 & 0x7FF)
    }

    /// Status Code Type.
    #[must_use]
    pub const fn kind(self) -> StatusType {
        match self.0 >> 8 & 7 {
            0 => StatusType::Generic,
            1 => StatusType::CommandSpecific,
            2 => StatusType::Media,
            3 => StatusType::Path,
            _ => StatusType::Other,
        }
    }

    /// Status Code (SC).
    #[must_use]
    pub const fn status_code(self) -> u8 {
        self.0 as u8
    }

    /// Status Code Type (SCT) as a number.
    #[must_use]
    pub const fn status_code_type(self) -> u8 {
        (self.0 >> 8 & 7) as u8
    }

    /// More (M): the error log says more.
    #[must_use]
    pub const fn more(self) -> bool {
        self.0 >> 13 & 1 == 1
    }

    /// Do Not Retry (DNR).
    #[must_use]
    pub const fn do_not_retry(self) -> bool {
        self.0 >> 14 & 1 == 1
    }

    /// What the code is called, for the codes that have a constant.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self.code() {
            Status::SUCCESS => "successful completion",
            Status::INVALID_OPCODE => "invalid command opcode",
            Status::INVALID_FIELD => "invalid field in command",
            Status::DATA_TRANSFER_ERROR => "data transfer error",
            Status::INTERNAL_ERROR => "internal error",
            Status::ABORT_REQUESTED => "command abort requested",
            Status::SQ_DELETED => "command aborted due to SQ deletion",
            Status::INVALID_NAMESPACE => "invalid namespace or format",
            Status::WRITE_PROTECTED => "namespace is write protected",
            Status::COMMAND_INTERRUPTED => "command interrupted",
            Status::TRANSIENT_TRANSPORT => "transient transport error",
            Status::LBA_OUT_OF_RANGE => "LBA out of range",
            Status::CAPACITY_EXCEEDED => "capacity exceeded",
            Status::NAMESPACE_NOT_READY => "namespace not ready",
            Status::FORMAT_IN_PROGRESS => "format in progress",
            Status::READ_ONLY_RANGE => "attempted write to read only range",
            Status::NEEDS_RESET => "firmware activation requires controller level reset",
            Status::WRITE_FAULT => "write fault",
            Status::UNRECOVERED_READ => "unrecovered read error",
            Status::GUARD_CHECK => "end-to-end guard check error",
            Status::APPLICATION_TAG_CHECK => "end-to-end application tag check error",
            Status::REFERENCE_TAG_CHECK => "end-to-end reference tag check error",
            Status::COMPARE_FAILURE => "compare failure",
            Status::ACCESS_DENIED => "access denied",
            Status::DEALLOCATED => "deallocated or unwritten logical block",
            _ => "another error",
        }
    }
}

impl std::fmt::Debug for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let dnr = if self.do_not_retry() { ", do not retry" } else { "" };
        write!(f, "{} (SCT {:x}h, SC {:02x}h{dnr})", self.name(), self.status_code_type(), self.status_code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_taken_apart() {
        // SQHD 0x0012, SQID 3, CID 0xABCD, phase 1, Media / Unrecovered Read, more, do not retry.
        let status: u64 = 0x281 | 1 << 13 | 1 << 14;
        let high = 0x0012 | 3 << 16 | 0xABCD << 32 | 1 << 48 | status << 49;
        let completion = Completion::parse(0x1111_2222_3333_4444, high);
        assert_eq!((completion.dword0, completion.dword1), (0x3333_4444, 0x1111_2222));
        assert_eq!((completion.submission_head, completion.submission_queue), (0x12, 3));
        assert_eq!((completion.command, completion.phase), (0xABCD, true));
        let status = completion.status;
        assert_eq!((status.kind(), status.code()), (StatusType::Media, Status::UNRECOVERED_READ));
        assert!(status.more() && status.do_not_retry() && !status.is_success());
        assert_eq!(status.to_string(), "unrecovered read error (SCT 2h, SC 81h, do not retry)");
        // Success may come with the other bits set.
        assert!(Status(1 << 13).is_success());
    }
}
