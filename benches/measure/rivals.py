"""The rivals, each behind the same few verbs: what a container's root file system stands on.

Each stands alone on a preallocated disk of its own (a loop device with direct I/O), so that the bytes written to that
disk are its own. Names are those of containerd's snapshotters where there is one.
"""

import contextlib
import fcntl
import functools
import os
import pathlib
import shutil
import struct
import subprocess

from .dm_thin import DM_THIN, Pool, missing_dm_thin
from .machine import (
    BTRFS_IOC_SNAP_CREATE, FICLONE, MIB, Disk, attach, detach, missing, mount, mount_now, run, unmount, wait_until)
from .thinsnap import Service

# Those that are rivals as devices too.
PLAIN, QCOW2 = "plain loop file", "qcow2"


class Rival:
    """A way to make containers: snapshots by key, of a committed parent or of nothing."""

    name = ""
    programs = ()
    filesystems = ()
    # How often the image's bytes stand on the disk when a container has changed one byte of a file.
    copies = 1
    # What the file system below is made with.
    mkfs = ("mkfs.ext4", "-q")

    def __init__(self, stack, session, directory, content_mib):
        self.at = pathlib.Path(directory) / self.name.replace(" ", "-").replace("(", "").replace(")", "")
        self.at.mkdir()
        self.content_mib = content_mib
        self.disk = Disk(stack, directory, f"{self.at.name}.disk", self.disk_mib(content_mib))
        run(*self.mkfs, self.disk.device)
        self.top = mount(stack, self.disk.device, self.at / "fs", self.mkfs[0].removeprefix("mkfs."))
        self.parents = {}

    @classmethod
    def disk_mib(cls, content_mib):
        """The disk's size for an image with so much in it."""
        return cls.copies * content_mib * 9 // 8 + 640

    @classmethod
    def missing(cls):
        """Why it cannot run here; None if it can."""
        return missing(("fallocate", cls.mkfs[0], *cls.programs), cls.filesystems)

    def prepare(self, key, parent=None):
        """A new active snapshot, not mounted."""
        raise NotImplementedError

    def prepare_layer(self, key, parent=None):
        """The same, into which a layer is unpacked."""
        self.prepare(key, parent)

    def mount(self, key):
        """Mounts an active snapshot; returns its root."""
        raise NotImplementedError

    def unmount(self, key):
        """Unmounts it."""
        unmount(self.root(key))

    def commit(self, key, name):
        """Makes an active snapshot a parent for others, under a name."""
        os.rename(self.place(key), self.place(name))
        self.parents[name] = self.parents.pop(key)

    def remove(self, key):
        """Removes a snapshot."""
        del self.parents[key]
        shutil.rmtree(self.place(key))

    def place(self, key):
        """Where a snapshot's data lies."""
        return self.top / key

    def root(self, key):
        """Where a snapshot is mounted."""
        return self.at / "mnt" / key

    @contextlib.contextmanager
    def layer(self, name, parent=None):
        """A new layer: its root to write to, then committed."""
        key = f"{name}-active"
        self.prepare_layer(key, parent)
        root = self.mount(key)
        try:
            yield root
        finally:
            self.unmount(key)
        self.commit(key, name)

    @contextlib.contextmanager
    def container(self, key, parent="image"):
        """A fresh container's root; gone afterwards."""
        self.prepare(key, parent)
        try:
            root = self.mount(key)
            try:
                yield root
            finally:
                self.unmount(key)
        finally:
            self.remove(key)


class Thinsnap(Rival):
    """Ours: the pool's files lie on ext4."""

    name = "thinsnap"

    def __init__(self, stack, session, directory, content_mib):
        super().__init__(stack, session, directory, content_mib)
        self.service = Service(
            stack, session.thinsnap, self.top, f"{2 * content_mib // 1024 + 20}G", session.engine, _filesystem_mib(content_mib))
        self.devices = {}

    def prepare(self, key, parent=None):
        self.devices[key] = self.service.prepare(key, parent)

    def prepare_layer(self, key, parent=None):
        # As containerd's unpacker marks it.
        self.devices[key] = self.service.prepare(key, parent, {"containerd.io/snapshot.ref": key})

    def mount(self, key):
        self.root(key).mkdir(parents=True, exist_ok=True)
        self.service.call("mount", device=self.devices[key], at=str(self.root(key)))
        return self.root(key)

    def unmount(self, key):
        self.service.call("unmount", at=str(self.root(key)))

    def commit(self, key, name):
        self.service.call("commit", key=key, name=name)
        del self.devices[key]

    def remove(self, key):
        self.service.call("remove", key=key)
        self.devices.pop(key, None)


class Overlay(Rival):
    """A directory for each snapshot; the parents' directories are the lower ones."""

    name = "overlayfs on ext4"
    filesystems = ("overlay",)
    copies = 2

    def prepare(self, key, parent=None):
        for directory in ("fs", "work"):
            (self.place(key) / directory).mkdir(parents=True)
        self.parents[key] = parent

    def mount(self, key):
        chain, parent = [], self.parents[key]
        while parent:
            chain.append(parent)
            parent = self.parents[parent]
        if not chain:
            mount_now(self.place(key) / "fs", self.root(key), "none", ["bind"])
            return self.root(key)
        # Relative, as containerd does it: the options of a mount fit one page.
        back = os.getcwd()
        os.chdir(self.top)
        try:
            lower = ":".join(f"{name}/fs" for name in chain)
            mount_now("overlay", self.root(key), "overlay", [f"lowerdir={lower}", f"upperdir={key}/fs", f"workdir={key}/work"])
        finally:
            os.chdir(back)
        return self.root(key)


class OverlayXfs(Overlay):
    """The honest rival: XFS with reflink spares overlayfs the copy."""

    name = "overlayfs on XFS (reflink)"
    filesystems = ("overlay", "xfs")
    copies = 1
    mkfs = ("mkfs.xfs", "-q", "-m", "reflink=1")


class Btrfs(Rival):
    """A subvolume for each snapshot."""

    name = "btrfs"
    programs = ("btrfs",)
    filesystems = ("btrfs",)
    mkfs = ("mkfs.btrfs", "-q")

    def prepare(self, key, parent=None):
        if parent:
            source, above = os.open(self.place(parent), os.O_RDONLY), os.open(self.top, os.O_RDONLY)
            try:
                fcntl.ioctl(above, BTRFS_IOC_SNAP_CREATE, bytearray(struct.pack("=q4088s", source, key.encode())))
            finally:
                os.close(source)
                os.close(above)
        else:
            run("btrfs", "subvolume", "create", self.place(key))
        self.parents[key] = parent

    def mount(self, key):
        mount_now(self.place(key), self.root(key), "none", ["bind"])
        return self.root(key)

    def remove(self, key):
        del self.parents[key]
        run("btrfs", "subvolume", "delete", self.place(key))


class Copy(Rival):
    """What containerd's native snapshotter and Docker's vfs do: every file is copied."""

    name = "native (copies all files)"
    copies = 2

    def prepare(self, key, parent=None):
        if parent:
            run("cp", "-a", self.place(parent), self.place(key))
        else:
            self.place(key).mkdir()
        self.parents[key] = parent

    mount = Btrfs.mount


class OnDevices(Rival):
    """What has a block device for each snapshot, with ext4 on it, while it is mounted."""

    def __init__(self, stack, session, directory, content_mib):
        super().__init__(stack, session, directory, content_mib)
        self.shown = {}

    def device(self, key):
        """A snapshot's device; a context manager."""
        raise NotImplementedError

    def mount(self, key):
        with contextlib.ExitStack() as shown:
            mount_now(shown.enter_context(self.device(key)), self.root(key), "ext4", ["noatime"])
            self.shown[key] = shown.pop_all()
        return self.root(key)

    def unmount(self, key):
        unmount(self.root(key))
        self.shown.pop(key).close()


class ImageFile(OnDevices):
    """What snapshotters with one image file for each snapshot have in common."""

    def image_mib(self):
        """Size of the file system in an image file: the content and room for containers' changes."""
        return _filesystem_mib(self.content_mib)

    def make(self, file):
        """A new image file with an empty file system."""
        with open(file, "xb") as image:
            image.truncate(self.image_mib() * MIB)
        run("mkfs.ext4", "-q", "-E", "lazy_itable_init=1,lazy_journal_init=1", file)

    @contextlib.contextmanager
    def device(self, key):
        device = attach(self.place(key))
        try:
            yield device
        finally:
            detach(device)

    def remove(self, key):
        del self.parents[key]
        self.place(key).unlink()


class Blockfile(ImageFile):
    """What containerd's blockfile snapshotter does on a file system without reflink: the image file is copied."""

    name = "blockfile, copied"
    copies = 2

    def prepare(self, key, parent=None):
        if parent:
            run("cp", "--sparse=auto", "--reflink=never", self.place(parent), self.place(key))
        else:
            self.make(self.place(key))
        self.parents[key] = parent


class BlockfileReflink(ImageFile):
    """The same on XFS: the copy shares its blocks."""

    name = "blockfile, reflink"
    filesystems = ("xfs",)
    mkfs = OverlayXfs.mkfs

    def prepare(self, key, parent=None):
        if not parent:
            self.make(self.place(key))
        else:
            with open(self.place(parent), "rb") as source, open(self.place(key), "wb") as target:
                fcntl.ioctl(target.fileno(), FICLONE, source.fileno())
        self.parents[key] = parent


class Qcow2(ImageFile):
    """A qcow2 file with the parent's as its backing file, exported by qemu-storage-daemon."""

    name = QCOW2
    programs = ("qemu-img", "qemu-storage-daemon")

    def prepare(self, key, parent=None):
        if parent:
            make_qcow2(self.place(key), self.image_mib(), self.place(parent))
        else:
            format_qcow2(self.place(key), self.image_mib())
        self.parents[key] = parent

    @contextlib.contextmanager
    def device(self, key):
        with contextlib.ExitStack() as export:
            yield export_qcow2(export, self.place(key), self.at / f"{key}.export", self.image_mib())


class DmThin(OnDevices):
    """What containerd's devmapper snapshotter stands on: the kernel's thin pool, its files beside those that thinsnap's has."""

    name = DM_THIN

    def __init__(self, stack, session, directory, content_mib):
        super().__init__(stack, session, directory, content_mib)
        self.size_mib = _filesystem_mib(content_mib)
        pool = f"{pathlib.Path(directory).name}-containers"
        self.pool = Pool(stack, self.top, pool, 2 * content_mib + 20 * 1024)

    @classmethod
    def missing(cls):
        return super().missing() or missing_dm_thin()

    def prepare(self, key, parent=None):
        # By key, the id of the device.
        self.parents[key] = number = self.pool.create(self.parents[parent] if parent else None)
        if not parent:
            with self.pool.shown(number, self.size_mib) as device:
                run("mkfs.ext4", "-q", "-E", "lazy_itable_init=1,lazy_journal_init=1", device)

    def device(self, key):
        return self.pool.shown(self.parents[key], self.size_mib)

    def commit(self, key, name):
        self.parents[name] = self.parents.pop(key)

    def remove(self, key):
        self.pool.delete(self.parents.pop(key))


class PlainLoop(ImageFile):
    """The limit: an image file that nobody shares; every container is the image itself."""

    name = PLAIN

    def prepare(self, key, parent=None):
        if parent:
            os.link(self.place(parent), self.place(key))
        else:
            self.make(self.place(key))
        self.parents[key] = parent


def _filesystem_mib(content_mib):
    """Size of a container's file system: the content and room for changes."""
    return content_mib * 9 // 8 + 512


def make_qcow2(image, size_mib, backing=None):
    """A qcow2 file with clusters of 64 KiB, thinsnap's size of a block."""
    below = ["-b", backing, "-F", "qcow2"] if backing else []
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=64k", *below, image, f"{size_mib}M")


def format_qcow2(image, size_mib):
    """A qcow2 file with an empty ext4 in it."""
    flat = image.with_suffix(".flat")
    flat.touch()
    os.truncate(flat, size_mib * MIB)
    # Nothing is left to be zeroed while it is mounted.
    run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", flat)
    run("qemu-img", "convert", "-O", "qcow2", "-o", "cluster_size=64k", flat, image)
    flat.unlink()


def export_qcow2(stack, image, mountpoint, size_mib, direct=False):
    """A loop device on qemu-storage-daemon's FUSE export of an image, until the stack unwinds. Not direct where what was
    written is read again: qemu's export (7.2) mixes up the bytes of direct writes that come together."""
    mountpoint.touch()
    stack.callback(mountpoint.unlink)
    daemon = subprocess.Popen(
        ["qemu-storage-daemon",
         "--blockdev", f"driver=file,node-name=file,filename={image},cache.direct=on,aio=io_uring",
         "--blockdev", "driver=qcow2,node-name=disk,file=file,cache.direct=on,discard=unmap",
         "--export", f"type=fuse,id=export,node-name=disk,mountpoint={mountpoint},writable=on"],
        stderr=subprocess.DEVNULL, start_new_session=True)
    stack.callback(daemon.wait, 60)
    stack.callback(daemon.terminate)

    def shown():
        if daemon.poll() is not None:
            raise RuntimeError(f"qemu-storage-daemon ended with {daemon.returncode} on {image}")
        return mountpoint.stat().st_size == size_mib * MIB

    wait_until("qemu-storage-daemon's export", shown)
    device = attach(mountpoint, direct)
    stack.callback(detach, device)
    return device


# thinsnap first: the others take turns with it.
ALL = [Thinsnap, Overlay, OverlayXfs, Btrfs, BlockfileReflink, Blockfile, Copy, Qcow2, DmThin, PlainLoop]
# Those that a virtual machine is for, and what they stand between.
IN_MACHINE = [Thinsnap, Overlay, DmThin, PlainLoop]
SHARING = [Thinsnap, Overlay, OverlayXfs, Btrfs]


def here(session, kinds):
    """Those of `kinds` that run on this machine; the others are marked with the reason."""
    able = []
    for kind in kinds:
        if why := kind.missing():
            session.not_run(kind.name, why)
        else:
            able.append(kind)
    return able


def set_up(stack, session, directory, kinds, content_mib, write_image):
    """{kind: rival} with an image that `write_image(root)` has filled; a rival that fails is marked and left out."""
    made = {}
    for kind in kinds:
        try:
            rival = kind(stack, session, directory, content_mib)
            with rival.layer("image") as root:
                write_image(root)
            made[kind] = rival
        except (RuntimeError, OSError) as error:
            session.failed(kind.name, error)
    return made


def take_turns(session, made, steps, work):
    """Does `work(rival, …)` for each of {step: (kind, …)}, in their order, of the rivals that are there."""
    for step, (kind, *rest) in steps.items():
        if kind in made:
            session.step(step, functools.partial(work, made[kind], *rest), kind.name)


def groups(kinds, content_mib, budget_mib):
    """Splits rivals into groups whose disks fit `budget_mib` together; thinsnap is in each, so that each takes turns with it."""
    ours, *others = kinds
    rest = [[]]
    for kind in others:
        sizes = sum(other.disk_mib(content_mib) for other in [ours, *rest[-1], kind])
        if rest[-1] and sizes > budget_mib:
            rest.append([])
        rest[-1].append(kind)
    return [[ours, *group] for group in rest]


def space_mib(kinds, content_mib, budget_mib):
    """Room that the largest group needs."""
    return max(sum(kind.disk_mib(content_mib) for kind in group) for group in groups(kinds, content_mib, budget_mib))
