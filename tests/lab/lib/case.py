"""Guest tests: finds the files, runs them, says what came of it."""
import importlib.util
import pathlib
import shutil
import socket
import sys
import tempfile
import threading
import time
import traceback

import machine
import target as target_module

TESTS = pathlib.Path(__file__).resolve().parent.parent / "tests"
TIERS = ("smoke", "full")
# For a test that says nothing: as long as the slowest boot on a busy machine and a long test together.
SECONDS_MAX = 900


class Case:
    """A file of tests/lab/tests."""

    def __init__(self, path):
        self.name = path.stem
        specification = importlib.util.spec_from_file_location(f"lab_test_{self.name}", path)
        self.module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(self.module)
        self.tier = self.module.TIER
        if self.tier not in TIERS:
            raise ValueError(f"{path}: TIER is {self.tier!r}; use one of {', '.join(TIERS)}")
        self.guests = list(getattr(self.module, "GUESTS", None) or [self.module.GUEST])
        self.what = (self.module.__doc__ or "").strip().splitlines()[0]
        self.seconds_max = getattr(self.module, "SECONDS_MAX", SECONDS_MAX)

    def has(self, name):
        return getattr(self.module, name, None)


def cases():
    return [Case(path) for path in sorted(TESTS.glob("*.py"))]


class Skip(Exception):
    """The test cannot run here; the text says why."""


class Lab:
    """What a running test has on the host: guests, targets, a folder, what it wants to tell its guests."""

    def __init__(self, parts, acceleration, case, binaries, tier="full", interactive=False):
        self.parts, self.acceleration, self.case, self.binaries = parts, acceleration, case, pathlib.Path(binaries)
        self.tier, self.interactive = tier, interactive
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="pollux-lab-"))
        self.targets, self.cleanups, self.env, self.failures, self.skipped = [], [], {}, [], None
        self.changed = threading.Condition()
        self.barriers = {}
        self.hub = None
        self.machines = {guest.name: machine.Machine(self, guest, number) for number, guest in enumerate(case.guests)}

    # For tests.

    def target(self, networks=1, **options):
        """Starts a polluxd that is ended with the test; the first is the one LAB_PORTAL and LAB_IQN name."""
        made = target_module.Target(self.binaries / "polluxd", networks=networks, **options)
        self.targets.append(made)
        made.start()
        if len(self.targets) == 1:
            self.env.update(LAB_PORTAL=made.portal(), LAB_IQN=target_module.IQN)
            self.env.update({f"LAB_PORTAL{network}": made.portal(network) for network in range(1, networks)})
        return made

    @property
    def guest(self):
        """The first guest."""
        return next(iter(self.machines.values()))

    def fail(self, text):
        self.failures.append(text)
        self.show("failed", text)

    def say(self, text):
        self.show("host", text)

    def at_end(self, function):
        """Calls the function when the test is over."""
        self.cleanups.append(function)

    # For the runner and the guests.

    def environment(self):
        return {"LAB_TEST": self.case.name, "LAB_TIER": self.tier, "LAB_GUESTS": len(self.machines), **self.env}

    def show(self, who, line):
        where = self.case.name if who == "main" else f"{self.case.name}/{who}"
        print(f"{where}| {line}", flush=True)

    def wire(self, number):
        """The two ends of a guest's cable: where it listens, where it sends. Two guests are joined directly."""
        if len(self.machines) == 2:
            return self.folder / f"wire{number}", self.folder / f"wire{1 - number}"
        return self.folder / f"wire{number}", self.folder / f"hub{number}"

    def call(self, guest, words):
        """A guest's `host` call: first word and text of the answer."""
        if not words:
            return "fail", "no step was named"
        name, *arguments = words
        try:
            if name == "failed":
                self.fail(f"{guest.guest.name}: {' '.join(arguments)}")
                return "ok", ""
            if name == "skipped":
                self.skipped = " ".join(arguments)
                return "ok", ""
            if name == "barrier":
                self.barrier(arguments[0])
                return "ok", ""
            step = self.case.has(f"step_{name}")
            if step is None:
                raise LookupError(f"the test has no function step_{name}")
            answer = step(self, *arguments)
            return "ok", "" if answer is None else str(answer)
        except Exception as error:  # noqa: BLE001: a step that fails is the test's failure, with its trace
            self.say(traceback.format_exc())
            self.fail(f"step {name}: {error}")
            return "fail", f"{type(error).__name__}: {error}"

    def barrier(self, name):
        """Returns when every guest has come to this point."""
        with self.changed:
            self.barriers[name] = self.barriers.get(name, 0) + 1
            self.changed.notify_all()
            if not self.changed.wait_for(lambda: self.barriers[name] >= len(self.machines), timeout=self.case.seconds_max):
                raise TimeoutError(f"not every guest came to barrier {name!r}")

    def one_ended(self):
        with self.changed:
            self.changed.notify_all()

    def run(self):
        """Runs the test to its end. Returns "passed", "failed" or "skipped", and why."""
        try:
            setup = self.case.has("setup")
            if setup:
                setup(self)
            if len(self.machines) != 2 and any(guest.wire for guest in self.case.guests):
                self.hub = Hub(self.folder, len(self.machines))
            for one in self.machines.values():
                one.prepare()
            for one in self.machines.values():
                one.start()
            self.await_guests()
            verify = self.case.has("verify")
            if verify and not self.failures and self.skipped is None:
                verify(self)
        except Skip as reason:
            self.skipped = str(reason)
        except Exception as error:  # noqa: BLE001: reported as this test's failure
            traceback.print_exc(file=sys.stdout)
            self.fail(f"{type(error).__name__}: {error}")
        finally:
            self.end()
        if self.failures:
            return "failed", self.failures[0]
        if self.skipped is not None:
            return "skipped", self.skipped or "the guest gave no reason"
        return "passed", ""

    def await_guests(self):
        deciding = [one for one in self.machines.values() if one.guest.decides]
        started = time.monotonic()
        with self.changed:
            while any(one.thread.is_alive() and one.status is None for one in deciding):
                if any(one.status not in (None, machine.PASSED) for one in deciding):
                    break  # the others would wait for a guest that is gone
                if not self.interactive and time.monotonic() - started > self.case.seconds_max:
                    for one in deciding:
                        if one.status is None:
                            self.fail(f"guest {one.guest.name} was not done within {self.case.seconds_max} s; its last words: {' / '.join(one.tail[-3:])}")
                    return
                self.changed.wait(timeout=1)
        for one in deciding:
            if one.status == machine.SKIPPED:
                self.skipped = self.skipped or ""
            elif one.status in (machine.FAILED, machine.NO_ROOT, machine.BROKEN) and not self.failures:
                last = one.reason or (one.tail[-1] if one.tail else "nothing was said")
                self.fail(f"guest {one.guest.name}: {last}")

    def end(self):
        for one in self.machines.values():
            one.kill()
        for function in reversed(self.cleanups):
            try:
                function()
            except Exception as error:  # noqa: BLE001
                self.fail(f"at the end: {error}")
        for made in self.targets:
            try:
                if made.process is not None and not made.alive():
                    self.fail(f"polluxd ended with {made.process.returncode}")
                if self.failures:
                    for line in made.log_tail(15).splitlines():
                        self.show("polluxd", line)
                made.stop()
            except Exception as error:  # noqa: BLE001
                self.fail(str(error))
        if self.hub:
            self.hub.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class Hub:
    """The wire of more than two guests: what one sends, all others get."""

    def __init__(self, folder, ports):
        self.folder = folder
        self.sockets = []
        for number in range(ports):
            end = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            end.bind(str(folder / f"hub{number}"))
            self.sockets.append(end)
            threading.Thread(target=self.forward, args=(number, end), daemon=True).start()

    def forward(self, number, end):
        while True:
            try:
                frame = end.recv(65536)
            except OSError:
                return
            for other, sender in enumerate(self.sockets):
                if other != number and frame:
                    try:
                        sender.sendto(frame, socket.MSG_DONTWAIT, str(self.folder / f"wire{other}"))
                    except OSError:
                        pass  # a guest that is not there, or whose queue is full, loses the frame

    def close(self):
        for end in self.sockets:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            end.close()
