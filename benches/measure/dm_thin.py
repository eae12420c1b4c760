"""A thin pool of the kernel's own dm-thin, set up with dmsetup: no service, no program of thinsnap's."""

import contextlib
import itertools
import pathlib
import subprocess

from .machine import MIB, attach, detach, load_module, missing, run

DM_THIN = "dm-thin (dmsetup)"
METADATA_MIB = 128
SECTOR, BLOCK_SECTORS = 512, 128


def missing_dm_thin():
    """Why this machine cannot have such a pool; None if it can."""
    if why := missing(["dmsetup"]):
        return why
    load_module("dm_thin_pool")
    targets = subprocess.run(["dmsetup", "targets"], capture_output=True, text=True, check=False).stdout
    return None if "thin-pool" in targets else "this kernel has no dm-thin; in a virtual machine: make bench-versus"


class Pool:
    """A pool of `size_mib` on sparse files in `directory`, behind loop devices with direct I/O; gone when the stack unwinds.
    Its name begins with this run's own, by which `machine.sweep` finds what a killed run left. New blocks are zeroed, as the
    kernel does unless told otherwise: an old owner's bytes are shown to nobody."""

    def __init__(self, stack, directory, name, size_mib):
        devices = []
        for part, mib in {"metadata": METADATA_MIB, "data": size_mib}.items():
            file = directory / f"dm-thin.{part}"
            run("truncate", "-s", f"{mib}M", file)
            devices.append(attach(file))
            stack.callback(detach, devices[-1])
        self.name = name
        sectors = size_mib * MIB // SECTOR
        run("dmsetup", "create", self.name, "--table", f"0 {sectors} thin-pool {devices[0]} {devices[1]} {BLOCK_SECTORS} 0")
        stack.callback(run, "dmsetup", "remove", "--retry", self.name)
        self._ids = itertools.count(1)

    def create(self, origin=None):
        """The id of a new device, or of a snapshot of one that is not shown."""
        number = next(self._ids)
        self._message("create_thin", number) if origin is None else self._message("create_snap", number, origin)
        return number

    def delete(self, number):
        """Deletes a device that is not shown."""
        self._message("delete", number)

    @contextlib.contextmanager
    def device(self, size_mib, origin=None, shown=True):
        """(path or None, id) of a new device, or of a snapshot of one that is not shown; deleted afterwards."""
        number = self.create(origin)
        try:
            if shown:
                with self.shown(number, size_mib) as path:
                    yield path, number
            else:
                yield None, number
        finally:
            self.delete(number)

    @contextlib.contextmanager
    def shown(self, number, size_mib):
        """The path of a device's node, while it is there."""
        name = f"{self.name}-{number}"
        run("dmsetup", "create", name, "--table", f"0 {size_mib * MIB // SECTOR} thin /dev/mapper/{self.name} {number}")
        try:
            yield pathlib.Path("/dev/mapper") / name
        finally:
            run("dmsetup", "remove", "--retry", name)

    def _message(self, *words):
        run("dmsetup", "message", self.name, "0", " ".join(map(str, words)))
