"""Containers that change files of their image: on the kernel's dm-thin and on the embedded engine, in a virtual machine."""

import dataclasses

from . import first_write, overwrites, workloads
from .dm_thin import DM_THIN
from .in_machine import measure_in_machine, table_of
from .rivals import PLAIN, Overlay

SECTION = "versus-containers"
TITLE = "Containers beside dm-thin (in a virtual machine)"
ABOUT = """The first change of a file, random overwrites and programs' work, smaller than above, in a machine of Debian's kernel 6.12, which has
dm-thin: ext4 on thin devices as dmsetup sets them up, which is what containerd's devmapper snapshotter gives containers, beside the
embedded engine, overlayfs on ext4 and a plain loop file. A dm-thin container is made and taken away by starting dmsetup, as that
snapshotter does. On a host without KVM all of it is emulated: ratios mean something, times do not."""
PARTS = {"first_write": first_write, "overwrites": overwrites, "workloads": workloads}
TABLES = {
    table_of(module, name): dataclasses.replace(
        table, title=f"{table.title}, in the virtual machine", baselines=(DM_THIN, Overlay.name, PLAIN))
    for module in PARTS.values() for name, table in module.TABLES.items()}
BUDGET = {"budget_mib": 36 << 10}
WORK = {"log_mib": 64, "appends": 50, "rows": 20_000, "transactions": 50, "files": 1000, "model_mib": 256, "tensor_mib": 2}
SIZES = {
    "full": {
        "first_write": {"sizes_mib": [1, 64, 512], "repeats": 3, **BUDGET},
        "overwrites": {"size_mib": 256, "count": 200, "repeats": 3, **BUDGET},
        "workloads": {**WORK, "repeats": 3, **BUDGET}},
    "quick": {
        "first_write": {"sizes_mib": [1, 128], "repeats": 1, **BUDGET},
        "overwrites": {"size_mib": 64, "count": 50, "repeats": 1, **BUDGET},
        "workloads": {**WORK, "repeats": 1, **BUDGET}},
    "tiny": {name: module.SIZES["tiny"] for name, module in PARTS.items()},
}


def space_mib(**_):
    """Room for what the sparse disk comes to hold."""
    return 12 << 10


def measure(session, **options):
    """One boot of the machine, in which the stacks take turns."""
    measure_in_machine(session, {PARTS[name]: values for name, values in options.items()})
