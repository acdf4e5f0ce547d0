"""libiscsi's conformance suite through Linux: each test on /dev/sg, with the outcome it must have."""
import collections

from machine import Guest

TIER = "full"
SECONDS_MAX = 3600
# How many tests skip themselves for which reason. A change in either direction is a failure: change the number and say why.
SKIPS = {
    # The suite speaks to a kernel here, with one path, and to a disk that stays.
    "Not an iSCSI device. Skipping test": 22,
    "Multipath unavailable. Skipping test": 4,
    "Logical unit is not removable. Skipping test.": 8,
    "Media is not removable.": 1,
    "Logical unit is not write-protected. Skipping test.": 1,
    "LBPPB < 2. Skipping test": 5,
    "--allow-sanitize flag is not set. Skipping test.": 11,
    # WRITE SAME of no blocks is refused, as the Block Limits page says (WSNZ).
    "WRITESAME10 does not support 0-blocks.": 1,
    "WRITESAME16 does not support 0-blocks.": 1,
    # Commands the target does not have yet, and says so.
    "PROUT Not Supported": 5,
    "PERSISTENT RESERVE IN is not implemented.": 2,
    "RESERVE6 is not implemented on target": 1,
    "EXTENDEDCOPY is not implemented.": 5,
    "RECEIVECOPYRESULT is not implemented.": 3,
    "Third-party Copy VPD page is not implemented.": 1,
}
# Tests that fail by themselves.
FAILS = {
    "ALL.WriteSame16.Unmap": "reads all it wrote by one SG_IO, which is more than a /dev/sg takes: EINVAL, nothing is sent",
}

GUEST = Guest(
    cpus=2,
    script=r'''#!/usr/bin/python3
import re
import subprocess

from lab import host, log_in, run, sg_of

disk, = log_in(0)
sg = sg_of(disk)
text = run("iscsi-test-cu --list 2>&1", None)
names = list(dict.fromkeys(re.findall(r"^(ALL\.[^.\s]+\.[^.\s]+)$", text, re.M)))
names = [name for name in names if not name.startswith("ALL.iSCSI")]
for name in names:
    try:
        done = subprocess.run(["iscsi-test-cu", "--dataloss", "--fail", "-t", name, sg], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=180, check=False)
        output, status = done.stdout.decode(errors="replace"), done.returncode
    except subprocess.TimeoutExpired as expired:
        output, status = (expired.stdout or b"").decode(errors="replace"), None
    counts = re.search(r"^\s+tests\s+(\d+)\s+(\d+)\s+(\d+)\s+(\d+)", output, re.M)
    own = re.search(r"^  Test: .*?\.\.\.(.*?)(passed|FAILED)", output, re.M | re.S)
    if status is None:
        outcome = "hung"
    elif status < 0 or not counts:
        outcome = "crashed"
    elif int(counts[4]) or counts[3] != counts[2] or counts[1] == "0":
        outcome = "failed"
    elif own and "[SKIPPED]" in own[1]:
        outcome = "skipped"
    else:
        outcome = "passed"
    why = ""
    if outcome != "passed":
        found = re.search(r"\[FAILED\]\s*(.+)", output) or re.search(r"\[SKIPPED\]\s*(.+)", own[1] if own else output) or re.search(r"^\s+\d+\.\s+(.+)", output, re.M)
        why = found[1].strip()[:120] if found else ""
        print(f"{outcome:8} {name} {why}", flush=True)
    host("outcome", name, outcome, why)
host("end")
''',
)


def setup(lab):
    lab.target().ram("Ram0", 100).serve(["Ram0"])
    lab.outcomes = {}


def step_outcome(lab, name, outcome, why):
    lab.outcomes[name] = (outcome, why)
    assert lab.targets[0].alive(), f"polluxd died during {name}"


def step_end(lab):
    count = collections.Counter(outcome for outcome, _ in lab.outcomes.values())
    lab.say(f"{len(lab.outcomes)} tests: " + ", ".join(f"{number} {outcome}" for outcome, number in count.items()))
    assert len(lab.outcomes) > 100, "the suite lists too few tests"
    for name, (outcome, why) in lab.outcomes.items():
        wanted = "failed" if name in FAILS else "passed"
        if outcome != wanted and outcome != "skipped":
            lab.fail(f"{name}: {outcome}, expected {wanted}: {why}")
    skips = collections.Counter(why for outcome, why in lab.outcomes.values() if outcome == "skipped")
    for why in sorted(SKIPS.keys() | skips.keys()):
        if SKIPS.get(why, 0) != skips[why]:
            names = " ".join(name for name, outcome in lab.outcomes.items() if outcome == ("skipped", why))
            lab.fail(f"{skips[why]} tests, expected {SKIPS.get(why, 0)}, skip themselves for {why!r}: {names}")
