# What guest scripts use: `. /lab/guest/lib.sh`. A script that ends with 0 has passed; `fail` and `skip` end it.
set -u
[ ! -r /lab/env ] || . /lab/env
PATH=/lab/guest:/lab-bin:$PATH

step() { printf -- '--- %s\n' "$*"; }
fail() { /lab/guest/host failed "$*" 2>/dev/null; exit 1; }
skip() { /lab/guest/host skipped "$*" 2>/dev/null; exit 77; }
# Has the host run a step of the test; prints what it answers: host STEP [ARGUMENT...]
host() { /lab/guest/host "$@" || exit 1; }
# Runs a command that must succeed.
must() { "$@" || fail "'$*' ended with $?"; }
# Runs a command that must fail, with any status but "not found".
must_fail() {
    local status=0
    "$@" || status=$?
    [ $status -ne 0 ] || fail "'$*' succeeded"
    [ $status -ne 127 ] || fail "'$*' is not there"
}
# Tries a command every half second until it succeeds: within SECONDS COMMAND...
within() {
    local seconds=$1 end
    shift
    end=$((SECONDS + seconds))
    until "$@" >/tmp/within 2>&1; do
        if [ $SECONDS -ge $end ]; then cat /tmp/within; fail "'$*' did not succeed within $seconds s"; fi
        sleep 0.5
    done
}
same() { [ "$1" = "$2" ] || fail "${3:-the two values} differ: '$1' and '$2'"; }

# The kernel's iSCSI initiator. LAB_PORTAL and LAB_IQN are the target the host serves.
iscsi_start() { # [initiator name]
    echo "InitiatorName=${1:-iqn.2026-01.io.pollux:lab-$LAB_GUEST}" >/etc/iscsi/initiatorname.iscsi
    modprobe -a iscsi_tcp sd_mod sg crc32c_generic
    # What a busy machine needs and no test is about: patience.
    sed -i -e 's/^node.conn\[0\].timeo.noop_out_interval.*/node.conn[0].timeo.noop_out_interval = 30/' \
        -e 's/^node.conn\[0\].timeo.noop_out_timeout.*/node.conn[0].timeo.noop_out_timeout = 60/' \
        -e 's/^node.session.timeo.replacement_timeout.*/node.session.timeo.replacement_timeout = 300/' \
        -e 's/^iscsid.startup.*//' /etc/iscsi/iscsid.conf
    pgrep -x iscsid >/dev/null || iscsid || fail "iscsid does not start"
}
discover() { # [portal]
    iscsiadm -m discovery -t sendtargets -p "${1:-$LAB_PORTAL}"
}
node() { iscsiadm -m node -T "${LAB_IQN}" -p "${LAB_PORTAL}" "$@"; }
node_set() { must node -o update -n "$1" -v "$2"; }
login() { must node --login; }
logout() { must node --logout; }
# The disks of the LUN, one per session: disks LUN
disks() {
    local device
    for device in /sys/class/scsi_device/*:*:*:"$1"/device; do
        [ "$(cat "$device/vendor" 2>/dev/null)" = "POLLUX  " ] || continue
        [ ! -d "$device/block" ] || ls "$device/block"
    done | sed 's|^|/dev/|'
}
has_disk() { local found; found=$(disks "$1" | head -n 1); [ -b "$found" ]; }
# Waits for the disk of a LUN and prints its name: disk LUN
disk() {
    local end=$((SECONDS + 120))
    until has_disk "$1"; do
        [ $SECONDS -lt $end ] || { echo "no disk of LUN $1 within 120 s" >&2; return 1; }
        sleep 0.2
    done
    disks "$1" | head -n 1
}
# Sets $disk to the disk of a LUN, or fails the test.
want_disk() { disk=$(disk "$1") || fail "LUN $1 has no disk"; }
sg_of() { echo "/dev/$(ls /sys/block/"$(basename "$1")"/device/scsi_generic)"; }
