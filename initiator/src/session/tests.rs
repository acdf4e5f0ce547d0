//! The session against a target made by hand.

use base::Instant;
use wire::iscsi::*;
use wire::scsi::{Lun, Status};

use super::Session;
use crate::*;

const NOW: Instant = Instant::ZERO;

/// Every PDU in `bytes`, without digests.
fn split(mut bytes: &[u8]) -> Vec<(Pdu, Vec<u8>)> {
    let mut pdus = Vec::new();
    while let Some((bhs, rest)) = bytes.split_first_chunk::<BHS_LENGTH>() {
        let lengths = lengths(bhs);
        let (ahs, rest) = rest.split_at(lengths.ahs);
        pdus.push((Pdu::parse(bhs, ahs).unwrap(), rest[..lengths.data].to_vec()));
        bytes = &rest[padded(lengths.data)..];
    }
    pdus
}

fn bytes_of(pdu: Pdu, data: &[u8]) -> Vec<u8> {
    let mut bhs = [0; BHS_LENGTH];
    pdu.emit(&mut bhs);
    bhs[5..8].copy_from_slice(&u32::try_from(data.len()).unwrap().to_be_bytes()[1..]);
    let mut bytes = [&bhs[..], data].concat();
    bytes.resize(BHS_LENGTH + padded(data.len()), 0);
    bytes
}

fn feed(session: &mut Session, pdu: Pdu, data: &[u8]) {
    session.handle_bytes(NOW, &bytes_of(pdu, data));
}

fn events(session: &mut Session) -> Vec<Event> {
    std::iter::from_fn(|| session.poll_event()).collect()
}

fn violations(session: &mut Session) -> Vec<String> {
    let events = events(session).into_iter();
    events
        .filter_map(|event| if let Event::ProtocolViolation(what) = event { Some(what) } else { None })
        .collect()
}

/// The answer a well-behaved target gives to `request`.
fn login_answer(request: &LoginRequest, stat_sn: u32) -> LoginResponse {
    LoginResponse {
        transit: request.transit,
        continue_: false,
        current_stage: request.current_stage,
        next_stage: request.next_stage,
        version_max: 0,
        version_active: 0,
        isid: request.isid,
        tsih: 1,
        initiator_task_tag: request.initiator_task_tag,
        stat_sn,
        exp_cmd_sn: request.cmd_sn,
        max_cmd_sn: request.cmd_sn.wrapping_add(3),
        status_class: 0,
        status_detail: 0,
        data_segment_length: 0,
    }
}

fn login_request(session: &mut Session) -> (LoginRequest, String) {
    let (Pdu::LoginRequest(request), data) = split(&session.take_output()).remove(0) else { panic!() };
    (request, String::from_utf8(data).unwrap())
}

/// Echoes every negotiable offer: always a legal answer.
fn echo(text: &str) -> Vec<u8> {
    let pairs = text.split_terminator('\0').filter(|pair| !pair.starts_with("MaxRecv"));
    let mut answer: Vec<u8> = pairs.flat_map(|pair| format!("{pair}\0").into_bytes()).collect();
    answer.extend_from_slice(b"MaxRecvDataSegmentLength=8192\0");
    answer
}

fn logged_in(config: Config) -> Session {
    let mut session = Session::new(config);
    session.start(NOW);
    let (request, text) = login_request(&mut session);
    assert!(text.contains("AuthMethod=None\0") && text.contains("TargetName=iqn.t\0") && request.transit);
    let answer = Pdu::LoginResponse(login_answer(&request, 100));
    feed(&mut session, answer, b"AuthMethod=None\0TargetPortalGroupTag=1\0");
    let (request, text) = login_request(&mut session);
    assert_eq!(request.exp_stat_sn, 101);
    feed(&mut session, Pdu::LoginResponse(login_answer(&request, 101)), &echo(&text));
    let events = events(&mut session);
    assert!(matches!(events[..], [Event::LoggedIn { tsih: 1, portal_group_tag: Some(1), .. }]), "{events:?}");
    session
}

fn plain() -> Session {
    logged_in(Config::normal("iqn.i", "iqn.t"))
}

fn response(tag: u32, stat_sn: u32, exp_cmd_sn: u32) -> ScsiResponse {
    ScsiResponse {
        response: 0,
        status: Status::Good,
        residual_overflow: false,
        residual_underflow: false,
        bidirectional_overflow: false,
        bidirectional_underflow: false,
        initiator_task_tag: tag,
        snack_tag: RESERVED_TAG,
        stat_sn,
        exp_cmd_sn,
        max_cmd_sn: exp_cmd_sn + 3,
        exp_data_sn: 0,
        bidirectional_residual_count: 0,
        residual_count: 0,
        data_segment_length: 0,
    }
}

fn data_in(tag: u32, data_sn: u32, buffer_offset: u32) -> DataIn {
    DataIn {
        final_: true,
        acknowledge: false,
        residual_overflow: false,
        residual_underflow: false,
        status: None,
        lun: Lun::ZERO,
        initiator_task_tag: tag,
        target_transfer_tag: RESERVED_TAG,
        stat_sn: 0,
        exp_cmd_sn: 2,
        max_cmd_sn: 5,
        data_sn,
        buffer_offset,
        residual_count: 0,
        data_segment_length: 0,
    }
}

fn r2t(tag: u32, r2t_sn: u32, buffer_offset: u32, length: u32) -> R2t {
    R2t {
        lun: Lun::ZERO,
        initiator_task_tag: tag,
        target_transfer_tag: 0x100 + r2t_sn,
        stat_sn: 102,
        exp_cmd_sn: 2,
        max_cmd_sn: 5,
        r2t_sn,
        buffer_offset,
        desired_data_transfer_length: length,
    }
}

#[test]
fn login_negotiates() {
    let session = plain();
    assert!(session.is_logged_in());
    assert_eq!(session.negotiated().max_send_data_segment_length, 8192);
    assert_eq!(session.negotiated().first_burst_length, 256 * 1024);
    assert_eq!(session.exp_stat_sn(), 102);
}

#[test]
fn login_refused() {
    let mut session = Session::new(Config::normal("iqn.i", "iqn.t"));
    session.start(NOW);
    let (request, _) = login_request(&mut session);
    let refused = LoginResponse { status_class: 2, status_detail: 3, ..login_answer(&request, 1) };
    feed(&mut session, Pdu::LoginResponse(refused), b"");
    assert_eq!(events(&mut session), [Event::LoginFailed { class: 2, detail: 3, text: vec![] }]);
    feed(&mut session, Pdu::LoginResponse(refused), b"");
    assert_eq!(events(&mut session), [], "nothing after the end");
}

fn chap(session: &mut Session, target_secret: &[u8]) -> Vec<Event> {
    session.start(NOW);
    let (request, text) = login_request(session);
    assert!(text.contains("AuthMethod=CHAP\0") && !request.transit);
    let first = b"AuthMethod=CHAP\0TargetPortalGroupTag=1\0";
    feed(session, Pdu::LoginResponse(login_answer(&request, 1)), first);
    let (request, text) = login_request(session);
    assert_eq!(text, "CHAP_A=7,5\0");
    feed(session, Pdu::LoginResponse(login_answer(&request, 2)), b"CHAP_A=7\0CHAP_I=9\0CHAP_C=0x0102\0");
    let (request, text) = login_request(session);
    let proof = crate::chap::hex(&ChapAlgorithm::Sha256.response(9, b"secret of i", &[1, 2]));
    assert_eq!(text, format!("CHAP_N=i\0CHAP_R={proof}\0CHAP_I=4\0CHAP_C=0xabcd\0"));
    assert!(request.transit);
    let proof = crate::chap::hex(&ChapAlgorithm::Sha256.response(4, target_secret, &[0xAB, 0xCD]));
    let last = format!("CHAP_N=t\0CHAP_R={proof}\0");
    feed(session, Pdu::LoginResponse(login_answer(&request, 3)), last.as_bytes());
    events(session)
}

#[test]
fn mutual_chap() {
    let mutual = MutualChap {
        name: Some("t".into()),
        secret: b"secret of t".to_vec(),
        identifier: 4,
        challenge: vec![0xAB, 0xCD],
    };
    let authentication = Authentication::Chap(Chap {
        algorithms: vec![ChapAlgorithm::Sha256, ChapAlgorithm::Md5],
        name: "i".into(),
        secret: b"secret of i".to_vec(),
        offer_none: false,
        mutual: Some(mutual),
    });
    let config = Config { authentication, ..Config::normal("iqn.i", "iqn.t") };
    let mut session = Session::new(config.clone());
    assert_eq!(chap(&mut session, b"secret of t"), []);
    let (request, _) = login_request(&mut session);
    assert_eq!(request.current_stage, LoginStage::LoginOperationalNegotiation);
    assert_eq!(chap(&mut Session::new(config), b"another secret"), [Event::TargetNotAuthentic]);
}

#[test]
fn read_in_two_pdus_with_status() {
    let mut session = plain();
    let tag = session.submit(Command::read(Lun::ZERO, &[0x28], 10));
    let sent = split(&session.take_output());
    let Pdu::ScsiCommand(command) = sent[0].0 else { panic!() };
    assert!(command.read && !command.write && command.final_);
    assert_eq!((command.cmd_sn, command.exp_stat_sn, command.expected_data_transfer_length), (1, 102, 10));
    feed(&mut session, Pdu::DataIn(DataIn { final_: false, ..data_in(tag, 0, 0) }), b"01234");
    let last = DataIn { status: Some(Status::Good), stat_sn: 102, ..data_in(tag, 1, 5) };
    let bytes = bytes_of(Pdu::DataIn(last), b"56789");
    for byte in bytes {
        session.handle_bytes(NOW, &[byte]);
    }
    let events = events(&mut session);
    let [Event::CommandDone { status: Status::Good, data, residual: Residual::None, .. }] = &events[..]
    else {
        panic!("{events:?}")
    };
    assert_eq!(data, b"0123456789");
    assert_eq!(session.outstanding(), 0);
}

#[test]
fn illegal_data_in_is_reported() {
    for (wrong, what) in [
        (DataIn { data_sn: 1, ..data_in(1, 0, 0) }, "DataSN"),
        (data_in(1, 0, 1), "Data-In at 1"),
        (data_in(1, 0, 8), "beyond"),
        (DataIn { initiator_task_tag: 9, ..data_in(1, 0, 0) }, "unknown task tag"),
        (DataIn { exp_cmd_sn: 3, ..data_in(1, 0, 0) }, "ExpCmdSN"),
        (DataIn { exp_cmd_sn: 1, max_cmd_sn: 3, ..data_in(1, 0, 0) }, "MaxCmdSN"),
        (DataIn { status: Some(Status::Good), stat_sn: 103, ..data_in(1, 0, 0) }, "StatSN"),
        (DataIn { status: Some(Status::Good), stat_sn: 102, ..data_in(1, 0, 0) }, "residual"),
        (DataIn { status: Some(Status::CheckCondition), stat_sn: 102, ..data_in(1, 0, 0) }, "sense"),
        (
            DataIn {
                status: Some(Status::Good),
                stat_sn: 102,
                exp_cmd_sn: 1,
                max_cmd_sn: 4,
                ..data_in(1, 0, 0)
            },
            "acknowledged",
        ),
        (DataIn { target_transfer_tag: 4, ..data_in(1, 0, 0) }, "transfer tag"),
        (DataIn { acknowledge: true, ..data_in(1, 0, 0) }, "A bit"),
    ] {
        let mut session = plain();
        assert_eq!(session.submit(Command::read(Lun::ZERO, &[0x28], 10)), 1);
        feed(&mut session, Pdu::DataIn(wrong), b"01234");
        let found = violations(&mut session);
        assert!(found.iter().any(|violation| violation.contains(what)), "{what}: {found:?}");
    }
}

#[test]
fn write_with_immediate_unsolicited_and_solicited_data() {
    let mut config = Config::normal("iqn.i", "iqn.t");
    config.keys.first_burst_length = 12_000;
    let mut session = logged_in(config);
    let data: Vec<u8> = (0..30_000u32).map(|i| (i % 251) as u8).collect();
    let tag = session.submit(Command::write(Lun::ZERO, &[0x2A], data.clone()));
    let sent = split(&session.take_output());
    assert_eq!(sent.len(), 2);
    let Pdu::ScsiCommand(command) = sent[0].0 else { panic!() };
    assert!(command.write && !command.final_);
    assert_eq!(sent[0].1, data[..8192]);
    let Pdu::DataOut(out) = sent[1].0 else { panic!() };
    assert_eq!((out.buffer_offset, out.data_sn, out.final_), (8192, 0, true));
    assert_eq!((out.target_transfer_tag, sent[1].1.len()), (RESERVED_TAG, 12_000 - 8192));

    session.hold_data_out(true);
    feed(&mut session, Pdu::R2t(r2t(tag, 0, 12_000, 10_000)), b"");
    feed(&mut session, Pdu::R2t(r2t(tag, 1, 22_000, 8_000)), b"");
    assert!(session.take_output().is_empty());
    session.hold_data_out(false);
    let sent = split(&session.take_output());
    let mut outs = Vec::new();
    for (pdu, bytes) in &sent {
        let Pdu::DataOut(out) = pdu else { panic!() };
        let start = out.buffer_offset as usize;
        assert_eq!(bytes[..], data[start..start + bytes.len()]);
        outs.push((out.target_transfer_tag, out.data_sn, out.buffer_offset, bytes.len(), out.final_));
    }
    let expected =
        [(0x100, 0, 12_000, 8192, false), (0x100, 1, 20_192, 1808, true), (0x101, 0, 22_000, 8000, true)];
    assert_eq!(outs, expected);
    feed(&mut session, Pdu::ScsiResponse(response(tag, 102, 2)), b"");
    let events = events(&mut session);
    assert!(matches!(events[..], [Event::CommandDone { status: Status::Good, .. }]), "{events:?}");
}

#[test]
fn illegal_r2t_is_reported() {
    for (wrong, what) in [
        (r2t(1, 1, 8192, 10), "R2TSN 1"),
        (r2t(1, 0, 8193, 10), "R2T at 8193"),
        (r2t(1, 0, 8192, 30_000), "beyond"),
        (R2t { lun: Lun::from_number(1), ..r2t(1, 0, 8192, 10) }, "LUN"),
        (R2t { stat_sn: 103, ..r2t(1, 0, 8192, 10) }, "StatSN"),
        (R2t { initiator_task_tag: 7, ..r2t(1, 0, 8192, 10) }, "unknown"),
    ] {
        let mut session = plain();
        let command = Command { unsolicited: false, ..Command::write(Lun::ZERO, &[0x2A], vec![1; 20_000]) };
        session.submit(command);
        feed(&mut session, Pdu::R2t(wrong), b"");
        let found = violations(&mut session);
        assert!(found.iter().any(|violation| violation.contains(what)), "{what}: {found:?}");
    }
    let mut session = plain();
    session.hold_data_out(true);
    session.submit(Command { unsolicited: false, ..Command::write(Lun::ZERO, &[0x2A], vec![1; 20_000]) });
    for n in 0..9 {
        feed(&mut session, Pdu::R2t(r2t(1, n, 8192 + 10 * n, 10)), b"");
    }
    assert!(violations(&mut session)[0].contains("MaxOutstandingR2T"));
}

#[test]
fn a_write_that_ends_well_must_have_been_asked_for() {
    let mut session = plain();
    let tag =
        session.submit(Command { unsolicited: false, ..Command::write(Lun::ZERO, &[0x2A], vec![1; 9000]) });
    feed(&mut session, Pdu::ScsiResponse(response(tag, 102, 2)), b"");
    assert!(violations(&mut session)[0].contains("8192 bytes of 9000 were written"));
}

#[test]
fn sense_and_residual() {
    let mut session = plain();
    let tag = session.submit(Command::read(Lun::ZERO, &[0x28], 10));
    let status = Status::CheckCondition;
    let check =
        ScsiResponse { status, residual_underflow: true, residual_count: 10, ..response(tag, 102, 2) };
    feed(&mut session, Pdu::ScsiResponse(check), &[0, 3, 0x70, 0, 5]);
    let events = events(&mut session);
    let [Event::CommandDone { status, sense, residual, .. }] = &events[..] else { panic!("{events:?}") };
    assert_eq!(
        (*status, &sense[..], *residual),
        (Status::CheckCondition, &[0x70, 0, 5][..], Residual::Underflow(10))
    );
}

#[test]
fn exp_data_sn_counts_data_in_pdus() {
    for (exp_data_sn, legal) in [(1, true), (0, false), (2, false)] {
        let mut session = plain();
        let tag = session.submit(Command::read(Lun::ZERO, &[0x28], 5));
        feed(&mut session, Pdu::DataIn(data_in(tag, 0, 0)), b"01234");
        feed(&mut session, Pdu::ScsiResponse(ScsiResponse { exp_data_sn, ..response(tag, 102, 2) }), b"");
        assert_eq!(violations(&mut session).is_empty(), legal, "ExpDataSN {exp_data_sn}");
    }
}

#[test]
fn commands_wait_for_the_window() {
    let mut session = plain();
    for _ in 0..6 {
        session.submit(Command::new(Lun::ZERO, &[0]));
    }
    assert_eq!(split(&session.take_output()).len(), 4);
    assert_eq!(session.queued(), 2);
    session.submit(Command { immediate: true, ..Command::new(Lun::ZERO, &[0]) });
    assert_eq!(split(&session.take_output()).len(), 1, "immediate commands do not wait");
    feed(&mut session, Pdu::ScsiResponse(response(1, 102, 3)), b"");
    assert_eq!(split(&session.take_output()).len(), 2);
    assert_eq!(session.cmd_sn(), 7);
}

#[test]
fn task_management_takes_tasks_away() {
    let mut session = plain();
    let gone = session.submit(Command::read(Lun::ZERO, &[0x28], 10));
    let other = session.submit(Command::read(Lun::from_number(1), &[0x28], 10));
    session.take_output();
    let tag = session.task_management(5, Lun::ZERO, None);
    let later = session.submit(Command::read(Lun::ZERO, &[0x28], 10));
    let Pdu::TaskManagementRequest(request) = split(&session.take_output())[0].0 else { panic!() };
    assert!(request.immediate && request.cmd_sn == 3);
    let done = TaskManagementResponse {
        response: 0,
        initiator_task_tag: tag,
        stat_sn: 102,
        exp_cmd_sn: 4,
        max_cmd_sn: 8,
    };
    feed(&mut session, Pdu::TaskManagementResponse(done), b"");
    let expected = [Event::CommandAborted { tag: gone }, Event::TaskManagementDone { tag, response: 0 }];
    assert_eq!(events(&mut session), expected);
    assert!(session.tasks.contains_key(&other) && session.tasks.contains_key(&later));
    feed(&mut session, Pdu::DataIn(DataIn { exp_cmd_sn: 4, max_cmd_sn: 8, ..data_in(gone, 0, 0) }), b"x");
    assert!(violations(&mut session)[0].contains("unknown"), "an aborted task must be silent");
}

#[test]
fn text_is_followed_to_its_end() {
    let mut session = plain();
    let tag = session.text(&[("SendTargets", "All")]);
    assert_eq!(split(&session.take_output())[0].1, b"SendTargets=All\0");
    let more = TextResponse {
        final_: false,
        continue_: true,
        lun: Lun::ZERO,
        initiator_task_tag: tag,
        target_transfer_tag: 77,
        stat_sn: 102,
        exp_cmd_sn: 2,
        max_cmd_sn: 5,
        data_segment_length: 0,
    };
    feed(&mut session, Pdu::TextResponse(more), b"TargetName=iqn.t\0Target");
    let Pdu::TextRequest(next) = split(&session.take_output())[0].0 else { panic!() };
    assert_eq!((next.target_transfer_tag, next.initiator_task_tag, next.cmd_sn), (77, tag, 2));
    let last = TextResponse {
        final_: true,
        continue_: false,
        target_transfer_tag: RESERVED_TAG,
        stat_sn: 103,
        exp_cmd_sn: 3,
        ..more
    };
    feed(&mut session, Pdu::TextResponse(last), b"Address=[::1]:3260,1\0");
    let pair = |key: &str, value: &str| (key.to_string(), value.to_string());
    let pairs = vec![pair("TargetName", "iqn.t"), pair("TargetAddress", "[::1]:3260,1")];
    assert_eq!(events(&mut session), [Event::Text { tag, pairs }]);
}

#[test]
fn pings_both_ways() {
    let mut session = plain();
    let tag = session.nop_out(b"ping".to_vec());
    session.take_output();
    let answer = NopIn {
        lun: Lun::ZERO,
        initiator_task_tag: tag,
        target_transfer_tag: RESERVED_TAG,
        stat_sn: 102,
        exp_cmd_sn: 1,
        max_cmd_sn: 4,
        data_segment_length: 0,
    };
    feed(&mut session, Pdu::NopIn(answer), b"ping");
    assert_eq!(events(&mut session), [Event::NopDone { tag, data: b"ping".to_vec() }]);
    let ask = NopIn { initiator_task_tag: RESERVED_TAG, target_transfer_tag: 5, stat_sn: 103, ..answer };
    feed(&mut session, Pdu::NopIn(ask), b"");
    assert_eq!(events(&mut session), [Event::NopReceived { target_transfer_tag: 5, data: vec![] }]);
    let Pdu::NopOut(reply) = split(&session.take_output())[0].0 else { panic!() };
    assert_eq!((reply.initiator_task_tag, reply.target_transfer_tag), (RESERVED_TAG, 5));
    assert_eq!(session.exp_stat_sn(), 103, "a ping of the target does not advance StatSN");
}

#[test]
fn logout_ends_the_session() {
    let mut session = plain();
    let tag = session.logout(LogoutReason::CloseSession);
    let answer = LogoutResponse {
        response: LogoutResponseCode::Closed,
        initiator_task_tag: tag,
        stat_sn: 102,
        exp_cmd_sn: 1,
        max_cmd_sn: 4,
        time_to_wait: 2,
        time_to_retain: 0,
    };
    feed(&mut session, Pdu::LogoutResponse(answer), b"");
    let response = LogoutResponseCode::Closed;
    assert_eq!(events(&mut session), [Event::LoggedOut { response, time_to_wait: 2, time_to_retain: 0 }]);
    session.submit(Command::new(Lun::ZERO, &[0]));
    session.take_output();
    feed(&mut session, Pdu::LogoutResponse(answer), b"");
    assert_eq!(events(&mut session), []);
}

#[test]
fn digests_are_sent_and_checked() {
    let mut config = Config::normal("iqn.i", "iqn.t");
    config.keys.header_digest = "CRC32C".into();
    config.keys.data_digest = "CRC32C".into();
    let mut session = logged_in(config);
    session.submit(Command::write(Lun::ZERO, &[0x2A], vec![7; 5]));
    let sent = session.take_output();
    assert_eq!(sent.len(), 48 + 4 + 8 + 4);
    assert_eq!(sent[48..52], digest::to_wire(digest::crc32c_of(&sent[..48])));
    assert_eq!(sent[60..64], digest::to_wire(digest::crc32c_of(&sent[52..60])));

    let check = ScsiResponse { status: Status::CheckCondition, ..response(1, 102, 2) };
    let plain = bytes_of(Pdu::ScsiResponse(check), &[0, 2, 0x70, 0]);
    let header = digest::to_wire(digest::crc32c_of(&plain[..48]));
    let data = digest::to_wire(digest::crc32c_of(&plain[48..]));
    let mut good = [&plain[..48], &header, &plain[48..], &data].concat();
    session.handle_bytes(NOW, &good);
    assert!(matches!(events(&mut session)[..], [Event::CommandDone { .. }]));
    good[50] ^= 1;
    session.handle_bytes(NOW, &good);
    assert!(violations(&mut session)[0].contains("header digest"));
    session.handle_bytes(NOW, &plain);
    assert_eq!(events(&mut session), [], "the stream cannot be trusted any more");
}

#[test]
fn rejects_and_asynchronous_messages() {
    let mut session = plain();
    let bad = [0x1C; BHS_LENGTH];
    session.send_raw(&bad, &[], &[]);
    assert_eq!(session.take_output(), bad);
    let reject = Reject {
        reason: RejectReason::CommandNotSupported,
        stat_sn: 102,
        exp_cmd_sn: 1,
        max_cmd_sn: 4,
        data_sn_or_r2t_sn: 0,
        data_segment_length: 0,
    };
    feed(&mut session, Pdu::Reject(reject), &bad);
    let reason = RejectReason::CommandNotSupported;
    assert_eq!(events(&mut session), [Event::Rejected { reason, header: Some(bad) }]);
    let message = AsyncMessage {
        event: AsyncEvent::LogoutRequest { seconds: 3 },
        lun: Lun::ZERO,
        stat_sn: 103,
        exp_cmd_sn: 1,
        max_cmd_sn: 4,
        vendor_code: 0,
        data_segment_length: 0,
    };
    feed(&mut session, Pdu::AsyncMessage(message), b"");
    assert_eq!(events(&mut session), [Event::AsyncMessage { message, data: vec![] }]);
}

proptest::proptest! {
    #[test]
    fn hostile_bytes_never_panic(mut bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..400)) {
        let mut session = plain();
        session.submit(Command::read(Lun::ZERO, &[0x28], 100));
        session.submit(Command::write(Lun::ZERO, &[0x2A], vec![1; 20_000]));
        // A known opcode and small lengths, so that the bytes get past the framing.
        for mut chunk in bytes.chunks_mut(52) {
            for (at, value) in [(4, 0), (5, 0), (6, 0), (7, 4)] {
                if let Some(byte) = chunk.get_mut(at) {
                    *byte = value;
                }
            }
            if let Some(byte) = chunk.get_mut(0) {
                *byte = [0x20, 0x21, 0x22, 0x24, 0x25, 0x26, 0x31, 0x32, 0x3F][usize::from(*byte % 9)];
                if matches!(*byte, 0x22 | 0x26 | 0x31) && chunk.len() > 7 {
                    chunk[7] = 0;
                    let end = chunk.len().min(48);
                    chunk = &mut chunk[..end];
                }
            }
            if let Some(tag) = chunk.get_mut(16..20) {
                tag.copy_from_slice(&[0, 0, 0, tag[3] & 3]);
            }
            session.handle_bytes(NOW, chunk);
        }
    }
}
