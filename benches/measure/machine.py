"""What every measurement stands on: commands, disks, mounts, cleaning up, facts of the machine."""

import contextlib
import ctypes
import errno
import fcntl
import os
import pathlib
import re
import shutil
import signal
import struct
import subprocess
import tempfile
import time

MIB = 1 << 20
SCRATCH_PREFIX = "thinsnap-bench-run-"

# Debian's packages of the programs that are used.
PACKAGES = {
    "btrfs": "btrfs-progs", "dmsetup": "dmsetup", "fallocate": "util-linux", "fio": "fio", "losetup": "mount",
    "mkfs.btrfs": "btrfs-progs", "mkfs.ext4": "e2fsprogs", "mkfs.xfs": "xfsprogs", "mount": "mount",
    "qemu-img": "qemu-utils", "qemu-storage-daemon": "qemu-system-common", "tar": "tar",
}

# From linux/loop.h and linux/fs.h; linux/btrfs.h.
LOOP_CTL_GET_FREE, LOOP_CONFIGURE, LOOP_CLR_FD, LO_FLAGS_DIRECT_IO = 0x4C82, 0x4C0A, 0x4C01, 16
FICLONE, BTRFS_IOC_SNAP_CREATE = 0x40049409, 0x50009401
# From linux/mount.h.
MOUNT_FLAGS = {"ro": 1, "noatime": 1024, "bind": 4096}

_libc = ctypes.CDLL(None, use_errno=True)


def run(*command, **kwargs):
    """Runs a command and returns its output; its own error text is in the exception. Ctrl-C reaches only this driver,
    which then ends the command: so nothing ends out of order."""
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, start_new_session=True, **kwargs)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}: exit {done.returncode}: {done.stderr.strip()[-2000:]}")
    return done.stdout.strip()


def missing(programs, filesystems=()):
    """Why something cannot run here, with the package to install; None if it can."""
    for program in programs:
        if shutil.which(program) is None:
            return f"{program} is missing: apt-get install {PACKAGES[program]}"
    for kind in filesystems:
        if kind not in _kernel_filesystems():
            load_module(kind)
            if kind not in _kernel_filesystems():
                return f"this kernel has no {kind}"
    return None


def load_module(name):
    """Loads a module of the kernel, if there is one and a program that loads it."""
    with contextlib.suppress(FileNotFoundError):
        subprocess.run(["modprobe", "-q", name], check=False)


def _kernel_filesystems():
    return pathlib.Path("/proc/filesystems").read_text().split()


def wait_until(what, condition, seconds=20):
    """Waits for a condition that no descriptor announces, with a deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {seconds} s in vain for {what}")
        time.sleep(0.02)


def drop_caches():
    """Writes everything back and forgets it, so that each measurement begins cold."""
    os.sync()
    pathlib.Path("/proc/sys/vm/drop_caches").write_text("3\n")


@contextlib.contextmanager
def stopwatch(result):
    """Appends the milliseconds that the block took to a list."""
    start = time.perf_counter()
    yield
    result.append((time.perf_counter() - start) * 1000)


def attach(file, direct=True):
    """A loop device on a file, made in this process: starting a program would be part of what is measured."""
    flags = LO_FLAGS_DIRECT_IO if direct else 0
    backing = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        while True:
            device = f"/dev/loop{fcntl.ioctl(control, LOOP_CTL_GET_FREE)}"
            loop = os.open(device, os.O_RDWR | os.O_CLOEXEC)
            try:
                # struct loop_config: fd, block size, struct loop_info64 with the flags at byte 52, eight words to come.
                fcntl.ioctl(loop, LOOP_CONFIGURE, struct.pack("=II52xI176x64x", backing, 0, flags))
                return device
            except OSError as error:
                # Somebody else took the device that was free.
                if error.errno != errno.EBUSY:
                    raise
            finally:
                os.close(loop)
    finally:
        os.close(control)
        os.close(backing)


def detach(device):
    """Lets a loop device go."""
    loop = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(loop, LOOP_CLR_FD)
    finally:
        os.close(loop)


class Disk:
    """A preallocated file behind a loop device with direct I/O: a disk whose writes nobody else adds to."""

    def __init__(self, stack, directory, name, size_mib):
        self.file = pathlib.Path(directory) / name
        stack.callback(self.file.unlink, missing_ok=True)
        run("fallocate", "-l", f"{size_mib}M", self.file)
        self.device = attach(self.file)
        stack.callback(detach, self.device)

    def bytes_written(self):
        """Bytes that reached the disk since it was attached."""
        stat = pathlib.Path(f"/sys/block/{os.path.basename(self.device)}/stat").read_text().split()
        return int(stat[6]) * 512


def mount_now(device, target, kind, options=()):
    """Mounts, in this process; words that are flags of mount(2) become flags, the others go to the file system."""
    words = [word for word in options if word and word != "rw"]
    flags = sum(MOUNT_FLAGS.get(word, 0) for word in words)
    data = ",".join(word for word in words if word not in MOUNT_FLAGS)
    pathlib.Path(target).mkdir(parents=True, exist_ok=True)
    if _libc.mount(str(device).encode(), str(target).encode(), kind.encode(), ctypes.c_ulong(flags), data.encode()) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"mount {device} on {target} ({kind}, {data}): {os.strerror(number)}")


def unmount(target):
    """Unmounts; a passing opener, as udev is one, is waited for."""
    deadline = time.monotonic() + 10
    while _libc.umount2(str(target).encode(), 0) != 0:
        number = ctypes.get_errno()
        if number != errno.EBUSY or time.monotonic() > deadline:
            raise OSError(number, f"unmount {target}: {os.strerror(number)}")
        time.sleep(0.01)


def mount(stack, device, target, kind, options=()):
    """Mounts until the stack unwinds."""
    mount_now(device, target, kind, options)
    stack.callback(unmount, target)
    return pathlib.Path(target)


@contextlib.contextmanager
def scratch(parent):
    """A directory of this run; gone afterwards."""
    with tempfile.TemporaryDirectory(prefix=SCRATCH_PREFIX, dir=parent) as directory:
        yield pathlib.Path(directory)


def sweep(parent):
    """Takes away what a run left in `parent` that was killed: processes, mounts, loop devices, files. Only for who holds the
    lock on `parent`."""
    left = [path for path in pathlib.Path(parent).resolve().glob(f"{SCRATCH_PREFIX}*") if path.is_dir()]
    for path in left:
        # Listed while everything is in its place: a loop device on a file of a file system that is gone has another name. One that
        # is in use lets go with its last user.
        loops = [
            device for device, _, backing in (line.strip().partition(" ") for line in run(
                "losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE").splitlines())
            if backing.strip().startswith(f"{path}/")]
        hosts = _processes_of(path, "pool-host").values()
        run_dirs = [pathlib.Path(words[words.index("--run-dir") + 1]) for words in hosts]
        # The service first, so that it starts no other host; the hosts last, when nobody has devices of theirs.
        _end(path, "serve")
        for target in reversed(_mounts_below(path)):
            run("umount", "--lazy", target)
        _end(path, "qemu-storage-daemon")
        _end(path, "pool-host")
        _remove_dm_devices(path.name)
        for device in loops:
            run("losetup", "--detach", device)
        # A host that ended in order has taken its own directory away.
        for directory in filter(pathlib.Path.exists, [*run_dirs, path]):
            for target in reversed(_mounts_below(directory)):
                run("umount", "--lazy", target)
            shutil.rmtree(directory)
    return len(left)


def _remove_dm_devices(prefix):
    """Takes device-mapper's devices with such names down, those that stand on others first: they have the longer names."""
    if shutil.which("dmsetup") is None:
        return
    # Fails where the kernel has no device-mapper, and so none of its devices.
    listed = subprocess.run(["dmsetup", "ls"], capture_output=True, text=True, check=False)
    names = [line.split()[0] for line in listed.stdout.splitlines()]
    for name in sorted((name for name in names if name.startswith(prefix)), key=len, reverse=True):
        run("dmsetup", "remove", "--retry", name)


def _end(path, word):
    """Asks processes to end, which lets them take their devices away; ends those that do not."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in _processes_of(path, word):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)
        with contextlib.suppress(RuntimeError):
            wait_until(f"the end of {word}", lambda: not _processes_of(path, word))


def _processes_of(path, word):
    """{process: its command line} of those that name `path` and whose program or verb is `word`."""
    found = {}
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_text().split("\0")
            if any(str(path) in other for other in words) and any(word in other for other in words[:2]):
                found[int(process.name)] = words
    return found


def _mounts_below(path):
    mounts = [line.split()[4] for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines()]
    return [target for target in mounts if target.startswith(f"{path}/")]


def facts(thinsnap, directory, engine):
    """Machine, kernel and versions, as pairs for the report."""
    cpu = re.search(r"model name\s*:\s*(.+)", pathlib.Path("/proc/cpuinfo").read_text())
    memory = int(re.search(r"MemTotal:\s*(\d+)", pathlib.Path("/proc/meminfo").read_text()).group(1))
    source, kind = run("findmnt", "-n", "-o", "SOURCE,FSTYPE", "--target", directory).split()
    virtual = run("sh", "-c", "systemd-detect-virt --vm 2>/dev/null || true")
    shown = "ublk" if pathlib.Path("/dev/ublk-control").exists() else "FUSE and loop devices"
    return {
        "processor": f"{cpu.group(1) if cpu else os.uname().machine}, {os.cpu_count()} CPUs",
        "memory": f"{memory / 1024 / 1024:.1f} GiB",
        **({"virtual machine": virtual} if virtual not in ("", "none") else {}),
        "disk": f"{source}, {kind}; every stack stands on preallocated files there",
        "kernel": os.uname().release,
        "thinsnap": f"{run(thinsnap, '--version')}, engine {engine}{f', {shown}' if engine == 'embedded' else ''}",
        "fio": _version("fio", "--version"),
        "qemu-storage-daemon": _version("qemu-storage-daemon", "--version"),
        "e2fsprogs": _version("mke2fs", "-V"),
        "xfsprogs": _version("mkfs.xfs", "-V"),
        "btrfs-progs": _version("btrfs", "--version"),
    }


def _version(*command):
    if shutil.which(command[0]) is None:
        return "not installed"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).splitlines()[0].replace("qemu-storage-daemon version ", "")
