//! Properties every PDU has: what is written is read back, and nothing that can be read is lost when written.

use proptest::prelude::*;

use super::*;
use crate::scsi::{Cdb, Lun, Status, TaskAttribute};

fn segment() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0u32), 0..=DATA_SEGMENT_MAX]
}

fn tag() -> impl Strategy<Value = u32> {
    0..RESERVED_TAG
}

fn lun() -> impl Strategy<Value = Lun> {
    any::<u64>().prop_map(Lun)
}

fn status() -> impl Strategy<Value = Status> {
    prop_oneof![
        Just(Status::Good),
        Just(Status::CheckCondition),
        Just(Status::ConditionMet),
        Just(Status::Busy),
        Just(Status::ReservationConflict),
        Just(Status::TaskSetFull),
        Just(Status::AcaActive),
        Just(Status::TaskAborted)
    ]
}

fn attribute() -> impl Strategy<Value = TaskAttribute> {
    prop_oneof![
        Just(TaskAttribute::Simple),
        Just(TaskAttribute::Ordered),
        Just(TaskAttribute::HeadOfQueue),
        Just(TaskAttribute::Aca)
    ]
}

fn scsi_command() -> impl Strategy<Value = Pdu> {
    let cdb = prop::collection::vec(any::<u8>(), 16..=32).prop_map(|bytes| Cdb::new(&bytes));
    (
        (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), attribute(), lun(), tag()),
        (any::<u32>(), any::<u32>(), any::<u32>(), cdb, any::<Option<u32>>(), segment()),
    )
        .prop_map(
            |(
                (immediate, final_, read, write, attribute, lun, itt),
                (length, cmd_sn, exp, cdb, bidi, data),
            )| {
                let moves = read || write;
                Pdu::ScsiCommand(ScsiCommand {
                    immediate,
                    final_: final_ || !write,
                    read,
                    write,
                    attribute,
                    lun,
                    initiator_task_tag: itt,
                    expected_data_transfer_length: if moves { length } else { 0 },
                    cmd_sn,
                    exp_stat_sn: exp,
                    cdb,
                    bidirectional_read_length: if moves { bidi } else { None },
                    data_segment_length: data,
                })
            },
        )
}

fn other_requests() -> impl Strategy<Value = Pdu> {
    (
        (any::<bool>(), any::<bool>(), lun(), tag(), any::<u32>(), any::<u32>(), any::<u32>()),
        (any::<u32>(), any::<u32>(), segment(), any::<u8>(), 0u8..4),
    )
        .prop_map(
            |(
                (immediate, final_, lun, initiator_task_tag, target_transfer_tag, cmd_sn, exp_stat_sn),
                (x, y, data_segment_length, byte, which),
            )| match which {
                0 => Pdu::NopOut(NopOut {
                    immediate,
                    lun,
                    initiator_task_tag,
                    target_transfer_tag,
                    cmd_sn,
                    exp_stat_sn,
                    data_segment_length,
                }),
                1 => Pdu::TaskManagementRequest(TaskManagementRequest {
                    immediate,
                    function: byte & 0x7F,
                    lun,
                    initiator_task_tag,
                    referenced_task_tag: target_transfer_tag,
                    cmd_sn,
                    exp_stat_sn,
                    ref_cmd_sn: x,
                    exp_data_sn: y,
                }),
                2 => Pdu::DataOut(DataOut {
                    final_,
                    lun,
                    initiator_task_tag,
                    target_transfer_tag,
                    exp_stat_sn,
                    data_sn: x,
                    buffer_offset: y,
                    data_segment_length,
                }),
                _ => {
                    let kinds =
                        [SnackType::DataOrR2t, SnackType::Status, SnackType::DataAck, SnackType::RData];
                    Pdu::SnackRequest(SnackRequest {
                        kind: kinds[usize::from(byte & 3)],
                        lun,
                        initiator_task_tag: x,
                        target_transfer_tag,
                        exp_stat_sn,
                        beg_run: y,
                        run_length: cmd_sn,
                    })
                }
            },
        )
}

/// Login, text and logout requests.
fn negotiating_requests() -> impl Strategy<Value = Pdu> {
    (
        (any::<bool>(), any::<bool>(), any::<bool>(), lun(), tag(), any::<u32>(), any::<u32>(), any::<u32>()),
        (segment(), any::<u8>(), any::<u16>(), any::<[u8; 6]>(), 0u8..3),
    )
        .prop_map(
            |(
                (immediate, final_, more, lun, initiator_task_tag, ttt, cmd_sn, exp_stat_sn),
                (data_segment_length, byte, half, isid, which),
            )| match which {
                0 => {
                    let current_stage = if final_ {
                        LoginStage::SecurityNegotiation
                    } else {
                        LoginStage::LoginOperationalNegotiation
                    };
                    Pdu::LoginRequest(LoginRequest {
                        transit: more,
                        continue_: !more && immediate,
                        current_stage,
                        next_stage: if more { LoginStage::FullFeaturePhase } else { current_stage },
                        version_max: byte,
                        version_min: byte ^ 1,
                        isid,
                        tsih: half,
                        initiator_task_tag,
                        cid: half ^ 0x55,
                        cmd_sn,
                        exp_stat_sn,
                        data_segment_length,
                    })
                }
                1 => Pdu::TextRequest(TextRequest {
                    immediate,
                    final_,
                    continue_: more && !final_,
                    lun,
                    initiator_task_tag,
                    target_transfer_tag: ttt,
                    cmd_sn,
                    exp_stat_sn,
                    data_segment_length,
                }),
                _ => {
                    let reason = if final_ {
                        LogoutReason::CloseConnection
                    } else {
                        LogoutReason::RemoveConnectionForRecovery
                    };
                    Pdu::LogoutRequest(LogoutRequest {
                        immediate,
                        reason: if more { LogoutReason::CloseSession } else { reason },
                        initiator_task_tag,
                        cid: if more { 0 } else { half },
                        cmd_sn,
                        exp_stat_sn,
                    })
                }
            },
        )
}

#[derive(Debug, Clone, Copy)]
struct Raw {
    flags: [bool; 4],
    lun: Lun,
    itt: u32,
    ttt: u32,
    serials: [u32; 3],
    words: [u32; 3],
    halves: [u16; 3],
    bytes: [u8; 2],
    isid: [u8; 6],
    status: Status,
    data: u32,
}

fn raw() -> impl Strategy<Value = Raw> {
    (
        (any::<[bool; 4]>(), lun(), any::<u32>(), any::<u32>(), any::<[u32; 3]>()),
        (any::<[u32; 3]>(), any::<[u16; 3]>(), any::<[u8; 2]>(), any::<[u8; 6]>(), status(), segment()),
    )
        .prop_map(|((flags, lun, itt, ttt, serials), (words, halves, bytes, isid, status, data))| Raw {
            flags,
            lun,
            itt,
            ttt,
            serials,
            words,
            halves,
            bytes,
            isid,
            status,
            data,
        })
}

fn status_responses() -> impl Strategy<Value = Pdu> {
    (raw(), 0u8..5).prop_map(|(raw, which)| {
        let [a, b, c, d] = raw.flags;
        let [stat_sn, exp_cmd_sn, max_cmd_sn] = raw.serials;
        let [x, y, z] = raw.words;
        let completed = raw.bytes[0] & 1 == 0;
        match which {
            0 => Pdu::ScsiResponse(ScsiResponse {
                response: if completed { 0 } else { 0x80 | raw.bytes[0] },
                status: if completed { raw.status } else { Status::Good },
                residual_overflow: a && completed,
                residual_underflow: b && !a && completed,
                bidirectional_overflow: c && !d && completed,
                bidirectional_underflow: d && completed,
                initiator_task_tag: raw.itt,
                snack_tag: raw.ttt,
                stat_sn,
                exp_cmd_sn,
                max_cmd_sn,
                exp_data_sn: x,
                bidirectional_residual_count: y,
                residual_count: z,
                data_segment_length: raw.data,
            }),
            1 => Pdu::TaskManagementResponse(TaskManagementResponse {
                response: raw.bytes[0],
                initiator_task_tag: raw.itt,
                stat_sn,
                exp_cmd_sn,
                max_cmd_sn,
            }),
            2 => Pdu::DataIn(DataIn {
                final_: a || c,
                acknowledge: b,
                residual_overflow: c && d,
                residual_underflow: c && !d,
                status: c.then_some(raw.status),
                lun: raw.lun,
                initiator_task_tag: raw.itt,
                target_transfer_tag: raw.ttt,
                stat_sn: if c { stat_sn } else { 0 },
                exp_cmd_sn,
                max_cmd_sn,
                data_sn: x,
                buffer_offset: y,
                residual_count: if c { z } else { 0 },
                data_segment_length: raw.data,
            }),
            3 => Pdu::R2t(R2t {
                lun: raw.lun,
                initiator_task_tag: raw.itt,
                target_transfer_tag: raw.ttt & 0x7FFF_FFFF,
                stat_sn,
                exp_cmd_sn,
                max_cmd_sn,
                r2t_sn: x,
                buffer_offset: y,
                desired_data_transfer_length: z.max(1),
            }),
            _ => Pdu::NopIn(NopIn {
                lun: raw.lun,
                initiator_task_tag: raw.itt,
                target_transfer_tag: raw.ttt,
                stat_sn,
                exp_cmd_sn,
                max_cmd_sn,
                data_segment_length: raw.data,
            }),
        }
    })
}

fn session_responses() -> impl Strategy<Value = Pdu> {
    (raw(), 0u8..5).prop_map(|(raw, which)| {
        let [a, b, ..] = raw.flags;
        let [stat_sn, exp_cmd_sn, max_cmd_sn] = raw.serials;
        let [cid, time_to_wait, time_to_retain] = raw.halves;
        match which {
            0 => {
                let events = [
                    AsyncEvent::Scsi,
                    AsyncEvent::LogoutRequest { seconds: cid },
                    AsyncEvent::ConnectionDropped { cid, time_to_wait, time_to_retain },
                    AsyncEvent::SessionDropped { time_to_wait, time_to_retain },
                    AsyncEvent::NegotiationRequest { seconds: cid },
                    AsyncEvent::TasksTerminated,
                    AsyncEvent::Vendor { code: 255 },
                    AsyncEvent::Vendor { code: 6 | raw.bytes[1] },
                ];
                Pdu::AsyncMessage(AsyncMessage {
                    event: events[usize::from(raw.bytes[0] & 7)],
                    lun: raw.lun,
                    stat_sn,
                    exp_cmd_sn,
                    max_cmd_sn,
                    vendor_code: raw.bytes[1],
                    data_segment_length: raw.data,
                })
            }
            1 => Pdu::TextResponse(TextResponse {
                final_: a,
                continue_: b && !a,
                lun: raw.lun,
                initiator_task_tag: raw.itt,
                target_transfer_tag: raw.ttt,
                stat_sn,
                exp_cmd_sn,
                max_cmd_sn,
                data_segment_length: raw.data,
            }),
            2 => Pdu::LoginResponse(LoginResponse {
                transit: a,
                continue_: b && !a,
                current_stage: LoginStage::SecurityNegotiation,
                next_stage: if a {
                    LoginStage::LoginOperationalNegotiation
                } else {
                    LoginStage::SecurityNegotiation
                },
                version_max: raw.bytes[0],
                version_active: raw.bytes[1],
                isid: raw.isid,
                tsih: cid,
                initiator_task_tag: raw.itt,
                stat_sn,
                exp_cmd_sn,
                max_cmd_sn,
                status_class: raw.bytes[0],
                status_detail: raw.bytes[1],
                data_segment_length: raw.data,
            }),
            3 => {
                let codes = [
                    LogoutResponseCode::Closed,
                    LogoutResponseCode::CidNotFound,
                    LogoutResponseCode::RecoveryNotSupported,
                    LogoutResponseCode::CleanupFailed,
                ];
                Pdu::LogoutResponse(LogoutResponse {
                    response: codes[usize::from(raw.bytes[0] & 3)],
                    initiator_task_tag: raw.itt,
                    stat_sn,
                    exp_cmd_sn,
                    max_cmd_sn,
                    time_to_wait,
                    time_to_retain,
                })
            }
            _ => Pdu::Reject(Reject {
                reason: RejectReason::from_code(2 + raw.bytes[0] % 11).unwrap(),
                stat_sn,
                exp_cmd_sn,
                max_cmd_sn,
                data_sn_or_r2t_sn: raw.words[0],
                data_segment_length: raw.data,
            }),
        }
    })
}

fn any_pdu() -> impl Strategy<Value = Pdu> {
    prop_oneof![
        scsi_command(),
        other_requests(),
        negotiating_requests(),
        status_responses(),
        session_responses()
    ]
}

/// Header and AHS of `pdu`, over a buffer that was dirty.
fn emitted(pdu: &Pdu) -> (Bhs, Vec<u8>) {
    let mut bhs = [0xA5; BHS_LENGTH];
    pdu.emit(&mut bhs);
    let mut ahs = [0xA5; 64];
    let length = match pdu {
        Pdu::ScsiCommand(command) => command.emit_ahs(&mut ahs),
        _ => 0,
    };
    (bhs, ahs[..length].to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn emitted_pdus_parse_to_themselves(pdu in any_pdu()) {
        let (bhs, ahs) = emitted(&pdu);
        prop_assert_eq!(lengths(&bhs).ahs, ahs.len());
        prop_assert_eq!(bhs[0] & opcode::MASK, pdu.opcode());
        prop_assert_eq!(Pdu::parse(&bhs, &ahs), Ok(pdu));
    }

    #[test]
    fn whatever_parses_survives_emit(
        mut bhs in prop::array::uniform32(any::<u8>()).prop_flat_map(|a| {
            prop::array::uniform16(any::<u8>()).prop_map(move |b| {
                let mut bhs = [0; BHS_LENGTH];
                bhs[..32].copy_from_slice(&a);
                bhs[32..].copy_from_slice(&b);
                bhs
            })
        }),
        ahs in prop_oneof![
            Just(Vec::new()),
            prop::collection::vec(any::<u8>(), 0..64),
            (0u16..40, 0u8..4).prop_map(|(length, kind)| {
                let mut ahs = length.to_be_bytes().to_vec();
                ahs.push(kind);
                ahs.resize(padded(3 + usize::from(length)), 0x77);
                ahs
            }),
        ],
        no_data: bool,
    ) {
        bhs[4] = u8::try_from(ahs.len() / 4).unwrap();
        if no_data {
            bhs[5..8].fill(0);
        }
        if let Ok(pdu) = Pdu::parse(&bhs, &ahs) {
            let (again, ahs) = emitted(&pdu);
            prop_assert_eq!(Pdu::parse(&again, &ahs), Ok(pdu));
        }
    }

    #[test]
    fn text_never_panics_and_round_trips(data in prop::collection::vec(any::<u8>(), 0..300)) {
        let Ok(pairs): Result<Vec<_>, _> = text::pairs(&data).collect() else { return Ok(()) };
        let mut buffer = [0; 400];
        let mut writer = text::Writer::new(&mut buffer);
        for (key, value) in &pairs {
            prop_assert!(writer.push(key, value).is_ok());
        }
        let again: Result<Vec<_>, _> = text::pairs(writer.written()).collect();
        prop_assert_eq!(again, Ok(pairs));
    }
}

fn refused(bhs: &Bhs, ahs: &[u8]) -> (RejectReason, &'static str) {
    let error = Pdu::parse(bhs, ahs).unwrap_err();
    (error.reason, error.field)
}

fn read_command() -> Bhs {
    let mut bhs = [0; BHS_LENGTH];
    bhs[..2].copy_from_slice(&[0x01, 0xC1]);
    bhs[22] = 4;
    bhs
}

#[test]
fn unknown_opcodes_are_not_supported() {
    for code in (0x07..0x10).chain(0x11..0x20).chain(0x27..0x31).chain(0x33..0x3F) {
        let mut bhs = [0; BHS_LENGTH];
        bhs[0] = code;
        assert_eq!(refused(&bhs, &[]), (RejectReason::CommandNotSupported, "Opcode"));
    }
    let text = Pdu::parse(&[0x1C; BHS_LENGTH], &[]).unwrap_err().to_string();
    assert_eq!(text, "command not supported: Opcode");
}

#[test]
fn task_attributes() {
    let mut bhs = read_command();
    for (code, expected) in [
        (0, Some(TaskAttribute::Simple)),
        (1, Some(TaskAttribute::Simple)),
        (2, Some(TaskAttribute::Ordered)),
        (3, Some(TaskAttribute::HeadOfQueue)),
        (4, Some(TaskAttribute::Aca)),
        (5, None),
        (6, None),
        (7, None),
    ] {
        bhs[1] = 0xC0 | code;
        match (Pdu::parse(&bhs, &[]), expected) {
            (Ok(Pdu::ScsiCommand(command)), Some(attribute)) => assert_eq!(command.attribute, attribute),
            (Err(error), None) => assert_eq!(error.field, "ATTR"),
            (other, _) => panic!("code {code}: {other:?}"),
        }
    }
    // Reserved bits mean nothing to a receiver.
    bhs[0] |= 0x80;
    bhs[1] = 0xC0 | 0x18 | 1;
    bhs[2] = 0xFF;
    assert!(Pdu::parse(&bhs, &[]).is_ok());
}

#[test]
fn forbidden_command_flags() {
    let mut bhs = read_command();
    bhs[1] = 0x41;
    assert_eq!(refused(&bhs, &[]), (RejectReason::ProtocolError, "F"));
    bhs[1] = 0x81;
    assert_eq!(refused(&bhs, &[]), (RejectReason::InvalidPduField, "R and W"));
    bhs[22] = 0;
    assert!(Pdu::parse(&bhs, &[]).is_ok());
    bhs[16..20].fill(0xFF);
    assert_eq!(refused(&bhs, &[]), (RejectReason::InvalidPduField, "Initiator Task Tag"));
}

fn with_ahs(ahs: &[u8]) -> Result<Pdu, ParseError> {
    let mut bhs = read_command();
    bhs[32] = 0x7F;
    bhs[4] = u8::try_from(ahs.len() / 4).unwrap();
    Pdu::parse(&bhs, ahs)
}

#[test]
fn extended_cdb_and_bidirectional_length() {
    let mut ahs = vec![0, 17, 1, 0];
    ahs.extend(1..=16);
    ahs.extend([0, 5, 2, 0, 0, 0, 2, 0]);
    let Ok(Pdu::ScsiCommand(command)) = with_ahs(&ahs) else { panic!() };
    assert_eq!(command.cdb.length(), 32);
    assert_eq!(command.cdb.u8_at(0), 0x7F);
    assert_eq!(command.cdb.bytes()[16..], (1..=16).collect::<Vec<u8>>());
    assert_eq!(command.bidirectional_read_length, Some(512));
    let mut out = [0; 64];
    let length = command.emit_ahs(&mut out);
    assert_eq!(out[..length], ahs);

    // Longer than what is kept: the true length is known.
    let mut long = vec![0x03, 0xE9, 1, 0];
    long.resize(1004, 0x55);
    let Ok(Pdu::ScsiCommand(command)) = with_ahs(&long) else { panic!() };
    assert_eq!(command.cdb.length(), 16 + 1000);
}

#[test]
fn malformed_ahs_is_refused() {
    for (ahs, field) in [
        (&[0u8, 0, 1, 0][..], "AHSLength"),
        (&[0, 1, 1, 0], "AHSLength"),
        (&[0, 6, 1, 0, 1, 2, 3, 4], "AHSLength"),
        (&[0xFF, 0xFF, 1, 0], "AHSLength"),
        (&[0, 5, 3, 0, 1, 2, 3, 4], "AHSType"),
        (&[0, 4, 2, 0, 1, 2, 3, 4], "AHSLength"),
        (&[0, 5, 1, 0, 1, 2, 3, 4, 0, 5, 1, 0, 1, 2, 3, 4], "AHSType"),
        (&[0, 5, 2, 0, 1, 2, 3, 4, 0, 5, 2, 0, 1, 2, 3, 4], "AHSType"),
    ] {
        let error = with_ahs(ahs).unwrap_err();
        assert_eq!((error.reason, error.field), (RejectReason::InvalidPduField, field), "{ahs:?}");
    }
    let mut bhs = [0; BHS_LENGTH];
    bhs[4] = 2;
    assert_eq!(refused(&bhs, &[0, 5, 2, 0, 0, 0, 0, 1]), (RejectReason::InvalidPduField, "TotalAHSLength"));
    // What the header announced and what came must agree.
    assert_eq!(refused(&read_command(), &[0, 5, 2, 0, 0, 0, 0, 1]).1, "TotalAHSLength");
}

#[test]
fn login_stages() {
    let mut bhs = [0; BHS_LENGTH];
    bhs[0] = 0x43;
    for (byte, field) in [
        (0b1000_0000, "NSG"),
        (0b1000_0010, "NSG"),
        (0b1000_0101, "NSG"),
        (0b0000_1000, "CSG"),
        (0b1000_1111, "CSG"),
        (0b1100_0001, "T and C"),
    ] {
        bhs[1] = byte;
        assert_eq!(refused(&bhs, &[]).1, field, "{byte:#010b}");
    }
    bhs[1] = 0b1000_0111;
    let Ok(Pdu::LoginRequest(login)) = Pdu::parse(&bhs, &[]) else { panic!() };
    assert_eq!(login.current_stage, LoginStage::LoginOperationalNegotiation);
    assert_eq!(login.next_stage, LoginStage::FullFeaturePhase);
    // NSG means nothing without T.
    bhs[1] = 0b0000_0110;
    assert!(Pdu::parse(&bhs, &[]).is_ok());
    // A failed login is reported whatever the stages say.
    let mut bhs = [0; BHS_LENGTH];
    bhs[0] = 0x23;
    bhs[1] = 0xFF;
    assert!(Pdu::parse(&bhs, &[]).is_err());
    bhs[36] = 2;
    assert!(matches!(Pdu::parse(&bhs, &[]), Ok(Pdu::LoginResponse(response)) if response.status_class == 2));
}

#[test]
fn reserved_codes_are_refused() {
    for (byte0, byte1, byte2, byte3, field) in [
        (0x06, 0x83, 0, 0, "Reason Code"),
        (0x10, 0x84, 0, 0, "Type"),
        (0x21, 0x80, 2, 0, "Response"),
        (0x21, 0x80, 0, 1, "Status"),
        (0x21, 0x86, 0, 0, "O and U"),
        (0x21, 0x98, 0, 0, "o and u"),
        (0x25, 0x81, 0, 1, "Status"),
        (0x25, 0x01, 0, 0, "S"),
        (0x26, 0x80, 4, 0, "Response"),
        (0x3F, 0x80, 1, 0, "Reason"),
        (0x04, 0xC0, 0, 0, "F and C"),
        (0x24, 0xC0, 0, 0, "F and C"),
        (0x31, 0x80, 0, 0, "Desired Data Transfer Length"),
    ] {
        let mut bhs = [0; BHS_LENGTH];
        bhs[..4].copy_from_slice(&[byte0, byte1, byte2, byte3]);
        assert_eq!(refused(&bhs, &[]).1, field, "opcode {byte0:#x}");
    }
    let mut nop = [0; BHS_LENGTH];
    nop[16..20].fill(0xFF);
    assert_eq!(refused(&nop, &[]), (RejectReason::ProtocolError, "I"));
    nop[0] = 0x40;
    assert!(Pdu::parse(&nop, &[]).is_ok());
}

#[test]
fn pdus_without_data_refuse_it() {
    for code in [0x02, 0x06, 0x10, 0x22, 0x26, 0x31] {
        let mut bhs = [0; BHS_LENGTH];
        bhs[0] = code;
        bhs[7] = 1;
        assert_eq!(refused(&bhs, &[]), (RejectReason::InvalidPduField, "DataSegmentLength"));
    }
}

#[test]
fn lengths_and_padding() {
    let mut bhs = [0; BHS_LENGTH];
    bhs[4..8].copy_from_slice(&[0xFF, 0xFF, 0xFF, 0xFE]);
    assert_eq!(lengths(&bhs), Lengths { ahs: 1020, data: 0xFF_FFFE });
    assert_eq!([0, 1, 3, 4, 5, 8].map(padded), [0, 4, 4, 4, 8, 8]);
}

/// The bytes of RFC 3720 B.4's SCSI Read command, so that layout mistakes made alike in parse and emit show.
#[test]
fn known_bytes() {
    let mut expected = [0; BHS_LENGTH];
    expected[..2].copy_from_slice(&[0x01, 0xC1]);
    expected[15] = 0;
    expected[9] = 3;
    expected[16] = 0x14;
    expected[22] = 0x04;
    expected[27] = 0x14;
    expected[31] = 0x18;
    expected[32] = 0x28;
    expected[40] = 0x02;
    let command = ScsiCommand {
        immediate: false,
        final_: true,
        read: true,
        write: false,
        attribute: TaskAttribute::Simple,
        lun: Lun::from_number(3),
        initiator_task_tag: 0x1400_0000,
        expected_data_transfer_length: 0x400,
        cmd_sn: 0x14,
        exp_stat_sn: 0x18,
        cdb: Cdb::new(&[0x28, 0, 0, 0, 0, 0, 0, 0, 2, 0]),
        bidirectional_read_length: None,
        data_segment_length: 0,
    };
    let mut bhs = [0xFF; BHS_LENGTH];
    command.emit(&mut bhs);
    assert_eq!(bhs, expected);
}

/// A header in which every byte from 8 on is its own offset, so that a field read at the wrong place shows.
fn numbered(byte0: u8, byte1: u8) -> Pdu {
    let mut bhs: Bhs = std::array::from_fn(|at| if at < 8 { 0 } else { at as u8 });
    bhs[0] = byte0;
    bhs[1] = byte1;
    if byte0 == opcode::ASYNC_MESSAGE {
        bhs[36] = 2;
    }
    if byte0 == opcode::REJECT {
        bhs[2] = 4;
    }
    if byte0 == opcode::LOGIN_RESPONSE {
        bhs[36] = 0;
    }
    Pdu::parse(&bhs, &[]).unwrap()
}

fn word(at: u32) -> u32 {
    0x0001_0203 + at * 0x0101_0101
}

fn half(at: u16) -> u16 {
    0x0001 + at * 0x0101
}

/// Offsets from the figures of RFC 7143 §11.
#[test]
fn fields_lie_where_the_standard_puts_them() {
    let lun = Lun(0x0809_0A0B_0C0D_0E0F);
    let serials = [word(24), word(28), word(32)];
    let Pdu::NopOut(p) = numbered(0x40, 0x80) else { panic!() };
    assert_eq!((p.lun, p.initiator_task_tag, p.target_transfer_tag), (lun, word(16), word(20)));
    assert_eq!((p.immediate, p.cmd_sn, p.exp_stat_sn), (true, word(24), word(28)));
    let Pdu::ScsiCommand(p) = numbered(0x01, 0xE2) else { panic!() };
    assert_eq!((p.lun, p.initiator_task_tag, p.expected_data_transfer_length), (lun, word(16), word(20)));
    assert_eq!((p.cmd_sn, p.exp_stat_sn, p.cdb.operation_code()), (word(24), word(28), 32));
    assert_eq!((p.final_, p.read, p.write, p.attribute), (true, true, true, TaskAttribute::Ordered));
    let Pdu::TaskManagementRequest(p) = numbered(0x02, 0x85) else { panic!() };
    assert_eq!(
        (p.function, p.lun, p.initiator_task_tag, p.referenced_task_tag),
        (5, lun, word(16), word(20))
    );
    assert_eq!([p.cmd_sn, p.exp_stat_sn, p.ref_cmd_sn, p.exp_data_sn], [24, 28, 32, 36].map(word));
    let Pdu::LoginRequest(p) = numbered(0x43, 0x81) else { panic!() };
    assert_eq!((p.isid, p.tsih, p.cid), ([8, 9, 10, 11, 12, 13], half(14), half(20)));
    assert_eq!([p.initiator_task_tag, p.cmd_sn, p.exp_stat_sn], [16, 24, 28].map(word));
    let Pdu::TextRequest(p) = numbered(0x04, 0x40) else { panic!() };
    assert_eq!((p.final_, p.continue_, p.lun), (false, true, lun));
    let tags = [p.initiator_task_tag, p.target_transfer_tag, p.cmd_sn, p.exp_stat_sn];
    assert_eq!(tags, [16, 20, 24, 28].map(word));
    let Pdu::DataOut(p) = numbered(0x05, 0x80) else { panic!() };
    assert_eq!(
        (p.final_, p.lun, p.initiator_task_tag, p.target_transfer_tag),
        (true, lun, word(16), word(20))
    );
    assert_eq!([p.exp_stat_sn, p.data_sn, p.buffer_offset], [28, 36, 40].map(word));
    let Pdu::LogoutRequest(p) = numbered(0x06, 0x81) else { panic!() };
    assert_eq!((p.reason, p.cid), (LogoutReason::CloseConnection, half(20)));
    assert_eq!([p.initiator_task_tag, p.cmd_sn, p.exp_stat_sn], [16, 24, 28].map(word));
    let Pdu::SnackRequest(p) = numbered(0x10, 0x82) else { panic!() };
    assert_eq!((p.kind, p.lun), (SnackType::DataAck, lun));
    let words = [p.initiator_task_tag, p.target_transfer_tag, p.exp_stat_sn, p.beg_run, p.run_length];
    assert_eq!(words, [16, 20, 28, 40, 44].map(word));

    let Pdu::NopIn(p) = numbered(0x20, 0x80) else { panic!() };
    assert_eq!((p.lun, p.initiator_task_tag, p.target_transfer_tag), (lun, word(16), word(20)));
    assert_eq!([p.stat_sn, p.exp_cmd_sn, p.max_cmd_sn], serials);
    let Pdu::ScsiResponse(p) = numbered(0x21, 0x92) else { panic!() };
    assert!(
        p.bidirectional_overflow
            && p.residual_underflow
            && !p.residual_overflow
            && !p.bidirectional_underflow
    );
    assert_eq!([p.stat_sn, p.exp_cmd_sn, p.max_cmd_sn], serials);
    let words =
        [p.initiator_task_tag, p.snack_tag, p.exp_data_sn, p.bidirectional_residual_count, p.residual_count];
    assert_eq!(words, [16, 20, 36, 40, 44].map(word));
    let Pdu::TaskManagementResponse(p) = numbered(0x22, 0x80) else { panic!() };
    assert_eq!([p.stat_sn, p.exp_cmd_sn, p.max_cmd_sn, p.initiator_task_tag], [24, 28, 32, 16].map(word));
    let Pdu::LoginResponse(p) = numbered(0x23, 0x87) else { panic!() };
    assert_eq!((p.isid, p.tsih, p.status_detail), ([8, 9, 10, 11, 12, 13], half(14), 37));
    assert_eq!([p.stat_sn, p.exp_cmd_sn, p.max_cmd_sn, p.initiator_task_tag], [24, 28, 32, 16].map(word));
    let Pdu::TextResponse(p) = numbered(0x24, 0x80) else { panic!() };
    assert_eq!(
        (p.final_, p.lun, p.initiator_task_tag, p.target_transfer_tag),
        (true, lun, word(16), word(20))
    );
    assert_eq!([p.stat_sn, p.exp_cmd_sn, p.max_cmd_sn], serials);
    let Pdu::DataIn(p) = numbered(0x25, 0xC3) else { panic!() };
    assert!(p.final_ && p.acknowledge && p.residual_underflow && !p.residual_overflow && p.status.is_some());
    assert_eq!((p.lun, p.initiator_task_tag, p.target_transfer_tag), (lun, word(16), word(20)));
    assert_eq!([p.stat_sn, p.exp_cmd_sn, p.max_cmd_sn], serials);
    assert_eq!([p.data_sn, p.buffer_offset, p.residual_count], [36, 40, 44].map(word));
    let Pdu::LogoutResponse(p) = numbered(0x26, 0x80) else { panic!() };
    assert_eq!([p.stat_sn, p.exp_cmd_sn, p.max_cmd_sn, p.initiator_task_tag], [24, 28, 32, 16].map(word));
    assert_eq!((p.time_to_wait, p.time_to_retain), (half(40), half(42)));
    let Pdu::R2t(p) = numbered(0x31, 0x80) else { panic!() };
    assert_eq!((p.lun, p.initiator_task_tag, p.target_transfer_tag), (lun, word(16), word(20)));
    assert_eq!([p.stat_sn, p.exp_cmd_sn, p.max_cmd_sn], serials);
    assert_eq!([p.r2t_sn, p.buffer_offset, p.desired_data_transfer_length], [36, 40, 44].map(word));
    let Pdu::AsyncMessage(p) = numbered(0x32, 0x80) else { panic!() };
    let dropped =
        AsyncEvent::ConnectionDropped { cid: half(38), time_to_wait: half(40), time_to_retain: half(42) };
    assert_eq!((p.event, p.vendor_code, p.lun), (dropped, 37, lun));
    assert_eq!([p.stat_sn, p.exp_cmd_sn, p.max_cmd_sn], serials);
    let Pdu::Reject(p) = numbered(0x3F, 0x80) else { panic!() };
    assert_eq!((p.reason, p.data_sn_or_r2t_sn), (RejectReason::ProtocolError, word(36)));
    assert_eq!([p.stat_sn, p.exp_cmd_sn, p.max_cmd_sn], serials);
}
