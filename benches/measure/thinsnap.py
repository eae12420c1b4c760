"""A thinsnap service of this run's own, and a caller that asks it for snapshots as containerd does."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess

from .machine import run, wait_until

# The space of names that the measurements work in.
SPACE = "bench"
# Size of a container's file system if nobody asks for another.
CONTAINER_MIB = 10 << 10


class Service:
    """`thinsnap serve` on a pool in `directory`, with a caller; both end when the stack unwinds. Containers have file systems
    of thinsnap's own default size, or of `container_mib` if that is more. The pool's data stand in `data`, a file that is
    there, or in a new sparse one. `export`: how devices are shown, if not as thinsnap chooses."""

    def __init__(self, stack, binary, directory, size="100G", engine="embedded", container_mib=0, data=None, export=None):
        self.binary = str(binary)
        self.root = pathlib.Path(directory) / "thinsnap"
        self.socket = self.root / "thinsnap.sock"
        self.root.mkdir()
        self.log = open(self.root / "serve.log", "w", encoding="utf-8")
        stack.callback(self.log.close)
        config = self.root.with_suffix(".toml")
        config.write_text(f'[default]\nsize = "{container_mib}M"\n' if container_mib > CONTAINER_MIB else "")
        self.process = subprocess.Popen(
            [self.binary, "serve", "--config", config, "--root", self.root, "--socket", self.socket, "--size", size,
             "--engine", engine, *(["--data-device", data] if data else []), *(["--export", export] if export else [])],
            stdout=self.log, stderr=subprocess.STDOUT, start_new_session=True)
        stack.callback(self.process.wait)
        stack.callback(self.process.terminate)
        wait_until("the socket of thinsnap serve", self._answers)
        self.host, self.run_dir = self._find_host()
        stack.callback(self.stop)
        self.caller = subprocess.Popen(
            [self.binary, "bench-caller", "--socket", self.socket, "--space", SPACE],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
        stack.callback(self._end_caller)

    def _answers(self):
        if self.process.poll() is not None:
            raise RuntimeError(f"thinsnap serve ended: {(self.root / 'serve.log').read_text()[-2000:]}")
        return self.socket.exists()

    def _find_host(self):
        """The process that serves the pool, and its directory in /run: both are this run's to see off. Neither with the
        kernel engine."""
        for process in pathlib.Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (process / "cmdline").read_text().split("\0")
                if "pool-host" in words and str(self.root) in " ".join(words):
                    return process, pathlib.Path(words[words.index("--run-dir") + 1])
        return None, None

    def _end_caller(self):
        self.caller.stdin.close()
        self.caller.stdout.close()
        self.caller.terminate()
        self.caller.wait()

    def stop(self):
        """Ends the service and waits until its pool's host, which nobody needs then, has ended too."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=60)
        if self.host is not None:
            wait_until("the end of the pool-host", lambda: not self.host.exists(), 60)
            shutil.rmtree(self.run_dir, ignore_errors=True)

    def at_once(self, calls):
        """Makes calls at the same time; returns what came of each: ms, and device or usage_bytes. Errors if one failed."""
        self.caller.stdin.write(json.dumps(calls) + "\n")
        self.caller.stdin.flush()
        answer = self.caller.stdout.readline()
        if not answer:
            raise RuntimeError("the caller has ended")
        outcomes = json.loads(answer)
        for call, outcome in zip(calls, outcomes, strict=True):
            if "error" in outcome:
                raise RuntimeError(f"{call}: {outcome['error']}")
        return outcomes

    def call(self, verb, **arguments):
        """Makes one call: prepare, view (key, parent), commit (key, name), remove, usage (key), cleanup, mount (device,
        at) or unmount (at)."""
        return self.at_once([{"verb": verb, **arguments}])[0]

    def prepare(self, key, parent=None, labels=None):
        """A new active snapshot; returns its device: fs, source, options."""
        return self.call("prepare", key=key, parent=parent or "", labels=labels or {})["device"]

    def status(self):
        """What `pool status` tells."""
        return json.loads(run(self.binary, "--socket", self.socket, "--json", "pool", "status"))

    def memory_kib(self):
        """Proportional set sizes of the service and of the host, in KiB."""
        return {
            "service": _pss_kib(pathlib.Path("/proc") / str(self.process.pid)),
            "host": _pss_kib(self.host) if self.host else 0,
        }

    def cpu_seconds(self):
        """Processor time that the service and the host have taken."""
        return sum(cpu_seconds(process) for process in (pathlib.Path(f"/proc/{self.process.pid}"), self.host) if process)


def _pss_kib(process):
    for line in (process / "smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise RuntimeError(f"{process} tells no Pss")


def cpu_seconds(process):
    """User and system time of a process (a path in /proc), in seconds."""
    fields = (process / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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
