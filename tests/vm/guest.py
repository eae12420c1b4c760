"""One run of one command in a guest: its machine (QEMU, or a kernel that is a program), the initramfs, and the talk with
start.sh.

Nothing of a run has a name in the host's file systems: the initramfs is memory, temporary disks are unlinked files, the
talk goes over socket pairs, and the machine dies with this process. So nothing is left behind, however the run ends.
"""

import ctypes
import os
import re
import selectors
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from kernel import HERE, Failed

# What the tests need, loaded after what leads to the root; the kernel loads the rest when it is asked for.
MODULES = "overlay ext4 loop fuse dm_mod dm_thin_pool dm_flakey dm_log_writes".split()

COMMAND_LINE = (
    "console=ttyS0 quiet loglevel=5 panic=-1 oops=panic mitigations=off nokaslr audit=0 apparmor=0 nowatchdog "
    "no_timer_check tsc=reliable rcupdate.rcu_cpu_stall_timeout=300 random.trust_cpu=on cryptomgr.notests "
    "raid6_pq.benchmark=0"
).split()

USER_MODE_COMMAND_LINE = "panic=-1 oops=panic quiet loglevel=5 audit=0 cryptomgr.notests raid6_pq.benchmark=0".split()

# A machine that others use too may be slow to boot.
BOOT_SECONDS = 180
KVM_BOOT_SECONDS = 20
TEMPORARY_DISK = 8 << 30
CONSOLE_KEPT = 128 << 10

# Statuses that are not the command's own, as timeout(1) has them.
TIMED_OUT, BROKEN = 124, 125


@dataclass
class Disk:
    """A disk of the guest, to be found as /dev/disk-by-name/NAME."""

    name: str
    file: Path
    # Every write, discard and flush goes there too, in the format of dm-log-writes.
    log: Path | None = None


@dataclass
class Run:
    """What is to be run, and how."""

    command: list
    kernel: object
    accelerator: str
    shares: list = field(default_factory=list)
    disks: list = field(default_factory=list)
    timeout: float = 600
    boot_timeout: float = BOOT_SECONDS
    memory: int = 2048
    processors: int = 2
    # The power is cut so long after this text was seen on standard output.
    cut_mark: bytes | None = None
    cut_after: float = 0.0
    out: object = None
    err: object = None
    # True: nothing is said of a failure.
    quiet: bool = False


@dataclass
class Outcome:
    """How it went. `status` is the command's own, TIMED_OUT or BROKEN; None after a power cut."""

    status: int | None
    boot_seconds: float | None
    seconds: float | None
    accelerator: str
    console: str


class Stopped(Exception):
    """A signal asked this process to end."""

    def __init__(self, number):
        super().__init__(f"stopped by signal {number}")
        self.number = number


def run(what):
    """Boots, runs, reports; always ends, and ends the machine."""
    if not what.kernel.user_mode and not shutil.which("qemu-system-x86_64"):
        raise Failed("qemu-system-x86_64 is not installed (Debian package: qemu-system-x86)")
    if not shutil.which("mkfs.ext4", path=with_sbin(os.environ.get("PATH", ""))):
        raise Failed("mkfs.ext4 is not installed (Debian package: e2fsprogs)")
    guest = UserModeGuest(what) if what.kernel.user_mode else Guest(what)
    try:
        return guest.run()
    finally:
        guest.end()


class Guest:
    """A guest in QEMU."""

    # For the scripts in the guest: what kind of machine it is.
    machine = "qemu"
    first_modules = ("virtio_pci", "virtio_console", "virtio_rng", "virtio_blk", "9pnet_virtio", "9p", "crc32c_generic")

    def __init__(self, what):
        self.what = what
        self.process = None
        self.console = b""
        self.lent = []  # what the machine inherits
        self.files = []  # kept open as long as it runs
        self.ports = {}
        self.accelerator = what.accelerator

    def run(self):
        arguments = self.arguments()
        begun = time.monotonic()
        parent = os.getpid()
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            pass_fds=self.lent,
            preexec_fn=lambda: die_with(parent),
            **self.surroundings(),
        )
        for descriptor in self.lent:
            os.close(descriptor)
        self.lent = []
        return self.attend(begun)

    def end(self):
        if self.process:
            self.process.kill()
            self.process.wait()
        for descriptor in self.lent:
            os.close(descriptor)
        for port in [*self.ports.values(), *self.files]:
            port.close()

    def surroundings(self):
        """Where the machine's program runs, as subprocess takes it."""
        return {}

    def arguments(self):
        what = self.what
        arguments = ["qemu-system-x86_64", "-accel", accelerator_argument(self.accelerator), "-cpu", "max,la57=off"]
        arguments += ["-machine", "q35", "-smp", str(what.processors), "-m", str(what.memory)]
        arguments += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        arguments += ["-device", "virtio-rng-pci", "-device", "virtio-serial-pci"]
        arguments += ["-chardev", self.port("console"), "-serial", "chardev:console"]
        for name in ("out", "err", "control"):
            arguments += ["-chardev", self.port(name), "-device", f"virtserialport,chardev={name},name={name}"]
        self.share(arguments, "root", "/", True)
        self.share(arguments, "modules", what.kernel.modules, True)
        for n, directory in enumerate(what.shares):
            self.share(arguments, f"share{n}", directory, False)
        scratch = scratch_disk()
        for n, disk in enumerate([Disk("scratch", None), *what.disks]):
            self.disk(arguments, n, disk, scratch)
        initramfs = self.initramfs()
        arguments += ["-kernel", str(what.kernel.image), "-initrd", self.inherited(initramfs)]
        tsc = tsc_khz() if self.accelerator == "tcg" else None
        line = COMMAND_LINE + ([f"tsc_early_khz={tsc}"] if tsc else [])
        return [*arguments, "-append", " ".join(line)]

    def port(self, name):
        """A character device of QEMU, whose other end is ours."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self.ports[name] = ours
        descriptor = theirs.detach()
        self.lent.append(descriptor)
        return f"socket,id={name},fd={descriptor}"

    def inherited(self, file):
        """The path at which QEMU finds an open file of ours."""
        self.files.append(file)
        descriptor = os.dup(file.fileno())
        self.lent.append(descriptor)
        return f"/proc/self/fd/{descriptor}"

    def share(self, arguments, tag, directory, read_only):
        if not os.path.isdir(directory):
            raise Failed(f"{directory} cannot be shared: it is no directory")
        path = str(directory).replace(",", ",,")
        access = ",readonly=on" if read_only else ""
        arguments += ["-fsdev", f"local,id={tag},path={path},security_model=none,multidevs=remap{access}"]
        arguments += ["-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]

    def disk(self, arguments, number, disk, scratch):
        if disk.file is None:
            path, cache = self.inherited(scratch), "cache.direct=off,cache.no-flush=on"
        else:
            # The host's page cache keeps what QEMU has acknowledged when QEMU is killed: what a cut loses of that is
            # decided by who replays the log.
            path, cache = str(disk.file).replace(",", ",,"), "cache.direct=off,cache.no-flush=off"
        driver = "host_device" if stat.S_ISBLK(os.stat(path if disk.file else scratch.fileno()).st_mode) else "file"
        arguments += ["-blockdev", f"driver={driver},node-name=file{number},filename={path},{cache},discard=unmap"]
        arguments += ["-blockdev", f"driver=raw,node-name=disk{number},file=file{number},{cache},discard=unmap"]
        node = f"disk{number}"
        if disk.log:
            log = str(disk.log).replace(",", ",,")
            arguments += ["-blockdev", f"driver=file,node-name=logfile{number},filename={log}"]
            node = f"log{number}"
            arguments += [
                "-blockdev",
                f"driver=blklogwrites,node-name={node},file=disk{number},log=logfile{number},log-sector-size=512,"
                "discard=unmap",
            ]
        # A log without discards is one of writes and flushes only, which anybody can play again.
        discard = "off" if disk.log else "on"
        arguments += [
            "-device",
            f"virtio-blk-pci,drive={node},serial={disk.name},discard={discard},write-zeroes={discard}",
        ]

    def initramfs(self):
        """An archive with our two scripts, the first modules and what this run is about."""
        kernel = self.what.kernel
        archive = Archive()
        for directory in ("bin", "dev", "proc", "sys", "lower", "upper", "newroot", "modules", "vm"):
            archive.add(directory, stat.S_IFDIR | 0o755)
        archive.add("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
        archive.add("bin/busybox", stat.S_IFREG | 0o755, static_busybox())
        archive.add("init", stat.S_IFREG | 0o755, (HERE / "init.sh").read_bytes())
        files = kernel.in_load_order([*self.first_modules, *MODULES])
        for file in files:
            archive.add(f"modules/{file.name}", stat.S_IFREG | 0o644, file.read_bytes())
        archive.add("modules/list", stat.S_IFREG | 0o644, "".join(f"{f.name}\n" for f in files).encode())
        texts = {
            "settings": "".join(f"{name}={shlex.quote(value)}\n" for name, value in self.settings().items()),
            "shares": "".join(f"share{n} {os.path.abspath(s)}\n" for n, s in enumerate(self.what.shares)),
            "command": command_script(self.what.command, kernel, self.accelerator),
        }
        for name, text in texts.items():
            archive.add(f"vm/{name}", stat.S_IFREG | 0o644, text.encode())
        archive.add("vm/start.sh", stat.S_IFREG | 0o755, (HERE / "start.sh").read_bytes())
        memory = os.fdopen(os.memfd_create("initramfs"), "w+b")
        memory.write(archive.finished())
        memory.flush()
        return memory

    def settings(self):
        disks = " ".join(["scratch", *(disk.name for disk in self.what.disks)])
        return {"MACHINE": self.machine, "RELEASE": self.what.kernel.release, "DISKS": disks}

    def attend(self, begun):
        """Passes on what the command says and follows its course until it has ended, was cut or ran too long."""
        what = self.what
        outputs = {"out": what.out or sys.stdout.buffer, "err": what.err or sys.stderr.buffer}
        phase, deadline = "boot", begun + what.boot_timeout
        boot = started = seconds = status = None
        control, tail = b"", b""
        cut = False
        with selectors.DefaultSelector() as selector:
            for name, port in self.ports.items():
                selector.register(port, selectors.EVENT_READ, name)
            while selector.get_map() and phase != "end":
                left = deadline - time.monotonic()
                if left <= 0:
                    if cut:
                        return self.outcome(None, boot, time.monotonic() - started)
                    if phase == "ended":
                        break
                    if phase == "run":
                        self.say(f"timed out: the command ran longer than {what.timeout:g} s; what it did stands below")
                        self.ports["control"].send(b"dump\n")
                        status, phase, deadline = TIMED_OUT, "dump", time.monotonic() + 10
                        continue
                    why = "the guest did not boot" if phase == "boot" else "what ran in the guest"
                    self.say(f"{why} in time; last lines of its console:\n{self.console_tail()}")
                    return self.outcome(BROKEN if phase == "boot" else TIMED_OUT, boot, seconds)
                for key, _ in selector.select(left):
                    data = received(key.fileobj)
                    if data is None:
                        continue
                    if not data:
                        selector.unregister(key.fileobj)
                    elif key.data == "console":
                        self.console = (self.console + data)[-CONSOLE_KEPT:]
                    elif key.data != "control":
                        pass_on(outputs[key.data], data)
                        if key.data == "out" and what.cut_mark and not cut:
                            tail = (tail + data)[-4096:]
                            if what.cut_mark in tail:
                                cut, deadline = True, time.monotonic() + what.cut_after
                    else:
                        control += data
                while b"\n" in control:
                    line, control = control.split(b"\n", 1)
                    word, *rest = line.decode().split() or [""]
                    now = time.monotonic()
                    if word == "start":
                        boot, started = now - begun, now
                        phase, deadline = "run", now + what.timeout
                    elif word == "status" and phase == "run":
                        status, seconds, cut = int(rest[0]), now - started, False
                        phase, deadline = "ended", now + 30
                    elif word == "unsynced":
                        self.say("sync does not end in the guest: is a device suspended or full?")
                    elif word == "dumped":
                        deadline = now + 1
                    elif word == "end":
                        phase = "end"
        if status is None:
            status = self.process.wait()
            self.log.seek(0)
            said = self.log.read().decode(errors="replace").strip()
            self.say(f"the guest stopped before the command ended (its machine: status {status}) {said}\n{self.console_tail()}")
            return self.outcome(BROKEN, boot, seconds)
        # The last words may have come after the end was told.
        for name, output in outputs.items():
            while data := received(self.ports[name]):
                pass_on(output, data)
        # In order, so that the machine brings its images to their files.
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.say("the machine does not end by itself; it is killed")
        return self.outcome(status, boot, seconds)

    def say(self, text):
        if not self.what.quiet:
            say(text)

    def outcome(self, status, boot, seconds):
        return Outcome(status, boot, seconds, self.accelerator, self.console.decode(errors="replace"))

    def console_tail(self):
        return "\n".join(self.console.decode(errors="replace").replace("\r", "").splitlines()[-120:])


class UserModeGuest(Guest):
    """A guest whose kernel is a program of the host."""

    machine = "user-mode"
    first_modules = ()

    def surroundings(self):
        folder = str(self.what.kernel.folder)
        # Its memory is a file without a name there.
        memory = "/dev/shm" if room_in("/dev/shm") > self.what.memory << 20 else os.environ.get("TMPDIR", "/var/tmp")
        return {"cwd": folder, "env": {"LD_LIBRARY_PATH": folder, "TMPDIR": memory, "HOME": self.directory.name}}

    def arguments(self):
        what = self.what
        # It insists on a directory in which it may be found.
        self.directory = tempfile.TemporaryDirectory(prefix="vm-")
        arguments = [str(what.kernel.program), f"mem={what.memory}M", f"initrd={self.inherited(self.initramfs())}"]
        arguments += [f"uml_dir={self.directory.name}", "umid=guest", "seccomp=on", "noreboot", "con=null", "console=tty0"]
        arguments += [f"con0=null,{self.port('console')}"]
        arguments += [f"ssl0=null,{self.port('out')}", f"ssl1=null,{self.port('err')}", f"ssl2={self.port('control')}"]
        if len(what.disks) > 7 or any(disk.log for disk in what.disks):
            raise Failed("a kernel that is a program has no more than eight disks, and no log of their writes")
        for n, disk in enumerate([Disk("scratch", None), *what.disks]):
            path = disk.file or self.inherited(scratch_disk())
            if re.search(r"[,:\s]", str(path)):
                raise Failed(f"a kernel that is a program takes no disk with the name {str(path)!r}")
            arguments.append(f"ubd{n}d={path},,{disk.name}")
        return [*arguments, *USER_MODE_COMMAND_LINE]

    def port(self, name):
        return f"fd:{super().port(name).rpartition('=')[2]}"

    def settings(self):
        shares = {f"HOST_share{n}": os.path.abspath(directory) for n, directory in enumerate(self.what.shares)}
        return {**super().settings(), **shares, "HOST_root": "/", "HOST_modules": str(self.what.kernel.modules)}

    def end(self):
        super().end()
        self.directory.cleanup()


class Archive:
    """An initramfs: a cpio archive of the kind that the kernel reads."""

    def __init__(self):
        self.parts = []
        self.count = 0

    def add(self, name, mode, content=b"", device=(0, 0)):
        self.count += 1
        name = name.encode() + b"\0"
        numbers = (self.count, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(name), 0)
        header = b"070701" + b"".join(b"%08X" % number for number in numbers) + name
        self.parts += [header, b"\0" * (-len(header) % 4), content, b"\0" * (-len(content) % 4)]

    def finished(self):
        self.add("TRAILER!!!", 0)
        return b"".join(self.parts)


def command_script(command, kernel, accelerator):
    """The command with this process's environment and directory."""
    environment = {k: v for k, v in os.environ.items() if re.fullmatch(r"[A-Za-z_]\w*", k)}
    environment["PATH"] = with_sbin(environment.get("PATH", ""))
    # Files under / live in the guest's memory, and direct I/O does not work there.
    environment["TMPDIR"] = "/scratch"
    environment["THINSNAP_VM"] = kernel.release
    if accelerator == "tcg":
        environment["THINSNAP_VM_EMULATED"] = "1"
    # There is no udev to make device nodes.
    environment["DM_DISABLE_UDEV"] = "1"
    for name in ("PWD", "OLDPWD", "SHLVL", "_", "XDG_RUNTIME_DIR", "THINSNAP_TEST_RUN"):
        environment.pop(name, None)
    lines = [f"export {name}={shlex.quote(value)}" for name, value in sorted(environment.items())]
    lines += [f"cd {shlex.quote(os.getcwd())} || exit {BROKEN}", f"exec {shlex.join(command)}"]
    return "\n".join(lines) + "\n"


def with_sbin(path):
    parts = path.split(":") if path else []
    return ":".join(parts + [d for d in ("/usr/sbin", "/usr/bin", "/sbin", "/bin") if d not in parts])


def room_in(directory):
    """Bytes that may be written there; none where programs may not be run."""
    try:
        found = os.statvfs(directory)
    except OSError:
        return 0
    return 0 if found.f_flag & os.ST_NOEXEC else found.f_bavail * found.f_frsize


def scratch_disk():
    """An open file without a name, with a file system for temporary files."""
    scratch = tempfile.TemporaryFile(dir=os.environ.get("TMPDIR", "/var/tmp"))
    scratch.truncate(TEMPORARY_DISK)
    make_filesystem(scratch.fileno())
    return scratch


def make_filesystem(descriptor):
    options = ["-q", "-F", "-m", "0", "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard"]
    made = subprocess.run(
        ["mkfs.ext4", *options, f"/proc/self/fd/{descriptor}"],
        pass_fds=[descriptor],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "PATH": with_sbin(os.environ.get("PATH", ""))},
    )
    if made.returncode != 0:
        raise Failed(f"mkfs.ext4 of the scratch disk: {made.stderr.decode(errors='replace').strip()}")


def static_busybox():
    for path in filter(None, [shutil.which("busybox"), "/bin/busybox", "/usr/bin/busybox"]):
        if os.path.exists(path):
            data = Path(path).read_bytes()
            # Without the name of a dynamic linker it needs no libraries.
            if b"/ld-linux" not in data[:4096]:
                return data
    raise Failed("no busybox that stands alone is installed (Debian package: busybox-static)")


def accelerator(kernel, cache):
    """`kvm` where it works, else `tcg`, which emulates every instruction. That /dev/kvm opens, and even that a processor
    can be made, says little inside other virtual machines: a guest is booted to see, once in a boot of the host."""
    if kernel.user_mode:
        return "a program"
    asked = os.environ.get("THINSNAP_VM_ACCEL")
    if asked:
        return asked
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    verdict = cache / f"kvm-{boot}"
    if not verdict.exists():
        quiet = {"out": open(os.devnull, "wb"), "err": open(os.devnull, "wb"), "quiet": True}
        works = run(Run(["true"], kernel, "kvm", boot_timeout=KVM_BOOT_SECONDS, **quiet)).status == 0
        with tempfile.NamedTemporaryFile("w", dir=cache, delete=False) as new:
            new.write("kvm" if works else "tcg")
        os.replace(new.name, verdict)
        for old in cache.glob("kvm-*"):
            if old != verdict:
                old.unlink(missing_ok=True)
    return verdict.read_text()


def accelerator_argument(accelerator):
    return "kvm" if accelerator == "kvm" else "tcg,thread=multi,tb-size=512"


def tsc_khz():
    """The rate of the clock that the emulated processor passes on: a guest on a busy host measures it wrong by a factor,
    and then all its time limits are."""
    with open("/proc/cpuinfo") as file:
        text = file.read().split("\n\n")[0]
    found = re.search(r"^bogomips\s*:\s*([0-9.]+)", text, re.M)
    return round(float(found[1]) * 500) if found and " constant_tsc" in text else None


def die_with(parent):
    """In the child: ends when the parent does, also when that is killed."""
    death_signal = 1
    os.setpgid(0, 0)
    ctypes.CDLL(None).prctl(death_signal, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(BROKEN)


def received(port):
    """Bytes; none at the end; None if there was nothing after all."""
    try:
        return port.recv(1 << 16)
    except (BlockingIOError, InterruptedError):
        return None
    except ConnectionError:
        return b""


def pass_on(output, data):
    try:
        output.write(data)
        output.flush()
    except BrokenPipeError:
        raise Stopped(signal.SIGPIPE) from None


def say(text):
    sys.stderr.write(f"vm: {text}\n")
    sys.stderr.flush()


def stop_on_signals():
    """Makes the signals that end this process an exception, so that it takes the machine with it."""

    def stop(number, _frame):
        raise Stopped(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)


