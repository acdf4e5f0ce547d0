"""ext4 and xfs on disks of 512 and 4,096 byte blocks: trees written, trimmed, checked, and read after a new login."""
from machine import Guest

TIER = "full"


def setup(lab):
    lab.target().ram("Ram0", 400).file("File1", 400, block_size=4096).serve(["Ram0", "File1"])


GUEST = Guest(
    script=r"""
. /lab/guest/lib.sh
iscsi_start
must discover
login
modprobe xfs
mkdir -p /mnt
fill() { # folder: files of many sizes, holes, links, long names
    local number
    for number in $(seq 1 60); do
        dd if=/dev/urandom of="$1/file$number" bs=$((number * 997)) count=$((number % 7 + 1)) status=none || return 1
    done
    dd if=/dev/urandom of="$1/big" bs=1M count=40 status=none || return 1
    dd if=/dev/urandom of="$1/sparse" bs=4k count=1 seek=9999 status=none || return 1
    mkdir -p "$1/a/b/c" && cp -a /etc "$1/a/b/c/" && ln "$1/big" "$1/a/big" && mv "$1/file7" "$1/$(printf 'n%.0s' $(seq 200))"
    rm "$1"/file[1-5]
}
sums() { (cd "$1" && find . -type f -print0 | sort -z | xargs -0 md5sum) | md5sum; }
check() { # kind, disk
    case $1 in
        ext4) e2fsck -f -n "$2" ;;
        xfs) xfs_repair -n "$2" ;;
    esac
}
for lun in 0 1; do
    for kind in ext4 xfs; do
        want_disk $lun
        step "$kind on LUN $lun, blocks of $(blockdev --getss "$disk") bytes"
        case $kind in
            ext4) must mkfs.ext4 -q -F "$disk" ;;
            xfs) must mkfs.xfs -q -f "$disk" ;;
        esac
        must mount "$disk" /mnt
        must fill /mnt
        # RAM disks forget what is trimmed; files do when the host's file system can punch holes.
        if [ "$(cat /sys/block/"$(basename "$disk")"/queue/discard_max_bytes)" -gt 0 ]; then must fstrim -v /mnt; fi
        before=$(sums /mnt)
        must umount /mnt
        check $kind "$disk" || fail "$kind is not clean after the first use"
        logout
        login
        want_disk $lun
        must mount "$disk" /mnt
        same "$(sums /mnt)" "$before" "the checksums before and after"
        must umount /mnt
        check $kind "$disk" || fail "$kind is not clean at the end"
    done
done
logout
"""
)
