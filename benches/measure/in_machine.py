"""Sections of the benchmark in a virtual machine whose kernel has dm-thin: one boot, in which the stacks take turns."""

import json
import pathlib
import shutil
import sys

from .dm_thin import DM_THIN
from .machine import run
from .session import Sample

TOP = pathlib.Path(__file__).resolve().parent.parent.parent
GUEST = pathlib.Path(__file__).with_name("in_machine_guest.py")
KERNEL = "6.12"
# What any such machine needs of the host, with the Debian packages.
MACHINE = {"qemu-system-x86_64": "qemu-system-x86", "busybox": "busybox-static", "dmsetup": "dmsetup"}
DISK_MIB = 48 << 10


def why_no_machine(**programs):
    """Why there can be no virtual machine with these programs of the host; None if it can."""
    if not (TOP / "tests" / "vm" / "run.py").exists():
        return "the virtual machine is in the source tree: make bench-versus there"
    missing = [package for program, package in {**MACHINE, **programs}.items() if shutil.which(program) is None]
    return f"apt-get install {' '.join(missing)}" if missing else None


def measure_in_machine(session, sections, **programs):
    """Does {module of a section: options} there; marks dm-thin if there can be no machine with these programs of the host.
    With several modules a table is named as `table_of` says."""
    if why := why_no_machine(**programs):
        session.not_run(DM_THIN, why)
        return

    def work():
        found = _samples(session, sections)
        name = table_of if len(sections) > 1 else lambda _, table: table
        return [
            Sample(**sample | {"table": name(module, sample["table"])})
            for module in sections for sample in found[module.SECTION]]

    session.step("all", work, DM_THIN)


def table_of(module, name):
    """A name for a module's table that no other module's has."""
    return f"{module.SECTION}, {name}"


def _samples(session, sections):
    """What the guest wrote: by section."""
    with session.scratch() as shared:
        disk = shared / "disk"
        run("truncate", "-s", f"{DISK_MIB}M", disk)
        order = {"thinsnap": str(session.thinsnap.resolve()), "sections": {
            module.SECTION: options for module, options in sections.items()}}
        (shared / "order.json").write_text(json.dumps(order))
        run(sys.executable, TOP / "tests" / "vm" / "run.py", "--kernel", KERNEL, "--timeout", "1800", "--share", shared,
            "--disk", f"work={disk}", "--", sys.executable, GUEST, shared)
        return json.loads((shared / "samples.json").read_text())
