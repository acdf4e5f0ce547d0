//! What the control plane asks: logical units and LUN maps come, change and go.

use std::sync::Arc;

use base::CoreId;
use bdev::{BlockDevice, BlockError};

use crate::home::{Closing, Home, TargetChange, default_mode};
use crate::logical_unit::{Channel, LogicalUnit};
use crate::message::{Change, DeviceHandle, MediumChange, Message};
use crate::nexus::find_lun;
use crate::target::TicketHolder;
use crate::task::Abort;
use crate::task_management::Purpose;
use crate::unit_attention::UnitAttention;
use crate::{
    ControlId, ControlOutcome, ControlRequest, DropReason, Effect, LogicalUnitId, LunMap, Target,
    TargetDeviceId, TaskId, UnitIdentity, UnitState, UnitView,
};

impl Target {
    /// The control plane asks for something; `Effect::ControlDone` answers, when every core has done its part.
    pub fn handle_control(&mut self, now: base::Instant, id: ControlId, request: ControlRequest) {
        self.now = now;
        match request {
            ControlRequest::AddLogicalUnit { unit, home, device, identity } => {
                self.add_logical_unit(id, unit, home, device, identity);
            }
            ControlRequest::RemoveLogicalUnit { unit } => self.ask_own_home(id, unit, Change::Remove),
            ControlRequest::CapacityChanged { unit } => self.ask_own_home(id, unit, Change::Capacity),
            ControlRequest::MediumChanged { unit, present } => {
                let medium = if present { MediumChange::Present } else { MediumChange::Absent };
                self.ask_own_home(id, unit, Change::Medium(medium));
            }
            ControlRequest::SetLunMap { target, map } => self.change_target(id, target, Some(map)),
            ControlRequest::RemoveTarget { target } => self.change_target(id, target, None),
            ControlRequest::Quiesce => self.quiesce(id),
        }
        self.run();
    }

    fn add_logical_unit(
        &mut self,
        id: ControlId,
        unit: LogicalUnitId,
        home: CoreId,
        device: Arc<dyn BlockDevice>,
        identity: UnitIdentity,
    ) {
        let why = match self.units.get(unit.0 as usize) {
            None => Some(format!("the node has at most {} logical units", self.units.len())),
            Some(Some(_)) => Some("there is such a logical unit already".into()),
            Some(None) if self.closing.iter().any(|closing| closing.unit == unit) => {
                Some("the old logical unit is not closed yet".into())
            }
            Some(None) if home != self.core => Some(format!("asked {} for a unit of {home}", self.core)),
            Some(None) => None,
        };
        if let Some(why) = why {
            return self.control_answered(id, ControlOutcome::Failed(why));
        }
        let geometry = device.geometry();
        let view = UnitView {
            epoch: 1,
            unit,
            home,
            geometry,
            identity: Arc::new(identity),
            mode: default_mode(&geometry),
            state: UnitState::Ready,
            removal_prevented: false,
            device: DeviceHandle(Arc::clone(&device)),
        };
        let mut found = LogicalUnit::new(Arc::new(view.clone()));
        found.home = Some(Box::new(Home::new(view.clone(), Arc::clone(&device), id, self.cores)));
        if let Some(place) = self.units.get_mut(unit.0 as usize) {
            *place = Some(found);
        }
        let view = Arc::new(view);
        self.broadcast(|| Message::UnitAdded {
            view: Arc::clone(&view),
            device: DeviceHandle(Arc::clone(&device)),
        });
    }

    /// A new unit: this core opens its channel, and tells the nexuses whose maps have it already.
    pub(crate) fn unit_added(&mut self, view: Arc<UnitView>, device: DeviceHandle) {
        let (unit, home) = (view.unit, view.home);
        let Some(place) = self.units.get_mut(unit.0 as usize) else {
            return self.send(home, Message::UnitOpened { unit, error: Some(BlockError::Unsupported) });
        };
        if place.is_none() {
            *place = Some(LogicalUnit::new(view));
        }
        self.effects.push_back(Effect::OpenChannel { unit, device: device.0 });
        self.attention_for_unit(unit, UnitAttention::REPORTED_LUNS_CHANGED, None, true);
    }

    pub(crate) fn channel_opened(&mut self, unit: LogicalUnitId, result: Result<(), BlockError>) {
        let Some(found) = self.unit_mut(unit) else {
            // The unit was withdrawn while its channel was being opened.
            if result.is_ok() {
                self.effects.push_back(Effect::CloseChannel { unit });
            }
            return;
        };
        found.channel = if result.is_ok() { Channel::Open } else { Channel::Failed };
        let home = found.home_core;
        self.send(home, Message::UnitOpened { unit, error: result.err() });
        self.kick(unit);
    }

    /// Not every core could open the device: the unit goes again, and the control plane is told why. It goes as any
    /// unit goes: cores that could open it may have tasks in it, and somebody may wait for a change of it.
    pub(crate) fn withdraw(&mut self, unit: LogicalUnitId, control: ControlId, why: String) {
        self.ask_for_removal(control, unit, ControlOutcome::Failed(why));
    }

    fn ask_for_removal(&mut self, id: ControlId, unit: LogicalUnitId, outcome: ControlOutcome) {
        let ticket = self.ticket(TicketHolder::Control(id));
        self.removals.push((ticket.sequence, unit, outcome));
        let change = Change::Remove;
        self.send(self.core, Message::ChangeRequested { unit, ticket, change, origin: None });
    }

    /// Begins to count the cores that have closed their channel; the answer is filled in by the removal's ticket.
    pub(crate) fn begin_closing(&mut self, unit: LogicalUnitId) {
        self.closing.push(Closing { unit, awaiting: self.cores, answer: None });
    }

    /// The unit does not exist on this core any more.
    pub(crate) fn unit_gone(&mut self, unit: LogicalUnitId, home: CoreId) {
        let tasks = self.tasks_in(unit, |_| true);
        for &id in &tasks {
            self.leave_order(id);
            if let Some(task) = self.tasks.get_mut(id.0) {
                task.in_set = false;
            }
        }
        if let Some(gone) = self.units.get_mut(unit.0 as usize).and_then(Option::take)
            && gone.channel == Channel::Open
        {
            self.effects.push_back(Effect::CloseChannel { unit });
        }
        self.start_orphans(&tasks);
        self.send(home, Message::UnitClosed { unit });
    }

    /// Tasks that waited for their turn find that their unit is gone.
    fn start_orphans(&mut self, tasks: &[TaskId]) {
        use crate::task::TaskPhase;
        for &id in tasks {
            let waits = |task: &crate::task::Task| {
                task.abort == Abort::No && matches!(task.phase, TaskPhase::Dormant | TaskPhase::Requested)
            };
            if self.tasks.get(id.0).is_some_and(waits) {
                self.start(id);
            }
        }
    }

    pub(crate) fn unit_closed(&mut self, unit: LogicalUnitId) {
        let Some(at) = self.closing.iter().position(|closing| closing.unit == unit) else { return };
        let Some(closing) = self.closing.get_mut(at) else { return };
        closing.awaiting = closing.awaiting.saturating_sub(1);
        if closing.awaiting > 0 {
            return;
        }
        let closing = self.closing.swap_remove(at);
        if let Some((id, outcome)) = closing.answer {
            self.effects.push_back(Effect::ControlDone { id, outcome });
        }
    }

    fn ask_own_home(&mut self, id: ControlId, unit: LogicalUnitId, change: Change) {
        let is_home = self.unit(unit).is_some_and(|unit| unit.home.is_some());
        if !is_home {
            let why = format!("{} is not the home of such a logical unit", self.core);
            return self.control_answered(id, ControlOutcome::Failed(why));
        }
        if change == Change::Remove {
            return self.ask_for_removal(id, unit, ControlOutcome::Done);
        }
        let ticket = self.ticket(TicketHolder::Control(id));
        self.send(self.core, Message::ChangeRequested { unit, ticket, change, origin: None });
    }

    /// A change asked by the control plane ended. A removal is answered when every core has closed its channel.
    pub(crate) fn control_answered(&mut self, id: ControlId, outcome: ControlOutcome) {
        self.effects.push_back(Effect::ControlDone { id, outcome });
    }

    /// True when the answer to a removal's ticket must wait for the channels.
    pub(crate) fn removal_answered(&mut self, sequence: u64, id: ControlId, done: bool) -> bool {
        let Some(at) = self.removals.iter().position(|(ticket, ..)| *ticket == sequence) else {
            return false;
        };
        let (_, unit, outcome) = self.removals.swap_remove(at);
        let Some(closing) = self.closing.iter_mut().find(|closing| closing.unit == unit && done) else {
            return false;
        };
        closing.answer = Some((id, outcome));
        true
    }

    fn change_target(&mut self, id: ControlId, target: TargetDeviceId, map: Option<Arc<LunMap>>) {
        let is_sorted = map.as_ref().is_none_or(|map| map.mappings.is_sorted_by(|a, b| a.lun < b.lun));
        let most = self.limits.luns_per_target_max as usize;
        let why = match &map {
            _ if self.core != CoreId(0) => Some("only core 0 changes targets".to_string()),
            Some(map) if map.mappings.len() > most => Some(format!("a target has at most {most} LUNs")),
            _ if !is_sorted => Some("the LUNs are not sorted, or one is there twice".into()),
            None if !self.targets.contains_key(&target) => Some("there is no such target".into()),
            _ => None,
        };
        if let Some(why) = why {
            return self.control_answered(id, ControlOutcome::Failed(why));
        }
        self.target_changes.push(TargetChange { control: id, awaiting: self.cores, failed: false });
        self.broadcast(|| Message::TargetChanged { target, map: map.clone(), control: id });
    }

    /// A target's LUNs are others now: tasks of LUNs that go are aborted, with TASK ABORTED, since nobody asked their
    /// initiators.
    pub(crate) fn target_changed(
        &mut self,
        target: TargetDeviceId,
        map: Option<Arc<LunMap>>,
        control: ControlId,
    ) {
        let nexuses = self.nexuses_of(target);
        let mut covered = Vec::new();
        let Some(map) = map else {
            self.targets.remove(&target);
            for &id in &nexuses {
                covered.extend(self.tasks_of(id, |_| true));
            }
            self.wait_for(Purpose::TargetChange { control }, covered);
            return self.drop_nexuses(target, DropReason::Removed);
        };
        let changed = self.targets.get(&target).is_some_and(|old| **old != *map);
        self.targets.insert(target, Arc::clone(&map));
        let capacity = self.limits.unit_attentions_max as usize;
        for id in nexuses {
            let stays = |task: &crate::task::Task| {
                let mapping = find_lun(&map, task.lun).and_then(|at| map.mappings.get(at));
                // A LUN that is read-only from now on is not written when that has been answered.
                let writes = !task.read_only && task.entry.is_some_and(|entry| entry.writes);
                let fits = |mapping: &crate::LunMapping| {
                    Some(mapping.unit) == task.unit && !(mapping.read_only && writes)
                };
                task.unit.is_none() || mapping.is_some_and(fits)
            };
            covered.extend(self.tasks_of(id, |task| !stays(task)));
            let Some(nexus) = self.nexuses.get_mut(id.0).filter(|nexus| !nexus.closing) else { continue };
            let had = Arc::clone(&nexus.luns);
            nexus.remap(Arc::clone(&map));
            let has = |unit| map.mappings.iter().any(|mapping| mapping.unit == unit);
            for mapping in had.mappings.iter().filter(|mapping| !has(mapping.unit)) {
                self.forget_prevention(mapping.unit, id);
            }
            let Some(nexus) = self.nexuses.get_mut(id.0) else { continue };
            if !changed {
                continue;
            }
            for (position, mapping) in map.mappings.iter().enumerate() {
                let attention = UnitAttention::REPORTED_LUNS_CHANGED;
                if nexus.establish(position, attention, capacity) {
                    let (token, lun, sense) = (nexus.token, mapping.lun, attention.sense());
                    self.effects.push_back(Effect::AsynchronousEvent { token, lun, sense });
                }
            }
        }
        self.abort_all(Purpose::TargetChange { control }, covered, |_| Abort::Status);
    }

    pub(crate) fn target_change_done(&mut self, control: ControlId, failed: bool) {
        let Some(at) = self.target_changes.iter().position(|change| change.control == control) else {
            return;
        };
        let Some(change) = self.target_changes.get_mut(at) else { return };
        change.failed |= failed;
        change.awaiting = change.awaiting.saturating_sub(1);
        if change.awaiting > 0 {
            return;
        }
        let outcome = if change.failed {
            ControlOutcome::Failed(
                "tasks of a LUN that went are still in the device; its unit is fenced".into(),
            )
        } else {
            ControlOutcome::Done
        };
        self.target_changes.swap_remove(at);
        self.control_answered(control, outcome);
    }

    /// Ends every session of this core and lets no new one in.
    fn quiesce(&mut self, id: ControlId) {
        self.quiescing = true;
        let nexuses: Vec<crate::NexusId> = self.nexuses.iter().map(|(key, _)| crate::NexusId(key)).collect();
        let tasks: Vec<TaskId> = self.tasks.iter().map(|(key, _)| TaskId(key)).collect();
        self.wait_for(Purpose::Quiesce { control: id }, tasks);
        for nexus in nexuses {
            self.drop_nexus(nexus, DropReason::Removed);
        }
    }
}
