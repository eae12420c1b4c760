//! Take: an active snapshot that another program made goes on under the key that containerd gives it.
//!
//! containerd chooses the keys that a snapshotter sees, and a migrated snapshot has one that it does not know. A Prepare
//! that names it in [`TAKE_LABEL`] gets it instead of a new one: the record is renamed, in one transaction.

use thinsnap_pool::Access;

use crate::error::{Error, ErrorKind, Result};
use crate::snapshot::{Kind, Labels, Mount, Name, Snapshot, Space};
use crate::snapshotter::labels::now_ns;
use crate::snapshotter::mounts::mounts_of;
use crate::snapshotter::snapshotter::Snapshotter;
use crate::store::{Records, Rows};

/// The label of a Prepare that names the active snapshot which it is to get. containerd hands down labels that begin so.
pub const TAKE_LABEL: &str = "containerd.io/snapshot/thinsnap.take";

impl Snapshotter {
    /// Gives the active snapshot `old` to `key`; its content and its device stay what they are. The caller has claimed
    /// `key`. Errors: `AlreadyExists` (key), `NotFound`, `NotActive` (old), `InvalidArgument` if it has another parent.
    pub(super) fn take(
        &self,
        space: &Space,
        key: &Name,
        parent: Option<&Name>,
        mut labels: Labels,
        old: &str,
    ) -> Result<Vec<Mount>> {
        labels.remove(TAKE_LABEL);
        let old = Name::new(old)?;
        let found = takable(&self.store.read()?, space, &old, parent)?;
        let path = self.pool.activate(found.device, found.size, Access::ReadWrite)?;
        let (in_txn, key, parent) = (space.clone(), key.clone(), parent.cloned());
        // The old name is not claimed: whoever uses it meanwhile finds in his own transaction that it is gone.
        let taken = self.store.write(move |txn| {
            let found = takable(txn, &in_txn, &old, parent.as_ref())?;
            txn.drop_snapshot(&in_txn, &found);
            let mut merged = found.labels.clone();
            merged.extend(labels);
            let taken = Snapshot { name: key, labels: merged, updated_ns: now_ns(), ..found };
            txn.insert_snapshot(&in_txn, &taken)?;
            Ok(taken)
        })?;
        Ok(mounts_of(&taken, path))
    }
}

fn takable(rows: &impl Rows, space: &Space, old: &Name, parent: Option<&Name>) -> Result<Snapshot> {
    let found = rows.get_snapshot(space, old)?;
    if found.kind != Kind::Active {
        return Err(Error::new(ErrorKind::NotActive, format!("take {:?}: it is not active", old.as_str())));
    }
    if found.parent.as_ref() != parent {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            format!("take {:?}: it was made of {:?}", old.as_str(), found.parent.as_ref().map(Name::as_str)),
        ));
    }
    Ok(found)
}
