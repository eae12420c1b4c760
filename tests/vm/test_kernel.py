#!/usr/bin/env python3
"""Builds the tests that need a kernel with dm-thin and runs them there (`make test-kernel`).

  tests/vm/test_kernel.py [--quick] [--kernel VERSION|user-mode|host|auto]... [FILTER]

Which tests those are stands in tests/vm/kernel-tests. With `auto`, a host whose own kernel has dm-thin is taken as it
is; any other gets a virtual machine for each kernel that tests/vm/kernel.py knows, with --quick one in user mode.
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time

import guest
import kernel
import run

LIST = kernel.HERE / "kernel-tests"
# Where cargo runs the tests of a package: the package's own directory.
DIRECTORIES = {"thinsnap": kernel.HERE.parent.parent, "thinsnap-pool": kernel.HERE.parent.parent / "pool"}
SECONDS = {"all": 7200, "quick": 1200}
MEMORY_MIB = 3072


def listed(section):
    """(settings, package, target, words) of each line of a section."""
    found, here = [], None
    for line in LIST.read_text().splitlines():
        words = line.split()
        if not words or line.startswith("#"):
            continue
        if re.fullmatch(r"\[\w+\]", line.strip()):
            here = line.strip()[1:-1]
            continue
        settings = []
        while words and re.match(r"[A-Z_]+=", words[0]):
            settings.append(words.pop(0))
        if here is None or len(words) < 2 or words[0] not in DIRECTORIES:
            raise kernel.Failed(f"{LIST}: {line!r} stands in no section, or names no package and target")
        if here == section:
            found.append((settings, words[0], words[1], words[2:]))
    return found


def built(targets):
    """The test program of each target. With the whole workspace, so that nothing is built in another way than there."""
    command = [os.environ.get("CARGO", "cargo"), "test", "--workspace", "--no-run"]
    command += [word for target in targets for word in ("--test", target)]
    done = subprocess.run([*command, "--message-format=json-render-diagnostics"], stdout=subprocess.PIPE)
    if done.returncode != 0:
        raise kernel.Failed(f"{' '.join(command)} failed")
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    return {m["target"]["name"]: m["executable"] for m in messages if m.get("executable") and "test" in m["target"]["kind"]}


def quick_kernel():
    """The kernel that runs as a program, unless it cannot do that here: it is the newest one of a suite that moves on."""
    command = [sys.executable, str(kernel.HERE / "run.py"), "--kernel", kernel.USER_MODE, "--", "true"]
    if subprocess.run(command, stdin=subprocess.DEVNULL).returncode == 0:
        return kernel.USER_MODE
    newest = next(iter(kernel.SUITES))
    guest.say(f"a kernel in user mode does not run here; the short list runs on {newest}, which takes longer")
    return newest


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", action="append", choices=[*kernel.SUITES, kernel.USER_MODE, "host", "auto"])
    parser.add_argument("--quick", action="store_true", help="the short list, on one kernel")
    parser.add_argument("filter", nargs="?", default="", help="run only tests whose name has this in it")
    options = parser.parse_args()
    guest.stop_on_signals()
    try:
        kernels = options.kernel or ["auto"]
        if "auto" in kernels:
            virtual = [quick_kernel()] if options.quick else list(kernel.SUITES)
            kernels = ["host"] if run.host_has_dm_thin() else virtual
        section = "quick" if options.quick else "all"
        wanted = listed(section)
        programs = built(sorted({target for _, _, target, _ in wanted}))
        lines = ["status=0"]
        # One boot for all of them; each runs, whatever became of the one before it.
        for settings, package, target, words in wanted:
            # A filter of the caller's stands for the list's own: the test program runs what fits any of them.
            if options.filter:
                words = [word for n, word in enumerate(words) if word.startswith("--") or words[n - 1] == "--skip"]
                words.append(options.filter)
            command = ["env", *settings, programs[target], *words, "--test-threads", "1", "--show-output"]
            lines.append(f"cd {shlex.quote(str(DIRECTORIES[package]))} && {shlex.join(command)} || status=$?")
    except kernel.Failed as error:
        guest.say(str(error))
        return guest.BROKEN
    except guest.Stopped as stopped:
        return 128 + stopped.number
    script = "\n".join([*lines, "exit $status"])
    failed = []
    try:
        for version in kernels:
            begun = time.monotonic()
            command = [sys.executable, str(kernel.HERE / "run.py"), "--kernel", version, "--memory", str(MEMORY_MIB)]
            limit = SECONDS[section]
            status = run.run_here([*command, "--timeout", str(limit), "--", "sh", "-c", script], limit + 600)
            guest.say(f"kernel tests on {version}: status {status}, {time.monotonic() - begun:.0f} s")
            if status != 0:
                failed.append(version)
    except guest.Stopped as stopped:
        return 128 + stopped.number
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
