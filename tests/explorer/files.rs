//! File systems made of tokens: making, mounting and mending one are writes and flushes of its device.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thinsnap::error::Result as ServiceResult;
use thinsnap::fs::Filesystems;
use thinsnap::snapshot::FsType;
use thinsnap_pool::{BlockDevice, ByteCount, DeviceId, Result};

use crate::direct_exporter::{DirectExporter, Opened};
use crate::model::{Change, Model, SharedModel, Span, lock};
use crate::tokens::{SECTOR, bytes_of};

#[derive(Default)]
struct State {
    mounted: BTreeMap<DeviceId, Opened>,
    /// Devices whose journal holds something.
    dirty: BTreeSet<DeviceId>,
}

/// The file systems of one machine.
pub(crate) struct Files {
    exporter: Arc<DirectExporter>,
    /// `None`: nobody wants to know.
    model: Option<SharedModel>,
    state: Mutex<State>,
}

fn device_of(path: &Path) -> DeviceId {
    DeviceId::new(path.file_name().unwrap().to_str().unwrap().parse().unwrap()).unwrap()
}

impl Files {
    pub(crate) fn new(exporter: Arc<DirectExporter>, model: Option<SharedModel>) -> Self {
        Self { exporter, model, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes sectors of an active device.
    pub(crate) fn write(&self, id: DeviceId, first: u64, sectors: u64) -> Result<()> {
        let token = self.model.as_ref().map_or(1, |model| lock(model).next_token());
        let bytes = bytes_of(token, sectors);
        self.changing(id, first, sectors, token, |device| device.write_at(&bytes, first * SECTOR))
    }

    /// Discards sectors of an active device; whole blocks.
    pub(crate) fn discard(&self, id: DeviceId, first: u64, sectors: u64) -> Result<()> {
        self.changing(id, first, sectors, 0, |device| device.discard(first * SECTOR, sectors * SECTOR))
    }

    /// Zeroes sectors of an active device.
    pub(crate) fn zero(&self, id: DeviceId, first: u64, sectors: u64) -> Result<()> {
        self.changing(id, first, sectors, 0, |device| device.write_zeroes(first * SECTOR, sectors * SECTOR))
    }

    fn changing(
        &self,
        id: DeviceId,
        first: u64,
        sectors: u64,
        token: u64,
        work: impl FnOnce(&dyn BlockDevice) -> Result<()>,
    ) -> Result<()> {
        let device = self.exporter.open(id);
        let Some(model) = &self.model else { return work(&*device) };
        let supply = lock(model).supply().clone();
        let (done, span) = Model::timed(&supply, false, || work(&*device));
        lock(model).changed(id, Change { span, first, sectors, token });
        done
    }

    /// Flushes an active device.
    pub(crate) fn flush(&self, id: DeviceId) -> Result<()> {
        let device = self.exporter.open(id);
        let Some(model) = &self.model else { return device.flush() };
        let supply = lock(model).supply().clone();
        let (done, span): (_, Span) = Model::timed(&supply, true, || device.flush());
        lock(model).flushed(span);
        done
    }

    /// Keeps a device open, and its journal with something in it.
    pub(crate) fn mount(&self, id: DeviceId) {
        let opened = self.exporter.open(id);
        let mut state = self.state();
        state.mounted.entry(id).or_insert(opened);
        state.dirty.insert(id);
    }

    pub(crate) fn is_mounted(&self, id: DeviceId) -> bool {
        self.state().mounted.contains_key(&id)
    }

    /// In order, with a flush; or torn away, with the journal as it is.
    pub(crate) fn unmount(&self, id: DeviceId, in_order: bool) -> Result<()> {
        if in_order {
            self.write(id, 0, 2)?;
            self.flush(id)?;
            self.state().dirty.remove(&id);
        }
        let gone = self.state().mounted.remove(&id);
        drop(gone);
        Ok(())
    }

    /// Closes whatever is open.
    pub(crate) fn unmount_all(&self) {
        let all = std::mem::take(&mut self.state().mounted);
        drop(all);
    }

    /// A snapshot has the journal of its origin.
    pub(crate) fn snapshotted(&self, id: DeviceId, origin: DeviceId) {
        let mut state = self.state();
        if state.dirty.contains(&origin) {
            state.dirty.insert(id);
        }
    }
}

impl Filesystems for Files {
    fn make(&self, _fs: FsType, device: &Path, _size: ByteCount) -> ServiceResult<()> {
        let id = device_of(device);
        self.write(id, 0, 20)?;
        self.write(id, 200, 3)?;
        Ok(self.flush(id)?)
    }

    fn grow(&self, _fs: FsType, device: &Path) -> ServiceResult<()> {
        Ok(self.flush(device_of(device))?)
    }

    fn needs_replay(&self, _fs: FsType, device: &Path) -> ServiceResult<bool> {
        Ok(self.state().dirty.contains(&device_of(device)))
    }

    fn replay(&self, _fs: FsType, device: &Path) -> ServiceResult<()> {
        let id = device_of(device);
        self.write(id, 4, 6)?;
        self.write(id, 130, 1)?;
        self.flush(id)?;
        self.state().dirty.remove(&id);
        Ok(())
    }

    fn sync_mounted(&self, device: &Path) -> ServiceResult<bool> {
        let id = device_of(device);
        if !self.is_mounted(id) {
            return Ok(false);
        }
        self.write(id, 300, 4)?;
        self.flush(id)?;
        Ok(true)
    }

    fn limit_dirty(&self, _device: &Path, _max: ByteCount) -> ServiceResult<()> {
        Ok(())
    }
}
