"""fio on the exported block device, against a loop device on a plain file and a qcow2 exported by qemu.

Loop devices have direct I/O, so that the same kernel code stands on top of each:
  plain     loop → preallocated file
  dm-thin   thin → thin pool of the kernel → loop → sparse file
  thinsnap  ublk, or loop → FUSE file of pool-host → pool
  qcow2     loop → FUSE file of qemu-storage-daemon → qcow2 with 64 KiB clusters
"""

import contextlib
import pathlib
import random
from dataclasses import dataclass

from . import fio
from .dm_thin import DM_THIN, Pool, missing_dm_thin
from .machine import MIB, attach, detach, drop_caches, load_module, missing, mount_now, run, unmount
from .rivals import PLAIN, QCOW2, export_qcow2, format_qcow2, make_qcow2
from .session import Sample, Table
from .thinsnap import Service

SECTION = "device-io"
TITLE = "Input and output of the exported device"
THINSNAP = "thinsnap"
ABOUT = """fio on the block device, or on a file of ext4 on it where it says buffered; jobs in benches/fio/. The stacks: a loop device
with direct I/O on a plain file (the limit); the kernel's own dm-thin, as dmsetup sets it up with blocks of 64 KiB, where the
kernel has it; thinsnap's device, which is a ublk device where the kernel has that and else such
a loop device on a FUSE file; such a loop device on the FUSE export of a qcow2 with 64 KiB clusters by qemu-storage-daemon. What
is read or overwritten was written once before; first writes go to space that nobody has written yet, in new sparse files, and
for thinsnap also in a pool whose data file was written throughout before, as a disk in use is; to break sharing, the
whole range is shared with a snapshot (qcow2: in a backing file) and each write meets a 64 KiB block that has not been written
since; beside it stands how many blocks of 64 KiB the disk reads and writes in that time, through the plain loop file, which is as
many as can be copied. The stacks take turns within each repeat. qemu's export (7.2) mixes up the bytes of direct writes that come together, a
defect of its own that is not counted; below a file system its loop device is not direct. Files are overwritten in the page cache,
which has them whole by then: else writing would be measured together with getting the memory, which takes a second for a GiB where
the host of a virtual machine has taken freed pages back."""
TABLES = {
    "iops": Table("Requests a second", "IOPS", higher=True, baselines=(PLAIN, QCOW2, DM_THIN)),
    "throughput": Table("Throughput", "MiB/s", higher=True, baselines=(PLAIN, QCOW2, DM_THIN)),
    "p99": Table("99th percentile of the latency", "µs", baselines=(PLAIN, QCOW2, DM_THIN)),
    "first": Table("Sequential writes of 1 MiB: the first time, and again", "MiB/s", higher=True, baselines=(PLAIN, QCOW2, DM_THIN)),
    "sharing": Table("Breaking sharing, 4 KiB at random", "IOPS", higher=True, baselines=(QCOW2, DM_THIN)),
    "sharing-p99": Table("Breaking sharing, 99th percentile", "µs", baselines=(QCOW2, DM_THIN)),
}
SIZES = {
    "full": {"size_mib": 2048, "seconds": 3, "ramp": 1, "repeats": 5},
    "quick": {"size_mib": 256, "seconds": 1, "ramp": 0.2, "repeats": 2},
    "tiny": {"size_mib": 16, "seconds": 0.1, "ramp": 0, "repeats": 1},
}

DEVICE_JOBS = [
    "randread-4k-qd1", "randwrite-4k-qd1", "randread-4k-qd32", "randwrite-4k-qd32", "randwrite-4k-fsync", "read-1m-qd4",
    "write-1m-qd4"]
FILE_JOBS = ["buffered-randread-4k", "buffered-randwrite-4k", "buffered-read-1m", "buffered-write-1m"]
SHARING_JOBS = ["break-sharing-4k-qd1", "break-sharing-4k-qd32"]


def space_mib(size_mib, **_):
    """Free room that it needs: for each of four stacks a device with a file on it, or a shared image and its changes."""
    return 4 * 3 * size_mib + 1024


@dataclass(frozen=True)
class Ground:
    """What stacks are built on; what they build goes when `stack` unwinds."""

    stack: contextlib.ExitStack
    session: object
    directory: object
    size_mib: int
    repeats: int
    service: Service


def _pool_mib(size_mib):
    """Of a pool, which takes what it needs of that: an image, a device with a file system, each snapshot's changes."""
    return 8 * size_mib + (20 << 10)


class Plain:
    """A file, preallocated if it is to be overwritten."""

    name = PLAIN

    def __init__(self, ground):
        self.directory = ground.directory

    @classmethod
    def missing(cls):
        """Why it cannot be measured here; None if it can."""
        return missing(["fallocate"])

    @contextlib.contextmanager
    def device(self, name, size_mib, fresh=False):
        """A device with nothing on it that matters; gone afterwards."""
        file = self.directory / f"{name}.plain"
        run(*(["truncate", "-s"] if fresh else ["fallocate", "-l"]), f"{size_mib}M", file)
        device = attach(file)
        try:
            yield device
        finally:
            detach(device)
            file.unlink()

    @contextlib.contextmanager
    def filesystem(self, name, size_mib):
        """A device with ext4 on it, and the options to mount it with."""
        with self.device(name, size_mib) as device:
            run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0", device)
            yield device, ["noatime"]


class Copies(Plain):
    """As many blocks of 64 KiB read as written on a plain loop file: what the disk lets be copied."""

    name = f"{PLAIN}, 64 KiB read and written"

    @contextlib.contextmanager
    def shared(self, size_mib):
        with self.device("copies", size_mib) as device:
            write_all(device, size_mib)
            yield lambda _name: contextlib.nullcontext(device)


class Qcow2(Plain):
    """A qcow2 file, exported by qemu-storage-daemon."""

    name = QCOW2

    @classmethod
    def missing(cls):
        return missing(["qemu-img", "qemu-storage-daemon"])

    @contextlib.contextmanager
    def device(self, name, size_mib, fresh=False):
        with self._shown(name, size_mib, make_qcow2) as device:
            yield device

    @contextlib.contextmanager
    def filesystem(self, name, size_mib):
        with self._shown(name, size_mib, format_qcow2, direct=False) as device:
            yield device, ["noatime"]

    @contextlib.contextmanager
    def _shown(self, name, size_mib, make, direct=True):
        image = self.directory / f"{name}.qcow2"
        make(image, size_mib)
        try:
            with contextlib.ExitStack() as stack:
                yield export_qcow2(stack, image, self.directory / f"{name}.export", size_mib, direct)
        finally:
            image.unlink()

    @contextlib.contextmanager
    def shared(self, size_mib):
        """A written image; yields how to get a device of which everything is shared with it."""
        image = self.directory / "image.qcow2"
        make_qcow2(image, size_mib)
        with contextlib.ExitStack() as stack:
            write_all(export_qcow2(stack, image, self.directory / "image.export", size_mib), size_mib)

        try:
            yield lambda name: self._shown(name, size_mib, lambda new, size: make_qcow2(new, size, image))
        finally:
            image.unlink()


class DmThin(Plain):
    """A thin device of the kernel's own, on sparse files as thinsnap's pool is."""

    name = DM_THIN

    def __init__(self, ground):
        super().__init__(ground)
        self.pool = Pool(ground.stack, ground.directory, ground.directory.name, _pool_mib(ground.size_mib))

    @classmethod
    def missing(cls):
        return missing_dm_thin()

    @contextlib.contextmanager
    def device(self, name, size_mib, fresh=False):
        with self.pool.device(size_mib) as (device, _):
            yield device

    @contextlib.contextmanager
    def shared(self, size_mib):
        with self.pool.device(size_mib, shown=False) as (_, image):
            with self.pool.shown(image, size_mib) as device:
                write_all(device, size_mib)
            yield lambda name: self._snapshot(image, size_mib)

    @contextlib.contextmanager
    def _snapshot(self, image, size_mib):
        with self.pool.device(size_mib, origin=image) as (device, _):
            yield device


class Ours:
    """A thin device of a pool whose files lie beside those of the others."""

    name = THINSNAP

    def __init__(self, ground, service=None):
        self.service = service or ground.service

    @classmethod
    def missing(cls):
        return None

    @contextlib.contextmanager
    def device(self, name, size_mib, fresh=False, parent=None):
        device = self.service.prepare(name, parent)
        try:
            yield device["source"]
        finally:
            self.service.call("remove", key=name)

    @contextlib.contextmanager
    def filesystem(self, name, size_mib):
        device = self.service.prepare(name)
        try:
            yield device["source"], device["options"]
        finally:
            self.service.call("remove", key=name)

    @contextlib.contextmanager
    def shared(self, size_mib):
        write_all(self.service.prepare("image-active")["source"], size_mib)
        self.service.call("commit", key="image-active", name="image")
        try:
            yield lambda name: self.device(name, size_mib, parent="image")
        finally:
            self.service.call("remove", key="image")


class Written(Ours):
    """The same of a pool in a file that was written throughout: no room has to be found below, as on a disk. Blocks that are
    freed are emptied, so that each repeat gets others."""

    name = f"{THINSNAP}, data file written before"

    def __init__(self, ground):
        data = ground.directory / "written.data"
        total = (ground.repeats + 1) * ground.size_mib + 256
        data.touch()
        # Zeroes: a pool is made on what is empty.
        write_all(data, total, "--zero_buffers")
        below = ground.directory / "written"
        below.mkdir()
        session = ground.session
        super().__init__(ground, Service(ground.stack, session.thinsnap, below, f"{total}M", session.engine, data=data))


class Ublk(Ours):
    """The same of a pool whose devices are shown by ublk, whatever thinsnap chooses on this kernel."""

    name = f"{THINSNAP}, ublk"

    def __init__(self, ground):
        below = ground.directory / "ublk"
        below.mkdir()
        session, size = ground.session, f"{_pool_mib(ground.size_mib)}M"
        super().__init__(ground, Service(ground.stack, session.thinsnap, below, size, session.engine, export="ublk"))

    @classmethod
    def missing(cls):
        load_module("ublk_drv")
        return None if pathlib.Path("/dev/ublk-control").exists() else "this kernel has no ublk; in a virtual machine: make bench-versus"


def write_all(device, size_mib, *options):
    """Writes the first `size_mib` of a device or file once, durably."""
    run("fio", *options, "--disk_util=0", "--name=fill", f"--filename={device}", f"--size={size_mib}m", "--rw=write",
        "--bs=1m", "--direct=1", "--end_fsync=1", "--ioengine=io_uring", "--iodepth=4")


STACKS = [Plain, DmThin, Ours, Qcow2]


def measure(session, size_mib, seconds, ramp, repeats, kinds=STACKS):
    """The kinds of jobs one after the other, each with stacks of its own."""
    able = []
    for kind in kinds:
        if why := fio.absent() or kind.missing():
            session.not_run(kind.name, why)
        else:
            able.append(kind)
    work = [
        (_device_jobs, _turns(DEVICE_JOBS, repeats, able)),
        (_file_jobs, _turns(FILE_JOBS, repeats, able)),
        (_first_writes, _turns(["fill-1m-qd4"], repeats, [*able, Written] if Ours in able else able)),
        (_break_sharing, _turns(SHARING_JOBS, repeats, [Copies if kind is Plain else kind for kind in able])),
    ]
    for does, turns in work:
        if session.all_done(turns):
            continue
        with contextlib.ExitStack() as stack:
            directory = stack.enter_context(session.scratch())
            service = Service(stack, session.thinsnap, directory, f"{_pool_mib(size_mib)}M", session.engine)
            ground = Ground(stack, session, directory, size_mib, repeats, service)
            stacks = {kind.name: kind(ground) for kind in able}
            if does is _first_writes and Ours in able:
                stacks[Written.name] = Written(ground)
            if does is _break_sharing and Plain in able:
                stacks[Copies.name] = Copies(ground)
            does(session, stack, directory, stacks, turns, {"size_mib": size_mib, "seconds": seconds, "ramp": ramp})


def _turns(jobs, repeats, kinds):
    """{step: (job, repeat, stack)}, the stacks taking turns."""
    return {f"{job}, {kind.name}, {n}": (job, n, kind.name) for job in jobs for n in range(repeats) for kind in kinds}


def _samples(words, job, stack):
    unit, value = ("throughput", fio.mib_per_second(words)) if "1m" in job else ("iops", fio.iops(words))
    samples = [Sample(unit, job, stack, value, bins=fio.bins(words), raw=fio.raw(words, stack))]
    # Through the page cache most requests are copies in memory.
    return samples if job in FILE_JOBS else [*samples, Sample("p99", job, stack, fio.p99_us(words))]


def _device_jobs(session, stack, _directory, stacks, turns, size):
    devices = {name: stack.enter_context(made.device("device", size["size_mib"])) for name, made in stacks.items()}
    for device in devices.values():
        write_all(device, size["size_mib"])
    for step, (job, _, name) in turns.items():
        def work(job=job, name=name):
            return _samples(_timed(job, devices[name], size), job, name)
        session.step(step, work, name)


def _timed(job, device, size):
    """fio's words about a job that has a time."""
    return fio.run_job(
        job, device, SIZE=f"{size['size_mib']}m", RUNTIME=f"{size['seconds'] * 1000:.0f}ms",
        RAMP=f"{size['ramp'] * 1000:.0f}ms")


def _file_jobs(session, stack, directory, stacks, turns, size):
    files = {}
    for name, made in stacks.items():
        device, options = stack.enter_context(made.filesystem("files", 2 * size["size_mib"] + 256))
        mount_now(device, directory / f"{made.name}-mounted", "ext4", options)
        stack.callback(unmount, directory / f"{made.name}-mounted")
        files[name] = directory / f"{made.name}-mounted" / "file"
        write_all(files[name], size["size_mib"])
    for step, (job, _, name) in turns.items():
        def work(job=job, name=name):
            drop_caches()
            if job == "buffered-write-1m":
                # It fills the page cache.
                _on_file(job, files[name], size)
            return _samples(_on_file(job, files[name], size), job, name)
        session.step(step, work, name)


def _on_file(job, file, size):
    """fio's words about a job on a file of a file system."""
    return fio.run_job(job, file, SIZE=f"{size['size_mib']}m", RUNTIME=f"{size['seconds'] * 1000:.0f}ms", RAMP="0")


def _first_writes(session, _stack, _directory, stacks, turns, size):
    for step, (job, n, name) in turns.items():
        def work(job=job, n=n, name=name):
            samples = []
            with stacks[name].device(f"first-{n}", size["size_mib"], fresh=True) as device:
                drop_caches()
                for row in ["first write", "rewrite"]:
                    words = fio.run_job(job, device, SIZE=f"{size['size_mib']}m")
                    # Nobody's but thinsnap's.
                    row, stack = (f"{row}, data file written before", THINSNAP) if name == Written.name else (row, name)
                    samples.append(Sample("first", row, stack, fio.mib_per_second(words), raw=fio.raw(words, stack, row=row)))
            return samples
        session.step(step, work, name)


def _break_sharing(session, stack, directory, stacks, turns, size):
    snapshots = {
        name: stack.enter_context(made.shared(size["size_mib"])) for name, made in stacks.items() if name != PLAIN}
    for step, (job, n, name) in turns.items():
        def work(job=job, n=n, name=name):
            depth = job.rpartition("-")[2]
            with snapshots[name](f"{job}-{n}") as device:
                drop_caches()
                if name == Copies.name:
                    return [Sample("sharing", depth.upper(), name, fio.iops(_timed(f"copy-64k-{depth}", device, size)))]
                words = fio.run_job(job, device, PLACES=_places(directory, size["size_mib"], n))
            return [
                Sample("sharing", depth.upper(), name, fio.iops(words), bins=fio.bins(words), raw=fio.raw(words, name)),
                Sample("sharing-p99", depth.upper(), name, fio.p99_us(words))]
        session.step(step, work, name)


def _places(directory, size_mib, seed):
    """A file that tells fio to write 4 KiB of each block once, in random order."""
    places = list(range(0, size_mib * MIB, 64 << 10))
    random.Random(seed).shuffle(places)
    lines = ["fio version 2 iolog", "/dev/device add", "/dev/device open"]
    lines += [f"/dev/device write {place} 4096" for place in places]
    log = directory / "places"
    log.write_text("\n".join([*lines, "/dev/device close", ""]))
    return log
