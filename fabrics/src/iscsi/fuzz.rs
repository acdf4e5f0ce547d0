//! The entry of the fuzzers: login and text machines under any bytes.

use std::net::SocketAddr;
use std::sync::Arc;

use wire::iscsi::{LoginRequest, LoginStage, TextRequest};
use wire::scsi::Lun;

use super::chap::Entropy;
use super::{
    AuthGroup, AuthPolicy, AuthSecret, Config, InitiatorGroup, LoginEnvironment, LoginMachine, LoginOutcome,
    LoginStep, Portal, PortalGroup, PortalGroupMap, TargetNode, TextMachine, TextStep,
};

/// A fixed challenge: the same input takes the same way.
#[derive(Debug)]
struct Fixed;

impl Entropy for Fixed {
    fn fill(&mut self, out: &mut [u8]) -> bool {
        out.fill(0x5A);
        true
    }
}

/// One open target and one with CHAP.
fn config() -> Config {
    let target = |number: u32, name: &str, auth: AuthPolicy| TargetNode {
        target: scsi::TargetDeviceId(number),
        name: name.into(),
        alias: Some("a disk".into()),
        maps: vec![PortalGroupMap { portal_group: 1, initiator_group: 1 }],
        auth,
        header_digest: false,
        data_digest: false,
        queue_depth: 0,
    };
    let secret = AuthSecret {
        user: "user".into(),
        secret: "correct horse battery".into(),
        mutual_user: Some("us".into()),
        mutual_secret: Some("another long secret".into()),
    };
    Config {
        generation: 1,
        portal_groups: vec![PortalGroup {
            tag: 1,
            portals: vec![Portal { address: SocketAddr::from(([0, 0, 0, 0], 3260)), advertised: None }],
            private: false,
        }],
        initiator_groups: vec![InitiatorGroup {
            tag: 1,
            initiators: vec!["ANY".into()],
            netmasks: vec!["ANY".into()],
        }],
        auth_groups: vec![AuthGroup { tag: 1, secrets: vec![secret] }],
        targets: vec![
            target(1, "iqn.2001-04.com.example:t", AuthPolicy::default()),
            target(
                2,
                "iqn.2001-04.com.example:c",
                AuthPolicy { require_chap: true, ..AuthPolicy::default() },
            ),
        ],
        ready: true,
        ..Config::default()
    }
}

fn stage(code: u8) -> LoginStage {
    match code & 3 {
        0 => LoginStage::SecurityNegotiation,
        1 => LoginStage::LoginOperationalNegotiation,
        _ => LoginStage::FullFeaturePhase,
    }
}

/// Takes `data` as a row of requests (one byte of flags, two of length, then the text), carries a login through them
/// and, when it ends well, text negotiations. Panics when a promise of the machines is broken; never by itself.
#[doc(hidden)]
pub fn fuzz_login(data: &[u8]) {
    let config = Arc::new(config());
    let environment = LoginEnvironment {
        config: &config,
        peer: SocketAddr::from(([10, 0, 0, 7], 40_000)),
        local: SocketAddr::from(([10, 0, 0, 1], 3260)),
    };
    let mut login = LoginMachine::with_entropy(Box::new(Fixed));
    let (mut rest, mut reply) = (data, Vec::new());
    while let Some((&[flags, high, low], tail)) = rest.split_first_chunk::<3>() {
        let length = usize::from(u16::from_be_bytes([high, low])).min(tail.len());
        let Some((text, next)) = tail.split_at_checked(length) else { return };
        rest = next;
        let request = LoginRequest {
            transit: flags & 0x80 != 0,
            continue_: flags & 0x40 != 0,
            current_stage: stage(flags >> 2),
            next_stage: stage(flags),
            version_max: 0,
            version_min: 0,
            isid: [0x40, 0, 0, 0, 0, 1],
            tsih: 0,
            initiator_task_tag: 1,
            cid: 0,
            cmd_sn: 1,
            exp_stat_sn: 0,
            data_segment_length: 0,
        };
        match login.handle_request(environment, &request, text, &mut reply) {
            LoginStep::Continue(response) => {
                assert!(reply.len() <= 8192);
                assert!(request.transit || !response.transit);
            }
            LoginStep::Finish(_, outcome) => {
                assert!(
                    outcome.target.as_deref() != Some("iqn.2001-04.com.example:c")
                        || outcome.chap_user.is_some()
                );
                fuzz_text(environment, &outcome, rest);
                return;
            }
            LoginStep::Fail(response, _) => {
                assert!(response.status_class != 0 && reply.is_empty());
                return;
            }
        }
    }
}

fn fuzz_text(environment: LoginEnvironment<'_>, outcome: &LoginOutcome, data: &[u8]) {
    let mut machine = TextMachine::new();
    machine.begin(outcome);
    let mut parameters = outcome.parameters.clone();
    let (mut rest, mut reply) = (data, Vec::new());
    let mut tag = u32::MAX;
    while let Some((&[flags, high, low], tail)) = rest.split_first_chunk::<3>() {
        let length = usize::from(u16::from_be_bytes([high, low])).min(tail.len());
        let Some((text, next)) = tail.split_at_checked(length) else { return };
        rest = next;
        let request = TextRequest {
            immediate: false,
            final_: flags & 0x80 != 0,
            continue_: flags & 0x40 != 0,
            lun: Lun::ZERO,
            initiator_task_tag: 1,
            target_transfer_tag: if flags & 1 == 0 { tag } else { u32::MAX },
            cmd_sn: 1,
            exp_stat_sn: 0,
            data_segment_length: 0,
        };
        let longest = parameters.max_send_data_segment_length;
        let kind = outcome.session_type;
        let step = machine.handle_request(environment, kind, &mut parameters, &request, text, &mut reply);
        if let TextStep::Respond(response) = step {
            assert!(u32::try_from(reply.len()).is_ok_and(|length| length <= longest));
            assert!(request.final_ || !response.final_);
            tag = response.target_transfer_tag;
        } else {
            tag = u32::MAX;
        }
    }
}
