//! The snapshotter: containerd's verbs on thin devices, over one pool and one store.

use std::sync::Arc;

use thinsnap_pool::ThinPool;

use crate::config::SnapshotterConfig;
use crate::error::Result;
use crate::snapshot::{Labels, Mount, Name, Snapshot, Space, Usage};
use crate::snapshotter::filter::Filter;
use crate::store::Store;

/// What to change in a snapshot's labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LabelChange {
    /// These labels and no others.
    Replace(Labels),
    /// Set the ones with a value, delete the ones without.
    Merge(Vec<(String, Option<String>)>),
}

/// What recovery did at the start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Device ids of uncertain existence that were deleted.
    pub limbo_drained: u64,
}

/// Containerd's snapshotter contract over a thin pool. All calls are blocking and may come from many threads.
pub struct Snapshotter {
    _private: (),
}

impl Snapshotter {
    /// Compares pool and store (identity, transaction id), drains limbo, starts the reclaimer.
    pub fn open(_pool: Arc<dyn ThinPool>, _store: Store, _config: SnapshotterConfig) -> Result<Arc<Self>> {
        todo!()
    }

    /// New active snapshot of `parent` (committed), or of the base device. Returns its mounts.
    pub fn prepare(&self, _space: &Space, _key: &Name, _parent: Option<&Name>, _labels: Labels) -> Result<Vec<Mount>> {
        todo!()
    }

    /// New read-only view of `parent`, or of the base device.
    pub fn view(&self, _space: &Space, _key: &Name, _parent: Option<&Name>, _labels: Labels) -> Result<Vec<Mount>> {
        todo!()
    }

    /// Mounts of an active snapshot or view; activates its device if need be.
    pub fn mounts(&self, _space: &Space, _key: &Name) -> Result<Vec<Mount>> {
        todo!()
    }

    /// Turns active `key` into committed `name`. `parent` as in containerd's rebase: must be absent or the same.
    pub fn commit(
        &self,
        _space: &Space,
        _name: &Name,
        _key: &Name,
        _labels: Labels,
        _parent: Option<&Name>,
    ) -> Result<()> {
        todo!()
    }

    /// Removes a snapshot without children; its space comes back in the background.
    pub fn remove(&self, _space: &Space, _key: &Name) -> Result<()> {
        todo!()
    }

    /// One record.
    pub fn stat(&self, _space: &Space, _key: &Name) -> Result<Snapshot> {
        todo!()
    }

    /// Changes labels; returns the new record.
    pub fn update(&self, _space: &Space, _key: &Name, _change: LabelChange) -> Result<Snapshot> {
        todo!()
    }

    /// The records that match one of the filters (all, without filters). Never waits for other verbs.
    pub fn list(&self, _space: &Space, _filters: &[Filter]) -> Result<Vec<Snapshot>> {
        todo!()
    }

    /// Resources of one snapshot without its parents.
    pub fn usage(&self, _space: &Space, _key: &Name) -> Result<Usage> {
        todo!()
    }

    /// Waits until what was removed before the call has been given back to the pool.
    pub fn cleanup(&self) -> Result<()> {
        todo!()
    }

    /// All spaces that hold a snapshot or have a profile.
    pub fn spaces(&self) -> Result<Vec<Space>> {
        todo!()
    }

    /// Device ids in limbo.
    pub fn limbo_len(&self) -> Result<u64> {
        todo!()
    }

    /// The pool below.
    pub fn pool(&self) -> &Arc<dyn ThinPool> {
        todo!()
    }
}
