//! View: the committed device itself, read-only, shared by all its views.

use thinsnap_pool::Access;

use crate::error::Result;
use crate::snapshot::{Kind, Labels, Mount, Name, Snapshot, Space};
use crate::snapshotter::labels::{check_labels, now_ns};
use crate::snapshotter::mounts::mounts_of;
use crate::snapshotter::snapshotter::Snapshotter;

impl Snapshotter {
    /// New read-only view of `parent` (committed), or of the base device. Returns its mounts. It takes no
    /// space of the pool, so that a full pool can still be looked into.
    ///
    /// Errors: `AlreadyExists`; `NotFound`, `NotCommitted` for the parent; `InUse` if a process still has
    /// the device open for writing from before its commit.
    pub fn view(&self, space: &Space, key: &Name, parent: Option<&Name>, labels: Labels) -> Result<Vec<Mount>> {
        let labels = check_labels(labels)?;
        let _claim = self.claims.key(space, key);
        self.refuse_taken(space, key)?;
        let origin = self.origin(space, parent)?;
        let path = self.pool.activate(origin.device, origin.size, Access::ReadOnly)?;
        let created_ns = now_ns();
        let snapshot = Snapshot {
            name: key.clone(),
            parent: parent.cloned(),
            kind: Kind::View,
            labels,
            created_ns,
            updated_ns: created_ns,
            device: origin.device,
            size: origin.size,
            fs: origin.fs,
            usage: None,
        };
        let mounts = mounts_of(&snapshot, path);
        if let Err(error) = self.insert(space, snapshot, false) {
            // Active without a view: the reclaimer looks whether another one needs it.
            self.reclaimer.release(origin.device);
            return Err(error);
        }
        Ok(mounts)
    }
}
