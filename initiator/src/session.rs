mod receive;

use std::collections::{BTreeMap, VecDeque};

use base::Instant;
use wire::iscsi::{
    BHS_LENGTH, Bhs, DataOut, LogoutReason, LogoutRequest, NopOut, Pdu, RESERVED_TAG, ScsiCommand,
    TaskManagementRequest, TextRequest, digest, padded,
};
use wire::scsi::Lun;

use crate::login::Login;
use crate::transfer::{Task, piece};
use crate::window::Window;
use crate::{Command, Config, Event, Negotiated};

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

    /// True when the command's PDU has left: not when it still waits for the command window to open.
    #[must_use]
    pub fn is_sent(&self, tag: u32) -> bool {
        self.tasks.get(&tag).is_some_and(|task| task.cmd_sn.is_some())
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
}

#[cfg(test)]
mod tests;
