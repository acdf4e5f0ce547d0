use std::collections::{BTreeMap, VecDeque};

use base::Instant;
use wire::iscsi::{
    BHS_LENGTH, Bhs, DataIn, DataOut, LoginResponse, LogoutReason, LogoutRequest, NopIn, NopOut, Pdu, R2t,
    RESERVED_TAG, Reject, ScsiCommand, ScsiResponse, TaskManagementRequest, TaskManagementResponse,
    TextRequest, TextResponse, digest, lengths, opcode, padded,
};
use wire::scsi::{Lun, Status};

use crate::login::{Login, Step, decode};
use crate::transfer::{Task, piece};
use crate::window::Window;
use crate::{Command, Config, Event, Negotiated, Residual, SessionKind};

/// MaxRecvDataSegmentLength during login (RFC 7143 §13.12).
const LOGIN_SEGMENT_MAX: usize = 8192;
/// Text gathered over several responses.
const TEXT_MAX: usize = 16 * 1024 * 1024;

#[derive(Debug)]
enum State {
    Idle,
    Login(Box<Login>),
    FullFeature,
    /// Logged out, refused, or broken so that bytes mean nothing any more.
    Over,
}

/// A request that waits for the command window.
#[derive(Debug)]
enum Waiting {
    Command(u32, Command),
    Pdu(Pdu, Vec<u8>),
}

/// A request that is no SCSI command and was not answered yet.
#[derive(Debug)]
enum Exchange {
    TaskManagement { function: u8, lun: Lun, referenced: u32, sent: u64 },
    Text { collected: Vec<u8> },
    Nop { data: Vec<u8> },
    Logout,
}

/// One session over one connection.
#[derive(Debug)]
pub struct Session {
    config: Config,
    state: State,
    negotiated: Negotiated,
    window: Window,
    input: Vec<u8>,
    output: Vec<u8>,
    events: VecDeque<Event>,
    tasks: BTreeMap<u32, Task>,
    exchanges: BTreeMap<u32, Exchange>,
    waiting: VecDeque<Waiting>,
    next_tag: u32,
    /// Requests sent, to tell which tasks a task management function found.
    sent: u64,
    hold_data_out: bool,
    corrupt_digests: [bool; 2],
    last_heard: Instant,
}

impl Session {
    /// A session that has sent nothing yet.
    #[must_use]
    pub fn new(config: Config) -> Session {
        Session {
            window: Window::new(config.initial_cmd_sn),
            config,
            state: State::Idle,
            negotiated: Negotiated::default(),
            input: Vec::new(),
            output: Vec::new(),
            events: VecDeque::new(),
            tasks: BTreeMap::new(),
            exchanges: BTreeMap::new(),
            waiting: VecDeque::new(),
            next_tag: 0,
            sent: 0,
            hold_data_out: false,
            corrupt_digests: [false; 2],
            last_heard: Instant::ZERO,
        }
    }

    /// Begins the login. Does nothing when it has begun.
    pub fn start(&mut self, now: Instant) {
        if !matches!(self.state, State::Idle) {
            return;
        }
        self.last_heard = now;
        let tag = self.new_tag();
        let (login, request, data) = Login::start(&self.config, tag);
        self.state = State::Login(Box::new(login));
        self.send_pdu(Pdu::LoginRequest(request), &data);
    }

    // ---- what the user asks for

    /// Sends a SCSI command as soon as the command window lets it, and returns its tag.
    pub fn submit(&mut self, mut command: Command) -> u32 {
        let tag = self.new_tag();
        self.tasks.insert(tag, Task::new(&mut command));
        self.enqueue(command.immediate || command.cmd_sn.is_some(), Waiting::Command(tag, command));
        tag
    }

    /// Sends a task management function (code of RFC 7143 §11.5.1 or RFC 7144) as an immediate request. `referenced`
    /// is the tag of the task meant, for the functions that mean one.
    pub fn task_management(&mut self, function: u8, lun: Lun, referenced: Option<u32>) -> u32 {
        let tag = self.new_tag();
        let referenced_task_tag = referenced.unwrap_or(RESERVED_TAG);
        let ref_cmd_sn =
            referenced.and_then(|tag| self.tasks.get(&tag)).and_then(|task| task.cmd_sn).unwrap_or(0);
        let exchange =
            Exchange::TaskManagement { function, lun, referenced: referenced_task_tag, sent: self.sent };
        self.exchanges.insert(tag, exchange);
        let request = TaskManagementRequest {
            immediate: true,
            function,
            lun,
            initiator_task_tag: tag,
            referenced_task_tag,
            cmd_sn: 0,
            exp_stat_sn: 0,
            ref_cmd_sn,
            exp_data_sn: 0,
        };
        self.enqueue(true, Waiting::Pdu(Pdu::TaskManagementRequest(request), Vec::new()));
        tag
    }

    /// Sends text keys, `SendTargets=All` for example; the answer is followed through all its continuations.
    pub fn text(&mut self, pairs: &[(&str, &str)]) -> u32 {
        let tag = self.new_tag();
        let data: Vec<u8> =
            pairs.iter().flat_map(|(key, value)| format!("{key}={value}\0").into_bytes()).collect();
        self.exchanges.insert(tag, Exchange::Text { collected: Vec::new() });
        self.send_text(tag, RESERVED_TAG, Lun::ZERO, data);
        tag
    }

    fn send_text(&mut self, tag: u32, target_transfer_tag: u32, lun: Lun, data: Vec<u8>) {
        let request = TextRequest {
            immediate: false,
            final_: true,
            continue_: false,
            lun,
            initiator_task_tag: tag,
            target_transfer_tag,
            cmd_sn: 0,
            exp_stat_sn: 0,
            data_segment_length: 0,
        };
        self.enqueue(false, Waiting::Pdu(Pdu::TextRequest(request), data));
    }

    /// Sends a ping that the target must echo, as an immediate request.
    pub fn nop_out(&mut self, data: Vec<u8>) -> u32 {
        let tag = self.new_tag();
        self.exchanges.insert(tag, Exchange::Nop { data: data.clone() });
        self.send_nop(tag, RESERVED_TAG, Lun::ZERO, data);
        tag
    }

    fn send_nop(&mut self, tag: u32, target_transfer_tag: u32, lun: Lun, data: Vec<u8>) {
        let request = NopOut {
            immediate: true,
            lun,
            initiator_task_tag: tag,
            target_transfer_tag,
            cmd_sn: 0,
            exp_stat_sn: 0,
            data_segment_length: 0,
        };
        self.enqueue(true, Waiting::Pdu(Pdu::NopOut(request), data));
    }

    /// Asks to log out. Nothing may be sent after it.
    pub fn logout(&mut self, reason: LogoutReason) -> u32 {
        let tag = self.new_tag();
        self.exchanges.insert(tag, Exchange::Logout);
        let request = LogoutRequest {
            immediate: true,
            reason,
            initiator_task_tag: tag,
            cid: self.config.cid,
            cmd_sn: 0,
            exp_stat_sn: 0,
        };
        self.enqueue(true, Waiting::Pdu(Pdu::LogoutRequest(request), Vec::new()));
        tag
    }

    // ---- hooks for tests that misbehave

    /// Sends a PDU as it is, padded and with valid digests. DataSegmentLength and TotalAHSLength are the header's.
    pub fn send_raw(&mut self, bhs: &Bhs, ahs: &[u8], data: &[u8]) {
        self.transmit(bhs, ahs, data);
    }

    /// While held, R2Ts are not answered and unsolicited data is not sent; letting go sends it all.
    pub fn hold_data_out(&mut self, hold: bool) {
        self.hold_data_out = hold;
        if !hold {
            let tags: Vec<u32> = self.tasks.keys().copied().collect();
            for tag in tags {
                self.send_sequences(tag);
            }
        }
    }

    /// The CmdSN the next command that is not immediate will have.
    pub fn set_cmd_sn(&mut self, cmd_sn: u32) {
        self.window.cmd_sn = cmd_sn;
    }

    /// The next PDU gets a wrong header digest, and the next with data a wrong data digest, where digests are on.
    pub fn corrupt_digests(&mut self, header: bool, data: bool) {
        self.corrupt_digests = [header, data];
    }

    /// Forgets a task, as if it never was, without telling the target.
    pub fn forget(&mut self, tag: u32) {
        self.tasks.remove(&tag);
    }

    // ---- what the user asks about

    /// CmdSN of the next command that is not immediate.
    #[must_use]
    pub fn cmd_sn(&self) -> u32 {
        self.window.cmd_sn
    }

    /// StatSN the target's next status must have.
    #[must_use]
    pub fn exp_stat_sn(&self) -> u32 {
        self.window.exp_stat_sn()
    }

    /// MaxCmdSN the target last gave.
    #[must_use]
    pub fn max_cmd_sn(&self) -> u32 {
        self.window.max_cmd_sn
    }

    /// What was negotiated; defaults before login is done.
    #[must_use]
    pub fn negotiated(&self) -> &Negotiated {
        &self.negotiated
    }

    /// Commands submitted that have not ended.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.tasks.len()
    }

    /// Requests that wait for the command window.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.waiting.len()
    }

    /// The session is in the full feature phase.
    #[must_use]
    pub fn is_logged_in(&self) -> bool {
        matches!(self.state, State::FullFeature)
    }

    /// When bytes last came.
    #[must_use]
    pub fn last_heard(&self) -> Instant {
        self.last_heard
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Appends what must be sent to `bytes`; false when there was nothing.
    pub fn poll_bytes(&mut self, bytes: &mut Vec<u8>) -> bool {
        let any = !self.output.is_empty();
        bytes.append(&mut self.output);
        any
    }

    /// What must be sent.
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    // ---- sending

    fn new_tag(&mut self) -> u32 {
        loop {
            let tag = self.next_tag;
            self.next_tag = self.next_tag.wrapping_add(1);
            if tag != RESERVED_TAG && !self.tasks.contains_key(&tag) && !self.exchanges.contains_key(&tag) {
                return tag;
            }
        }
    }

    fn enqueue(&mut self, at_once: bool, request: Waiting) {
        if at_once && self.is_logged_in() {
            self.send_request(request);
        } else {
            self.waiting.push_back(request);
            self.send_waiting();
        }
    }

    fn send_waiting(&mut self) {
        while self.is_logged_in() {
            let free = match self.waiting.front() {
                None => return,
                Some(Waiting::Command(_, command)) => command.immediate || command.cmd_sn.is_some(),
                Some(Waiting::Pdu(pdu, _)) => !matches!(pdu, Pdu::TextRequest(_)),
            };
            if !free && !self.window.is_open() {
                return;
            }
            if let Some(request) = self.waiting.pop_front() {
                self.send_request(request);
            }
        }
    }

    fn send_request(&mut self, request: Waiting) {
        self.sent += 1;
        match request {
            Waiting::Command(tag, command) => self.send_command(tag, &command),
            Waiting::Pdu(pdu, data) => self.send_pdu(pdu, &data),
        }
    }

    fn send_command(&mut self, tag: u32, command: &Command) {
        let rules = &self.negotiated;
        let Some(task) = self.tasks.get_mut(&tag) else { return };
        let writes = task.write_length > 0;
        let first = rules.first_burst_length.min(rules.max_burst_length).min(task.write_length);
        let mut immediate = 0;
        if rules.immediate_data {
            immediate = first.min(rules.max_send_data_segment_length);
            immediate = immediate.min(command.immediate_data_max.unwrap_or(u32::MAX));
        }
        let unsolicited = writes && !rules.initial_r2t && command.unsolicited && immediate < first;
        task.begin(immediate, if unsolicited { first } else { immediate });
        let cmd_sn = match command.cmd_sn {
            Some(cmd_sn) => {
                self.window.note(cmd_sn);
                cmd_sn
            }
            None => self.window.take(command.immediate),
        };
        task.sent = Some(self.sent);
        task.cmd_sn = Some(cmd_sn);
        let bidirectional = writes && task.read_length > 0;
        let pdu = ScsiCommand {
            immediate: command.immediate,
            final_: !unsolicited,
            read: task.read_length > 0,
            write: writes,
            attribute: command.attribute,
            lun: command.lun,
            initiator_task_tag: tag,
            expected_data_transfer_length: if writes { task.write_length } else { task.read_length },
            cmd_sn,
            exp_stat_sn: self.window.exp_stat_sn(),
            cdb: command.cdb,
            bidirectional_read_length: bidirectional.then_some(task.read_length),
            data_segment_length: immediate,
        };
        let data_out = std::mem::take(&mut task.data_out);
        let (mut bhs, mut ahs) = ([0; BHS_LENGTH], [0; 64]);
        pdu.emit(&mut bhs);
        let length = pdu.emit_ahs(&mut ahs);
        self.transmit(&bhs, ahs.get(..length).unwrap_or(&[]), &piece(&data_out, 0, immediate));
        if let Some(task) = self.tasks.get_mut(&tag) {
            task.data_out = data_out;
        }
        self.send_sequences(tag);
    }

    /// Sends the Data-Out PDUs of every sequence `tag` owes.
    fn send_sequences(&mut self, tag: u32) {
        let most = self.negotiated.max_send_data_segment_length.max(1);
        if self.hold_data_out {
            return;
        }
        let Some(task) = self.tasks.get_mut(&tag) else { return };
        let lun = task.lun;
        let sequences = std::mem::take(&mut task.sequences);
        // Out of the task while `transmit` borrows the session.
        let data_out = std::mem::take(&mut task.data_out);
        for sequence in sequences {
            let (mut done, mut data_sn) = (0, 0);
            while done < sequence.length {
                let length = most.min(sequence.length - done);
                let offset = sequence.offset + done;
                let pdu = DataOut {
                    final_: done + length == sequence.length,
                    lun: if sequence.target_transfer_tag == RESERVED_TAG { Lun::ZERO } else { lun },
                    initiator_task_tag: tag,
                    target_transfer_tag: sequence.target_transfer_tag,
                    exp_stat_sn: self.window.exp_stat_sn(),
                    data_sn,
                    buffer_offset: offset,
                    data_segment_length: length,
                };
                let mut bhs = [0; BHS_LENGTH];
                pdu.emit(&mut bhs);
                self.transmit(&bhs, &[], &piece(&data_out, offset, length));
                done += length;
                data_sn += 1;
            }
        }
        if let Some(task) = self.tasks.get_mut(&tag) {
            task.data_out = data_out;
        }
    }

    /// Sends a request with the connection's serial numbers and the length of `data` filled in.
    fn send_pdu(&mut self, mut pdu: Pdu, data: &[u8]) {
        let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let stat = self.window.exp_stat_sn();
        match &mut pdu {
            Pdu::LoginRequest(pdu) => (pdu.cmd_sn, pdu.exp_stat_sn) = (self.window.cmd_sn, stat),
            Pdu::TaskManagementRequest(pdu) => {
                (pdu.cmd_sn, pdu.exp_stat_sn) = (self.window.take(pdu.immediate), stat);
            }
            Pdu::LogoutRequest(pdu) => {
                (pdu.cmd_sn, pdu.exp_stat_sn) = (self.window.take(pdu.immediate), stat)
            }
            Pdu::NopOut(pdu) => {
                (pdu.cmd_sn, pdu.exp_stat_sn) = (self.window.take(pdu.immediate), stat);
                pdu.data_segment_length = length;
            }
            Pdu::TextRequest(pdu) => {
                (pdu.cmd_sn, pdu.exp_stat_sn) = (self.window.take(pdu.immediate), stat);
                pdu.data_segment_length = length;
            }
            _ => {}
        }
        let mut bhs = [0; BHS_LENGTH];
        pdu.emit(&mut bhs);
        self.transmit(&bhs, &[], data);
    }

    fn digests(&self) -> (bool, bool) {
        match self.state {
            State::Idle | State::Login(_) => (false, false),
            _ => (self.negotiated.header_digest, self.negotiated.data_digest),
        }
    }

    fn transmit(&mut self, bhs: &Bhs, ahs: &[u8], data: &[u8]) {
        let (header_digest, data_digest) = self.digests();
        self.output.extend_from_slice(bhs);
        self.output.extend_from_slice(ahs);
        if header_digest {
            let wrong = u32::from(std::mem::take(&mut self.corrupt_digests[0]));
            self.output.extend_from_slice(&digest::to_wire(digest::crc32c(&[bhs, ahs]) ^ wrong));
        }
        if data.is_empty() {
            return;
        }
        let padding = &[0u8; 3][..padded(data.len()) - data.len()];
        self.output.extend_from_slice(data);
        self.output.extend_from_slice(padding);
        if data_digest {
            let wrong = u32::from(std::mem::take(&mut self.corrupt_digests[1]));
            self.output.extend_from_slice(&digest::to_wire(digest::crc32c(&[data, padding]) ^ wrong));
        }
    }

    // ---- receiving

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
                if self.negotiated.first_burst_length > self.negotiated.max_burst_length {
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
        let residual = Residual::new(pdu.residual_overflow, pdu.residual_underflow, pdu.residual_count);
        let bidirectional = Residual::new(
            pdu.bidirectional_overflow,
            pdu.bidirectional_underflow,
            pdu.bidirectional_residual_count,
        );
        self.check_all(wrong);
        self.finish(pdu.initiator_task_tag, pdu.response, pdu.status, sense, [residual, bidirectional]);
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
                    "Text Response that is not final has no target transfer tag (§11.11.3)".into(),
                );
            }
            return self.send_text(tag, pdu.target_transfer_tag, pdu.lun, Vec::new());
        }
        let pairs = decode(collected);
        self.exchanges.remove(&tag);
        if pdu.final_ && pdu.target_transfer_tag != RESERVED_TAG {
            self.violation("final Text Response with a target transfer tag (§11.11.3)".into());
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

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
