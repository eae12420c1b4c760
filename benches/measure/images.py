"""Images: unpacked as containerd does it, layer by layer; and containers started from one."""

import contextlib
import os

from . import rivals
from .machine import drop_caches, run, stopwatch
from .session import Sample, Table
from .trees import archive_of_large_file, archive_of_small_files

SECTION = "images"
TITLE = "Images: unpacking them, and starting containers from them"
ABOUT = """Unpacking: a snapshot is prepared and mounted, tar unpacks into it, it is unmounted and committed. Answered: until then. On
the disk: until everything that was written has reached it; a file system of thinsnap's is on the disk when it is unmounted,
overlayfs answers before. Starting: prepared, mounted, a small file of the image read; one container after the other, all of
them kept until the last has started."""
TABLES = {
    "unpack": Table("Unpacking, answered", "ms"),
    "durable": Table("Unpacking, on the disk", "ms"),
    "start": Table("Starting containers", "ms"),
}
SIZES = {
    # Small files take about a second, which differs by a tenth from run to run.
    "full": {"files": 20000, "large_mib": 2048, "containers": 100, "repeats": 3, "small_repeats": 9},
    "quick": {"files": 5000, "large_mib": 256, "containers": 50, "repeats": 1, "small_repeats": 3},
    "tiny": {"files": 200, "large_mib": 8, "containers": 3, "repeats": 1, "small_repeats": 1},
}
STARTING = [*rivals.SHARING, rivals.BlockfileReflink, rivals.Qcow2]


def _content_mib(files, large_mib, **_):
    return large_mib + files // 64 + 64


def space_mib(**size):
    """Free room that it needs: the archives and the rivals' disks."""
    content = _content_mib(**size)
    return content + sum(kind.disk_mib(content) for kind in rivals.SHARING) + sum(kind.disk_mib(64) for kind in STARTING)


def measure(session, files, large_mib, containers, repeats, small_repeats):
    """First unpacking, then starting; the rivals take turns within each repeat."""
    kinds = rivals.here(session, STARTING)
    sharing = [kind for kind in kinds if kind in rivals.SHARING]
    rows = {
        f"{files:,} small files": ("small.tar", small_repeats), f"one file of {large_mib:,} MiB": ("large.tar", repeats)}
    steps = {
        f"unpack {row}, {kind.name}, {n}": (kind, row, n)
        for row, (_, times) in rows.items() for n in range(times) for kind in sharing}
    if not session.all_done(steps):
        with contextlib.ExitStack() as stack:
            directory = stack.enter_context(session.scratch())
            archive_of_small_files(directory / "small.tar", files)
            archive_of_large_file(directory / "large.tar", large_mib)
            made = rivals.set_up(stack, session, directory, sharing, _content_mib(files, large_mib), lambda root: None)
            rivals.take_turns(
                session, made, steps, lambda rival, row, n: _unpack(rival, row, directory / rows[row][0], n))
    steps = {f"start, {kind.name}, {n}": (kind, containers, n) for n in range(repeats) for kind in kinds}
    if not session.all_done(steps):
        with contextlib.ExitStack() as stack:
            directory = stack.enter_context(session.scratch())
            made = rivals.set_up(stack, session, directory, kinds, 64, _small_image)
            rivals.take_turns(session, made, steps, _start)


def _small_image(root):
    (root / "program").write_bytes(os.urandom(64 << 10))


def _unpack(rival, row, archive, number):
    name = f"{archive.stem}-{number}"
    drop_caches()
    # From the page cache, for everybody: the archive's disk is the same for all.
    archive.read_bytes()
    times = []
    with stopwatch(times), rival.layer(name) as root:
        run("tar", "-x", "--numeric-owner", "-f", archive, "-C", root)
    with stopwatch(times):
        os.sync()
    rival.remove(name)
    return [Sample("unpack", row, rival.name, times[0]), Sample("durable", row, rival.name, sum(times))]


def _start(rival, count, number):
    times, started = [], []
    drop_caches()
    with stopwatch(times):
        for n in range(count):
            key = f"start-{number}-{n}"
            rival.prepare(key, "image")
            (rival.mount(key) / "program").read_bytes()
            started.append(key)
    for key in started:
        rival.unmount(key)
        rival.remove(key)
    return [Sample("start", f"{count} containers", rival.name, times[0])]
