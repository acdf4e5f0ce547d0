"""VFIO behind an IOMMU of 39 bits, with two controllers in one IOMMU group: addresses are found, the group goes together."""
from machine import Guest

TIER = "full"

GUEST = Guest(
    iommu=True,
    hugepages=32,
    arguments=[
        "-global", "intel-iommu.aw-bits=39", "-device", "pcie-root-port,id=slot1,chassis=1,slot=1",
        "-drive", "if=none,id=disk1,file=null-co://,format=raw", "-device", "nvme,bus=slot1,addr=0.0,multifunction=on,drive=disk1,serial=LAB-ONE",
        "-drive", "if=none,id=disk2,file=null-co://,format=raw", "-device", "nvme,bus=slot1,addr=0.1,drive=disk2,serial=LAB-TWO",
    ],
    script=r"""
. /lab/guest/lib.sh
pci=/lab-bin/examples/pci
[ -x $pci ] || fail "the example pci is not built: cargo build --release -p reactor --example pci"
modprobe nvme
within 30 grep -q LAB-TWO /sys/bus/pci/devices/*/nvme/nvme*/serial
address_of() { basename "$(dirname "$(dirname "$(dirname "$(grep -l "$1" /sys/bus/pci/devices/*/nvme/nvme*/serial)")")")"; }
one=$(address_of LAB-ONE) two=$(address_of LAB-TWO)
group_of() { basename "$(readlink /sys/bus/pci/devices/$1/iommu_group)"; }
must /lab/scripts/bind status
same "$(group_of $one)" "$(group_of $two)" "the IOMMU groups of two functions of one device"

step a group that is not viable
must_fail /lab/scripts/bind bind $one
/lab/scripts/bind bind $one 2>&1 | grep -q "also holds $two (nvme)" || fail "the refusal does not name the other function"
# Past the script: the kernel refuses too, and our error names who hinders.
modprobe vfio-pci
echo vfio-pci >/sys/bus/pci/devices/$one/driver_override
echo $one >/sys/bus/pci/devices/$one/driver/unbind
echo $one >/sys/bus/pci/drivers_probe
$pci $one >/tmp/out 2>&1 && fail "a group with a driver of the kernel in it was opened"
cat /tmp/out
grep -q "$two (nvme)" /tmp/out || fail "the error does not name the other function"

step both together
must /lab/scripts/bind bind $one $two
$pci $one $two >/tmp/out 2>&1
status=$?
cat /tmp/out
same $status 0 "the status of the one who drives both"
same "$(grep -c "allocated" /tmp/out)" 4 "mappings at addresses the IOMMU can use"
same "$(grep -c "model .*QEMU NVMe" /tmp/out)" 6 "IDENTIFY of both"

step back to the kernel
must /lab/scripts/bind unbind $one $two
within 30 ls -d /sys/bus/pci/devices/$two/nvme/nvme*/nvme*n1
""",
)
