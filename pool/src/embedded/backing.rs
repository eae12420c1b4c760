//! What all volumes of a pool stand on: metadata behind its mutex, the data device, the mode, the commits.
//!
//! Locks, in the order in which they may be taken: claim of a device id → registry of volumes → cells of a
//! volume → metadata mutex → queue of freed blocks. A commit takes only the last two, so that whoever holds
//! cells may wait for one.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use crate::device::BlockDevice;
use crate::embedded::ahead::Ahead;
use crate::embedded::committer::Commits;
use crate::embedded::companion::Companion;
use crate::embedded::data_flush::DataFlush;
use crate::embedded::early::EarlyWrites;
use crate::embedded::ledger::Ledger;
use crate::embedded::mapping_cache::MappingCache;
use crate::embedded::mode::Mode;
use crate::embedded::options::EmbeddedOptions;
use crate::embedded::pulse::Pulse;
use crate::embedded::reclaim::Reclaim;
use crate::error::{Error, ErrorKind, Result};
use crate::export::Exporter;
use crate::meta::{DataRun, Frozen, Metadata};
use crate::mutation::Mutation;
use crate::status::PoolMode;
use crate::units::{BlockSize, ByteCount, DataBlock, DeviceId};

pub(super) struct Backing {
    pub(super) data: Arc<dyn BlockDevice>,
    pub(super) metadata_device: Arc<dyn BlockDevice>,
    pub(super) block_size: BlockSize,
    pub(super) mode: Mode,
    pub(super) commits: Commits,
    data_flush: DataFlush,
    /// The data stands in a file, which has to find room for what is written into a hole.
    grows_below: bool,
    pub(super) reclaim: Reclaim,
    pub(super) pulse: Pulse,
    /// Where the blocks of active volumes stand, as far as there is room to know it.
    pub(super) mappings: Arc<MappingCache>,
    metadata: Mutex<Ledger>,
    /// Bytes of nodes that may wait for a commit before writers do.
    uncommitted_most: ByteCount,
    pub(super) ahead: Ahead,
    /// What is acknowledged before its block is made; `None` without an intent log.
    pub(super) early: Option<EarlyWrites>,
    /// The file system that holds a sparse data file is full, although the pool has free blocks.
    pub(super) full_below: AtomicBool,
    /// Blocks that the last write wanted which the pool's own count refused.
    pub(super) wanted: AtomicU64,
}

/// With fewer free metadata blocks than this no write is acknowledged before its mapping is in memory.
const METADATA_AT_HAND: u64 = 256;

impl Backing {
    pub(super) fn new(
        metadata: Ledger,
        metadata_device: Arc<dyn BlockDevice>,
        data: Arc<dyn BlockDevice>,
        exporter: Weak<dyn Exporter>,
        options: &EmbeddedOptions,
        early: Option<EarlyWrites>,
    ) -> Self {
        Self {
            grows_below: data.room_below().is_some(),
            data,
            metadata_device,
            block_size: metadata.block_size(),
            mode: Mode::new(),
            commits: Commits::default(),
            data_flush: DataFlush::default(),
            reclaim: Reclaim::default(),
            pulse: Pulse::new(exporter),
            mappings: Arc::new(MappingCache::new(options.mapping_bytes())),
            metadata: Mutex::new(metadata),
            uncommitted_most: options.metadata_cache,
            ahead: Ahead::default(),
            early,
            full_below: AtomicBool::new(false),
            wanted: AtomicU64::new(1),
        }
    }

    /// The metadata, for tree edits only. Errors with `Io` once a thread has panicked in the middle of one.
    pub(super) fn metadata(&self) -> Result<MutexGuard<'_, Ledger>> {
        let metadata = self.metadata.lock().map_err(|_| self.panicked())?;
        self.notice(&metadata);
        Ok(metadata)
    }

    /// The metadata for their numbers, which answer in every mode.
    pub(super) fn metadata_numbers(&self) -> MutexGuard<'_, Ledger> {
        let metadata = self.metadata.lock().unwrap_or_else(|poisoned| {
            self.panicked();
            poisoned.into_inner()
        });
        self.notice(&metadata);
        metadata
    }

    fn panicked(&self) -> Error {
        let reason = "a thread panicked while it changed the metadata in memory; the disk holds the last commit";
        self.mode.change(PoolMode::Fail, reason);
        Error::new(ErrorKind::Io, reason)
    }

    /// A change that failed half-way lets nothing more be committed: whoever comes next is told, not only the
    /// committer.
    fn notice(&self, metadata: &Metadata) {
        if let Some(torn) = metadata.torn() {
            self.mode.change(PoolMode::ReadOnly, &format!("a change of the metadata failed half-way: {torn}"));
        }
    }

    /// The metadata, with room for `records` more changes in the intent log and in memory, for which a commit is made
    /// if need be. The caller may hold cells. Errors: those of `metadata`, and of the commit.
    pub(super) fn metadata_for(&self, records: usize) -> Result<MutexGuard<'_, Ledger>> {
        loop {
            let mut metadata = self.metadata()?;
            if metadata.has_room(records) && metadata.cached().1 <= self.uncommitted_most {
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

    /// Makes everything that completed before the call durable. With nothing in the metadata that is not committed
    /// that is a flush of the data, done by the caller.
    pub(super) fn flush(&self) -> Result<()> {
        let committed = {
            let metadata = self.metadata()?;
            !metadata.dirty() && !metadata.is_frozen()
        };
        // In a mode without changes the committer says why.
        if !committed || self.mode.check_changes().is_err() {
            return self.commits.wait_durable();
        }
        self.note_flush(self.flush_data())
    }

    /// As [`flush`](Self::flush), if nothing but the data has to be flushed and that has been quick of late; else nothing
    /// is done.
    pub(super) fn flush_at_hand(&self) -> Option<Result<()>> {
        let committed = {
            let metadata = self.metadata.try_lock().ok()?;
            !metadata.dirty() && !metadata.is_frozen()
        };
        if !committed || !self.data_flush.is_quick() || self.mode.check_changes().is_err() {
            return None;
        }
        Some(self.note_flush(self.flush_data()))
    }

    fn note_flush(&self, done: Result<()>) -> Result<()> {
        if let Err(e) = &done {
            self.mode.change(PoolMode::ReadOnly, &format!("a flush failed: {e}"));
            self.pulse.room_changed();
        }
        done
    }

    /// Makes the data durable that was written before the call.
    pub(super) fn flush_data(&self) -> Result<()> {
        self.data_flush.share(|| self.data.flush())
    }

    /// Makes the changes of the metadata durable that completed before the call, and the data that they refer to.
    pub(super) fn commit_changes(&self) -> Result<()> {
        let generation = self.metadata()?.generation();
        self.commits.wait_committed(generation)
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
                    self.wanted.store(blocks, Ordering::Relaxed);
                    self.full_below.store(false, Ordering::Relaxed);
                    return Err(e);
                }
            }
        }
        let space = metadata.data_space();
        drop(metadata);
        self.pulse.reserved(space.available);
        if let Some(last) = runs.last() {
            self.take_room_behind(*last, space.total);
        }
        Ok(runs)
    }

    /// Blocks up to the end of a run were handed out, of `total`: takes room in the data file for those behind it.
    pub(super) fn take_room_behind(&self, run: DataRun, total: u64) {
        let next = self.data_offset(run.start.0 + run.len);
        self.ahead.handed_out(&*self.data, next, self.data_offset(total));
    }

    /// Reserves a data block for a write that is acknowledged before it is done, if nothing that it will need can be
    /// missing then; unless it `may_wait`, also if the metadata are anybody's just now.
    pub(super) fn reserve_at_hand(&self, may_wait: bool) -> Option<DataRun> {
        if self.mode.now() != PoolMode::Write {
            return None;
        }
        let metadata = if may_wait { self.metadata.lock().ok() } else { self.metadata.try_lock().ok() };
        let mut metadata = metadata?;
        let (free, reserve) = metadata.metadata_space();
        if free.available < reserve + METADATA_AT_HAND {
            return None;
        }
        let run = metadata.reserve_data(1).ok()?;
        let (start, end) = (self.data_offset(run.start.0), self.data_offset(run.start.0 + 1));
        if self.grows_below && !self.ahead.covers(start, end) {
            metadata.release_data(&[run]);
            return None;
        }
        let available = metadata.data_space().available;
        drop(metadata);
        self.pulse.reserved(available);
        Some(run)
    }

    /// As [`EarlyWrites::finish`].
    pub(super) fn finish(&self, device: DeviceId) {
        self.early.iter().for_each(|early| early.finish(device));
    }

    /// As [`EarlyWrites::settle`].
    pub(super) fn settle(&self, device: DeviceId) -> Result<()> {
        self.early.as_ref().map_or(Ok(()), |early| early.settle(device))
    }

    /// Gives the room back that was taken ahead of the allocator.
    pub(super) fn give_back_ahead(&self) {
        let (start, end) = self.ahead.forget();
        let size = self.block_size.bytes();
        let (mut from, end) = (DataBlock(start / size), DataBlock(end / size));
        while from < end {
            let Ok(mut metadata) = self.metadata() else { return };
            let Some(run) = metadata.reserve_next(from, end.0 - from.0).filter(|run| run.start < end) else { return };
            drop(metadata);
            // With its reservation dropped as well.
            self.abandon(&[run]);
            from = run.start.plus(run.len);
        }
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
            let discarded = self.data.discard(offset, len);
            // Behind it: who takes room meanwhile does not count on it, and the blocks are nobody's yet.
            self.ahead.emptied(offset, offset + len);
            if let Err(e) = discarded {
                tracing::warn!(
                    "{} freed blocks from {} on keep their room on the data device: {e}",
                    run.len,
                    run.start
                );
            }
        }
    }

    /// One commit. Without a change it is a flush of the data device if `flush` asks for one.
    ///
    /// The order is the whole crash argument:
    /// 1. The generation is closed under the mutex. Whatever it maps was written to the data device before
    ///    it was mapped. The intent log learns of the superblock that comes.
    /// 2. The blocks of the generation are written, to places that the old superblock does not reach. Then both
    ///    devices are flushed, in any order or at once: no block that the new superblock maps can be older than its
    ///    mapping, and all that it reaches is there.
    /// 3. Superblock, flush: a cut before the end of that flush leaves the old superblock or the new one, whole.
    /// 4. Only then does the intent log drop what the older superblock lacks, and are the blocks that the
    ///    generation freed emptied and handed out again: until then the superblock on the disk still maps them.
    pub(super) fn commit(&self, flush: bool, companion: Option<&Companion>) -> Result<()> {
        self.mode.check_changes()?;
        let done = self.try_commit(flush, companion);
        if let Err(e) = &done {
            // What reached the disk is not known, and a second flush may answer success for lost writes.
            self.mode.change(PoolMode::ReadOnly, &format!("a commit failed: {e}"));
        }
        // Also when it freed nothing: whoever waits for what a commit brings must learn that.
        self.pulse.room_changed();
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

    fn try_commit(&self, flush: bool, companion: Option<&Companion>) -> Result<()> {
        let (frozen, generation) = {
            let mut metadata = self.metadata()?;
            let frozen = if metadata.dirty() { metadata.freeze() } else { Ok(None) };
            (frozen.map_err(|e| self.suspect_metadata(e))?, metadata.generation())
        };
        #[cfg(feature = "mutate")]
        if Mutation::PunchBeforeCommit.is_on() {
            self.punch(&self.metadata()?.frozen_freed());
        }
        let Some(frozen) = frozen else {
            return if flush { self.flush_data() } else { Ok(()) };
        };
        let device = &*self.metadata_device;
        frozen.write_blocks(device).map_err(|e| self.suspect_metadata(e))?;
        self.flush_both(&frozen, companion)?;
        frozen.write_superblock(device).map_err(|e| self.suspect_metadata(e))?;
        if Mutation::MetadataBeforeData.is_on() {
            self.flush_data()?;
        }
        {
            // Handed over under the mutex: at every moment freed blocks are pending here or wait there.
            let mut metadata = self.metadata()?;
            let freed = metadata.committed(frozen);
            self.reclaim.push(freed);
        }
        self.commits.note_committed(generation);
        self.leave_out_of_space();
        Ok(())
    }

    /// Makes the data and the written blocks of a generation durable.
    fn flush_both(&self, frozen: &Frozen, companion: Option<&Companion>) -> Result<()> {
        let flush_blocks = || frozen.flush_blocks(&*self.metadata_device);
        let (data, blocks) = match companion {
            _ if Mutation::SkipDataFlush.is_on() || Mutation::MetadataBeforeData.is_on() => (Ok(()), flush_blocks()),
            Some(companion) => companion.flush_beside(flush_blocks),
            None => match self.flush_data() {
                Ok(()) => (Ok(()), flush_blocks()),
                failed => (failed, Ok(())),
            },
        };
        blocks.map_err(|e| self.suspect_metadata(e)).and(data)
    }
}
