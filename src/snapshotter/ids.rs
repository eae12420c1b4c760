//! Device ids for new devices: reserved in limbo a few at a time, handed out from memory.
//!
//! Reserving costs a durable commit of the store; sixteen at once make it cost next to nothing for each
//! Prepare. An id that is handed out but not used up goes to the reclaimer: its device may exist.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use thinsnap_pool::DeviceId;

use crate::error::Result;
use crate::snapshotter::reclaim::Reclaimer;
use crate::store::Store;

/// Ids in one reservation; after a crash at most these are in limbo without a device.
const RESERVE: usize = 16;

/// The reserve of ids.
pub(crate) struct Ids {
    free: Mutex<Vec<DeviceId>>,
    /// Devices in the pool that are none of ours: their ids are never touched.
    foreign: BTreeSet<DeviceId>,
    reserve: usize,
}

/// An id in limbo whose device is being made. Dropped before [`Reserved::used`], it is reclaimed.
pub(crate) struct Reserved {
    id: DeviceId,
    reclaimer: Arc<Reclaimer>,
    used: bool,
}

impl Ids {
    pub(crate) fn new(foreign: BTreeSet<DeviceId>) -> Self {
        Self { free: Mutex::new(Vec::new()), foreign, reserve: RESERVE }
    }

    /// An id that no device has. Errors: `NoSpace`.
    pub(crate) fn take(&self, store: &Store, reclaimer: &Arc<Reclaimer>) -> Result<Reserved> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.is_empty() {
            let (foreign, count) = (self.foreign.clone(), self.reserve);
            // Under the lock: whoever comes meanwhile wants exactly what this brings.
            *free = store.write(move |txn| txn.reserve_devices(count, &foreign))?;
            // Taken from the end, handed out ascending.
            free.reverse();
        }
        let id = free.pop().ok_or_else(|| {
            crate::error::Error::new(crate::error::ErrorKind::Internal, "reserve a device id: the store gave none")
        })?;
        Ok(Reserved { id, reclaimer: reclaimer.clone(), used: false })
    }

    /// How many ids are in limbo only because they are reserved.
    pub(crate) fn reserved(&self) -> u64 {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).len() as u64
    }
}

impl Reserved {
    pub(crate) fn id(&self) -> DeviceId {
        self.id
    }

    /// A record names the device: it has left limbo.
    pub(crate) fn used(mut self) {
        self.used = true;
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if !self.used {
            self.reclaimer.delete(self.id);
        }
    }
}
