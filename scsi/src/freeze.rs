//! Changes that need every core: a core asks the unit's home core; that one tells every core to freeze, waits until
//! all are frozen, makes the change, and thaws them with a new view. The same messages run with one core.

use std::sync::Arc;

use base::CoreId;
use wire::scsi::{Sense, SenseKey};

use crate::home::{self, ChangeRequest, Withdrawn};
use crate::logical_unit::ActiveFreeze;
use crate::message::{Change, Message, NexusReference, Reset, Ticket};
use crate::target::{LOGICAL_UNIT_FAILURE, LOGICAL_UNIT_NOT_SUPPORTED, TicketHolder};
use crate::task::{Abort, TaskPhase};
use crate::task_management::Purpose;
use crate::task_set::holds_back;
use crate::unit_attention::UnitAttention;
use crate::{
    ControlOutcome, Effect, LogicalUnitId, Notification, Target, TaskId, UnitChange, UnitState, UnitView,
};

impl Target {
    pub(crate) fn message_received(&mut self, from: CoreId, message: Message) {
        match message {
            Message::ChangeRequested { unit, ticket, change, origin } => {
                self.change_requested(unit, ChangeRequest { ticket, change, origin });
            }
            Message::ChangeWithdrawn { unit, ticket } => self.change_withdrawn(unit, ticket),
            Message::ChangeRefused { ticket, .. } => {
                self.ticket_answered(ticket, Err(LOGICAL_UNIT_NOT_SUPPORTED));
            }
            Message::Freeze { unit, ticket, change, origin, home } => {
                self.freeze(unit, ticket, change, origin, home)
            }
            Message::Frozen { unit, ticket, failed } => self.frozen(unit, ticket, failed),
            Message::Granted { unit, ticket, home } => self.granted(unit, ticket, home),
            Message::Released { unit, ticket } => self.released(unit, ticket),
            Message::Thaw { unit, ticket, change, origin, view, failed } => {
                self.thaw(unit, ticket, change, origin, view, failed);
            }
            Message::FenceRequested { unit } => self.fence_requested(unit),
            Message::ViewChanged { unit, view } => self.install_view(unit, view),
            Message::UnitAdded { view, device } => self.unit_added(view, device),
            Message::UnitOpened { unit, error } => self.unit_opened(unit, error),
            Message::UnitClosed { unit } => self.unit_closed(unit),
            Message::NexusClaim { claim, identity } => self.nexus_claimed(claim, identity),
            Message::NexusRevoke { claim } => self.nexus_revoked(claim),
            Message::NexusReleased { claim } => self.nexus_released(claim),
            Message::NexusGranted { claim, reinstated } => self.nexus_granted(claim, reinstated),
            Message::NexusRefused { claim } => self.nexus_claim_refused(claim),
            Message::TargetChanged { target, map, control } => self.target_changed(target, map, control),
            Message::TargetChangeDone { control, failed } => self.target_change_done(control, failed),
            Message::DropNexuses { target, reason } => self.drop_nexuses(target, reason),
        }
        let _ = from;
    }

    /// A dormant task's turn has come on this core, and it needs the unit or a range for itself on all of them.
    pub(crate) fn ask_home_for_lease(&mut self, unit: LogicalUnitId, id: TaskId, change: Change) {
        let Some(home) = self.unit(unit).map(|unit| unit.home_core) else { return };
        let ticket = self.ticket(TicketHolder::Task(id));
        let Some(task) = self.tasks.get_mut(id.0) else { return };
        task.phase = TaskPhase::Requested;
        task.ticket = Some(ticket);
        let origin = Some(NexusReference { core: self.core, nexus: task.nexus });
        self.send(home, Message::ChangeRequested { unit, ticket, change, origin });
    }

    /// The task that asked for a lease has ended; when it was not granted yet, it will be given back on arrival.
    pub(crate) fn release_lease(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get_mut(id.0) else { return };
        let (Some(ticket), Some(unit)) = (task.ticket.take(), task.unit) else { return };
        let message = if std::mem::take(&mut task.granted) {
            Message::Released { unit, ticket }
        } else {
            self.tickets.remove(&ticket.sequence);
            Message::ChangeWithdrawn { unit, ticket }
        };
        if let Some(home) = self.unit(unit).map(|unit| unit.home_core) {
            self.send(home, message);
        }
    }

    fn granted(&mut self, unit: LogicalUnitId, ticket: Ticket, home: CoreId) {
        let task = match self.tickets.get(&ticket.sequence) {
            Some(&TicketHolder::Task(id)) => self.tasks.get_mut(id.0).map(|task| (id, task)),
            _ => None,
        };
        let Some((id, task)) = task.filter(|(_, task)| task.ticket == Some(ticket)) else {
            return self.send(home, Message::Released { unit, ticket });
        };
        task.granted = true;
        if task.abort == Abort::No {
            self.start(id);
        }
    }

    fn change_requested(&mut self, unit: LogicalUnitId, request: ChangeRequest) {
        let turn = match self.unit_mut(unit).and_then(|unit| unit.home.as_mut()) {
            Some(home) => home.request(request),
            None => {
                let ticket = request.ticket;
                return self.send(ticket.core, Message::ChangeRefused { unit, ticket });
            }
        };
        if let Some(request) = turn {
            self.tell_all_to_freeze(unit, request);
        }
    }

    /// A task gave up waiting for its change. When cores are draining for it, they are thawed with nothing changed:
    /// neither the task's abort nor anybody else waits for what those cores wait for. What they say afterwards about
    /// this ticket finds nothing.
    fn change_withdrawn(&mut self, unit: LogicalUnitId, ticket: Ticket) {
        let Some(home) = self.unit_mut(unit).and_then(|unit| unit.home.as_mut()) else { return };
        match home.withdraw(ticket) {
            None => {}
            Some(Withdrawn::Queued) => self.send(ticket.core, Message::ChangeRefused { unit, ticket }),
            Some(Withdrawn::Draining(ChangeRequest { change, origin, .. })) => {
                let view = Arc::new(home.truth.clone());
                let next = home.next(change);
                self.broadcast(|| {
                    let view = Arc::clone(&view);
                    Message::Thaw { unit, ticket, change, origin, view, failed: true }
                });
                if let Some(next) = next {
                    self.tell_all_to_freeze(unit, next);
                }
            }
        }
    }

    fn tell_all_to_freeze(&mut self, unit: LogicalUnitId, request: ChangeRequest) {
        let ChangeRequest { ticket, change, origin } = request;
        let home = self.core;
        self.broadcast(|| Message::Freeze { unit, ticket, change, origin, home });
    }

    /// Begins nothing new in the change's way, and drains or aborts what runs.
    fn freeze(
        &mut self,
        unit: LogicalUnitId,
        ticket: Ticket,
        change: Change,
        origin: Option<NexusReference>,
        home: CoreId,
    ) {
        let core = self.core;
        let Some(found) = self.unit_mut(unit) else {
            return self.send(home, Message::Frozen { unit, ticket, failed: false });
        };
        found.freezes[change.lane()] = Some(ActiveFreeze { ticket, change });
        let tas = found.view.mode.task_aborted_status;
        let purpose = Purpose::Freeze { unit, ticket, home, aborts: change.aborts() };
        if !change.aborts() {
            let runs = |task: &crate::task::Task| {
                task.phase == TaskPhase::Running && task.in_order && holds_back(change, task)
            };
            let tasks = self.tasks_in(unit, runs);
            return self.wait_for(purpose, tasks);
        }
        let is_origin =
            move |nexus| origin.is_some_and(|origin| origin.core == core && origin.nexus == nexus);
        let tasks = self.tasks_in(unit, |_| true);
        if change == Change::ClearTaskSet && !tas {
            self.attention_for_cleared(&tasks, is_origin);
        }
        // A unit that goes answers what it aborts: its initiators did not ask for that.
        let always_status = change == Change::Remove;
        self.abort_all(purpose, tasks, |task| {
            if (always_status || tas) && !is_origin(task.nexus) { Abort::Status } else { Abort::Silent }
        });
    }

    /// COMMANDS CLEARED BY ANOTHER INITIATOR for every I_T_L nexus that lost commands (SAM-5 §5.14).
    fn attention_for_cleared(&mut self, tasks: &[TaskId], is_origin: impl Fn(crate::NexusId) -> bool) {
        let capacity = self.limits.unit_attentions_max as usize;
        for id in tasks {
            let Some(task) = self.tasks.get(id.0) else { continue };
            if is_origin(task.nexus) {
                continue;
            }
            let (lun, nexus) = (task.lun, task.nexus);
            let Some(nexus) = self.nexuses.get_mut(nexus.0) else { continue };
            if let Some(at) = crate::nexus::find_lun(&nexus.luns, lun) {
                nexus.establish(at, UnitAttention::COMMANDS_CLEARED, capacity);
            }
        }
    }

    fn frozen(&mut self, unit: LogicalUnitId, ticket: Ticket, failed: bool) {
        let Some(home) = self.unit_mut(unit).and_then(|unit| unit.home.as_mut()) else { return };
        let Some((request, failed)) = home.frozen(ticket, failed) else { return };
        if request.change.is_lease() {
            let home = self.core;
            return self.send(ticket.core, Message::Granted { unit, ticket, home });
        }
        self.apply_and_thaw(unit, request, failed);
    }

    fn released(&mut self, unit: LogicalUnitId, ticket: Ticket) {
        let Some(home) = self.unit_mut(unit).and_then(|unit| unit.home.as_mut()) else { return };
        if let Some(request) = home.running(ticket) {
            self.apply_and_thaw(unit, request, false);
        }
    }

    /// Every core is frozen (and a lease is over): makes the change and goes on with the next.
    fn apply_and_thaw(&mut self, unit: LogicalUnitId, request: ChangeRequest, failed: bool) {
        let Some(home) = self.unit_mut(unit).and_then(|unit| unit.home.as_mut()) else { return };
        let before = home.truth.state;
        home.apply(&request, failed);
        let after = home.truth.state;
        let view = Arc::new(home.truth.clone());
        let ChangeRequest { ticket, change, origin } = request;
        let next = home.next(change);
        let is_removed = change == Change::Remove && !failed;
        let abandoned = if is_removed { home.abandon() } else { Vec::new() };
        let news = match (before, after) {
            (before, after) if before == after => None,
            (_, UnitState::Fenced) => Some(Notification::UnitFenced { unit }),
            (_, UnitState::MediumNotPresent) => Some(Notification::DeviceGone { unit }),
            (UnitState::MediumNotPresent, _) => Some(Notification::DeviceReturned { unit }),
            _ => None,
        };
        self.effects.extend(news.map(Effect::Notify));
        if is_removed {
            self.begin_closing(unit);
        }
        self.broadcast(|| {
            let view = Arc::clone(&view);
            Message::Thaw { unit, ticket, change, origin, view, failed }
        });
        for request in abandoned {
            let ticket = request.ticket;
            self.send(ticket.core, Message::ChangeRefused { unit, ticket });
        }
        if let (Some(next), false) = (next, is_removed) {
            self.tell_all_to_freeze(unit, next);
        }
    }

    fn thaw(
        &mut self,
        unit: LogicalUnitId,
        ticket: Ticket,
        change: Change,
        origin: Option<NexusReference>,
        view: Arc<UnitView>,
        failed: bool,
    ) {
        if let Some(found) = self.unit_mut(unit) {
            let freeze = &mut found.freezes[change.lane()];
            if freeze.is_some_and(|freeze| freeze.ticket == ticket) {
                *freeze = None;
            }
        }
        let home = view.home;
        if failed {
            self.stop_draining(ticket);
        }
        let before = self.unit(unit).map(|unit| Arc::clone(&unit.view));
        self.install_view(unit, Arc::clone(&view));
        if !failed {
            if let (Change::Medium(_), Some(before)) = (change, before) {
                self.attention_for_medium(unit, &before, &view);
            }
            self.attention_for_change(unit, change, origin);
            if change == Change::Remove {
                self.unit_gone(unit, home);
            }
        }
        self.kick(unit);
        if ticket.core == self.core {
            self.ticket_answered(ticket, if failed { Err(LOGICAL_UNIT_FAILURE) } else { Ok(()) });
        }
    }

    /// What initiators must be told after a change.
    fn attention_for_change(&mut self, unit: LogicalUnitId, change: Change, origin: Option<NexusReference>) {
        let (attention, spare_origin) = match change {
            Change::Reset(Reset::LogicalUnit) => (UnitAttention::LOGICAL_UNIT_RESET, false),
            Change::Reset(Reset::TargetWarm) => (UnitAttention::TARGET_RESET, false),
            Change::Reset(Reset::TargetCold) => (UnitAttention::POWER_ON, false),
            Change::Capacity => (UnitAttention::CAPACITY_CHANGED, false),
            Change::Remove => (UnitAttention::REPORTED_LUNS_CHANGED, false),
            Change::Unit(UnitChange::ModePages { .. }) => (UnitAttention::MODE_PARAMETERS_CHANGED, true),
            _ => return,
        };
        let spared =
            origin.filter(|origin| spare_origin && origin.core == self.core).map(|origin| origin.nexus);
        let is_event = matches!(change, Change::Capacity | Change::Remove);
        self.attention_for_unit(unit, attention, spared, is_event);
    }

    /// What initiators must be told when a device came back, or turns out to have another size.
    fn attention_for_medium(&mut self, unit: LogicalUnitId, before: &UnitView, after: &UnitView) {
        let attention = match (before.state, after.state) {
            (UnitState::MediumNotPresent, UnitState::Ready) => UnitAttention::MEDIUM_CHANGED,
            _ if before.geometry.blocks != after.geometry.blocks => UnitAttention::CAPACITY_CHANGED,
            _ => return,
        };
        self.attention_for_unit(unit, attention, None, true);
    }

    fn ticket_answered(&mut self, ticket: Ticket, result: Result<(), Sense>) {
        match self.tickets.remove(&ticket.sequence) {
            Some(TicketHolder::Task(id)) => {
                // A lease that is refused: its unit is gone, the task finds out when it starts.
                let waits = self.tasks.get_mut(id.0).filter(|task| task.phase == TaskPhase::Requested);
                match (waits, result) {
                    (Some(task), Err(_)) if task.ticket == Some(ticket) => {
                        task.ticket = None;
                        if task.abort == Abort::No {
                            self.start(id);
                        }
                    }
                    _ => self.unpark(id, ticket, result),
                }
            }
            Some(TicketHolder::Reset(name)) => {
                // A unit that is gone has no tasks left: that part of the function is done.
                let failed = result.is_err_and(|sense| sense.key == SenseKey::HardwareError);
                self.reset_answered(name, failed, 1);
            }
            Some(TicketHolder::Control(id)) => {
                if self.removal_answered(ticket.sequence, id, result.is_ok()) {
                    return;
                }
                let outcome = match result {
                    Ok(()) => ControlOutcome::Done,
                    Err(sense) if sense == LOGICAL_UNIT_FAILURE => {
                        ControlOutcome::Failed("tasks are still in the device; the unit is fenced".into())
                    }
                    Err(_) => ControlOutcome::Failed("there is no such logical unit".into()),
                };
                self.control_answered(id, outcome);
            }
            Some(TicketHolder::Nobody) | None => {}
        }
    }

    fn fence_requested(&mut self, unit: LogicalUnitId) {
        let Some(home) = self.unit_mut(unit).and_then(|unit| unit.home.as_mut()) else { return };
        if home.truth.state == UnitState::Fenced {
            return;
        }
        home.truth.state = UnitState::Fenced;
        home.truth.epoch += 1;
        let view = Arc::new(home.truth.clone());
        self.effects.push_back(Effect::Notify(Notification::UnitFenced { unit }));
        self.broadcast(|| Message::ViewChanged { unit, view: Arc::clone(&view) });
    }

    /// Takes a newer view.
    fn install_view(&mut self, unit: LogicalUnitId, view: Arc<UnitView>) {
        if let Some(found) = self.unit_mut(unit)
            && view.epoch > found.view.epoch
        {
            found.lost &= view.state == UnitState::MediumNotPresent;
            found.view = view;
            self.kick(unit);
        }
    }

    /// One core opened its channel to a new unit, or could not.
    fn unit_opened(&mut self, unit: LogicalUnitId, error: Option<bdev::BlockError>) {
        let Some(home) = self.unit_mut(unit).and_then(|unit| unit.home.as_mut()) else { return };
        let Some((control, error)) = home::opened(home, error) else { return };
        match error {
            None => self.control_answered(control, ControlOutcome::Done),
            Some(error) => {
                let why = format!("a core cannot open the device: {error:?}");
                self.withdraw(unit, control, why);
            }
        }
    }
}
