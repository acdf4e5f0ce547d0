//! Text requests of the full feature phase, and SendTargets above all (RFC 7143 §11.10, Appendix C).

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use wire::iscsi::{RejectReason, TextRequest, TextResponse};

use super::access::{admits, find_target};
use super::names::normalise;
use super::negotiation::{Key, KeySet, LENGTHS, TEXT_BYTES_MAX, parse_number, parse_pairs, put};
use super::{
    Config, LoginEnvironment, LoginOutcome, PortalGroup, SessionParameters, SessionType, TargetNode,
};

/// The tag that means none (RFC 7143 §11.10.4).
const RESERVED_TAG: u32 = 0xFFFF_FFFF;
/// Most text in one response, however long the segments are that the initiator takes.
const RESPONSE_BYTES_MAX: usize = 64 * 1024;

/// The target records one SendTargets asks for (RFC 7143 Appendix C), made piece by piece. It holds the configuration
/// it began with, so that a list is of one moment.
#[derive(Debug)]
pub struct TargetListing {
    config: Arc<Config>,
    initiator: Arc<str>,
    peer: SocketAddr,
    local: IpAddr,
    /// The group a target must be reachable through; `None` takes any.
    through: Option<u16>,
    only: Option<String>,
    next_target: usize,
    lines: VecDeque<String>,
}

impl TargetListing {
    /// What `initiator` may see of a discovery session through `portal_group`: the targets it may log in to through this
    /// group, or through any other when this group is for discovery only. `only` asks for one target.
    #[must_use]
    pub fn discovery(
        environment: LoginEnvironment<'_>,
        initiator: &Arc<str>,
        portal_group: u16,
        only: Option<String>,
    ) -> TargetListing {
        let group = environment.config.portal_groups.iter().find(|group| group.tag == portal_group);
        let through = match group {
            Some(group) if group.private => None,
            _ => Some(portal_group),
        };
        TargetListing { through, only, ..TargetListing::of(environment, initiator) }
    }

    /// The paths to the target of a normal session.
    #[must_use]
    pub fn normal(environment: LoginEnvironment<'_>, initiator: &Arc<str>, target: &str) -> TargetListing {
        TargetListing { only: Some(target.to_owned()), ..TargetListing::of(environment, initiator) }
    }

    fn of(environment: LoginEnvironment<'_>, initiator: &Arc<str>) -> TargetListing {
        TargetListing {
            config: Arc::clone(environment.config),
            initiator: Arc::clone(initiator),
            peer: environment.peer,
            local: environment.local.ip().to_canonical(),
            through: None,
            only: None,
            next_target: 0,
            lines: VecDeque::new(),
        }
    }

    /// Appends whole key=value pairs, at most `bytes_max` bytes; true when there are more.
    pub fn next_chunk(&mut self, out: &mut Vec<u8>, bytes_max: usize) -> bool {
        let start = out.len();
        loop {
            while let Some(line) = self.lines.front() {
                let used = out.len().saturating_sub(start);
                if used.saturating_add(line.len()) > bytes_max && used > 0 {
                    return true;
                }
                // A pair that no response can carry is left out; names and addresses are never so long.
                if line.len() <= bytes_max {
                    out.extend_from_slice(line.as_bytes());
                }
                self.lines.pop_front();
            }
            if !self.next_record() {
                return false;
            }
        }
    }

    /// Prepares the next target's record; false after the last.
    fn next_record(&mut self) -> bool {
        while let Some(target) = self.config.targets.get(self.next_target) {
            self.next_target = self.next_target.saturating_add(1);
            if self.only.as_deref().is_some_and(|only| *only != *target.name) {
                continue;
            }
            let addresses = self.addresses(target);
            if addresses.is_empty() {
                continue;
            }
            self.lines.push_back(format!("TargetName={}\0", target.name));
            self.lines.extend(addresses);
            return true;
        }
        false
    }

    /// TargetAddress of each portal this initiator may use; none when it may not come through `through`.
    fn addresses(&self, target: &TargetNode) -> Vec<String> {
        let admitted = |tag: u16| admits(&self.config, target, tag, &self.initiator, self.peer);
        if self.through.is_some_and(|tag| !admitted(tag)) {
            return Vec::new();
        }
        let mut addresses = Vec::new();
        for group in self.config.portal_groups.iter().filter(|group| !group.private && admitted(group.tag)) {
            for address in self.portals(group) {
                let line = format!("TargetAddress={address},{}\0", group.tag);
                if !addresses.contains(&line) {
                    addresses.push(line);
                }
            }
        }
        addresses
    }

    /// The portals' addresses: the advertised one where there is one. A portal that listens on all is told as the address
    /// the initiator reached us by, if that is of its family.
    fn portals(&self, group: &PortalGroup) -> impl Iterator<Item = SocketAddr> {
        let local = self.local;
        group.portals.iter().filter_map(move |portal| {
            let told = portal.advertised.unwrap_or(portal.address);
            let (ip, port) = (told.ip(), told.port());
            let ip = match ip {
                IpAddr::V4(ip) if ip.is_unspecified() && !local.is_ipv4() => return None,
                ip if ip.is_unspecified() => local,
                ip => ip,
            };
            // Without the scope of a link-local address: it means nothing to the initiator.
            Some(SocketAddr::new(ip, port))
        })
    }
}

/// What to do with a Text Request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextStep {
    /// Send this response with the text in `reply`; serial numbers are filled in by the connection.
    Respond(TextResponse),
    /// Send a Reject; the negotiation is forgotten and changed nothing.
    Reject(RejectReason),
}

/// One sequence of Text Requests (RFC 7143 §11.10).
#[derive(Debug)]
struct Exchange {
    initiator_task_tag: u32,
    target_transfer_tag: u32,
    input: Vec<u8>,
    output: Vec<u8>,
    listing: Option<TargetListing>,
    seen: KeySet,
    unknown: Vec<Box<str>>,
    max_send_data_segment_length: Option<u32>,
}

/// Whose connection it is.
#[derive(Debug, Clone)]
struct Peer {
    initiator: Arc<str>,
    target: Option<Arc<str>>,
    portal_group: u16,
}

/// The text negotiation of a connection in full feature phase (RFC 7143 §6.4, §11.10), a pure state machine. There is
/// one at a time. It holds at most 8 KiB of request text.
#[derive(Debug, Default)]
pub struct TextMachine {
    peer: Option<Peer>,
    exchange: Option<Exchange>,
    last_tag: u32,
}

impl TextMachine {
    /// For a connection that has not logged in: it rejects everything until [`TextMachine::begin`].
    #[must_use]
    pub fn new() -> TextMachine {
        TextMachine::default()
    }

    /// The login was carried through.
    pub fn begin(&mut self, outcome: &LoginOutcome) {
        self.peer = Some(Peer {
            initiator: Arc::clone(&outcome.initiator),
            target: outcome.target.clone(),
            portal_group: outcome.portal_group,
        });
    }

    /// Takes one Text Request with its data segment, and writes the response's text to `reply` (cleared first; at most
    /// MaxRecvDataSegmentLength of the initiator, and 64 KiB). What was negotiated goes into `parameters` with the last
    /// response, not before: MaxRecvDataSegmentLength of the initiator can change.
    pub fn handle_request(
        &mut self,
        environment: LoginEnvironment<'_>,
        session_type: SessionType,
        parameters: &mut SessionParameters,
        request: &TextRequest,
        data: &[u8],
        reply: &mut Vec<u8>,
    ) -> TextStep {
        reply.clear();
        let offer = Asked { environment, session_type };
        let flags = match self.step(offer, parameters, request, data, reply) {
            Ok(flags) => flags,
            Err(reason) => {
                self.exchange = None;
                reply.clear();
                return TextStep::Reject(reason);
            }
        };
        TextStep::Respond(TextResponse {
            final_: flags.final_,
            continue_: flags.continue_,
            lun: request.lun,
            initiator_task_tag: request.initiator_task_tag,
            target_transfer_tag: flags.target_transfer_tag,
            stat_sn: 0,
            exp_cmd_sn: 0,
            max_cmd_sn: 0,
            data_segment_length: u32::try_from(reply.len()).unwrap_or(0),
        })
    }

    fn step(
        &mut self,
        asked: Asked<'_>,
        parameters: &mut SessionParameters,
        request: &TextRequest,
        data: &[u8],
        reply: &mut Vec<u8>,
    ) -> Result<Flags, RejectReason> {
        let Some(peer) = self.peer.clone() else { return Err(RejectReason::ProtocolError) };
        if request.continue_ && request.final_ {
            return Err(RejectReason::ProtocolError);
        }
        let mut exchange = self.resume(request)?;
        let target_transfer_tag = exchange.target_transfer_tag;
        if exchange.has_more() {
            // The initiator only asks for the rest (RFC 7143 §6.2).
            if request.continue_ || !data.is_empty() {
                return Err(RejectReason::ProtocolError);
            }
        } else {
            if exchange.input.len().saturating_add(data.len()) > TEXT_BYTES_MAX {
                return Err(RejectReason::OutOfResources);
            }
            exchange.input.extend_from_slice(data);
            if request.continue_ {
                self.exchange = Some(exchange);
                return Ok(Flags { final_: false, continue_: false, target_transfer_tag });
            }
            let text = std::mem::take(&mut exchange.input);
            peer.negotiate(asked, &mut exchange, &text)?;
        }
        let length = usize::try_from(parameters.max_send_data_segment_length).unwrap_or(0);
        exchange.next_chunk(reply, length.clamp(512, RESPONSE_BYTES_MAX));
        let continue_ = exchange.has_more();
        if continue_ || !request.final_ {
            self.exchange = Some(exchange);
            return Ok(Flags { final_: false, continue_, target_transfer_tag });
        }
        if let Some(length) = exchange.max_send_data_segment_length {
            parameters.max_send_data_segment_length = length;
        }
        Ok(Flags { final_: true, continue_: false, target_transfer_tag: RESERVED_TAG })
    }

    /// The exchange a request belongs to: a new one with the reserved tag, which ends any other.
    fn resume(&mut self, request: &TextRequest) -> Result<Exchange, RejectReason> {
        let exchange = self.exchange.take();
        if request.target_transfer_tag != RESERVED_TAG {
            return exchange
                .filter(|exchange| {
                    exchange.target_transfer_tag == request.target_transfer_tag
                        && exchange.initiator_task_tag == request.initiator_task_tag
                })
                .ok_or(RejectReason::InvalidPduField);
        }
        // 1 to 0xFFFF_FFFE, never the one before: a stale tag is known.
        self.last_tag = if self.last_tag >= RESERVED_TAG - 1 { 1 } else { self.last_tag + 1 };
        Ok(Exchange {
            initiator_task_tag: request.initiator_task_tag,
            target_transfer_tag: self.last_tag,
            input: Vec::new(),
            output: Vec::new(),
            listing: None,
            seen: KeySet::default(),
            unknown: Vec::new(),
            max_send_data_segment_length: None,
        })
    }
}

/// What a request asks about.
#[derive(Debug, Clone, Copy)]
struct Asked<'a> {
    environment: LoginEnvironment<'a>,
    session_type: SessionType,
}

/// The flags and the tag of a response.
#[derive(Debug, Clone, Copy)]
struct Flags {
    final_: bool,
    continue_: bool,
    target_transfer_tag: u32,
}

impl Peer {
    /// Answers the keys of one whole text.
    fn negotiate(&self, asked: Asked<'_>, exchange: &mut Exchange, text: &[u8]) -> Result<(), RejectReason> {
        let pairs = parse_pairs(text).map_err(|_| RejectReason::ProtocolError)?;
        if let [("SendTargets", value)] = pairs[..] {
            if !exchange.seen.insert(Key::SendTargets) {
                return Err(RejectReason::ProtocolError);
            }
            match self.listing(asked, value) {
                Some(listing) => exchange.listing = Some(listing),
                None => put(&mut exchange.output, "SendTargets", "Reject"),
            }
            return Ok(());
        }
        for (name, value) in pairs {
            if matches!(value, "Reject" | "Irrelevant" | "NotUnderstood") {
                return Err(RejectReason::ProtocolError);
            }
            match Key::find(name) {
                Some((key, _)) if !exchange.seen.insert(key) => return Err(RejectReason::ProtocolError),
                Some((Key::MaxRecvDataSegmentLength, _)) => match length(value) {
                    Some(length) => exchange.max_send_data_segment_length = Some(length),
                    None => put(&mut exchange.output, name, "Reject"),
                },
                Some((Key::InitiatorAlias, _)) => {}
                // SendTargets stands alone; every other key of the standard belongs to the login.
                Some(_) => return Err(RejectReason::ProtocolError),
                None => {
                    if exchange.unknown.iter().any(|known| **known == *name) {
                        return Err(RejectReason::ProtocolError);
                    }
                    if exchange.unknown.len() >= 128 {
                        return Err(RejectReason::OutOfResources);
                    }
                    exchange.unknown.push(name.into());
                    put(&mut exchange.output, name, "NotUnderstood");
                }
            }
        }
        Ok(())
    }

    /// SendTargets (RFC 7143 Appendix C). `None` refuses: `All` and foreign names are for discovery sessions, no name is
    /// for normal ones.
    fn listing(&self, asked: Asked<'_>, value: &str) -> Option<TargetListing> {
        let environment = asked.environment;
        match (&self.target, asked.session_type) {
            (Some(own), SessionType::Normal) => {
                let asked = value.is_empty() || normalise(value).is_ok_and(|name| *name == **own);
                let exists = find_target(environment.config, own).is_some();
                (asked && exists).then(|| TargetListing::normal(environment, &self.initiator, own))
            }
            (_, SessionType::Discovery) if !value.is_empty() => {
                let only = if value == "All" { None } else { Some(normalise(value).unwrap_or_default()) };
                Some(TargetListing::discovery(environment, &self.initiator, self.portal_group, only))
            }
            _ => None,
        }
    }
}

fn length(value: &str) -> Option<u32> {
    parse_number(value)
        .and_then(|length| u32::try_from(length).ok())
        .filter(|length| LENGTHS.contains(length))
}

impl Exchange {
    fn has_more(&self) -> bool {
        !self.output.is_empty() || self.listing.is_some()
    }

    /// Moves whole pairs to the reply, at most `bytes_max` bytes.
    fn next_chunk(&mut self, reply: &mut Vec<u8>, bytes_max: usize) {
        let fits = self.output.len().min(bytes_max);
        let whole = self.output.iter().take(fits).rposition(|&byte| byte == 0).map_or(0, |last| last + 1);
        reply.extend(self.output.drain(..whole));
        if self.output.is_empty()
            && let Some(listing) = &mut self.listing
            && !listing.next_chunk(reply, bytes_max.saturating_sub(reply.len()))
        {
            self.listing = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::Portal;
    use super::super::login::tests::{config, environment_of, group, target};
    use super::*;

    const HOST: &str = "iqn.2001-04.com.example:host";

    /// A machine and the type of its session.
    struct Session(TextMachine, SessionType);

    impl Session {
        fn handle_request(
            &mut self,
            environment: LoginEnvironment<'_>,
            parameters: &mut SessionParameters,
            request: &TextRequest,
            data: &[u8],
            reply: &mut Vec<u8>,
        ) -> Result<(bool, bool, u32), RejectReason> {
            match self.0.handle_request(environment, self.1, parameters, request, data, reply) {
                TextStep::Respond(response) => {
                    assert_eq!(response.data_segment_length as usize, reply.len());
                    assert_eq!(response.initiator_task_tag, request.initiator_task_tag);
                    Ok((response.final_, response.continue_, response.target_transfer_tag))
                }
                TextStep::Reject(reason) => Err(reason),
            }
        }
    }

    fn machine(session_type: SessionType, own: Option<&str>) -> Session {
        let peer = Peer { initiator: HOST.into(), target: own.map(Arc::from), portal_group: 1 };
        Session(TextMachine { peer: Some(peer), ..TextMachine::new() }, session_type)
    }

    #[test]
    fn before_the_login_all_is_rejected() {
        let config = Arc::new(config());
        let mut early = Session(TextMachine::new(), SessionType::Discovery);
        assert_eq!(ask(&mut early, &config, 8192, "SendTargets=All\0"), Err(RejectReason::ProtocolError));
    }

    fn request(final_: bool, continue_: bool, target_transfer_tag: u32) -> TextRequest {
        TextRequest {
            immediate: false,
            final_,
            continue_,
            lun: wire::scsi::Lun::ZERO,
            initiator_task_tag: 7,
            target_transfer_tag,
            cmd_sn: 1,
            exp_stat_sn: 1,
            data_segment_length: 0,
        }
    }

    /// Sends one request and follows the response to its end; gives the text and the number of responses.
    fn ask(
        machine: &mut Session,
        config: &Arc<Config>,
        segment: u32,
        text: &str,
    ) -> Result<(String, usize), RejectReason> {
        let mut parameters =
            SessionParameters { max_send_data_segment_length: segment, ..SessionParameters::default() };
        let (mut all, mut reply, mut responses) = (Vec::new(), Vec::new(), 0);
        let (mut tag, mut data) = (RESERVED_TAG, text.as_bytes());
        loop {
            match machine.handle_request(
                environment_of(config),
                &mut parameters,
                &request(true, false, tag),
                data,
                &mut reply,
            ) {
                Err(reason) => return Err(reason),
                Ok((final_, continue_, target_transfer_tag)) => {
                    responses += 1;
                    assert!(reply.len() <= segment as usize);
                    assert_eq!(final_, target_transfer_tag == RESERVED_TAG);
                    assert!(!(final_ && continue_));
                    all.extend_from_slice(&reply);
                    if final_ {
                        return Ok((String::from_utf8(all).expect("UTF-8").replace('\0', " "), responses));
                    }
                    (tag, data) = (target_transfer_tag, &[]);
                }
            }
        }
    }

    #[test]
    fn all_lists_what_the_initiator_may_log_in_to() {
        let mut config = config();
        config.initiator_groups.push(group(2, &["iqn.2001-04.com.example:other"], &["ANY"]));
        config.targets = vec![
            target("iqn.2001-04.com.example:a", &[(1, 1)]),
            target("iqn.2001-04.com.example:b", &[(1, 2)]),
            target("iqn.2001-04.com.example:c", &[]),
            target("iqn.2001-04.com.example:d", &[(2, 1)]),
            target("iqn.2001-04.com.example:e", &[(1, 1), (2, 1)]),
        ];
        let portal = |text: &str| Portal { address: text.parse().expect("address"), advertised: None };
        config.portal_groups.push(PortalGroup {
            tag: 2,
            portals: vec![portal("[fd00::1]:3261"), portal("[::]:3262"), portal("10.9.9.9:3260")],
            private: false,
        });
        let config = Arc::new(config);
        let mut discovery = machine(SessionType::Discovery, None);
        let all = "TargetName=iqn.2001-04.com.example:a TargetAddress=10.0.0.1:3260,1 \
                   TargetName=iqn.2001-04.com.example:e TargetAddress=10.0.0.1:3260,1 TargetAddress=[fd00::1]:3261,2 \
                   TargetAddress=10.0.0.1:3262,2 TargetAddress=10.9.9.9:3260,2 ";
        assert_eq!(ask(&mut discovery, &config, 8192, "SendTargets=All\0"), Ok((all.into(), 1)));
        let one = |name: &str| format!("SendTargets=iqn.2001-04.com.example:{name}\0");
        let a = "TargetName=iqn.2001-04.com.example:a TargetAddress=10.0.0.1:3260,1 ";
        assert_eq!(ask(&mut discovery, &config, 8192, &one("A")), Ok((a.into(), 1)));
        for hidden in ["b", "c", "d", "none", "a b"] {
            assert_eq!(ask(&mut discovery, &config, 8192, &one(hidden)), Ok((String::new(), 1)), "{hidden}");
        }
        assert_eq!(
            ask(&mut discovery, &config, 8192, "SendTargets=\0"),
            Ok(("SendTargets=Reject ".into(), 1))
        );
    }

    #[test]
    fn normal_sessions_see_their_own_target_only() {
        let config = Arc::new(config());
        let own = "iqn.2001-04.com.example:t";
        let mut normal = machine(SessionType::Normal, Some(own));
        let record = format!("TargetName={own} TargetAddress=10.0.0.1:3260,1 ");
        assert_eq!(ask(&mut normal, &config, 8192, "SendTargets=\0"), Ok((record.clone(), 1)));
        assert_eq!(ask(&mut normal, &config, 8192, &format!("SendTargets={own}\0")), Ok((record, 1)));
        for refused in ["All", "iqn.2001-04.com.example:chap"] {
            let answer = ask(&mut normal, &config, 8192, &format!("SendTargets={refused}\0"));
            assert_eq!(answer, Ok(("SendTargets=Reject ".into(), 1)));
        }
    }

    /// Behind an address translator: what is told is not what we listen on.
    #[test]
    fn advertised_addresses_are_told_instead() {
        let mut config = config();
        let portal = |text: &str, told: &str| Portal {
            address: text.parse().expect("address"),
            advertised: Some(told.parse().expect("address")),
        };
        config.portal_groups[0].portals =
            vec![portal("10.0.0.1:3260", "192.0.2.7:8000"), portal("0.0.0.0:3261", "[2001:db8::7]:3260")];
        config.targets = vec![target("iqn.2001-04.com.example:a", &[(1, 1)])];
        let answer =
            ask(&mut machine(SessionType::Discovery, None), &Arc::new(config), 8192, "SendTargets=All\0");
        let told = "TargetName=iqn.2001-04.com.example:a TargetAddress=192.0.2.7:8000,1 \
                    TargetAddress=[2001:db8::7]:3260,1 ";
        assert_eq!(answer, Ok((told.into(), 1)));
    }

    /// A portal group for discovery only shows the targets, never itself.
    #[test]
    fn private_groups_point_elsewhere() {
        let mut config = config();
        config.portal_groups[0].private = true;
        let address = "10.0.0.1:3270".parse().expect("address");
        config.portal_groups.push(PortalGroup {
            tag: 2,
            portals: vec![Portal { address, advertised: None }],
            private: false,
        });
        config.targets = vec![target("iqn.2001-04.com.example:a", &[(1, 1), (2, 1)])];
        let answer =
            ask(&mut machine(SessionType::Discovery, None), &Arc::new(config), 8192, "SendTargets=All\0");
        assert_eq!(
            answer,
            Ok(("TargetName=iqn.2001-04.com.example:a TargetAddress=10.0.0.1:3270,2 ".into(), 1))
        );
    }

    /// spdk#1442: a list longer than the initiator's segments.
    #[test]
    fn spdk_1442_ten_thousand_targets_in_segments_of_512_bytes() {
        let mut config = config();
        config.targets = (0..10_000)
            .map(|number| target(&format!("iqn.2001-04.com.example:t{number}"), &[(1, 1)]))
            .collect();
        let config = Arc::new(config);
        let (text, responses) =
            ask(&mut machine(SessionType::Discovery, None), &config, 512, "SendTargets=All\0")
                .expect("a list");
        let names: HashSet<&str> = text.split(' ').filter(|pair| pair.starts_with("TargetName=")).collect();
        assert_eq!(names.len(), 10_000);
        assert_eq!(text.matches("TargetAddress=").count(), 10_000);
        assert!(responses > 1000);
    }

    /// CVE-2021-28361: C without data, and every other mixture of bits, tags and lengths.
    #[test]
    fn cve_2021_28361_text_bits_and_empty_segments() {
        let config = Arc::new(config());
        for first in 0..4u8 {
            for second in 0..4u8 {
                for data in ["", "\0", "SendTargets=All\0", "SendTargets=A", "=", "X-a=1\0"] {
                    for tag in [RESERVED_TAG, 1, 2, 0] {
                        let mut machine = machine(SessionType::Discovery, None);
                        let mut parameters = SessionParameters::default();
                        let mut reply = Vec::new();
                        let head = request(first & 1 != 0, first & 2 != 0, RESERVED_TAG);
                        let environment = environment_of(&config);
                        let step = machine.handle_request(
                            environment,
                            &mut parameters,
                            &head,
                            data.as_bytes(),
                            &mut reply,
                        );
                        if first == 3 {
                            assert_eq!(step, Err(RejectReason::ProtocolError));
                        }
                        if first == 2 {
                            assert_eq!(step, Ok((false, false, 1)));
                            assert!(reply.is_empty());
                        }
                        let next = request(second & 1 != 0, second & 2 != 0, tag);
                        let step = machine.handle_request(
                            environment,
                            &mut parameters,
                            &next,
                            data.as_bytes(),
                            &mut reply,
                        );
                        if tag == 0 || tag == 2 {
                            assert!(step.is_err());
                        }
                        assert_eq!(parameters, SessionParameters::default());
                    }
                }
            }
        }
    }

    #[test]
    fn keys_span_requests_and_text_is_bounded() {
        let config = Arc::new(config());
        let mut machine = machine(SessionType::Discovery, None);
        let (mut parameters, mut reply) = (SessionParameters::default(), Vec::new());
        let environment = environment_of(&config);
        let first = request(false, true, RESERVED_TAG);
        let step = machine.handle_request(environment, &mut parameters, &first, b"SendTar", &mut reply);
        assert_eq!(step, Ok((false, false, 1)));
        let last = request(true, false, 1);
        let step = machine.handle_request(environment, &mut parameters, &last, b"gets=All\0", &mut reply);
        assert!(matches!(step, Ok((true, ..))));
        assert!(reply.starts_with(b"TargetName="));
        let step = machine.handle_request(environment, &mut parameters, &first, &[b'A'; 8192], &mut reply);
        assert_eq!(step, Ok((false, false, 2)));
        let more = request(false, true, 2);
        let step = machine.handle_request(environment, &mut parameters, &more, b"A", &mut reply);
        assert_eq!(step, Err(RejectReason::OutOfResources));
    }

    #[test]
    fn segments_are_renegotiated_when_the_negotiation_ends() {
        let config = Arc::new(config());
        let mut machine = machine(SessionType::Normal, Some("iqn.2001-04.com.example:t"));
        let (mut parameters, mut reply) = (SessionParameters::default(), Vec::new());
        let environment = environment_of(&config);
        let text = b"MaxRecvDataSegmentLength=65536\0X-com.example.a=1\0Later=2\0InitiatorAlias=me\0";
        let open = request(false, false, RESERVED_TAG);
        let step = machine.handle_request(environment, &mut parameters, &open, text, &mut reply);
        assert_eq!(step, Ok((false, false, 1)));
        assert_eq!(reply, b"X-com.example.a=NotUnderstood\0Later=NotUnderstood\0");
        assert_eq!(parameters.max_send_data_segment_length, 8192);
        let step =
            machine.handle_request(environment, &mut parameters, &request(true, false, 1), b"", &mut reply);
        assert_eq!(step, Ok((true, false, RESERVED_TAG)));
        assert_eq!(parameters.max_send_data_segment_length, 65_536);
        let answer = ask(&mut machine, &config, 8192, "MaxRecvDataSegmentLength=1\0");
        assert_eq!(answer, Ok(("MaxRecvDataSegmentLength=Reject ".into(), 1)));
        for bad in [
            "MaxRecvDataSegmentLength=512\0MaxRecvDataSegmentLength=512\0",
            "SendTargets=\0X-a=1\0",
            "HeaderDigest=CRC32C\0",
            "X-a=1\0X-a=1\0",
            "X-a=NotUnderstood\0",
            "X-a=1",
        ] {
            assert_eq!(ask(&mut machine, &config, 8192, bad), Err(RejectReason::ProtocolError), "{bad}");
        }
    }

    #[test]
    fn long_answers_are_split_between_pairs() {
        let config = Arc::new(config());
        let mut machine = machine(SessionType::Normal, Some("iqn.2001-04.com.example:t"));
        let text: String = (0..100).map(|number| format!("X-{number}{}=1\0", "k".repeat(50))).collect();
        let (answer, responses) = ask(&mut machine, &config, 512, &text).expect("answered");
        assert_eq!(answer.matches("=NotUnderstood ").count(), 100);
        assert!(responses > 10);
    }
}
