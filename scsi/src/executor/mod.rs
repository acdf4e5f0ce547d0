//! The task executor: carries a [`Plan`] out, in bursts. `streaming.rs` has the commands whose bursts are independent
//! of each other (READ, WRITE, VERIFY of the medium), `stepped.rs` those that go one step after the other.

mod device_error;
mod parameter_data;
mod stepped;
mod streaming;

use base::DataBuf;
use bdev::{BlockIo, BlockOp, IoCompletion};
use wire::scsi::{Sense, SenseKey, Status};

use crate::message::{Change, Message, NexusReference, Ticket};
use crate::target::{TicketHolder, environment};
use crate::task::{Abort, BurstPhase, Step, TaskPhase, io_tag};
use crate::{Effect, LogicalUnitId, Plan, Target, TaskId, UnitChange};

pub(crate) use device_error::Access;

/// DATA PHASE ERROR: the port delivered another length than was asked for.
const DATA_PHASE_ERROR: Sense = Sense::new(SenseKey::AbortedCommand, 0x4B, 0x00);

/// Zero-writes and verifications go out in pieces of at most this many blocks, so that an abort does not wait long.
const PIECE_BLOCKS: u64 = 1 << 20;

impl Target {
    /// Begins the work of a task whose turn has come.
    pub(crate) fn begin(&mut self, id: TaskId, plan: Plan) {
        let Some(task) = self.tasks.get_mut(id.0) else { return };
        let Some(nexus) = self.nexuses.get(task.nexus.0) else { return };
        let environment = environment(&self.units, nexus, &self.limits, task);
        (task.data_in_length, task.data_out_length) = plan.data_lengths(&environment);
        let block_size = environment.unit.map_or(1, |view| u64::from(view.geometry.block_size));
        let flush_first = environment.unit.is_some_and(|view| view.geometry.write_cache);
        match plan {
            Plan::Finish(status) => return self.end(id, status, None),
            // There is no cache of ours to fetch into, so the blocks do not fit in it: GOOD (SBC-4 §5.14).
            Plan::PreFetch { .. } => return self.end(id, Status::Good, None),
            Plan::Change(change) => return self.park(id, change),
            Plan::Read { fua, .. } => {
                task.transfer = task.clip_in(task.data_in_length);
                task.end = task.transfer.next_multiple_of(block_size);
                if fua && flush_first && task.end > 0 {
                    task.step = Step::Flushing;
                    return self.submit_step(id, BlockOp::Flush, 0, 0, None);
                }
            }
            Plan::Write { .. } => {
                let usable = task.clip_out(task.data_out_length);
                task.transfer = usable - usable % block_size;
                task.end = task.transfer;
            }
            Plan::VerifyMedium { blocks, .. } => {
                task.end = u64::from(blocks) * block_size;
            }
            _ => {
                if let Err(sense) = plan.check_data_out(&environment, &task.cdb, task.expected_out) {
                    return self.end(id, Status::CheckCondition, Some(sense));
                }
                self.begin_stepped(id, plan, block_size);
            }
        }
        self.advance(id);
    }

    /// Does whatever can be done for a running task now.
    pub(crate) fn advance(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get(id.0) else { return };
        if !task.may_work() {
            return;
        }
        match task.plan {
            _ if task.step == Step::Flushing => {}
            Ok(Plan::Read { lba, .. }) => self.advance_read(id, lba, true),
            Ok(Plan::VerifyMedium { lba, .. }) if self.capabilities(task.unit).verify => {
                self.advance_verify(id, lba);
            }
            Ok(Plan::VerifyMedium { lba, .. }) => self.advance_read(id, lba, false),
            Ok(Plan::Write { lba, fua, .. }) => self.advance_write(id, lba, fua),
            Ok(plan) => self.advance_stepped(id, plan),
            Err(sense) => self.end(id, Status::CheckCondition, Some(sense)),
        }
    }

    /// Bytes of a full burst of whole blocks.
    fn burst_bytes(&self, block_size: u32) -> u32 {
        let burst = self.limits.burst_length_bytes;
        (burst - burst % block_size.max(1)).max(block_size)
    }

    fn block_size(&self, unit: Option<LogicalUnitId>) -> u32 {
        unit.and_then(|unit| self.unit(unit)).map_or(1, |unit| unit.view.geometry.block_size.max(1))
    }

    /// What the unit's device does beyond the ordinary.
    fn capabilities(&self, unit: Option<LogicalUnitId>) -> bdev::Capabilities {
        unit.and_then(|unit| self.unit(unit)).map(|unit| unit.view.geometry.capabilities).unwrap_or_default()
    }

    /// True when a write must reach stable media before it is answered: FUA, or no write cache allowed.
    fn is_forced(&self, unit: Option<LogicalUnitId>, fua: bool) -> bool {
        fua || !unit.and_then(|unit| self.unit(unit)).is_some_and(|unit| unit.view.mode.write_cache_enabled)
    }

    /// A buffer for the task, or a place in the queue for one. A task with something in flight comes back by itself
    /// and does not queue: so whoever queues holds nothing, and every task gets along with what it takes at once.
    fn take_buffer(&mut self, id: TaskId, length: u32, in_flight: bool) -> Option<DataBuf> {
        let may_take = self.serving || self.buffer_waiters.is_empty();
        let data = if may_take { self.pool.acquire(length) } else { None };
        if data.is_none() && !in_flight {
            self.wait_for_buffer(id);
        }
        data
    }

    fn wait_for_buffer(&mut self, id: TaskId) {
        if let Some(task) = self.tasks.get_mut(id.0)
            && !std::mem::replace(&mut task.waits_for_buffer, true)
            && !self.serving
        {
            self.buffer_waiters.push_back(id);
        }
    }

    /// Submits burst `burst` of the task.
    fn submit(
        &mut self,
        id: TaskId,
        burst: usize,
        op: BlockOp,
        lba: u64,
        blocks: u64,
        data: Option<DataBuf>,
    ) {
        let Some(task) = self.tasks.get_mut(id.0) else { return };
        let Some(unit) = task.unit else { return };
        task.device_ios += 1;
        let io = BlockIo { tag: io_tag(id, burst), op, lba, blocks, data };
        self.effects.push_back(Effect::Submit { unit, io });
    }

    /// Submits the one request of a stepped command.
    fn submit_step(&mut self, id: TaskId, op: BlockOp, lba: u64, blocks: u64, data: Option<DataBuf>) {
        self.submit(id, 0, op, lba, blocks, data);
    }

    pub(crate) fn io_completed(&mut self, unit: LogicalUnitId, id: TaskId, burst: usize, io: IoCompletion) {
        if let Err(error) = &io.result {
            self.notify_error(unit, *error);
        }
        let Some(task) = self.tasks.get_mut(id.0) else { return };
        task.device_ios = task.device_ios.saturating_sub(1);
        if !task.may_work() {
            drop(io);
            return self.settle(id);
        }
        match task.plan {
            Ok(Plan::Read { lba, .. }) if task.step == Step::Flushing => {
                task.step = Step::Begin;
                if let Err(error) = io.result {
                    task.fail(device_error::sense(error, Access::Write, lba));
                    let failure = task.failure;
                    return self.end(id, Status::CheckCondition, failure);
                }
            }
            Ok(Plan::VerifyMedium { lba, .. }) if task.step == Step::Verifying => {
                task.step = Step::Begin;
                if let Err(error) = io.result {
                    let at = lba.saturating_add(task.done);
                    task.fail(device_error::sense(error, Access::Read, at));
                }
            }
            Ok(Plan::Read { lba, .. } | Plan::VerifyMedium { lba, .. }) => {
                self.burst_read(id, burst, lba, io);
            }
            Ok(Plan::Write { lba, .. }) => self.burst_written(id, burst, lba, io),
            // The flush that goes with a change.
            Ok(Plan::Change(_) | Plan::ParameterOut { .. }) => match io.result {
                Ok(_) => self.end(id, Status::Good, None),
                Err(error) => {
                    let sense = device_error::sense(error, Access::Write, 0);
                    self.end(id, Status::CheckCondition, Some(sense));
                }
            },
            Ok(plan) => self.step_completed(id, plan, io),
            Err(_) => {}
        }
        self.advance(id);
    }

    pub(crate) fn data_out_received(&mut self, id: TaskId, offset: u32, result: Result<DataBuf, Sense>) {
        let Some(task) = self.tasks.get_mut(id.0) else { return };
        task.receiving = task.receiving.saturating_sub(1);
        if !task.may_work() {
            drop(result);
            return self.settle(id);
        }
        match task.plan {
            Ok(Plan::Write { lba, fua, .. }) => self.burst_received(id, u64::from(offset), lba, fua, result),
            Ok(_) => self.step_received(id, result),
            Err(_) => {}
        }
        self.advance(id);
    }

    pub(crate) fn data_in_delivered(&mut self, id: TaskId, offset: u32) {
        let Some(task) = self.tasks.get_mut(id.0) else { return };
        for burst in &mut task.bursts {
            if burst.phase == BurstPhase::Sending && burst.offset == u64::from(offset) {
                burst.phase = BurstPhase::Free;
            }
        }
        self.advance(id);
    }

    /// Ends a command that failed, as soon as nothing of it is outstanding. True when it has failed.
    fn end_if_failed(&mut self, id: TaskId) -> bool {
        let Some(task) = self.tasks.get(id.0) else { return true };
        let Some(failure) = task.failure else { return false };
        if task.device_ios == 0 && task.receiving == 0 {
            self.end(id, Status::CheckCondition, Some(failure));
        }
        true
    }

    /// Asks the home core for a change of the unit's state; the task touches nothing until the answer.
    fn park(&mut self, id: TaskId, change: UnitChange) {
        let Some(unit) = self.tasks.get(id.0).and_then(|task| task.unit) else { return };
        let Some(home) = self.unit(unit).map(|unit| unit.home_core) else { return };
        // An ORDERED task gives its lease back first: its change would queue behind it.
        self.release_lease(id);
        let ticket = self.ticket(TicketHolder::Task(id));
        let Some(task) = self.tasks.get_mut(id.0) else { return };
        task.phase = TaskPhase::Parked;
        task.ticket = Some(ticket);
        let origin = Some(NexusReference { core: self.core, nexus: task.nexus });
        // A parked task must not hold up the changes before its own.
        self.uncover_from_drains(id);
        self.send(home, Message::ChangeRequested { unit, ticket, change: Change::Unit(change), origin });
    }

    /// The change a task was parked for is made, or could not be made.
    pub(crate) fn unpark(&mut self, id: TaskId, ticket: Ticket, result: Result<(), Sense>) {
        let Some(task) = self.tasks.get_mut(id.0) else { return };
        if task.phase != TaskPhase::Parked || task.ticket != Some(ticket) {
            return;
        }
        task.ticket = None;
        task.phase = TaskPhase::Running;
        let (abort, plan, unit, nexus) = (task.abort, task.plan, task.unit, task.nexus);
        let flushes = task.step == Step::Flushing;
        if abort != Abort::No {
            let is_lost = self.nexuses.get(nexus.0).is_none_or(|nexus| nexus.closing);
            if let (Ok(Plan::Change(UnitChange::PreventRemoval(true))), Some(unit), true) =
                (plan, unit, is_lost)
            {
                // Its nexus closed when it did not prevent anything yet, and was not asked to forget it.
                self.forget_prevention(unit, nexus);
            }
            return self.settle(id);
        }
        match result {
            // What the unit answered before is in the cache; now that it is stopped, or that every write is forced, nothing
            // more comes.
            Ok(())
                if flushes || matches!(plan, Ok(Plan::Change(UnitChange::StartStop { flush: true, .. }))) =>
            {
                self.submit_step(id, BlockOp::Flush, 0, 0, None);
            }
            Ok(()) => self.end(id, Status::Good, None),
            Err(sense) => self.end(id, Status::CheckCondition, Some(sense)),
        }
    }
}
