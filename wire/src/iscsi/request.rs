//! PDUs that initiators send.

use super::field::{
    AHS_MAX, ParseError, bit, data_segment_length, flag, lun, no_data, padded, put_data_segment_length,
    put_lun, put_u16, put_u32, start, u16_at, u32_at,
};
use super::pdu::{
    Bhs, DataOut, LoginRequest, LoginStage, LogoutReason, LogoutRequest, NopOut, RESERVED_TAG, ScsiCommand,
    SnackRequest, SnackType, TaskManagementRequest, TextRequest, opcode,
};
use crate::scsi::{Cdb, TaskAttribute};

const AHS_EXTENDED_CDB: u8 = 1;
const AHS_BIDIRECTIONAL_READ_LENGTH: u8 = 2;
/// The longest CDB [`ScsiCommand::emit_ahs`] can write next to a bidirectional AHS in 64 bytes.
const CDB_EMIT_MAX: usize = 16 + 52;

fn immediate(bhs: &Bhs) -> bool {
    bit::<0>(bhs, opcode::IMMEDIATE)
}

/// The initiator task tag of a request that must have one.
fn task_tag(bhs: &Bhs) -> Result<u32, ParseError> {
    match u32_at::<16>(bhs) {
        RESERVED_TAG => Err(ParseError::invalid("Initiator Task Tag")),
        tag => Ok(tag),
    }
}

fn request(code: u8, is_immediate: bool) -> u8 {
    code | flag(is_immediate, opcode::IMMEDIATE)
}

impl NopOut {
    /// Reads a NOP-Out (RFC 7143 §11.18).
    ///
    /// # Errors
    /// Without an initiator task tag it must be immediate.
    pub fn parse(bhs: &Bhs) -> Result<NopOut, ParseError> {
        let initiator_task_tag = u32_at::<16>(bhs);
        if initiator_task_tag == RESERVED_TAG && !immediate(bhs) {
            return Err(ParseError::protocol("I"));
        }
        Ok(NopOut {
            immediate: immediate(bhs),
            lun: lun(bhs),
            initiator_task_tag,
            target_transfer_tag: u32_at::<20>(bhs),
            cmd_sn: u32_at::<24>(bhs),
            exp_stat_sn: u32_at::<28>(bhs),
            data_segment_length: data_segment_length(bhs),
        })
    }

    /// Writes the header.
    pub fn emit(&self, bhs: &mut Bhs) {
        start(bhs, request(opcode::NOP_OUT, self.immediate), 0x80);
        put_data_segment_length(bhs, self.data_segment_length);
        put_lun(bhs, self.lun);
        put_u32::<16>(bhs, self.initiator_task_tag);
        put_u32::<20>(bhs, self.target_transfer_tag);
        put_u32::<24>(bhs, self.cmd_sn);
        put_u32::<28>(bhs, self.exp_stat_sn);
    }
}

/// What the additional header segments of a SCSI Command say.
struct CommandAhs<'a> {
    extended_cdb: Option<&'a [u8]>,
    bidirectional_read_length: Option<u32>,
}

impl<'a> CommandAhs<'a> {
    /// Walks the segments (RFC 7143 §11.2.2): each is AHSLength (2 bytes), AHSType, then AHSLength bytes of which
    /// the first is reserved in both known types, padded to whole words.
    fn parse(mut ahs: &'a [u8]) -> Result<CommandAhs<'a>, ParseError> {
        let mut found = CommandAhs { extended_cdb: None, bidirectional_read_length: None };
        while let Some((&[high, low, kind], rest)) = ahs.split_first_chunk::<3>() {
            let length = usize::from(u16::from_be_bytes([high, low]));
            let Some((_, value)) = rest.get(..length).and_then(<[u8]>::split_first) else {
                return Err(ParseError::invalid("AHSLength"));
            };
            match kind & 0x3F {
                AHS_EXTENDED_CDB => {
                    if value.is_empty() {
                        return Err(ParseError::invalid("AHSLength"));
                    }
                    if found.extended_cdb.replace(value).is_some() {
                        return Err(ParseError::invalid("AHSType"));
                    }
                }
                AHS_BIDIRECTIONAL_READ_LENGTH => {
                    let Ok(value) = <[u8; 4]>::try_from(value) else {
                        return Err(ParseError::invalid("AHSLength"));
                    };
                    if found.bidirectional_read_length.replace(u32::from_be_bytes(value)).is_some() {
                        return Err(ParseError::invalid("AHSType"));
                    }
                }
                _ => return Err(ParseError::invalid("AHSType")),
            }
            ahs = ahs.get(padded(3 + length)..).unwrap_or(&[]);
        }
        if ahs.is_empty() { Ok(found) } else { Err(ParseError::invalid("TotalAHSLength")) }
    }
}

impl ScsiCommand {
    /// Reads a SCSI Command with its additional header segments (RFC 7143 §11.3, §11.2.2). Attribute code 0
    /// (untagged) is read as Simple: SAM-5 knows no untagged tasks any more.
    ///
    /// # Errors
    /// Reserved attributes; W and F both 0; a data length without a direction; malformed, unknown or repeated AHS.
    pub fn parse(bhs: &Bhs, ahs: &[u8]) -> Result<ScsiCommand, ParseError> {
        if ahs.len() != usize::from(bhs[4]) * 4 {
            return Err(ParseError::invalid("TotalAHSLength"));
        }
        let attribute = match bhs[1] & 0x07 {
            0 | 1 => TaskAttribute::Simple,
            2 => TaskAttribute::Ordered,
            3 => TaskAttribute::HeadOfQueue,
            4 => TaskAttribute::Aca,
            _ => return Err(ParseError::invalid("ATTR")),
        };
        let final_ = bit::<1>(bhs, 0x80);
        let read = bit::<1>(bhs, 0x40);
        let write = bit::<1>(bhs, 0x20);
        if !write && !final_ {
            return Err(ParseError::protocol("F"));
        }
        let found = CommandAhs::parse(ahs)?;
        let expected_data_transfer_length = u32_at::<20>(bhs);
        if !read
            && !write
            && (expected_data_transfer_length | found.bidirectional_read_length.unwrap_or(0)) != 0
        {
            return Err(ParseError::invalid("R and W"));
        }
        let cdb = match found.extended_cdb {
            None => Cdb::new(&bhs[32..48]),
            Some(extended) => {
                let mut whole = [0u8; 16 + AHS_MAX];
                whole[..16].copy_from_slice(&bhs[32..48]);
                let length = 16 + extended.len().min(AHS_MAX);
                for (to, from) in whole[16..].iter_mut().zip(extended) {
                    *to = *from;
                }
                Cdb::new(whole.get(..length).unwrap_or(&whole))
            }
        };
        Ok(ScsiCommand {
            immediate: immediate(bhs),
            final_,
            read,
            write,
            attribute,
            lun: lun(bhs),
            initiator_task_tag: task_tag(bhs)?,
            expected_data_transfer_length,
            cmd_sn: u32_at::<24>(bhs),
            exp_stat_sn: u32_at::<28>(bhs),
            cdb,
            bidirectional_read_length: found.bidirectional_read_length,
            data_segment_length: data_segment_length(bhs),
        })
    }

    /// Bytes of the CDB beyond the sixteen of the header that [`ScsiCommand::emit_ahs`] writes.
    fn extended_cdb_length(&self) -> usize {
        self.cdb.length().min(CDB_EMIT_MAX).saturating_sub(16)
    }

    fn ahs_length(&self) -> usize {
        let extended = match self.extended_cdb_length() {
            0 => 0,
            length => padded(4 + length),
        };
        extended + if self.bidirectional_read_length.is_some() { 8 } else { 0 }
    }

    /// Writes the header; TotalAHSLength is what [`ScsiCommand::emit_ahs`] returns.
    pub fn emit(&self, bhs: &mut Bhs) {
        let attribute = match self.attribute {
            TaskAttribute::Simple => 1,
            TaskAttribute::Ordered => 2,
            TaskAttribute::HeadOfQueue => 3,
            TaskAttribute::Aca => 4,
        };
        let flags = flag(self.final_, 0x80) | flag(self.read, 0x40) | flag(self.write, 0x20) | attribute;
        start(bhs, request(opcode::SCSI_COMMAND, self.immediate), flags);
        bhs[4] = u8::try_from(self.ahs_length() / 4).unwrap_or(0);
        put_data_segment_length(bhs, self.data_segment_length);
        put_lun(bhs, self.lun);
        put_u32::<16>(bhs, self.initiator_task_tag);
        put_u32::<20>(bhs, self.expected_data_transfer_length);
        put_u32::<24>(bhs, self.cmd_sn);
        put_u32::<28>(bhs, self.exp_stat_sn);
        bhs[32..48].copy_from_slice(&self.cdb.bytes()[..16]);
    }

    /// Writes the additional header segments and returns their length in bytes, a multiple of four and 0 when there
    /// are none. Of a CDB longer than 32 bytes the rest, which [`Cdb`] does not keep, is written as zeros, and
    /// at most 68 bytes of CDB are written.
    pub fn emit_ahs(&self, out: &mut [u8; 64]) -> usize {
        *out = [0; 64];
        let mut at = 0;
        let extended = self.extended_cdb_length();
        if extended > 0 {
            let length = u16::try_from(extended + 1).unwrap_or(0);
            out[..2].copy_from_slice(&length.to_be_bytes());
            out[2] = AHS_EXTENDED_CDB;
            for (to, from) in out[4..].iter_mut().zip(self.cdb.bytes()[16..].iter().take(extended)) {
                *to = *from;
            }
            at = padded(4 + extended);
        }
        if let Some(length) = self.bidirectional_read_length {
            let segment = [0, 5, AHS_BIDIRECTIONAL_READ_LENGTH, 0];
            for (to, from) in out[at..].iter_mut().zip(segment.into_iter().chain(length.to_be_bytes())) {
                *to = from;
            }
            at += 8;
        }
        at
    }
}

impl TaskManagementRequest {
    /// Reads a Task Management Function Request (RFC 7143 §11.5). Unknown functions are not refused here: the
    /// answer to them is the response "function not supported".
    ///
    /// # Errors
    /// A data segment, or no initiator task tag.
    pub fn parse(bhs: &Bhs) -> Result<TaskManagementRequest, ParseError> {
        no_data(bhs)?;
        Ok(TaskManagementRequest {
            immediate: immediate(bhs),
            function: bhs[1] & 0x7F,
            lun: lun(bhs),
            initiator_task_tag: task_tag(bhs)?,
            referenced_task_tag: u32_at::<20>(bhs),
            cmd_sn: u32_at::<24>(bhs),
            exp_stat_sn: u32_at::<28>(bhs),
            ref_cmd_sn: u32_at::<32>(bhs),
            exp_data_sn: u32_at::<36>(bhs),
        })
    }

    /// Writes the header.
    pub fn emit(&self, bhs: &mut Bhs) {
        start(bhs, request(opcode::TASK_MANAGEMENT_REQUEST, self.immediate), 0x80 | (self.function & 0x7F));
        put_lun(bhs, self.lun);
        put_u32::<16>(bhs, self.initiator_task_tag);
        put_u32::<20>(bhs, self.referenced_task_tag);
        put_u32::<24>(bhs, self.cmd_sn);
        put_u32::<28>(bhs, self.exp_stat_sn);
        put_u32::<32>(bhs, self.ref_cmd_sn);
        put_u32::<36>(bhs, self.exp_data_sn);
    }
}

impl LoginStage {
    /// The stage with a code of RFC 7143 §11.12.3; `None` for the reserved 2.
    #[must_use]
    pub fn from_code(code: u8) -> Option<LoginStage> {
        Some(match code {
            0 => LoginStage::SecurityNegotiation,
            1 => LoginStage::LoginOperationalNegotiation,
            3 => LoginStage::FullFeaturePhase,
            _ => return None,
        })
    }
}

/// T, C, CSG and NSG of a login PDU. NSG means nothing without T: it is then read as CSG and written as 0.
pub(super) struct Stages {
    pub(super) transit: bool,
    pub(super) continue_: bool,
    pub(super) current: LoginStage,
    pub(super) next: LoginStage,
}

impl Stages {
    pub(super) fn parse(byte: u8) -> Result<Stages, ParseError> {
        let transit = byte & 0x80 != 0;
        let continue_ = byte & 0x40 != 0;
        let current = match LoginStage::from_code((byte >> 2) & 3) {
            None | Some(LoginStage::FullFeaturePhase) => return Err(ParseError::invalid("CSG")),
            Some(stage) => stage,
        };
        if transit && continue_ {
            return Err(ParseError::protocol("T and C"));
        }
        let next = if transit {
            match LoginStage::from_code(byte & 3) {
                Some(next) if next > current => next,
                _ => return Err(ParseError::invalid("NSG")),
            }
        } else {
            current
        };
        Ok(Stages { transit, continue_, current, next })
    }

    pub(super) fn emit(&self) -> u8 {
        let next = if self.transit { self.next as u8 } else { 0 };
        flag(self.transit, 0x80) | flag(self.continue_, 0x40) | ((self.current as u8) << 2) | next
    }
}

impl LoginRequest {
    /// Reads a Login Request (RFC 7143 §11.12). It is immediate whatever the I bit says. `next_stage` equals
    /// `current_stage` when `transit` is not set.
    ///
    /// # Errors
    /// Stages that do not exist or do not go forward; T with C.
    pub fn parse(bhs: &Bhs) -> Result<LoginRequest, ParseError> {
        let stages = Stages::parse(bhs[1])?;
        Ok(LoginRequest {
            transit: stages.transit,
            continue_: stages.continue_,
            current_stage: stages.current,
            next_stage: stages.next,
            version_max: bhs[2],
            version_min: bhs[3],
            isid: [bhs[8], bhs[9], bhs[10], bhs[11], bhs[12], bhs[13]],
            tsih: u16_at::<14>(bhs),
            initiator_task_tag: u32_at::<16>(bhs),
            cid: u16_at::<20>(bhs),
            cmd_sn: u32_at::<24>(bhs),
            exp_stat_sn: u32_at::<28>(bhs),
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
        start(bhs, request(opcode::LOGIN_REQUEST, true), stages.emit());
        bhs[2] = self.version_max;
        bhs[3] = self.version_min;
        put_data_segment_length(bhs, self.data_segment_length);
        bhs[8..14].copy_from_slice(&self.isid);
        put_u16::<14>(bhs, self.tsih);
        put_u32::<16>(bhs, self.initiator_task_tag);
        put_u16::<20>(bhs, self.cid);
        put_u32::<24>(bhs, self.cmd_sn);
        put_u32::<28>(bhs, self.exp_stat_sn);
    }
}

impl TextRequest {
    /// Reads a Text Request (RFC 7143 §11.10).
    ///
    /// # Errors
    /// F with C; no initiator task tag.
    pub fn parse(bhs: &Bhs) -> Result<TextRequest, ParseError> {
        let final_ = bit::<1>(bhs, 0x80);
        let continue_ = bit::<1>(bhs, 0x40);
        if final_ && continue_ {
            return Err(ParseError::protocol("F and C"));
        }
        Ok(TextRequest {
            immediate: immediate(bhs),
            final_,
            continue_,
            lun: lun(bhs),
            initiator_task_tag: task_tag(bhs)?,
            target_transfer_tag: u32_at::<20>(bhs),
            cmd_sn: u32_at::<24>(bhs),
            exp_stat_sn: u32_at::<28>(bhs),
            data_segment_length: data_segment_length(bhs),
        })
    }

    /// Writes the header.
    pub fn emit(&self, bhs: &mut Bhs) {
        let flags = flag(self.final_, 0x80) | flag(self.continue_, 0x40);
        start(bhs, request(opcode::TEXT_REQUEST, self.immediate), flags);
        put_data_segment_length(bhs, self.data_segment_length);
        put_lun(bhs, self.lun);
        put_u32::<16>(bhs, self.initiator_task_tag);
        put_u32::<20>(bhs, self.target_transfer_tag);
        put_u32::<24>(bhs, self.cmd_sn);
        put_u32::<28>(bhs, self.exp_stat_sn);
    }
}

impl DataOut {
    /// Reads a SCSI Data-Out (RFC 7143 §11.7).
    ///
    /// # Errors
    /// No initiator task tag.
    pub fn parse(bhs: &Bhs) -> Result<DataOut, ParseError> {
        Ok(DataOut {
            final_: bit::<1>(bhs, 0x80),
            lun: lun(bhs),
            initiator_task_tag: task_tag(bhs)?,
            target_transfer_tag: u32_at::<20>(bhs),
            exp_stat_sn: u32_at::<28>(bhs),
            data_sn: u32_at::<36>(bhs),
            buffer_offset: u32_at::<40>(bhs),
            data_segment_length: data_segment_length(bhs),
        })
    }

    /// Writes the header.
    pub fn emit(&self, bhs: &mut Bhs) {
        start(bhs, opcode::DATA_OUT, flag(self.final_, 0x80));
        put_data_segment_length(bhs, self.data_segment_length);
        put_lun(bhs, self.lun);
        put_u32::<16>(bhs, self.initiator_task_tag);
        put_u32::<20>(bhs, self.target_transfer_tag);
        put_u32::<28>(bhs, self.exp_stat_sn);
        put_u32::<36>(bhs, self.data_sn);
        put_u32::<40>(bhs, self.buffer_offset);
    }
}

impl LogoutRequest {
    /// Reads a Logout Request (RFC 7143 §11.14). `cid` is 0 when the whole session closes: it means nothing there.
    ///
    /// # Errors
    /// A reserved reason; a data segment; no initiator task tag.
    pub fn parse(bhs: &Bhs) -> Result<LogoutRequest, ParseError> {
        no_data(bhs)?;
        let reason = match bhs[1] & 0x7F {
            0 => LogoutReason::CloseSession,
            1 => LogoutReason::CloseConnection,
            2 => LogoutReason::RemoveConnectionForRecovery,
            _ => return Err(ParseError::invalid("Reason Code")),
        };
        Ok(LogoutRequest {
            immediate: immediate(bhs),
            reason,
            initiator_task_tag: task_tag(bhs)?,
            cid: if reason == LogoutReason::CloseSession { 0 } else { u16_at::<20>(bhs) },
            cmd_sn: u32_at::<24>(bhs),
            exp_stat_sn: u32_at::<28>(bhs),
        })
    }

    /// Writes the header.
    pub fn emit(&self, bhs: &mut Bhs) {
        start(bhs, request(opcode::LOGOUT_REQUEST, self.immediate), 0x80 | self.reason as u8);
        put_u32::<16>(bhs, self.initiator_task_tag);
        put_u16::<20>(bhs, if self.reason == LogoutReason::CloseSession { 0 } else { self.cid });
        put_u32::<24>(bhs, self.cmd_sn);
        put_u32::<28>(bhs, self.exp_stat_sn);
    }
}

impl SnackRequest {
    /// Reads a SNACK Request (RFC 7143 §11.16).
    ///
    /// # Errors
    /// A reserved type; a data segment.
    pub fn parse(bhs: &Bhs) -> Result<SnackRequest, ParseError> {
        no_data(bhs)?;
        let kind = match bhs[1] & 0x0F {
            0 => SnackType::DataOrR2t,
            1 => SnackType::Status,
            2 => SnackType::DataAck,
            3 => SnackType::RData,
            _ => return Err(ParseError::invalid("Type")),
        };
        Ok(SnackRequest {
            kind,
            lun: lun(bhs),
            initiator_task_tag: u32_at::<16>(bhs),
            target_transfer_tag: u32_at::<20>(bhs),
            exp_stat_sn: u32_at::<28>(bhs),
            beg_run: u32_at::<40>(bhs),
            run_length: u32_at::<44>(bhs),
        })
    }

    /// Writes the header.
    pub fn emit(&self, bhs: &mut Bhs) {
        start(bhs, opcode::SNACK_REQUEST, 0x80 | self.kind as u8);
        put_lun(bhs, self.lun);
        put_u32::<16>(bhs, self.initiator_task_tag);
        put_u32::<20>(bhs, self.target_transfer_tag);
        put_u32::<28>(bhs, self.exp_stat_sn);
        put_u32::<40>(bhs, self.beg_run);
        put_u32::<44>(bhs, self.run_length);
    }
}
