use wire::iscsi::{AsyncMessage, Bhs, LogoutResponseCode, RejectReason};
use wire::scsi::Status;

use crate::Negotiated;

/// Residual of a transfer (RFC 7143 §11.4.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Residual {
    /// Exactly the expected length.
    #[default]
    None,
    /// That many bytes of the expected length were not moved.
    Underflow(u32),
    /// That many bytes more would have been moved.
    Overflow(u32),
}

impl Residual {
    pub(crate) fn new(overflow: bool, underflow: bool, count: u32) -> Residual {
        match (overflow, underflow) {
            (true, _) => Residual::Overflow(count),
            (_, true) => Residual::Underflow(count),
            _ => Residual::None,
        }
    }
}

/// What happened on a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Login is done; the full feature phase began.
    LoggedIn {
        /// The negotiated values.
        negotiated: Negotiated,
        /// The session's handle.
        tsih: u16,
        /// TargetPortalGroupTag, when the target gave it.
        portal_group_tag: Option<u16>,
        /// TargetAlias, when the target gave it.
        target_alias: Option<String>,
    },
    /// The target refused or redirected the login (RFC 7143 §11.13.5). Nothing more comes.
    LoginFailed {
        /// Status-Class.
        class: u8,
        /// Status-Detail.
        detail: u8,
        /// The text that came with it: TargetAddress of a redirection.
        text: Vec<(String, String)>,
    },
    /// The target did not prove itself (mutual CHAP). Nothing more comes.
    TargetNotAuthentic,
    /// A SCSI command ended.
    CommandDone {
        /// The tag `submit` gave.
        tag: u32,
        /// iSCSI response: 0 completed at target; anything else and the status means nothing.
        response: u8,
        /// SCSI status.
        status: Status,
        /// Sense data without its length field.
        sense: Vec<u8>,
        /// The Data-In buffer, cut to the highest byte received.
        data: Vec<u8>,
        /// Residual of the write, or of the read of a command that does not write.
        residual: Residual,
        /// Residual of the read of a bidirectional command.
        bidirectional_residual: Residual,
    },
    /// A command will never end: a task management function took it away.
    CommandAborted {
        /// Its tag.
        tag: u32,
    },
    /// A task management function ended.
    TaskManagementDone {
        /// The tag `task_management` gave.
        tag: u32,
        /// Response of RFC 7143 §11.6.1.
        response: u8,
    },
    /// A text exchange ended.
    Text {
        /// The tag `text` gave.
        tag: u32,
        /// The pairs of all its responses, in order.
        pairs: Vec<(String, String)>,
    },
    /// Our ping was answered.
    NopDone {
        /// The tag `nop_out` gave.
        tag: u32,
        /// The echoed data.
        data: Vec<u8>,
    },
    /// The target sent a NOP-In by itself.
    NopReceived {
        /// Its target transfer tag; the reserved tag wants no answer.
        target_transfer_tag: u32,
        /// Its data.
        data: Vec<u8>,
    },
    /// Logout was answered.
    LoggedOut {
        /// The answer.
        response: LogoutResponseCode,
        /// Time2Wait, seconds.
        time_to_wait: u16,
        /// Time2Retain, seconds.
        time_to_retain: u16,
    },
    /// An asynchronous message came.
    AsyncMessage {
        /// Its header.
        message: AsyncMessage,
        /// Its data segment.
        data: Vec<u8>,
    },
    /// The target rejected a PDU.
    Rejected {
        /// Why.
        reason: RejectReason,
        /// The header it rejected, when it sent one back.
        header: Option<Bhs>,
    },
    /// The target broke the standard. The text names what and the clause.
    ProtocolViolation(String),
}
