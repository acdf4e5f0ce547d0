"""A small iSCSI initiator (RFC 7143) that can also say what no initiator should."""
import base64
import collections
import hashlib
import os
import socket
import struct
import time

NOP_OUT, COMMAND, TMF, LOGIN, TEXT, DATA_OUT, LOGOUT, SNACK = 0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x10
NOP_IN, RESPONSE, TMF_RESPONSE, LOGIN_RESPONSE, TEXT_RESPONSE, DATA_IN = 0x20, 0x21, 0x22, 0x23, 0x24, 0x25
LOGOUT_RESPONSE, R2T, ASYNC, REJECT = 0x26, 0x31, 0x32, 0x3F
IMMEDIATE, FINAL, CONTINUE = 0x40, 0x80, 0x40
NO_TAG = 0xFFFFFFFF
NAME = "iqn.2026-01.io.pollux:initiator"


class Closed(Exception):
    """The target closed the connection."""


class Silent(Exception):
    """The target said nothing in time."""


class Refused(Exception):
    """A login was refused with this status."""

    def __init__(self, status):
        super().__init__(f"login status {status:04x}h")
        self.status = status


def crc32c_table():
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


TABLE = crc32c_table()


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ TABLE[(crc ^ byte) & 0xFF]
    return struct.pack("<I", crc ^ 0xFFFFFFFF)


def padded(data):
    return bytes(data) + bytes(-len(data) % 4)


def header(opcode, flags=0, data_length=0, lun=0, itt=0, tail=b"", ahs_words=0):
    """A basic header segment; `tail` is bytes 20 to 47."""
    head = struct.pack(">BBH", opcode, flags, 0) + struct.pack(">I", ahs_words << 24 | data_length)
    return head + struct.pack(">H6xI", lun if lun < 256 else 0x4000 | lun, itt) + tail[:28].ljust(28, b"\0")


def text(pairs):
    """Key=value pairs as text of a login or text request; a string stays as it is."""
    items = pairs.items() if isinstance(pairs, dict) else pairs
    return b"".join((item if isinstance(item, str) else f"{item[0]}={item[1]}").encode("latin-1") + b"\0" for item in items)


def parse_text(data):
    return dict(item.split("=", 1) for item in data.decode("latin-1").split("\0") if "=" in item)


class Pdu:
    """A PDU from the target."""

    def __init__(self, bhs, ahs, data):
        self.bhs, self.ahs, self.data = bhs, ahs, data
        self.opcode, self.flags = bhs[0] & 0x3F, bhs[1]
        self.itt, self.ttt = struct.unpack(">II", bhs[16:24])
        self.stat_sn, self.exp_cmd_sn, self.max_cmd_sn = struct.unpack(">III", bhs[24:36])

    def word(self, at):
        return struct.unpack(">I", self.bhs[at : at + 4])[0]

    def __repr__(self):
        return f"Pdu(opcode={self.opcode:02x}h, {self.bhs.hex()}, {len(self.data)} bytes)"


Result = collections.namedtuple("Result", "status sense data overflow underflow residual response")


class Connection:
    """A TCP connection that sends and receives PDUs."""

    # How many there were, for the report of a test.
    opened = received = 0

    def __init__(self, port, source=None, receive_buffer=None, timeout=10):
        Connection.opened += 1
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if source:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.socket.bind((source, 0))
        self.socket.settimeout(timeout)
        try:
            self.socket.connect(("127.0.0.1", port))
        except OSError:
            self.socket.close()
            raise
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.header_digest = self.data_digest = False
        self.timeout = timeout
        self.buffer = bytearray()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.socket.close()

    def reset(self):
        """Closes with a RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def send_raw(self, data):
        try:
            self.socket.sendall(data)
        except TimeoutError:
            raise Silent("the target does not read") from None
        except OSError:
            raise Closed from None

    def frame(self, bhs, data=b"", ahs=b"", bad_data_digest=False):
        out = bytes(bhs) + ahs
        if self.header_digest:
            out += crc32c(out)
        if data:
            body = padded(data)
            out += body
            if self.data_digest:
                digest = crc32c(body)
                out += bytes([digest[0] ^ 1]) + digest[1:] if bad_data_digest else digest
        return out

    def send(self, bhs, data=b"", ahs=b"", **options):
        self.send_raw(self.frame(bhs, data, ahs, **options))

    def read(self, count, deadline):
        while len(self.buffer) < count:
            left = deadline - time.monotonic()
            if left <= 0:
                raise Silent
            self.socket.settimeout(left)
            try:
                part = self.socket.recv(262144)
            except TimeoutError:
                raise Silent from None
            except OSError:
                raise Closed from None
            finally:
                try:
                    self.socket.settimeout(self.timeout)
                except OSError:
                    pass
            if not part:
                raise Closed
            self.buffer += part
        out = bytes(self.buffer[:count])
        del self.buffer[:count]
        return out

    def receive(self, timeout=None):
        """The next PDU."""
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        bhs = self.read(48, deadline)
        # What has begun must also end.
        deadline = max(deadline, time.monotonic() + 5)
        ahs = self.read(bhs[4] * 4, deadline)
        if self.header_digest:
            assert self.read(4, deadline) == crc32c(bhs + ahs), "the target's header digest is wrong"
        length = int.from_bytes(bhs[5:8], "big")
        data = self.read(length + -length % 4, deadline)
        if self.data_digest and length:
            assert self.read(4, deadline) == crc32c(data), "the target's data digest is wrong"
        Connection.received += 1
        return Pdu(bhs, ahs, data[:length])

    def wait_closed(self, timeout=5):
        """Everything until the target closes: the PDUs before it. Raises Silent when it does not."""
        found, deadline = [], time.monotonic() + timeout
        while True:
            try:
                found.append(self.receive(max(0.001, deadline - time.monotonic())))
            except Closed:
                return found

    def wait_closed_or_login_refused(self, timeout=5):
        """The target closes; on the way there may be login refusals, and nothing else."""
        for pdu in self.wait_closed(timeout):
            assert pdu.opcode == LOGIN_RESPONSE and pdu.bhs[36] != 0, f"answered before login: {pdu}"


class Session(Connection):
    """One session of one connection."""

    def __init__(self, port, target=None, name=NAME, isid=None, source=None, receive_buffer=None, timeout=10):
        super().__init__(port, source, receive_buffer, timeout)
        self.target, self.name = target, name
        self.isid = b"\x80" + os.urandom(5) if isid is None else isid
        self.cmd_sn, self.exp_stat_sn, self.max_cmd_sn = 1, 0, 1
        self.tag, self.tsih, self.cid = 0x10, 0, 1
        self.keys, self.asyncs, self.unit_attentions, self.lost = {}, [], 0, 0

    # Login.

    def login_header(self, csg, nsg=None, length=0, continue_=False, itt=7, version=0, tsih=0):
        flags = csg << 2 | (0 if nsg is None else 0x80 | nsg) | (0x40 if continue_ else 0)
        head = struct.pack(">BBBBI", LOGIN | IMMEDIATE, flags, version, version, length) + self.isid + struct.pack(">HI", tsih, itt)
        return head + struct.pack(">HHII16x", self.cid, 0, self.cmd_sn, self.exp_stat_sn)

    def login_step(self, pairs, csg, nsg=None, **options):
        """One login request and its response; a refusal raises."""
        data = pairs if isinstance(pairs, bytes) else text(pairs)
        self.send_raw(self.login_header(csg, nsg, len(data), **options) + padded(data))
        return self.login_answer()

    def login_answer(self):
        pdu = self.receive()
        assert pdu.opcode == LOGIN_RESPONSE, f"not a Login Response: {pdu}"
        status = struct.unpack(">H", pdu.bhs[36:38])[0]
        if status:
            raise Refused(status)
        self.exp_stat_sn = pdu.stat_sn + 1 & NO_TAG
        self.max_cmd_sn = pdu.max_cmd_sn
        self.tsih = struct.unpack(">H", pdu.bhs[14:16])[0]
        self.keys.update(parse_text(pdu.data))
        return pdu

    def identity(self):
        pairs = {"InitiatorName": self.name}
        if self.target:
            pairs |= {"SessionType": "Normal", "TargetName": self.target}
        else:
            pairs |= {"SessionType": "Discovery"}
        return pairs

    def login(self, chap=None, digests=False, algorithm=hashlib.md5, number=5, base64_=False, **operational):
        pairs = self.identity()
        if chap:
            user, secret = chap
            self.login_step(pairs | {"AuthMethod": "CHAP"}, 0)
            answer = parse_text(self.login_step({"CHAP_A": number}, 0).data)
            response = self.chap_response(answer, secret, algorithm)
            encoded = "0b" + base64.b64encode(response).decode() if base64_ else "0x" + response.hex()
            self.login_step({"CHAP_N": user, "CHAP_R": encoded}, 0, 1)
            pairs = {}
        offer = {
            "HeaderDigest": "CRC32C" if digests else "None", "DataDigest": "CRC32C" if digests else "None",
            "InitialR2T": "No", "ImmediateData": "Yes", "MaxRecvDataSegmentLength": 262144, "MaxBurstLength": 262144,
            "FirstBurstLength": 65536, "MaxOutstandingR2T": 1, "ErrorRecoveryLevel": 0, "DefaultTime2Wait": 2, "DefaultTime2Retain": 0,
        }
        if not self.target:
            offer = {key: offer[key] for key in ("HeaderDigest", "DataDigest", "MaxRecvDataSegmentLength")}
        offer |= operational
        pairs |= offer
        for _ in range(8):
            pdu = self.login_step(pairs, 1, 3)
            if pdu.flags & 0x83 == 0x83:
                break
            pairs = {}
        else:
            raise AssertionError("the login does not end")
        self.header_digest = self.keys.get("HeaderDigest") == "CRC32C"
        self.data_digest = self.keys.get("DataDigest") == "CRC32C"
        return self

    @staticmethod
    def chap_response(answer, secret, algorithm=hashlib.md5):
        challenge = answer["CHAP_C"]
        raw = bytes.fromhex(challenge[2:]) if challenge[:2].lower() == "0x" else base64.b64decode(challenge[2:])
        return algorithm(bytes([int(answer["CHAP_I"], 0)]) + secret.encode() + raw).digest()

    # Full feature phase.

    def next_tag(self):
        self.tag = self.tag + 1 & 0x7FFFFFFF
        return self.tag

    def numbers(self, immediate=False, cmd_sn=None):
        """CmdSN and ExpStatSN, bytes 24 to 31; takes a CmdSN when the request is not immediate."""
        packed = struct.pack(">II", self.cmd_sn if cmd_sn is None else cmd_sn, self.exp_stat_sn)
        if not immediate and cmd_sn is None:
            self.cmd_sn = self.cmd_sn + 1 & NO_TAG
        return packed

    def command_header(self, cdb, lun=0, flags=FINAL, edtl=0, itt=None, length=0, immediate=False, cmd_sn=None, ahs_words=0):
        itt = self.next_tag() if itt is None else itt
        tail = struct.pack(">I", edtl & NO_TAG) + self.numbers(immediate, cmd_sn) + bytes(cdb).ljust(16, b"\0")
        return header(COMMAND | (IMMEDIATE if immediate else 0), flags, length, lun, itt, tail, ahs_words)

    def note(self, pdu):
        if pdu.opcode in (RESPONSE, TMF_RESPONSE, TEXT_RESPONSE, LOGOUT_RESPONSE, REJECT, ASYNC) or (
            pdu.opcode == NOP_IN and pdu.itt != NO_TAG or pdu.opcode == DATA_IN and pdu.flags & 1
        ):
            self.exp_stat_sn = pdu.stat_sn + 1 & NO_TAG
        if pdu.max_cmd_sn - self.max_cmd_sn & NO_TAG < 0x80000000:
            self.max_cmd_sn = pdu.max_cmd_sn

    def take(self, timeout=None):
        """The next PDU that is not small talk; answers pings."""
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        while True:
            pdu = self.receive(max(0.001, deadline - time.monotonic()))
            self.note(pdu)
            if pdu.opcode == NOP_IN and pdu.itt == NO_TAG:
                if pdu.ttt != NO_TAG:
                    tail = struct.pack(">I", pdu.ttt) + self.numbers(immediate=True)
                    self.send(header(NOP_OUT | IMMEDIATE, FINAL, 0, pdu.bhs[9], NO_TAG, tail))
            elif pdu.opcode == ASYNC:
                self.asyncs.append(pdu)
            else:
                return pdu

    def data_out(self, itt, ttt, offset, data, data_sn=0, final=True, lun=0, **options):
        tail = struct.pack(">IIIIII", ttt, 0, self.exp_stat_sn, 0, data_sn, offset)
        self.send(header(DATA_OUT, FINAL if final else 0, len(data), lun, itt, tail), data, **options)

    def answer_r2t(self, pdu, payload, lun=0, segment=65536):
        offset, length = pdu.word(40), pdu.word(44)
        assert offset + length <= len(payload), f"R2T for {length} bytes at {offset} of a write of {len(payload)} bytes"
        at, number = 0, 0
        while at < length:
            piece = payload[offset + at : offset + min(at + segment, length)]
            self.data_out(pdu.itt, pdu.ttt, offset + at, piece, number, at + len(piece) >= length, lun)
            at, number = at + len(piece), number + 1

    def collect(self, itt, payload=b"", lun=0, timeout=None):
        """The outcome of command `itt`. A Reject of it raises."""
        data = bytearray()
        while True:
            pdu = self.take(timeout)
            if pdu.opcode == REJECT:
                raise Rejected(pdu)
            assert pdu.itt == itt, f"an answer to another task: {pdu}"
            if pdu.opcode == R2T:
                self.answer_r2t(pdu, payload, lun)
                continue
            if pdu.opcode == DATA_IN:
                assert pdu.word(40) == len(data), f"Data-In out of order: {pdu}"
                data += pdu.data
                if not pdu.flags & 1:
                    continue
                sense, response = b"", 0
            else:
                assert pdu.opcode == RESPONSE, f"unexpected: {pdu}"
                sense, response = pdu.data[2:], pdu.bhs[2]
            return Result(pdu.bhs[3], sense, bytes(data), bool(pdu.flags & 4), bool(pdu.flags & 2), pdu.word(44), response)

    def command(self, cdb, lun=0, read=0, write=b"", edtl=None, flags=None, immediate_data=0, timeout=None, **options):
        """Carries out one command, without retries."""
        if flags is None:
            flags = FINAL | (0x40 if read else 0) | (0x20 if write else 0)
        edtl = (len(write) if write else read) if edtl is None else edtl
        first = write[:immediate_data]
        bhs = self.command_header(cdb, lun, flags, edtl, length=len(first), **options)
        self.send(bhs, first)
        return self.collect(struct.unpack(">I", bhs[16:20])[0], write, lun, timeout)

    def good(self, cdb, lun=0, read=0, write=b"", retries=64, **options):
        """Carries out one command that must succeed; unit attentions and aborted or busy answers are retried."""
        for _ in range(retries):
            try:
                result = self.command(cdb, lun, read, write, **options)
            except Silent:
                # Another session's reset may take a command away without a word (SAM-5, TAS = 0): ask, and try again.
                self.lost += 1
                self.abandon(self.tag)
                continue
            if result.status == 0:
                return result
            key = result.sense[2] & 0x0F if len(result.sense) > 2 else None
            assert key in (6, 0x0B) or result.status in (0x08, 0x28, 0x40), f"command {bytes(cdb).hex()}: status {result.status:02x}h, sense {result.sense.hex()}"
            self.unit_attentions += 1
            if key != 6:
                time.sleep(0.01)
        raise AssertionError(f"command {bytes(cdb).hex()} does not succeed after {retries} retries")

    def abandon(self, itt):
        """ABORT TASK of `itt`; what comes for it until the answer is thrown away."""
        tag = self.next_tag()
        self.send(header(TMF | IMMEDIATE, FINAL | 1, 0, 0, tag, struct.pack(">I", itt) + self.numbers(True) + struct.pack(">I", self.cmd_sn - 1 & NO_TAG)))
        while True:
            pdu = self.take()
            if pdu.opcode == TMF_RESPONSE and pdu.itt == tag:
                return
            assert pdu.itt == itt, f"an answer to another task: {pdu}"

    def read_blocks(self, lba, count, lun=0):
        return self.good(read16(lba, count), lun, read=count * 512).data

    def write_blocks(self, lba, data, lun=0, **options):
        return self.good(write16(lba, len(data) // 512), lun, write=data, **options)

    def ready(self, lun=0):
        """TEST UNIT READY until the unit attentions are gone."""
        self.good(bytes(6), lun)
        return self

    def nop(self, data=b"", timeout=None):
        """A ping; returns what came back."""
        itt = self.next_tag()
        self.send(header(NOP_OUT | IMMEDIATE, FINAL, len(data), 0, itt, struct.pack(">I", NO_TAG) + self.numbers(immediate=True)), data)
        pdu = self.take(timeout)
        assert pdu.opcode == NOP_IN and pdu.itt == itt, f"not the answer to a ping: {pdu}"
        return pdu.data

    def tmf(self, function, lun=0, referenced=NO_TAG, ref_cmd_sn=0, immediate=True):
        """A task management function; returns the response code."""
        itt = self.next_tag()
        tail = struct.pack(">I", referenced) + self.numbers(immediate) + struct.pack(">I", ref_cmd_sn)
        self.send(header(TMF | (IMMEDIATE if immediate else 0), FINAL | function, 0, lun, itt, tail))
        pdu = self.take()
        if pdu.opcode == REJECT:
            raise Rejected(pdu)
        assert pdu.opcode == TMF_RESPONSE and pdu.itt == itt, f"not the answer to a task management function: {pdu}"
        return pdu.bhs[2]

    def text_request(self, data, flags=FINAL, ttt=NO_TAG, itt=None, immediate=False):
        itt = self.next_tag() if itt is None else itt
        data = data if isinstance(data, bytes) else text(data)
        self.send(header(TEXT | (IMMEDIATE if immediate else 0), flags, len(data), 0, itt, struct.pack(">I", ttt) + self.numbers(immediate)), data)
        return self.take()

    def send_targets(self, what="All", rounds=10000):
        """All target names, and the longest data segment on the way."""
        found, longest = b"", 0
        pdu = self.text_request({"SendTargets": what})
        itt = pdu.itt
        for _ in range(rounds):
            assert pdu.opcode == TEXT_RESPONSE, f"not a Text Response: {pdu}"
            found, longest = found + pdu.data, max(longest, len(pdu.data))
            if pdu.flags & FINAL:
                assert not pdu.flags & CONTINUE
                names = [item[11:] for item in found.decode().split("\0") if item.startswith("TargetName=")]
                return names, longest
            assert pdu.ttt != NO_TAG, "more text is announced without a target transfer tag"
            pdu = self.text_request(b"", FINAL, pdu.ttt, itt)
        raise AssertionError("SendTargets does not end")

    def logout(self, reason=0, cid=None):
        itt = self.next_tag()
        tail = struct.pack(">HH", self.cid if cid is None else cid, 0) + self.numbers()
        self.send(header(LOGOUT, FINAL | reason, 0, 0, itt, tail))
        return self.take()


class Rejected(Exception):
    """A Reject PDU came."""

    def __init__(self, pdu):
        super().__init__(f"rejected for reason {pdu.bhs[2]:02x}h")
        self.reason, self.pdu = pdu.bhs[2], pdu


def read16(lba, count):
    return struct.pack(">BBQIBB", 0x88, 0, lba, count, 0, 0)


def write16(lba, count):
    return struct.pack(">BBQIBB", 0x8A, 0, lba, count, 0, 0)
