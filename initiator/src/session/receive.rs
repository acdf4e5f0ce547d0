//! What comes from the target, and whether it may come.

use base::Instant;
use wire::iscsi::{
    BHS_LENGTH, DataIn, LoginResponse, NopIn, Pdu, R2t, RESERVED_TAG, Reject, ScsiResponse,
    TaskManagementResponse, TextResponse, digest, lengths, opcode, padded,
};
use wire::scsi::Status;

use super::{Exchange, Session, State};
use crate::login::{Step, decode};
use crate::transfer::Task;
use crate::{Event, Residual, SessionKind};

/// MaxRecvDataSegmentLength during login (RFC 7143 §13.12).
const LOGIN_SEGMENT_MAX: usize = 8192;
/// Text gathered over several responses.
const TEXT_MAX: usize = 16 * 1024 * 1024;

impl Session {
    /// Takes bytes of the target.
    pub fn handle_bytes(&mut self, now: Instant, bytes: &[u8]) {
        self.last_heard = now;
        // Whole PDUs are read where they lie; only the tail of an incomplete one is copied.
        if self.input.is_empty() {
            let taken = self.take_pdus(bytes);
            self.input.extend_from_slice(bytes.get(taken..).unwrap_or(&[]));
        } else {
            let mut input = std::mem::take(&mut self.input);
            input.extend_from_slice(bytes);
            let taken = self.take_pdus(&input);
            input.drain(..taken.min(input.len()));
            self.input = input;
        }
        self.send_waiting();
    }

    /// Takes every complete PDU of `bytes` and returns how far it came.
    fn take_pdus(&mut self, bytes: &[u8]) -> usize {
        let mut at = 0;
        while !matches!(self.state, State::Over) {
            match self.take_pdu(bytes.get(at..).unwrap_or(&[])) {
                0 => return at,
                taken => at += taken,
            }
        }
        bytes.len()
    }

    /// Takes the PDU at the start of `bytes` and returns its length; 0 when it is not complete.
    fn take_pdu(&mut self, bytes: &[u8]) -> usize {
        let Some((bhs, _)) = bytes.split_first_chunk::<BHS_LENGTH>() else { return 0 };
        let lengths = lengths(bhs);
        let (header_digest, data_digest) = self.digests();
        let header = BHS_LENGTH + lengths.ahs;
        let data_at = header + if header_digest { digest::DIGEST_LENGTH } else { 0 };
        if bytes.len() < data_at {
            return 0;
        }
        let digest_at = |at: usize| {
            let bytes = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
            digest::from_wire(bytes.copied().unwrap_or_default())
        };
        if header_digest && digest_at(header) != digest::crc32c_of(bytes.get(..header).unwrap_or(&[])) {
            self.violation("header digest does not fit (§13.1)".into());
            self.state = State::Over;
            return bytes.len();
        }
        let padded_end = data_at + padded(lengths.data);
        let has_digest = data_digest && lengths.data > 0;
        let end = padded_end + if has_digest { digest::DIGEST_LENGTH } else { 0 };
        if bytes.len() < end {
            return 0;
        }
        if has_digest
            && digest_at(padded_end) != digest::crc32c_of(bytes.get(data_at..padded_end).unwrap_or(&[]))
        {
            self.violation("data digest does not fit (§13.1)".into());
        }
        let most = match self.state {
            State::Login(_) => LOGIN_SEGMENT_MAX,
            _ => self.negotiated.max_recv_data_segment_length as usize,
        };
        if lengths.data > most {
            self.violation(format!(
                "data segment of {} bytes (MaxRecvDataSegmentLength, §13.12)",
                lengths.data
            ));
        }
        let ahs = bytes.get(BHS_LENGTH..header).unwrap_or(&[]);
        let data = bytes.get(data_at..data_at + lengths.data).unwrap_or(&[]);
        match Pdu::parse(bhs, ahs) {
            Ok(pdu) => self.dispatch(pdu, data),
            Err(error) => self.violation(format!("PDU with opcode {:#04x}: {error}", bhs[0])),
        }
        end
    }

    fn violation(&mut self, what: String) {
        self.events.push_back(Event::ProtocolViolation(what));
    }

    fn check(&mut self, result: Result<(), String>) {
        if let Err(what) = result {
            self.violation(what);
        }
    }

    fn check_all(&mut self, wrong: Vec<String>) {
        self.events.extend(wrong.into_iter().map(Event::ProtocolViolation));
    }

    /// The serial numbers nearly every response carries.
    fn serials(&mut self, stat_sn: u32, advances: bool, exp_cmd_sn: u32, max_cmd_sn: u32) {
        let stat = self.window.check_stat_sn(stat_sn, advances);
        self.check(stat);
        let commands = self.window.check_commands(exp_cmd_sn, max_cmd_sn);
        self.check(commands);
    }

    fn dispatch(&mut self, pdu: Pdu, data: &[u8]) {
        match (&self.state, pdu) {
            (State::Login(_), Pdu::LoginResponse(pdu)) => self.take_login(&pdu, data),
            (State::FullFeature, Pdu::ScsiResponse(pdu)) => self.take_response(&pdu, data),
            (State::FullFeature, Pdu::DataIn(pdu)) => self.take_data_in(&pdu, data),
            (State::FullFeature, Pdu::R2t(pdu)) => self.take_r2t(&pdu),
            (State::FullFeature, Pdu::TaskManagementResponse(pdu)) => self.take_task_management(&pdu),
            (State::FullFeature, Pdu::TextResponse(pdu)) => self.take_text(&pdu, data),
            (State::FullFeature, Pdu::NopIn(pdu)) => self.take_nop(&pdu, data),
            (State::FullFeature, Pdu::LogoutResponse(pdu)) => {
                self.serials(pdu.stat_sn, true, pdu.exp_cmd_sn, pdu.max_cmd_sn);
                if !matches!(self.exchanges.remove(&pdu.initiator_task_tag), Some(Exchange::Logout)) {
                    return self.unknown("Logout Response", pdu.initiator_task_tag);
                }
                self.state = State::Over;
                self.events.push_back(Event::LoggedOut {
                    response: pdu.response,
                    time_to_wait: pdu.time_to_wait,
                    time_to_retain: pdu.time_to_retain,
                });
            }
            (State::FullFeature, Pdu::AsyncMessage(message)) => {
                self.serials(message.stat_sn, true, message.exp_cmd_sn, message.max_cmd_sn);
                self.events.push_back(Event::AsyncMessage { message, data: data.to_vec() });
            }
            (State::FullFeature, Pdu::Reject(pdu)) => self.take_reject(&pdu, data),
            (_, pdu) => {
                self.violation(format!("opcode {:#04x} does not fit the phase (§11.2.1.2)", pdu.opcode()))
            }
        }
    }

    fn unknown(&mut self, what: &str, tag: u32) {
        self.violation(format!("{what} for the unknown task tag {tag:#x}"));
    }

    fn take_login(&mut self, pdu: &LoginResponse, data: &[u8]) {
        let State::Login(login) = &mut self.state else { return };
        let mut wrong = Vec::new();
        let step = login.take(&self.config, pdu, data, &mut wrong);
        self.check_all(wrong);
        if pdu.status_class == 0 {
            self.serials(pdu.stat_sn, true, pdu.exp_cmd_sn, pdu.max_cmd_sn);
        }
        match step {
            Step::Send(request, data) => self.send_pdu(Pdu::LoginRequest(request), &data),
            Step::Failed { class, detail, text } => {
                self.state = State::Over;
                self.events.push_back(Event::LoginFailed { class, detail, text });
            }
            Step::NotAuthentic => {
                self.state = State::Over;
                self.events.push_back(Event::TargetNotAuthentic);
            }
            Step::Broken(what) => {
                self.state = State::Over;
                self.violation(what);
            }
            Step::Done { tsih } => {
                let State::Login(login) = std::mem::replace(&mut self.state, State::FullFeature) else {
                    return;
                };
                let negotiation = login.negotiation;
                if self.config.kind == SessionKind::Normal && negotiation.portal_group_tag.is_none() {
                    self.violation("no TargetPortalGroupTag (§13.9)".into());
                }
                self.negotiated = negotiation.result;
                // The key is irrelevant when nothing is ever sent unsolicited (§13.14).
                let unsolicited = self.negotiated.immediate_data || !self.negotiated.initial_r2t;
                if unsolicited && self.negotiated.first_burst_length > self.negotiated.max_burst_length {
                    self.violation("FirstBurstLength above MaxBurstLength (§13.14)".into());
                }
                self.events.push_back(Event::LoggedIn {
                    negotiated: self.negotiated.clone(),
                    tsih,
                    portal_group_tag: negotiation.portal_group_tag,
                    target_alias: negotiation.target_alias,
                });
            }
        }
    }

    fn take_response(&mut self, pdu: &ScsiResponse, data: &[u8]) {
        self.serials(pdu.stat_sn, true, pdu.exp_cmd_sn, pdu.max_cmd_sn);
        let Some(task) = self.sent_task(pdu.initiator_task_tag) else {
            return self.unknown("SCSI Response", pdu.initiator_task_tag);
        };
        let mut wrong = Vec::new();
        task.check_response(pdu, &mut wrong);
        let sense = match data.split_first_chunk::<2>() {
            None => Vec::new(),
            Some((length, rest)) => match rest.get(..usize::from(u16::from_be_bytes(*length))) {
                Some(sense) => sense.to_vec(),
                None => {
                    wrong.push("SenseLength beyond the data segment (§11.4.7)".into());
                    rest.to_vec()
                }
            },
        };
        if pdu.response == 0 && pdu.status == Status::CheckCondition && sense.is_empty() {
            wrong.push("CHECK CONDITION without sense data (§11.4.7)".into());
        }
        self.check_acknowledged(pdu.initiator_task_tag);
        let residual = Residual::new(pdu.residual_overflow, pdu.residual_underflow, pdu.residual_count);
        let bidirectional = Residual::new(
            pdu.bidirectional_overflow,
            pdu.bidirectional_underflow,
            pdu.bidirectional_residual_count,
        );
        self.check_all(wrong);
        self.finish(pdu.initiator_task_tag, pdu.response, pdu.status, sense, [residual, bidirectional]);
    }

    /// A status must not precede the acknowledgment of its command (RFC 7143 §4.2.2.1).
    fn check_acknowledged(&mut self, tag: u32) {
        let cmd_sn = self.tasks.get(&tag).and_then(|task| if task.numbered { task.cmd_sn } else { None });
        if let Some(cmd_sn) = cmd_sn.filter(|cmd_sn| !self.window.is_acknowledged(*cmd_sn)) {
            self.violation(format!(
                "status before the command with CmdSN {cmd_sn:#x} is acknowledged (§4.2.2.1)"
            ));
        }
    }

    /// A task the target can know of.
    fn sent_task(&mut self, tag: u32) -> Option<&mut Task> {
        self.tasks.get_mut(&tag).filter(|task| task.sent.is_some())
    }

    fn finish(&mut self, tag: u32, response: u8, status: Status, sense: Vec<u8>, residuals: [Residual; 2]) {
        let Some(task) = self.tasks.remove(&tag) else { return };
        let [residual, bidirectional_residual] = residuals;
        let mut wrong = Vec::new();
        if response == 0 && status == Status::Good {
            task.check_residual(residual, bidirectional_residual, &mut wrong);
        }
        self.check_all(wrong);
        let data = task.into_data_in();
        let done =
            Event::CommandDone { tag, response, status, sense, data, residual, bidirectional_residual };
        self.events.push_back(done);
    }

    fn take_data_in(&mut self, pdu: &DataIn, data: &[u8]) {
        if pdu.status.is_some() {
            let stat = self.window.check_stat_sn(pdu.stat_sn, true);
            self.check(stat);
        }
        let commands = self.window.check_commands(pdu.exp_cmd_sn, pdu.max_cmd_sn);
        self.check(commands);
        let mut wrong = Vec::new();
        let Some(task) = self.tasks.get_mut(&pdu.initiator_task_tag).filter(|task| task.sent.is_some())
        else {
            return self.unknown("Data-In", pdu.initiator_task_tag);
        };
        task.take_data_in(pdu, data, &self.negotiated, &mut wrong);
        self.check_all(wrong);
        if let Some(status) = pdu.status {
            self.check_acknowledged(pdu.initiator_task_tag);
            let residual = Residual::new(pdu.residual_overflow, pdu.residual_underflow, pdu.residual_count);
            self.finish(pdu.initiator_task_tag, 0, status, Vec::new(), [residual, Residual::None]);
        }
    }

    fn take_r2t(&mut self, pdu: &R2t) {
        self.serials(pdu.stat_sn, false, pdu.exp_cmd_sn, pdu.max_cmd_sn);
        let mut wrong = Vec::new();
        let Some(task) = self.tasks.get_mut(&pdu.initiator_task_tag).filter(|task| task.sent.is_some())
        else {
            return self.unknown("R2T", pdu.initiator_task_tag);
        };
        task.take_r2t(pdu, &self.negotiated, &mut wrong);
        self.check_all(wrong);
        self.send_sequences(pdu.initiator_task_tag);
    }

    fn take_task_management(&mut self, pdu: &TaskManagementResponse) {
        self.serials(pdu.stat_sn, true, pdu.exp_cmd_sn, pdu.max_cmd_sn);
        let tag = pdu.initiator_task_tag;
        let (function, lun, referenced, sent) = match self.exchanges.remove(&tag) {
            Some(Exchange::TaskManagement { function, lun, referenced, sent }) => {
                (function, lun, referenced, sent)
            }
            _ => return self.unknown("Task Management Function Response", tag),
        };
        if pdu.response == 0 {
            let earlier = |task: &Task| task.sent.is_some_and(|at| at <= sent);
            let gone: Vec<u32> = match function {
                // ABORT TASK
                1 => self.tasks.get(&referenced).map(|_| referenced).into_iter().collect(),
                // ABORT TASK SET, CLEAR TASK SET, LOGICAL UNIT RESET
                2 | 4 | 5 => {
                    let of_unit = |task: &Task| task.lun == lun && earlier(task);
                    self.tasks.iter().filter(|(_, task)| of_unit(task)).map(|(tag, _)| *tag).collect()
                }
                // TARGET WARM RESET, TARGET COLD RESET, I_T NEXUS RESET
                6 | 7 | 11 => {
                    self.tasks.iter().filter(|(_, task)| earlier(task)).map(|(tag, _)| *tag).collect()
                }
                _ => Vec::new(),
            };
            for tag in gone {
                self.tasks.remove(&tag);
                self.events.push_back(Event::CommandAborted { tag });
            }
        }
        self.events.push_back(Event::TaskManagementDone { tag, response: pdu.response });
    }

    fn take_text(&mut self, pdu: &TextResponse, data: &[u8]) {
        self.serials(pdu.stat_sn, true, pdu.exp_cmd_sn, pdu.max_cmd_sn);
        let tag = pdu.initiator_task_tag;
        let Some(Exchange::Text { collected }) = self.exchanges.get_mut(&tag) else {
            return self.unknown("Text Response", tag);
        };
        collected.extend_from_slice(data);
        if !pdu.final_ && collected.len() <= TEXT_MAX {
            if pdu.target_transfer_tag == RESERVED_TAG {
                self.violation(
                    "Text Response that is not final has no target transfer tag (§11.11.4)".into(),
                );
            }
            return self.send_text(tag, pdu.target_transfer_tag, pdu.lun, Vec::new());
        }
        let pairs = decode(collected);
        self.exchanges.remove(&tag);
        if pdu.final_ && pdu.target_transfer_tag != RESERVED_TAG {
            self.violation("final Text Response with a target transfer tag (§11.11.4)".into());
        }
        match pairs {
            Ok(pairs) => self.events.push_back(Event::Text { tag, pairs }),
            Err(error) => self.violation(format!("Text Response: {error} (§6.1)")),
        }
    }

    fn take_nop(&mut self, pdu: &NopIn, data: &[u8]) {
        let tag = pdu.initiator_task_tag;
        self.serials(pdu.stat_sn, tag != RESERVED_TAG, pdu.exp_cmd_sn, pdu.max_cmd_sn);
        if tag == RESERVED_TAG {
            if pdu.target_transfer_tag != RESERVED_TAG && self.config.answer_nops {
                self.send_nop(RESERVED_TAG, pdu.target_transfer_tag, pdu.lun, Vec::new());
            }
            if !data.is_empty() {
                self.violation("NOP-In that does not answer has data (§11.19)".into());
            }
            let target_transfer_tag = pdu.target_transfer_tag;
            return self.events.push_back(Event::NopReceived { target_transfer_tag, data: data.to_vec() });
        }
        let Some(Exchange::Nop { data: sent }) = self.exchanges.remove(&tag) else {
            return self.unknown("NOP-In", tag);
        };
        if pdu.target_transfer_tag != RESERVED_TAG {
            self.violation("NOP-In that answers has a target transfer tag (§11.19.1)".into());
        }
        // The echo may be cut to our MaxRecvDataSegmentLength, but not changed.
        let most = sent.len().min(self.negotiated.max_recv_data_segment_length as usize);
        if sent.get(..most) != Some(data) {
            self.violation("NOP-In does not echo the data (§11.19)".into());
        }
        self.events.push_back(Event::NopDone { tag, data: data.to_vec() });
    }

    fn take_reject(&mut self, pdu: &Reject, data: &[u8]) {
        self.serials(pdu.stat_sn, true, pdu.exp_cmd_sn, pdu.max_cmd_sn);
        let header = data.first_chunk::<BHS_LENGTH>().copied();
        match header {
            None => self.violation("Reject without the header it rejects (§11.17)".into()),
            Some(bhs) => {
                // A request that never became a task gets no other answer.
                let tag = u32::from_be_bytes([bhs[16], bhs[17], bhs[18], bhs[19]]);
                match bhs[0] & opcode::MASK {
                    opcode::DATA_OUT | opcode::SNACK_REQUEST | opcode::SCSI_COMMAND => {}
                    _ => drop(self.exchanges.remove(&tag)),
                }
            }
        }
        self.events.push_back(Event::Rejected { reason: pdu.reason, header });
    }
}
