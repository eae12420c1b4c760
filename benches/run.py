#!/usr/bin/env python3
"""Measures thinsnap next to its rivals on this machine and writes docs/benchmarks.md from what it saw.

    benches/run.py --thinsnap target/release/thinsnap [--quick] [--only first-write,prepare,device-io] [--dir DIR]

Needs root, fio, qemu-storage-daemon, xfsprogs and, in DIR (default /var/tmp), 14 GiB (--quick: 7 GiB) on a file
system that does direct I/O. The figures as measured stand in benches/raw/; --report writes the document from them
without measuring. Everything made on the way is removed, also after a failure or Ctrl-C.
"""

import argparse
import datetime
import json
import os
import pathlib
import signal
import subprocess
import sys

from measure import device_io, first_write, machine, prepare, report

TOP = pathlib.Path(__file__).resolve().parent.parent
RAW = TOP / "benches" / "raw"
PARTS = ["first-write", "prepare", "device-io"]

# Figures that the full and the quick run differ in.
FULL = {
    "first-write": {"sizes_mib": [1, 64, 1024, 4096], "repeats": 5},
    "prepare": {"depths": [1, 100, 500], "repeats": 200, "file_mib": 256, "seconds": 5},
    "device-io": {"size_mib": 2048, "seconds": 5, "repeats": 5},
}
QUICK = {
    "first-write": {"sizes_mib": [1, 1024], "repeats": 3},
    "prepare": {"depths": [1, 100, 500], "repeats": 50, "file_mib": 64, "seconds": 2},
    "device-io": {"size_mib": 512, "seconds": 2, "repeats": 2},
}


def build_prepare_client():
    """The gRPC client of benches/prepare.rs, built; returns its path."""
    out = subprocess.run(
        [os.environ.get("CARGO", "cargo"), "bench", "--bench", "prepare", "--no-run", "--message-format=json"],
        cwd=TOP, check=True, stdout=subprocess.PIPE, text=True).stdout
    built = [json.loads(line) for line in out.splitlines() if '"executable"' in line]
    return next(unit["executable"] for unit in built if unit.get("target", {}).get("name") == "prepare" and unit["executable"])


def measure(part, arguments, client):
    """Runs one part; returns what it measured."""
    options = (QUICK if arguments.quick else FULL)[part]
    print(f"{part}: {options}", flush=True)
    if part == "first-write":
        return first_write.measure(arguments.thinsnap, arguments.dir, **options)
    if part == "prepare":
        return prepare.measure(arguments.thinsnap, client, arguments.dir, **options)
    return device_io.measure(arguments.thinsnap, arguments.dir, **options)


def main():
    """Parses, measures, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--thinsnap", type=pathlib.Path, default=TOP / "target/release/thinsnap")
    parser.add_argument("--dir", type=pathlib.Path, default=pathlib.Path("/var/tmp"))
    parser.add_argument("--quick", action="store_true", help="fewer repeats, smaller files: about 5 minutes")
    parser.add_argument("--only", default=",".join(PARTS), help="parts to measure, separated by commas")
    parser.add_argument("--report", action="store_true", help="only write the document anew from benches/raw/")
    arguments = parser.parse_args()
    parts = arguments.only.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"no such part: {', '.join(unknown)} (there are {', '.join(PARTS)})")
    # Ctrl-C and kill unwind the same way, so that loop devices, mounts and files go.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    RAW.mkdir(exist_ok=True)
    if not arguments.report:
        if os.geteuid() != 0:
            parser.error("mounts and loop devices need root")
        arguments.thinsnap = arguments.thinsnap.resolve()
        client = build_prepare_client() if "prepare" in parts else None
        for part in parts:
            record = {
                "part": part,
                "when": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
                "quick": arguments.quick,
                "options": (QUICK if arguments.quick else FULL)[part],
                "facts": machine.facts(arguments.thinsnap, arguments.dir),
                "results": measure(part, arguments, client),
            }
            (RAW / f"{part}.json").write_text(json.dumps(record, indent=1) + "\n")
    records = {part: json.loads((RAW / f"{part}.json").read_text()) for part in PARTS if (RAW / f"{part}.json").exists()}
    (TOP / "docs" / "benchmarks.md").write_text(report.write(records))
    print("written: docs/benchmarks.md, benches/raw/")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
