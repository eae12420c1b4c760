#!/usr/bin/env python3
"""Sets what criterion measured last (`cargo bench -p thinsnap-pool`) beside the recorded figures, as ratios.

    benches/criterion.py [--target target] [--fail-above RATIO]
    benches/criterion.py --record           the figures become the recorded ones

Prints a line for each benchmark: name, recorded, now, ratio. Times are medians; a ratio above 1 is slower now. The machine that the
records were made on stands above them: on another one only the ratios between lines mean something.

Exit status: 0 done, 1 a ratio is above --fail-above, or nothing was measured, 2 wrong usage.
"""

import argparse
import json
import math
import pathlib
import platform
import sys

TOP = pathlib.Path(__file__).resolve().parent.parent
RECORDS = TOP / "benches/criterion.json"


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=pathlib.Path, default=TOP / "target", help="cargo's target directory")
    parser.add_argument("--record", action="store_true", help="keep the figures as the recorded ones")
    parser.add_argument("--fail-above", type=float, metavar="RATIO", help="exit with 1 if a ratio is above this")
    return parser.parse_args()


def measured(target):
    """Median nanoseconds by full name, of each benchmark's last run."""
    figures = {}
    for estimates in sorted(target.glob("criterion/**/new/estimates.json")):
        about = json.loads((estimates.parent / "benchmark.json").read_text())
        figures[about["full_id"]] = json.loads(estimates.read_text())["median"]["point_estimate"]
    return figures


def machine():
    """What the figures depend on first."""
    cpu = next((line.split(":", 1)[1].strip() for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), platform.machine())
    return {"cpu": cpu, "kernel": platform.release()}


def time(nanoseconds):
    for unit, size in [("ns", 1), ("us", 1e3), ("ms", 1e6), ("s", 1e9)]:
        if nanoseconds < 1000 * size or unit == "s":
            return f"{nanoseconds / size:.4g} {unit}"


def compare(now, records):
    """Prints the table; returns the ratios."""
    ratios = {}
    print(f"recorded on {records['machine']['cpu']}, Linux {records['machine']['kernel']}")
    print(f"{'':66} {'recorded':>10} {'now':>10} {'ratio':>7}")
    for name in sorted(now.keys() | records["figures"].keys()):
        before, after = records["figures"].get(name), now.get(name)
        if before and after:
            ratios[name] = after / before
        ratio = f"{ratios[name]:.2f}" if name in ratios else "-"
        print(f"{name:66} {time(before) if before else '-':>10} {time(after) if after else '-':>10} {ratio:>7}")
    if ratios:
        mean = math.exp(sum(map(math.log, ratios.values())) / len(ratios))
        print(f"{'geometric mean':66} {'':>10} {'':>10} {mean:7.2f}")
    return ratios


def main():
    arguments = parse()
    now = measured(arguments.target)
    if not now:
        print("nothing was measured: run `cargo bench -p thinsnap-pool` first", file=sys.stderr)
        return 1
    if arguments.record:
        text = json.dumps({"machine": machine(), "figures": now}, indent=1, sort_keys=True)
        RECORDS.write_text(text + "\n")
        print(f"{len(now)} figures recorded in {RECORDS.relative_to(TOP)}")
        return 0
    ratios = compare(now, json.loads(RECORDS.read_text()))
    worst = max(ratios, key=ratios.get, default=None)
    if arguments.fail_above is not None and worst and ratios[worst] > arguments.fail_above:
        print(f"{worst}: {ratios[worst]:.2f} is above {arguments.fail_above}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
