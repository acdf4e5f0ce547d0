use std::net::SocketAddr;
use std::sync::Arc;

use scsi::NexusIdentity;
use wire::iscsi::{LoginRequest, LoginResponse};

use super::Config;

/// What a login may look at.
#[derive(Debug, Clone, Copy)]
pub struct LoginEnvironment<'a> {
    /// The configuration of the moment.
    pub config: &'a Arc<Config>,
    /// The initiator's address.
    pub peer: SocketAddr,
    /// The portal's address.
    pub local: SocketAddr,
}

/// Session types (RFC 7143 §13.21).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum SessionType {
    Discovery,
    Normal,
}

/// The result of negotiation (RFC 7143 §13).
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct SessionParameters {
    pub header_digest: bool,
    pub data_digest: bool,
    pub max_connections: u16,
    pub initial_r2t: bool,
    pub immediate_data: bool,
    /// What we may send: the initiator's MaxRecvDataSegmentLength.
    pub max_send_data_segment_length: u32,
    /// What we accept: ours.
    pub max_recv_data_segment_length: u32,
    pub max_burst_length: u32,
    pub first_burst_length: u32,
    pub default_time_to_wait: u16,
    pub default_time_to_retain: u16,
    pub max_outstanding_r2t: u16,
    pub data_pdu_in_order: bool,
    pub data_sequence_in_order: bool,
    pub error_recovery_level: u8,
    /// iSCSIProtocolLevel (RFC 7144 §7.1.1).
    pub protocol_level: u8,
}

/// A login that was carried through on the initiator's side; the connection now asks the engine for the nexus
/// (normal sessions) and only then sends the last response.
#[derive(Debug, Clone)]
pub struct LoginOutcome {
    /// Discovery or normal.
    pub session_type: SessionType,
    /// Negotiated values.
    pub parameters: SessionParameters,
    /// The nexus; `None` for discovery sessions.
    pub identity: Option<NexusIdentity>,
    /// The initiator's name.
    pub initiator: Arc<str>,
    /// Its alias, cut to 255 bytes.
    pub initiator_alias: Option<String>,
    /// The target's name, for normal sessions.
    pub target: Option<Arc<str>>,
    /// Portal group tag the initiator came through.
    pub portal_group: u16,
    /// ISID of the session.
    pub isid: [u8; 6],
    /// TSIH the initiator asked for: 0 for a new session.
    pub tsih: u16,
    /// Connection identifier.
    pub cid: u16,
    /// The CHAP user that proved itself.
    pub chap_user: Option<String>,
}

/// What to do after a login request.
#[derive(Debug)]
pub enum LoginStep {
    /// Send this response with the text the machine put into `reply`; more requests follow.
    Continue(LoginResponse),
    /// Send this last response (and `reply`) when the session exists, with its TSIH filled in; then enter the full
    /// feature phase.
    Finish(LoginResponse, Box<LoginOutcome>),
    /// Send this response (status class not 0), then close the connection. The text is for the log.
    Fail(LoginResponse, String),
}

/// The login phase of one connection (RFC 7143 §6.3), a pure state machine. `StatSN`, `ExpCmdSN` and `MaxCmdSN` of the
/// responses are filled in by the connection.
#[derive(Debug)]
pub struct LoginMachine {
    _private: (),
}

impl LoginMachine {
    /// A connection that has just been accepted.
    #[must_use]
    pub fn new() -> LoginMachine {
        LoginMachine { _private: () }
    }

    /// Takes one Login Request with its data segment, and writes the text of the response to `reply` (cleared
    /// first; at most 8,192 bytes).
    pub fn handle_request(
        &mut self,
        environment: LoginEnvironment<'_>,
        request: &LoginRequest,
        data: &[u8],
        reply: &mut Vec<u8>,
    ) -> LoginStep {
        let _ = (environment, request, data, reply);
        todo!("login")
    }
}

impl Default for LoginMachine {
    fn default() -> LoginMachine {
        LoginMachine::new()
    }
}
