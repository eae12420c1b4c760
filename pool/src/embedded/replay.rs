//! Brings back what a dead process had acknowledged and not committed.
//!
//! The metadata as it was opened is a state that some commit made; the log holds what was acknowledged after it, in
//! order. Verbs that were not acknowledged (a device being made or deleted) left no record, and the commits that they
//! wait for are not in the state: they never happened. No record depends on one of them: a new device stays claimed
//! until it is durable, a deleted one has no users, blocks freed in a generation are handed out after it is
//! durable. Growing is the exception, because new blocks are handed out at once; so it is recorded.
//!
//! Nothing is guessed. A log that cannot be believed, or that does not fit the metadata, is refused before anything is
//! written: to go on without it would take acknowledged writes away under a mounted file system.

use std::path::Path;

use crate::device::{BlockDevice, SharedFile};
use crate::embedded::intent_format::{FILE_MAX, parse_changes, parse_header};
use crate::embedded::intent_log::{IntentLog, boot_id, sibling};
use crate::embedded::intent_record::IntentChange;
use crate::error::{Error, ErrorKind, Result};
use crate::meta::{DataRun, Metadata, superblock_fingerprint};
use crate::units::VirtualBlock;

/// A log to go on with, if there is to be one.
#[derive(Default)]
pub(super) struct Recovered {
    pub(super) log: Option<IntentLog>,
    /// Data blocks that commits within the replay freed: still unavailable.
    pub(super) freed: Vec<DataRun>,
}

/// Opens the log at `path`, replays it into `metadata`, or makes a new one. `device` has been flushed since it was
/// opened: its superblock stays.
///
/// Errors: `DoubtfulLog`, `InUse`, `OutOfDataSpace` (no room for a log), `OutOfMetadataSpace`, `Io`.
pub(super) fn recover(
    path: &Path,
    capacity: Option<u32>,
    metadata: &mut Metadata,
    device: &dyn BlockDevice,
    data: &dyn BlockDevice,
) -> Result<Recovered> {
    let boot = boot_id()?;
    let identity = metadata.identity();
    let fingerprint = superblock_fingerprint(device)?;
    let fresh = || {
        let log = IntentLog::create(path, capacity, identity, boot, fingerprint)?;
        Ok(Recovered { log: Some(log), freed: Vec::new() })
    };
    let Some(mut file) = SharedFile::open(path)? else {
        tracing::info!("no intent log in {}: nothing to replay", path.display());
        return fresh();
    };
    let doing = |e: Error| e.doing(format_args!("intent log {}", path.display()));
    let bytes = file.read(FILE_MAX + 1)?;
    let header = parse_header(&bytes).map_err(doing)?;
    if header.boot != boot {
        tracing::info!("the intent log {} is of another boot: nothing to replay", path.display());
        return fresh();
    }
    if header.identity != identity {
        let aside = set_aside(&mut file, &format!("of-{:032x}", u128::from_be_bytes(header.identity)))?;
        tracing::warn!("the intent log {} is another pool's: kept as {}", path.display(), aside.display());
        return fresh();
    }
    let content = parse_changes(&bytes, header).map_err(doing)?;
    let Some((epoch, changes)) = content.since(fingerprint) else {
        if content.changes.is_empty() {
            tracing::info!("the intent log {} is empty, and the pool has changed since: a new one", path.display());
            return fresh();
        }
        return Err(doing(Error::new(
            ErrorKind::DoubtfulLog,
            "the metadata is at none of the states that it builds on: another program has changed it since",
        )));
    };
    let log = IntentLog::resume(file, content.header, content.tail, epoch)?;
    let mut replay = Replay { metadata, device, data, log, freed: Vec::new() };
    replay.run(epoch.first, changes).map_err(doing)?;
    tracing::info!("replayed {} changes from the intent log {}", changes.len(), path.display());
    Ok(Recovered { log: Some(replay.log), freed: replay.freed })
}

/// Gives a log another name, one that is free; returns it.
pub(super) fn set_aside(file: &mut SharedFile, word: &str) -> Result<std::path::PathBuf> {
    let first = sibling(file.path(), word);
    // Bounded by the number of files that a directory can hold.
    let mut aside = first.clone();
    let mut number = 1;
    while aside.symlink_metadata().is_ok() {
        aside = sibling(&first, &number.to_string());
        number += 1;
    }
    file.rename(&aside)?;
    Ok(aside)
}

struct Replay<'a> {
    metadata: &'a mut Metadata,
    device: &'a dyn BlockDevice,
    data: &'a dyn BlockDevice,
    log: IntentLog,
    freed: Vec<DataRun>,
}

impl Replay<'_> {
    fn run(&mut self, first: u64, changes: &[IntentChange]) -> Result<()> {
        // The dead process found its room within two generations; this is one, made of the same changes.
        self.metadata.spend_reserve(true);
        for (sequence, change) in (first..).zip(changes) {
            let done = match self.apply(change) {
                Err(e) if e.kind() == ErrorKind::OutOfMetadataSpace && self.metadata.dirty() => {
                    self.commit(sequence)?;
                    self.apply(change)
                }
                done => done,
            };
            done.map_err(|e| match e.kind() {
                ErrorKind::Io | ErrorKind::OutOfMetadataSpace | ErrorKind::ReadOnly => e,
                // Whatever does not fit: the log or the metadata is not what it seems.
                _ => Error::with_source(ErrorKind::DoubtfulLog, "it does not fit the metadata", e),
            })
            .map_err(|e| e.doing(format_args!("replay record {sequence}")))?;
        }
        self.metadata.spend_reserve(false);
        Ok(())
    }

    fn apply(&mut self, change: &IntentChange) -> Result<()> {
        let metadata = &mut *self.metadata;
        match *change {
            IntentChange::Map { device, start, run } => {
                metadata.reserve_exactly(run)?;
                metadata.insert(device, start, run).inspect_err(|_| metadata.release_data(&[run]))
            }
            IntentChange::Unmap { device, start, len, removed } => {
                let now = metadata.remove_range(device, start..VirtualBlock(start.0.saturating_add(len)))?;
                if now != removed {
                    let what = format!("discard {len} blocks of device {device} from {start} on");
                    return Err(Error::new(
                        ErrorKind::DoubtfulLog,
                        format!("{what}: {removed} were mapped then, {now} are in the metadata"),
                    ));
                }
                Ok(())
            }
            IntentChange::GrowData { blocks } => {
                let bytes = blocks.saturating_mul(metadata.block_size().bytes());
                if self.data.size() < bytes {
                    let what = format!("grow the data space to {blocks} blocks: the data device has {} bytes", bytes);
                    return Err(Error::new(ErrorKind::DoubtfulLog, what));
                }
                metadata.grow_data(blocks)
            }
            IntentChange::GrowMetadata { blocks } => metadata.grow_metadata(blocks),
        }
    }

    /// Commits what was replayed before record `next`, so that the room which it freed can be used. Killed in here, the
    /// next process finds the superblock before or this one, and the log knows both.
    fn commit(&mut self, next: u64) -> Result<()> {
        let Some(frozen) = self.metadata.freeze()? else { return Ok(()) };
        self.log.open_epoch_at(frozen.fingerprint(), next);
        self.data.flush()?;
        frozen.write(self.device)?;
        self.freed.extend(self.metadata.committed(frozen));
        self.log.drop_older_epoch();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
