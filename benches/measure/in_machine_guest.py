"""Runs inside the virtual machine: sections of the benchmark, on dm-thin, on the embedded engine and on what these stand between.

    in_machine_guest.py SHARED

SHARED/order.json says what is to be done (in_machine.py writes it); the samples go to SHARED/samples.json. Everything
else stands on the machine's disk, which is gone with it.
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from measure import device_io, first_write, overwrites, rivals, workloads
from measure.machine import run
from measure.session import Session

DISK = pathlib.Path("/dev/disk-by-name/work")
WORK = pathlib.Path("/run/work")
KINDS = {
    device_io: [device_io.Plain, device_io.DmThin, device_io.Ours, device_io.Ublk, device_io.Qcow2],
    first_write: rivals.IN_MACHINE, overwrites: rivals.IN_MACHINE, workloads: rivals.IN_MACHINE}


def main():
    """Reads the order, measures, writes what was found."""
    shared = pathlib.Path(sys.argv[1])
    order = json.loads((shared / "order.json").read_text())
    run("mkfs.ext4", "-q", DISK)
    WORK.mkdir()
    run("mount", "-o", "noatime", DISK, WORK)
    found = {}
    for module, kinds in KINDS.items():
        if (options := order["sections"].get(module.SECTION)) is not None:
            session = Session(module.SECTION, pathlib.Path(order["thinsnap"]), WORK, "embedded", shared)
            module.measure(session, **options, kinds=kinds)
            if session.absent:
                raise RuntimeError(f"not measured: {session.absent}")
            found[module.SECTION] = [vars(sample) for sample in session.samples]
    (shared / "samples.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
