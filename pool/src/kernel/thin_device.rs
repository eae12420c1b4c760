//! A thin device that the host sees: made, found again, grown, flushed, taken away.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::device::write_back;
use crate::error::{Error, ErrorKind, Result};
use crate::kernel::control::{Control, State};
use crate::kernel::names::Names;
use crate::kernel::pool_device::PoolDevice;
use crate::kernel::table::ThinTable;
use crate::thin_pool::Access;
use crate::units::{ByteCount, DeviceId, SECTOR_SIZE};

/// The devices of one pool that the host sees. Nothing is kept here: the kernel knows which there are.
pub(super) struct ThinDevices<'a> {
    pub(super) pool: &'a PoolDevice,
    pub(super) names: &'a Names,
    pub(super) run_dir: &'a Path,
}

impl ThinDevices<'_> {
    fn control(&self) -> &Control {
        &self.pool.control
    }

    /// The device's state if it is active. Errors: `InUse` if another's device has its name.
    pub(super) fn state(&self, id: DeviceId) -> Result<Option<State>> {
        let name = self.names.thin_name(id);
        let Some(state) = self.control().state(&name)? else { return Ok(None) };
        if state.uuid != self.names.thin_uuid(id) {
            return Err(Error::new(
                ErrorKind::InUse,
                format!(
                    "the name {name} belongs to a device that is not ours (uuid {:?}): rename or remove it",
                    state.uuid
                ),
            ));
        }
        Ok(Some(state))
    }

    /// All active devices, ascending.
    pub(super) fn active(&self) -> Result<Vec<DeviceId>> {
        let mut ids: Vec<DeviceId> =
            self.control().names()?.iter().filter_map(|name| self.names.thin_id(name)).collect();
        ids.sort_unstable();
        Ok(ids)
    }

    pub(super) fn path(&self, state: &State) -> Result<PathBuf> {
        state.number.node(self.run_dir)
    }

    /// Shows a device that is not active yet. Errors: `NotFound` if the pool has none with this id.
    pub(super) fn show(&self, table: &ThinTable, access: Access) -> Result<PathBuf> {
        let name = self.names.thin_name(table.id);
        let control = self.control();
        let _running = self.pool.keep_running();
        let made = control.create(&name, &self.names.thin_uuid(table.id))?;
        let shown = control
            .load(&name, &table.line(), access == Access::ReadOnly)
            .and_then(|()| control.resume(&name))
            .and_then(|()| self.path(&made));
        if shown.is_err()
            && let Err(e) = control.remove(&name)
        {
            tracing::warn!("{name}, which could not be set up, stays behind: {e}");
        }
        shown
    }

    /// Gives an active device what a second activation asks for: the same, or more room.
    pub(super) fn again(&self, state: &State, wanted: &ThinTable, access: Access) -> Result<PathBuf> {
        let name = self.names.thin_name(wanted.id);
        let in_use = |why: &str| Err(Error::new(ErrorKind::InUse, why));
        if state.leaving {
            return in_use("it was deactivated, and its last user has not closed it yet");
        }
        let table = ThinTable::parse(&self.control().table(&name)?).map_err(|e| {
            e.doing(format_args!("{name} is somebody else's: if nobody needs it, remove it (dmsetup remove {name})"))
        })?;
        if (table.pool, table.id) != (wanted.pool, wanted.id) {
            return in_use("a device with its name belongs to another pool: remove it (dmsetup remove)");
        }
        match (state.read_only, access) {
            (true, Access::ReadWrite) => return in_use("it is active for reading"),
            (false, Access::ReadOnly) => return in_use("it is active for writing"),
            (true, Access::ReadOnly) | (false, Access::ReadWrite) => {}
        }
        if wanted.origin.is_some() && wanted.origin != table.origin {
            return in_use("it is active over another external device");
        }
        if wanted.size > table.size {
            let _running = self.pool.keep_running();
            let larger = ThinTable { size: wanted.size, ..table };
            self.control().load(&name, &larger.line(), state.read_only)?;
            self.control().resume(&name)?;
        } else if state.suspended {
            self.control().resume(&name)?;
        }
        self.path(state)
    }

    /// Waits until all that was written to the device has reached the pool, which makes it durable with its next commit.
    /// Errors: also what was met by writes that nobody has been told of yet.
    pub(super) fn write_back(&self, state: &State) -> Result<()> {
        let path = self.path(state)?;
        File::open(&path)
            .and_then(|device| write_back(&device))
            .map_err(|e| Error::io(format!("write back {}", path.display()), e))
    }

    /// Makes all that was written to the device durable.
    pub(super) fn flush(&self, state: &State) -> Result<()> {
        let path = self.path(state)?;
        File::open(&path)
            .and_then(|device| device.sync_all())
            .map_err(|e| Error::io(format!("flush {}", path.display()), e))
    }

    /// Takes the device away; true: it is out of sight at return, and nobody has it.
    pub(super) fn hide(&self, id: DeviceId) -> Result<bool> {
        self.pool.removals.remove(&self.pool.control, &self.names.thin_name(id))
    }

    /// Runs `work` while the device, if it is active, holds its requests back and none is on its way.
    pub(super) fn quiesced<T>(&self, id: DeviceId, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let active = self.state(id)?.filter(|state| state.has_table && !state.suspended);
        if active.is_none() {
            return work();
        }
        let name = self.names.thin_name(id);
        self.control().suspend(&name)?;
        let _resume = crate::kernel::pool_device::Resume { control: self.control(), name: &name };
        work()
    }
}

/// Errors with `Invalid` unless a block device can have this size.
pub(super) fn check_size(size: ByteCount) -> Result<()> {
    if size.0 == 0 || !size.0.is_multiple_of(SECTOR_SIZE) {
        return Err(Error::new(
            ErrorKind::Invalid,
            format!("a size of {} bytes is no multiple of {SECTOR_SIZE}", size.0),
        ));
    }
    Ok(())
}
