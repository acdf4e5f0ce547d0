//! A task (SAM-5 §4.6): one command from its reception to the last word about it.

use base::{DataBuf, Key, Slab};
use bdev::IoTag;
use wire::scsi::{Cdb, Lun, Sense, Status};

use crate::command_table::CommandEntry;
use crate::message::Ticket;
use crate::ordering_table::{MediumRange, TaskClass};
use crate::{ExchangeId, LogicalUnitId, NexusId, Plan, TaskId, TaskTag};

/// Bursts of one task that can be in flight at a time, whatever `Limits::bursts_per_task_max` says.
pub(crate) const BURSTS_MAX: usize = 4;

/// How far a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskPhase {
    /// Waits for its turn in the task set.
    Dormant,
    /// Its turn on this core; waits for the home core to grant it the unit or the range.
    Requested,
    /// Enabled: may touch the medium and the wire.
    Running,
    /// Waits for the home core to make the change it asked for; touches nothing.
    Parked,
    /// Its status is with the port.
    Ended,
}

/// What the port knows of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortSide {
    /// The exchange is open.
    Open,
    /// Status is on its way; `Delivered` will come.
    StatusSent,
    /// `DataTransferTerminated` will come.
    Terminating,
    /// The port has forgotten it.
    Gone,
}

/// Whether and how a task was aborted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Abort {
    /// No.
    No,
    /// Ends without an answer.
    Silent,
    /// Ends with TASK ABORTED (SPC-5 §7.5.10, TAS).
    Status,
}

/// One part of a command's data on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum BurstPhase {
    /// Unused.
    #[default]
    Free,
    /// Lent to the port to be filled.
    Receiving,
    /// With the device.
    Device,
    /// Read, waits for the bursts before it.
    Ready,
    /// With the port, to be sent.
    Sending,
}

/// One part of a command's data on its way.
#[derive(Debug, Default)]
pub(crate) struct Burst {
    pub(crate) phase: BurstPhase,
    /// Offset in the command's data.
    pub(crate) offset: u64,
    pub(crate) length: u32,
    pub(crate) data: Option<DataBuf>,
}

/// Where a stepped command is. Each step has at most one thing outstanding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Step {
    /// Nothing done for the present chunk.
    #[default]
    Begin,
    /// The cache flush before a forced read, or after the write cache was switched off.
    Flushing,
    /// The chunk's Data-Out is coming.
    Receiving,
    /// The chunk's Data-Out is here.
    Received,
    /// The medium's blocks are being read.
    Reading,
    /// The blocks to compare or combine with are here.
    HaveBoth,
    /// The device is comparing the medium with the first buffer.
    Comparing,
    /// It found none, or nothing wrong with the medium.
    Compared,
    /// The device is checking the medium.
    Verifying,
    /// It found a difference: the medium's blocks are being read, to know where.
    Locating,
    /// The blocks that differ are here.
    Located,
    /// Blocks are being written.
    Writing,
    /// Written; the medium is read back next.
    Written,
    /// Read back after writing.
    ReadingBack,
    /// A discard, zero-write, flush or extent request is out.
    Working,
    /// The device cannot write zeros by itself; the buffer of zeros does it.
    Filling,
}

pub(crate) const NEXUS_LIST: usize = 0;
pub(crate) const SET_LIST: usize = 1;

#[derive(Debug, Clone, Copy, Default)]
struct Link {
    previous: Option<TaskId>,
    next: Option<TaskId>,
}

/// A doubly linked list through the tasks of a slab.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct TaskList {
    head: Option<TaskId>,
    tail: Option<TaskId>,
    length: u32,
}

/// A task.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) nexus: NexusId,
    pub(crate) exchange: ExchangeId,
    pub(crate) lun: Lun,
    pub(crate) unit: Option<LogicalUnitId>,
    pub(crate) read_only: bool,
    pub(crate) tag: TaskTag,
    pub(crate) cdb: Cdb,
    pub(crate) entry: Option<&'static CommandEntry>,
    pub(crate) class: TaskClass,
    pub(crate) atomic: bool,
    pub(crate) range: MediumRange,
    pub(crate) plan: Result<Plan, Sense>,
    /// Epoch of the view that `plan` was made with.
    pub(crate) epoch: u64,
    pub(crate) phase: TaskPhase,
    pub(crate) port: PortSide,
    pub(crate) abort: Abort,
    /// Still counted by its task set's ordering.
    pub(crate) in_order: bool,
    /// In the list of its unit's task set.
    pub(crate) in_set: bool,
    /// Waits for its turn with immediate data.
    pub(crate) holds_dormant_buffer: bool,
    pub(crate) expected_in: Option<u32>,
    pub(crate) expected_out: Option<u32>,
    /// Data-Out that came with the command and is not used yet.
    pub(crate) immediate: Option<DataBuf>,
    /// Bytes the command has to send and wants to get; for residuals.
    pub(crate) data_in_length: u64,
    pub(crate) data_out_length: u64,
    /// Bytes that will be moved: what is needed, cut to what the initiator expects.
    pub(crate) transfer: u64,
    /// Bytes (streams) or blocks (steps) begun, and where to stop.
    pub(crate) next: u64,
    pub(crate) end: u64,
    /// Streams: bytes given to the port to send. Steps: see each.
    pub(crate) done: u64,
    pub(crate) begun: u32,
    pub(crate) step: Step,
    pub(crate) bursts: [Burst; BURSTS_MAX],
    pub(crate) device_ios: u16,
    pub(crate) receiving: u16,
    pub(crate) failure: Option<Sense>,
    pub(crate) waits_for_buffer: bool,
    /// Functions and freezes that count this task.
    pub(crate) covers: u16,
    /// What the home core was asked for, and whether it was granted.
    pub(crate) ticket: Option<Ticket>,
    pub(crate) granted: bool,
    links: [Link; 2],
}

impl Task {
    /// A task as it is received.
    pub(crate) fn new(received: crate::CommandReceived) -> Task {
        Task {
            nexus: received.nexus,
            exchange: received.exchange,
            lun: received.lun,
            unit: None,
            read_only: false,
            tag: received.tag,
            cdb: received.cdb,
            entry: None,
            class: TaskClass::Free,
            atomic: false,
            range: MediumRange::Nothing,
            plan: Ok(Plan::Finish(Status::Good)),
            epoch: 0,
            phase: TaskPhase::Dormant,
            port: PortSide::Open,
            abort: Abort::No,
            in_order: false,
            in_set: false,
            holds_dormant_buffer: false,
            expected_in: received.expected_data_in,
            expected_out: received.expected_data_out,
            immediate: received.data_out,
            data_in_length: 0,
            data_out_length: 0,
            transfer: 0,
            next: 0,
            end: 0,
            done: 0,
            begun: 0,
            step: Step::Begin,
            bursts: Default::default(),
            device_ios: 0,
            receiving: 0,
            failure: None,
            waits_for_buffer: false,
            covers: 0,
            ticket: None,
            granted: false,
            links: [Link::default(); 2],
        }
    }

    /// True while the task may begin new work.
    pub(crate) fn may_work(&self) -> bool {
        self.phase == TaskPhase::Running && self.abort == Abort::No
    }

    /// What may be moved of `needed` bytes towards the initiator.
    pub(crate) fn clip_in(&self, needed: u64) -> u64 {
        needed.min(u64::from(self.expected_in.unwrap_or(u32::MAX)))
    }

    /// What may be moved of `needed` bytes from the initiator.
    pub(crate) fn clip_out(&self, needed: u64) -> u64 {
        needed.min(u64::from(self.expected_out.unwrap_or(u32::MAX)))
    }

    /// Keeps the first failure: the one at the lowest block when blocks are known.
    pub(crate) fn fail(&mut self, sense: Sense) {
        let earlier = |old: &Sense| match (old.information, sense.information) {
            (Some(old), Some(new)) => old <= new,
            _ => true,
        };
        if !self.failure.as_ref().is_some_and(earlier) {
            self.failure = Some(sense);
        }
    }
}

const BURST_SHIFT: u32 = 24;

/// The device's name for burst `burst` of `task`: the task's key with the burst in bits 24 to 31.
pub(crate) fn io_tag(task: TaskId, burst: usize) -> IoTag {
    IoTag(task.0.to_u64() | ((burst as u64 & 0xFF) << BURST_SHIFT))
}

/// The task and the burst of a tag.
pub(crate) fn from_io_tag(tag: IoTag) -> (TaskId, usize) {
    let burst = (tag.0 >> BURST_SHIFT) & 0xFF;
    (TaskId(Key::from_u64(tag.0 & !(0xFF << BURST_SHIFT))), burst as usize)
}

/// The most tasks whose keys leave room for the burst in a tag.
pub(crate) const TASKS_LIMIT: usize = (1 << BURST_SHIFT) - 1;

impl TaskList {
    pub(crate) fn head(&self) -> Option<TaskId> {
        self.head
    }

    pub(crate) fn len(&self) -> u32 {
        self.length
    }

    pub(crate) fn push_back<const LIST: usize>(&mut self, tasks: &mut Slab<Task>, id: TaskId) {
        if let Some(task) = tasks.get_mut(id.0) {
            task.links[LIST] = Link { previous: self.tail, next: None };
        }
        match self.tail.and_then(|tail| tasks.get_mut(tail.0)) {
            Some(tail) => tail.links[LIST].next = Some(id),
            None => self.head = Some(id),
        }
        self.tail = Some(id);
        self.length += 1;
    }

    pub(crate) fn push_front<const LIST: usize>(&mut self, tasks: &mut Slab<Task>, id: TaskId) {
        if let Some(task) = tasks.get_mut(id.0) {
            task.links[LIST] = Link { previous: None, next: self.head };
        }
        match self.head.and_then(|head| tasks.get_mut(head.0)) {
            Some(head) => head.links[LIST].previous = Some(id),
            None => self.tail = Some(id),
        }
        self.head = Some(id);
        self.length += 1;
    }

    /// Takes a task out that is in the list.
    pub(crate) fn remove<const LIST: usize>(&mut self, tasks: &mut Slab<Task>, id: TaskId) {
        let Some(link) = tasks.get_mut(id.0).map(|task| std::mem::take(&mut task.links[LIST])) else {
            return;
        };
        match link.previous.and_then(|task| tasks.get_mut(task.0)) {
            Some(previous) => previous.links[LIST].next = link.next,
            None => self.head = link.next,
        }
        match link.next.and_then(|task| tasks.get_mut(task.0)) {
            Some(next) => next.links[LIST].previous = link.previous,
            None => self.tail = link.previous,
        }
        self.length = self.length.saturating_sub(1);
    }

    pub(crate) fn next<const LIST: usize>(tasks: &Slab<Task>, id: TaskId) -> Option<TaskId> {
        tasks.get(id.0)?.links[LIST].next
    }

    /// The tasks of the list, in order.
    pub(crate) fn iter<'a, const LIST: usize>(
        &self,
        tasks: &'a Slab<Task>,
    ) -> impl Iterator<Item = (TaskId, &'a Task)> + use<'a, LIST> {
        let mut at = self.head;
        std::iter::from_fn(move || {
            let id = at?;
            let task = tasks.get(id.0)?;
            at = task.links[LIST].next;
            Some((id, task))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_names_task_and_burst() {
        let task = TaskId(Key::from_u64((7 << 32) | 4095));
        assert_eq!(from_io_tag(io_tag(task, 5)), (task, 5));
        assert_eq!(from_io_tag(io_tag(task, 0)), (task, 0));
    }
}
