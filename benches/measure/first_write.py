"""The first change of a large file in a fresh container: 4 KiB overwritten, then fsync.

Cold: all caches dropped before the write. Warm: after that the 4 KiB in question have been read, through the same mount.
"""

import contextlib
import os
import time

from . import rivals
from .machine import MIB, drop_caches, stopwatch
from .session import Sample, Table
from .thinsnap import fill

SECTION = "first-write"
TITLE = "The first change of a large file in a fresh container"
ABOUT = """4 KiB in the middle of a file are overwritten: open, write, fsync, in a container that has not written anything
yet. Cold: all caches dropped before. Warm: the 4 KiB have been read before, through the same mount. The bytes written
are those that reached the disk until all was quiet. A container that is made by copying pays in the third table; the plain
loop file is the image itself, the limit."""
TABLES = {
    "cold": Table("First overwrite, cold", "ms", x="file size, MiB"),
    "warm": Table("First overwrite, warm", "ms", x="file size, MiB"),
    "container": Table("A fresh container and its first overwrite: made, mounted, cold, changed, on disk", "ms", x="file size, MiB"),
    "written": Table("Bytes written to the disk by the first overwrite", "bytes", x="file size, MiB"),
}
SIZES = {
    "full": {"sizes_mib": [1, 64, 1024, 10240], "repeats": 3, "budget_mib": 36 << 10},
    "quick": {"sizes_mib": [1, 512], "repeats": 2, "budget_mib": 24 << 10},
    "tiny": {"sizes_mib": [1, 8], "repeats": 1, "budget_mib": 16 << 10},
}


def space_mib(sizes_mib, budget_mib, **_):
    """Free room that it needs."""
    return rivals.space_mib(rivals.ALL, max(sizes_mib), budget_mib)


def measure(session, sizes_mib, repeats, budget_mib, kinds=rivals.ALL):
    """Each size in turn; the rivals take turns within each repeat."""
    kinds = rivals.here(session, kinds)
    for size in sizes_mib:
        for number, group in enumerate(rivals.groups(kinds, size, budget_mib)):
            steps = {f"{size} MiB, {kind.name}, {number}.{n}": (kind, size, n) for n in range(repeats) for kind in group}
            if session.all_done(steps):
                continue
            with contextlib.ExitStack() as stack:
                directory = stack.enter_context(session.scratch())
                made = rivals.set_up(
                    stack, session, directory, group, size, lambda root, size=size: fill(root / "file", size * MIB))
                rivals.take_turns(session, made, steps, _repeat)


def _repeat(rival, size, n):
    samples = []
    for cache in ["cold", "warm"]:
        key, made, written = f"{cache}-{n}", [], []
        with stopwatch(made):
            rival.prepare(key, "image")
            root = rival.mount(key)
        try:
            _overwrite(root / "file", size, cache == "warm", rival.disk, written)
        finally:
            rival.unmount(key)
            rival.remove(key)
        milliseconds, size_written = written
        values = {cache: milliseconds}
        if cache == "cold":
            values |= {"container": made[0] + milliseconds, "written": size_written}
        samples += [Sample(table, f"{size:,} MiB", rival.name, value, size) for table, value in values.items()]
    return samples


def _overwrite(path, size, warm, disk, result):
    """Appends the milliseconds from open to the end of fsync, and the bytes that the disk was given until all was quiet."""
    drop_caches()
    middle = size * MIB // 2
    if warm:
        with open(path, "rb") as file:
            os.pread(file.fileno(), 4096, middle)
    before = disk.bytes_written()
    block = os.urandom(4096)
    start = time.perf_counter()
    file = os.open(path, os.O_RDWR)
    os.pwrite(file, block, middle)
    os.fsync(file)
    result.append((time.perf_counter() - start) * 1000)
    os.close(file)
    os.sync()
    result.append(disk.bytes_written() - before)
