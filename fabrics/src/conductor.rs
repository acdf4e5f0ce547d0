//! The conductor: one page that drives one core's engine, port and channels, and answers the control plane.

use std::net::SocketAddr;
use std::sync::Arc;

use base::CoreId;
use scsi::{ControlId, ControlOutcome, ControlRequest, LogicalUnitId, Notification};

use crate::iscsi;

/// What the control plane asks of one core. Bounded mailboxes carry it; the answer comes as a [`CoreReply`].
pub enum CoreRequest {
    /// For the engine. Answered by [`CoreReply::Outcome`].
    Scsi(ControlRequest),
    /// A new snapshot for the iSCSI port: listeners of core 0 follow it, and sessions it no longer admits are ended.
    /// Answered by [`CoreReply::Outcome`] when those sessions are gone.
    IscsiConfig(Arc<iscsi::Config>),
    /// Ask every session with this target (or with all) to log out, within `seconds` (RFC 7143 §11.9.1, event 1).
    RequestLogout {
        /// Target name; `None` is all.
        target: Option<Arc<str>>,
        /// Portal group tag; `None` is all.
        portal_group: Option<u16>,
        /// Time given.
        seconds: u16,
    },
    /// Answered by [`CoreReply::Report`].
    Report,
}

/// The answer of one core. Replies to `Scsi` requests come once, from the core that was asked.
#[derive(Debug)]
pub enum CoreReply {
    /// Done or failed.
    Outcome(ControlOutcome),
    /// The state of this core.
    Report(Box<CoreReport>),
    /// Not an answer: something happened. Its id is 0.
    Notification(Notification),
}

/// A request with its number.
pub struct NumberedRequest {
    /// Chosen by the control plane, not 0.
    pub id: ControlId,
    /// The request.
    pub request: CoreRequest,
}

/// A reply with its number and its origin.
#[derive(Debug)]
pub struct NumberedReply {
    /// The number of the request; 0 for notifications.
    pub id: ControlId,
    /// The core that answers.
    pub core: CoreId,
    /// The answer.
    pub reply: CoreReply,
}

/// What one core reports.
#[derive(Debug, Clone, Default)]
pub struct CoreReport {
    /// Connections of this core.
    pub connections: Vec<ConnectionReport>,
    /// Traffic of this core's channels.
    pub units: Vec<UnitTraffic>,
    /// Payload copies made outside the RAM disk, in bytes, since start. Zero on the normal paths.
    pub payload_bytes_copied: u64,
    /// Data buffers out of the pool now, and slots in all.
    pub buffers_outstanding: u32,
    /// Slots of the pool.
    pub buffers: u32,
    /// Tasks alive in the engine.
    pub tasks: u32,
    /// Nexuses alive in the engine.
    pub nexuses: u32,
}

/// One connection, for `iscsi_get_connections`.
#[derive(Debug, Clone)]
pub struct ConnectionReport {
    /// A number unique on the node.
    pub id: u64,
    /// Connection identifier.
    pub cid: u16,
    /// Target session identifying handle; 0 before login.
    pub tsih: u16,
    /// The initiator's address.
    pub peer: SocketAddr,
    /// The portal's address.
    pub local: SocketAddr,
    /// Initiator name; empty before login.
    pub initiator: String,
    /// Target name; empty before login and in discovery sessions.
    pub target: String,
    /// `"login"`, `"full_feature"`, `"logout"`.
    pub state: &'static str,
    /// ISID.
    pub isid: [u8; 6],
    /// Commands outstanding.
    pub outstanding: u32,
}

/// Traffic of one unit's channel on one core since it was opened. Bytes and operations are those that completed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UnitTraffic {
    /// The unit.
    pub unit: Option<LogicalUnitId>,
    /// Reads.
    pub reads: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Writes.
    pub writes: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Discards and zero-writes.
    pub unmaps: u64,
    /// Bytes discarded or zeroed.
    pub bytes_unmapped: u64,
    /// Requests that failed.
    pub errors: u64,
    /// Sum of latencies of reads, in nanoseconds.
    pub read_latency_ns: u64,
    /// Sum of latencies of writes, in nanoseconds.
    pub write_latency_ns: u64,
    /// Sum of latencies of unmaps, in nanoseconds.
    pub unmap_latency_ns: u64,
    /// Requests outstanding now.
    pub outstanding: u32,
}
