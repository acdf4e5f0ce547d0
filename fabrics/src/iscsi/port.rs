//! The iSCSI target port of one core.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::sync::Arc;

use base::{BufferPool, CoreId, DataBuf, Instant, Key, Limits, Progress, Slab};
use scsi::{
    CommandStatus, DropReason, ExchangeId, NexusId, NexusToken, PortEvent, RequestToken, TaskId,
    TaskManagementResponse,
};
use wire::iscsi::AsyncEvent;
use wire::scsi::{Lun, Sense};

use super::connection::{Connection, Fatal, Phase, Pumped, seconds};
use super::exchange::Exchange;
use super::session::NexusState;
use super::tables::{Tables, Timer};
use super::task_management as management;
use super::transmit::{Flushed, Notice};
use super::{Config, SessionType};
use crate::conductor::ConnectionReport;
use crate::{Accepted, Network, Readiness, StreamToken, TargetPort};

/// Streams taken from the network in one turn.
const ACCEPTS_PER_TURN: usize = 64;
/// Most half-open connections the table has room for, whatever the configuration says.
const HALF_OPEN_ROOM: usize = 4096;

/// A connection and its stream.
struct Attached<S> {
    stream: S,
    connection: Connection,
}

/// The iSCSI target port of one core (RFC 7143): its connections and sessions, from accept to logout. It tells the
/// engine what initiators ask (`scsi::PortEvent`) and carries out the engine's answers ([`TargetPort`]).
pub struct IscsiPort<N: Network> {
    network: N,
    attached: Slab<Attached<N::Stream>>,
    tables: Tables,
    ready: VecDeque<Key>,
    /// Connections with something to send.
    unsent: Vec<Key>,
    unsent_spare: Vec<Key>,
    taken: Vec<(Option<Key>, Notice)>,
    half_open: u32,
}

impl<N: Network> IscsiPort<N> {
    /// A port without connections. `pool` must have slots of 256 KiB (and smaller ones) for receiving; `entropy`
    /// seeds tags and tables, so that nobody can foresee them.
    #[must_use]
    pub fn new(
        core: CoreId,
        network: N,
        pool: BufferPool,
        limits: Limits,
        config: Arc<Config>,
        entropy: u64,
    ) -> Self {
        let room = limits.sessions_max as usize
            + (config.options.half_open_connections_max as usize).clamp(64, HALF_OPEN_ROOM);
        IscsiPort {
            network,
            attached: Slab::with_capacity(room),
            tables: Tables::new(core, pool, limits, config, entropy),
            ready: VecDeque::with_capacity(room),
            unsent: Vec::with_capacity(room),
            unsent_spare: Vec::with_capacity(room),
            taken: Vec::with_capacity(1024),
            half_open: 0,
        }
    }

    /// The network, for those who sleep on it.
    #[must_use]
    pub fn network(&self) -> &N {
        &self.network
    }

    /// The network, for those who own its listeners.
    pub fn network_mut(&mut self) -> &mut N {
        &mut self.network
    }

    /// Payload bytes that had to be copied since start.
    #[must_use]
    pub fn payload_bytes_copied(&self) -> u64 {
        self.tables.copied
    }

    /// Sessions that the present configuration does not admit and that are not gone yet.
    #[must_use]
    pub fn sessions_to_end(&self) -> usize {
        self.tables.sessions.iter().filter(|(_, session)| session.unwanted).count()
    }

    /// Takes a new configuration and ends the sessions that it does not admit.
    pub fn set_config(&mut self, now: Instant, config: Arc<Config>) {
        self.tables.now = now;
        self.tables.config = config;
        let unwanted: Vec<Key> = self
            .tables
            .sessions
            .iter()
            .filter(|(_, session)| !session.unwanted && session.kind == SessionType::Normal)
            .filter(|(_, session)| !self.admits(session))
            .map(|(key, _)| key)
            .collect();
        for key in unwanted {
            let Some(session) = self.tables.sessions.get_mut(key) else { continue };
            session.unwanted = true;
            let connection = session.connection;
            self.end_session(connection, true, "its target or its access was taken away");
        }
        let all: Vec<Key> = self.attached.iter().map(|(key, _)| key).collect();
        for key in all {
            self.reschedule(key);
        }
    }

    fn admits(&self, session: &super::session::Session) -> bool {
        let peer = self.attached.get(session.connection).map(|one| one.connection.peer);
        let config = &self.tables.config;
        config.targets.iter().any(|node| {
            Some(node.target) == session.target_device
                && session.target.as_ref() == Some(&node.name)
                && peer.is_some_and(|peer| {
                    super::access::admits(config, node, session.portal_group, &session.initiator, peer)
                })
        })
    }

    /// Asks the sessions with `target` (all when `None`) through `portal_group` (any when `None`) to log out
    /// within `seconds`; those that do not are dropped then (RFC 7143 §11.9.1, event 1).
    pub fn request_logout(
        &mut self,
        now: Instant,
        target: Option<&str>,
        portal_group: Option<u16>,
        within: u16,
    ) {
        self.tables.now = now;
        let asked: Vec<Key> = self
            .tables
            .sessions
            .iter()
            .filter(|(_, session)| target.is_none_or(|name| session.target.as_deref() == Some(name)))
            .filter(|(_, session)| portal_group.is_none_or(|tag| session.portal_group == tag))
            .map(|(_, session)| session.connection)
            .collect();
        for key in asked {
            let Some(one) = self.attached.get_mut(key) else { continue };
            if !matches!(one.connection.phase, Phase::FullFeature) {
                continue;
            }
            let event = AsyncEvent::LogoutRequest { seconds: within };
            one.connection.asynchronous(event, Lun::ZERO, None, Notice::None);
            one.connection.logout_deadline = Some(now + seconds(u32::from(within)));
            self.wants_flush(key);
            self.reschedule(key);
        }
    }

    /// Adds a report of each connection to `reports`.
    pub fn report(&self, reports: &mut Vec<ConnectionReport>) {
        for (_, one) in self.attached.iter() {
            let connection = &one.connection;
            let session = connection.session.and_then(|key| self.tables.sessions.get(key));
            let open = !connection.is_half_open();
            reports.push(ConnectionReport {
                id: connection.id,
                cid: connection.cid,
                tsih: session.filter(|_| open).map_or(0, |session| session.tsih),
                peer: connection.peer,
                local: connection.local,
                initiator: session.map(|session| session.initiator.to_string()).unwrap_or_default(),
                target: session.and_then(|session| session.target.as_deref()).unwrap_or_default().to_string(),
                state: connection.state(),
                isid: session.map_or([0; 6], |session| session.isid),
                outstanding: session.map_or(0, |session| session.outstanding + session.immediate_outstanding),
            });
        }
    }

    fn accept(&mut self) -> usize {
        let mut count = 0;
        while count < ACCEPTS_PER_TURN
            && let Some(accepted) = self.network.accept()
        {
            count += 1;
            self.admit(accepted);
        }
        count
    }

    fn admit(&mut self, accepted: Accepted<N::Stream>) {
        let Accepted { stream, peer, local } = accepted;
        let options = &self.tables.config.options;
        let from_there = if self.half_open < options.half_open_connections_per_address_max {
            0
        } else {
            let same = |one: &Attached<N::Stream>| {
                one.connection.is_half_open() && one.connection.peer.ip() == peer.ip()
            };
            u32::try_from(self.attached.iter().filter(|(_, one)| same(one)).count()).unwrap_or(u32::MAX)
        };
        let login_time = seconds(options.login_timeout_s);
        if self.half_open >= options.half_open_connections_max
            || from_there >= options.half_open_connections_per_address_max
            || self.attached.is_full()
        {
            self.log(peer, "too many connections before login");
            return;
        }
        let id = self.tables.new_connection_id();
        // The key is known only when the connection is in the table.
        let placeholder = Key::from_u64(0);
        let connection = Connection::new(placeholder, id, peer, local, self.tables.now, login_time);
        let Ok(key) = self.attached.insert(Attached { stream, connection }) else { return };
        self.half_open += 1;
        let Some(one) = self.attached.get_mut(key) else { return };
        one.connection.key = key;
        if self.network.watch(StreamToken(key.to_u64()), &one.stream).is_err() {
            self.log(peer, "the stream cannot be watched");
            self.close(key);
            return;
        }
        self.wants_receive(key);
        self.reschedule(key);
    }

    fn log(&mut self, peer: std::net::SocketAddr, why: &str) {
        if let Some(suppressed) = self.tables.lines.take(self.tables.now) {
            tracing::warn!(%peer, suppressed, "iSCSI connection dropped: {why}");
        }
    }

    fn wants_receive(&mut self, key: Key) {
        if let Some(one) = self.attached.get_mut(key)
            && !std::mem::replace(&mut one.connection.ready, true)
        {
            self.ready.push_back(key);
        }
    }

    fn wants_flush(&mut self, key: Key) {
        if let Some(one) = self.attached.get_mut(key)
            && !std::mem::replace(&mut one.connection.flush, true)
        {
            self.unsent.push(key);
        }
    }

    /// Puts the connection's next deadline into the heap, when an earlier one is not there already.
    fn reschedule(&mut self, key: Key) {
        let Some(one) = self.attached.get_mut(key) else { return };
        let Some(at) = one.connection.deadline(&self.tables) else { return };
        if one.connection.timer_at.is_none_or(|there| at < there) {
            one.connection.timer_at = Some(at);
            self.tables.schedule(at, Timer::Connection(key));
        }
    }

    fn receive(&mut self, key: Key) {
        let Some(one) = self.attached.get_mut(key) else { return };
        one.connection.ready = false;
        one.connection.gated = false;
        let was_half_open = one.connection.is_half_open();
        let result = one.connection.pump(&mut one.stream, &mut self.tables);
        let peer = one.connection.peer;
        let queued = !one.connection.transmitter.is_empty();
        let ending = matches!(one.connection.phase, Phase::Ending);
        if was_half_open && !one.connection.is_half_open() {
            self.half_open = self.half_open.saturating_sub(1);
            self.reschedule(key);
        }
        match result {
            Ok(Pumped::More) => self.wants_receive(key),
            Ok(Pumped::Ended) => {
                self.close(key);
                return;
            }
            Ok(Pumped::Drained | Pumped::Gated) => {}
            Err(Fatal(why)) => {
                self.log(peer, why);
                self.end_session(key, false, "");
                return;
            }
        }
        if ending {
            self.reschedule(key);
        }
        if queued {
            self.wants_flush(key);
        }
    }

    fn flush_one(&mut self, key: Key) {
        let Some(one) = self.attached.get_mut(key) else { return };
        one.connection.flush = false;
        let flushed = one.connection.flush(&mut one.stream, &mut self.tables, &mut self.taken);
        let unblocked = one.connection.gated && one.connection.may_read(&self.tables);
        match flushed {
            Flushed::Close | Flushed::Broken => self.close(key),
            Flushed::Quiet if unblocked => self.wants_receive(key),
            Flushed::Quiet => {}
        }
    }

    /// Ends a session from our side: sends what stands in the queue and, when `tell`, that the session is dropped
    /// (RFC 7143 §11.9.1, event 3), as far as the stream takes it at once; then closes.
    fn end_session(&mut self, key: Key, tell: bool, why: &str) {
        let Some(one) = self.attached.get_mut(key) else { return };
        let full_feature = matches!(one.connection.phase, Phase::FullFeature);
        let peer = one.connection.peer;
        if !why.is_empty()
            && let Some(suppressed) = self.tables.lines.take(self.tables.now)
        {
            tracing::info!(%peer, suppressed, "iSCSI session ended: {why}");
        }
        if full_feature {
            if tell {
                let (time_to_wait, time_to_retain) = (
                    one.connection.parameters.default_time_to_wait,
                    one.connection.parameters.default_time_to_retain,
                );
                let event = AsyncEvent::SessionDropped { time_to_wait, time_to_retain };
                one.connection.asynchronous(event, Lun::ZERO, None, Notice::Close);
            }
            one.connection.flush(&mut one.stream, &mut self.tables, &mut self.taken);
        }
        self.close(key);
    }

    /// Closes the stream, brings every buffer home, and reports the nexus lost.
    fn close(&mut self, key: Key) {
        let Some(mut one) = self.attached.remove(key) else { return };
        let connection = &mut one.connection;
        // Ending connections were counted out when they left the login phase.
        if connection.is_half_open() {
            self.half_open = self.half_open.saturating_sub(1);
        }
        connection.receiver.clear();
        connection.transmitter.clear();
        let Some(session_key) = connection.session else { return };
        self.release_exchanges(session_key);
        let Some(session) = self.tables.sessions.get_mut(session_key) else { return };
        match session.nexus {
            NexusState::None => {
                self.tables.sessions.remove(session_key);
            }
            NexusState::Requested | NexusState::Established(_) => {
                session.nexus = NexusState::Lost;
                self.tables
                    .events
                    .push_back(PortEvent::NexusLost { token: NexusToken(session_key.to_u64()) });
            }
            NexusState::Lost => {}
        }
    }

    /// The wire is gone: tasks whose status was on the way are done, those being terminated are terminated, and the
    /// others have nothing lent to the port any more.
    fn release_exchanges(&mut self, session: Key) {
        let keys: Vec<Key> = self
            .tables
            .exchanges
            .iter()
            .filter(|(_, one)| one.session == session)
            .map(|(key, _)| key)
            .collect();
        for key in keys {
            let Some(exchange) = self.tables.exchanges.get_mut(key) else { continue };
            exchange.bursts = Default::default();
            exchange.stash = None;
            exchange.unsolicited = None;
            exchange.solicitations = Default::default();
            let Some(task) = exchange.task else { continue };
            if exchange.terminating {
                self.tables.events.push_back(PortEvent::DataTransferTerminated { task });
                self.tables.forget_exchange(key);
            } else if exchange.answered || exchange.held.is_some() {
                self.tables.events.push_back(PortEvent::Delivered { task });
                self.tables.forget_exchange(key);
            }
        }
    }

    fn run_timers(&mut self) -> usize {
        let mut count = 0;
        while let Some(&Reverse((at, timer))) = self.tables.timers.peek() {
            if at > self.tables.now {
                break;
            }
            self.tables.timers.pop();
            count += 1;
            match timer {
                Timer::Connection(key) => self.connection_timer(key, at),
                Timer::Exchange(key) => {
                    let of = self.tables.exchanges.get(key).map(|exchange| exchange.connection);
                    if let Some(one) = of.and_then(|of| self.attached.get_mut(of)) {
                        one.connection.stop_waiting(&mut self.tables, key);
                    }
                }
            }
        }
        count
    }

    fn connection_timer(&mut self, key: Key, at: Instant) {
        let now = self.tables.now;
        let Some(one) = self.attached.get_mut(key) else { return };
        let connection = &mut one.connection;
        if connection.timer_at != Some(at) {
            return;
        }
        connection.timer_at = None;
        let peer = connection.peer;
        // A host that answers pings but never sends its data would hold the buffers of others.
        let overdue = |exchange: &Exchange| exchange.connection == key && exchange.is_overdue(now);
        if connection.solicited > 0 && self.tables.exchanges.iter().any(|(_, exchange)| overdue(exchange)) {
            self.end_session(key, true, "data that it was asked for does not come");
            return;
        }
        let due = connection.deadline(&self.tables).is_some_and(|due| due <= now);
        if due {
            if connection.logout_deadline.is_some_and(|due| due <= now) {
                self.end_session(key, true, "it was asked to log out and did not");
                return;
            }
            match connection.phase {
                Phase::Login | Phase::AwaitingNexus(_) => {
                    self.log(peer, "the login took too long");
                    self.close(key);
                    return;
                }
                Phase::Ending => {
                    self.close(key);
                    return;
                }
                Phase::FullFeature if connection.ping.is_some() => {
                    self.log(peer, "no answer to a NOP-In");
                    self.close(key);
                    return;
                }
                Phase::FullFeature => {
                    connection.receiver.release_slot(true);
                    connection.send_ping(&mut self.tables);
                    self.wants_flush(key);
                }
            }
        }
        self.reschedule(key);
    }

    /// The connection that carries `exchange`, with the exchange's key.
    fn carrier(&mut self, exchange: ExchangeId) -> Option<(Key, Key)> {
        let key = Key::from_u64(exchange.0);
        let connection = self.tables.exchanges.get(key)?.connection;
        Some((key, connection))
    }

    fn connection_of(&self, token: NexusToken) -> Option<Key> {
        self.tables.sessions.get(Key::from_u64(token.0)).map(|session| session.connection)
    }
}

impl<N: Network> TargetPort for IscsiPort<N> {
    fn receive_data_out(&mut self, exchange: ExchangeId, task: TaskId, offset: u32, data: DataBuf) {
        let Some((key, of)) = self.carrier(exchange) else { return };
        if let Some(exchange) = self.tables.exchanges.get_mut(key) {
            exchange.task = Some(task);
        }
        let Some(one) = self.attached.get_mut(of) else { return };
        one.connection.lend(&mut self.tables, key, task, offset, data);
        self.wants_flush(of);
    }

    fn send_data_in(
        &mut self,
        exchange: ExchangeId,
        task: TaskId,
        offset: u32,
        data: DataBuf,
        status: Option<CommandStatus>,
    ) {
        let Some((key, of)) = self.carrier(exchange) else { return };
        if let Some(exchange) = self.tables.exchanges.get_mut(key) {
            exchange.task = Some(task);
        }
        let Some(one) = self.attached.get_mut(of) else {
            if status.is_some() {
                self.tables.events.push_back(PortEvent::Delivered { task });
                self.tables.forget_exchange(key);
            }
            return;
        };
        one.connection.send_data_in(&mut self.tables, key, (offset, data), status);
        self.wants_flush(of);
    }

    fn terminate_data_transfer(&mut self, exchange: ExchangeId, task: TaskId) {
        let Some((key, of)) = self.carrier(exchange) else {
            self.tables.events.push_back(PortEvent::DataTransferTerminated { task });
            return;
        };
        let Some(one) = self.attached.get_mut(of) else {
            self.tables.forget_exchange(key);
            self.tables.events.push_back(PortEvent::DataTransferTerminated { task });
            return;
        };
        one.connection.terminate(&mut self.tables, key, task);
        self.wants_flush(of);
    }

    fn send_command_complete(&mut self, exchange: ExchangeId, task: TaskId, status: CommandStatus) {
        let Some((key, of)) = self.carrier(exchange) else { return };
        let Some(one) = self.attached.get_mut(of) else {
            self.tables.forget_exchange(key);
            self.tables.events.push_back(PortEvent::Delivered { task });
            return;
        };
        one.connection.complete(&mut self.tables, key, task, status);
        self.wants_flush(of);
    }

    fn task_management_function_executed(
        &mut self,
        token: NexusToken,
        request: RequestToken,
        response: TaskManagementResponse,
    ) {
        let Some(session) = self.tables.sessions.get_mut(Key::from_u64(token.0)) else { return };
        session.task_managements = session.task_managements.saturating_sub(1);
        let of = session.connection;
        let Some(one) = self.attached.get_mut(of) else { return };
        let (tag, code) = management::parts(request);
        one.connection.answer_task_management(tag, management::response_code(code, response));
        self.wants_flush(of);
    }

    fn nexus_answered(&mut self, token: NexusToken, nexus: Option<NexusId>) {
        let key = Key::from_u64(token.0);
        let Some(session) = self.tables.sessions.get_mut(key) else { return };
        let of = session.connection;
        if session.nexus != NexusState::Requested {
            return;
        }
        match nexus {
            Some(nexus) => {
                session.nexus = NexusState::Established(nexus);
                let Some(one) = self.attached.get_mut(of) else { return };
                one.connection.enter_full_feature_phase(&mut self.tables);
                self.wants_receive(of);
            }
            None => {
                session.nexus = NexusState::None;
                let Some(one) = self.attached.get_mut(of) else { return };
                one.connection.nexus_refused(&mut self.tables);
                one.connection.session = None;
                self.tables.sessions.remove(key);
            }
        }
        self.half_open = self.half_open.saturating_sub(1);
        self.reschedule(of);
        self.wants_flush(of);
    }

    fn nexus_closed(&mut self, token: NexusToken) {
        let key = Key::from_u64(token.0);
        if let Some(of) = self.connection_of(token) {
            self.close(of);
        }
        let left: Vec<Key> =
            self.tables.exchanges.iter().filter(|(_, one)| one.session == key).map(|(key, _)| key).collect();
        for exchange in left {
            self.tables.forget_exchange(exchange);
        }
        self.tables.sessions.remove(key);
    }

    fn drop_nexus(&mut self, token: NexusToken, reason: DropReason) {
        let Some(of) = self.connection_of(token) else { return };
        let (tell, why) = match reason {
            DropReason::Reinstated => (false, "a new session takes its place"),
            DropReason::Reset => (true, "it was reset"),
            DropReason::Removed => (true, "its target was removed"),
            DropReason::Stalled => (false, "the initiator takes nothing"),
        };
        self.end_session(of, tell, why);
    }

    fn asynchronous_event(&mut self, token: NexusToken, lun: Lun, sense: Sense) {
        let Some(of) = self.connection_of(token) else { return };
        let Some(one) = self.attached.get_mut(of) else { return };
        if matches!(one.connection.phase, Phase::FullFeature) {
            one.connection.asynchronous(AsyncEvent::Scsi, lun, Some(&sense), Notice::None);
            self.wants_flush(of);
        }
    }

    fn poll(&mut self, now: Instant, on: &mut dyn FnMut(PortEvent)) -> Progress {
        self.tables.now = now;
        let mut count = self.accept();
        let IscsiPort { network, attached, ready, unsent, .. } = self;
        let progress = network.poll(&mut |token: StreamToken, readiness: Readiness| {
            let key = Key::from_u64(token.0);
            let Some(one) = attached.get_mut(key) else { return };
            let connection = &mut one.connection;
            if readiness.readable && !std::mem::replace(&mut connection.ready, true) {
                ready.push_back(key);
            }
            if readiness.writable
                && std::mem::take(&mut connection.transmitter.blocked)
                && !std::mem::replace(&mut connection.flush, true)
            {
                unsent.push(key);
            }
        });
        for _ in 0..self.ready.len() {
            let Some(key) = self.ready.pop_front() else { break };
            self.receive(key);
            count += 1;
        }
        count += self.run_timers();
        while let Some(event) = self.tables.events.pop_front() {
            on(event);
            count += 1;
        }
        progress.or(Progress::from_count(count + self.ready.len()))
    }

    fn flush(&mut self, now: Instant) {
        self.tables.now = now;
        let mut keys = std::mem::replace(&mut self.unsent, std::mem::take(&mut self.unsent_spare));
        for &key in &keys {
            self.flush_one(key);
        }
        keys.clear();
        self.unsent_spare = keys;
    }

    fn next_timeout(&self) -> Option<Instant> {
        if !self.ready.is_empty() || !self.unsent.is_empty() || !self.tables.events.is_empty() {
            return Some(self.tables.now);
        }
        self.tables.timers.peek().map(|&Reverse((at, _))| at)
    }
}

#[cfg(test)]
impl<N: Network> IscsiPort<N> {
    pub(super) fn session_keys(&self) -> impl Iterator<Item = (Key, &super::session::Session)> {
        self.tables.sessions.iter()
    }
}
