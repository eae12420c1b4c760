//! Remove and Cleanup: the record goes at once, the space in the background.

use thinsnap_pool::DeviceId;

use crate::error::{Error, ErrorKind, Result};
use crate::snapshot::{Kind, Name, Space};
use crate::snapshotter::snapshotter::Snapshotter;
use crate::store::{Limbo, Records};

impl Snapshotter {
    /// Removes a snapshot without children, also one that is still mounted: its device goes when its user
    /// lets go. The key is free at return. Errors: `NotFound`, `HasChildren`.
    pub fn remove(&self, space: &Space, key: &Name) -> Result<()> {
        let _claim = self.claims.key(space, key);
        let (in_txn, name) = (space.clone(), key.clone());
        let gone = self.store.write(move |txn| {
            let snapshot = txn.get_snapshot(&in_txn, &name)?;
            if txn.has_children(&in_txn, &name)? {
                return Err(Error::new(
                    ErrorKind::HasChildren,
                    format!("cannot remove snapshot {:?}: it has children", name.as_str()),
                )
                .advise("remove the snapshots and views made of it first (thinsnap snapshot tree)"));
            }
            txn.drop_snapshot(&in_txn, &snapshot);
            match snapshot.kind {
                Kind::View => {}
                Kind::Active | Kind::Committed => txn.enter_limbo(snapshot.device),
            }
            Ok(snapshot)
        })?;
        match gone.kind {
            Kind::View => self.reclaimer.release(gone.device),
            Kind::Active => self.reclaimer.delete(gone.device),
            Kind::Committed => {
                // Before its id can be another device's.
                self.spares.forget(gone.device);
                self.reclaimer.delete(gone.device);
            }
        }
        Ok(())
    }

    /// Waits until what was removed before the call has been given back to the pool. Devices that a
    /// process still has open stay in limbo, and are tried again from time to time.
    pub fn cleanup(&self) -> Result<()> {
        self.spares.settle();
        self.reclaimer.drain(self.workers.any());
        Ok(())
    }

    /// Devices made ahead, which no snapshot has yet.
    pub fn devices_ahead(&self) -> Vec<DeviceId> {
        self.spares.devices()
    }

    /// Device ids that wait to be given back to the pool.
    pub fn limbo_len(&self) -> Result<u64> {
        let reserved = self.ids.reserved();
        Ok((self.store.read()?.limbo()?.len() as u64).saturating_sub(reserved))
    }
}
