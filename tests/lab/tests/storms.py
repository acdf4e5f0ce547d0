"""Storms: logouts and logins, resets of unit, target and session under load, and at the end nothing is left behind."""
import time

from machine import Guest

TIER = "full"


def setup(lab):
    lab.target(cores=2).ram("Ram0", 64).serve(["Ram0"])


def left(target):
    """What the daemon still holds, though nobody is logged in: nothing should be."""
    found = {} if not target.rpc("iscsi_get_connections") else {"connections": True}

    def look(value, path):
        if isinstance(value, dict):
            for name, inner in value.items():
                if name in ("nexuses", "tasks", "buffers_outstanding") and inner != 0:
                    found[f"{path}{name}"] = inner
                look(inner, f"{path}{name}.")
        elif isinstance(value, list):
            for number, inner in enumerate(value):
                look(inner, f"{path}{number}.")

    look(target.rpc("iscsi_get_stats"), "")
    return found


def step_ask_to_log_out(lab):
    lab.targets[0].rpc("iscsi_target_node_request_logout", name=lab.env["LAB_IQN"], pg_tag=1)


def step_nothing_left(lab):
    deadline = time.monotonic() + 60
    while left(lab.targets[0]):
        assert time.monotonic() < deadline, f"left behind: {left(lab.targets[0])}"
        time.sleep(0.5)


GUEST = Guest(
    append="loglevel=2",
    script=r"""
. /lab/guest/lib.sh
iscsi_start
must discover
step 40 logins and logouts
for number in $(seq 40); do
    node --login >/tmp/login || { cat /tmp/login; fail "login $number failed"; }
    # Some leave at once, some in the middle of the scan.
    [ $((number % 3)) -ne 0 ] || want_disk 0
    node --logout >/tmp/logout || { cat /tmp/logout; fail "logout $number failed"; }
done
host nothing_left
login
want_disk 0
sg=$(sg_of "$disk")
load() {
    fio --eta=never --name=load --filename="$disk" --ioengine=libaio --direct=1 --rw=randwrite --bsrange=4k-64k --iodepth=32 --size=100% --loops=400 --time_based \
        --runtime="$1" --verify=crc32c --verify_fatal=1 --output=/tmp/fio
}
step resets of the unit and the target under load
load 40 &
loading=$!
sleep 2
for number in $(seq 20); do
    must sg_reset --no-escalate --device "$sg"
    sleep 0.5
    must sg_reset --no-escalate --target "$sg"
    sleep 0.5
done
wait $loading || { cat /tmp/fio; fail "fio saw an error under resets"; }
step sessions dropped under load
load 40 &
loading=$!
for number in $(seq 4); do
    sleep 4
    # The connection is cut in the middle of everything; the kernel logs in again with the same ISID.
    must ss --kill --no-header --tcp state established dst "${LAB_PORTAL%:*}" dport = "${LAB_PORTAL#*:}"
    sleep 4
    host ask_to_log_out
done
wait $loading || { cat /tmp/fio; fail "fio saw an error under session resets"; }
step resets without load
for number in $(seq 100); do
    must sg_reset --no-escalate --device "$sg"
done
must fio --eta=never --name=after --filename="$disk" --ioengine=libaio --direct=1 --rw=randwrite --bs=64k --iodepth=16 --size=100% --verify=crc32c --verify_fatal=1 --output=/tmp/fio
logout
host nothing_left
"""
)
