use crate::ChapAlgorithm;

/// Discovery or normal (RFC 7143 §13.21).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum SessionKind {
    Discovery,
    Normal,
}

/// How to log in and what to offer.
#[derive(Debug, Clone)]
pub struct Config {
    /// InitiatorName.
    pub initiator_name: String,
    /// TargetName; `None` for discovery.
    pub target_name: Option<String>,
    /// Session type.
    pub kind: SessionKind,
    /// Initiator session identifier.
    pub isid: [u8; 6],
    /// 0 for a new session.
    pub tsih: u16,
    /// Connection identifier.
    pub cid: u16,
    /// CmdSN of the login and of the first command.
    pub initial_cmd_sn: u32,
    /// Authentication.
    pub authentication: Authentication,
    /// Start in the operational stage; only without authentication.
    pub skip_security_stage: bool,
    /// What to offer in the operational stage.
    pub keys: OperationalKeys,
    /// More keys for the operational stage, as they are.
    pub extra_keys: Vec<(String, String)>,
    /// Answer the target's pings by ourselves.
    pub answer_nops: bool,
}

impl Config {
    /// A normal session with `target_name`, without authentication.
    #[must_use]
    pub fn normal(initiator_name: &str, target_name: &str) -> Config {
        Config {
            initiator_name: initiator_name.into(),
            target_name: Some(target_name.into()),
            kind: SessionKind::Normal,
            // Type 10b (random), so that no registered number is claimed (RFC 7143 §11.12.5).
            isid: [0x80, 0, 0, 0, 0, 1],
            tsih: 0,
            cid: 0,
            initial_cmd_sn: 1,
            authentication: Authentication::None,
            skip_security_stage: false,
            keys: OperationalKeys::default(),
            extra_keys: Vec::new(),
            answer_nops: true,
        }
    }

    /// A discovery session, without authentication.
    #[must_use]
    pub fn discovery(initiator_name: &str) -> Config {
        Config { target_name: None, kind: SessionKind::Discovery, ..Config::normal(initiator_name, "") }
    }
}

/// Authentication of the login.
#[derive(Debug, Clone)]
pub enum Authentication {
    /// `AuthMethod=None`.
    None,
    /// CHAP (RFC 7143 §12.1.3).
    Chap(Chap),
}

/// What CHAP needs.
#[derive(Debug, Clone)]
pub struct Chap {
    /// Algorithms offered, best first.
    pub algorithms: Vec<ChapAlgorithm>,
    /// CHAP_N.
    pub name: String,
    /// The secret.
    pub secret: Vec<u8>,
    /// Offer `CHAP,None` and not only `CHAP`.
    pub offer_none: bool,
    /// Have the target prove itself too.
    pub mutual: Option<MutualChap>,
}

/// What mutual CHAP needs besides.
#[derive(Debug, Clone)]
pub struct MutualChap {
    /// The name the target must give; `None` takes any.
    pub name: Option<String>,
    /// The target's secret.
    pub secret: Vec<u8>,
    /// CHAP_I to send.
    pub identifier: u8,
    /// CHAP_C to send; randomness is the caller's.
    pub challenge: Vec<u8>,
}

/// Operational keys to offer (RFC 7143 §13).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperationalKeys {
    /// HeaderDigest list.
    pub header_digest: String,
    /// DataDigest list.
    pub data_digest: String,
    /// MaxConnections.
    pub max_connections: u16,
    /// InitialR2T.
    pub initial_r2t: bool,
    /// ImmediateData.
    pub immediate_data: bool,
    /// MaxRecvDataSegmentLength we declare.
    pub max_recv_data_segment_length: u32,
    /// MaxBurstLength.
    pub max_burst_length: u32,
    /// FirstBurstLength.
    pub first_burst_length: u32,
    /// DefaultTime2Wait, seconds.
    pub default_time_to_wait: u16,
    /// DefaultTime2Retain, seconds.
    pub default_time_to_retain: u16,
    /// MaxOutstandingR2T.
    pub max_outstanding_r2t: u16,
    /// DataPDUInOrder.
    pub data_pdu_in_order: bool,
    /// DataSequenceInOrder.
    pub data_sequence_in_order: bool,
    /// ErrorRecoveryLevel.
    pub error_recovery_level: u8,
    /// iSCSIProtocolLevel (RFC 7144 §7.1.1); not offered when `None`.
    pub protocol_level: Option<u8>,
}

impl Default for OperationalKeys {
    fn default() -> OperationalKeys {
        OperationalKeys {
            header_digest: "None".into(),
            data_digest: "None".into(),
            max_connections: 1,
            initial_r2t: false,
            immediate_data: true,
            max_recv_data_segment_length: 256 * 1024,
            max_burst_length: 1024 * 1024,
            first_burst_length: 256 * 1024,
            default_time_to_wait: 2,
            default_time_to_retain: 0,
            max_outstanding_r2t: 8,
            data_pdu_in_order: true,
            data_sequence_in_order: true,
            error_recovery_level: 0,
            protocol_level: None,
        }
    }
}
