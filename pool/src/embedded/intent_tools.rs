//! What tools may ask of an intent log whose pool is not served: what it holds, and to be rid of it.

use std::path::{Path, PathBuf};

use crate::device::SharedFile;
use crate::embedded::intent_format::{FILE_MAX, parse_changes, parse_header};
use crate::embedded::intent_log::boot_id;
use crate::embedded::replay::set_aside;
use crate::error::{Error, ErrorKind, Result};

/// What an intent log means for a pool that is about to be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IntentLogState {
    /// There is no log.
    Nothing,
    /// It is of an earlier boot: void.
    OtherBoot,
    /// It is another pool's.
    OtherPool,
    /// The next start replays it.
    Pending {
        /// Acknowledged changes of mappings that perhaps are in no commit.
        records: u64,
    },
    /// It cannot be believed: the next start refuses.
    Doubtful {
        /// What is wrong.
        why: String,
    },
}

/// What the log at `path` means for the pool of this identity. The pool may be being served: then the answer is old
/// when it arrives. Errors: `Io`, `Denied`.
pub fn intent_log_state(path: &Path, identity: [u8; 16]) -> Result<IntentLogState> {
    let doing = |e: Error| e.doing("look at the intent log");
    let Some(bytes) = SharedFile::peek(path, FILE_MAX + 1).map_err(doing)? else { return Ok(IntentLogState::Nothing) };
    let doubtful = |e: Error| Ok(IntentLogState::Doubtful { why: e.to_string() });
    let header = match parse_header(&bytes) {
        Ok(header) => header,
        Err(e) => return doubtful(e),
    };
    if header.boot != boot_id().map_err(doing)? {
        return Ok(IntentLogState::OtherBoot);
    }
    if header.identity != identity {
        return Ok(IntentLogState::OtherPool);
    }
    match parse_changes(&bytes, header) {
        Ok(content) => Ok(IntentLogState::Pending { records: content.changes.len() as u64 }),
        Err(e) => doubtful(e),
    }
}

/// Gives the log at `path` another name, so that the pool starts without it; returns that name. What it holds is lost
/// to the pool. Errors: `NotFound`, `InUse` if a process serves the pool.
pub fn discard_intent_log(path: &Path) -> Result<PathBuf> {
    let doing = |e: Error| e.doing("set the intent log aside");
    let Some(mut file) = SharedFile::open(path).map_err(doing)? else {
        return Err(Error::new(ErrorKind::NotFound, format!("there is no intent log {}", path.display())));
    };
    set_aside(&mut file, "discarded").map_err(doing)
}
