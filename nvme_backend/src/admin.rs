//! The administration of one controller: what the service thread does at each poll.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use base::{Instant, Progress};
use reactor::{Bar, DeviceError, DmaMemory, PciDevice};
use wire::nvme::{
    Capabilities, Completion, ControllerStatus, Entry, IdentifyController, IdentifyNamespace, NvmLimits,
    register,
};

use crate::bring_up::{Chore, Step, Task};
use crate::events::Events;
use crate::gate::Door;
use crate::queue_pair::{Command, Layout, Metadata, Payload, QueuePair};
use crate::reset::Phase;
use crate::service::Service;
use crate::shared::{Report, Shared};
use crate::tickets::Tickets;
use crate::{ControllerError, ControllerEvent, ControllerState, Namespace, ResetReason};

/// Commands on the admin queue.
pub(crate) const ADMIN_SLOTS: u16 = 31;
/// Asynchronous Event Requests that are kept outstanding.
const EVENT_REQUESTS_MAX: u16 = 4;
/// Abort commands that wait for their turn.
const ABORTS_MAX: usize = 64;

/// Whose command is in an admin slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    Free,
    Task,
    Event,
    Abort,
    Ticket,
}

/// What stands in the bounce areas of the admin memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Area {
    /// Structures that tasks read.
    Task = 0,
    /// Data of admin requests.
    Ticket = 1,
    /// The doorbell buffers: a page of values, a page of event indices.
    Doorbells = 2,
}

/// Who drives a queue pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Seat(usize),
    Service,
}

/// A device, with what is known before it is enabled.
pub(crate) struct Function {
    pub(crate) device: Arc<dyn PciDevice>,
    pub(crate) bar: Arc<dyn Bar>,
    pub(crate) capabilities: Capabilities,
}

impl Function {
    /// Maps the registers of `device`, and looks whether this driver can drive it.
    pub(crate) fn open(device: Arc<dyn PciDevice>) -> Result<Function, ControllerError> {
        let name = device.name().to_owned();
        let unsuitable = |text: String| Err(ControllerError::Unsuitable(format!("{name}: {text}")));
        let class = device.identity().class;
        if class != 0x01_08_02 {
            return unsuitable(format!(
                "class {class:06x}h is no NVMe I/O controller; choose another device"
            ));
        }
        let bar: Arc<dyn Bar> = device.open_bar(0)?.into();
        if bar.length() < register::DOORBELLS + 16 {
            return unsuitable(format!(
                "its registers have {:#x} bytes, too few for doorbells",
                bar.length()
            ));
        }
        let capabilities = Capabilities(bar.read64(register::CAP)?);
        if capabilities.0 == u64::MAX {
            return Err(ControllerError::Device(DeviceError::Gone));
        }
        if capabilities.page_shift_min() > 16 {
            return unsuitable("its smallest page is larger than 64 KiB, which is not supported".to_owned());
        }
        if !capabilities.nvm_command_set() && !capabilities.all_command_sets() {
            return unsuitable("it has no NVM command set; it cannot hold blocks".to_owned());
        }
        Ok(Function { device, bar, capabilities })
    }

    /// Bytes of a page of this controller.
    pub(crate) fn page(&self) -> usize {
        1 << self.capabilities.page_shift_min()
    }
}

/// See the module.
pub(crate) struct Admin {
    pub(crate) shared: Arc<Shared>,
    pub(crate) function: Function,
    pub(crate) memory: Arc<DmaMemory>,
    /// Where the device sees the admin memory, and its layout; `None` while it is not mapped.
    pub(crate) mapped: Option<(u64, Layout)>,
    /// Where the device sees each seat's memory, and last the service's.
    pub(crate) seats_mapped: Vec<Option<u64>>,
    pub(crate) service_memory: Arc<DmaMemory>,
    pub(crate) queue: Option<QueuePair>,
    owners: Vec<Owner>,
    deadlines: Vec<Option<Instant>>,
    pub(crate) phase: Phase,
    pub(crate) task: Option<(Task, Step)>,
    pub(crate) chores: VecDeque<Chore>,
    pub(crate) identify: Option<IdentifyController>,
    pub(crate) limits: NvmLimits,
    pub(crate) version: u32,
    pub(crate) roles: Vec<Role>,
    /// By queue pair: made, and not yet handed to who drives it.
    pub(crate) made: Vec<Option<Box<QueuePair>>>,
    /// By queue pair: when it was reset last.
    pub(crate) pair_resets: Vec<Option<Instant>>,
    pub(crate) doorbell_buffers: bool,
    pub(crate) interrupts: Vec<Arc<OwnedFd>>,
    pub(crate) service: Service,
    pub(crate) namespaces: BTreeMap<u32, Arc<Namespace>>,
    /// Identifiers that the present scan has found.
    pub(crate) scan: Vec<u32>,
    pub(crate) scanned: Vec<u32>,
    /// The namespace whose names are being asked for.
    pub(crate) identified: Option<IdentifyNamespace>,
    pub(crate) events: Events,
    pub(crate) tickets: Tickets,
    aborts: VecDeque<(u16, u16)>,
    pub(crate) now: Instant,
    next_watch: Instant,
    next_health: Option<Instant>,
    pub(crate) resets_in_a_row: u8,
    pub(crate) reset_reason: Option<ResetReason>,
    pub(crate) reset_wanted: bool,
    pub(crate) detach_wanted: bool,
    pub(crate) returning: bool,
    pub(crate) failure: Option<String>,
    pub(crate) critical_warning: u8,
    pub(crate) error_count: Option<u64>,
    strange_seen: u64,
    pub(crate) aborts_sent: u64,
    pub(crate) queue_resets: u64,
    pub(crate) controller_resets: u64,
    events_received: u64,
}

impl Admin {
    pub(crate) fn new(
        shared: Arc<Shared>,
        function: Function,
        memory: Arc<DmaMemory>,
        service_memory: Arc<DmaMemory>,
        service: Service,
    ) -> Admin {
        let seats = shared.seats.len();
        Admin {
            function,
            memory,
            mapped: None,
            seats_mapped: vec![None; seats + 1],
            service_memory,
            queue: None,
            owners: vec![Owner::Free; usize::from(ADMIN_SLOTS)],
            deadlines: vec![None; usize::from(ADMIN_SLOTS)],
            phase: Phase::Begin,
            task: None,
            chores: VecDeque::new(),
            identify: None,
            limits: NvmLimits::default(),
            version: 0,
            roles: Vec::new(),
            made: Vec::new(),
            pair_resets: Vec::new(),
            doorbell_buffers: false,
            interrupts: Vec::new(),
            service,
            namespaces: BTreeMap::new(),
            scan: Vec::new(),
            scanned: Vec::new(),
            identified: None,
            events: Events::default(),
            tickets: Tickets::default(),
            aborts: VecDeque::new(),
            now: Instant::ZERO,
            next_watch: Instant::ZERO,
            next_health: None,
            resets_in_a_row: 0,
            reset_reason: None,
            reset_wanted: false,
            detach_wanted: false,
            returning: false,
            failure: None,
            critical_warning: 0,
            error_count: None,
            strange_seen: 0,
            aborts_sent: 0,
            queue_resets: 0,
            controller_resets: 0,
            events_received: 0,
            shared,
        }
    }

    pub(crate) fn read32(&self, offset: u64) -> u32 {
        self.function.bar.read32(offset).unwrap_or(u32::MAX)
    }

    pub(crate) fn status(&self) -> ControllerStatus {
        ControllerStatus(self.read32(register::CSTS))
    }

    pub(crate) fn poll(&mut self, now: Instant) -> Progress {
        self.now = now;
        let mut moved = self.take_reports();
        moved += self.reap();
        moved += self.service.poll(&self.shared, now);
        if !self.phase.is_over() && !self.function.device.is_present() {
            self.gone();
        }
        self.watch();
        self.follow_wishes();
        moved += usize::from(self.step_phase() == Progress::Busy);
        if self.phase == Phase::Running {
            moved += self.step_running();
        }
        self.check_deadlines();
        if let Some(queue) = &mut self.queue {
            queue.ring_completions();
            queue.ring_submissions();
        }
        Progress::from_count(moved)
    }

    /// What was asked for by other threads.
    fn follow_wishes(&mut self) {
        if std::mem::take(&mut self.detach_wanted) {
            self.begin_detach();
        }
        if std::mem::take(&mut self.reset_wanted) {
            match self.phase {
                Phase::Ended(crate::reset::End::Failed) => self.begin_again(),
                Phase::Running | Phase::Configuring => self.begin_reset(ResetReason::Requested),
                // It is being reset anyway, or there is nothing to reset.
                _ => {}
            }
        }
    }

    fn step_running(&mut self) -> usize {
        let mut moved = 0;
        self.arm_events();
        self.send_aborts();
        if self.task.is_none()
            && let Some(chore) = self.chores.pop_front()
        {
            moved += 1;
            self.start_chore(chore);
        }
        self.step_parking();
        moved += self.step_tickets();
        moved
    }

    /// Sends an admin command. False when the queue is full.
    pub(crate) fn send(
        &mut self,
        owner: Owner,
        entry: Entry,
        data: Option<(Area, u32)>,
        timeout: Option<std::time::Duration>,
    ) -> bool {
        let (Some(queue), Some((bus, layout))) = (&mut self.queue, self.mapped) else { return false };
        let Some(slot) = self.owners.iter().position(|&owner| owner == Owner::Free) else { return false };
        let payload = match data {
            Some((area, length)) => Payload::Data { bus: bus + layout.bounce(area as usize) as u64, length },
            None => Payload::None,
        };
        if !queue.submit(slot as u16, &Command { entry, payload, metadata: Metadata::None }) {
            return false;
        }
        self.owners[slot] = owner;
        self.deadlines[slot] = timeout.map(|timeout| self.now + timeout);
        true
    }

    /// How long admin commands may take.
    pub(crate) fn admin_timeout(&self) -> std::time::Duration {
        match self.shared.options.timeout_admin {
            std::time::Duration::ZERO => std::time::Duration::from_secs(60),
            timeout => timeout,
        }
    }

    /// The admin queue is no more; every command on it was lost.
    pub(crate) fn drop_queue(&mut self) {
        self.queue = None;
        self.owners.fill(Owner::Free);
        self.deadlines.fill(None);
        self.aborts.clear();
        self.task = None;
        self.tickets.interrupt();
    }

    fn reap(&mut self) -> usize {
        let mut count = 0;
        let mut budget = u32::from(ADMIN_SLOTS) * 2;
        while let Some(queue) = &mut self.queue
            && let Some((slot, completion)) = queue.next(&mut budget)
        {
            count += 1;
            let index = usize::from(slot);
            self.deadlines[index] = None;
            match std::mem::replace(&mut self.owners[index], Owner::Free) {
                Owner::Task => self.task_answered(&completion),
                Owner::Event => self.event(&completion),
                Owner::Ticket => self.ticket_answered(&completion),
                // Whether it worked, the completion of the other command tells.
                Owner::Abort | Owner::Free => {}
            }
        }
        if let Some(queue) = &mut self.queue {
            queue.ring_completions();
        }
        count
    }

    /// An Asynchronous Event Request completed.
    fn event(&mut self, completion: &Completion) {
        use wire::nvme::AsynchronousEvent as Event;
        if !completion.status.is_success() {
            return;
        }
        self.events_received += 1;
        let (event, _) = Event::parse(completion.dword0);
        match event {
            Event::NamespacesChanged => self.add_chore(Chore::ChangedNamespaces),
            Event::Health(_) => self.add_chore(Chore::Health),
            Event::Error(information) => {
                self.add_chore(Chore::Errors);
                if information == Event::PERSISTENT_INTERNAL_ERROR {
                    self.begin_reset(ResetReason::FatalStatus);
                }
            }
            Event::FirmwareActivation => {
                self.events.push(ControllerEvent::FirmwareActivation);
                self.add_chore(Chore::Firmware);
            }
            Event::Other { .. } => {}
        }
    }

    /// Keeps Asynchronous Event Requests outstanding (NVMe Base 2.0 §5.2).
    fn arm_events(&mut self) {
        let allowed = self.identify.as_ref().map_or(1, |identify| identify.event_requests_max);
        let outstanding = self.owners.iter().filter(|&&owner| owner == Owner::Event).count();
        for _ in outstanding..usize::from(allowed.min(EVENT_REQUESTS_MAX)) {
            let entry = Entry::new(wire::nvme::command::admin::ASYNCHRONOUS_EVENT_REQUEST, 0);
            if !self.send(Owner::Event, entry, None, None) {
                return;
            }
        }
    }

    fn send_aborts(&mut self) {
        let allowed = self.identify.as_ref().map_or(1, |identify| identify.aborts_max);
        let mut outstanding = self.owners.iter().filter(|&&owner| owner == Owner::Abort).count();
        while outstanding < usize::from(allowed).min(4)
            && let Some(&(queue, command)) = self.aborts.front()
        {
            let timeout = Some(self.admin_timeout());
            if !self.send(Owner::Abort, wire::nvme::command::abort(queue, command), None, timeout) {
                return;
            }
            self.aborts.pop_front();
            self.aborts_sent += 1;
            outstanding += 1;
        }
    }

    fn take_reports(&mut self) -> usize {
        let mut count = 0;
        let most = self.shared.reports.len();
        while count < most
            && let Some(report) = self.shared.reports.pop()
        {
            count += 1;
            match report {
                Report::Abort { queue, epoch, command } => {
                    let current = queue
                        .checked_sub(1)
                        .is_some_and(|pair| self.epoch_of(usize::from(pair)) == Some(epoch));
                    let known = self.aborts.contains(&(queue, command));
                    if current && !known && self.aborts.len() < ABORTS_MAX && self.phase == Phase::Running {
                        self.aborts.push_back((queue, command));
                    }
                }
                Report::Stuck { core, epoch } => {
                    let role = if core < self.shared.seats.len() { Role::Seat(core) } else { Role::Service };
                    if let Some(pair) = self.roles.iter().position(|&other| other == role)
                        && self.epoch_of(pair) == Some(epoch)
                        && self.phase == Phase::Running
                    {
                        self.stuck(pair);
                    }
                }
                Report::Broken => self.next_watch = self.now,
            }
        }
        count
    }

    /// The epoch of a queue pair.
    fn epoch_of(&self, pair: usize) -> Option<u64> {
        match self.roles.get(pair)? {
            Role::Seat(seat) => self.shared.seats.get(*seat).map(|seat| seat.gate.state().epoch),
            Role::Service => Some(self.service.epoch),
        }
    }

    /// Looks at the status register now and then: nobody else would see a controller die that has nothing to do.
    fn watch(&mut self) {
        let watched = matches!(self.phase, Phase::Running | Phase::Configuring);
        if !watched || self.now < self.next_watch {
            return;
        }
        self.next_watch = self.now + self.shared.options.watch_interval;
        let status = self.status();
        if status.absent() {
            return self.gone();
        }
        if status.fatal() {
            return self.begin_reset(ResetReason::FatalStatus);
        }
        let strange = self.statistics().strange_completions;
        if strange > self.strange_seen {
            self.events.push(ControllerEvent::StrangeCompletions { count: strange - self.strange_seen });
        }
        self.strange_seen = strange;
        let interval = self.shared.options.health_interval;
        let due = self.next_health.is_none_or(|next| self.now >= next);
        if self.phase == Phase::Running && !interval.is_zero() && due {
            self.next_health = Some(self.now + interval);
            self.add_chore(Chore::Health);
        }
    }

    fn check_deadlines(&mut self) {
        let late = self.deadlines.iter().flatten().any(|&deadline| self.now >= deadline);
        if !late {
            return;
        }
        if self.status().absent() {
            return self.gone();
        }
        self.begin_reset(ResetReason::AdminTimeout);
    }

    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        let busy = self.task.is_some() || !self.chores.is_empty() || self.tickets.is_active();
        let polled = self.interrupts.is_empty() && busy;
        let soon = self.phase.next_timeout(self.now);
        let watch = matches!(self.phase, Phase::Running | Phase::Configuring).then_some(self.next_watch);
        let deadline = self.deadlines.iter().flatten().min().copied();
        [polled.then_some(self.now), soon, watch, deadline, self.service.next_timeout(self.now)]
            .into_iter()
            .flatten()
            .min()
    }

    /// See [`crate::Controller::wake_descriptors`].
    pub(crate) fn wake_descriptors(&self, visit: &mut dyn FnMut(i32)) {
        visit(self.shared.bell.arm());
        let own = self.interrupts.first();
        let service = self.service.pair.as_ref().and_then(|pair| pair.interrupt());
        for interrupt in own.into_iter().chain(service) {
            let mut counter = [0; 8];
            // EAGAIN: nothing came. What comes after this makes it readable again.
            let _ = rustix::io::read(interrupt.as_fd(), &mut counter);
            visit(interrupt.as_raw_fd());
        }
    }

    pub(crate) fn statistics(&self) -> crate::ControllerStatistics {
        let mut sum = crate::ControllerStatistics {
            queue_pairs: self.roles.len() as u16,
            cores_sharing: 0,
            aborts: self.aborts_sent,
            queue_resets: self.queue_resets,
            controller_resets: self.controller_resets,
            asynchronous_events: self.events_received,
            bounce_copies: self.shared.bounce_copies.load(Ordering::Relaxed),
            events_dropped: self.events.dropped(),
            ..crate::ControllerStatistics::default()
        };
        for seat in &self.shared.seats {
            seat.counters.sum_into(&mut sum);
            sum.cores_sharing += u16::from(seat.gate.state().door == Door::Shared);
        }
        for pair in [self.queue.as_ref(), self.service.pair.as_deref()].into_iter().flatten() {
            sum.strange_completions += pair.counters.strange;
        }
        if let Some(pair) = &self.service.pair {
            sum.commands += pair.counters.commands;
            sum.completions += pair.counters.completions;
            sum.errors += pair.counters.errors;
            sum.submission_doorbells += pair.counters.submission_doorbells;
            sum.completion_doorbells += pair.counters.completion_doorbells;
        }
        sum
    }

    pub(crate) fn set_state(&self, state: ControllerState) {
        self.shared.set_state(state);
    }
}
