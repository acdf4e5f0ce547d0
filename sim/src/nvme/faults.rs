//! What the controller does wrong, by dice or by plan.

use std::collections::BTreeMap;
use std::time::Duration;

use base::Prng;

use super::status::Status;

/// What goes wrong with one command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommandFault {
    /// It is carried out, data transfer included, and completed only after this time; others overtake it.
    Late(Duration),
    /// It is carried out, and its completion never posted.
    Lost,
    /// Its completion is posted twice.
    Duplicate,
    /// Its completion is posted with the phase tag of the round before.
    WrongPhase,
    /// Before its own, a completion is posted for a command that is not outstanding.
    UnknownCid,
    /// Its completion names another submission queue.
    WrongQueue,
    /// Its completion's SQ Head Pointer is outside the queue.
    WildHead,
    /// It ends with this status; a write may have taken effect or not.
    Status(Status),
    /// Controller Fatal Status is set and everything stops.
    Fatal,
}

/// How often, in a million commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rates {
    /// [`CommandFault::Late`] by up to `late_max`.
    pub late: u32,
    /// The longest delay of `late`.
    pub late_max: Duration,
    /// [`CommandFault::Lost`].
    pub lost: u32,
    /// [`CommandFault::Duplicate`].
    pub duplicate: u32,
    /// [`CommandFault::WrongPhase`].
    pub wrong_phase: u32,
    /// [`CommandFault::UnknownCid`].
    pub unknown_cid: u32,
    /// [`CommandFault::WrongQueue`].
    pub wrong_queue: u32,
    /// [`CommandFault::WildHead`].
    pub wild_head: u32,
    /// A media error: unrecovered read error, or write fault.
    pub media: u32,
    /// Internal error, Do Not Retry clear: the next try may succeed.
    pub transient: u32,
    /// Internal error, Do Not Retry set.
    pub internal: u32,
    /// [`CommandFault::Fatal`].
    pub fatal: u32,
}

/// What Abort does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AbortManner {
    /// It aborts what has not been carried out yet, and says what it did.
    #[default]
    Honest,
    /// It says that it did not abort, and does not.
    Nothing,
    /// It aborts, and its own completion comes after this time.
    Late(Duration),
    /// It says that it has aborted, and the command goes on.
    Lies,
}

/// Values the controller reports instead of the true ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lies {
    /// LBADS of every format.
    pub data_shift: Option<u8>,
    /// NSZE and NCAP.
    pub blocks: Option<u64>,
    /// NCAP alone.
    pub capacity: Option<u64>,
    /// MDTS.
    pub mdts: Option<u8>,
    /// NN.
    pub namespaces: Option<u32>,
    /// NSQA and NCQA of Number of Queues, zero-based.
    pub queues: Option<(u16, u16)>,
    /// FLBAS.
    pub flbas: Option<u8>,
    /// NLBAF.
    pub formats: Option<u8>,
    /// MS of every format.
    pub metadata: Option<u16>,
    /// CAP, whole.
    pub capabilities: Option<u64>,
    /// SQES and CQES.
    pub entry_sizes: Option<(u8, u8)>,
}

/// All faults of one controller.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// By dice.
    pub rates: Rates,
    /// Dice fall for admin commands too.
    pub admin_too: bool,
    /// By plan: the n-th command from now, counted from 0 when the plan was made.
    plan: BTreeMap<u64, CommandFault>,
    /// CSTS.RDY never becomes 1.
    pub never_ready: bool,
    /// CSTS.RDY never becomes 0 again.
    pub never_disabled: bool,
    /// CSTS.SHST never says complete.
    pub never_shut_down: bool,
    /// Admin commands are not fetched.
    pub admin_hung: bool,
    /// The doings of Abort.
    pub abort: AbortManner,
    /// Lying data.
    pub lies: Lies,
    commands: u64,
}

impl Faults {
    /// The `n`-th I/O command from now (0 is the next one) meets `fault`.
    pub fn plan(&mut self, n: u64, fault: CommandFault) {
        self.plan.insert(self.commands + n, fault);
    }

    /// No fault is left: rates, plans and hangs.
    pub fn heal(&mut self) {
        *self = Faults { commands: self.commands, ..Faults::default() };
    }

    /// What happens to the next command. `write` chooses the media error.
    #[inline]
    pub(super) fn decide(&mut self, prng: &mut Prng, admin: bool, write: bool) -> Option<CommandFault> {
        if self.rates == Rates::default() && self.plan.is_empty() {
            return None;
        }
        if admin && !self.admin_too {
            return None;
        }
        let number = self.commands;
        self.commands += 1;
        if let Some(fault) = self.plan.remove(&number) {
            return Some(fault);
        }
        let rates = &self.rates;
        let delay = Duration::from_nanos(prng.below(rates.late_max.as_nanos() as u64 + 1));
        let media = if write { super::status::WRITE_FAULT } else { super::status::UNRECOVERED_READ_ERROR };
        let table = [
            (rates.late, CommandFault::Late(delay)),
            (rates.lost, CommandFault::Lost),
            (rates.duplicate, CommandFault::Duplicate),
            (rates.wrong_phase, CommandFault::WrongPhase),
            (rates.unknown_cid, CommandFault::UnknownCid),
            (rates.wrong_queue, CommandFault::WrongQueue),
            (rates.wild_head, CommandFault::WildHead),
            (rates.media, CommandFault::Status(media)),
            (rates.transient, CommandFault::Status(super::status::INTERNAL_ERROR)),
            (rates.internal, CommandFault::Status(super::status::INTERNAL_ERROR | super::status::DNR)),
            (rates.fatal, CommandFault::Fatal),
        ];
        let mut dice = prng.below(1_000_000);
        for (rate, fault) in table {
            if dice < u64::from(rate) {
                return Some(fault);
            }
            dice -= u64::from(rate);
        }
        None
    }
}
