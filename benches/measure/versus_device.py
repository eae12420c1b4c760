"""fio on a thin device of the kernel's dm-thin and on one of the embedded engine, in a virtual machine, by turns."""

import dataclasses
import json
import pathlib
import sys

from . import device_io
from .dm_thin import DM_THIN
from .machine import run
from .rivals import PLAIN
from .session import Sample
from .versus import KERNEL, TOP, why_no_machine

GUEST = pathlib.Path(__file__).with_name("versus_device_guest.py")

SECTION = "versus-device"
TITLE = "Beside dm-thin (in a virtual machine)"
ABOUT = """The jobs of the section above in a machine of Debian's kernel 6.12, which has dm-thin: a pool as dmsetup sets it up, with blocks
of 64 KiB, beside the embedded engine, which serves by FUSE there, and a plain loop file. (thinsnap's kernel engine is that very
dm-thin.) All stand on ext4 on one disk of the machine. On a host without KVM every instruction is emulated, and a switch between
kernel and process costs many times its price: times mean nothing then, and the ratios are the worst case for a process that serves a
device."""


def _table(table):
    return dataclasses.replace(table, title=f"{table.title}, in the virtual machine", baselines=(DM_THIN, PLAIN))


TABLES = {name: _table(table) for name, table in device_io.TABLES.items()}
SIZES = {
    "full": {"size_mib": 256, "seconds": 1.5, "ramp": 0.5, "repeats": 3},
    "quick": {"size_mib": 64, "seconds": 1, "ramp": 0.2, "repeats": 2},
    "tiny": {"size_mib": 16, "seconds": 0.1, "ramp": 0, "repeats": 1},
}
DISK_MIB = 24 << 10


def space_mib(size_mib, **_):
    """Room for what the sparse disk comes to hold."""
    return device_io.space_mib(size_mib) + 1024


def measure(session, **options):
    """One boot of the machine, in which the stacks take turns."""
    if why := why_no_machine(fio="fio"):
        session.not_run(DM_THIN, why)
        return
    session.step("all", lambda: [Sample(**sample) for sample in _samples(session, options)], DM_THIN)


def _samples(session, options):
    """What the guest wrote."""
    with session.scratch() as shared:
        disk = shared / "disk"
        run("truncate", "-s", f"{DISK_MIB}M", disk)
        (shared / "order.json").write_text(json.dumps({"thinsnap": str(session.thinsnap.resolve()), "options": options}))
        run(sys.executable, TOP / "tests" / "vm" / "run.py", "--kernel", KERNEL, "--timeout", "1800", "--share", shared,
            "--disk", f"work={disk}", "--", sys.executable, GUEST, shared)
        return json.loads((shared / "samples.json").read_text())
