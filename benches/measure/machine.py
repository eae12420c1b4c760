"""What every measurement stands on: commands, the disk under test, mounts, cleaning up, facts of the machine."""

import contextlib
import os
import pathlib
import re
import subprocess
import tempfile
import time


def run(*command, **kwargs):
    """Runs a command and returns its output; its own error text is in the exception."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **kwargs)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}: exit {done.returncode}: {done.stderr.strip()[-2000:]}")
    return done.stdout.strip()


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


class Disk:
    """A preallocated file behind a loop device with direct I/O: a disk whose writes nobody else adds to."""

    def __init__(self, stack, directory, name, size):
        self.file = pathlib.Path(directory) / name
        run("fallocate", "-l", size, self.file)
        stack.callback(self.file.unlink)
        self.device = run("losetup", "--find", "--show", "--direct-io=on", self.file)
        stack.callback(run, "losetup", "--detach", self.device)

    def bytes_written(self):
        """Bytes that reached the disk since it was attached."""
        stat = pathlib.Path(f"/sys/block/{os.path.basename(self.device)}/stat").read_text().split()
        return int(stat[6]) * 512


def mount(stack, device, target, kind, options=""):
    """Mounts until the stack unwinds."""
    pathlib.Path(target).mkdir(parents=True, exist_ok=True)
    run("mount", "-t", kind, *(["-o", options] if options else []), device, target)
    stack.callback(run, "umount", target)
    return pathlib.Path(target)


@contextlib.contextmanager
def scratch(parent):
    """A directory of this run; gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="thinsnap-bench-", dir=parent) as directory:
        yield pathlib.Path(directory)


def facts(thinsnap, directory):
    """Machine, kernel and versions, as pairs for the report."""
    cpu = re.search(r"model name\s*:\s*(.+)", pathlib.Path("/proc/cpuinfo").read_text())
    memory = int(re.search(r"MemTotal:\s*(\d+)", pathlib.Path("/proc/meminfo").read_text()).group(1))
    source, kind = run("findmnt", "-n", "-o", "SOURCE,FSTYPE", "--target", directory).split()
    return {
        "processor": f"{cpu.group(1) if cpu else os.uname().machine}, {os.cpu_count()} CPUs",
        "memory": f"{memory / 1024 / 1024:.1f} GiB",
        "disk": f"{source}, {kind}; every stack below stands on preallocated files there",
        "kernel": os.uname().release,
        "load average before": f"{os.getloadavg()[0]:.1f}",
        "thinsnap": run(thinsnap, "--version"),
        "fio": run("fio", "--version"),
        "qemu-storage-daemon": run("qemu-storage-daemon", "--version").splitlines()[0].split("version ")[-1],
        "e2fsprogs": _version_on_stderr("mke2fs", "-V"),
        "xfsprogs": run("mkfs.xfs", "-V"),
    }


def _version_on_stderr(*command):
    return subprocess.run(command, capture_output=True, text=True).stderr.splitlines()[0]
