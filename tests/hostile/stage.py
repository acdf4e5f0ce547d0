"""What every attack needs: the daemon, its disks and users, the healthy session, and the checks after each attack."""
import pathlib
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "lib"))
import daemon  # noqa: E402
import healthy  # noqa: E402
import initiator as wire  # noqa: E402

TARGET = daemon.IQN
CHAP_TARGET = "iqn.2026-01.io.pollux:chap"
# LUNs of TARGET: the attackers' disk, the healthy session's disk, a disk for commands that spoil it.
DISK, HEALTHY_DISK, SPOILED_DISK = 0, 1, 2
MEGABYTES = 16
ALICE, SECRET, MUTUAL = "alice", "correct horse battery", "mallory"
# Bounds of what one attack may cost.
SLOWEST_S = 5.0
GROWTH_KB = 64 * 1024
GROWTH_ALL_KB = 192 * 1024
LINES = 200
LINES_PER_SECOND = 15


class Skip(Exception):
    """This cannot be tested here."""


def check(holds, message):
    if not holds:
        raise AssertionError(message)


def refused_with(statuses, what):
    """`what` ends in a login refusal with one of these statuses (None: or in a closed connection)."""
    try:
        result = what()
    except wire.Refused as refusal:
        check(refusal.status in statuses, f"login status {refusal.status:04x}h")
        return
    except wire.Closed:
        check(None in statuses, "the connection was closed without a word")
        return
    raise AssertionError(f"not refused: {result}")


class Stage:
    """A running daemon with a healthy session on it."""

    def __init__(self, path, cores):
        self.daemon = daemon.Daemon(path, cores=cores)
        self.cores = cores
        self.healthy = None
        self.secrets = {ALICE: SECRET, MUTUAL: "what mallory knows"}
        for user in ("0x616c696365", "0b616c696365", "0xabc", "0bYWxpY2U="):
            self.secrets[user] = f"the secret of {user}"

    @property
    def port(self):
        return self.daemon.port

    def start(self):
        rpc = self.daemon.rpc
        self.daemon.start()
        for number in range(4):
            rpc("bdev_malloc_create", name=f"Ram{number}", num_blocks=MEGABYTES * 2048, block_size=512)
        self.daemon.export(["Ram0", "Ram1", "Ram2"])
        users = [{"user": user, "secret": secret} for user, secret in self.secrets.items() if user != MUTUAL]
        users.append({"user": MUTUAL, "secret": self.secrets[MUTUAL], "muser": "target", "msecret": "what the target knows"})
        rpc("iscsi_create_auth_group", tag=1, secrets=users)
        rpc(
            "iscsi_create_target_node", name=CHAP_TARGET, alias_name="chap", pg_ig_maps=[{"pg_tag": 1, "ig_tag": 1}],
            luns=[{"bdev_name": "Ram3", "lun_id": 0}], queue_depth=32, disable_chap=False, require_chap=True, chap_group=1,
        )
        self.healthy = healthy.Healthy(self.port, TARGET, HEALTHY_DISK)
        # RAM that is written once does not grow any more.
        with self.session() as session:
            for lun in (DISK, SPOILED_DISK):
                for lba in range(0, MEGABYTES * 2048, 2048):
                    session.write_blocks(lba, b"\xa5" * (2048 * 512), lun)
        time.sleep(1)
        self.first = self.memory()
        return self

    def stop(self):
        if self.healthy:
            self.healthy.stop()
        self.daemon.stop()

    def session(self, **options):
        """A new session with TARGET, its unit attentions read."""
        name = options.pop("name", wire.NAME)
        timeout = options.pop("timeout", 10)
        session = wire.Session(self.port, TARGET, name=name, timeout=timeout, receive_buffer=options.pop("receive_buffer", None))
        session.login(**options)
        for lun in (DISK, HEALTHY_DISK, SPOILED_DISK):
            session.ready(lun)
        return session

    def memory(self):
        """Resident memory in KB."""
        for line in pathlib.Path(f"/proc/{self.daemon.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
        return 0

    def descriptors(self):
        return sum(1 for _ in pathlib.Path(f"/proc/{self.daemon.process.pid}/fd").iterdir())

    def lines(self):
        """Lines of the log, without those that record our own requests to the control plane."""
        return sum(b" rpc: " not in line for line in self.daemon.log.read_bytes().splitlines())

    def connections(self):
        return self.daemon.rpc("iscsi_get_connections")

    def eventually(self, holds, message, seconds=8):
        deadline = time.monotonic() + seconds
        while not holds():
            check(time.monotonic() < deadline, message)
            time.sleep(0.05)

    def all_gone(self):
        """Only the healthy session is left."""
        self.eventually(lambda: len(self.connections()) <= 1, "connections of the attack are still there")

    rpc_error = daemon.RpcError

    def run(self, attack):
        """One attack, and what must hold after it."""
        check(self.daemon.alive(), "the daemon is not alive before the attack")
        self.healthy.check()
        wire.Connection.opened = wire.Connection.received = 0
        memory, lines, started = self.memory(), self.lines(), time.monotonic()
        failure = None
        try:
            attack(self)
        except Skip:
            raise
        except Exception as error:  # the checks below come first: a dead daemon explains what came before
            failure = error
        took = time.monotonic() - started
        check(self.daemon.alive(), f"polluxd died: {self.daemon.process.poll()}; {failure!r}")
        time.sleep(0.1)
        report = self.healthy.check()
        lost = getattr(attack, "takes_commands_away", False)
        problems = [repr(failure)] if failure else []
        if report["errors"]:
            problems.append("the healthy session was disturbed: " + report["errors"][0])
        if report["lost"] and not lost:
            problems.append("commands of the healthy session got no answer")
        if report["slowest"] > SLOWEST_S and not lost:
            problems.append(f"the healthy session waited {report['slowest']:.1f} s")
        grown = self.memory() - memory
        if grown > GROWTH_KB:
            problems.append(f"memory grew by {grown} KB")
        if self.memory() - self.first > GROWTH_ALL_KB:
            problems.append(f"memory grew by {self.memory() - self.first} KB since the start")
        written = self.lines() - lines
        if written > LINES + LINES_PER_SECOND * took:
            problems.append(f"{written} lines of log in {took:.1f} s")
        if failure:
            raise AssertionError("\n".join(problems)) from failure
        check(not problems, "\n".join(problems))
        attack_ = f"{wire.Connection.opened} connections, {wire.Connection.received} answers"
        return f"{took:.1f} s; {attack_}; healthy: {report['done']} rounds, slowest {report['slowest'] * 1000:.0f} ms; memory {grown:+d} KB; log {written} lines"
