//! Doorbells, fetching, and completing.

use std::io::Write;
use std::time::Duration;

use super::command::{Command, admin_fields, io, io_fields};
use super::faults::CommandFault;
use super::model::{Job, Model, Taken};
use super::queues::Completion;
use super::status::{self, Status};
use super::transfer::Refusal;
use super::violation::Rule;

/// What became of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It ends with Successful Completion and these dwords 0 and 1.
    Done(u64),
    /// It stays outstanding (Asynchronous Event Request), or completes by a job of its own.
    Later,
}

impl Model {
    /// A doorbell register was written; `offset` counts from the first one (PCIe Transport 1.0 §3.1.2).
    pub(super) fn ring(&mut self, offset: u64, value: u32) {
        let stride = 4u64 << self.config.doorbell_stride;
        let (number, rest) = (offset / stride, offset % stride);
        let queue = (number / 2) as u16;
        if !self.running() || rest != 0 || usize::from(queue) >= self.sqs.len() {
            // A host that has not seen yet that the controller failed or shuts down is not to blame.
            let excused = self.csts & (super::registers::CSTS_CFS | super::registers::CSTS_SHST) != 0;
            let known = usize::from(queue) < self.sqs.len()
                && self.deleted[usize::from(queue / 64)] >> (queue % 64) & 1 == 1;
            if known && rest == 0 && !excused {
                self.violation(
                    Rule::LateDoorbell,
                    queue,
                    format!("doorbell {offset:#x} written with {value:#x} after a reset"),
                );
            } else if !excused {
                self.violation(
                    Rule::DoorbellQueue,
                    queue,
                    format!("doorbell {offset:#x} written with {value:#x}"),
                );
            }
            return;
        }
        let value16 = u16::try_from(value).unwrap_or(u16::MAX);
        // With shadow doorbells the register only wakes the controller: by the time its value arrives, the shadow may say
        // more, and taking the older value would mean a tail that went round the whole queue.
        if queue > 0 && self.shadow.is_some() {
            let size = if number % 2 == 0 {
                self.sqs[usize::from(queue)].as_ref().map(|sq| sq.size)
            } else {
                self.cqs[usize::from(queue)].as_ref().map(|cq| cq.size)
            };
            match size {
                None => self.doorbell_fault(Rule::DoorbellQueue, queue, "a doorbell of no queue".into()),
                Some(size) if value16 >= size => {
                    self.doorbell_fault(Rule::DoorbellValue, queue, format!("{value} in a queue of {size}"));
                }
                Some(_) if number % 2 == 1 => self.poll_shadow_head(queue, false),
                Some(_) => {}
            }
            return;
        }
        if number % 2 == 0 {
            self.set_tail(queue, value16, true)
        } else {
            self.set_head(queue, value16, true)
        }
    }

    fn doorbell_fault(&mut self, rule: Rule, queue: u16, what: String) {
        self.violation(rule, queue, what);
        let info = if rule == Rule::DoorbellQueue {
            super::events::INVALID_DOORBELL_REGISTER
        } else {
            super::events::INVALID_DOORBELL_VALUE
        };
        self.event(super::events::Event { kind: super::events::ERROR, info, log: super::logs::ERROR_LOG });
    }

    /// The host says its tail is `value`: by register, or (`register` false) by shadow doorbell, where nothing new is no
    /// fault.
    fn set_tail(&mut self, queue: u16, value: u16, register: bool) {
        let Some(sq) = &mut self.sqs[usize::from(queue)] else {
            self.doorbell_fault(Rule::DoorbellQueue, queue, "a tail doorbell of no queue".into());
            return;
        };
        let (size, head, tail) = (sq.size, sq.head, sq.tail);
        let fault = if value >= size {
            Some(format!("tail {value} in a queue of {size}"))
        } else if value == tail {
            register.then(|| format!("tail {value} written again"))
        } else if u32::from(sq.distance(head, tail)) + u32::from(sq.distance(tail, value)) >= u32::from(size)
        {
            Some(format!("tail {tail} to {value} overruns head {head} in a queue of {size}"))
        } else {
            sq.tail = value;
            None
        };
        if let Some(what) = fault {
            self.doorbell_fault(Rule::DoorbellValue, queue, what);
        }
    }

    fn set_head(&mut self, queue: u16, value: u16, register: bool) {
        let Some(cq) = &mut self.cqs[usize::from(queue)] else {
            self.doorbell_fault(Rule::DoorbellQueue, queue, "a head doorbell of no queue".into());
            return;
        };
        let (size, head, tail) = (cq.size, cq.head, cq.tail);
        let fault = if value >= size {
            Some(format!("head {value} in a queue of {size}"))
        } else if value == head {
            register.then(|| format!("head {value} written again"))
        } else if cq.distance(head, value) > cq.distance(head, tail) {
            Some(format!("head {head} to {value} takes entries that are not there: tail {tail}"))
        } else {
            cq.head = value;
            None
        };
        match fault {
            None => self.drain(queue),
            Some(what) => self.doorbell_fault(Rule::DoorbellValue, queue, what),
        }
    }

    /// Fetches from every queue until all are empty.
    pub(super) fn fetch(&mut self) {
        for queue in 0..self.sqs.len() as u16 {
            if self.sqs[usize::from(queue)].is_none() {
                continue;
            }
            if queue > 0 && self.shadow.is_some() {
                self.fetch_shadowed(queue);
            } else {
                self.fetch_queue(queue);
            }
        }
    }

    /// Fetches by the shadow doorbell, and moves the event index until nothing new is there (Base 2.0 §5.8).
    fn fetch_shadowed(&mut self, queue: u16) {
        let Some(shadow) = self.shadow else { return };
        let stride = 4u64 << self.config.doorbell_stride;
        let place = u64::from(queue) * 2 * stride;
        let mut first = true;
        loop {
            let Ok(tail) = self.memory.load32(shadow.doorbells + place) else {
                self.violation(Rule::Dma, queue, "the shadow doorbell buffer is not mapped any more");
                return;
            };
            let tail = u16::try_from(tail).unwrap_or(u16::MAX);
            let before = self.sqs[usize::from(queue)].as_ref().map(|sq| sq.tail);
            if before == Some(tail) && !first {
                break;
            }
            first = false;
            self.set_tail(queue, tail, false);
            self.fetch_queue(queue);
            if self.memory.store32(shadow.events + place, u32::from(tail)).is_err() || !self.running() {
                break;
            }
            if self.sqs[usize::from(queue)].as_ref().is_none_or(|sq| sq.tail != tail) {
                break;
            }
        }
        let cq = self.sqs[usize::from(queue)].as_ref().map(|sq| sq.cq);
        if let Some(cq) = cq {
            self.poll_shadow_head(cq, false);
        }
    }

    /// Reads the shadow of a completion queue's head; with `wake` the host shall write the register next time.
    fn poll_shadow_head(&mut self, queue: u16, wake: bool) {
        let Some(shadow) = self.shadow.filter(|_| queue > 0) else { return };
        let Some(cq) = &self.cqs[usize::from(queue)] else { return };
        let stride = 4u64 << self.config.doorbell_stride;
        let place = (u64::from(queue) * 2 + 1) * stride;
        if wake {
            let _ = self.memory.store32(shadow.events + place, u32::from(cq.head));
        }
        if let Ok(head) = self.memory.load32(shadow.doorbells + place) {
            self.set_head(queue, u16::try_from(head).unwrap_or(u16::MAX), false);
        }
    }

    fn fetch_queue(&mut self, queue: u16) {
        if queue == 0 && self.faults.admin_hung {
            return;
        }
        loop {
            if !self.running() {
                return;
            }
            let Some(sq) = &mut self.sqs[usize::from(queue)] else { return };
            if sq.head == sq.tail || sq.hung {
                return;
            }
            let mut bytes = [0; 64];
            let address = sq.base + u64::from(sq.head) * 64;
            if let Err(not) = self.memory.read(address, &mut bytes) {
                let refusal = Refusal::from(not);
                if let Some((rule, what)) = refusal.broken {
                    self.violation(rule, queue, format!("submission queue: {what}"));
                }
                self.fail();
                return;
            }
            sq.head = if sq.head + 1 == sq.size { 0 } else { sq.head + 1 };
            let empty = sq.head == sq.tail;
            self.statistics.commands += 1;
            self.accept(queue, Command::from_bytes(&bytes), empty);
        }
    }

    fn accept(&mut self, queue: u16, command: Command, last: bool) {
        let cid = command.cid();
        let Some(sq) = &mut self.sqs[usize::from(queue)] else { return };
        let held = sq.fused.take();
        if !sq.take_cid(cid) {
            self.violation(Rule::CommandId, queue, format!("CID {cid:#x} is outstanding already"));
            self.post(queue, cid, status::CID_CONFLICT | status::DNR, 0, None);
            // The older command still has it.
            if let Some(sq) = &mut self.sqs[usize::from(queue)] {
                sq.take_cid(cid);
            }
            return;
        }
        if cid == 0xFFFF {
            self.violation(Rule::CommandId, queue, "CID FFFFh, which the error log cannot name");
        }
        let write = matches!(command.opcode(), io::WRITE | io::WRITE_ZEROES | io::FLUSH);
        let fault = self.faults.decide(&mut self.prng, queue == 0, queue > 0 && write);
        let taken = Taken { queue, command, fault };
        let first = match self.pair(queue, held, command, last) {
            Pairing::Wait => return,
            Pairing::Refuse => {
                self.refuse(
                    queue,
                    cid,
                    Refusal::broken(
                        status::ABORTED_MISSING_FUSED,
                        Rule::Fused,
                        format!("CID {cid:#x} has no other half"),
                    ),
                );
                return;
            }
            Pairing::Alone => None,
            Pairing::With(first) => Some(Taken { queue, command: first, fault: None }),
        };
        let (low, high) = self.config.latency;
        let mut delay = low;
        if high > low {
            delay += Duration::from_nanos(self.prng.below((high - low).as_nanos() as u64 + 1));
        }
        if let Some(CommandFault::Late(more)) = fault {
            delay += more;
        }
        let (one, two) = match first {
            Some(first) => (first, Some(taken)),
            None => (taken, None),
        };
        if delay.is_zero() {
            self.carry_out(one, two);
        } else {
            self.schedule(delay, Job::Execute(one, two));
        }
    }

    /// Finds the other half of a fused operation (Base 2.0 §3.4.2): next to it, in the same queue.
    fn pair(&mut self, queue: u16, held: Option<Command>, command: Command, last: bool) -> Pairing {
        if let Some(first) = held {
            if queue > 0 && command.fuse() == 2 {
                return Pairing::With(first);
            }
            let refusal = Refusal::broken(
                status::ABORTED_MISSING_FUSED,
                Rule::Fused,
                format!("CID {:#x} is not followed by its other half", first.cid()),
            );
            self.refuse(queue, first.cid(), refusal);
        }
        match command.fuse() {
            0 => Pairing::Alone,
            1 if queue > 0 && !last => {
                if let Some(sq) = &mut self.sqs[usize::from(queue)] {
                    sq.fused = Some(command);
                }
                Pairing::Wait
            }
            _ => Pairing::Refuse,
        }
    }

    /// Carries out a command, or both halves of a fused operation, and completes.
    pub(super) fn carry_out(&mut self, first: Taken, second: Option<Taken>) {
        let Some(second) = second else {
            self.carry_out_one(first);
            return;
        };
        let (compare, write) = (first.command, second.command);
        let same = compare.qword(10) == write.qword(10)
            && compare.dword(12) & 0xFFFF == write.dword(12) & 0xFFFF
            && compare.nsid() == write.nsid();
        if compare.opcode() != io::COMPARE || write.opcode() != io::WRITE || !same {
            let what = "a fused operation that is no Compare and Write of the same blocks";
            self.refuse(
                first.queue,
                compare.cid(),
                Refusal::broken(status::INVALID_FIELD, Rule::Fused, what),
            );
            self.refuse(second.queue, write.cid(), Refusal::plain(status::ABORTED_FAILED_FUSED));
            return;
        }
        match self.execute(first.queue, &compare) {
            Ok(_) => {
                self.complete(first.queue, compare.cid(), status::SUCCESS, 0);
                self.carry_out_one(second);
            }
            Err(refusal) => {
                self.refuse(first.queue, compare.cid(), refusal);
                self.refuse(second.queue, write.cid(), Refusal::plain(status::ABORTED_FAILED_FUSED));
            }
        }
    }

    #[inline]
    fn carry_out_one(&mut self, taken: Taken) {
        let Taken { queue, command, fault } = taken;
        let cid = command.cid();
        if let Some(fault) = fault {
            match fault {
                CommandFault::Fatal => return self.fail(),
                CommandFault::Status(status) => {
                    // An error says nothing about how far a write went.
                    if queue > 0 && command.opcode() == io::WRITE && self.prng.chance(1, 2) {
                        let _ = self.execute(queue, &command);
                    }
                    return self.refuse(queue, cid, Refusal::plain(status));
                }
                _ => {}
            }
        }
        match self.execute(queue, &command) {
            Ok(Outcome::Done(result)) => self.post(queue, cid, status::SUCCESS, result, fault),
            Ok(Outcome::Later) => {}
            Err(refusal) => self.refuse(queue, cid, refusal),
        }
    }

    #[inline]
    fn execute(&mut self, queue: u16, command: &Command) -> Result<Outcome, Refusal> {
        let opcode = command.opcode();
        let fields = if queue == 0 { admin_fields(opcode) } else { io_fields(opcode) };
        let Some(fields) = fields else {
            return Err(Refusal::broken(
                status::INVALID_OPCODE,
                Rule::Unsupported,
                format!("opcode {opcode:#04x}, which the controller does not have"),
            ));
        };
        let mut stray = command.dword(0) & 0x3C00;
        for (n, defined) in fields.dwords.iter().enumerate() {
            stray |= command.dword(10 + n) & !defined;
        }
        if !fields.metadata {
            stray |= command.dword(4) | command.dword(5);
        }
        if !fields.data {
            stray |= command.dword(6) | command.dword(7) | command.dword(8) | command.dword(9);
        }
        if !fields.nsid {
            stray |= command.nsid();
        }
        stray |= command.dword(2) | command.dword(3);
        if stray != 0 {
            self.violation(Rule::Reserved, queue, format!("reserved bits in {:08x?}", command.0));
        }
        if queue == 0 {
            if command.psdt() != 0 {
                return Err(Refusal::broken(status::INVALID_FIELD, Rule::Sgl, "an SGL in an admin command"));
            }
            self.execute_admin(command)
        } else {
            self.execute_io(queue, command)
        }
    }

    /// Completes with an error: records the rule if one was broken, and the error log entry.
    pub(super) fn refuse(&mut self, queue: u16, cid: u16, refusal: Refusal) {
        if let Some((rule, what)) = refusal.broken {
            self.violation(rule, queue, what);
        }
        self.logs.error(queue, cid, refusal.status);
        self.post(queue, cid, refusal.status, 0, None);
    }

    /// Completes a command as it should be.
    pub(super) fn complete(&mut self, queue: u16, cid: u16, status: Status, result: u64) {
        self.post(queue, cid, status, result, None);
    }

    #[inline]
    fn post(&mut self, queue: u16, cid: u16, status: Status, result: u64, fault: Option<CommandFault>) {
        let Some(sq) = &mut self.sqs[usize::from(queue)] else { return };
        let (cq, size) = (sq.cq, sq.size);
        let mut entry =
            Completion { result, sq_head: sq.head, sq_id: queue, cid, status, wrong_phase: false };
        match fault {
            // The host still waits for it, so its identifier is still in use.
            Some(CommandFault::Lost) => return,
            Some(CommandFault::WrongPhase) => entry.wrong_phase = true,
            Some(CommandFault::WrongQueue) => entry.sq_id = queue.wrapping_add(1) % self.sqs.len() as u16,
            Some(CommandFault::WildHead) => entry.sq_head = size.saturating_add(self.prng.below(1000) as u16),
            Some(CommandFault::UnknownCid) => {
                let unknown = self.prng.next_u64() as u16 | 0x8000;
                self.enqueue(cq, Completion { cid: unknown, ..entry });
            }
            Some(CommandFault::Duplicate) => self.enqueue(cq, entry),
            _ => {}
        }
        let lost_to_the_host = entry.wrong_phase || entry.sq_id != queue;
        if let Some(sq) = &mut self.sqs[usize::from(queue)]
            && !lost_to_the_host
        {
            sq.free_cid(cid);
        }
        self.enqueue(cq, entry);
    }

    #[inline]
    fn enqueue(&mut self, queue: u16, entry: Completion) {
        let Some(cq) = &mut self.cqs[usize::from(queue)] else { return };
        if !cq.backlog.is_empty() || cq.is_full() {
            cq.backlog.push_back(entry);
            if self.shadow.is_some() {
                self.poll_shadow_head(queue, true);
            }
            return;
        }
        self.store(queue, entry);
    }

    #[inline]
    fn store(&mut self, queue: u16, entry: Completion) {
        let Some(cq) = &mut self.cqs[usize::from(queue)] else { return };
        let phase = u32::from(cq.phase != entry.wrong_phase);
        let words = [
            entry.result as u32,
            (entry.result >> 32) as u32,
            u32::from(entry.sq_head) | u32::from(entry.sq_id) << 16,
            u32::from(entry.cid) | (u32::from(entry.status) << 1 | phase) << 16,
        ];
        let address = cq.base + u64::from(cq.tail) * 16;
        cq.tail += 1;
        if cq.tail == cq.size {
            cq.tail = 0;
            cq.phase = !cq.phase;
        }
        cq.signal = cq.vector.is_some();
        self.signal |= cq.signal;
        self.statistics.completions += 1;
        if let Err(not) = self.memory.store_entry(address, words) {
            if let Some((rule, what)) = Refusal::from(not).broken {
                self.violation(rule, queue, format!("completion queue: {what}"));
            }
            self.fail();
        }
    }

    fn drain(&mut self, queue: u16) {
        loop {
            let Some(cq) = &mut self.cqs[usize::from(queue)] else { return };
            if cq.is_full() {
                return;
            }
            let Some(entry) = cq.backlog.pop_front() else { return };
            self.store(queue, entry);
        }
    }

    /// Signals the vectors of queues that got entries.
    pub(super) fn interrupt(&mut self) {
        self.signal = false;
        for cq in self.cqs.iter_mut().flatten().filter(|cq| cq.signal) {
            cq.signal = false;
            let vector = cq.vector.and_then(|vector| self.vectors.get_mut(usize::from(vector)));
            if let Some(Some(descriptor)) = vector
                && descriptor.write(&1u64.to_ne_bytes()).is_ok()
            {
                self.statistics.interrupts += 1;
            }
        }
    }
}

/// What `pair` found.
enum Pairing {
    /// A command of its own.
    Alone,
    /// The second half; this is the first.
    With(Command),
    /// The first half; the second comes next.
    Wait,
    /// Half of an operation whose other half is not there.
    Refuse,
}
