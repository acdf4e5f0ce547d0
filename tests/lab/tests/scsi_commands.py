"""sg3-utils and sdparm over every command, VPD page, mode page and log page the engine says it has; none may lack a test."""
from machine import Guest

TIER = "smoke"


def setup(lab):
    lab.target().ram("Ram0", 16).file("File1", 16, block_size=4096).serve(["Ram0", "File1"])


GUEST = Guest(
    script=r'''#!/usr/bin/python3
import os
import re
import subprocess
import sys

from lab import fail, log_in, run, sg_of

# Exit statuses of sg3-utils.
NOT_READY, MISCOMPARE, ILLEGAL_REQUEST, INVALID_OPERATION, INVALID_PARAMETER, DATA_PROTECT, CONDITION_MET = 2, 14, 5, 9, 19, 7, 25
# sdparm also asks for the saved values, and ends with 5 where nothing is saved, though it has all else.
SDPARM_GOT = (0, ILLEGAL_REQUEST)
SDPARM_REFUSED = (ILLEGAL_REQUEST, 6, 97, 98, 99)


def command(sg, cdb, read=0, write=b"", status=0):
    """One CDB by sg_raw; the data it returns."""
    options = ["sg_raw", "-r", str(read), "-o", "/run/in"] if read else ["sg_raw"]
    if write:
        open("/run/out", "wb").write(write)
        options += ["-s", str(len(write)), "-i", "/run/out"]
    open("/run/in", "wb").close()
    run(" ".join([*options, sg, *[f"{byte:02x}" for byte in cdb], "2>&1"]), status)
    return open("/run/in", "rb").read()


def blocks(sg, size, first, count):
    """READ(10)."""
    return command(sg, [0x28, 0, *first.to_bytes(4, "big"), 0, *count.to_bytes(2, "big"), 0], read=size * count)


def same(found, wanted, what):
    if found != wanted:
        fail(f"{what}: {found[:16].hex()}… instead of {wanted[:16].hex()}…")


class Exercises:
    """One method for each command, named by operation code and service action."""

    def __init__(self, sg, disk, size):
        self.sg, self.disk, self.size = sg, disk, size
        self.number = 0

    def pattern(self, count=1):
        return os.urandom(self.size * count)

    def fill(self, first, data):
        command(self.sg, [0x2A, 0, *first.to_bytes(4, "big"), 0, *(len(data) // self.size).to_bytes(2, "big"), 0], write=data)

    def file(self, data):
        open("/run/data", "wb").write(data)
        return "/run/data"

    # The commands of every device.

    def c00(self):  # TEST UNIT READY
        run(f"sg_turs --low {self.sg}")  # without --low, sg3-utils 1.48 sends a command without a CDB
        command(self.sg, [0] * 6)

    def c03(self):  # REQUEST SENSE
        run(f"sg_requests {self.sg}")
        run(f"sg_requests --desc --num=5 {self.sg}")

    def c12(self):  # INQUIRY
        text = run(f"sg_inq --descriptors {self.sg}")
        for wanted in ("Vendor identification: POLLUX", "Product identification: Pollux disk", "iSCSI", "SPC-"):
            if wanted not in text:
                fail(f"sg_inq does not say {wanted!r}: {text}")
        run(f"sg_inq --only --len=36 {self.sg}")
        run(f"sg_inq --page=0x7e {self.sg}", ILLEGAL_REQUEST)
        run(f"sdparm --inquiry --all {self.sg}")

    def c15(self):  # MODE SELECT(6)
        self.mode_bits("--six")

    def c1a(self):  # MODE SENSE(6)
        run(f"sg_modes --six --all {self.sg}")
        run(f"sg_modes --six --page=0x3e {self.sg}", ILLEGAL_REQUEST)

    def c55(self):  # MODE SELECT(10)
        self.mode_bits("")
        # What cannot be changed is refused and stays.
        run(f"sdparm --set=QERR=1 {self.sg}", SDPARM_REFUSED)
        if self.mode_bit("", "QERR") != 0:
            fail("QERR changed though it cannot be changed")
        page = bytes(8) + bytes([0x0A, 10]) + b"\xff" * 10
        command(self.sg, [0x55, 0x10, 0, 0, 0, 0, 0, 0, len(page), 0], write=page, status=INVALID_PARAMETER)

    def c5a(self):  # MODE SENSE(10)
        run(f"sg_modes --all --all {self.sg}")
        run(f"sg_modes --llbaa --page=0x0a {self.sg}")

    def mode_bit(self, six, name):
        text = run(f"sdparm {six} --get={name} --quiet {self.sg}", SDPARM_GOT)
        found = re.search(rf"{name}\s+(\d+)\b", text)
        return int(found[1]) if found else fail(f"sdparm does not tell {name}: {text}")

    def set_bit(self, six, name, value):
        run(f"sdparm {six} --set={name}={value} {self.sg}", SDPARM_GOT)
        if self.mode_bit(six, name) != value:
            fail(f"{name} is not {value}")
        self.ready()

    def mode_bits(self, six):
        """Each bit that can be changed is changed, does what it says, and is put back."""
        self.set_bit(six, "D_SENSE", 1)
        text = run(f"sg_raw -v {self.sg} de 00 00 00 00 00 2>&1", INVALID_OPERATION)
        if "descriptor format" not in text.lower():
            fail(f"D_SENSE is set, and sense data comes in fixed format: {text}")
        self.set_bit(six, "D_SENSE", 0)
        self.set_bit(six, "SWP", 1)
        command(self.sg, [0x2A, 0, 0, 0, 0, 0, 0, 0, 1, 0], write=self.pattern(), status=DATA_PROTECT)
        self.set_bit(six, "SWP", 0)
        self.fill(0, self.pattern())
        for value in (1, 0):
            self.set_bit(six, "TAS", value)
        if re.search(r"cha: y", run(f"sdparm {six} --get=WCE --long {self.sg}", SDPARM_GOT)):
            for value in (0, 1):
                self.set_bit(six, "WCE", value)
                data = self.pattern()
                self.fill(0, data)
                same(blocks(self.sg, self.size, 0, 1), data, f"written with WCE={value}")

    def c1d(self):  # SEND DIAGNOSTIC
        run(f"sg_senddiag --test {self.sg}")
        run(f"sg_senddiag --selftest=1 {self.sg}", (0, ILLEGAL_REQUEST))

    def c4d(self):  # LOG SENSE
        run(f"sg_logs --list {self.sg}")
        run(f"sg_logs --page=0x3e {self.sg}", ILLEGAL_REQUEST)

    def ca0(self):  # REPORT LUNS
        for select in (0, 1, 2, 0x10, 0x11, 0x12):
            run(f"sg_luns --select={select} {self.sg}", (0, ILLEGAL_REQUEST))
        text = run(f"sg_luns {self.sg}")
        for lun in ("0000000000000000", "0001000000000000"):
            if lun not in text:
                fail(f"REPORT LUNS does not have {lun}: {text}")

    def ca30c(self):  # REPORT SUPPORTED OPERATION CODES
        run(f"sg_opcodes --rctd {self.sg}")
        run(f"sg_opcodes --opcode=0x89 --rctd {self.sg}")
        run(f"sg_opcodes --opcode=0x9e,0x10 {self.sg}")
        text = run(f"sg_opcodes --opcode=0xde {self.sg}", None)
        if "not supported" not in text.lower():
            fail(f"operation code DEh: {text}")

    def ca30d(self):  # REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS
        text = run(f"sg_opcodes --tmf --repd {self.sg}")
        for wanted in ("Abort task", "Logical unit reset", "I_T nexus reset", "Query task"):
            if wanted.lower() not in text.lower():
                fail(f"task management does not have {wanted!r}: {text}")
        run(f"sg_reset --no-escalate --device {self.sg}")
        self.ready()

    # Medium and state.

    def ready(self):
        for _ in range(4):  # each unit attention is told once
            if subprocess.run(["sg_raw", self.sg, *["00"] * 6], capture_output=True, check=False).returncode == 0:
                return
        fail("the unit does not become ready")

    def c1b(self):  # START STOP UNIT
        run(f"sg_start --stop {self.sg}")
        command(self.sg, [0] * 6, status=NOT_READY)
        command(self.sg, [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], read=self.size, status=NOT_READY)
        run(f"sg_start --start {self.sg}")
        self.ready()
        run(f"sg_start --immed --start {self.sg}")

    def c1e(self):  # PREVENT ALLOW MEDIUM REMOVAL
        run(f"sg_prevent --prevent=1 {self.sg}")
        run(f"sg_prevent --allow {self.sg}")

    def c25(self):  # READ CAPACITY(10)
        self.capacity("")

    def c9e10(self):  # READ CAPACITY(16)
        self.capacity("--16")
        text = run(f"sg_readcap --long {self.sg}")
        if "lbprz" not in text:
            fail(f"sg_readcap --long: {text}")

    def capacity(self, option):
        text = run(f"sg_readcap {option} --brief {self.sg}")
        if text.split() != [hex((16 << 20) // self.size), hex(self.size)]:
            fail(f"sg_readcap {option}: {text}")

    def c37(self):  # READ DEFECT DATA(10): there are none
        same(command(self.sg, [0x37, 0, 0x18, 0, 0, 0, 0, 0, 255, 0], read=255)[2:4], bytes(2), "length of the defect list")

    def cb7(self):  # READ DEFECT DATA(12)
        same(command(self.sg, [0xB7, 0x18, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0], read=255)[4:8], bytes(4), "length of the defect list")

    # Reads and writes, each seen by another command.

    def dd(self, length):
        data = self.pattern(8)
        run(f"sg_dd if={self.file(data)} of={self.sg} bs={self.size} seek=100 count=8 cdbsz={length}")
        run(f"sg_dd if={self.sg} of=/run/back bs={self.size} skip=100 count=8 cdbsz={length}")
        same(open("/run/back", "rb").read(), data, f"written and read with CDBs of {length} bytes")
        same(blocks(self.sg, self.size, 100, 8), data, f"written with CDBs of {length} bytes")
        if length > 6:
            run(f"sg_dd if={self.file(data)} of={self.sg} bs={self.size} seek=300 count=8 cdbsz={length} oflag=fua,dpo")
            run(f"sg_dd if={self.sg} of=/run/back bs={self.size} skip=300 count=8 cdbsz={length} iflag=fua,dpo")
            same(open("/run/back", "rb").read(), data, "written and read with FUA and DPO")

    def c08(self):
        self.dd(6)

    def c28(self):
        self.dd(10)

    def ca8(self):
        self.dd(12)

    def c88(self):
        self.dd(16)

    c0a, c2a, caa, c8a = c08, c28, ca8, c88

    def verify(self, length):
        data = self.pattern(4)
        self.fill(200, data)
        option = {10: "", 16: "--16"}.get(length)
        if option is None:  # sg_verify has no CDB of 12 bytes
            command(self.sg, [0xAF, 0, *(200).to_bytes(4, "big"), *(4).to_bytes(4, "big"), 0, 0])
            command(self.sg, [0xAF, 2, *(200).to_bytes(4, "big"), *(4).to_bytes(4, "big"), 0, 0], write=data)
            command(self.sg, [0xAF, 2, *(200).to_bytes(4, "big"), *(4).to_bytes(4, "big"), 0, 0], write=self.pattern(4), status=MISCOMPARE)
            return
        run(f"sg_verify {option} --lba=200 --count=4 {self.sg}")
        run(f"sg_verify {option} --lba=200 --count=4 --ndo={len(data)} --in={self.file(data)} {self.sg}")
        run(f"sg_verify {option} --lba=200 --count=4 --ndo={len(data)} --in={self.file(self.pattern(4))} {self.sg} 2>&1", MISCOMPARE)
        run(f"sg_verify {option} --lba=0x7fffffff --count=1 {self.sg}", (ILLEGAL_REQUEST, 21, 22))

    def c2f(self):
        self.verify(10)

    def caf(self):
        self.verify(12)

    def c8f(self):
        self.verify(16)

    def write_and_verify(self, length):
        data = self.pattern(2)
        if length == 12:
            command(self.sg, [0xAE, 0, *(40).to_bytes(4, "big"), *(2).to_bytes(4, "big"), 0, 0], write=data)
        else:
            option = "--16" if length == 16 else ""
            run(f"sg_write_verify {option} --lba=40 --num=2 --ilen={len(data)} --in={self.file(data)} {self.sg}")
        same(blocks(self.sg, self.size, 40, 2), data, "WRITE AND VERIFY")

    def c2e(self):
        self.write_and_verify(10)

    def cae(self):
        self.write_and_verify(12)

    def c8e(self):
        self.write_and_verify(16)

    def c34(self):  # PRE-FETCH(10)
        command(self.sg, [0x34, 0, 0, 0, 0, 0, 0, 0, 64, 0], status=(0, CONDITION_MET))

    def c90(self):  # PRE-FETCH(16)
        command(self.sg, [0x90, 0, *bytes(8), 0, 0, 0, 64, 0, 0], status=(0, CONDITION_MET))

    def c35(self):
        run(f"sg_sync --lba=8 --count=16 {self.sg}")
        run(f"sg_sync --immed {self.sg}")

    def c91(self):
        run(f"sg_sync --16 {self.sg}")

    def write_same(self, option):
        self.fill(500, self.pattern(16))
        before = blocks(self.sg, self.size, 500, 16)
        data = self.pattern()
        run(f"sg_write_same {option} --lba=502 --num=10 --xferlen={self.size} --in={self.file(data)} {self.sg}")
        same(blocks(self.sg, self.size, 500, 16), before[: 2 * self.size] + data * 10 + before[12 * self.size :], "WRITE SAME")

    def c41(self):
        self.write_same("--10")

    def c93(self):
        self.write_same("--16")
        self.fill(700, self.pattern(16))
        run(f"sg_write_same --16 --unmap --lba=700 --num=16 --xferlen={self.size} {self.sg}", (0, ILLEGAL_REQUEST))
        run(f"sg_write_same --16 --ndob --lba=700 --num=16 {self.sg}")
        same(blocks(self.sg, self.size, 700, 16), bytes(16 * self.size), "WRITE SAME without a data-out buffer")

    def c42(self):  # UNMAP
        self.fill(1024, self.pattern(64))
        run(f"sg_unmap --lba=1024 --num=64 --force {self.sg}")
        same(blocks(self.sg, self.size, 1024, 64), bytes(64 * self.size), "unmapped blocks")

    def c9e12(self):  # GET LBA STATUS(16)
        run(f"sg_get_lba_status --lba=0 {self.sg}")
        if "42" in self.has:
            granule = 1 << 20
            self.fill(0, self.pattern())
            run(f"sg_unmap --lba={granule // self.size} --num={granule // self.size} --force {self.sg}")
            text = run(f"sg_get_lba_status --brief --lba={granule // self.size} {self.sg}")
            if not re.search(r"\s0?1$|\s1\b", text.strip()):
                fail(f"unmapped blocks are not deallocated: {text}")

    def c89(self):  # COMPARE AND WRITE
        old, new = self.pattern(), self.pattern()
        self.fill(77, old)
        run(f"sg_compare_and_write --lba=77 --num=1 --in={self.file(old + new)} --xferlen={2 * self.size} {self.sg}")
        same(blocks(self.sg, self.size, 77, 1), new, "COMPARE AND WRITE")
        run(f"sg_compare_and_write --lba=77 --num=1 --in={self.file(old + old)} --xferlen={2 * self.size} {self.sg} 2>&1", MISCOMPARE)
        same(blocks(self.sg, self.size, 77, 1), new, "a block that COMPARE AND WRITE must not write")

    def c9c(self):  # WRITE ATOMIC(16)
        page = command(self.sg, [0x12, 1, 0xB0, 0, 64, 0], read=64)  # Block Limits
        longest, granularity = int.from_bytes(page[44:48], "big"), int.from_bytes(page[52:56], "big") or 1
        count = min(granularity * 4, longest) or 1
        data = self.pattern(count)
        first = 64 * granularity

        def atomic(blocks, **options):
            command(self.sg, [0x9C, 0, *first.to_bytes(8, "big"), 0, 0, *blocks.to_bytes(2, "big"), 0, 0], **options)

        atomic(count, write=data)
        same(blocks(self.sg, self.size, first, count), data, "WRITE ATOMIC")
        run(f"sg_write_x --atomic=0 --16 --lba={first} --num={count} --in={self.file(data)} {self.sg}")
        if 0 < longest < 0xFFFF and (longest + granularity) * self.size <= 65536:
            atomic(longest + granularity, write=self.pattern(longest + granularity), status=ILLEGAL_REQUEST)
            same(blocks(self.sg, self.size, first, count), data, "blocks that a refused WRITE ATOMIC must not write")

    def c8b(self):  # ORWRITE(16)
        old, new = self.pattern(), self.pattern()
        self.fill(88, old)
        run(f"sg_write_x --or --lba=88 --num=1 --in={self.file(new)} {self.sg}")
        same(blocks(self.sg, self.size, 88, 1), bytes(a | b for a, b in zip(old, new)), "ORWRITE")


def operation_codes(sg):
    """REPORT SUPPORTED OPERATION CODES: names as the methods above have them."""
    data = command(sg, [0xA3, 0x0C, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0], read=8192)
    length = int.from_bytes(data[:4], "big")
    names = []
    for at in range(4, 4 + length, 8):
        code, action, flags = data[at], int.from_bytes(data[at + 2 : at + 4], "big"), data[at + 5]
        names.append(f"{code:02x}{action:02x}" if flags & 1 else f"{code:02x}")
    return names


def vital_pages(sg):
    data = command(sg, [0x12, 1, 0, 0, 255, 0], read=255)
    pages = list(data[4 : 4 + data[3]])
    for page in pages:
        text = run(f"sg_vpd --page={page:#x} {sg}")
        if "unrecognized" in text.lower() or len(text.strip().splitlines()) < 2:
            fail(f"sg_vpd makes nothing of page {page:02X}h: {text}")
        run(f"sg_inq --page={page:#x} {sg}")
        run(f"sdparm --inquiry --page={page:#x} {sg}")
    for needed in (0x00, 0x80, 0x83, 0x86, 0xB0, 0xB1, 0xB2):
        if needed not in pages:
            fail(f"there is no VPD page {needed:02X}h")
    text = run(f"sg_vpd --page=di {sg}")
    for wanted in ("NAA", "T10 vendor identification", "SCSI name string", "Relative target port", "Target port group"):
        if wanted.lower() not in text.lower():
            print(f"note: the device identification page has no {wanted!r}")
    return len(pages)


def mode_pages(sg):
    data = command(sg, [0x5A, 0x08, 0x3F, 0xFF, 0, 0, 0, 0x10, 0, 0], read=4096)
    at, pages = 8, []
    while at < 2 + int.from_bytes(data[:2], "big"):
        subpage = data[at + 1] if data[at] & 0x40 else 0
        pages.append((data[at] & 0x3F, subpage))
        at += 4 + int.from_bytes(data[at + 2 : at + 4], "big") if data[at] & 0x40 else 2 + data[at + 1]
    for page, subpage in pages:
        for control in range(3):
            run(f"sg_modes --page={page:#x},{subpage:#x} --control={control} {sg}")
        run(f"sg_modes --page={page:#x},{subpage:#x} --control=3 {sg}", (0, ILLEGAL_REQUEST, 6, 99))  # saved: may be refused
        text = run(f"sdparm --page={page:#x},{subpage:#x} --long {sg}", SDPARM_GOT)
        if len(text.strip().splitlines()) < 2:
            fail(f"sdparm makes nothing of mode page {page:02X}h,{subpage:02X}h: {text}")
    if (0x08, 0) not in pages or (0x0A, 0) not in pages:
        fail(f"mode pages are {pages}")
    run(f"sdparm --all {sg}", SDPARM_GOT)
    return len(pages)


def log_pages(sg):
    pages = command(sg, [0x4D, 0, 0x40, 0, 0, 0, 0, 0, 255, 0], read=255)
    codes = pages[4 : 4 + int.from_bytes(pages[2:4], "big")]
    for code in codes:
        run(f"sg_logs --page={code & 0x3F:#x} {sg}")
    return len(codes)


def attempt(function, *arguments):
    """What fails is told, and the rest is tried all the same."""
    try:
        return function(*arguments)
    except SystemExit:
        failed.append(function.__name__)
        return None


failed = []


def main():
    untested, tested = set(), set()
    luns = (0,) if os.environ["LAB_TIER"] == "smoke" else (0, 1)
    for lun, disk in zip(luns, log_in(*luns)):
        size = int(run(f"blockdev --getss {disk}"))
        sg = sg_of(disk)
        print(f"--- LUN {lun}: {disk}, {sg}, blocks of {size} bytes", flush=True)
        names = operation_codes(sg)
        exercises = Exercises(sg, disk, size)
        exercises.has = names
        exercises.ready()
        for name in names:
            exercise = getattr(exercises, f"c{name}", None)
            if exercise is None:
                untested.add(name)
                continue
            tested.add(name)
            attempt(exercise)
            attempt(exercises.ready)
        vital, modes, logs = attempt(vital_pages, sg), attempt(mode_pages, sg), attempt(log_pages, sg)
        print(f"LUN {lun}: {len(names)} commands, {vital} VPD pages, {modes} mode pages, {logs} log pages", flush=True)
    if untested:
        fail(f"commands without a test: {' '.join(sorted(untested))}: add a method to Exercises")
    known = {name[1:] for name in dir(Exercises) if re.fullmatch(r"c[0-9a-f]{2}([0-9a-f]{2})?", name)}
    if known - tested:
        fail(f"commands the target no longer has: {' '.join(sorted(known - tested))}")
    # A command that is not there is refused, and says so.
    command(sg, [0xDE] + [0] * 9, status=INVALID_OPERATION)
    if failed:
        sys.exit(1)


main()
''',
)
