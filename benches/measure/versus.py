"""One containerd with its own devmapper snapshotter and thinsnap on the kernel engine, in a virtual machine, by turns."""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys

from .in_machine import KERNEL, TOP, why_no_machine
from .machine import run
from .session import Sample, Table

GUEST = pathlib.Path(__file__).with_name("versus_guest.py")

SECTION = "versus"
TITLE = "Beside containerd's devmapper (in a virtual machine)"
ABOUT = """A containerd 1.7 of Debian with both snapshotters, in a machine of Debian's kernel 6.12. Where that says tcg every
instruction is emulated: ratios mean something, times do not. Each of the two has a dm-thin pool with 64 KiB blocks on two disks
of its own of the same kind, snapshots of 10 GiB with ext4; what is recorded (containerd's own records, devmapper's, thinsnap's)
stands on one more disk for all. devmapper is set up as containerd's documentation says: `base_image_size = "10GB"`,
`discard_blocks = true`, nothing else; `async_remove` stays at false, and either way the garbage collection that is timed ends when
the blocks are free. Its Prepare of a first layer makes a file system; thinsnap makes one at the first use of a pool. One client
calls containerd's socket, so containerd's own work is in each time; overlayfs, which makes no device, shows how much that is.
A life: Prepare of a first layer, Prepare on the image, 64 KiB written and unmounted, Commit, Prepare on what was committed, View,
Remove of all four, garbage collection. The image has five layers of 2 MiB and 100 small files. Of an image that was prepared
twice thinsnap makes the next snapshot ahead, so that `prepare` is that of the third container and of all that follow;
`prepare on a new parent` is that of the first."""
TABLES = {
    "verbs": Table("Verbs through containerd, beside devmapper", "ms"),
    "images": Table("ctr beside devmapper: image import, run of a container, image rm --sync", "ms"),
}
SIZES = {
    "full": {"lives": 20, "images": 3},
    "quick": {"lives": 5, "images": 1},
    "tiny": {"lives": 1, "images": 1},
}
THEIRS = "containerd's devmapper"
# What the guest calls them, and the report.
NAMES = {"devmapper": THEIRS, "thinsnap": "thinsnap", "overlayfs": "overlayfs (no device)"}
# A flush in the machine is one of the host's file.
DISKS_MIB = {"state": 4096, "theirs-data": 20480, "theirs-metadata": 256, "ours-data": 20480, "ours-metadata": 256}
LAYERS = 5
IMAGE_TOOLS = {"umoci": "umoci", "skopeo": "skopeo"}


def space_mib(**_):
    """Room for what the sparse disks come to hold."""
    return 6144


def measure(session, lives, images):
    """One boot of the machine, in which the snapshotters take turns."""
    if why := why_no_machine(**IMAGE_TOOLS):
        session.not_run(THEIRS, why)
        return
    session.step("all", lambda: _samples(_figures(session, lives, images)), THEIRS)


def _samples(figures):
    return [
        Sample(table, row, NAMES[name], value)
        for table in TABLES
        # By row first: that is the order of the report.
        for row in figures[table]["thinsnap"]
        for name in NAMES if name in figures[table]
        for value in figures[table][name][row]]


def _figures(session, lives, images):
    """What the guest wrote: table → snapshotter → row → milliseconds."""
    cache = pathlib.Path(os.environ.get("THINSNAP_CACHE") or "/var/cache/thinsnap-tests")
    for folder, words in {"containerd-trixie": ["trixie", "containerd"], "runc-bookworm": ["bookworm", "runc"]}.items():
        run(TOP / "tests" / "fetch-deb.sh", *words, cache / folder)
    with contextlib.ExitStack() as stack:
        shared = stack.enter_context(session.scratch())
        archive, chain = _image(shared)
        disks = []
        for name, size in DISKS_MIB.items():
            run("truncate", "-s", f"{size}M", shared / name)
            disks += ["--disk", f"{name}={shared / name}"]
        order = {
            "thinsnap": str(session.thinsnap.resolve()), "client": _client(), "archive": str(archive), "chain": chain,
            "path": f"{cache}/containerd-trixie/usr/bin:{cache}/runc-bookworm/usr/sbin", "lives": lives, "images": images}
        (shared / "order.json").write_text(json.dumps(order))
        run(sys.executable, TOP / "tests" / "vm" / "run.py", "--kernel", KERNEL, "--share", shared, *disks, "--",
            sys.executable, GUEST, shared)
        return json.loads((shared / "figures.json").read_text())


def _client():
    """The gRPC client of benches/versus.rs, built; its path."""
    command = [os.environ.get("CARGO", "cargo"), "bench", "--bench", "versus", "--no-run", "--message-format=json"]
    lines = subprocess.run(command, cwd=TOP, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    built = [json.loads(line) for line in lines if '"executable"' in line]
    return next(one["executable"] for one in built if one.get("target", {}).get("name") == "versus" and one["executable"])


def _image(directory):
    """An OCI archive of busybox in several layers, and the name that containerd gives the snapshot of the top one."""
    layout, bundle = directory / "layout", directory / "bundle"
    run("umoci", "init", "--layout", layout)
    run("umoci", "new", "--image", f"{layout}:t")
    run("umoci", "unpack", "--image", f"{layout}:t", bundle)
    root = bundle / "rootfs"
    (root / "bin").mkdir()
    shutil.copy(shutil.which("busybox"), root / "bin" / "busybox")
    (root / "bin" / "echo").symlink_to("busybox")
    for number in range(LAYERS):
        here = root / f"layer-{number}"
        here.mkdir()
        (here / "large").write_bytes(os.urandom(2 << 20))
        for file in range(100):
            (here / f"file-{file}").write_bytes(os.urandom(2000))
        run("umoci", "repack", "--refresh-bundle", "--image", f"{layout}:t", bundle)
    run("skopeo", "copy", "--quiet", f"oci:{layout}:t", f"oci-archive:{directory / 'image.tar'}:t")

    def blob(digest):
        return json.loads((layout / "blobs" / digest.replace(":", "/")).read_text())

    index = json.loads((layout / "index.json").read_text())["manifests"]
    tagged = next(one for one in index if one["annotations"]["org.opencontainers.image.ref.name"] == "t")
    first, *above = blob(blob(tagged["digest"])["config"]["digest"])["rootfs"]["diff_ids"]
    chain = first
    for layer in above:
        chain = "sha256:" + hashlib.sha256(f"{chain} {layer}".encode()).hexdigest()
    return directory / "image.tar", chain
