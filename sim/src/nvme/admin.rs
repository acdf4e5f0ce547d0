//! Admin commands: queues, Abort, Format NVM, Doorbell Buffer Config, and the way of their data.

use super::command::{Command, NSID_ALL, admin};
use super::faults::AbortManner;
use super::fetch::Outcome;
use super::model::{Job, Model, Shadow};
use super::namespace::{FORMATS, Namespace};
use super::queues::{CompletionQueue, SubmissionQueue};
use super::registers::{cc_iocqes, cc_iosqes};
use super::status;
use super::transfer::{Refusal, gather, scatter, walk_prp};
use super::violation::Rule;

impl Model {
    pub(super) fn execute_admin(&mut self, command: &Command) -> Result<Outcome, Refusal> {
        match command.opcode() {
            admin::DELETE_SQ => self.delete_sq(command),
            admin::CREATE_SQ => self.create_sq(command),
            admin::GET_LOG_PAGE => self.get_log_page(command),
            admin::DELETE_CQ => self.delete_cq(command),
            admin::CREATE_CQ => self.create_cq(command),
            admin::IDENTIFY => self.identify(command),
            admin::ABORT => self.abort(command),
            admin::SET_FEATURES => self.set_features(command),
            admin::GET_FEATURES => self.get_features(command),
            admin::ASYNC_EVENT => self.event_request(command.cid()).map(|()| Outcome::Later),
            admin::DOORBELL_BUFFER_CONFIG => self.doorbell_buffer_config(command),
            _ => self.format(command),
        }
    }

    /// Writes `bytes` to where a command of `length` bytes wants them.
    pub(super) fn send_admin(&mut self, command: &Command, length: u64, bytes: &[u8]) -> Result<(), Refusal> {
        self.walk_admin(command, length)?;
        Ok(scatter(&self.memory, &self.segments, 0, bytes)?)
    }

    /// Reads a command's data.
    pub(super) fn receive_admin(&mut self, command: &Command, bytes: &mut [u8]) -> Result<(), Refusal> {
        self.walk_admin(command, bytes.len() as u64)?;
        Ok(gather(&self.memory, &self.segments, bytes)?)
    }

    fn walk_admin(&mut self, command: &Command, length: u64) -> Result<(), Refusal> {
        if self.config.mdts > 0 && length > 4096 << self.config.mdts {
            let what = format!("a transfer of {length} bytes, beyond MDTS");
            return Err(Refusal::broken(status::INVALID_FIELD, Rule::Bounds, what));
        }
        let page = self.page();
        walk_prp(&self.memory, page, command.prp1(), command.prp2(), length, &mut self.segments)
    }

    fn queue_id(&self, command: &Command, granted: u16) -> Result<u16, Refusal> {
        let id = command.dword(10) as u16;
        if id > granted && self.faults.lies.queues.is_some() {
            // Who told the host so?
            return Err(Refusal::plain(status::INVALID_QUEUE_ID | status::DNR));
        }
        if id == 0 || id > granted {
            return Err(Refusal::broken(
                status::INVALID_QUEUE_ID,
                Rule::Unsupported,
                format!("queue {id} of {granted} that were granted"),
            ));
        }
        Ok(id)
    }

    fn granted(&self) -> (u16, u16) {
        // Without Number of Queues the controller's own number holds.
        self.features.queues.unwrap_or((self.config.queue_pairs, self.config.queue_pairs))
    }

    /// Size and base of a queue to be created; both kinds have the same rules.
    fn queue_shape(&mut self, command: &Command) -> Result<(u16, u64), Refusal> {
        let size = (command.dword(10) >> 16) as u16;
        if size == 0 || size >= self.config.entries_max {
            return Err(Refusal::broken(
                status::INVALID_QUEUE_SIZE,
                Rule::Bounds,
                format!("a queue of {} entries, at most {}", u32::from(size) + 1, self.config.entries_max),
            ));
        }
        if command.dword(11) & 1 == 0 {
            return Err(Refusal::broken(
                status::INVALID_FIELD,
                Rule::Unsupported,
                "a queue that is not contiguous, although CAP.CQR is 1",
            ));
        }
        let base = command.prp1();
        if !base.is_multiple_of(self.page()) {
            return Err(Refusal::broken(
                status::PRP_OFFSET_INVALID,
                Rule::Prp,
                format!("a queue at {base:#x}, not page aligned"),
            ));
        }
        Ok((size + 1, base))
    }

    fn create_cq(&mut self, command: &Command) -> Result<Outcome, Refusal> {
        let id = self.queue_id(command, self.granted().1)?;
        if self.cqs[usize::from(id)].is_some() {
            let what = format!("completion queue {id} is there already");
            return Err(Refusal::broken(status::INVALID_QUEUE_ID, Rule::Sequence, what));
        }
        let (size, base) = self.queue_shape(command)?;
        if cc_iocqes(self.cc) != 4 {
            let what = format!("CC.IOCQES {} when a queue is created", cc_iocqes(self.cc));
            return Err(Refusal::broken(status::INVALID_QUEUE_SIZE, Rule::Configuration, what));
        }
        let vector = (command.dword(11) >> 16) as u16;
        if vector >= self.config.vectors {
            return Err(Refusal::broken(
                status::INVALID_VECTOR,
                Rule::Bounds,
                format!("interrupt vector {vector} of {}", self.config.vectors),
            ));
        }
        if !self.memory.reaches(base, u64::from(size) * 16) {
            self.violation(Rule::Dma, 0, format!("completion queue {id} at {base:#x} is not all mapped"));
        }
        let vector = (command.dword(11) & 2 != 0).then_some(vector);
        self.cqs[usize::from(id)] = Some(CompletionQueue::new(base, size, vector));
        Ok(Outcome::Done(0))
    }

    fn create_sq(&mut self, command: &Command) -> Result<Outcome, Refusal> {
        let id = self.queue_id(command, self.granted().0)?;
        if self.sqs[usize::from(id)].is_some() {
            let what = format!("submission queue {id} is there already");
            return Err(Refusal::broken(status::INVALID_QUEUE_ID, Rule::Sequence, what));
        }
        let cq = (command.dword(11) >> 16) as u16;
        if cq == 0 || usize::from(cq) >= self.cqs.len() {
            let what = format!("completion queue {cq} for a submission queue");
            return Err(Refusal::broken(status::INVALID_QUEUE_ID, Rule::Unsupported, what));
        }
        let (size, base) = self.queue_shape(command)?;
        if cc_iosqes(self.cc) != 6 {
            let what = format!("CC.IOSQES {} when a queue is created", cc_iosqes(self.cc));
            return Err(Refusal::broken(status::INVALID_QUEUE_SIZE, Rule::Configuration, what));
        }
        if !self.memory.reaches(base, u64::from(size) * 64) {
            self.violation(Rule::Dma, 0, format!("submission queue {id} at {base:#x} is not all mapped"));
        }
        let Some(queue) = &mut self.cqs[usize::from(cq)] else {
            let what = format!("completion queue {cq} is not there");
            return Err(Refusal::broken(status::CQ_INVALID, Rule::Sequence, what));
        };
        queue.users += 1;
        self.sqs[usize::from(id)] = Some(SubmissionQueue::new(base, size, cq));
        Ok(Outcome::Done(0))
    }

    fn delete_sq(&mut self, command: &Command) -> Result<Outcome, Refusal> {
        let id = self.queue_id(command, self.config.queue_pairs)?;
        if self.sqs[usize::from(id)].is_none() {
            let what = format!("submission queue {id} is not there");
            return Err(Refusal::broken(status::INVALID_QUEUE_ID, Rule::Sequence, what));
        }
        for cid in self.take_jobs(id, None) {
            self.complete(id, cid, status::ABORTED_SQ_DELETION, 0);
        }
        if let Some(queue) = self.sqs[usize::from(id)].take()
            && let Some(cq) = &mut self.cqs[usize::from(queue.cq)]
        {
            cq.users -= 1;
        }
        Ok(Outcome::Done(0))
    }

    fn delete_cq(&mut self, command: &Command) -> Result<Outcome, Refusal> {
        let id = self.queue_id(command, self.config.queue_pairs)?;
        let Some(queue) = &self.cqs[usize::from(id)] else {
            let what = format!("completion queue {id} is not there");
            return Err(Refusal::broken(status::INVALID_QUEUE_ID, Rule::Sequence, what));
        };
        if queue.users > 0 {
            let what = format!("completion queue {id} has {} submission queues", queue.users);
            return Err(Refusal::broken(status::INVALID_QUEUE_DELETION, Rule::Sequence, what));
        }
        self.cqs[usize::from(id)] = None;
        Ok(Outcome::Done(0))
    }

    /// Takes back what has not been carried out yet: of a whole queue, or one command. The identifiers of all halves.
    fn take_jobs(&mut self, queue: u16, only: Option<u16>) -> Vec<u16> {
        let mut taken = Vec::new();
        self.jobs.retain(|_, job| {
            let Job::Execute(first, second) = job else { return true };
            let cids = [Some(first.command.cid()), second.as_ref().map(|half| half.command.cid())];
            let meant = first.queue == queue && only.is_none_or(|cid| cids.contains(&Some(cid)));
            if meant {
                taken.extend(cids.into_iter().flatten());
            }
            !meant
        });
        taken
    }

    fn abort(&mut self, command: &Command) -> Result<Outcome, Refusal> {
        let (queue, cid) = (command.dword(10) as u16, (command.dword(10) >> 16) as u16);
        if usize::from(queue) >= self.sqs.len() {
            let what = format!("Abort for queue {queue}, which cannot be");
            return Err(Refusal::broken(status::INVALID_FIELD, Rule::Unsupported, what));
        }
        // The queue may have been deleted meanwhile: admin commands have no order among themselves.
        if self.sqs[usize::from(queue)].is_none() {
            return Ok(Outcome::Done(1));
        }
        match self.faults.abort {
            AbortManner::Nothing => return Ok(Outcome::Done(1)),
            AbortManner::Lies => return Ok(Outcome::Done(0)),
            AbortManner::Honest | AbortManner::Late(_) => {}
        }
        let mut aborted = self.take_jobs(queue, Some(cid));
        if queue == 0 && self.withdraw_request(cid) {
            aborted.push(cid);
        }
        let result = u64::from(aborted.is_empty());
        for cid in aborted {
            self.complete(queue, cid, status::ABORT_REQUESTED, 0);
        }
        if let AbortManner::Late(delay) = self.faults.abort {
            let job = Job::Complete { queue: 0, cid: command.cid(), status: status::SUCCESS, result };
            self.schedule(delay, job);
            return Ok(Outcome::Later);
        }
        Ok(Outcome::Done(result))
    }

    fn doorbell_buffer_config(&mut self, command: &Command) -> Result<Outcome, Refusal> {
        if !self.config.shadow_doorbells {
            let what = "Doorbell Buffer Config, which the controller does not have";
            return Err(Refusal::broken(status::INVALID_OPCODE, Rule::Unsupported, what));
        }
        let (doorbells, events) = (command.prp1(), command.prp2());
        let page = self.page();
        if doorbells % page != 0 || events % page != 0 {
            let what = format!("shadow doorbells at {doorbells:#x} and {events:#x}, not page aligned");
            return Err(Refusal::broken(status::INVALID_FIELD, Rule::Prp, what));
        }
        if !self.memory.reaches(doorbells, page) || !self.memory.reaches(events, page) {
            let what = format!("shadow doorbells at {doorbells:#x} and {events:#x}, not mapped");
            return Err(Refusal::broken(status::INVALID_FIELD, Rule::Dma, what));
        }
        self.shadow = Some(Shadow { doorbells, events });
        Ok(Outcome::Done(0))
    }

    fn format(&mut self, command: &Command) -> Result<Outcome, Refusal> {
        let word = command.dword(10);
        let (index, extended) = (word & 15 | (word >> 12 & 3) << 4, word & 1 << 4 != 0);
        let (protection, first, erase) = (word >> 5 & 7, word & 1 << 8 != 0, word >> 9 & 7);
        let Some(format) = FORMATS.get(index as usize) else {
            return Err(Refusal::broken(
                status::INVALID_FORMAT,
                Rule::Unsupported,
                format!("LBA format {index}"),
            ));
        };
        if protection > 3 || (protection > 0 && format.metadata < 8) {
            let what = format!("protection type {protection} with LBA format {index}");
            return Err(Refusal::broken(status::INVALID_FORMAT, Rule::Unsupported, what));
        }
        if erase > 1 {
            let what = format!("secure erase {erase}: there is no cryptographic erase");
            return Err(Refusal::broken(status::INVALID_FIELD, Rule::Unsupported, what));
        }
        let nsid = command.nsid();
        let mut found = false;
        for (i, namespace) in self.namespaces.iter_mut().enumerate() {
            let Some(namespace) = namespace.as_mut().filter(|namespace| namespace.attached) else { continue };
            if nsid != NSID_ALL && nsid as usize != i + 1 {
                continue;
            }
            found = true;
            let blocks = namespace.bytes >> format.data_shift;
            let stride = (1usize << format.data_shift) + usize::from(format.metadata);
            if namespace.media.format(blocks, stride).is_err() {
                return Err(Refusal::plain(status::INTERNAL_ERROR));
            }
            namespace.format = index as u8;
            namespace.extended = extended && format.metadata > 0;
            namespace.protection = protection as u8;
            namespace.protection_first = first && protection > 0;
            namespace.blocks_peak = blocks;
        }
        if found {
            Ok(Outcome::Done(0))
        } else {
            Err(Refusal::plain(status::INVALID_NAMESPACE | status::DNR))
        }
    }

    /// An attached namespace.
    #[inline]
    pub(super) fn namespace(&self, nsid: u32) -> Option<&Namespace> {
        let slot = self.namespaces.get((nsid as usize).wrapping_sub(1))?;
        slot.as_ref().filter(|namespace| namespace.attached)
    }

    /// Gives a namespace another number of blocks and tells the host.
    ///
    /// # Errors
    /// When there is no such namespace, or no room.
    pub fn resize_namespace(&mut self, nsid: u32, blocks: u64) -> std::io::Result<()> {
        let slot = self.namespaces.get_mut((nsid as usize).wrapping_sub(1));
        let namespace = slot.and_then(Option::as_mut).ok_or(std::io::ErrorKind::NotFound)?;
        namespace.media.resize(blocks)?;
        namespace.blocks_peak = namespace.blocks_peak.max(blocks);
        namespace.bytes = blocks << namespace.lba_format().data_shift;
        self.namespace_changed(nsid);
        Ok(())
    }

    /// Attaches or detaches a namespace and tells the host. False when there is no such namespace.
    pub fn attach_namespace(&mut self, nsid: u32, attached: bool) -> bool {
        let slot = self.namespaces.get_mut((nsid as usize).wrapping_sub(1));
        let Some(namespace) = slot.and_then(Option::as_mut) else { return false };
        if namespace.attached != attached {
            namespace.attached = attached;
            self.namespace_changed(nsid);
        }
        true
    }

    /// Stops fetching from one I/O submission queue, until it is deleted or the controller reset. False without one.
    pub fn hang_queue(&mut self, queue: u16) -> bool {
        let slot = self.sqs.get_mut(usize::from(queue)).and_then(Option::as_mut);
        slot.map(|sq| sq.hung = true).is_some()
    }

    /// The bytes of a block as a read would find them now: data, then metadata. `None` when there is no such block.
    #[must_use]
    pub fn block(&self, nsid: u32, lba: u64) -> Option<Vec<u8>> {
        let namespace = self.namespaces.get((nsid as usize).wrapping_sub(1))?.as_ref()?;
        if lba >= namespace.media.blocks() {
            return None;
        }
        let mut content = vec![0; namespace.stride()];
        namespace.media.read(lba, &mut content).ok()?;
        Some(content)
    }
}
