#!/usr/bin/env python3
"""Figures that no test asserts: machines are noisy. Each is printed with what was done to get it.

usage: measure.py rpc|idle|all [--polluxd PATH] [--seconds N] [--json FILE]
  rpc    latency of control requests while the reactor is saturated by reads (iscsi-perf), with the control thread on a
         core of its own and sharing one with a polling reactor
  idle   CPU time of the daemon in adaptive mode with 100 idle sessions
"""
import argparse
import json
import os
import pathlib
import shutil
import socket
import struct
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "lib"))
import daemon  # noqa: E402


def cpu_seconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def login(port, number):
    """A full feature session, by the shortest login there is (RFC 7143 §6.3)."""
    text = "\0".join([
        f"InitiatorName=iqn.2026-01.io.pollux:idle-{number}", f"TargetName={daemon.IQN}", "SessionType=Normal",
        "HeaderDigest=None", "DataDigest=None", "ErrorRecoveryLevel=0", "",
    ]).encode()
    header = struct.pack(">BBBBB3s6sHIHHII16s", 0x43, 0x87, 0, 0, 0, len(text).to_bytes(3, "big"),
                         bytes([0x80, 0, 0, 0]) + struct.pack(">H", number), 0, number + 1, 0, 0, 1, 0, bytes(16))
    stream = socket.create_connection(("127.0.0.1", port))
    stream.sendall(header + text + bytes(-len(text) % 4))
    answer = b""
    while len(answer) < 48:
        part = stream.recv(4096)
        if not part:
            raise RuntimeError("the target closed the connection at login")
        answer += part
    if answer[36] != 0:
        raise RuntimeError(f"login refused with {answer[36]:02x}{answer[37]:02x}")
    return stream


def percentile(values, part):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * part))]


def rpc_latency(path, seconds):
    results = {}
    cpus = sorted(os.sched_getaffinity(0))
    for name, reactor_cpu, mode in (("own core", cpus[0], "adaptive"), ("own core, polling", cpus[0], "poll"), ("shared core, polling", cpus[-1], "poll")):
        target = daemon.Daemon(path, mode=mode)
        target.mask = f"[{reactor_cpu}]"
        target.arguments[1] = target.mask
        target.start_default_disk()
        if name.startswith("shared"):
            # Every thread of the daemon on the reactor's CPU: the control thread gets what the scheduler leaves it.
            for task in os.listdir(f"/proc/{target.process.pid}/task"):
                os.sched_setaffinity(int(task), {reactor_cpu})
        load = [
            subprocess.Popen(["iscsi-perf", "-m", "32", "-b", "8", "-r", "-t", str(seconds + 2), target.url(0)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for _ in range(2)
        ]
        time.sleep(1)
        latencies, until = [], time.monotonic() + seconds
        before = cpu_seconds(target.process.pid)
        while time.monotonic() < until:
            started = time.perf_counter()
            target.rpc("bdev_get_iostat")
            latencies.append(time.perf_counter() - started)
            time.sleep(0.002)
        busy = (cpu_seconds(target.process.pid) - before) / seconds
        for process in load:
            process.wait(timeout=60)
        target.stop()
        results[name] = {
            "requests": len(latencies), "p50_ms": percentile(latencies, 0.5) * 1e3, "p99_ms": percentile(latencies, 0.99) * 1e3,
            "max_ms": max(latencies) * 1e3, "daemon_cpu": busy,
        }
        row = results[name]
        print(f"rpc, {name}: {row['requests']} requests, p50 {row['p50_ms']:.2f} ms, p99 {row['p99_ms']:.2f} ms, max {row['max_ms']:.2f} ms, daemon at {busy:.2f} cores")
    return results


def idle(path, seconds):
    target = daemon.Daemon(path).start_default_disk()
    sessions = [login(target.port, number) for number in range(100)]
    time.sleep(1)
    before = cpu_seconds(target.process.pid)
    time.sleep(seconds)
    used = (cpu_seconds(target.process.pid) - before) / seconds
    connections = len(target.rpc("iscsi_get_connections"))
    for stream in sessions:
        stream.close()
    target.stop()
    print(f"idle: {connections} sessions, adaptive, {seconds} s: {used * 100:.2f} % of a core")
    return {"sessions": connections, "seconds": seconds, "cpu": used}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["rpc", "idle", "all"])
    parser.add_argument("--polluxd", default=str(HERE.parent / "target/release/polluxd"))
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--json", help="write the figures to this file")
    arguments = parser.parse_args()
    if arguments.what != "idle" and not shutil.which("iscsi-perf"):
        sys.exit("error: iscsi-perf is missing: scripts/setup installs it")
    results = {}
    if arguments.what in ("rpc", "all"):
        results["rpc"] = rpc_latency(arguments.polluxd, arguments.seconds)
    if arguments.what in ("idle", "all"):
        results["idle"] = idle(arguments.polluxd, arguments.seconds * 2)
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
