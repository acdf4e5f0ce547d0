//! From the first Login Request to full feature phase (RFC 7143 §6.3), and text requests in it.

use std::sync::Arc;

use scsi::{NexusToken, PortEvent};
use wire::iscsi::{Bhs, LoginRequest, LoginResponse, LoginStage, Pdu, TextRequest};

use super::connection::{Connection, Phase};
use super::session::{NewSession, NexusState, Session};
use super::tables::Tables;
use super::transmit::{ItemData, Notice};
use super::{LoginEnvironment, LoginOutcome, LoginStep, SessionType, TextStep};

/// Login status codes (RFC 7143 §11.13.5): class, detail.
mod status {
    pub const SESSION_DOES_NOT_EXIST: (u8, u8) = (0x02, 0x0A);
    pub const INVALID_DURING_LOGIN: (u8, u8) = (0x02, 0x0B);
    pub const OUT_OF_RESOURCES: (u8, u8) = (0x03, 0x02);
    pub const SERVICE_UNAVAILABLE: (u8, u8) = (0x03, 0x01);
}

impl Connection {
    /// One Login Request with its data.
    pub fn handle_login(&mut self, tables: &mut Tables, request: &LoginRequest, data: &[u8]) {
        let Some(mut machine) = self.login.take() else { return };
        let config = Arc::clone(&tables.config);
        let environment = LoginEnvironment { config: &config, peer: self.peer, local: self.local };
        let mut reply = std::mem::take(&mut tables.reply);
        reply.clear();
        let step = machine.handle_request(environment, request, data, &mut reply);
        match step {
            LoginStep::Continue(response) => {
                self.login = Some(machine);
                self.send_login(request.cmd_sn, response, reply.clone(), Notice::None);
            }
            LoginStep::Fail(response, why) => self.refuse_login(tables, request.cmd_sn, response, &why),
            LoginStep::Finish(response, outcome) => {
                self.establish(tables, request, response, *outcome, reply.clone())
            }
        }
        tables.reply = reply;
    }

    /// Ends a login in which something else than a Login Request came.
    pub fn refuse_during_login(&mut self, tables: &mut Tables, bhs: &Bhs) {
        let (status_class, status_detail) = status::INVALID_DURING_LOGIN;
        let response = LoginResponse {
            transit: false,
            continue_: false,
            current_stage: LoginStage::SecurityNegotiation,
            next_stage: LoginStage::SecurityNegotiation,
            version_max: 0,
            version_active: 0,
            isid: [0; 6],
            tsih: 0,
            initiator_task_tag: u32::from_be_bytes([bhs[16], bhs[17], bhs[18], bhs[19]]),
            stat_sn: 0,
            exp_cmd_sn: 0,
            max_cmd_sn: 0,
            status_class,
            status_detail,
            data_segment_length: 0,
        };
        let cmd_sn = u32::from_be_bytes([bhs[24], bhs[25], bhs[26], bhs[27]]);
        self.refuse_login(tables, cmd_sn, response, "something else than a Login Request during login");
    }

    fn send_login(&mut self, cmd_sn: u32, mut response: LoginResponse, text: Vec<u8>, notice: Notice) {
        response.exp_cmd_sn = cmd_sn;
        response.max_cmd_sn = cmd_sn;
        response.data_segment_length = u32::try_from(text.len()).unwrap_or(0);
        self.control(Pdu::LoginResponse(response), ItemData::Heap(text), notice);
    }

    fn refuse_login(&mut self, tables: &mut Tables, cmd_sn: u32, response: LoginResponse, why: &str) {
        if let Some(suppressed) = tables.lines.take(tables.now) {
            tracing::warn!(peer = %self.peer, suppressed, "iSCSI login refused: {why}");
        }
        self.send_login(cmd_sn, response, Vec::new(), Notice::Close);
        self.end_after_flush(tables);
    }

    fn refuse(
        &mut self,
        tables: &mut Tables,
        cmd_sn: u32,
        response: LoginResponse,
        code: (u8, u8),
        why: &str,
    ) {
        let refusal = LoginResponse {
            transit: false,
            continue_: false,
            tsih: 0,
            status_class: code.0,
            status_detail: code.1,
            ..response
        };
        self.refuse_login(tables, cmd_sn, refusal, why);
    }

    /// The login was carried through: makes the session, and asks the engine for the nexus of a normal one.
    fn establish(
        &mut self,
        tables: &mut Tables,
        request: &LoginRequest,
        mut response: LoginResponse,
        outcome: LoginOutcome,
        text: Vec<u8>,
    ) {
        let cmd_sn = request.cmd_sn;
        if outcome.tsih != 0 {
            // Sessions have one connection, and none is kept without it.
            let code = status::SESSION_DOES_NOT_EXIST;
            return self.refuse(tables, cmd_sn, response, code, "the session it names does not exist");
        }
        let Some(tsih) = tables.new_tsih() else {
            return self.refuse(
                tables,
                cmd_sn,
                response,
                status::OUT_OF_RESOURCES,
                "no session handle is free",
            );
        };
        self.text.begin(&outcome);
        let session = Session::new(NewSession {
            kind: outcome.session_type,
            tsih,
            isid: outcome.isid,
            initiator: outcome.initiator,
            target: outcome.target,
            target_device: outcome.identity.as_ref().map(|identity| identity.target),
            portal_group: outcome.portal_group,
            connection: self.key,
            cmd_sn,
            queue_depth: queue_depth(tables, outcome.identity.as_ref().map(|identity| identity.target)),
        });
        let Ok(key) = tables.sessions.insert(session) else {
            return self.refuse(
                tables,
                cmd_sn,
                response,
                status::OUT_OF_RESOURCES,
                "the session table is full",
            );
        };
        response.tsih = tsih;
        self.session = Some(key);
        self.cid = outcome.cid;
        self.parameters = outcome.parameters;
        self.phase = Phase::AwaitingNexus(Box::new((response, text)));
        match (outcome.session_type, outcome.identity) {
            (SessionType::Normal, Some(identity)) => {
                if let Some(session) = tables.sessions.get_mut(key) {
                    session.nexus = NexusState::Requested;
                }
                let token = NexusToken(key.to_u64());
                tables.events.push_back(PortEvent::NexusRequested { token, identity });
            }
            _ => self.enter_full_feature_phase(tables),
        }
    }

    /// Sends the last login response; from the next PDU on, what was negotiated holds.
    pub fn enter_full_feature_phase(&mut self, tables: &mut Tables) {
        let Phase::AwaitingNexus(last) = std::mem::replace(&mut self.phase, Phase::FullFeature) else {
            return;
        };
        let (mut response, text) = *last;
        response.data_segment_length = u32::try_from(text.len()).unwrap_or(0);
        self.control(Pdu::LoginResponse(response), ItemData::Heap(text), Notice::None);
        let depth =
            self.session.and_then(|key| tables.sessions.get(key)).map_or(1, |session| session.queue_depth);
        let parameters = &self.parameters;
        self.transmitter.header_digest = parameters.header_digest;
        self.transmitter.data_digest = parameters.data_digest;
        self.transmitter.segment_length_max = parameters.max_send_data_segment_length.max(512);
        self.transmitter.burst_length_max = parameters.max_burst_length.max(512);
        self.transmitter.reserve(depth);
        self.receiver.set_digests(parameters.header_digest, parameters.data_digest);
        self.last_received = tables.now;
    }

    /// The engine refuses the nexus.
    pub fn nexus_refused(&mut self, tables: &mut Tables) {
        let Phase::AwaitingNexus(last) = std::mem::replace(&mut self.phase, Phase::Ending) else { return };
        let cmd_sn =
            self.session.and_then(|key| tables.sessions.get(key)).map_or(0, |session| session.exp_cmd_sn);
        self.refuse(tables, cmd_sn, last.0, status::SERVICE_UNAVAILABLE, "the target does not take it");
    }

    /// Text Request (RFC 7143 §11.10).
    pub fn handle_text(&mut self, tables: &mut Tables, bhs: &Bhs, request: &TextRequest, data: &[u8]) {
        let kind = self
            .session
            .and_then(|key| tables.sessions.get(key))
            .map_or(SessionType::Normal, |session| session.kind);
        let config = Arc::clone(&tables.config);
        let environment = LoginEnvironment { config: &config, peer: self.peer, local: self.local };
        let mut reply = std::mem::take(&mut tables.reply);
        reply.clear();
        let step =
            self.text.handle_request(environment, kind, &mut self.parameters, request, data, &mut reply);
        self.transmitter.segment_length_max = self.parameters.max_send_data_segment_length.max(512);
        match step {
            TextStep::Respond(mut response) => {
                response.data_segment_length = u32::try_from(reply.len()).unwrap_or(0);
                self.control(Pdu::TextResponse(response), ItemData::Heap(reply.clone()), Notice::None);
            }
            TextStep::Reject(reason) => self.reject(bhs, reason),
        }
        tables.reply = reply;
    }
}

/// Commands a session with `target` may have outstanding.
fn queue_depth(tables: &Tables, target: Option<scsi::TargetDeviceId>) -> u32 {
    let own = tables
        .config
        .targets
        .iter()
        .find(|node| Some(node.target) == target)
        .map_or(0, |node| node.queue_depth);
    let depth = if own == 0 { tables.config.options.queue_depth_max } else { own };
    depth.min(tables.limits.tasks_per_nexus_max).max(1)
}
