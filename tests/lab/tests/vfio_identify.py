"""PCI devices through VFIO behind the IOMMU: bound by scripts/bind, identified by DMA and MSI-X, pulled, given back."""
from machine import Guest

TIER = "smoke"


def step_pull(lab):
    """Takes the controller out of its slot; the guest's kernel then asks the driver for it."""
    lab.guest.qmp.command("device_del", id="pulled")


GUEST = Guest(
    iommu=True,
    hugepages=32,
    arguments=[
        "-device", "pcie-root-port,id=slot1,chassis=1,slot=1", "-device", "pcie-root-port,id=slot2,chassis=2,slot=2",
        "-drive", "if=none,id=disk1,file=null-co://,format=raw", "-device", "nvme,id=pulled,bus=slot1,drive=disk1,serial=LAB-ONE",
        "-drive", "if=none,id=disk2,file={work}/disks/disk2.img,format=raw", "-device", "nvme,id=stays,bus=slot2,drive=disk2,serial=LAB-TWO",
    ],
    script=r"""
. /lab/guest/lib.sh
pci=/lab-bin/examples/pci
[ -x $pci ] || fail "the example pci is not built: cargo build --release -p reactor --example pci"
modprobe nvme
address_of() { basename "$(dirname "$(dirname "$(dirname "$(grep -l "$1" /sys/bus/pci/devices/*/nvme/nvme*/serial)")")")"; }
within 30 grep -q LAB-ONE /sys/bus/pci/devices/*/nvme/nvme*/serial
within 30 grep -q LAB-TWO /sys/bus/pci/devices/*/nvme/nvme*/serial
one=$(address_of LAB-ONE) two=$(address_of LAB-TWO)

step what is used is refused
disk=/dev/$(basename "$(ls -d /sys/bus/pci/devices/$two/nvme/nvme*/nvme*n1 | head -n 1)")
must mkfs.ext4 -q $disk
mkdir -p /mnt
must mount $disk /mnt
must /lab/scripts/bind status
must_fail /lab/scripts/bind bind $two
/lab/scripts/bind bind $two 2>&1 | grep -q "is mounted at /mnt" || fail "the refusal does not name the mount"
[ -d /sys/bus/pci/devices/$two/nvme ] || fail "the disk lost its driver"
must_fail /lab-bin/examples/pci $two
must umount /mnt

step both controllers to vfio-pci, and one after the other identified
must /lab/scripts/bind bind $one $two
must /lab/scripts/bind status
for address in $one $two; do
    $pci $address >/tmp/out 2>&1 || { cat /tmp/out; fail "pci $address failed"; }
    cat /tmp/out
    grep -q "2 MiB hugepages at" /tmp/out || fail "no hugepages were mapped"
    grep -q "plain.* at" /tmp/out || fail "no ordinary memory was mapped"
    grep -q "model .*QEMU NVMe" /tmp/out || fail "no model number came by DMA"
    grep -q "reset  *works" /tmp/out || fail "no reset"
done
same "$(grep -c "serial  *LAB-TWO" /tmp/out)" 3 "IDENTIFY by hugepages, by ordinary memory and after a reset"

step the limit of locked memory is explained
( ulimit -l 64; setpriv --bounding-set=-ipc_lock --inh-caps=-ipc_lock $pci $two >/tmp/out 2>&1 )
cat /tmp/out
grep -q "RLIMIT_MEMLOCK" /tmp/out || fail "the limit is not named"
grep -q "ulimit -l unlimited" /tmp/out || fail "no remedy is named"

step registers that are switched off under their mapping
$pci --registers-off $two >/tmp/out 2>&1
status=$?
cat /tmp/out
same $status 0 "the status of the one whose registers went away"
grep -q "VS 0xffffffff, CAP 0xffffffffffffffff, present: false" /tmp/out || fail "they do not read as ones"
must $pci $two

step a device that is driven stays
$pci --until-removed $one 600 >/tmp/pulled 2>&1 &
within 60 grep -q waiting /tmp/pulled
must_fail /lab/scripts/bind unbind $one
/lab/scripts/bind unbind $one 2>&1 | grep -q "drives it" || fail "the refusal does not name the process"
must_fail $pci $one

step a device that is pulled
must host pull
within 60 grep -q "wanted back" /tmp/pulled
# It still holds its handles, and that hinders nobody.
within 15 test ! -e /sys/bus/pci/devices/$one
must kill -0 $!
wait $!
status=$?
cat /tmp/pulled
same $status 0 "the status of the one whose device was pulled"
grep -q "CSTS reads 0xffffffff, a doorbell is taken, present: false" /tmp/pulled || fail "a device that is gone does not read as ones"
grep -q "let go" /tmp/pulled || fail "it did not end in order"
must $pci $two

step back to the kernel
must /lab/scripts/bind unbind $two
disk_of() { ls -d /sys/bus/pci/devices/$two/nvme/nvme*/nvme*n1; }
within 30 disk_of
within 30 test -b /dev/$(basename "$(disk_of)")
must e2fsck -f -n /dev/$(basename "$(disk_of)")
""",
)


def setup(lab):
    folder = lab.folder / "disks"
    folder.mkdir()
    with (folder / "disk2.img").open("wb") as file:
        file.truncate(64 << 20)
