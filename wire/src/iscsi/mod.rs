//! iSCSI protocol data units (RFC 7143 §11).
//!
//! [`Packet`] views the 48 bytes of a basic header segment; [`Pdu`] and the structures it holds are the meaning.

mod pdu;

pub use pdu::{
    AsyncEvent, AsyncMessage, Bhs, BHS_LENGTH, DataIn, DataOut, LoginRequest, LoginResponse, LoginStage, LogoutReason,
    LogoutRequest, LogoutResponse, LogoutResponseCode, NopIn, NopOut, Pdu, R2t, RESERVED_TAG, Reject, RejectReason,
    ScsiCommand, ScsiResponse, SnackRequest, SnackType, TaskManagementRequest, TaskManagementResponse, TextRequest,
    TextResponse,
};
