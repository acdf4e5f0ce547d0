//! One SCSI command on the wire: what it still sends, what it got, and whether the target moved it by the rules.

use std::borrow::Cow;
use std::collections::VecDeque;

use wire::iscsi::{DataIn, R2t, RESERVED_TAG, ScsiResponse};
use wire::scsi::{Lun, Status};

use crate::{Command, Negotiated, Residual};

/// Data that waits to be sent: an R2T that was not answered yet, or the unsolicited rest of the first burst.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sequence {
    pub(crate) target_transfer_tag: u32,
    pub(crate) offset: u32,
    pub(crate) length: u32,
}

/// A command that was submitted and has not ended.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) lun: Lun,
    pub(crate) data_out: Vec<u8>,
    /// Position in the order of sending; `None` while the command waits for the window.
    pub(crate) sent: Option<u64>,
    /// Its CmdSN once it was sent.
    pub(crate) cmd_sn: Option<u32>,
    /// Not immediate: the target must acknowledge its CmdSN.
    pub(crate) numbered: bool,
    /// Expected length of the write and of the read.
    pub(crate) write_length: u32,
    pub(crate) read_length: u32,
    pub(crate) sequences: VecDeque<Sequence>,
    data_in: Vec<u8>,
    received: u64,
    /// Bytes of the write that were sent or asked for by themselves or by an R2T, from 0 up.
    covered: u32,
    asked: u64,
    sequence_bytes: u64,
    in_sequence: bool,
    next_offset: u32,
    /// DataSN and R2TSN of a command count together (RFC 7143 §11.7.5).
    exp_data_sn: u32,
    /// What ExpDataSN of the response must be (RFC 7143 §11.4.8): R2Ts do not count.
    data_in_pdus: u32,
}

/// Bytes `offset..offset + length` of the data to write; zeros beyond what the caller gave.
pub(crate) fn piece(data_out: &[u8], offset: u32, length: u32) -> Cow<'_, [u8]> {
    let (start, length) = (offset as usize, length as usize);
    if let Some(bytes) = data_out.get(start..start.saturating_add(length)) {
        return Cow::Borrowed(bytes);
    }
    let mut bytes = data_out.get(start..).unwrap_or(&[]).to_vec();
    bytes.resize(length, 0);
    Cow::Owned(bytes)
}

impl Task {
    pub(crate) fn new(command: &mut Command) -> Task {
        let data_out = std::mem::take(&mut command.data_out);
        let written = u32::try_from(data_out.len()).unwrap_or(u32::MAX);
        let writes = written > 0;
        let reads = command.data_in_length > 0;
        let announced = command.expected_length;
        Task {
            lun: command.lun,
            data_out,
            sent: None,
            cmd_sn: None,
            numbered: !command.immediate,
            write_length: if writes { announced.unwrap_or(written) } else { 0 },
            read_length: match announced {
                Some(length) if !writes && reads => length,
                _ => command.data_in_length,
            },
            sequences: VecDeque::new(),
            data_in: Vec::new(),
            received: 0,
            covered: 0,
            asked: 0,
            sequence_bytes: 0,
            in_sequence: false,
            next_offset: 0,
            exp_data_sn: 0,
            data_in_pdus: 0,
        }
    }

    /// Fixes the first burst: `immediate` bytes go with the command, and up to `end` follow unsolicited.
    pub(crate) fn begin(&mut self, immediate: u32, end: u32) {
        self.covered = end;
        self.asked = u64::from(end);
        if end > immediate {
            self.sequences.push_back(Sequence {
                target_transfer_tag: RESERVED_TAG,
                offset: immediate,
                length: end - immediate,
            });
        }
    }

    fn count(&mut self, what: &str, number: u32, wrong: &mut Vec<String>) {
        if number != self.exp_data_sn {
            wrong.push(format!("{what} {number}, expected {} (§11.7.5, §11.8.2)", self.exp_data_sn));
        }
        self.exp_data_sn = number.wrapping_add(1);
    }

    pub(crate) fn take_data_in(
        &mut self,
        pdu: &DataIn,
        data: &[u8],
        rules: &Negotiated,
        wrong: &mut Vec<String>,
    ) {
        self.count("DataSN", pdu.data_sn, wrong);
        self.data_in_pdus = self.data_in_pdus.wrapping_add(1);
        let length = data.len() as u64;
        let end = u64::from(pdu.buffer_offset) + length;
        if self.read_length == 0 && length > 0 {
            wrong.push("Data-In for a command that does not read (§11.7)".into());
            return;
        }
        if end > u64::from(self.read_length) {
            wrong.push(format!(
                "Data-In up to {end} beyond the expected length {} (§11.7.6)",
                self.read_length
            ));
            return;
        }
        // With sequences out of order the first PDU of one may start anywhere.
        let in_order = rules.data_pdu_in_order && (rules.data_sequence_in_order || self.in_sequence);
        if in_order && pdu.buffer_offset != self.next_offset {
            wrong.push(format!("Data-In at {}, expected {} (§11.7.6)", pdu.buffer_offset, self.next_offset));
        }
        self.next_offset = u32::try_from(end).unwrap_or(u32::MAX);
        self.sequence_bytes += length;
        if self.sequence_bytes > u64::from(rules.max_burst_length) {
            wrong.push(format!(
                "a Data-In sequence of {} bytes (MaxBurstLength, §13.13)",
                self.sequence_bytes
            ));
        }
        self.in_sequence = !pdu.final_;
        if pdu.final_ {
            self.sequence_bytes = 0;
        }
        if pdu.acknowledge && rules.error_recovery_level == 0 {
            wrong.push("A bit at ErrorRecoveryLevel 0 (§11.7.2)".into());
        }
        if !pdu.acknowledge && pdu.target_transfer_tag != RESERVED_TAG {
            wrong.push("Data-In without the A bit has a target transfer tag (§11.7.4)".into());
        }
        match pdu.status {
            None | Some(Status::Good | Status::ConditionMet) => {}
            Some(status) => wrong.push(format!("{status:?} in Data-In, without sense data (§11.7.3)")),
        }
        if pdu.status.is_some() && self.write_length > 0 {
            wrong.push("status of a bidirectional command in Data-In (§11.7.3)".into());
        }
        if self.data_in.len() < end as usize {
            self.data_in.reserve_exact((self.read_length as usize).saturating_sub(self.data_in.len()));
            self.data_in.resize(end as usize, 0);
        }
        if let Some(room) = self.data_in.get_mut(pdu.buffer_offset as usize..end as usize) {
            room.copy_from_slice(data);
        }
        self.received += length;
    }

    pub(crate) fn take_r2t(&mut self, pdu: &R2t, rules: &Negotiated, wrong: &mut Vec<String>) {
        self.count("R2TSN", pdu.r2t_sn, wrong);
        let length = pdu.desired_data_transfer_length;
        let end = u64::from(pdu.buffer_offset) + u64::from(length);
        if end > u64::from(self.write_length) {
            wrong.push(format!("R2T up to {end} beyond the expected length {} (§11.8.4)", self.write_length));
            return;
        }
        if rules.data_sequence_in_order && pdu.buffer_offset != self.covered {
            wrong.push(format!("R2T at {}, expected {} (§11.8.4)", pdu.buffer_offset, self.covered));
        }
        if length > rules.max_burst_length {
            wrong.push(format!("R2T for {length} bytes (MaxBurstLength, §11.8.4)"));
        }
        if pdu.lun != self.lun {
            wrong.push("R2T with another LUN than its command's (§11.8)".into());
        }
        let outstanding =
            1 + self.sequences.iter().filter(|sequence| sequence.target_transfer_tag != RESERVED_TAG).count();
        if outstanding > usize::from(rules.max_outstanding_r2t) {
            wrong.push(format!("{outstanding} R2Ts outstanding (MaxOutstandingR2T, §13.17)"));
        }
        self.covered = u32::try_from(end).unwrap_or(u32::MAX);
        self.asked += u64::from(length);
        self.sequences.push_back(Sequence {
            target_transfer_tag: pdu.target_transfer_tag,
            offset: pdu.buffer_offset,
            length,
        });
    }

    /// What a SCSI Response must agree with.
    pub(crate) fn check_response(&self, pdu: &ScsiResponse, wrong: &mut Vec<String>) {
        let expected = if pdu.response == 0 { self.data_in_pdus } else { 0 };
        if pdu.exp_data_sn != expected {
            wrong.push(format!("ExpDataSN {}, expected {expected} (§11.4.8)", pdu.exp_data_sn));
        }
    }

    /// Residuals must account for every byte when the command ended well (§11.4.5). `residual` is of the write when
    /// there is one, else of the read.
    pub(crate) fn check_residual(
        &self,
        residual: Residual,
        bidirectional: Residual,
        wrong: &mut Vec<String>,
    ) {
        let read = if self.write_length > 0 { bidirectional } else { residual };
        let moved = |expected: u32, residual: Residual| match residual {
            Residual::None | Residual::Overflow(_) => u64::from(expected),
            Residual::Underflow(count) => u64::from(expected.saturating_sub(count)),
        };
        if self.read_length > 0 && self.received != moved(self.read_length, read) {
            wrong.push(format!(
                "{} bytes of {} were read, but the residual is {read:?} (§11.4.5)",
                self.received, self.read_length
            ));
        }
        if self.write_length > 0 && self.asked < moved(self.write_length, residual) {
            wrong.push(format!(
                "{} bytes of {} were written, but the residual is {residual:?} (§11.4.5)",
                self.asked, self.write_length
            ));
        }
        if self.in_sequence && self.received > 0 {
            wrong.push("the last Data-In sequence has no F bit (§11.7.1)".into());
        }
    }

    pub(crate) fn into_data_in(self) -> Vec<u8> {
        self.data_in
    }
}
