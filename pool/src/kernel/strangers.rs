//! A pool that another program started: what stands below and on it, and how it is taken down.

use std::fs::read_to_string;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::export::LastingLoop;
use crate::kernel::control::Control;
use crate::kernel::device_number::DeviceNumber;
use crate::kernel::news::{LETTING_GO, News, OFTEN};
use crate::kernel::pool_device::PoolDevice;
use crate::kernel::table::ThinTable;
use crate::units::{BlockSize, ByteCount, DeviceId};

/// What starts the uuid of each of LVM's devices.
const LVM_PREFIX: &str = "LVM-";

/// A pool that device-mapper serves, whoever started it.
pub struct RunningPool {
    /// Its name in device-mapper.
    pub name: String,
    /// The block device with the metadata.
    pub metadata: PathBuf,
    /// The block device with the data.
    pub data: PathBuf,
    /// Where metadata and data are when nobody serves the pool: the file below a loop device, else the disk itself.
    pub homes: [PathBuf; 2],
    /// Size of a data block.
    pub block_size: BlockSize,
    /// LVM started it, and keeps a list of its own of what is in it.
    pub of_lvm: bool,
    /// The thin devices of it that the host sees.
    pub thins: Vec<RunningThin>,
    pool: PoolDevice,
}

/// A thin device that the host sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningThin {
    /// Its name in device-mapper.
    pub name: String,
    /// Its number in the pool.
    pub id: DeviceId,
    /// How large it is.
    pub size: ByteCount,
    /// Who has it open: mounts and processes.
    pub openers: u32,
}

/// The pool with a name (or path below `/dev/mapper`), if it is running. `run_dir`: for nodes where `/dev` has none.
/// Errors: `Invalid` if the name is that of something else, `Unsupported` if the kernel has no thin pools, `Denied`.
pub fn find_running_pool(device: &str, run_dir: &Path) -> Result<Option<RunningPool>> {
    let name = device.strip_prefix("/dev/mapper/").unwrap_or(device);
    let control = Arc::new(Control::open()?);
    let Some(state) = control.state(name)?.filter(|state| state.has_table) else { return Ok(None) };
    let pool = PoolDevice::new(control, name.to_owned(), state.number);
    let table = pool.table()?;
    let [metadata, data] = [table.metadata.node(run_dir)?, table.data.node(run_dir)?];
    Ok(Some(RunningPool {
        name: name.to_owned(),
        homes: [home_of(&metadata)?, home_of(&data)?],
        metadata,
        data,
        block_size: table.block_size,
        of_lvm: state.uuid.starts_with(LVM_PREFIX),
        thins: thins_of(&pool.control, pool.number)?,
        pool,
    }))
}

/// What a block device stands on: the file of a loop device, else itself.
fn home_of(node: &Path) -> Result<PathBuf> {
    let Some(name) = node.file_name().and_then(|name| name.to_str()).filter(|name| name.starts_with("loop")) else {
        return Ok(node.to_owned());
    };
    let fact = |fact: &str| read_to_string(format!("/sys/block/{name}/loop/{fact}")).map(|text| text.trim().to_owned());
    let file = fact("backing_file").map_err(|e| Error::io(format!("ask what {} stands on", node.display()), e))?;
    let whole = ["offset", "sizelimit"].iter().all(|limit| fact(limit).is_ok_and(|value| value == "0"));
    if !whole || !Path::new(&file).is_file() {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("{} stands on a part of {file}, or on a file that was deleted", node.display()),
        ));
    }
    Ok(PathBuf::from(file))
}

/// The thin devices of a pool, whoever made them.
fn thins_of(control: &Control, pool: DeviceNumber) -> Result<Vec<RunningThin>> {
    let mut thins = Vec::new();
    for name in control.names()? {
        // It may be gone since.
        let Some(state) = control.state(&name)?.filter(|state| state.has_table) else { continue };
        let Ok(table) = ThinTable::parse(&control.table(&name)?) else { continue };
        if table.pool == pool {
            let openers = u32::try_from(state.openers).unwrap_or(0);
            thins.push(RunningThin { name, id: table.id, size: table.size, openers });
        }
    }
    Ok(thins)
}

impl RunningPool {
    /// Has the kernel let the pool go: its thin devices first, then itself. Nothing that is stored in it changes, and its
    /// owner can start it again. Done again after a kill it goes on. Errors: `InUse` if one of the devices is open (then
    /// those that were not may be gone), `Unsupported` for a pool of LVM.
    pub fn take_down(&self) -> Result<()> {
        let doing = |e: Error| e.doing(format_args!("take the pool {} down", self.name));
        if self.of_lvm {
            return Err(doing(Error::new(ErrorKind::Unsupported, "it is LVM's: lvchange --activate n takes it down")));
        }
        // Also what was made or opened since the first look.
        let thins = thins_of(&self.pool.control, self.pool.number).map_err(doing)?;
        if let Some(open) = thins.iter().find(|thin| thin.openers > 0) {
            let what = format!("{} is mounted or open: end who has it", open.name);
            return Err(doing(Error::new(ErrorKind::InUse, what)));
        }
        for thin in &thins {
            self.remove(&thin.name).map_err(doing)?;
        }
        self.remove(&self.name).map_err(doing)?;
        // Whoever opens the files next must find nobody between.
        for bound in self.homes.iter().filter_map(|home| LastingLoop::find(home)).filter(LastingLoop::is_idle) {
            bound.detach().map_err(doing)?;
        }
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<()> {
        let control = &self.pool.control;
        let remove = || {
            Ok(if control.remove(name)? {
                std::ops::ControlFlow::Break(true)
            } else {
                std::ops::ControlFlow::Continue(false)
            })
        };
        if News::default().wait(LETTING_GO, OFTEN, remove)? {
            return Ok(());
        }
        control.keep(name)?;
        Err(Error::new(ErrorKind::InUse, format!("{name} is open: end who has it")))
    }
}
