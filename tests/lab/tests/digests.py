"""Header and data digests, each alone and both: negotiated as asked, and data comes through."""
from machine import Guest

TIER = "smoke"


def setup(lab):
    lab.target().ram("Ram0", 32).serve(["Ram0"])


GUEST = Guest(
    script=r"""
. /lab/guest/lib.sh
iscsi_start
must discover
for digests in "CRC32C None" "None CRC32C" "CRC32C CRC32C" "None,CRC32C CRC32C,None"; do
    read -r header data <<<"$digests"
    step "header digest $header, data digest $data"
    node_set node.conn[0].iscsi.HeaderDigest "$header"
    node_set node.conn[0].iscsi.DataDigest "$data"
    login
    want_disk 0
    session=$(iscsiadm -m session -P 2)
    # The first value of a list is preferred, and the target takes it.
    echo "$session" | grep -q "HeaderDigest: ${header%%,*}" || { echo "$session"; fail "the header digest is not ${header%%,*}"; }
    echo "$session" | grep -q "DataDigest: ${data%%,*}" || { echo "$session"; fail "the data digest is not ${data%%,*}"; }
    must dd if=/dev/urandom of=/tmp/data bs=1M count=8 status=none
    must dd if=/tmp/data of="$disk" bs=512k oflag=direct status=none
    must cmp -n 8388608 /tmp/data "$disk"
    must dd if=/tmp/data of="$disk" bs=1000448 oflag=direct status=none
    echo 3 >/proc/sys/vm/drop_caches
    must cmp -n 8388608 /tmp/data "$disk"
    errors=$(iscsiadm -m session -s | grep -E 'digest_err|timeout_err' | awk '{ sum += $2 } END { print sum + 0 }')
    same "$errors" 0 "digest and time-out errors"
    logout
done
"""
)
