use proptest::prelude::*;

use super::super::chap::tests::{Counting, secret};
use super::super::chap::{Bytes, encode_hex};
use super::super::{AuthGroup, InitiatorGroup, Portal, PortalGroup, PortalGroupMap, TargetNode};
use super::*;

const HOST: &str = "iqn.2001-04.com.example:host";
const SECRET: &str = "correct horse battery";
const NORMAL: &str = "InitiatorName=iqn.2001-04.com.example:host TargetName=iqn.2001-04.com.example:t";
const CHAP: &str = "InitiatorName=iqn.2001-04.com.example:host TargetName=iqn.2001-04.com.example:chap";
const MUTUAL: &str = "InitiatorName=iqn.2001-04.com.example:host TargetName=iqn.2001-04.com.example:mutual";
const DISCOVERY: &str = "InitiatorName=iqn.2001-04.com.example:host SessionType=Discovery";
use LoginStage::{FullFeaturePhase as Full, LoginOperationalNegotiation as Oper, SecurityNegotiation as Sec};

pub(crate) fn group(tag: u32, initiators: &[&str], netmasks: &[&str]) -> InitiatorGroup {
    let owned = |list: &[&str]| list.iter().map(|entry| (*entry).to_owned()).collect();
    InitiatorGroup { tag, initiators: owned(initiators), netmasks: owned(netmasks) }
}

pub(crate) fn target(name: &str, maps: &[(u16, u32)]) -> TargetNode {
    TargetNode {
        target: scsi::TargetDeviceId(1),
        name: name.into(),
        alias: None,
        maps: maps
            .iter()
            .map(|&(portal_group, initiator_group)| PortalGroupMap { portal_group, initiator_group })
            .collect(),
        auth: AuthPolicy { disable_chap: true, ..AuthPolicy::default() },
        header_digest: false,
        data_digest: false,
        queue_depth: 0,
    }
}

/// Target `t` is open to the host, `chap` and `mutual` want proof, `closed` has no map.
pub(crate) fn config() -> Config {
    let mut chap = target("iqn.2001-04.com.example:chap", &[(1, 1)]);
    chap.auth = AuthPolicy { require_chap: true, chap_group: 1, ..AuthPolicy::default() };
    let mut mutual = target("iqn.2001-04.com.example:mutual", &[(1, 1)]);
    mutual.auth = AuthPolicy { require_chap: true, mutual_chap: true, ..AuthPolicy::default() };
    let mut open = target("iqn.2001-04.com.example:t", &[(1, 1)]);
    open.alias = Some("The disk".into());
    let mut user = secret("user", SECRET);
    user.mutual_user = Some("us".into());
    user.mutual_secret = Some("another long secret".into());
    Config {
        generation: 1,
        portal_groups: vec![PortalGroup {
            tag: 1,
            portals: vec![Portal { address: "0.0.0.0:3260".parse().expect("address"), advertised: None }],
            private: false,
        }],
        initiator_groups: vec![group(1, &[HOST], &["10.0.0.0/8"])],
        auth_groups: vec![AuthGroup { tag: 1, secrets: vec![user] }, AuthGroup { tag: 2, secrets: vec![] }],
        targets: vec![open, chap, mutual, target("iqn.2001-04.com.example:closed", &[])],
        ready: true,
        ..Config::default()
    }
}

pub(crate) fn environment_of(config: &Arc<Config>) -> LoginEnvironment<'_> {
    LoginEnvironment {
        config,
        peer: SocketAddr::from(([10, 0, 0, 7], 40_000)),
        local: SocketAddr::from(([10, 0, 0, 1], 3260)),
    }
}

fn request(stage: LoginStage, next: Option<LoginStage>) -> LoginRequest {
    LoginRequest {
        transit: next.is_some(),
        continue_: false,
        current_stage: stage,
        next_stage: next.unwrap_or(Sec),
        version_max: 0,
        version_min: 0,
        isid: [0x40, 1, 2, 3, 4, 5],
        tsih: 0,
        initiator_task_tag: 9,
        cid: 1,
        cmd_sn: 1,
        exp_stat_sn: 0,
        data_segment_length: 0,
    }
}

/// One login; keys are written and read with blanks for NULs.
struct Login {
    config: Arc<Config>,
    machine: LoginMachine,
    reply: Vec<u8>,
}

/// A response in short: the stage we went to, the text, and the outcome; or the status.
type Answer = Result<(Option<LoginStage>, String, Option<Box<LoginOutcome>>), u16>;

impl Login {
    fn new(config: Config) -> Login {
        Login {
            config: Arc::new(config),
            machine: LoginMachine::with_entropy(Box::new(Counting(1))),
            reply: Vec::new(),
        }
    }

    fn raw(&mut self, request: &LoginRequest, data: &[u8]) -> Answer {
        let step = self.machine.handle_request(environment_of(&self.config), request, data, &mut self.reply);
        let text =
            String::from_utf8(self.reply.clone()).expect("UTF-8").trim_end_matches('\0').replace('\0', " ");
        let (response, outcome) = match step {
            LoginStep::Continue(response) => (response, None),
            LoginStep::Finish(response, outcome) => {
                assert_eq!(response.next_stage, Full);
                (response, Some(outcome))
            }
            LoginStep::Fail(response, reason) => {
                assert!(
                    response.status_class != 0 && !response.transit && !reason.is_empty() && text.is_empty()
                );
                return Err(u16::from(response.status_class) << 8 | u16::from(response.status_detail));
            }
        };
        assert_eq!(response.data_segment_length as usize, self.reply.len());
        assert!(self.reply.len() <= 8192);
        assert!(!response.transit || request.transit && response.next_stage <= request.next_stage);
        assert_eq!(outcome.is_some(), response.transit && response.next_stage == Full);
        Ok((response.transit.then_some(response.next_stage), text, outcome))
    }

    fn send(&mut self, stage: LoginStage, next: Option<LoginStage>, keys: &str) -> Answer {
        let data: String =
            keys.split(' ').filter(|pair| !pair.is_empty()).map(|pair| format!("{pair}\0")).collect();
        self.raw(&request(stage, next), data.as_bytes())
    }

    fn status(&mut self, stage: LoginStage, next: Option<LoginStage>, keys: &str) -> u16 {
        self.send(stage, next, keys).err().unwrap_or(0)
    }
}

fn first(config: Config, stage: LoginStage, next: Option<LoginStage>, keys: &str) -> u16 {
    Login::new(config).status(stage, next, keys)
}

/// What a client answers to our challenge.
fn prove(challenge: &str, algorithm: Algorithm, secret: &str) -> String {
    let value = |key: &str| {
        challenge
            .split(' ')
            .find_map(|pair| pair.strip_prefix(key))
            .unwrap_or_else(|| panic!("{key} in {challenge}"))
    };
    let identifier: u8 = value("CHAP_I=").parse().expect("identifier");
    let bytes = Bytes::<64>::decode(value("CHAP_C=")).expect("challenge");
    encode_hex(algorithm.response(identifier, secret.as_bytes(), bytes.as_slice()).as_slice())
}

#[test]
fn a_login_in_one_request() {
    let keys = format!(
        "{NORMAL} InitiatorAlias=Host MaxRecvDataSegmentLength=65536 InitialR2T=No HeaderDigest=CRC32C,None X-a=1"
    );
    let (next, text, outcome) = Login::new(config()).send(Oper, Some(Full), &keys).expect("in");
    assert_eq!(next, Some(Full));
    assert_eq!(
        text,
        "TargetPortalGroupTag=1 X-a=NotUnderstood InitialR2T=No HeaderDigest=CRC32C TargetAlias=The disk \
         MaxRecvDataSegmentLength=262144"
    );
    let outcome = outcome.expect("finished");
    assert_eq!(outcome.parameters.max_send_data_segment_length, 65_536);
    assert_eq!(outcome.parameters.max_recv_data_segment_length, 262_144);
    assert!(outcome.parameters.header_digest && !outcome.parameters.initial_r2t);
    assert_eq!(outcome.initiator_alias.as_deref(), Some("Host"));
    assert_eq!((outcome.portal_group, outcome.cid, outcome.tsih, outcome.chap_user), (1, 1, 0, None));
    let identity = outcome.identity.expect("normal");
    assert_eq!(&*identity.initiator_port, "iqn.2001-04.com.example:host,i,0x400102030405");
    assert_eq!(&*identity.target_port, "iqn.2001-04.com.example:t,t,0x0001");
}

#[test]
fn security_then_operational() {
    let mut login = Login::new(config());
    let (next, text, _) =
        login.send(Sec, Some(Oper), &format!("{NORMAL} AuthMethod=CHAP,None")).expect("none");
    assert_eq!((next, text.as_str()), (Some(Oper), "TargetPortalGroupTag=1 AuthMethod=None"));
    let (next, text, _) = login.send(Oper, None, "ErrorRecoveryLevel=2").expect("negotiating");
    let declared = "ErrorRecoveryLevel=0 TargetAlias=The disk MaxRecvDataSegmentLength=262144";
    assert_eq!((next, text.as_str()), (None, declared));
    let (next, text, outcome) = login.send(Oper, Some(Full), "").expect("in");
    assert_eq!((next, text.as_str()), (Some(Full), ""));
    assert!(outcome.is_some());
    assert_eq!(login.status(Oper, Some(Full), ""), 0x020B);
}

#[test]
fn security_straight_to_full_feature() {
    let (next, _, outcome) =
        Login::new(config()).send(Sec, Some(Full), &format!("{NORMAL} AuthMethod=None")).expect("in");
    assert_eq!(next, Some(Full));
    assert_eq!(outcome.expect("finished").parameters, SessionParameters::default());
    // A target that has to propose something does not skip the stage.
    let mut strict = config();
    strict.targets[0].header_digest = true;
    let mut login = Login::new(strict);
    assert_eq!(login.send(Sec, Some(Full), NORMAL).expect("on").0, Some(Oper));
    let (next, text, _) = login.send(Oper, Some(Full), "").expect("proposal");
    assert_eq!(next, None);
    assert!(text.ends_with("HeaderDigest=CRC32C"), "{text}");
    let (_, text, outcome) = login.send(Oper, Some(Full), "HeaderDigest=CRC32C").expect("in");
    assert!(text.is_empty() && outcome.expect("finished").parameters.header_digest);
}

#[test]
fn discovery_session() {
    let (_, text, outcome) =
        Login::new(config()).send(Oper, Some(Full), &format!("{DISCOVERY} MaxBurstLength=512")).expect("in");
    assert!(text.starts_with("TargetPortalGroupTag=1 MaxBurstLength=Irrelevant MaxRecvData"), "{text}");
    let outcome = outcome.expect("finished");
    assert_eq!(
        (outcome.session_type, outcome.identity, outcome.target),
        (SessionType::Discovery, None, None)
    );
}

#[test]
fn who_may_not_come_in() {
    let name = |name: &str| format!("InitiatorName={HOST} TargetName=iqn.2001-04.com.example:{name}");
    let other = NORMAL.replace(":host", ":other");
    for (keys, status) in [
        (NORMAL.to_owned(), 0),
        (
            NORMAL
                .replace(":host", ":HOST")
                .replace("iqn.2001-04.com.example:t", "IQN.2001-04.com.example:T"),
            0,
        ),
        (name("closed"), 0x0202),
        (name("none"), 0x0203),
        (other, 0x0202),
        (format!("InitiatorName={HOST}"), 0x0207),
        ("TargetName=iqn.2001-04.com.example:t".to_owned(), 0x0207),
        (String::new(), 0x0207),
        (format!("{NORMAL} SessionType=Copy"), 0x0209),
        (NORMAL.replace(HOST, "host"), 0x0200),
        (format!("InitiatorName={HOST}{} SessionType=Discovery", "a".repeat(250)), 0x0200),
        (name("chap"), 0x0201),
        (name("mutual"), 0x0201),
    ] {
        assert_eq!(first(config(), Oper, Some(Full), &keys), status, "{keys}");
    }
    let spoilt = |spoil: fn(&mut Config), keys: &str| {
        let mut config = config();
        spoil(&mut config);
        first(config, Oper, Some(Full), keys)
    };
    assert_eq!(spoilt(|config| config.ready = false, NORMAL), 0x0301);
    assert_eq!(spoilt(|config| config.ready = false, DISCOVERY), 0x0301);
    assert_eq!(spoilt(|config| config.portal_groups.clear(), NORMAL), 0x0203);
    assert_eq!(spoilt(|config| config.portal_groups.clear(), DISCOVERY), 0x0301);
    assert_eq!(spoilt(|config| config.portal_groups[0].private = true, NORMAL), 0x0202);
    assert_eq!(spoilt(|config| config.portal_groups[0].private = true, DISCOVERY), 0);
    assert_eq!(
        spoilt(|config| config.initiator_groups[0].netmasks = vec!["11.0.0.0/8".into()], NORMAL),
        0x0202
    );
    assert_eq!(
        spoilt(|config| config.targets[0].data_digest = true, &format!("{NORMAL} DataDigest=None")),
        0x0200
    );
}

#[test]
fn chap_one_way_with_each_algorithm() {
    for (list, algorithm) in [
        ("5", Algorithm::Md5),
        ("5,6", Algorithm::Sha1),
        ("7,5", Algorithm::Sha256),
        ("5,6,7,8", Algorithm::Sha3_256),
    ] {
        let mut login = Login::new(config());
        let (next, text, _) =
            login.send(Sec, Some(Oper), &format!("{CHAP} AuthMethod=CHAP,None")).expect("method");
        assert_eq!((next, text.as_str()), (None, "TargetPortalGroupTag=1 AuthMethod=CHAP"));
        let (next, challenge, _) = login.send(Sec, Some(Oper), &format!("CHAP_A={list}")).expect("challenge");
        assert_eq!(next, None);
        assert!(challenge.starts_with(&format!("CHAP_A={} ", algorithm as u8)), "{challenge}");
        let proof = prove(&challenge, algorithm, SECRET);
        let (next, text, _) =
            login.send(Sec, Some(Oper), &format!("CHAP_N=user CHAP_R={proof}")).expect("proven");
        assert_eq!((next, text.as_str()), (Some(Oper), ""));
        let outcome = login.send(Oper, Some(Full), "").expect("in").2.expect("finished");
        assert_eq!(outcome.chap_user.as_deref(), Some("user"));
    }
}

/// Carries a login to the challenge, and gives the challenge.
fn challenged(config: Config, names: &str) -> (Login, String) {
    let mut login = Login::new(config);
    login.send(Sec, None, &format!("{names} AuthMethod=CHAP")).expect("method");
    let (_, challenge, _) = login.send(Sec, None, "CHAP_A=5,7").expect("challenge");
    (login, challenge)
}

#[test]
fn chap_failures_are_0201() {
    let proof = |challenge: &str| prove(challenge, Algorithm::Sha256, SECRET);
    let answers: &[fn(&str) -> String] = &[
        |_| "CHAP_N=user CHAP_R=0x00".into(),
        |proof| format!("CHAP_N=nobody CHAP_R={proof}"),
        |proof| format!("CHAP_R={proof}"),
        |_| "CHAP_N=user".into(),
        |proof| format!("CHAP_N=user CHAP_R={proof}00"),
        |proof| format!("CHAP_N=user CHAP_R={proof} CHAP_I=1"),
        |proof| format!("CHAP_N=user CHAP_R={proof} CHAP_C=0x01"),
        |proof| format!("CHAP_N=0x75736572 CHAP_R={proof}"),
    ];
    for answer in answers {
        let (mut login, challenge) = challenged(config(), CHAP);
        let keys = answer(&proof(&challenge));
        assert_eq!(login.status(Sec, Some(Full), &keys), 0x0201, "{keys}");
        assert_eq!(login.status(Sec, Some(Full), &keys), 0x020B);
    }
    for keys in
        ["AuthMethod=None", "AuthMethod=KRB5,SRP", "CHAP_A=5", "CHAP_N=user CHAP_R=0x00", "AuthMethod="]
    {
        assert_eq!(first(config(), Sec, Some(Oper), &format!("{CHAP} {keys}")), 0x0201, "{keys}");
    }
    let mut login = Login::new(config());
    login.send(Sec, None, &format!("{CHAP} AuthMethod=CHAP")).expect("method");
    assert_eq!(login.status(Sec, None, "CHAP_A=1,2,3"), 0x0201);
    // No secrets, no CHAP; and none beside CHAP is not offered either.
    let mut empty = config();
    empty.targets[1].auth.chap_group = 2;
    assert_eq!(first(empty, Sec, None, &format!("{CHAP} AuthMethod=CHAP,None")), 0x0201);
    let mut contradiction = config();
    contradiction.targets[1].auth.disable_chap = true;
    assert_eq!(first(contradiction, Sec, Some(Full), CHAP), 0x0201);
}

/// The right answer gets in; one out of order, or a second challenge, does not.
#[test]
fn one_challenge_in_a_login() {
    let (mut login, challenge) = challenged(config(), CHAP);
    let proof = prove(&challenge, Algorithm::Sha256, SECRET);
    assert_eq!(login.status(Sec, None, "CHAP_A=5"), 0x0200);
    let (mut login, _) = challenged(config(), CHAP);
    assert_eq!(login.send(Sec, Some(Full), "").expect("waiting").0, None);
    assert_eq!(login.status(Sec, Some(Full), &format!("CHAP_N=user CHAP_R={proof}")), 0);
}

#[test]
fn mutual_chap() {
    let answer = |names: &str, more: &str| {
        let (mut login, challenge) = challenged(config(), names);
        let proof = prove(&challenge, Algorithm::Sha256, SECRET);
        let more = more.replace("REFLECTED", challenge.split("CHAP_C=").nth(1).unwrap_or_default());
        login.send(Sec, Some(Full), &format!("CHAP_N=user CHAP_R={proof} {more}"))
    };
    let (next, text, outcome) = answer(MUTUAL, "CHAP_I=3 CHAP_C=0x0102").expect("in");
    let ours = encode_hex(Algorithm::Sha256.response(3, b"another long secret", &[1, 2]).as_slice());
    assert_eq!((next, text), (Some(Full), format!("CHAP_N=us CHAP_R={ours}")));
    assert!(outcome.is_some());
    assert!(answer(CHAP, "CHAP_I=3 CHAP_C=0x0102").is_ok());
    // Not asked for although demanded; reflected; not a number; too long.
    assert_eq!(answer(MUTUAL, "").err(), Some(0x0201));
    assert_eq!(answer(MUTUAL, "CHAP_I=3 CHAP_C=REFLECTED").err(), Some(0x0201));
    assert_eq!(answer(CHAP, "CHAP_I=3 CHAP_C=REFLECTED").err(), Some(0x0201));
    assert_eq!(answer(MUTUAL, "CHAP_I=300 CHAP_C=0x0102").err(), Some(0x0201));
    assert_eq!(answer(MUTUAL, &format!("CHAP_I=3 CHAP_C=0x{}", "00".repeat(1025))).err(), Some(0x0201));
}

/// spdk#3417: authentication of discovery sessions is enforced, in each of its settings.
#[test]
fn spdk_3417_discovery_chap_is_enforced() {
    for policy in [
        AuthPolicy { require_chap: true, ..AuthPolicy::default() },
        AuthPolicy { require_chap: true, mutual_chap: true, ..AuthPolicy::default() },
        AuthPolicy { mutual_chap: true, ..AuthPolicy::default() },
        AuthPolicy { require_chap: true, chap_group: 2, ..AuthPolicy::default() },
    ] {
        let config = || Config { discovery_auth: policy, ..config() };
        assert_eq!(first(config(), Oper, Some(Full), DISCOVERY), 0x0201, "{policy:?}");
        assert_eq!(first(config(), Sec, Some(Full), &format!("{DISCOVERY} AuthMethod=None")), 0x0201);
        // Without a word of the initiator on methods we ask for CHAP and do not move on.
        let mut silent = Login::new(config());
        assert_eq!(silent.send(Sec, Some(Full), DISCOVERY).expect("proposal").0, None);
        assert_eq!(silent.status(Sec, Some(Full), ""), 0x0201);
    }
    let required = AuthPolicy { require_chap: true, ..AuthPolicy::default() };
    let (mut login, challenge) = challenged(Config { discovery_auth: required, ..config() }, DISCOVERY);
    let proof = prove(&challenge, Algorithm::Sha256, SECRET);
    assert_eq!(login.status(Sec, Some(Full), &format!("CHAP_N=user CHAP_R={proof}")), 0);
}

#[test]
fn the_target_proposes_chap() {
    let mut login = Login::new(config());
    let (next, text, _) = login.send(Sec, Some(Oper), CHAP).expect("proposal");
    assert_eq!((next, text.as_str()), (None, "TargetPortalGroupTag=1 AuthMethod=CHAP"));
    let (_, challenge, _) = login.send(Sec, None, "AuthMethod=CHAP CHAP_A=7").expect("challenge");
    assert!(challenge.starts_with("CHAP_A=7 "), "{challenge}");
    let proof = prove(&challenge, Algorithm::Sha256, SECRET);
    assert_eq!(login.status(Sec, Some(Full), &format!("CHAP_N=user CHAP_R={proof}")), 0);
    for refusal in ["AuthMethod=None", "AuthMethod=Reject", "AuthMethod=NotUnderstood", "CHAP_A=5", ""] {
        let mut login = Login::new(config());
        login.send(Sec, Some(Oper), CHAP).expect("proposal");
        assert_eq!(login.status(Sec, Some(Oper), refusal), 0x0201, "{refusal}");
    }
}

/// An optional CHAP: the initiator's first choice counts, unless there are no secrets.
#[test]
fn optional_chap() {
    let policy = |chap_group| {
        let mut config = config();
        config.targets[0].auth = AuthPolicy { chap_group, ..AuthPolicy::default() };
        Login::new(config)
    };
    let method = |mut login: Login, list: &str| {
        login
            .send(Sec, None, &format!("{NORMAL} AuthMethod={list}"))
            .map(|answer| answer.1.replace("TargetPortalGroupTag=1 ", ""))
    };
    assert_eq!(method(policy(1), "CHAP,None").as_deref(), Ok("AuthMethod=CHAP"));
    assert_eq!(method(policy(1), "None,CHAP").as_deref(), Ok("AuthMethod=None"));
    assert_eq!(method(policy(2), "CHAP,None").as_deref(), Ok("AuthMethod=None"));
    assert_eq!(method(policy(2), "CHAP").err(), Some(0x0201));
}

/// CVE-2013-2850: keys and values of every length; the reply stays bounded.
#[test]
fn cve_2013_2850_key_lengths() {
    for length in 1..=8192usize {
        let mut login = Login::new(config());
        let names: String = NORMAL.split(' ').map(|pair| format!("{pair}\0")).collect();
        let data = format!("{names}{}=1\0", "K".repeat(length));
        let answer = login.raw(&request(Oper, Some(Full)), data.as_bytes());
        assert_eq!(answer.is_ok(), length <= 63, "{length}");
    }
    let many = |count: usize| (0..count).map(|number| format!(" X-{number:061}=1")).collect::<String>();
    assert_eq!(first(config(), Oper, Some(Full), &format!("{NORMAL}{}", many(64))), 0);
    assert_eq!(first(config(), Oper, Some(Full), &format!("{NORMAL}{}", many(65))), 0x0200);
}

#[test]
fn keys_sent_twice_or_in_the_wrong_stage() {
    for keys in [
        "InitiatorName=iqn.2001-04.com.example:host",
        "MaxBurstLength=512 MaxBurstLength=512",
        "X-a=1 X-a=1",
        "AuthMethod=None",
        "CHAP_A=5",
        "SendTargets=All",
        "TargetAddress=10.0.0.1",
        "TargetPortalGroupTag=1",
        "MaxBurstLength=Reject",
        "X-a=NotUnderstood",
    ] {
        assert_eq!(first(config(), Oper, Some(Full), &format!("{NORMAL} {keys}")), 0x0200, "{keys}");
    }
    assert_eq!(first(config(), Sec, Some(Full), &format!("{NORMAL} HeaderDigest=None")), 0x0200);
    let mut login = Login::new(config());
    login.send(Oper, None, &format!("{NORMAL} MaxBurstLength=512 X-a=1")).expect("begun");
    assert_eq!(login.status(Oper, None, "MaxBurstLength=512"), 0x0200);
    for keys in ["X-a=1", "SessionType=Normal", "TargetName=iqn.2001-04.com.example:chap"] {
        let mut login = Login::new(config());
        login.send(Oper, None, &format!("{NORMAL} X-a=1")).expect("begun");
        assert_eq!(login.status(Oper, None, keys), 0x0200, "{keys}");
    }
    let mut login = Login::new(config());
    login.send(Oper, None, NORMAL).expect("begun");
    assert_eq!(login.status(Oper, Some(Full), "TargetAlias=NotUnderstood X#NodeArchitecture=x/1"), 0);
}

#[test]
fn headers_that_change() {
    let changes: &[fn(&mut LoginRequest)] = &[
        |request| request.isid = [0; 6],
        |request| request.tsih = 1,
        |request| request.cid = 2,
        |request| request.initiator_task_tag = 10,
        |request| request.version_max = 1,
        |request| request.current_stage = Sec,
        |request| request.current_stage = Full,
    ];
    for (index, change) in changes.iter().enumerate() {
        let mut login = Login::new(config());
        login.send(Oper, None, NORMAL).expect("begun");
        let mut changed = request(Oper, None);
        change(&mut changed);
        assert_eq!(login.raw(&changed, b"").err(), Some(0x0200), "{index}");
    }
    let mut version = request(Oper, None);
    (version.version_min, version.version_max) = (1, 1);
    assert_eq!(Login::new(config()).raw(&version, b"").err(), Some(0x0205));
}

/// Stages in any order, and every mixture of T and C: only the ways of RFC 7143 §6.3 lead in.
#[test]
fn cve_2011_0001_stages_in_any_order() {
    let stages = [Sec, Oper, Full];
    for names in [NORMAL, CHAP] {
        for walk in 0..(36 * 36) {
            let mut login = Login::new(config());
            let mut keys = names;
            for code in [walk % 36, walk / 36] {
                let mut head = request(stages[code % 3], None);
                (head.next_stage, head.transit, head.continue_) =
                    (stages[code / 3 % 3], code / 9 % 2 == 1, code / 18 == 1);
                let data: String = keys.split(' ').map(|pair| format!("{pair}\0")).collect();
                let answer = login.raw(&head, if head.continue_ { b"" } else { data.as_bytes() });
                let legal = head.current_stage != Full
                    && !(head.transit && (head.continue_ || head.next_stage <= head.current_stage));
                assert!(legal || answer.is_err());
                assert!(names == NORMAL || !matches!(answer, Ok((_, _, Some(_)))), "a login without proof");
                if !head.continue_ {
                    keys = "X-b=1";
                }
            }
        }
    }
}

#[test]
fn text_in_pieces_is_bounded() {
    let mut login = Login::new(config());
    let mut piece = request(Oper, None);
    piece.continue_ = true;
    let (next, text, _) = login.raw(&piece, b"InitiatorName=iqn.2001-04.com.exam").expect("more");
    assert_eq!((next, text.as_str()), (None, ""));
    assert!(login.raw(&piece, b"").is_ok());
    let rest = b"ple:host\0TargetName=iqn.2001-04.com.example:t\0";
    let (next, text, _) = login.raw(&request(Oper, Some(Full)), rest).expect("in");
    assert_eq!(next, Some(Full));
    assert!(text.starts_with("TargetPortalGroupTag=1"));

    let mut login = Login::new(config());
    assert!(login.raw(&piece, &[b'A'; 8192]).is_ok());
    assert_eq!(login.raw(&piece, b"A").err(), Some(0x0200));
    let mut login = Login::new(config());
    for _ in 0..REQUESTS_MAX {
        assert!(login.raw(&piece, b"").is_ok());
    }
    assert_eq!(login.raw(&piece, b"").err(), Some(0x0200));
}

/// A configuration that changes while a login is under way closes the door at once.
#[test]
fn the_configuration_changes_during_a_login() {
    type Change = fn(&mut Config);
    let changes: &[(Change, u16)] = &[
        (|config| config.targets.clear(), 0x0203),
        (|config| config.targets[0].maps.clear(), 0x0202),
        (|config| config.portal_groups[0].private = true, 0x0203),
        (|config| config.portal_groups[0].tag = 2, 0x0203),
        (
            |config| config.targets[0].auth = AuthPolicy { require_chap: true, ..AuthPolicy::default() },
            0x0201,
        ),
    ];
    for (change, status) in changes {
        let mut login = Login::new(config());
        login.send(Oper, None, NORMAL).expect("begun");
        change(Arc::make_mut(&mut login.config));
        assert_eq!(login.status(Oper, Some(Full), ""), *status);
    }
}

/// A user taken away between the proof and the end does not get in.
#[test]
fn the_user_is_removed_during_a_login() {
    for spoil in [false, true] {
        let (mut login, challenge) = challenged(config(), CHAP);
        let proof = prove(&challenge, Algorithm::Sha256, SECRET);
        login.send(Sec, Some(Oper), &format!("CHAP_N=user CHAP_R={proof}")).expect("proven");
        if spoil {
            Arc::make_mut(&mut login.config).auth_groups[0].secrets.clear();
        }
        assert_eq!(login.status(Oper, Some(Full), ""), if spoil { 0x0201 } else { 0 });
    }
}

#[test]
fn aliases_are_cut_and_cleaned() {
    assert_eq!(cut("a\u{1b}[31mb\n"), "a[31mb");
    assert_eq!(cut(&"é".repeat(200)).len(), 254);
}

/// Words a hostile initiator would use.
fn word() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(NORMAL.to_owned()),
        Just(CHAP.to_owned()),
        Just(DISCOVERY.to_owned()),
        ("(AuthMethod|CHAP_[AICNR]|SessionType|SendTargets|HeaderDigest|Max[A-Za-z]{5,20}|FirstBurstLength|IFMarkInt|X-[a-z]{0,70})", "[ -~]{0,40}")
            .prop_map(|(key, value)| format!("{key}={}", value.replace(' ', ""))),
        Just("AuthMethod=CHAP".to_owned()),
        Just("CHAP_A=5,6,7,8".to_owned()),
        "\\PC{0,100}",
    ]
}

proptest! {
    #[test]
    fn no_text_panics_and_replies_are_bounded(
        steps in prop::collection::vec((0..3usize, 0..3usize, any::<bool>(), any::<bool>(), prop::collection::vec(word(), 0..4)), 1..6)
    ) {
        let mut login = Login::new(config());
        for (stage, next, transit, continue_, words) in steps {
            let mut head = request([Sec, Oper, Full][stage], None);
            (head.next_stage, head.transit, head.continue_) = ([Sec, Oper, Full][next], transit, continue_);
            let data: String = words.join(" ").split(' ').map(|pair| format!("{pair}\0")).collect();
            let answer = login.raw(&head, data.as_bytes());
            if let Ok((_, _, Some(outcome))) = answer {
                prop_assert!(outcome.target.as_deref() != Some("iqn.2001-04.com.example:chap"));
            }
        }
    }

    #[test]
    fn no_bytes_panic(data in prop::collection::vec(any::<u8>(), 0..2000)) {
        super::super::fuzz_login(&data);
    }
}
