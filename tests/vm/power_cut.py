#!/usr/bin/env python3
"""Cuts the power of a machine in which containers write to a thinsnap pool, again and again (`make power-cut-vm`).

  tests/vm/power_cut.py [--rounds 20] [--kernel 6.12] [--engine embedded|kernel|both] [--seed N] [--keep FILE] --thinsnap PROGRAM

Each round boots a guest on one disk (thinsnap's root on ext4, the pool's files in it), lets power_cut_load.py judge what
the last cut left and start its load, and kills QEMU at a random moment. That alone would lose only what the guest held
in its memory: a disk's own cache would survive. So every write and flush is logged on the host, and the disk of the
next round is made of the log: all that was flushed, and of the writes after the last flush none, some or all.

With `both` the dice say in each round which engine serves the pool: what one was doing when the power went, the other
must open.
"""

import argparse
import os
import random
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import guest
import kernel
import run

DISK_BYTES = 4 << 30
MARKS_BYTES = 16 << 20
MARKS_OFFSET = DISK_BYTES - MARKS_BYTES
ROUND_SECONDS = 900
LOAD_SECONDS = 15.0

# The log as dm-log-writes has it: a head, then entries, each in sectors of its own and followed by its data.
LOG_MAGIC = 0x6A736677736872
SECTOR = 512
FLUSH, FUA, DISCARD = 1, 2, 4


def entries(log):
    """(flags, first byte, data) of each entry, as far as the log is whole: it ends where QEMU was killed."""
    magic, _version, _count, sector = struct.unpack("<QQQI", log.read(28))
    if magic != LOG_MAGIC or sector != SECTOR:
        raise kernel.Failed("QEMU's log of the disk is not in the format that is known here")
    log.seek(SECTOR)
    while True:
        head = log.read(SECTOR)
        if len(head) < SECTOR:
            return
        first, sectors, flags, _length = struct.unpack("<QQQQ", head[:32])
        if flags & ~(FLUSH | FUA):
            raise kernel.Failed(f"the log has an entry with flags {flags}: the disk was to take writes and flushes only")
        if not sectors and not flags:
            return
        data = log.read(sectors * SECTOR)
        if len(data) < sectors * SECTOR:
            return
        yield flags, first * SECTOR, data


def lose_power(disk, log, dice):
    """Brings the disk to a state in which the cut may have left it; what was lost, in words."""
    with open(log, "rb") as file:
        whole = list(entries(file))
    # Any moment of the log is one at which the power may have gone. Just before a flush most is at stake.
    end = dice.randrange(len(whole) // 2, len(whole)) + 1
    flushes = [n for n, (flags, _, _) in enumerate(whole) if flags & FLUSH]
    if dice.random() < 0.7:
        end = next((n for n in flushes if n >= end), end)
    covered = max((n for n in flushes if n < end), default=0)
    kept_share = dice.choice([0.0, 0.5, 0.9])
    lost = 0
    with open(disk, "r+b") as to:
        for n, (flags, offset, data) in enumerate(whole[:end]):
            if n < covered or flags & FUA or not data or dice.random() < kept_share:
                to.seek(offset)
                to.write(data)
            else:
                lost += 1
    unflushed = sum(1 for _, _, data in whole[covered:end] if data)
    return f"after {end} of {len(whole)} writes and flushes, {lost} of {unflushed} unflushed writes lost"


def make_disk(path):
    os.truncate(path, DISK_BYTES)
    command = ["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,nodiscard", str(path), f"{MARKS_OFFSET // 1024}k"]
    environment = {**os.environ, "PATH": guest.with_sbin(os.environ.get("PATH", ""))}
    made = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment)
    if made.returncode != 0:
        raise kernel.Failed(f"mkfs.ext4 of the pool's disk: {made.stderr}")


class Heard:
    """What the guest said."""

    def __init__(self):
        self.text = b""

    def write(self, data):
        self.text += data

    def flush(self):
        pass


class Nameless:
    """A file that is gone with this process, however it ends."""

    def __init__(self):
        self.file = tempfile.TemporaryFile(dir=os.environ.get("TMPDIR", "/var/tmp"))
        self.path = Path(f"/proc/{os.getpid()}/fd/{self.file.fileno()}")


def one_round(number, options, chosen, accelerator, disk, dice):
    """Boots, judges, loads, cuts; the disk as the cut leaves it."""
    # What the guest itself does to the disk is thrown away: the next one is made of the log.
    before, log = Nameless(), Nameless()
    subprocess.run(["cp", "--sparse=always", disk.path, before.path], check=True)
    heard = Heard()
    engine = dice.choice(["embedded", "kernel"]) if options.engine == "both" else options.engine
    load = [sys.executable, str(kernel.HERE / "power_cut_load.py"), str(options.thinsnap), str(MARKS_OFFSET), engine]
    begun = time.monotonic()
    outcome = guest.run(
        guest.Run(
            command=load,
            kernel=chosen,
            accelerator=accelerator,
            disks=[guest.Disk("pool", disk.path, log.path)],
            timeout=ROUND_SECONDS,
            cut_mark=b"loading\n",
            cut_after=1.0 + dice.random() * LOAD_SECONDS,
            out=heard,
        )
    )
    said = heard.text.decode(errors="replace").strip()
    if outcome.status is not None:
        if options.keep:
            subprocess.run(["cp", "--sparse=always", disk.path, options.keep], check=True)
        raise kernel.Failed(f"round {number}, {engine}: status {outcome.status}: {said}")
    lost = lose_power(before.path, log.path, dice)
    first = said.splitlines()[0]
    print(f"round {number}, {engine}: {first}; cut {lost}; {time.monotonic() - begun:.0f} s", flush=True)
    return before


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--kernel", default="6.12", choices=kernel.SUITES)
    parser.add_argument("--engine", default="embedded", choices=["embedded", "kernel", "both"])
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--keep", type=Path, metavar="FILE", help="for the disk that a round failed on, as the cut left it")
    parser.add_argument("--thinsnap", type=Path, required=True)
    options = parser.parse_args()
    options.thinsnap = options.thinsnap.resolve()
    guest.stop_on_signals()
    dice = random.Random(options.seed)
    print(f"{options.rounds} power cuts on Linux {options.kernel}, engine {options.engine}, seed {options.seed}", flush=True)
    tools = run.cache() / "thin-tools-1.1/usr/sbin"
    os.environ["THIN_TOOLS_11"] = str(tools)
    try:
        chosen = kernel.prepare(options.kernel, run.cache())
        accelerator = guest.accelerator(chosen, run.cache())
        disk = Nameless()
        make_disk(disk.path)
        # The last round is there to judge the last cut.
        for number in range(options.rounds + 1):
            disk = one_round(number, options, chosen, accelerator, disk, dice)
        print(f"{options.rounds} power cuts: the pool opened, and every promise was kept, after each of them")
        return 0
    except kernel.Failed as error:
        guest.say(str(error))
        return 1
    except guest.Stopped as stopped:
        return 128 + stopped.number


if __name__ == "__main__":
    sys.exit(main())
