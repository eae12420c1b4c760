//! The engine with the model beside it: what a verb promises is written down when it returns.

use std::path::PathBuf;
use std::sync::Arc;

use thinsnap_pool::{
    Access, ByteCount, ChangedRange, DeviceId, DeviceUsage, EmbeddedPool, PoolMode, PoolStatus, Result, ThinPool,
};

use crate::files::Files;
use crate::model::{Model, SharedModel, Span, lock};
use crate::tokens::BLOCK;

/// The pool as the snapshotter and the stories see it.
pub(crate) struct WatchedPool {
    pub(crate) engine: Arc<EmbeddedPool>,
    pub(crate) model: SharedModel,
    pub(crate) files: Arc<Files>,
}

impl WatchedPool {
    /// Times a verb that ends with a commit, and lets the blocks that it freed be emptied before the next one: the
    /// row of events is the same in every run.
    fn durable<T>(&self, work: impl FnOnce() -> Result<T>) -> (Result<T>, Span) {
        let supply = lock(&self.model).supply().clone();
        let timed = Model::timed(&supply, true, work);
        self.engine.settle();
        timed
    }
}

impl ThinPool for WatchedPool {
    fn create_thin(&self, id: DeviceId) -> Result<()> {
        let (done, span) = self.durable(|| self.engine.create_thin(id));
        lock(&self.model).born(id, None, span);
        done
    }

    fn create_snap(&self, id: DeviceId, origin: DeviceId) -> Result<()> {
        let (done, span) = self.durable(|| self.engine.create_snap(id, origin));
        lock(&self.model).born(id, Some(origin), span);
        self.files.snapshotted(id, origin);
        done
    }

    fn create_active(
        &self,
        id: DeviceId,
        origin: DeviceId,
        size: ByteCount,
        ahead: ByteCount,
    ) -> Result<Option<PathBuf>> {
        let (done, span) = self.durable(|| self.engine.create_active(id, origin, size, ahead));
        lock(&self.model).born(id, Some(origin), span);
        self.files.snapshotted(id, origin);
        done
    }

    fn delete(&self, id: DeviceId) -> Result<()> {
        let (done, span) = self.durable(|| self.engine.delete(id));
        lock(&self.model).died(id, span);
        done
    }

    fn activate(&self, id: DeviceId, size: ByteCount, access: Access) -> Result<PathBuf> {
        self.engine.activate(id, size, access)
    }

    fn deactivate(&self, id: DeviceId) -> Result<bool> {
        let active = self.engine.active_path(id)?.is_some();
        let (done, span) = self.durable(|| self.engine.deactivate(id));
        if active {
            lock(&self.model).flushed(span);
        }
        done
    }

    fn active_path(&self, id: DeviceId) -> Result<Option<PathBuf>> {
        self.engine.active_path(id)
    }

    fn flush(&self, id: DeviceId) -> Result<()> {
        let active = self.engine.active_path(id)?.is_some();
        let (done, span) = self.durable(|| self.engine.flush(id));
        // The flush of an inactive device has nothing to make durable.
        if active {
            lock(&self.model).flushed(span);
        }
        done
    }

    fn usage(&self, id: DeviceId) -> Result<DeviceUsage> {
        self.engine.usage(id)
    }

    fn written(&self, id: DeviceId) -> Result<ByteCount> {
        self.engine.written(id)
    }

    fn delta(&self, from: DeviceId, to: DeviceId) -> Result<Vec<ChangedRange>> {
        self.engine.delta(from, to)
    }

    fn devices(&self) -> Result<Vec<DeviceId>> {
        self.engine.devices()
    }

    /// Admission looks at it from time to time, by the clock: a full pool is shown as one that is not, so that a
    /// story does not depend on how fast it is told.
    fn status(&self) -> Result<PoolStatus> {
        let mut status = self.engine.status()?;
        if status.mode == PoolMode::OutOfDataSpace {
            status.mode = PoolMode::Write;
        }
        Ok(status)
    }

    fn set_transaction_id(&self, from: u64, to: u64) -> Result<()> {
        let (done, span) = self.durable(|| self.engine.set_transaction_id(from, to));
        let mut model = lock(&self.model);
        model.transactions.push(span, to);
        model.flushed(span);
        done
    }

    fn grow(&self, data: Option<ByteCount>, metadata: Option<ByteCount>) -> Result<()> {
        let (done, span) = self.durable(|| self.engine.grow(data, metadata));
        let mut model = lock(&self.model);
        if let Some(data) = data {
            model.data_blocks.push(span, data.0 / BLOCK);
        }
        model.flushed(span);
        done
    }
}
