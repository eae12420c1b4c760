//! What all volumes of a pool stand on: metadata behind its mutex, the data device, the mode, the commits.
//!
//! Locks, in the order in which they may be taken: claim of a device id → registry of volumes → cells of a
//! volume → metadata mutex → queue of freed blocks. A commit takes only the last two, so that whoever holds
//! cells may wait for one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::device::BlockDevice;
use crate::embedded::committer::Commits;
use crate::embedded::ledger::Ledger;
use crate::embedded::mode::Mode;
use crate::embedded::reclaim::Reclaim;
use crate::error::{Error, ErrorKind, Result};
use crate::meta::{DataRun, Metadata};
use crate::mutation::Mutation;
use crate::status::PoolMode;
use crate::units::BlockSize;

pub(super) struct Backing {
    pub(super) data: Arc<dyn BlockDevice>,
    pub(super) metadata_device: Arc<dyn BlockDevice>,
    pub(super) block_size: BlockSize,
    pub(super) mode: Mode,
    pub(super) commits: Commits,
    pub(super) reclaim: Reclaim,
    metadata: Mutex<Ledger>,
    /// The file system that holds a sparse data file is full, although the pool has free blocks.
    full_below: AtomicBool,
}

impl Backing {
    pub(super) fn new(metadata: Ledger, metadata_device: Arc<dyn BlockDevice>, data: Arc<dyn BlockDevice>) -> Self {
        Self {
            data,
            metadata_device,
            block_size: metadata.block_size(),
            mode: Mode::new(),
            commits: Commits::default(),
            reclaim: Reclaim::default(),
            metadata: Mutex::new(metadata),
            full_below: AtomicBool::new(false),
        }
    }

    /// The metadata, for tree edits only. Errors with `Io` once a thread has panicked in the middle of one.
    pub(super) fn metadata(&self) -> Result<MutexGuard<'_, Ledger>> {
        self.metadata.lock().map_err(|_| {
            let reason = "a thread panicked while it changed the metadata in memory; the disk holds the last commit";
            self.mode.change(PoolMode::Fail, reason);
            Error::new(ErrorKind::Io, reason)
        })
    }

    /// The metadata, with room for `records` more changes in the intent log, for which a commit is made if need
    /// be. The caller may hold cells. Errors: those of `metadata`, and of the commit.
    pub(super) fn metadata_for(&self, records: usize) -> Result<MutexGuard<'_, Ledger>> {
        loop {
            let metadata = self.metadata()?;
            if metadata.has_room(records) {
                return Ok(metadata);
            }
            drop(metadata);
            // All records so far are in it. Others may be faster to use the room, but not for ever: each of them
            // waits for room himself after a request or two.
            self.flush()?;
        }
    }

    /// Byte offset of a data block.
    pub(super) fn data_offset(&self, block: u64) -> u64 {
        block * self.block_size.bytes()
    }

    /// Writes to the data device: in place, or into blocks that nothing refers to yet.
    pub(super) fn write_data(&self, bytes: &[u8], place: u64) -> Result<()> {
        if Mutation::AnswerWriteEarly.is_on() {
            let (data, bytes) = (Arc::clone(&self.data), bytes.to_vec());
            drop(std::thread::spawn(move || {
                std::thread::park_timeout(std::time::Duration::from_millis(2));
                data.write_at(&bytes, place)
            }));
            return Ok(());
        }
        self.data.write_at(bytes, place)
    }

    /// Makes everything that completed before the call durable.
    pub(super) fn flush(&self) -> Result<()> {
        self.commits.wait_durable()
    }

    /// Reserves `blocks` data blocks, in as few runs as there are. Errors: `OutOfDataSpace` (nothing is
    /// reserved), `ReadOnly`.
    pub(super) fn reserve(&self, blocks: u64) -> Result<Vec<DataRun>> {
        self.mode.check_changes()?;
        if blocks == 0 {
            return Ok(Vec::new());
        }
        let mut metadata = self.metadata()?;
        let mut runs = Vec::new();
        let mut missing = blocks;
        while missing > 0 {
            match metadata.reserve_data(missing) {
                Ok(run) => {
                    missing -= run.len;
                    runs.push(run);
                }
                Err(e) => {
                    metadata.release_data(&runs);
                    return Err(e);
                }
            }
        }
        Ok(runs)
    }

    /// Gives back reserved blocks that perhaps were written to, emptied so that a sparse file holds no room
    /// for them. No committed state points to them.
    pub(super) fn abandon(&self, runs: &[DataRun]) {
        self.punch(runs);
        // A poisoned metadata mutex: the pool is in fail mode and hands out nothing.
        if let Ok(mut metadata) = self.metadata() {
            metadata.release_data(runs);
        }
    }

    /// Sends discards down. A failure costs room below, never bytes: whoever gets the block next asks
    /// whether it is a hole.
    pub(super) fn punch(&self, runs: &[DataRun]) {
        for run in runs {
            let (offset, len) = (self.data_offset(run.start.0), self.data_offset(run.len));
            if let Err(e) = self.data.discard(offset, len) {
                tracing::warn!(
                    "{} freed blocks from {} on keep their room on the data device: {e}",
                    run.len,
                    run.start
                );
            }
        }
    }

    /// After an operation ran out of data space: true if freed blocks were waiting for a commit or for their
    /// discard and are usable at return, so that one more try makes sense.
    pub(super) fn make_room(&self) -> Result<bool> {
        let pending = self.metadata()?.data_space().pending > 0;
        if !pending && self.reclaim.is_idle() {
            return Ok(false);
        }
        if pending {
            self.flush()?;
        }
        self.reclaim.wait_idle();
        Ok(true)
    }

    /// After a change found no metadata block: true if a commit has made some available. Until then the old
    /// copies of whatever changed since the last one stay where they are.
    pub(super) fn make_metadata_room(&self) -> Result<bool> {
        // Whoever reads beside the pool can read again; a writer cannot wait for him.
        let given_up = self.metadata()?.give_up_views();
        if self.metadata()?.metadata_space().0.pending == 0 {
            return Ok(given_up);
        }
        self.flush().map(|()| true)
    }

    /// Changes the metadata; if there is no room for it, commits and tries once more. Errors: `ReadOnly`, `Io`,
    /// and what the change meets.
    pub(super) fn change<T>(&self, mut change: impl FnMut(&mut Ledger) -> Result<T>) -> Result<T> {
        self.mode.check_changes()?;
        let first = change(&mut *self.metadata_for(1)?);
        match first {
            Err(e) if e.kind() == ErrorKind::OutOfMetadataSpace && self.make_metadata_room()? => {
                change(&mut *self.metadata_for(1)?)
            }
            done => done,
        }
    }

    /// Data space is exhausted: by the pool's own count, or, with free blocks left, on the file system below.
    pub(super) fn out_of_space(&self, error: &Error) {
        let available = self.metadata().map_or(0, |metadata| metadata.data_space().available);
        self.full_below.store(available > 0, Ordering::Relaxed);
        self.mode.change(PoolMode::OutOfDataSpace, &error.to_string());
    }

    /// A write got a new block, or blocks were emptied: room below is there again.
    pub(super) fn room_below(&self) {
        if self.mode.now() == PoolMode::OutOfDataSpace && self.full_below.swap(false, Ordering::Relaxed) {
            self.leave_out_of_space();
        }
    }

    /// Blocks were released or added: the pool leaves `out_of_data_space` if some are available.
    pub(super) fn leave_out_of_space(&self) {
        if self.mode.now() != PoolMode::OutOfDataSpace || self.full_below.load(Ordering::Relaxed) {
            return;
        }
        if self.metadata().is_ok_and(|metadata| metadata.data_space().available > 0) {
            self.mode.change(PoolMode::Write, "there are free data blocks");
        }
    }

    /// One commit. Without a change it is a flush of the data device if `flush` asks for one.
    ///
    /// The order is the whole crash argument:
    /// 1. The generation is closed under the mutex. Whatever it maps was written to the data device before
    ///    it was mapped. The intent log learns of the superblock that comes.
    /// 2. The data device is flushed: no block that the new superblock maps can be older than its mapping.
    /// 3. Blocks of the generation, flush, superblock, flush: a cut before the last flush leaves the old
    ///    superblock, and nothing that it reaches was overwritten.
    /// 4. Only then does the intent log drop what the older superblock lacks, and are the blocks that the
    ///    generation freed emptied and handed out again: until then the superblock on the disk still maps them.
    pub(super) fn commit(&self, flush: bool) -> Result<()> {
        self.mode.check_changes()?;
        let done = self.try_commit(flush);
        if let Err(e) = &done {
            // What reached the disk is not known, and a second flush may answer success for lost writes.
            self.mode.change(PoolMode::ReadOnly, &format!("a commit failed: {e}"));
        }
        done
    }

    /// Leaves a word for the next opener after a failure in the metadata itself. The last commit is whole
    /// whether the word can be written or not.
    fn suspect_metadata(&self, error: Error) -> Error {
        if let Err(e) = Metadata::mark_needs_check(&*self.metadata_device) {
            tracing::error!("the metadata cannot be marked for a check: {e}");
        }
        error
    }

    fn try_commit(&self, flush: bool) -> Result<()> {
        let frozen = {
            let mut metadata = self.metadata()?;
            if metadata.dirty() { metadata.freeze() } else { Ok(None) }
        }
        .map_err(|e| self.suspect_metadata(e))?;
        #[cfg(feature = "mutate")]
        if Mutation::PunchBeforeCommit.is_on() {
            self.punch(&self.metadata()?.frozen_freed());
        }
        let Some(frozen) = frozen else {
            return if flush { self.data.flush() } else { Ok(()) };
        };
        if !Mutation::SkipDataFlush.is_on() && !Mutation::MetadataBeforeData.is_on() {
            self.data.flush()?;
        }
        frozen.write(&*self.metadata_device).map_err(|e| self.suspect_metadata(e))?;
        if Mutation::MetadataBeforeData.is_on() {
            self.data.flush()?;
        }
        let freed = self.metadata()?.committed(frozen);
        self.reclaim.push(freed);
        self.leave_out_of_space();
        Ok(())
    }
}
