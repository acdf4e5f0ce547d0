//! READ, WRITE and VERIFY of the medium: bursts that do not depend on each other, a few in flight.

use base::DataBuf;
use bdev::{BlockOp, IoCompletion};
use wire::scsi::{Sense, Status};

use super::{Access, DATA_PHASE_ERROR, PIECE_BLOCKS, device_error};
use crate::task::{Burst, BurstPhase, Step};
use crate::{Effect, Target, TaskId};

impl Target {
    /// Begins reads while there is room, and sends what is read in order. `deliver` is false for VERIFY.
    pub(super) fn advance_read(&mut self, id: TaskId, lba: u64, deliver: bool) {
        if self.end_if_failed(id) {
            return;
        }
        let Some(task) = self.tasks.get(id.0) else { return };
        if task.end == 0 {
            return self.end(id, Status::Good, None);
        }
        let block_size = self.block_size(task.unit);
        let burst_bytes = self.burst_bytes(block_size);
        self.begin_reads(id, lba, block_size, burst_bytes);
        if deliver {
            return self.send_in_order(id, burst_bytes);
        }
        if self.tasks.get(id.0).is_some_and(|task| task.next >= task.end && task.device_ios == 0) {
            self.end(id, Status::Good, None);
        }
    }

    /// VERIFY by the device itself: piece after piece, so that an abort does not wait long. `done` is the first block of
    /// the piece that is out.
    pub(super) fn advance_verify(&mut self, id: TaskId, lba: u64) {
        if self.end_if_failed(id) {
            return;
        }
        let Some(task) = self.tasks.get(id.0) else { return };
        if task.device_ios > 0 {
            return;
        }
        if task.next >= task.end {
            return self.end(id, Status::Good, None);
        }
        let size = u64::from(self.block_size(task.unit));
        let Some(task) = self.tasks.get_mut(id.0) else { return };
        let (first, blocks) = (task.next / size, ((task.end - task.next) / size).min(PIECE_BLOCKS));
        task.done = first;
        task.next += blocks * size;
        task.step = Step::Verifying;
        self.submit_step(id, BlockOp::Verify, lba.saturating_add(first), blocks, None);
    }

    fn begin_reads(&mut self, id: TaskId, lba: u64, block_size: u32, burst_bytes: u32) {
        loop {
            let Some(task) = self.tasks.get(id.0) else { return };
            let slot = task.begun as usize % self.bursts_max;
            let is_free = task.bursts.get(slot).is_some_and(|burst| burst.phase == BurstPhase::Free);
            if task.next >= task.end || !is_free {
                return;
            }
            let length = u32::try_from(task.end - task.next).unwrap_or(u32::MAX).min(burst_bytes);
            let in_flight = task.bursts.iter().any(|burst| burst.phase != BurstPhase::Free);
            let Some(data) = self.take_buffer(id, length, in_flight) else { return };
            let Some(task) = self.tasks.get_mut(id.0) else { return };
            let offset = task.next;
            task.next += u64::from(length);
            task.begun = task.begun.wrapping_add(1);
            if let Some(burst) = task.bursts.get_mut(slot) {
                *burst = Burst { phase: BurstPhase::Device, offset, length, data: None };
            }
            let (size, blocks) = (u64::from(block_size), u64::from(length / block_size));
            self.submit(id, slot, BlockOp::Read, lba + offset / size, blocks, Some(data));
        }
    }

    /// Data-In goes out in growing offsets; GOOD status goes with the last burst.
    fn send_in_order(&mut self, id: TaskId, burst_bytes: u32) {
        loop {
            let Some(task) = self.tasks.get_mut(id.0) else { return };
            let slot = (task.done / u64::from(burst_bytes)) as usize % self.bursts_max;
            let offset = task.done;
            let Some(burst) = task.bursts.get_mut(slot) else { return };
            if burst.phase != BurstPhase::Ready || burst.offset != offset {
                return;
            }
            let Some(mut data) = burst.data.take() else { return };
            burst.phase = BurstPhase::Sending;
            task.done += u64::from(burst.length);
            let is_last = task.done >= task.end;
            data.truncate(usize::try_from(task.transfer - offset).unwrap_or(usize::MAX));
            let exchange = task.exchange;
            let offset = u32::try_from(offset).unwrap_or(u32::MAX);
            let status = if is_last {
                self.tasks.get(id.0).map(|task| self.command_status(task, Status::Good, None))
            } else {
                None
            };
            self.effects.push_back(Effect::SendDataIn { exchange, task: id, offset, data, status });
            if is_last {
                return self.status_sent(id);
            }
        }
    }

    /// A read came back.
    pub(super) fn burst_read(&mut self, id: TaskId, slot: usize, lba: u64, io: IoCompletion) {
        let Some(task) = self.tasks.get(id.0) else { return };
        let block_size = u64::from(self.block_size(task.unit));
        let Some(task) = self.tasks.get_mut(id.0) else { return };
        let deliver = matches!(task.plan, Ok(crate::Plan::Read { .. }));
        let Some(burst) = task.bursts.get_mut(slot) else { return };
        match (io.result, io.data) {
            (Ok(_), Some(data)) if deliver && data.len() == burst.length as usize => {
                burst.phase = BurstPhase::Ready;
                burst.data = Some(data);
            }
            (Ok(_), _) if !deliver => burst.phase = BurstPhase::Free,
            (result, _) => {
                burst.phase = BurstPhase::Free;
                let error = result.err().unwrap_or(bdev::BlockError::System(0));
                let lba = lba + burst.offset / block_size;
                task.fail(device_error::sense(error, Access::Read, lba));
            }
        }
    }

    /// Asks for data, or writes what came with the command, while there is room.
    pub(super) fn advance_write(&mut self, id: TaskId, lba: u64, fua: bool) {
        if self.end_if_failed(id) {
            return;
        }
        let Some(task) = self.tasks.get(id.0) else { return };
        let block_size = self.block_size(task.unit);
        let burst_bytes = self.burst_bytes(block_size);
        loop {
            let Some(task) = self.tasks.get_mut(id.0) else { return };
            if task.next >= task.end {
                break;
            }
            let first_free =
                task.bursts.iter().take(self.bursts_max).position(|burst| burst.phase == BurstPhase::Free);
            let Some(slot) = first_free else { break };
            let length = u32::try_from(task.end - task.next).unwrap_or(u32::MAX).min(burst_bytes);
            let here = task.immediate.as_ref().map_or(0, |data| data.len());
            let begun = if here >= block_size as usize {
                self.write_immediate(id, slot, lba, fua, length, block_size)
            } else if here > 0 {
                self.gather(id, slot, length)
            } else {
                self.receive_burst(id, slot, length)
            };
            if !begun {
                break;
            }
        }
        let is_done =
            |task: &crate::task::Task| task.next >= task.end && task.device_ios == 0 && task.receiving == 0;
        if self.tasks.get(id.0).is_some_and(is_done) {
            self.end(id, Status::Good, None);
        }
    }

    /// The whole blocks of the immediate data are a burst of their own: no copy.
    fn write_immediate(
        &mut self,
        id: TaskId,
        slot: usize,
        lba: u64,
        fua: bool,
        length: u32,
        block_size: u32,
    ) -> bool {
        let Some(task) = self.tasks.get_mut(id.0) else { return false };
        let Some(immediate) = task.immediate.as_mut() else { return false };
        let here = u32::try_from(immediate.len()).unwrap_or(u32::MAX);
        let take = length.min(here - here % block_size);
        let data = immediate.split_to(take as usize);
        if immediate.is_empty() {
            task.immediate = None;
        }
        let offset = task.next;
        task.next += u64::from(take);
        if task.next >= task.end {
            task.immediate = None;
        }
        if let Some(burst) = task.bursts.get_mut(slot) {
            *burst = Burst { phase: BurstPhase::Device, offset, length: take, data: None };
        }
        self.write_burst(id, slot, lba, fua, offset, data);
        true
    }

    fn write_burst(&mut self, id: TaskId, slot: usize, lba: u64, fua: bool, offset: u64, data: DataBuf) {
        let Some(unit) = self.tasks.get(id.0).map(|task| task.unit) else { return };
        let block_size = u64::from(self.block_size(unit));
        let op = BlockOp::Write { fua: self.is_forced(unit, fua) };
        let blocks = data.len() as u64 / block_size;
        self.submit(id, slot, op, lba + offset / block_size, blocks, Some(data));
    }

    fn receive_burst(&mut self, id: TaskId, slot: usize, length: u32) -> bool {
        let Some(task) = self.tasks.get(id.0) else { return false };
        let in_flight = task.device_ios > 0 || task.receiving > 0;
        let Some(data) = self.take_buffer(id, length, in_flight) else { return false };
        let Some(task) = self.tasks.get_mut(id.0) else { return false };
        let offset = task.next;
        task.next += u64::from(length);
        self.lend(id, slot, offset, length, None, data);
        true
    }

    /// Immediate data that ends inside a block: its bytes and the rest of the burst meet in a buffer of their own.
    /// The only payload copy of a WRITE, and it is counted.
    fn gather(&mut self, id: TaskId, slot: usize, length: u32) -> bool {
        let Some(task) = self.tasks.get(id.0) else { return false };
        let in_flight = task.device_ios > 0 || task.receiving > 0;
        let here = task.immediate.as_ref().map_or(0, |data| data.len());
        let rest = length - u32::try_from(here).unwrap_or(0).min(length);
        let Some(mut whole) = self.take_buffer(id, length, in_flight) else { return false };
        // Both or none: nobody waits for a buffer while holding another.
        let Some(lent) = self.take_buffer(id, rest, in_flight) else { return false };
        let Some(task) = self.tasks.get_mut(id.0) else { return false };
        if let (Some(front), Some(immediate)) = (whole.get_mut(..here), task.immediate.take()) {
            front.copy_from_slice(&immediate);
            self.payload_bytes_copied += here as u64;
        }
        let offset = task.next + here as u64;
        task.next += u64::from(length);
        self.lend(id, slot, offset, length, Some(whole), lent);
        true
    }

    fn lend(
        &mut self,
        id: TaskId,
        slot: usize,
        offset: u64,
        length: u32,
        whole: Option<DataBuf>,
        data: DataBuf,
    ) {
        let Some(task) = self.tasks.get_mut(id.0) else { return };
        task.receiving += 1;
        let exchange = task.exchange;
        if let Some(burst) = task.bursts.get_mut(slot) {
            *burst = Burst { phase: BurstPhase::Receiving, offset, length, data: whole };
        }
        let offset = u32::try_from(offset).unwrap_or(u32::MAX);
        self.effects.push_back(Effect::ReceiveDataOut { exchange, task: id, offset, data });
    }

    /// A burst of Data-Out is here, or will never be.
    pub(super) fn burst_received(
        &mut self,
        id: TaskId,
        offset: u64,
        lba: u64,
        fua: bool,
        result: Result<DataBuf, Sense>,
    ) {
        let Some(task) = self.tasks.get_mut(id.0) else { return };
        let waits = |burst: &Burst| burst.phase == BurstPhase::Receiving && burst.offset == offset;
        let Some(slot) = task.bursts.iter().position(waits) else { return };
        let Some(burst) = task.bursts.get_mut(slot) else { return };
        burst.phase = BurstPhase::Free;
        let length = burst.length as usize;
        let whole = burst.data.take();
        let data = match (result, whole) {
            (Ok(data), None) => Ok(data),
            (Ok(data), Some(mut whole)) => {
                match length.checked_sub(data.len()).and_then(|at| whole.get_mut(at..)) {
                    Some(rest) => {
                        rest.copy_from_slice(&data);
                        self.payload_bytes_copied += data.len() as u64;
                        burst.offset -= (length - data.len()) as u64;
                        Ok(whole)
                    }
                    None => Err(DATA_PHASE_ERROR),
                }
            }
            (Err(sense), _) => Err(sense),
        };
        match data {
            Ok(data) if data.len() == length && task.failure.is_none() => {
                burst.phase = BurstPhase::Device;
                let offset = burst.offset;
                self.write_burst(id, slot, lba, fua, offset, data);
            }
            // Another burst has failed already.
            Ok(data) if data.len() == length => {}
            Ok(_) => task.fail(DATA_PHASE_ERROR),
            Err(sense) => task.fail(sense),
        }
    }

    /// A write came back.
    pub(super) fn burst_written(&mut self, id: TaskId, slot: usize, lba: u64, io: IoCompletion) {
        let Some(unit) = self.tasks.get(id.0).map(|task| task.unit) else { return };
        let block_size = u64::from(self.block_size(unit));
        let Some(task) = self.tasks.get_mut(id.0) else { return };
        let Some(burst) = task.bursts.get_mut(slot) else { return };
        burst.phase = BurstPhase::Free;
        if let Err(error) = io.result {
            let lba = lba + burst.offset / block_size;
            task.fail(device_error::sense(error, Access::Write, lba));
        }
    }
}
