//! One core's part of a logical unit's task set (SAM-5 §8): which task may run. TST is 000b: one set for all nexuses.

use base::Slab;

use crate::TaskId;
use crate::logical_unit::ActiveFreeze;
use crate::message::{Change, MediumChange};
use crate::ordering_table::{MediumRange, Order, TaskClass, order};
use crate::task::{SET_LIST, Task, TaskList, TaskPhase};

/// The tasks of one unit on one core, oldest first; HEAD OF QUEUE tasks enter at the front.
#[derive(Debug, Default)]
pub(crate) struct TaskSet {
    pub(crate) list: TaskList,
    /// Tasks that wait for their turn.
    pub(crate) dormant: u32,
    /// Tasks still in order that are ORDERED, HEAD OF QUEUE or atomic.
    special: u32,
    /// Tasks still in order that are atomic.
    atomic: u32,
}

/// May this task run?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Yes.
    Run,
    /// No.
    Wait,
    /// Its turn on this core; the home core must agree first.
    AskHome(Change),
}

impl TaskSet {
    /// No task needs the ordering table: every SIMPLE task may run.
    pub(crate) fn is_plain(&self) -> bool {
        self.special == 0 && self.dormant == 0
    }

    pub(crate) fn enter(&mut self, tasks: &mut Slab<Task>, id: TaskId) {
        let Some(task) = tasks.get_mut(id.0) else { return };
        task.in_order = true;
        task.in_set = true;
        self.dormant += 1;
        let (class, atomic) = (task.class, task.atomic);
        self.special += u32::from(is_special(class, atomic));
        self.atomic += u32::from(atomic);
        if class == TaskClass::HeadOfQueue {
            self.list.push_front::<SET_LIST>(tasks, id);
        } else {
            self.list.push_back::<SET_LIST>(tasks, id);
        }
    }

    /// The task was planned anew: it is atomic now, or no longer.
    pub(crate) fn set_atomic(&mut self, task: &mut Task, atomic: bool) {
        if task.in_order {
            let special = |atomic| u32::from(is_special(task.class, atomic));
            self.special = (self.special + special(atomic)).saturating_sub(special(task.atomic));
            self.atomic = (self.atomic + u32::from(atomic)).saturating_sub(u32::from(task.atomic));
        }
        task.atomic = atomic;
    }

    /// The task no longer counts for the order of others: it can touch neither medium nor data any more.
    pub(crate) fn leave_order(&mut self, task: &mut Task) {
        if !std::mem::take(&mut task.in_order) {
            return;
        }
        if matches!(task.phase, TaskPhase::Dormant | TaskPhase::Requested) {
            self.dormant = self.dormant.saturating_sub(1);
        }
        self.special = self.special.saturating_sub(u32::from(is_special(task.class, task.atomic)));
        self.atomic = self.atomic.saturating_sub(u32::from(task.atomic));
    }

    /// Whether the dormant task `id` may run, with more than one core or with one.
    pub(crate) fn turn(
        &self,
        tasks: &Slab<Task>,
        id: TaskId,
        freezes: &[Option<ActiveFreeze>; 2],
        many_cores: bool,
    ) -> Turn {
        let Some(task) = tasks.get(id.0) else { return Turn::Wait };
        if task.class == TaskClass::Free {
            return Turn::Run;
        }
        if freezes[1].is_some() {
            return Turn::Wait;
        }
        if !task.granted && freezes[0].is_some_and(|freeze| holds_back(freeze.change, task)) {
            return Turn::Wait;
        }
        if task.granted {
            return Turn::Run;
        }
        if self.special > 0 && self.is_held_back_by_older(tasks, id, task, many_cores) {
            return Turn::Wait;
        }
        match (many_cores, task.class, task.atomic) {
            // HEAD OF QUEUE tasks pass an ORDERED lease; they must not get between the read and the write of this one.
            (true, TaskClass::Ordered, true) => Turn::AskHome(Change::Exclusive(MediumRange::Anything)),
            (true, TaskClass::Ordered, false) => Turn::AskHome(Change::Ordered),
            (true, _, true) => Turn::AskHome(Change::Exclusive(task.range)),
            _ => Turn::Run,
        }
    }

    fn is_held_back_by_older(&self, tasks: &Slab<Task>, id: TaskId, task: &Task, many_cores: bool) -> bool {
        let mut older = true;
        for (other_id, other) in self.list.iter::<SET_LIST>(tasks) {
            if other_id == id {
                // Younger atomic tasks count only while they run.
                if self.atomic == 0 {
                    return false;
                }
                older = false;
                continue;
            }
            if !other.in_order {
                continue;
            }
            // With several cores atomic commands are kept apart by freezes of their range, not by this list.
            let overlaps = !many_cores && (task.atomic || other.atomic) && task.range.overlaps(other.range);
            let waits = if older {
                match order(other.class, task.class) {
                    Order::Run => false,
                    Order::Wait => true,
                    Order::WaitForOverlap => overlaps,
                }
            } else {
                overlaps && matches!(other.phase, TaskPhase::Running | TaskPhase::Parked)
            };
            if waits {
                return true;
            }
        }
        false
    }
}

fn is_special(class: TaskClass, atomic: bool) -> bool {
    atomic || matches!(class, TaskClass::Ordered | TaskClass::HeadOfQueue)
}

/// True when a freeze for `change` keeps `task` from beginning, and waits for it when it runs.
pub(crate) fn holds_back(change: Change, task: &Task) -> bool {
    if task.class == TaskClass::Free {
        return change.aborts();
    }
    match change {
        // A HEAD OF QUEUE task may run although an ORDERED one is before it (SAM-5 §8.6.4).
        Change::Ordered => task.class != TaskClass::HeadOfQueue,
        // What is still in a device that is away comes back from it as it can.
        Change::Medium(MediumChange::Lost { .. } | MediumChange::Absent) => false,
        Change::Exclusive(range) => range != MediumRange::Nothing && task.range.overlaps(range),
        _ => true,
    }
}
