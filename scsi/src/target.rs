//! The engine of one core: events in, effects out. This file has the entrance and the life of a task; the rest of
//! `Target` is in `executor/` (what a running task does), `task_management.rs` (aborts and who waits for them),
//! `freeze.rs` (changes that need every core), `session.rs` (nexuses) and `control.rs` (the control plane).

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use base::{BufferPool, CoreId, Instant, Key, Limits, Slab};
use bdev::IoCompletion;
use wire::scsi::{Sense, SenseKey, Status, TaskAttribute};

use crate::command_table::{self, Readiness, UnitAttentionRule};
use crate::home::{Closing, TargetChange};
use crate::logical_unit::{Channel, LogicalUnit};
use crate::message::{Message, Ticket};
use crate::nexus::{Nexus, Session, find_lun};
use crate::ordering_table::{MediumRange, TaskClass, is_atomic};
use crate::registry::Registry;
use crate::task::{
    Abort, BURSTS_MAX, NEXUS_LIST, PortSide, SET_LIST, TASKS_LIMIT, Task, TaskList, TaskPhase, from_io_tag,
};
use crate::task_management::Function;
use crate::task_set::Turn;
use crate::{
    CommandReceived, CommandStatus, Effect, Environment, ExchangeId, LogicalUnitId, LunMap, NexusId,
    NexusToken, PortEvent, TargetDeviceId, TaskId, TaskTag,
};

/// Whom a ticket was taken for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum TicketHolder {
    /// A task that asked for a change or a lease.
    Task(TaskId),
    /// One unit's part of a task management function, in `Target::resets`.
    Reset(u64),
    /// A control request.
    Control(crate::ControlId),
    /// Nobody waits for the answer.
    Nobody,
}

/// A task management function that needs home cores, and how many have not answered.
#[derive(Debug)]
pub(crate) struct PendingReset {
    pub(crate) nexus: NexusId,
    pub(crate) token: NexusToken,
    pub(crate) request: crate::RequestToken,
    pub(crate) awaiting: usize,
    pub(crate) failed: bool,
    /// TARGET COLD RESET ends the sessions with this target afterwards.
    pub(crate) drop_sessions: Option<TargetDeviceId>,
}

/// One core's SCSI target: logical units, nexuses, tasks. Sans-IO: `handle_*` takes events in, `poll_*` gives
/// effects out. After every `handle_*` call the owner drains `poll_effect`.
pub struct Target {
    pub(crate) core: CoreId,
    pub(crate) cores: u16,
    pub(crate) limits: Limits,
    pub(crate) pool: BufferPool,
    pub(crate) now: Instant,
    pub(crate) tasks: Slab<Task>,
    pub(crate) nexuses: Slab<Nexus>,
    pub(crate) sessions: HashMap<NexusToken, Session>,
    pub(crate) claims: HashMap<Ticket, NexusToken>,
    /// By `LogicalUnitId`.
    pub(crate) units: Vec<Option<LogicalUnit>>,
    pub(crate) targets: HashMap<TargetDeviceId, Arc<LunMap>>,
    pub(crate) functions: Vec<Function>,
    pub(crate) functions_changed: bool,
    pub(crate) tickets: HashMap<u64, TicketHolder>,
    pub(crate) sequence: u64,
    pub(crate) resets: HashMap<u64, PendingReset>,
    /// Tasks that wait for a buffer, in order.
    pub(crate) buffer_waiters: VecDeque<TaskId>,
    /// True while the front waiter is being served.
    pub(crate) serving: bool,
    buffers_retry: Instant,
    /// Since when no waiter found a buffer.
    buffers_short_since: Option<Instant>,
    /// Units whose task set may have a task to start.
    kicks: VecDeque<LogicalUnitId>,
    pub(crate) effects: VecDeque<Effect>,
    /// At core 0.
    pub(crate) registry: Registry,
    pub(crate) closing: Vec<Closing>,
    /// Tickets of removals, their units, and what the control plane is told when they are gone.
    pub(crate) removals: Vec<(u64, LogicalUnitId, crate::ControlOutcome)>,
    pub(crate) target_changes: Vec<TargetChange>,
    pub(crate) quiescing: bool,
    pub(crate) bursts_max: usize,
    /// Tasks that keep immediate data while they wait for their turn, and how many of those are let in.
    dormant_buffers: u32,
    dormant_buffers_max: u32,
    pub(crate) payload_bytes_copied: u64,
}

/// What a task looks like from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskReport {
    /// The task.
    pub task: TaskId,
    /// Its nexus.
    pub nexus: NexusId,
    /// The unit it addresses.
    pub unit: Option<LogicalUnitId>,
    /// The initiator's tag.
    pub tag: TaskTag,
    /// The standard's name of the command, or nothing for an unknown one.
    pub command: &'static str,
    /// How far it is.
    pub phase: TaskPhase,
    /// What the port knows of it.
    pub port: PortSide,
    /// Whether it was aborted.
    pub abort: Abort,
    /// Requests the device has.
    pub device_ios: u16,
    /// It waits for a buffer.
    pub waits_for_buffer: bool,
}

/// How often a task that waits for a buffer looks again when nothing else happens, in milliseconds.
const BUFFER_RETRY_MS: u64 = 1;
/// How long all who wait may find no buffer before one of them is refused, in milliseconds.
const BUFFER_SHORTAGE_MS: u64 = 500;
/// INSUFFICIENT RESOURCES.
const INSUFFICIENT_RESOURCES: Sense = Sense::new(SenseKey::AbortedCommand, 0x55, 0x03);

/// What the checks of `task` may look at.
pub(crate) fn environment<'a>(
    units: &'a [Option<LogicalUnit>],
    nexus: &'a Nexus,
    limits: &'a Limits,
    task: &Task,
) -> Environment<'a> {
    let unit = task.unit.and_then(|unit| units.get(unit.0 as usize)?.as_ref());
    Environment {
        unit: unit.map(|unit| &*unit.view),
        lun: task.lun,
        mapping_read_only: task.read_only,
        nexus: &nexus.identity,
        luns: &nexus.luns,
        limits,
        pending_sense: None,
    }
}

impl Target {
    /// The engine of core `core` of `cores`, with all the tables that `limits` ask for. `pool` is this core's; its
    /// largest class must hold a burst, and it needs at least three of them.
    #[must_use]
    pub fn new(core: CoreId, cores: u16, limits: Limits, pool: BufferPool) -> Target {
        // Refused commands need a task too, until the port has delivered the refusal.
        let reserve = (limits.tasks_max / 4).max(64);
        let tasks = (limits.tasks_max.saturating_add(reserve) as usize).min(TASKS_LIMIT);
        let sessions = (limits.sessions_max as usize).saturating_mul(2);
        let slots = pool.statistics().slots;
        Target {
            core,
            cores: cores.max(1),
            now: Instant::ZERO,
            tasks: Slab::with_capacity(tasks),
            nexuses: Slab::with_capacity(sessions),
            sessions: HashMap::with_capacity(sessions),
            claims: HashMap::with_capacity(sessions),
            units: (0..limits.logical_units_max).map(|_| None).collect(),
            targets: HashMap::new(),
            functions: Vec::with_capacity(64),
            functions_changed: false,
            tickets: HashMap::with_capacity(256),
            sequence: 0,
            resets: HashMap::new(),
            buffer_waiters: VecDeque::with_capacity(tasks),
            serving: false,
            buffers_retry: Instant::ZERO,
            buffers_short_since: None,
            kicks: VecDeque::with_capacity(limits.logical_units_max as usize),
            effects: VecDeque::with_capacity(tasks.saturating_mul(2)),
            registry: Registry::default(),
            closing: Vec::new(),
            removals: Vec::new(),
            target_changes: Vec::new(),
            quiescing: false,
            bursts_max: (limits.bursts_per_task_max as usize).clamp(1, BURSTS_MAX),
            dormant_buffers: 0,
            dormant_buffers_max: slots / 2,
            payload_bytes_copied: 0,
            limits,
            pool,
        }
    }

    /// Something happened at the port.
    pub fn handle_port_event(&mut self, now: Instant, event: PortEvent) {
        self.now = now;
        match event {
            PortEvent::CommandReceived(received) => self.command_received(received),
            PortEvent::DataOutReceived { task, offset, data } => {
                self.data_out_received(task, offset, Ok(data))
            }
            PortEvent::DataOutFailed { task, offset, asc, ascq } => {
                let sense = Sense::new(SenseKey::AbortedCommand, asc, ascq);
                self.data_out_received(task, offset, Err(sense));
            }
            PortEvent::DataInDelivered { task, offset } => self.data_in_delivered(task, offset),
            PortEvent::Delivered { task } | PortEvent::DataTransferTerminated { task } => {
                self.port_forgot(task)
            }
            PortEvent::TaskManagementRequested(request) => self.task_management_requested(&request),
            PortEvent::NexusRequested { token, identity } => self.nexus_requested(token, identity),
            PortEvent::NexusLost { token } => self.nexus_lost(token),
        }
        self.run();
    }

    /// A request of this core's channel to `unit` ended.
    pub fn handle_io_completion(&mut self, now: Instant, unit: LogicalUnitId, completion: IoCompletion) {
        self.now = now;
        let (task, burst) = from_io_tag(completion.tag);
        self.io_completed(unit, task, burst, completion);
        self.run();
    }

    /// A message of core `from` arrived. Messages of one core arrive in the order it sent them.
    pub fn handle_message(&mut self, now: Instant, from: CoreId, message: Message) {
        self.now = now;
        self.message_received(from, message);
        self.run();
    }

    /// The conductor tried to open this core's channel to `unit`.
    pub fn handle_channel_opened(
        &mut self,
        now: Instant,
        unit: LogicalUnitId,
        result: Result<(), bdev::BlockError>,
    ) {
        self.now = now;
        self.channel_opened(unit, result);
        self.run();
    }

    /// Time passed: deadlines of task management, and tasks that wait for a buffer the port gave back in silence.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.now = now;
        self.check_deadlines();
        self.run();
    }

    /// The next thing to be carried out.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When `handle_timeout` wants to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let deadline = self.functions.iter().filter_map(|function| function.deadline).min();
        let retry = (!self.buffer_waiters.is_empty()).then_some(self.buffers_retry);
        deadline.into_iter().chain(retry).min()
    }

    /// Tasks alive on this core.
    #[must_use]
    pub fn task_count(&self) -> usize {
        self.tasks.len()
    }

    /// Nexuses alive on this core.
    #[must_use]
    pub fn nexus_count(&self) -> usize {
        self.nexuses.len()
    }

    /// Bytes of payload this core's engine copied since start: only commands with odd immediate data do that.
    #[must_use]
    pub fn payload_bytes_copied(&self) -> u64 {
        self.payload_bytes_copied
    }

    /// Shows every task.
    pub fn for_each_task(&self, visit: &mut dyn FnMut(TaskReport)) {
        for (key, task) in self.tasks.iter() {
            visit(TaskReport {
                task: TaskId(key),
                nexus: task.nexus,
                unit: task.unit,
                tag: task.tag,
                command: task.entry.map_or("", |entry| entry.name),
                phase: task.phase,
                port: task.port,
                abort: task.abort,
                device_ios: task.device_ios,
                waits_for_buffer: task.waits_for_buffer,
            });
        }
    }

    /// The view this core has of a unit.
    #[must_use]
    pub fn unit_view(&self, unit: LogicalUnitId) -> Option<&crate::UnitView> {
        self.unit(unit).map(|unit| &*unit.view)
    }

    pub(crate) fn unit(&self, unit: LogicalUnitId) -> Option<&LogicalUnit> {
        self.units.get(unit.0 as usize)?.as_ref()
    }

    pub(crate) fn unit_mut(&mut self, unit: LogicalUnitId) -> Option<&mut LogicalUnit> {
        self.units.get_mut(unit.0 as usize)?.as_mut()
    }

    pub(crate) fn send(&mut self, to: CoreId, message: Message) {
        self.effects.push_back(Effect::Send { to, message });
    }

    pub(crate) fn broadcast(&mut self, mut message: impl FnMut() -> Message) {
        for core in 0..self.cores {
            self.effects.push_back(Effect::Send { to: CoreId(core), message: message() });
        }
    }

    pub(crate) fn ticket(&mut self, holder: TicketHolder) -> Ticket {
        self.sequence += 1;
        self.tickets.insert(self.sequence, holder);
        Ticket { core: self.core, sequence: self.sequence }
    }

    /// Brings everything to rest that an event set in motion.
    pub(crate) fn run(&mut self) {
        loop {
            if let Some(unit) = self.kicks.pop_front() {
                self.start_dormant(unit);
            } else if self.functions_changed {
                self.functions_changed = false;
                self.finish_functions();
            } else if !self.serve_buffer_waiter() {
                return;
            }
        }
    }

    /// Lets the front waiter try again. False when nobody waits or it still finds none.
    fn serve_buffer_waiter(&mut self) -> bool {
        let Some(&id) = self.buffer_waiters.front() else {
            self.buffers_short_since = None;
            return false;
        };
        let Some(task) = self.tasks.get_mut(id.0).filter(|task| task.waits_for_buffer) else {
            self.buffer_waiters.pop_front();
            return true;
        };
        task.waits_for_buffer = false;
        self.serving = true;
        self.advance(id);
        self.serving = false;
        if self.tasks.get(id.0).is_some_and(|task| task.waits_for_buffer) {
            self.buffers_retry = self.now + std::time::Duration::from_millis(BUFFER_RETRY_MS);
            return self.break_shortage(id);
        }
        self.buffers_short_since = None;
        self.buffer_waiters.pop_front();
        true
    }

    /// Data that came with commands takes buffers without asking. When it has them all, those who wait for one wait for
    /// each other: after a while the newest of them, or else a task whose turn has not come, is refused for the sake of
    /// `front`. True when that gave a buffer back.
    fn break_shortage(&mut self, front: TaskId) -> bool {
        let since = *self.buffers_short_since.get_or_insert(self.now);
        if self.now < since + std::time::Duration::from_millis(BUFFER_SHORTAGE_MS) {
            return false;
        }
        let has_data =
            |id: &&TaskId| **id != front && self.tasks.get(id.0).is_some_and(|task| task.immediate.is_some());
        let newest = self.buffer_waiters.iter().rev().find(has_data).copied();
        let victim = newest.or_else(|| {
            let dormant = self.tasks.iter().find(|(_, task)| task.holds_dormant_buffer);
            dormant.map(|(key, _)| TaskId(key))
        });
        let Some(task) = victim.and_then(|id| self.tasks.get_mut(id.0)) else { return false };
        let (is_fresh, Some(id)) = (task.next == 0, victim) else { return false };
        task.waits_for_buffer = false;
        self.buffer_waiters.retain(|&waiter| waiter != id);
        match is_fresh {
            true => self.end(id, Status::TaskSetFull, None),
            // Some of its blocks are written.
            false => self.end(id, Status::CheckCondition, Some(INSUFFICIENT_RESOURCES)),
        }
        true
    }

    /// Looks at the task set of `unit` again soon.
    pub(crate) fn kick(&mut self, unit: LogicalUnitId) {
        if let Some(found) = self.units.get_mut(unit.0 as usize).and_then(Option::as_mut)
            && found.set.dormant > 0
            && !std::mem::replace(&mut found.kicked, true)
        {
            self.kicks.push_back(unit);
        }
    }

    fn start_dormant(&mut self, unit: LogicalUnitId) {
        let Some(found) = self.unit_mut(unit) else { return };
        found.kicked = false;
        let mut at = found.set.list.head();
        while let Some(id) = at {
            at = TaskList::next::<SET_LIST>(&self.tasks, id);
            self.start_if_its_turn(unit, id);
            if self.unit(unit).is_none_or(|unit| unit.set.dormant == 0) {
                return;
            }
        }
    }

    fn start_if_its_turn(&mut self, unit: LogicalUnitId, id: TaskId) {
        let Some(task) = self.tasks.get(id.0) else { return };
        let Some(found) = self.unit(unit) else { return };
        if task.abort != Abort::No {
            return;
        }
        if found.is_fenced() && matches!(task.phase, TaskPhase::Dormant | TaskPhase::Requested) {
            // It will be refused; nothing that the device keeps may hold the refusal up.
            return self.start(id);
        }
        if task.phase != TaskPhase::Dormant {
            return;
        }
        self.replan(id);
        let Some(found) = self.unit(unit) else { return };
        let many_cores = self.cores > 1;
        match found.set.turn(&self.tasks, id, &found.freezes, many_cores) {
            Turn::Wait => {}
            Turn::Run => self.start(id),
            Turn::AskHome(change) => self.ask_home_for_lease(unit, id, change),
        }
    }

    fn command_received(&mut self, received: CommandReceived) {
        let (exchange, starved, attribute) = (received.exchange, received.starved, received.attribute);
        let Some(nexus) = self.nexuses.get_mut(received.nexus.0) else {
            return self.terminate_unknown(exchange);
        };
        let nexus_tasks = nexus.tasks.len();
        let is_full = self.tasks.len() >= self.limits.tasks_max as usize
            || nexus_tasks >= self.limits.tasks_per_nexus_max;
        let closing = nexus.closing;
        let mut task = Task::new(received);
        if let Some(mapping) = find_lun(&nexus.luns, task.lun).and_then(|at| nexus.luns.mappings.get(at)) {
            task.unit = Some(mapping.unit)
                .filter(|unit| self.units.get(unit.0 as usize).is_some_and(Option::is_some));
            task.read_only = mapping.read_only;
        }
        let environment = environment(&self.units, nexus, &self.limits, &task);
        match command_table::lookup(&task.cdb, &environment) {
            Ok(entry) => {
                task.entry = Some(entry);
                task.class = TaskClass::of(attribute, entry.implicit_head_of_queue);
                task.plan = entry.plan(&task.cdb, &environment);
                task.epoch = environment.unit.map_or(0, |view| view.epoch);
            }
            // A refusal needs no place in the order.
            Err(sense) => task.plan = Err(sense),
        }
        (task.atomic, task.range) = demands(&task.plan);
        if attribute == TaskAttribute::Aca {
            // No ACA condition ever exists here: INVALID MESSAGE ERROR (SAM-5 §8.6.5), whatever the unit's state.
            task.entry = None;
            task.plan = Err(Sense::new(SenseKey::AbortedCommand, 0x49, 0x00));
        }
        let has_data = task.immediate.is_some();
        let unit = task.unit.filter(|_| task.entry.is_some());
        let Ok(key) = self.tasks.insert(task) else {
            return self.refuse_without_task(exchange);
        };
        let id = TaskId(key);
        nexus.tasks.push_back::<NEXUS_LIST>(&mut self.tasks, id);
        if closing {
            self.abort_task(id, Abort::Silent);
        } else if is_full || starved {
            let status = if nexus_tasks > 0 || starved { Status::TaskSetFull } else { Status::Busy };
            self.end(id, status, None);
        } else if let Some(unit) = unit {
            self.enter_task_set(unit, id, has_data);
        } else {
            self.start(id);
        }
    }

    fn enter_task_set(&mut self, unit: LogicalUnitId, id: TaskId, has_data: bool) {
        let Some(found) = self.units.get_mut(unit.0 as usize).and_then(Option::as_mut) else { return };
        let at_once = found.is_free_for_simple()
            && self.tasks.get(id.0).is_some_and(|task| task.class == TaskClass::Simple && !task.atomic);
        found.set.enter(&mut self.tasks, id);
        if at_once {
            return self.start(id);
        }
        self.start_if_its_turn(unit, id);
        let waits = |task: &Task| matches!(task.phase, TaskPhase::Dormant | TaskPhase::Requested);
        if has_data && self.tasks.get(id.0).is_some_and(waits) {
            // Data of tasks that cannot run must not starve those that can.
            if self.dormant_buffers >= self.dormant_buffers_max {
                self.end(id, Status::TaskSetFull, None);
            } else if let Some(task) = self.tasks.get_mut(id.0) {
                task.holds_dormant_buffer = true;
                self.dormant_buffers += 1;
            }
        }
    }

    /// A command of a nexus that is no more: the exchange is all there is to forget.
    fn terminate_unknown(&mut self, exchange: ExchangeId) {
        self.effects.push_back(Effect::TerminateDataTransfer { exchange, task: NO_TASK });
    }

    /// Not even the reserve has a task left: the refusal goes out under a name that nobody has.
    fn refuse_without_task(&mut self, exchange: ExchangeId) {
        let status = CommandStatus {
            status: Status::TaskSetFull,
            sense: None,
            descriptor_sense: false,
            data_in_length: 0,
            data_out_length: 0,
        };
        self.effects.push_back(Effect::SendCommandComplete { exchange, task: NO_TASK, status });
    }

    pub(crate) fn release_dormant_buffer(&mut self, id: TaskId) {
        if let Some(task) = self.tasks.get_mut(id.0)
            && std::mem::take(&mut task.holds_dormant_buffer)
        {
            self.dormant_buffers = self.dormant_buffers.saturating_sub(1);
        }
    }

    /// Makes the plan anew when the view is another than the one it was made with. What the task touches, and whether
    /// as one, goes with it: a task that was to be refused before the change may be a COMPARE AND WRITE after it.
    fn replan(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get_mut(id.0) else { return };
        let (Some(entry), Some(unit)) = (task.entry, task.unit) else { return };
        let Some(nexus) = self.nexuses.get(task.nexus.0) else { return };
        let environment = environment(&self.units, nexus, &self.limits, task);
        let Some(epoch) = environment.unit.map(|view| view.epoch).filter(|&epoch| epoch != task.epoch) else {
            return;
        };
        task.plan = entry.plan(&task.cdb, &environment);
        task.epoch = epoch;
        let (atomic, range) = demands(&task.plan);
        task.range = range;
        if let Some(found) = self.units.get_mut(unit.0 as usize).and_then(Option::as_mut) {
            found.set.set_atomic(task, atomic);
        }
    }

    /// The task's turn has come: unit attentions, the checks of its CDB, then its work.
    pub(crate) fn start(&mut self, id: TaskId) {
        self.release_dormant_buffer(id);
        self.replan(id);
        let Some(task) = self.tasks.get_mut(id.0) else { return };
        let unit = task.unit.and_then(|unit| self.units.get_mut(unit.0 as usize)?.as_mut());
        task.phase = TaskPhase::Running;
        if task.in_order
            && let Some(unit) = unit
        {
            unit.set.dormant = unit.set.dormant.saturating_sub(1);
        }
        let Some(nexus) = self.nexuses.get_mut(task.nexus.0) else { return };
        let unit = task.unit.and_then(|unit| self.units.get(unit.0 as usize)?.as_ref());
        if let (Some(entry), true) = (task.entry, nexus.has_attention())
            && entry.unit_attention == UnitAttentionRule::Report
            && task.unit.is_some()
            && let Some(attention) = nexus.take_attention(task.lun)
        {
            return self.end(id, Status::CheckCondition, Some(attention.sense()));
        }
        if let (Some(entry), Some(unit)) = (task.entry, unit) {
            let is_fenced = unit.is_fenced();
            if entry.readiness != Readiness::Always && (is_fenced || unit.channel != Channel::Open) {
                let opens = unit.channel == Channel::Opening && !is_fenced;
                task.plan = Err(if opens { BECOMING_READY } else { LOGICAL_UNIT_FAILURE });
            }
        } else if task.unit.is_some() && unit.is_none() {
            // The unit went while the task waited.
            task.plan = Err(LOGICAL_UNIT_NOT_SUPPORTED);
        }
        match task.plan {
            Ok(plan) => self.begin(id, plan),
            Err(sense) => self.end(id, Status::CheckCondition, Some(sense)),
        }
    }

    /// The status that goes with the end of `task`.
    pub(crate) fn command_status(&self, task: &Task, status: Status, sense: Option<Sense>) -> CommandStatus {
        let unit = task.unit.and_then(|unit| self.unit(unit));
        CommandStatus {
            status,
            sense,
            descriptor_sense: unit.is_some_and(|unit| unit.view.mode.descriptor_sense),
            data_in_length: task.data_in_length,
            data_out_length: task.data_out_length,
        }
    }

    /// Hands the end of the command to the port.
    pub(crate) fn end(&mut self, id: TaskId, status: Status, sense: Option<Sense>) {
        let Some(task) = self.tasks.get(id.0) else { return };
        let effect = Effect::SendCommandComplete {
            exchange: task.exchange,
            task: id,
            status: self.command_status(task, status, sense),
        };
        self.effects.push_back(effect);
        self.status_sent(id);
    }

    /// Status is with the port: the task has left the order, and waits for `Delivered`.
    pub(crate) fn status_sent(&mut self, id: TaskId) {
        self.release_dormant_buffer(id);
        let Some(task) = self.tasks.get_mut(id.0) else { return };
        task.port = PortSide::StatusSent;
        task.immediate = None;
        for burst in &mut task.bursts {
            burst.data = None;
        }
        self.leave_order(id);
        if let Some(task) = self.tasks.get_mut(id.0) {
            task.phase = TaskPhase::Ended;
        }
        self.uncover_from_drains(id);
        self.release_lease(id);
    }

    pub(crate) fn leave_order(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get_mut(id.0) else { return };
        if !task.in_order {
            return;
        }
        let Some(unit) = task.unit else { return };
        if let Some(found) = self.units.get_mut(unit.0 as usize).and_then(Option::as_mut) {
            found.set.leave_order(task);
            self.kick(unit);
        }
    }

    /// The last word of the port about a task.
    fn port_forgot(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get_mut(id.0) else { return };
        task.port = PortSide::Gone;
        task.receiving = 0;
        for burst in &mut task.bursts {
            if matches!(burst.phase, crate::task::BurstPhase::Receiving | crate::task::BurstPhase::Sending) {
                *burst = crate::task::Burst::default();
            }
        }
        self.settle(id);
    }

    /// Frees the task when neither the port, nor the device, nor the home core knows it any more.
    pub(crate) fn settle(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get(id.0) else { return };
        let busy = task.device_ios > 0 || task.phase == TaskPhase::Parked;
        if busy {
            return;
        }
        match task.port {
            PortSide::Gone => self.free(id),
            PortSide::Open if task.abort == Abort::Status && task.receiving == 0 => {
                self.end(id, Status::TaskAborted, None);
            }
            _ => {}
        }
    }

    fn free(&mut self, id: TaskId) {
        self.release_dormant_buffer(id);
        self.leave_order(id);
        self.release_lease(id);
        self.uncover(id);
        let Some(task) = self.tasks.get(id.0) else { return };
        let (nexus, unit, in_set) = (task.nexus, task.unit, task.in_set);
        if let Some(nexus) = self.nexuses.get_mut(nexus.0) {
            nexus.tasks.remove::<NEXUS_LIST>(&mut self.tasks, id);
        }
        if let (Some(unit), true) = (unit, in_set)
            && let Some(unit) = self.units.get_mut(unit.0 as usize).and_then(Option::as_mut)
        {
            unit.set.list.remove::<SET_LIST>(&mut self.tasks, id);
        }
        self.tasks.remove(id.0);
    }
}

/// Whether a task touches its blocks as one, and which they are. What is refused touches none.
fn demands(plan: &Result<crate::Plan, Sense>) -> (bool, MediumRange) {
    plan.as_ref().map_or((false, MediumRange::Nothing), |plan| (is_atomic(plan), MediumRange::of(plan)))
}

/// A task id that no task ever has: generations start at 1.
const NO_TASK: TaskId = TaskId(NO_KEY);
const NO_KEY: Key = Key::from_u64(0xFFFF_FFFF);

/// LOGICAL UNIT FAILURE: the answer of a fenced unit.
pub(crate) const LOGICAL_UNIT_FAILURE: Sense = Sense::new(SenseKey::HardwareError, 0x3E, 0x01);
/// LOGICAL UNIT IS IN PROCESS OF BECOMING READY.
pub(crate) const BECOMING_READY: Sense = Sense::new(SenseKey::NotReady, 0x04, 0x01);
/// LOGICAL UNIT NOT SUPPORTED.
pub(crate) const LOGICAL_UNIT_NOT_SUPPORTED: Sense = Sense::new(SenseKey::IllegalRequest, 0x25, 0x00);
