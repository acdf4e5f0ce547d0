#!/usr/bin/env python3
"""The guest lab: tests of Pollux against kernels in virtual machines. scripts/lab calls this.

usage: run.py build                       builds what the guests need, if it is not there
       run.py test [NAME...] [options]    runs guest tests, all of them when none is named
       run.py shell [--guest TEST]        a shell in a guest, with a target and two LUNs on the host
       run.py clean                       removes what was built
"""
import argparse
import dataclasses
import json
import os
import pathlib
import signal
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "lib"))
import builder  # noqa: E402
import case as case_module  # noqa: E402
import machine  # noqa: E402

WELCOME = """
polluxd runs on the host: {portal} {iqn}
  iscsi_start; discover; login; want_disk 0; echo $disk    lib.sh is loaded
  host rpc METHOD [JSON]                                   a call to the daemon's control socket
Its binaries are in /lab-bin. Leave with exit or Ctrl-D.
"""


class ShellCase:
    """The guest of `scripts/lab shell`: like a test's, with a shell instead of a script. `of` is that test, or None."""

    name, tier, seconds_max, what = "shell", "full", 1 << 30, "a shell"

    def __init__(self, of):
        self.of = of
        guest = of.guests[0] if of else machine.Guest()
        self.guests = [dataclasses.replace(guest, name="main", script="", wire=False)]

    def has(self, name):
        if name == "verify":
            return None
        return getattr(self, name, None) or (self.of and self.of.has(name))

    def setup(self, lab):
        if self.of and self.of.has("setup"):
            self.of.has("setup")(lab)
        if not lab.targets:
            lab.target().ram("Ram0", 256).ram("Ram1", 256).serve(["Ram0", "Ram1"])
        made = lab.targets[0]
        lab.env["LAB_SHELL"] = "yes"
        lab.env["LAB_WELCOME"] = WELCOME.format(portal=made.portal(), iqn=lab.env["LAB_IQN"])
        if sys.stdin.isatty():
            size = os.get_terminal_size()
            lab.env["LAB_SIZE"] = f"rows {size.lines} cols {size.columns}"
        print(f"lab: the daemon's socket is {made.socket}, its log {made.log}", flush=True)

    @staticmethod
    def step_rpc(lab, method, parameters="{}"):
        return json.dumps(lab.targets[0].rpc(method, **json.loads(parameters)), indent=1)


def command_build(_):
    with builder.parts() as parts:
        print(f"lab: {parts.folder}: kernel {parts.manifest['kernel']}, QEMU {parts.manifest['qemu']}")
        machine.accelerator(parts)
    return 0


def command_clean(_):
    print(f"lab: {builder.clean()} is cleaned of what nothing uses")
    return 0


def command_shell(arguments):
    chosen = [one for one in case_module.cases() if one.name == arguments.guest]
    if arguments.guest and not chosen:
        sys.exit(f"error: there is no guest test {arguments.guest!r}: see scripts/lab test --list")
    with builder.parts() as parts:
        lab = case_module.Lab(parts, machine.accelerator(parts), ShellCase(chosen[0] if chosen else None), arguments.binaries, interactive=True)
        outcome, why = lab.run()
    if outcome != "passed":
        print(f"lab: {why}")
    return 0 if outcome == "passed" else 1


def choose(arguments):
    known = case_module.cases()
    if arguments.names:
        names = {one.name for one in known}
        unknown = [name for name in arguments.names if name not in names]
        if unknown:
            sys.exit(f"error: there is no guest test {', '.join(unknown)}: see scripts/lab test --list")
        return [one for one in known if one.name in arguments.names]
    if arguments.tier == "smoke":
        return [one for one in known if one.tier == "smoke"]
    return known


def command_test(arguments):
    chosen = choose(arguments)
    if arguments.list:
        for one in chosen:
            print(f"{one.name:24} {one.tier:6} {one.what}")
        return 0
    started = time.monotonic()
    results = []
    try:
        with builder.parts() as parts:
            acceleration = machine.accelerator(parts)
            for number, one in enumerate(chosen, 1):
                print(f"[{number}/{len(chosen)}] {one.name}: {one.what}", flush=True)
                began = time.monotonic()
                lab = case_module.Lab(parts, acceleration, one, arguments.binaries, tier=arguments.tier)
                outcome, why = lab.run()
                seconds = time.monotonic() - began
                results.append({"name": one.name, "outcome": outcome, "why": why, "seconds": round(seconds, 1)})
                print(f"[{number}/{len(chosen)}] {outcome} {one.name} ({seconds:.0f} s){': ' + why if why else ''}", flush=True)
    except builder.CannotBuild as reason:
        done = {row["name"] for row in results}
        results += [{"name": one.name, "outcome": "skipped", "why": f"the lab cannot be built: {reason}", "seconds": 0} for one in chosen if one.name not in done]
    count = {word: sum(1 for row in results if row["outcome"] == word) for word in ("passed", "failed", "skipped")}
    print(f"lab: {len(results)} guest tests in {time.monotonic() - started:.0f} s")
    for row in results:
        if row["outcome"] == "failed":
            print(f"  failed: {row['name']}: {row['why']}")
    for row in results:
        if row["outcome"] == "skipped":
            print(f"skipped: {row['name']}: {row['why']}")
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps({"counts": count, "tests": results}, indent=1))
    print(f"totals: {count['passed']} passed, {count['failed']} failed, {count['skipped']} skipped")
    return 1 if count["failed"] else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build").set_defaults(function=command_build)
    commands.add_parser("clean").set_defaults(function=command_clean)
    shell = commands.add_parser("shell")
    shell.add_argument("--guest", help="a guest as this test wants it: its devices, memory, command line")
    shell.set_defaults(function=command_shell)
    test = commands.add_parser("test")
    test.add_argument("names", nargs="*", metavar="NAME")
    test.add_argument("--tier", choices=case_module.TIERS, default="full", help="smoke: the short ones, each in its short form (default: full, all of them)")
    test.add_argument("--json", metavar="FILE", help="write the outcomes to this file")
    test.add_argument("--list", action="store_true", help="say which tests there are")
    test.set_defaults(function=command_test)
    for one in (shell, test):
        one.add_argument("--binaries", default=str(HERE.parents[1] / "target/release"), help="folder of polluxd and pollux")
    arguments = parser.parse_args()
    # Ended from outside, it ends its guests and daemons too.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(f"error: ended by {signal.Signals(number).name}"))
    sys.exit(arguments.function(arguments))


if __name__ == "__main__":
    try:
        main()
    except builder.CannotBuild as error:
        sys.exit(f"error: the lab cannot be built: {error}")
