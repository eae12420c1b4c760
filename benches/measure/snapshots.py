"""What snapshots cost: containerd's calls, with deep chains, with many snapshots present, many at once, layer by layer."""

import contextlib
import os

from . import fio, rivals
from .machine import MIB, drop_caches, stopwatch
from .session import Sample, Table
from .thinsnap import Service, fill

SECTION = "snapshots"
TITLE = "Snapshots: Prepare, mount, Commit, Remove, View, Usage"
ABOUT = """Through containerd's gRPC service, one call after the other; the file system is ext4. Each layer of the chain has a small file
of its own. The depths take turns. A mount is mount(2), a container is prepared, mounted, unmounted and removed; Commit is of a
container in which a file of 64 KiB was written. The benchmark by layers has the shape of containerd's own: 16 layers, each
prepared, mounted, given a file of 1 MiB, unmounted and committed."""
DEPTH, PRESENT = "depth of the chain", "snapshots present"
TABLES = {
    "depth": Table("At several depths of a chain", "ms", columns="call", x=DEPTH, tail=True),
    "present": Table("With many snapshots present", "ms", columns="call", x=PRESENT, tail=True),
    "concurrent": Table("100 Prepares, by the number of calls in flight", "ms", columns="calls in flight"),
    "layers": Table("16 layers, one on the other", "ms"),
    "reads": Table("4 KiB random reads of a file in the first layer, QD32", "IOPS", higher=True, x=DEPTH),
}
SIZES = {
    "full": {"depths": [1, 10, 100, 1000], "present": [10, 1000, 10000], "repeats": 200, "layers_repeats": 5, "file_mib": 256,
             "seconds": 3},
    "quick": {"depths": [1, 10, 100, 1000], "present": [10, 2000], "repeats": 25, "layers_repeats": 1, "file_mib": 64,
              "seconds": 1},
    "tiny": {"depths": [1, 3], "present": [2, 5], "repeats": 2, "layers_repeats": 1, "file_mib": 4, "seconds": 0.2},
}
# Calls that are made at the same time while many snapshots are made: as many as containerd makes by default.
AT_ONCE = 10
LAYERS = 16
PREPARES = 100
IN_FLIGHT = [1, 2, PREPARES]


def space_mib(file_mib, depths, present, **_):
    """Free room: a layer takes a few blocks, a snapshot one."""
    return file_mib + max(depths) + max(present) // 4 + rivals.space_mib(rivals.SHARING, 64, 0) + 2048


def measure(session, depths, present, repeats, layers_repeats, file_mib, seconds):
    """A service for the chain, another one for the many; then the rivals by layers."""
    reads = {f"reads at depth {depth}, {n}": depth for n in range(3) for depth in (depths[0], depths[-1])}
    if why := fio.absent():
        session.not_run("thinsnap", why, "reads")
        reads = {}
    if not session.all_done(["chain", *reads]):
        with contextlib.ExitStack() as stack:
            directory, service = _service(stack, session)
            _chain(service, directory / "at", max(depths), file_mib)
            session.step("chain", lambda: [
                sample for n in range(repeats) for depth in depths
                for sample in _calls(service, directory / "at", "depth", depth, f"layer-{depth}", f"{depth}-{n}")])
            for step, depth in reads.items():
                session.step(step, lambda depth=depth: [_read(service, directory / "at", depth, file_mib, seconds)])
    if not session.all_done(["concurrent", *(f"{count} present" for count in present)]):
        with contextlib.ExitStack() as stack:
            directory, service = _service(stack, session)
            _chain(service, directory / "at", 1, 0)
            session.step("concurrent", lambda: _concurrent(service))
            there = 1
            for count in present:
                _multiply(service, there, count)
                there = count
                session.step(f"{count} present", lambda count=count: [
                    sample for n in range(repeats)
                    for sample in _calls(service, directory / "at", "present", count, "layer-1", f"{count}-{n}")])
    kinds = rivals.here(session, rivals.SHARING)
    layers = {f"{LAYERS} layers, {kind.name}, {n}": (kind, n) for n in range(layers_repeats) for kind in kinds}
    if not session.all_done(layers):
        with contextlib.ExitStack() as stack:
            directory = stack.enter_context(session.scratch())
            made = rivals.set_up(stack, session, directory, kinds, 64, lambda root: None)
            rivals.take_turns(session, made, layers, _by_layers)


def _service(stack, session):
    directory = stack.enter_context(session.scratch())
    service = Service(stack, session.thinsnap, directory, "100G", session.engine)
    (directory / "at").mkdir()
    return directory, service


def _chain(service, at, depth, file_mib):
    """Committed snapshots layer-1 … layer-DEPTH, each with a small file; the first with the large one that is read."""
    for n in range(1, depth + 1):
        device = service.prepare("deepen", f"layer-{n - 1}" if n > 1 else None)
        service.call("mount", device=device, at=str(at))
        (at / f"layer-{n}").write_bytes(b"x" * (64 << 10))
        if n == 1 and file_mib:
            fill(at / "large", file_mib * MIB)
        service.call("unmount", at=str(at))
        service.call("commit", key="deepen", name=f"layer-{n}")


def _calls(service, at, table, number, parent, key):
    """One container's life, one view's, and a commit; returns a sample for each call. What was removed before is given back
    first: reclaiming is no part of any call."""
    service.call("cleanup")
    device = service.call("prepare", key=key, parent=parent)
    times = {"Prepare": device["ms"], "mount": service.call("mount", device=device["device"], at=str(at))["ms"]}
    times["Prepare + mount"] = times["Prepare"] + times["mount"]
    (at / "written").write_bytes(b"y" * (64 << 10))
    service.call("unmount", at=str(at))
    times["Usage"] = service.call("usage", key=key)["ms"]
    times["Commit"] = service.call("commit", key=key, name=f"{key}-committed")["ms"]
    times["View"] = service.call("view", key=f"{key}-view", parent=f"{key}-committed")["ms"]
    service.call("remove", key=f"{key}-view")
    service.call("prepare", key=key, parent=parent)
    times["Remove"] = service.call("remove", key=key)["ms"]
    service.call("remove", key=f"{key}-committed")
    return [Sample(table, f"{number:,}", call, ms, number) for call, ms in times.items()]


def _read(service, at, depth, file_mib, seconds):
    device = service.prepare("reader", f"layer-{depth}")
    service.call("mount", device=device, at=str(at))
    try:
        drop_caches()
        words = fio.run_job("randread-4k-qd32", at / "large", SIZE=f"{file_mib}m", RUNTIME=f"{seconds * 1000:.0f}ms", RAMP="0")
    finally:
        service.call("unmount", at=str(at))
        service.call("remove", key="reader")
    return Sample("reads", f"{depth:,}", "thinsnap", fio.iops(words), depth, fio.bins(words), fio.raw(words, "thinsnap", depth=depth))


def _concurrent(service):
    keys = [f"concurrent-{n}" for n in range(PREPARES)]
    samples = []
    for _ in range(3):
        for width in IN_FLIGHT:
            wall = []
            service.call("cleanup")
            with stopwatch(wall):
                for start in range(0, PREPARES, width):
                    service.at_once([
                        {"verb": "prepare", "key": key, "parent": "layer-1"} for key in keys[start:start + width]])
            samples.append(Sample("concurrent", "all answered after", f"{width} in flight", wall[0]))
            service.at_once([{"verb": "remove", "key": key} for key in keys])
    return samples


def _multiply(service, there, count):
    """Committed snapshots until there are `count`."""
    names = list(range(there, count))
    for start in range(0, len(names), AT_ONCE):
        some = names[start:start + AT_ONCE]
        service.at_once([{"verb": "prepare", "key": f"many-{n}-active", "parent": "layer-1"} for n in some])
        service.at_once([{"verb": "commit", "key": f"many-{n}-active", "name": f"many-{n}"} for n in some])


def _by_layers(rival, number):
    """Milliseconds for the layers, and until they are on the disk."""
    content = os.urandom(MIB)
    wall, parent = [], None
    with stopwatch(wall):
        for n in range(LAYERS):
            with rival.layer(f"{number}-{n}", parent) as root:
                (root / f"file-{n}").write_bytes(content)
            parent = f"{number}-{n}"
    with stopwatch(wall):
        os.sync()
    return [
        Sample("layers", "all committed", rival.name, wall[0]),
        Sample("layers", "all on the disk", rival.name, sum(wall))]
