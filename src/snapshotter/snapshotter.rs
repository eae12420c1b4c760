//! The snapshotter: containerd's verbs on thin devices, over one pool and one store.
//!
//! Each verb stands in a file of its own; this one has what they share. All calls are blocking and may
//! come from many threads. Locks, in the order they are taken: a key's claim, the base maker's, a device's
//! hold, the id reserve's; none is held by a reader (stat, list, usage).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use thinsnap_pool::ThinPool;

use crate::config::{Profile, SnapshotterConfig};
use crate::error::Result;
use crate::fs::{Filesystems, HostFilesystems};
use crate::snapshot::Space;
use crate::snapshotter::admission::Admission;
use crate::snapshotter::claims::Claims;
use crate::snapshotter::ids::Ids;
use crate::snapshotter::reclaim::{Reclaimer, Workers};
use crate::snapshotter::recover::{Recovered, recover};
use crate::snapshotter::spares::Spares;
use crate::snapshotter::tripwire;
use crate::store::Store;

/// Threads that give devices back: deletions that come together share the pool's commits.
const RECLAIM_THREADS: usize = 2;

/// Containerd's snapshotter contract over a thin pool.
pub struct Snapshotter {
    pub(super) pool: Arc<dyn ThinPool>,
    pub(super) store: Store,
    pub(super) config: SnapshotterConfig,
    pub(super) filesystems: Arc<dyn Filesystems>,
    pub(super) claims: Arc<Claims>,
    pub(super) ids: Arc<Ids>,
    pub(super) spares: Spares,
    pub(super) bases: Mutex<()>,
    pub(super) admission: Admission,
    pub(super) reclaimer: Arc<Reclaimer>,
    pub(super) workers: Workers,
    changes: AtomicU64,
    recovered: Recovered,
}

/// What a test may replace.
pub struct Parts {
    /// Who makes, grows and mends file systems.
    pub filesystems: Arc<dyn Filesystems>,
    /// Threads that give devices back; with 0 that happens only inside `cleanup`, and nothing is made ahead.
    pub reclaim_threads: usize,
}

impl Snapshotter {
    /// Compares pool and store (identity, transaction id, devices), starts the reclaimer on what the last
    /// run left in limbo. Errors: `Corrupt` if the two do not belong together.
    pub fn open(pool: Arc<dyn ThinPool>, store: Store, config: SnapshotterConfig) -> Result<Arc<Self>> {
        let filesystems = Arc::new(HostFilesystems::new(config.work_dir.clone()));
        filesystems.sweep()?;
        Self::open_with(pool, store, config, Parts { filesystems, reclaim_threads: RECLAIM_THREADS })
    }

    /// The same with other parts.
    pub fn open_with(
        pool: Arc<dyn ThinPool>,
        store: Store,
        config: SnapshotterConfig,
        parts: Parts,
    ) -> Result<Arc<Self>> {
        let found = recover(&*pool, &store)?;
        let claims = Arc::new(Claims::default());
        let reclaimer = Arc::new(Reclaimer::new(pool.clone(), store.clone(), claims.clone()));
        found.queued.iter().for_each(|id| reclaimer.delete(*id));
        found.left_active.iter().for_each(|id| reclaimer.release(*id));
        let ids = Arc::new(Ids::new(found.foreign));
        let spares = Spares::start(
            pool.clone(),
            store.clone(),
            claims.clone(),
            ids.clone(),
            reclaimer.clone(),
            parts.reclaim_threads > 0,
        )?;
        let workers = Workers::start(&reclaimer, parts.reclaim_threads)?;
        Ok(Arc::new(Self {
            pool,
            store,
            config,
            filesystems: parts.filesystems,
            claims,
            ids,
            spares,
            bases: Mutex::new(()),
            admission: Admission::default(),
            reclaimer,
            workers,
            changes: AtomicU64::new(0),
            recovered: found.recovered,
        }))
    }

    /// What recovery found and did at the start.
    #[must_use]
    pub fn recovered(&self) -> &Recovered {
        &self.recovered
    }

    /// The pool below.
    #[must_use]
    pub fn pool(&self) -> &Arc<dyn ThinPool> {
        &self.pool
    }

    /// The store, for the records of rooms above.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Errors with `NoSpace` below the floors, `ReadOnly`.
    pub(super) fn admit(&self) -> Result<()> {
        let admitted = self.admission.check(&*self.pool, &self.config, self.workers.any().then_some(&*self.reclaimer));
        if admitted.is_err() {
            self.spares.clear();
        }
        admitted
    }

    pub(super) fn profile(&self, space: &Space) -> &Profile {
        self.config.profiles.get(space.as_str()).unwrap_or(&self.config.default_profile)
    }

    /// A device has come into the store; every so often the tripwire moves.
    pub(super) fn count_change(&self) {
        if (self.changes.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(tripwire::STRIDE) {
            self.reclaimer.stamp();
        }
    }
}
