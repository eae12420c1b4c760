"""Runs inside the virtual machine: one containerd with its own devmapper snapshotter and thinsnap beside it, by turns.

    versus_guest.py SHARED

SHARED/order.json says what is to be done (versus.py writes it); the figures go to SHARED/figures.json. Everything else
stands on the machine's disks, which are gone with it.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import time

SNAPSHOTTERS = ["devmapper", "thinsnap"]
# Makes directories instead of devices: what its verbs cost is what containerd itself costs.
FLOOR = "overlayfs"
IMAGE = "docker.io/library/versus"
DISKS = pathlib.Path("/dev/disk-by-name")
STATE = pathlib.Path("/state")

# What containerd's documents recommend for a pool on loop devices, and the same on disks.
DEVMAPPER = """
[plugins."io.containerd.snapshotter.v1.devmapper"]
  pool_name = "devpool"
  root_path = "/state/devmapper"
  base_image_size = "10GB"
  discard_blocks = true
"""
CONTAINERD = """version = 2
root = "/state/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "/run/containerd.sock"
[proxy_plugins.thinsnap]
  type = "snapshot"
  address = "/run/thinsnap.sock"
"""
THINSNAP = """engine = "kernel"
[pool]
data_device = "/dev/disk-by-name/ours-data"
metadata_device = "/dev/disk-by-name/ours-metadata"
[default]
size = "10G"
"""


def run(*command):
    """Runs a command; its output."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{logs()}\n{' '.join(map(str, command))}: {done.returncode}: {done.stderr[-1000:]}")
    return done.stdout.strip()


def logs():
    """The last words of the two services."""
    said = ""
    for name in ["containerd", "thinsnap"]:
        with contextlib.suppress(OSError):
            said += f"\n{name}: " + pathlib.Path(f"/run/{name}.log").read_text()[-500:]
    return said


def start(stack, *command):
    """A service that runs until the stack unwinds."""
    name = pathlib.Path(command[0]).name
    log = stack.enter_context(open(f"/run/{name}.log", "w"))
    service = subprocess.Popen([str(word) for word in command], stdout=log, stderr=subprocess.STDOUT)
    stack.callback(service.wait)
    stack.callback(service.terminate)
    deadline = time.monotonic() + 60
    while not pathlib.Path(f"/run/{name}.sock").exists():
        if service.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{name} does not start{logs()}")
        time.sleep(0.05)


def begin(stack, order):
    """Disks, pool and both services."""
    run("mkfs.ext4", "-q", DISKS / "state")
    STATE.mkdir()
    run("mount", "-o", "noatime", DISKS / "state", STATE)
    sectors = int(run("blockdev", "--getsz", DISKS / "theirs-data"))
    devices = [os.path.realpath(DISKS / f"theirs-{what}") for what in ["metadata", "data"]]
    run("dmsetup", "create", "devpool", "--table", f"0 {sectors} thin-pool {devices[0]} {devices[1]} 128 32768")
    pathlib.Path("/run/containerd.toml").write_text(CONTAINERD + DEVMAPPER)
    pathlib.Path("/run/thinsnap.toml").write_text(THINSNAP)
    start(stack, order["thinsnap"], "--config", "/run/thinsnap.toml", "--root", STATE / "thinsnap", "serve",
          "--socket", "/run/thinsnap.sock")
    start(stack, "containerd", "--config", "/run/containerd.toml")


def ctr(*words):
    """A ctr command: output and milliseconds."""
    began = time.monotonic()
    out = run("ctr", "--address", "/run/containerd.sock", *words)
    return out, (time.monotonic() - began) * 1000


def images(order):
    """Import, run and remove of the whole image as wall time of ctr; the image stays in both at the end."""
    archive = order["archive"]
    times = {name: {verb: [] for verb in ["image import", "run", "image rm"]} for name in SNAPSHOTTERS}

    def import_into(name):
        return ctr("images", "import", "--snapshotter", name, "--base-name", IMAGE, archive)[1]

    for number in range(order["images"]):
        for name in SNAPSHOTTERS:
            times[name]["image import"].append(import_into(name))
            said, taken = ctr("run", "--rm", "--snapshotter", name, f"{IMAGE}:t", f"c{number}", "/bin/echo", "ran")
            if said != "ran":
                raise RuntimeError(f"a container on {name} said {said!r}")
            times[name]["run"].append(taken)
            times[name]["image rm"].append(ctr("images", "rm", "--sync", f"{IMAGE}:t")[1])
    for name in [*SNAPSHOTTERS, FLOOR]:
        import_into(name)
    return times


def main():
    """Reads the order, measures, writes the figures."""
    shared = pathlib.Path(sys.argv[1])
    order = json.loads((shared / "order.json").read_text())
    os.environ["PATH"] = f"{order['path']}:{os.environ['PATH']}"
    with contextlib.ExitStack() as stack:
        begin(stack, order)
        figures = {"images": images(order)}
        at = pathlib.Path("/run/at")
        at.mkdir()
        figures["verbs"] = json.loads(run(
            order["client"], "--socket", "/run/containerd.sock", "--at", at, "--parent", order["chain"],
            "--repeats", order["lives"], "--snapshotters", ",".join([*SNAPSHOTTERS, FLOOR])))
    (shared / "figures.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
