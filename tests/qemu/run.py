#!/usr/bin/env python3
"""qemu-img as an initiator: images written through iSCSI and read back, over several kinds of disk and login.

usage: run.py [--polluxd PATH] [--only NAME]
"""
import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import traceback

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "lib"))
import daemon  # noqa: E402

MEGABYTE = 1 << 20


class Skip(Exception):
    """This machine cannot run the test."""


def qemu_img(*arguments, timeout=120):
    done = subprocess.run(["qemu-img", *map(str, arguments)], capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode != 0:
        raise AssertionError(f"qemu-img {' '.join(map(str, arguments))}: {done.stdout}{done.stderr}")
    return done.stdout


def image(folder, megabytes, name="image"):
    """Random data, a hole, random data: what a real image looks like."""
    path = folder / name
    with path.open("wb") as file:
        file.write(os.urandom(megabytes * MEGABYTE // 3))
        file.seek(megabytes * MEGABYTE * 2 // 3)
        file.write(os.urandom(megabytes * MEGABYTE // 4))
        file.truncate(megabytes * MEGABYTE)
    return path


def round_trip(target, url, folder, megabytes=48):
    source = image(folder, megabytes)
    qemu_img("convert", "-n", "-f", "raw", "-O", "raw", source, url)
    qemu_img("compare", "-f", "raw", "-F", "raw", source, url)
    back = folder / "back"
    qemu_img("convert", "-f", "raw", "-O", "raw", url, back)
    assert source.read_bytes() == back.read_bytes(), "the image read back differs"


def ram_disk(target, folder):
    target.rpc("bdev_malloc_create", name="Ram0", num_blocks=48 * 2048, block_size=512)
    target.export(["Ram0"])
    round_trip(target, target.url(0), folder)


def ram_disk_of_4096_byte_blocks(target, folder):
    target.rpc("bdev_malloc_create", name="Ram0", num_blocks=48 * 256, block_size=4096)
    target.export(["Ram0"])
    round_trip(target, target.url(0), folder)


def buffered_file(target, folder):
    disk = folder / "disk"
    disk.touch()
    os.truncate(disk, 48 * MEGABYTE)
    target.rpc("bdev_aio_create", name="File0", filename=str(disk), block_size=512)
    target.export(["File0"])
    round_trip(target, target.url(0), folder)
    assert disk.read_bytes() == (folder / "image").read_bytes(), "the file behind the disk differs"


def direct_file(target, folder):
    disk = folder / "disk"
    disk.touch()
    os.truncate(disk, 48 * MEGABYTE)
    target.rpc("bdev_uring_create", name="File0", filename=str(disk), block_size=512)
    target.export(["File0"])
    round_trip(target, target.url(0), folder)
    assert disk.read_bytes() == (folder / "image").read_bytes(), "the file behind the disk differs"


def chap(target, folder):
    target.rpc("bdev_malloc_create", name="Ram0", num_blocks=48 * 2048, block_size=512)
    target.rpc("iscsi_create_auth_group", tag=1, secrets=[{"user": "alice", "secret": "correct horse battery"}])
    target.export(["Ram0"], disable_chap=False, require_chap=True, chap_group=1)
    url = target.url(0)
    refused = subprocess.run(["qemu-img", "info", url], capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode != 0, "a login without CHAP was admitted"
    wrong = subprocess.run(["qemu-img", "info", target.url(0, user="alice%wrong-wrong-wrong")], capture_output=True, text=True, timeout=60, check=False)
    assert wrong.returncode != 0, "a wrong secret was admitted"
    good = subprocess.run(["iscsi-inq", target.url(0, user="alice%correct horse battery")], capture_output=True, text=True, timeout=60, check=False)
    assert good.returncode == 0, f"the right secret was refused: {good.stdout}{good.stderr}"


def header_digest(target, folder):
    target.rpc("bdev_malloc_create", name="Ram0", num_blocks=48 * 2048, block_size=512)
    target.export(["Ram0"])
    options = f"driver=iscsi,transport=tcp,portal=127.0.0.1:{target.port},target={daemon.IQN},lun=0,header-digest=crc32c"
    source = image(folder, 48)
    qemu_img("convert", "-n", "-f", "raw", "--target-image-opts", source, options)
    qemu_img("compare", "--image-opts", f"driver=raw,file.filename={source}", options)


def two_disks_at_once(target, folder):
    for number in range(2):
        target.rpc("bdev_malloc_create", name=f"Ram{number}", num_blocks=32 * 2048, block_size=512)
    target.export(["Ram0", "Ram1"])
    sources = [image(folder, 32, f"image{number}") for number in range(2)]
    running = [
        subprocess.Popen(["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", str(sources[number]), target.url(number)])
        for number in range(2)
    ]
    for process in running:
        assert process.wait(timeout=120) == 0
    for number in range(2):
        qemu_img("compare", "-f", "raw", "-F", "raw", sources[number], target.url(number))


def closed_by_default(target, folder):
    target.rpc("bdev_malloc_create", name="Ram0", num_blocks=2048, block_size=512)
    target.rpc("iscsi_create_portal_group", tag=1, portals=[{"host": "127.0.0.1", "port": str(target.port)}])
    target.rpc("iscsi_create_initiator_group", tag=1, initiators=["iqn.2026-01.example:nobody"], netmasks=["127.0.0.0/8"])
    target.rpc(
        "iscsi_create_target_node", name=daemon.IQN, alias_name="closed", pg_ig_maps=[{"pg_tag": 1, "ig_tag": 1}],
        luns=[{"bdev_name": "Ram0", "lun_id": 0}], queue_depth=64, disable_chap=True,
    )
    listing = subprocess.run(["iscsi-ls", f"iscsi://127.0.0.1:{target.port}"], capture_output=True, text=True, timeout=60, check=False)
    assert daemon.IQN not in listing.stdout, "discovery shows a target that this initiator may not see"
    login = subprocess.run(["iscsi-inq", target.url(0)], capture_output=True, text=True, timeout=60, check=False)
    assert login.returncode != 0, "an initiator that no group admits logged in"


def fio_with_verification(target, folder):
    probe = subprocess.run(["fio", "--enghelp"], capture_output=True, text=True, check=False) if shutil_which("fio") else None
    if probe is None or "libiscsi" not in probe.stdout:
        raise Skip("fio with its libiscsi engine is not installed")
    target.rpc("bdev_malloc_create", name="Ram0", num_blocks=48 * 2048, block_size=512)
    target.export(["Ram0"])
    url = target.url(0).replace(":", "\\:")
    done = subprocess.run(
        ["fio", "--name=v", "--ioengine=libiscsi", f"--filename={url}", "--rw=randwrite", "--bs=4k-64k", "--iodepth=16", "--size=32M",
         "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--thread"],
        capture_output=True, text=True, timeout=300, check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def shutil_which(name):
    import shutil

    return shutil.which(name)


TESTS = [
    ram_disk, ram_disk_of_4096_byte_blocks, buffered_file, direct_file, chap, header_digest, two_disks_at_once,
    closed_by_default, fio_with_verification,
]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--polluxd", default=str(HERE.parents[1] / "target/release/polluxd"))
    parser.add_argument("--only", default="", help="run only tests whose name holds this")
    arguments = parser.parse_args()
    passed = failed = skipped = 0
    for cores in (1, 2):
        for test in TESTS:
            name = f"qemu::{test.__name__}[{cores} reactor{'s' if cores > 1 else ''}]"
            if arguments.only not in name:
                continue
            started = time.monotonic()
            with tempfile.TemporaryDirectory(prefix="pollux-qemu-", dir=HERE.parents[1] / "target") as folder:
                target = daemon.Daemon(arguments.polluxd, cores=cores)
                try:
                    target.start()
                    test(target, pathlib.Path(folder))
                    target.stop()
                    passed += 1
                    print(f"ok      {name} {time.monotonic() - started:.1f} s", flush=True)
                except Skip as why:
                    skipped += 1
                    print(f"skipped: {name}: {why}", flush=True)
                    target.stop()
                except Exception:  # every failure is a failed test, whatever its kind
                    failed += 1
                    print(f"FAILED  {name}\n{traceback.format_exc()}\n{target.log_tail()}", flush=True)
                    try:
                        target.stop()
                    except RuntimeError as also:
                        print(f"        and: {also}", flush=True)
    print(f"totals: {passed} passed, {failed} failed, {skipped} skipped")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
