//! The text format (RFC 7143 §6.1) and the operational keys (§13).

use std::io::Write as _;
use std::ops::RangeInclusive;

use super::{Options, SessionParameters, SessionType, TargetNode};

/// Most bytes of key=value text we hold in one direction: what every implementation must take (RFC 7143 §6.1), and no
/// more before anybody has proved who he is.
pub const TEXT_BYTES_MAX: usize = 8192;
/// Longest key (RFC 7143 §6.1).
const KEY_BYTES_MAX: usize = 63;
/// Longest simple value (RFC 7143 §6.1).
const VALUE_BYTES_MAX: usize = 255;
/// Keys in one negotiation.
const PAIRS_MAX: usize = 128;
/// Unknown keys remembered in a login, to find repeated ones; the answers to them fit into one response.
const UNKNOWN_KEYS_MAX: usize = 64;
/// Connections of a session we accept.
const MAX_CONNECTIONS: u64 = 1;
/// MaxRecvDataSegmentLength until one is declared (RFC 7143 §13.12).
pub const MAX_RECV_DATA_SEGMENT_LENGTH_DEFAULT: u32 = 8192;
/// Unsolicited data of one command waits in one buffer: never negotiate more than the pool's largest holds.
const UNSOLICITED_MAX: u32 = 256 * 1024;
/// Range of MaxRecvDataSegmentLength, MaxBurstLength and FirstBurstLength.
pub(super) const LENGTHS: RangeInclusive<u32> = 512..=0xFF_FFFF;
/// Values that answer a proposal and propose nothing (RFC 7143 §6.2).
const ANSWERS_ONLY: [&str; 3] = ["Reject", "Irrelevant", "NotUnderstood"];

/// The keys of RFC 7143 §12.1, §12.1.3 and §13, and of RFC 7144 §7.1.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
#[repr(u8)]
pub enum Key {
    AuthMethod,
    ChapA,
    ChapI,
    ChapC,
    ChapN,
    ChapR,
    SessionType,
    InitiatorName,
    TargetName,
    InitiatorAlias,
    NodeArchitecture,
    TargetAlias,
    TargetAddress,
    TargetPortalGroupTag,
    SendTargets,
    HeaderDigest,
    DataDigest,
    MaxConnections,
    InitialR2T,
    ImmediateData,
    MaxRecvDataSegmentLength,
    MaxBurstLength,
    FirstBurstLength,
    DefaultTime2Wait,
    DefaultTime2Retain,
    MaxOutstandingR2T,
    DataPduInOrder,
    DataSequenceInOrder,
    ErrorRecoveryLevel,
    TaskReporting,
    ProtocolLevel,
    IfMarker,
    OfMarker,
    IfMarkInt,
    OfMarkInt,
}

/// Where an initiator may send a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// SecurityNegotiation only.
    Security,
    /// Any stage of the login.
    AnyStage,
    /// LoginOperationalNegotiation.
    Operational,
    /// Nowhere: targets send it. It comes back only as `NotUnderstood`.
    TargetOnly,
    /// Full feature phase only.
    FullFeature,
}

/// One row for each key: its name, where it may be sent, and whether it is irrelevant in discovery sessions.
const KEYS: [(Key, &str, Use, bool); 35] = [
    (Key::AuthMethod, "AuthMethod", Use::Security, false),
    (Key::ChapA, "CHAP_A", Use::Security, false),
    (Key::ChapI, "CHAP_I", Use::Security, false),
    (Key::ChapC, "CHAP_C", Use::Security, false),
    (Key::ChapN, "CHAP_N", Use::Security, false),
    (Key::ChapR, "CHAP_R", Use::Security, false),
    (Key::SessionType, "SessionType", Use::AnyStage, false),
    (Key::InitiatorName, "InitiatorName", Use::AnyStage, false),
    (Key::TargetName, "TargetName", Use::AnyStage, false),
    (Key::InitiatorAlias, "InitiatorAlias", Use::AnyStage, false),
    (Key::NodeArchitecture, "X#NodeArchitecture", Use::AnyStage, false),
    (Key::TargetAlias, "TargetAlias", Use::TargetOnly, false),
    (Key::TargetAddress, "TargetAddress", Use::TargetOnly, false),
    (Key::TargetPortalGroupTag, "TargetPortalGroupTag", Use::TargetOnly, false),
    (Key::SendTargets, "SendTargets", Use::FullFeature, false),
    (Key::HeaderDigest, "HeaderDigest", Use::Operational, false),
    (Key::DataDigest, "DataDigest", Use::Operational, false),
    (Key::MaxConnections, "MaxConnections", Use::Operational, true),
    (Key::InitialR2T, "InitialR2T", Use::Operational, true),
    (Key::ImmediateData, "ImmediateData", Use::Operational, true),
    (Key::MaxRecvDataSegmentLength, "MaxRecvDataSegmentLength", Use::Operational, false),
    (Key::MaxBurstLength, "MaxBurstLength", Use::Operational, true),
    (Key::FirstBurstLength, "FirstBurstLength", Use::Operational, true),
    (Key::DefaultTime2Wait, "DefaultTime2Wait", Use::Operational, false),
    (Key::DefaultTime2Retain, "DefaultTime2Retain", Use::Operational, false),
    (Key::MaxOutstandingR2T, "MaxOutstandingR2T", Use::Operational, true),
    (Key::DataPduInOrder, "DataPDUInOrder", Use::Operational, true),
    (Key::DataSequenceInOrder, "DataSequenceInOrder", Use::Operational, true),
    (Key::ErrorRecoveryLevel, "ErrorRecoveryLevel", Use::Operational, false),
    (Key::TaskReporting, "TaskReporting", Use::Operational, true),
    (Key::ProtocolLevel, "iSCSIProtocolLevel", Use::Operational, true),
    (Key::IfMarker, "IFMarker", Use::Operational, false),
    (Key::OfMarker, "OFMarker", Use::Operational, false),
    (Key::IfMarkInt, "IFMarkInt", Use::Operational, false),
    (Key::OfMarkInt, "OFMarkInt", Use::Operational, false),
];

impl Key {
    /// The key of this name and where it belongs.
    #[must_use]
    pub fn find(name: &str) -> Option<(Key, Use)> {
        KEYS.iter().find(|row| row.1 == name).map(|row| (row.0, row.2))
    }

    /// Its name on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        KEYS.iter().find(|row| row.0 == self).map_or("", |row| row.1)
    }

    fn irrelevant_in_discovery(self) -> bool {
        KEYS.iter().any(|row| row.0 == self && row.3)
    }

    /// Whether a value is longer than its key admits. Challenges and responses are judged when they are decoded; an
    /// alias is cut.
    fn oversized(self, value: &str) -> bool {
        match self {
            Key::ChapC | Key::ChapR | Key::InitiatorAlias => false,
            Key::AuthMethod | Key::ChapA | Key::HeaderDigest | Key::DataDigest | Key::TaskReporting => {
                value.split(',').any(|item| item.len() > VALUE_BYTES_MAX)
            }
            _ => value.len() > VALUE_BYTES_MAX,
        }
    }
}

/// A set of keys.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KeySet(u64);

impl KeySet {
    /// Whether it is in.
    #[must_use]
    pub fn contains(self, key: Key) -> bool {
        self.0 & 1 << key as u8 != 0
    }

    /// Puts it in; false when it was in.
    pub fn insert(&mut self, key: Key) -> bool {
        let new = !self.contains(key);
        self.0 |= 1 << key as u8;
        new
    }

    /// Takes it out; false when it was not in.
    pub fn remove(&mut self, key: Key) -> bool {
        let held = self.contains(key);
        self.0 &= !(1 << key as u8);
        held
    }
}

/// Splits a text (RFC 7143 §6.1) into keys and values. Empty pairs are passed over: some initiators count the padding
/// as data.
///
/// # Errors
/// What breaks the format.
pub fn parse_pairs(text: &[u8]) -> Result<Vec<(&str, &str)>, &'static str> {
    if text.len() > TEXT_BYTES_MAX {
        return Err("more than 8192 bytes of text");
    }
    let Some((last, _)) = text.split_last() else { return Ok(Vec::new()) };
    if *last != 0 {
        return Err("the last key=value pair does not end with a NUL");
    }
    let mut pairs = Vec::new();
    for pair in text.split(|&byte| byte == 0).filter(|pair| !pair.is_empty()) {
        if pairs.len() >= PAIRS_MAX {
            return Err("too many keys");
        }
        let pair = std::str::from_utf8(pair).map_err(|_| "text that is not UTF-8")?;
        let (key, value) = pair.split_once('=').ok_or("a key without a value")?;
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            return Err("a key of no or more than 63 bytes");
        }
        if !key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-+@_#".contains(&byte)) {
            return Err("a key with a character that keys do not have");
        }
        pairs.push((key, value));
    }
    Ok(pairs)
}

/// Appends `key=value` and its NUL.
pub fn put(reply: &mut Vec<u8>, key: &str, value: &str) {
    // Writing to a vector does not fail.
    let _ = write!(reply, "{key}={value}\0");
}

/// A numerical-value (RFC 7143 §6.1): decimal without leading zeros, or hexadecimal after `0x`.
#[must_use]
pub fn parse_number(text: &str) -> Option<u64> {
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        return plain.then(|| u64::from_str_radix(digits, 16).ok()).flatten();
    }
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let excess = text.len() > 1 && text.starts_with('0');
    (plain && !excess).then(|| text.parse().ok()).flatten()
}

fn parse_boolean(text: &str) -> Option<bool> {
    match text {
        "Yes" => Some(true),
        "No" => Some(false),
        _ => None,
    }
}

fn boolean(value: bool) -> String {
    (if value { "Yes" } else { "No" }).to_owned()
}

/// What we bring to a negotiation: the options and the target's demands, within the standard's ranges.
#[derive(Debug, Clone)]
pub struct Offer {
    session_type: SessionType,
    header_digest_required: bool,
    data_digest_required: bool,
    initial_r2t: bool,
    immediate_data: bool,
    max_recv_data_segment_length: u32,
    max_burst_length: u32,
    first_burst_length: u32,
    max_outstanding_r2t: u16,
    default_time_to_wait: u16,
    default_time_to_retain: u16,
}

impl Offer {
    /// For a session with `target`; `None` for discovery.
    #[must_use]
    pub fn new(options: &Options, target: Option<&TargetNode>) -> Offer {
        let length = |value: u32| value.clamp(*LENGTHS.start(), *LENGTHS.end());
        let max_burst_length = length(options.max_burst_length);
        Offer {
            session_type: if target.is_some() { SessionType::Normal } else { SessionType::Discovery },
            header_digest_required: target.is_some_and(|target| target.header_digest),
            data_digest_required: target.is_some_and(|target| target.data_digest),
            initial_r2t: options.initial_r2t,
            immediate_data: options.immediate_data,
            max_recv_data_segment_length: length(options.max_recv_data_segment_length),
            max_burst_length,
            first_burst_length: length(options.first_burst_length).min(max_burst_length).min(UNSOLICITED_MAX),
            max_outstanding_r2t: options.max_outstanding_r2t.max(1),
            default_time_to_wait: options.default_time_to_wait.min(3600),
            default_time_to_retain: options.default_time_to_retain.min(3600),
        }
    }
}

/// The values before any negotiation (RFC 7143 §13).
impl Default for SessionParameters {
    fn default() -> SessionParameters {
        SessionParameters {
            header_digest: false,
            data_digest: false,
            max_connections: 1,
            initial_r2t: true,
            immediate_data: true,
            max_send_data_segment_length: MAX_RECV_DATA_SEGMENT_LENGTH_DEFAULT,
            max_recv_data_segment_length: MAX_RECV_DATA_SEGMENT_LENGTH_DEFAULT,
            max_burst_length: 262_144,
            first_burst_length: 65_536,
            default_time_to_wait: 2,
            default_time_to_retain: 20,
            max_outstanding_r2t: 1,
            data_pdu_in_order: true,
            data_sequence_in_order: true,
            error_recovery_level: 0,
            protocol_level: 1,
        }
    }
}

/// How a proposal ends.
enum Decision {
    /// Answer this.
    Answer(String),
    /// It was a declaration.
    Taken,
}

/// The keys of one login: which were seen, which we proposed, and the result so far.
#[derive(Debug, Clone, Default)]
pub struct Negotiation {
    parameters: SessionParameters,
    seen: KeySet,
    proposed: KeySet,
    unknown: Vec<Box<str>>,
    declared: bool,
}

impl Negotiation {
    /// Notes a key; repeated keys and values that answer nothing are errors of the initiator (RFC 7143 §6.3).
    ///
    /// # Errors
    /// What is wrong.
    pub fn note(&mut self, key: Key, value: &str) -> Result<(), &'static str> {
        if key.oversized(value) {
            return Err("a value longer than its key admits");
        }
        if !self.seen.insert(key) {
            return Err("a key was sent twice");
        }
        if ANSWERS_ONLY.contains(&value) && !self.proposed.contains(key) {
            return Err("an answer to what nobody proposed");
        }
        Ok(())
    }

    /// Notes a key we do not know.
    ///
    /// # Errors
    /// What is wrong.
    pub fn note_unknown(&mut self, key: &str, value: &str) -> Result<(), &'static str> {
        if ANSWERS_ONLY.contains(&value) {
            return Err("an answer to what nobody proposed");
        }
        if self.unknown.len() >= UNKNOWN_KEYS_MAX {
            return Err("too many unknown keys");
        }
        if self.unknown.iter().any(|known| **known == *key) {
            return Err("a key was sent twice");
        }
        self.unknown.push(key.into());
        Ok(())
    }

    /// Answers the operational keys of one request (each noted before). FirstBurstLength comes last, because it hangs
    /// on three others.
    ///
    /// # Errors
    /// What ends the login.
    pub fn negotiate(
        &mut self,
        offer: &Offer,
        keys: &[(Key, &str)],
        reply: &mut Vec<u8>,
    ) -> Result<(), &'static str> {
        let (last, first): (Vec<_>, Vec<_>) = keys.iter().partition(|(key, _)| *key == Key::FirstBurstLength);
        for (key, value) in first.into_iter().chain(last) {
            let ours = self.proposed.remove(key);
            if ours && ANSWERS_ONLY.contains(&value) {
                return Err("our proposal was not accepted");
            }
            if offer.session_type == SessionType::Discovery && key.irrelevant_in_discovery() {
                put(reply, key.name(), "Irrelevant");
                continue;
            }
            match self.decide(offer, key, value)? {
                Decision::Taken => {}
                Decision::Answer(answer) if !ours => put(reply, key.name(), &answer),
                // The answer to our proposal: it stands when we would have chosen it too.
                Decision::Answer(answer)
                    if parse_number(&answer) == parse_number(value) && parse_number(value).is_some() => {}
                Decision::Answer(answer) if answer == value => {}
                Decision::Answer(_) => return Err("our proposal was not accepted"),
            }
        }
        Ok(())
    }

    /// Declares what is ours to declare, once, in the first response of the operational stage.
    pub fn declare(&mut self, offer: &Offer, alias: Option<&str>, reply: &mut Vec<u8>) {
        if self.declared {
            return;
        }
        self.declared = true;
        if let Some(alias) = alias.filter(|alias| alias.len() <= VALUE_BYTES_MAX && !alias.contains('\0')) {
            put(reply, Key::TargetAlias.name(), alias);
        }
        self.parameters.max_recv_data_segment_length = offer.max_recv_data_segment_length;
        put(reply, Key::MaxRecvDataSegmentLength.name(), &offer.max_recv_data_segment_length.to_string());
    }

    /// What must still be agreed because the default, which holds when the initiator is silent, is more than we accept.
    #[must_use]
    pub fn missing(&self, offer: &Offer) -> Vec<(Key, String)> {
        let mut missing = Vec::new();
        let mut want = |needed: bool, key: Key, value: String| {
            if needed && !self.seen.contains(key) {
                missing.push((key, value));
            }
        };
        want(offer.header_digest_required, Key::HeaderDigest, "CRC32C".into());
        want(offer.data_digest_required, Key::DataDigest, "CRC32C".into());
        if offer.session_type == SessionType::Normal {
            let parameters = &self.parameters;
            // An answer to ImmediateData=No is optional (RFC 7143 §6.2.2); having proposed it is enough.
            let silent = self.proposed.contains(Key::ImmediateData);
            want(!offer.immediate_data && !silent, Key::ImmediateData, "No".into());
            let max_burst = parameters.max_burst_length > offer.max_burst_length;
            want(max_burst, Key::MaxBurstLength, offer.max_burst_length.to_string());
            let unsolicited = !parameters.initial_r2t || (parameters.immediate_data && offer.immediate_data);
            let first_burst = unsolicited && parameters.first_burst_length > offer.first_burst_length;
            want(first_burst, Key::FirstBurstLength, offer.first_burst_length.to_string());
        }
        missing
    }

    /// Proposes what is missing.
    ///
    /// # Errors
    /// When it was proposed before and the initiator did not answer.
    pub fn propose(&mut self, missing: Vec<(Key, String)>, reply: &mut Vec<u8>) -> Result<(), &'static str> {
        for (key, value) in missing {
            if !self.proposed.insert(key) {
                return Err("our proposal was not answered");
            }
            if key == Key::ImmediateData {
                self.parameters.immediate_data = false;
            }
            put(reply, key.name(), &value);
        }
        Ok(())
    }

    /// The result, once all is agreed.
    ///
    /// # Errors
    /// When a demand of the target was not met.
    pub fn result(&self, offer: &Offer) -> Result<SessionParameters, &'static str> {
        let mut parameters = self.parameters.clone();
        if offer.header_digest_required && !parameters.header_digest {
            return Err("the target demands header digests");
        }
        if offer.data_digest_required && !parameters.data_digest {
            return Err("the target demands data digests");
        }
        let both = self.seen.contains(Key::FirstBurstLength) && self.seen.contains(Key::MaxBurstLength);
        let unsolicited = !parameters.initial_r2t || parameters.immediate_data;
        if both && unsolicited && parameters.first_burst_length > parameters.max_burst_length {
            return Err("FirstBurstLength exceeds MaxBurstLength");
        }
        // It never does (RFC 7143 §13.14), also when only one of them was agreed and the other is the default.
        parameters.first_burst_length = parameters.first_burst_length.min(parameters.max_burst_length);
        Ok(parameters)
    }

    /// The result function of each key (RFC 7143 §13).
    fn decide(&mut self, offer: &Offer, key: Key, value: &str) -> Result<Decision, &'static str> {
        let parameters = &mut self.parameters;
        let lengths = u64::from(*LENGTHS.start())..=u64::from(*LENGTHS.end());
        let answer = match key {
            Key::HeaderDigest => digest(value, offer.header_digest_required, &mut parameters.header_digest),
            Key::DataDigest => digest(value, offer.data_digest_required, &mut parameters.data_digest),
            Key::MaxConnections => least(value, 1..=65_535, MAX_CONNECTIONS, &mut parameters.max_connections),
            Key::InitialR2T => parse_boolean(value).map(|theirs| {
                parameters.initial_r2t = theirs || offer.initial_r2t;
                boolean(parameters.initial_r2t)
            }),
            Key::ImmediateData => parse_boolean(value).map(|theirs| {
                parameters.immediate_data = theirs && offer.immediate_data;
                boolean(parameters.immediate_data)
            }),
            Key::MaxRecvDataSegmentLength => {
                let length = parse_number(value)
                    .and_then(|length| u32::try_from(length).ok())
                    .filter(|length| LENGTHS.contains(length))
                    .ok_or("a MaxRecvDataSegmentLength out of range")?;
                parameters.max_send_data_segment_length = length;
                return Ok(Decision::Taken);
            }
            Key::MaxBurstLength => {
                least(value, lengths, offer.max_burst_length.into(), &mut parameters.max_burst_length)
            }
            Key::FirstBurstLength if parameters.initial_r2t && !parameters.immediate_data => {
                Some("Irrelevant".to_owned())
            }
            Key::FirstBurstLength => {
                let ours = offer.first_burst_length.min(parameters.max_burst_length);
                least(value, lengths, ours.into(), &mut parameters.first_burst_length)
            }
            Key::DefaultTime2Wait => parse_number(value).filter(|seconds| *seconds <= 3600).map(|theirs| {
                let seconds = u16::try_from(theirs).unwrap_or(3600).max(offer.default_time_to_wait);
                parameters.default_time_to_wait = seconds;
                seconds.to_string()
            }),
            Key::DefaultTime2Retain => {
                let ours = offer.default_time_to_retain.into();
                least(value, 0..=3600, ours, &mut parameters.default_time_to_retain)
            }
            Key::MaxOutstandingR2T => least(
                value,
                1..=65_535,
                offer.max_outstanding_r2t.into(),
                &mut parameters.max_outstanding_r2t,
            ),
            // OR with our Yes.
            Key::DataPduInOrder | Key::DataSequenceInOrder => parse_boolean(value).map(|_| boolean(true)),
            Key::ErrorRecoveryLevel => least(value, 0..=2, 0, &mut parameters.error_recovery_level),
            Key::ProtocolLevel => least(value, 0..=31, 2, &mut parameters.protocol_level),
            // On the one connection of a session responses are in order: the fence of §4.2.2.3.3 stands by itself.
            Key::TaskReporting => {
                value.split(',').find(|item| matches!(*item, "RFC3720" | "ResponseFence")).map(str::to_owned)
            }
            // Obsolete (RFC 7143 §13.25). `No` is allowed for the first two, and what older initiators expect.
            Key::IfMarker | Key::OfMarker => parse_boolean(value).map(|_| boolean(false)),
            Key::IfMarkInt | Key::OfMarkInt => None,
            _ => return Err("a key that is not negotiated here"),
        };
        Ok(Decision::Answer(answer.unwrap_or_else(|| "Reject".to_owned())))
    }
}

/// Result function Minimum; `None` when the value is not admissible.
fn least<T: TryFrom<u64>>(
    value: &str,
    range: RangeInclusive<u64>,
    ours: u64,
    result: &mut T,
) -> Option<String> {
    let theirs = parse_number(value).filter(|theirs| range.contains(theirs))?;
    let chosen = theirs.min(ours);
    *result = T::try_from(chosen).ok()?;
    Some(chosen.to_string())
}

/// The first of the list that we have (RFC 7143 §6.2.1), which is CRC32C alone when it is required.
fn digest(value: &str, required: bool, result: &mut bool) -> Option<String> {
    let chosen = value.split(',').find(|item| *item == "CRC32C" || (*item == "None" && !required))?;
    *result = chosen == "CRC32C";
    Some(chosen.to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::login::tests::target;
    use super::*;

    fn normal() -> Offer {
        Offer::new(&Options::default(), Some(&target("iqn.2001-04.com.example:t", &[])))
    }

    /// Proposes `text` (pairs separated by blanks), gives the answer in the same form.
    fn negotiate(offer: &Offer, text: &str) -> Result<(String, SessionParameters), &'static str> {
        let text: String = text.split(' ').map(|pair| format!("{pair}\0")).collect();
        let mut negotiation = Negotiation::default();
        let mut keys = Vec::new();
        for (key, value) in parse_pairs(text.as_bytes())? {
            let (key, _) = Key::find(key).ok_or("unknown")?;
            negotiation.note(key, value)?;
            keys.push((key, value));
        }
        let mut reply = Vec::new();
        negotiation.negotiate(offer, &keys, &mut reply)?;
        let reply = String::from_utf8(reply).map_err(|_| "UTF-8")?;
        Ok((reply.trim_end_matches('\0').replace('\0', " "), negotiation.result(offer)?))
    }

    /// A proposal, our answer, and what must hold of the result.
    type Row = (&'static str, &'static str, fn(&SessionParameters) -> bool);

    #[test]
    fn every_key_of_a_normal_session() {
        let table: &[Row] = &[
            ("HeaderDigest=None", "HeaderDigest=None", |p| !p.header_digest),
            ("HeaderDigest=CRC32C,None", "HeaderDigest=CRC32C", |p| p.header_digest),
            ("HeaderDigest=None,CRC32C", "HeaderDigest=None", |p| !p.header_digest),
            ("HeaderDigest=Y-com.example.sha,CRC32C", "HeaderDigest=CRC32C", |p| p.header_digest),
            ("HeaderDigest=crc32c", "HeaderDigest=Reject", |p| !p.header_digest),
            ("DataDigest=CRC32C", "DataDigest=CRC32C", |p| p.data_digest && !p.header_digest),
            ("DataDigest=", "DataDigest=Reject", |p| !p.data_digest),
            ("MaxConnections=8", "MaxConnections=1", |p| p.max_connections == 1),
            ("MaxConnections=0", "MaxConnections=Reject", |p| p.max_connections == 1),
            ("MaxConnections=65536", "MaxConnections=Reject", |p| p.max_connections == 1),
            ("InitialR2T=No", "InitialR2T=No", |p| !p.initial_r2t),
            ("InitialR2T=Yes", "InitialR2T=Yes", |p| p.initial_r2t),
            ("InitialR2T=yes", "InitialR2T=Reject", |p| p.initial_r2t),
            ("ImmediateData=No", "ImmediateData=No", |p| !p.immediate_data),
            ("ImmediateData=Yes", "ImmediateData=Yes", |p| p.immediate_data),
            ("ImmediateData=1", "ImmediateData=Reject", |p| p.immediate_data),
            ("MaxRecvDataSegmentLength=512", "", |p| p.max_send_data_segment_length == 512),
            ("MaxRecvDataSegmentLength=0xffFFff", "", |p| p.max_send_data_segment_length == 0xFF_FFFF),
            ("MaxBurstLength=16776192", "MaxBurstLength=1048576", |p| p.max_burst_length == 1_048_576),
            ("MaxBurstLength=0x1000", "MaxBurstLength=4096", |p| p.max_burst_length == 4096),
            ("MaxBurstLength=511", "MaxBurstLength=Reject", |p| p.max_burst_length == 262_144),
            ("MaxBurstLength=16777216", "MaxBurstLength=Reject", |p| p.max_burst_length == 262_144),
            ("MaxBurstLength=512~1024", "MaxBurstLength=Reject", |p| p.max_burst_length == 262_144),
            ("MaxBurstLength=01024", "MaxBurstLength=Reject", |p| p.max_burst_length == 262_144),
            ("MaxBurstLength=18446744073709551616", "MaxBurstLength=Reject", |p| {
                p.max_burst_length == 262_144
            }),
            ("FirstBurstLength=65537", "FirstBurstLength=65537", |p| p.first_burst_length == 65_537),
            ("FirstBurstLength=16776192", "FirstBurstLength=262144", |p| p.first_burst_length == 262_144),
            (
                "FirstBurstLength=65536 MaxBurstLength=1024",
                "MaxBurstLength=1024 FirstBurstLength=1024",
                |p| p.first_burst_length == 1024,
            ),
            ("MaxBurstLength=1024", "MaxBurstLength=1024", |p| p.first_burst_length == 1024),
            (
                "FirstBurstLength=8192 InitialR2T=Yes ImmediateData=No",
                "InitialR2T=Yes ImmediateData=No FirstBurstLength=Irrelevant",
                |p| !p.immediate_data,
            ),
            ("DefaultTime2Wait=0", "DefaultTime2Wait=2", |p| p.default_time_to_wait == 2),
            ("DefaultTime2Wait=3600", "DefaultTime2Wait=3600", |p| p.default_time_to_wait == 3600),
            ("DefaultTime2Wait=3601", "DefaultTime2Wait=Reject", |p| p.default_time_to_wait == 2),
            ("DefaultTime2Retain=20", "DefaultTime2Retain=0", |p| p.default_time_to_retain == 0),
            ("DefaultTime2Retain=-1", "DefaultTime2Retain=Reject", |p| p.default_time_to_retain == 20),
            ("MaxOutstandingR2T=1", "MaxOutstandingR2T=1", |p| p.max_outstanding_r2t == 1),
            ("MaxOutstandingR2T=65535", "MaxOutstandingR2T=8", |p| p.max_outstanding_r2t == 8),
            ("MaxOutstandingR2T=0", "MaxOutstandingR2T=Reject", |p| p.max_outstanding_r2t == 1),
            ("DataPDUInOrder=No", "DataPDUInOrder=Yes", |p| p.data_pdu_in_order),
            ("DataSequenceInOrder=No", "DataSequenceInOrder=Yes", |p| p.data_sequence_in_order),
            ("DataSequenceInOrder=Maybe", "DataSequenceInOrder=Reject", |p| p.data_sequence_in_order),
            ("ErrorRecoveryLevel=2", "ErrorRecoveryLevel=0", |p| p.error_recovery_level == 0),
            ("ErrorRecoveryLevel=3", "ErrorRecoveryLevel=Reject", |p| p.error_recovery_level == 0),
            ("TaskReporting=FastAbort,ResponseFence,RFC3720", "TaskReporting=ResponseFence", |_| true),
            ("TaskReporting=RFC3720,ResponseFence", "TaskReporting=RFC3720", |_| true),
            ("TaskReporting=FastAbort", "TaskReporting=Reject", |_| true),
            ("iSCSIProtocolLevel=2", "iSCSIProtocolLevel=2", |p| p.protocol_level == 2),
            ("iSCSIProtocolLevel=31", "iSCSIProtocolLevel=2", |p| p.protocol_level == 2),
            ("iSCSIProtocolLevel=0", "iSCSIProtocolLevel=0", |p| p.protocol_level == 0),
            ("iSCSIProtocolLevel=32", "iSCSIProtocolLevel=Reject", |p| p.protocol_level == 1),
            ("IFMarker=Yes OFMarker=No", "IFMarker=No OFMarker=No", |_| true),
            ("IFMarkInt=2048~8192 OFMarkInt=1", "IFMarkInt=Reject OFMarkInt=Reject", |_| true),
        ];
        for (proposal, answer, holds) in table {
            let (got, parameters) =
                negotiate(&normal(), proposal).unwrap_or_else(|error| panic!("{proposal}: {error}"));
            assert_eq!(&got, answer, "{proposal}");
            assert!(holds(&parameters), "{proposal}: {parameters:?}");
        }
    }

    #[test]
    fn what_ends_a_login() {
        for proposal in [
            "MaxRecvDataSegmentLength=511",
            "MaxRecvDataSegmentLength=16777216",
            "MaxRecvDataSegmentLength=x",
            "MaxBurstLength=4096 MaxBurstLength=4096",
            "MaxBurstLength=Reject",
            "HeaderDigest=NotUnderstood",
            "InitialR2T=Irrelevant",
        ] {
            assert!(negotiate(&normal(), proposal).is_err(), "{proposal}");
        }
        let mut strict = target("iqn.2001-04.com.example:t", &[]);
        strict.header_digest = true;
        let strict = Offer::new(&Options::default(), Some(&strict));
        assert!(negotiate(&strict, "HeaderDigest=None").is_err());
        assert!(negotiate(&strict, "DataDigest=None").is_err());
        assert_eq!(
            negotiate(&strict, "HeaderDigest=None,CRC32C").map(|result| result.0).as_deref(),
            Ok("HeaderDigest=CRC32C")
        );
    }

    #[test]
    fn discovery_sessions_have_irrelevant_keys() {
        let discovery = Offer::new(&Options::default(), None);
        for key in [
            "MaxConnections=1",
            "InitialR2T=No",
            "ImmediateData=Yes",
            "MaxBurstLength=1024",
            "FirstBurstLength=1024",
            "MaxOutstandingR2T=1",
            "DataPDUInOrder=Yes",
            "DataSequenceInOrder=Yes",
            "TaskReporting=RFC3720",
            "iSCSIProtocolLevel=2",
        ] {
            let (answer, parameters) = negotiate(&discovery, key).expect(key);
            assert!(answer.ends_with("=Irrelevant"), "{answer}");
            assert_eq!(parameters, SessionParameters::default());
        }
        assert_eq!(
            negotiate(&discovery, "HeaderDigest=CRC32C").map(|result| result.0).as_deref(),
            Ok("HeaderDigest=CRC32C")
        );
        assert_eq!(
            negotiate(&discovery, "ErrorRecoveryLevel=2").map(|result| result.0).as_deref(),
            Ok("ErrorRecoveryLevel=0")
        );
    }

    #[test]
    fn the_key_table_is_whole() {
        for (index, (key, name, _, _)) in KEYS.iter().enumerate() {
            assert_eq!(*key as usize, index, "{name}");
            assert_eq!(Key::find(name).map(|found| found.0), Some(*key));
        }
    }

    #[test]
    fn key_and_text_limits() {
        let key = |length: usize| format!("{}=1\0", "K".repeat(length));
        for length in 1..=8192usize {
            assert_eq!(parse_pairs(key(length).as_bytes()).is_ok(), length <= 63, "{length}");
        }
        let longest = format!("Key={}\0", "v".repeat(TEXT_BYTES_MAX - 5));
        assert!(parse_pairs(longest.as_bytes()).is_ok());
        assert!(parse_pairs(format!("v{longest}").as_bytes()).is_err());
        for bad in ["=v\0", "Key\0", "Key=v", "K y=v\0", "Ke\ny=v\0"] {
            assert!(parse_pairs(bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert!(parse_pairs(b"K=\xFF\0").is_err());
        assert_eq!(parse_pairs(b""), Ok(vec![]));
        assert_eq!(parse_pairs(b"\0A=b=c\0\0\0B=\0\0"), Ok(vec![("A", "b=c"), ("B", "")]));
        assert!(parse_pairs("K=v\0".repeat(PAIRS_MAX + 1).as_bytes()).is_err());
        let mut negotiation = Negotiation::default();
        assert!(negotiation.note(Key::TargetName, &"n".repeat(256)).is_err());
        assert!(negotiation.note(Key::ChapR, &"n".repeat(2050)).is_ok());
        assert!(negotiation.note(Key::HeaderDigest, &format!("None,{}", "n".repeat(256))).is_err());
        assert!(negotiation.note(Key::DataDigest, &format!("None,{}", "nn,".repeat(256))).is_ok());
    }

    #[test]
    fn we_propose_what_the_defaults_exceed() {
        let options = Options {
            immediate_data: false,
            max_burst_length: 131_072,
            first_burst_length: 8192,
            ..Options::default()
        };
        let mut node = target("iqn.2001-04.com.example:t", &[]);
        node.data_digest = true;
        let offer = Offer::new(&options, Some(&node));
        let mut negotiation = Negotiation::default();
        negotiation.note(Key::InitialR2T, "No").expect("new");
        let mut reply = Vec::new();
        negotiation.negotiate(&offer, &[(Key::InitialR2T, "No")], &mut reply).expect("agreed");
        reply.clear();
        let missing = negotiation.missing(&offer);
        negotiation.propose(missing, &mut reply).expect("proposed");
        assert_eq!(
            reply,
            b"DataDigest=CRC32C\0ImmediateData=No\0MaxBurstLength=131072\0FirstBurstLength=8192\0"
        );
        reply.clear();
        let answers =
            [(Key::DataDigest, "CRC32C"), (Key::MaxBurstLength, "131072"), (Key::FirstBurstLength, "0x1000")];
        for (key, value) in answers {
            negotiation.note(key, value).expect("new");
        }
        negotiation.negotiate(&offer, &answers, &mut reply).expect("accepted");
        assert!(reply.is_empty() && negotiation.missing(&offer).is_empty());
        let result = negotiation.result(&offer).expect("agreed");
        assert!(result.data_digest && !result.immediate_data);
        assert_eq!((result.max_burst_length, result.first_burst_length), (131_072, 4096));

        let mut stubborn = Negotiation::default();
        let missing = stubborn.missing(&offer);
        stubborn.propose(missing, &mut reply).expect("proposed");
        stubborn.note(Key::MaxBurstLength, "262144").expect("new");
        assert!(stubborn.negotiate(&offer, &[(Key::MaxBurstLength, "262144")], &mut reply).is_err());
        let missing = stubborn.missing(&offer);
        assert!(stubborn.propose(missing, &mut reply).is_err());

        // "Reject" leaves the default in force, which is more than we take.
        let mut rejecting = Negotiation::default();
        let missing = rejecting.missing(&offer);
        rejecting.propose(missing, &mut reply).expect("proposed");
        rejecting.note(Key::MaxBurstLength, "Reject").expect("an answer");
        assert!(rejecting.negotiate(&offer, &[(Key::MaxBurstLength, "Reject")], &mut reply).is_err());
    }
}
