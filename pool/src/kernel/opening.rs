//! The way to a running pool: found as it runs, or set up, with what it stands on.

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

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
use crate::meta::{Metadata, OpenMode};
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
    let pool = PoolDevice {
        control: Arc::clone(control),
        name: names.pool_name(),
        number: state.number,
        running: RwLock::default(),
    };
    let table = pool.table()?;
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
    let found = Metadata::open(Arc::clone(&metadata.device) as Arc<dyn BlockDevice>, OpenMode::ReadWrite)?;
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

/// The right to command a pool; other processes of ours have it when this one is dropped, or dead.
pub(super) struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// Takes the file away, for a pool that nobody commands any more; the right itself lasts as long as this value.
    pub(super) fn remove(&self) -> Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io(format!("remove {}", self.path.display()), e))
            }
            _ => Ok(()),
        }
    }

    /// True while the file is the one that others lock too.
    fn is_in_place(&self) -> Result<bool> {
        let fail = |e| Error::io(format!("lock {}", self.path.display()), e);
        let ours = self.file.metadata().map_err(fail)?;
        match self.path.symlink_metadata() {
            Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(fail(e)),
        }
    }
}

/// One process at a time on a pool.
pub(super) fn lock(run_dir: &Path, name: &str) -> Result<Lock> {
    loop {
        let lock = try_lock(run_dir, name)?;
        // Whoever had it may have taken the file away between our opening and our locking.
        if lock.is_in_place()? {
            return Ok(lock);
        }
    }
}

fn try_lock(run_dir: &Path, name: &str) -> Result<Lock> {
    let path = run_dir.join(format!("{name}.lock"));
    let doing = || format!("lock {}", path.display());
    DirBuilder::new().recursive(true).mode(0o700).create(run_dir).map_err(|e| Error::io(doing(), e))?;
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&path)
        .map_err(|e| Error::io(doing(), e))?;
    match file.try_lock() {
        Ok(()) => Ok(Lock { file, path: path.clone() }),
        Err(std::fs::TryLockError::WouldBlock) => {
            Err(Error::new(ErrorKind::InUse, format!("{}: another process of thinsnap has the pool", doing())))
        }
        Err(std::fs::TryLockError::Error(e)) => Err(Error::io(doing(), e)),
    }
}

/// A name for the device or file itself, whatever path leads to it.
pub(super) fn lock_name(path: &Path) -> Result<String> {
    let seen = path.metadata().map_err(|e| Error::io(format!("look at {}", path.display()), e))?;
    Ok(if seen.file_type().is_block_device() {
        format!("kernel-{}", DeviceNumber::of(path)?)
    } else {
        format!("kernel-{:x}-{:x}", seen.dev(), seen.ino())
    })
}
