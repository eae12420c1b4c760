"""One run of the benchmark: what has been measured so far, on disk at once, so that an interrupted run goes on.

A section's `measure` gets a Session and hands its work over in steps. A step that an interrupted run has done already is
not done again: its samples come from the journal.
"""

import fcntl
import gzip
import hashlib
import json
import os
import pathlib
import shutil
import sys
import time
from dataclasses import dataclass, field

from .machine import SCRATCH_PREFIX, scratch


@dataclass(frozen=True)
class Table:
    """A table of the report: a quantity of several rows, for several stacks (or other columns)."""

    title: str
    unit: str                     # ms, µs, s, IOPS, MiB/s, bytes, KiB, CPU s/GiB
    higher: bool = False          # is better
    columns: str = "stack"        # what the columns are
    baselines: tuple = ()         # stacks that thinsnap is divided by
    x: str = ""                   # what the rows' number is; with it the plot is lines over x, else bars
    tail: bool = False            # cells tell the 99th percentile instead of the extremes


@dataclass
class Sample:
    """One measured value. `x`: the row's number. `bins`: {upper bound in ns: count}, latencies of single requests.
    `raw`: what the measuring program said, kept beside the figures."""

    table: str
    row: str
    stack: str
    value: float
    x: float | None = None
    bins: dict = field(default_factory=dict)
    raw: dict | None = None


class Busy(Exception):
    """Another run measures this directory's disk."""


class Session:
    """Where a section measures and what it has measured."""

    def __init__(self, section, thinsnap, directory, engine, unfinished):
        self.section = section
        self.thinsnap = thinsnap
        self.directory = pathlib.Path(directory)
        self.engine = engine
        self.samples = []
        self.absent = []
        self._failed = set()
        self._journal = unfinished / f"{section}.jsonl"
        self._done = self._read()

    def _read(self):
        """Steps by name. The last line may be torn: that step is done again."""
        done = {}
        if self._journal.exists():
            good = 0
            for line in self._journal.read_bytes().splitlines(keepends=True):
                if not line.endswith(b"\n"):
                    break
                entry = json.loads(line)
                done[entry["step"]] = [Sample(**sample) for sample in entry["samples"]]
                good += len(line)
            os.truncate(self._journal, good)
        return done

    def scratch(self):
        """A directory on the disk that is measured; gone afterwards. A context manager."""
        return scratch(self.directory)

    def all_done(self, steps):
        """True if none of these steps has to be done: then nothing need be set up for them. Takes their samples."""
        if not all(step in self._done for step in steps):
            return False
        for step in steps:
            self.samples.extend(self._done[step])
        return True

    def step(self, name, work, rival=None):
        """Does a piece of work that returns samples, once, and writes down what it found before the next begins. A rival that
        fails is marked and left out from there on; without one named, a failure ends the run."""
        if name not in self._done:
            if rival in self._failed:
                return
            try:
                samples = work()
            except (RuntimeError, OSError) as error:
                self.failed(rival, error)
                return
            with open(self._journal, "a", encoding="utf-8") as journal:
                journal.write(json.dumps({"step": name, "samples": [vars(sample) for sample in samples]}) + "\n")
                journal.flush()
                os.fsync(journal.fileno())
            self._done[name] = samples
            shown = ", ".join(f"{sample.value:,.4g}" for sample in samples[:4])
            say(f"{self.section}: {name}: {shown}")
        self.samples.extend(self._done[name])

    def failed(self, rival, error):
        """Marks a rival that failed, for its rows; raises the error again if it is nobody's or thinsnap's own."""
        if rival in (None, "thinsnap"):
            raise error
        self._failed.add(rival)
        self.not_run(rival, f"it failed: {' '.join(str(error).split())[-300:]}")

    def not_run(self, stack, why, row=""):
        """Says of a stack (or one row of it) that it was not measured, and why."""
        entry = {"stack": stack, "row": row, "why": why}
        if entry not in self.absent:
            self.absent.append(entry)
            say(f"{self.section}: {stack}{row and f', {row}'}: not run: {why}")

    def results(self):
        """[{table, row, stack, x, values, bins}]: the samples of one cell together, in the order of measuring."""
        cells = {}
        for sample in self.samples:
            key = (sample.table, sample.row, sample.stack)
            cell = cells.setdefault(key, {
                "table": sample.table, "row": sample.row, "stack": sample.stack, "x": sample.x, "values": [], "bins": {}})
            cell["values"].append(round(sample.value, 6))
            for bound, count in sample.bins.items():
                cell["bins"][str(bound)] = cell["bins"].get(str(bound), 0) + count
        return list(cells.values())

    def write_raw(self, directory):
        """What the measuring programs said, one line of JSON for each time one ran: SECTION.jsonl.gz in `directory`."""
        raw = [sample.raw for sample in self.samples if sample.raw is not None]
        file = directory / f"{self.section}.jsonl.gz"
        file.unlink(missing_ok=True)
        if raw:
            directory.mkdir(exist_ok=True)
            # No time in it: the same figures make the same file.
            with open(file, "wb") as out, gzip.GzipFile("", "wb", mtime=0, fileobj=out) as packed:
                packed.writelines(json.dumps(entry).encode() + b"\n" for entry in raw)


class Unfinished:
    """What an interrupted run has done: a directory of journals, valid for the same program and the same question."""

    def __init__(self, raw, thinsnap, question, fresh):
        self.directory = raw / "unfinished"
        self._note = self.directory / "run.json"
        identity = {"thinsnap": _digest(thinsnap), "question": question}
        note = json.loads(self._note.read_text()) if self._note.exists() else {}
        self.goes_on = note.get("identity") == identity and not fresh
        if note and not self.goes_on:
            say("figures of an interrupted run are thrown away: it was another program or another question")
        if not self.goes_on:
            shutil.rmtree(self.directory, ignore_errors=True)
            self.directory.mkdir(parents=True)
            note = {"identity": identity, "finished": []}
        self.finished = note["finished"]
        self._identity = identity
        self._write()

    def finish(self, section):
        """A section's figures are in place."""
        self.finished.append(section)
        self._write()

    def remove(self):
        """Everything is in place."""
        shutil.rmtree(self.directory)

    def _write(self):
        write_file(self._note, json.dumps({"identity": self._identity, "finished": self.finished}) + "\n")


def _digest(file):
    with open(file, "rb") as program:
        return hashlib.file_digest(program, "sha256").hexdigest()


def write_file(path, text):
    """Writes a file whole or not at all."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)


def lock(directory):
    """Holds `directory` for this run until the process ends. Errors with Busy if another run has it."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise Busy(f"another run measures in {directory} ({SCRATCH_PREFIX}…)") from error
    return handle


_START = time.monotonic()


def say(text):
    """Progress, on standard error: minutes and seconds since the start, and what was done."""
    elapsed = int(time.monotonic() - _START)
    print(f"[{elapsed // 60:3d}:{elapsed % 60:02d}] {text}", file=sys.stderr, flush=True)
