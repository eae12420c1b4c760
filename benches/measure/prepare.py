"""Prepare and mount through the gRPC socket at several depths, and reads through a deep chain."""

import contextlib
import json
import statistics

from .machine import drop_caches, run, scratch
from .thinsnap import Service


def measure(thinsnap, client, directory, depths, repeats, file_mib, seconds):
    """Returns {"prepare": [one entry for each depth], "reads": [{depth, iops: […]}]}."""
    with contextlib.ExitStack() as stack:
        scratch_dir = stack.enter_context(scratch(directory))
        service = Service(stack, thinsnap, scratch_dir, "100G")
        at = scratch_dir / "at"
        at.mkdir()
        prepared = json.loads(run(
            client, "--socket", service.socket, "--at", at, "--repeats", repeats, "--file-mib", file_mib,
            "--depths", ",".join(map(str, depths))))["points"]
        for row in prepared:
            both = row["prepare_and_mount_ms"]
            print(f"  depth {row['depth']}: prepare + mount {both['p50']:.2f} ms, p99 {both['p99']:.2f}", flush=True)
        reads = {depth: [] for depth in (depths[0], depths[-1])}
        for n in range(3):
            for depth in reads:
                reads[depth].append(_read(service, at, depth, n, file_mib, seconds))
        for depth, iops in reads.items():
            print(f"  depth {depth}: 4 KiB random reads {statistics.median(iops):.0f} IOPS", flush=True)
        return {"prepare": prepared, "reads": [{"depth": d, "iops": v} for d, v in reads.items()]}


def _read(service, at, depth, number, file_mib, seconds):
    key = f"reader-{depth}-{number}"
    with contextlib.ExitStack() as reader:
        service.mounted(reader, key, at, f"layer-{depth}")
        drop_caches()
        out = json.loads(run(
            "fio", "--output-format=json", "--name=read", f"--filename={at}/large", f"--size={file_mib}m", "--rw=randread",
            "--bs=4k", "--iodepth=32", "--direct=1", "--ioengine=io_uring", "--time_based=1", f"--runtime={seconds}",
            "--readonly"))
        return out["jobs"][0]["read"]["iops"]
