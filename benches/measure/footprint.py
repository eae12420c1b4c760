"""What it costs to be there: memory of idle volumes, space of idle containers, processor time of the data that flows."""

import contextlib
import os
import pathlib

from . import device_io, fio, rivals
from .session import Sample, Table
from .thinsnap import Service

SECTION = "footprint"
TITLE = "What it costs to be there"
ABOUT = """Memory: proportional set sizes of the service and of its pool-host, idle, before and after the volumes are prepared; none
is mounted. Space: containers that were mounted, unmounted and kept; what their file system or disk lost by each. Processor: time of all
processors, kernel and all processes, while fio writes or reads the device with 1 MiB, 4 at a time, for each GiB."""
TABLES = {
    "memory": Table("Memory", "KiB", columns="process"),
    "space": Table("Space of an idle container", "KiB"),
    "cpu": Table("Processor time", "s/GiB", baselines=(rivals.PLAIN, rivals.QCOW2)),
}
SIZES = {
    "full": {"volumes": 1000, "containers": 50, "size_mib": 2048, "repeats": 3},
    "quick": {"volumes": 1000, "containers": 20, "size_mib": 256, "repeats": 2},
    "tiny": {"volumes": 5, "containers": 2, "size_mib": 16, "repeats": 1},
}
KINDS = [*rivals.SHARING, rivals.BlockfileReflink, rivals.Qcow2]
# Prepares that are made at the same time.
AT_ONCE = 10


def space_mib(size_mib, volumes, **_):
    """Free room that it needs."""
    return 4 * size_mib + volumes + sum(kind.disk_mib(64) for kind in KINDS) + 1024


def measure(session, volumes, containers, size_mib, repeats):
    """Three pieces of work, each with a service of its own."""
    if not session.all_done(["memory"]):
        with contextlib.ExitStack() as stack:
            directory = stack.enter_context(session.scratch())
            service = Service(stack, session.thinsnap, directory, "100G", session.engine)
            session.step("memory", lambda: _memory(service, volumes))
    kinds = rivals.here(session, KINDS)
    steps = {f"space, {kind.name}": (kind, containers) for kind in kinds}
    if not session.all_done(steps):
        with contextlib.ExitStack() as stack:
            directory = stack.enter_context(session.scratch())
            made = rivals.set_up(
                stack, session, directory, kinds, 64, lambda root: (root / "program").write_bytes(os.urandom(64 << 10)))
            rivals.take_turns(session, made, steps, _space)
    if why := fio.absent():
        session.not_run("processor time", why)
    else:
        _processor(session, size_mib, repeats)


def _memory(service, volumes):
    service.prepare("image-active")
    service.call("commit", key="image-active", name="image")
    samples = [Sample("memory", "no volume", process, kib) for process, kib in service.memory_kib().items()]
    for start in range(0, volumes, AT_ONCE):
        numbers = range(start, min(start + AT_ONCE, volumes))
        service.at_once([{"verb": "prepare", "key": f"idle-{n}", "parent": "image"} for n in numbers])
    samples += [Sample("memory", f"{volumes:,} idle volumes", process, kib) for process, kib in service.memory_kib().items()]
    for start in range(0, volumes, AT_ONCE):
        service.at_once([{"verb": "remove", "key": f"idle-{n}"} for n in range(start, min(start + AT_ONCE, volumes))])
    before, after = samples[:2], samples[2:]
    samples += [
        Sample("memory", "each idle volume", more.stack, (more.value - less.value) / volumes)
        for less, more in zip(before, after, strict=True)]
    return samples


def _space(rival, containers):
    os.sync()
    free = _free(rival)
    keys = [f"idle-{n}" for n in range(containers)]
    for key in keys:
        rival.prepare(key, "image")
        rival.mount(key)
        rival.unmount(key)
    os.sync()
    each = (free - _free(rival)) / containers / 1024
    for key in keys:
        rival.remove(key)
    return [Sample("space", "mounted once", rival.name, each)]


def _free(rival):
    stat = os.statvfs(rival.top)
    return stat.f_bfree * stat.f_frsize


def _processor(session, size_mib, repeats):
    able = [kind for kind in device_io.STACKS if not kind.missing()]
    steps = {
        f"{job}, {kind.name}, {n}": (job, kind.name) for job in ["write-1m-qd4", "read-1m-qd4"]
        for n in range(repeats) for kind in able}
    if session.all_done(steps):
        return
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(session.scratch())
        service = Service(stack, session.thinsnap, directory, "100G", session.engine)
        ground = device_io.Ground(stack, session, directory, size_mib, repeats, service)
        devices = {kind.name: stack.enter_context(kind(ground).device("device", size_mib)) for kind in able}
        for device in devices.values():
            device_io.write_all(device, size_mib)
        for step, (job, name) in steps.items():
            session.step(step, lambda job=job, name=name: _busy(job, devices[name], name, size_mib), name)


def _busy(job, device, name, size_mib):
    before = _busy_seconds()
    words = fio.run_job(job, device, SIZE=f"{size_mib}m", RUNTIME="1s", RAMP="0")
    gib = fio.side(words)["io_bytes"] / (1 << 30)
    return [Sample("cpu", job.split("-", maxsplit=1)[0], name, (_busy_seconds() - before) / gib, raw=fio.raw(words, name))]


def _busy_seconds():
    """Time that all processors together were not idle, since the start of the machine."""
    words = pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, _idle, _iowait, irq, softirq = map(int, words[:7])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
