"""The guest's part of power_cut.py: opens the pool as the last power cut left it, checks all that was promised, and
goes on writing until the power goes.

  power_cut_load.py THINSNAP MARKS_OFFSET ENGINE

What was promised is known by marks: as soon as a call has returned that makes something durable, a sector that says so
is written behind the pool's file system, on the same disk. A mark that is there was written after the promise, so the
promise binds; a mark that was lost binds nobody.
"""

import json
import mmap
import os
import random
import subprocess
import sys
import threading
import time

DISK = "/dev/disk-by-name/pool"
HOME = "/run/pool"
SOCKET = "/run/thinsnap-test.sock"
SECTOR = 512
SLOTS = 64
SLOT_BYTES = 4096
FILES_MAX = 30
UNFLUSHED_BYTES = 64 << 10
CONTAINERS_MAX = 3
WAIT_SECONDS = 120
BASE = "base"


class Broken(Exception):
    """A promise that was not kept."""


def run(*command):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise Broken(f"{' '.join(command)}: status {done.returncode}: {done.stdout}")
    return done.stdout


def is_marked(metadata):
    """True if a kernel was given the pool and nobody took it back in order: bit 24 of compat_flags."""
    with open(metadata, "rb") as file:
        return file.read(356)[355] & 1 == 1


class Marks:
    """The sectors behind the file system, each with one promise."""

    def __init__(self, offset):
        self.offset = offset
        self.lock = threading.Lock()
        self.disk = os.open(DISK, os.O_RDWR | os.O_DIRECT)
        self.size = os.lseek(self.disk, 0, os.SEEK_END) - offset
        self.found = []
        memory = mmap.mmap(-1, self.size)
        os.preadv(self.disk, [memory], offset)
        self.next = 0
        for n in range(self.size // SECTOR):
            text = memory[n * SECTOR : (n + 1) * SECTOR].rstrip(b"\0")
            if text:
                self.found.append(json.loads(text))
                self.next = n + 1
        self.sector = mmap.mmap(-1, SECTOR)

    def put(self, **promise):
        text = json.dumps(promise).encode()
        with self.lock:
            if (self.next + 1) * SECTOR > self.size:
                raise Broken("no room for more marks: this is a fault of the test")
            self.sector[:] = text.ljust(SECTOR, b"\0")
            os.pwritev(self.disk, [self.sector], self.offset + self.next * SECTOR)
            self.next += 1


def file_content(container, number, size):
    word = f"{container} file {number:08} ".encode()
    return (word * (size // len(word) + 1))[:size]


def slot_content(slot, version):
    word = f"slot {slot:04} version {version:08}\n".encode()
    return (word * (SLOT_BYTES // len(word) + 1))[:SLOT_BYTES]


class Promises:
    """What must be there, after what the marks say."""

    def __init__(self, marks):
        self.containers, self.files, self.slots = set(), {}, {}
        for mark in marks:
            kind, container = mark["kind"], mark.get("container")
            if kind == "container":
                self.containers.add(container)
            elif kind == "removing":
                self.containers.discard(container)
            elif kind == "file":
                self.files[container, mark["number"]] = mark["size"]
            elif kind == "deleting":
                self.files.pop((container, mark["number"]), None)
            elif kind == "slot":
                key = container, mark["slot"]
                self.slots[key] = max(mark["version"], self.slots.get(key, 0))
        self.files = {key: size for key, size in self.files.items() if key[0] in self.containers}
        self.slots = {key: version for key, version in self.slots.items() if key[0] in self.containers}

    def check(self, container, directory):
        for (of, number), size in self.files.items():
            if of == container:
                path = f"{directory}/f{number}"
                try:
                    with open(path, "rb") as file:
                        found = file.read()
                except FileNotFoundError:
                    raise Broken(f"{container}: f{number} was fsynced and is gone") from None
                if found != file_content(container, number, size):
                    raise Broken(f"{container}: f{number} was fsynced and differs ({len(found)} of {size} bytes)")
        with open(f"{directory}/slots", "rb") as file:
            slots = file.read()
        if len(slots) != SLOTS * SLOT_BYTES:
            raise Broken(f"{container}: the slots were fsynced and have {len(slots)} bytes")
        for slot in range(SLOTS):
            found = slots[slot * SLOT_BYTES : (slot + 1) * SLOT_BYTES]
            try:
                version = int(found[18:26])
            except ValueError:
                raise Broken(f"{container}: slot {slot} is no record: {found[:40]!r}") from None
            if version < self.slots.get((container, slot), 0) or found != slot_content(slot, version):
                raise Broken(
                    f"{container}: slot {slot} was flushed at version {self.slots.get((container, slot))}, "
                    f"it holds {found[:40]!r}"
                )


class Pool:
    def __init__(self, thinsnap, engine):
        self.thinsnap = thinsnap
        self.engine = engine
        self.service = None

    def open(self):
        os.makedirs(HOME, exist_ok=True)
        run("mount", "-t", "ext4", DISK, HOME)
        metadata = f"{HOME}/root/pool/metadata"
        if os.path.exists(metadata):
            if is_marked(metadata):
                # The kernel takes blocks before it maps them, and may have lost some: the next start finds them.
                self.start()
                self.stop()
            for judge in ("thin_check", os.environ["THIN_TOOLS_11"] + "/thin_check"):
                quiet = subprocess.run([judge, "-q", metadata], capture_output=True)
                if quiet.returncode != 0 or quiet.stdout or quiet.stderr:
                    raise Broken(f"{judge} is not silent: {run('sh', '-c', f'{judge} {metadata} 2>&1 || :')}")
            run(self.thinsnap, "pool", "check", "--metadata", metadata)
        self.start()

    def start(self):
        log = open("/run/serve.log", "ab")
        command = [self.thinsnap, "--engine", self.engine, "serve"]
        command += ["--root", f"{HOME}/root", "--socket", SOCKET, "--size", "1G"]
        self.service = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        limit = time.monotonic() + WAIT_SECONDS
        while subprocess.run([self.thinsnap, "--socket", SOCKET, "pool", "status"], capture_output=True).returncode != 0:
            if self.service.poll() is not None or time.monotonic() > limit:
                raise Broken(f"the service does not start: {open('/run/serve.log').read()[-4000:]}")
            time.sleep(0.2)
        status = json.loads(self.do("--json", "pool", "status"))
        if status["engine"] != self.engine or status["metadata_snapshot"]:
            raise Broken(f"the service is to serve with the {self.engine} engine: {status}")

    def stop(self):
        self.service.terminate()
        try:
            status = self.service.wait(WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            raise Broken("the service does not end") from None
        if status != 0:
            raise Broken(f"the service ends with {status}: {open('/run/serve.log').read()[-4000:]}")

    def do(self, *words):
        return run(self.thinsnap, "--socket", SOCKET, *words)

    def mount(self, container):
        directory = f"/run/at/{container}"
        os.makedirs(directory, exist_ok=True)
        self.do("container", "mount", container, directory)
        return directory


def durable(path, content):
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.write(file, content)
    os.fsync(file)
    os.close(file)
    directory = os.open(os.path.dirname(path), os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


def make_base(pool, marks):
    """An image's layer, so that the containers have blocks to share and to break."""
    pool.do("snapshot", "prepare", "base-rw")
    os.makedirs("/run/at/base")
    pool.do("snapshot", "mount", "base-rw", "/run/at/base")
    durable("/run/at/base/slots", b"".join(slot_content(slot, 0) for slot in range(SLOTS)))
    durable("/run/at/base/layer", os.urandom(8 << 20))
    pool.do("snapshot", "unmount", "base-rw")
    pool.do("snapshot", "commit", "base-rw", BASE)
    marks.put(kind="base")


def make_container(pool, marks, name):
    pool.do("container", "create", name, "--snapshot", BASE)
    marks.put(kind="container", container=name)


def write_for_ever(container, directory, promises, marks, dice, failures):
    """One program in a container: files that are fsynced and deleted, records that are overwritten in place."""
    try:
        mine = sorted(number for of, number in promises.files if of == container)
        versions = {}
        slots = os.open(f"{directory}/slots", os.O_RDWR)
        unflushed = os.open(f"{directory}/unflushed", os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600)
        memory = mmap.mmap(-1, UNFLUSHED_BYTES)
        memory[:] = os.urandom(len(memory))
        number = random.SystemRandom().randrange(1 << 24)
        while True:
            if dice.random() < 0.5:
                number += 1
                size = dice.choice([1, 100, 4096, 5000, 70_000, 300_000])
                durable(f"{directory}/f{number}", file_content(container, number, size))
                marks.put(kind="file", container=container, number=number, size=size)
                mine.append(number)
            else:
                slot = dice.randrange(SLOTS)
                version = versions.get(slot, promises.slots.get((container, slot), 0)) + 100
                os.pwrite(slots, slot_content(slot, version), slot * SLOT_BYTES)
                os.fdatasync(slots)
                marks.put(kind="slot", container=container, slot=slot, version=version)
                versions[slot] = version
            # Something that nobody has flushed is always on its way to the disk too.
            for _ in range(3):
                os.pwritev(unflushed, [memory], dice.randrange(16) * len(memory))
            if len(mine) > FILES_MAX:
                gone = mine.pop(0)
                marks.put(kind="deleting", container=container, number=gone)
                os.unlink(f"{directory}/f{gone}")
    except (OSError, Broken) as error:
        failures.append(f"{container}: {error}")


def main():
    thinsnap, offset, engine = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    marks = Marks(offset)
    promises = Promises(marks.found)
    pool = Pool(thinsnap, engine)
    pool.open()
    listed = pool.do("container", "ls")
    for container in promises.containers:
        if container not in listed:
            raise Broken(f"the container {container} was made and is gone: {listed}")
    mounts = {container: pool.mount(container) for container in sorted(promises.containers)}
    for container, directory in mounts.items():
        promises.check(container, directory)
    kernel_says = [line for line in run("dmesg").splitlines() if "EXT4-fs error" in line or "I/O error" in line]
    if kernel_says:
        raise Broken("\n".join(kernel_says))
    print(
        f"kept: {len(promises.containers)} containers, {len(promises.files)} files, {len(promises.slots)} records, "
        f"{len(marks.found)} marks",
        flush=True,
    )
    if not any(mark["kind"] == "base" for mark in marks.found):
        make_base(pool, marks)
    serial = len(marks.found)
    while len(mounts) < 2:
        serial += 1
        make_container(pool, marks, f"c{serial}")
        mounts[f"c{serial}"] = pool.mount(f"c{serial}")
    failures = []
    for n, (container, directory) in enumerate(mounts.items()):
        dice = random.Random(marks.next * 10 + n)
        arguments = (container, directory, promises, marks, dice, failures)
        threading.Thread(target=write_for_ever, args=arguments, daemon=True).start()
    print("loading", flush=True)
    idle = []
    while not failures:
        serial += 1
        make_container(pool, marks, f"d{serial}")
        idle.append(f"d{serial}")
        if len(idle) + len(mounts) > CONTAINERS_MAX:
            gone = idle.pop(0)
            marks.put(kind="removing", container=gone)
            pool.do("container", "rm", gone)
    raise Broken("; ".join(failures))


try:
    main()
except Broken as error:
    print(f"BROKEN: {error}", flush=True)
    log = "/run/serve.log"
    if os.path.exists(log):
        print(open(log).read()[-4000:], flush=True)
    sys.exit(1)
