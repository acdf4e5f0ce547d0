"""The power fails 50 times: what FUA or a flush had acknowledged is there afterwards, on QEMU's NVMe through VFIO."""
import json
import random
import time

from machine import Guest

TIER = "full"
SECONDS_MAX = 7200
CUTS = 50
# A block of the disk belongs to one writer; every write to it carries the next number, and is promised when it was answered.
BLOCKS = 512
WRITER = r'''
import json, os, random, struct, sys, zlib

# Every 4 KiB block holds its number, the sequence number of the write, and a checksum over a pattern made of both.
def block(number, sequence):
    head = struct.pack("<QQ", number, sequence)
    body = head * 255
    return head + body[:4096 - 16 - 4] + struct.pack("<I", zlib.crc32(head + body[:4096 - 16 - 4]))

def read(disk, number):
    import mmap
    memory = mmap.mmap(-1, 4096)
    os.preadv(disk, [memory], number * 4096)
    data = bytes(memory)
    if data == bytes(4096):
        return 0
    found, sequence = struct.unpack_from("<QQ", data)
    if data != block(number, sequence) or found != number:
        return None
    return sequence

path, promised_path, seed, count, blocks = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
disk = os.open(path, os.O_RDWR | os.O_DIRECT)
promised = json.load(open(promised_path)) if os.path.exists(promised_path) else {}
lost = []
for number in range(blocks):
    there, wanted = read(disk, number), promised.get(str(number), [0, 0])
    # [sequence promised, sequence that was being written]
    if there is None or there < wanted[0] or there > wanted[1]:
        lost.append((number, there, wanted))
if lost:
    print("LOST:", lost[:10], flush=True)
    sys.exit(1)
print(f"{blocks} blocks hold what was promised", flush=True)
sequence = max([entry[1] for entry in promised.values()], default=0)
stable = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_DSYNC)
prng = random.Random(seed)
import mmap
memory = mmap.mmap(-1, 4096)
log = open(promised_path + ".log", "a")
def note(**what):
    log.write(json.dumps(what) + "\n")
    log.flush()
    os.fsync(log.fileno())
print("WRITING", flush=True)
while True:
    batch = prng.sample(range(blocks), 8)
    fua = prng.random() < 0.5
    note(begin={str(number): sequence + at + 1 for at, number in enumerate(batch)})
    for number in batch:
        sequence += 1
        memory[:] = block(number, sequence)
        # O_DSYNC is FUA where the disk has it, write and flush elsewhere; the plain ones are promised by the fsync below.
        os.pwritev(stable if fua else disk, [memory], number * 4096)
        if fua:
            note(end={str(number): sequence})
    if not fua:
        os.fsync(disk)
        note(end={str(number): sequence - len(batch) + at + 1 for at, number in enumerate(batch)})
'''


def setup(lab):
    with (lab.folder / "disk0.img").open("wb") as file:
        file.truncate(64 << 20)
    lab.prng = random.Random(20261121)
    lab.cuts = 0
    lab.notes = 0
    (lab.folder / "main").mkdir(exist_ok=True)
    lab.writer = WRITER


def promises(lab):
    """What the guest's log says was promised, and what was on its way: {block: [promised, newest begun]}."""
    promised = {}
    log = lab.guest.share / "promised.json.log"
    lines = log.read_text().splitlines() if log.exists() else []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # the cut fell into this line
        for number, sequence in entry.get("begin", {}).items():
            promised.setdefault(number, [0, 0])[1] = sequence
        for number, sequence in entry.get("end", {}).items():
            promised.setdefault(number, [0, 0])[0] = sequence
    lab.notes = len(lines)
    (lab.guest.share / "promised.json").write_text(json.dumps(promised))


def step_prepare(lab):
    (lab.guest.share / "writer.py").write_text(lab.writer)
    promises(lab)


def step_writing(lab):
    """Lets it write for a while and cuts the power; after the last cut the guest only verifies."""
    if lab.cuts >= CUTS:
        return "done"
    lab.cuts += 1
    before = lab.notes
    time.sleep(lab.prng.uniform(0.5, 3))
    lab.say(f"cut {lab.cuts} of {CUTS}; {before} lines of promises before this life")
    lab.guest.power_cut()
    return "cut"


def verify(lab):
    assert lab.cuts == CUTS, f"the power failed {lab.cuts} times only"
    assert lab.notes > CUTS, f"only {lab.notes} promises were made"
    lab.say(f"{lab.cuts} cuts, {lab.notes} lines of promises")


GUEST = Guest(
    iommu=True,
    hugepages=64,
    arguments=[
        "-drive", "if=none,id=disk0,file={work}/disk0.img,format=raw,cache=none",
        "-device", "nvme,id=nvme0,drive=disk0,serial=first",
    ],
    script=r"""
. /lab/guest/lib.sh
. /lab/guest/node.sh
first=$(nvme_address first) || fail "the kernel does not see the controller"
node_bind "$first"
node_start -m 0x1 --hugepages
node_attach Nvme0 "$first"
node_serve 127.0.0.1 Nvme0n1
iscsi_start
must discover >/dev/null
login >/dev/null
want_disk 0
host prepare
mkfifo /tmp/said
python3 /lab/writer.py "$disk" /lab/promised.json "$LAB_BOOT" 0 512 >/tmp/said 2>&1 &
while read -r line; do
    echo "$line"
    case $line in
        LOST*) fail "$line" ;;
        WRITING) [ "$(host writing)" = done ] && exit 0 ;;
    esac
done </tmp/said
fail "the writer ended"
"""
)
