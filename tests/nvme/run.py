#!/usr/bin/env python3
"""NVMe controllers as a person and an initiator meet them: the model of a controller (sim's nvme-model) is attached over vfio-user,
exported by iSCSI, killed, brought back, resized, reset and detached.

usage: run.py [--polluxd PATH] [--only NAME]
"""
import argparse
import base64
import json
import os
import pathlib
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "lib"))
sys.path.insert(0, str(HERE.parent / "hostile"))
import daemon  # noqa: E402
from initiator import Session  # noqa: E402

ROOT = HERE.parents[1]
MEGABYTE = 1 << 20

TESTS = []


def test(function):
    """What is decorated is run, with a fresh daemon and a model that does not run yet as its arguments."""
    TESTS.append(function)
    return function


class Model:
    """One nvme-model process; its first namespace is kept in a file, so that it comes back with its data."""

    def __init__(self, path, folder):
        self.path, self.folder, self.process = str(path), folder / "model", None
        self.folder.mkdir()
        self.socket, self.control = self.folder / "cntrl", self.folder / "control"
        self.file, self.log = self.folder / "namespace", self.folder / "log"

    def start(self, *arguments, megabytes=32):
        self.socket.unlink(missing_ok=True)
        command = [self.path, "--socket", self.socket, "--control", self.control, "--file", self.file, "--size", f"{megabytes}M", *arguments]
        self.process = subprocess.Popen(command, stdout=self.log.open("ab"), stderr=subprocess.STDOUT)
        wait("the model listens", self.socket.exists)
        return self

    def kill(self):
        self.process.kill()
        self.process.wait()

    def say(self, line):
        """A command of the model's own, as `resize 1 4096`."""
        with socket.socket(socket.AF_UNIX) as stream:
            stream.settimeout(20)
            stream.connect(str(self.control))
            stream.sendall(line.encode() + b"\n")
            answer = stream.makefile().readline().strip()
        assert not answer.startswith("error"), f"{line}: {answer}"
        return answer

    def violations(self):
        """Rules the daemon broke, as the model saw it; a test may have asked for one itself."""
        return [line for line in self.log.read_text(errors="replace").splitlines() if "violation" in line and "log page 0xbf" not in line]

    def stop(self):
        if self.process and self.process.poll() is None:
            self.kill()


def wait(what, condition, seconds=20):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s: {what}")


def attach(target, model, name="Nvme0", **options):
    return target.rpc("bdev_nvme_attach_controller", name=name, trtype="VFIOUSER", traddr=str(model.folder), **options)


def state(target, name="Nvme0"):
    return target.rpc("bdev_nvme_get_controllers", name=name)[0]["ctrlrs"][0]["state"]


def events(target):
    return [(event["type"], event["ctx"]) for event in target.rpc("notify_get_notifications")]


def session(target):
    return Session(target.port, daemon.IQN).login()


def sense(result):
    """Key and codes of a command's sense data; None for a command that succeeded."""
    return None if result.status == 0 else (result.sense[2] & 0x0F, result.sense[12], result.sense[13])


def settled(login, lun, wanted):
    """TEST UNIT READY ends so, once the unit attentions before it are taken. Returns those."""
    before = []

    def look():
        found = sense(login.command(bytes(6), lun))
        if found != wanted and (not before or before[-1] != found):
            before.append(found)
        return found == wanted

    wait(f"LUN {lun} answers {wanted}, not {before}", look)
    return before


NO_MEDIUM = (2, 0x3A, 0)


def blocks(number, count=8):
    return struct.pack(">Q", number) * (64 * count)


@test
def a_controller_is_described_and_asked(target, model):
    model.start("--namespaces", "2")
    assert attach(target, model) == ["Nvme0n1", "Nvme0n2"]
    assert state(target) == "enabled"
    bdev = target.rpc("bdev_get_bdevs", name="Nvme0n1")[0]
    assert (bdev["num_blocks"], bdev["block_size"], bdev["product_name"]) == (32 * 2048, 512, "NVMe disk"), bdev
    path = bdev["driver_specific"]["nvme"][0]
    assert path["trid"]["trtype"] == "VFIOUSER" and path["trid"]["traddr"] == str(model.folder), path
    assert path["ctrlr_data"]["model_number"] and path["ctrlr_data"]["serial_number"] and path["ns_data"]["id"] == 1, path
    assert path["vs"]["nvme_version"][0] in "12", path
    health = target.rpc("bdev_nvme_get_controller_health_info", name="Nvme0")
    assert health["model_number"] == path["ctrlr_data"]["model_number"] and -50 < health["temperature_celsius"] < 150, health
    # Identify Controller, as it comes.
    identify = bytes([6]) + bytes(39) + bytes([1]) + bytes(23)
    answer = target.rpc("bdev_nvme_send_cmd", name="Nvme0", cmd_type="admin", data_direction="c2h", cmdbuf=base64.urlsafe_b64encode(identify).decode(), data_len=4096)
    data = base64.urlsafe_b64decode(answer["data"])
    assert len(data) == 4096 and data[24:64].decode().strip() == path["ctrlr_data"]["model_number"], data[:80]
    assert len(base64.urlsafe_b64decode(answer["cpl"])) == 16 and base64.urlsafe_b64decode(answer["cpl"])[14:] == b"\0\0", answer
    # A log page that no controller has fails with the controller's own status.
    nonsense = bytes([2]) + bytes(3) + b"\xff" * 4 + bytes(32) + bytes([0xBF, 0, 0x0F, 0]) + bytes(20)
    answer = target.rpc("bdev_nvme_send_cmd", name="Nvme0", cmd_type="admin", data_direction="c2h", cmdbuf=base64.urlsafe_b64encode(nonsense).decode(), data_len=64)
    assert base64.urlsafe_b64decode(answer["cpl"])[14:] != b"\0\0", answer
    statistics = target.rpc("bdev_nvme_get_transport_statistics")
    assert statistics["poll_groups"][0]["transports"][0]["trname"] == "VFIOUSER" and statistics["controllers"][0]["queue_pairs"] > 0, statistics
    paths = target.rpc("bdev_nvme_get_io_paths", name="Nvme0n2")["poll_groups"][0]["io_paths"]
    assert [(path["bdev_name"], path["connected"]) for path in paths] == [("Nvme0n2", True)], paths
    for wrong in ({"name": "Nvme0"}, {"name": "Nvme9"}):
        try:
            target.rpc("bdev_nvme_attach_controller", trtype="VFIOUSER", traddr=str(model.socket if wrong["name"] == "Nvme9" else "/nowhere"), **wrong)
            raise AssertionError(f"{wrong} was accepted")
        except daemon.RpcError as error:
            assert "Remedy" in error.message, error.message
    target.rpc("bdev_nvme_detach_controller", name="Nvme0")
    assert target.rpc("bdev_get_bdevs") == [] and target.rpc("bdev_nvme_get_controllers") == []
    # The server is free for the next; the socket's own path does as well.
    assert target.rpc("bdev_nvme_attach_controller", name="Again", trtype="vfiouser", traddr=str(model.socket)) == ["Againn1", "Againn2"]


@test
def the_scripts_speak_of_controllers(target, model):
    model.start()

    def run(*command):
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done
        return done.stdout

    rpc = (sys.executable, ROOT / "scripts" / "rpc.py", "-s", target.socket)
    pollux = (pathlib.Path(target.path).with_name("pollux"), "-r", target.socket)
    made = run(*rpc, "bdev_nvme_attach_controller", "name=Nvme0", "trtype=VFIOUSER", f"traddr={model.folder}")
    assert json.loads(made) == ["Nvme0n1"], made
    shown = run(*pollux, "controllers")
    assert "Nvme0" in shown and "enabled" in shown and str(model.folder) in shown, shown
    assert "NVMe disk" in run(*pollux, "bdevs")
    assert json.loads(run(*pollux, "rpc", "bdev_nvme_reset_controller", "name=Nvme0")) is True
    assert json.loads(run(*rpc, "bdev_nvme_get_controller_health_info", "name=Nvme0"))["traddr"] == str(model.folder)
    assert json.loads(run(*rpc, "bdev_nvme_detach_controller", "name=Nvme0")) is True
    assert "no controllers" in run(*pollux, "controllers")


@test
def an_image_goes_there_and_back(target, model):
    model.start()
    target.export(attach(target, model))
    image = target.folder / "image"
    image.write_bytes(os.urandom(20 * MEGABYTE) + bytes(4 * MEGABYTE) + os.urandom(8 * MEGABYTE))
    for arguments in (["convert", "-n", "-f", "raw", "-O", "raw", image, target.url(0)], ["compare", "-f", "raw", "-F", "raw", image, target.url(0)]):
        done = subprocess.run(["qemu-img", *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done
    # It is on the medium, and nowhere else.
    assert model.file.read_bytes()[: 32 * MEGABYTE] == image.read_bytes(), "the model's file differs"
    assert target.rpc("bdev_get_iostat", name="Nvme0n1")["bdevs"][0]["bytes_written"] >= 28 * MEGABYTE


@test
def a_reset_in_the_midst_of_io_costs_no_data(target, model):
    model.start()
    target.export(attach(target, model))
    wrong, stop = [], threading.Event()

    def load():
        with session(target) as login:
            round_ = 0
            while not stop.is_set():
                round_ += 1
                lba = round_ * 8 % 4096
                login.write_blocks(lba, blocks(round_))
                if login.read_blocks(lba, 8) != blocks(round_):
                    wrong.append(lba)

    def guarded():
        try:
            load()
        except Exception as error:  # what ends the load is a failure of the test
            wrong.append(repr(error))

    thread = threading.Thread(target=guarded)
    thread.start()
    for _ in range(5):
        time.sleep(0.2)
        target.rpc("bdev_nvme_reset_controller", name="Nvme0")
        assert state(target) == "enabled"
    stop.set()
    thread.join()
    assert not wrong, wrong
    assert [kind for kind, name in events(target) if name == "Nvme0"].count("nvme_reset_done") >= 5, events(target)


@test
def a_controller_dies_and_returns(target, model):
    model.start()
    target.rpc("bdev_nvme_set_hotplug", enable=False, period_us=100_000)
    target.rpc("bdev_malloc_create", name="Ram0", num_blocks=2048, block_size=512)
    target.export([*attach(target, model), "Ram0"])
    with session(target) as login:
        login.ready(0).ready(1)
        login.write_blocks(40, blocks(1))
        login.good(bytes([0x35]) + bytes(9), 0)
        model.kill()
        settled(login, 0, NO_MEDIUM)
        read = login.command(bytes([0x28, 0, 0, 0, 0, 40, 0, 0, 8, 0]), 0, read=4096)
        assert sense(read) == NO_MEDIUM, read
        assert sense(login.command(bytes([0x12, 0, 0, 0, 96, 0]), 0, read=96)) is None, "INQUIRY needs no medium"
        # The other unit notices nothing.
        assert sense(login.command(bytes(6), 1)) is None
        login.write_blocks(0, blocks(7), 1)
        assert login.read_blocks(0, 8, 1) == blocks(7)
        wait("the controller is known to be gone", lambda: state(target) == "removed")
        assert ("nvme_controller_gone", "Nvme0") in events(target) and ("device_gone", "Nvme0n1") in events(target), events(target)
        assert target.rpc("bdev_nvme_get_io_paths")["poll_groups"][0]["io_paths"][0]["connected"] is False
        model.start()
        before = settled(login, 0, None)
        assert (6, 0x28, 0) in before, f"nobody was told that the medium may have changed: {before}"
        assert login.read_blocks(40, 8) == blocks(1), "the data is not what was written"
        assert ("nvme_controller_returned", "Nvme0") in events(target), events(target)
        assert state(target) == "enabled"
        login.write_blocks(80, blocks(2))
        assert login.read_blocks(80, 8) == blocks(2)
    # Detached while it is dead, it is forgotten.
    model.kill()
    wait("the controller is known to be gone", lambda: state(target) == "removed")
    target.rpc("bdev_nvme_detach_controller", name="Nvme0")
    assert [bdev["name"] for bdev in target.rpc("bdev_get_bdevs")] == ["Ram0"]


@test
def a_controller_in_trouble_is_reset_and_goes_on(target, model):
    model.start()
    target.rpc("bdev_nvme_set_options", timeout_us=500_000, action_on_timeout="reset")
    target.export(attach(target, model))
    with session(target) as login:
        login.ready(0)
        # A command that is never answered; a controller that reports a fatal status; one that does so in the midst of a command.
        for number, trouble in enumerate(("next lost", "fail", "next fatal"), 1):
            model.say(trouble)
            login.write_blocks(8 * number, blocks(number))
            assert login.read_blocks(8 * number, 8) == blocks(number), trouble
            wait(f"it is reset after {trouble}", lambda: [kind for kind, _ in events(target)].count("nvme_reset_done") >= number)
            assert state(target) == "enabled"
    statistics = target.rpc("bdev_nvme_get_transport_statistics")["controllers"][0]
    assert statistics["timeouts"] >= 1 and statistics["controller_resets"] >= 3, statistics


@test
def a_device_is_pulled_and_put_back(target, model):
    """As a_controller_dies_and_returns, but its server lives, as a slot does."""
    model.start()
    target.rpc("bdev_nvme_set_hotplug", enable=False, period_us=100_000)
    target.export(attach(target, model))
    with session(target) as login:
        login.ready(0)
        login.write_blocks(40, blocks(1))
        for _ in range(3):
            model.say("remove")
            settled(login, 0, NO_MEDIUM)
            wait("the controller is known to be gone", lambda: state(target) == "removed")
            model.say("restore")
            assert (6, 0x28, 0) in settled(login, 0, None)
            assert login.read_blocks(40, 8) == blocks(1)


@test
def namespaces_change_come_and_go(target, model):
    model.start("--namespaces", "2")
    target.export(attach(target, model))
    with session(target) as login:
        login.ready(0).ready(1)
        login.write_blocks(0, blocks(3))
        model.say("resize 1 131072")
        wait("the bdev has the new size", lambda: target.rpc("bdev_get_bdevs", name="Nvme0n1")[0]["num_blocks"] == 131072)
        # Capacity data has changed.
        assert (6, 0x2A, 9) in settled(login, 0, None)
        capacity = login.good(bytes([0x25]) + bytes(9), 0, read=8).data
        assert struct.unpack(">II", capacity) == (131071, 512), capacity
        login.write_blocks(131064, blocks(4))
        assert login.read_blocks(131064, 8) == blocks(4) and login.read_blocks(0, 8) == blocks(3)
        model.say("detach 2")
        settled(login, 1, NO_MEDIUM)
        assert ("nvme_namespace_removed", "Nvme0n2") in events(target), events(target)
        assert sense(login.command(bytes(6), 0)) is None, "its neighbour noticed"
        model.say("attach 2")
        assert (6, 0x28, 0) in settled(login, 1, None)
    assert [bdev["name"] for bdev in target.rpc("bdev_get_bdevs")] == ["Nvme0n1", "Nvme0n2"]


@test
def a_namespace_that_appears_gets_a_bdev(target, model):
    model.start("--namespaces", "2")
    model.say("detach 2")
    assert attach(target, model) == ["Nvme0n1"]
    model.say("attach 2")
    assert target.rpc("bdev_get_bdevs", name="Nvme0n2", timeout=10_000)[0]["driver_specific"]["nvme"][0]["ns_data"]["id"] == 2


def without_port(target, config):
    return json.loads(json.dumps(config).replace(f'"{target.port}"', '"PORT"'))


def saved(target):
    return {"subsystems": [{"subsystem": name, "config": target.rpc("framework_get_config", name=name)} for name in ("bdev", "iscsi")]}


@test
def a_saved_configuration_awaits_its_controller(target, model):
    model.start("--namespaces", "2")
    target.rpc("bdev_nvme_set_options", timeout_us=7_000_000, action_on_timeout="reset")
    target.rpc("bdev_nvme_set_hotplug", enable=False, period_us=100_000)
    target.export(attach(target, model))
    with session(target) as login:
        login.write_blocks(16, blocks(5))
    config = saved(target)
    target.terminate()
    # With the controller there it is as it was.
    target.start(config)
    assert saved(target) == config, "saved, loaded and saved again differs"
    with session(target) as login:
        assert login.read_blocks(16, 8) == blocks(5)
    target.terminate()
    # Without it the daemon starts all the same.
    model.kill()
    target.start(config)
    assert state(target) == "awaited" and saved(target) == config
    with session(target) as login:
        settled(login, 0, NO_MEDIUM)
        settled(login, 1, NO_MEDIUM)
        model.start("--namespaces", "2")
        assert (6, 0x28, 0) in settled(login, 0, None)
        settled(login, 1, None)
        assert login.read_blocks(16, 8) == blocks(5)
        login.write_blocks(24, blocks(6), 0)
        assert login.read_blocks(24, 8) == blocks(6)
    assert state(target) == "enabled" and saved(target) == config
    target.terminate()
    # A file that says nothing of what the controller had stops the start, and names it.
    model.kill()
    for entry in config["subsystems"][0]["config"]:
        entry.get("params", {}).pop("namespaces", None)
    try:
        target.start(config)
        raise AssertionError("the daemon started without its disk")
    except RuntimeError as error:
        assert "bdev_nvme_attach_controller" in str(error) and str(model.folder) in str(error), error
        assert target.process.wait() == 1
        target.process = None


@test
def another_drive_in_the_place_is_not_served(target, model):
    model.start()
    target.rpc("bdev_nvme_set_hotplug", enable=False, period_us=100_000)
    target.export(attach(target, model))
    with session(target) as login:
        settled(login, 0, None)
        model.kill()
        settled(login, 0, NO_MEDIUM)
        # Another seed is another drive: other identifiers.
        model.start("--seed", "99", megabytes=16)
        time.sleep(1.5)
        assert sense(login.command(bytes(6), 0)) == NO_MEDIUM, "another drive is served under the old one's name"


@test
def a_controller_is_detached_under_load(target, model):
    model.start()
    target.export(attach(target, model))
    load = subprocess.Popen(["iscsi-perf", "-m", "32", "-b", "8", "-r", "-t", "20", target.url(0)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait("the load runs", lambda: target.rpc("bdev_get_iostat", name="Nvme0n1")["bdevs"][0]["num_read_ops"] > 100)
        target.rpc("bdev_nvme_detach_controller", name="Nvme0")
        assert target.rpc("bdev_get_bdevs") == []
    finally:
        load.kill()
        load.wait()
    assert attach(target, model) == ["Nvme0n1"]


@test
def the_daemon_ends_with_its_controllers_alive_or_dead(target, model):
    model.start()
    attach(target, model)
    target.terminate()
    target.start()
    attach(target, model)
    model.kill()
    target.terminate()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--polluxd", default=str(ROOT / "target/release/polluxd"))
    parser.add_argument("--cores", type=int, default=0, help="reactors; 1 and 2 in turn when 0")
    parser.add_argument("--only", default="", help="run only tests whose name holds this")
    arguments = parser.parse_args()
    path = pathlib.Path(arguments.polluxd).with_name("nvme-model")
    passed = failed = 0
    for number, run in enumerate(TESTS):
        if arguments.only not in run.__name__:
            continue
        cores = arguments.cores or number % min(2, os.cpu_count() or 1) + 1
        target = daemon.Daemon(arguments.polluxd, cores=cores)
        model = Model(path, target.folder)
        try:
            target.start()
            run(target, model)
            assert not model.violations(), model.violations()
            target.stop()
            passed += 1
            print(f"ok      nvme::{run.__name__}", flush=True)
        except Exception:  # every failure is a failed test, whatever its kind
            failed += 1
            log = model.log.read_text(errors="replace")[-2000:] if model.log.exists() else ""
            print(f"FAILED  nvme::{run.__name__} ({cores} reactors)\n{traceback.format_exc()}\n{target.log_tail()}\n{log}", flush=True)
            try:
                target.stop()
            except RuntimeError as also:
                print(f"        and: {also}", flush=True)
        finally:
            model.stop()
    print(f"totals: {passed} passed, {failed} failed, 0 skipped")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
