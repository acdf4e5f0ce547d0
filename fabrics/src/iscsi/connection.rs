//! One connection: its phases and what each PDU of an initiator does (RFC 7143 §6, §11).

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use base::{DataBuf, Instant, Key};
use scsi::{CommandReceived, CommandStatus, ExchangeId, PortEvent, TaskManagementRequest, TaskTag};
use wire::iscsi::{
    AsyncEvent, AsyncMessage, Bhs, LogoutReason, LogoutRequest, LogoutResponse, LogoutResponseCode, NopIn,
    NopOut, Pdu, RESERVED_TAG, Reject, RejectReason, ScsiCommand, lengths, opcode,
};
use wire::scsi::{Lun, Sense, Status};

use super::data_in::{self, DataInItem};
use super::exchange::{Exchange, Stash, Unsolicited};
use super::receive::{Advance, Incoming, Place, Receiver, Verdict};
use super::session::{CommandOrder, IMMEDIATE_MAX, Session, TASK_MANAGEMENT_MAX};
use super::tables::Tables;
use super::task_management as management;
use super::transmit::{Flushed, INLINE_MAX, Item, ItemData, Notice, Transmitter};
use super::{LoginMachine, SessionParameters, TextMachine};
use crate::ByteStream;

/// Data of a Login Request: the default MaxRecvDataSegmentLength (RFC 7143 §13.12).
const LOGIN_DATA_MAX: usize = 8192;
/// Receives of one connection before the others have their turn.
const RECEIVES_PER_TURN: u32 = 16;
/// How long the last words of a connection may take.
pub(super) const LAST_WORDS: Duration = Duration::from_secs(2);
/// Items a connection may have waiting beyond twice its queue depth before it is not read any more.
const BACKLOG_SPARE: usize = 64;
/// Echoes and texts a connection may have waiting before it is not read any more.
const HEAVY_MAX: usize = 8;

/// A connection cannot go on; the text is for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fatal(pub &'static str);

/// Where a connection is.
#[derive(Debug)]
pub(super) enum Phase {
    /// Login requests only.
    Login,
    /// The last login response waits for the engine's answer.
    AwaitingNexus(Box<(wire::iscsi::LoginResponse, Vec<u8>)>),
    FullFeature,
    /// Sends its last words; the log line says why it ended.
    Ending,
}

/// What one turn of receiving came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pumped {
    /// Nothing more is there.
    Drained,
    /// There may be more: come again.
    More,
    /// Not to be read now: something else must happen first.
    Gated,
    /// The peer closed, or the stream broke.
    Ended,
}

/// The state of a connection, without its stream.
#[derive(Debug)]
pub(super) struct Connection {
    pub key: Key,
    pub id: u64,
    pub peer: SocketAddr,
    pub local: SocketAddr,
    pub phase: Phase,
    pub receiver: Receiver,
    pub transmitter: Transmitter,
    pub session: Option<Key>,
    pub cid: u16,
    pub parameters: SessionParameters,
    pub login: Option<Box<LoginMachine>>,
    pub text: TextMachine,
    /// R2Ts and unsolicited sequences that are not complete.
    pub solicited: u32,
    pub login_deadline: Instant,
    pub end_deadline: Option<Instant>,
    pub logout_deadline: Option<Instant>,
    pub last_received: Instant,
    /// When the stream last took bytes.
    last_taken: Instant,
    /// Our ping that is not answered.
    pub ping: Option<(u32, Instant)>,
    /// When its timer in the heap fires.
    pub timer_at: Option<Instant>,
    /// Stands in the ready list.
    pub ready: bool,
    /// Stands in the flush list.
    pub flush: bool,
    pub gated: bool,
    first_login: bool,
}

/// CmdSN of a request that has one, and whether it is immediate.
fn command_number(bhs: &Bhs) -> Option<(bool, u32)> {
    let code = bhs[0] & opcode::MASK;
    let numbered = matches!(
        code,
        opcode::NOP_OUT
            | opcode::SCSI_COMMAND
            | opcode::TASK_MANAGEMENT_REQUEST
            | opcode::TEXT_REQUEST
            | opcode::LOGOUT_REQUEST
    );
    let cmd_sn = u32::from_be_bytes(std::array::from_fn(|i| bhs[24 + i]));
    numbered.then_some((bhs[0] & opcode::IMMEDIATE != 0, cmd_sn))
}

impl Connection {
    pub fn new(
        key: Key,
        id: u64,
        peer: SocketAddr,
        local: SocketAddr,
        now: Instant,
        login_time: Duration,
    ) -> Connection {
        Connection {
            key,
            id,
            peer,
            local,
            phase: Phase::Login,
            receiver: Receiver::new(),
            transmitter: Transmitter::new(),
            session: None,
            cid: 0,
            parameters: SessionParameters::default(),
            login: Some(Box::default()),
            text: TextMachine::new(),
            solicited: 0,
            login_deadline: now + login_time,
            end_deadline: None,
            logout_deadline: None,
            last_received: now,
            last_taken: now,
            ping: None,
            timer_at: None,
            ready: false,
            flush: false,
            gated: false,
            first_login: true,
        }
    }

    /// No session yet.
    pub fn is_half_open(&self) -> bool {
        matches!(self.phase, Phase::Login | Phase::AwaitingNexus(_))
    }

    /// The state for reports.
    pub fn state(&self) -> &'static str {
        match self.phase {
            Phase::Login | Phase::AwaitingNexus(_) => "login",
            Phase::FullFeature => "full_feature",
            Phase::Ending => "logout",
        }
    }

    /// Receives and carries out PDUs until the stream is empty or the turn is over.
    pub fn pump<S: ByteStream>(&mut self, stream: &mut S, tables: &mut Tables) -> Result<Pumped, Fatal> {
        let result = self.pump_turn(stream, tables);
        tables.copied = tables.copied.saturating_add(std::mem::take(&mut self.receiver.copied));
        result
    }

    fn pump_turn<S: ByteStream>(&mut self, stream: &mut S, tables: &mut Tables) -> Result<Pumped, Fatal> {
        let mut receives = 0;
        loop {
            loop {
                if !self.may_read(tables) {
                    self.gated = true;
                    return Ok(Pumped::Gated);
                }
                match self.receiver.advance() {
                    Advance::Starved if self.is_foreign() => self.refuse_foreign(tables)?,
                    Advance::Starved => break,
                    Advance::Head => {
                        let incoming = self.look(tables)?;
                        self.receiver.begin(incoming);
                    }
                    Advance::Whole => {
                        if let Some(incoming) = self.receiver.take() {
                            self.accept(tables, incoming)?;
                        }
                    }
                    Advance::HeaderDigest => return Err(Fatal("header digest error")),
                }
            }
            if receives == RECEIVES_PER_TURN {
                return Ok(Pumped::More);
            }
            receives += 1;
            // Solicited data goes to its place: do not take it into a slot.
            let slot = self.solicited == 0 && matches!(self.phase, Phase::FullFeature);
            match self.receiver.receive(stream, &tables.pool, slot, &mut tables.scratch) {
                Ok(0) => return Ok(Pumped::Ended),
                Ok(_) => self.last_received = tables.now,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.receiver.release_slot(false);
                    return Ok(Pumped::Drained);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Ok(Pumped::Ended),
            }
        }
    }

    /// A connection whose answers pile up is not read until they are taken: that bounds its memory.
    pub fn may_read(&self, tables: &Tables) -> bool {
        match self.phase {
            Phase::Login => self.transmitter.backlog() < 4,
            Phase::FullFeature => {
                let depth =
                    self.session.and_then(|key| tables.sessions.get(key)).map_or(1, |one| one.queue_depth);
                self.transmitter.backlog() < 2 * depth as usize + BACKLOG_SPARE
                    && self.transmitter.heavy() < HEAVY_MAX
            }
            Phase::AwaitingNexus(_) | Phase::Ending => false,
        }
    }

    /// A header is complete: decides what becomes of the PDU and where its payload goes.
    fn look(&mut self, tables: &mut Tables) -> Result<Incoming, Fatal> {
        let bhs = self.receiver.bhs();
        let length = lengths(&bhs).data;
        let login = matches!(self.phase, Phase::Login);
        let most = if login { LOGIN_DATA_MAX } else { self.parameters.max_recv_data_segment_length as usize };
        if length > most {
            return Err(Fatal("a data segment longer than MaxRecvDataSegmentLength"));
        }
        let pdu = Pdu::parse(&bhs, self.receiver.ahs());
        let mut incoming = Incoming {
            bhs,
            pdu: pdu.ok(),
            verdict: Verdict::Accept,
            place: Place::Discard,
            length,
            intact: true,
        };
        if login {
            if !matches!(incoming.pdu, Some(Pdu::LoginRequest(_))) {
                self.refuse_foreign(tables)?;
                return Ok(incoming);
            }
            if length > 0 {
                let data = self.receiver.own_place(&tables.pool, length);
                incoming.place = data.map(Place::Own).ok_or(Fatal("no memory for a Login Request"))?;
            }
            return Ok(incoming);
        }
        if let Some((false, cmd_sn)) = command_number(&bhs) {
            match self.session.and_then(|key| tables.sessions.get(key)).map(|session| session.order(cmd_sn)) {
                Some(CommandOrder::InOrder) => {}
                Some(CommandOrder::Outside) => {
                    incoming.verdict = Verdict::Ignore;
                    return Ok(incoming);
                }
                Some(CommandOrder::Gap) => return Err(Fatal("a CmdSN is missing")),
                None => return Err(Fatal("no session")),
            }
        }
        match pdu {
            Err(error) => incoming.verdict = Verdict::Reject(error.reason),
            Ok(Pdu::DataOut(pdu)) => {
                (incoming.verdict, incoming.place) = self.place_data_out(tables, &pdu)?
            }
            Ok(Pdu::ScsiCommand(command)) => {
                incoming.verdict = self.check_command(tables, &command);
                self.place_own(tables, &mut incoming);
            }
            Ok(Pdu::NopOut(_) | Pdu::TextRequest(_)) => self.place_own(tables, &mut incoming),
            Ok(Pdu::TaskManagementRequest(_) | Pdu::LogoutRequest(_)) => {}
            Ok(Pdu::SnackRequest(_)) => incoming.verdict = Verdict::Reject(RejectReason::SnackReject),
            Ok(_) => incoming.verdict = Verdict::Reject(RejectReason::ProtocolError),
        }
        Ok(incoming)
    }

    /// During login, the header of something else is there. Its additional headers are not waited for.
    fn is_foreign(&self) -> bool {
        matches!(self.phase, Phase::Login)
            && self.receiver.opcode().is_some_and(|code| code != opcode::LOGIN_REQUEST)
    }

    /// Something else than a proper Login Request before full feature phase. Before the first Login Request the
    /// connection ends without a word; after it, with a Login reject (RFC 7143 §4.2.3).
    fn refuse_foreign(&mut self, tables: &mut Tables) -> Result<(), Fatal> {
        if self.first_login {
            return Err(Fatal("something else than a Login Request before login"));
        }
        self.refuse_during_login(tables, &self.receiver.bhs());
        Ok(())
    }

    fn place_own(&mut self, tables: &Tables, incoming: &mut Incoming) {
        if incoming.length == 0 || incoming.verdict != Verdict::Accept {
            return;
        }
        match self.receiver.own_place(&tables.pool, incoming.length) {
            Some(data) => incoming.place = Place::Own(data),
            None => incoming.verdict = Verdict::Starved,
        }
    }

    /// The rules of RFC 7143 §11.3 and §13.10 to §13.14 that the header alone can break.
    fn check_command(&self, tables: &Tables, command: &ScsiCommand) -> Verdict {
        let Some((key, session)) = self.session.and_then(|key| Some((key, tables.sessions.get(key)?))) else {
            return Verdict::Reject(RejectReason::ProtocolError);
        };
        if session.established().is_none() {
            return Verdict::Reject(RejectReason::CommandNotSupported);
        }
        if command.initiator_task_tag == RESERVED_TAG {
            return Verdict::Reject(RejectReason::InvalidPduField);
        }
        let length = command.data_segment_length;
        let expected = command.expected_data_transfer_length;
        let data_allowed = command.write
            && self.parameters.immediate_data
            && length <= self.parameters.first_burst_length
            && length <= expected;
        if length > 0 && !data_allowed {
            return Verdict::Reject(RejectReason::ProtocolError);
        }
        if !command.final_ && (!command.write || self.parameters.initial_r2t) {
            return Verdict::Reject(RejectReason::ProtocolError);
        }
        if tables.exchange_of(key, command.initiator_task_tag).is_some() {
            return Verdict::Reject(RejectReason::TaskInProgress);
        }
        if command.immediate && session.immediate_outstanding >= IMMEDIATE_MAX {
            return Verdict::Reject(RejectReason::ImmediateCommandRejected);
        }
        Verdict::Accept
    }

    /// A PDU is complete.
    fn accept(&mut self, tables: &mut Tables, incoming: Incoming) -> Result<(), Fatal> {
        if matches!(self.phase, Phase::Login) {
            let Some(Pdu::LoginRequest(request)) = incoming.pdu else {
                return Err(Fatal("no Login Request"));
            };
            if std::mem::take(&mut self.first_login) {
                self.transmitter.stat_sn = request.exp_stat_sn;
            }
            let data = match &incoming.place {
                Place::Own(data) => &data[..],
                _ => &[],
            };
            self.handle_login(tables, &request, data);
            return Ok(());
        }
        if incoming.verdict == Verdict::Ignore {
            return Ok(());
        }
        if !incoming.intact {
            self.reject(&incoming.bhs, RejectReason::DataDigestError);
            if let Some(Pdu::DataOut(pdu)) = incoming.pdu {
                self.finish_data_out(tables, incoming, &pdu);
            }
            // Anything else is as if it had not come (RFC 7143 §7.8); its CmdSN is not used up.
            return Ok(());
        }
        if let Some((false, _)) = command_number(&incoming.bhs)
            && let Some(session) = self.session.and_then(|key| tables.sessions.get_mut(key))
        {
            session.advance();
        }
        if let Verdict::Reject(reason) = incoming.verdict {
            self.reject(&incoming.bhs, reason);
            return Ok(());
        }
        let starved = incoming.verdict == Verdict::Starved;
        let Some(pdu) = incoming.pdu else { return Ok(()) };
        if let Pdu::DataOut(pdu) = pdu {
            self.finish_data_out(tables, incoming, &pdu);
            return Ok(());
        }
        let data = match incoming.place {
            Place::Own(data) => Some(data),
            _ => None,
        };
        match pdu {
            Pdu::ScsiCommand(command) => self.command(tables, &command, data, starved),
            Pdu::TaskManagementRequest(request) => self.task_management(tables, &incoming.bhs, &request),
            Pdu::NopOut(nop) => self.nop_out(&nop, data),
            Pdu::TextRequest(_) if starved => self.reject(&incoming.bhs, RejectReason::OutOfResources),
            Pdu::TextRequest(request) => {
                self.handle_text(tables, &incoming.bhs, &request, data.as_deref().unwrap_or(&[]));
            }
            Pdu::LogoutRequest(request) => self.logout(tables, &request),
            _ => self.reject(&incoming.bhs, RejectReason::ProtocolError),
        }
        Ok(())
    }

    /// A SCSI Command that passed its checks.
    fn command(&mut self, tables: &mut Tables, command: &ScsiCommand, data: Option<DataBuf>, starved: bool) {
        let Some(key) = self.session else { return };
        let Some(nexus) = tables.sessions.get(key).and_then(Session::established) else { return };
        let edtl = command.expected_data_transfer_length;
        let (expected_in, expected_out) = match (command.read, command.write) {
            (true, true) => (command.bidirectional_read_length.unwrap_or(0), edtl),
            (true, false) => (edtl, 0),
            (false, true) => (0, edtl),
            (false, false) => (0, 0),
        };
        let end = edtl.min(self.parameters.first_burst_length);
        let from = command.data_segment_length;
        let unsolicited = !command.final_ && end > from;
        let mut starved = starved;
        let mut stash = None;
        if unsolicited && !starved {
            match tables.pool.acquire(end - from) {
                Some(data) => {
                    stash = Some(Stash { offset: from, data: Some(data), filled: 0, damaged: false })
                }
                None => starved = true,
            }
        }
        let exchange = Exchange {
            session: key,
            connection: self.key,
            tag: command.initiator_task_tag,
            lun: command.lun,
            counted: true,
            immediate: command.immediate,
            task: None,
            read: command.read,
            write: command.write,
            expected_in,
            expected_out,
            data_sn: 0,
            unsolicited: unsolicited.then_some(Unsolicited { next: from, end, data_sn: 0 }),
            data_at: tables.now,
            stash,
            bursts: Default::default(),
            solicitations: Default::default(),
            held: None,
            terminating: false,
            answered: false,
            in_ring: 0,
        };
        let Some(exchange) = tables.open_exchange(exchange) else {
            let response = data_in::refusal(command.initiator_task_tag, Status::TaskSetFull, edtl);
            self.control(Pdu::ScsiResponse(response), ItemData::None, Notice::None);
            return;
        };
        if let Some(session) = tables.sessions.get_mut(key) {
            let count =
                if command.immediate { &mut session.immediate_outstanding } else { &mut session.outstanding };
            *count = count.saturating_add(1);
        }
        self.solicited += u32::from(unsolicited);
        tables.events.push_back(PortEvent::CommandReceived(CommandReceived {
            nexus,
            exchange: ExchangeId(exchange.to_u64()),
            lun: command.lun,
            tag: TaskTag(u64::from(command.initiator_task_tag)),
            attribute: command.attribute,
            cdb: command.cdb,
            expected_data_in: Some(expected_in),
            expected_data_out: Some(expected_out),
            data_out: data.filter(|_| !starved),
            starved,
        }));
    }

    /// Task Management Function Request (RFC 7143 §11.5).
    fn task_management(
        &mut self,
        tables: &mut Tables,
        bhs: &Bhs,
        request: &wire::iscsi::TaskManagementRequest,
    ) {
        let Some(session) = self.session.and_then(|key| tables.sessions.get_mut(key)) else { return };
        let Some(nexus) = session.established() else {
            self.reject(bhs, RejectReason::ProtocolError);
            return;
        };
        if session.task_managements >= TASK_MANAGEMENT_MAX {
            if request.immediate {
                self.reject(bhs, RejectReason::ImmediateCommandRejected);
            } else {
                self.answer_task_management(request.initiator_task_tag, management::response::REJECTED);
            }
            return;
        }
        let function = match management::function(request.function, self.parameters.protocol_level) {
            Ok(function) => function,
            Err(code) => {
                self.answer_task_management(request.initiator_task_tag, code);
                return;
            }
        };
        let names_task = matches!(request.function, 1 | 9);
        // RFC 7143 §11.5.5: a command that has not come although its number is due counts as come, and aborted.
        if request.function == 1
            && request.ref_cmd_sn == session.exp_cmd_sn
            && wire::iscsi::serial::less(request.ref_cmd_sn, request.cmd_sn)
        {
            session.advance();
            self.answer_task_management(request.initiator_task_tag, management::response::COMPLETE);
            return;
        }
        session.task_managements += 1;
        tables.events.push_back(PortEvent::TaskManagementRequested(TaskManagementRequest {
            nexus,
            request: management::token(request.initiator_task_tag, request.function),
            function,
            lun: request.lun,
            tag: names_task.then_some(TaskTag(u64::from(request.referenced_task_tag))),
        }));
    }

    /// Sends a Task Management Function Response.
    pub fn answer_task_management(&mut self, initiator_task_tag: u32, response: u8) {
        let pdu = wire::iscsi::TaskManagementResponse {
            response,
            initiator_task_tag,
            stat_sn: 0,
            exp_cmd_sn: 0,
            max_cmd_sn: 0,
        };
        self.control(Pdu::TaskManagementResponse(pdu), ItemData::None, Notice::None);
    }

    /// NOP-Out: a ping to answer, or the answer to ours (RFC 7143 §11.18).
    fn nop_out(&mut self, nop: &NopOut, data: Option<DataBuf>) {
        if nop.initiator_task_tag == RESERVED_TAG {
            if self.ping.is_some_and(|(tag, _)| tag == nop.target_transfer_tag) {
                self.ping = None;
            }
            return;
        }
        let most = self.transmitter.segment_length_max;
        let data = data.map(|mut data| {
            data.truncate(most as usize);
            data
        });
        let length = data.as_ref().map_or(0, |data| u32::try_from(data.len()).unwrap_or(0));
        self.nop_in(nop.initiator_task_tag, RESERVED_TAG, nop.lun, length, data);
    }

    fn nop_in(&mut self, initiator_tag: u32, target_tag: u32, lun: Lun, length: u32, data: Option<DataBuf>) {
        let pdu = NopIn {
            lun,
            initiator_task_tag: initiator_tag,
            target_transfer_tag: target_tag,
            stat_sn: 0,
            exp_cmd_sn: 0,
            max_cmd_sn: 0,
            data_segment_length: length,
        };
        self.control(Pdu::NopIn(pdu), data.map_or(ItemData::None, ItemData::Buffer), Notice::None);
    }

    /// Asks whether the initiator is there.
    pub fn send_ping(&mut self, tables: &mut Tables) {
        let tag = tables.new_target_transfer_tag();
        self.ping = Some((tag, tables.now));
        self.nop_in(RESERVED_TAG, tag, Lun::ZERO, 0, None);
    }

    /// Logout (RFC 7143 §11.14).
    fn logout(&mut self, tables: &mut Tables, request: &LogoutRequest) {
        let response = match request.reason {
            LogoutReason::CloseSession => LogoutResponseCode::Closed,
            LogoutReason::CloseConnection if request.cid == self.cid => LogoutResponseCode::Closed,
            LogoutReason::CloseConnection => LogoutResponseCode::CidNotFound,
            LogoutReason::RemoveConnectionForRecovery => LogoutResponseCode::RecoveryNotSupported,
        };
        let pdu = LogoutResponse {
            response,
            initiator_task_tag: request.initiator_task_tag,
            stat_sn: 0,
            exp_cmd_sn: 0,
            max_cmd_sn: 0,
            time_to_wait: self.parameters.default_time_to_wait,
            time_to_retain: self.parameters.default_time_to_retain,
        };
        let closes = response == LogoutResponseCode::Closed;
        let notice = if closes { Notice::Close } else { Notice::None };
        self.control(Pdu::LogoutResponse(pdu), ItemData::None, notice);
        if closes {
            self.end_after_flush(tables);
        }
    }

    /// Nothing more is received; the connection ends when its last PDU is taken, or soon.
    pub fn end_after_flush(&mut self, tables: &Tables) {
        self.phase = Phase::Ending;
        self.end_deadline = Some(tables.now + LAST_WORDS);
    }

    /// Sends a Reject with the header of the PDU in error (RFC 7143 §11.17).
    pub fn reject(&mut self, bhs: &Bhs, reason: RejectReason) {
        let pdu = Reject {
            reason,
            stat_sn: 0,
            exp_cmd_sn: 0,
            max_cmd_sn: 0,
            data_sn_or_r2t_sn: 0,
            data_segment_length: bhs.len() as u32,
        };
        let mut inline = [0; INLINE_MAX];
        inline[..bhs.len()].copy_from_slice(bhs);
        self.control(Pdu::Reject(pdu), ItemData::Inline(inline, bhs.len()), Notice::None);
    }

    /// Sends an Asynchronous Message (RFC 7143 §11.9).
    pub fn asynchronous(&mut self, event: AsyncEvent, lun: Lun, sense: Option<&Sense>, notice: Notice) {
        let mut inline = [0; INLINE_MAX];
        let length = sense.map_or(0, |sense| data_in::emit_sense_segment(sense, false, &mut inline));
        let pdu = AsyncMessage {
            event,
            lun,
            stat_sn: 0,
            exp_cmd_sn: 0,
            max_cmd_sn: 0,
            vendor_code: 0,
            data_segment_length: length as u32,
        };
        self.control(Pdu::AsyncMessage(pdu), ItemData::Inline(inline, length), notice);
    }

    /// Queues a PDU that belongs to no exchange.
    pub fn control(&mut self, pdu: Pdu, data: ItemData, notice: Notice) {
        self.transmitter.push(Item::Control { pdu, data, notice });
    }

    /// Data-In of an exchange.
    pub fn send_data_in(
        &mut self,
        tables: &mut Tables,
        key: Key,
        item: (u32, DataBuf),
        status: Option<CommandStatus>,
    ) {
        let (offset, mut data) = item;
        let Some(exchange) = tables.exchanges.get_mut(key) else { return };
        if exchange.terminating || exchange.answered || exchange.held.is_some() {
            return;
        }
        // Never more than the initiator expects: the rest is a residual.
        data.truncate(exchange.expected_in.saturating_sub(offset) as usize);
        let collapsed = status.filter(|status| {
            let good = status.status == Status::Good || status.status == Status::ConditionMet;
            good && status.sense.is_none() && !exchange.write && !data.is_empty()
        });
        if data.is_empty() {
            if let (None, Some(task)) = (status, exchange.task) {
                tables.events.push_back(PortEvent::DataInDelivered { task, offset });
            }
        } else {
            exchange.answered = collapsed.is_some();
            self.transmitter.push(Item::DataIn(DataInItem::new(key, offset, data, collapsed)));
        }
        if let (Some(status), None, Some(task)) = (status, collapsed, exchange.task) {
            self.complete(tables, key, task, status);
        }
    }

    /// Sends what waits.
    pub fn flush<S: ByteStream>(
        &mut self,
        stream: &mut S,
        tables: &mut Tables,
        taken: &mut Vec<(Option<Key>, Notice)>,
    ) -> Flushed {
        taken.clear();
        let before = self.transmitter.taken;
        let flushed = self.transmitter.flush(stream, self.session, tables, taken);
        if self.transmitter.taken != before {
            self.last_taken = tables.now;
        }
        for (key, notice) in taken.drain(..) {
            self.taken(tables, key, notice);
        }
        flushed
    }

    /// A PDU was taken by the stream.
    fn taken(&mut self, tables: &mut Tables, key: Option<Key>, notice: Notice) {
        let Some(key) = key else { return };
        let Some(exchange) = tables.exchanges.get_mut(key) else { return };
        exchange.in_ring = exchange.in_ring.saturating_sub(1);
        if let Some(event) = super::transmit::event_of(exchange, notice) {
            tables.events.push_back(event);
        }
        if notice == Notice::Status {
            tables.forget_exchange(key);
            let idle =
                self.session.and_then(|key| tables.sessions.get(key)).is_some_and(|one| one.outstanding == 0);
            self.receiver.release_slot(idle);
        } else if exchange.terminating {
            self.finish_termination(tables, key);
        }
    }

    /// The next time something of this connection is due.
    pub fn deadline(&self, tables: &Tables) -> Option<Instant> {
        let options = &tables.config.options;
        let own = match self.phase {
            Phase::Login | Phase::AwaitingNexus(_) => Some(self.login_deadline),
            Phase::Ending => self.end_deadline,
            Phase::FullFeature => match self.ping {
                // While bytes flow either way the peer is there: ping or answer may only wait behind them.
                Some((_, sent)) => {
                    let alive = sent.max(self.last_received).max(self.last_taken);
                    Some(alive + seconds(options.nop_timeout_s))
                }
                None if options.nop_in_interval_s == 0 => None,
                None => Some(self.last_received + seconds(options.nop_in_interval_s)),
            },
        };
        [own, self.logout_deadline].into_iter().flatten().min()
    }
}

/// `count` seconds; 0 is taken as one.
pub(super) fn seconds(count: u32) -> Duration {
    Duration::from_secs(u64::from(count.max(1)))
}
