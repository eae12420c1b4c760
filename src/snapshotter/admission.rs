//! Refuses new snapshots while there is still room for the old ones to go on.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use thinsnap_pool::{ByteCount, PoolMode, PoolStatus, ThinPool};

use crate::config::SnapshotterConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::snapshotter::reclaim::Reclaimer;

/// How old an answer may be that lets a snapshot be made; a pool does not fill from its floor to its end in that
/// time. Nobody is refused by an old one.
const STATUS_AGE_MAX: Duration = Duration::from_millis(100);
/// Longest wait for deletions that are on their way, before a snapshot is refused that they may make room for.
const RECLAIM_WAIT: Duration = Duration::from_secs(5);

/// When the pool's last answer had room.
#[derive(Default)]
pub(crate) struct Admission {
    last: Mutex<Option<Instant>>,
}

impl Admission {
    /// Errors with `NoSpace` below a floor, `ReadOnly` if the pool takes no changes.
    /// `reclaimer`: who is giving removed devices back, if anybody is.
    pub(crate) fn check(
        &self,
        pool: &dyn ThinPool,
        config: &SnapshotterConfig,
        reclaimer: Option<&Reclaimer>,
    ) -> Result<()> {
        if self.last().is_some_and(|when| when.elapsed() < STATUS_AGE_MAX) {
            return Ok(());
        }
        let first = self.ask(pool, config);
        match first {
            // What was removed before this call is being given back in the background: it counts.
            Err(error) if error.kind() == ErrorKind::NoSpace && reclaimer.is_some_and(|r| r.settle(RECLAIM_WAIT)) => {
                self.ask(pool, config)
            }
            done => done,
        }
    }

    fn ask(&self, pool: &dyn ThinPool, config: &SnapshotterConfig) -> Result<()> {
        let asked = Instant::now();
        // A glance never tells too much room; nobody is refused by one.
        if judge(&pool.glance()?, config).is_err() {
            judge(&pool.status()?, config)?;
        }
        *self.last() = Some(asked);
        Ok(())
    }

    fn last(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn judge(status: &PoolStatus, config: &SnapshotterConfig) -> Result<()> {
    if let PoolMode::ReadOnly | PoolMode::Fail = status.mode {
        let reason = status.reason.as_deref().unwrap_or("no reason is known");
        return Err(Error::new(ErrorKind::ReadOnly, format!("the pool takes no changes: {reason}"))
            .advise("see `thinsnap pool status`, then run `thinsnap pool check`"));
    }
    // The mode `out_of_data_space` alone refuses nobody: it ends some moments after there is room again. A disk
    // below that is full does not tell how full.
    if status.room.full_below && status.room.below.is_none() {
        let reason = status.reason.as_deref().unwrap_or_default();
        return Err(Error::new(ErrorKind::NoSpace, format!("the pool has no room for new snapshots: {reason}"))
            .advise("make room on the disk below the pool's data"));
    }
    let floor = config.data_floor.of(status.data.total);
    if status.data.free() < floor {
        return Err(full("data", status.data.free(), floor));
    }
    if status.data_room() < floor {
        return Err(Error::new(
            ErrorKind::NoSpace,
            format!(
                "the file system below the pool's data has room for {} more; no new snapshots are made below {floor}",
                status.data_room()
            ),
        )
        .advise("make room on the file system that holds the pool, or remove unused snapshots"));
    }
    // Writers get ENOSPC when they reach the pool's reserve: the floor stands above it.
    let floor = config.metadata_floor.of(status.metadata.total);
    if status.metadata_room() < floor {
        return Err(full("metadata", status.metadata_room(), floor));
    }
    Ok(())
}

fn full(what: &str, free: ByteCount, floor: ByteCount) -> Error {
    Error::new(
        ErrorKind::NoSpace,
        format!("the pool has {free} of {what} space left; no new snapshots are made below {floor}"),
    )
    .advise(format!(
        "grow the pool (thinsnap pool grow --{what} SIZE) or remove unused snapshots (thinsnap snapshot ls; thinsnap \
         pool why-full)"
    ))
}
