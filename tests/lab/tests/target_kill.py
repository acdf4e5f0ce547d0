"""polluxd killed and started again under a mounted file system: the session comes back, and what fsync promised is there."""
import time

from machine import Guest

TIER = "smoke"


def setup(lab):
    lab.target().file("File0", 128).serve(["File0"])


def step_kill(lab, seconds):
    lab.targets[0].crash()
    time.sleep(float(seconds))
    lab.targets[0].restart()


GUEST = Guest(
    script=r"""
. /lab/guest/lib.sh
iscsi_start
must discover
login
want_disk 0
must mkfs.ext4 -q "$disk"
mkdir -p /mnt
must mount "$disk" /mnt
: >/tmp/promised
writer() { # until /tmp/stop: files, each with fsync, noted when it is promised
    local number=0 sum
    while [ ! -e /tmp/stop ]; do
        number=$((number + 1))
        dd if=/dev/urandom of=/tmp/new bs=16k count=$((number % 8 + 1)) status=none
        sum=$(md5sum </tmp/new)
        dd if=/tmp/new of=/mnt/file$number bs=1M conv=fsync status=none || return 1
        echo "$number $sum" >>/tmp/promised
        if [ $number -ge 500 ]; then rm -f /mnt/file$((number - 400)); fi
    done
}
writer &
writing=$!
kills=1
[ "$LAB_TIER" = smoke ] || kills=8
more() { [ "$(wc -l </tmp/promised)" -gt $(($1 + 20)) ]; }
for kill in $(seq $kills); do
    within 240 more "$(wc -l </tmp/promised)"
    step "kill $kill, after $(wc -l </tmp/promised) files"
    host kill $((kill % 3))
done
within 240 more "$(wc -l </tmp/promised)"
touch /tmp/stop
wait $writing || fail "a write or fsync failed"
must umount /mnt
echo 3 >/proc/sys/vm/drop_caches
logout
login
want_disk 0
must mount "$disk" /mnt
step "comparing $(wc -l </tmp/promised) files"
while read -r number sum; do
    [ -e /mnt/file$number ] || { [ "$number" -le $(($(wc -l </tmp/promised) - 400)) ] && continue; fail "file $number is gone"; }
    same "$(md5sum </mnt/file$number)" "$sum" "the checksums of file $number"
done </tmp/promised
must umount /mnt
must e2fsck -f -n "$disk"
logout
"""
)
