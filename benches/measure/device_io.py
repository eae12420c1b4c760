"""fio on the exported block device, against a loop device on a plain file and a qcow2 exported by qemu.

All three end in a loop device with direct I/O, so the same kernel code stands on top of each:
  plain     loop → preallocated file
  thinsnap  loop → FUSE file of pool-host → pool
  qcow2     loop → FUSE file of qemu-storage-daemon → qcow2 with 64 KiB clusters
Each region is written once in full before it is measured; the stacks take turns within each repeat.
"""

import contextlib
import json
import pathlib
import statistics
import subprocess

from .machine import drop_caches, run, scratch, wait_until
from .thinsnap import Service

STACKS = ["plain", "thinsnap", "qcow2"]
JOBS = sorted((pathlib.Path(__file__).parent.parent / "fio").glob("*.fio"))


def measure(thinsnap, directory, size_mib, seconds, repeats):
    """Returns [{job, stack, value: […], p99_us: […]}]; value is IOPS for 4k jobs, MiB/s for 1m jobs."""
    with contextlib.ExitStack() as stack:
        scratch_dir = stack.enter_context(scratch(directory))
        devices = {
            "plain": _plain(stack, scratch_dir, size_mib),
            "thinsnap": Service(stack, thinsnap, scratch_dir, "100G").prepare("device")["source"],
            "qcow2": _qcow2(stack, scratch_dir, size_mib),
        }
        for device in devices.values():
            run("fio", "--name=fill", f"--filename={device}", f"--size={size_mib}m", "--rw=write", "--bs=1m",
                "--direct=1", "--end_fsync=1", "--ioengine=io_uring", "--iodepth=4")
        drop_caches()
        results = []
        for job in JOBS:
            rows = {name: {"job": job.stem, "stack": name, "value": [], "p99_us": []} for name in STACKS}
            for _ in range(repeats):
                for name in STACKS:
                    value, p99 = _fio(job, devices[name], size_mib, seconds)
                    rows[name]["value"].append(value)
                    rows[name]["p99_us"].append(p99)
            medians = ", ".join(f"{name} {statistics.median(row['value']):.0f}" for name, row in rows.items())
            print(f"  {job.stem}: {medians}", flush=True)
            results.extend(rows.values())
        return results


def _fio(job, device, size_mib, seconds):
    environment = {"TARGET": device, "SIZE": f"{size_mib}m", "RUNTIME": str(seconds), "PATH": "/usr/bin:/bin"}
    out = json.loads(run("fio", "--output-format=json", job, env=environment))["jobs"][0]
    side = out["write"] if "write" in job.stem else out["read"]
    value = side["iops"] if "4k" in job.stem else side["bw_bytes"] / (1 << 20)
    return value, side["clat_ns"]["percentile"]["99.000000"] / 1000


def _loop(stack, file):
    device = run("losetup", "--find", "--show", "--direct-io=on", file)
    stack.callback(run, "losetup", "--detach", device)
    return device


def _plain(stack, directory, size_mib):
    run("fallocate", "-l", f"{size_mib}M", directory / "plain")
    return _loop(stack, directory / "plain")


def _qcow2(stack, directory, size_mib):
    image, mountpoint = directory / "image.qcow2", directory / "export"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=64k", image, f"{size_mib}M")
    mountpoint.touch()
    daemon = subprocess.Popen(
        ["qemu-storage-daemon",
         "--blockdev", f"driver=file,node-name=file,filename={image},cache.direct=on,aio=io_uring",
         "--blockdev", "driver=qcow2,node-name=disk,file=file,cache.direct=on,discard=unmap",
         "--export", f"type=fuse,id=export,node-name=disk,mountpoint={mountpoint},writable=on"],
        stderr=subprocess.PIPE)
    stack.callback(daemon.stderr.close)
    stack.callback(daemon.wait, 30)
    stack.callback(daemon.terminate)
    wait_until("qemu-storage-daemon's export", lambda: mountpoint.stat().st_size == size_mib << 20)
    return _loop(stack, mountpoint)
