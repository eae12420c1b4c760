"""Debian kernels, ready to boot: fetched as packages, pruned, their modules decompressed and indexed."""

import fcntl
import gzip
import lzma
import os
import re
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent

# What `--kernel` may name, and the Debian suite whose package it is.
SUITES = {"6.12": "trixie", "6.1": "bookworm"}
# The kernel as a program of the host: no processor is emulated, so it is many times as fast where KVM does not work. It
# has one processor and no machine around it.
USER_MODE = "user-mode"
USER_MODE_SUITE = "sid"
# When an older one is killed, its guest's processes go on, on the host and as its root.
USER_MODE_OLDEST = (6, 13)

# Raise it when what prepare() makes of a package changes.
LAYOUT = 1

# What is kept of a package's modules; the rest drives hardware that no guest of ours has. What these need comes along.
KEPT = re.compile(
    r"kernel/(arch|block|crypto|lib|mm)/|kernel/fs/(9p|btrfs|erofs|ext4|fuse|jbd2|netfs|nls|overlayfs|squashfs|xfs|fscache)/"
    r"|kernel/fs/[^/]*$|kernel/drivers/(block|char/hw_random|md|virtio)/|kernel/drivers/char/virtio|kernel/net/9p/"
    r"|kernel/drivers/net/(veth|dummy)|kernel/net/(bridge|802|llc|netfilter|ipv4/netfilter)/"
)


class Failed(Exception):
    """What went wrong and what to do, in one line for a person."""


class Kernel:
    """A kernel that can be booted."""

    def __init__(self, folder):
        self.folder = folder
        self.release = (folder / "release").read_text()
        self.modules = folder / "modules" / self.release
        self.program = folder / "linux"
        self.user_mode = self.program.exists()
        self.needs = {}  # module → modules that must be loaded before it
        self.files = {}
        for line in (self.modules / "modules.dep").read_text().splitlines():
            path, _, needs = line.partition(":")
            self.files[name_of(path)] = self.modules / path
            self.needs[name_of(path)] = [name_of(need) for need in needs.split()]

    @property
    def image(self):
        """The unpacked image boots a second sooner without KVM; not every package's can be unpacked."""
        unpacked = self.folder / "vmlinux"
        return unpacked if unpacked.exists() else self.folder / "vmlinuz"

    def in_load_order(self, names):
        """The files of these modules and all that they need; what is built in has none."""
        order = []
        for name in names:
            for module in [*reversed(self.needs.get(name, [])), name]:
                if module in self.files and module not in order:
                    order.append(module)
        return [self.files[module] for module in order]


def prepare(version, cache):
    """The kernel of that version, from the cache or from Debian."""
    if version not in (*SUITES, USER_MODE):
        raise Failed(f"no kernel {version}: there are {', '.join((*SUITES, USER_MODE))}")
    folder = cache / f"kernel-{version}"
    if version == USER_MODE:
        packages = [USER_MODE_SUITE, "user-mode-linux", "libc6"]
    else:
        packages = [SUITES[version], "depends-of:linux-image-amd64"]
    fetch = [HERE.parent / "fetch-deb.sh", *packages, folder / "package"]
    # The package of an earlier run, fetched or not, is made ready by one process.
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        fetched = subprocess.run(fetch, stdin=subprocess.DEVNULL, env={**os.environ, "THINSNAP_CACHE": str(cache)})
        if fetched.returncode != 0:
            raise Failed(f"cannot fetch the kernel {version}: tests/fetch-deb.sh says why (it needs apt and a Debian mirror)")
        ready = folder / f"ready-{LAYOUT}"
        package = folder / "package"
        newer = ready.exists() and (ready / "release").stat().st_mtime < (package / ".fetched").stat().st_mtime
        if newer or not ready.exists():
            work = Path(tempfile.mkdtemp(prefix="unpack-", dir=folder))
            try:
                make_ready(package, work)
                shutil.rmtree(ready, ignore_errors=True)
                os.chmod(work, 0o755)
                os.rename(work, ready)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    return Kernel(ready)


def name_of(path):
    """A module's name, as the kernel calls it."""
    return re.sub(r"\.ko(\..*)?$", "", os.path.basename(path)).replace("-", "_")


def make_ready(package, into):
    if (package / "usr/bin/linux.uml").exists():
        make_user_mode_ready(package, into)
        return
    images = list(package.glob("boot/vmlinuz-*"))
    modules = [d for top in ("lib/modules", "usr/lib/modules") for d in package.glob(f"{top}/*")]
    if len(images) != 1 or len(modules) != 1:
        raise Failed(f"{package} does not look like a kernel package: remove it and try again")
    shutil.copy(images[0], into / "vmlinuz")
    unpack_image(images[0], into / "vmlinux")
    copy_modules(modules[0], into / "modules" / modules[0].name)
    (into / "release").write_text(modules[0].name)


def make_user_mode_ready(package, into):
    (modules,) = package.glob("usr/lib/uml/modules/*")
    if tuple(int(n) for n in re.findall(r"\d+", modules.name)[:2]) < USER_MODE_OLDEST:
        raise Failed(f"user-mode-linux {modules.name} is too old to be killed safely")
    program = (package / "usr/bin/linux.uml").read_bytes()
    # It was built for a newer C library than this host's: it gets that one, and finds it by the directory that it is
    # started in, because it starts itself anew and so cannot be started through another loader.
    theirs, ours = b"/lib64/ld-linux-x86-64.so.2\0", b"./ld.so\0"
    if program.count(theirs) != 1:
        raise Failed(f"{package}/usr/bin/linux.uml names its loader in a way that is not known here")
    (into / "linux").write_bytes(program.replace(theirs, ours.ljust(len(theirs), b"\0")))
    libraries = package / "usr/lib/x86_64-linux-gnu"
    shutil.copy(libraries / "ld-linux-x86-64.so.2", into / "ld.so")
    shutil.copy(libraries / "libc.so.6", into / "libc.so.6")
    for name in ("linux", "ld.so", "libc.so.6"):
        os.chmod(into / name, 0o755)
    copy_modules(modules, into / "modules" / modules.name)
    (into / "release").write_text(modules.name)


def unpack_image(image, to):
    """Writes the ELF file inside a bzImage, if it is packed in a way that is known here and can be booted as it is."""
    data = image.read_bytes()
    setup = (data[0x1F1] or 4) + 1
    start, length = struct.unpack_from("<II", data, 0x248)
    packed = data[setup * 512 + start :][:length]
    if packed.startswith(b"\xfd7zXZ\0"):
        unpacked = lzma.LZMADecompressor().decompress(packed)
    elif packed.startswith(b"\x28\xb5\x2f\xfd") and shutil.which("zstd"):
        # The last four bytes are the length, not part of the frame.
        unpacked = subprocess.run(["zstd", "-dcq"], input=packed[:-4], stdout=subprocess.PIPE).stdout
    else:
        return
    # QEMU starts an ELF kernel through its PVH note, which has this owner.
    if unpacked.startswith(b"\x7fELF") and b"Xen\0" in unpacked:
        to.write_bytes(unpacked)


def copy_modules(source, to):
    """The modules that are kept, decompressed, with the lists that modprobe reads; the package has none."""
    found = {}
    for path in sorted(source.rglob("*.ko*")):
        found[name_of(path)] = path
    wanted = [name for name, path in found.items() if KEPT.match(str(path.relative_to(source)))]
    contents, needs = {}, {}
    while wanted:
        name = wanted.pop()
        if name in contents or name not in found:
            continue
        contents[name] = without_signature(unpacked_module(found[name]))
        needs[name] = [need.replace("-", "_") for need in ",".join(told(contents[name], b"depends")).split(",") if need]
        wanted += needs[name]

    def all_needs(name, seen):
        for need in needs[name]:
            if need in contents and need not in seen:
                all_needs(need, seen)
                seen.append(need)
        return seen

    place = {name: str(found[name].relative_to(source)).split(".ko")[0] + ".ko" for name in contents}
    for name, content in contents.items():
        (to / place[name]).parent.mkdir(parents=True, exist_ok=True)
        (to / place[name]).write_bytes(content)
    # The nearest need comes last where they are loaded, and first in this list.
    dependencies = [f"{place[n]}: {' '.join(place[need] for need in reversed(all_needs(n, [])))}\n" for n in sorted(contents)]
    aliases = [f"alias {alias} {name}\n" for name in sorted(contents) for alias in told(contents[name], b"alias")]
    (to / "modules.dep").write_text("".join(dependencies))
    (to / "modules.alias").write_text("".join(aliases))
    for empty in ("modules.symbols", "modules.softdep", "modules.devname"):
        (to / empty).touch()


def unpacked_module(path):
    data = path.read_bytes()
    unpack = {".xz": lzma.decompress, ".gz": gzip.decompress, ".ko": bytes}.get(path.suffix)
    if unpack:
        return unpack(data)
    if not shutil.which("zstd"):
        raise Failed("zstd is not installed (Debian package: zstd)")
    return subprocess.run(["zstd", "-dcq"], input=data, stdout=subprocess.PIPE, check=True).stdout


def told(module, key):
    """What a module says of itself under a key."""
    return [m.decode() for m in re.findall(b"\0" + key + b"=([^\0]*)\0", module)]


def without_signature(module):
    """Checking a signature costs a hash of the module, in an emulated processor a long time; apt has checked the package."""
    magic = b"~Module signature appended~\n"
    if not module.endswith(magic):
        return module
    (length,) = struct.unpack(">I", module[-len(magic) - 4 : -len(magic)])
    return module[: -len(magic) - 12 - length]
