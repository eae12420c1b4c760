//! Whether the kernel has a pool, for somebody who wants it elsewhere; and the way to get it from there.

use std::ops::ControlFlow;
use std::path::Path;

use crate::device::FileDevice;
use crate::error::{Error, ErrorKind, Result};
use crate::export::LastingLoop;
use crate::kernel::control::Control;
use crate::kernel::kernel_pool::KernelPool;
use crate::kernel::live::superblock_of;
use crate::kernel::names::Names;
use crate::kernel::news::{LETTING_GO, News, OFTEN};
use crate::kernel::opening::lock;
use crate::kernel::options::KernelOptions;
use crate::units::DeviceId;

/// What device-mapper has of a pool.
enum Found {
    Nothing,
    /// A device that its maker, killed meanwhile, did not set up.
    Unfinished,
    Serving,
}

fn look(control: &Control, names: &Names) -> Result<Found> {
    let state = control.state(&names.pool_name())?.filter(|state| state.uuid == names.pool_uuid());
    Ok(match state {
        None => Found::Nothing,
        Some(state) if state.has_table => Found::Serving,
        Some(_) => Found::Unfinished,
    })
}

/// `None` on a machine without device-mapper, which serves no pool.
fn device_mapper() -> Result<Option<Control>> {
    match Control::open() {
        Ok(control) => Ok(Some(control)),
        Err(e) if matches!(e.kind(), ErrorKind::Unsupported | ErrorKind::Denied) => Ok(None),
        Err(e) => Err(e),
    }
}

/// True if the kernel serves the pool whose metadata is at `metadata`, whoever told it to.
pub(crate) fn serves(metadata: &Path, options: &KernelOptions) -> Result<bool> {
    let Some(control) = device_mapper()? else { return Ok(false) };
    let names = Names::new(superblock_of(metadata)?.identity, options.name.as_deref())?;
    Ok(matches!(look(&control, &names)?, Found::Serving))
}

/// Takes the pool down if the kernel serves it and nobody has a device of it open, and with it what a start that was
/// cut short left. Returns the devices that are open; if there are any, nothing was changed.
pub(crate) fn withdraw(paths: [&Path; 2], options: &KernelOptions) -> Result<Vec<DeviceId>> {
    let [metadata, data] = paths;
    if let Some(control) = device_mapper()? {
        let names = Names::new(superblock_of(metadata)?.identity, options.name.as_deref())?;
        match look(&control, &names)? {
            Found::Nothing => {}
            Found::Unfinished => {
                let _lock = lock(metadata)?;
                control.remove(&names.pool_name())?;
            }
            Found::Serving => {
                let pool = KernelPool::open(metadata, data, options)?;
                let busy = pool.devices_in_use()?;
                if busy.is_empty() {
                    pool.close()?;
                }
                return Ok(busy);
            }
        }
    }
    let _lock = lock(metadata)?;
    for path in paths {
        free_left_over(path)?;
    }
    Ok(Vec::new())
}

/// Frees the file at `path` from the loop device that a killed process left on it before there was a pool on that.
/// The caller holds the pool's lock.
pub(super) fn free_left_over(path: &Path) -> Result<()> {
    let real = path.canonicalize().map_err(|e| Error::io(format!("open {}", path.display()), e))?;
    let Some(left) = LastingLoop::find(&real).filter(LastingLoop::is_idle) else { return Ok(()) };
    // A loop device of another program holds no lock of ours, and is none of our business.
    match FileDevice::open(path) {
        Err(e) if e.kind() == ErrorKind::InUse => {}
        other => return other.map(drop),
    }
    tracing::info!(
        "{} is let go: a start that was cut short had bound it to {}",
        left.path().display(),
        real.display()
    );
    left.detach()?;
    let gone = || Ok(if left.is_bound() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) });
    News::default().wait(LETTING_GO, OFTEN, gone)
}
