//! Rows of admin commands, one outstanding at a time: bringing a controller up, looking for namespaces, reading logs,
//! resetting one queue pair.

use wire::nvme::command::{self, Entry, admin};
use wire::nvme::identify::cns;
use wire::nvme::log::page;
use wire::nvme::{
    ChangedNamespaces, Completion, ErrorLogEntry, HealthLog, IDENTIFY_LENGTH, IdentifyController, NSID_ALL,
    NvmLimits, Status, doorbell_offset, feature,
};

use crate::admin::{Admin, Area, Owner, Role};
use crate::namespace::health;
use crate::queue_pair::{Layout, QueuePair, QueuePairParts, Shadow};
use crate::reset::Phase;
use crate::shared::locked;
use crate::{ControllerEvent, ResetReason};

/// Chores that wait; the same one waits once.
const CHORES_MAX: usize = 64;
/// Error log entries that are read at a time.
const ERROR_ENTRIES: u32 = 16;

/// Something to be done while I/O goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chore {
    ResetPair(usize),
    ChangedNamespaces,
    Rescan,
    Health,
    Errors,
    Firmware,
}

/// What the present row of commands is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Task {
    BringUp,
    ResetPair(usize),
    Rescan,
    Log,
}

/// The command that is outstanding, or what is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    IdentifyController,
    Limits,
    Queues,
    Events,
    DoorbellBuffers,
    CreateCompletion(usize),
    CreateSubmission(usize),
    List {
        after: u32,
    },
    Namespace {
        at: usize,
    },
    Identifiers {
        at: usize,
    },
    Log(u8),
    /// A core has to let go of the queue pair.
    Park(usize),
    DeleteSubmission(usize),
    DeleteCompletion(usize),
}

impl Admin {
    pub(crate) fn add_chore(&mut self, chore: Chore) {
        if !self.chores.contains(&chore) && self.chores.len() < CHORES_MAX {
            self.chores.push_back(chore);
        }
    }

    pub(crate) fn start_chore(&mut self, chore: Chore) {
        match chore {
            Chore::ResetPair(pair) => self.start_task(Task::ResetPair(pair), Step::Park(pair)),
            Chore::ChangedNamespaces => self.start_task(Task::Rescan, Step::Log(page::CHANGED_NAMESPACES)),
            Chore::Rescan => self.start_scan(Task::Rescan),
            Chore::Health => self.start_task(Task::Log, Step::Log(page::HEALTH)),
            Chore::Errors => self.start_task(Task::Log, Step::Log(page::ERROR)),
            Chore::Firmware => self.start_task(Task::Log, Step::Log(page::FIRMWARE)),
        }
    }

    /// A queue pair has a command that cannot be aborted.
    pub(crate) fn stuck(&mut self, pair: usize) {
        let options = self.shared.options;
        let recently = self
            .pair_resets
            .get(pair)
            .copied()
            .flatten()
            .is_some_and(|then| self.now.since(then) < options.timeout * 4);
        if recently || options.timeout_action == crate::TimeoutAction::Reset || self.status().fatal() {
            return self.begin_reset(ResetReason::IoTimeout);
        }
        let running = matches!(self.task, Some((Task::ResetPair(other), _)) if other == pair);
        if !running {
            self.add_chore(Chore::ResetPair(pair));
        }
    }

    /// Begins a row of commands.
    pub(crate) fn start_task(&mut self, task: Task, step: Step) {
        self.task = Some((task, step));
        let Some((entry, length)) = self.entry(step) else { return };
        if let Some(place) = self.area(Area::Task).filter(|_| length > 0) {
            // What a controller leaves unwritten must not be taken for its answer.
            self.memory.write(place, &[0; IDENTIFY_LENGTH]);
        }
        let data = (length > 0).then_some((Area::Task, length));
        let timeout = Some(self.admin_timeout());
        if !self.send(Owner::Task, entry, data, timeout) {
            // There is always a slot for the one command of the task; only a queue that is gone has none.
            self.task = None;
        }
    }

    /// The command of a step, and the bytes it brings. `None` for steps that only wait.
    fn entry(&mut self, step: Step) -> Option<(Entry, u32)> {
        let identify = |cns: u8, nsid: u32| (command::identify(cns, nsid, 0, 0), IDENTIFY_LENGTH as u32);
        Some(match step {
            Step::IdentifyController => identify(cns::CONTROLLER, 0),
            Step::Limits => identify(cns::COMMAND_SET_CONTROLLER, 0),
            Step::Queues => {
                let wanted = u32::from(self.pairs_wanted()) - 1;
                (command::set_features(feature::NUMBER_OF_QUEUES, 0, false, wanted << 16 | wanted), 0)
            }
            Step::Events => {
                // All critical warnings, and the notices that the controller has: namespaces, firmware.
                let notices =
                    self.identify.as_ref().map_or(0, |identify| identify.asynchronous_events) & 0x300;
                (command::set_features(feature::ASYNCHRONOUS_EVENTS, 0, false, 0xFF | notices), 0)
            }
            Step::DoorbellBuffers => {
                let (bus, layout) = self.mapped?;
                let values = bus + layout.bounce(Area::Doorbells as usize) as u64;
                let page = self.function.page();
                let start = self.area(Area::Doorbells)?;
                for at in (0..2 * page).step_by(8) {
                    self.memory.store64(start + at, 0);
                }
                (Entry::new(admin::DOORBELL_BUFFER_CONFIG, 0).prp(values, values + page as u64), 0)
            }
            Step::CreateCompletion(index) => {
                let pair = self.make_pair(index)?;
                (pair, 0)
            }
            Step::CreateSubmission(index) => {
                let (bus, layout) = self.pair_memory(index)?;
                let queue = queue_id(index);
                (
                    command::create_submission_queue(
                        queue,
                        layout.entries(),
                        bus + layout.submission() as u64,
                    ),
                    0,
                )
            }
            Step::List { after } => identify(cns::ACTIVE_NAMESPACES, after),
            Step::Namespace { at } => identify(cns::NAMESPACE, *self.scan.get(at)?),
            Step::Identifiers { at } => identify(cns::NAMESPACE_IDENTIFIERS, *self.scan.get(at)?),
            Step::Log(id) => {
                let length = match id {
                    page::ERROR => {
                        let entries = self
                            .identify
                            .as_ref()
                            .map_or(1, |identify| u32::from(identify.error_log_entries));
                        entries.min(ERROR_ENTRIES) * ErrorLogEntry::LENGTH as u32
                    }
                    page::CHANGED_NAMESPACES => 4096,
                    _ => HealthLog::LENGTH as u32,
                };
                (command::get_log_page(id, NSID_ALL, length), length)
            }
            Step::Park(_) => return None,
            Step::DeleteSubmission(index) => (command::delete_queue(queue_id(index), false), 0),
            Step::DeleteCompletion(index) => (command::delete_queue(queue_id(index), true), 0),
        })
    }

    /// The task's command was answered.
    pub(crate) fn task_answered(&mut self, completion: &Completion) {
        let Some((task, step)) = self.task.take() else { return };
        let status = completion.status;
        if !status.is_success() && !self.tolerates(step, status) {
            return self.task_failed(task, step, status);
        }
        let good = status.is_success();
        match step {
            Step::IdentifyController => self.controller_identified(),
            Step::Limits => {
                self.limits = self
                    .read_area(IDENTIFY_LENGTH)
                    .as_deref()
                    .filter(|_| good)
                    .and_then(NvmLimits::parse)
                    .unwrap_or_default();
                self.start_task(task, Step::Queues);
            }
            Step::Queues => self.queues_granted(completion.dword0),
            Step::Events => {
                let identify = self.identify.as_ref();
                let wanted = self.shared.options.shadow_doorbells
                    && identify.is_some_and(IdentifyController::shadow_doorbells);
                self.doorbell_buffers = false;
                let next = if wanted { Step::DoorbellBuffers } else { Step::CreateCompletion(0) };
                self.start_task(task, next);
            }
            Step::DoorbellBuffers => {
                self.doorbell_buffers = good;
                self.start_task(task, Step::CreateCompletion(0));
            }
            Step::CreateCompletion(index) => self.start_task(task, Step::CreateSubmission(index)),
            Step::CreateSubmission(index) => self.pair_created(task, index),
            Step::Park(_) => {}
            Step::DeleteSubmission(index) => {
                // Nothing of the queue is in flight any more (NVMe Base 2.0 §5.6).
                if self.roles.get(index) == Some(&Role::Service) {
                    self.service.lose(&self.shared, false);
                }
                self.start_task(task, Step::DeleteCompletion(index));
            }
            Step::DeleteCompletion(index) => self.start_task(task, Step::CreateCompletion(index)),
            Step::List { after } => self.listed(task, after, good),
            Step::Namespace { at } => self.namespace_identified(task, at, good),
            Step::Identifiers { at } => self.namespace_named(task, at, good),
            Step::Log(id) => self.log_read(task, id, good),
        }
    }

    /// Steps without which life goes on.
    fn tolerates(&self, step: Step, status: Status) -> bool {
        match step {
            Step::Limits
            | Step::Events
            | Step::DoorbellBuffers
            | Step::Namespace { .. }
            | Step::Identifiers { .. }
            | Step::Log(_) => true,
            // Controllers before version 1.1 have no list.
            Step::List { .. } => matches!(status.code(), Status::INVALID_FIELD | Status::INVALID_OPCODE),
            _ => false,
        }
    }

    fn task_failed(&mut self, task: Task, step: Step, status: Status) {
        match (task, step) {
            // The namespaces are as they were; another event will tell of the next change.
            (Task::Rescan | Task::Log, _) => {}
            (Task::ResetPair(_), _) => self.begin_reset(ResetReason::IoTimeout),
            (Task::BringUp, _) => {
                self.failure = Some(format!("{}: {step:?} failed: {status}", self.function.device.name()));
                self.begin_reset(ResetReason::BringUp);
            }
        }
    }

    pub(crate) fn read_area(&self, length: usize) -> Option<Vec<u8>> {
        let start = self.area(Area::Task)?;
        let mut bytes = vec![0; length];
        self.memory.read(start, &mut bytes);
        Some(bytes)
    }

    fn controller_identified(&mut self) {
        self.identify = self.read_area(IDENTIFY_LENGTH).as_deref().and_then(IdentifyController::parse);
        // CNS 06h came with version 2.0; before, there are no limits to be read.
        self.limits = NvmLimits::default();
        let step = if self.version >= 0x2_0000 { Step::Limits } else { Step::Queues };
        self.start_task(Task::BringUp, step);
    }

    /// Queue pairs to ask for: one for each core, and one for the service thread.
    fn pairs_wanted(&self) -> u16 {
        let cores = self.shared.seats.len() as u16;
        let most = match self.shared.options.queue_pairs_max {
            0 => u16::MAX,
            most => most,
        };
        let vectors = match self.interrupts.len() {
            0 => u16::MAX,
            vectors => (vectors - 1) as u16,
        };
        cores.saturating_add(1).min(most).min(vectors).max(1)
    }

    /// Number of Queues was answered (NVMe Base 2.0 §5.27.1.5): both numbers are 0's based.
    fn queues_granted(&mut self, dword0: u32) {
        let granted = (dword0 & 0xFFFF).min(dword0 >> 16) + 1;
        let pairs = granted.min(u32::from(self.pairs_wanted())) as usize;
        // Doorbells must be in the BAR.
        let stride = self.function.capabilities.doorbell_stride();
        let reach =
            |pair: usize| doorbell_offset(queue_id(pair), true, stride) + 4 <= self.function.bar.length();
        let pairs = (0..pairs).take_while(|&pair| reach(pair)).count();
        if pairs == 0 {
            return self.fail(format!(
                "{}: its registers have no room for the doorbells of a queue; update its firmware",
                self.function.device.name()
            ));
        }
        let cores = self.shared.seats.len();
        // The last pair is the service thread's, unless there is exactly one for each core.
        let own = if pairs == cores { cores } else { pairs - 1 };
        self.roles = (0..own).map(Role::Seat).collect();
        if pairs > own {
            self.roles.push(Role::Service);
        }
        self.made = (0..self.roles.len()).map(|_| None).collect();
        self.pair_resets = vec![None; self.roles.len()];
        self.start_task(Task::BringUp, Step::Events);
    }

    /// Commands that a queue pair may have in flight.
    pub(crate) fn slots(&self) -> u16 {
        let entries = self.function.capabilities.queue_entries_max();
        u32::from(self.shared.options.queue_depth).min(entries - 1) as u16
    }

    fn pair_memory(&self, index: usize) -> Option<(u64, Layout)> {
        let bus = match self.roles.get(index)? {
            Role::Seat(seat) => self.seats_mapped.get(*seat),
            Role::Service => self.seats_mapped.last(),
        };
        let bus = (*bus?)?;
        Some((bus, Layout::new(self.slots(), self.function.page(), bus)))
    }

    /// Makes a queue pair, and the command that creates its completion queue.
    fn make_pair(&mut self, index: usize) -> Option<Entry> {
        let (bus, layout) = self.pair_memory(index)?;
        let memory = match self.roles.get(index)? {
            Role::Seat(seat) => self.shared.seats.get(*seat)?.memory.clone(),
            Role::Service => self.service_memory.clone(),
        };
        let queue = queue_id(index);
        let stride = self.function.capabilities.doorbell_stride();
        let vector = usize::from(queue);
        let interrupt = self.interrupts.get(vector).cloned();
        let sgl = self.identify.as_ref().and_then(IdentifyController::sgl_alignment);
        let pair = QueuePair::new(QueuePairParts {
            id: queue,
            layout,
            memory,
            bus,
            bar: self.function.bar.clone(),
            submission_doorbell: doorbell_offset(queue, false, stride),
            completion_doorbell: doorbell_offset(queue, true, stride),
            shadows: self.shadows(queue),
            sgl: sgl.filter(|_| self.shared.options.sgl),
            interrupt: interrupt.clone(),
        });
        *self.made.get_mut(index)? = Some(Box::new(pair));
        let vector = interrupt.map(|_| queue);
        Some(command::create_completion_queue(
            queue,
            layout.entries(),
            bus + layout.completion() as u64,
            vector,
        ))
    }

    /// The doorbell buffers of a queue; both stand where the registers do, counted from the first doorbell.
    fn shadows(&self, queue: u16) -> Option<[Shadow; 2]> {
        let stride = self.function.capabilities.doorbell_stride();
        let start = self.area(Area::Doorbells).filter(|_| self.doorbell_buffers)?;
        let page = self.function.page();
        let shadow = |completion| {
            let place =
                (doorbell_offset(queue, completion, stride) - wire::nvme::register::DOORBELLS) as usize;
            (place + 4 <= page).then(|| Shadow {
                memory: self.memory.clone(),
                value: start + place,
                event: start + page + place,
            })
        };
        Some([shadow(false)?, shadow(true)?])
    }

    fn pair_created(&mut self, task: Task, index: usize) {
        match task {
            Task::BringUp if index + 1 < self.roles.len() => {
                self.start_task(task, Step::CreateCompletion(index + 1))
            }
            Task::BringUp => self.start_scan(task),
            _ => {
                if let Some(then) = self.pair_resets.get_mut(index) {
                    *then = Some(self.now);
                }
                self.queue_resets += 1;
                self.events.push(ControllerEvent::QueueReset { queue: queue_id(index) });
                self.publish_pair(index);
            }
        }
    }

    /// A queue reset waits for its core to let go.
    pub(crate) fn step_parking(&mut self) {
        let Some((task, Step::Park(index))) = self.task else { return };
        let parked = match self.roles.get(index) {
            Some(Role::Seat(seat)) => self.shared.seats.get(*seat).is_none_or(|seat| {
                let parked = seat.gate.park();
                if !parked {
                    seat.wake();
                }
                parked
            }),
            _ => true,
        };
        if parked {
            self.start_task(task, Step::DeleteSubmission(index));
        }
    }

    fn log_read(&mut self, task: Task, id: u8, good: bool) {
        let data = self.read_area(4096).filter(|_| good);
        match (id, data) {
            (page::CHANGED_NAMESPACES, Some(data))
                if ChangedNamespaces::parse(&data) == ChangedNamespaces::Listed(0) => {}
            // Whatever is listed, all are looked at: what is active may have changed too.
            (page::CHANGED_NAMESPACES, Some(_)) => self.start_scan(task),
            (page::CHANGED_NAMESPACES, None) => self.start_scan(task),
            (page::HEALTH, Some(data)) => {
                let log = HealthLog::parse(&data);
                let warning = log.map_or(0, |log| log.critical_warning);
                if let Some(log) = &log {
                    *locked(&self.shared.health) = Some(health(log, self.identify.as_ref()));
                }
                if warning != self.critical_warning {
                    self.critical_warning = warning;
                    if warning != 0 {
                        self.events.push(ControllerEvent::HealthWarning { critical_warning: warning });
                    }
                }
            }
            (page::ERROR, Some(data)) => self.errors_read(&data),
            _ => {}
        }
    }

    /// Tells of the entries that are newer than those seen before, oldest first.
    fn errors_read(&mut self, data: &[u8]) {
        let length = ERROR_ENTRIES as usize * ErrorLogEntry::LENGTH;
        let known = self.identify.as_ref().map_or(1, |identify| usize::from(identify.error_log_entries));
        let length = length.min(known * ErrorLogEntry::LENGTH);
        let seen = self.error_count.unwrap_or(0);
        let mut entries: Vec<_> = ErrorLogEntry::parse_all(data.get(..length).unwrap_or(data))
            .filter(|entry| entry.count > seen)
            .collect();
        entries.sort_by_key(|entry| entry.count);
        for entry in &entries {
            self.events.push(ControllerEvent::ErrorLogEntry {
                count: entry.count,
                status: entry.status,
                lba: entry.lba,
                nsid: entry.nsid,
            });
        }
        self.error_count = entries.last().map(|entry| entry.count).or(self.error_count);
    }

    /// The scan is over.
    pub(crate) fn scan_done(&mut self, task: Task) {
        if task == Task::BringUp && self.phase == Phase::Configuring {
            self.publish();
            self.add_chore(Chore::Health);
        }
    }
}

/// The identifier of queue pair `index`; 0 is the admin queue's.
pub(crate) fn queue_id(index: usize) -> u16 {
    index as u16 + 1
}
