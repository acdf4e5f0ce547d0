//! A simulated host: one iSCSI initiator that reads, writes, aborts, resets, vanishes and comes back, and tells the oracle
//! about everything it sent and saw.

mod commands;

use std::collections::HashMap;
use std::time::Duration;

use base::{Instant, Prng};
use initiator::{Command, Config, Event, Session};
use wire::iscsi::{LogoutReason, RejectReason};
use wire::scsi::{Lun, Status, TaskAttribute};

use crate::BLOCK;
use crate::network::{PipeId, WireHandle};
use crate::oracle::{Moment, fill};
use crate::world::Shared;

/// Function codes of RFC 7143 §11.5.1.
const ABORT_TASK: u8 = 1;
const ABORT_TASK_SET: u8 = 2;
const CLEAR_TASK_SET: u8 = 4;
const LOGICAL_UNIT_RESET: u8 = 5;
const TARGET_WARM_RESET: u8 = 6;

enum Operation {
    /// `quiet`: no write was open, and none will be sent.
    Read {
        unit: usize,
        lba: u64,
        blocks: u64,
        sent: Moment,
        quiet: bool,
    },
    Write {
        unit: usize,
        stamps: Vec<u64>,
        durable: bool,
    },
    CompareAndWrite {
        unit: usize,
        old: Box<[u8; BLOCK]>,
        stamp: u64,
    },
    Synchronize {
        unit: usize,
        sent: Moment,
    },
    /// VERIFY against what was read before; `quiet`: when nobody wrote any more.
    Verify {
        unit: usize,
        lba: u64,
        data: Vec<u8>,
        sent: Moment,
        quiet: bool,
    },
    Other {
        unit: usize,
    },
}

impl Operation {
    fn stamps(&self) -> &[u64] {
        match self {
            Operation::Write { stamps, .. } => stamps,
            Operation::CompareAndWrite { stamp, .. } => std::slice::from_ref(stamp),
            _ => &[],
        }
    }

    fn unit(&self) -> usize {
        match self {
            Operation::Write { unit, .. }
            | Operation::CompareAndWrite { unit, .. }
            | Operation::Read { unit, .. }
            | Operation::Synchronize { unit, .. }
            | Operation::Verify { unit, .. }
            | Operation::Other { unit } => *unit,
        }
    }
}

/// What a READ gave.
struct Seen {
    unit: usize,
    lba: u64,
    data: Vec<u8>,
    quiet: bool,
}

struct Pending {
    operation: Operation,
    since: Instant,
    what: String,
}

/// What a task management function covers, if it is answered "complete": writes the disk had begun when it was sent.
struct Function {
    covered: Vec<(usize, u64)>,
    /// The command that ABORT TASK names.
    aborted: Option<u32>,
    since: Instant,
    what: &'static str,
}

/// How long a host waits for a command before it asks what became of it: another nexus' reset takes commands away
/// without a word (TAS = 0).
const PATIENCE: Duration = Duration::from_secs(40);

/// One host.
pub struct Client {
    number: usize,
    config: Config,
    wire: WireHandle,
    pipe: Option<PipeId>,
    session: Option<Session>,
    logged_in: bool,
    logging_out: bool,
    login_since: Instant,
    pending: HashMap<u32, Pending>,
    functions: HashMap<u32, Function>,
    /// Writes of sessions that died: over when the same nexus is established anew.
    orphans: Vec<(usize, u64)>,
    /// What the last READ of more than block 0 gave.
    last_seen: Option<Seen>,
    /// Content of block 0 as last read, the basis of the next COMPARE AND WRITE.
    last_read: HashMap<usize, [u8; BLOCK]>,
    prng: Prng,
    /// Commands still to send.
    pub budget: u32,
    depth: usize,
    not_before: Instant,
    /// Verifying reads still to send, after the faults: (unit, lba).
    verify: Vec<(usize, u64)>,
    finished: bool,
}

impl Client {
    /// A host that has not connected yet.
    pub fn new(number: usize, config: Config, wire: WireHandle, mut prng: Prng, budget: u32) -> Client {
        let depth = prng.between(1, 12) as usize;
        Client {
            number,
            config,
            wire,
            pipe: None,
            session: None,
            logged_in: false,
            logging_out: false,
            login_since: Instant::ZERO,
            pending: HashMap::new(),
            functions: HashMap::new(),
            orphans: Vec::new(),
            last_seen: None,
            last_read: HashMap::new(),
            prng,
            budget,
            depth,
            not_before: Instant::ZERO,
            verify: Vec::new(),
            finished: false,
        }
    }

    /// True when it has logged out for good.
    pub fn finished(&self) -> bool {
        self.finished
    }

    /// True when everything it wanted is done and answered, and only the logout is left.
    pub fn is_idle(&self) -> bool {
        let asked_all = self.budget == 0 && self.verify.is_empty();
        self.finished || (self.logged_in && asked_all && self.pending.is_empty() && self.functions.is_empty())
    }

    /// When it wants to act although nothing arrives.
    pub fn next_event(&self) -> Option<Instant> {
        (!self.finished).then_some(self.not_before)
    }

    /// What it still waits for, for the report of a world that does not end.
    pub fn waits_for(&self) -> String {
        let mut words: Vec<String> = self
            .pending
            .values()
            .map(|p| format!("{} since {}", p.what, p.since.as_nanos() / 1000))
            .collect();
        words.extend(
            self.functions.values().map(|f| format!("{} since {}", f.what, f.since.as_nanos() / 1000)),
        );
        words.sort();
        words.truncate(6);
        format!("host {}: logged in {}, {}", self.number, self.logged_in, words.join("; "))
    }

    /// After the faults: read everything once more, then log out.
    pub fn begin_verification(&mut self, units: usize, blocks: u64) {
        self.budget = 0;
        self.verify = (0..units).flat_map(|unit| (0..blocks).map(move |lba| (unit, lba))).collect();
        self.not_before = Instant::ZERO;
    }

    /// Receives, acts, sends. True when something moved.
    pub fn step(&mut self, now: Instant, shared: &mut Shared) -> bool {
        if self.finished {
            return false;
        }
        let mut moved = false;
        if let Some(pipe) = self.pipe {
            let at_once = self.prng.between(1, 20_000) as usize;
            match self.wire.initiator_receive(pipe, at_once) {
                None => {
                    self.connection_lost(now, shared);
                    moved = true;
                }
                Some(bytes) if !bytes.is_empty() => {
                    if let Some(session) = self.session.as_mut() {
                        session.handle_bytes(now, &bytes);
                    }
                    moved = true;
                }
                Some(_) => {}
            }
            self.handle_events(now, shared);
        }
        if now >= self.not_before {
            moved |= self.act(now, shared);
        }
        if let (Some(session), Some(pipe)) = (self.session.as_mut(), self.pipe) {
            let output = session.take_output();
            moved |= !output.is_empty();
            self.wire.initiator_send(pipe, &output);
        }
        moved
    }

    fn connection_lost(&mut self, now: Instant, _shared: &mut Shared) {
        self.pipe = None;
        self.session = None;
        self.logged_in = false;
        self.functions.clear();
        let lost: Vec<Pending> = self.pending.drain().map(|(_, pending)| pending).collect();
        for pending in lost {
            let unit = pending.operation.unit();
            self.orphans.extend(pending.operation.stamps().iter().map(|stamp| (unit, *stamp)));
        }
        if self.logging_out {
            self.logging_out = false;
            if self.budget == 0 && self.verify.is_empty() {
                self.finished = true;
            }
        }
        self.not_before = now + Duration::from_micros(self.prng.below(50_000));
    }

    fn connect(&mut self, now: Instant) {
        trace!(now, "host {} connects", self.number);
        let mut config = self.config.clone();
        config.initial_cmd_sn = self.prng.next_u64() as u32;
        let mut session = Session::new(config);
        session.start(now);
        self.session = Some(session);
        self.pipe = Some(self.wire.connect());
        self.login_since = now;
    }

    fn act(&mut self, now: Instant, shared: &mut Shared) -> bool {
        if self.session.is_none() {
            self.connect(now);
            return true;
        }
        if !self.logged_in || self.logging_out {
            self.not_before = now + Duration::from_millis(1);
            return false;
        }
        if self.chaos(now, shared) || self.abort_overdue(now, shared) {
            return true;
        }
        if self.pending.len() >= self.depth {
            self.not_before = now + Duration::from_micros(100);
            return false;
        }
        if self.budget > 0 {
            self.budget -= 1;
            self.send_random_command(now, shared);
            self.not_before = now + Duration::from_micros(self.prng.below(400));
            return true;
        }
        if let Some(seen) = self.last_seen.take_if(|seen| seen.quiet) {
            self.send_verify(now, shared, seen);
            return true;
        }
        if let Some((unit, lba)) = self.verify.pop() {
            self.send_read(now, shared, unit, lba, 1);
            return true;
        }
        if self.is_idle() && shared.may_log_out {
            self.logging_out = true;
            if let Some(session) = self.session.as_mut() {
                let _ = session.logout(LogoutReason::CloseSession);
            }
            return true;
        }
        self.not_before = now + Duration::from_millis(1);
        false
    }

    /// Aborts, resets, cuts: now and then, while faults last.
    fn chaos(&mut self, now: Instant, shared: &mut Shared) -> bool {
        if shared.faults_over || !self.prng.chance(shared.chaos_per_mille, 1000) {
            return false;
        }
        match self.prng.below(12) {
            0..=4 => self.abort_one(now, shared),
            5 => self.function(now, shared, ABORT_TASK_SET, "ABORT TASK SET"),
            6 => self.function(now, shared, CLEAR_TASK_SET, "CLEAR TASK SET"),
            7 | 8 => self.function(now, shared, LOGICAL_UNIT_RESET, "LOGICAL UNIT RESET"),
            9 if self.prng.chance(1, 3) => self.function(now, shared, TARGET_WARM_RESET, "TARGET WARM RESET"),
            10 => {
                trace!(now, "host {} is cut off", self.number);
                if let Some(pipe) = self.pipe {
                    self.wire.cut(pipe);
                }
                self.connection_lost(now, shared);
            }
            11 if self.pending.is_empty() => {
                self.logging_out = true;
                if let Some(session) = self.session.as_mut() {
                    let _ = session.logout(LogoutReason::CloseSession);
                }
            }
            _ => return false,
        }
        true
    }

    fn abort_one(&mut self, now: Instant, shared: &mut Shared) {
        // A command that waits for the window inside the initiator is not the target's to abort.
        let Some(session) = self.session.as_ref() else { return };
        let mut tags: Vec<u32> = self.pending.keys().copied().filter(|&tag| session.is_sent(tag)).collect();
        tags.sort_unstable();
        if tags.is_empty() {
            return;
        }
        let tag = tags[self.prng.below(tags.len() as u64) as usize];
        self.abort_task(now, shared, tag);
    }

    fn abort_task(&mut self, now: Instant, shared: &mut Shared, tag: u32) {
        let unit = self.pending[&tag].operation.unit();
        let stamps = self.pending[&tag].operation.stamps().iter().map(|stamp| (unit, *stamp));
        let covered = stamps.filter(|write| shared.started.contains(write)).collect();
        if let Some(session) = self.session.as_mut() {
            let request = session.task_management(ABORT_TASK, Lun::from_number(unit as u16), Some(tag));
            trace!(now, "host {} sends ABORT TASK of {tag}, tag {request}", self.number);
            self.functions
                .insert(request, Function { covered, aborted: Some(tag), since: now, what: "ABORT TASK" });
        }
    }

    /// Aborts the first command whose patience is over.
    fn abort_overdue(&mut self, now: Instant, shared: &mut Shared) -> bool {
        let Some(session) = self.session.as_ref() else { return false };
        let is_overdue =
            |(tag, pending): &(&u32, &Pending)| now.since(pending.since) > PATIENCE && session.is_sent(**tag);
        let Some(tag) = self.pending.iter().filter(is_overdue).map(|(tag, _)| *tag).min() else {
            return false;
        };
        if self.functions.values().any(|function| function.aborted == Some(tag)) {
            return false;
        }
        self.abort_task(now, shared, tag);
        true
    }

    fn function(&mut self, now: Instant, shared: &mut Shared, code: u8, what: &'static str) {
        let unit = self.prng.below(shared.units.len() as u64) as usize;
        let everyone = code == LOGICAL_UNIT_RESET || code == CLEAR_TASK_SET || code == TARGET_WARM_RESET;
        let mine = |unit: usize, stamp: u64| {
            self.pending.values().any(|p| p.operation.unit() == unit && p.operation.stamps().contains(&stamp))
        };
        let covered = shared
            .open_writes
            .iter()
            .filter(|write| (write.0 == unit || code == TARGET_WARM_RESET) && shared.started.contains(*write))
            .filter(|write| everyone || mine(write.0, write.1))
            .copied()
            .collect();
        if let Some(session) = self.session.as_mut() {
            let request = session.task_management(code, Lun::from_number(unit as u16), None);
            trace!(now, "host {} sends {what} tag {request} unit {unit}", self.number);
            self.functions.insert(request, Function { covered, aborted: None, since: now, what });
        }
    }

    fn attribute(&mut self) -> TaskAttribute {
        match self.prng.below(20) {
            0..=2 => TaskAttribute::Ordered,
            3 => TaskAttribute::HeadOfQueue,
            _ => TaskAttribute::Simple,
        }
    }

    fn submit(
        &mut self,
        now: Instant,
        shared: &mut Shared,
        command: Command,
        operation: Operation,
        what: String,
    ) {
        let attribute = self.attribute();
        shared.note_order(operation.unit(), operation.stamps(), attribute);
        if let Some(session) = self.session.as_mut() {
            let tag = session.submit(command.attribute(attribute));
            let what = format!("{what} ({attribute:?})");
            trace!(now, "host {} sends {what} tag {tag} stamps {:?}", self.number, operation.stamps());
            self.pending.insert(tag, Pending { operation, since: now, what });
        }
    }

    fn handle_events(&mut self, now: Instant, shared: &mut Shared) {
        while let Some(event) = self.session.as_mut().and_then(Session::poll_event) {
            trace!(now, "host {}: {}", self.number, crate::brief(&event));
            match event {
                Event::LoggedIn { .. } => {
                    self.logged_in = true;
                    for (unit, stamp) in std::mem::take(&mut self.orphans) {
                        shared.end(unit, stamp, "its nexus was reinstated");
                    }
                }
                Event::LoginFailed { class, detail, .. } => {
                    // 0301h service unavailable and 0302h out of resources may pass; anything else is our fault.
                    if class != 3 {
                        shared.violation(
                            now,
                            format!("host {}: login refused with {class:02x}{detail:02x}", self.number),
                        );
                    }
                    if let Some(pipe) = self.pipe {
                        self.wire.initiator_close(pipe);
                    }
                    self.connection_lost(now, shared);
                }
                Event::CommandDone { tag, response, status, sense, data, .. } => {
                    self.command_done(now, shared, tag, response, status, &sense, &data);
                }
                Event::CommandAborted { tag } => {
                    if let Some(pending) = self.pending.remove(&tag) {
                        let unit = pending.operation.unit();
                        for stamp in pending.operation.stamps() {
                            shared.end(unit, *stamp, "a task management function covered it");
                        }
                    }
                }
                Event::TaskManagementDone { tag, response } => {
                    self.function_done(shared, tag, response);
                }
                Event::LoggedOut { .. } => {
                    if let Some(pipe) = self.pipe {
                        self.wire.initiator_close(pipe);
                    }
                    self.connection_lost(now, shared);
                }
                // Too many unanswered functions: the target may say so, and the host tries again later.
                Event::Rejected { reason: RejectReason::ImmediateCommandRejected, header: Some(header) } => {
                    let tag = u32::from_be_bytes([header[16], header[17], header[18], header[19]]);
                    if self.functions.remove(&tag).is_none() {
                        shared.violation(
                            now,
                            format!("host {}: a rejected request that nobody sent", self.number),
                        );
                    }
                }
                Event::Rejected { reason, header } => {
                    shared.violation(
                        now,
                        format!("host {}: rejected with {reason:?}: {header:02x?}", self.number),
                    );
                }
                Event::ProtocolViolation(what) => {
                    shared.violation(now, format!("host {}: {what}", self.number))
                }
                _ => {}
            }
        }
    }

    fn function_done(&mut self, shared: &mut Shared, tag: u32, response: u8) {
        let Some(function) = self.functions.remove(&tag) else { return };
        if response == 0 {
            for (unit, stamp) in function.covered {
                shared.end(unit, stamp, function.what);
            }
        }
        // An abort that failed: a host escalates, here by giving the session up.
        if response > 1
            && function.aborted.is_some()
            && let Some(pipe) = self.pipe
        {
            self.wire.cut(pipe);
        }
        // 0 complete, 1 task does not exist: either way nothing more comes of the command.
        if response <= 1
            && let Some(pending) = function.aborted.and_then(|aborted| self.pending.remove(&aborted))
        {
            let unit = pending.operation.unit();
            for stamp in pending.operation.stamps() {
                shared.end(unit, *stamp, "ABORT TASK was answered");
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one event")]
    fn command_done(
        &mut self,
        now: Instant,
        shared: &mut Shared,
        tag: u32,
        response: u8,
        status: Status,
        sense: &[u8],
        data: &[u8],
    ) {
        let Some(pending) = self.pending.remove(&tag) else {
            return shared.violation(
                now,
                format!("host {}: a response to tag {tag}, which has none to come", self.number),
            );
        };
        let good = response == 0 && status == Status::Good;
        let key = sense.get(2).map_or(0, |byte| byte & 0x0F);
        match pending.operation {
            Operation::Read { unit, lba, blocks, sent, quiet } if good => {
                if data.len() != blocks as usize * BLOCK {
                    return shared
                        .violation(now, format!("{}: GOOD with {} bytes", pending.what, data.len()));
                }
                for (i, block) in data.chunks_exact(BLOCK).enumerate() {
                    let verdict = shared.units[unit].history.read(lba + i as u64, sent, block);
                    shared.check(now, verdict);
                }
                let verdict = shared.units[unit].history.read_as_one(lba, data);
                shared.check(now, verdict);
                if shared.wide && lba > 0 {
                    self.last_seen = Some(Seen { unit, lba, data: data.to_vec(), quiet });
                }
                if lba == 0 {
                    self.last_read.insert(unit, data[..BLOCK].try_into().expect("a block"));
                }
            }
            // GOOD says what a READ of the same data would have said.
            Operation::Verify { unit, lba, data, sent, .. } if good => {
                for (i, block) in data.chunks_exact(BLOCK).enumerate() {
                    let verdict = shared.units[unit].history.read(lba + i as u64, sent, block);
                    shared.check(now, verdict);
                }
            }
            Operation::Verify { quiet: true, .. } if key == 0x0E => {
                // What was read is what is there.
                shared.violation(now, format!("{} found a difference", pending.what));
            }
            Operation::Write { unit, stamps, durable } => {
                for stamp in stamps {
                    shared.finish(unit, stamp, good, durable);
                }
            }
            Operation::CompareAndWrite { unit, old, stamp } => {
                shared.finish(unit, stamp, good, !shared.write_cache);
                if good {
                    let verdict = shared.units[unit].compare_and_write_done(&old[..], stamp);
                    shared.check(now, verdict);
                    self.last_read.insert(unit, fill(stamp, 0));
                } else if key == 0x0E {
                    shared.miscompares += 1;
                }
            }
            Operation::Synchronize { unit, sent } if good => shared.units[unit].history.synchronized(sent),
            _ => {}
        }
        if good {
            shared.commands_good += 1;
        } else {
            shared.commands_failed += 1;
            // After the faults, only unit attentions are still to be delivered.
            let excused =
                key == 0x06 || matches!(status, Status::TaskSetFull | Status::Busy | Status::TaskAborted);
            if shared.faults_over
                && !excused
                && key != 0x0E
                && !shared.fenced
                && pending.since > shared.healed_at
            {
                shared.violation(
                    now,
                    format!("{} failed after the faults: {status:?}, sense {sense:02x?}", pending.what),
                );
            }
        }
    }
}
