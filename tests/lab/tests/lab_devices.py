"""The lab itself: NVMe behind an IOMMU, VFIO, huge pages, hot plug and resize by QMP, and what was flushed outlives a power cut."""
from machine import Guest

TIER = "full"


def setup(lab):
    for name in ("one", "two", "virtio"):
        with (lab.folder / f"{name}.img").open("wb") as file:
            file.truncate(32 << 20)


def step_resize(lab, mebibytes):
    lab.guest.qmp.command("block_resize", device="v0", size=int(mebibytes) << 20)


def step_unplug(lab):
    lab.guest.qmp.command("device_del", id="nvme1")


def step_plug(lab):
    lab.guest.qmp.command("device_add", driver="nvme", id="nvme1", drive="n1", serial="two", bus="port1")


def step_power_cut(lab):
    lab.guest.power_cut()


def verify(lab):
    assert lab.guest.boot == 2, f"the guest booted {lab.guest.boot} times"


GUEST = Guest(
    iommu=True,
    hugepages=16,
    append="isolcpus=managed_irq,domain,1 nohz_full=1",
    arguments=[
        "-drive", "if=none,id=n0,file={work}/one.img,format=raw,cache=writeback",
        "-drive", "if=none,id=n1,file={work}/two.img,format=raw,cache=writeback",
        "-drive", "if=none,id=v0,file={work}/virtio.img,format=raw,cache=writeback",
        # QEMU resizes a disk of virtio, not a namespace of its NVMe controller.
        "-device", "virtio-blk-pci,drive=v0,serial=virtio",
        "-device", "nvme,id=nvme0,drive=n0,serial=one",
        "-device", "pcie-root-port,id=port1,chassis=1",
        "-device", "nvme,id=nvme1,drive=n1,serial=two,bus=port1",
    ],
    script=r"""
. /lab/guest/lib.sh
must modprobe nvme
nvme_of() { grep -l "^$1" /sys/class/nvme/*/serial 2>/dev/null | cut -d / -f 5; }
present() { [ -n "$(nvme_of "$1")" ] && [ -b "/dev/$(nvme_of "$1")n1" ]; }
absent() { [ -z "$(nvme_of "$1")" ]; }
within 60 present one
one=/dev/$(nvme_of one)n1
if [ "$LAB_BOOT" = 2 ]; then
    step after the power cut
    same "$(dd if="$one" bs=4k count=1 iflag=direct status=none | head -c 8)" flushed! "the block that was flushed"
    exit 0
fi
step huge pages, isolation, IOMMU
same "$(grep HugePages_Total /proc/meminfo | tr -dc 0-9)" 16 "the number of huge pages"
same "$(cat /sys/devices/system/cpu/isolated)" 1 "the isolated processors"
must ls -d /sys/kernel/iommu_groups/*/devices/*
step hot unplug and plug
within 60 present two
host unplug
within 60 absent two
host plug
within 60 present two
step resize
resized=/dev/$(basename "$(dirname "$(grep -l '^virtio$' /sys/block/vd*/serial)")")
size_is() { [ "$(blockdev --getsize64 "$resized")" -eq "$1" ]; }
size_is 33554432 || fail "$resized is not 32 MiB large"
host resize 64
within 60 size_is 67108864
step VFIO
device=$(basename "$(readlink -f /sys/class/nvme/"$(nvme_of two)"/device)")
must modprobe vfio_pci
echo vfio-pci >/sys/bus/pci/devices/$device/driver_override
echo $device >/sys/bus/pci/drivers/nvme/unbind
echo $device >/sys/bus/pci/drivers_probe
same "$(basename "$(readlink /sys/bus/pci/devices/$device/driver)")" vfio-pci "the driver"
must test -c /dev/vfio/"$(basename "$(readlink /sys/bus/pci/devices/$device/iommu_group)")"
step power cut
printf 'flushed!' >/tmp/block
truncate -s 4096 /tmp/block
must dd if=/tmp/block of="$one" bs=4k oflag=direct conv=fsync status=none
host power_cut
sleep 60
fail "the power stayed on"
""",
)
