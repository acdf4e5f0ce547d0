//! PDUs that targets send.

use super::field::{
    ParseError, bit, data_segment_length, flag, lun, no_data, put_data_segment_length, put_lun, put_u16,
    put_u32, start, u16_at, u32_at,
};
use super::pdu::{
    AsyncEvent, AsyncMessage, Bhs, DataIn, LoginResponse, LoginStage, LogoutResponse, LogoutResponseCode,
    NopIn, R2t, RESERVED_TAG, Reject, RejectReason, ScsiResponse, TaskManagementResponse, TextResponse,
    opcode,
};
use super::request::Stages;
use crate::scsi::Status;

fn put_serials(bhs: &mut Bhs, stat_sn: u32, exp_cmd_sn: u32, max_cmd_sn: u32) {
    put_u32::<24>(bhs, stat_sn);
    put_u32::<28>(bhs, exp_cmd_sn);
    put_u32::<32>(bhs, max_cmd_sn);
}

impl ScsiResponse {
    /// Reads a SCSI Response (RFC 7143 §11.4). Status and residual flags mean nothing unless `response` is 0
    /// (§11.4.3); they are otherwise read as Good and as not set.
    ///
    /// # Errors
    /// Reserved response or status codes; overflow with underflow.
    pub fn parse(bhs: &Bhs) -> Result<ScsiResponse, ParseError> {
        let response = bhs[2];
        if matches!(response, 0x02..=0x7F) {
            return Err(ParseError::invalid("Response"));
        }
        let status = match Status::from_code(bhs[3]) {
            _ if response != 0 => Status::Good,
            Some(status) => status,
            None => return Err(ParseError::invalid("Status")),
        };
        let completed = response == 0;
        let parsed = ScsiResponse {
            response,
            status,
            residual_overflow: completed && bit::<1>(bhs, 0x04),
            residual_underflow: completed && bit::<1>(bhs, 0x02),
            bidirectional_overflow: completed && bit::<1>(bhs, 0x10),
            bidirectional_underflow: completed && bit::<1>(bhs, 0x08),
            initiator_task_tag: u32_at::<16>(bhs),
            snack_tag: u32_at::<20>(bhs),
            stat_sn: u32_at::<24>(bhs),
            exp_cmd_sn: u32_at::<28>(bhs),
            max_cmd_sn: u32_at::<32>(bhs),
            exp_data_sn: u32_at::<36>(bhs),
            bidirectional_residual_count: u32_at::<40>(bhs),
            residual_count: u32_at::<44>(bhs),
            data_segment_length: data_segment_length(bhs),
        };
        if parsed.residual_overflow && parsed.residual_underflow {
            return Err(ParseError::protocol("O and U"));
        }
        if parsed.bidirectional_overflow && parsed.bidirectional_underflow {
            return Err(ParseError::protocol("o and u"));
        }
        Ok(parsed)
    }

    /// Writes the header.
    pub fn emit(&self, bhs: &mut Bhs) {
        let flags = flag(self.bidirectional_overflow, 0x10)
            | flag(self.bidirectional_underflow, 0x08)
            | flag(self.residual_overflow, 0x04)
            | flag(self.residual_underflow, 0x02);
        start(bhs, opcode::SCSI_RESPONSE, 0x80 | if self.response == 0 { flags } else { 0 });
        bhs[2] = self.response;
        bhs[3] = if self.response == 0 { self.status as u8 } else { 0 };
        put_data_segment_length(bhs, self.data_segment_length);
        put_u32::<16>(bhs, self.initiator_task_tag);
        put_u32::<20>(bhs, self.snack_tag);
        put_serials(bhs, self.stat_sn, self.exp_cmd_sn, self.max_cmd_sn);
        put_u32::<36>(bhs, self.exp_data_sn);
        put_u32::<40>(bhs, self.bidirectional_residual_count);
        put_u32::<44>(bhs, self.residual_count);
    }
}

impl TaskManagementResponse {
    /// Reads a Task Management Function Response (RFC 7143 §11.6).
    ///
    /// # Errors
    /// A data segment.
    pub fn parse(bhs: &Bhs) -> Result<TaskManagementResponse, ParseError> {
        no_data(bhs)?;
        Ok(TaskManagementResponse {
            response: bhs[2],
            initiator_task_tag: u32_at::<16>(bhs),
            stat_sn: u32_at::<24>(bhs),
            exp_cmd_sn: u32_at::<28>(bhs),
            max_cmd_sn: u32_at::<32>(bhs),
        })
    }

    /// Writes the header.
    pub fn emit(&self, bhs: &mut Bhs) {
        start(bhs, opcode::TASK_MANAGEMENT_RESPONSE, 0x80);
        bhs[2] = self.response;
        put_u32::<16>(bhs, self.initiator_task_tag);
        put_serials(bhs, self.stat_sn, self.exp_cmd_sn, self.max_cmd_sn);
    }
}

impl DataIn {
    /// Reads a SCSI Data-In (RFC 7143 §11.7). Without the S bit the fields that belong to the status (O, U, StatSN,
    /// residual count) mean nothing and are read as 0.
    ///
    /// # Errors
    /// S without F; overflow with underflow; a reserved status.
    pub fn parse(bhs: &Bhs) -> Result<DataIn, ParseError> {
        let final_ = bit::<1>(bhs, 0x80);
        let has_status = bit::<1>(bhs, 0x01);
        let residual_overflow = has_status && bit::<1>(bhs, 0x04);
        let residual_underflow = has_status && bit::<1>(bhs, 0x02);
        if has_status && !final_ {
            return Err(ParseError::protocol("S"));
        }
        if residual_overflow && residual_underflow {
            return Err(ParseError::protocol("O and U"));
        }
        let status = if has_status {
            Some(Status::from_code(bhs[3]).ok_or(ParseError::invalid("Status"))?)
        } else {
            None
        };
        Ok(DataIn {
            final_,
            acknowledge: bit::<1>(bhs, 0x40),
            residual_overflow,
            residual_underflow,
            status,
            lun: lun(bhs),
            initiator_task_tag: u32_at::<16>(bhs),
            target_transfer_tag: u32_at::<20>(bhs),
            stat_sn: if has_status { u32_at::<24>(bhs) } else { 0 },
            exp_cmd_sn: u32_at::<28>(bhs),
            max_cmd_sn: u32_at::<32>(bhs),
            data_sn: u32_at::<36>(bhs),
            buffer_offset: u32_at::<40>(bhs),
            residual_count: if has_status { u32_at::<44>(bhs) } else { 0 },
            data_segment_length: data_segment_length(bhs),
        })
    }

    /// Writes the header. A status makes F 1.
    pub fn emit(&self, bhs: &mut Bhs) {
        let has_status = self.status.is_some();
        let flags = flag(self.final_ || has_status, 0x80)
            | flag(self.acknowledge, 0x40)
            | flag(has_status && self.residual_overflow, 0x04)
            | flag(has_status && self.residual_underflow, 0x02)
            | flag(has_status, 0x01);
        start(bhs, opcode::DATA_IN, flags);
        put_data_segment_length(bhs, self.data_segment_length);
        put_lun(bhs, self.lun);
        put_u32::<16>(bhs, self.initiator_task_tag);
        put_u32::<20>(bhs, self.target_transfer_tag);
        put_serials(bhs, 0, self.exp_cmd_sn, self.max_cmd_sn);
        put_u32::<36>(bhs, self.data_sn);
        put_u32::<40>(bhs, self.buffer_offset);
        if let Some(status) = self.status {
            bhs[3] = status as u8;
            put_u32::<24>(bhs, self.stat_sn);
            put_u32::<44>(bhs, self.residual_count);
        }
    }
}

impl R2t {
    /// Reads a Ready To Transfer (RFC 7143 §11.8).
    ///
    /// # Errors
    /// The reserved transfer tag; a length of 0; a data segment.
    pub fn parse(bhs: &Bhs) -> Result<R2t, ParseError> {
        no_data(bhs)?;
        let parsed = R2t {
            lun: lun(bhs),
            initiator_task_tag: u32_at::<16>(bhs),
            target_transfer_tag: u32_at::<20>(bhs),
            stat_sn: u32_at::<24>(bhs),
            exp_cmd_sn: u32_at::<28>(bhs),
            max_cmd_sn: u32_at::<32>(bhs),
            r2t_sn: u32_at::<36>(bhs),
            buffer_offset: u32_at::<40>(bhs),
            desired_data_transfer_length: u32_at::<44>(bhs),
        };
        if parsed.target_transfer_tag == RESERVED_TAG {
            return Err(ParseError::invalid("Target Transfer Tag"));
        }
        if parsed.desired_data_transfer_length == 0 {
            return Err(ParseError::invalid("Desired Data Transfer Length"));
        }
        Ok(parsed)
    }

    /// Writes the header.
    pub fn emit(&self, bhs: &mut Bhs) {
        start(bhs, opcode::R2T, 0x80);
        put_lun(bhs, self.lun);
        put_u32::<16>(bhs, self.initiator_task_tag);
        put_u32::<20>(bhs, self.target_transfer_tag);
        put_serials(bhs, self.stat_sn, self.exp_cmd_sn, self.max_cmd_sn);
        put_u32::<36>(bhs, self.r2t_sn);
        put_u32::<40>(bhs, self.buffer_offset);
        put_u32::<44>(bhs, self.desired_data_transfer_length);
    }
}

impl AsyncMessage {
    /// Reads an Asynchronous Message (RFC 7143 §11.9). Codes this file does not know become `Vendor`.
    ///
    /// # Errors
    /// None today; the signature is that of every PDU.
    pub fn parse(bhs: &Bhs) -> Result<AsyncMessage, ParseError> {
        let parameter1 = u16_at::<38>(bhs);
        let parameter2 = u16_at::<40>(bhs);
        let parameter3 = u16_at::<42>(bhs);
        let event = match bhs[36] {
            0 => AsyncEvent::Scsi,
            1 => AsyncEvent::LogoutRequest { seconds: parameter3 },
            2 => AsyncEvent::ConnectionDropped {
                cid: parameter1,
                time_to_wait: parameter2,
                time_to_retain: parameter3,
            },
            3 => AsyncEvent::SessionDropped { time_to_wait: parameter2, time_to_retain: parameter3 },
            4 => AsyncEvent::NegotiationRequest { seconds: parameter3 },
            5 => AsyncEvent::TasksTerminated,
            code => AsyncEvent::Vendor { code },
        };
        Ok(AsyncMessage {
            event,
            lun: lun(bhs),
            stat_sn: u32_at::<24>(bhs),
            exp_cmd_sn: u32_at::<28>(bhs),
            max_cmd_sn: u32_at::<32>(bhs),
            vendor_code: bhs[37],
            data_segment_length: data_segment_length(bhs),
        })
    }

    /// Writes the header.
    pub fn emit(&self, bhs: &mut Bhs) {
        start(bhs, opcode::ASYNC_MESSAGE, 0x80);
        put_data_segment_length(bhs, self.data_segment_length);
        put_lun(bhs, self.lun);
        put_u32::<16>(bhs, RESERVED_TAG);
        put_serials(bhs, self.stat_sn, self.exp_cmd_sn, self.max_cmd_sn);
        let (code, parameters) = match self.event {
            AsyncEvent::Scsi => (0, [0; 3]),
            AsyncEvent::LogoutRequest { seconds } => (1, [0, 0, seconds]),
            AsyncEvent::ConnectionDropped { cid, time_to_wait, time_to_retain } => {
                (2, [cid, time_to_wait, time_to_retain])
            }
            AsyncEvent::SessionDropped { time_to_wait, time_to_retain } => {
                (3, [0, time_to_wait, time_to_retain])
            }
            AsyncEvent::NegotiationRequest { seconds } => (4, [0, 0, seconds]),
            AsyncEvent::TasksTerminated => (5, [0; 3]),
            AsyncEvent::Vendor { code } => (code, [0; 3]),
        };
        bhs[36] = code;
        bhs[37] = self.vendor_code;
        let [parameter1, parameter2, parameter3] = parameters;
        put_u16::<38>(bhs, parameter1);
        put_u16::<40>(bhs, parameter2);
        put_u16::<42>(bhs, parameter3);
    }
}

impl TextResponse {
    /// Reads a Text Response (RFC 7143 §11.11).
    ///
    /// # Errors
    /// F with C.
    pub fn parse(bhs: &Bhs) -> Result<TextResponse, ParseError> {
        let final_ = bit::<1>(bhs, 0x80);
        let continue_ = bit::<1>(bhs, 0x40);
        if final_ && continue_ {
            return Err(ParseError::protocol("F and C"));
        }
        Ok(TextResponse {
            final_,
            continue_,
            lun: lun(bhs),
            initiator_task_tag: u32_at::<16>(bhs),
            target_transfer_tag: u32_at::<20>(bhs),
            stat_sn: u32_at::<24>(bhs),
            exp_cmd_sn: u32_at::<28>(bhs),
            max_cmd_sn: u32_at::<32>(bhs),
            data_segment_length: data_segment_length(bhs),
        })
    }

    /// Writes the header.
    pub fn emit(&self, bhs: &mut Bhs) {
        start(bhs, opcode::TEXT_RESPONSE, flag(self.final_, 0x80) | flag(self.continue_, 0x40));
        put_data_segment_length(bhs, self.data_segment_length);
        put_lun(bhs, self.lun);
        put_u32::<16>(bhs, self.initiator_task_tag);
        put_u32::<20>(bhs, self.target_transfer_tag);
        put_serials(bhs, self.stat_sn, self.exp_cmd_sn, self.max_cmd_sn);
    }
}

impl LoginResponse {
    /// Reads a Login Response (RFC 7143 §11.13). When the status class is not 0 the login is over and T, C and the
    /// stages mean nothing: they are read as those of a fresh login, whatever they are.
    ///
    /// # Errors
    /// Stages that do not exist or do not go forward; T with C.
    pub fn parse(bhs: &Bhs) -> Result<LoginResponse, ParseError> {
        let status_class = bhs[36];
        let stages = match Stages::parse(bhs[1]) {
            Ok(stages) => stages,
            Err(error) if status_class == 0 => return Err(error),
            Err(_) => Stages {
                transit: false,
                continue_: false,
                current: LoginStage::SecurityNegotiation,
                next: LoginStage::SecurityNegotiation,
            },
        };
        Ok(LoginResponse {
            transit: stages.transit,
            continue_: stages.continue_,
            current_stage: stages.current,
            next_stage: stages.next,
            version_max: bhs[2],
            version_active: bhs[3],
            isid: [bhs[8], bhs[9], bhs[10], bhs[11], bhs[12], bhs[13]],
            tsih: u16_at::<14>(bhs),
            initiator_task_tag: u32_at::<16>(bhs),
            stat_sn: u32_at::<24>(bhs),
            exp_cmd_sn: u32_at::<28>(bhs),
            max_cmd_sn: u32_at::<32>(bhs),
            status_class,
            status_detail: bhs[37],
            data_segment_length: data_segment_length(bhs),
        })
    }

    /// Writes the header.
    pub fn emit(&self, bhs: &mut Bhs) {
        let stages = Stages {
            transit: self.transit,
            continue_: self.continue_,
            current: self.current_stage,
            next: self.next_stage,
        };
        start(bhs, opcode::LOGIN_RESPONSE, stages.emit());
        bhs[2] = self.version_max;
        bhs[3] = self.version_active;
        put_data_segment_length(bhs, self.data_segment_length);
        bhs[8..14].copy_from_slice(&self.isid);
        put_u16::<14>(bhs, self.tsih);
        put_u32::<16>(bhs, self.initiator_task_tag);
        put_serials(bhs, self.stat_sn, self.exp_cmd_sn, self.max_cmd_sn);
        bhs[36] = self.status_class;
        bhs[37] = self.status_detail;
    }
}

impl LogoutResponse {
    /// Reads a Logout Response (RFC 7143 §11.15).
    ///
    /// # Errors
    /// A reserved response code; a data segment.
    pub fn parse(bhs: &Bhs) -> Result<LogoutResponse, ParseError> {
        no_data(bhs)?;
        let response = match bhs[2] {
            0 => LogoutResponseCode::Closed,
            1 => LogoutResponseCode::CidNotFound,
            2 => LogoutResponseCode::RecoveryNotSupported,
            3 => LogoutResponseCode::CleanupFailed,
            _ => return Err(ParseError::invalid("Response")),
        };
        Ok(LogoutResponse {
            response,
            initiator_task_tag: u32_at::<16>(bhs),
            stat_sn: u32_at::<24>(bhs),
            exp_cmd_sn: u32_at::<28>(bhs),
            max_cmd_sn: u32_at::<32>(bhs),
            time_to_wait: u16_at::<40>(bhs),
            time_to_retain: u16_at::<42>(bhs),
        })
    }

    /// Writes the header.
    pub fn emit(&self, bhs: &mut Bhs) {
        start(bhs, opcode::LOGOUT_RESPONSE, 0x80);
        bhs[2] = self.response as u8;
        put_u32::<16>(bhs, self.initiator_task_tag);
        put_serials(bhs, self.stat_sn, self.exp_cmd_sn, self.max_cmd_sn);
        put_u16::<40>(bhs, self.time_to_wait);
        put_u16::<42>(bhs, self.time_to_retain);
    }
}

impl RejectReason {
    /// The reason with a code of RFC 7143 §11.17.1; `None` for reserved codes.
    #[must_use]
    pub fn from_code(code: u8) -> Option<RejectReason> {
        Some(match code {
            0x02 => RejectReason::DataDigestError,
            0x03 => RejectReason::SnackReject,
            0x04 => RejectReason::ProtocolError,
            0x05 => RejectReason::CommandNotSupported,
            0x06 => RejectReason::ImmediateCommandRejected,
            0x07 => RejectReason::TaskInProgress,
            0x08 => RejectReason::InvalidDataAck,
            0x09 => RejectReason::InvalidPduField,
            0x0A => RejectReason::OutOfResources,
            0x0B => RejectReason::NegotiationReset,
            0x0C => RejectReason::WaitingForLogout,
            _ => return None,
        })
    }
}

impl Reject {
    /// Reads a Reject (RFC 7143 §11.17).
    ///
    /// # Errors
    /// A reserved reason.
    pub fn parse(bhs: &Bhs) -> Result<Reject, ParseError> {
        Ok(Reject {
            reason: RejectReason::from_code(bhs[2]).ok_or(ParseError::invalid("Reason"))?,
            stat_sn: u32_at::<24>(bhs),
            exp_cmd_sn: u32_at::<28>(bhs),
            max_cmd_sn: u32_at::<32>(bhs),
            data_sn_or_r2t_sn: u32_at::<36>(bhs),
            data_segment_length: data_segment_length(bhs),
        })
    }

    /// Writes the header.
    pub fn emit(&self, bhs: &mut Bhs) {
        start(bhs, opcode::REJECT, 0x80);
        bhs[2] = self.reason as u8;
        put_data_segment_length(bhs, self.data_segment_length);
        put_u32::<16>(bhs, RESERVED_TAG);
        put_serials(bhs, self.stat_sn, self.exp_cmd_sn, self.max_cmd_sn);
        put_u32::<36>(bhs, self.data_sn_or_r2t_sn);
    }
}

impl NopIn {
    /// Reads a NOP-In (RFC 7143 §11.19).
    ///
    /// # Errors
    /// None today; the signature is that of every PDU.
    pub fn parse(bhs: &Bhs) -> Result<NopIn, ParseError> {
        Ok(NopIn {
            lun: lun(bhs),
            initiator_task_tag: u32_at::<16>(bhs),
            target_transfer_tag: u32_at::<20>(bhs),
            stat_sn: u32_at::<24>(bhs),
            exp_cmd_sn: u32_at::<28>(bhs),
            max_cmd_sn: u32_at::<32>(bhs),
            data_segment_length: data_segment_length(bhs),
        })
    }

    /// Writes the header.
    pub fn emit(&self, bhs: &mut Bhs) {
        start(bhs, opcode::NOP_IN, 0x80);
        put_data_segment_length(bhs, self.data_segment_length);
        put_lun(bhs, self.lun);
        put_u32::<16>(bhs, self.initiator_task_tag);
        put_u32::<20>(bhs, self.target_transfer_tag);
        put_serials(bhs, self.stat_sn, self.exp_cmd_sn, self.max_cmd_sn);
    }
}
