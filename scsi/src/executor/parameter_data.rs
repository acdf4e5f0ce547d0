//! Parameter data to and from the initiator, and the commands whose parameter list names blocks.

use bdev::{BlockOp, Extent, ExtentState};
use wire::scsi::Status;

use crate::parameter;
use crate::target::environment;
use crate::task::{BurstPhase, Step};
use crate::{Effect, ParameterIn, ParameterOut, Target, TaskId, UnitChange, UnitState};

impl Target {
    /// Renders parameter data and sends it, with the status.
    pub(super) fn send_parameter(&mut self, id: TaskId, kind: ParameterIn, allocation_length: u32) {
        let Some(task) = self.tasks.get(id.0) else { return };
        let most = task.clip_in(u64::from(allocation_length)).min(u64::from(self.limits.burst_length_bytes));
        let most = u32::try_from(most).unwrap_or(u32::MAX);
        let data = if most == 0 { None } else { Some(self.take_buffer(id, most, false)) };
        let mut data = match data {
            Some(None) => return,
            Some(data) => data,
            None => None,
        };
        let Some(task) = self.tasks.get_mut(id.0) else { return };
        let Some(nexus) = self.nexuses.get_mut(task.nexus.0) else { return };
        // Nobody hears of a condition that is not sent.
        let consumes =
            most > 0 && task.entry.is_some_and(|e| e.unit_attention == crate::UnitAttentionRule::Consume);
        let attention = if consumes && nexus.has_attention() { nexus.take_attention(task.lun) } else { None };
        if matches!(kind, ParameterIn::ReportLuns { .. }) && nexus.has_attention() && most > 0 {
            // This is what the condition asks the initiator to do (SAM-5 §5.14, UA_INTLCK_CTRL = 00b).
            nexus.clear_attention(crate::unit_attention::UnitAttention::REPORTED_LUNS_CHANGED);
        }
        let mut environment = environment(&self.units, nexus, &self.limits, task);
        environment.pending_sense = attention.map(crate::unit_attention::UnitAttention::sense);
        let full = match data.as_mut() {
            // `render` overwrites all of it: a buffer has somebody else's bytes in it until then.
            Some(data) => kind.render(&environment, data),
            None => kind.render(&environment, &mut []),
        };
        let length = full.min(allocation_length as usize);
        task.data_in_length = length as u64;
        match data {
            Some(mut data) if length > 0 => {
                data.truncate(length);
                self.send_last(id, data);
            }
            _ => self.end(id, Status::Good, None),
        }
    }

    /// Sends the only Data-In of a command, with GOOD status.
    fn send_last(&mut self, id: TaskId, data: base::DataBuf) {
        let Some(task) = self.tasks.get_mut(id.0) else { return };
        task.bursts[0].phase = BurstPhase::Sending;
        let exchange = task.exchange;
        let status = self.tasks.get(id.0).map(|task| self.command_status(task, Status::Good, None));
        self.effects.push_back(Effect::SendDataIn { exchange, task: id, offset: 0, data, status });
        self.status_sent(id);
    }

    /// A parameter list: received, checked, and what it changes asked of the home core.
    pub(super) fn step_parameter_out(&mut self, id: TaskId, kind: ParameterOut) {
        let Some(task) = self.tasks.get(id.0) else { return };
        let length = u32::try_from(task.transfer).unwrap_or(0);
        match task.step {
            Step::Begin if length > 0 => self.obtain_list(id, length),
            Step::Begin | Step::Received => {
                let list = self.take_first(id);
                let Some(task) = self.tasks.get_mut(id.0) else { return };
                let Some(nexus) = self.nexuses.get(task.nexus.0) else { return };
                let environment = environment(&self.units, nexus, &self.limits, task);
                match kind.apply(&environment, list.as_deref().unwrap_or(&[])) {
                    Ok(Some(change)) => {
                        if let UnitChange::ModePages { before, after } = change
                            && before.write_cache_enabled
                            && !after.write_cache_enabled
                        {
                            task.step = Step::Flushing;
                        }
                        self.park(id, change);
                    }
                    Ok(None) => self.end(id, Status::Good, None),
                    Err(sense) => task.fail(sense),
                }
            }
            _ => {}
        }
    }

    /// Checks an UNMAP parameter list as a whole, before any block is touched.
    pub(super) fn check_and_discard(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get_mut(id.0) else { return };
        let Some(nexus) = self.nexuses.get(task.nexus.0) else { return };
        let environment = environment(&self.units, nexus, &self.limits, task);
        let list = task.bursts[0].data.as_deref().unwrap_or(&[]);
        match parameter::unmap_check(list, &environment) {
            Ok(()) => self.next_descriptor(id),
            Err(sense) => task.fail(sense),
        }
    }

    /// The next descriptor of an UNMAP parameter list.
    pub(super) fn next_descriptor(&mut self, id: TaskId) {
        let Some(list) = self.take_first(id) else { return };
        self.discard_next(id, &list);
        if self.tasks.get(id.0).is_some_and(|task| task.may_work()) {
            self.put_first(id, Some(list));
        }
    }

    /// `next` is the descriptor, `done` how many of its blocks are discarded already.
    fn discard_next(&mut self, id: TaskId, list: &[u8]) {
        loop {
            let Some(task) = self.tasks.get_mut(id.0) else { return };
            let Some(nexus) = self.nexuses.get(task.nexus.0) else { return };
            let environment = environment(&self.units, nexus, &self.limits, task);
            let most = environment.unit.map_or(0, |view| view.geometry.provisioning.discard_blocks_max);
            let index = u32::try_from(task.next).unwrap_or(u32::MAX);
            match parameter::unmap_descriptor(list, index, &environment) {
                None => return self.end(id, Status::Good, None),
                Some(Err(sense)) => return task.fail(sense),
                Some(Ok((lba, blocks))) => {
                    let left = u64::from(blocks).saturating_sub(task.done);
                    if left == 0 {
                        task.next += 1;
                        task.done = 0;
                        continue;
                    }
                    let piece = if most == 0 { left } else { left.min(most) };
                    let lba = lba.saturating_add(task.done);
                    task.done += piece;
                    task.step = Step::Working;
                    return self.submit_step(id, BlockOp::Discard, lba, piece, None);
                }
            }
        }
    }

    /// GET LBA STATUS: asks the device for one extent after the other while there is room for a descriptor.
    /// `next` is the offset from the starting block, `done` the descriptors rendered.
    pub(super) fn step_lba_status(&mut self, id: TaskId, lba: u64, allocation_length: u32) {
        let Some(task) = self.tasks.get(id.0) else { return };
        if !matches!(task.step, Step::Begin | Step::HaveBoth) {
            return;
        }
        let Some(view) = task.unit.and_then(|unit| self.unit(unit)).map(|unit| &unit.view) else { return };
        let (capacity, reports) = (view.geometry.blocks, view.geometry.provisioning.reports_extents);
        let ready = view.state == UnitState::Ready;
        if task.step == Step::Begin {
            // At least one descriptor is always made, and cut to the allocation length afterwards.
            let most = parameter::lba_status_length(parameter::LBA_STATUS_DESCRIPTORS_MAX);
            let room = (allocation_length as usize).clamp(parameter::lba_status_length(1), most);
            let room = u32::try_from(room).unwrap_or(u32::MAX);
            let Some(mut data) = self.take_buffer(id, room, false) else { return };
            data.fill(0);
            self.put_first(id, Some(data));
            if let Some(task) = self.tasks.get_mut(id.0) {
                task.step = Step::HaveBoth;
            }
        }
        let Some(task) = self.tasks.get_mut(id.0) else { return };
        let at = lba.saturating_add(task.next);
        let room = task.bursts[0].data.as_ref().map_or(0, |data| data.len());
        let descriptors = u32::try_from(task.done).unwrap_or(u32::MAX);
        let fits = descriptors < parameter::LBA_STATUS_DESCRIPTORS_MAX
            && parameter::lba_status_length(descriptors.saturating_add(1)) <= room;
        if at >= capacity || !fits || !ready {
            return self.finish_lba_status(id, allocation_length);
        }
        let blocks = capacity - at;
        if !reports {
            return self.extent_known(id, Extent { state: ExtentState::Mapped, blocks });
        }
        task.step = Step::Working;
        self.submit_step(id, BlockOp::Extent, at, blocks.min(u64::from(u32::MAX)), None);
    }

    /// Writes the descriptor of an extent.
    pub(super) fn extent_known(&mut self, id: TaskId, extent: Extent) {
        let Some(task) = self.tasks.get_mut(id.0) else { return };
        let lba = match task.plan {
            Ok(crate::Plan::LbaStatus { lba, .. }) => lba.saturating_add(task.next),
            _ => return,
        };
        let mut blocks = 1;
        if let Some(data) = task.bursts[0].data.as_mut() {
            blocks =
                parameter::lba_status_descriptor(u32::try_from(task.done).unwrap_or(0), lba, extent, data)
                    .max(1);
        }
        task.done += 1;
        task.next = task.next.saturating_add(u64::from(blocks));
        task.step = Step::Begin;
        if task.bursts[0].data.is_some() {
            task.step = Step::HaveBoth;
        }
        if let Ok(crate::Plan::LbaStatus { lba, allocation_length }) = task.plan {
            self.step_lba_status(id, lba, allocation_length);
        }
    }

    fn finish_lba_status(&mut self, id: TaskId, allocation_length: u32) {
        let Some(mut data) = self.take_first(id) else { return };
        let Some(task) = self.tasks.get_mut(id.0) else { return };
        let descriptors = u32::try_from(task.done).unwrap_or(0);
        parameter::lba_status_header(descriptors, &mut data);
        let full = parameter::lba_status_length(descriptors);
        let wanted = full.min(allocation_length as usize);
        task.data_in_length = wanted as u64;
        let sent = usize::try_from(task.clip_in(wanted as u64)).unwrap_or(0);
        if sent == 0 {
            return self.end(id, Status::Good, None);
        }
        data.truncate(sent);
        self.send_last(id, data);
    }
}
