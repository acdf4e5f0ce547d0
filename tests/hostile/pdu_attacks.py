"""Attacks of a session that has logged in: PDUs that lie, storms, and peers that do not listen."""
import random
import struct
import threading
import time

import initiator as wire
from initiator import FINAL, IMMEDIATE, NO_TAG, Closed, Session, Silent, header, read16
from stage import CHAP_TARGET, DISK, TARGET, Skip, check


def settle(session, timeout=5):
    """A ping that must be answered or find the connection closed; the PDUs before the answer, and whether it lives."""
    said, itt = [], session.next_tag()
    try:
        session.send(header(wire.NOP_OUT | IMMEDIATE, FINAL, 0, 0, itt, struct.pack(">I", NO_TAG) + session.numbers(True)))
        while True:
            pdu = session.take(timeout)
            if pdu.opcode == wire.NOP_IN and pdu.itt == itt:
                return said, True
            said.append(pdu)
    except Closed:
        return said, False


def attempt(stage, sessions, bhs, data=b"", ahs=b"", **login):
    """Sends one PDU on the session in `sessions` (a new one if it is gone): what came back, and whether it lives."""
    session = sessions[0] if sessions else None
    if session is None:
        session = stage.session(**login)
        sessions[:] = [session]
    try:
        session.send(bhs(session) if callable(bhs) else bhs, data, ahs)
    except Closed:
        said, alive = [], False
    else:
        said, alive = settle(session)
    if not alive:
        session.close()
        sessions[:] = []
    return said, alive


def every_opcode_and_flag_after_login(stage):
    """CVE-2021-28361: opcodes x flags x lengths x reserved bits. Unknown ones are rejected; each is answered, ignored or
    ends its connection."""
    sessions = []
    for opcode in range(64):
        for flags in (0x00, 0x40, 0x80, 0xC0, 0xFF):
            for length, words in ((0, 0), (4, 0), (0, 1), (0, 255)):
                def bhs(session, o=opcode, f=flags, n=length, w=words):
                    reserved = 0xFFFF if f == 0xFF else 0
                    tail = struct.pack(">I", NO_TAG) + session.numbers(True) + struct.pack(">I", reserved) * 4
                    return header(o | IMMEDIATE, f, n, 0, session.next_tag(), tail, w)

                said, alive = attempt(stage, sessions, bhs, b"abcd"[:length], bytes(words * 4))
                known = opcode <= 6 or opcode == 0x10
                check(known or not alive or any(pdu.opcode == wire.REJECT for pdu in said), f"opcode {opcode:02x}h flags {flags:02x}h: {said}")
        for length in (262145, 0xFFFFFF):
            said, alive = attempt(stage, sessions, lambda session: header(opcode | IMMEDIATE, FINAL, length, 0, 1, struct.pack(">I", NO_TAG) + session.numbers(True)))
            check(not alive, f"opcode {opcode:02x}h with {length} bytes of data, more than MaxRecvDataSegmentLength")
    for session in sessions:
        session.close()


def additional_headers_of_every_length(stage):
    """AHS of 0 to 255 words, of zeros, of ones, and of lengths that do not add up, in SCSI commands and others."""
    sessions = []
    for words in range(256):
        for filler in (bytes(words * 4), b"\xff" * (words * 4), (struct.pack(">HBB", words * 4 - 3 & 0xFFFF, 1, 0) + bytes(words * 4))[: words * 4], (b"\x00\x05\x02\x00" + bytes(4)) * (words // 2) + bytes(words % 2 * 4)):
            attempt(stage, sessions, lambda session: session.command_header(bytes(6), DISK, immediate=True, ahs_words=words), b"", filler)
    attempt(stage, sessions, lambda session: session.command_header(bytes(6), DISK, immediate=True))
    for session in sessions:
        session.close()


def text_without_data_and_with_the_c_bit(stage):
    """CVE-2021-28361: a Text Request without data and with the C flag, in discovery and normal sessions."""
    for target in (None, TARGET):
        for flags, ttt in ((0x40, NO_TAG), (0xC0, NO_TAG), (0x00, NO_TAG), (0x40, 0), (0x80, 0x12345678), (0x40, 0xFFFFFFFE)):
            with Session(stage.port, target) as session:
                session.login()
                try:
                    for _ in range(50):
                        pdu = session.text_request(b"", flags, ttt, itt=5, immediate=True)
                        check(pdu.opcode in (wire.TEXT_RESPONSE, wire.REJECT), f"flags {flags:02x}h: {pdu}")
                        check(flags != 0xC0 or pdu.opcode == wire.REJECT, "F and C together were accepted")
                    check(settle(session)[1], "not alive")
                except Closed:
                    pass
        with Session(stage.port, target) as session:
            session.login()
            taken = 0
            try:
                # Text that never ends must not be kept for ever.
                for _ in range(60):
                    pdu = session.text_request(b"X" * 200000, 0x40, NO_TAG if taken == 0 else pdu.ttt, itt=5)
                    if pdu.opcode == wire.REJECT:
                        break
                    taken += 1
            except Closed:
                pass
            check(taken < 10, f"{taken * 200} KB of text were kept")


def text_that_is_none(stage):
    """Text requests full of nonsense are answered NotUnderstood, or rejected."""
    rng = random.Random(5)
    session = stage.session()
    for data in (b"\0", b"=", b"=\0", b"SendTargets", b"SendTargets=\0", b"SendTargets=All\0" * 500, b"SendTargets=" + b"x" * 5000 + b"\0", b"A=b\0" * 2000, b"InitiatorName=iqn.x\0", b"MaxRecvDataSegmentLength=0\0", b"MaxRecvDataSegmentLength=511\0", b"MaxRecvDataSegmentLength=99999999999\0", b"HeaderDigest=CRC32C\0", b"X-" + b"k" * 62 + b"=1\0", b"X-" + b"k" * 60000 + b"=1\0", *(rng.randbytes(rng.randrange(1, 4000)) for _ in range(50))):
        try:
            pdu = session.text_request(data)
            check(pdu.opcode in (wire.TEXT_RESPONSE, wire.REJECT), f"{data[:30]!r}: {pdu}")
            check(len(pdu.data) <= 262144, "too long an answer")
        except Closed:
            session = stage.session()
    check(session.nop(b"there?") == b"there?", "no answer")
    session.close()


def send_targets_in_a_normal_session(stage):
    """RFC 7143 Appendix C: SendTargets=All in a normal session is refused; of one's own target it is answered."""
    with stage.session() as session:
        pdu = session.text_request({"SendTargets": "All"})
        check(pdu.opcode == wire.REJECT or CHAP_TARGET.encode() not in pdu.data, "a normal session sees other targets")
        names, _ = session.send_targets("")
        check(names == [TARGET], f"{names}")


def send_targets_of_300_targets_in_512_bytes(stage):
    """spdk#1442: a long list in segments of 512 bytes, and asking for the next piece with the wrong tag."""
    names = [f"iqn.2026-01.io.pollux:a.target.with.a.long.name.{number:04d}" for number in range(300)]
    made = 0
    try:
        for name in names:
            stage.daemon.rpc("iscsi_create_target_node", name=name, alias_name="many", pg_ig_maps=[{"pg_tag": 1, "ig_tag": 1}], luns=[], queue_depth=8, disable_chap=True)
            made += 1
    except stage.rpc_error as error:
        if "lun" in str(error).lower() and made == 0:
            for name in names:
                stage.daemon.rpc("iscsi_create_target_node", name=name, alias_name="many", pg_ig_maps=[{"pg_tag": 1, "ig_tag": 1}], luns=[{"bdev_name": "Ram3", "lun_id": 0}], queue_depth=8, disable_chap=True)
                made += 1
        else:
            raise
    try:
        with Session(stage.port) as session:
            session.login(MaxRecvDataSegmentLength=512)
            found, longest = session.send_targets()
            check(set(names) <= set(found) and len(found) == len(set(found)), f"{len(found)} targets found")
            check(longest <= 512, f"a segment of {longest} bytes")
            pdu = session.text_request({"SendTargets": "All"})
            check(not pdu.flags & FINAL and pdu.ttt != NO_TAG, "the list is not continued")
            wrong = session.text_request(b"", FINAL, pdu.ttt ^ 0x55, pdu.itt)
            check(wrong.opcode == wire.REJECT or wrong.opcode == wire.TEXT_RESPONSE and not wrong.data, f"an unknown tag continues the list: {wrong}")
            session.text_request({"SendTargets": "All"})
            found, _ = session.send_targets()
            check(set(names) <= set(found), "the list is not complete after one was given up")
        for _ in range(20):
            with Session(stage.port) as session:
                session.login(MaxRecvDataSegmentLength=512)
                session.text_request({"SendTargets": "All"})
    finally:
        for name in names[:made]:
            stage.daemon.rpc("iscsi_delete_target_node", name=name)


def commands_in_a_discovery_session(stage):
    """A discovery session has no logical units: commands and task management are rejected."""
    for opcode, tail in ((wire.COMMAND, b""), (wire.TMF, b""), (wire.DATA_OUT, b"")):
        with Session(stage.port) as session:
            session.login()
            flags = 0xC0 if opcode == wire.COMMAND else 0x85
            session.send(header(opcode | (IMMEDIATE if opcode != wire.DATA_OUT else 0), flags, 0, 0, 9, struct.pack(">I", 0) + session.numbers(True) + tail))
            said, alive = settle(session)
            check(not alive or said and said[0].opcode == wire.REJECT, f"opcode {opcode:02x}h: {said}")


def a_login_in_full_feature_phase(stage):
    """A Login Request, and every PDU that only targets send, are rejected or end the connection."""
    for opcode in (wire.LOGIN, 0x20, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x31, 0x32, 0x3F):
        with stage.session() as session:
            session.send(header(opcode | IMMEDIATE, 0x87, 0, 0, 9, struct.pack(">I", NO_TAG) + session.numbers(True)))
            said, alive = settle(session)
            check(not alive or said and said[0].opcode == wire.REJECT, f"opcode {opcode:02x}h: {said}")


def command_numbers_outside_the_window(stage):
    """RFC 7143 §4.2.2.1: commands outside the window are ignored without a word."""
    with stage.session() as session:
        session.nop()
        for number in (session.cmd_sn - 1, session.cmd_sn - 100, session.max_cmd_sn + 1, session.max_cmd_sn + 5000, session.cmd_sn + 0x80000000, session.cmd_sn - 0x7FFFFFFF):
            itt = session.next_tag()
            session.send(session.command_header(bytes(6), DISK, itt=itt, cmd_sn=number & NO_TAG))
            said, alive = settle(session)
            check(alive and not said, f"CmdSN {number - session.cmd_sn:+d} from the expected: {said}, alive {alive}")
        session.ready(DISK)
    with stage.session() as session:
        # A gap: the command waits for the one before it, or the connection ends.
        late = session.cmd_sn
        session.send(session.command_header(bytes(6), DISK, cmd_sn=late + 1))
        said, alive = settle(session)
        check(not said, f"a command overtook the one before it: {said}")
        if alive:
            session.send(session.command_header(bytes(6), DISK, cmd_sn=late))
            check({session.take().bhs[3], session.take().bhs[3]} == {0}, "the commands after a closed gap")


def ping_flood(stage):
    """20,000 pings, most of which want no answer, by somebody who reads only afterwards; each echo is exact."""
    with stage.session() as session:
        for number in range(200):
            session.send_raw(header(wire.NOP_OUT | IMMEDIATE, FINAL, 0, 0, NO_TAG, struct.pack(">I", NO_TAG) + session.numbers(True)) * 90)
            data = bytes([number & 0xFF]) * (number * 7 % 4000 + 1)
            check(session.nop(data) == data, "a ping came back with other data")
    with stage.session(timeout=3) as session:
        tags = []
        try:
            for _ in range(20000):
                itt = session.next_tag()
                session.send_raw(header(wire.NOP_OUT | IMMEDIATE, FINAL, 0, 0, itt, struct.pack(">I", NO_TAG) + session.numbers(True)))
                tags.append(itt)
        except (Closed, Silent):
            pass
        for itt in tags[:2000]:
            try:
                check(session.take().itt == itt, "pings are answered out of order")
            except (Closed, Silent):
                break
    for bhs in (header(wire.NOP_OUT, FINAL, 0, 0, NO_TAG, struct.pack(">III", NO_TAG, 1, 1)), header(wire.NOP_OUT | IMMEDIATE, FINAL, 0, 0, NO_TAG, struct.pack(">III", 0x1234, 1, 1))):
        attempt(stage, [], bhs)


def peers_that_do_not_read(stage):
    """Zero window: 16 sessions queue reads of 4 MiB each and take nothing; nobody else notices."""
    deaf = []
    for number in range(16):
        session = stage.session(receive_buffer=4096, name=f"iqn.2026-01.io.pollux:deaf{number}", timeout=2)
        deaf.append(session)
        try:
            for _ in range(16):
                session.send(session.command_header(read16(0, 512), DISK, 0xC0, 512 * 512))
        except (Closed, Silent):
            pass
    for _ in range(20):
        started = time.monotonic()
        with stage.session() as session:
            check(len(session.read_blocks(0, 64, DISK)) == 64 * 512, "a short read")
        check(time.monotonic() - started < 4, f"a session beside deaf ones took {time.monotonic() - started:.1f} s")
        time.sleep(0.05)
    for number, session in enumerate(deaf):
        session.reset() if number % 2 else session.close()
    stage.all_gone()


def logout_storm(stage):
    """300 sessions that log out in every way, with commands under way, and after them twice."""
    for number in range(300):
        session = Session(stage.port, TARGET, timeout=5).login()
        way = number % 6
        if way == 0:
            pdu = session.logout()
            check(pdu.opcode == wire.LOGOUT_RESPONSE and pdu.bhs[2] == 0, f"{pdu}")
            check(session.wait_closed() == [], "something after the logout")
        elif way == 1:
            for _ in range(8):
                session.send(session.command_header(read16(0, 128), DISK, 0xC0, 65536))
            session.send(header(wire.LOGOUT | IMMEDIATE, FINAL, 0, 0, 7, struct.pack(">I", 0) + session.numbers(True)) * 2)
            session.wait_closed()
        elif way == 2:
            check(session.logout(1, cid=77).bhs[2] == 1, "an unknown CID was logged out")
            check(session.nop(b"x") == b"x", "no answer after a refused logout")
        elif way == 3:
            check(session.logout(2).bhs[2] == 2, "recovery that is not supported")
        elif way == 4:
            pdu = session.logout(0x55)
            check(pdu.opcode == wire.REJECT, f"a reason that does not exist: {pdu}")
        else:
            session.send(session.command_header(b"\x8a" + bytes(9) + struct.pack(">I", 128), DISK, 0xA0, 65536))
            session.send(header(wire.LOGOUT | IMMEDIATE, FINAL, 0, 0, 7, struct.pack(">I", 0) + session.numbers(True)))
            session.wait_closed()
        session.close()
    stage.all_gone()


def session_reinstatement_storm(stage):
    """Four threads log in with one ISID for three seconds, and write in between: the last one stays, nothing is lost."""
    stop = time.monotonic() + 3
    failures, rounds = [], [0] * 4

    def storm(number):
        while time.monotonic() < stop:
            try:
                with Session(stage.port, TARGET, "iqn.2026-01.io.pollux:twin", b"\x80twins", timeout=5) as session:
                    session.login().ready(DISK)
                    for _ in range(4):
                        session.write_blocks(1000 + number * 64, bytes([number + 1]) * 32768, DISK)
                        data = session.read_blocks(1000 + number * 64, 64, DISK)
                        if data != bytes([number + 1]) * 32768:
                            failures.append("data miscompare")
                    rounds[number] += 1
            except (Closed, wire.Refused):
                rounds[number] += 1
            except Exception as error:  # of a thread: told to the test below
                failures.append(repr(error))

    threads = [threading.Thread(target=storm, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    check(not failures, f"{len(failures)} failures, the first: {failures[:1]}")
    check(min(rounds) > 3, f"rounds of the four: {rounds}")
    first = stage.session(name="iqn.2026-01.io.pollux:twin")
    isid = first.isid
    second = Session(stage.port, TARGET, "iqn.2026-01.io.pollux:twin", isid, timeout=5).login().ready(DISK)
    first.wait_closed()
    second.close()
    first.close()
    stage.all_gone()


def every_bit_of_a_header_with_digest(stage):
    """A header whose digest does not match ends its connection, and nothing of it is carried out."""
    lba = 4000
    with stage.session() as session:
        session.write_blocks(lba, b"\x11" * 512, DISK)
    for bit in range((48 + 4) * 8):
        with Session(stage.port, TARGET, timeout=5).login(digests=True) as session:
            if not session.header_digest:
                raise Skip("the target does not negotiate HeaderDigest=CRC32C")
            bhs = session.command_header(wire.write16(lba, 1), DISK, 0xA0, 512, length=512)
            frame = bytearray(session.frame(bhs, b"\xee" * 512))
            frame[bit // 8] ^= 1 << bit % 8
            try:
                # The rest is for a length of additional headers that has grown.
                session.send_raw(bytes(frame) + bytes(1100))
                said = session.wait_closed()
            except Closed:
                said = []
            check(all(pdu.opcode == wire.NOP_IN for pdu in said), f"bit {bit}: {said}")
    with stage.session() as session:
        check(session.read_blocks(lba, 1, DISK) == b"\x11" * 512, "a damaged command was carried out")


def damaged_data(stage):
    """A wrong data digest: a Reject (RFC 7143 §7.8) or the end of the connection, never damaged data on the medium."""
    lba = 4100
    with stage.session() as session:
        session.write_blocks(lba, b"\x22" * 4096, DISK)
    with stage.session(digests=True) as session:
        if not session.data_digest:
            raise Skip("the target does not negotiate DataDigest=CRC32C")
        # Immediate data.
        try:
            itt = session.next_tag()
            session.send(session.command_header(wire.write16(lba, 8), DISK, 0xA0, 4096, itt=itt, length=4096), b"\x33" * 4096, bad_data_digest=True)
            pdu = session.take()
            check(pdu.opcode == wire.REJECT and pdu.bhs[2] == 2 or pdu.opcode == wire.RESPONSE and pdu.bhs[3] == 2, f"immediate data: {pdu}")
        except Closed:
            pass
    for _ in range(10):
        with stage.session(digests=True) as session:
            try:
                itt = session.next_tag()
                session.send(session.command_header(wire.write16(lba, 8), DISK, 0xA0, 4096, itt=itt))
                r2t = session.take()
                check(r2t.opcode == wire.R2T, f"{r2t}")
                session.data_out(itt, r2t.ttt, 0, b"\x44" * 2048, 0, False, DISK, bad_data_digest=True)
                session.data_out(itt, r2t.ttt, 2048, b"\x44" * 2048, 1, True, DISK)
                pdus = [session.take()]
                while pdus[-1].opcode != wire.RESPONSE:
                    pdus.append(session.take(3))
                check(pdus[-1].bhs[3] == 2, f"a write with damaged data: status {pdus[-1].bhs[3]:02x}h")
                check(any(pdu.opcode == wire.REJECT and pdu.bhs[2] == 2 for pdu in pdus), "no Reject for a data digest error")
                session.ready(DISK)
            except Closed:
                pass
    with stage.session() as session:
        check(session.read_blocks(lba, 8, DISK) == b"\x22" * 4096, "damaged data reached the medium")


def random_streams_after_login(stage):
    """Valid PDUs with random bytes changed, 40 at a time, on 60 sessions of their own."""
    rng = random.Random(6)
    for _ in range(60):
        with Session(stage.port, TARGET, timeout=5).login() as session:
            out = bytearray()
            for _ in range(40):
                kind = rng.randrange(4)
                if kind == 0:
                    pdu = bytearray(session.command_header(read16(rng.randrange(30000), 8), DISK, 0xC0, 4096))
                elif kind == 1:
                    pdu = bytearray(header(wire.NOP_OUT | IMMEDIATE, FINAL, 0, 0, session.next_tag(), struct.pack(">I", NO_TAG) + session.numbers(True)))
                elif kind == 2:
                    pdu = bytearray(header(wire.TMF | IMMEDIATE, FINAL | rng.choice((1, 2, 3, 8, 9)), 0, DISK, session.next_tag(), struct.pack(">I", 5) + session.numbers(True)))
                else:
                    pdu = bytearray(header(wire.DATA_OUT, FINAL, 0, DISK, session.tag, struct.pack(">IIIIII", rng.getrandbits(32), 0, 0, 0, 0, 0)))
                if rng.randrange(3) == 0:
                    # Not the CDB (the attackers' disk is not to be spoiled), nor the LUN (nor is the healthy one).
                    pdu[rng.choice((0, 1, 2, 3, 4, 5, 6, 7, *range(16, 32)))] = rng.randrange(256)
                if pdu[0] & 0x3F == wire.TMF and pdu[1] & 0x7F in (4, 5, 6, 7):
                    pdu[1] = 0x81
                out += pdu
            try:
                session.send_raw(bytes(out))
                session.socket.shutdown(1)
                while True:
                    session.receive(2)
            except (Closed, Silent, OSError):
                pass
    stage.all_gone()


TESTS = [
    every_opcode_and_flag_after_login, additional_headers_of_every_length, text_without_data_and_with_the_c_bit, text_that_is_none,
    send_targets_in_a_normal_session, send_targets_of_300_targets_in_512_bytes, commands_in_a_discovery_session,
    a_login_in_full_feature_phase, command_numbers_outside_the_window, ping_flood, peers_that_do_not_read, logout_storm,
    session_reinstatement_storm, every_bit_of_a_header_with_digest, damaged_data, random_streams_after_login,
]
