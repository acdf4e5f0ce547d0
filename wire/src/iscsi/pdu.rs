use super::field::ParseError;
use crate::scsi::{Cdb, Lun, Status, TaskAttribute};

/// Bytes of a basic header segment.
pub const BHS_LENGTH: usize = 48;
/// A basic header segment.
pub type Bhs = [u8; BHS_LENGTH];
/// The reserved tag value (RFC 7143 §11.2.1.8 and others).
pub const RESERVED_TAG: u32 = 0xFFFF_FFFF;

/// Operation codes (RFC 7143 §11.2.1.2): the low six bits of byte 0.
#[allow(missing_docs)]
pub mod opcode {
    pub const NOP_OUT: u8 = 0x00;
    pub const SCSI_COMMAND: u8 = 0x01;
    pub const TASK_MANAGEMENT_REQUEST: u8 = 0x02;
    pub const LOGIN_REQUEST: u8 = 0x03;
    pub const TEXT_REQUEST: u8 = 0x04;
    pub const DATA_OUT: u8 = 0x05;
    pub const LOGOUT_REQUEST: u8 = 0x06;
    pub const SNACK_REQUEST: u8 = 0x10;
    pub const NOP_IN: u8 = 0x20;
    pub const SCSI_RESPONSE: u8 = 0x21;
    pub const TASK_MANAGEMENT_RESPONSE: u8 = 0x22;
    pub const LOGIN_RESPONSE: u8 = 0x23;
    pub const TEXT_RESPONSE: u8 = 0x24;
    pub const DATA_IN: u8 = 0x25;
    pub const LOGOUT_RESPONSE: u8 = 0x26;
    pub const R2T: u8 = 0x31;
    pub const ASYNC_MESSAGE: u8 = 0x32;
    pub const REJECT: u8 = 0x3F;
    /// The bits of byte 0 that hold the operation code.
    pub const MASK: u8 = 0x3F;
    /// The I bit of byte 0: an immediate request.
    pub const IMMEDIATE: u8 = 0x40;
}

/// Any PDU. Requests come from initiators, responses from targets.
///
/// Field names are those of RFC 7143 §11; `data_segment_length` is what the header says, the data itself is not
/// here. Serial numbers are compared by `wire::iscsi::serial` (RFC 7143 §4.2.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Pdu {
    NopOut(NopOut),
    ScsiCommand(ScsiCommand),
    TaskManagementRequest(TaskManagementRequest),
    LoginRequest(LoginRequest),
    TextRequest(TextRequest),
    DataOut(DataOut),
    LogoutRequest(LogoutRequest),
    SnackRequest(SnackRequest),
    NopIn(NopIn),
    ScsiResponse(ScsiResponse),
    TaskManagementResponse(TaskManagementResponse),
    LoginResponse(LoginResponse),
    TextResponse(TextResponse),
    DataIn(DataIn),
    LogoutResponse(LogoutResponse),
    R2t(R2t),
    AsyncMessage(AsyncMessage),
    Reject(Reject),
}

impl Pdu {
    /// The meaning of a basic header segment and its additional header segments. `ahs` is all of them together,
    /// [`super::Lengths::ahs`] bytes. Reserved bits are ignored (RFC 7143 §11.1).
    ///
    /// # Errors
    /// `CommandNotSupported` for an unknown or vendor-specific opcode; `InvalidPduField` for a value the standard
    /// reserves and for an AHS that is malformed or out of place; `ProtocolError` for a forbidden combination.
    pub fn parse(bhs: &Bhs, ahs: &[u8]) -> Result<Pdu, ParseError> {
        let code = bhs[0] & opcode::MASK;
        if code != opcode::SCSI_COMMAND && Pdu::is_known(code) && (bhs[4] != 0 || !ahs.is_empty()) {
            return Err(ParseError::invalid("TotalAHSLength"));
        }
        Ok(match code {
            opcode::NOP_OUT => Pdu::NopOut(NopOut::parse(bhs)?),
            opcode::SCSI_COMMAND => Pdu::ScsiCommand(ScsiCommand::parse(bhs, ahs)?),
            opcode::TASK_MANAGEMENT_REQUEST => Pdu::TaskManagementRequest(TaskManagementRequest::parse(bhs)?),
            opcode::LOGIN_REQUEST => Pdu::LoginRequest(LoginRequest::parse(bhs)?),
            opcode::TEXT_REQUEST => Pdu::TextRequest(TextRequest::parse(bhs)?),
            opcode::DATA_OUT => Pdu::DataOut(DataOut::parse(bhs)?),
            opcode::LOGOUT_REQUEST => Pdu::LogoutRequest(LogoutRequest::parse(bhs)?),
            opcode::SNACK_REQUEST => Pdu::SnackRequest(SnackRequest::parse(bhs)?),
            opcode::NOP_IN => Pdu::NopIn(NopIn::parse(bhs)?),
            opcode::SCSI_RESPONSE => Pdu::ScsiResponse(ScsiResponse::parse(bhs)?),
            opcode::TASK_MANAGEMENT_RESPONSE => {
                Pdu::TaskManagementResponse(TaskManagementResponse::parse(bhs)?)
            }
            opcode::LOGIN_RESPONSE => Pdu::LoginResponse(LoginResponse::parse(bhs)?),
            opcode::TEXT_RESPONSE => Pdu::TextResponse(TextResponse::parse(bhs)?),
            opcode::DATA_IN => Pdu::DataIn(DataIn::parse(bhs)?),
            opcode::LOGOUT_RESPONSE => Pdu::LogoutResponse(LogoutResponse::parse(bhs)?),
            opcode::R2T => Pdu::R2t(R2t::parse(bhs)?),
            opcode::ASYNC_MESSAGE => Pdu::AsyncMessage(AsyncMessage::parse(bhs)?),
            opcode::REJECT => Pdu::Reject(Reject::parse(bhs)?),
            _ => return Err(ParseError::unsupported("Opcode")),
        })
    }

    fn is_known(code: u8) -> bool {
        matches!(code, opcode::NOP_OUT..=opcode::LOGOUT_REQUEST | opcode::SNACK_REQUEST)
            || matches!(code, opcode::NOP_IN..=opcode::LOGOUT_RESPONSE)
            || matches!(code, opcode::R2T | opcode::ASYNC_MESSAGE | opcode::REJECT)
    }

    /// The operation code, without the I bit.
    #[must_use]
    pub fn opcode(&self) -> u8 {
        match self {
            Pdu::NopOut(_) => opcode::NOP_OUT,
            Pdu::ScsiCommand(_) => opcode::SCSI_COMMAND,
            Pdu::TaskManagementRequest(_) => opcode::TASK_MANAGEMENT_REQUEST,
            Pdu::LoginRequest(_) => opcode::LOGIN_REQUEST,
            Pdu::TextRequest(_) => opcode::TEXT_REQUEST,
            Pdu::DataOut(_) => opcode::DATA_OUT,
            Pdu::LogoutRequest(_) => opcode::LOGOUT_REQUEST,
            Pdu::SnackRequest(_) => opcode::SNACK_REQUEST,
            Pdu::NopIn(_) => opcode::NOP_IN,
            Pdu::ScsiResponse(_) => opcode::SCSI_RESPONSE,
            Pdu::TaskManagementResponse(_) => opcode::TASK_MANAGEMENT_RESPONSE,
            Pdu::LoginResponse(_) => opcode::LOGIN_RESPONSE,
            Pdu::TextResponse(_) => opcode::TEXT_RESPONSE,
            Pdu::DataIn(_) => opcode::DATA_IN,
            Pdu::LogoutResponse(_) => opcode::LOGOUT_RESPONSE,
            Pdu::R2t(_) => opcode::R2T,
            Pdu::AsyncMessage(_) => opcode::ASYNC_MESSAGE,
            Pdu::Reject(_) => opcode::REJECT,
        }
    }

    /// Writes the basic header segment; reserved fields become zero. A SCSI Command's AHS is written by
    /// [`ScsiCommand::emit_ahs`].
    pub fn emit(&self, bhs: &mut Bhs) {
        match self {
            Pdu::NopOut(pdu) => pdu.emit(bhs),
            Pdu::ScsiCommand(pdu) => pdu.emit(bhs),
            Pdu::TaskManagementRequest(pdu) => pdu.emit(bhs),
            Pdu::LoginRequest(pdu) => pdu.emit(bhs),
            Pdu::TextRequest(pdu) => pdu.emit(bhs),
            Pdu::DataOut(pdu) => pdu.emit(bhs),
            Pdu::LogoutRequest(pdu) => pdu.emit(bhs),
            Pdu::SnackRequest(pdu) => pdu.emit(bhs),
            Pdu::NopIn(pdu) => pdu.emit(bhs),
            Pdu::ScsiResponse(pdu) => pdu.emit(bhs),
            Pdu::TaskManagementResponse(pdu) => pdu.emit(bhs),
            Pdu::LoginResponse(pdu) => pdu.emit(bhs),
            Pdu::TextResponse(pdu) => pdu.emit(bhs),
            Pdu::DataIn(pdu) => pdu.emit(bhs),
            Pdu::LogoutResponse(pdu) => pdu.emit(bhs),
            Pdu::R2t(pdu) => pdu.emit(bhs),
            Pdu::AsyncMessage(pdu) => pdu.emit(bhs),
            Pdu::Reject(pdu) => pdu.emit(bhs),
        }
    }
}

/// SCSI Command (RFC 7143 §11.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ScsiCommand {
    pub immediate: bool,
    /// F: no unsolicited Data-Out PDUs follow.
    pub final_: bool,
    pub read: bool,
    pub write: bool,
    pub attribute: TaskAttribute,
    pub lun: Lun,
    pub initiator_task_tag: u32,
    pub expected_data_transfer_length: u32,
    pub cmd_sn: u32,
    pub exp_stat_sn: u32,
    /// CDB, with the extended part from the AHS if there was one.
    pub cdb: Cdb,
    /// Expected Bidirectional Read Data Length, from its AHS.
    pub bidirectional_read_length: Option<u32>,
    pub data_segment_length: u32,
}

/// SCSI Response (RFC 7143 §11.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ScsiResponse {
    /// 0x00 command completed at target, 0x01 target failure.
    pub response: u8,
    pub status: Status,
    pub residual_overflow: bool,
    pub residual_underflow: bool,
    pub bidirectional_overflow: bool,
    pub bidirectional_underflow: bool,
    pub initiator_task_tag: u32,
    pub snack_tag: u32,
    pub stat_sn: u32,
    pub exp_cmd_sn: u32,
    pub max_cmd_sn: u32,
    pub exp_data_sn: u32,
    pub bidirectional_residual_count: u32,
    pub residual_count: u32,
    pub data_segment_length: u32,
}

/// Task Management Function Request (RFC 7143 §11.5). `function` is the code of §11.5.1, 1 to 8, and 9 and up of RFC 7144.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct TaskManagementRequest {
    pub immediate: bool,
    pub function: u8,
    pub lun: Lun,
    pub initiator_task_tag: u32,
    pub referenced_task_tag: u32,
    pub cmd_sn: u32,
    pub exp_stat_sn: u32,
    pub ref_cmd_sn: u32,
    pub exp_data_sn: u32,
}

/// Task Management Function Response (RFC 7143 §11.6). `response` is the code of §11.6.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct TaskManagementResponse {
    pub response: u8,
    pub initiator_task_tag: u32,
    pub stat_sn: u32,
    pub exp_cmd_sn: u32,
    pub max_cmd_sn: u32,
}

/// SCSI Data-Out (RFC 7143 §11.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct DataOut {
    pub final_: bool,
    pub lun: Lun,
    pub initiator_task_tag: u32,
    pub target_transfer_tag: u32,
    pub exp_stat_sn: u32,
    pub data_sn: u32,
    pub buffer_offset: u32,
    pub data_segment_length: u32,
}

/// SCSI Data-In (RFC 7143 §11.7). `status` present means the S bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct DataIn {
    pub final_: bool,
    pub acknowledge: bool,
    pub residual_overflow: bool,
    pub residual_underflow: bool,
    pub status: Option<Status>,
    pub lun: Lun,
    pub initiator_task_tag: u32,
    pub target_transfer_tag: u32,
    pub stat_sn: u32,
    pub exp_cmd_sn: u32,
    pub max_cmd_sn: u32,
    pub data_sn: u32,
    pub buffer_offset: u32,
    pub residual_count: u32,
    pub data_segment_length: u32,
}

/// Ready To Transfer (RFC 7143 §11.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct R2t {
    pub lun: Lun,
    pub initiator_task_tag: u32,
    pub target_transfer_tag: u32,
    /// The next StatSN; not advanced by an R2T.
    pub stat_sn: u32,
    pub exp_cmd_sn: u32,
    pub max_cmd_sn: u32,
    pub r2t_sn: u32,
    pub buffer_offset: u32,
    pub desired_data_transfer_length: u32,
}

/// Events of an Asynchronous Message (RFC 7143 §11.9.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum AsyncEvent {
    /// 0: sense data in the data segment.
    Scsi,
    /// 1: the target requests logout within `parameter3` seconds.
    LogoutRequest { seconds: u16 },
    /// 2: the target will or did drop connection `cid`.
    ConnectionDropped { cid: u16, time_to_wait: u16, time_to_retain: u16 },
    /// 3: the target will or did drop all connections of this session.
    SessionDropped { time_to_wait: u16, time_to_retain: u16 },
    /// 4: the target requests parameter negotiation within `seconds`.
    NegotiationRequest { seconds: u16 },
    /// 5: all active tasks for the LU are being terminated.
    TasksTerminated,
    /// 255 or any other code.
    Vendor { code: u8 },
}

/// Asynchronous Message (RFC 7143 §11.9).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct AsyncMessage {
    pub event: AsyncEvent,
    pub lun: Lun,
    pub stat_sn: u32,
    pub exp_cmd_sn: u32,
    pub max_cmd_sn: u32,
    pub vendor_code: u8,
    pub data_segment_length: u32,
}

/// Text Request (RFC 7143 §11.10).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct TextRequest {
    pub immediate: bool,
    pub final_: bool,
    pub continue_: bool,
    pub lun: Lun,
    pub initiator_task_tag: u32,
    pub target_transfer_tag: u32,
    pub cmd_sn: u32,
    pub exp_stat_sn: u32,
    pub data_segment_length: u32,
}

/// Text Response (RFC 7143 §11.11).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct TextResponse {
    pub final_: bool,
    pub continue_: bool,
    pub lun: Lun,
    pub initiator_task_tag: u32,
    pub target_transfer_tag: u32,
    pub stat_sn: u32,
    pub exp_cmd_sn: u32,
    pub max_cmd_sn: u32,
    pub data_segment_length: u32,
}

/// Login stages (RFC 7143 §11.12.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
#[repr(u8)]
pub enum LoginStage {
    SecurityNegotiation = 0,
    LoginOperationalNegotiation = 1,
    FullFeaturePhase = 3,
}

/// Login Request (RFC 7143 §11.12).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct LoginRequest {
    pub transit: bool,
    pub continue_: bool,
    pub current_stage: LoginStage,
    /// Meaningful with `transit`.
    pub next_stage: LoginStage,
    pub version_max: u8,
    pub version_min: u8,
    pub isid: [u8; 6],
    pub tsih: u16,
    pub initiator_task_tag: u32,
    pub cid: u16,
    pub cmd_sn: u32,
    pub exp_stat_sn: u32,
    pub data_segment_length: u32,
}

/// Login Response (RFC 7143 §11.13). Status class and detail are those of §11.13.5.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct LoginResponse {
    pub transit: bool,
    pub continue_: bool,
    pub current_stage: LoginStage,
    pub next_stage: LoginStage,
    pub version_max: u8,
    pub version_active: u8,
    pub isid: [u8; 6],
    pub tsih: u16,
    pub initiator_task_tag: u32,
    pub stat_sn: u32,
    pub exp_cmd_sn: u32,
    pub max_cmd_sn: u32,
    pub status_class: u8,
    pub status_detail: u8,
    pub data_segment_length: u32,
}

/// Reasons of a Logout Request (RFC 7143 §11.14.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
#[repr(u8)]
pub enum LogoutReason {
    CloseSession = 0,
    CloseConnection = 1,
    RemoveConnectionForRecovery = 2,
}

/// Logout Request (RFC 7143 §11.14).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct LogoutRequest {
    pub immediate: bool,
    pub reason: LogoutReason,
    pub initiator_task_tag: u32,
    pub cid: u16,
    pub cmd_sn: u32,
    pub exp_stat_sn: u32,
}

/// Responses to a logout (RFC 7143 §11.15.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
#[repr(u8)]
pub enum LogoutResponseCode {
    Closed = 0,
    CidNotFound = 1,
    RecoveryNotSupported = 2,
    CleanupFailed = 3,
}

/// Logout Response (RFC 7143 §11.15).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct LogoutResponse {
    pub response: LogoutResponseCode,
    pub initiator_task_tag: u32,
    pub stat_sn: u32,
    pub exp_cmd_sn: u32,
    pub max_cmd_sn: u32,
    pub time_to_wait: u16,
    pub time_to_retain: u16,
}

/// Types of a SNACK Request (RFC 7143 §11.16.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
#[repr(u8)]
pub enum SnackType {
    DataOrR2t = 0,
    Status = 1,
    DataAck = 2,
    RData = 3,
}

/// SNACK Request (RFC 7143 §11.16).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct SnackRequest {
    pub kind: SnackType,
    pub lun: Lun,
    pub initiator_task_tag: u32,
    pub target_transfer_tag: u32,
    pub exp_stat_sn: u32,
    pub beg_run: u32,
    pub run_length: u32,
}

/// Reasons of a Reject (RFC 7143 §11.17.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
#[repr(u8)]
pub enum RejectReason {
    DataDigestError = 0x02,
    SnackReject = 0x03,
    ProtocolError = 0x04,
    CommandNotSupported = 0x05,
    ImmediateCommandRejected = 0x06,
    TaskInProgress = 0x07,
    InvalidDataAck = 0x08,
    InvalidPduField = 0x09,
    OutOfResources = 0x0A,
    NegotiationReset = 0x0B,
    WaitingForLogout = 0x0C,
}

/// Reject (RFC 7143 §11.17). The data segment is the header of the PDU in error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Reject {
    pub reason: RejectReason,
    pub stat_sn: u32,
    pub exp_cmd_sn: u32,
    pub max_cmd_sn: u32,
    pub data_sn_or_r2t_sn: u32,
    pub data_segment_length: u32,
}

/// NOP-Out (RFC 7143 §11.18).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct NopOut {
    pub immediate: bool,
    pub lun: Lun,
    pub initiator_task_tag: u32,
    pub target_transfer_tag: u32,
    pub cmd_sn: u32,
    pub exp_stat_sn: u32,
    pub data_segment_length: u32,
}

/// NOP-In (RFC 7143 §11.19).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct NopIn {
    pub lun: Lun,
    pub initiator_task_tag: u32,
    pub target_transfer_tag: u32,
    pub stat_sn: u32,
    pub exp_cmd_sn: u32,
    pub max_cmd_sn: u32,
    pub data_segment_length: u32,
}
