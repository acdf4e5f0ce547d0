"""One guest: a QEMU process, its console, its QMP socket and its line to the host."""
import base64
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shlex
import shutil
import socket
import subprocess
import tempfile
import threading
import time

GUEST_FILES = pathlib.Path(__file__).resolve().parent.parent / "guest"
SCRIPTS = pathlib.Path(__file__).resolve().parents[3] / "scripts"
# What isa-debug-exit makes of the byte a guest writes: (v << 1) | 1. QEMU's own failures are 1, a reboot is 0.
PASSED, FAILED, SKIPPED, NO_ROOT, BROKEN = 0x10, 0x11, 0x12, 0x7E, 0x7F
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[c>=]|[\r\x00]")
# A boot takes 6 s on an idle machine and over a minute on a busy one.
SOCKET_WAIT_S = 120


@dataclasses.dataclass
class Guest:
    """What a test asks of one guest."""

    script: str = ""
    name: str = "main"
    cpus: int = 2
    memory_mib: int = 1024
    # Words for the kernel's command line.
    append: str = ""
    # QEMU arguments, in order: ["-drive", "…", "-device", "nvme,…"]. {work} is the test's folder.
    arguments: list = dataclasses.field(default_factory=list)
    # Networks to the host: eth0 is 10.0.2.15 and finds the host's loopback at 10.0.2.2, eth1 10.0.3.15 at 10.0.3.2, …
    networks: int = 1
    # A network card on the wire the guests of the test share: lab0, 10.9.0.N by the guest's number.
    wire: bool = False
    # Huge pages of 2 MiB, from boot.
    hugepages: int = 0
    # An IOMMU with interrupt remapping, as VFIO needs it.
    iommu: bool = False
    # Memory by a descriptor that other processes can map, as vfio-user-pci and vhost-user need it.
    shared_memory: bool = False
    # False: no root disk of its own; `append` says where the root is.
    root: bool = True
    # False: the test waits for its end but the other guests decide.
    decides: bool = True


class Qmp:
    """QEMU's monitor."""

    def __init__(self, path):
        self.stream = connect(path)
        self.reader = self.stream.makefile("r")
        self.lock = threading.Lock()
        self.reader.readline()
        self.command("qmp_capabilities")

    def command(self, execute, /, **arguments):
        """Has QEMU do something; what it answers. Names with hyphens: `**{"node-name": …}`."""
        with self.lock:
            self.stream.sendall(json.dumps({"execute": execute, "arguments": arguments}).encode() + b"\n")
            while True:
                line = self.reader.readline()
                if not line:
                    raise ConnectionError(f"QEMU ended during {execute}")
                answer = json.loads(line)
                if "error" in answer:
                    raise RuntimeError(f"QMP {execute}: {answer['error']['desc']}")
                if "return" in answer:
                    return answer["return"]


def connect(path):
    deadline = time.monotonic() + SOCKET_WAIT_S
    while True:
        stream = socket.socket(socket.AF_UNIX)
        try:
            stream.connect(str(path))
            return stream
        except OSError:
            stream.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def accelerator(parts):
    """QEMU's arguments for KVM where it really boots this kernel, for software emulation elsewhere."""
    emulation = ["-accel", "tcg,thread=multi", "-cpu", "max"]
    native = ["-accel", "kvm", "-cpu", "host"]
    given = os.environ.get("POLLUX_LAB_ACCEL")
    if given:
        return {"kvm": native, "tcg": emulation}.get(given) or ["-accel", given, "-cpu", "max"]
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return emulation
    model = re.search(r"model name\s*:\s*(.*)", pathlib.Path("/proc/cpuinfo").read_text())
    known_by = f"{os.uname().release} {model and model[1]} {parts.manifest['kernel']} {parts.manifest['qemu']}"
    verdict = parts.folder.parent / f"kvm-{hashlib.sha256(known_by.encode()).hexdigest()[:12]}"
    if not verdict.exists():
        print("lab: trying whether KVM boots the lab's kernel (once; at most 30 s)", flush=True)
        verdict.write_text("yes" if boots(parts, native) else "no")
        print(f"lab: KVM boots it: {verdict.read_text()}", flush=True)
    return native if verdict.read_text() == "yes" else emulation


def boots(parts, acceleration):
    command = [*parts.qemu(), *base_arguments(parts, acceleration, "q35"), "-m", "512", "-serial", "null", "-append", "lab.probe panic=-1 no_timer_check"]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=parts.environment())
        deadline = time.monotonic() + 30
        try:
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.2)
                said.seek(0)
                if b"KVM internal error" in said.read(1 << 16):  # QEMU stops there and waits for a debugger
                    break
            return process.poll() == (PASSED << 1 | 1)
        finally:
            process.kill()
            process.wait()


def base_arguments(parts, acceleration, machine):
    return [
        "-nodefaults", "-no-user-config", "-run-with", "exit-with-parent=on", "-display", "none", "-no-reboot", "-machine", machine, *acceleration,
        "-kernel", str(parts.kernel), "-initrd", str(parts.initramfs), "-device", "isa-debug-exit,iobase=0xf4,iosize=4",
    ]


class Machine:
    """A guest that runs, or ran."""

    def __init__(self, lab, guest, number):
        self.lab, self.guest, self.number = lab, guest, number
        self.folder = lab.folder / guest.name
        self.share = self.folder / "share"
        self.process = self.qmp = self.thread = None
        self.boot, self.cut, self.again = 0, False, False
        self.status, self.reason, self.tail = None, "", []

    def prepare(self):
        self.share.mkdir(parents=True)
        shutil.copytree(GUEST_FILES, self.share / "guest")
        shutil.copytree(SCRIPTS, self.share / "scripts")
        (self.share / "script").write_text(self.guest.script.lstrip())
        addresses = [f"{mac(self.number, index)} 10.0.{index + 2}.15/24 {'default' if index == 0 else ''}" for index in range(self.guest.networks)]
        if self.guest.wire:
            addresses.append(f"{mac(self.number, 9)} 10.9.0.{self.number + 1}/24 lab0")
        (self.share / "networks").write_text("".join(f"{line}\n" for line in addresses))

    def arguments(self):
        guest, work = self.guest, self.folder
        machine = "q35"
        if guest.iommu:
            machine += ",kernel-irqchip=split"
        if guest.shared_memory:
            machine += ",memory-backend=ram0"
        command = [*self.lab.parts.qemu(), *base_arguments(self.lab.parts, self.lab.acceleration, machine)]
        if guest.shared_memory:
            command += ["-object", f"memory-backend-memfd,id=ram0,size={guest.memory_mib}M,share=on"]
        # no_timer_check: a busy machine gives the emulated timer too little time to prove itself at boot.
        append = "console=ttyS0 loglevel=4 panic=-1 net.ifnames=0 mitigations=off random.trust_cpu=on no_timer_check"
        if guest.iommu:
            command += ["-device", "intel-iommu,intremap=on,caching-mode=on,device-iotlb=on"]
            append += " intel_iommu=on iommu=nopt"
        if guest.hugepages:
            append += f" hugepagesz=2M hugepages={guest.hugepages}"
        command += ["-m", f"{guest.memory_mib}M", "-smp", str(guest.cpus), "-append", f"{append} {guest.append}".strip()]
        # Without signals: Ctrl-C in a shell is the guest's.
        command += ["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console", "-qmp", f"unix:{work}/qmp,server=on,wait=off", "-device", "virtio-rng-pci"]
        if guest.root:
            command += ["-drive", f"if=none,id=root,file={self.lab.parts.root},format=raw,snapshot=on", "-device", "virtio-blk-pci,drive=root"]
        command += ["-virtfs", f"local,path={self.share},mount_tag=lab,security_model=none"]
        command += ["-virtfs", f"local,path={self.lab.binaries},mount_tag=bin,security_model=none,readonly=on"]
        command += ["-device", "virtio-serial-pci", "-chardev", f"socket,id=host,path={work}/host,server=on,wait=off", "-device", "virtserialport,chardev=host,name=lab.host"]
        for index in range(guest.networks):
            command += ["-netdev", f"user,id=net{index},net=10.0.{index + 2}.0/24", "-device", f"virtio-net-pci,id=nic{index},netdev=net{index},mac={mac(self.number, index)},romfile="]
        if guest.wire:
            local, remote = self.lab.wire(self.number)
            command += ["-netdev", f"dgram,id=wire,local.type=unix,local.path={local},remote.type=unix,remote.path={remote}"]
            command += ["-device", f"virtio-net-pci,id=wire0,netdev=wire,mac={mac(self.number, 9)},host_mtu=9000,romfile="]
        return command + [str(word).replace("{work}", str(self.lab.folder)) for word in guest.arguments]

    def start(self):
        self.thread = threading.Thread(target=self.live, daemon=True)
        self.thread.start()

    def live(self):
        """Boots until the guest is done, again after each power cut that asks for it."""
        try:
            while True:
                self.boot += 1
                self.cut = self.again = False
                self.one_life()
                if not self.again:
                    break
        except Exception as error:  # noqa: BLE001: whatever it is, the test must end and say it
            self.status, self.reason = BROKEN, f"{type(error).__name__}: {error}"
        finally:
            self.lab.one_ended()

    def one_life(self):
        for name in ("qmp", "host"):
            (self.folder / name).unlink(missing_ok=True)
        environment = {**self.lab.environment(), "LAB_GUEST": self.guest.name, "LAB_BOOT": str(self.boot)}
        (self.share / "env").write_text("".join(f"export {name}={shlex.quote(str(value))}\n" for name, value in environment.items()))
        command = self.arguments()
        (self.folder / "command").write_text(shlex.join(command) + "\n")
        interactive = self.lab.interactive and self.guest.decides
        streams = {} if interactive else {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self.process = subprocess.Popen(command, env={**self.lab.parts.environment(), "TMPDIR": str(self.folder)}, **streams)
        threading.Thread(target=self.serve, args=(self.process,), daemon=True).start()
        if not interactive:
            for line in self.process.stdout:
                self.heard(line.decode(errors="replace"))
        code = self.process.wait()
        self.qmp = None
        if not self.cut and code & 1 and code > 1:
            self.status = code >> 1
        elif not self.cut:
            self.status, self.reason = BROKEN, f"QEMU ended with {code}: " + ("the guest rebooted or its kernel panicked" if code == 0 else "see its words above")

    def heard(self, line):
        line = ESCAPES.sub("", line).rstrip()
        if not line:
            return
        self.tail = [*self.tail[-39:], line]
        self.lab.show(self.guest.name, line)

    def serve(self, process):
        """Answers the guest's `host` calls while this process lives."""
        try:
            self.qmp = Qmp(self.folder / "qmp")
            line = connect(self.folder / "host")
        except OSError:
            return
        try:
            with line, line.makefile("rw") as stream:
                for text in stream:
                    if not text.endswith("\n"):
                        break  # the guest died in the middle of a word
                    words = [base64.b64decode(one[1:]).decode(errors="replace") for one in text.split()]
                    word, answer = self.lab.call(self, words)
                    stream.write(f"{word} {base64.b64encode(answer.encode()).decode()}\n")
                    stream.flush()
        except OSError:
            pass  # the guest is gone; its exit status says why

    def power_cut(self, boot_again=True):
        """The machine loses power now: nothing in QEMU or the guest is flushed."""
        self.cut, self.again = True, boot_again
        self.process.kill()

    def kill(self):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def mac(guest, index):
    return f"52:54:00:4c:{guest:02x}:{index:02x}"
