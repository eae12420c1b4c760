//! The way to a running pool: found as it runs, or set up, with what it stands on.

use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use crate::device::BlockDevice;
use crate::error::{Error, ErrorKind, Result};
use crate::kernel::backing::{Below, claim};
use crate::kernel::control::{Control, State};
use crate::kernel::device_number::DeviceNumber;
use crate::kernel::heal::heal_pool;
use crate::kernel::names::Names;
use crate::kernel::options::PoolFeatures;
use crate::kernel::pool_device::PoolDevice;
use crate::kernel::table::PoolTable;
use crate::meta::{Metadata, write_served};
use crate::units::ByteCount;

/// The pool's device, with a table, if the kernel serves it. Errors: `InUse` if another's has its name.
pub(super) fn find_pool(control: &Control, names: &Names) -> Result<Option<State>> {
    let name = names.pool_name();
    let Some(state) = control.state(&name)? else { return Ok(None) };
    if state.uuid != names.pool_uuid() {
        return Err(Error::new(
            ErrorKind::InUse,
            format!(
                "the name {name} belongs to a device that is not this pool (uuid {:?}): rename or remove it",
                state.uuid
            ),
        ));
    }
    if !state.has_table {
        // Made, and its maker killed before it was set up.
        control.remove(&name)?;
        return Ok(None);
    }
    heal_pool(control, &name, &state)?;
    Ok(Some(state))
}

/// Goes on with a pool that runs. Errors: `InUse` if it runs on other devices than these.
pub(super) fn attach(
    control: &Arc<Control>,
    names: &Names,
    state: &State,
    paths: [&Path; 2],
    features: PoolFeatures,
) -> Result<[Below; 2]> {
    let pool = PoolDevice::new(Arc::clone(control), names.pool_name(), state.number);
    let table = pool.table().map_err(|e| {
        e.doing(format_args!("{0} is somebody else's: if nobody needs it, remove it (dmsetup remove {0})", pool.name))
    })?;
    let below = |path: &Path, number: DeviceNumber| match Below::find(path)? {
        Some(below) if below.number == number => Ok(below),
        _ => Err(Error::new(
            ErrorKind::InUse,
            format!(
                "the pool {} runs already, and not on {} but on the device {number}: is one a copy of the other?",
                pool.name,
                path.display()
            ),
        )),
    };
    let found = [below(paths[0], table.metadata)?, below(paths[1], table.data)?];
    if table.features != features {
        pool.reload(&PoolTable { features, ..table })?;
    }
    Ok(found)
}

/// Has the kernel serve a pool. After an error nothing is left of it.
pub(super) fn start(
    control: &Control,
    names: &Names,
    paths: [&Path; 2],
    features: PoolFeatures,
) -> Result<(DeviceNumber, [Below; 2])> {
    let [metadata, data] = [claim(paths[0])?, claim(paths[1])?];
    // As strictly as the embedded engine: the kernel looks at little of this before it is too late.
    let found = Metadata::open_settled(Arc::clone(&metadata.device) as Arc<dyn BlockDevice>)?;
    if found.is_logged() {
        return Err(Error::new(
            ErrorKind::InUse,
            "the embedded engine, which served it with an intent log, was not closed: open it once with the embedded \
             engine and that log (or say where the log is), which drains it",
        ));
    }
    let (block_size, blocks) = (found.block_size(), found.data_space().total);
    drop(found);
    let size = blocks.saturating_mul(block_size.bytes());
    if data.device.size() < size {
        return Err(Error::new(
            ErrorKind::Corrupt,
            format!(
                "the pool's {blocks} data blocks need {size} bytes, {} has {}: it was cut short",
                paths[1].display(),
                data.device.size()
            ),
        ));
    }
    write_served(&*metadata.device, true)?;
    let metadata = metadata.show()?;
    let data = data.show().inspect_err(|_| give_back(&metadata))?;
    let table = PoolTable {
        data_size: ByteCount(size),
        metadata: metadata.number,
        data: data.number,
        block_size,
        features,
        read_only: false,
    };
    match run(control, names, &table) {
        Ok(number) => Ok((number, [metadata, data])),
        Err(e) => {
            give_back(&metadata);
            give_back(&data);
            Err(e)
        }
    }
}

fn give_back(below: &Below) {
    if let Err(e) = below.let_go() {
        tracing::warn!("{} stays bound after a start that failed: {e}", below.node.display());
    }
}

/// Sets the pool's device up.
fn run(control: &Control, names: &Names, table: &PoolTable) -> Result<DeviceNumber> {
    let name = names.pool_name();
    control.create(&name, &names.pool_uuid())?;
    let running = control.load(&name, &table.line(), false).and_then(|()| control.resume(&name)).and_then(|()| {
        let gone = || Error::new(ErrorKind::NotFound, format!("{name} has gone as soon as it was made"));
        Ok(control.state(&name)?.ok_or_else(gone)?.number)
    });
    if running.is_err()
        && let Err(e) = control.remove(&name)
    {
        tracing::warn!("{name}, which could not be set up, stays behind: {e}");
    }
    running
}

/// The right to command a pool; another process of ours has it when this one is done with it, or dead.
///
/// It is a lock on a range of the metadata's file or device node, far behind its end: whatever directories two processes
/// use, they meet here. It is none of the locks on whole files by which loop devices and the embedded engine hold a pool.
pub(super) struct Lock {
    file: File,
    path: PathBuf,
}

/// Where the range begins: no file ends behind it.
const LOCK_AT: i64 = i64::MAX - 1;

fn range(kind: i32) -> libc::flock {
    // The kernel wants to know of no process: the lock is the open file's.
    libc::flock {
        l_type: i16::try_from(kind).unwrap_or_default(),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: LOCK_AT,
        l_len: 1,
        l_pid: 0,
    }
}

impl Lock {
    /// Gives the right back, for a pool that is not commanded any more.
    pub(super) fn give_back(&self) -> Result<()> {
        let given = fcntl(&self.file, FcntlArg::F_OFD_SETLK(&range(libc::F_UNLCK)));
        given.map(drop).map_err(|e| Error::io(format!("unlock {}", self.path.display()), e.into()))
    }
}

/// Takes the right to command the pool whose metadata is at `metadata`. Errors: `InUse`.
pub(super) fn lock(metadata: &Path) -> Result<Lock> {
    let doing = || format!("lock {}", metadata.display());
    let file = File::options().read(true).write(true).open(metadata).map_err(|e| Error::io(doing(), e))?;
    match fcntl(&file, FcntlArg::F_OFD_SETLK(&range(libc::F_WRLCK))) {
        Ok(_) => Ok(Lock { file, path: metadata.to_owned() }),
        Err(Errno::EAGAIN | Errno::EACCES) => {
            Err(Error::new(ErrorKind::InUse, format!("{}: another process of thinsnap has the pool", doing())))
        }
        Err(errno) => Err(Error::io(doing(), errno.into())),
    }
}

/// Makes the directory for marks and nodes if it is not there.
pub(super) fn make_run_dir(dir: &Path) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|e| Error::io(format!("make {}", dir.display()), e))
}
