#!/usr/bin/env python3
"""The control plane as a person and a script meet it: over its socket, by scripts/rpc.py and by the pollux tool.

usage: run.py [--polluxd PATH] [--only NAME]
"""
import argparse
import json
import os
import pathlib
import re
import shutil
import socket
import stat
import subprocess
import sys
import time
import traceback

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "lib"))
import daemon  # noqa: E402

ROOT = HERE.parents[1]
RPC = ROOT / "scripts" / "rpc.py"


TESTS = []


class Skipped(Exception):
    """The machine cannot run the test; says why."""


def test(function):
    """What is decorated is run, with a fresh daemon as its argument."""
    TESTS.append(function)
    return function


def rpc_py(target, *arguments, status=0):
    done = subprocess.run([sys.executable, str(RPC), "-s", str(target.socket), *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status, f"rpc.py {arguments}: exit {done.returncode}, wanted {status}\n{done.stdout}{done.stderr}"
    return done.stdout if status == 0 else done.stderr


def refused(target, method, *words, **params):
    """The call fails, and the text names what a person needs."""
    try:
        result = target.rpc(method, **params)
    except daemon.RpcError as error:
        for word in words:
            assert word in error.message, f"{method}: the error does not name {word!r}: {error.message!r}"
        return error
    raise AssertionError(f"{method} {params} was accepted: {result}")


def listing(target):
    return subprocess.run(["iscsi-ls", "-s", f"iscsi://127.0.0.1:{target.port}"], capture_output=True, text=True, timeout=60, check=False).stdout


@test
def the_socket_is_for_its_owner_only(target):
    mode = stat.S_IMODE(os.stat(target.socket).st_mode)
    assert mode == 0o600, oct(mode)


@test
def errors_name_method_parameter_and_remedy(target):
    refused(target, "no_such_method", "no_such_method")
    refused(target, "bdev_rbd_create", "not built")
    refused(target, "bdev_malloc_create", "block_size", num_blocks=100)
    refused(target, "bdev_malloc_create", "block_size", num_blocks=100, block_size=513)
    refused(target, "bdev_malloc_create", "colour", num_blocks=100, block_size=512, colour="red")
    refused(target, "bdev_null_create", "num_blocks", name="n", num_blocks="many", block_size=512)
    refused(target, "bdev_aio_create", "/nonexistent/disk", name="f", filename="/nonexistent/disk", block_size=512)
    refused(target, "bdev_uring_create", "/nonexistent/disk", name="f", filename="/nonexistent/disk", block_size=512)
    refused(target, "iscsi_create_target_node", "nothere", name=daemon.IQN, alias_name="a", pg_ig_maps=[], luns=[{"bdev_name": "nothere", "lun_id": 0}])
    refused(target, "iscsi_delete_target_node", "iqn.2026-01.io.pollux:none", name="iqn.2026-01.io.pollux:none")
    assert target.rpc("bdev_get_bdevs") == [], "a refused request left something behind"


@test
def garbage_on_the_socket_costs_only_its_own_connection(target):
    for garbage in (b"\x00\xff\xfe", b"[" * 100_000, b'{"jsonrpc":"2.0","id":1,"method":' + b'"x' * 10, b"null", b"{}", b'{"id":1}'):
        with socket.socket(socket.AF_UNIX) as stream:
            stream.settimeout(10)
            stream.connect(str(target.socket))
            stream.sendall(garbage)
            stream.shutdown(socket.SHUT_WR)
            while True:
                try:
                    if not stream.recv(65536):
                        break
                except ConnectionResetError:
                    break
    target.rpc("spdk_get_version")


@test
def pipelined_and_batched_requests_are_answered_in_order(target):
    with socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout(20)
        stream.connect(str(target.socket))
        one = '{"jsonrpc":"2.0","id":%d,"method":"spdk_get_version"}'
        stream.sendall("".join(one % number for number in range(1, 6)).encode())
        text, decoder, found = "", json.JSONDecoder(), []
        while len(found) < 5:
            text += stream.recv(65536).decode()
            text = text.lstrip()
            while text:
                try:
                    answer, end = decoder.raw_decode(text)
                except ValueError:
                    break
                found.append(answer["id"])
                text = text[end:].lstrip()
        assert found == [1, 2, 3, 4, 5], found


@test
def every_method_has_a_schema(target):
    methods = target.rpc("rpc_get_methods")
    schema = target.rpc("rpc.discover")
    described = {entry["name"] for entry in schema["methods"]}
    assert set(methods) - {"rpc.discover"} <= described, sorted(set(methods) - described)
    wanted = """rpc_get_methods spdk_get_version framework_get_config framework_get_subsystems framework_get_reactors thread_get_stats
        bdev_get_bdevs bdev_get_iostat bdev_malloc_create bdev_malloc_delete bdev_null_create bdev_null_delete bdev_aio_create
        bdev_aio_delete bdev_uring_create bdev_uring_delete bdev_delay_create bdev_delay_delete bdev_delay_update_latency
        bdev_error_create bdev_error_delete bdev_error_inject_error iscsi_create_portal_group iscsi_delete_portal_group
        iscsi_get_portal_groups iscsi_create_initiator_group iscsi_delete_initiator_group iscsi_get_initiator_groups
        iscsi_initiator_group_add_initiators iscsi_initiator_group_remove_initiators iscsi_create_auth_group
        iscsi_delete_auth_group iscsi_get_auth_groups iscsi_auth_group_add_secret iscsi_auth_group_remove_secret
        iscsi_set_discovery_auth iscsi_create_target_node iscsi_delete_target_node iscsi_get_target_nodes
        iscsi_target_node_add_lun iscsi_target_node_add_pg_ig_maps iscsi_target_node_remove_pg_ig_maps
        iscsi_target_node_set_auth iscsi_get_connections iscsi_get_options iscsi_set_options log_get_flags log_set_level
        notify_get_types notify_get_notifications""".split()
    missing = [name for name in wanted if name not in methods]
    assert not missing, missing


@test
def a_saved_configuration_loads_into_a_fresh_daemon(target):
    disk = target.folder / "disk"
    disk.write_bytes(bytes(1 << 20))
    target.rpc("bdev_malloc_create", name="Ram0", num_blocks=2048, block_size=512)
    target.rpc("bdev_aio_create", name="File0", filename=str(disk), block_size=512)
    target.rpc("bdev_delay_create", name="Slow0", base_bdev_name="Ram0", avg_read_latency=10, p99_read_latency=20, avg_write_latency=10, p99_write_latency=20)
    target.rpc("iscsi_create_auth_group", tag=1, secrets=[{"user": "alice", "secret": "correct horse battery"}])
    target.export(["Slow0", "File0"])
    saved = rpc_py(target, "save_config")
    # A file is one daemon's: the first ends before the second opens it. The port is the only difference.
    target.terminate()
    fresh = daemon.Daemon(target.path)
    try:
        fresh.start()
        file = fresh.folder / "saved.json"
        file.write_text(saved.replace(f'"{target.port}"', f'"{fresh.port}"'))
        rpc_py(fresh, "load_config", str(file))
        assert "Lun:1" in listing(fresh).replace(" ", ""), listing(fresh)
        again = json.loads(rpc_py(fresh, "save_config").replace(f'"{fresh.port}"', f'"{target.port}"'))
        assert again == json.loads(saved), "saved, loaded and saved again differs"
    finally:
        fresh.stop()


@test
def luns_come_and_go_while_sessions_live(target):
    for number in range(2):
        target.rpc("bdev_malloc_create", name=f"Ram{number}", num_blocks=2048, block_size=512)
    target.export(["Ram0"])
    assert listing(target).count("Lun:") == 1, listing(target)
    target.rpc("iscsi_target_node_add_lun", name=daemon.IQN, bdev_name="Ram1", lun_id=5)
    assert listing(target).count("Lun:") == 2, listing(target)
    target.rpc("bdev_malloc_delete", name="Ram0")
    assert listing(target).count("Lun:") == 1, listing(target)
    assert [bdev["name"] for bdev in target.rpc("bdev_get_bdevs")] == ["Ram1"]
    target.rpc("iscsi_delete_target_node", name=daemon.IQN)
    assert daemon.IQN not in listing(target)


@test
def a_target_is_deleted_under_load(target):
    target.rpc("bdev_malloc_create", name="Ram0", num_blocks=64 * 2048, block_size=512)
    target.export(["Ram0"])
    load = subprocess.Popen(["iscsi-perf", "-m", "32", "-b", "8", "-r", "-t", "20", target.url(0)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        time.sleep(1)
        assert target.rpc("iscsi_get_connections"), "the load is not connected"
        target.rpc("iscsi_delete_target_node", name=daemon.IQN)
        assert target.rpc("iscsi_get_connections") == []
        target.rpc("bdev_malloc_delete", name="Ram0")
    finally:
        load.kill()
        load.wait()


@test
def traffic_is_counted(target):
    target.rpc("bdev_malloc_create", name="Ram0", num_blocks=64 * 2048, block_size=512)
    target.export(["Ram0"])
    subprocess.run(["iscsi-perf", "-m", "8", "-b", "8", "-r", "-t", "1", target.url(0)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60, check=False)
    stat_ = target.rpc("bdev_get_iostat", name="Ram0")["bdevs"][0]
    assert stat_["num_read_ops"] > 10 and stat_["bytes_read"] >= stat_["num_read_ops"] * 512, stat_
    threads = target.rpc("thread_get_stats")
    assert threads["tick_rate"] > 0 and threads["threads"][0]["busy"] > 0, threads


@test
def a_second_daemon_on_the_same_socket_is_refused(target):
    done = subprocess.run([target.path, "-r", str(target.socket)], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode != 0
    assert str(target.socket) in done.stdout + done.stderr, done.stdout + done.stderr
    target.rpc("spdk_get_version")


@test
def a_bad_configuration_says_where(target):
    file = target.folder / "bad.json"
    for config, words in (
        ('{"subsystems": [', ["bad.json"]),
        ('{"subsystems": [{"subsystem": "bdev", "config": [{"method": "bdev_malloc_create", "params": {"num_blocks": 1}}]}]}', ["bdev", "bdev_malloc_create", "block_size"]),
        ('{"subsystems": [{"subsystem": "nonsense", "config": []}]}', ["nonsense"]),
    ):
        file.write_text(config)
        done = subprocess.run([target.path, "-r", str(target.folder / "other.sock"), "-c", str(file)], capture_output=True, text=True, timeout=30, check=False)
        text = done.stdout + done.stderr
        assert done.returncode != 0, config
        for word in words:
            assert word in text, f"{config}: {word!r} is not in {text!r}"


@test
def secrets_are_shown_to_nobody(target):
    secret = "correct horse battery"
    target.rpc("iscsi_create_auth_group", tag=1, secrets=[{"user": "alice", "secret": secret, "muser": "bob", "msecret": "another one, longer"}])
    assert secret not in json.dumps(target.rpc("iscsi_get_auth_groups"))
    refused(target, "iscsi_create_auth_group", "secret", tag=2, secrets=[{"user": "alice", "secret": "short"}])
    assert secret not in target.log.read_text()


def tool(target, *arguments, rpc=None):
    """The tool built with the daemon under test, which is beside it."""
    path = pathlib.Path(target.path).with_name("pollux")
    return subprocess.run([str(path), "-r", str(rpc or target.socket), *arguments], capture_output=True, text=True, timeout=30, check=False)


@test
def the_tool_speaks_to_people_and_to_scripts(target):
    target.rpc("bdev_malloc_create", name="Ram0", num_blocks=2048, block_size=512)
    target.export(["Ram0"])
    for command in ("status", "bdevs", "targets", "connections", "reactors"):
        shown = tool(target, command)
        assert shown.returncode == 0 and shown.stdout.strip(), shown
        json.loads(tool(target, command, "--json").stdout)
    nobody = tool(target, "status", rpc=target.folder / "nobody.sock")
    assert nobody.returncode != 0 and "nobody.sock" in nobody.stderr, nobody


def doctor(target, *arguments, status):
    """The doctor's report of this machine as JSON; its exit status must say the same as the report."""
    done = tool(target, "doctor", "--json", *arguments)
    report = json.loads(done.stdout)
    assert done.returncode == {"ok": 0, "warn": 1, "fail": 2}[report["status"]], (done.returncode, report["status"])
    assert report["status"] in status, report
    return report


@test
def the_doctor_sees_the_daemon_and_its_port(target):
    port = ("--port", str(target.port))
    report = doctor(target, "--only", "rpc", status=("ok",))
    assert report["format"] == 1 and set(report) == {"format", "status", "summary", "findings"}, report
    finding = report["findings"][0]
    assert set(finding) == {"check", "subject", "status", "found", "why", "fix"}, finding
    assert f"process {target.process.pid}" in finding["found"], finding
    assert "free" in doctor(target, "--only", "port", *port, status=("ok",))["findings"][0]["found"]
    target.rpc("iscsi_create_portal_group", tag=1, portals=[{"host": "127.0.0.1", "port": str(target.port)}])
    assert f"polluxd {target.process.pid} listens" in doctor(target, "--only", "port", *port, status=("ok",))["findings"][0]["found"]
    target.rpc("iscsi_delete_portal_group", tag=1)
    with socket.socket() as other:
        other.bind(("127.0.0.1", target.port))
        other.listen()
        taken = doctor(target, "--only", "port", *port, status=("fail",))["findings"][0]
        assert f"process {os.getpid()}" in taken["found"] and f"kill {os.getpid()}" in taken["fix"], taken


@test
def the_doctor_examines_a_whole_machine(target):
    report = doctor(target, status=("ok", "warn", "fail"))
    checks = [finding["check"] for finding in report["findings"]]
    for wanted in ("kernel", "cpu", "hugepages", "memlock", "files", "io_uring", "iommu", "vfio", "nvme", "port", "rpc", "systemd"):
        assert wanted in checks, checks
    for finding in report["findings"]:
        assert finding["found"] and finding["why"], finding
    shown = tool(target, "doctor").stdout
    assert shown.count("\nfail ") + shown.startswith("fail ") == report["summary"]["fail"], shown
    # A folder with nothing of a machine in it cannot be well.
    empty = target.folder / "empty"
    empty.mkdir()
    done = tool(target, "doctor", "--root", str(empty), "--dedicated")
    assert done.returncode == 2 and "/proc is not there" in done.stdout and "no IOMMU" in done.stdout, done
    done = tool(target, "doctor", "--only", "colour")
    assert done.returncode == 2 and "hugepages" in done.stderr, done


@test
def the_unit_of_systemd_in_the_documents_is_one(target):
    if shutil.which("systemd-analyze") is None:
        raise Skipped("there is no systemd-analyze")
    # The programs it names are not installed here: the ones under test stand in for them.
    text = (ROOT / "docs" / "polluxd.service").read_text()
    assert "/usr/local/bin/polluxd" in text and "/opt/pollux/scripts/bind" in text, text
    unit = target.folder / "polluxd.service"
    unit.write_text(text.replace("/usr/local/bin/polluxd", str(pathlib.Path(target.path).resolve())).replace("/opt/pollux", str(ROOT)))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=60, check=False)
    complaints = [line for line in done.stderr.splitlines() if "polluxd.service" in line]
    assert not complaints, complaints
    # And the daemon takes the options it gives, which --help would not show to be wrong.
    options = re.search(r"ExecStart=\S+ (.*)", text).group(1).replace("/etc/pollux/node.json", str(target.folder / "none.json"))
    done = subprocess.run([target.path, *options.replace("[2-3]", "[0]").split()], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and "none.json" in done.stderr, done
    # The doctor finds its limits to be enough, and an empty unit's not.
    root = target.folder / "root"
    (root / "etc/systemd/system").mkdir(parents=True)
    for unit, status in ((text, 0), ("[Service]\n", 2)):
        (root / "etc/systemd/system/polluxd.service").write_text(unit)
        done = tool(target, "doctor", "--root", str(root), "--dedicated", "--cores", "[2-3]", "--only", "systemd")
        assert done.returncode == status, done


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--polluxd", default=str(ROOT / "target/release/polluxd"))
    parser.add_argument("--only", default="", help="run only tests whose name holds this")
    arguments = parser.parse_args()
    passed = failed = skipped = 0
    for run in TESTS:
        if arguments.only not in run.__name__:
            continue
        target = daemon.Daemon(arguments.polluxd)
        try:
            target.start()
            run(target)
            target.stop()
            passed += 1
            print(f"ok      control::{run.__name__}", flush=True)
        except Skipped as reason:
            target.stop()
            skipped += 1
            print(f"skipped: control::{run.__name__}: {reason}", flush=True)
        except Exception:  # every failure is a failed test, whatever its kind
            failed += 1
            print(f"FAILED  control::{run.__name__}\n{traceback.format_exc()}\n{target.log_tail()}", flush=True)
            try:
                target.stop()
            except RuntimeError as also:
                print(f"        and: {also}", flush=True)
    print(f"totals: {passed} passed, {failed} failed, {skipped} skipped")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
