//! Commands that go one step after the other: at most one thing is outstanding, buffers are taken all at once before
//! the first step and kept to the end. `bursts[0].data` is the first buffer (Data-Out), `bursts[1].data` the second
//! (blocks of the medium, or the pattern to write).

use base::DataBuf;
use bdev::{BlockOp, IoCompletion};
use wire::scsi::{Sense, SenseKey, Status};

use super::{Access, DATA_PHASE_ERROR, PIECE_BLOCKS, device_error};
use crate::task::{Step, TaskPhase};
use crate::{Effect, Plan, Target, TaskId};

impl Target {
    /// Sets the bounds of a stepped command.
    pub(super) fn begin_stepped(&mut self, id: TaskId, plan: Plan, block_size: u64) {
        let Some(task) = self.tasks.get_mut(id.0) else { return };
        let out = task.clip_out(task.data_out_length);
        task.transfer = out;
        task.end = match plan {
            // Blocks whose data the initiator does not bring are not touched.
            Plan::VerifyCompare { blocks, one_block: false, .. }
            | Plan::WriteAndVerify { blocks, .. }
            | Plan::OrWrite { blocks, .. } => u64::from(blocks).min(out / block_size),
            Plan::VerifyCompare { blocks, .. }
            | Plan::CompareAndWrite { blocks, .. }
            | Plan::WriteAtomic { blocks, .. } => u64::from(blocks),
            Plan::WriteSame { blocks, .. } => blocks,
            _ => 0,
        };
        let needs = match plan {
            Plan::VerifyCompare { one_block: true, .. } | Plan::WriteSame { no_data_out: false, .. } => {
                block_size
            }
            Plan::CompareAndWrite { blocks, .. } => u64::from(blocks) * block_size * 2,
            Plan::WriteAtomic { blocks, .. } => u64::from(blocks) * block_size,
            _ => 0,
        };
        let one_burst = matches!(
            plan,
            Plan::CompareAndWrite { .. }
                | Plan::WriteAtomic { .. }
                | Plan::Unmap { .. }
                | Plan::ParameterOut { .. }
        );
        let too_long = one_burst && out > u64::from(self.limits.burst_length_bytes);
        if (task.end > 0 && out < needs) || too_long {
            // The initiator brings less than the command cannot do without.
            task.fail(Sense::invalid_field_in_cdb(0, None));
        }
    }

    /// Takes the next steps of a command, until one is outstanding.
    pub(super) fn advance_stepped(&mut self, id: TaskId, plan: Plan) {
        if self.end_if_failed(id) {
            return;
        }
        loop {
            let Some(task) = self.tasks.get(id.0) else { return };
            if !task.may_work() || task.device_ios > 0 || task.receiving > 0 {
                return;
            }
            let step = task.step;
            match plan {
                Plan::VerifyCompare { .. } | Plan::WriteAndVerify { .. } | Plan::OrWrite { .. } => {
                    self.step_chunk(id, plan);
                }
                Plan::CompareAndWrite { lba, blocks, fua } => {
                    self.step_compare_and_write(id, lba, blocks, fua)
                }
                Plan::WriteAtomic { lba, blocks, fua } => self.step_write_atomic(id, lba, blocks, fua),
                Plan::WriteSame { lba, unmap, no_data_out, .. } => {
                    self.step_write_same(id, lba, unmap, no_data_out)
                }
                Plan::Synchronize { lba, blocks, immediate } => {
                    self.step_synchronize(id, lba, blocks, immediate)
                }
                Plan::Unmap { .. } => self.step_unmap(id),
                Plan::ParameterOut { kind, .. } => self.step_parameter_out(id, kind),
                Plan::ParameterIn { kind, allocation_length } => {
                    self.send_parameter(id, kind, allocation_length)
                }
                Plan::LbaStatus { lba, allocation_length } => {
                    self.step_lba_status(id, lba, allocation_length)
                }
                _ => return,
            }
            if self.end_if_failed(id) {
                return;
            }
            let is_same = |task: &crate::task::Task| task.step == step && task.phase == TaskPhase::Running;
            if self.tasks.get(id.0).is_none_or(is_same) {
                return;
            }
        }
    }

    fn set_step(&mut self, id: TaskId, step: Step) {
        if let Some(task) = self.tasks.get_mut(id.0) {
            task.step = step;
        }
    }

    pub(super) fn take_first(&mut self, id: TaskId) -> Option<DataBuf> {
        self.tasks.get_mut(id.0)?.bursts[0].data.take()
    }

    fn take_second(&mut self, id: TaskId) -> Option<DataBuf> {
        self.tasks.get_mut(id.0)?.bursts[1].data.take()
    }

    pub(super) fn put_first(&mut self, id: TaskId, data: Option<DataBuf>) {
        if let Some(task) = self.tasks.get_mut(id.0) {
            task.bursts[0].data = data;
        }
    }

    fn put_second(&mut self, id: TaskId, data: Option<DataBuf>) {
        if let Some(task) = self.tasks.get_mut(id.0) {
            task.bursts[1].data = data;
        }
    }

    /// Gets `length` bytes of Data-Out at `offset` into the first buffer, and room for `second` bytes into the second
    /// one. Buffers are taken all or none. `direct` lets immediate data be the first buffer itself.
    fn obtain(&mut self, id: TaskId, offset: u64, length: u32, second: u32, direct: bool) {
        let Some(task) = self.tasks.get_mut(id.0) else { return };
        let here = task
            .immediate
            .as_ref()
            .map_or(0, |data| u32::try_from(data.len()).unwrap_or(u32::MAX))
            .min(length);
        let whole = here == length;
        let mut first = task.bursts[0].data.take();
        let mut other = task.bursts[1].data.take();
        if first.is_none()
            && direct
            && whole
            && let Some(mut immediate) = task.immediate.take()
        {
            immediate.truncate(length as usize);
            first = Some(immediate);
        }
        let is_direct = first.is_some() && direct && whole;
        if first.is_none() {
            first = self.take_buffer(id, length, false);
        }
        if other.is_none() && second > 0 && first.is_some() {
            other = self.take_buffer(id, second, false);
        }
        // Data that is here in part needs a third buffer for the rest.
        let rest = length - here;
        let staging =
            if here > 0 && rest > 0 && first.is_some() { self.take_buffer(id, rest, false) } else { None };
        let complete = first.is_some()
            && (second == 0 || other.is_some())
            && (here == 0 || rest == 0 || staging.is_some());
        let Some(task) = self.tasks.get_mut(id.0) else { return };
        if !complete {
            // Give back what was taken: whoever queues holds nothing, except the data that came with the command.
            if is_direct {
                task.immediate = first;
            }
            return;
        }
        if let Some(other) = other.as_mut() {
            other.truncate(second as usize);
        }
        task.bursts[1].data = other;
        let Some(mut first) = first else { return };
        first.truncate(length as usize);
        if is_direct {
            task.bursts[0].data = Some(first);
            task.step = Step::Received;
            return;
        }
        if here > 0 {
            let part = task.immediate.as_mut().map(|immediate| immediate.split_to(here as usize));
            if let (Some(part), Some(front)) = (part, first.get_mut(..here as usize)) {
                front.copy_from_slice(&part);
                self.payload_bytes_copied += u64::from(here);
            }
            if task.immediate.as_ref().is_some_and(|immediate| immediate.is_empty()) {
                task.immediate = None;
            }
        }
        if whole {
            task.bursts[0].data = Some(first);
            task.step = Step::Received;
            return;
        }
        task.step = Step::Receiving;
        task.receiving += 1;
        task.bursts[0].length = length;
        let exchange = task.exchange;
        let data = match staging {
            Some(staging) => {
                task.bursts[0].data = Some(first);
                staging
            }
            None => first,
        };
        let offset = u32::try_from(offset + u64::from(here)).unwrap_or(u32::MAX);
        self.effects.push_back(Effect::ReceiveDataOut { exchange, task: id, offset, data });
    }

    /// Gets a whole parameter list of `length` bytes.
    pub(super) fn obtain_list(&mut self, id: TaskId, length: u32) {
        self.obtain(id, 0, length, 0, true);
    }

    /// The Data-Out of a step is here, or will never be.
    pub(super) fn step_received(&mut self, id: TaskId, result: Result<DataBuf, Sense>) {
        let Some(task) = self.tasks.get_mut(id.0) else { return };
        if task.step != Step::Receiving {
            return;
        }
        task.step = Step::Received;
        let length = task.bursts[0].length as usize;
        let data = match (result, task.bursts[0].data.take()) {
            (Ok(data), None) if data.len() == length => data,
            (Ok(data), Some(mut whole)) => {
                let rest = whole.len().checked_sub(data.len()).and_then(|at| whole.get_mut(at..));
                let Some(rest) = rest else { return task.fail(DATA_PHASE_ERROR) };
                rest.copy_from_slice(&data);
                self.payload_bytes_copied += data.len() as u64;
                whole
            }
            (Ok(_), None) => return task.fail(DATA_PHASE_ERROR),
            (Err(sense), _) => return task.fail(sense),
        };
        task.bursts[0].data = Some(data);
    }

    /// The device finished a step.
    pub(super) fn step_completed(&mut self, id: TaskId, plan: Plan, io: IoCompletion) {
        let Some(task) = self.tasks.get_mut(id.0) else { return };
        let step = task.step;
        if let Err(error) = io.result {
            if matches!(plan, Plan::WriteSame { .. })
                && step == Step::Working
                && error == bdev::BlockError::Unsupported
            {
                task.step = Step::Filling;
                return;
            }
            if step == Step::Comparing && error == bdev::BlockError::Miscompare {
                task.bursts[0].data = io.data;
                task.step = Step::Locating;
                return;
            }
            let lba = plan_lba(&plan).saturating_add(task.next);
            let reads = matches!(
                step,
                Step::Reading | Step::ReadingBack | Step::Comparing | Step::Locating | Step::Verifying
            );
            let access = if reads { Access::Read } else { Access::Write };
            return task.fail(device_error::sense(error, access, lba));
        }
        match step {
            Step::Reading | Step::ReadingBack => {
                task.bursts[1].data = io.data;
                task.step = Step::HaveBoth;
            }
            Step::Comparing => {
                task.bursts[0].data = io.data;
                task.step = Step::Compared;
            }
            Step::Locating => {
                task.bursts[1].data = io.data;
                task.step = Step::Located;
            }
            Step::Verifying => task.step = Step::Compared,
            Step::Writing => {
                let to_first = matches!(plan, Plan::WriteAndVerify { .. });
                task.bursts[usize::from(!to_first)].data = io.data;
                task.step = Step::Written;
                if matches!(plan, Plan::WriteSame { .. }) {
                    task.next += task.done;
                }
            }
            _ => {
                self.step_worked(id, plan, io.result.unwrap_or(bdev::IoValue::Done));
            }
        }
    }

    /// The present chunk: its first block, blocks, bytes and offset in Data-Out.
    fn chunk(&self, id: TaskId, lba: u64) -> Option<(u64, u64, u32, u64)> {
        let task = self.tasks.get(id.0)?;
        let block_size = self.block_size(task.unit);
        let blocks = (task.end - task.next).min(u64::from(self.burst_bytes(block_size) / block_size));
        let bytes = u32::try_from(blocks * u64::from(block_size)).ok()?;
        Some((lba.saturating_add(task.next), blocks, bytes, task.next * u64::from(block_size)))
    }

    fn next_chunk(&mut self, id: TaskId, blocks: u64) {
        if let Some(task) = self.tasks.get_mut(id.0) {
            task.next += blocks;
            task.step = Step::Begin;
        }
    }

    /// VERIFY with data, WRITE AND VERIFY, ORWRITE: chunk by chunk.
    fn step_chunk(&mut self, id: TaskId, plan: Plan) {
        let lba = plan_lba(&plan);
        let Some((lba, blocks, bytes, offset)) = self.chunk(id, lba) else { return };
        let Some(task) = self.tasks.get(id.0) else { return };
        let (step, unit, is_last_chunk) = (task.step, task.unit, task.next == 0 && blocks == task.end);
        let able = self.capabilities(unit);
        let one_block = matches!(plan, Plan::VerifyCompare { one_block: true, .. });
        match (step, plan) {
            (Step::Begin, _) if blocks == 0 => self.end(id, Status::Good, None),
            (Step::Begin, _) if one_block && offset > 0 => {
                let length = bytes as usize;
                let mut second = self.take_second(id);
                if let Some(second) = second.as_mut() {
                    second.truncate(length);
                }
                self.put_second(id, second);
                self.set_step(id, Step::Received);
            }
            (Step::Begin, _) => {
                let length = if one_block { self.block_size(unit) } else { bytes };
                self.obtain(id, offset, length, bytes, is_last_chunk || one_block);
            }
            (Step::Received, Plan::WriteAndVerify { .. }) => {
                let data = self.take_first(id);
                self.set_step(id, Step::Writing);
                self.submit_step(id, BlockOp::Write { fua: true }, lba, blocks, data);
            }
            // The device compares: no data comes back, unless there is a difference to be found.
            (Step::Received, Plan::VerifyCompare { one_block: false, .. })
            | (Step::Written, Plan::WriteAndVerify { compare: true, .. })
                if able.compare =>
            {
                let data = self.take_first(id);
                self.set_step(id, Step::Comparing);
                self.submit_step(id, BlockOp::Compare, lba, blocks, data);
            }
            (Step::Compared, _) => self.next_chunk(id, blocks),
            (Step::Locating, _) => {
                let data = self.take_second(id);
                self.submit_step(id, BlockOp::Read, lba, blocks, data);
            }
            (Step::Located, _) => {
                let at = self.first_difference(id, false).map(|at| offset + at as u64);
                self.miscompare(id, at);
            }
            (Step::Received, _) => {
                let data = self.take_second(id);
                self.set_step(id, Step::Reading);
                self.submit_step(id, BlockOp::Read, lba, blocks, data);
            }
            (Step::Written, Plan::WriteAndVerify { compare: false, .. }) if able.verify => {
                self.set_step(id, Step::Verifying);
                self.submit_step(id, BlockOp::Verify, lba, blocks, None);
            }
            (Step::Written, Plan::WriteAndVerify { .. }) => {
                let data = self.take_second(id);
                self.set_step(id, Step::ReadingBack);
                self.submit_step(id, BlockOp::Read, lba, blocks, data);
            }
            (Step::Written, _) => self.next_chunk(id, blocks),
            (Step::HaveBoth, Plan::OrWrite { fua, .. }) => {
                let first = self.take_first(id);
                let mut second = self.take_second(id);
                if let (Some(first), Some(second)) = (&first, &mut second) {
                    for (to, from) in second.iter_mut().zip(first.iter()) {
                        *to |= from;
                    }
                }
                self.put_first(id, first);
                self.set_step(id, Step::Writing);
                let op = BlockOp::Write { fua: self.is_forced(unit, fua) };
                self.submit_step(id, op, lba, blocks, second);
            }
            (Step::HaveBoth, Plan::WriteAndVerify { compare: false, .. }) => self.next_chunk(id, blocks),
            (Step::HaveBoth, _) => match self.first_difference(id, one_block) {
                None => self.next_chunk(id, blocks),
                Some(at) => self.miscompare(id, Some(offset + at as u64)),
            },
            _ => {}
        }
    }

    /// The offset of the first byte where the two buffers differ.
    fn first_difference(&self, id: TaskId, one_block: bool) -> Option<usize> {
        let task = self.tasks.get(id.0)?;
        let (Some(first), Some(second)) = (&task.bursts[0].data, &task.bursts[1].data) else {
            return Some(0);
        };
        let (first, second): (&[u8], &[u8]) = (first, second);
        if !one_block {
            let second = second.get(..second.len().min(first.len()))?;
            if first.get(..second.len())? == second {
                return None;
            }
            return first.iter().zip(second).position(|(a, b)| a != b);
        }
        second.chunks(first.len().max(1)).enumerate().find_map(|(number, block)| {
            let differs = first.iter().zip(block).position(|(a, b)| a != b)?;
            Some(number * first.len() + differs)
        })
    }

    /// MISCOMPARE DURING VERIFY OPERATION; INFORMATION is the offset of the first byte that differs (SBC-4 §5.3). Not
    /// known when the device found a difference that was not there any more when the blocks were read.
    fn miscompare(&mut self, id: TaskId, offset: Option<u64>) {
        if let Some(task) = self.tasks.get_mut(id.0) {
            task.fail(Sense { information: offset, ..Sense::new(SenseKey::Miscompare, 0x1D, 0x00) });
        }
    }

    /// The whole of it is one request: whatever happens to it happens to all of its blocks.
    fn step_write_atomic(&mut self, id: TaskId, lba: u64, blocks: u32, fua: bool) {
        let Some(task) = self.tasks.get(id.0) else { return };
        let (step, unit) = (task.step, task.unit);
        match step {
            Step::Begin if blocks == 0 => self.end(id, Status::Good, None),
            Step::Begin => self.obtain(id, 0, blocks * self.block_size(unit), 0, true),
            Step::Received => {
                let data = self.take_first(id);
                self.set_step(id, Step::Writing);
                let op = BlockOp::Write { fua: self.is_forced(unit, fua) };
                self.submit_step(id, op, lba, u64::from(blocks), data);
            }
            Step::Written => self.end(id, Status::Good, None),
            _ => {}
        }
    }

    fn step_compare_and_write(&mut self, id: TaskId, lba: u64, blocks: u32, fua: bool) {
        let Some(task) = self.tasks.get(id.0) else { return };
        let (step, unit) = (task.step, task.unit);
        let bytes = blocks * self.block_size(unit);
        match step {
            Step::Begin if blocks == 0 => self.end(id, Status::Good, None),
            Step::Begin => {
                self.obtain(id, 0, bytes * 2, bytes, true);
            }
            Step::Received => {
                let data = self.take_second(id);
                self.set_step(id, Step::Reading);
                self.submit_step(id, BlockOp::Read, lba, u64::from(blocks), data);
            }
            Step::HaveBoth => match self.first_difference(id, false) {
                Some(at) => self.miscompare(id, Some(at as u64)),
                None => {
                    let data = self.take_first(id).map(|mut first| {
                        drop(first.split_to(first.len().min(bytes as usize)));
                        first
                    });
                    self.set_step(id, Step::Writing);
                    let op = BlockOp::Write { fua: self.is_forced(unit, fua) };
                    self.submit_step(id, op, lba, u64::from(blocks), data);
                }
            },
            Step::Written => self.end(id, Status::Good, None),
            _ => {}
        }
    }

    fn step_write_same(&mut self, id: TaskId, lba: u64, unmap: bool, no_data_out: bool) {
        let Some(task) = self.tasks.get(id.0) else { return };
        let (step, unit, remaining, next) = (task.step, task.unit, task.end - task.next, task.next);
        let block_size = self.block_size(unit);
        let chunk_blocks = remaining.min(u64::from(self.burst_bytes(block_size) / block_size));
        let chunk = u32::try_from(chunk_blocks * u64::from(block_size)).unwrap_or(block_size);
        let fua = self.is_forced(unit, false);
        match step {
            _ if remaining == 0 => self.end(id, Status::Good, None),
            Step::Begin if no_data_out => self.zero_piece(id, lba, unmap),
            Step::Begin => {
                self.obtain(id, 0, block_size, chunk, true);
            }
            Step::Received => {
                let Some(first) = self.take_first(id) else { return };
                if first.iter().all(|&byte| byte == 0) {
                    self.put_second(id, None);
                    drop(first);
                    return self.zero_piece(id, lba, unmap);
                }
                let mut second = self.take_second(id);
                for block in second.iter_mut().flat_map(|second| second.chunks_mut(block_size as usize)) {
                    let length = block.len().min(first.len());
                    if let (Some(block), Some(first)) = (block.get_mut(..length), first.get(..length)) {
                        block.copy_from_slice(first);
                    }
                }
                self.put_second(id, second);
                self.set_step(id, Step::Written);
            }
            Step::Filling => {
                let Some(mut zeros) = self.take_buffer(id, chunk, false) else { return };
                zeros.fill(0);
                self.put_second(id, Some(zeros));
                self.set_step(id, Step::Written);
            }
            Step::Written => {
                let mut data = self.take_second(id);
                if let Some(data) = data.as_mut() {
                    data.truncate(chunk as usize);
                }
                if let Some(task) = self.tasks.get_mut(id.0) {
                    task.done = chunk_blocks;
                    task.step = Step::Writing;
                }
                self.submit_step(id, BlockOp::Write { fua }, lba.saturating_add(next), chunk_blocks, data);
            }
            Step::Working => self.zero_piece(id, lba, unmap),
            _ => {}
        }
    }

    /// One piece of zeros by the device itself.
    fn zero_piece(&mut self, id: TaskId, lba: u64, unmap: bool) {
        let Some(task) = self.tasks.get_mut(id.0) else { return };
        let blocks = (task.end - task.next).min(PIECE_BLOCKS);
        task.step = Step::Working;
        let (lba, unit) = (lba.saturating_add(task.next), task.unit);
        task.done = blocks;
        let op = BlockOp::WriteZeroes { may_deallocate: unmap, fua: self.is_forced(unit, false) };
        self.submit_step(id, op, lba, blocks, None);
    }

    fn step_synchronize(&mut self, id: TaskId, lba: u64, blocks: u64, immediate: bool) {
        if self.tasks.get(id.0).is_none_or(|task| task.step != Step::Begin) {
            return;
        }
        self.set_step(id, Step::Working);
        self.submit_step(id, BlockOp::Flush, lba, blocks, None);
        if immediate {
            // The flush goes on; the task lives until the device has answered.
            self.end(id, Status::Good, None);
        }
    }

    fn step_unmap(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get(id.0) else { return };
        match task.step {
            Step::Begin if task.transfer == 0 => self.end(id, Status::Good, None),
            Step::Begin => {
                let length = u32::try_from(task.transfer).unwrap_or(0);
                self.obtain(id, 0, length, 0, true);
            }
            Step::Received => self.check_and_discard(id),
            Step::HaveBoth => self.next_descriptor(id),
            _ => {}
        }
    }

    /// A flush, a discard, a zero-write or an extent request is done.
    fn step_worked(&mut self, id: TaskId, plan: Plan, value: bdev::IoValue) {
        let Some(task) = self.tasks.get_mut(id.0) else { return };
        match (plan, value) {
            (Plan::WriteSame { .. }, _) => {
                task.next += task.done;
                // `step_write_same` begins the next piece.
            }
            (Plan::Unmap { .. }, _) => task.step = Step::HaveBoth,
            (Plan::LbaStatus { .. }, bdev::IoValue::Extent(extent)) => self.extent_known(id, extent),
            _ => self.end(id, Status::Good, None),
        }
    }
}

fn plan_lba(plan: &Plan) -> u64 {
    match *plan {
        Plan::VerifyCompare { lba, .. }
        | Plan::WriteAndVerify { lba, .. }
        | Plan::OrWrite { lba, .. }
        | Plan::CompareAndWrite { lba, .. }
        | Plan::WriteAtomic { lba, .. }
        | Plan::WriteSame { lba, .. }
        | Plan::Synchronize { lba, .. }
        | Plan::LbaStatus { lba, .. } => lba,
        _ => 0,
    }
}
