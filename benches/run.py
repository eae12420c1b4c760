#!/usr/bin/env python3
"""Measures thinsnap next to its rivals on this machine and writes a report from what it saw.

    benches/run.py [--thinsnap target/release/thinsnap] [--quick] [--only SECTIONS] [--dir DIR] [--out DIR] [--raw DIR]
    benches/run.py --list                   the sections, and whether this machine can do them
    benches/run.py --report                 the report anew, from the raw figures
    benches/run.py --compare DIR            the raw figures beside older ones, as ratios

`thinsnap bench` is this program too. Needs root. A rival that the machine does not have is marked "not run", with the
package to install. A run that was interrupted (Ctrl-C, or killed) goes on when it is started again in the same way; everything it
made on the way is removed. Progress goes to standard error; standard output tells what was written.

Exit status: 0 done, 1 failed, 2 wrong usage, 4 no space, 5 another run measures the same disk, 130 interrupted.
"""

import argparse
import datetime
import json
import os
import pathlib
import shutil
import signal
import sys

from measure import (
    device_io, first_write, footprint, images, machine, overwrites, snapshots, versus, versus_containers,
    versus_device, workloads)
from measure.session import Busy, Session, Unfinished, lock, say, write_file
from report import compare, document
from report.figures import load

TOP = pathlib.Path(__file__).resolve().parent.parent
SECTIONS = {
    module.SECTION: module
    for module in [
        first_write, overwrites, device_io, workloads, snapshots, images, footprint, versus, versus_device, versus_containers]}
# Only when they are named, or in a full run: they boot a machine that may be emulated. The report keeps their last figures.
SLOW = [versus.SECTION, versus_device.SECTION, versus_containers.SECTION]


class Refused(Exception):
    """Said before anything is measured; `status` is the exit status."""

    def __init__(self, message, status=1):
        super().__init__(message)
        self.status = status


def parse():
    """The options; `sections` are the modules to run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--thinsnap", type=pathlib.Path, default=TOP / "target/release/thinsnap", help="the program to measure")
    parser.add_argument("--dir", type=pathlib.Path, default=pathlib.Path("/var/tmp"), help="a directory on the disk to measure")
    parser.add_argument("--out", type=pathlib.Path, default=TOP / "docs", help="where the report goes")
    parser.add_argument(
        "--raw", type=pathlib.Path, help="where the figures as measured go [default: raw in --out; benches/raw for docs]")
    parser.add_argument("--engine", default="embedded", choices=["embedded", "kernel", "auto"], help="thinsnap's engine")
    parser.add_argument(
        "--only", help=f"sections to measure, separated by commas [default: all; with --quick without {', '.join(SLOW)}]")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", dest="size", action="store_const", const="quick", default="full",
                      help="smaller sizes, fewer repeats: 4 minutes; the whole within 60")
    size.add_argument("--tiny", dest="size", action="store_const", const="tiny", help=argparse.SUPPRESS)
    parser.add_argument("--fresh", action="store_true", help="begin anew, instead of going on with an interrupted run")
    parser.add_argument("--json", action="store_true", help="tell what was written as JSON")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--list", action="store_true", help="show the sections; measure nothing")
    instead.add_argument("--report", action="store_true", help="write the report from the raw figures; measure nothing")
    instead.add_argument("--compare", type=pathlib.Path, metavar="DIR", help="set the raw figures beside those in DIR")
    # This file stands in a directory of its own, made for this run by `thinsnap bench`.
    parser.add_argument("--laid-out", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only is None:
        names = [name for name in SECTIONS if arguments.size == "full" or name not in SLOW]
    else:
        names = [name.strip() for name in arguments.only.split(",")]
    if unknown := [name for name in names if name not in SECTIONS]:
        parser.error(f"no such section: {', '.join(map(repr, unknown))} (there are {', '.join(SECTIONS)})")
    arguments.sections = [module for name, module in SECTIONS.items() if name in names]
    if arguments.raw is None:
        arguments.raw = TOP / "benches" / "raw" if arguments.out == TOP / "docs" else arguments.out / "raw"
    return arguments


def check(arguments):
    """Refuses what cannot end well, before anything is made."""
    if os.geteuid() != 0:
        raise Refused("mounts and loop devices need root: run it with sudo")
    if not arguments.thinsnap.is_file():
        raise Refused(f"{arguments.thinsnap} is not there: make build, or --thinsnap PROGRAM", 2)
    if not arguments.dir.is_dir():
        raise Refused(f"{arguments.dir} is no directory: --dir names one on the disk to measure", 2)


def check_space(arguments):
    """Refuses a disk that has not enough room for the section that needs most."""
    needs = {module.SECTION: module.space_mib(**module.SIZES[arguments.size]) for module in arguments.sections}
    free = shutil.disk_usage(arguments.dir).free >> 20
    most = max(needs, key=needs.get)
    if needs[most] > free:
        raise Refused(
            f"{arguments.dir} has {free / 1024:,.1f} GiB free, {most} needs {needs[most] / 1024:,.1f} GiB: "
            "make room, or name a directory on another disk with --dir, or use --quick or --only", 4)


def measure(arguments):
    """Runs the sections; each one's figures are in place when it is done."""
    options = {module.SECTION: module.SIZES[arguments.size] for module in arguments.sections}
    question = {"size": arguments.size, "engine": arguments.engine, "dir": str(arguments.dir.resolve()), "sections": options}
    arguments.raw.mkdir(parents=True, exist_ok=True)
    unfinished = Unfinished(arguments.raw, arguments.thinsnap, question, arguments.fresh)
    if unfinished.goes_on:
        say(f"going on with the run that was interrupted; finished: {', '.join(unfinished.finished) or 'no section yet'}")
    for number, module in enumerate(arguments.sections, 1):
        name = module.SECTION
        if name in unfinished.finished:
            continue
        say(f"section {number} of {len(arguments.sections)}: {name}: {json.dumps(options[name])}")
        session = Session(name, arguments.thinsnap, arguments.dir, arguments.engine, unfinished.directory)
        facts = machine.facts(arguments.thinsnap, arguments.dir, arguments.engine)
        module.measure(session, **options[name])
        record = {
            "section": name,
            "when": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "size": arguments.size,
            "options": options[name],
            "facts": facts,
            "not_run": session.absent,
            "results": session.results(),
        }
        session.write_raw(arguments.raw / "fio")
        write_file(arguments.raw / f"{name}.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        unfinished.finish(name)
    unfinished.remove()


def listing(arguments):
    """The sections, for people or as JSON."""
    free = shutil.disk_usage(arguments.dir).free
    sections = [
        {"section": name, "title": module.TITLE, "needs_bytes": module.space_mib(**module.SIZES[arguments.size]) << 20}
        for name, module in SECTIONS.items()]
    programs = {program: machine.missing([program]) for program in sorted(machine.PACKAGES)}
    if arguments.json:
        return json.dumps({"sections": sections, "free_bytes": free, "missing": [why for why in programs.values() if why]})
    lines = [f"{one['section']:<17} {one['needs_bytes'] / (1 << 30):5.1f} GiB  {one['title']}" for one in sections]
    lines += ["", f"{arguments.dir} has {free / (1 << 30):,.1f} GiB free"]
    return "\n".join(lines + [why for why in programs.values() if why])


def main():
    """Parses, measures, writes; returns the exit status."""
    arguments = parse()
    # From the first Ctrl-C (or kill) on, nothing disturbs the cleaning up: loop devices, mounts and files go.
    def interrupted(number, _frame):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt(number)
    signal.signal(signal.SIGINT, interrupted)
    signal.signal(signal.SIGTERM, interrupted)
    try:
        if arguments.list:
            print(listing(arguments))
            return 0
        if arguments.compare:
            print(compare.text(load(arguments.raw, SECTIONS), load(arguments.compare, SECTIONS)))
            return 0
        if not arguments.report:
            check(arguments)
            arguments.thinsnap = arguments.thinsnap.resolve()
            held = lock(arguments.dir)
            if left := machine.sweep(arguments.dir):
                say(f"removed what {left} killed run{'s' if left > 1 else ''} had left in {arguments.dir}")
            check_space(arguments)
            measure(arguments)
            os.close(held)
        written = document.write(arguments.raw, arguments.out, SECTIONS)
        print(json.dumps(written) if arguments.json else "\n".join(f"written: {path}" for path in written["files"]))
        return 0
    except KeyboardInterrupt as interrupt:
        say("interrupted; cleaned up. The same command goes on from here")
        return 128 + interrupt.args[0]
    except Busy as busy:
        print(f"error: {busy}", file=sys.stderr)
        return 5
    except Refused as refused:
        print(f"error: {refused}", file=sys.stderr)
        return refused.status
    except (RuntimeError, OSError) as failed:
        print(f"error: {failed}\n  what was measured until then is kept: the same command goes on from here", file=sys.stderr)
        return 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    finally:
        if "--laid-out" in sys.argv:
            shutil.rmtree(pathlib.Path(__file__).resolve().parent)
