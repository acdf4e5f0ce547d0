"""Kernel initiator, iSCSI, Pollux, VFIO, NVMe: data verified, through controller resets, resizes and a removal.

Two controllers are QEMU's, whose namespaces cannot be resized; the third is our model, whose can. All three are driven by VFIO.
"""
import socket
import subprocess
import time

from machine import Guest

TIER = "smoke"
SECONDS_MAX = 3600


def setup(lab):
    for name in ("disk0", "disk1"):
        with (lab.folder / f"{name}.img").open("wb") as file:
            file.truncate(256 << 20)
    start_model(lab)
    # In the full tier ten minutes of verified I/O, and as many again with things going on meanwhile.
    lab.env["LAB_SECONDS"] = 600 if lab.tier == "full" else 10


def start_model(lab):
    log = lab.folder / "model.log"
    words = [lab.binaries / "nvme-model", "--socket", lab.folder / "nvme.sock", "--control", lab.folder / "control.sock", "--size", "64M", "--vwc"]
    with log.open("wb") as file:
        model = subprocess.Popen([str(word) for word in words], stdout=file, stderr=subprocess.STDOUT)

    def end():
        model.kill()
        model.wait()
        broken = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("violation:")]
        if broken:
            lab.fail(f"the driver broke {len(broken)} rules, the first: {broken[0]}")

    lab.at_end(end)
    deadline = time.monotonic() + 60
    while not (lab.folder / "nvme.sock").exists():
        if model.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"nvme-model does not serve: {log.read_text(errors='replace')[-300:]}")
        time.sleep(0.05)


def step_resize(lab, mebibytes):
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(lab.folder / "control.sock"))
        line.sendall(f"resize 1 {(int(mebibytes) << 20) // 512}\n".encode())
        answer = line.makefile().readline().strip()
    if answer.startswith("error"):
        raise RuntimeError(answer)


def step_remove(lab):
    """The controller is pulled out without a word (no attention button: the port is told at once)."""
    lab.guest.qmp.command("device_del", id="nvme1")


def step_insert(lab):
    deadline = time.monotonic() + 60
    while True:
        try:
            lab.guest.qmp.command("device_add", driver="nvme", id="nvme1", drive="disk1", serial="second", bus="port1")
            return
        except RuntimeError:  # the old one is still going
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


GUEST = Guest(
    iommu=True,
    shared_memory=True,
    hugepages=128,
    memory_mib=1536,
    arguments=[
        "-drive", "if=none,id=disk0,file={work}/disk0.img,format=raw,cache=none,discard=unmap",
        "-device", "nvme,id=nvme0,drive=disk0,serial=first",
        "-drive", "if=none,id=disk1,file={work}/disk1.img,format=raw,cache=none,discard=unmap",
        "-device", "pcie-root-port,id=port1,chassis=1,slot=1",
        "-device", "nvme,id=nvme1,drive=disk1,serial=second,bus=port1",
        "-device", '{"driver":"vfio-user-pci","socket":{"type":"unix","path":"{work}/nvme.sock"},"rombar":0}',
    ],
    script=r"""
. /lab/guest/lib.sh
. /lab/guest/node.sh
step take the controllers
first=$(nvme_address first) || fail "the kernel does not see the first controller"
second=$(nvme_address second) || fail "the kernel does not see the second controller"
third=$(nvme_address_of_model) || fail "the kernel does not see the model"
node_bind "$first" "$second" "$third"
step polluxd
node_start -m 0x1 --hugepages
node_attach Nvme0 "$first"
node_attach Nvme1 "$second"
node_attach Nvme2 "$third"
rpc bdev_nvme_set_hotplug enable=true period_us=100000 || fail "no hotplug"
node_serve 127.0.0.1 Nvme0n1 Nvme1n1 Nvme2n1
iscsi_start
must discover
login
want_disk 0; disk0=$disk
want_disk 1; disk1=$disk
want_disk 2; disk2=$disk
same "$(blockdev --getsize64 "$disk0")" $((256 << 20)) "the disk's size"

verified() { # seconds disk [more]
    local seconds=$1 disk=$2
    shift 2
    fio --name=verify --filename="$disk" --direct=1 --ioengine=libaio --iodepth=8 --rw=randrw --bs=4k-64k --bsrange=4k-64k \
        --size=200m --verify=crc32c --verify_fatal=1 --verify_backlog=256 --time_based --runtime="$seconds" \
        --output=/tmp/fio.$(basename "$disk") --eta=never "$@"
}
step file systems
must mkfs.ext4 -q -E lazy_itable_init=0 "$disk1"
must e2fsck -f -n "$disk1" >/dev/null
step "fio with verification for $LAB_SECONDS s"
verified "$LAB_SECONDS" "$disk0" || { cat /tmp/fio.*; tail -n 30 $NODE_LOG; fail "fio found an error"; }
grep -E "read:|write:" /tmp/fio.$(basename "$disk0")
node_alive

step "fio while controllers are reset and a namespace is resized, for $LAB_SECONDS s"
verified "$LAB_SECONDS" "$disk0" &
fio=$!
verified "$LAB_SECONDS" "$disk2" --size=60m &
third_fio=$!
end=$((SECONDS + LAB_SECONDS - 2))
resets=0
while [ $SECONDS -lt $end ]; do
    rpc bdev_nvme_reset_controller name=Nvme0 >/dev/null || fail "reset $resets failed"
    resets=$((resets + 1))
    size=$((64 + resets % 32))
    must host resize $size
    rpc bdev_nvme_reset_controller name=Nvme2 >/dev/null || fail "reset $resets of the model failed"
    sleep 2
done
wait $fio || { cat /tmp/fio.*; tail -n 30 $NODE_LOG; fail "fio found an error after $resets resets"; }
wait $third_fio || { cat /tmp/fio.*; tail -n 30 $NODE_LOG; fail "fio found an error after $resets resizes"; }
echo "$resets controller resets and resizes"
node_alive
grown() {
    echo 1 >"/sys/block/$(basename "$disk2")/device/rescan"
    [ "$(blockdev --getsize64 "$disk2")" = $((size << 20)) ]
}
within 30 grown

step "the second controller is pulled out under I/O"
verified 60 "$disk1" --verify=0 --rw=randread >/dev/null 2>&1 &
fio=$!
verified "$LAB_SECONDS" "$disk0" &
other=$!
sleep 2
host remove
wait $fio && fail "reading a disk that is gone succeeded"
node_alive
# TEST UNIT READY, byte for byte: sg_turs of Debian 13 does not always send one.
ready() { sg_raw "$(sg_of "$disk1")" 00 00 00 00 00 00 2>&1; }
sense() { ready; true; }
absent() { sense; sense | grep -qiE "not ready|medium not present"; }
within 30 absent
sense | tail -n 4
step "it comes back"
host insert
back() {
    for function in /sys/bus/pci/devices/*; do
        [ "$(cat "$function/class")" = 0x010802 ] || continue
        [ "$(basename "$(readlink -f "$function/driver" 2>/dev/null)")" = vfio-pci ] || /lab/scripts/bind bind "$(basename "$function")"
    done
    ready || ready
}
within 120 back
echo 1 >"/sys/block/$(basename "$disk1")/device/rescan"
must dd if="$disk1" of=/dev/null bs=1M count=8 iflag=direct status=none
wait $other || { cat /tmp/fio.*; fail "the other disk's I/O failed when its neighbour went"; }
node_alive
logout
"""
)
