"""What was aimed at, and whether the figures reach it."""

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass

from .figures import THINSNAP, UBLK

PLAIN, QCOW2 = "plain loop file", "qcow2"
COPIES = f"{PLAIN}, 64 KiB read and written"
UNPACK_RIVAL = "overlayfs on ext4"
DEVMAPPER = "containerd's devmapper"
# Where the jobs of device-io are measured over ublk too, on a kernel that has it.
UBLK_SECTION = "versus-device"


@dataclass(frozen=True)
class Aim:
    """A line of the table. `found` takes the section and answers a number, or None if it was not measured; `limit` the same
    number of a plain loop file, which has no pool to care for; `over_ublk` the same number from UBLK_SECTION."""

    words: str
    section: str
    aim: str
    met: Callable
    found: Callable
    unit: str = "×"
    limit: Callable | None = None
    over_ublk: Callable | None = None


def _at_least(words, section, wanted, found, **more):
    return Aim(words, section, f"≥ {wanted:g}×", lambda value: value >= wanted, found, **more)


def _at_most(words, section, wanted, unit, found):
    return Aim(words, section, f"≤ {wanted:g} {unit}".replace(" ×", "×"), lambda value: value <= wanted, found, unit)


def _on_device(words, wanted, measure, limit=None):
    """An aim of the exported device: `measure` makes a `found` for a stack."""
    return _at_least(words, "device-io", wanted, measure(THINSNAP), limit=limit and measure(limit), over_ublk=measure(UBLK))


def _of(table, row, rival):
    """A stack's median divided by the rival's."""
    def measure(stack, section):
        mine, theirs = section.median(table, row, stack), section.median(table, row, rival)
        return mine / theirs if mine and theirs else None
    return lambda stack: functools.partial(measure, stack)


def _rate(table, start, rival):
    """The rival's time divided by thinsnap's, in the first row that starts so."""
    return lambda section: next(
        (section.ahead(table, row, rival) for row in section.rows(table) if start in row), None)


def _first_of_rewrite(below=""):
    def measure(stack, section):
        first, again = (section.median("first", f"{row}{below}", stack) for row in ["first write", "rewrite"])
        return first / again if first and again else None
    return lambda stack: functools.partial(measure, stack)


def _sharing_p99(depth):
    return lambda section: section.median("sharing-p99", depth, THINSNAP)


def _lowest(call):
    """A call's median at the smallest depth."""
    return lambda section: section.median("depth", section.rows("depth")[0], call) if section.rows("depth") else None


def _growth(table, call):
    """A call's median in the last row divided by that in the first."""
    def found(section):
        rows = section.rows(table)
        return section.median(table, rows[-1], call) / section.median(table, rows[0], call) if len(rows) > 1 else None
    return found


def _scaling(section):
    row = "all answered after"
    alone, together = (section.median("concurrent", row, way) for way in ["1 in flight", "100 in flight"])
    return alone / together if alone and together else None


def _volume(section):
    parts = [section.median("memory", "each idle volume", process) for process in ["service", "host"]]
    return None if None in parts else sum(parts)


AIMS = [
    *(_on_device(f"{job} of a plain loop file", wanted, _of("iops", job, PLAIN)) for job, wanted in [
        ("randread-4k-qd32", 0.75), ("randwrite-4k-qd32", 0.75), ("randread-4k-qd1", 0.6), ("randwrite-4k-qd1", 0.6)]),
    *(_on_device(f"{job} of qcow2's FUSE export", 2, _of("iops", job, QCOW2), PLAIN)
      for job in ["randread-4k-qd32", "randwrite-4k-qd32"]),
    *(_on_device(f"{job} of a plain loop file", 0.9, _of("throughput", job, PLAIN))
      for job in ["read-1m-qd4", "write-1m-qd4", "buffered-write-1m"]),
    _on_device("randwrite-4k-fsync of a plain loop file", 0.9, _of("iops", "randwrite-4k-fsync", PLAIN)),
    _on_device("first sequential write of rewrite, new sparse file below", 0.8, _first_of_rewrite(), PLAIN),
    _on_device("first sequential write of rewrite, data file written before", 0.8,
               _first_of_rewrite(", data file written before")),
    *(_on_device(f"breaking sharing, {depth}, of qcow2 with 64 KiB clusters", 2, _of("sharing", depth, QCOW2), COPIES)
      for depth in ["QD1", "QD32"]),
    *(_at_most(f"breaking sharing, {depth}, p99", "device-io", 1000, "µs", _sharing_p99(depth)) for depth in ["QD1", "QD32"]),
    _at_most("Prepare + mount, median", "snapshots", 2, "ms", _lowest("Prepare + mount")),
    _at_most("Commit, median", "snapshots", 3, "ms", _lowest("Commit")),
    _at_most("Remove, median", "snapshots", 1, "ms", _lowest("Remove")),
    *(_at_most(f"{call}, deepest chain of the shallowest", "snapshots", 1.2, "×", _growth("depth", call))
      for call in ["Prepare + mount", "Commit", "Remove"]),
    *(_at_most(f"{call}, most snapshots present of the fewest", "snapshots", 1.2, "×", _growth("present", call))
      for call in ["Prepare + mount", "Commit", "Remove"]),
    _at_least(f"100 Prepares at once: gain; 0.75 for each of {os.cpu_count()} processors", "snapshots",
              0.75 * os.cpu_count(), _scaling),
    _at_most("space of an idle container", "footprint", 256, "KiB",
             lambda section: section.median("space", "mounted once", THINSNAP)),
    *(_at_least(f"unpacking small files, {words}, of {UNPACK_RIVAL}", "images", 0.9, _rate(table, "small files", UNPACK_RIVAL))
      for table, words in [("unpack", "answered"), ("durable", "on the disk")]),
    _at_most("memory of an idle volume", "footprint", 64, "KiB", _volume),
    *(_at_least(f"{verb}, beside containerd's devmapper, emulated", "versus", 10, _rate("verbs", verb, DEVMAPPER))
      for verb in ["prepare", "commit"]),
]


def judged(sections):
    """(aim, value or None, met or None) for each."""
    for aim in AIMS:
        value = aim.found(sections[aim.section]) if aim.section in sections else None
        yield aim, value, None if value is None else aim.met(value)
