//! What a status means for a request.

use bdev::{BlockError, BlockOp};
use wire::nvme::{Status, StatusType};

/// What becomes of a command that did not succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The error may pass: send it again, or fail with this when that was done often enough.
    Again(BlockError),
    /// It failed.
    Failed(BlockError),
}

/// Judges an error status (NVMe Base 2.0 §3.3.3.2.1, NVM Command Set 1.0 §2).
pub(crate) fn judge_status(status: Status, op: BlockOp) -> Outcome {
    let may_pass = !status.do_not_retry();
    let error = match status.code() {
        Status::COMPARE_FAILURE => BlockError::Miscompare,
        Status::GUARD_CHECK | Status::APPLICATION_TAG_CHECK | Status::REFERENCE_TAG_CHECK => {
            BlockError::Protection { lba: None }
        }
        Status::LBA_OUT_OF_RANGE => BlockError::OutOfRange,
        Status::CAPACITY_EXCEEDED => BlockError::OutOfSpace,
        Status::WRITE_PROTECTED | Status::READ_ONLY_RANGE => BlockError::ReadOnly,
        Status::INVALID_NAMESPACE => BlockError::Gone,
        Status::INVALID_OPCODE => BlockError::Unsupported,
        // Commands with data were made after what the controller says it does: then this is no refusal of the operation.
        Status::INVALID_FIELD => match op {
            BlockOp::WriteZeroes { .. } | BlockOp::Discard | BlockOp::Verify | BlockOp::Copy { .. } => {
                BlockError::Unsupported
            }
            _ => BlockError::Internal,
        },
        Status::ABORT_REQUESTED => BlockError::Cancelled,
        Status::SQ_DELETED => return Outcome::Again(BlockError::Timeout),
        Status::NAMESPACE_NOT_READY | Status::FORMAT_IN_PROGRESS if may_pass => {
            return Outcome::Again(BlockError::NotReady);
        }
        Status::NAMESPACE_NOT_READY | Status::FORMAT_IN_PROGRESS => BlockError::NotReady,
        Status::DATA_TRANSFER_ERROR
        | Status::INTERNAL_ERROR
        | Status::COMMAND_INTERRUPTED
        | Status::TRANSIENT_TRANSPORT
            if may_pass =>
        {
            return Outcome::Again(BlockError::Internal);
        }
        _ => match status.kind() {
            // Which block it was, only the error log knows.
            StatusType::Media => BlockError::Medium { lba: None },
            StatusType::Path if may_pass => return Outcome::Again(BlockError::Internal),
            _ => BlockError::Internal,
        },
    };
    Outcome::Failed(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_that_may_pass_are_sent_again_unless_the_controller_says_no() {
        let dnr = 1 << 14;
        for code in [0x04, 0x06, 0x21, 0x22, 0x82, 0x84, 0x300] {
            assert!(matches!(judge_status(Status(code), BlockOp::Read), Outcome::Again(_)), "{code:x}");
            assert!(
                matches!(judge_status(Status(code | dnr), BlockOp::Read), Outcome::Failed(_)),
                "{code:x}"
            );
        }
        assert_eq!(judge_status(Status(0x08 | dnr), BlockOp::Read), Outcome::Again(BlockError::Timeout));
    }

    #[test]
    fn every_status_ends_in_a_word_of_block_devices() {
        let failed = |code, op| match judge_status(Status(code), op) {
            Outcome::Failed(error) => Some(error),
            Outcome::Again(_) => None,
        };
        assert_eq!(failed(0x281, BlockOp::Read), Some(BlockError::Medium { lba: None }));
        assert_eq!(failed(0x282, BlockOp::Read), Some(BlockError::Protection { lba: None }));
        assert_eq!(failed(0x285, BlockOp::Compare), Some(BlockError::Miscompare));
        assert_eq!(failed(0x182, BlockOp::Write { fua: false }), Some(BlockError::ReadOnly));
        assert_eq!(failed(0x02, BlockOp::Discard), Some(BlockError::Unsupported));
        assert_eq!(failed(0x02, BlockOp::Read), Some(BlockError::Internal));
        assert_eq!(failed(0x7FF, BlockOp::Read), Some(BlockError::Internal));
    }
}
