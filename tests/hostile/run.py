#!/usr/bin/env python3
"""Attacks a running polluxd over the wire while a healthy session writes and verifies, and checks after each attack that the
daemon lives, that the healthy session noticed nothing, and that memory and log stayed bounded. Only the loopback is used.

usage: run.py [--polluxd PATH] [--only NAME] [--cores N]
"""
import argparse
import pathlib
import sys
import time
import traceback

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import command_attacks  # noqa: E402
import login_attacks  # noqa: E402
import pdu_attacks  # noqa: E402
from stage import Skip, Stage  # noqa: E402

TESTS = login_attacks.TESTS + pdu_attacks.TESTS + command_attacks.TESTS
# Starting the daemon again after an attack that it did not survive.
RESTARTS_MAX = 12


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--polluxd", default=str(HERE.parents[1] / "target/release/polluxd"))
    parser.add_argument("--only", default="", help="run only tests whose name holds this")
    parser.add_argument("--cores", type=int, default=2, help="reactors of the daemon")
    arguments = parser.parse_args()
    passed = failed = skipped = restarts = 0
    stage = None
    started = time.monotonic()
    for test in TESTS:
        if arguments.only not in test.__name__:
            continue
        name = f"hostile::{test.__name__}"
        try:
            if stage is None:
                if restarts > RESTARTS_MAX:
                    raise RuntimeError("the daemon was started too often")
                restarts += 1
                stage = Stage(arguments.polluxd, arguments.cores)
                stage.start()
            print(f"ok      {name} ({stage.run(test)})", flush=True)
            passed += 1
        except Skip as why:
            skipped += 1
            print(f"skipped: {name}: {why}", flush=True)
        except Exception:  # every failure is a failed test, whatever its kind
            failed += 1
            tail = stage.daemon.log_tail(12) if stage else ""
            print(f"FAILED  {name}\n{traceback.format_exc()}\n{tail}", flush=True)
            # The next attack meets a fresh daemon.
            stop(stage)
            stage = None
    if stage is not None:
        error = stop(stage)
        if error:
            failed += 1
            print(f"FAILED  hostile::the_daemon_ends_cleanly\n{error}", flush=True)
        else:
            passed += 1
            print("ok      hostile::the_daemon_ends_cleanly", flush=True)
    print(f"hostile: {time.monotonic() - started:.0f} s")
    print(f"totals: {passed} passed, {failed} failed, {skipped} skipped")
    sys.exit(1 if failed else 0)


def stop(stage):
    """Ends a stage; the reason when it does not end well."""
    try:
        if stage is not None:
            stage.stop()
    except RuntimeError as error:
        return error
    return None


if __name__ == "__main__":
    main()
