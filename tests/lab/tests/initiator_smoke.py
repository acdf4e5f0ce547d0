"""Linux's iSCSI initiator: discovery, login, mkfs, write, logout, login, the same bytes, a clean file system."""
from machine import Guest

TIER = "smoke"


def setup(lab):
    lab.target().ram("Ram0", 64).serve(["Ram0"])


GUEST = Guest(
    script=r"""
. /lab/guest/lib.sh
iscsi_start
step discovery
found=$(discover) || fail "discovery failed"
same "$found" "$LAB_PORTAL,1 $LAB_IQN" "what discovery tells"
step login
login
want_disk 0
same "$(blockdev --getsize64 "$disk")" 67108864 "the disk's size"
step mkfs and write
must mkfs.ext4 -q "$disk"
mkdir -p /mnt
must mount "$disk" /mnt
must dd if=/dev/urandom of=/mnt/file bs=1M count=24 status=none
before=$(md5sum </mnt/file)
must umount /mnt
step logout
logout
if has_disk 0; then fail "the disk stayed after the logout"; fi
step login again
login
want_disk 0
must mount "$disk" /mnt
same "$(md5sum </mnt/file)" "$before" "the checksums before and after"
must umount /mnt
must e2fsck -f -n "$disk"
logout
"""
)
