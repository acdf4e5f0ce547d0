use std::net::SocketAddr;
use std::sync::Arc;

use scsi::TargetDeviceId;

/// A snapshot of everything the iSCSI port needs to know. The control plane builds a new one for each change and
/// hands it to every core; nobody changes one in place. The default admits nobody to nothing.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// Grows with every snapshot.
    pub generation: u64,
    /// Node-wide options.
    pub options: Options,
    /// Portal groups.
    pub portal_groups: Vec<PortalGroup>,
    /// Initiator groups.
    pub initiator_groups: Vec<InitiatorGroup>,
    /// Secrets.
    pub auth_groups: Vec<AuthGroup>,
    /// Target nodes.
    pub targets: Vec<TargetNode>,
    /// Authentication of discovery sessions.
    pub discovery_auth: AuthPolicy,
    /// False until the whole start-up configuration is loaded: logins get 0301h service unavailable, never 0203h.
    pub ready: bool,
}

/// Options of the iSCSI port; the names in SPDK's `iscsi_set_options` are given where they differ.
#[derive(Debug, Clone)]
pub struct Options {
    /// Seconds a login may take in all.
    pub login_timeout_s: u32,
    /// Seconds of silence before a NOP-In asks whether the initiator is there (`nop_in_interval`); 0 never asks, and
    /// then a host that withholds data it was asked for is not noticed either.
    pub nop_in_interval_s: u32,
    /// Seconds the initiator has to answer it (`nop_timeout`).
    pub nop_timeout_s: u32,
    /// Our MaxRecvDataSegmentLength.
    pub max_recv_data_segment_length: u32,
    /// MaxBurstLength we offer at most.
    pub max_burst_length: u32,
    /// FirstBurstLength we offer at most; never more than 256 KiB is offered, which is what a buffer holds.
    pub first_burst_length: u32,
    /// MaxOutstandingR2T we accept at most.
    pub max_outstanding_r2t: u16,
    /// ImmediateData we accept.
    pub immediate_data: bool,
    /// InitialR2T we insist on.
    pub initial_r2t: bool,
    /// Connections before login, per core.
    pub half_open_connections_max: u32,
    /// Connections before login from one address, per core.
    pub half_open_connections_per_address_max: u32,
    /// Commands a session may have outstanding (`max_queue_depth`).
    pub queue_depth_max: u32,
    /// DefaultTime2Wait we offer.
    pub default_time_to_wait: u16,
    /// DefaultTime2Retain we offer.
    pub default_time_to_retain: u16,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            login_timeout_s: 15,
            nop_in_interval_s: 30,
            nop_timeout_s: 30,
            max_recv_data_segment_length: 256 * 1024,
            max_burst_length: 1024 * 1024,
            first_burst_length: 256 * 1024,
            max_outstanding_r2t: 8,
            immediate_data: true,
            initial_r2t: false,
            half_open_connections_max: 256,
            half_open_connections_per_address_max: 64,
            queue_depth_max: 128,
            default_time_to_wait: 2,
            default_time_to_retain: 0,
        }
    }
}

/// One address initiators connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Portal {
    /// Address and port; an unspecified address listens on all.
    pub address: SocketAddr,
    /// What SendTargets tells instead of `address`: where initiators reach it when an address translator or a
    /// forwarded port stands between.
    pub advertised: Option<SocketAddr>,
}

/// A portal group (RFC 7143 §4.1).
#[derive(Debug, Clone)]
pub struct PortalGroup {
    /// Target portal group tag, 1 and up.
    pub tag: u16,
    /// Its portals.
    pub portals: Vec<Portal>,
    /// Discovery only: full feature sessions are refused.
    pub private: bool,
}

/// Who may come, and from where.
#[derive(Debug, Clone)]
pub struct InitiatorGroup {
    /// Its number.
    pub tag: u32,
    /// iSCSI names; `ANY` admits all, a leading `!` refuses, `*` at the end matches a prefix. First match wins.
    pub initiators: Vec<String>,
    /// `ANY`, addresses, or networks as `10.0.0.0/24`, `[fe80::]/10`.
    pub netmasks: Vec<String>,
}

/// Secrets known under one number.
#[derive(Debug, Clone)]
pub struct AuthGroup {
    /// Its number.
    pub tag: u32,
    /// Its secrets.
    pub secrets: Vec<AuthSecret>,
}

/// One user's secret, and ours for mutual CHAP.
#[derive(Clone, PartialEq, Eq)]
pub struct AuthSecret {
    /// The initiator's CHAP name.
    pub user: String,
    /// Its secret, at least 12 bytes.
    pub secret: String,
    /// Our name for mutual authentication.
    pub mutual_user: Option<String>,
    /// Our secret; never equal to `secret`.
    pub mutual_secret: Option<String>,
}

impl std::fmt::Debug for AuthSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthSecret").field("user", &self.user).finish_non_exhaustive()
    }
}

/// What authentication a login must pass. As in SPDK: `disable_chap`, `require_chap`, `mutual_chap`, `chap_group`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AuthPolicy {
    /// CHAP is not offered.
    pub disable_chap: bool,
    /// Login without CHAP is refused.
    pub require_chap: bool,
    /// The initiator must ask for our proof too.
    pub mutual_chap: bool,
    /// The auth group to look in; 0 means every group.
    pub chap_group: u32,
}

/// Initiators of `initiator_group` may reach a target through `portal_group`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortalGroupMap {
    /// Portal group tag.
    pub portal_group: u16,
    /// Initiator group tag.
    pub initiator_group: u32,
}

/// A target node.
#[derive(Debug, Clone)]
pub struct TargetNode {
    /// The engine's name for it.
    pub target: TargetDeviceId,
    /// iSCSI name, normalised (RFC 3722).
    pub name: Arc<str>,
    /// TargetAlias.
    pub alias: Option<String>,
    /// Who reaches it where.
    pub maps: Vec<PortalGroupMap>,
    /// Authentication.
    pub auth: AuthPolicy,
    /// Header digest is required.
    pub header_digest: bool,
    /// Data digest is required.
    pub data_digest: bool,
    /// Commands a session may have outstanding; 0 means the option's.
    pub queue_depth: u32,
}
