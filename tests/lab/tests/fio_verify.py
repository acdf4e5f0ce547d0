"""fio writes and verifies with crc32c: RAM and file, mixed sizes, deep queues; minutes of it in the full tier."""
from machine import Guest

TIER = "smoke"
SECONDS_MAX = 1800


def setup(lab):
    lab.target(cores=2).ram("Ram0", 32).file("File1", 32, block_size=4096).serve(["Ram0", "File1"])


GUEST = Guest(
    script=r"""
. /lab/guest/lib.sh
iscsi_start
must discover
login
loops=1
[ "$LAB_TIER" = smoke ] || loops=12
for lun in 0 1; do
    want_disk $lun
    for round in $(seq $loops); do
        step "LUN $lun, round $round of $loops"
        must fio --eta=never --name=random --filename="$disk" --ioengine=libaio --direct=1 --rw=randwrite --bsrange=4k-256k --bs_unaligned=0 \
            --iodepth=32 --size=100% --verify=crc32c --verify_fatal=1 --randseed=$((lun * 1000 + round)) --output-format=terse --output=/tmp/fio
        grep -q ';random;0;0;' /tmp/fio || { cat /tmp/fio; fail "fio reports an error"; }
    done
    must fio --eta=never --name=mixed --filename="$disk" --ioengine=libaio --direct=1 --rw=randrw --bs=4k --iodepth=32 --numjobs=2 --offset_increment=16M \
        --size=$([ "$LAB_TIER" = smoke ] && echo 2M || echo 16M) --verify=crc32c --verify_fatal=1 --verify_backlog=256 --output=/tmp/fio
    sync
done
logout
"""
)
