"""Runs inside the virtual machine: the jobs of device_io on dm-thin, on the embedded engine and on a plain loop file.

    versus_device_guest.py SHARED

SHARED/order.json says what is to be done (versus_device.py writes it); the samples go to SHARED/samples.json. Everything
else stands on the machine's disk, which is gone with it.
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from measure import device_io
from measure.machine import run
from measure.session import Session

DISK = pathlib.Path("/dev/disk-by-name/work")
WORK = pathlib.Path("/run/work")


def main():
    """Reads the order, measures, writes what was found."""
    shared = pathlib.Path(sys.argv[1])
    order = json.loads((shared / "order.json").read_text())
    run("mkfs.ext4", "-q", DISK)
    WORK.mkdir()
    run("mount", "-o", "noatime", DISK, WORK)
    session = Session(device_io.SECTION, pathlib.Path(order["thinsnap"]), WORK, "embedded", shared)
    device_io.measure(session, **order["options"], kinds=[device_io.Plain, device_io.DmThin, device_io.Ours])
    if session.absent:
        raise RuntimeError(f"not measured: {session.absent}")
    (shared / "samples.json").write_text(json.dumps([vars(sample) for sample in session.samples]))


if __name__ == "__main__":
    main()
