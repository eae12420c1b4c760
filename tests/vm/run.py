#!/usr/bin/env python3
"""Runs one command as root on a kernel with dm-thin: in a virtual machine with a Debian kernel, or here.

  tests/vm/run.py [--kernel 6.12|6.1|user-mode|host|auto] [options] -- PROGRAM [ARG...]

In the machine the command finds this host's root file system (what it writes there is gone at the end), its own
environment and directory, /scratch (TMPDIR) on a disk, and dm-thin. What it says comes out here as it says it.
`host` runs it on this host's own kernel; `auto` does that where this kernel has dm-thin, else takes 6.12. `user-mode` is
a newer kernel that runs as a program: fast, with one processor, and without ublk.

Exit status: the command's own; 124 if it ran too long, 125 if the machine failed, 137 after --cut-after.
Needs (Debian): python3 qemu-system-x86 busybox-static e2fsprogs. Kernels come from Debian's mirror once, into
$THINSNAP_CACHE (/var/cache/thinsnap-tests). $THINSNAP_VM_ACCEL=tcg|kvm overrides the look at /dev/kvm.
"""

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

import guest
import kernel
from kernel import Failed


def cache():
    return Path(os.environ.get("THINSNAP_CACHE") or "/var/cache/thinsnap-tests")


def host_has_dm_thin():
    """True if this host's own kernel can serve a thin pool to us."""
    if os.geteuid() != 0:
        return False
    environment = {**os.environ, "PATH": guest.with_sbin(os.environ.get("PATH", ""))}
    quiet = {"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
    try:
        subprocess.run(["modprobe", "dm_thin_pool"], stdout=subprocess.DEVNULL, **quiet)
    except FileNotFoundError:
        pass  # It may be built in.
    try:
        targets = subprocess.run(["dmsetup", "targets"], stdout=subprocess.PIPE, **quiet)
    except FileNotFoundError:
        return False
    return targets.returncode == 0 and b"thin-pool" in targets.stdout


def run_here(command, timeout):
    """On this host's kernel, with the same promise: it ends, and takes what it started with it."""
    process = subprocess.Popen(command, start_new_session=True)
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        guest.say(f"timed out: the command ran longer than {timeout:g} s")
        return guest.TIMED_OUT
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()


def disk(text):
    """NAME=FILE[,log=FILE]"""
    name, _, rest = text.partition("=")
    file, _, log = rest.partition(",log=")
    if not name or not file:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FILE")
    return guest.Disk(name, Path(file), Path(log) if log else None)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", default="auto", choices=[*kernel.SUITES, kernel.USER_MODE, "host", "auto"])
    parser.add_argument("--timeout", type=float, default=600, help="seconds that the command may run")
    parser.add_argument("--share", action="append", default=[], metavar="DIR", help="a directory that it may write to")
    parser.add_argument("--disk", action="append", default=[], type=disk, metavar="NAME=FILE[,log=FILE]",
                        help="/dev/disk-by-name/NAME in the guest; log: every write, as dm-log-writes has it")
    parser.add_argument("--memory", type=int, default=2048, metavar="MIB")
    parser.add_argument("--processors", type=int, default=2, metavar="N")
    parser.add_argument("--cut-after", type=float, metavar="SECONDS", help="cut the power so long after ...")
    parser.add_argument("--cut-mark", default="ready", metavar="TEXT", help="... the command said this")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    guest.stop_on_signals()
    try:
        version = options.kernel
        if version == "auto":
            version = "host" if host_has_dm_thin() else "6.12"
        if version == "host":
            if not host_has_dm_thin():
                raise Failed("this host's kernel has no dm-thin, or dmsetup (Debian package: dmsetup) or root is missing")
            return run_here(options.command, options.timeout)
        chosen = kernel.prepare(version, cache())
        outcome = guest.run(
            guest.Run(
                command=options.command,
                kernel=chosen,
                accelerator=guest.accelerator(chosen, cache()),
                shares=options.share,
                disks=options.disk,
                timeout=options.timeout,
                memory=options.memory,
                processors=options.processors,
                cut_mark=options.cut_mark.encode() if options.cut_after is not None else None,
                cut_after=options.cut_after or 0.0,
            )
        )
        if outcome.boot_seconds is not None:
            took = f", command {outcome.seconds:.1f} s" if outcome.seconds is not None else ""
            guest.say(f"Linux {chosen.release}, {outcome.accelerator}: boot {outcome.boot_seconds:.1f} s{took}, status {outcome.status}")
        return 137 if outcome.status is None else outcome.status
    except Failed as error:
        guest.say(str(error))
        return guest.BROKEN
    except guest.Stopped as stopped:
        return 128 + stopped.number


if __name__ == "__main__":
    sys.exit(main())
