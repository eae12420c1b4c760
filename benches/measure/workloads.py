"""What programs do with files of their image: append to a log, change a database, own a tree, patch a model."""

import contextlib
import functools
import json
import os
import random
import sqlite3
import time

from . import rivals
from .machine import MIB, drop_caches, run
from .session import Sample, Table
from .thinsnap import fill
from .trees import archive_of_small_files

SECTION = "workloads"
TITLE = "What programs do with files of their image"
ABOUT = """Each in a fresh container, caches dropped before, until the changes are durable. Log: 4 KiB are appended to a large file and made
durable, again and again. SQLite: transactions that change one row each of a database in the image. chown -R: of a tree of small
files. Model: a file as safetensors lays it out; the header and eight tensors of it are written anew."""
LOG, SQLITE, CHOWN, MODEL = "append to a log", "SQLite transactions", "chown -R", "patch a model"
TABLES = {
    "time": Table("Programs' work, until durable", "ms"),
    "written": Table("Bytes written to the disk by programs' work", "bytes"),
}
SIZES = {
    "full": {"log_mib": 1024, "appends": 100, "rows": 1_000_000, "transactions": 100, "files": 20000, "model_mib": 5120,
             "tensor_mib": 4, "repeats": 3, "budget_mib": 36 << 10},
    "quick": {"log_mib": 256, "appends": 50, "rows": 200_000, "transactions": 50, "files": 2000, "model_mib": 512,
              "tensor_mib": 2, "repeats": 1, "budget_mib": 24 << 10},
    "tiny": {"log_mib": 8, "appends": 3, "rows": 1000, "transactions": 3, "files": 100, "model_mib": 16,
             "tensor_mib": 1, "repeats": 1, "budget_mib": 16 << 10},
}
KINDS = [rivals.Thinsnap, rivals.Overlay, rivals.OverlayXfs, rivals.Btrfs, rivals.BlockfileReflink, rivals.Qcow2,
         rivals.DmThin]
TENSORS = 8


def _content_mib(log_mib, rows, files, model_mib, **_):
    # A row takes about 120 bytes, a small file with its inode about 8 KiB.
    return log_mib + model_mib + rows // 8000 + files // 64 + 64


def space_mib(budget_mib, **size):
    """Free room that it needs."""
    return rivals.space_mib(KINDS, _content_mib(**size), budget_mib) + size["rows"] // 8000 + size["files"] // 64


def measure(session, repeats, budget_mib, kinds=KINDS, **size):
    """The rivals take turns within each repeat of each piece of work."""
    kinds = rivals.here(session, kinds)
    works = {
        LOG: lambda root: _append(root / "log", size["appends"]),
        SQLITE: lambda root: _transactions(root / "database", size["rows"], size["transactions"]),
        CHOWN: lambda root: _chown(root / "tree"),
        MODEL: lambda root: _patch(root / "model", size["model_mib"], size["tensor_mib"]),
    }
    content_mib = _content_mib(**size)
    for number, group in enumerate(rivals.groups(kinds, content_mib, budget_mib)):
        steps = {
            f"{row}, {kind.name}, {number}.{n}": (kind, row, work, f"{row.split()[0]}-{n}")
            for row, work in works.items() for n in range(repeats) for kind in group}
        if session.all_done(steps):
            continue
        with contextlib.ExitStack() as stack:
            directory = stack.enter_context(session.scratch())
            archive_of_small_files(directory / "tree.tar", size["files"])
            _database(directory / "database", size["rows"])
            made = rivals.set_up(
                stack, session, directory, group, content_mib, functools.partial(_image, directory, size))
            rivals.take_turns(session, made, steps, _repeat)


def _image(directory, size, root):
    fill(root / "log", size["log_mib"] * MIB)
    run("cp", directory / "database", root / "database")
    run("tar", "-x", "--no-same-owner", "-f", directory / "tree.tar", "-C", root)
    _model(root / "model", size["model_mib"], size["tensor_mib"])


def _repeat(rival, row, work, key):
    with rival.container(key) as root:
        drop_caches()
        before = rival.disk.bytes_written()
        start = time.perf_counter()
        work(root)
        milliseconds = (time.perf_counter() - start) * 1000
        os.sync()
        written = rival.disk.bytes_written() - before
    return [Sample("time", row, rival.name, milliseconds), Sample("written", row, rival.name, written)]


def _append(log, count):
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    try:
        for _ in range(count):
            os.write(file, b"l" * 4096)
            os.fdatasync(file)
    finally:
        os.close(file)


def _database(path, rows):
    """A table of `rows` rows of 100 bytes."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE items (id INTEGER PRIMARY KEY, words BLOB)")
        database.executemany("INSERT INTO items VALUES (?, randomblob(100))", ((n,) for n in range(rows)))
        database.commit()


def _transactions(path, rows, count):
    dice = random.Random(rows)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA synchronous = FULL")
        for _ in range(count):
            database.execute("UPDATE items SET words = randomblob(100) WHERE id = ?", (dice.randrange(rows),))


def _chown(tree):
    run("chown", "-R", "1234:1234", tree)
    _sync_filesystem(tree)


def _sync_filesystem(path):
    run("sync", "--file-system", path)


def _model(path, size_mib, tensor_mib):
    """Eight bytes of length, a JSON header of that length, tensors of equal size."""
    header = _header(size_mib, tensor_mib, "base")
    fill(path, size_mib * MIB)
    with open(path, "r+b") as file:
        file.write(len(header).to_bytes(8, "little") + header)


def _header(size_mib, tensor_mib, words):
    count = (size_mib - 1) // tensor_mib
    tensors = {
        f"layer.{n}.weight": {
            "dtype": "F16", "shape": [tensor_mib * MIB // 2], "data_offsets": [n * tensor_mib * MIB, (n + 1) * tensor_mib * MIB]}
        for n in range(count)}
    return json.dumps({"__metadata__": {"name": words}, **tensors}).encode()


def _patch(path, size_mib, tensor_mib):
    """The header and eight tensors, spread over the file, written in place and made durable."""
    file = os.open(path, os.O_RDWR)
    try:
        length = int.from_bytes(os.pread(file, 8, 0), "little")
        old = json.loads(os.pread(file, length, 8))
        header = _header(size_mib, tensor_mib, "next")
        assert len(header) == length
        os.pwrite(file, header, 8)
        tensors = sorted((entry["data_offsets"] for name, entry in old.items() if name != "__metadata__"))
        for n in range(TENSORS):
            start, end = tensors[n * len(tensors) // TENSORS]
            os.pwrite(file, os.urandom(end - start), 8 + length + start)
        os.fsync(file)
    finally:
        os.close(file)
