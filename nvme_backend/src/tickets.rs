//! Admin requests of the control plane, one at a time.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use wire::nvme::command::{self, Entry};
use wire::nvme::{Completion, HealthLog, IDENTIFY_LENGTH, NSID_ALL, Status, log};

use crate::admin::{Admin, Area, Owner};
use crate::bring_up::Chore;
use crate::namespace::health;
use crate::queue_pair::{Command, Metadata, Payload};
use crate::reset::Phase;
use crate::shared::locked;
use crate::{
    AdminAnswer, AdminError, AdminRequest, ControllerState, ResetReason, TRANSFER_BYTES_MAX, Ticket, Transfer,
};

/// Requests that may be outstanding or unanswered.
const TICKETS_MAX: usize = 16;
/// A format may take so long at least.
const FORMAT: Duration = Duration::from_secs(600);

/// How a request's answer is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    Plain,
    Data(u32),
    Health,
    Format,
}

/// A request on its way.
struct Active {
    ticket: Ticket,
    reading: Reading,
    io: bool,
    until: Option<base::Instant>,
}

/// Requests and answers.
#[derive(Default)]
pub(crate) struct Tickets {
    next: u64,
    waiting: VecDeque<(Ticket, AdminRequest)>,
    active: Option<Active>,
    answers: BTreeMap<Ticket, Result<AdminAnswer, AdminError>>,
    forgotten: Vec<Ticket>,
}

impl Tickets {
    pub(crate) fn is_active(&self) -> bool {
        self.active.is_some() || !self.waiting.is_empty()
    }

    fn answer(&mut self, ticket: Ticket, answer: Result<AdminAnswer, AdminError>) {
        match self.forgotten.iter().position(|&forgotten| forgotten == ticket) {
            Some(at) => {
                self.forgotten.swap_remove(at);
            }
            None => {
                self.answers.insert(ticket, answer);
            }
        }
    }

    pub(crate) fn take(&mut self, ticket: Ticket) -> Option<Result<AdminAnswer, AdminError>> {
        self.answers.remove(&ticket)
    }

    pub(crate) fn forget(&mut self, ticket: Ticket) {
        let pending = self.active.as_ref().is_some_and(|active| active.ticket == ticket);
        let waiting = self.waiting.len();
        self.waiting.retain(|(other, _)| *other != ticket);
        if self.answers.remove(&ticket).is_none() && self.waiting.len() == waiting && pending {
            self.forgotten.push(ticket);
        }
    }

    /// The admin queue is no more.
    pub(crate) fn interrupt(&mut self) {
        if let Some(active) = self.active.take() {
            self.answer(active.ticket, Err(AdminError::Interrupted));
        }
        while let Some((ticket, _)) = self.waiting.pop_front() {
            self.answer(ticket, Err(AdminError::Interrupted));
        }
    }
}

fn invalid<T>(text: impl Into<String>) -> Result<T, AdminError> {
    Err(AdminError::Invalid(text.into()))
}

impl Admin {
    /// See [`crate::Controller::request`].
    pub(crate) fn request(&mut self, request: AdminRequest) -> Result<Ticket, AdminError> {
        let state = self.shared.state();
        if state != ControllerState::Ready {
            return Err(AdminError::NotReady(format!("the controller is {state:?}; wait until it is Ready")));
        }
        self.check(&request)?;
        let tickets = &mut self.tickets;
        let held = tickets.waiting.len() + tickets.answers.len() + usize::from(tickets.active.is_some());
        if held >= TICKETS_MAX {
            return Err(AdminError::Busy);
        }
        tickets.next += 1;
        let ticket = Ticket(tickets.next);
        tickets.waiting.push_back((ticket, request));
        self.shared.bell.ring();
        Ok(ticket)
    }

    fn check(&self, request: &AdminRequest) -> Result<(), AdminError> {
        let length = match request {
            AdminRequest::Log { length, .. } if *length == 0 || *length % 4 != 0 => {
                return invalid("the length of a log page is a multiple of 4, and not 0");
            }
            AdminRequest::Log { length, .. } | AdminRequest::GetFeature { length, .. } => *length,
            AdminRequest::SetFeature { data, .. } => data.len() as u32,
            AdminRequest::Passthrough { io, command, transfer } => {
                let opcode = command[0];
                let queues = [0x00, 0x01, 0x04, 0x05, 0x08, 0x0C, 0x7C];
                if !io && queues.contains(&opcode) {
                    return invalid(format!("admin command {opcode:02x}h is the driver's own business"));
                }
                if *io && self.service.pair.is_none() {
                    return invalid(
                        "the controller has no queue pair to spare for passed-through commands; give it fewer cores",
                    );
                }
                match transfer {
                    Transfer::None => 0,
                    Transfer::In(length) => *length,
                    Transfer::Out(data) => u32::try_from(data.len()).unwrap_or(u32::MAX),
                }
            }
            AdminRequest::Format { format, secure_erase, protection, .. } => {
                if !self.identify.as_ref().is_some_and(|identify| identify.formats()) {
                    return invalid("the controller has no FORMAT NVM command");
                }
                if *format > 63 || *secure_erase > 2 || *protection > 3 {
                    return invalid("format is 0 to 63, secure erase 0 to 2, protection type 0 to 3");
                }
                0
            }
            AdminRequest::Health | AdminRequest::Identify { .. } | AdminRequest::Rescan => 0,
        };
        let identify = self.identify.as_ref();
        let most = identify
            .and_then(|identify| identify.transfer_bytes_max(self.function.capabilities.page_shift_min()));
        let most = most
            .map_or(TRANSFER_BYTES_MAX, |most| TRANSFER_BYTES_MAX.min(most.try_into().unwrap_or(u32::MAX)));
        if length > most {
            return invalid(format!(
                "{length} bytes are more than the {most} that this controller transfers at once"
            ));
        }
        Ok(())
    }

    /// Starts the next request, and sees whether the present one has ended.
    pub(crate) fn step_tickets(&mut self) -> usize {
        if let Some(active) = &self.tickets.active {
            let (io, until) = (active.io, active.until);
            if io && let Some(completion) = self.service.passed.take() {
                self.ticket_answered(&completion);
                return 1;
            }
            if io && until.is_some_and(|until| self.now >= until) {
                self.begin_reset(ResetReason::AdminTimeout);
            }
            return 0;
        }
        if self.phase != Phase::Running {
            return 0;
        }
        let Some((ticket, request)) = self.tickets.waiting.pop_front() else { return 0 };
        if request == AdminRequest::Rescan {
            self.add_chore(Chore::Rescan);
            self.tickets.answer(ticket, Ok(AdminAnswer::Done { dword0: 0, dword1: 0 }));
            return 1;
        }
        let (entry, reading, data, io) = self.prepare(&request);
        let timeout = match reading {
            Reading::Format => self.admin_timeout().max(FORMAT),
            _ => self.admin_timeout(),
        };
        if let (Reading::Data(length), Some(place)) = (reading, self.area(Area::Ticket)) {
            // What a controller leaves unwritten must not be what another request was answered.
            self.memory.write(place, &vec![0; length as usize]);
        }
        if let (AdminRequest::SetFeature { data: bytes, .. }, Some(place)) =
            (&request, self.area(Area::Ticket))
        {
            self.memory.write(place, bytes);
        }
        if let (AdminRequest::Passthrough { transfer: Transfer::Out(bytes), .. }, Some(place)) =
            (&request, self.area(Area::Ticket))
        {
            self.memory.write(place, bytes);
        }
        let sent = if io {
            let payload = match (data, self.mapped) {
                (0, _) | (_, None) => Payload::None,
                (length, Some((bus, layout))) => {
                    Payload::Data { bus: bus + layout.bounce(Area::Ticket as usize) as u64, length }
                }
            };
            self.service.pass(&Command { entry, payload, metadata: Metadata::None })
        } else {
            let area = (data > 0).then_some((Area::Ticket, data));
            self.send(Owner::Ticket, entry, area, Some(timeout))
        };
        if sent {
            let until = io.then(|| self.now + timeout);
            self.tickets.active = Some(Active { ticket, reading, io, until });
        } else {
            self.tickets.waiting.push_front((ticket, request));
        }
        usize::from(sent)
    }

    /// The command of a request: how its answer is read, the bytes it carries, and whether it is for an I/O queue.
    fn prepare(&self, request: &AdminRequest) -> (Entry, Reading, u32, bool) {
        match request {
            AdminRequest::Format { nsid, format, secure_erase, protection, extended } => (
                command::format(*nsid, *format, *extended, *protection, *secure_erase),
                Reading::Format,
                0,
                false,
            ),
            AdminRequest::Health => {
                let length = HealthLog::LENGTH as u32;
                (command::get_log_page(log::page::HEALTH, NSID_ALL, length), Reading::Health, length, false)
            }
            AdminRequest::Log { page, nsid, length } => {
                (command::get_log_page(*page, *nsid, *length), Reading::Data(*length), *length, false)
            }
            AdminRequest::Identify { cns, nsid, csi } => {
                let length = IDENTIFY_LENGTH as u32;
                (command::identify(*cns, *nsid, *csi, 0), Reading::Data(length), length, false)
            }
            AdminRequest::GetFeature { feature, nsid, select, dword11, length } => {
                let reading = if *length > 0 { Reading::Data(*length) } else { Reading::Plain };
                (command::get_features(*feature, *nsid, *select, *dword11), reading, *length, false)
            }
            AdminRequest::SetFeature { feature, nsid, save, dword11, data } => (
                command::set_features(*feature, *nsid, *save, *dword11),
                Reading::Plain,
                data.len() as u32,
                false,
            ),
            AdminRequest::Rescan => (Entry::default(), Reading::Plain, 0, false),
            AdminRequest::Passthrough { io, command, transfer } => {
                // Pointers that came with it point to nowhere.
                let entry = Entry::parse(command).prp(0, 0).metadata(0);
                match transfer {
                    Transfer::None => (entry, Reading::Plain, 0, *io),
                    Transfer::In(0) => (entry, Reading::Plain, 0, *io),
                    Transfer::In(length) => (entry, Reading::Data(*length), *length, *io),
                    Transfer::Out(data) => (entry, Reading::Plain, data.len() as u32, *io),
                }
            }
        }
    }

    pub(crate) fn ticket_answered(&mut self, completion: &Completion) {
        let Some(Active { ticket, reading, .. }) = self.tickets.active.take() else { return };
        let status = completion.status;
        if status.code() == Status::NEEDS_RESET {
            self.begin_reset(ResetReason::Firmware);
        }
        let (dword0, dword1) = (completion.dword0, completion.dword1);
        let answer = match reading {
            _ if !status.is_success() => Err(AdminError::Status(status)),
            Reading::Plain => Ok(AdminAnswer::Done { dword0, dword1 }),
            Reading::Format => {
                self.add_chore(Chore::Rescan);
                Ok(AdminAnswer::Done { dword0, dword1 })
            }
            Reading::Data(length) => {
                Ok(AdminAnswer::Data { dword0, data: self.ticket_data(length as usize) })
            }
            Reading::Health => match HealthLog::parse(&self.ticket_data(HealthLog::LENGTH)) {
                Some(log) => {
                    *locked(&self.shared.health) = Some(health(&log, self.identify.as_ref()));
                    Ok(AdminAnswer::Health(Box::new(log)))
                }
                None => Err(AdminError::Interrupted),
            },
        };
        self.tickets.answer(ticket, answer);
    }

    fn ticket_data(&self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        if let Some(place) = self.area(Area::Ticket) {
            self.memory.read(place, &mut bytes);
        }
        bytes
    }
}
