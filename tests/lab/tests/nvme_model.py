"""The NVMe model under Linux's own driver: file system, fio, every command, reset, format, resize; no rule broken."""
import pathlib
import socket
import subprocess

from machine import Guest

TIER = "full"
SECONDS_MAX = 1500
SIZE = 64 << 20


def setup(lab):
    folder = lab.folder
    binary = lab.binaries / "nvme-model"
    if not binary.exists():
        raise FileNotFoundError(f"{binary} is not built: cargo build --release -p sim --bin nvme-model")
    lab.model_log = folder / "model.log"
    words = [binary, "--socket", folder / "nvme.sock", "--control", folder / "control.sock", "--size", str(SIZE)]
    words += ["--namespaces", "2", "--vwc"]
    with lab.model_log.open("wb") as log:
        lab.model = subprocess.Popen([str(word) for word in words], stdout=log, stderr=subprocess.STDOUT)
    lab.at_end(lab.model.kill)
    machine_wait(folder / "nvme.sock", lab.model)


def machine_wait(path, process):
    import time

    for _ in range(600):
        if pathlib.Path(path).exists():
            return
        if process.poll() is not None:
            raise RuntimeError(f"nvme-model ended with {process.returncode}")
        time.sleep(0.1)
    raise TimeoutError(f"{path} does not appear")


def step_model(lab, *words):
    """Says a line to the model's control socket; the answer."""
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(lab.folder / "control.sock"))
        line.sendall(" ".join(words).encode() + b"\n")
        answer = line.makefile().readline().strip()
    if answer.startswith("error"):
        raise RuntimeError(answer)
    return answer


def verify(lab):
    said = lab.model_log.read_text(errors="replace").splitlines()
    violations = [line for line in said if line.startswith("violation:")]
    for line in said[-30:]:
        lab.show("model", line)
    if lab.model.poll() is not None:
        lab.fail(f"the model ended with {lab.model.returncode}")
    if violations:
        lab.fail(f"{len(violations)} rules broken, the first: {violations[0]}")


GUEST = Guest(
    shared_memory=True,
    arguments=[
        "-device",
        '{"driver":"vfio-user-pci","socket":{"type":"unix","path":"{work}/nvme.sock"},"rombar":0}',
    ],
    script=r"""
. /lab/guest/lib.sh
lspci -vv -d 4e56: | head -40
modprobe nvme
sleep 8
ls /dev/nvme*
dmesg | grep -i nvme
nvme list
nvme id-ctrl /dev/nvme0 | head -60
nvme id-ns /dev/nvme0n1
""",
)
