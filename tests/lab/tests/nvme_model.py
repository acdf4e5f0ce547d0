"""The NVMe model under Linux's own driver: file system, fio, every command, reset, format, resize; no rule broken."""
import pathlib
import socket
import subprocess
import time

from machine import Guest

TIER = "full"
SECONDS_MAX = 1500
SIZE = 64 << 20


def setup(lab):
    folder = lab.folder
    binary = lab.binaries / "nvme-model"
    if not binary.exists():
        raise FileNotFoundError(f"{binary} is not built: cargo build --release -p sim --bin nvme-model")
    lab.model_log = folder / "model.log"
    words = [binary, "--socket", folder / "nvme.sock", "--control", folder / "control.sock", "--size", str(SIZE)]
    words += ["--namespaces", "2", "--vwc"]
    with lab.model_log.open("wb") as log:
        lab.model = subprocess.Popen([str(word) for word in words], stdout=log, stderr=subprocess.STDOUT)
    lab.at_end(lambda: end(lab))
    wait_for(folder / "nvme.sock", lab.model)


def wait_for(path, process):
    for _ in range(600):
        if pathlib.Path(path).exists():
            return
        if process.poll() is not None:
            raise RuntimeError(f"nvme-model ended with {process.returncode}")
        time.sleep(0.1)
    raise TimeoutError(f"{path} does not appear")


def step_model(lab, *words):
    """Says a line to the model's control socket; the answer."""
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(lab.folder / "control.sock"))
        line.sendall(" ".join(words).encode() + b"\n")
        answer = line.makefile().readline().strip()
    if answer.startswith("error"):
        raise RuntimeError(answer)
    return answer


def end(lab):
    """Whatever the guest says, the model has the last word: no rule broken, and it is still there."""
    alive = lab.model.poll() is None
    lab.model.kill()
    lab.model.wait()
    said = lab.model_log.read_text(errors="replace").splitlines()
    for line in said[-30:]:
        lab.show("model", line)
    if not alive:
        lab.fail(f"the model ended with {lab.model.returncode}")
    violations = [line for line in said if line.startswith("violation:")]
    if violations:
        lab.fail(f"{len(violations)} rules broken, the first: {violations[0]}")


GUEST = Guest(
    shared_memory=True,
    arguments=[
        "-device",
        '{"driver":"vfio-user-pci","socket":{"type":"unix","path":"{work}/nvme.sock"},"rombar":0}',
    ],
    script=r"""
. /lab/guest/lib.sh
modprobe -a crc32c_generic ext4 nvme
within 120 test -b /dev/nvme0n1
within 120 test -b /dev/nvme0n2
# Names of namespaces follow the order of their discovery.
for head in /dev/nvme0n1 /dev/nvme0n2; do
    case $(nvme id-ns "$head" | head -n 1) in *" 1:") disk=$head ;; *) other=$head ;; esac
done
clean() { # no complaint in the kernel's log since the last time
    if dmesg -c | tee /tmp/dmesg | grep -iE "nvme.*(error|timeout|abort|fail|unexpected|invalid)|I/O error|BUG:|WARNING:|call trace"; then
        fail "the kernel complains: $1"
    fi
}
queues=$(ls /sys/block/"$(basename "$disk")"/mq | wc -l)
step "identify, list, logs: $queues queues"
nvme id-ctrl /dev/nvme0 >/tmp/ctrl || fail "id-ctrl"
grep -q "^oncs *: 0x1df" /tmp/ctrl || fail "oncs: $(grep oncs /tmp/ctrl)"
must nvme list
must nvme id-ns "$disk" >/tmp/ns
must nvme ns-descs "$disk"
must nvme smart-log /dev/nvme0
must nvme fw-log /dev/nvme0
must nvme get-log /dev/nvme0 -i 5 -l 4096 -b >/tmp/effects
must nvme get-feature /dev/nvme0 -f 7 -H
must nvme get-feature /dev/nvme0 -f 6 -H
must nvme get-feature /dev/nvme0 -f 4 -H
must nvme list-ns /dev/nvme0
same "$(nvme list-ns /dev/nvme0 | grep -c "^\[")" 2 "namespaces"
clean "after probing"

step "mkfs, write, check"
must mkfs.ext4 -q "$disk"
mkdir -p /mnt
must mount "$disk" /mnt
must dd if=/dev/urandom of=/mnt/file bs=1M count=20 status=none
before=$(md5sum </mnt/file)
must umount /mnt
must mount -o discard "$disk" /mnt
same "$(md5sum </mnt/file)" "$before" "checksums"
must fstrim -v /mnt
rm /mnt/file
must umount /mnt
must e2fsck -f -n "$disk"
clean "after mkfs"

verified() { # DISK LABEL
    must fio --name="$2" --filename="$1" --direct=1 --rw=randrw --bsrange=4k-128k --ba=4k --iodepth=16 --ioengine=libaio \
        --size=24m --verify=crc32c --verify_fatal=1 --do_verify=1 --randseed=7 --minimal >/tmp/fio
}
step "fio with crc32c"
verified "$disk" first

step "flush, deallocate, write zeroes, compare, verify, write uncorrectable, copy"
must nvme flush "$disk"
head -c 4096 /dev/urandom >/tmp/data
must nvme write "$disk" -s 64 -c 7 -z 4096 -d /tmp/data
must nvme write "$disk" -s 80 -c 7 -z 4096 -d /tmp/data --force-unit-access
must nvme compare "$disk" -s 64 -c 7 -z 4096 -d /tmp/data
head -c 4096 /dev/zero >/tmp/zeros
must_fail nvme compare "$disk" -s 64 -c 7 -z 4096 -d /tmp/zeros
must nvme verify "$disk" -s 64 -c 7
must nvme copy "$disk" --sdlba=128 --slbs=64,80 --blocks=7,7
must nvme compare "$disk" -s 128 -c 7 -z 4096 -d /tmp/data
must nvme compare "$disk" -s 136 -c 7 -z 4096 -d /tmp/data
must nvme write-zeroes "$disk" -s 64 -c 7
must nvme compare "$disk" -s 64 -c 7 -z 4096 -d /tmp/zeros
must nvme write-zeroes "$disk" -s 80 -c 7 --deac
must nvme compare "$disk" -s 80 -c 7 -z 4096 -d /tmp/zeros
must nvme dsm "$disk" --ad --slbs=128 --blocks=8
must nvme compare "$disk" -s 128 -c 7 -z 4096 -d /tmp/zeros
must nvme write-uncor "$disk" -s 64 -c 0
must_fail nvme read "$disk" -s 64 -c 0 -z 512 -d /tmp/out
must nvme write "$disk" -s 64 -c 7 -z 4096 -d /tmp/data
must nvme read "$disk" -s 64 -c 7 -z 4096 -d /tmp/out
must cmp /tmp/out /tmp/data
must nvme error-log /dev/nvme0 -e 4
nvme error-log /dev/nvme0 -e 4 | grep -q "error_count[[:space:]]*: [1-9]" || fail "the error log is empty"
dmesg -c >/dev/null

step "reset under I/O"
fio --name=reset --filename="$disk" --direct=1 --rw=randrw --bs=4k --iodepth=8 --ioengine=libaio --size=24m --verify=crc32c \
    --verify_fatal=1 --do_verify=1 --loops=2 --minimal >/tmp/fio &
for i in 1 2 3; do sleep 1; must nvme reset /dev/nvme0; done
wait $! || fail "fio failed across resets: $(cat /tmp/fio)"
clean "after resets"

# Nobody looks at the disks while they are formatted: what is read then is of one format or the other.
settled() { must udevadm settle --timeout=60; }
step "format to each LBA format"
for format in 1 2 3 0; do
    settled
    must nvme format "$other" -l "$format" --force
    must nvme ns-rescan /dev/nvme0
    size=$((512 << 3 * (format % 2)))
    within 60 sh -c "[ \$(blockdev --getss $other) = $size ] || [ $format -ge 2 ]"
    nvme id-ns "$other" | grep "in use" | grep -q "lbaf  $format" || fail "format $format is not in use"
    if [ "$(blockdev --getsize64 "$other")" != 0 ]; then verified "$other" "format$format"; fi
done
step "protection information, types 1 to 3"
for type in 1 2 3; do
    settled
    must nvme format "$other" -l 2 -i $type --force
    must nvme ns-rescan /dev/nvme0
    within 60 test "$(blockdev --getsize64 "$other")" != 0
    cat /sys/block/"$(basename "$other")"/integrity/format
    verified "$other" "protection$type"
done
settled
must nvme format "$other" -l 0 --force
must nvme ns-rescan /dev/nvme0
clean "after formatting"

step "resize, detach and attach, seen by themselves"
was=$(blockdev --getsize64 "$disk")
host model resize 1 262144
within 60 sh -c "[ \$(blockdev --getsize64 $disk) = 134217728 ]"
verified "$disk" larger
host model detach 2
within 60 sh -c "! test -b $other"
host model attach 2
within 60 sh -c "ls /dev/nvme0n[0-9] | wc -l | grep -qx 2"
clean "after resizing"

step "statistics: $(host model statistics)"
must modprobe -r nvme
clean "after removal"
modprobe nvme
within 60 test -b "$disk"
""",
)
