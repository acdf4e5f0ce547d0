"""A guest without any disk boots from a Pollux LUN: its root file system comes by iSCSI, and what it writes is there after."""
import shutil
import subprocess

from machine import Guest

TIER = "full"


def setup(lab):
    target = lab.target()
    path = target.folder / "Root.img"
    subprocess.run(["cp", "--sparse=always", "--reflink=auto", str(lab.parts.root), str(path)], check=True)
    target.file("Root", 0, block_size=512)
    target.serve(["Root"])
    address, port = target.portal().split(":")
    lab.guest.guest.append = f"lab.root=/dev/sda lab.iscsi={address},{port},{lab.env['LAB_IQN']},iqn.2026-01.io.pollux:diskless"


def verify(lab):
    path = lab.targets[0].folder / "Root.img"
    if shutil.which("debugfs"):
        said = subprocess.run(["debugfs", "-R", "cat /srv/written", str(path)], capture_output=True, text=True, check=True).stdout
        assert said == "by a machine without a disk\n", f"the root file system does not hold what was written: {said!r}"
    subprocess.run(["e2fsck", "-f", "-n", str(path)], check=True)


GUEST = Guest(
    root=False,
    script=r"""
. /lab/guest/lib.sh
same "$(findmnt -n -o SOURCE /)" /dev/sda "the device of /"
same "$(cat /sys/block/sda/device/vendor)" "POLLUX  " "the vendor of the disk"
if ls /sys/block | grep -q '^vd'; then fail "there is another disk"; fi
step a day at work
must dpkg --audit
must find /usr -xdev -type f -exec cat {} + >/dev/null
must cp -a /etc /srv/etc-copy
must diff -r --no-dereference /etc /srv/etc-copy
echo "by a machine without a disk" >/srv/written
sync
must mount -o remount,ro /
"""
)
