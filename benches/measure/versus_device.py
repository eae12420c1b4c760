"""fio on thin devices of the kernel's dm-thin and of the embedded engine, over FUSE and over ublk, in a virtual machine, by turns."""

import dataclasses

from . import device_io
from .dm_thin import DM_THIN
from .in_machine import measure_in_machine
from .rivals import PLAIN, QCOW2

SECTION = "versus-device"
TITLE = "Beside dm-thin, and over ublk (in a virtual machine)"
ABOUT = """The jobs of the section above in a machine of Debian's kernel 6.12, which has dm-thin: a pool as dmsetup sets it up, with blocks
of 64 KiB, beside the embedded engine, a plain loop file and qcow2. (thinsnap's kernel engine is that very dm-thin.) The engine
shows its devices by FUSE and loop devices there, as it chooses on that kernel, and a second time by ublk, as it chooses from Linux
6.16 on. All stand on ext4 on one disk of the machine. On a host without KVM every instruction is emulated, and a switch between
kernel and process costs many times its price: times mean nothing then, and the ratios are the worst case for a process that serves a
device."""

# On the host, whose programs the machine runs; with their Debian packages.
PROGRAMS = {"fio": "fio", "qemu-img": "qemu-utils", "qemu-storage-daemon": "qemu-system-common"}


def _table(table):
    return dataclasses.replace(table, title=f"{table.title}, in the virtual machine", baselines=(DM_THIN, PLAIN, QCOW2))


TABLES = {name: _table(table) for name, table in device_io.TABLES.items()}
SIZES = {
    "full": {"size_mib": 256, "seconds": 1.5, "ramp": 0.5, "repeats": 3},
    "quick": {"size_mib": 64, "seconds": 1, "ramp": 0.2, "repeats": 2},
    "tiny": {"size_mib": 16, "seconds": 0.1, "ramp": 0, "repeats": 1},
}


def space_mib(size_mib, **_):
    """Room for what the sparse disk comes to hold."""
    return device_io.space_mib(size_mib) + 1024


def measure(session, **options):
    """One boot of the machine, in which the stacks take turns."""
    measure_in_machine(session, {device_io: options}, **PROGRAMS)
