"""The kernel's own block layer tests, where Debian packages them."""
from case import Skip
from machine import Guest

TIER = "full"


def setup(lab):
    if "blktests" not in lab.parts.manifest["packages"]:
        raise Skip("Debian 13 has no package of blktests")
    lab.target().ram("Ram0", 256).serve(["Ram0"])


GUEST = Guest(
    script=r"""
. /lab/guest/lib.sh
iscsi_start
must discover
login
want_disk 0
echo "TEST_DEVS=($disk)" >/tmp/config
must blktests -c /tmp/config block scsi
logout
"""
)
