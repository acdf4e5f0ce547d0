//! The login phase of one connection (RFC 7143 §6.3), from the initiator's side.

use wire::iscsi::{LoginRequest, LoginResponse, LoginStage, text};

use crate::chap::{binary, hex};
use crate::negotiation::Negotiation;
use crate::{Authentication, Chap, ChapAlgorithm, Config, SessionKind};

/// Responses a login may take; a target that never ends it is cut off here.
const ROUNDS_MAX: u32 = 32;
/// Bytes of text gathered over PDUs with the C bit.
const TEXT_MAX: usize = 64 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    AuthMethod,
    ChapChallenge,
    ChapProof(ChapAlgorithm),
    /// Nothing left to prove: waiting for the transit out of the security stage.
    SecurityDone,
    Operational,
}

/// What to do after a response.
#[derive(Debug)]
pub(crate) enum Step {
    /// Send this, with this text.
    Send(LoginRequest, Vec<u8>),
    /// The full feature phase begins.
    Done { tsih: u16 },
    /// The target said no.
    Failed { class: u8, detail: u8, text: Vec<(String, String)> },
    /// Mutual CHAP failed.
    NotAuthentic,
    /// The target broke the standard so that login cannot go on.
    Broken(String),
}

#[derive(Debug)]
pub(crate) struct Login {
    phase: Phase,
    pub(crate) negotiation: Negotiation,
    /// The request the target has to answer.
    last: LoginRequest,
    text: Vec<u8>,
    rounds: u32,
    tsih: u16,
}

type Keys = Vec<(String, String)>;

fn lookup<'a>(keys: &'a Keys, name: &str) -> Option<&'a str> {
    keys.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

fn encode(keys: &Keys) -> Vec<u8> {
    let mut data = Vec::new();
    for (key, value) in keys {
        data.extend_from_slice(format!("{key}={value}\0").as_bytes());
    }
    data
}

pub(crate) fn decode(data: &[u8]) -> Result<Keys, String> {
    text::pairs(data)
        .map(|pair| {
            pair.map(|(key, value)| (key.to_string(), value.to_string())).map_err(|error| error.to_string())
        })
        .collect()
}

impl Login {
    /// The machine and the first request. CmdSN and ExpStatSN are the connection's.
    pub(crate) fn start(config: &Config, initiator_task_tag: u32) -> (Login, LoginRequest, Vec<u8>) {
        let operational = config.skip_security_stage && matches!(config.authentication, Authentication::None);
        let last = LoginRequest {
            transit: false,
            continue_: false,
            current_stage: LoginStage::SecurityNegotiation,
            next_stage: LoginStage::SecurityNegotiation,
            version_max: 0,
            version_min: 0,
            isid: config.isid,
            tsih: config.tsih,
            initiator_task_tag,
            cid: config.cid,
            cmd_sn: 0,
            exp_stat_sn: 0,
            data_segment_length: 0,
        };
        let mut login = Login {
            phase: if operational { Phase::Operational } else { Phase::AuthMethod },
            negotiation: Negotiation::default(),
            last,
            text: Vec::new(),
            rounds: 0,
            tsih: config.tsih,
        };
        let kind = match config.kind {
            SessionKind::Discovery => "Discovery",
            SessionKind::Normal => "Normal",
        };
        let mut keys: Keys = vec![
            ("InitiatorName".into(), config.initiator_name.clone()),
            ("SessionType".into(), kind.into()),
        ];
        keys.extend(config.target_name.iter().map(|name| ("TargetName".into(), name.clone())));
        let transit = match (&config.authentication, operational) {
            (_, true) => {
                keys.extend(login.negotiation.offers(config));
                true
            }
            (Authentication::None, _) => {
                keys.push(("AuthMethod".into(), "None".into()));
                true
            }
            (Authentication::Chap(chap), _) => {
                keys.push(("AuthMethod".into(), if chap.offer_none { "CHAP,None" } else { "CHAP" }.into()));
                false
            }
        };
        let (request, data) = login.request(transit, &keys);
        (login, request, data)
    }

    fn request(&mut self, transit: bool, keys: &Keys) -> (LoginRequest, Vec<u8>) {
        let (current, next) = match self.phase {
            Phase::Operational => (LoginStage::LoginOperationalNegotiation, LoginStage::FullFeaturePhase),
            _ => (LoginStage::SecurityNegotiation, LoginStage::LoginOperationalNegotiation),
        };
        let data = encode(keys);
        self.last = LoginRequest {
            transit,
            current_stage: current,
            next_stage: if transit { next } else { current },
            data_segment_length: u32::try_from(data.len()).unwrap_or(u32::MAX),
            ..self.last
        };
        (self.last, data)
    }

    fn send(&mut self, transit: bool, keys: &Keys) -> Step {
        let (request, data) = self.request(transit, keys);
        Step::Send(request, data)
    }

    /// Takes a response. Violations that do not end the login go to `wrong`.
    pub(crate) fn take(
        &mut self,
        config: &Config,
        response: &LoginResponse,
        data: &[u8],
        wrong: &mut Vec<String>,
    ) -> Step {
        self.rounds += 1;
        self.text.extend_from_slice(data);
        if response.initiator_task_tag != self.last.initiator_task_tag {
            wrong.push("Login Response with another initiator task tag (§11.13)".into());
        }
        if response.status_class != 0 {
            let text = decode(&self.text).unwrap_or_default();
            return Step::Failed { class: response.status_class, detail: response.status_detail, text };
        }
        if self.rounds > ROUNDS_MAX || self.text.len() > TEXT_MAX {
            return Step::Broken("login does not end".into());
        }
        self.check_header(response, wrong);
        if response.continue_ {
            return self.send(false, &Vec::new());
        }
        let keys = match decode(&std::mem::take(&mut self.text)) {
            Ok(keys) => keys,
            Err(error) => return Step::Broken(format!("login text: {error} (§6.1)")),
        };
        match self.advance(config, response, keys, wrong) {
            Ok(step) => step,
            Err(what) => Step::Broken(what),
        }
    }

    fn check_header(&mut self, response: &LoginResponse, wrong: &mut Vec<String>) {
        if response.isid != self.last.isid {
            wrong.push("Login Response with another ISID (§11.13)".into());
        }
        if response.version_active != 0 {
            wrong.push(format!("Version-active {} (§11.13.2)", response.version_active));
        }
        if response.current_stage != self.last.current_stage {
            wrong.push("Login Response in another stage than the request (§11.13)".into());
        }
        if response.transit && !self.last.transit {
            wrong.push("Login Response with T to a request without it (§11.13.6)".into());
        }
        if response.transit && response.next_stage > self.last.next_stage {
            wrong.push("Login Response goes further than the request (§11.13.6)".into());
        }
    }

    fn advance(
        &mut self,
        config: &Config,
        response: &LoginResponse,
        keys: Keys,
        wrong: &mut Vec<String>,
    ) -> Result<Step, String> {
        let chap = match &config.authentication {
            Authentication::Chap(chap) => Some(chap),
            Authentication::None => None,
        };
        match (self.phase, chap) {
            (Phase::Operational, _) => return self.operational(response, &keys, wrong),
            (Phase::AuthMethod, chap) => {
                self.declared(&keys, wrong);
                let method = lookup(&keys, "AuthMethod").ok_or("no answer to AuthMethod (§12.1)")?;
                match (method, chap) {
                    ("CHAP", Some(chap)) => {
                        self.phase = Phase::ChapChallenge;
                        let list: Vec<String> =
                            chap.algorithms.iter().map(|a| (*a as u8).to_string()).collect();
                        return Ok(self.send(false, &vec![("CHAP_A".into(), list.join(","))]));
                    }
                    ("None", None) => self.phase = Phase::SecurityDone,
                    ("None", Some(chap)) if chap.offer_none => self.phase = Phase::SecurityDone,
                    _ => return Err(format!("AuthMethod={method} was not offered (§12.1)")),
                }
            }
            (Phase::ChapChallenge, Some(chap)) => return self.prove(chap, &keys),
            (Phase::ChapProof(algorithm), Some(chap)) => {
                if let Some(mutual) = &chap.mutual {
                    let name = lookup(&keys, "CHAP_N").ok_or("no CHAP_N from the target (§12.1.3)")?;
                    let proof = lookup(&keys, "CHAP_R").ok_or("no CHAP_R from the target (§12.1.3)")?;
                    let expected = algorithm.response(mutual.identifier, &mutual.secret, &mutual.challenge);
                    let name_fits = mutual.name.as_deref().is_none_or(|expected| expected == name);
                    if !name_fits || binary(proof).as_deref() != Some(&expected) {
                        return Ok(Step::NotAuthentic);
                    }
                } else if lookup(&keys, "CHAP_R").is_some() {
                    wrong.push("CHAP_R from the target without a challenge (§12.1.3)".into());
                }
                self.phase = Phase::SecurityDone;
            }
            (Phase::ChapChallenge | Phase::ChapProof(_) | Phase::SecurityDone, _) => {}
        }
        if !response.transit {
            return Ok(self.send(true, &Vec::new()));
        }
        if response.next_stage != LoginStage::LoginOperationalNegotiation {
            return Err("transit out of the security stage to a stage not asked for (§11.13.6)".into());
        }
        self.phase = Phase::Operational;
        let offers = self.negotiation.offers(config);
        Ok(self.send(true, &offers))
    }

    fn prove(&mut self, chap: &Chap, keys: &Keys) -> Result<Step, String> {
        let algorithm = lookup(keys, "CHAP_A").and_then(ChapAlgorithm::from_text);
        let algorithm = algorithm.filter(|algorithm| chap.algorithms.contains(algorithm));
        let algorithm = algorithm.ok_or("CHAP_A is not one of those offered (§12.1.3)")?;
        let identifier = lookup(keys, "CHAP_I").and_then(|text| text.parse::<u8>().ok());
        let identifier = identifier.ok_or("CHAP_I is not a number below 256 (§12.1.3)")?;
        let challenge = lookup(keys, "CHAP_C").and_then(binary).filter(|bytes| bytes.len() <= 1024);
        let challenge = challenge.ok_or("CHAP_C is not a binary value of 1 to 1024 bytes (§12.1.3)")?;
        let proof = algorithm.response(identifier, &chap.secret, &challenge);
        let mut reply = vec![("CHAP_N".into(), chap.name.clone()), ("CHAP_R".into(), hex(&proof))];
        if let Some(mutual) = &chap.mutual {
            reply.push(("CHAP_I".into(), mutual.identifier.to_string()));
            reply.push(("CHAP_C".into(), hex(&mutual.challenge)));
        }
        self.phase = Phase::ChapProof(algorithm);
        Ok(self.send(true, &reply))
    }

    /// Declarations of the target that may come in the security stage.
    fn declared(&mut self, keys: &Keys, wrong: &mut Vec<String>) {
        for (key, value) in keys {
            if matches!(key.as_str(), "TargetPortalGroupTag" | "TargetAlias" | "TargetAddress") {
                wrong.extend(self.negotiation.take(key, value).err());
            }
        }
    }

    fn operational(
        &mut self,
        response: &LoginResponse,
        keys: &Keys,
        wrong: &mut Vec<String>,
    ) -> Result<Step, String> {
        let mut reply = Vec::new();
        for (key, value) in keys {
            match self.negotiation.take(key, value) {
                Ok(None) => {}
                Ok(Some(answer)) => reply.push((key.clone(), answer)),
                Err(what) => wrong.push(what),
            }
        }
        if !response.transit {
            return Ok(self.send(true, &reply));
        }
        if response.next_stage != LoginStage::FullFeaturePhase {
            return Err("transit out of the operational stage to another stage (§11.13.6)".into());
        }
        for key in self.negotiation.unanswered() {
            wrong.push(format!("no answer to {key} (§6.2)"));
        }
        if response.tsih == 0 {
            wrong.push("TSIH 0 in the last Login Response (§11.13.3)".into());
        }
        if self.tsih != 0 && response.tsih != self.tsih {
            wrong.push("another TSIH than the one asked for (§11.13.3)".into());
        }
        Ok(Step::Done { tsih: response.tsih })
    }
}
