"""The first change of a large file in a fresh container: 4 KiB overwritten, then fsync.

Three stacks, each alone on a preallocated disk of its own (loop, direct I/O): overlayfs on ext4, overlayfs on XFS with
reflink, and a thinsnap container whose pool lies in a directory on ext4. Cold: all caches dropped before the write.
Warm: after that the 4 KiB in question have been read, through the same mount.
"""

import contextlib
import itertools
import os
import statistics
import time

from .machine import Disk, drop_caches, mount, run, scratch
from .thinsnap import Service, fill, mount_prepared

MIB = 1 << 20
STACKS = ["overlayfs on ext4", "overlayfs on XFS (reflink)", "thinsnap"]


def measure(thinsnap, directory, sizes_mib, repeats):
    """Returns [{stack, file_mib, cache, ms: […], written: […]}]: one entry for each stack, file size and cache."""
    results = []
    for stack_name in STACKS:
        with contextlib.ExitStack() as stack:
            scratch_dir = stack.enter_context(scratch(directory))
            disk = Disk(stack, scratch_dir, "disk", f"{2 * max(sizes_mib) + 4096}M")
            if stack_name == "thinsnap":
                fresh = _thinsnap(stack, thinsnap, disk, scratch_dir, sizes_mib)
            else:
                fresh = _overlay(stack, "xfs" if "XFS" in stack_name else "ext4", disk, scratch_dir, sizes_mib)
            for size, cache in itertools.product(sizes_mib, ["cold", "warm"]):
                result = {"stack": stack_name, "file_mib": size, "cache": cache, "ms": [], "written": []}
                for n in range(repeats):
                    with fresh(f"{size}-{cache}-{n}") as root:
                        milliseconds, written = _overwrite(root / f"file-{size}", size, cache == "warm", disk)
                    result["ms"].append(milliseconds)
                    result["written"].append(written)
                print(f"  {stack_name}, {size} MiB, {cache}: {statistics.median(result['ms']):.2f} ms", flush=True)
                results.append(result)
    return results


def _overwrite(path, size_mib, warm, disk):
    """Milliseconds from open to the end of fsync, and the bytes that the disk was given until all was quiet."""
    drop_caches()
    middle = size_mib * MIB // 2
    if warm:
        with open(path, "rb") as file:
            os.pread(file.fileno(), 4096, middle)
    before = disk.bytes_written()
    block = os.urandom(4096)
    start = time.perf_counter()
    file = os.open(path, os.O_RDWR)
    os.pwrite(file, block, middle)
    os.fsync(file)
    milliseconds = (time.perf_counter() - start) * 1000
    os.close(file)
    os.sync()
    return milliseconds, disk.bytes_written() - before


def _overlay(stack, kind, disk, directory, sizes_mib):
    """Makes the lower layer; returns how to get a fresh container's root."""
    run(*(["mkfs.xfs", "-q", "-m", "reflink=1"] if kind == "xfs" else ["mkfs.ext4", "-q"]), disk.device)
    top = mount(stack, disk.device, directory / "fs", kind)
    (top / "lower").mkdir()
    for size in sizes_mib:
        fill(top / "lower" / f"file-{size}", size * MIB)

    @contextlib.contextmanager
    def fresh(_name):
        with contextlib.ExitStack() as container:
            for name in ["upper", "work"]:
                (top / name).mkdir()
                container.callback(run, "rm", "-rf", top / name)
            options = f"lowerdir={top}/lower,upperdir={top}/upper,workdir={top}/work"
            yield mount(container, "overlay", directory / "merged", "overlay", options)

    return fresh


def _thinsnap(stack, binary, disk, directory, sizes_mib):
    """Makes the image layer; returns how to get a fresh container's root."""
    run("mkfs.ext4", "-q", disk.device)
    top = mount(stack, disk.device, directory / "fs", "ext4")
    service = Service(stack, binary, top, "100G")
    with contextlib.ExitStack() as layer:
        root = mount_prepared(layer, service.prepare("layer"), directory / "layer")
        for size in sizes_mib:
            fill(root / f"file-{size}", size * MIB)
    service.commit("layer", "image")

    @contextlib.contextmanager
    def fresh(name):
        with contextlib.ExitStack() as container:
            yield service.mounted(container, f"container-{name}", directory / "merged", "image")

    return fresh
