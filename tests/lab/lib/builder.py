"""Builds what the guests need, once: a private QEMU, a kernel with a subset of its modules, a root image, an initramfs.

Everything comes from Debian by the mirror the machine's own apt uses, and stays in a cache outside the repository:
`$XDG_CACHE_HOME/pollux-lab/KEY`, where KEY is a hash of this file and of the folder `image`.
"""
import concurrent.futures
import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
IMAGE = HERE.parent / "image"
SUITE = "trixie"
QEMU_PACKAGES = ["qemu-system-x86", "qemu-utils", "seabios", "ipxe-qemu"]
TOOLS = {
    "mmdebstrap": "mmdebstrap", "tar": "tar", "cpio": "cpio", "depmod": "kmod", "mke2fs": "e2fsprogs", "xz": "xz-utils",
    "gzip": "gzip", "strip": "binutils", "objdump": "binutils", "apt-get": "apt",
}
# What an unpacked image may need at most; a build with less room fails half way and says something else.
ROOM_BYTES = 5 << 30
INITRAMFS_MODULES = ["virtio_pci", "virtio_blk", "virtio_net", "ext4", "iscsi_tcp", "sd_mod", "crc32c_generic"]


class CannotBuild(Exception):
    """This machine cannot build the lab; the text says why."""


def say(text):
    print(f"lab: {text}", flush=True)


@contextlib.contextmanager
def step(what):
    """Says what begins, every ten seconds that it still goes on, and how long it took."""
    started, ended = time.monotonic(), threading.Event()

    def remind():
        while not ended.wait(10):
            say(f"{what}: {time.monotonic() - started:.0f} s so far")

    say(what)
    threading.Thread(target=remind, daemon=True).start()
    try:
        yield
    finally:
        ended.set()
    say(f"{what}: done in {time.monotonic() - started:.0f} s")


def cache_folder():
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(base) / "pollux-lab"


def key():
    digest = hashlib.sha256()
    for path in [pathlib.Path(__file__), *sorted(IMAGE.iterdir())]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    digest.update(platform.machine().encode())
    return digest.hexdigest()[:16]


class Parts:
    """A finished build."""

    def __init__(self, folder):
        self.folder = folder
        self.manifest = json.loads((folder / "manifest.json").read_text())
        self.kernel = folder / "vmlinuz"
        self.initramfs = folder / "initramfs.gz"
        self.root = folder / "root.img"

    def qemu(self, program="qemu-system-x86_64"):
        """The command that runs a program of the private tree with the tree's own loader and libraries."""
        tree = self.folder / "qemu"
        libraries = tree / "usr/lib/x86_64-linux-gnu"
        paths = ":".join(str(path) for path in (libraries, libraries / "pulseaudio"))
        command = [str(tree / "usr/lib64/ld-linux-x86-64.so.2"), "--library-path", paths, str(tree / "usr/bin" / program)]
        if program.startswith("qemu-system"):
            for folder in ("usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"):
                command += ["-L", str(tree / folder)]
        return command

    def environment(self):
        # The machine may have modules of another QEMU where this one looks first.
        modules = self.folder / "qemu/usr/lib/x86_64-linux-gnu/qemu"
        return {**os.environ, "QEMU_MODULE_DIR": str(modules)}


def apt_mirror():
    """Where the machine's own apt gets Debian from: any form of sources, because apt itself is asked."""
    given = os.environ.get("POLLUX_LAB_MIRROR")
    if given:
        return given
    form = "$(CREATED_BY)|$(ORIGIN)|$(LABEL)|$(COMPONENT)|$(REPO_URI)"
    done = subprocess.run(["apt-get", "indextargets", "--format", form], capture_output=True, text=True, check=False)
    rows = [line.split("|") for line in done.stdout.splitlines()]
    rows = [row for row in rows if len(row) == 5 and row[0] == "Packages" and row[3] == "main"]
    for row in rows:
        if row[1] == "Debian" and row[2] == "Debian":
            return row[4]
    for row in rows:  # before the first `apt-get update` apt knows no origins
        if re.search(r"/debian/?$", row[4]):
            return row[4]
    raise CannotBuild("apt knows no mirror of Debian: set POLLUX_LAB_MIRROR to the address of one")


def apt_options():
    """How the machine's apt reaches its mirror: proxies, certificates, retries, credentials."""
    done = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=False)
    wanted = re.compile(r'^Acquire::(https?::|Retries|ForceIPv[46]|Check-Valid-Until|Check-Date)\S* ".+";$')
    options = [line for line in done.stdout.splitlines() if wanted.match(line)]
    credentials = pathlib.Path("/etc/apt/auth.conf.d")
    if credentials.is_dir() and any(credentials.iterdir()):
        options.append(f'Dir::Etc::netrcparts "{credentials}";')
    options.append('Acquire::Languages "none";')
    return options


def run(command, log, **options):
    """Runs a command into a log; its last words explain a failure."""
    with log.open("ab") as file:
        file.write(f"$ {shlex.join(map(str, command))}\n".encode())
        file.flush()
        status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, check=False, **options).returncode
    if status != 0:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        wrong = [line for line in lines if re.match(r"E:|Err:|\S*error\b", line, re.I)] or lines
        raise CannotBuild(f"{command[0]} ended with {status}: {'; '.join(wrong[-3:])[:400]}")


def debootstrap(work, name, packages, variant, suites, apt=(), dpkg=()):
    """A tree of Debian packages as a tar file."""
    mirror = apt_mirror()
    archive = work / f"{name}.tar"
    command = ["mmdebstrap", f"--variant={variant}", f"--include={','.join(packages)}"]
    command += [f"--dpkgopt={option}" for option in ("force-unsafe-io", *dpkg)]
    command += [f"--aptopt={option}" for option in [*apt_options(), 'APT::Install-Recommends "false";', *apt]]
    command += [SUITE, str(archive), *[f"deb {mirror} {suite} main" for suite in suites]]
    run(command, work / f"{name}.log", env={**os.environ, "TMPDIR": str(work), "DEBIAN_FRONTEND": "noninteractive"})
    return archive


def listed(file):
    words = []
    for line in (IMAGE / file).read_text().splitlines():
        words += line.split("#")[0].split()
    return words


def build_qemu(work, out):
    with step("QEMU: downloading and unpacking"):
        release = f'APT::Default-Release "{SUITE}-backports";'
        archive = debootstrap(work, "qemu", QEMU_PACKAGES, "extract", [SUITE, f"{SUITE}-backports"], [release])
        tree = out / "qemu"
        tree.mkdir()
        keep = ["./usr/bin/qemu-*", "./usr/lib/*", "./usr/lib64/*", "./usr/share/qemu/*", "./usr/share/seabios/*"]
        run(["tar", "-x", "-C", str(tree), "-f", str(archive), "--no-same-owner", "--wildcards", *keep], work / "qemu.log")
        archive.unlink()


def closure(wanted, modules):
    """The files of the modules named and of all they depend on, from modules.dep. Second: names there are no files for."""
    needs, files = {}, {}
    for line in (modules / "modules.dep").read_text().splitlines():
        file, _, rest = line.partition(":")
        needs[file] = rest.split()
        files[re.sub(r"\.ko.*", "", pathlib.Path(file).name).replace("-", "_")] = file
    builtin = {pathlib.Path(line).stem.replace("-", "_") for line in (modules / "modules.builtin").read_text().splitlines()}
    found, absent = set(), []
    for name in wanted:
        name = name.replace("-", "_")
        if name in files:
            found |= {files[name], *needs[files[name]]}
        elif name not in builtin:
            absent.append(name)
    return sorted(found), absent


def build_kernel(work, out):
    """Returns the kernel's version; its modules are under work/modules."""
    with step("kernel: downloading, choosing modules"):
        log = work / "kernel.log"
        archive = debootstrap(work, "kernel", ["linux-image-amd64"], "extract", [SUITE])
        tree = work / "kernel"
        tree.mkdir()
        run(["tar", "-x", "-C", str(tree), "-f", str(archive), "--no-same-owner", "--wildcards", "./boot/vmlinuz-*", "./boot/config-*", "./usr/lib/modules/*"], log)
        archive.unlink()
        version = next((tree / "usr/lib/modules").iterdir()).name
        (tree / "lib").symlink_to("usr/lib")
        run(["depmod", "-b", str(tree), version], log)
        source = tree / "usr/lib/modules" / version
        chosen, absent = closure(listed("modules"), source)
        if absent:
            say(f"kernel {version} has no modules {' '.join(absent)}")
        target = work / "modules/lib/modules" / version
        for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / name, target / name)
        plain = []
        for file in chosen:
            destination = target / file
            destination.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / file, destination)
            plain.append(destination)
        for suffix, tool in ((".xz", ["xz", "-d"]), (".zst", ["zstd", "-q", "-d", "--rm"]), (".gz", ["gzip", "-d"])):
            packed = [str(path) for path in plain if path.suffix == suffix]
            if packed:
                run([*tool, *packed], log)
        run(["strip", "--strip-debug", *map(str, target.rglob("*.ko"))], log)
        run(["depmod", "-b", str(work / "modules"), version], log)
        shutil.copy(tree / "boot" / f"vmlinuz-{version}", out / "vmlinuz")
        shutil.copy(tree / "boot" / f"config-{version}", out / "config")
        shutil.rmtree(tree)
    return version


def build_root(work):
    """Returns the archive of the root file system."""
    with step("root image: downloading and installing packages"):
        thin = [f"path-exclude=/usr/share/{folder}/*" for folder in ("doc", "man", "locale", "info")]
        return debootstrap(work, "root", listed("packages"), "minbase", [SUITE], dpkg=thin)


def build_initramfs(work, out, version, root):
    """A busybox that finds the root file system, and iscsistart for a root that comes by iSCSI."""
    with step("initramfs"):
        log, tree, source = work / "initramfs.log", work / "initramfs", work / "files"
        source.mkdir()
        run(["tar", "-x", "-C", str(source), "-f", str(root), "--no-same-owner", "--wildcards", "./usr/bin/busybox", "./usr/sbin/iscsistart", "./usr/lib/x86_64-linux-gnu/*.so*", "./usr/lib64/*"], log)
        for folder in ("bin", "dev", "lib64", "lib"):
            (tree / folder).mkdir(parents=True)
        shutil.copy(source / "usr/bin/busybox", tree / "bin/busybox")
        shutil.copy(source / "usr/sbin/iscsistart", tree / "bin/iscsistart")
        shutil.copy(IMAGE / "initramfs-init", tree / "init")
        libraries = source / "usr/lib/x86_64-linux-gnu"
        waiting, done = ["iscsistart"], set()
        while waiting:
            name = waiting.pop()
            file = tree / "bin" / name if name == "iscsistart" else libraries / name
            text = subprocess.run(["objdump", "-p", str(file)], capture_output=True, text=True, check=True).stdout
            for needed in re.findall(r"NEEDED\s+(\S+)", text):
                if needed not in done and (libraries / needed).exists():
                    done.add(needed)
                    waiting.append(needed)
                    shutil.copy(libraries / needed, tree / "lib" / needed)
        loader = "ld-linux-x86-64.so.2"
        shutil.copy(libraries / loader, tree / "lib64" / loader)
        modules = work / "modules/lib/modules" / version
        chosen, absent = closure(INITRAMFS_MODULES, modules)
        if absent:
            raise CannotBuild(f"kernel {version} has no modules {' '.join(absent)}, which the initramfs needs")
        target = tree / "lib/modules" / version
        for file in chosen:
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(modules / file, target / file)
        for name in ("modules.builtin", "modules.order"):
            shutil.copy(modules / name, target / name)
        run(["depmod", "-b", str(tree), version], log)
        script = f"cd {shlex.quote(str(tree))} && find . | cpio --quiet -o -H newc -R 0:0 | gzip -1 >{shlex.quote(str(out / 'initramfs.gz'))}"
        run(["sh", "-e", "-c", script], log)


def build_image(work, out, version, archive):
    """The root file system as an ext4 image, made without a loop device; under fakeroot when this is not root."""
    with step("root image: packing"):
        log, image = work / "image.log", out / "root.img"
        script = """
            cd "$1"
            mkdir root
            tar -x -C root -f "$2" --exclude='./dev/*'
            mkdir -p root/usr/lib/modules root/lab
            cp -r "$1/modules/lib/modules/$3" root/usr/lib/modules/
            install -m 755 "$4" root/usr/sbin/lab-init
            install -m 600 /dev/null root/etc/iscsi/initiatorname.iscsi
            rm -rf root/var/cache/apt root/var/lib/apt/lists root/etc/apt/apt.conf.d/99mmdebstrap
            megabytes=$(($(du -sm root | cut -f 1) * 5 / 4 + 512))
            mke2fs -q -t ext4 -O ^has_journal -m 0 -L lab-root -d root "$5" "${megabytes}M"
            rm -rf root
        """
        command = ["sh", "-e", "-c", script, "sh", str(work), str(archive), version, str(IMAGE / "lab-init"), str(image)]
        run(command if os.getuid() == 0 else ["fakeroot", *command], log)


def build_into(out):
    missing = sorted({package for tool, package in TOOLS.items() if shutil.which(tool) is None})
    if os.getuid() != 0 and shutil.which("fakeroot") is None:
        missing.append("fakeroot")
    if missing:
        raise CannotBuild(f"packages are missing: {' '.join(missing)}: run scripts/setup")
    if platform.machine() != "x86_64":
        raise CannotBuild(f"the lab knows x86_64 only, this is {platform.machine()}")
    with tempfile.TemporaryDirectory(prefix="pollux-lab-", dir=work_place(out.parent)) as name:
        work = pathlib.Path(name)
        work.chmod(0o755)  # mmdebstrap's helpers run as other users
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            kernel = pool.submit(build_kernel, work, out)
            root = pool.submit(build_root, work)
            version = kernel.result()
            qemu = pool.submit(build_qemu, work, out)
            archive = root.result()
            build_initramfs(work, out, version, archive)
            build_image(work, out, version, archive)
            qemu.result()
    parts = {"kernel": version, "packages": listed("packages")}
    (out / "manifest.json").write_text(json.dumps(parts, indent=1))
    done = subprocess.run([*Parts(out).qemu(), "--version"], capture_output=True, text=True, check=False, env=Parts(out).environment())
    found = re.search(r"version (\d+)\.(\d+)[.\d]*", done.stdout)
    if not found or (int(found[1]), int(found[2])) < (10, 1):
        raise CannotBuild(f"QEMU 10.1 or later is needed; the private tree says {(done.stdout + done.stderr).strip()[:200]!r}")
    parts["qemu"] = found[0].split()[1]
    (out / "manifest.json").write_text(json.dumps(parts, indent=1))


def work_place(cache):
    """Where to unpack: in memory when there is room, else beside the cache."""
    for folder in (pathlib.Path("/dev/shm"), pathlib.Path(tempfile.gettempdir()), cache):
        with contextlib.suppress(OSError):
            if os.access(folder, os.W_OK) and shutil.disk_usage(folder).free > ROOM_BYTES:
                return folder
    raise CannotBuild(f"neither /dev/shm, {tempfile.gettempdir()} nor {cache} has {ROOM_BYTES >> 30} GiB to unpack in")


@contextlib.contextmanager
def locked(path, how):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, how)
        yield file


def prune(cache, current):
    """Removes other builds that no run uses."""
    for folder in cache.iterdir():
        if not folder.is_dir() or folder.name == current:
            continue
        with (cache / f"{folder.name}.lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            shutil.rmtree(folder, ignore_errors=True)
            pathlib.Path(file.name).unlink(missing_ok=True)


@contextlib.contextmanager
def parts():
    """The finished build, made when it is not there, kept from being pruned while it is in use."""
    cache, name = cache_folder(), key()
    cache.mkdir(parents=True, exist_ok=True)
    with locked(cache / f"{name}.lock", fcntl.LOCK_SH):
        if not (cache / name).exists():
            with waiting_lock(cache / "build.lock"):
                if not (cache / name).exists():
                    say(f"building into {cache / name} (once; about a minute and a half on an idle machine)")
                    out = cache / f"{name}.partial"
                    shutil.rmtree(out, ignore_errors=True)
                    out.mkdir()
                    try:
                        build_into(out)
                    except BaseException:
                        shutil.rmtree(out, ignore_errors=True)
                        raise
                    out.rename(cache / name)
                    prune(cache, name)
        yield Parts(cache / name)


@contextlib.contextmanager
def waiting_lock(path):
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            with step("waiting for another build of the lab"):
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def clean():
    """Removes every build that nothing uses."""
    cache = cache_folder()
    if cache.exists():
        prune(cache, current=None)
        for verdict in cache.glob("kvm-*"):
            verdict.unlink()
    return cache
