//! Brings the last changes of the embedded engine into the metadata, so that the kernel may have the pool.
//!
//! While the embedded engine serves a pool with an intent log, the superblock carries a mark that no kernel knows
//! (bit 24 of compat_ro_flags): dm-thin refuses to write to such a pool, whoever asks. A clean close takes log and mark
//! away. After a kill both stand, and the log may hold what no commit has; after a power cut the mark stands and the
//! log is void. Either way the cure is to open the pool once with the embedded engine and to close it.

use std::path::Path;
use std::sync::Arc;

use crate::embedded::{EmbeddedOptions, EmbeddedPool, IntentLogState};
use crate::error::{Error, ErrorKind, Result};
use crate::export::{Exporter, Unshown};
use crate::kernel::superblock_of;
use crate::open::{PoolPaths, intent_log_of, open_embedded};

/// What a drain found, and put right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Drained {
    /// Acknowledged changes that were in the intent log and perhaps in no commit.
    pub records: u64,
    /// The mark that keeps the kernel from the pool stood, and is taken off.
    pub marked: bool,
}

/// Commits what a killed embedded engine had acknowledged, and takes its log at `intent_log` and its mark away, so that
/// the kernel, LVM or dmsetup may have the pool. A pool without either is left as it is. Errors: `InUse` while an engine
/// serves the pool, `DoubtfulLog` (nothing was changed), and what [`open_embedded`] meets.
pub fn drain(paths: &PoolPaths, intent_log: &Path) -> Result<Drained> {
    try_drain(paths, intent_log).map_err(|e| {
        e.doing(format_args!(
            "drain the intent log {} into the pool in {}",
            intent_log.display(),
            paths.metadata.display()
        ))
    })
}

fn try_drain(paths: &PoolPaths, intent_log: &Path) -> Result<Drained> {
    let superblock = superblock_of(&paths.metadata)?;
    let state = match intent_log_of(paths, intent_log) {
        // Somebody has the pool. Unmarked it is the kernel's, or nobody has changed anything that the kernel must know.
        Err(e) if e.kind() == ErrorKind::InUse && !superblock.is_logged() => return Ok(Drained::default()),
        Err(e) if e.kind() == ErrorKind::InUse => {
            return Err(e.doing(
                "the embedded engine serves it: unmount its devices and stop the service (its pool-host ends by itself \
                 within two minutes)",
            ));
        }
        state => state?,
    };
    let records = match state {
        IntentLogState::Pending { records } => records,
        IntentLogState::Doubtful { why } => {
            return Err(Error::new(
                ErrorKind::DoubtfulLog,
                format!(
                    "the log cannot be believed ({why}); `thinsnap pool discard-intent-log` gives up what it holds"
                ),
            ));
        }
        IntentLogState::Nothing | IntentLogState::OtherBoot | IntentLogState::OtherPool => 0,
    };
    let found = Drained { records, marked: superblock.is_logged() };
    if found == Drained::default() {
        return Ok(found);
    }
    let options = EmbeddedOptions { intent_log: Some(intent_log.to_owned()), ..EmbeddedOptions::default() };
    let pool: Arc<EmbeddedPool> = open_embedded(paths, Arc::new(Unshown) as Arc<dyn Exporter>, &options)?;
    pool.close()?;
    drop(pool);
    // What the close could not write it only warned of.
    if superblock_of(&paths.metadata)?.is_logged() {
        return Err(Error::new(
            ErrorKind::Io,
            "all is committed, and the mark in the superblock could not be taken off",
        ));
    }
    tracing::info!("{} is the kernel's to have: {records} changes were in its intent log", paths.metadata.display());
    Ok(found)
}
