#!/usr/bin/env python3
"""Builds the tests that need a kernel with dm-thin and runs them there (`make test-kernel`).

  tests/vm/test_kernel.py [--kernel VERSION|host|auto]... [FILTER]

Which tests those are stands in tests/vm/kernel-tests. With `auto`, a host whose own kernel has dm-thin is taken as it
is; any other gets a virtual machine for each kernel that tests/vm/kernel.py knows.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import guest
import kernel
import run

LIST = kernel.HERE / "kernel-tests"
SECONDS = 3600


def listed():
    """(package, target, words) of each line."""
    lines = [line.split() for line in LIST.read_text().splitlines() if line.strip() and not line.startswith("#")]
    return [(package, target, words) for package, target, *words in lines]


def built(package, target):
    """The test program of a target."""
    command = [os.environ.get("CARGO", "cargo"), "test", "--package", package, "--test", target, "--no-run"]
    done = subprocess.run([*command, "--message-format=json-render-diagnostics"], stdout=subprocess.PIPE)
    if done.returncode != 0:
        raise kernel.Failed(f"{' '.join(command)} failed")
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    programs = [m["executable"] for m in messages if m.get("executable") and m["target"]["name"] == target]
    return programs[-1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", action="append", choices=[*kernel.SUITES, "host", "auto"])
    parser.add_argument("filter", nargs="?", default="", help="run only tests whose name has this in it")
    options = parser.parse_args()
    guest.stop_on_signals()
    try:
        kernels = options.kernel or ["auto"]
        if "auto" in kernels:
            kernels = ["host"] if run.host_has_dm_thin() else list(kernel.SUITES)
        programs = [(built(package, target), words) for package, target, words in listed()]
    except kernel.Failed as error:
        guest.say(str(error))
        return guest.BROKEN
    except guest.Stopped as stopped:
        return 128 + stopped.number
    # One boot for all of them; each runs, whatever became of the one before it.
    lines = ["status=0", "cd pool"]
    for program, words in programs:
        given = " ".join([options.filter, *words])
        lines.append(f"'{program}' {given} --test-threads 1 --show-output || status=$?")
    script = "\n".join([*lines, "exit $status"])
    failed = []
    for version in kernels:
        begun = time.monotonic()
        command = [sys.executable, str(kernel.HERE / "run.py"), "--kernel", version, "--timeout", str(SECONDS), "--"]
        status = run.run_here([*command, "sh", "-c", script], SECONDS + 600)
        guest.say(f"kernel tests on {version}: status {status}, {time.monotonic() - begun:.0f} s")
        if status != 0:
            failed.append(version)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
