"""What guest scripts in Python use: a script whose first line is #!/usr/bin/python3 can import this."""
import os
import subprocess
import sys

ENV = os.environ


def host(step, *arguments):
    """Has the host run a step; returns what it answers."""
    done = subprocess.run(["/lab/guest/host", step, *map(str, arguments)], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        fail(f"the host's step {step} failed")
    return done.stdout.rstrip("\n")


def fail(text):
    subprocess.run(["/lab/guest/host", "failed", text], stdout=subprocess.DEVNULL, check=False)
    print(f"failed: {text}", flush=True)
    sys.exit(1)


def skip(text):
    subprocess.run(["/lab/guest/host", "skipped", text], stdout=subprocess.DEVNULL, check=False)
    sys.exit(77)


def run(command, status=0, seconds=120):
    """Runs a command of the shell; its output. `status`: the exit status it must have, or several, or None for any."""
    try:
        done = subprocess.run(command, shell=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        fail(f"{command}: not done within {seconds} s")
    output = done.stdout.decode(errors="replace")
    wanted = (status,) if isinstance(status, int) else status
    if wanted is not None and done.returncode not in wanted:
        print(output)
        last = next((line for line in reversed(output.splitlines()) if line.strip()), "")
        fail(f"{command}: ended with {done.returncode}, not {' or '.join(map(str, wanted))}: {last.strip()}")
    return output


def words(text):
    """Runs words of lib.sh; returns the last line they print."""
    done = subprocess.run(["bash", "-c", f". /lab/guest/lib.sh; {text}"], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(1)  # `fail` has told the host
    return done.stdout.rstrip("\n").rpartition("\n")[2]


def log_in(*luns):
    """Discovers, logs in, and returns the disks of the LUNs."""
    words("iscsi_start; discover >/dev/null || fail 'discovery failed'; login >/dev/null")
    return [words(f"want_disk {lun}; echo $disk") for lun in luns]


def sg_of(disk):
    return words(f"sg_of {disk}")
