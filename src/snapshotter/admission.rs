//! Refuses new snapshots while there is still room for the old ones to go on.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use thinsnap_pool::{ByteCount, PoolMode, PoolStatus, ThinPool};

use crate::config::SnapshotterConfig;
use crate::error::{Error, ErrorKind, Result};

/// How old the pool's answer may be; a pool does not fill from its floor to its end in that time.
const STATUS_AGE_MAX: Duration = Duration::from_millis(100);

/// The pool's last answer.
#[derive(Default)]
pub(crate) struct Admission {
    last: Mutex<Option<(Instant, PoolStatus)>>,
}

impl Admission {
    /// Errors with `NoSpace` below a floor, `ReadOnly` if the pool takes no changes.
    pub(crate) fn check(&self, pool: &dyn ThinPool, config: &SnapshotterConfig) -> Result<()> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let status = match &mut *last {
            Some((when, status)) if when.elapsed() < STATUS_AGE_MAX => status,
            stale => &stale.insert((Instant::now(), pool.status()?)).1,
        };
        match status.mode {
            PoolMode::Write => {}
            PoolMode::OutOfDataSpace => return Err(full("data", status.data.free(), config.data_floor)),
            PoolMode::ReadOnly | PoolMode::Fail => {
                let reason = status.reason.as_deref().unwrap_or("no reason is known");
                return Err(Error::new(ErrorKind::ReadOnly, format!("the pool takes no changes: {reason}"))
                    .advise("see `thinsnap pool status`, then run `thinsnap pool check`"));
            }
        }
        if status.data.free() < config.data_floor {
            return Err(full("data", status.data.free(), config.data_floor));
        }
        // Writers get ENOSPC when they reach the pool's reserve: the floor stands above it.
        let metadata_free = ByteCount(status.metadata.free().0.saturating_sub(status.metadata_reserve.0));
        if metadata_free < config.metadata_floor {
            return Err(full("metadata", metadata_free, config.metadata_floor));
        }
        Ok(())
    }
}

fn full(what: &str, free: ByteCount, floor: ByteCount) -> Error {
    Error::new(
        ErrorKind::NoSpace,
        format!("the pool has {free} of {what} space left; no new snapshots are made below {floor}"),
    )
    .advise(format!(
        "grow the pool (thinsnap pool grow --{what} SIZE) or remove unused snapshots (thinsnap snapshot ls)"
    ))
}
