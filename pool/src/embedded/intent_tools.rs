//! What tools may ask of an intent log whose pool is not served: what it holds, and to be rid of it.

use std::path::{Path, PathBuf};

use crate::device::SharedFile;
use crate::embedded::early;
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
        /// Acknowledged changes of mappings that perhaps are in no commit, and writes whose blocks are not made yet.
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
    state(path, Some(identity), None)
}

/// As [`intent_log_state`], as far as the asker knows the pool: without an identity any pool's log counts, with the
/// fingerprint of the superblock on the disk the records are counted exactly and a log that does not build on it is
/// doubtful.
pub(crate) fn state(path: &Path, identity: Option<[u8; 16]>, fingerprint: Option<u64>) -> Result<IntentLogState> {
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
    if identity.is_some_and(|identity| header.identity != identity) {
        return Ok(IntentLogState::OtherPool);
    }
    match parse_changes(&bytes, header) {
        Ok(content) => {
            let pending = match fingerprint {
                Some(fingerprint) if !content.changes.is_empty() => {
                    content.since(fingerprint).map(|(_, changes)| changes.len())
                }
                Some(_) | None => Some(content.changes.len()),
            };
            let early = match early::count(path, header.owner()) {
                Ok(early) => early,
                Err(e) => return doubtful(e.doing("early writes")),
            };
            Ok(match pending {
                Some(records) => IntentLogState::Pending { records: records as u64 + early },
                None => IntentLogState::Doubtful {
                    why: format!(
                        "the metadata is at none of the states that it builds on; {} changes are in it",
                        content.changes.len()
                    ),
                },
            })
        }
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
    if let Some(mut early) = SharedFile::open(&early::path_of(path)).map_err(doing)? {
        set_aside(&mut early, "discarded").map_err(doing)?;
    }
    set_aside(&mut file, "discarded").map_err(doing)
}
