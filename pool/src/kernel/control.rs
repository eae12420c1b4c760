//! The kernel's device-mapper: one call a function, its errors told in this crate's kinds.
//!
//! Every device gets the flags that keep udev's rules for disks, LVM and blkid away from it: what is in a container's
//! device is none of the host's business. They go along with each call that makes the kernel tell udev.

use std::fs::{DirBuilder, File, read_dir, remove_file};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use devicemapper::errors::Error as CoreError;
use devicemapper::{DM, DevId, DeviceInfo, DmError, DmFlags, DmName, DmOptions, DmUuid};
use nix::errno::Errno;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use crate::error::{Error, ErrorKind, Result};
use crate::kernel::device_number::DeviceNumber;
use crate::kernel::table::Line;

const CONTROL: &str = "/dev/mapper/control";
/// Number of the control node, which the kernel's interface fixes; opening it loads the module.
const CONTROL_NUMBER: (u64, u64) = (10, 236);
/// Whom the kernel lets command devices.
const FOR_ROOT: &str = "device-mapper takes orders only from root with the capability CAP_SYS_ADMIN (in a container: a \
                        privileged one); the embedded engine needs no device-mapper";
/// A device with this name lives while the kernel is made to load a module.
const PROBE: &str = "thinsnap-probe";
/// Where udev answers, and where its rules stand.
const UDEV_SOCKET: &str = "/run/udev/control";
const UDEV_RULES: [&str; 4] = ["/usr/lib/udev/rules.d", "/lib/udev/rules.d", "/etc/udev/rules.d", "/run/udev/rules.d"];

/// What a device is like at one moment.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "they are the kernel's own flags, each independent of the others")]
pub(super) struct State {
    pub(super) uuid: String,
    pub(super) number: DeviceNumber,
    pub(super) openers: i32,
    pub(super) read_only: bool,
    pub(super) suspended: bool,
    /// It has a table, and so serves I/O.
    pub(super) has_table: bool,
    /// A table was loaded and not put in place.
    pub(super) has_next_table: bool,
    /// It goes away with its last opener.
    pub(super) leaving: bool,
}

impl State {
    fn of(info: &DeviceInfo) -> Self {
        let flags = info.flags();
        let device = info.device();
        Self {
            uuid: info.uuid().map(ToString::to_string).unwrap_or_default(),
            number: DeviceNumber { major: device.major, minor: device.minor },
            openers: info.open_count(),
            read_only: flags.contains(DmFlags::DM_READONLY),
            suspended: flags.contains(DmFlags::DM_SUSPEND),
            has_table: flags.contains(DmFlags::DM_ACTIVE_PRESENT),
            has_next_table: flags.contains(DmFlags::DM_INACTIVE_PRESENT),
            leaving: flags.contains(DmFlags::DM_DEFERRED_REMOVE),
        }
    }
}

/// The way to the kernel's device-mapper.
pub(super) struct Control {
    dm: DM,
}

impl Control {
    /// Errors: `Unsupported` (no device-mapper in this kernel, no thin target, a udev that would never answer),
    /// `Denied`.
    pub(super) fn open() -> Result<Self> {
        open_control_node()?;
        refuse_deaf_udev()?;
        let dm = DM::new().map_err(|e| Error::with_source(ErrorKind::Io, format!("open {CONTROL}"), e))?;
        let control = Self { dm };
        control.require_targets()?;
        Ok(control)
    }

    /// Targets that are loaded, with their versions.
    fn targets(&self) -> Result<Vec<(String, u32, u32, u32)>> {
        self.dm.list_versions().map_err(|e| failed("list the targets of device-mapper", e))
    }

    fn has_targets(&self) -> Result<bool> {
        let targets = self.targets()?;
        Ok(["thin-pool", "thin"].iter().all(|wanted| targets.iter().any(|(name, ..)| name == wanted)))
    }

    /// The kernel loads the module of a target when a table names it: a table that it must refuse is enough.
    fn require_targets(&self) -> Result<()> {
        if self.has_targets()? {
            return Ok(());
        }
        self.create(PROBE, "THINSNAP-probe")?;
        let refused = self.load(PROBE, &(0, 1, "thin-pool".to_owned(), String::new()), false);
        self.remove(PROBE)?;
        if self.has_targets()? {
            return Ok(());
        }
        let why = refused.err().map(|e| format!(" ({e})")).unwrap_or_default();
        Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "this kernel has device-mapper and no thin pools: load the module dm_thin_pool (modprobe dm_thin_pool; it \
                 comes with the kernel's package of modules), or use the embedded engine{why}"
            ),
        ))
    }

    /// The version of the thin-pool target: `1.23.0`.
    pub(super) fn target_version(&self) -> Result<String> {
        let found = self.targets()?.into_iter().find(|(name, ..)| name == "thin-pool");
        Ok(found.map(|(_, major, minor, patch)| format!("{major}.{minor}.{patch}")).unwrap_or_default())
    }

    /// The device's state, or `None` if there is no such device.
    pub(super) fn state(&self, name: &str) -> Result<Option<State>> {
        match self.dm.device_info(&DevId::Name(named(name)?)) {
            Ok(info) => Ok(Some(State::of(&info))),
            Err(e) if errno(&e) == Some(Errno::ENXIO) => Ok(None),
            Err(e) => Err(failed(format!("look at the device {name}"), e)),
        }
    }

    /// Names of all devices of the host.
    pub(super) fn names(&self) -> Result<Vec<String>> {
        let listed = self.dm.list_devices().map_err(|e| failed("list the devices of device-mapper", e))?;
        Ok(listed.into_iter().map(|(name, ..)| name.to_string()).collect())
    }

    /// Makes a device without a table. Errors: `InUse` if the name or the uuid is taken.
    pub(super) fn create(&self, name: &str, uuid: &str) -> Result<State> {
        let doing = format!("make the device {name}");
        let uuid = DmUuid::new(uuid).map_err(|e| Error::with_source(ErrorKind::Invalid, &doing, e))?;
        self.dm
            .device_create(named(name)?, Some(uuid), options())
            .map(|info| State::of(&info))
            .map_err(|e| failed(doing, e))
    }

    /// Gives a device its next table. Errors: `InUse`, `NotFound`, `Invalid` as the target says.
    pub(super) fn load(&self, name: &str, line: &Line, read_only: bool) -> Result<()> {
        let flags = if read_only { DmFlags::DM_READONLY } else { DmFlags::empty() };
        let doing = || format!("load the table `{} {} {} {}` of {name}", line.0, line.1, line.2, line.3);
        self.dm
            .table_load(&DevId::Name(named(name)?), std::slice::from_ref(line), options().set_flags(flags))
            .map(drop)
            .map_err(|e| failed(doing(), e))
    }

    /// Forgets the next table.
    pub(super) fn clear(&self, name: &str) -> Result<()> {
        let cleared = self.dm.table_clear(&DevId::Name(named(name)?));
        cleared.map(drop).map_err(|e| failed(format!("forget the next table of {name}"), e))
    }

    /// Puts the next table in place, if there is one, and lets requests through.
    pub(super) fn resume(&self, name: &str) -> Result<()> {
        // The flags tell how a device that still runs is stopped for the exchange.
        let flags = DmFlags::DM_NOFLUSH | DmFlags::DM_SKIP_LOCKFS;
        let resumed = self.dm.device_suspend(&DevId::Name(named(name)?), options().set_flags(flags));
        resumed.map(drop).map_err(|e| failed(format!("resume {name}"), e))
    }

    /// Holds requests back; at return none is on its way. What waits for room in the pool is put back, not waited for;
    /// a file system on the device is not frozen.
    pub(super) fn suspend(&self, name: &str) -> Result<()> {
        let flags = DmFlags::DM_SUSPEND | DmFlags::DM_NOFLUSH | DmFlags::DM_SKIP_LOCKFS;
        let suspended = self.dm.device_suspend(&DevId::Name(named(name)?), options().set_flags(flags));
        suspended.map(drop).map_err(|e| failed(format!("suspend {name}"), e))
    }

    /// Takes a device away: at once, or when its last opener closes it. True: it is gone at return.
    pub(super) fn remove(&self, name: &str) -> Result<bool> {
        let options = options().set_flags(DmFlags::DM_DEFERRED_REMOVE);
        match self.dm.device_remove(&DevId::Name(named(name)?), options) {
            // Cleared in the answer if nothing is left to wait for.
            Ok(info) => Ok(!info.flags().contains(DmFlags::DM_DEFERRED_REMOVE)),
            Err(e) if errno(&e) == Some(Errno::ENXIO) => Ok(true),
            Err(e) => Err(failed(format!("remove {name}"), e)),
        }
    }

    /// Takes back a removal that waits for the last opener.
    pub(super) fn keep(&self, name: &str) -> Result<()> {
        self.message(name, "@cancel_deferred_remove")
    }

    /// Sends a message to a device's only target.
    pub(super) fn message(&self, name: &str, words: &str) -> Result<()> {
        let sent = self.dm.target_msg(&DevId::Name(named(name)?), None, words);
        sent.map(drop).map_err(|e| failed(format!("tell {name} `{words}`"), e))
    }

    /// The words of a device's status. With `commit` a pool brings what it tells up to date first, durably.
    pub(super) fn status(&self, name: &str, commit: bool) -> Result<String> {
        let flags = if commit { DmFlags::empty() } else { DmFlags::DM_NOFLUSH };
        let lines = self.lines(name, flags)?;
        lines.into_iter().next().map(|line| line.3).ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("the device {name} has no table: it was taken apart by another program"),
            )
        })
    }

    /// The table in place.
    pub(super) fn table(&self, name: &str) -> Result<Vec<Line>> {
        self.lines(name, DmFlags::DM_STATUS_TABLE | DmFlags::DM_NOFLUSH)
    }

    fn lines(&self, name: &str, flags: DmFlags) -> Result<Vec<Line>> {
        let asked = self.dm.table_status(&DevId::Name(named(name)?), options().set_flags(flags));
        asked.map(|(_, lines)| lines).map_err(|e| failed(format!("ask for the table or status of {name}"), e))
    }
}

/// Whether this kernel can serve pools, and the version of its thin-pool target. Errors: `Unsupported` and `Denied`,
/// which say what is missing and what to do.
pub(crate) fn probe() -> Result<String> {
    Control::open()?.target_version()
}

fn options() -> DmOptions {
    DmOptions::private()
}

fn named(name: &str) -> Result<&DmName> {
    DmName::new(name).map_err(|e| Error::with_source(ErrorKind::Invalid, format!("the device name {name:?}"), e))
}

fn errno(error: &DmError) -> Option<Errno> {
    match error {
        DmError::Core(CoreError::Ioctl(_, _, _, errno)) => Some(**errno),
        _ => None,
    }
}

/// Tells an error of device-mapper in this crate's terms.
fn failed(doing: impl Into<String>, error: DmError) -> Error {
    let doing = doing.into();
    let Some(errno) = errno(&error) else { return Error::with_source(ErrorKind::Io, doing, error) };
    let because = |kind, why: &str| Error::with_source(kind, format!("{doing}: {why}"), io::Error::from(errno));
    match errno {
        Errno::ENXIO => because(ErrorKind::NotFound, "there is no such device; another program may have removed it"),
        Errno::ENODEV => because(ErrorKind::NotFound, "a device that the table names is not there"),
        Errno::EBUSY => because(ErrorKind::InUse, "it, or a device that the table names, is in use"),
        Errno::EINVAL => because(ErrorKind::Invalid, "the kernel refuses it, and says why in its log (dmesg)"),
        Errno::ENODATA => because(ErrorKind::NotFound, "the pool has no such thin device"),
        Errno::EOPNOTSUPP => because(ErrorKind::ReadOnly, "the pool takes no changes"),
        Errno::ENOSPC => because(ErrorKind::OutOfMetadataSpace, "the metadata is full"),
        Errno::EACCES | Errno::EPERM => because(ErrorKind::Denied, FOR_ROOT),
        _ => Error::io(doing, errno.into()),
    }
}

/// Opens the control node once, made first where nobody makes nodes; the kernel loads its module at that.
fn open_control_node() -> Result<()> {
    let path = Path::new(CONTROL);
    let open = || File::options().read(true).write(true).open(path).map(drop);
    let missing = |e: io::Error| {
        Error::with_source(
            ErrorKind::Unsupported,
            "this kernel has no device-mapper: load the module dm_mod (modprobe dm_mod), or use the embedded engine",
            e,
        )
    };
    let told = |e: io::Error| match e.raw_os_error() {
        Some(libc::ENODEV | libc::ENXIO) => missing(e),
        Some(libc::EACCES | libc::EPERM) => {
            Error::with_source(ErrorKind::Denied, format!("open {CONTROL}: {FOR_ROOT}"), e)
        }
        _ => Error::io(format!("open {CONTROL}"), e),
    };
    match open() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        opened => return opened.map_err(told),
    }
    let doing = |e: io::Error| Error::io(format!("make the node {CONTROL}"), e);
    DirBuilder::new().recursive(true).mode(0o755).create("/dev/mapper").map_err(doing)?;
    let number = makedev(CONTROL_NUMBER.0, CONTROL_NUMBER.1);
    match mknod(path, SFlag::S_IFCHR, Mode::S_IRUSR | Mode::S_IWUSR, number) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(doing(errno.into())),
    }
    open().map_err(|e| {
        if let Err(e) = remove_file(path) {
            tracing::warn!("the node {CONTROL}, which leads nowhere, stays: {e}");
        }
        told(e)
    })
}

/// Where udev runs, each change waits until its rules have said that they are done; without those of the package
/// dmsetup nobody would ever say so.
fn refuse_deaf_udev() -> Result<()> {
    let answers = |dir: &&str| {
        let names = read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
        names.filter_map(|name| name.into_string().ok()).any(|name| name.ends_with("-dm-notify.rules"))
    };
    if !Path::new(UDEV_SOCKET).exists() || UDEV_RULES.iter().any(answers) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Unsupported,
        "udev runs here without device-mapper's rules (95-dm-notify.rules), and waiting for it would never end: install \
         the package dmsetup; in a container do not pass /run/udev in",
    ))
}
