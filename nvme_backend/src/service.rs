//! The service thread's own queue pair: for cores that have none, and for commands passed through.

use std::sync::Arc;

use base::Instant;
use wire::nvme::Completion;

use crate::queue_pair::{Command, QueuePair};
use crate::shared::{RemoteAnswer, RemoteCommand, RemoteEnd, RemotePort, Report, Shared};
use crate::sweep::{overdue, sweep_interval};

/// The service thread's end of a core's rings.
struct Line {
    commands: rtrb::Consumer<RemoteCommand>,
    answers: rtrb::Producer<RemoteAnswer>,
}

/// Whose command is in a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Free,
    Core { seat: u16, slot: u16 },
    Passthrough,
}

/// See the module.
pub(crate) struct Service {
    lines: Vec<Line>,
    pub(crate) pair: Option<Box<QueuePair>>,
    owners: Vec<Owner>,
    free: Vec<u16>,
    next_sweep: Option<Instant>,
    /// The answer to the command passed through.
    pub(crate) passed: Option<Completion>,
    /// The core with which the next round begins.
    first: usize,
    /// Counts the pairs it had, for reports.
    pub(crate) epoch: u64,
}

impl Service {
    /// The service of `cores` cores, with their ends of the rings.
    pub(crate) fn new(cores: usize, depth: u16) -> (Service, Vec<RemotePort>) {
        let capacity = usize::from(depth);
        let (mut lines, mut ports) = (Vec::with_capacity(cores), Vec::with_capacity(cores));
        for _ in 0..cores {
            let (to_service, commands) = rtrb::RingBuffer::new(capacity);
            let (answers, from_service) = rtrb::RingBuffer::new(capacity);
            lines.push(Line { commands, answers });
            ports.push(RemotePort { commands: to_service, answers: from_service });
        }
        let service = Service {
            lines,
            pair: None,
            owners: vec![Owner::Free; capacity],
            free: Vec::with_capacity(capacity),
            next_sweep: None,
            passed: None,
            first: 0,
            epoch: 0,
        };
        (service, ports)
    }

    /// Takes a new, empty pair.
    pub(crate) fn set_pair(&mut self, pair: Box<QueuePair>) {
        self.free.clear();
        self.free.extend((0..pair.slots().min(self.owners.len() as u16)).rev());
        self.pair = Some(pair);
        self.next_sweep = None;
        self.epoch += 1;
    }

    /// The device has forgotten everything: what is in flight is lost. With `end` also what the cores still send.
    pub(crate) fn lose(&mut self, shared: &Shared, end: bool) {
        self.pair = None;
        for index in 0..self.owners.len() {
            if let Owner::Core { seat, slot } = std::mem::replace(&mut self.owners[index], Owner::Free) {
                self.answer(shared, seat, slot, RemoteEnd::Lost);
            }
        }
        self.passed = None;
        if end {
            self.refuse(shared);
        }
    }

    /// Answers what the cores still send to a controller that is no more.
    pub(crate) fn refuse(&mut self, shared: &Shared) {
        for seat in 0..self.lines.len() {
            while let Ok(RemoteCommand { slot, .. }) = self.lines[seat].commands.pop() {
                self.answer(shared, seat as u16, slot, RemoteEnd::Lost);
            }
        }
    }

    fn answer(&mut self, shared: &Shared, seat: u16, slot: u16, end: RemoteEnd) {
        let Some(line) = self.lines.get_mut(usize::from(seat)) else { return };
        // There is room: as many answers as slots, and one for each command.
        let _ = line.answers.push(RemoteAnswer { slot, end });
        if let Some(seat) = shared.seats.get(usize::from(seat)) {
            seat.bell.ring();
        }
    }

    /// Sends a command of the control plane. False when there is no room.
    pub(crate) fn pass(&mut self, command: &Command) -> bool {
        let (Some(pair), Some(&slot)) = (&mut self.pair, self.free.last()) else { return false };
        let sent = pair.submit(slot, command);
        if sent {
            self.free.pop();
            self.owners[usize::from(slot)] = Owner::Passthrough;
            pair.ring_submissions();
        }
        sent
    }

    /// Takes completions, then commands.
    pub(crate) fn poll(&mut self, shared: &Arc<Shared>, now: Instant) -> usize {
        let mut count = 0;
        let mut budget = self.owners.len() as u32;
        while let Some(pair) = &mut self.pair
            && let Some((slot, completion)) = pair.next(&mut budget)
        {
            count += 1;
            self.free.push(slot);
            match std::mem::replace(&mut self.owners[usize::from(slot)], Owner::Free) {
                Owner::Core { seat, slot } => {
                    self.answer(shared, seat, slot, RemoteEnd::Answered(completion.status));
                }
                Owner::Passthrough => self.passed = Some(completion),
                Owner::Free => {}
            }
        }
        if self.pair.is_none() {
            return count;
        }
        count += self.take_commands();
        self.sweep(shared, now);
        let broken = self.pair.as_mut().is_some_and(|pair| {
            pair.ring_completions();
            pair.ring_submissions();
            pair.is_broken()
        });
        if broken {
            shared.report(Report::Broken);
        }
        count
    }

    fn take_commands(&mut self) -> usize {
        let mut count = 0;
        let lines = self.lines.len();
        let Some(pair) = &mut self.pair else { return 0 };
        let mut idle = 0;
        while idle < lines
            && let Some(&slot) = self.free.last()
        {
            let seat = self.first % lines;
            self.first = (self.first + 1) % lines;
            let Some(Ok(remote)) = self.lines.get_mut(seat).map(|line| line.commands.pop()) else {
                idle += 1;
                continue;
            };
            idle = 0;
            count += 1;
            if pair.submit(slot, &remote.command) {
                self.free.pop();
                self.owners[usize::from(slot)] = Owner::Core { seat: seat as u16, slot: remote.slot };
            }
        }
        count
    }

    fn sweep(&mut self, shared: &Arc<Shared>, now: Instant) {
        let Some(interval) = sweep_interval(shared.options.timeout) else { return };
        let Some(pair) = self.pair.as_mut().filter(|pair| pair.in_flight() > 0) else {
            self.next_sweep = None;
            return;
        };
        match self.next_sweep {
            Some(next) if now < next => return,
            None => {
                self.next_sweep = Some(now + interval);
                return;
            }
            Some(_) => self.next_sweep = Some(now + interval),
        }
        let (queue, epoch) = (pair.id(), self.epoch);
        let nobody = shared.seats.len();
        pair.sweep(|_, command, age| {
            overdue(shared, nobody, Report::Abort { queue, epoch, command }, age, epoch)
        });
    }

    /// When it wants to be polled.
    pub(crate) fn next_timeout(&self, now: Instant) -> Option<Instant> {
        let pair = self.pair.as_ref().filter(|pair| pair.in_flight() > 0)?;
        if pair.interrupt().is_some() { self.next_sweep } else { Some(now) }
    }
}
