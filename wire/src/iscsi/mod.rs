//! iSCSI protocol data units (RFC 7143 §11), their text keys (§6.1), digests (§13.1) and serial numbers (§4.2.2.1).
//!
//! A [`Bhs`] is the 48 bytes of a basic header segment; [`Pdu`] and the structures it holds are the meaning.

pub mod digest;
mod field;
mod pdu;
mod request;
mod response;
pub mod serial;
pub mod text;

#[cfg(test)]
mod properties;

pub use field::{AHS_MAX, DATA_SEGMENT_MAX, Lengths, ParseError, lengths, padded};
pub use pdu::{
    AsyncEvent, AsyncMessage, BHS_LENGTH, Bhs, DataIn, DataOut, LoginRequest, LoginResponse, LoginStage,
    LogoutReason, LogoutRequest, LogoutResponse, LogoutResponseCode, NopIn, NopOut, Pdu, R2t, RESERVED_TAG,
    Reject, RejectReason, ScsiCommand, ScsiResponse, SnackRequest, SnackType, TaskManagementRequest,
    TaskManagementResponse, TextRequest, TextResponse, opcode,
};
