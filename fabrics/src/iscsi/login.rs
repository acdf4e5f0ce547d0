use std::net::SocketAddr;
use std::sync::Arc;

use scsi::NexusIdentity;
use wire::iscsi::{LoginRequest, LoginResponse, LoginStage};

use super::access::{admits, find_target, nexus_identity, portal_group};
use super::chap::{Algorithm, Challenge, Counter, Entropy, SystemEntropy, secrets};
use super::names::normalise;
use super::negotiation::{Key, Negotiation, Offer, TEXT_BYTES_MAX, Use, parse_pairs, put};
use super::{AuthPolicy, Config};

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

/// Requests in one login; RFC 7143 §6.2 wants six exchanges at least, and text may come in small pieces.
const REQUESTS_MAX: u32 = 256;
/// Longest alias kept, in bytes.
const ALIAS_BYTES_MAX: usize = 255;

/// Status class and detail of a Login Response (RFC 7143 §11.13.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Status(u8, u8);

impl Status {
    const INITIATOR_ERROR: Status = Status(2, 0x00);
    const AUTHENTICATION_FAILURE: Status = Status(2, 0x01);
    const AUTHORIZATION_FAILURE: Status = Status(2, 0x02);
    const NOT_FOUND: Status = Status(2, 0x03);
    const UNSUPPORTED_VERSION: Status = Status(2, 0x05);
    const MISSING_PARAMETER: Status = Status(2, 0x07);
    const SESSION_TYPE_NOT_SUPPORTED: Status = Status(2, 0x09);
    const INVALID_DURING_LOGIN: Status = Status(2, 0x0B);
    const TARGET_ERROR: Status = Status(3, 0x00);
    const SERVICE_UNAVAILABLE: Status = Status(3, 0x01);
}

/// Why a login ends.
#[derive(Debug)]
struct Refusal {
    status: Status,
    reason: String,
}

fn refuse<T>(status: Status, reason: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { status, reason: reason.into() })
}

/// Errors of the negotiation are the initiator's.
impl From<&'static str> for Refusal {
    fn from(reason: &'static str) -> Refusal {
        Refusal { status: Status::INITIATOR_ERROR, reason: reason.to_owned() }
    }
}

/// What every request of a login repeats (RFC 7143 §11.12).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fixed {
    isid: [u8; 6],
    tsih: u16,
    cid: u16,
    initiator_task_tag: u32,
    version_max: u8,
    version_min: u8,
}

impl Fixed {
    fn of(request: &LoginRequest) -> Fixed {
        Fixed {
            isid: request.isid,
            tsih: request.tsih,
            cid: request.cid,
            initiator_task_tag: request.initiator_task_tag,
            version_max: request.version_max,
            version_min: request.version_min,
        }
    }
}

/// Who logs in to what: known after the first complete request.
#[derive(Debug, Clone)]
struct Parties {
    session_type: SessionType,
    initiator: Arc<str>,
    target: Option<Arc<str>>,
    portal_group: u16,
}

/// Progress of the SecurityNegotiation stage.
#[derive(Debug)]
enum Security {
    /// No method was named.
    Undecided,
    /// We named CHAP and wait for the initiator to take it.
    Proposed,
    /// None was chosen.
    NoMethod,
    /// CHAP was chosen; CHAP_A comes next.
    Chap,
    /// Our challenge is out.
    Challenged(Challenge),
    /// This user proved itself.
    Proven(String),
}

/// The keys of one request, sorted.
#[derive(Debug, Default)]
struct Keys<'a> {
    initiator_name: Option<&'a str>,
    target_name: Option<&'a str>,
    session_type: Option<&'a str>,
    auth_method: Option<&'a str>,
    chap_a: Option<&'a str>,
    chap_i: Option<&'a str>,
    chap_c: Option<&'a str>,
    chap_n: Option<&'a str>,
    chap_r: Option<&'a str>,
    operational: Vec<(Key, &'a str)>,
    unknown: Vec<&'a str>,
}

/// The login phase of one connection (RFC 7143 §6.3), a pure state machine. `StatSN`, `ExpCmdSN` and `MaxCmdSN` of the
/// responses are filled in by the connection. It keeps at most 8 KiB of text and 64 unknown keys.
#[derive(Debug)]
pub struct LoginMachine {
    entropy: Box<dyn Entropy + Send>,
    fixed: Option<Fixed>,
    stage: LoginStage,
    over: bool,
    requests: u32,
    pending: Vec<u8>,
    negotiation: Negotiation,
    parties: Option<Parties>,
    alias: Option<String>,
    security: Security,
}

impl LoginMachine {
    /// A connection that has just been accepted; challenges come from the operating system.
    #[must_use]
    pub fn new() -> LoginMachine {
        LoginMachine::with_entropy(Box::new(SystemEntropy))
    }

    /// A connection that has just been accepted, with another source of challenges (the simulation's seed).
    #[must_use]
    pub fn with_entropy(entropy: Box<dyn Entropy + Send>) -> LoginMachine {
        LoginMachine {
            entropy,
            fixed: None,
            stage: LoginStage::SecurityNegotiation,
            over: false,
            requests: 0,
            pending: Vec::new(),
            negotiation: Negotiation::default(),
            parties: None,
            alias: None,
            security: Security::Undecided,
        }
    }

    /// Takes one Login Request with its data segment, and writes the text of the response to `reply` (cleared
    /// first; at most 8,192 bytes). After [`LoginStep::Finish`] or [`LoginStep::Fail`] the login is over, and every
    /// further request fails with 020Bh.
    pub fn handle_request(
        &mut self,
        environment: LoginEnvironment<'_>,
        request: &LoginRequest,
        data: &[u8],
        reply: &mut Vec<u8>,
    ) -> LoginStep {
        reply.clear();
        match self.step(environment, request, data, reply) {
            Ok(step) => {
                self.over = matches!(step, LoginStep::Finish(..));
                step
            }
            Err(refusal) => {
                self.over = true;
                self.pending = Vec::new();
                reply.clear();
                let mut response = respond(request, LoginStage::SecurityNegotiation, None, 0);
                (response.status_class, response.status_detail) = (refusal.status.0, refusal.status.1);
                LoginStep::Fail(response, refusal.reason)
            }
        }
    }

    fn step(
        &mut self,
        environment: LoginEnvironment<'_>,
        request: &LoginRequest,
        data: &[u8],
        reply: &mut Vec<u8>,
    ) -> Result<LoginStep, Refusal> {
        self.check_header(environment.config, request)?;
        if self.pending.len().saturating_add(data.len()) > TEXT_BYTES_MAX {
            return refuse(Status::INITIATOR_ERROR, "more than 8192 bytes of login text");
        }
        // Exactly, so that doubling does not pass the bound.
        self.pending.reserve_exact(data.len());
        self.pending.extend_from_slice(data);
        if request.continue_ {
            // Half a text is answered with nothing (RFC 7143 §6.2).
            return Ok(LoginStep::Continue(respond(request, self.stage, None, 0)));
        }
        let text = std::mem::take(&mut self.pending);
        let pairs = parse_pairs(&text)?;
        let keys = self.sort(&pairs)?;
        if self.parties.is_none() {
            let parties = establish(environment, &keys)?;
            put(reply, Key::TargetPortalGroupTag.name(), &parties.portal_group.to_string());
            self.parties = Some(parties);
        } else if keys.session_type.is_some() {
            return refuse(Status::INITIATOR_ERROR, "SessionType after the first request");
        }
        for key in &keys.unknown {
            put(reply, key, "NotUnderstood");
        }
        let (parties, policy, offer, alias) = self.terms(environment)?;
        let next = match self.stage {
            LoginStage::SecurityNegotiation => {
                self.negotiate_security(environment.config, &policy, &keys, reply)?;
                self.leave_security(request, &policy, &offer)
            }
            _ => {
                self.require_proof(environment.config, &policy)?;
                self.negotiation.negotiate(&offer, &keys.operational, reply)?;
                self.negotiation.declare(&offer, alias.as_deref(), reply);
                self.leave_operational(request, &offer, reply)?
            }
        };
        if reply.len() > TEXT_BYTES_MAX {
            return refuse(Status::INITIATOR_ERROR, "the answers do not fit into one response");
        }
        let response = respond(request, self.stage, next, reply.len());
        match next {
            Some(LoginStage::FullFeaturePhase) => {
                self.require_proof(environment.config, &policy)?;
                let outcome = self.outcome(environment, parties, &offer, request)?;
                Ok(LoginStep::Finish(response, Box::new(outcome)))
            }
            Some(stage) => {
                self.stage = stage;
                Ok(LoginStep::Continue(response))
            }
            None => Ok(LoginStep::Continue(response)),
        }
    }

    /// The header's rules: what must stay the same, the version, and the order of stages (RFC 7143 §6.3, §11.12).
    fn check_header(&mut self, config: &Config, request: &LoginRequest) -> Result<(), Refusal> {
        if self.over {
            return refuse(Status::INVALID_DURING_LOGIN, "a login request after the end of the login");
        }
        self.requests = self.requests.saturating_add(1);
        if self.requests > REQUESTS_MAX {
            return refuse(Status::INITIATOR_ERROR, "too many login requests");
        }
        match self.fixed {
            None => {
                if request.version_min > 0 {
                    return refuse(Status::UNSUPPORTED_VERSION, "the initiator does not speak version 0");
                }
                if !config.ready {
                    return refuse(Status::SERVICE_UNAVAILABLE, "the configuration is not loaded yet");
                }
                self.fixed = Some(Fixed::of(request));
                self.stage = request.current_stage;
            }
            Some(fixed) if fixed != Fixed::of(request) => {
                return refuse(
                    Status::INITIATOR_ERROR,
                    "ISID, TSIH, CID, tag or version changed during the login",
                );
            }
            Some(_) => {}
        }
        if request.current_stage == LoginStage::FullFeaturePhase || request.current_stage != self.stage {
            return refuse(Status::INITIATOR_ERROR, "a login request of another stage than the login is in");
        }
        if request.transit && request.continue_ {
            return refuse(Status::INITIATOR_ERROR, "both T and C are set");
        }
        if request.transit && request.next_stage <= request.current_stage {
            return refuse(Status::INITIATOR_ERROR, "the next stage does not come after the current one");
        }
        Ok(())
    }

    /// Sorts the keys of a request, and refuses what does not belong into its stage.
    fn sort<'a>(&mut self, pairs: &[(&'a str, &'a str)]) -> Result<Keys<'a>, Refusal> {
        let mut keys = Keys::default();
        for &(name, value) in pairs {
            let Some((key, usage)) = Key::find(name) else {
                self.negotiation.note_unknown(name, value)?;
                keys.unknown.push(name);
                continue;
            };
            if usage == Use::TargetOnly && value == "NotUnderstood" {
                continue;
            }
            let allowed = match usage {
                Use::AnyStage => true,
                Use::Security => self.stage == LoginStage::SecurityNegotiation,
                Use::Operational => self.stage == LoginStage::LoginOperationalNegotiation,
                Use::TargetOnly | Use::FullFeature => false,
            };
            if !allowed {
                return refuse(Status::INITIATOR_ERROR, format!("{name} does not belong into this stage"));
            }
            // While we propose the method, the answer may say so.
            if !(key == Key::AuthMethod && matches!(self.security, Security::Proposed)) {
                self.negotiation.note(key, value)?;
            }
            let slot = match key {
                Key::InitiatorName => &mut keys.initiator_name,
                Key::TargetName => &mut keys.target_name,
                Key::SessionType => &mut keys.session_type,
                Key::AuthMethod => &mut keys.auth_method,
                Key::ChapA => &mut keys.chap_a,
                Key::ChapI => &mut keys.chap_i,
                Key::ChapC => &mut keys.chap_c,
                Key::ChapN => &mut keys.chap_n,
                Key::ChapR => &mut keys.chap_r,
                Key::InitiatorAlias => {
                    self.alias = Some(cut(value));
                    continue;
                }
                Key::NodeArchitecture => continue,
                _ => {
                    keys.operational.push((key, value));
                    continue;
                }
            };
            if slot.replace(value).is_some() {
                return refuse(Status::INITIATOR_ERROR, format!("{name} was sent twice"));
            }
        }
        Ok(keys)
    }

    /// What the configuration of the moment demands of this login. It may have changed since the last request: a target
    /// that is gone or closed now ends the login.
    fn terms(
        &self,
        environment: LoginEnvironment<'_>,
    ) -> Result<(Parties, AuthPolicy, Offer, Option<String>), Refusal> {
        let config = environment.config;
        let Some(parties) = self.parties.clone() else {
            return refuse(Status::TARGET_ERROR, "the parties of the login are not known");
        };
        let Some(name) = &parties.target else {
            return Ok((parties, config.discovery_auth, Offer::new(&config.options, None), None));
        };
        let Some(target) = find_target(config, name) else {
            return refuse(Status::NOT_FOUND, format!("there is no target {name}"));
        };
        if !admits(config, target, parties.portal_group, &parties.initiator, environment.peer) {
            let (initiator, peer) = (&parties.initiator, environment.peer);
            return refuse(
                Status::AUTHORIZATION_FAILURE,
                format!("{initiator} from {peer} may not log in to {name}"),
            );
        }
        if !portal_group(config, environment.local)
            .is_some_and(|group| group.tag == parties.portal_group && !group.private)
        {
            return refuse(Status::NOT_FOUND, "the portal group was taken away during the login");
        }
        let terms = (target.auth, Offer::new(&config.options, Some(target)), target.alias.clone());
        Ok((parties, terms.0, terms.1, terms.2))
    }

    /// One request of the SecurityNegotiation stage (RFC 7143 §6.3.2, §12.1).
    fn negotiate_security(
        &mut self,
        config: &Config,
        policy: &AuthPolicy,
        keys: &Keys<'_>,
        reply: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        if let Some(list) = keys.auth_method {
            self.choose_method(config, policy, list, reply)?;
        } else if matches!(self.security, Security::Proposed) {
            return refuse(Status::AUTHENTICATION_FAILURE, "the initiator does not take up CHAP");
        } else if matches!(self.security, Security::Undecided) && required(policy) {
            if policy.disable_chap {
                return refuse(Status::AUTHENTICATION_FAILURE, "CHAP is required and not offered");
            }
            // The initiator leaves the first word to us (RFC 7143 §6.3.2).
            put(reply, Key::AuthMethod.name(), "CHAP");
            self.security = Security::Proposed;
        }
        let answers =
            keys.chap_n.is_some() || keys.chap_r.is_some() || keys.chap_i.is_some() || keys.chap_c.is_some();
        match &self.security {
            Security::Chap if answers => {
                refuse(Status::AUTHENTICATION_FAILURE, "an answer before there is a challenge")
            }
            Security::Chap => match keys.chap_a {
                Some(list) => self.challenge(list, reply),
                None => Ok(()),
            },
            Security::Challenged(challenge) if answers && keys.chap_a.is_none() => {
                let challenge = *challenge;
                self.judge(config, policy, &challenge, keys, reply)
            }
            _ if answers || keys.chap_a.is_some() => {
                refuse(Status::AUTHENTICATION_FAILURE, "CHAP keys out of order")
            }
            _ => Ok(()),
        }
    }

    /// AuthMethod: the first method of the list that we have and may use (RFC 7143 §6.2.1). CHAP nobody could pass,
    /// because there are no secrets, is not one we have.
    fn choose_method(
        &mut self,
        config: &Config,
        policy: &AuthPolicy,
        list: &str,
        reply: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        let proposed = matches!(self.security, Security::Proposed);
        if !proposed && !matches!(self.security, Security::Undecided) {
            return refuse(Status::INITIATOR_ERROR, "AuthMethod was settled before");
        }
        let chap = !policy.disable_chap && secrets(config, policy).next().is_some();
        let none = !required(policy) && !proposed;
        match list.split(',').find(|method| (*method == "CHAP" && chap) || (*method == "None" && none)) {
            Some("CHAP") => self.security = Security::Chap,
            Some(_) => self.security = Security::NoMethod,
            None => {
                return refuse(
                    Status::AUTHENTICATION_FAILURE,
                    format!("no method of {list:?} is allowed here"),
                );
            }
        }
        if !(proposed && list == "CHAP") {
            let chosen = if matches!(self.security, Security::Chap) { "CHAP" } else { "None" };
            put(reply, Key::AuthMethod.name(), chosen);
        }
        Ok(())
    }

    /// CHAP_A: answers with the algorithm and our challenge.
    fn challenge(&mut self, list: &str, reply: &mut Vec<u8>) -> Result<(), Refusal> {
        let Some(algorithm) = Algorithm::choose(list) else {
            return refuse(Status::AUTHENTICATION_FAILURE, format!("no CHAP algorithm of {list:?} is ours"));
        };
        let Some(challenge) = Challenge::new(algorithm, &mut *self.entropy) else {
            return refuse(Status::TARGET_ERROR, "no random numbers");
        };
        let (algorithm, identifier, value) = challenge.keys();
        put(reply, Key::ChapA.name(), &algorithm.to_string());
        put(reply, Key::ChapI.name(), &identifier.to_string());
        put(reply, Key::ChapC.name(), &value);
        self.security = Security::Challenged(challenge);
        Ok(())
    }

    /// CHAP_N and CHAP_R, with CHAP_I and CHAP_C when the initiator wants our proof.
    fn judge(
        &mut self,
        config: &Config,
        policy: &AuthPolicy,
        challenge: &Challenge,
        keys: &Keys<'_>,
        reply: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        let (Some(user), Some(response)) = (keys.chap_n, keys.chap_r) else {
            return refuse(Status::AUTHENTICATION_FAILURE, "CHAP_N and CHAP_R come together");
        };
        let counter = match (keys.chap_i, keys.chap_c) {
            (Some(identifier), Some(challenge)) => Some(Counter { identifier, challenge }),
            (None, None) => None,
            _ => return refuse(Status::AUTHENTICATION_FAILURE, "CHAP_I and CHAP_C come together"),
        };
        match challenge.verify(config, policy, user, response, counter) {
            Ok(proof) => {
                if let Some((name, response)) = proof.ours {
                    put(reply, Key::ChapN.name(), &name);
                    put(reply, Key::ChapR.name(), &response);
                }
                self.security = Security::Proven(proof.user);
                Ok(())
            }
            Err(reason) => refuse(Status::AUTHENTICATION_FAILURE, reason),
        }
    }

    /// The stage after SecurityNegotiation, when it is over. Operational negotiation is not skipped when we have
    /// something to propose: we choose the earlier stage (RFC 7143 §6.3).
    fn leave_security(
        &self,
        request: &LoginRequest,
        policy: &AuthPolicy,
        offer: &Offer,
    ) -> Option<LoginStage> {
        let settled = match self.security {
            Security::NoMethod | Security::Proven(_) => true,
            Security::Undecided => !required(policy),
            Security::Proposed | Security::Chap | Security::Challenged(_) => false,
        };
        if !request.transit || !settled {
            return None;
        }
        let complete = self.negotiation.missing(offer).is_empty();
        Some(if complete { request.next_stage } else { LoginStage::LoginOperationalNegotiation })
    }

    fn leave_operational(
        &mut self,
        request: &LoginRequest,
        offer: &Offer,
        reply: &mut Vec<u8>,
    ) -> Result<Option<LoginStage>, Refusal> {
        if !request.transit {
            return Ok(None);
        }
        let missing = self.negotiation.missing(offer);
        if missing.is_empty() {
            return Ok(Some(LoginStage::FullFeaturePhase));
        }
        self.negotiation.propose(missing, reply)?;
        Ok(None)
    }

    /// No login passes without the proof its policy demands, whichever stages it went through; a user who has lost his
    /// place in the configuration since has proved nothing.
    fn require_proof(&self, config: &Config, policy: &AuthPolicy) -> Result<(), Refusal> {
        let proven = match &self.security {
            Security::Proven(user) => secrets(config, policy).any(|secret| secret.user == *user),
            _ => !required(policy),
        };
        if proven { Ok(()) } else { refuse(Status::AUTHENTICATION_FAILURE, "CHAP is required") }
    }

    fn outcome(
        &mut self,
        environment: LoginEnvironment<'_>,
        parties: Parties,
        offer: &Offer,
        request: &LoginRequest,
    ) -> Result<LoginOutcome, Refusal> {
        let target = parties.target.as_ref().and_then(|name| find_target(environment.config, name));
        Ok(LoginOutcome {
            session_type: parties.session_type,
            parameters: self.negotiation.result(offer)?,
            identity: target
                .map(|target| nexus_identity(target, parties.portal_group, &parties.initiator, request.isid)),
            initiator: parties.initiator,
            initiator_alias: self.alias.take(),
            target: parties.target,
            portal_group: parties.portal_group,
            isid: request.isid,
            tsih: request.tsih,
            cid: request.cid,
            chap_user: match &self.security {
                Security::Proven(user) => Some(user.clone()),
                _ => None,
            },
        })
    }
}

impl Default for LoginMachine {
    fn default() -> LoginMachine {
        LoginMachine::new()
    }
}

/// Mutual CHAP is CHAP; a policy that asks for it never lets anybody in without.
fn required(policy: &AuthPolicy) -> bool {
    policy.require_chap || policy.mutual_chap
}

/// The names of the first request (RFC 7143 §6.3.1). A target nobody has is 0203h, one this initiator may not see is
/// 0202h, which [`LoginMachine::terms`] says.
fn establish(environment: LoginEnvironment<'_>, keys: &Keys<'_>) -> Result<Parties, Refusal> {
    let config = environment.config;
    let session_type = match keys.session_type {
        None | Some("Normal") => SessionType::Normal,
        Some("Discovery") => SessionType::Discovery,
        Some(other) => {
            return refuse(Status::SESSION_TYPE_NOT_SUPPORTED, format!("session type {other:?}"));
        }
    };
    let Some(initiator) = keys.initiator_name else {
        return refuse(Status::MISSING_PARAMETER, "InitiatorName is missing");
    };
    let initiator = match normalise(initiator) {
        Ok(name) => Arc::from(name),
        Err(error) => return refuse(Status::INITIATOR_ERROR, format!("InitiatorName: {error}")),
    };
    let group = portal_group(config, environment.local);
    if session_type == SessionType::Discovery {
        let Some(group) = group else {
            return refuse(Status::SERVICE_UNAVAILABLE, "this address belongs to no portal group");
        };
        return Ok(Parties { session_type, initiator, target: None, portal_group: group.tag });
    }
    let Some(name) = keys.target_name else {
        return refuse(Status::MISSING_PARAMETER, "TargetName is missing");
    };
    let target = normalise(name).ok().and_then(|name| find_target(config, &name));
    let (Some(target), Some(group)) = (target, group) else {
        return refuse(Status::NOT_FOUND, format!("there is no target {name:?} here"));
    };
    if group.private {
        return refuse(Status::AUTHORIZATION_FAILURE, "this portal group is for discovery only");
    }
    Ok(Parties { session_type, initiator, target: Some(Arc::clone(&target.name)), portal_group: group.tag })
}

/// The response to a request that went well: `next` is the stage we change to.
fn respond(
    request: &LoginRequest,
    stage: LoginStage,
    next: Option<LoginStage>,
    length: usize,
) -> LoginResponse {
    LoginResponse {
        transit: next.is_some(),
        continue_: false,
        current_stage: stage,
        next_stage: next.unwrap_or(LoginStage::SecurityNegotiation),
        version_max: 0,
        version_active: 0,
        isid: request.isid,
        tsih: request.tsih,
        initiator_task_tag: request.initiator_task_tag,
        stat_sn: 0,
        exp_cmd_sn: 0,
        max_cmd_sn: 0,
        status_class: 0,
        status_detail: 0,
        data_segment_length: u32::try_from(length).unwrap_or(0),
    }
}

/// An alias for people to read: no control characters, at most 255 bytes.
fn cut(alias: &str) -> String {
    let mut kept = String::new();
    for character in alias.chars().filter(|character| !character.is_control()) {
        if kept.len() + character.len_utf8() > ALIAS_BYTES_MAX {
            break;
        }
        kept.push(character);
    }
    kept
}

#[cfg(test)]
#[path = "login_tests.rs"]
pub(crate) mod tests;
