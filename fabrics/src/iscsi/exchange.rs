//! Exchanges: one per SCSI command on its way between the wire and the engine.

use std::time::Duration;

use base::{DataBuf, Instant, Key};
use scsi::{CommandStatus, TaskId};
use wire::scsi::Lun;

/// Bursts of one command that the engine may have lent at a time, and R2Ts of one command that may be outstanding.
pub(super) const BURSTS_MAX: usize = 8;

/// How long a host may take for the next PDU of data it was asked for, however often it answers pings meanwhile.
pub(super) const DATA_OUT_PATIENCE: Duration = Duration::from_secs(60);

/// A burst of Data-Out the engine asked for, with the buffer it lent.
#[derive(Debug)]
pub(super) struct Burst {
    /// Offset in the command's data.
    pub offset: u32,
    /// Its length.
    pub length: u32,
    /// The buffer; not here while the connection receives into it.
    pub data: Option<DataBuf>,
    /// Bytes that are there, or are taken as there after a digest error.
    pub filled: u32,
    /// Bytes from the start that are there or solicited.
    pub requested: u32,
    /// A data digest error happened in it.
    pub damaged: bool,
}

/// An R2T that is not fulfilled yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Solicitation {
    pub target_transfer_tag: u32,
    /// Offset of the burst it belongs to.
    pub burst: u32,
    /// Where the next Data-Out PDU must begin.
    pub next: u32,
    /// Where the sequence ends.
    pub end: u32,
    /// DataSN of the next Data-Out PDU.
    pub data_sn: u32,
}

/// Unsolicited Data-Out PDUs that are still to come, and what came of them (RFC 7143 §4.2.5.2).
#[derive(Debug)]
pub(super) struct Unsolicited {
    /// Where the next PDU must begin.
    pub next: u32,
    /// Where the unsolicited data may end at most.
    pub end: u32,
    /// DataSN of the next PDU.
    pub data_sn: u32,
}

/// Unsolicited data kept until the engine asks for it.
#[derive(Debug)]
pub(super) struct Stash {
    /// Offset of the buffer's first byte in the command's data.
    pub offset: u32,
    /// The buffer; not here while the connection receives into it. Longer than `filled` until all has come.
    pub data: Option<DataBuf>,
    /// Bytes that came.
    pub filled: u32,
    /// A data digest error happened in it.
    pub damaged: bool,
}

/// One SCSI command between its PDU and its last word.
#[derive(Debug)]
pub(super) struct Exchange {
    pub session: Key,
    pub connection: Key,
    pub tag: u32,
    pub lun: Lun,
    /// Took a place in the command window, not given back yet.
    pub counted: bool,
    pub immediate: bool,
    /// The engine's name for the task, known from its first effect.
    pub task: Option<TaskId>,
    pub read: bool,
    pub write: bool,
    pub expected_in: u32,
    pub expected_out: u32,
    /// DataSN and R2TSN share one sequence (RFC 7143 §11.8.3, bidirectional commands).
    pub data_sn: u32,
    pub unsolicited: Option<Unsolicited>,
    pub stash: Option<Stash>,
    pub bursts: [Option<Burst>; BURSTS_MAX],
    pub solicitations: [Option<Solicitation>; BURSTS_MAX],
    /// The end of the command, waiting for data that the initiator still has to send (RFC 7143 §11.4.2).
    pub held: Option<CommandStatus>,
    /// The engine asked to terminate.
    pub terminating: bool,
    /// Status stands in the transmit queue.
    pub answered: bool,
    /// When data was last asked for or came.
    pub data_at: Instant,
    /// PDUs of this exchange in the transmit ring.
    pub in_ring: u32,
}

impl Exchange {
    /// Solicited or unsolicited data is still to come.
    pub fn awaits_data(&self) -> bool {
        self.unsolicited.is_some() || self.solicitations.iter().any(Option::is_some)
    }

    /// Data that was asked for has not come for so long that nobody need hold buffers for it.
    pub fn is_overdue(&self, now: Instant) -> bool {
        self.awaits_data() && now.since(self.data_at) > DATA_OUT_PATIENCE
    }

    /// R2Ts not fulfilled.
    pub fn outstanding_r2t(&self) -> usize {
        self.solicitations.iter().flatten().count()
    }

    /// The burst at `offset`.
    pub fn burst_mut(&mut self, offset: u32) -> Option<&mut Burst> {
        self.bursts.iter_mut().flatten().find(|burst| burst.offset == offset)
    }

    /// The solicitation with `tag`.
    pub fn solicitation_mut(&mut self, tag: u32) -> Option<&mut Solicitation> {
        self.solicitations.iter_mut().flatten().find(|one| one.target_transfer_tag == tag)
    }

    /// Forgets the solicitation with `tag`; true when there was one.
    pub fn retire(&mut self, tag: u32) -> bool {
        for place in &mut self.solicitations {
            if place.is_some_and(|one| one.target_transfer_tag == tag) {
                *place = None;
                return true;
            }
        }
        false
    }

    /// Gives back the lent buffers that no R2T is out for.
    pub fn release_unsolicited_bursts(&mut self) {
        for place in &mut self.bursts {
            let Some(offset) = place.as_ref().map(|burst| burst.offset) else { continue };
            if !self.solicitations.iter().flatten().any(|one| one.burst == offset) {
                *place = None;
            }
        }
    }
}
