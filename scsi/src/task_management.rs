//! Safe task management (SAM-5 §7): an abort marks, asks each holder to let go, and counts; it frees nothing. A
//! function is over when its count is zero: nothing it covered can touch the medium or the wire any more. Past its
//! deadline the logical unit is fenced: never a lie and never a hang.

use std::time::Duration;

use base::Instant;

use crate::message::{Change, Message, NexusReference, Reset, Ticket};
use crate::nexus::find_lun;
use crate::target::{PendingReset, TicketHolder};
use crate::task::{Abort, NEXUS_LIST, PortSide, SET_LIST, Task, TaskPhase, io_tag};
use crate::unit_attention::UnitAttention;
use crate::{
    ControlId, DropReason, Effect, LogicalUnitId, NexusId, NexusToken, RequestToken, Target, TaskId,
    TaskManagementFunction, TaskManagementRequest, TaskManagementResponse,
};

/// Task management functions one nexus may have unanswered; more are rejected.
const FUNCTIONS_PER_NEXUS_MAX: u32 = 64;

/// What happens when a function's tasks are gone.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Purpose {
    /// Answer a task management function that this core can do alone.
    Answer { nexus: NexusId, token: NexusToken, request: RequestToken },
    /// Say `Frozen`.
    Freeze { unit: LogicalUnitId, ticket: Ticket, home: base::CoreId, aborts: bool },
    /// The nexus is drained.
    CloseNexus { nexus: NexusId },
    /// A target's LUN map is in force here.
    TargetChange { control: ControlId },
    /// This core has no tasks.
    Quiesce { control: ControlId },
}

/// Something that waits for a set of tasks.
#[derive(Debug)]
pub(crate) struct Function {
    pub(crate) purpose: Purpose,
    /// Sorted.
    pub(crate) tasks: Vec<TaskId>,
    /// None for drains: they wait as long as the tasks run, and can be waited out only by an abort.
    pub(crate) deadline: Option<Instant>,
    /// Sessions whose port would not let go have been asked to end.
    dropped: bool,
}

impl Function {
    fn is_drain(&self) -> bool {
        matches!(self.purpose, Purpose::Freeze { aborts: false, .. })
    }
}

impl Target {
    /// Waits for `tasks`; then does what `purpose` says.
    pub(crate) fn wait_for(&mut self, purpose: Purpose, mut tasks: Vec<TaskId>) {
        tasks.sort_unstable();
        for id in &tasks {
            if let Some(task) = self.tasks.get_mut(id.0) {
                task.covers += 1;
            }
        }
        let mut function = Function { purpose, tasks, deadline: None, dropped: false };
        if !function.is_drain() {
            function.deadline = Some(self.now + self.deadline());
        }
        self.functions.push(function);
        self.functions_changed = true;
    }

    fn deadline(&self) -> Duration {
        Duration::from_millis(u64::from(self.limits.task_management_deadline_ms))
    }

    /// The task is gone: whoever waited for it waits for one less.
    pub(crate) fn uncover(&mut self, id: TaskId) {
        self.uncover_from(id, |_| true);
    }

    /// The task no longer works: drains need not wait for its last word.
    pub(crate) fn uncover_from_drains(&mut self, id: TaskId) {
        self.uncover_from(id, Function::is_drain);
    }

    fn uncover_from(&mut self, id: TaskId, which: impl Fn(&Function) -> bool) {
        let Some(task) = self.tasks.get_mut(id.0) else { return };
        if task.covers == 0 {
            return;
        }
        for function in self.functions.iter_mut().filter(|function| which(function)) {
            if let Ok(at) = function.tasks.binary_search(&id) {
                function.tasks.remove(at);
                task.covers = task.covers.saturating_sub(1);
                self.functions_changed |= function.tasks.is_empty();
            }
        }
    }

    /// Ends every function that waits for nothing any more.
    pub(crate) fn finish_functions(&mut self) {
        while let Some(at) = self.functions.iter().position(|function| function.tasks.is_empty()) {
            let function = self.functions.swap_remove(at);
            self.finish_function(function.purpose, false);
        }
    }

    /// Nobody waits any more for what `ticket` was drained for. What stayed would pile up behind one stalled task.
    pub(crate) fn stop_draining(&mut self, ticket: Ticket) {
        let is_drain = |f: &Function| matches!(f.purpose, Purpose::Freeze { ticket: of, .. } if of == ticket);
        let Some(at) = self.functions.iter().position(is_drain) else { return };
        for id in self.functions.swap_remove(at).tasks {
            if let Some(task) = self.tasks.get_mut(id.0) {
                task.covers = task.covers.saturating_sub(1);
            }
        }
    }

    fn finish_function(&mut self, purpose: Purpose, failed: bool) {
        match purpose {
            Purpose::Answer { nexus, token, request } => {
                let response =
                    if failed { TaskManagementResponse::Failed } else { TaskManagementResponse::Complete };
                self.answer(nexus, token, request, response);
            }
            Purpose::Freeze { unit, ticket, home, .. } => {
                self.send(home, Message::Frozen { unit, ticket, failed });
            }
            Purpose::CloseNexus { nexus } => self.nexus_drained(nexus),
            Purpose::TargetChange { control } => {
                self.send(base::CoreId(0), Message::TargetChangeDone { control, failed });
            }
            Purpose::Quiesce { control } => {
                let outcome = if failed {
                    crate::ControlOutcome::Failed("tasks are still in a device".into())
                } else {
                    crate::ControlOutcome::Done
                };
                self.effects.push_back(Effect::ControlDone { id: control, outcome });
            }
        }
    }

    pub(crate) fn answer(
        &mut self,
        nexus: NexusId,
        token: NexusToken,
        request: RequestToken,
        response: TaskManagementResponse,
    ) {
        if let Some(nexus) = self.nexuses.get_mut(nexus.0) {
            nexus.functions = nexus.functions.saturating_sub(1);
        }
        self.effects.push_back(Effect::TaskManagementFunctionExecuted { token, request, response });
    }

    /// Marks the task and asks its holders to let go of it.
    pub(crate) fn abort_task(&mut self, id: TaskId, how: Abort) {
        let Some(task) = self.tasks.get_mut(id.0) else { return };
        let stronger = task.abort == Abort::No || (task.abort == Abort::Status && how == Abort::Silent);
        if !stronger {
            return;
        }
        let was_working = task.abort == Abort::No;
        task.abort = how;
        task.immediate = None;
        if std::mem::take(&mut task.waits_for_buffer) {
            self.buffer_waiters.retain(|&waiter| waiter != id);
        }
        if was_working && task.device_ios > 0 {
            self.cancel_device(id);
        }
        self.withdraw_change(id);
        let Some(task) = self.tasks.get_mut(id.0) else { return };
        if how == Abort::Silent && matches!(task.port, PortSide::Open | PortSide::StatusSent) {
            task.port = PortSide::Terminating;
            let exchange = task.exchange;
            self.effects.push_back(Effect::TerminateDataTransfer { exchange, task: id });
        }
        if task_is_idle(self.tasks.get(id.0)) {
            self.drop_buffers(id);
        }
        self.settle(id);
    }

    /// A task that waits for a change must not wait for what the change waits for. The home core answers in any case.
    fn withdraw_change(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get(id.0).filter(|task| task.phase == TaskPhase::Parked) else { return };
        let (Some(ticket), Some(unit)) = (task.ticket, task.unit) else { return };
        if let Some(home) = self.unit(unit).map(|unit| unit.home_core) {
            self.send(home, Message::ChangeWithdrawn { unit, ticket });
        }
    }

    fn drop_buffers(&mut self, id: TaskId) {
        if let Some(task) = self.tasks.get_mut(id.0) {
            for burst in &mut task.bursts {
                burst.data = None;
            }
        }
    }

    fn cancel_device(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get(id.0) else { return };
        let Some(unit) = task.unit else { return };
        let in_device = |at: &usize| {
            task.bursts.get(*at).is_some_and(|burst| burst.phase == crate::task::BurstPhase::Device)
        };
        let mut bursts: Vec<usize> = (0..self.bursts_max).filter(in_device).collect();
        if bursts.is_empty() {
            bursts.push(0);
        }
        for burst in bursts {
            self.effects.push_back(Effect::Cancel { unit, tag: io_tag(id, burst) });
        }
    }

    pub(crate) fn task_management_requested(&mut self, asked: &TaskManagementRequest) {
        use TaskManagementFunction as F;
        let TaskManagementRequest { nexus: id, request, function, lun, tag } = *asked;
        let Some(nexus) = self.nexuses.get_mut(id.0) else { return };
        let (token, target) = (nexus.token, nexus.identity.target);
        nexus.functions += 1;
        if nexus.closing || nexus.functions > FUNCTIONS_PER_NEXUS_MAX {
            return self.answer(id, token, request, TaskManagementResponse::Rejected);
        }
        let purpose = Purpose::Answer { nexus: id, token, request };
        let unit = find_lun(&nexus.luns, lun).and_then(|at| nexus.luns.mappings.get(at)).map(|m| m.unit);
        let unit = unit.filter(|unit| self.units.get(unit.0 as usize).is_some_and(Option::is_some));
        let needs_unit =
            !matches!(function, F::TargetWarmReset | F::TargetColdReset | F::ITNexusReset | F::ClearAca);
        if needs_unit && unit.is_none() {
            return self.answer(id, token, request, TaskManagementResponse::IncorrectLun);
        }
        let is_live = |task: &Task| task.port == PortSide::Open || task.port == PortSide::Terminating;
        match function {
            F::AbortTask => {
                // Not a flush that goes on after its command was answered: its tag may be in use again.
                let wanted = |task: &Task| {
                    let is_known = task.port != PortSide::Gone || task.abort != Abort::No;
                    task.lun == lun && Some(task.tag) == tag && is_known
                };
                match self.tasks_of(id, wanted) {
                    tasks if tasks.is_empty() => {
                        self.answer(id, token, request, TaskManagementResponse::TaskDoesNotExist);
                    }
                    tasks => self.abort_all(purpose, tasks, |_| Abort::Silent),
                }
            }
            F::AbortTaskSet => {
                let tasks = self.tasks_of(id, |task| task.lun == lun);
                self.abort_all(purpose, tasks, |_| Abort::Silent);
            }
            F::ITNexusReset => {
                let tasks = self.tasks_of(id, |_| true);
                self.attention_for_nexus(id, UnitAttention::NEXUS_LOSS);
                self.forget_preventions(id);
                self.abort_all(purpose, tasks, |_| Abort::Silent);
            }
            F::QueryTask | F::QueryTaskSet => {
                let is_there = |task: &Task| {
                    task.lun == lun && is_live(task) && (function == F::QueryTaskSet || Some(task.tag) == tag)
                };
                let found = !self.tasks_of(id, is_there).is_empty();
                self.answer_query(id, token, request, found);
            }
            F::QueryAsynchronousEvent => {
                let found = self.nexuses.get(id.0).is_some_and(|nexus| nexus.first_attention(lun).is_some());
                self.answer_query(id, token, request, found);
            }
            // NACA is not supported, so there is never an ACA condition to clear.
            F::ClearAca => self.answer(id, token, request, TaskManagementResponse::Rejected),
            F::ClearTaskSet => {
                self.ask_homes(asked, token, unit.into_iter().collect(), Change::ClearTaskSet, None);
            }
            F::LogicalUnitReset => {
                let change = Change::Reset(Reset::LogicalUnit);
                self.ask_homes(asked, token, unit.into_iter().collect(), change, None);
            }
            F::TargetWarmReset | F::TargetColdReset => {
                let cold = function == F::TargetColdReset;
                let change = Change::Reset(if cold { Reset::TargetCold } else { Reset::TargetWarm });
                let Some(nexus) = self.nexuses.get(id.0) else { return };
                let mut units: Vec<LogicalUnitId> =
                    nexus.luns.mappings.iter().map(|mapping| mapping.unit).collect();
                units.sort_unstable();
                units.dedup();
                units.retain(|&unit| self.unit(unit).is_some());
                self.ask_homes(asked, token, units, change, cold.then_some(target));
            }
        }
    }

    fn answer_query(&mut self, id: NexusId, token: NexusToken, request: RequestToken, found: bool) {
        let response =
            if found { TaskManagementResponse::Succeeded } else { TaskManagementResponse::Complete };
        self.answer(id, token, request, response);
    }

    /// Asks the home core of each unit for `change`; answers when all have done it.
    fn ask_homes(
        &mut self,
        asked: &TaskManagementRequest,
        token: NexusToken,
        units: Vec<LogicalUnitId>,
        change: Change,
        drop_sessions: Option<crate::TargetDeviceId>,
    ) {
        self.sequence += 1;
        let name = self.sequence;
        let (nexus, request, awaiting) = (asked.nexus, asked.request, units.len());
        let reset = PendingReset { nexus, token, request, awaiting, failed: false, drop_sessions };
        self.resets.insert(name, reset);
        for unit in units {
            let Some(home) = self.unit(unit).map(|unit| unit.home_core) else { continue };
            let ticket = self.ticket(TicketHolder::Reset(name));
            let origin = Some(NexusReference { core: self.core, nexus });
            self.send(home, Message::ChangeRequested { unit, ticket, change, origin });
        }
        if awaiting == 0 {
            self.reset_answered(name, false, 0);
        }
    }

    /// A home core has done (or failed) its part of a function.
    pub(crate) fn reset_answered(&mut self, name: u64, failed: bool, parts: usize) {
        let Some(reset) = self.resets.get_mut(&name) else { return };
        reset.failed |= failed;
        reset.awaiting = reset.awaiting.saturating_sub(parts);
        if reset.awaiting > 0 {
            return;
        }
        let Some(reset) = self.resets.remove(&name) else { return };
        let response =
            if reset.failed { TaskManagementResponse::Failed } else { TaskManagementResponse::Complete };
        self.answer(reset.nexus, reset.token, reset.request, response);
        if let Some(target) = reset.drop_sessions {
            self.broadcast(|| Message::DropNexuses { target, reason: DropReason::Reset });
        }
    }

    /// The tasks of a nexus that are `wanted`.
    pub(crate) fn tasks_of(&self, nexus: NexusId, wanted: impl Fn(&Task) -> bool) -> Vec<TaskId> {
        let Some(nexus) = self.nexuses.get(nexus.0) else { return Vec::new() };
        nexus
            .tasks
            .iter::<NEXUS_LIST>(&self.tasks)
            .filter(|(_, task)| wanted(task))
            .map(|(id, _)| id)
            .collect()
    }

    /// The tasks of a unit that are `wanted`.
    pub(crate) fn tasks_in(&self, unit: LogicalUnitId, wanted: impl Fn(&Task) -> bool) -> Vec<TaskId> {
        let Some(unit) = self.unit(unit) else { return Vec::new() };
        unit.set
            .list
            .iter::<SET_LIST>(&self.tasks)
            .filter(|(_, task)| wanted(task))
            .map(|(id, _)| id)
            .collect()
    }

    /// Aborts `tasks`, each as `how` says, and waits for them.
    pub(crate) fn abort_all(&mut self, purpose: Purpose, tasks: Vec<TaskId>, how: impl Fn(&Task) -> Abort) {
        let ways: Vec<(TaskId, Abort)> =
            tasks.iter().filter_map(|&id| Some((id, how(self.tasks.get(id.0)?)))).collect();
        self.wait_for(purpose, tasks);
        for (id, way) in ways {
            self.abort_task(id, way);
        }
    }

    /// Deadlines: first the sessions whose port holds a task are ended; then units whose device holds one are fenced.
    pub(crate) fn check_deadlines(&mut self) {
        let now = self.now;
        let due = |function: &Function| function.deadline.is_some_and(|deadline| deadline <= now);
        while let Some(at) = self.functions.iter().position(due) {
            let held_by_port: Vec<NexusId> = self.functions[at]
                .tasks
                .iter()
                .filter_map(|id| self.tasks.get(id.0))
                .filter(|task| task.device_ios == 0 && task.phase != TaskPhase::Parked)
                .map(|task| task.nexus)
                .collect();
            if !held_by_port.is_empty() && !self.functions[at].dropped {
                let more = self.now + (self.deadline() / 4).max(Duration::from_millis(1));
                let function = &mut self.functions[at];
                function.dropped = true;
                function.deadline = Some(more);
                for nexus in held_by_port {
                    self.drop_nexus(nexus, DropReason::Stalled);
                }
                continue;
            }
            let function = self.functions.swap_remove(at);
            for id in &function.tasks {
                let Some(task) = self.tasks.get_mut(id.0) else { continue };
                task.covers = task.covers.saturating_sub(1);
                if let Some(unit) = task.unit {
                    self.fence(unit);
                }
            }
            self.finish_function(function.purpose, true);
        }
    }

    /// The unit answers nothing but errors from now on, here at once and everywhere soon.
    fn fence(&mut self, unit: LogicalUnitId) {
        let Some(found) = self.unit_mut(unit) else { return };
        if std::mem::replace(&mut found.fenced, true) {
            return;
        }
        let home = found.home_core;
        self.send(home, Message::FenceRequested { unit });
        self.kick(unit);
    }
}

fn task_is_idle(task: Option<&Task>) -> bool {
    task.is_some_and(|task| task.device_ios == 0 && task.receiving == 0)
}
