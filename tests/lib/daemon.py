"""Starts a polluxd of one's own for a black-box test: a private folder, a private socket, a free port."""
import json
import pathlib
import shutil
import socket
import subprocess
import tempfile
import time

IQN = "iqn.2026-01.io.pollux:test"


class RpcError(Exception):
    """The daemon answered with a JSON-RPC error."""

    def __init__(self, error):
        super().__init__(error.get("message", ""))
        self.code = error.get("code")
        self.message = error.get("message", "")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Daemon:
    """One polluxd process."""

    def __init__(self, path, cores=1, mode="adaptive", extra=()):
        self.path, self.port = str(path), free_port()
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="pollux-test-"))
        self.socket = self.folder / "rpc.sock"
        self.log = self.folder / "polluxd.log"
        self.mask = "[" + ",".join(str(core) for core in range(cores)) + "]"
        self.arguments = ["-m", self.mask, "--mode", mode, *extra]
        self.process = None

    def start(self, config=None):
        arguments = [self.path, "-r", str(self.socket), *self.arguments]
        if config is not None:
            file = self.folder / "config.json"
            file.write_text(json.dumps(config))
            arguments += ["-c", str(file)]
        self.process = subprocess.Popen(arguments, stdout=self.log.open("ab"), stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"polluxd ended with {self.process.returncode}:\n{self.log_tail()}")
            try:
                self.rpc("spdk_get_version")
                return self
            except (OSError, ValueError):
                time.sleep(0.05)
        raise RuntimeError(f"polluxd does not answer:\n{self.log_tail()}")

    def start_default_disk(self, megabytes=100):
        """The disk of quickstart: a RAM disk as LUN 0, open to initiators on this machine."""
        self.start()
        self.rpc("bdev_malloc_create", name="Ram0", num_blocks=megabytes * 2048, block_size=512)
        self.export(["Ram0"])
        return self

    def export(self, bdevs, iqn=IQN, **options):
        self.rpc("iscsi_create_portal_group", tag=1, portals=[{"host": "127.0.0.1", "port": str(self.port)}])
        self.rpc("iscsi_create_initiator_group", tag=1, initiators=["ANY"], netmasks=["127.0.0.0/8"])
        options.setdefault("disable_chap", True)
        self.rpc(
            "iscsi_create_target_node",
            name=iqn,
            alias_name="test",
            pg_ig_maps=[{"pg_tag": 1, "ig_tag": 1}],
            luns=[{"bdev_name": name, "lun_id": number} for number, name in enumerate(bdevs)],
            queue_depth=128,
            **options,
        )

    def url(self, lun, iqn=IQN, user=None):
        login = f"{user}@" if user else ""
        return f"iscsi://{login}127.0.0.1:{self.port}/{iqn}/{lun}"

    def rpc(self, method, **params):
        request = {"jsonrpc": "2.0", "id": 1, "method": method}
        if params:
            request["params"] = params
        with socket.socket(socket.AF_UNIX) as stream:
            stream.settimeout(60)
            stream.connect(str(self.socket))
            stream.sendall(json.dumps(request).encode())
            text = ""
            while True:
                part = stream.recv(65536)
                if not part:
                    raise ValueError(f"{method}: the daemon closed the connection")
                text += part.decode()
                try:
                    answer = json.loads(text)
                    break
                except ValueError:
                    continue
        if "error" in answer:
            raise RpcError(answer["error"])
        return answer["result"]

    def alive(self):
        return self.process is not None and self.process.poll() is None

    def log_tail(self, lines=30):
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def terminate(self):
        """Ends the process; its exit status must be 0. The folder stays."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            status = self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            status = "killed after 30 s"
        self.process = None
        if status != 0:
            raise RuntimeError(f"polluxd ended with {status}")

    def stop(self):
        """Ends the process and removes its folder; the exit status must be 0."""
        try:
            self.terminate()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()
