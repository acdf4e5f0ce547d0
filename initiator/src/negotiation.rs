use std::collections::{BTreeMap, BTreeSet};

use crate::{Config, SessionKind};

/// The outcome of negotiation (RFC 7143 §13), from the initiator's side.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Negotiated {
    pub header_digest: bool,
    pub data_digest: bool,
    pub max_connections: u16,
    pub initial_r2t: bool,
    pub immediate_data: bool,
    /// The target's MaxRecvDataSegmentLength: what we may send.
    pub max_send_data_segment_length: u32,
    /// Ours: what we accept.
    pub max_recv_data_segment_length: u32,
    pub max_burst_length: u32,
    pub first_burst_length: u32,
    pub default_time_to_wait: u16,
    pub default_time_to_retain: u16,
    pub max_outstanding_r2t: u16,
    pub data_pdu_in_order: bool,
    pub data_sequence_in_order: bool,
    pub error_recovery_level: u8,
    pub protocol_level: u8,
}

impl Default for Negotiated {
    /// The values of keys nobody negotiates.
    fn default() -> Negotiated {
        Negotiated {
            header_digest: false,
            data_digest: false,
            max_connections: 1,
            initial_r2t: true,
            immediate_data: true,
            max_send_data_segment_length: 8192,
            max_recv_data_segment_length: 8192,
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

/// How the answer to a key follows from the offer.
#[derive(Clone, Copy, PartialEq)]
enum Rule {
    /// One of the offered list.
    List,
    Minimum,
    Maximum,
    And,
    Or,
}

fn rule(key: &str) -> Option<Rule> {
    Some(match key {
        "HeaderDigest" | "DataDigest" => Rule::List,
        "MaxConnections" | "MaxBurstLength" | "FirstBurstLength" | "DefaultTime2Retain"
        | "MaxOutstandingR2T" | "ErrorRecoveryLevel" | "iSCSIProtocolLevel" => Rule::Minimum,
        "DefaultTime2Wait" => Rule::Maximum,
        "ImmediateData" => Rule::And,
        "InitialR2T" | "DataPDUInOrder" | "DataSequenceInOrder" => Rule::Or,
        _ => return None,
    })
}

fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

fn yes_no(value: bool) -> String {
    if value { "Yes".into() } else { "No".into() }
}

/// Keeps what was offered and checks what is answered.
#[derive(Debug, Default)]
pub(crate) struct Negotiation {
    offered: BTreeMap<String, String>,
    answered: BTreeSet<String>,
    pub(crate) result: Negotiated,
    pub(crate) portal_group_tag: Option<u16>,
    pub(crate) target_alias: Option<String>,
}

impl Negotiation {
    /// The keys of the operational stage.
    pub(crate) fn offers(&mut self, config: &Config) -> Vec<(String, String)> {
        let keys = &config.keys;
        let mut offers: Vec<(&str, String)> = vec![
            ("HeaderDigest", keys.header_digest.clone()),
            ("DataDigest", keys.data_digest.clone()),
            ("MaxRecvDataSegmentLength", keys.max_recv_data_segment_length.to_string()),
        ];
        if config.kind == SessionKind::Normal {
            offers.extend([
                ("MaxConnections", keys.max_connections.to_string()),
                ("InitialR2T", yes_no(keys.initial_r2t)),
                ("ImmediateData", yes_no(keys.immediate_data)),
                ("MaxBurstLength", keys.max_burst_length.to_string()),
                ("FirstBurstLength", keys.first_burst_length.to_string()),
                ("DefaultTime2Wait", keys.default_time_to_wait.to_string()),
                ("DefaultTime2Retain", keys.default_time_to_retain.to_string()),
                ("MaxOutstandingR2T", keys.max_outstanding_r2t.to_string()),
                ("DataPDUInOrder", yes_no(keys.data_pdu_in_order)),
                ("DataSequenceInOrder", yes_no(keys.data_sequence_in_order)),
                ("ErrorRecoveryLevel", keys.error_recovery_level.to_string()),
            ]);
            if let Some(level) = keys.protocol_level {
                offers.push(("iSCSIProtocolLevel", level.to_string()));
            }
        }
        self.result.max_recv_data_segment_length = keys.max_recv_data_segment_length;
        let mut offers: Vec<(String, String)> =
            offers.into_iter().map(|(key, value)| (key.into(), value)).collect();
        self.offered.extend(offers.iter().filter(|(key, _)| rule(key).is_some()).cloned());
        self.offered.extend(config.extra_keys.iter().cloned());
        offers.extend(config.extra_keys.iter().cloned());
        offers
    }

    /// Takes one key of the target. `Ok(Some(value))` is what to answer when the target was the one that offered.
    pub(crate) fn take(&mut self, key: &str, value: &str) -> Result<Option<String>, String> {
        match key {
            "TargetPortalGroupTag" => {
                let tag = number(value).and_then(|tag| u16::try_from(tag).ok());
                self.portal_group_tag =
                    Some(tag.ok_or("TargetPortalGroupTag is not a 16-bit number (§13.9)")?);
                return Ok(None);
            }
            "TargetAlias" => {
                self.target_alias = Some(value.into());
                return Ok(None);
            }
            "TargetAddress" => return Ok(None),
            "MaxRecvDataSegmentLength" => {
                let length = number(value).filter(|length| (512..=0xFF_FFFF).contains(length));
                self.result.max_send_data_segment_length =
                    length.ok_or("MaxRecvDataSegmentLength is not in 512..2^24-1 (§13.12)")?;
                return Ok(None);
            }
            _ => {}
        }
        let Some(offer) = self.offered.get(key).cloned() else {
            if rule(key).is_none() {
                return Ok(Some("NotUnderstood".into()));
            }
            // The target offers: what it offers is in range for us, so it is the result.
            let accepted = value.split(',').next().unwrap_or(value).to_string();
            self.apply(key, &accepted)?;
            return Ok(Some(accepted));
        };
        if !self.answered.insert(key.into()) {
            return Err(format!("{key} negotiated twice (§6.3)"));
        }
        match (value, rule(key)) {
            ("NotUnderstood", _) if key == "iSCSIProtocolLevel" => {}
            (_, None) | ("Irrelevant", _) => {}
            ("NotUnderstood" | "Reject", _) => return Err(format!("{key}={offer} answered by {value}")),
            (_, Some(rule)) => {
                if !legal(rule, &offer, value) {
                    return Err(format!("{key}={offer} answered by {value} (§13)"));
                }
                self.apply(key, value)?;
            }
        }
        Ok(None)
    }

    /// Keys the target should have answered and did not.
    pub(crate) fn unanswered(&self) -> Vec<String> {
        self.offered.keys().filter(|key| !self.answered.contains(*key)).cloned().collect()
    }

    fn apply(&mut self, key: &str, value: &str) -> Result<(), String> {
        let wrong = || format!("{key}={value} is not a value of that key (§13)");
        let count = || number(value).ok_or_else(wrong);
        let small = || number(value).and_then(|value| u16::try_from(value).ok()).ok_or_else(wrong);
        let byte = || number(value).and_then(|value| u8::try_from(value).ok()).ok_or_else(wrong);
        let boolean = || match value {
            "Yes" => Ok(true),
            "No" => Ok(false),
            _ => Err(wrong()),
        };
        let digest = || match value {
            "CRC32C" => Ok(true),
            "None" => Ok(false),
            _ => Err(wrong()),
        };
        let result = &mut self.result;
        match key {
            "HeaderDigest" => result.header_digest = digest()?,
            "DataDigest" => result.data_digest = digest()?,
            "MaxConnections" => result.max_connections = small()?,
            "InitialR2T" => result.initial_r2t = boolean()?,
            "ImmediateData" => result.immediate_data = boolean()?,
            "MaxBurstLength" => result.max_burst_length = count()?,
            "FirstBurstLength" => result.first_burst_length = count()?,
            "DefaultTime2Wait" => result.default_time_to_wait = small()?,
            "DefaultTime2Retain" => result.default_time_to_retain = small()?,
            "MaxOutstandingR2T" => result.max_outstanding_r2t = small()?,
            "DataPDUInOrder" => result.data_pdu_in_order = boolean()?,
            "DataSequenceInOrder" => result.data_sequence_in_order = boolean()?,
            "ErrorRecoveryLevel" => result.error_recovery_level = byte()?,
            "iSCSIProtocolLevel" => result.protocol_level = byte()?,
            _ => {}
        }
        Ok(())
    }
}

fn legal(rule: Rule, offer: &str, answer: &str) -> bool {
    match rule {
        Rule::List => offer.split(',').any(|item| item == answer),
        Rule::Minimum => {
            matches!((number(offer), number(answer)), (Some(offer), Some(answer)) if answer <= offer)
        }
        Rule::Maximum => {
            matches!((number(offer), number(answer)), (Some(offer), Some(answer)) if answer >= offer)
        }
        Rule::And => matches!((offer, answer), ("Yes", "Yes" | "No") | ("No", "No")),
        Rule::Or => matches!((offer, answer), ("No", "Yes" | "No") | ("Yes", "Yes")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offering() -> Negotiation {
        let mut negotiation = Negotiation::default();
        negotiation.offers(&Config::normal("iqn.i", "iqn.t"));
        negotiation
    }

    #[test]
    fn answers_follow_the_rules_of_their_keys() {
        let mut negotiation = offering();
        for (key, value) in [("InitialR2T", "Yes"), ("ImmediateData", "No"), ("MaxBurstLength", "0x10000")] {
            assert_eq!(negotiation.take(key, value), Ok(None));
        }
        assert!(negotiation.result.initial_r2t && !negotiation.result.immediate_data);
        assert_eq!(negotiation.result.max_burst_length, 65_536);
        assert!(negotiation.take("InitialR2T", "Yes").is_err(), "twice");
        for (key, value) in [
            ("MaxOutstandingR2T", "9"),
            ("DefaultTime2Wait", "1"),
            ("HeaderDigest", "CRC32C"),
            ("DataPDUInOrder", "No"),
            ("MaxConnections", "Reject"),
            ("MaxRecvDataSegmentLength", "511"),
        ] {
            assert!(offering().take(key, value).is_err(), "{key}={value}");
        }
        assert!(negotiation.unanswered().contains(&"FirstBurstLength".to_string()));
        assert!(!negotiation.unanswered().contains(&"MaxRecvDataSegmentLength".to_string()));
    }

    #[test]
    fn offers_of_the_target_get_an_answer() {
        let mut negotiation = Negotiation::default();
        assert_eq!(negotiation.take("MaxBurstLength", "4096"), Ok(Some("4096".into())));
        assert_eq!(negotiation.take("X-unknown", "1"), Ok(Some("NotUnderstood".into())));
        assert_eq!(negotiation.take("TargetPortalGroupTag", "7"), Ok(None));
        assert_eq!(negotiation.portal_group_tag, Some(7));
    }
}
