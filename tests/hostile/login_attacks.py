"""Attacks before and during login."""
import base64
import concurrent.futures
import os
import random
import struct
import time

import initiator as wire
from initiator import Closed, Connection, Refused, Session, Silent, header, padded, text
from stage import ALICE, CHAP_TARGET, MUTUAL, SECRET, TARGET, check, refused_with

OPERATIONAL = {"HeaderDigest": "None", "DataDigest": "None"}


def first_step(stage, pairs, csg=1, nsg=3, target=TARGET, **options):
    """One login request on a new connection: the response, or the status that refuses it, or None when it was closed."""
    with Session(stage.port, target, timeout=5) as session:
        try:
            return session.login_step(session.identity() | pairs if isinstance(pairs, dict) else pairs, csg, nsg, **options)
        except Refused as refusal:
            return refusal.status
        except Closed:
            return None


def login_keys_of_1_to_8192_bytes(stage):
    """CVE-2013-2850: a key is answered NotUnderstood, or the login is refused; never more than fits, never memory."""
    lengths = [*range(1, 81), 127, 128, 129, 255, 256, 257, 511, 512, 1023, 1024, 2047, 4095, 4096, 8000, 8100, 8192]
    for length in lengths:
        name = "X" + "a" * (length - 1)
        answer = first_step(stage, {name: "1"})
        if length <= 63:
            check(isinstance(answer, wire.Pdu), f"a key of {length} bytes was refused: {answer}")
            check(wire.parse_text(answer.data).get(name) == "NotUnderstood", f"a key of {length} bytes: {answer.data[:100]!r}")
            check(len(answer.data) <= 8192, "the answer is too long")
        elif length < 7900:
            check(answer == 0x0200, f"a key of {length} bytes: {answer}")
        else:
            check(answer in (0x0200, None), f"a key of {length} bytes: {answer}")


def login_values_of_1_to_8192_bytes(stage):
    """Names and values longer than RFC 7143 §6.1 allows are refused; shorter unknown ones are not."""
    for length in (1, 255, 256, 257, 1024, 4096, 7900, 8192, 20000):
        for key in ("InitiatorName", "TargetName", "InitiatorAlias", "AuthMethod", "SessionType", "X-com.example.key", "MaxBurstLength"):
            answer = first_step(stage, {key: "a" * length}, csg=0 if key == "AuthMethod" else 1, nsg=None if key == "AuthMethod" else 3)
            if key in ("InitiatorName", "TargetName", "SessionType"):
                check(answer is None or isinstance(answer, int) and answer >> 8 == 2, f"{key} of {length} bytes: {answer}")
    with Session(stage.port, TARGET, timeout=5) as session:
        bulk = text({f"X-com.example.k{number}": "v" for number in range(300)})
        answers = 0
        try:
            for _ in range(40):
                session.login_step(bulk[:8000], 1, None, continue_=True)
                answers += 1
            check(False, "320,000 bytes of login text were taken")
        except (Refused, Closed):
            check(answers <= 2, f"{answers} pieces of 8,000 bytes were kept")


def names_that_no_initiator_has(stage):
    """RFC 3722: names with control characters, blanks or other bytes are refused, and do not get into the log."""
    for name in ("iqn.2026-01.a:\x1b[31mred", "iqn.2026-01.a:x\nFAKE LOG LINE", "iqn.2026-01.a:x y", "iqn.2026-01.a:\xff\xfe", "", "nothing", "eui.12", "naa.zz", "iqn.", "iqn.2026-01.a:" + "x" * 300):
        answer = first_step(stage, [("InitiatorName", name), ("TargetName", TARGET), ("SessionType", "Normal"), ("HeaderDigest", "None")])
        if isinstance(answer, wire.Pdu):
            check(name == "nothing", f"the name {name!r} was accepted")
        answer = first_step(stage, [("InitiatorName", wire.NAME), ("TargetName", name), ("SessionType", "Normal"), ("HeaderDigest", "None")])
        check(isinstance(answer, int) and answer >> 8 == 2, f"the target name {name!r}: {answer}")
    log = stage.daemon.log.read_bytes()
    check(b"\x1b[31mred" not in log and b"\nFAKE LOG LINE" not in log, "an initiator writes into the log")


def login_text_that_is_none(stage):
    """Text without '=', without its NUL, with empty keys, with repeated keys: refused as an initiator error."""
    good = text(Session.identity(_Named()))
    for data in (b"\0", b"=\0", b"=x\0", b"novalue\0", good + b"x", good[:-1], good + good, good + b"\xff\xfe=\x80\0", b"\0" * 8192, b"=" * 8192, b"a" * 8192, good + b"AuthMethod\0", good + b"MaxBurstLength=99999999999999999999\0", good + b"MaxBurstLength=-1\0", good + b"MaxBurstLength=0x\0", good + b"HeaderDigest=\0"):
        answer = first_step(stage, data)
        check(answer is None or isinstance(answer, wire.Pdu) or answer >> 8 == 2, f"{data[-40:]!r}: {answer}")
        if data in (b"\0", b"=\0", b"=x\0", b"novalue\0", good + good):
            check(not isinstance(answer, wire.Pdu) or answer.flags & 3 != 3, f"{data[-40:]!r} logged in")


class _Named:
    name, target = wire.NAME, TARGET


def chap_step(stage, pairs_of, user=ALICE, target=CHAP_TARGET, **options):
    """A CHAP login up to the response, which `pairs_of(challenge, session)` makes: None when it was accepted, else the status."""
    with Session(stage.port, target, timeout=5) as session:
        try:
            session.login_step(session.identity() | {"AuthMethod": "CHAP"}, 0)
            answer = wire.parse_text(session.login_step({"CHAP_A": 5}, 0).data)
            session.login_step(pairs_of(answer, session), 0, 1)
            return None
        except Refused as refusal:
            return refusal.status
        except Closed:
            return "closed"


def chap_responses_in_hex_of_every_length(stage):
    """CVE-2018-14633: only the digest itself, in its full length, is a response."""
    def respond(change):
        return lambda answer, _: {"CHAP_N": ALICE, "CHAP_R": change(Session.chap_response(answer, SECRET).hex())}

    check(chap_step(stage, respond(lambda digest: "0x" + digest)) is None, "the right response was refused")
    check(chap_step(stage, respond(lambda digest: "0X" + digest.upper())) is None, "the right response in capitals was refused")
    for length in [*range(0, 140), *range(140, 4097, 97), 4096, 8000]:
        if length != 32:
            for filler in ("0", "f"):
                status = chap_step(stage, respond(lambda digest: "0x" + (digest * 260)[:length] if filler == "f" else "0x" + digest[:length].ljust(length, "0")))
                check(status in (0x0200, 0x0201), f"{length} digits: {status}")
    for wrong in ("", "0x", "0", "x", "0y00", "0x" + "g" * 32, "0x-1", "0x" + "0" * 32, "0x" + "f" * 32, "17"):
        status = chap_step(stage, respond(lambda digest: wrong))
        check(status in (0x0200, 0x0201), f"{wrong!r}: {status}")
    check(chap_step(stage, respond(lambda digest: "0x00" + digest)) in (0x0200, 0x0201), "a longer response was accepted")


def chap_responses_in_base64_of_every_length(stage):
    """LIO 2026, Base64Oversize: the length is checked before anything is decoded."""
    def respond(change):
        return lambda answer, _: {"CHAP_N": ALICE, "CHAP_R": change(Session.chap_response(answer, SECRET))}

    def encode(data):
        return "0b" + base64.b64encode(data).decode()

    check(chap_step(stage, respond(encode)) is None, "the right response was refused")
    for length in [*range(0, 70), *range(70, 3000, 61), 5900]:
        if length != 16:
            status = chap_step(stage, respond(lambda digest: encode((digest * 400)[:length])))
            check(status in (0x0200, 0x0201), f"{length} bytes: {status}")
    for wrong in ("0b", "0b=", "0b====", "0bAAA", "0bA===", "0b" + "=" * 24, "0b" + "A" * 22 + "=A", "0b" + "*" * 24, "0b" + "A" * 21, "0b" + "A" * 7000):
        status = chap_step(stage, respond(lambda digest: wrong))
        check(status in (0x0200, 0x0201), f"{wrong[:30]!r}: {status}")


def chap_names_beginning_0x_and_0b_are_literal(stage):
    """HexName, Base64Name: CHAP_N is text, whatever it begins with."""
    for user in ("0x616c696365", "0b616c696365", "0xabc", "0bYWxpY2U="):
        status = chap_step(stage, lambda answer, _: {"CHAP_N": user, "CHAP_R": "0x" + Session.chap_response(answer, stage.secrets[user]).hex()})
        check(status is None, f"user {user} with its own secret: {status}")
        status = chap_step(stage, lambda answer, _: {"CHAP_N": user, "CHAP_R": "0x" + Session.chap_response(answer, SECRET).hex()})
        check(status == 0x0201, f"user {user} with the secret of the user it decodes to: {status}")
    for length in (0, 1, 255, 256, 1024, 4096):
        status = chap_step(stage, lambda answer, _: {"CHAP_N": "n" * length, "CHAP_R": "0x" + Session.chap_response(answer, SECRET).hex()})
        check(status in (0x0200, 0x0201), f"a user name of {length} bytes: {status}")


def chap_cannot_be_gone_round(stage):
    """spdk#3417: every way past the proof ends in a refusal."""
    check(first_step(stage, OPERATIONAL, target=CHAP_TARGET) == 0x0201, "the operational stage at once")
    check(first_step(stage, {}, target=CHAP_TARGET) == 0x0201, "the operational stage at once, without keys")
    for method in ("None", "KRB5", "SRP", "None,KRB5", "chap", "Reject"):
        answer = first_step(stage, {"AuthMethod": method}, csg=0, nsg=1, target=CHAP_TARGET)
        check(answer in (0x0200, 0x0201), f"AuthMethod={method}: {answer}")
    for nsg in (1, 3):
        with Session(stage.port, CHAP_TARGET, timeout=5) as session:
            try:
                pdu = session.login_step(session.identity() | {"AuthMethod": "CHAP"}, 0, nsg)
                check(not pdu.flags & 0x80, "the stage changed without a proof")
                pdu = session.login_step({"CHAP_A": 5}, 0, nsg)
                check(not pdu.flags & 0x80, "the stage changed without a proof")
                pdu = session.login_step({}, 0, nsg)
                check(not pdu.flags & 0x80, "the stage changed without a proof")
            except (Refused, Closed):
                pass
    for pairs in ({"CHAP_N": ALICE}, {"CHAP_R": "0x" + "00" * 16}, {"CHAP_A": 5, "CHAP_N": ALICE, "CHAP_R": "0x" + "00" * 16}):
        status = chap_step(stage, lambda *_: pairs)
        check(status in (0x0200, 0x0201, 0x0207), f"{pairs}: {status}")
    status = chap_step(stage, lambda answer, _: {"CHAP_N": "nobody", "CHAP_R": "0x" + Session.chap_response(answer, SECRET).hex()})
    check(status == 0x0201, f"an unknown user: {status}")
    with Session(stage.port, CHAP_TARGET, timeout=5) as session:
        session.login(chap=(ALICE, SECRET))
        session.ready()


def discovery_chap_is_enforced(stage):
    """spdk#3417: authentication of discovery that is set is also demanded."""
    stage.daemon.rpc("iscsi_set_discovery_auth", disable_chap=False, require_chap=True, chap_group=1)
    try:
        with Session(stage.port, timeout=5) as session:
            refused_with((0x0201,), session.login)
        with Session(stage.port, timeout=5) as session:
            refused_with((0x0201,), lambda: session.login(chap=(ALICE, "wrong wrong wrong")))
        with Session(stage.port, timeout=5) as session:
            check(session.login(chap=(ALICE, SECRET)).send_targets()[0], "no targets")
    finally:
        stage.daemon.rpc("iscsi_set_discovery_auth", disable_chap=True)
    with Session(stage.port, timeout=5) as session:
        session.login()


def challenges_never_repeat(stage):
    """CVE-2024-45751: no challenge is seen twice."""
    seen = set()
    for _ in range(200):
        with Session(stage.port, CHAP_TARGET, timeout=5) as session:
            session.login_step(session.identity() | {"AuthMethod": "CHAP"}, 0)
            answer = wire.parse_text(session.login_step({"CHAP_A": 5}, 0).data)
            check(len(answer["CHAP_C"]) >= 34, "a challenge shorter than 16 bytes")
            seen.add(answer["CHAP_C"])
    check(len(seen) == 200, f"{200 - len(seen)} challenges came again")


def the_own_challenge_is_not_answered(stage):
    """RFC 7143 §9.2.1: a target must not answer its own challenge."""
    def reflect(answer, _):
        proof = "0x" + Session.chap_response(answer, stage.secrets[MUTUAL]).hex()
        return {"CHAP_N": MUTUAL, "CHAP_R": proof, "CHAP_I": answer["CHAP_I"], "CHAP_C": answer["CHAP_C"]}

    def honest(answer, _):
        proof = "0x" + Session.chap_response(answer, stage.secrets[MUTUAL]).hex()
        return {"CHAP_N": MUTUAL, "CHAP_R": proof, "CHAP_I": 77, "CHAP_C": "0x" + "5a" * 16}

    check(chap_step(stage, honest) is None, "mutual authentication was refused")
    check(chap_step(stage, reflect) == 0x0201, "a reflected challenge was answered")
    for challenge in ("0x", "0x" + "aa" * 1025, "0b" + "A" * 5000, "x", ""):
        status = chap_step(stage, lambda answer, session: honest(answer, session) | {"CHAP_C": challenge})
        check(status in (0x0200, 0x0201), f"challenge {challenge[:20]!r}: {status}")


def nothing_but_login_before_login(stage):
    """spdk#3927, CVE-2011-0001: before the first Login Request the target drops the connection at once, and says nothing
    (RFC 7143 §4.2.3)."""
    for opcode in range(64):
        if opcode == wire.LOGIN:
            continue
        for first in (opcode, opcode | wire.IMMEDIATE, opcode | 0x80):
            with Connection(stage.port, timeout=5) as connection:
                connection.send_raw(header(first, wire.FINAL, 0, 0, 1, struct.pack(">III", wire.NO_TAG, 1, 1)))
                said = connection.wait_closed()
                check(not said, f"opcode {first:02x}h before login was answered: {said}")


def nothing_but_login_during_login(stage):
    """RFC 7143 §4.2.3: any other PDU in the login phase gets a Login reject 'invalid during login' (020Bh), then the end."""
    for opcode in range(64):
        if opcode == wire.LOGIN:
            continue
        with Session(stage.port, TARGET, timeout=5) as session:
            session.login_step(session.identity(), 1)
            session.send_raw(header(opcode, wire.FINAL, 0, 0, 1, struct.pack(">III", wire.NO_TAG, 1, 1)))
            said = session.wait_closed()
            status = [struct.unpack(">H", pdu.bhs[36:38])[0] for pdu in said if pdu.opcode == wire.LOGIN_RESPONSE]
            check(status == [0x020B] and len(said) == 1, f"opcode {opcode:02x}h during login: {said}")


def every_opcode_and_flag_before_login(stage):
    """CVE-2021-28361 and its kin: every opcode with every combination of flags, lengths and reserved bits ends the connection."""
    rng = random.Random(1)
    attempts = []
    for opcode in range(64):
        for flags in (0x00, 0x40, 0x80, 0xC0, 0xFF, 0x3F):
            attempts.append((opcode, flags, 0, 0, b""))
        attempts.append((opcode, 0x87, 0xFFFFFF, 0, b""))
        attempts.append((opcode, 0x87, 8193, 0, b"\0" * 8196))
        attempts.append((opcode, 0x87, 4, 255, b"\0" * 1024))
    attempts += [(wire.LOGIN | wire.IMMEDIATE, 0x87, 0, words, bytes(words * 4)) for words in range(1, 256)]
    for opcode, flags, length, words, rest in attempts:
        with Connection(stage.port, timeout=5) as connection:
            noise = bytes(rng.randrange(256) for _ in range(8)) if flags == 0xFF else b""
            bhs = bytearray(header(opcode, flags, length, 0, 1, noise, words))
            try:
                connection.send_raw(bytes(bhs) + rest)
                if opcode & 0x3F == wire.LOGIN and flags == wire.CONTINUE:
                    # Nothing wrong: half a text, of nothing.
                    check(connection.receive().opcode == wire.LOGIN_RESPONSE, "a login that begins with no text")
                    continue
                connection.wait_closed_or_login_refused()
            except Closed:
                pass


def login_headers_that_lie(stage):
    """Stages, versions, tags and identifiers that RFC 7143 §11.12 forbids are refused with class 2."""
    for csg, nsg in ((0, 0), (1, 1), (1, 0), (2, 3), (3, 3), (0, 2), (3, None), (2, None)):
        answer = first_step(stage, {}, csg=csg, nsg=nsg)
        check(answer is None or isinstance(answer, int) and answer >> 8 == 2, f"stage {csg} to {nsg}: {answer}")
    check(first_step(stage, {}, version=1) == 0x0205, "version 1")
    check(first_step(stage, {}, tsih=0xBEEF) == 0x020A, "a TSIH that does not exist")
    check(first_step(stage, {}, target="iqn.2026-01.io.pollux:none") == 0x0203, "a target that does not exist")
    answer = first_step(stage, [("TargetName", TARGET), ("SessionType", "Normal")])
    check(answer == 0x0207, f"no InitiatorName: {answer}")
    answer = first_step(stage, [("InitiatorName", wire.NAME), ("SessionType", "Normal")])
    check(answer == 0x0207, f"no TargetName: {answer}")
    answer = first_step(stage, {"SessionType": "Strange"})
    check(answer == 0x0209, f"a session type that does not exist: {answer}")
    changes = {
        "ISID": lambda session: setattr(session, "isid", b"\x80other"),
        "CID": lambda session: setattr(session, "cid", 99),
        "ITT": lambda session: None,
        "TSIH": lambda session: None,
    }
    for field, change in changes.items():
        with Session(stage.port, TARGET, timeout=5) as session:
            session.login_step(session.identity(), 1)
            change(session)
            options = {"ITT": {"itt": 8}, "TSIH": {"tsih": 9}}.get(field, {})
            refused_with((0x0200, 0x020A, None), lambda: session.login_step(OPERATIONAL, 1, 3, **options))
    with Session(stage.port, TARGET, timeout=5) as session:
        def endless():
            for _ in range(2000):
                session.login_step(session.identity() if session.exp_stat_sn == 0 else {}, 1)
        refused_with((0x0200, None), endless)


def logins_cut_at_every_byte(stage):
    """A peer that goes away after each byte of its login leaves nothing behind."""
    whole = whole_login(stage)
    for count in range(len(whole)):
        with Connection(stage.port, timeout=5) as connection:
            connection.send_raw(whole[:count])
    stage.all_gone()


def whole_login(stage):
    with Session(stage.port, TARGET, timeout=5) as session:
        data = text(session.identity() | OPERATIONAL)
        return session.login_header(1, 3, len(data)) + padded(data)


def resets_in_the_middle_of_a_login(stage):
    """CVE-2026-46135: a RST at any byte of a login, and right behind its end."""
    whole = whole_login(stage)
    rng = random.Random(2)
    for number in range(200):
        connection = Connection(stage.port, timeout=5)
        count = len(whole) if number % 4 == 0 else rng.randrange(len(whole))
        connection.send_raw(whole[:count])
        if number % 8 == 0:
            time.sleep(0.002)
        connection.reset()
    stage.all_gone()


def logins_byte_by_byte(stage):
    """A login that comes in single bytes is as good as any."""
    session = Session(stage.port, TARGET, timeout=5)
    data = text(session.identity() | OPERATIONAL)
    for byte in session.login_header(1, 3, len(data)) + padded(data):
        session.send_raw(bytes([byte]))
    check(session.login_answer().flags & 0x83 == 0x83, "not logged in")
    session.ready()
    session.close()


def slow_logins(stage):
    """Slow loris: half-open connections are limited for each address and in time; others log in meanwhile."""
    whole = whole_login(stage)
    attackers = []
    begun = time.monotonic()
    for _ in range(300):
        try:
            attackers.append(Connection(stage.port, source="127.0.0.2", timeout=2))
        except OSError:
            break
    alive = list(attackers)
    sent = 0
    longest = 0.0
    while alive and time.monotonic() - begun < 25:
        for connection in list(alive):
            try:
                connection.socket.setblocking(False)
                connection.socket.send(whole[sent % len(whole)].to_bytes())
                if not connection.socket.recv(1):
                    raise OSError
            except BlockingIOError:
                pass
            except OSError:
                alive.remove(connection)
        sent += 1
        started = time.monotonic()
        with Session(stage.port, TARGET, timeout=5) as session:
            session.login().ready()
        longest = max(longest, time.monotonic() - started)
        if sent == 3:
            check(len(alive) <= 256, f"{len(alive)} half-open connections of one address are kept")
        time.sleep(0.3)
    took = time.monotonic() - begun
    for connection in attackers:
        connection.close()
    check(not alive, f"{len(alive)} slow logins live after {took:.0f} s")
    check(took > 5, "logins are dropped too soon")
    check(longest < 3, f"a healthy login took {longest:.1f} s")


def a_flood_of_500_connections(stage):
    """500 connections that say nothing: the others go on, and all is as before when they are gone."""
    before = stage.descriptors()
    flood = []
    for _ in range(500):
        try:
            flood.append(Connection(stage.port, source="127.0.0.3", timeout=2))
        except OSError:
            break
    with Session(stage.port, TARGET, timeout=5) as session:
        session.login().ready()
    check(stage.descriptors() - before < 400, f"{stage.descriptors() - before} connections of one address are kept")
    for connection in flood:
        connection.close()
    stage.all_gone()
    stage.eventually(lambda: stage.descriptors() <= before + 8, "descriptors stay open")


def connections_that_come_and_go(stage):
    """2,000 connections opened and closed by four threads."""
    def storm(_):
        for number in range(500):
            connection = Connection(stage.port, timeout=5)
            connection.reset() if number % 2 else connection.close()

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(storm, range(4)))
    stage.all_gone()


def garbage(stage):
    """Bytes that are no PDUs: the connection ends, nothing else."""
    rng = random.Random(3)
    for number in range(200):
        with Connection(stage.port, timeout=5) as connection:
            data = rng.randbytes(rng.choice((48, 49, 100, 1000, 5000)))
            if number % 4 == 0:
                data = bytes([0x43]) + data[1:]
            try:
                connection.send_raw(data)
                connection.socket.shutdown(1)
                connection.wait_closed()
            except (Closed, OSError):
                pass


def other_protocols(stage):
    """HTTP, TLS, SSH and NVMe/TCP at the iSCSI portal are hung up on."""
    for data in (
        b"GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: a browser of some kind, with a long name\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(500),
        b"SSH-2.0-OpenSSH_9.9 and so on, longer than one header of forty-eight bytes\r\n",
        bytes([0, 0, 128, 0]) + struct.pack("<I", 128) + bytes(120),
        b"*1\r\n$4\r\nPING\r\n" * 10,
        b"\0" * 65536,
        b"\xff" * 65536,
    ):
        with Connection(stage.port, timeout=5) as connection:
            try:
                connection.send_raw(data)
                said = connection.wait_closed()
                check(not said, f"{data[:10]!r} was answered: {said}")
            except (Closed, Silent) as end:
                check(isinstance(end, Closed), f"{data[:10]!r}: the connection stays open")


TESTS = [
    login_keys_of_1_to_8192_bytes, login_values_of_1_to_8192_bytes, names_that_no_initiator_has, login_text_that_is_none,
    chap_responses_in_hex_of_every_length, chap_responses_in_base64_of_every_length, chap_names_beginning_0x_and_0b_are_literal,
    chap_cannot_be_gone_round, discovery_chap_is_enforced, challenges_never_repeat, the_own_challenge_is_not_answered,
    nothing_but_login_before_login, nothing_but_login_during_login, every_opcode_and_flag_before_login, login_headers_that_lie,
    logins_cut_at_every_byte, resets_in_the_middle_of_a_login, logins_byte_by_byte, slow_logins, a_flood_of_500_connections,
    connections_that_come_and_go, garbage, other_protocols,
]
