//! The conductor: one page that drives one core's engine, port and channels, and answers the control plane.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use base::{BufferPool, CoreId, Instant, Limits, Outbox, Progress};
use bdev::{BlockError, CoreShared, IoCompletion};
use reactor::{MailboxReceiver, MailboxSender, MeshEndpoint, Poller, Turn};
use scsi::{ControlId, ControlOutcome, ControlRequest, Effect, LogicalUnitId, Notification, PortEvent};

pub use crate::channel_table::ChannelTable;
use crate::{ListenError, Network, TargetPort, iscsi};

/// What the control plane asks of one core. Bounded mailboxes carry it; the answer comes as a [`CoreReply`].
pub enum CoreRequest {
    /// For the engine. Answered by [`CoreReply::Outcome`].
    Scsi(ControlRequest),
    /// A new snapshot for the iSCSI port: listeners of core 0 follow it, and sessions it no longer admits are ended.
    /// Answered by [`CoreReply::Outcome`] when those sessions are gone.
    IscsiConfig(Arc<iscsi::Config>),
    /// Ask every session with this target (or with all) to log out, within `seconds` (RFC 7143 §11.9.1, event 1).
    RequestLogout {
        /// Target name; `None` is all.
        target: Option<Arc<str>>,
        /// Portal group tag; `None` is all.
        portal_group: Option<u16>,
        /// Time given.
        seconds: u16,
    },
    /// Answered by [`CoreReply::Report`].
    Report,
}

/// The answer of one core. Replies to `Scsi` requests come once, from the core that was asked.
#[derive(Debug)]
pub enum CoreReply {
    /// Done or failed.
    Outcome(ControlOutcome),
    /// The state of this core.
    Report(Box<CoreReport>),
    /// Not an answer: something happened. Its id is 0.
    Notification(Notification),
}

/// A request with its number.
pub struct NumberedRequest {
    /// Chosen by the control plane, not 0.
    pub id: ControlId,
    /// The request.
    pub request: CoreRequest,
}

/// A reply with its number and its origin.
#[derive(Debug)]
pub struct NumberedReply {
    /// The number of the request; 0 for notifications.
    pub id: ControlId,
    /// The core that answers.
    pub core: CoreId,
    /// The answer.
    pub reply: CoreReply,
}

/// What one core reports.
#[derive(Debug, Clone, Default)]
pub struct CoreReport {
    /// Connections of this core.
    pub connections: Vec<ConnectionReport>,
    /// Traffic of this core's channels.
    pub units: Vec<UnitTraffic>,
    /// Payload copies made outside the RAM disk, in bytes, since start. Zero on the normal paths.
    pub payload_bytes_copied: u64,
    /// Data buffers out of the pool now, and slots in all.
    pub buffers_outstanding: u32,
    /// Slots of the pool.
    pub buffers: u32,
    /// Tasks alive in the engine.
    pub tasks: u32,
    /// Nexuses alive in the engine.
    pub nexuses: u32,
}

/// One connection, for `iscsi_get_connections`.
#[derive(Debug, Clone)]
pub struct ConnectionReport {
    /// A number unique on the node.
    pub id: u64,
    /// Connection identifier.
    pub cid: u16,
    /// Target session identifying handle; 0 before login.
    pub tsih: u16,
    /// The initiator's address.
    pub peer: SocketAddr,
    /// The portal's address.
    pub local: SocketAddr,
    /// Initiator name; empty before login.
    pub initiator: String,
    /// Target name; empty before login and in discovery sessions.
    pub target: String,
    /// `"login"`, `"full_feature"`, `"logout"`.
    pub state: &'static str,
    /// ISID.
    pub isid: [u8; 6],
    /// Commands outstanding.
    pub outstanding: u32,
}

/// Traffic of one unit's channel on one core since it was opened. Bytes and operations are those that completed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UnitTraffic {
    /// The unit.
    pub unit: Option<LogicalUnitId>,
    /// Reads.
    pub reads: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Writes.
    pub writes: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Discards and zero-writes.
    pub unmaps: u64,
    /// Bytes discarded or zeroed.
    pub bytes_unmapped: u64,
    /// Requests that failed.
    pub errors: u64,
    /// Sum of latencies of reads, in nanoseconds.
    pub read_latency_ns: u64,
    /// Sum of latencies of writes, in nanoseconds.
    pub write_latency_ns: u64,
    /// Sum of latencies of unmaps, in nanoseconds.
    pub unmap_latency_ns: u64,
    /// Requests outstanding now.
    pub outstanding: u32,
}

/// What cores tell each other.
#[derive(Debug)]
pub enum CoreMessage {
    /// From engine to engine.
    Scsi(scsi::Message),
}

/// What connects one core with the others and with the control plane. [`ReactorLink`] in the daemon; queues without
/// threads in the simulation.
pub trait CoreLink: Outbox<CoreMessage> {
    /// The next message from another core, or from this one.
    fn receive(&mut self) -> Option<(CoreId, CoreMessage)>;

    /// The next request of the control plane.
    fn next_request(&mut self) -> Option<NumberedRequest>;

    /// Answers the control plane.
    ///
    /// # Errors
    /// The reply itself, when there is no room now.
    fn reply(&mut self, reply: NumberedReply) -> Result<(), NumberedReply>;

    /// The descriptors that tell of messages and requests; `poll` follows before any sleep.
    fn wake_descriptors(&self, visit: &mut dyn FnMut(i32)) {
        let _ = visit;
    }
}

/// A core's link in the daemon: rings between the reactors, mailboxes from and to the control threads.
pub struct ReactorLink {
    /// To and from the other cores.
    pub mesh: MeshEndpoint<CoreMessage>,
    /// From the control plane.
    pub requests: MailboxReceiver<NumberedRequest>,
    /// To the control plane.
    pub replies: MailboxSender<NumberedReply>,
}

impl Outbox<CoreMessage> for ReactorLink {
    fn send(&mut self, to: CoreId, message: CoreMessage) -> Result<(), CoreMessage> {
        self.mesh.send(to, message)
    }
}

impl CoreLink for ReactorLink {
    fn receive(&mut self) -> Option<(CoreId, CoreMessage)> {
        self.mesh.try_receive()
    }
    fn next_request(&mut self) -> Option<NumberedRequest> {
        self.requests.try_receive()
    }
    fn reply(&mut self, reply: NumberedReply) -> Result<(), NumberedReply> {
        self.replies.send(reply)
    }
    fn wake_descriptors(&self, visit: &mut dyn FnMut(i32)) {
        self.mesh.wake_descriptor().into_iter().for_each(&mut *visit);
        visit(self.requests.wake_descriptor());
    }
}

/// The engine as the conductor sees it: events in, effects out. `scsi::Target` is one; tests have others.
pub trait Engine {
    /// Something happened at a port.
    fn handle_port_event(&mut self, now: Instant, event: PortEvent);
    /// A request to a device ended.
    fn handle_io_completion(&mut self, now: Instant, unit: LogicalUnitId, completion: IoCompletion);
    /// Another core's engine says something.
    fn handle_message(&mut self, now: Instant, from: CoreId, message: scsi::Message);
    /// The control plane asks for something.
    fn handle_control(&mut self, now: Instant, id: ControlId, request: ControlRequest);
    /// The answer to `Effect::OpenChannel`.
    fn handle_channel_opened(&mut self, now: Instant, unit: LogicalUnitId, result: Result<(), BlockError>);
    /// Time has passed.
    fn handle_timeout(&mut self, now: Instant);
    /// What it wants done next.
    fn poll_effect(&mut self) -> Option<Effect>;
    /// When it wants `handle_timeout`.
    fn poll_timeout(&self) -> Option<Instant>;
    /// Tasks alive, nexuses alive, payload bytes copied since start.
    fn counts(&self) -> (u32, u32, u64);
}

/// A port that the control plane configures: what the conductor needs besides SAM's services.
pub trait ConfiguredPort: TargetPort {
    /// Listens on the portals of a new snapshot (core 0 only).
    ///
    /// # Errors
    /// The address that cannot be listened on; the old portals go on.
    fn listen(&mut self, portals: &[SocketAddr]) -> Result<(), ListenError>;
    /// Takes a new snapshot and begins to end the sessions it no longer admits.
    fn set_config(&mut self, now: Instant, config: Arc<iscsi::Config>);
    /// True when no session is left that the present snapshot does not admit.
    fn is_settled(&self) -> bool;
    /// Asks sessions to log out within `seconds`.
    fn request_logout(&mut self, now: Instant, target: Option<&str>, portal_group: Option<u16>, seconds: u16);
    /// Adds this port's part to a report.
    fn report(&self, report: &mut CoreReport);
    /// The descriptors that tell of bytes and new streams.
    fn wake_descriptors(&self, visit: &mut dyn FnMut(i32));
}

impl Engine for scsi::Target {
    fn handle_port_event(&mut self, now: Instant, event: PortEvent) {
        scsi::Target::handle_port_event(self, now, event);
    }
    fn handle_io_completion(&mut self, now: Instant, unit: LogicalUnitId, completion: IoCompletion) {
        scsi::Target::handle_io_completion(self, now, unit, completion);
    }
    fn handle_message(&mut self, now: Instant, from: CoreId, message: scsi::Message) {
        scsi::Target::handle_message(self, now, from, message);
    }
    fn handle_control(&mut self, now: Instant, id: ControlId, request: ControlRequest) {
        scsi::Target::handle_control(self, now, id, request);
    }
    fn handle_channel_opened(&mut self, now: Instant, unit: LogicalUnitId, result: Result<(), BlockError>) {
        scsi::Target::handle_channel_opened(self, now, unit, result);
    }
    fn handle_timeout(&mut self, now: Instant) {
        scsi::Target::handle_timeout(self, now);
    }
    fn poll_effect(&mut self) -> Option<Effect> {
        scsi::Target::poll_effect(self)
    }
    fn poll_timeout(&self) -> Option<Instant> {
        scsi::Target::poll_timeout(self)
    }
    fn counts(&self) -> (u32, u32, u64) {
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        (count(self.task_count()), count(self.nexus_count()), self.payload_bytes_copied())
    }
}

impl<N: Network> ConfiguredPort for iscsi::IscsiPort<N> {
    fn listen(&mut self, portals: &[SocketAddr]) -> Result<(), ListenError> {
        self.network_mut().set_portals(portals)
    }
    fn set_config(&mut self, now: Instant, config: Arc<iscsi::Config>) {
        iscsi::IscsiPort::set_config(self, now, config);
    }
    fn is_settled(&self) -> bool {
        self.sessions_to_end() == 0
    }
    fn request_logout(
        &mut self,
        now: Instant,
        target: Option<&str>,
        portal_group: Option<u16>,
        seconds: u16,
    ) {
        iscsi::IscsiPort::request_logout(self, now, target, portal_group, seconds);
    }
    fn report(&self, report: &mut CoreReport) {
        iscsi::IscsiPort::report(self, &mut report.connections);
        report.payload_bytes_copied = report.payload_bytes_copied.saturating_add(self.payload_bytes_copied());
    }
    fn wake_descriptors(&self, visit: &mut dyn FnMut(i32)) {
        self.network().wake_descriptors(visit);
    }
}

/// Replies that may wait for room before requests are left in the mailbox and notifications are dropped.
const REPLIES_WAITING_MAX: usize = 1024;
/// Messages for one core that may wait for room in its ring (which holds 1,024) before their queue has to grow.
const UNDELIVERED_ROOM: usize = 256;
/// How soon a full ring or reply queue is tried again by a core that would otherwise sleep.
const RETRY: std::time::Duration = std::time::Duration::from_micros(200);

/// One core: its engine, its port, its channels, and what connects it with the rest. The same code runs on a reactor
/// and in the simulation: time comes with each turn, nothing here knows threads or clocks.
pub struct Conductor<P, L, E = scsi::Target> {
    core: CoreId,
    engine: E,
    port: P,
    link: L,
    pool: BufferPool,
    channels: ChannelTable,
    /// Messages whose ring was full, by receiving core, oldest first.
    undelivered: Vec<VecDeque<CoreMessage>>,
    replies: VecDeque<NumberedReply>,
    notifications_dropped: u64,
    /// Snapshots not yet answered: the port still ends sessions.
    unsettled: Vec<ControlId>,
    /// The time of the present turn.
    now: Instant,
}

impl<P: ConfiguredPort, L: CoreLink, E: Engine> Conductor<P, L, E> {
    /// A core with nothing to do yet. `pool` is the one the engine and the port were given.
    #[must_use]
    pub fn new(
        core: CoreId,
        cores: u16,
        engine: E,
        port: P,
        link: L,
        limits: &Limits,
        pool: BufferPool,
    ) -> Self {
        Conductor {
            core,
            engine,
            port,
            link,
            channels: ChannelTable::new(CoreShared::with_pool(core, &pool), limits),
            pool,
            undelivered: (0..cores).map(|_| VecDeque::with_capacity(UNDELIVERED_ROOM)).collect(),
            replies: VecDeque::with_capacity(REPLIES_WAITING_MAX),
            notifications_dropped: 0,
            unsettled: Vec::new(),
            now: Instant::ZERO,
        }
    }

    /// Its engine.
    #[must_use]
    pub fn engine(&self) -> &E {
        &self.engine
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> &P {
        &self.port
    }

    /// What connects it with the rest.
    pub fn link_mut(&mut self) -> &mut L {
        &mut self.link
    }

    /// Its channels.
    #[must_use]
    pub fn channels(&self) -> &ChannelTable {
        &self.channels
    }

    fn take_requests(&mut self, budget: u32) -> Progress {
        let mut count = 0;
        while count < budget as usize && self.replies.len() < REPLIES_WAITING_MAX {
            let Some(request) = self.link.next_request() else { break };
            self.handle_request(request);
            count += 1;
        }
        Progress::from_count(count)
    }

    fn handle_request(&mut self, NumberedRequest { id, request }: NumberedRequest) {
        match request {
            CoreRequest::Scsi(request) => self.engine.handle_control(self.now, id, request),
            CoreRequest::IscsiConfig(config) => self.apply_config(id, config),
            CoreRequest::RequestLogout { target, portal_group, seconds } => {
                self.port.request_logout(self.now, target.as_deref(), portal_group, seconds);
                self.reply(id, CoreReply::Outcome(ControlOutcome::Done));
            }
            CoreRequest::Report => {
                let report = Box::new(self.report());
                self.reply(id, CoreReply::Report(report));
            }
        }
    }

    /// Core 0 listens first: when that fails, nothing has changed and the control plane can say why.
    fn apply_config(&mut self, id: ControlId, config: Arc<iscsi::Config>) {
        if self.core == CoreId(0) {
            let groups = config.portal_groups.iter();
            let portals: Vec<SocketAddr> =
                groups.flat_map(|group| &group.portals).map(|portal| portal.address).collect();
            if let Err(error) = self.port.listen(&portals) {
                return self.reply(id, CoreReply::Outcome(ControlOutcome::Failed(error.to_string())));
            }
        }
        self.port.set_config(self.now, config);
        self.unsettled.push(id);
    }

    /// What this core reports.
    #[must_use]
    pub fn report(&self) -> CoreReport {
        let (tasks, nexuses, copied) = self.engine.counts();
        let pool = self.pool.statistics();
        let mut report = CoreReport {
            units: self.channels.traffic().collect(),
            payload_bytes_copied: copied,
            buffers_outstanding: pool.outstanding,
            buffers: pool.slots,
            tasks,
            nexuses,
            ..CoreReport::default()
        };
        self.port.report(&mut report);
        report
    }

    fn take_messages(&mut self, budget: u32) -> Progress {
        for count in 0..budget {
            match self.link.receive() {
                Some((from, CoreMessage::Scsi(message))) => {
                    self.engine.handle_message(self.now, from, message)
                }
                None => return Progress::from_count(count as usize),
            }
        }
        Progress::Busy
    }

    fn run_effects(&mut self) -> Progress {
        let mut count = 0usize;
        while let Some(effect) = self.engine.poll_effect() {
            count += 1;
            self.run_effect(effect);
        }
        Progress::from_count(count)
    }

    fn run_effect(&mut self, effect: Effect) {
        match effect {
            Effect::ReceiveDataOut { exchange, task, offset, data } => {
                self.port.receive_data_out(exchange, task, offset, data);
            }
            Effect::SendDataIn { exchange, task, offset, data, status } => {
                self.port.send_data_in(exchange, task, offset, data, status);
            }
            Effect::SendCommandComplete { exchange, task, status } => {
                self.port.send_command_complete(exchange, task, status);
            }
            Effect::TerminateDataTransfer { exchange, task } => {
                self.port.terminate_data_transfer(exchange, task)
            }
            Effect::TaskManagementFunctionExecuted { token, request, response } => {
                self.port.task_management_function_executed(token, request, response);
            }
            Effect::NexusEstablished { token, nexus } => self.port.nexus_answered(token, Some(nexus)),
            Effect::NexusRefused { token } => self.port.nexus_answered(token, None),
            Effect::NexusClosed { token } => self.port.nexus_closed(token),
            Effect::DropNexus { token, reason } => self.port.drop_nexus(token, reason),
            Effect::AsynchronousEvent { token, lun, sense } => {
                self.port.asynchronous_event(token, lun, sense)
            }
            Effect::Submit { unit, io } => self.channels.submit(self.now, unit, io),
            Effect::Cancel { unit, tag } => self.channels.cancel(unit, tag),
            Effect::OpenChannel { unit, device } => {
                let result = self.channels.open(unit, &device);
                self.engine.handle_channel_opened(self.now, unit, result);
            }
            Effect::CloseChannel { unit } => self.channels.close(unit),
            Effect::Send { to, message } => self.send(to, CoreMessage::Scsi(message)),
            Effect::ControlDone { id, outcome } => self.reply(id, CoreReply::Outcome(outcome)),
            Effect::Notify(notification) => self.reply(ControlId(0), CoreReply::Notification(notification)),
        }
    }

    /// Sends in order: behind a message that waits, others wait too.
    fn send(&mut self, to: CoreId, message: CoreMessage) {
        let Some(queue) = self.undelivered.get_mut(to.index()) else {
            tracing::error!(from = self.core.0, to = to.0, "a message for a core that does not exist");
            return;
        };
        let unsent = if queue.is_empty() { self.link.send(to, message).err() } else { Some(message) };
        queue.extend(unsent);
    }

    fn reply(&mut self, id: ControlId, reply: CoreReply) {
        let is_notification = matches!(reply, CoreReply::Notification(_));
        let reply = NumberedReply { id, core: self.core, reply };
        let unsent = if self.replies.is_empty() { self.link.reply(reply).err() } else { Some(reply) };
        let Some(unsent) = unsent else { return };
        if is_notification && self.replies.len() >= REPLIES_WAITING_MAX {
            self.notifications_dropped = self.notifications_dropped.saturating_add(1);
            tracing::warn!(
                dropped = self.notifications_dropped,
                "the control plane does not take notifications"
            );
            return;
        }
        self.replies.push_back(unsent);
    }

    /// Tries again what found no room before.
    fn retry(&mut self) -> Progress {
        let mut count = 0usize;
        for (core, queue) in (0..).map(CoreId).zip(&mut self.undelivered) {
            while let Some(message) = queue.pop_front() {
                if let Err(message) = self.link.send(core, message) {
                    queue.push_front(message);
                    break;
                }
                count += 1;
            }
        }
        while let Some(reply) = self.replies.pop_front() {
            if let Err(reply) = self.link.reply(reply) {
                self.replies.push_front(reply);
                break;
            }
            count += 1;
        }
        Progress::from_count(count)
    }

    fn answer_settled(&mut self) -> Progress {
        if self.unsettled.is_empty() || !self.port.is_settled() {
            return Progress::Idle;
        }
        for id in std::mem::take(&mut self.unsettled) {
            self.reply(id, CoreReply::Outcome(ControlOutcome::Done));
        }
        Progress::Busy
    }
}

impl<P: ConfiguredPort, L: CoreLink, E: Engine> Poller for Conductor<P, L, E> {
    fn poll(&mut self, turn: &mut Turn) -> Progress {
        let now = turn.now;
        self.now = now;
        let mut progress = self.retry();
        progress = progress.or(self.take_requests(turn.budget));
        progress = progress.or(self.take_messages(turn.budget));
        let engine = &mut self.engine;
        let ported = self.port.poll(now, &mut |event| engine.handle_port_event(now, event));
        let completed = self
            .channels
            .poll(now, &mut |unit, completion| engine.handle_io_completion(now, unit, completion));
        progress = progress.or(ported).or(completed);
        if self.engine.poll_timeout().is_some_and(|at| at <= now) {
            self.engine.handle_timeout(now);
            progress = Progress::Busy;
        }
        progress = progress.or(self.run_effects());
        self.channels.flush();
        self.port.flush(now);
        progress.or(self.answer_settled())
    }

    fn next_timeout(&self) -> Option<Instant> {
        let unsent = !self.replies.is_empty() || self.undelivered.iter().any(|queue| !queue.is_empty());
        let retry = unsent.then_some(self.now + RETRY);
        let sources =
            [self.engine.poll_timeout(), self.port.next_timeout(), self.channels.next_timeout(), retry];
        sources.into_iter().flatten().min()
    }

    fn wake_descriptors(&self, visit: &mut dyn FnMut(i32)) {
        self.link.wake_descriptors(visit);
        self.port.wake_descriptors(visit);
        self.channels.wake_descriptors(visit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bdev::{BlockDevice, BlockIo, BlockOp, Geometry, IoChannel, IoTag};
    use scsi::{
        CommandStatus, DropReason, ExchangeId, NexusId, NexusToken, RequestToken, TaskId,
        TaskManagementResponse,
    };
    use wire::scsi::{Lun, Sense};

    /// An engine that does what the test put in, and notes what it was told.
    #[derive(Default)]
    struct Script {
        effects: VecDeque<Effect>,
        seen: Vec<String>,
        timeout: Option<Instant>,
    }

    impl Engine for Script {
        fn handle_port_event(&mut self, _: Instant, event: PortEvent) {
            self.seen.push(format!("{event:?}"));
        }
        fn handle_io_completion(&mut self, _: Instant, unit: LogicalUnitId, completion: IoCompletion) {
            self.seen.push(format!("unit {} io {} {:?}", unit.0, completion.tag.0, completion.result));
        }
        fn handle_message(&mut self, _: Instant, from: CoreId, message: scsi::Message) {
            self.seen.push(format!("{from}: {message:?}"));
        }
        fn handle_control(&mut self, _: Instant, id: ControlId, _: ControlRequest) {
            self.effects.push_back(Effect::ControlDone { id, outcome: ControlOutcome::Done });
        }
        fn handle_channel_opened(&mut self, _: Instant, unit: LogicalUnitId, result: Result<(), BlockError>) {
            self.seen.push(format!("unit {} open {result:?}", unit.0));
        }
        fn handle_timeout(&mut self, now: Instant) {
            self.timeout = None;
            self.seen.push(format!("timeout at {}", now.as_nanos()));
        }
        fn poll_effect(&mut self) -> Option<Effect> {
            self.effects.pop_front()
        }
        fn poll_timeout(&self) -> Option<Instant> {
            self.timeout
        }
        fn counts(&self) -> (u32, u32, u64) {
            (3, 2, 1)
        }
    }

    #[derive(Default)]
    struct Port {
        events: VecDeque<PortEvent>,
        done: Vec<String>,
        busy_portal: Option<SocketAddr>,
        generation: u64,
        unsettled: bool,
    }

    impl TargetPort for Port {
        fn receive_data_out(&mut self, _: ExchangeId, _: TaskId, _: u32, _: base::DataBuf) {}
        fn send_data_in(
            &mut self,
            _: ExchangeId,
            _: TaskId,
            _: u32,
            _: base::DataBuf,
            _: Option<CommandStatus>,
        ) {
        }
        fn terminate_data_transfer(&mut self, _: ExchangeId, _: TaskId) {}
        fn send_command_complete(&mut self, _: ExchangeId, _: TaskId, _: CommandStatus) {}
        fn task_management_function_executed(
            &mut self,
            _: NexusToken,
            _: RequestToken,
            _: TaskManagementResponse,
        ) {
        }
        fn nexus_answered(&mut self, token: NexusToken, nexus: Option<NexusId>) {
            self.done.push(format!("nexus {} {}", token.0, nexus.is_some()));
        }
        fn nexus_closed(&mut self, token: NexusToken) {
            self.done.push(format!("closed {}", token.0));
        }
        fn drop_nexus(&mut self, _: NexusToken, _: DropReason) {}
        fn asynchronous_event(&mut self, _: NexusToken, _: Lun, _: Sense) {}
        fn poll(&mut self, _: Instant, on: &mut dyn FnMut(PortEvent)) -> Progress {
            let count = self.events.len();
            self.events.drain(..).for_each(on);
            Progress::from_count(count)
        }
        fn flush(&mut self, now: Instant) {
            self.done.push(format!("flush {}", now.as_nanos()));
        }
        fn next_timeout(&self) -> Option<Instant> {
            None
        }
    }

    impl ConfiguredPort for Port {
        fn listen(&mut self, portals: &[SocketAddr]) -> Result<(), ListenError> {
            match portals.iter().find(|&&portal| Some(portal) == self.busy_portal) {
                Some(&address) => Err(ListenError { address, reason: "in use".to_owned(), remedy: "move" }),
                None => Ok(()),
            }
        }
        fn set_config(&mut self, _: Instant, config: Arc<iscsi::Config>) {
            self.generation = config.generation;
        }
        fn is_settled(&self) -> bool {
            !self.unsettled
        }
        fn request_logout(&mut self, _: Instant, _: Option<&str>, _: Option<u16>, _: u16) {}
        fn report(&self, report: &mut CoreReport) {
            report.payload_bytes_copied += 10;
        }
        fn wake_descriptors(&self, visit: &mut dyn FnMut(i32)) {
            visit(5);
        }
    }

    /// A link that takes `room` replies.
    #[derive(Default)]
    struct Link {
        requests: VecDeque<NumberedRequest>,
        replies: Vec<NumberedReply>,
        room: usize,
    }

    impl Outbox<CoreMessage> for Link {
        fn send(&mut self, _: CoreId, message: CoreMessage) -> Result<(), CoreMessage> {
            Err(message)
        }
    }

    impl CoreLink for Link {
        fn receive(&mut self) -> Option<(CoreId, CoreMessage)> {
            None
        }
        fn next_request(&mut self) -> Option<NumberedRequest> {
            self.requests.pop_front()
        }
        fn reply(&mut self, reply: NumberedReply) -> Result<(), NumberedReply> {
            if self.replies.len() == self.room {
                return Err(reply);
            }
            self.replies.push(reply);
            Ok(())
        }
        fn wake_descriptors(&self, visit: &mut dyn FnMut(i32)) {
            visit(4);
        }
    }

    fn conductor() -> Conductor<Port, Link, Script> {
        let pool = BufferPool::plain(&[base::PoolClass { size: 4096, count: 2 }]);
        let link = Link { room: 100, ..Link::default() };
        Conductor::new(CoreId(0), 1, Script::default(), Port::default(), link, &Limits::default(), pool)
    }

    fn turn(conductor: &mut Conductor<Port, Link, Script>, at: u64) -> Progress {
        conductor.poll(&mut Turn { now: Instant::from_nanos(at), budget: 16 })
    }

    fn ask(conductor: &mut Conductor<Port, Link, Script>, id: u64, request: CoreRequest) {
        conductor.link.requests.push_back(NumberedRequest { id: ControlId(id), request });
    }

    fn config(generation: u64, portal: &str) -> CoreRequest {
        let portals = vec![iscsi::Portal { address: portal.parse().unwrap(), advertised: None }];
        let portal_groups = vec![iscsi::PortalGroup { tag: 1, portals, private: false }];
        CoreRequest::IscsiConfig(Arc::new(iscsi::Config {
            generation,
            portal_groups,
            ..iscsi::Config::default()
        }))
    }

    fn answers(conductor: &mut Conductor<Port, Link, Script>) -> Vec<String> {
        conductor.link.replies.drain(..).map(|reply| format!("{} {:?}", reply.id.0, reply.reply)).collect()
    }

    #[test]
    fn an_idle_core_is_idle_and_sleeps_on_everything() {
        let mut conductor = conductor();
        assert_eq!(turn(&mut conductor, 1), Progress::Idle);
        assert_eq!(conductor.next_timeout(), None);
        let mut descriptors = Vec::new();
        conductor.wake_descriptors(&mut |descriptor| descriptors.push(descriptor));
        assert_eq!(descriptors, [4, 5]);
    }

    #[test]
    fn effects_run_in_order_before_the_flush() {
        let mut conductor = conductor();
        conductor.port.events.push_back(PortEvent::NexusLost { token: NexusToken(9) });
        conductor.engine.effects.push_back(Effect::NexusRefused { token: NexusToken(1) });
        conductor.engine.effects.push_back(Effect::NexusClosed { token: NexusToken(2) });
        assert_eq!(turn(&mut conductor, 7), Progress::Busy);
        assert_eq!(conductor.port.done, ["nexus 1 false", "closed 2", "flush 7"]);
        assert_eq!(conductor.engine.seen, ["NexusLost { token: NexusToken(9) }"]);
    }

    #[test]
    fn a_portal_that_fails_is_answered_and_changes_nothing() {
        let mut conductor = conductor();
        conductor.port.busy_portal = Some("10.0.0.1:3260".parse().unwrap());
        ask(&mut conductor, 1, config(1, "10.0.0.1:3260"));
        turn(&mut conductor, 1);
        let text = "1 Outcome(Failed(\"cannot listen on 10.0.0.1:3260: in use; move\"))";
        assert_eq!(answers(&mut conductor), [text]);
        assert_eq!(conductor.port.generation, 0);
    }

    #[test]
    fn a_snapshot_is_answered_when_its_sessions_are_gone() {
        let mut conductor = conductor();
        conductor.port.unsettled = true;
        ask(&mut conductor, 2, config(5, "10.0.0.1:3260"));
        turn(&mut conductor, 1);
        assert_eq!(conductor.port.generation, 5);
        assert!(answers(&mut conductor).is_empty());
        conductor.port.unsettled = false;
        turn(&mut conductor, 2);
        assert_eq!(answers(&mut conductor), ["2 Outcome(Done)"]);
    }

    #[test]
    fn timeouts_come_when_they_are_due() {
        let mut conductor = conductor();
        conductor.engine.timeout = Some(Instant::from_nanos(50));
        assert_eq!(turn(&mut conductor, 49), Progress::Idle);
        assert_eq!(conductor.next_timeout(), Some(Instant::from_nanos(50)));
        assert_eq!(turn(&mut conductor, 51), Progress::Busy);
        assert_eq!(conductor.engine.seen, ["timeout at 51"]);
    }

    struct Device;
    impl BlockDevice for Device {
        fn geometry(&self) -> Geometry {
            unreachable!("a channel that cannot be opened has no shape")
        }
        fn product_name(&self) -> &'static str {
            "absent"
        }
        fn open_channel(&self, _: &CoreShared) -> Result<Box<dyn IoChannel>, BlockError> {
            Err(BlockError::Gone)
        }
    }

    #[test]
    fn a_channel_that_cannot_be_opened_ends_its_requests() {
        let mut conductor = conductor();
        let unit = LogicalUnitId(0);
        let io = BlockIo { tag: IoTag(1), op: BlockOp::Flush, lba: 0, blocks: 0, data: None };
        conductor.engine.effects.push_back(Effect::OpenChannel { unit, device: Arc::new(Device) });
        conductor.engine.effects.push_back(Effect::Submit { unit, io });
        turn(&mut conductor, 1);
        assert!(conductor.next_timeout().is_some(), "it must not sleep before the completion is told");
        turn(&mut conductor, 2);
        assert_eq!(conductor.engine.seen, ["unit 0 open Err(Gone)", "unit 0 io 1 Err(Gone)"]);
    }

    #[test]
    fn replies_wait_in_order_and_notifications_are_bounded() {
        let mut conductor = conductor();
        conductor.link.room = 1;
        for id in 1..=3 {
            ask(&mut conductor, id, CoreRequest::Scsi(ControlRequest::Quiesce));
        }
        turn(&mut conductor, 1);
        assert_eq!(conductor.next_timeout(), Some(Instant::from_nanos(1) + RETRY));
        for _ in 0..2 * REPLIES_WAITING_MAX {
            let unit = LogicalUnitId(0);
            conductor.engine.effects.push_back(Effect::Notify(Notification::MediumError { unit }));
        }
        turn(&mut conductor, 2);
        assert_eq!(conductor.replies.len(), REPLIES_WAITING_MAX);
        ask(&mut conductor, 4, CoreRequest::Report);
        turn(&mut conductor, 3);
        assert_eq!(conductor.link.requests.len(), 1, "no request is taken that could not be answered");
        conductor.link.replies.clear();
        conductor.link.room = 10_000;
        turn(&mut conductor, 4);
        let answers = answers(&mut conductor);
        assert_eq!(answers[..2], ["2 Outcome(Done)", "3 Outcome(Done)"]);
        assert!(answers.last().unwrap().starts_with("4 Report"), "{:?}", answers.last());
    }

    #[test]
    fn a_report_adds_up_engine_port_and_pool() {
        let conductor = conductor();
        let report = conductor.report();
        assert_eq!((report.tasks, report.nexuses, report.payload_bytes_copied), (3, 2, 11));
        assert_eq!((report.buffers, report.buffers_outstanding), (2, 0));
    }
}
