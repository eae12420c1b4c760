"""Random overwrites of a shared file: the first time, when something has to be copied, and the same again."""

import contextlib
import os
import random
import time

from . import rivals
from .machine import MIB, drop_caches
from .session import Sample, Table
from .thinsnap import fill

SECTION = "overwrites"
TITLE = "Random overwrites of a shared file, and the same again"
ABOUT = """4 KiB at random places of a file that the container shares with its image, fdatasync after each, caches dropped before;
the first time and then at the same places again. The total counts from the open: that is when overlayfs copies the file."""
TABLES = {
    "first": Table("Random overwrites, the first time: all of them", "s"),
    "again": Table("Random overwrites, again: all of them", "s"),
    "first-p99": Table("Random overwrites, the first time: single ones, the open not counted", "ms", tail=True),
    "again-p99": Table("Random overwrites, again: single ones", "ms", tail=True),
    "written": Table("Bytes written to the disk by random overwrites", "bytes"),
}
SIZES = {
    "full": {"size_mib": 1024, "count": 1000, "repeats": 3, "budget_mib": 36 << 10},
    "quick": {"size_mib": 256, "count": 200, "repeats": 1, "budget_mib": 24 << 10},
    "tiny": {"size_mib": 8, "count": 10, "repeats": 1, "budget_mib": 16 << 10},
}


def space_mib(size_mib, budget_mib, **_):
    """Free room that it needs."""
    return rivals.space_mib(rivals.ALL, size_mib, budget_mib)


def measure(session, size_mib, count, repeats, budget_mib, kinds=rivals.ALL):
    """The rivals take turns within each repeat."""
    kinds = rivals.here(session, kinds)
    for number, group in enumerate(rivals.groups(kinds, size_mib, budget_mib)):
        steps = {f"{kind.name}, {number}.{n}": (kind, size_mib, count, n) for n in range(repeats) for kind in group}
        if session.all_done(steps):
            continue
        with contextlib.ExitStack() as stack:
            directory = stack.enter_context(session.scratch())
            made = rivals.set_up(
                stack, session, directory, group, size_mib, lambda root: fill(root / "file", size_mib * MIB))
            rivals.take_turns(session, made, steps, _repeat)


def _repeat(rival, size_mib, count, n):
    # The same places for everybody; another set in each repeat.
    places = [block * 4096 for block in random.Random(n).sample(range(size_mib * MIB // 4096), count)]
    samples = []
    with rival.container(f"overwrites-{n}") as root:
        drop_caches()
        for table in ["first", "again"]:
            before = rival.disk.bytes_written()
            seconds, times = _overwrite(root / "file", places)
            os.sync()
            row = "first time" if table == "first" else "again"
            samples.append(Sample(table, f"{count:,} × 4 KiB of {size_mib:,} MiB", rival.name, seconds))
            samples += [Sample(f"{table}-p99", "4 KiB + fdatasync", rival.name, ms) for ms in times]
            samples.append(Sample("written", row, rival.name, rival.disk.bytes_written() - before))
    return samples


def _overwrite(path, places):
    """Seconds from the open to the last fdatasync, and the milliseconds of each overwrite."""
    blocks = os.urandom(4096 + len(places))
    times = []
    start = time.perf_counter()
    file = os.open(path, os.O_RDWR)
    try:
        for number, place in enumerate(places):
            before = time.perf_counter()
            os.pwrite(file, blocks[number:number + 4096], place)
            os.fdatasync(file)
            times.append((time.perf_counter() - before) * 1000)
        return time.perf_counter() - start, times
    finally:
        os.close(file)
