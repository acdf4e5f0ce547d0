//! Status values of completion queue entries (Base 2.0 §3.3.3.2; NVM Command Set 1.0 §3): status code type in bits 10:8,
//! status code in bits 7:0, More in bit 13, Do Not Retry in bit 14. The phase tag is not part of the value.

/// A status field without its phase tag.
pub type Status = u16;

/// Do Not Retry.
pub const DNR: Status = 0x4000;
/// More: there is more in the error log.
pub const MORE: Status = 0x2000;

/// Generic.
pub const SUCCESS: Status = 0x000;
/// Invalid Command Opcode.
pub const INVALID_OPCODE: Status = 0x001;
/// Invalid Field in Command.
pub const INVALID_FIELD: Status = 0x002;
/// Command ID Conflict.
pub const CID_CONFLICT: Status = 0x003;
/// Data Transfer Error.
pub const DATA_TRANSFER_ERROR: Status = 0x004;
/// Internal Error.
pub const INTERNAL_ERROR: Status = 0x006;
/// Command Abort Requested.
pub const ABORT_REQUESTED: Status = 0x007;
/// Command Aborted due to SQ Deletion.
pub const ABORTED_SQ_DELETION: Status = 0x008;
/// Command Aborted due to Failed Fused Command.
pub const ABORTED_FAILED_FUSED: Status = 0x009;
/// Command Aborted due to Missing Fused Command.
pub const ABORTED_MISSING_FUSED: Status = 0x00A;
/// Invalid Namespace or Format.
pub const INVALID_NAMESPACE: Status = 0x00B;
/// Command Sequence Error.
pub const COMMAND_SEQUENCE_ERROR: Status = 0x00C;
/// Invalid SGL Segment Descriptor.
pub const INVALID_SGL_SEGMENT: Status = 0x00D;
/// Invalid Number of SGL Descriptors.
pub const INVALID_SGL_COUNT: Status = 0x00E;
/// Data SGL Length Invalid.
pub const DATA_SGL_LENGTH_INVALID: Status = 0x00F;
/// Metadata SGL Length Invalid.
pub const METADATA_SGL_LENGTH_INVALID: Status = 0x010;
/// SGL Descriptor Type Invalid.
pub const SGL_TYPE_INVALID: Status = 0x011;
/// PRP Offset Invalid.
pub const PRP_OFFSET_INVALID: Status = 0x013;
/// LBA Out of Range.
pub const LBA_OUT_OF_RANGE: Status = 0x080;
/// Namespace Not Ready.
pub const NAMESPACE_NOT_READY: Status = 0x082;

/// Command specific: Completion Queue Invalid.
pub const CQ_INVALID: Status = 0x100;
/// Invalid Queue Identifier.
pub const INVALID_QUEUE_ID: Status = 0x101;
/// Invalid Queue Size.
pub const INVALID_QUEUE_SIZE: Status = 0x102;
/// Abort Command Limit Exceeded.
pub const ABORT_LIMIT_EXCEEDED: Status = 0x103;
/// Asynchronous Event Request Limit Exceeded.
pub const AER_LIMIT_EXCEEDED: Status = 0x105;
/// Invalid Interrupt Vector.
pub const INVALID_VECTOR: Status = 0x108;
/// Invalid Log Page.
pub const INVALID_LOG_PAGE: Status = 0x109;
/// Invalid Format.
pub const INVALID_FORMAT: Status = 0x10A;
/// Invalid Queue Deletion.
pub const INVALID_QUEUE_DELETION: Status = 0x10C;
/// Feature Identifier Not Saveable.
pub const FEATURE_NOT_SAVEABLE: Status = 0x10D;
/// Feature Not Changeable.
pub const FEATURE_NOT_CHANGEABLE: Status = 0x10E;
/// Feature Not Namespace Specific.
pub const FEATURE_NOT_NAMESPACE_SPECIFIC: Status = 0x10F;
/// Conflicting Attributes.
pub const CONFLICTING_ATTRIBUTES: Status = 0x180;
/// Invalid Protection Information.
pub const INVALID_PROTECTION_INFORMATION: Status = 0x181;
/// Command Size Limit Exceeded.
pub const COMMAND_SIZE_LIMIT_EXCEEDED: Status = 0x183;

/// Media: Write Fault.
pub const WRITE_FAULT: Status = 0x280;
/// Unrecovered Read Error.
pub const UNRECOVERED_READ_ERROR: Status = 0x281;
/// End-to-end Guard Check Error.
pub const GUARD_CHECK_ERROR: Status = 0x282;
/// End-to-end Application Tag Check Error.
pub const APPLICATION_TAG_CHECK_ERROR: Status = 0x283;
/// End-to-end Reference Tag Check Error.
pub const REFERENCE_TAG_CHECK_ERROR: Status = 0x284;
/// Compare Failure.
pub const COMPARE_FAILURE: Status = 0x285;
/// Deallocated or Unwritten Logical Block.
pub const DEALLOCATED_BLOCK: Status = 0x287;
