//! Device ids for new devices: reserved in limbo a few at a time, handed out from memory.
//!
//! Reserving costs a durable commit of the store; sixteen at once make it cost next to nothing for each
//! Prepare. An id that is handed out but not used up goes to the reclaimer: its device may exist.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thinsnap_pool::DeviceId;

use crate::error::Result;
use crate::snapshotter::reclaim::Reclaimer;
use crate::store::Store;

/// Ids in one reservation; after a crash at most these are in limbo without a device.
const RESERVE: usize = 16;

/// The reserve of ids.
pub(crate) struct Ids {
    free: Mutex<Vec<DeviceId>>,
    /// Ids of devices that are made ahead; changed under the lock of `free` when one is taken.
    ahead: Arc<AtomicU64>,
    /// Devices in the pool that are none of ours: their ids are never touched.
    foreign: BTreeSet<DeviceId>,
    reserve: usize,
}

/// An id in limbo whose device is being made. Dropped before [`Reserved::used`], it is reclaimed.
pub(crate) struct Reserved {
    id: DeviceId,
    reclaimer: Arc<Reclaimer>,
    /// Where it is counted as made ahead.
    ahead: Option<Arc<AtomicU64>>,
    used: bool,
}

impl Ids {
    pub(crate) fn new(foreign: BTreeSet<DeviceId>) -> Self {
        Self { free: Mutex::new(Vec::new()), ahead: Arc::default(), foreign, reserve: RESERVE }
    }

    /// An id that no device has. Errors: `NoSpace`.
    pub(crate) fn take(&self, store: &Store, reclaimer: &Arc<Reclaimer>) -> Result<Reserved> {
        let id = self.next(&mut self.lock(), store)?;
        Ok(Reserved { id, reclaimer: reclaimer.clone(), ahead: None, used: false })
    }

    /// The same, for a device that nobody has asked for yet: until it is [`claimed`](Reserved::claimed) its id is in limbo
    /// only because it is reserved.
    pub(crate) fn take_ahead(&self, store: &Store, reclaimer: &Arc<Reclaimer>) -> Result<Reserved> {
        let mut free = self.lock();
        let id = self.next(&mut free, store)?;
        self.ahead.fetch_add(1, Ordering::Relaxed);
        Ok(Reserved { id, reclaimer: reclaimer.clone(), ahead: Some(self.ahead.clone()), used: false })
    }

    fn next(&self, free: &mut Vec<DeviceId>, store: &Store) -> Result<DeviceId> {
        if free.is_empty() {
            let (foreign, count) = (self.foreign.clone(), self.reserve);
            // Under the lock: whoever comes meanwhile wants exactly what this brings.
            *free = store.write(move |txn| txn.reserve_devices(count, &foreign))?;
            // Taken from the end, handed out ascending.
            free.reverse();
        }
        free.pop().ok_or_else(|| {
            crate::error::Error::new(crate::error::ErrorKind::Internal, "reserve a device id: the store gave none")
        })
    }

    /// How many ids are in limbo only because they are reserved.
    pub(crate) fn reserved(&self) -> u64 {
        let free = self.lock();
        free.len() as u64 + self.ahead.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<DeviceId>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reserved {
    pub(crate) fn id(&self) -> DeviceId {
        self.id
    }

    /// Somebody makes a snapshot of the device that was made ahead.
    pub(crate) fn claimed(mut self) -> Self {
        self.uncount();
        self
    }

    fn uncount(&mut self) {
        if let Some(ahead) = self.ahead.take() {
            ahead.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// A record names the device: it has left limbo.
    pub(crate) fn used(mut self) {
        self.used = true;
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.uncount();
        if !self.used {
            self.reclaimer.delete(self.id);
        }
    }
}
