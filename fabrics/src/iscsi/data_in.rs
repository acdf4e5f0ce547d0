//! Data-In PDUs and SCSI Responses (RFC 7143 §11.7, §11.4): how bursts are cut, and residuals.

use base::{DataBuf, Key};
use scsi::CommandStatus;
use wire::iscsi::{DataIn, RESERVED_TAG, ScsiResponse};
use wire::scsi::{Lun, Sense, SenseSpecific, Status};

use super::exchange::Exchange;
use super::transmit::{INLINE_MAX, Notice};

/// A burst of Data-In on its way out.
#[derive(Debug)]
pub(super) struct DataInItem {
    pub exchange: Key,
    /// Offset of the burst, as the engine named it.
    pub burst: u32,
    /// Offset of the next byte in the command's data.
    next: u32,
    /// What is left of it.
    data: Option<DataBuf>,
    /// Bytes of the present sequence (RFC 7143 §13.13: at most MaxBurstLength).
    sequence: u32,
    status: Option<CommandStatus>,
}

impl DataInItem {
    pub fn new(exchange: Key, offset: u32, data: DataBuf, status: Option<CommandStatus>) -> DataInItem {
        DataInItem { exchange, burst: offset, next: offset, data: Some(data), sequence: 0, status }
    }

    /// Nothing is left of it.
    pub fn is_done(&self) -> bool {
        self.data.is_none()
    }

    /// The next PDU: at most `segment` bytes, sequences of at most `burst`. The serial numbers are left open.
    pub fn next(
        &mut self,
        exchange: &mut Exchange,
        segment: u32,
        burst: u32,
    ) -> Option<(DataIn, DataBuf, Notice)> {
        let mut data = self.data.take()?;
        let room = burst.max(segment).saturating_sub(self.sequence);
        let length = segment.min(room).min(u32::try_from(data.len()).unwrap_or(u32::MAX));
        let last = length as usize >= data.len();
        let part = if last {
            data
        } else {
            let front = data.split_to(length as usize);
            self.data = Some(data);
            front
        };
        let offset = self.next;
        self.next = self.next.saturating_add(length);
        self.sequence = self.sequence.saturating_add(length);
        let final_ = last || self.sequence >= burst;
        if final_ {
            self.sequence = 0;
        }
        let status = if last { self.status } else { None };
        let residual = status.map(|status| residuals(exchange, &status)).unwrap_or_default();
        let pdu = DataIn {
            final_,
            acknowledge: false,
            residual_overflow: residual.overflow,
            residual_underflow: residual.underflow,
            status: status.map(|status| status.status),
            lun: Lun(0),
            initiator_task_tag: exchange.tag,
            target_transfer_tag: RESERVED_TAG,
            stat_sn: 0,
            exp_cmd_sn: 0,
            max_cmd_sn: 0,
            data_sn: exchange.data_sn,
            buffer_offset: offset,
            residual_count: residual.count,
            data_segment_length: length,
        };
        exchange.data_sn = exchange.data_sn.wrapping_add(1);
        let notice = match (last, status) {
            (true, Some(_)) => Notice::Status,
            (true, None) => Notice::Burst(self.burst),
            (false, _) => Notice::None,
        };
        Some((pdu, part, notice))
    }
}

/// Residuals of one command (RFC 7143 §11.4.5).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Residuals {
    pub overflow: bool,
    pub underflow: bool,
    pub count: u32,
    pub bidirectional_overflow: bool,
    pub bidirectional_underflow: bool,
    pub bidirectional_count: u32,
}

fn residual(expected: u32, actual: u64) -> (bool, bool, u32) {
    let expected = u64::from(expected);
    let count = u32::try_from(expected.abs_diff(actual)).unwrap_or(u32::MAX);
    (actual > expected, actual < expected, count)
}

/// What the command wanted to move against what the initiator expected. Without R and W nothing is expected; who
/// expects nothing is told of data in either direction (RFC 7143 §11.4.5.2: SPDTL > EDTL).
pub(super) fn residuals(exchange: &Exchange, status: &CommandStatus) -> Residuals {
    let mut residuals = Residuals::default();
    if exchange.read && exchange.write {
        (residuals.overflow, residuals.underflow, residuals.count) =
            residual(exchange.expected_out, status.data_out_length);
        (
            residuals.bidirectional_overflow,
            residuals.bidirectional_underflow,
            residuals.bidirectional_count,
        ) = residual(exchange.expected_in, status.data_in_length);
    } else {
        let (expected, actual) = if exchange.write && exchange.expected_out > 0 {
            (exchange.expected_out, status.data_out_length)
        } else if exchange.read && exchange.expected_in > 0 {
            (exchange.expected_in, status.data_in_length)
        } else {
            (0, status.data_in_length.max(status.data_out_length))
        };
        (residuals.overflow, residuals.underflow, residuals.count) = residual(expected, actual);
    }
    residuals
}

/// The SCSI Response for `status`, with its data segment (RFC 7143 §11.4.7: SenseLength, then sense data).
pub(super) fn response(
    exchange: &Exchange,
    status: &CommandStatus,
) -> (ScsiResponse, [u8; INLINE_MAX], usize) {
    let residual = residuals(exchange, status);
    let mut inline = [0; INLINE_MAX];
    let mut length = 0;
    if let Some(sense) = &status.sense {
        length = emit_sense_segment(sense, status.descriptor_sense, &mut inline);
    }
    let response = ScsiResponse {
        response: 0,
        status: status.status,
        residual_overflow: residual.overflow,
        residual_underflow: residual.underflow,
        bidirectional_overflow: residual.bidirectional_overflow,
        bidirectional_underflow: residual.bidirectional_underflow,
        initiator_task_tag: exchange.tag,
        snack_tag: 0,
        stat_sn: 0,
        exp_cmd_sn: 0,
        max_cmd_sn: 0,
        // Data-In PDUs only (RFC 7143 §11.4.8); a command that reads sends no R2T, bidirectional ones aside.
        exp_data_sn: if exchange.read { exchange.data_sn } else { 0 },
        bidirectional_residual_count: residual.bidirectional_count,
        residual_count: residual.count,
        data_segment_length: u32::try_from(length).unwrap_or(0),
    };
    (response, inline, length)
}

/// A response for a command that found no place in the exchange table.
pub(super) fn refusal(tag: u32, status: Status, expected: u32) -> ScsiResponse {
    ScsiResponse {
        response: 0,
        status,
        residual_overflow: false,
        residual_underflow: expected > 0,
        bidirectional_overflow: false,
        bidirectional_underflow: false,
        initiator_task_tag: tag,
        snack_tag: 0,
        stat_sn: 0,
        exp_cmd_sn: 0,
        max_cmd_sn: 0,
        exp_data_sn: 0,
        bidirectional_residual_count: 0,
        residual_count: expected,
        data_segment_length: 0,
    }
}

/// SenseLength and sense data in fixed or descriptor format (SPC-5 §4.4). Returns the bytes used.
pub(super) fn emit_sense_segment(sense: &Sense, descriptor: bool, out: &mut [u8; INLINE_MAX]) -> usize {
    let mut body = [0u8; 32];
    let length = if descriptor { emit_descriptor(sense, &mut body) } else { emit_fixed(sense, &mut body) };
    out[1] = length as u8;
    out[2..2 + length].copy_from_slice(&body[..length]);
    2 + length
}

fn specific_bytes(specific: SenseSpecific) -> [u8; 3] {
    match specific {
        SenseSpecific::FieldPointer { command, byte, bit } => {
            let [high, low] = byte.to_be_bytes();
            let pointer = bit.map_or(0, |bit| 0x08 | (bit & 0x07));
            [0x80 | (u8::from(command) << 6) | pointer, high, low]
        }
        SenseSpecific::Progress(progress) => {
            let [high, low] = progress.to_be_bytes();
            [0x80, high, low]
        }
    }
}

/// Fixed format (SPC-5 §4.4.3), 18 bytes.
fn emit_fixed(sense: &Sense, out: &mut [u8; 32]) -> usize {
    out[0] = 0x70;
    out[2] = sense.key as u8;
    // INFORMATION holds 32 bits here: a larger value is not valid in this format.
    if let Some(information) = sense.information.and_then(|value| u32::try_from(value).ok()) {
        out[0] |= 0x80;
        out[3..7].copy_from_slice(&information.to_be_bytes());
    }
    out[7] = 10;
    out[12] = sense.asc;
    out[13] = sense.ascq;
    if let Some(specific) = sense.specific {
        out[15..18].copy_from_slice(&specific_bytes(specific));
    }
    18
}

/// Descriptor format (SPC-5 §4.4.2).
fn emit_descriptor(sense: &Sense, out: &mut [u8; 32]) -> usize {
    out[0] = 0x72;
    out[1] = sense.key as u8;
    out[2] = sense.asc;
    out[3] = sense.ascq;
    let mut at = 8;
    if let Some(information) = sense.information {
        out[at + 1] = 0x0A;
        out[at + 2] = 0x80;
        out[at + 4..at + 12].copy_from_slice(&information.to_be_bytes());
        at += 12;
    }
    if let Some(specific) = sense.specific {
        out[at] = 0x02;
        out[at + 1] = 0x06;
        out[at + 4..at + 7].copy_from_slice(&specific_bytes(specific));
        at += 8;
    }
    out[7] = (at - 8) as u8;
    at
}
