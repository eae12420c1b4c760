"""Runs fio's job files, and reads what fio says."""

import json
import os
import pathlib

from .machine import missing, run

JOBS = pathlib.Path(__file__).resolve().parent.parent / "fio"


def absent():
    """Why fio cannot run here; None if it can."""
    return missing(["fio"])


def run_job(name, target, **variables):
    """Runs benches/fio/NAME.fio on a target; returns fio's own words about its one job."""
    environment = {**os.environ, "TARGET": str(target), **{key: str(value) for key, value in variables.items()}}
    # Without statistics of disks: for those fio looks at all that the machine has, seconds where there are thousands of nodes.
    words = json.loads(run("fio", "--disk_util=0", "--output-format=json+", JOBS / f"{name}.fio", env=environment))
    if words["jobs"][0]["error"]:
        raise RuntimeError(f"fio {name} on {target}: error {words['jobs'][0]['error']}")
    return words


def side(words):
    """The half of a job's words that it is about."""
    job = words["jobs"][0]
    return max((job["read"], job["write"]), key=lambda half: half["total_ios"])


def iops(words):
    """Requests a second."""
    return side(words)["iops"]


def mib_per_second(words):
    """Throughput, the flush at the end counted."""
    half = side(words)
    return half["io_bytes"] / (1 << 20) / (words["jobs"][0]["job_runtime"] / 1000)


def p99_us(words):
    """99th percentile of the time from submission to completion, in µs."""
    return side(words)["clat_ns"]["percentile"]["99.000000"] / 1000


def bins(words):
    """{upper bound in ns: count} of completion latencies, in steps of a quarter of an octave."""
    found = {}
    for ns, count in side(words)["clat_ns"].get("bins", {}).items():
        bound = 1
        while bound < int(ns):
            bound *= 2 ** 0.25
        found[round(bound)] = found.get(round(bound), 0) + count
    return found


def raw(words, stack, **about):
    """What is kept of a run beside the figures."""
    return {"stack": stack, **about, "fio": words}
