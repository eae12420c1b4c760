//! The metadata and the log that keeps its uncommitted changes: changed together, under one mutex.
//!
//! What has to be recorded is a method here, of the same name as the one of [`Metadata`] that it stands in front of.

use std::ops::{Deref, DerefMut, Range};

use crate::device::BlockDevice;
use crate::embedded::intent_log::IntentLog;
use crate::embedded::intent_record::IntentChange;
use crate::error::Result;
use crate::meta::{DataRun, Frozen, Metadata};
use crate::mutation::Mutation;
use crate::units::{DeviceId, VirtualBlock};

pub(super) struct Ledger {
    metadata: Metadata,
    log: Option<IntentLog>,
    /// Generations that were closed.
    closed: u64,
}

impl Ledger {
    pub(super) fn new(metadata: Metadata, log: Option<IntentLog>) -> Self {
        Self { metadata, log, closed: 0 }
    }

    /// True if `records` more changes can be recorded before a commit.
    pub(super) fn has_room(&self, records: usize) -> bool {
        self.log.as_ref().is_none_or(|log| log.has_room(records))
    }

    /// As [`Metadata::insert`]; takes one record.
    pub(super) fn insert(&mut self, device: DeviceId, start: VirtualBlock, run: DataRun) -> Result<()> {
        self.metadata.insert(device, start, run)?;
        if run.len > 0 {
            self.record(&IntentChange::Map { device, start, run });
        }
        Ok(())
    }

    /// As [`Metadata::insert`], for a device that is nobody's before the next commit: nothing is acknowledged by this, and
    /// a record must not speak of a device that the superblock on the disk may not have.
    pub(super) fn insert_newborn(&mut self, device: DeviceId, start: VirtualBlock, run: DataRun) -> Result<()> {
        self.metadata.insert(device, start, run)
    }

    /// As [`Metadata::remove_range`]; takes one record.
    pub(super) fn remove_range(&mut self, device: DeviceId, range: Range<VirtualBlock>) -> Result<u64> {
        let Range { start, end } = range;
        let removed = self.metadata.remove_range(device, start..end)?;
        if removed > 0 {
            self.record(&IntentChange::Unmap { device, start, len: end.0 - start.0, removed });
        }
        Ok(removed)
    }

    /// As [`Metadata::grow_data`]; takes one record: the new blocks may be mapped before they are committed.
    pub(super) fn grow_data(&mut self, blocks: u64) -> Result<()> {
        self.metadata.grow_data(blocks)?;
        self.record(&IntentChange::GrowData { blocks });
        Ok(())
    }

    /// As [`Metadata::grow_metadata`]; takes one record: what fits the larger space may not fit the smaller.
    pub(super) fn grow_metadata(&mut self, blocks: u64) -> Result<()> {
        self.metadata.grow_metadata(blocks)?;
        self.record(&IntentChange::GrowMetadata { blocks });
        Ok(())
    }

    /// The newest generation with a change in it, counted from 1: when it is committed, all changes so far are.
    pub(super) fn generation(&self) -> u64 {
        self.closed + u64::from(self.metadata.dirty())
    }

    /// As [`Metadata::freeze`]: the log knows of the new superblock before anybody can write it.
    pub(super) fn freeze(&mut self) -> Result<Option<Frozen>> {
        let frozen = self.metadata.freeze()?;
        self.closed += u64::from(frozen.is_some());
        if let (Some(log), Some(frozen)) = (&mut self.log, &frozen) {
            log.open_epoch(frozen.fingerprint());
            if Mutation::DropEpochEarly.is_on() {
                log.drop_older_epoch();
            }
        }
        Ok(frozen)
    }

    /// As [`Metadata::committed`]: the records that the superblock contains are not needed any more.
    pub(super) fn committed(&mut self, frozen: Frozen) -> Vec<DataRun> {
        if let Some(log) = &mut self.log {
            log.drop_older_epoch();
        }
        self.metadata.committed(frozen)
    }

    /// Takes the log away, and its mark off the superblock on `device`, if all that it holds is committed.
    pub(super) fn remove_log(&mut self, device: &dyn BlockDevice) -> Result<()> {
        if self.metadata.dirty() || self.metadata.is_frozen() {
            return Ok(());
        }
        let Some(log) = self.log.take() else { return Ok(()) };
        // The mark first. Killed after it, an empty log stays, which hinders nobody; killed before, the pool is drained
        // once more. The other way round a mark would stand that no log explains.
        self.metadata.set_logged(false);
        self.metadata.write_logged(device)?;
        log.remove()
    }

    fn record(&mut self, change: &IntentChange) {
        if let Some(log) = &mut self.log
            && !Mutation::SkipIntentLog.is_on()
        {
            log.append(change);
        }
    }
}

impl Deref for Ledger {
    type Target = Metadata;

    fn deref(&self) -> &Metadata {
        &self.metadata
    }
}

impl DerefMut for Ledger {
    fn deref_mut(&mut self) -> &mut Metadata {
        &mut self.metadata
    }
}
