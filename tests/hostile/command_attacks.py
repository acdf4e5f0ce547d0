"""Attacks of SCSI commands, their data, and task management."""
import os
import random
import struct
import threading
import time

import initiator as wire
from initiator import FINAL, IMMEDIATE, NO_TAG, Closed, Rejected, Session, Silent, header, read16, write16
from pdu_attacks import settle
from stage import CHAP_TARGET, DISK, HEALTHY_DISK, SPOILED_DISK, TARGET, Skip, check

READ, WRITE = 0xC0, 0xA0


def begin_write(session, lba, blocks, length=0, data=b"", flags=WRITE, edtl=None):
    """Sends a WRITE (16); its tag."""
    itt = session.next_tag()
    edtl = blocks * 512 if edtl is None else edtl
    session.send(session.command_header(write16(lba, blocks), DISK, flags, edtl, itt=itt, length=length or len(data)), data)
    return itt


def data_out_that_lies(stage):
    """Unknown tags, wrong offsets and numbers, too much, too little, to the wrong task: rejected, ignored or the end of the
    session (RFC 7143 §11.7, §13.19); nothing of it reaches other blocks."""
    lba, blocks = 8000, 64
    old = b"\x51" * (blocks * 512)
    with stage.session() as session:
        session.write_blocks(lba, old * 3, DISK)
    new = b"\x52" * 32768
    lies = {
        "unknown target transfer tag": dict(ttt=0x0BADBAD0),
        "tag of nobody, all ones": dict(ttt=NO_TAG),
        "tag one off": dict(ttt_off=1),
        "unknown initiator task tag": dict(itt=0x7FFFFFF0),
        "offset too large": dict(offset=512),
        "offset beyond the write": dict(offset=1 << 20),
        "offset near 2^32": dict(offset=0xFFFFFE00),
        "DataSN 1 first": dict(data_sn=1),
        "DataSN 2^32-1": dict(data_sn=NO_TAG),
        "longer than the burst": dict(data=new + b"\x53" * 4096),
        "much longer than the burst": dict(data=b"\x53" * 262144),
        "F before the end": dict(data=new[:512]),
        "no F at the end": dict(final=False),
        "no data, no F, many times": dict(data=b"", final=False, times=300),
        "one byte": dict(data=b"\x53"),
        "another LUN": dict(lun=SPOILED_DISK),
        "twice": dict(times=2),
    }
    for name, lie in lies.items():
        with stage.session(timeout=4) as session:
            itt = begin_write(session, lba, blocks)
            r2t = session.take()
            check(r2t.opcode == wire.R2T and r2t.word(40) == 0 and r2t.word(44) == 32768, f"{name}: {r2t}")
            ttt = lie.get("ttt", r2t.ttt + lie.get("ttt_off", 0) & NO_TAG)
            try:
                for number in range(lie.get("times", 1)):
                    session.data_out(lie.get("itt", itt), ttt, lie.get("offset", 0), lie.get("data", new), lie.get("data_sn", number if "times" in lie and name != "twice" else 0), lie.get("final", True), lie.get("lun", DISK))
                said, alive = settle(session)
            except Closed:
                said, alive = [], False
            status = [pdu.bhs[3] for pdu in said if pdu.opcode == wire.RESPONSE]
            if name not in ("twice", "another LUN"):
                check(0 not in status, f"{name}: answered GOOD")
            if alive and "target transfer" in name:
                # An unknown task may be one that has just ended: its data is ignored.
                check(any(pdu.opcode == wire.REJECT for pdu in said), f"{name}: neither rejected nor closed: {said}")
        with stage.session() as session:
            back = session.read_blocks(lba, blocks * 3, DISK)
            check(back[32768:] == old[:] * 2, f"{name}: blocks beside the write changed")
            check(set(back[:32768]) <= {0x51, 0x52}, f"{name}: surplus data reached the medium")
            session.write_blocks(lba, old * 3, DISK)
    for times in range(3):
        with stage.session(timeout=4) as session:
            # Data-Out for tasks of others and for nobody, without any command.
            try:
                session.data_out(session.next_tag(), NO_TAG if times else 1, 0, new, 0, True, DISK)
                said, alive = settle(session)
                check(not alive or any(pdu.opcode == wire.REJECT for pdu in said) or times, f"data for nobody: {said}")
            except Closed:
                pass


def immediate_and_unsolicited_data_beyond_the_first_burst(stage):
    """RFC 7143 §13.14: more than FirstBurstLength is refused, and so is data with a command that has none."""
    lba = 9000
    with stage.session() as session:
        session.write_blocks(lba, b"\x61" * 131072, DISK)
    with stage.session(FirstBurstLength=4096, MaxBurstLength=65536) as session:
        first = int(session.keys["FirstBurstLength"])
        check(first <= 4096, f"FirstBurstLength={first}")

    def attempt(what, blocks, flags, length, cdb=None, edtl=None, **login):
        with stage.session(**({"FirstBurstLength": 4096, "MaxBurstLength": 65536} | login)) as session:
            try:
                itt = session.next_tag()
                edtl_ = blocks * 512 if edtl is None else edtl
                session.send(session.command_header(cdb or write16(lba, blocks), DISK, flags, edtl_, itt=itt, length=length), b"\x62" * length)
                said, _ = settle(session)
            except Closed:
                return
            check(not any(pdu.opcode == wire.RESPONSE and pdu.bhs[3] == 0 for pdu in said), f"{what}: answered GOOD")
        with stage.session() as session:
            check(session.read_blocks(lba, 256, DISK) == b"\x61" * 131072, f"{what}: the data was written")

    attempt("immediate data of 4,608 bytes", 64, WRITE, 4608)
    attempt("immediate data of 65,536 bytes", 128, WRITE, 65536)
    attempt("more data than expected", 1, WRITE, 1024)
    attempt("data with a READ", 8, READ, 4096, read16(lba, 8))
    attempt("data with a TEST UNIT READY", 0, FINAL, 512, bytes(6), 0)
    attempt("immediate data although ImmediateData=No", 8, WRITE, 4096, ImmediateData="No")
    attempt("unsolicited data announced although InitialR2T=Yes", 64, 0x20, 0, InitialR2T="Yes")
    with stage.session(FirstBurstLength=4096, MaxBurstLength=65536) as session:
        if session.keys.get("InitialR2T") == "No":
            try:
                itt = begin_write(session, lba, 64, flags=0x20)
                session.data_out(itt, NO_TAG, 0, b"\x63" * 8192, 0, True, DISK)
                said, _ = settle(session)
                check(not any(pdu.opcode == wire.RESPONSE and pdu.bhs[3] == 0 for pdu in said), "unsolicited data beyond FirstBurstLength: GOOD")
            except Closed:
                pass
    with stage.session() as session:
        check(b"\x62" not in session.read_blocks(lba, 256, DISK), "forbidden data was written")


def expected_lengths_of_every_kind(stage):
    """EDTL x direction for READ (16) and WRITE (16): residuals are right (RFC 7143 §11.4.5), and no byte beyond is touched."""
    lba, blocks = 10000, 8
    size = blocks * 512
    old = os.urandom(3 * size)
    with stage.session() as session:
        session.write_blocks(lba - blocks, old, DISK)
    lengths = {"zero": 0, "less": 1024, "odd": 1000, "equal": size, "more": size + 1024, "all": 0xFFFFFFFF}
    for name, edtl in lengths.items():
        for direction, flags in (("none", FINAL), ("read", READ), ("write", WRITE), ("both", 0xE0)):
            for kind in ("READ", "WRITE"):
                what = f"{kind} with EDTL {name} and direction {direction}"
                with stage.session(timeout=6) as session:
                    new = os.urandom(size)
                    cdb = read16(lba, blocks) if kind == "READ" else write16(lba, blocks)
                    try:
                        result = session.command(cdb, DISK, edtl=edtl, flags=flags, write=new if kind == "WRITE" else bytes(size))
                    except (Rejected, Closed):
                        # Only what the standard calls nonsense may be refused whole.
                        check(direction in ("none", "both"), f"{what}: refused")
                        continue
                    except Silent:
                        raise AssertionError(f"{what}: no answer") from None
                    good = result.status == 0
                    if (kind, direction) in (("READ", "read"), ("WRITE", "write")):
                        check(good or name == "odd" or kind == "WRITE" and edtl < size, f"{what}: status {result.status:02x}h, sense {result.sense.hex()}")
                        if good:
                            moved, short = min(edtl, size), edtl - size
                            check(result.overflow == (short < 0) and result.underflow == (short > 0), f"{what}: O {result.overflow}, U {result.underflow}")
                            check(result.residual == abs(short) or short == 0, f"{what}: residual {result.residual}, not {abs(short)}")
                            if kind == "READ":
                                check(result.data == old[size : size + moved], f"{what}: wrong data")
                    elif good and direction != "both":
                        check(result.overflow or result.underflow, f"{what}: GOOD without a residual, although nothing can move")
                        check(not result.data, f"{what}: data in the wrong direction")
                with stage.session() as session:
                    back = session.read_blocks(lba - blocks, blocks * 3, DISK)
                    check(back[:size] == old[:size] and back[2 * size :] == old[2 * size :], f"{what}: blocks beside it changed")
                    if kind == "WRITE" and direction in ("write", "both") and back[size : 2 * size] != old[size : 2 * size]:
                        moved = min(edtl, size)
                        whole = moved - moved % 512
                        check(back[size : size + whole] == new[:whole], f"{what}: other data than sent was written")
                        check(back[size + moved : 2 * size] == old[size + moved : 2 * size], f"{what}: blocks beyond the data were written")
                    else:
                        check(back[size : 2 * size] == old[size : 2 * size], f"{what}: the medium changed")
                    session.write_blocks(lba, old[size : 2 * size], DISK)


def duplicate_initiator_task_tags(stage):
    """A second command with the tag of one that is under way is rejected; the first one is not disturbed."""
    lba = 11000
    with stage.session() as session:
        itt = begin_write(session, lba, 16)
        r2t = session.take()
        session.send(session.command_header(read16(0, 8), DISK, READ, 4096, itt=itt))
        said, alive = settle(session)
        check(alive and said and said[0].opcode == wire.REJECT, f"{said}, alive {alive}")
        check(said[0].bhs[2] in (0x04, 0x07), f"Reject reason {said[0].bhs[2]:02x}h")
        session.answer_r2t(r2t, b"\x71" * 8192, DISK)
        check(session.collect(itt).status == 0, "the first command")
        check(session.read_blocks(lba, 16, DISK) == b"\x71" * 8192, "the data of the first command")
    with stage.session() as session:
        session.send(session.command_header(bytes(6), DISK, itt=NO_TAG))
        said, alive = settle(session)
        check(not alive or said and said[0].opcode == wire.REJECT, f"a command with the reserved tag: {said}")


def aborts_of_unknown_and_foreign_tags(stage):
    """ABORT TASK reaches only tasks of its own session; every function code has an answer."""
    lba = 11100
    with stage.session() as owner, stage.session(name="iqn.2026-01.io.pollux:thief") as thief:
        itt = begin_write(owner, lba, 16)
        r2t = owner.take()
        for tag in (itt, 0, 1, 0x7FFFFFFF, NO_TAG, *range(0x10, 0x60)):
            try:
                response = thief.tmf(1, DISK, tag, thief.cmd_sn - 1 & NO_TAG)
                check(response in (0, 1, 255), f"ABORT TASK of {tag:x}h: response {response}")
            except Rejected:
                pass
        check(thief.tmf(2, DISK) == 0, "ABORT TASK SET")
        for lun in (77, 0x3FFF):
            check(thief.tmf(5, lun) in (2, 255), f"LOGICAL UNIT RESET of LUN {lun}, which does not exist")
        owner.answer_r2t(r2t, b"\x72" * 8192, DISK)
        check(owner.collect(itt).status == 0, "somebody else's ABORT TASK took a command away")
        check(owner.read_blocks(lba, 16, DISK) == b"\x72" * 8192, "the data of the command")
        for function in (0, 3, 8, *range(9, 128)):
            try:
                response = thief.tmf(function, DISK, 5)
                check(function in (3, 9, 10, 11, 12) or response in (4, 5, 255), f"function {function}: response {response}")
            except Rejected:
                pass
            except Closed:
                check(function == 11, f"function {function} closed the connection")
                thief = stage.session(name="iqn.2026-01.io.pollux:thief")


def aborts_of_own_commands_under_way(stage):
    """300 writes aborted at every stage of their data: the answer comes, and nothing is written after it."""
    lba = 11200
    rng = random.Random(7)
    session = stage.session()
    session.write_blocks(lba, b"\x73" * 65536, DISK)
    for number in range(300):
        if session is None:
            session = stage.session()
        itt = begin_write(session, lba, 128)
        sent_sn = session.cmd_sn - 1 & NO_TAG
        way, r2t = number % 3, None
        sent = 0
        if way:
            r2t = session.take()
            if way == 2:
                sent = rng.randrange(512, 32768, 512)
                session.data_out(itt, r2t.ttt, 0, b"\x74" * sent, 0, False, DISK)
        tag = session.next_tag()
        session.send(header(wire.TMF | IMMEDIATE, FINAL | 1, 0, DISK, tag, struct.pack(">I", itt) + session.numbers(True) + struct.pack(">I", sent_sn)))
        try:
            if r2t and number % 60:
                # A target transfer tag is answered even so (RFC 7143 §4.2.3.3); who does not makes the target wait.
                session.data_out(itt, r2t.ttt, sent, b"\x74" * (r2t.word(44) - sent), way - 1, True, DISK)
            while True:
                pdu = session.take()
                if pdu.opcode == wire.TMF_RESPONSE:
                    check(pdu.itt == tag and pdu.bhs[2] in (0, 1), f"{pdu}")
                    break
                if pdu.opcode == wire.R2T and way == 0:
                    session.answer_r2t(pdu, b"\x74" * 65536, DISK)
        except Closed:
            session.close()
            session = None
    if session:
        session.close()
    with stage.session() as session:
        session.write_blocks(lba, b"\x75" * 65536, DISK)
        time.sleep(0.2)
        check(session.read_blocks(lba, 128, DISK) == b"\x75" * 65536, "an aborted write came after its abort")


def a_thousand_resets(stage):
    """1,000 LOGICAL UNIT RESETs and CLEAR TASK SETs of the healthy session's unit: it goes on by trying again."""
    with stage.session() as session:
        for number in range(1000):
            function = (5, 5, 4, 2, 6)[number % 5] if number < 50 else 5
            response = session.tmf(function, HEALTHY_DISK)
            check(response in (0, 5), f"function {function}: response {response}")
        session.ready(HEALTHY_DISK)
    before = stage.healthy.check()
    check(not before["errors"], "".join(before["errors"][:1]))
    time.sleep(1)
    after = stage.healthy.check()
    check(after["done"] > 5, f"the healthy session does not get on after the resets: {after}")


a_thousand_resets.takes_commands_away = True


def many_resets_at_once(stage):
    """64 task management functions sent without waiting: each is answered or rejected, once."""
    with stage.session(timeout=15) as session:
        tags = set()
        for number in range(64):
            tag = session.next_tag()
            tags.add(tag)
            session.send(header(wire.TMF | IMMEDIATE, FINAL | (5, 2, 4, 1)[number % 4], 0, SPOILED_DISK, tag, struct.pack(">I", 3) + session.numbers(True)))
        while tags:
            pdu = session.take()
            tag = struct.unpack(">I", pdu.data[16:20])[0] if pdu.opcode == wire.REJECT else pdu.itt
            check(tag in tags, f"an answer to nothing: {pdu}")
            tags.discard(tag)
        session.ready(SPOILED_DISK)


POISON = b"POISON-0123456789-secret-of-another-session"


def poison(stage, session):
    """Fills the daemon's buffers with something that must not come out again."""
    bulk = (POISON * (262144 // len(POISON) + 1))[:262144]
    for number in range(24):
        session.write_blocks(20000, bulk, DISK, immediate_data=65536 if number % 2 else 0)
        session.read_blocks(20000, 512, DISK)
    session.write_blocks(20000, bulk[:4096], DISK)
    for _ in range(4):
        session.nop(bulk[:200000])


def parameter_data_never_shows_old_memory(stage):
    """CVE-2024-8178: allocation lengths beyond the data return the data and nothing else, for every page there is."""
    with stage.session() as session:
        poison(stage, session)
        commands = [(bytes([0x12, 0, 0]) + struct.pack(">H", 65535) + b"\0", 65535)]
        commands += [(bytes([0x12, 1, page]) + struct.pack(">H", 65535) + b"\0", 65535) for page in range(256)]
        commands += [(bytes([0x1A, 0, page, sub, 255, 0]), 255) for page in range(256) for sub in (0, 255)]
        commands += [(bytes([0x5A, 0, page, sub, 0, 0, 0]) + struct.pack(">H", 65535) + b"\0", 65535) for page in range(256) for sub in (0, 1, 255)]
        commands += [(bytes([0x4D, 0, 0x40 | page, sub, 0, 0, 0]) + struct.pack(">H", 65535) + b"\0", 65535) for page in range(64) for sub in (0, 255)]
        for length in (1 << 16, 1 << 18, 0xFFFFFFFF):
            commands += [(bytes([0xA0, 0, select, 0, 0, 0]) + struct.pack(">I", length) + b"\0\0", length) for select in (0, 1, 2, 0x10, 0x11, 0x12)]
            commands += [(bytes([0x9E, action]) + bytes(8) + struct.pack(">I", length) + b"\0\0", length) for action in range(32)]
            commands += [(bytes([0xA3, action, options]) + bytes(3) + struct.pack(">I", length) + b"\0\0", length) for action in range(32) for options in (0, 1, 0x81)]
        commands += [(bytes([0x5E, action]) + bytes(5) + struct.pack(">H", 65535) + b"\0", 65535) for action in range(32)]
        commands += [(bytes([0x84, action]) + bytes(8) + struct.pack(">I", 65535) + b"\0\0", 65535) for action in range(32)]
        commands += [(bytes([0x3C, mode, 0, 0, 0, 0, 0, 255, 255, 0]), 65535) for mode in range(32)]
        commands += [(bytes([0x03, descriptor, 0, 0, 255, 0]), 255) for descriptor in (0, 1)]
        commands += [(bytes([0x25]) + bytes(9), 65536), (bytes([0x37, 0, 0x1F, 0, 0, 0, 0, 255, 255, 0]), 65535), (bytes([0xB7, 0x1F]) + bytes(4) + struct.pack(">I", 65535) + b"\0\0", 65535)]
        for cdb, length in commands:
            try:
                result = session.command(cdb, DISK, read=length)
            except Rejected:
                continue
            check(b"POISON" not in result.data and b"secret" not in result.data, f"CDB {cdb.hex()} returns old memory: {result.data[:200]!r}")
            check(b"POISON" not in result.sense, f"sense of CDB {cdb.hex()} shows old memory")
            check(len(result.data) <= length, f"CDB {cdb.hex()}: {len(result.data)} bytes for {length}")
            if result.status == 0 and result.underflow and length < 1 << 18:
                check(result.residual == length - len(result.data), f"CDB {cdb.hex()}: residual {result.residual} with {len(result.data)} bytes of {length}")
        for data in (b"SendTargets=\0", b"X-com.example=1\0"):
            check(b"POISON" not in session.text_request(data).data, "a text response shows old memory")
    # And before anybody has logged in.
    with Session(stage.port, TARGET, timeout=5) as session:
        pdu = session.login_step(session.identity() | {"X-com.example.key": "1"}, 1)
        check(b"POISON" not in pdu.data, "a login response shows old memory")


def every_operation_code(stage):
    """Every CDB opcode x service actions, with a read, a write and no data, on a disk to be spoiled: always an answer."""
    session = None
    for opcode in range(256):
        for action in (0, 1, 0x1F, 0xFF):
            for direction in (FINAL, READ, WRITE):
                for filler in (0x00, 0xFF):
                    if opcode == 0x1B:  # START STOP UNIT: a stopped unit would answer nothing else
                        continue
                    if session is None:
                        session = stage.session(timeout=8)
                    cdb = bytes([opcode, action]) + bytes([filler]) * 14
                    payload = b"\xab" * 4096
                    edtl = 0 if direction == FINAL else 4096
                    try:
                        session.command(cdb, SPOILED_DISK, edtl=edtl, flags=direction, write=payload)
                    except Rejected:
                        pass
                    except Silent:
                        raise AssertionError(f"CDB {cdb.hex()} flags {direction:02x}h: no answer") from None
                    except Closed:
                        raise AssertionError(f"CDB {cdb.hex()} flags {direction:02x}h: the connection was closed") from None
    session.tmf(5, SPOILED_DISK)
    session.command(bytes([0x1B, 0, 0, 0, 1, 0]), SPOILED_DISK)
    session.command(bytes([0x57]) + bytes(9), SPOILED_DISK)
    session.close()


def parameter_lists_that_lie(stage):
    """MODE SELECT, UNMAP, PERSISTENT RESERVE OUT, WRITE BUFFER, EXTENDED COPY with random lists of every length, cut lists
    and huge counts (CVE-2026-72083, -72084)."""
    rng = random.Random(8)
    session = stage.session(timeout=8)
    lists = [b"", b"\0" * 24, b"\xff" * 24, b"\xff" * 4096, b"\0" * 65536, b"iqn.2026-01.x" * 300, b"a" * 65535]
    lists += [rng.randbytes(rng.randrange(1, 300)) for _ in range(20)]
    # SPEC_I_PT: a TransportID list whose length goes from nothing to 64 KiB, names without NUL.
    for length in (0, 1, 4, 24, 255, 4096, 4097, 65000):
        name = b"iqn." + b"n" * max(0, length - 8)
        for told in (length, length + 1, 0xFFFF, 0xFFFFFFFF):
            lists.append(bytes(8) + struct.pack(">Q", 1) + bytes(4) + b"\x08\0\0\0" + struct.pack(">I", told) + (b"\x05\0" + struct.pack(">H", max(0, length - 4) & 0xFFFF) + name)[:length])
    for data in lists:
        size = len(data)
        for cdb in (
            bytes([0x15, 0x10, 0, 0, size & 0xFF, 0]), bytes([0x55, 0x10] + [0] * 5) + struct.pack(">H", size & 0xFFFF) + b"\0",
            bytes([0x42] + [0] * 6) + struct.pack(">H", size & 0xFFFF) + b"\0", bytes([0x3B, 2, 0, 0, 0, 0]) + struct.pack(">I", size)[1:] + b"\0",
            *(bytes([0x5F, action, 0]) + bytes(2) + struct.pack(">I", size) + b"\0" for action in range(8)),
            *(bytes([0x83, action]) + bytes(8) + struct.pack(">I", size) + b"\0\0" for action in (0, 1, 0x10)),
        ):
            try:
                session.command(cdb, SPOILED_DISK, write=data, edtl=size, flags=WRITE if data else FINAL, immediate_data=size % 2 * 512)
            except Rejected:
                pass
    session.command(bytes([0x5F, 6, 0, 0, 0, 0, 0, 0, 24, 0]), SPOILED_DISK, write=bytes(24))
    session.tmf(5, SPOILED_DISK)
    session.close()


def third_party_copy_reaches_no_foreign_unit(stage):
    """CVE-2020-28374: EXTENDED COPY by designator reaches no unit that this nexus may not see."""
    alice = ("alice", stage.secrets["alice"])
    with Session(stage.port, CHAP_TARGET) as victim:
        victim.login(chap=alice).ready()
        before = b"\x99" * 4096
        victim.write_blocks(0, before)
        page = victim.good(bytes([0x12, 1, 0x83, 4, 0, 0]), read=1024).data[4:]
        with stage.session() as session:
            at = 0
            while at + 4 <= len(page):
                designator = page[at : at + 4 + page[at + 3]]
                if designator[1] & 0x30 == 0 and len(designator) <= 24:
                    descriptor = (b"\xe4\0\0\0" + designator).ljust(28, b"\0") + b"\0\0\x02\0"
                    segment = b"\x02\0\0\x18\0\0\0\0\0\0" + struct.pack(">H", 8) + struct.pack(">QQ", 0, 0)
                    data = struct.pack(">BBHIII", 0, 0, 32, 0, len(segment), 0) + descriptor + segment
                    result = session.command(bytes([0x83, 0]) + bytes(8) + struct.pack(">I", len(data)) + b"\0\0", DISK, write=data)
                    check(result.status != 0, "a copy with a foreign unit succeeded")
                at += len(designator)
        check(victim.read_blocks(0, 8) == before, "a foreign unit was written")


def many_registrants(stage):
    """CVE-2025-57275: 40 registrants, with and without APTPL; all are there, then all are gone."""
    sessions = []
    try:
        for number in range(40):
            session = stage.session(name=f"iqn.2026-01.io.pollux:registrant{number}", timeout=8)
            sessions.append(session)
            parameters = bytes(8) + struct.pack(">Q", number + 1) + bytes(4) + bytes(4)
            result = session.command(bytes([0x5F, 6, 0, 0, 0, 0, 0, 0, 24, 0]), SPOILED_DISK, write=parameters)
            if number == 0 and result.status == 2 and result.sense[12:13] == b"\x20":
                raise Skip("the target has no PERSISTENT RESERVE OUT")
            check(result.status == 0, f"registrant {number}: status {result.status:02x}h, sense {result.sense.hex()}")
            aptpl = bytes(8) + struct.pack(">Q", number + 1) + bytes(4) + b"\x01\0\0\0"
            session.command(bytes([0x5F, 6, 0, 0, 0, 0, 0, 0, 24, 0]), SPOILED_DISK, write=aptpl)
        keys = sessions[0].good(bytes([0x5E, 0, 0, 0, 0, 0, 0, 4, 0, 0]), SPOILED_DISK, read=1024).data
        check(struct.unpack(">I", keys[4:8])[0] == 320, f"{keys[:16].hex()}")
        sessions[7].good(bytes([0x5F, 3, 0, 0, 0, 0, 0, 0, 24, 0]), SPOILED_DISK, write=struct.pack(">Q", 8) + bytes(16))
        for session in sessions:
            keys = session.good(bytes([0x5E, 0, 0, 0, 0, 0, 0, 4, 0, 0]), SPOILED_DISK, read=1024).data
            check(struct.unpack(">I", keys[4:8])[0] == 0, "keys after CLEAR")
    finally:
        for session in sessions:
            session.close()
    stage.all_gone()


def queues_beyond_their_depth(stage):
    """Four sessions that send 400 commands each without a look at MaxCmdSN: ignored or answered, never wrong."""
    def flood(number, failures):
        try:
            with stage.session(name=f"iqn.2026-01.io.pollux:greedy{number}", timeout=5) as session:
                session.write_blocks(24000 + number * 8, bytes([number + 1]) * 4096, DISK)
                tags = {}
                for _ in range(400):
                    bhs = session.command_header(read16(24000 + number * 8, 8), DISK, READ, 4096)
                    tags[struct.unpack(">I", bhs[16:20])[0]] = True
                    session.send(bhs)
                try:
                    while tags:
                        pdu = session.take(1)
                        if pdu.opcode == wire.REJECT:
                            continue
                        if pdu.opcode == wire.DATA_IN and pdu.data != bytes([number + 1]) * 4096:
                            failures.append("data of somebody else")
                        if pdu.opcode == wire.RESPONSE or pdu.flags & 1:
                            if tags.pop(pdu.itt, None) is None:
                                failures.append("two answers to one command")
                except (Silent, Closed):
                    pass
        except (Closed, Silent):
            pass
        except Exception as error:  # of a thread: told to the test below
            failures.append(repr(error))

    failures = []
    threads = [threading.Thread(target=flood, args=(number, failures)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    check(not failures, f"{len(failures)} failures, the first: {failures[:1]}")
    stage.all_gone()


def connections_cut_under_commands(stage):
    """CVE-2026-23193: 150 sessions cut by RST with reads and half-written writes under way."""
    rng = random.Random(9)
    for number in range(150):
        session = stage.session(timeout=5)
        for _ in range(rng.randrange(1, 12)):
            if rng.randrange(2):
                session.send(session.command_header(read16(0, 512), DISK, READ, 262144))
            else:
                itt = session.next_tag()
                session.send(session.command_header(write16(26000, 64), DISK, WRITE, 32768, itt=itt, length=1024), b"\x81" * 1024)
        if number % 3 == 0:
            session.send_raw(session.command_header(write16(26000, 64), DISK, WRITE, 32768, length=32768) + b"\x82" * rng.randrange(32768))
        session.reset() if number % 2 else session.close()
    stage.all_gone()


TESTS = [
    data_out_that_lies, immediate_and_unsolicited_data_beyond_the_first_burst, expected_lengths_of_every_kind,
    duplicate_initiator_task_tags, aborts_of_unknown_and_foreign_tags, aborts_of_own_commands_under_way, a_thousand_resets,
    many_resets_at_once, parameter_data_never_shows_old_memory, every_operation_code, parameter_lists_that_lie,
    third_party_copy_reaches_no_foreign_unit, many_registrants, queues_beyond_their_depth, connections_cut_under_commands,
]
