"""LUNs added, resized and removed while a kernel is logged in: it is told, and sees what is."""
from machine import Guest

TIER = "smoke"


def setup(lab):
    lab.target().file("File0", 32).serve(["File0"])


def step_add(lab):
    lab.targets[0].ram("Ram1", 16)
    lab.targets[0].rpc("iscsi_target_node_add_lun", name=lab.env["LAB_IQN"], bdev_name="Ram1", lun_id=1)


def step_resize(lab, mebibytes):
    target = lab.targets[0]
    with (target.folder / "File0.img").open("r+b") as file:
        file.truncate(int(mebibytes) << 20)
    target.rpc("bdev_uring_rescan", name="File0")


def step_remove(lab):
    lab.targets[0].rpc("bdev_malloc_delete", name="Ram1")


GUEST = Guest(
    script=r"""
. /lab/guest/lib.sh
iscsi_start
must discover
login
want_disk 0
# The kernel logs what it is told by an asynchronous message, before any command asks.
told() { dmesg | grep -q "$1"; }
size() { blockdev --getsize64 "$disk"; }
ready() { sg_raw "$(sg_of "$1")" 00 00 00 00 00 00 2>/dev/null; }
step add
host add
within 60 told 'LUN assignments on this target have changed'
must iscsiadm -m session --rescan
first=$disk
want_disk 1
same "$(size)" 16777216 "the new disk's size"
must dd if=/dev/urandom of="$disk" bs=1M count=16 oflag=direct status=none
disk=$first
for mebibytes in 48 24; do
    step "resize to $mebibytes MiB"
    host resize $mebibytes
    dd if="$disk" of=/dev/null bs=4k count=1 iflag=direct status=none || true
    dmesg | tail -n 3; size
    within 60 told 'Capacity data has changed'
    dmesg -C
    must iscsiadm -m session --rescan
    same "$(size)" $((mebibytes << 20)) "the size after the rescan"
    must dd if=/dev/zero of="$disk" bs=1M count=$mebibytes oflag=direct status=none
    must_fail dd if=/dev/zero of="$disk" bs=1M count=1 seek=$mebibytes oflag=direct status=none
done
step remove
want_disk 1
host remove
# An error, or the end of a disk whose capacity the kernel has already found to be nothing; no byte in any case.
same "$(dd if="$disk" bs=4k count=1 iflag=direct status=none | wc -c)" 0 "bytes read of a LUN that is gone"
must_fail ready "$disk"
must sg_luns "$(sg_of "$first")" >/tmp/luns
cat /tmp/luns
if grep -q 0001000000000000 /tmp/luns; then fail "REPORT LUNS still lists LUN 1"; fi
disk=$first
must dd if="$disk" of=/dev/null bs=1M count=8 iflag=direct status=none
step and back
host add
must iscsiadm -m session --rescan
echo 1 >/sys/class/scsi_device/"$(ls /sys/class/scsi_device | grep ':1$' | head -n 1)"/device/rescan 2>/dev/null
within 60 ready "$(disk 1)"
logout
"""
)
