//! A pool that remembers which devices there are and nothing else: no bytes, no block devices.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use thinsnap_pool::{
    Access, BlockSize, ByteCount, ChangedRange, DeviceId, DeviceUsage, Error, ErrorKind, PoolMode, PoolStatus, Result,
    Space, ThinPool,
};

#[derive(Default)]
struct State {
    devices: BTreeSet<DeviceId>,
    active: BTreeSet<DeviceId>,
    transaction_id: u64,
}

/// Answers every call as a healthy pool would.
#[derive(Default)]
pub(crate) struct FakePool {
    state: Mutex<State>,
    /// It has no room for new devices: then nobody makes a file system.
    is_full: bool,
}

impl FakePool {
    /// A pool that refuses new devices.
    pub(crate) fn full() -> Self {
        Self { is_full: true, ..Self::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn create(&self, id: DeviceId) -> Result<()> {
        if self.is_full {
            return Err(Error::new(ErrorKind::OutOfDataSpace, format!("create device {id}")));
        }
        if self.state().devices.insert(id) {
            Ok(())
        } else {
            Err(Error::new(ErrorKind::AlreadyExists, format!("device {id} exists")))
        }
    }

    fn known(&self, id: DeviceId) -> Result<()> {
        if self.state().devices.contains(&id) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::NotFound, format!("device {id} does not exist")))
    }
}

fn path(id: DeviceId) -> PathBuf {
    PathBuf::from(format!("/nowhere/device-{id}"))
}

impl ThinPool for FakePool {
    fn create_thin(&self, id: DeviceId) -> Result<()> {
        self.create(id)
    }

    fn create_snap(&self, id: DeviceId, origin: DeviceId) -> Result<()> {
        self.known(origin)?;
        self.create(id)
    }

    fn delete(&self, id: DeviceId) -> Result<()> {
        self.state().devices.remove(&id);
        Ok(())
    }

    fn activate(&self, id: DeviceId, _size: ByteCount, _access: Access) -> Result<PathBuf> {
        self.known(id)?;
        self.state().active.insert(id);
        Ok(path(id))
    }

    fn deactivate(&self, id: DeviceId) -> Result<bool> {
        self.state().active.remove(&id);
        Ok(true)
    }

    fn active_path(&self, id: DeviceId) -> Result<Option<PathBuf>> {
        Ok(self.state().active.contains(&id).then(|| path(id)))
    }

    fn flush(&self, id: DeviceId) -> Result<()> {
        self.known(id)
    }

    fn usage(&self, id: DeviceId) -> Result<DeviceUsage> {
        self.known(id).map(|()| DeviceUsage::default())
    }

    fn written(&self, id: DeviceId) -> Result<ByteCount> {
        self.known(id).map(|()| ByteCount(0))
    }

    fn delta(&self, from: DeviceId, to: DeviceId) -> Result<Vec<ChangedRange>> {
        self.known(from)?;
        self.known(to)?;
        Ok(Vec::new())
    }

    fn devices(&self) -> Result<Vec<DeviceId>> {
        Ok(self.state().devices.iter().copied().collect())
    }

    fn status(&self) -> Result<PoolStatus> {
        let space = Space { used: ByteCount(0), total: ByteCount(1 << 40) };
        let state = self.state();
        Ok(PoolStatus {
            identity: [7; 16],
            engine: "fake".to_owned(),
            mode: PoolMode::Write,
            reason: None,
            block_size: BlockSize::DEFAULT,
            data: space,
            metadata: space,
            metadata_reserve: ByteCount(1 << 20),
            transaction_id: state.transaction_id,
            time: 0,
            devices: state.devices.len() as u64,
            active_devices: state.active.len() as u64,
            metadata_snapshot: false,
            room: thinsnap_pool::Room::default(),
        })
    }

    fn set_transaction_id(&self, _from: u64, to: u64) -> Result<()> {
        self.state().transaction_id = to;
        Ok(())
    }

    fn grow(&self, _data: Option<ByteCount>, _metadata: Option<ByteCount>) -> Result<()> {
        Ok(())
    }
}
