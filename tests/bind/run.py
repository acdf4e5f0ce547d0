#!/usr/bin/env python3
"""scripts/bind on a machine that is made of files: a tree of sysfs and proc, and a thread that plays the kernel.

usage: run.py [--only NAME]
"""
import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading
import traceback

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIND = ROOT / "scripts" / "bind"
TESTS = []
NVME, ETHERNET, BRIDGE = "010802", "020000", "060400"
HOME_DRIVER = {NVME: "nvme", ETHERNET: "e1000e", BRIDGE: "pcieport"}


def test(function):
    """What is decorated is run, with a fresh machine as its argument."""
    TESTS.append(function)
    return function


class Machine:
    """A tree that scripts/bind takes for the machine. Its control files are pipes into a thread that does what a kernel does."""

    def __init__(self):
        self.root = pathlib.Path(tempfile.mkdtemp(prefix="pollux-bind-"))
        self.ends = []
        self.written = []
        self.refuses = set()
        for name in ("sys/bus/pci/devices", "sys/bus/pci/drivers", "sys/class/block", "proc/net", "proc/self", "bin"):
            (self.root / name).mkdir(parents=True)
        self.pipe("sys/bus/pci/drivers_probe", self.probe)
        for name in ("nvme", "e1000e", "pcieport"):
            self.driver(name)
        # The module is loaded when it is asked for.
        modprobe = self.root / "bin/modprobe"
        modprobe.write_text(f"#!/bin/sh\necho $1 >>{self.root}/modprobed\n[ $1 = vfio-pci ] || exit 0\necho load >{self.root}/load\nuntil [ -e {self.root}/loaded ]; do sleep 0.02; done\n")
        modprobe.chmod(0o755)
        self.has_vfio = True
        self.pipe("load", lambda _: self.load())

    def pipe(self, path, action):
        """A file whose writes are given to `action`, in order."""
        path = self.root / path
        os.mkfifo(path)
        # Read and write: the pipe never ends, and a writer finds a reader at once.
        end = os.open(path, os.O_RDWR)
        self.ends.append(end)

        def play():
            while True:
                text = os.read(end, 4096).decode().strip()
                if text == "end":
                    return
                self.written.append(f"{path.relative_to(self.root)} {text}")
                action(text)

        threading.Thread(target=play, daemon=True).start()

    def driver(self, name):
        folder = self.root / "sys/bus/pci/drivers" / name
        if folder.exists():
            return
        folder.mkdir()
        self.pipe(f"sys/bus/pci/drivers/{name}/unbind", lambda address: (self.folder(address) / "driver").unlink())

    def load(self):
        if self.has_vfio:
            self.driver("vfio-pci")
        (self.root / "loaded").touch()

    def probe(self, address):
        folder = self.folder(address)
        if (folder / "driver").is_symlink():
            return
        name = (folder / "driver_override").read_text().strip() or HOME_DRIVER[(folder / "class").read_text()[2:].strip()]
        if name not in self.refuses and (self.root / "sys/bus/pci/drivers" / name).exists():
            (folder / "driver").symlink_to(self.root / "sys/bus/pci/drivers" / name)

    def folder(self, address):
        return self.root / "sys/devices/pci0000:00" / address

    def function(self, address, code=NVME, group=None, numa="-1"):
        folder = self.folder(address)
        folder.mkdir(parents=True)
        for name, text in {"vendor": "0x1b36", "device": "0x0010", "class": f"0x{code}", "numa_node": numa, "driver_override": "", "modalias": "pci:v1b36"}.items():
            (folder / name).write_text(text + "\n")
        (self.root / "sys/bus/pci/devices" / address).symlink_to(folder)
        (folder / "driver").symlink_to(self.root / "sys/bus/pci/drivers" / HOME_DRIVER[code])
        if group is not None:
            members = self.root / f"sys/kernel/iommu_groups/{group}/devices"
            members.mkdir(parents=True, exist_ok=True)
            (members / address).symlink_to(folder)
            (folder / "iommu_group").symlink_to(members.parent)

    def block(self, place, number):
        """A block device at a path below sys/devices."""
        folder = self.root / "sys/devices" / place
        (folder / "holders").mkdir(parents=True)
        (folder / "dev").write_text(number + "\n")
        (self.root / "sys/class/block" / folder.name).symlink_to(folder)

    def write(self, path, text):
        path = self.root / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def bound(self, address):
        link = self.folder(address) / "driver"
        return os.path.basename(os.readlink(link)) if link.is_symlink() else None

    def bind(self, *words, status=0):
        environment = {**os.environ, "POLLUX_BIND_ROOT": str(self.root), "PATH": f"{self.root}/bin:{os.environ['PATH']}"}
        done = subprocess.run([sys.executable, str(BIND), *words], env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == status, f"bind {words}: exit {done.returncode}, wanted {status}\n{done.stdout}{done.stderr}"
        return done.stdout if status == 0 else done.stderr

    def refused(self, *words, naming):
        before, drivers = list(self.written), {address.name: self.bound(address.name) for address in (self.root / "sys/bus/pci/devices").iterdir()}
        said = self.bind(*words, status=1)
        for word in (*naming, "Remedy"):
            assert word in said, f"{words}: {word!r} is not in {said!r}"
        assert self.written == before, "something was written before it was refused"
        assert drivers == {address: self.bound(address) for address in drivers}
        return said

    def close(self):
        for end in self.ends:
            os.write(end, b"end\n")
        shutil.rmtree(self.root, ignore_errors=True)


@test
def status_shows_what_there_is(machine):
    machine.function("0000:01:00.0", group=4, numa="1")
    machine.function("0000:02:00.0", ETHERNET, group=5)
    machine.function("0000:00:01.0", BRIDGE, group=1)
    machine.block("pci0000:00/0000:01:00.0/nvme/nvme0/nvme0n1", "259:0")
    machine.write("proc/self/mountinfo", "22 21 259:0 / /data rw - xfs /dev/nvme0n1 rw\n")
    rows = json.loads(machine.bind("status", "--json"))
    assert [row["address"] for row in rows] == ["0000:01:00.0", "0000:02:00.0"], rows
    first = rows[0]
    assert (first["kind"], first["id"], first["driver"], first["iommu_group"], first["numa_node"]) == ("NVMe", "1b36:0010", "nvme", 4, 1), first
    assert first["uses"] == ["nvme0n1 is mounted at /data"], first
    shown = machine.bind("status")
    assert "0000:01:00.0" in shown and "mounted at /data" in shown and "0000:00:01.0" not in shown, shown
    assert "0000:00:01.0" in machine.bind("status", "--all")
    assert "01:00.0" in machine.bind("status", "1:0.0")


@test
def a_device_goes_to_vfio_and_back(machine):
    machine.function("0000:01:00.0", group=4)
    machine.function("0000:02:00.0", group=5)
    machine.bind("bind", "01:00.0", "0000:02:00.0")
    assert machine.bound("0000:01:00.0") == machine.bound("0000:02:00.0") == "vfio-pci"
    # Again: nothing changes.
    before = [line for line in machine.written if not line.startswith("load")]
    machine.bind("bind", "0000:01:00.0")
    assert before == [line for line in machine.written if not line.startswith("load")]
    rows = json.loads(machine.bind("unbind", "0000:01:00.0", "--json"))
    assert rows[0]["driver"] == "nvme" and machine.bound("0000:01:00.0") == "nvme"
    assert (machine.folder("0000:01:00.0") / "driver_override").read_text().strip() == ""
    assert machine.bound("0000:02:00.0") == "vfio-pci"
    assert (machine.root / "modprobed").read_text().split()[-1] == "pci:v1b36"
    machine.refused("unbind", "0000:01:00.0", naming=["bound to nvme"])


@test
def what_the_machine_uses_is_refused_by_name(machine):
    machine.function("0000:01:00.0", group=4)
    machine.function("0000:02:00.0", group=5)
    disk = "pci0000:00/0000:01:00.0/nvme/nvme0/nvme0n1"
    machine.block(disk, "259:0")
    machine.block(f"{disk}/nvme0n1p1", "259:1")
    machine.block("virtual/block/dm-0", "253:0")
    machine.block("virtual/block/md0", "9:0")

    def refused(*naming):
        machine.refused("bind", "0000:01:00.0", naming=naming)
        # One that is used stops all that were named.
        machine.refused("bind", "0000:02:00.0", "0000:01:00.0", naming=naming)

    machine.write("proc/self/mountinfo", "22 21 259:1 / /boot rw - ext4 /dev/nvme0n1p1 rw\n")
    refused("nvme0n1p1 is mounted at /boot")
    machine.write("proc/self/mountinfo", "22 21 0:40 / /data rw - btrfs /dev/nvme0n1 rw\n")
    refused("nvme0n1 is mounted at /data")
    machine.write("proc/self/mountinfo", "22 21 259:77 / /data rw - ext4 /dev/sda rw\n")
    machine.write("proc/swaps", "Filename Type Size Used Priority\n/dev/nvme0n1p1 partition 1 0 -2\n")
    refused("nvme0n1p1 is swap space")
    machine.write("proc/swaps", "Filename Type Size Used Priority\n")
    machine.write(f"sys/devices/{disk}/nvme0n1p1/holders/dm-0", "")
    machine.write("sys/devices/virtual/block/dm-0/dm/name", "vg-home")
    refused("nvme0n1p1 is part of dm-0 (vg-home)")
    # A file system on the volume above is named as well.
    machine.write("proc/self/mountinfo", "22 21 253:0 / /home rw - ext4 /dev/mapper/vg-home rw\n")
    refused("dm-0 is mounted at /home")
    (machine.root / f"sys/devices/{disk}/nvme0n1p1/holders/dm-0").unlink()
    machine.write(f"sys/devices/{disk}/holders/md0", "")
    refused("nvme0n1 is part of md0")
    (machine.root / f"sys/devices/{disk}/holders/md0").unlink()
    machine.bind("bind", "0000:01:00.0")


@test
def a_disk_with_several_paths_is_used_through_each(machine):
    machine.function("0000:01:00.0", group=4)
    machine.block("virtual/nvme-subsystem/nvme-subsys0/nvme0n1", "259:0")
    machine.write("sys/devices/pci0000:00/0000:01:00.0/nvme/nvme0/transport", "pcie")
    (machine.root / "sys/devices/virtual/nvme-subsystem/nvme-subsys0/nvme0").symlink_to(machine.folder("0000:01:00.0") / "nvme/nvme0")
    machine.write("proc/self/mountinfo", "22 21 259:0 / /data rw - xfs /dev/nvme0n1 rw\n")
    machine.refused("bind", "0000:01:00.0", naming=["nvme0n1 is mounted at /data"])


@test
def interfaces_that_are_up_are_refused(machine):
    machine.function("0000:02:00.0", ETHERNET, group=5)
    machine.write("sys/devices/pci0000:00/0000:02:00.0/net/eth0/flags", "0x1003\n")
    machine.refused("bind", "0000:02:00.0", naming=["eth0 is up"])
    machine.write("proc/net/route", "Iface Destination Gateway Flags RefCnt Use Metric Mask\neth0 00000000 0202000A 0003 0 0 0 00000000\n")
    machine.refused("bind", "0000:02:00.0", naming=["eth0 is up and carries the default route"])
    (machine.folder("0000:02:00.0") / "net/eth0/master").symlink_to(machine.root / "sys/devices/virtual/net/bond0")
    machine.refused("bind", "0000:02:00.0", naming=["part of bond0"])
    machine.write("sys/devices/pci0000:00/0000:02:00.0/net/eth0/flags", "0x1002\n")
    machine.bind("bind", "0000:02:00.0")


@test
def a_group_goes_together(machine):
    machine.function("0000:01:00.0", group=4)
    machine.function("0000:01:00.1", ETHERNET, group=4)
    machine.function("0000:00:01.0", BRIDGE, group=4)
    machine.refused("bind", "0000:01:00.0", naming=["IOMMU group 4", "0000:01:00.1 (e1000e)"])
    machine.bind("bind", "0000:01:00.0", "0000:01:00.1")
    assert machine.bound("0000:01:00.1") == "vfio-pci" and machine.bound("0000:00:01.0") == "pcieport"


@test
def without_an_iommu_nothing_is_bound_unless_asked(machine):
    machine.function("0000:01:00.0")
    machine.refused("bind", "0000:01:00.0", naming=["IOMMU is off", "intel_iommu=on"])
    machine.bind("bind", "0000:01:00.0", "--unsafe-no-iommu", status=1)
    assert machine.bound("0000:01:00.0") == "nvme", "bound although the kernel has no such mode"
    machine.write("sys/module/vfio/parameters/enable_unsafe_noiommu_mode", "N\n")
    machine.bind("bind", "0000:01:00.0", "--unsafe-no-iommu")
    assert (machine.root / "sys/module/vfio/parameters/enable_unsafe_noiommu_mode").read_text() == "Y"
    assert machine.bound("0000:01:00.0") == "vfio-pci"


@test
def a_device_that_is_driven_is_not_taken_away(machine):
    machine.function("0000:01:00.0", group=4)
    machine.bind("bind", "0000:01:00.0")
    machine.write("proc/4711/comm", "polluxd\n")
    (machine.root / "proc/4711/fd").mkdir()
    (machine.root / "proc/4711/fd/9").symlink_to("/dev/vfio/4")
    machine.refused("unbind", "0000:01:00.0", naming=["process 4711 (polluxd) drives it"])
    assert "polluxd" in machine.bind("status")
    (machine.root / "proc/4711/fd/9").unlink()
    # The other way VFIO is opened.
    machine.write("sys/devices/pci0000:00/0000:01:00.0/vfio-dev/vfio3/dev", "511:3")
    (machine.root / "proc/4711/fd/9").symlink_to("/dev/vfio/devices/vfio3")
    machine.refused("unbind", "0000:01:00.0", naming=["process 4711"])
    (machine.root / "proc/4711/fd/9").unlink()
    machine.bind("unbind", "0000:01:00.0")


@test
def a_failed_bind_leaves_things_as_they_were(machine):
    machine.function("0000:01:00.0", group=4)
    machine.driver("vfio-pci")
    machine.refuses.add("vfio-pci")
    said = machine.bind("bind", "0000:01:00.0", status=1)
    assert "does not take 0000:01:00.0" in said and "Remedy" in said, said
    assert (machine.folder("0000:01:00.0") / "driver_override").read_text().strip() == ""
    for _ in range(250):
        if machine.bound("0000:01:00.0") == "nvme":
            break
        threading.Event().wait(0.02)
    assert machine.bound("0000:01:00.0") == "nvme"


@test
def a_kernel_without_the_module_is_said(machine):
    machine.function("0000:01:00.0", group=4)
    machine.has_vfio = False
    said = machine.bind("bind", "0000:01:00.0", status=1)
    assert "no driver vfio-pci" in said and machine.bound("0000:01:00.0") == "nvme", said


@test
def bad_words_are_refused(machine):
    machine.function("0000:00:01.0", BRIDGE, group=1)
    machine.refused("bind", "0000:00:01.0", naming=["is a bridge"])
    machine.refused("bind", "0000:07:00.0", naming=["no PCI function"])
    for word in ("x", "0000:01:00.8", "0000:01:20.0", "../../etc", "01:00.0/"):
        machine.refused("bind", word, naming=["is not a PCI address"])
    machine.bind("bind", status=2)
    machine.bind("explode", status=2)
    assert "usage: scripts/bind" in machine.bind("--help") and "usage: scripts/bind" in machine.bind("bind", "--help")
    environment = {**os.environ, "POLLUX_BIND_ROOT": str(machine.root)}
    done = subprocess.run([sys.executable, str(BIND), "bind", "x", "--json"], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and "error" in json.loads(done.stdout), done


@test
def changing_drivers_needs_root(_):
    environment = {name: value for name, value in os.environ.items() if name != "POLLUX_BIND_ROOT"}
    # From its text, and with everything imported before: an ordinary user may not be able to read where they are.
    become = "import argparse, json, os, pathlib, re, signal, subprocess, sys, time\nif os.geteuid() == 0:\n    os.setuid(65534)\n"
    command = [sys.executable, "-c", become + BIND.read_text(), "bind", "ffff:ff:1f.7"]
    done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and "needs root" in done.stderr, done.stderr


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="run only tests whose name holds this")
    arguments = parser.parse_args()
    passed = failed = 0
    for run in TESTS:
        if arguments.only not in run.__name__:
            continue
        machine = Machine()
        try:
            run(machine)
            passed += 1
            print(f"ok      bind::{run.__name__}", flush=True)
        except Exception:  # every failure is a failed test, whatever its kind
            failed += 1
            print(f"FAILED  bind::{run.__name__}\n{traceback.format_exc()}", flush=True)
        finally:
            machine.close()
    print(f"totals: {passed} passed, {failed} failed, 0 skipped")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
