#!/usr/bin/env python3
"""Runs libiscsi's conformance suite, each test in a process of its own, and compares with the expected outcomes.

iscsi-test-cu reports a skipped test as passed and one crash spoils what follows; so each test runs alone and its
output is read: passed, skipped (with the tool's reason), failed, crashed or hung. `expected.tsv` beside this file
holds the outcome every test must have; a change in either direction is a failure. `a/b` accepts either, for tests that race against themselves.

usage: run.py [--url URL --multipath-url URL | --polluxd PATH] [--filter REGEX] [--json FILE] [--write-expected]
"""
import argparse
import json
import pathlib
import re
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "lib"))
import daemon  # noqa: E402

EXPECTED = HERE / "expected.tsv"


def test_names():
    text = subprocess.run(["iscsi-test-cu", "--list"], capture_output=True, text=True, check=False)
    names = re.findall(r"^(ALL\.[^.\s]+\.[^.\s]+)$", text.stdout + text.stderr, re.M)
    return list(dict.fromkeys(names))


def run_one(name, url, multipath_url, seconds):
    """The outcome of one test and the tool's own words for it."""
    command = ["iscsi-test-cu", "--dataloss", "--fail", "-t", name, url]
    if multipath_url:
        command.append(multipath_url)
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds, check=False)
    except subprocess.TimeoutExpired as expired:
        return "hung", (expired.stdout or b"").decode(errors="replace")
    output = done.stdout.decode(errors="replace")
    counts = re.search(r"^\s+tests\s+(\d+)\s+(\d+)\s+(\d+)\s+(\d+)", output, re.M)
    if done.returncode < 0 or not counts:
        return "crashed", output
    total, ran, passed, failed = map(int, counts.groups())
    if failed or passed != ran or total == 0:
        return "failed", output
    # Only the test's own words count: its suite clears reservations before and after, and says so when it cannot.
    own = re.search(r"^  Test: .*?\.\.\.(.*?)(passed|FAILED)", output, re.M | re.S)
    if own and "[SKIPPED]" in own.group(1):
        return "skipped", own.group(1)
    return "passed", output


def reason(output):
    # Skips last: the suite's own, around a test that failed, do not explain the failure.
    for pattern in (r"\[FAILED\]\s*(.+)", r"^\s+\d+\.\s+(.+)", r"\[SKIPPED\]\s*(.+)"):
        found = re.search(pattern, output, re.M)
        if found:
            return found.group(1).strip()[:110]
    return ""


def read_expected():
    if not EXPECTED.exists():
        return {}
    rows = {}
    for line in EXPECTED.read_text().splitlines():
        if line and not line.startswith("#"):
            name, outcome = line.split("\t")[:2]
            rows[name] = outcome
    return rows


def write_expected(results):
    lines = ["# test\toutcome\twhy: libiscsi's own words for a skip; ours, from the test's source, for a failure"]
    old = {}
    if EXPECTED.exists():
        for line in EXPECTED.read_text().splitlines():
            parts = line.split("\t")
            if len(parts) > 2 and not line.startswith("#"):
                old[parts[0]] = (parts[1], parts[2])
    for name, (outcome, output) in results.items():
        why = reason(output) if outcome != "passed" else ""
        if name in old and old[name][0] == outcome and outcome != "skipped":
            why = old[name][1]
        lines.append(f"{name}\t{outcome}\t{why}".rstrip())
    EXPECTED.write_text("\n".join(lines) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="iscsi://… of a running target's LUN (its data is destroyed)")
    parser.add_argument("--multipath-url", help="a second path to the same LUN")
    parser.add_argument("--polluxd", default=str(HERE.parents[1] / "target/release/polluxd"), help="daemon to start when there is no --url")
    parser.add_argument("--cores", default="1", help="reactors of that daemon")
    parser.add_argument("--filter", default="", help="run only tests whose name matches")
    parser.add_argument("--seconds", type=int, default=90, help="a test that takes longer is hung")
    parser.add_argument("--json", help="write the outcomes to this file")
    parser.add_argument("--write-expected", action="store_true", help="make the outcomes of this run the expected ones")
    parser.add_argument("--verbose", action="store_true", help="print the output of every test that is not as expected")
    arguments = parser.parse_args()

    names = [name for name in test_names() if re.search(arguments.filter, name)]
    if not names:
        sys.exit("error: iscsi-test-cu lists no such test; is libiscsi-bin installed (scripts/setup)?")
    target = None
    if not arguments.url:
        target = daemon.Daemon(arguments.polluxd, cores=int(arguments.cores))
        target.start_default_disk()
        arguments.url = arguments.multipath_url = target.url(0)
    expected = read_expected()
    results, surprises = {}, []
    started = time.monotonic()
    try:
        for number, name in enumerate(names, 1):
            outcome, output = run_one(name, arguments.url, arguments.multipath_url, arguments.seconds)
            results[name] = (outcome, output)
            wanted = expected.get(name, "passed")
            as_wanted = outcome in wanted.split("/")
            note = "" if as_wanted else f"   <-- expected {wanted}"
            print(f"[{number:3}/{len(names)}] {outcome:8} {name} {reason(output) if outcome != 'passed' else ''}{note}", flush=True)
            if not as_wanted:
                surprises.append(name)
                if arguments.verbose:
                    print(output)
            if target and not target.alive():
                print("error: the daemon died during this test")
                print(target.log_tail())
                surprises.append(name)
                break
    finally:
        if target:
            target.stop()
    counts = {word: sum(1 for outcome, _ in results.values() if outcome == word) for word in ("passed", "skipped", "failed", "crashed", "hung")}
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps({"counts": counts, "tests": {n: o for n, (o, _) in results.items()}}, indent=1))
    if arguments.write_expected:
        write_expected(results)
        surprises = []
    print(f"libiscsi: {len(results)} tests in {time.monotonic() - started:.0f} s: " + ", ".join(f"{count} {word}" for word, count in counts.items()))
    for name in surprises:
        print(f"  not as expected: {name}: {results[name][0]}, expected {expected.get(name, 'passed')}")
    as_expected = len(results) - len(set(surprises))
    skipped = sum(1 for name, (outcome, _) in results.items() if outcome == "skipped" and name not in surprises)
    print(f"totals: {as_expected - skipped} passed, {len(set(surprises))} failed, {skipped} skipped")
    sys.exit(1 if surprises else 0)


if __name__ == "__main__":
    main()
