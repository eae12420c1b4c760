"""A thinsnap service of this run's own, and the few things the measurements ask of it."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess

from .machine import mount, run, wait_until


# The space of names that the measurements work in; benches/prepare.rs uses the same.
SPACE = "bench"


class Service:
    """`thinsnap serve` on a pool in `directory`, stopped when the stack unwinds."""

    def __init__(self, stack, binary, directory, size):
        self.binary = str(binary)
        self.root = pathlib.Path(directory) / "thinsnap"
        self.socket = self.root / "thinsnap.sock"
        self.root.mkdir()
        self.log = open(self.root / "serve.log", "w")
        stack.callback(self.log.close)
        self.process = subprocess.Popen(
            [self.binary, "serve", "--root", self.root, "--socket", self.socket, "--size", size],
            stdout=self.log, stderr=subprocess.STDOUT)
        stack.callback(self.process.wait)
        stack.callback(self.process.terminate)
        wait_until("the socket of thinsnap serve", self._answers)
        self.host, self.run_dir = self._find_host()
        stack.callback(self.stop)

    def _answers(self):
        if self.process.poll() is not None:
            raise RuntimeError(f"thinsnap serve ended: {(self.root / 'serve.log').read_text()[-2000:]}")
        return self.socket.exists()

    def cli(self, *arguments):
        """Runs the command line against this service; returns what it printed as JSON, if it did."""
        out = run(self.binary, "--socket", self.socket, "--json", *arguments)
        return json.loads(out) if out else None

    def _find_host(self):
        """The process that serves the pool, and its directory in /run: both are this run's to see off."""
        for process in pathlib.Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (process / "cmdline").read_text().split("\0")
                if "pool-host" in words and str(self.root) in " ".join(words):
                    return process, pathlib.Path(words[words.index("--run-dir") + 1])
        raise RuntimeError("the service runs without a pool-host")

    def stop(self):
        """Ends the service and waits until its pool's host, which nobody needs then, has ended too."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=30)
        wait_until("the end of the pool-host", lambda: not self.host.exists())
        shutil.rmtree(self.run_dir)

    def prepare(self, key, parent=None, space=SPACE):
        """A new active snapshot; returns what to mount: fs, source, options."""
        parents = ["--parent", parent] if parent else []
        return self.cli("snapshot", "prepare", "--space", space, key, *parents)["mounts"][0]

    def commit(self, key, name, space=SPACE):
        """Turns an active snapshot into a committed one."""
        self.cli("snapshot", "commit", "--space", space, key, name)

    def remove(self, key, space=SPACE):
        """Removes a snapshot."""
        self.cli("snapshot", "rm", "--space", space, key)

    def mounted(self, stack, key, target, parent=None):
        """A new active snapshot, mounted at `target` and removed when the stack unwinds."""
        device = self.prepare(key, parent)
        stack.callback(self.remove, key)
        return mount_prepared(stack, device, target)


def mount_prepared(stack, device, target):
    """Mounts what Prepare answered, as it says, until the stack unwinds."""
    return mount(stack, device["source"], target, device["fs"], ",".join(device["options"]))


def fill(path, size):
    """Writes `size` bytes that no layer below can compress or share, durably."""
    chunk = os.urandom(1 << 20)
    with open(path, "wb") as file:
        left = size
        while left > 0:
            # Each piece differs, so that equal blocks cannot flatter anybody.
            piece = os.urandom(64) + chunk[64:]
            left -= file.write(piece[:left])
        os.fsync(file.fileno())
