//! Small first writes to shared blocks, acknowledged before the block is copied.
//!
//! To copy a block takes several times as long as to write a few bytes of it. So the bytes are put where they outlive
//! this process ([`EarlyFile`]), the caller is answered, and a thread of [`run`] makes the block: copy, write, map, as
//! `write.rs` does it. Until that is done the block is promised (`cells.rs`): whoever wants it waits for it, a snapshot
//! of the device included, so that nobody sees it as it was. He does not wait for his turn: what nobody has begun he makes
//! himself ([`EarlyWrites::help`]).
//!
//! The crash argument. An acknowledged write is in the file until its mapping is in the intent log; the next process
//! does what it finds in the file again before anybody is served, and to do it twice is harmless, because no later write
//! to the block was let in before the slot was cleared. After a power cut the file is void: a flush waits until all that
//! was acknowledged before it stands in its block, and only what was flushed has to survive that.
//!
//! What such a write needs is set aside before it is acknowledged: its data block, the room for that in a file below,
//! metadata in plenty. Where that is not at hand, or somebody is in the block's cell, the write takes the usual way. One that
//! fails all the same (the old block cannot be read) stays in the file for the next start; until then its block answers
//! with errors, and so do flushes and snapshots of the device.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::device::{BlockDevice, SharedFile};
use crate::embedded::backing::Backing;
use crate::embedded::cells::CELLS;
use crate::embedded::chunk::Entry;
use crate::embedded::early_file::{
    EarlyFile, EarlyWrite, PAGE, PAGES_OF_WRITE, Pages, SLOTS, parse_owner, parse_writes,
};
use crate::embedded::intent_format::LogOwner;
use crate::embedded::intent_log::sibling;
use crate::embedded::plan::Plan;
use crate::embedded::replay::set_aside;
use crate::embedded::volume::ThinVolume;
use crate::error::{Error, ErrorKind, Result};
use crate::export::{Direction, shun_memory_pressure};
use crate::meta::DataRun;
use crate::mutation::Mutation;
use crate::thin_pool::Access;
use crate::units::{ByteCount, DeviceId};

/// Threads that make the blocks.
pub(super) const MAKERS: usize = 32;
/// So many of them work while nobody waits for a place: more would have the disk to themselves while others read.
const MAKERS_AT_EASE: usize = 8;
/// And so many more for each caller who waits: others stand behind him.
const MAKERS_FOR_WAITER: u64 = 3;
/// With more callers who wait for a place than this, some are called in vain.
const TURNS: usize = 16;
/// Bytes of the largest write that is acknowledged early: a page of every database.
const WRITE_MAX: usize = PAGES_OF_WRITE * PAGE;
/// Largest block that is made in the background: what is waited for at a flush stays short.
const BLOCK_MAX: u64 = 256 << 10;

/// A write that was acknowledged. Whoever has it has its block, which is promised.
struct Early {
    sequence: u64,
    slot: u16,
    pages: Pages,
    volume: Arc<ThinVolume>,
    offset: u64,
    bytes: Vec<u8>,
    to: DataRun,
}

impl Early {
    fn block(&self) -> u64 {
        self.offset / self.volume.block_bytes()
    }
}

/// A write that failed after it was acknowledged.
struct Broken {
    device: DeviceId,
    block: u64,
    /// Slot, pages and bytes.
    place: (u16, Pages, usize),
    why: (ErrorKind, String),
}

struct Inner {
    slots: Vec<u16>,
    pages: Vec<u16>,
    queue: VecDeque<Early>,
    /// Writes that were acknowledged and are not done, by their number.
    under_way: BTreeMap<u64, DeviceId>,
    broken: Vec<Broken>,
    next: u64,
    /// Who waits for a place: the one whose turn it is, and the number of the next who comes.
    turn: u64,
    turns: u64,
    /// Writes of a dead process that are yet to be done again.
    undone: usize,
    /// Makers that wait for work, or for leave to work.
    idle: usize,
    /// Makers at work.
    busy: usize,
    stop: bool,
}

/// The early writes of a pool.
pub(super) struct EarlyWrites {
    file: EarlyFile,
    inner: Mutex<Inner>,
    /// Writes that nobody has begun; keeps those out of the mutex who find none in their way.
    queued: AtomicUsize,
    filled: Condvar,
    done: Condvar,
    /// Where those wait who want a place, each at that of his turn: only one is called at a time.
    turns: [Condvar; TURNS],
}

impl EarlyWrites {
    /// Opens the file beside the intent log at `log`, or makes one; with what a dead process had acknowledged, which is to
    /// be given to [`Self::redo`] before anybody is served. `None` where it cannot have its room: then writes wait for
    /// their copies. Errors: `DoubtfulLog`, `InUse`, `Io`.
    pub(super) fn open(log: &Path, owner: LogOwner) -> Result<(Option<Self>, Vec<EarlyWrite>)> {
        match Self::open_or_make(&path_of(log), owner) {
            Ok((this, acknowledged)) => Ok((Some(this), acknowledged)),
            Err(e) if e.kind() == ErrorKind::OutOfDataSpace => {
                tracing::warn!("first writes to shared blocks wait for the copy: {e}");
                Ok((None, Vec::new()))
            }
            Err(e) => Err(e),
        }
    }

    fn open_or_make(path: &Path, owner: LogOwner) -> Result<(Self, Vec<EarlyWrite>)> {
        let fresh = || Ok((Self::new(EarlyFile::create(path, owner)?), Vec::new()));
        let Some(mut file) = SharedFile::open(path)? else { return fresh() };
        let doing = |e: Error| e.doing(format_args!("the file of early writes {}", path.display()));
        let bytes = file.read(u64::MAX)?;
        let found = parse_owner(&bytes).map_err(doing)?;
        if found.boot != owner.boot {
            return fresh();
        }
        if found.identity != owner.identity {
            let aside = set_aside(&mut file, &format!("of-{:032x}", u128::from_be_bytes(found.identity)))?;
            tracing::warn!("the early writes in {} are another pool's: kept as {}", path.display(), aside.display());
            return fresh();
        }
        let writes = parse_writes(&bytes).map_err(doing)?;
        if found.session != owner.session && writes.is_empty() {
            return fresh();
        }
        if found.session != owner.session {
            // Whatever it served meanwhile was written without these; they must not land on that.
            let aside = set_aside(&mut file, "stale")?;
            tracing::error!(
                "{} acknowledged writes are lost: a program that knows nothing of them has served the pool since; kept as {}",
                writes.len(),
                aside.display()
            );
            return fresh();
        }
        let this = Self::new(EarlyFile::resume(file)?);
        this.lock().undone = writes.len();
        Ok((this, writes))
    }

    fn new(file: EarlyFile) -> Self {
        let inner = Inner {
            slots: (0..SLOTS).rev().collect(),
            pages: (0..SLOTS).rev().collect(),
            queue: VecDeque::with_capacity(usize::from(SLOTS)),
            under_way: BTreeMap::new(),
            broken: Vec::new(),
            next: 0,
            turn: 0,
            turns: 0,
            undone: 0,
            idle: 0,
            busy: 0,
            stop: false,
        };
        Self {
            file,
            inner: Mutex::new(inner),
            queued: AtomicUsize::new(0),
            filled: Condvar::new(),
            done: Condvar::new(),
            turns: std::array::from_fn(|_| Condvar::new()),
        }
    }

    /// Does again what a dead process had acknowledged. A device that is gone was deleted, with what was written to it.
    /// What cannot be done stays for the next start; the pool serves all but its block.
    pub(super) fn redo(&self, backing: &Arc<Backing>, writes: Vec<EarlyWrite>) {
        let block_size = backing.block_size.bytes();
        for EarlyWrite { slot, pages, device, offset, bytes, .. } in writes {
            let done = Self::redo_one(backing, device, offset, &bytes);
            let mut inner = self.lock();
            match done {
                Ok(()) => self.file.clear(slot),
                Err(e) => {
                    let count = bytes.len().div_ceil(PAGE);
                    inner.slots.retain(|free| *free != slot);
                    inner.pages.retain(|free| !pages[..count].contains(free));
                    let place = (slot, pages, bytes.len());
                    inner.note_broken(device, offset / block_size, place, &e);
                }
            }
            inner.undone -= 1;
        }
    }

    fn redo_one(backing: &Arc<Backing>, device: DeviceId, offset: u64, bytes: &[u8]) -> Result<()> {
        let details = backing.metadata()?.find_device(device)?;
        let Some(details) = details else { return Ok(()) };
        let size = ByteCount(offset.saturating_add(bytes.len() as u64));
        ThinVolume::new(Arc::clone(backing), device, details, size, Access::ReadWrite)?.write_at(bytes, offset)?;
        tracing::info!("did a write to device {device} at {offset} again that a dead process had acknowledged");
        Ok(())
    }

    /// Acknowledges a write if all that it needs is at hand. True: the caller may be answered. Where others are before it
    /// that takes until they are done, or, unless it `may_wait`, the write is refused.
    pub(super) fn take(&self, volume: &Arc<ThinVolume>, bytes: &[u8], offset: u64, may_wait: bool) -> bool {
        let size = volume.block_bytes();
        let block = offset / size;
        let fits = bytes.len() <= WRITE_MAX && bytes.len().is_multiple_of(512) && !bytes.is_empty();
        if !fits || size > BLOCK_MAX || (offset + bytes.len() as u64 - 1) / size != block {
            return false;
        }
        if may_wait {
            volume.take_alone(block, 1).promise();
        } else if !volume.cells.try_promise(block) {
            return false;
        }
        let taken = self.take_promised(volume, bytes, offset, may_wait);
        if !taken {
            volume.cells.redeem(block);
        }
        taken
    }

    fn take_promised(&self, volume: &Arc<ThinVolume>, bytes: &[u8], offset: u64, may_wait: bool) -> bool {
        let block = offset / volume.block_bytes();
        let known = match volume.table.get(block) {
            Entry::Unknown if may_wait => volume.resolve(block, 1).map_or(Entry::Unknown, |found| found.get(block)),
            known => known,
        };
        let plan = volume.plan(known, Direction::Write);
        if !matches!(plan, Plan::BreakSharing(_)) || volume.check_broken(block, 1).is_err() {
            return false;
        }
        let Some((slot, pages)) = self.place(bytes.len(), may_wait) else { return false };
        let Some(to) = volume.backing.reserve_at_hand(may_wait) else {
            self.lock().give_back(slot, pages, bytes.len());
            return false;
        };
        let mut inner = self.lock();
        let sequence = inner.next;
        inner.next += 1;
        inner.under_way.insert(sequence, volume.id);
        drop(inner);
        if !Mutation::SkipEarlyFile.is_on() {
            self.file.put(slot, pages, sequence, volume.id, offset, bytes);
        }
        let volume = Arc::clone(volume);
        let early = Early { sequence, slot, pages, volume, offset, bytes: bytes.to_vec(), to };
        let mut inner = self.lock();
        inner.queue.push_back(early);
        self.queued.store(inner.queue.len(), Ordering::Relaxed);
        let wanted = inner.wants_maker();
        drop(inner);
        if wanted {
            self.filled.notify_one();
        }
        true
    }

    /// Makes those of these blocks of the volume that are promised and that nobody has begun; all cells stand for all blocks.
    pub(super) fn help(&self, volume: &ThinVolume, first: u64, blocks: u64) {
        let is_meant = |block: u64| blocks >= CELLS || (first..first + blocks).contains(&block);
        self.make_of(|early| early.volume.id == volume.id && is_meant(early.block()));
    }

    /// As [`finish`](Self::finish). Errors: that of the first write that failed.
    pub(super) fn settle(&self, device: DeviceId) -> Result<()> {
        self.finish(device);
        self.lock().check(|broken| broken.device == device)
    }

    /// Returns when all writes to the device that were acknowledged before the call stand in their blocks, or have failed.
    pub(super) fn finish(&self, device: DeviceId) {
        let until = self.lock().next;
        self.make_of(|early| early.volume.id == device && early.sequence < until);
        let mut inner = self.lock();
        while inner.under_way.range(..until).any(|(_, of)| *of == device) {
            inner = self.done.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Errors if a write to one of the blocks failed after it was acknowledged.
    pub(super) fn check(&self, device: DeviceId, first: u64, blocks: u64) -> Result<()> {
        self.lock().check(|broken| broken.device == device && (first..first + blocks).contains(&broken.block))
    }

    /// True if a write to the device failed after it was acknowledged.
    pub(super) fn is_broken(&self, device: DeviceId) -> bool {
        self.lock().broken.iter().any(|broken| broken.device == device)
    }

    /// The device is gone for good, and with it what could not be written to it.
    pub(super) fn forget(&self, device: DeviceId) {
        let mut inner = self.lock();
        while let Some(at) = inner.broken.iter().position(|broken| broken.device == device) {
            let (slot, pages, len) = inner.broken.swap_remove(at).place;
            self.file.clear(slot);
            inner.give_back(slot, pages, len);
        }
    }

    /// True if nothing that was acknowledged is still to be done.
    pub(super) fn is_done(&self) -> bool {
        let inner = self.lock();
        inner.undone == 0 && inner.under_way.is_empty() && inner.broken.is_empty()
    }

    /// Takes the file away.
    pub(super) fn remove(&self) -> Result<()> {
        self.file.remove()
    }

    /// Ends the makers when all is done that was acknowledged.
    pub(super) fn stop(&self) {
        self.lock().stop = true;
        self.filled.notify_all();
    }

    /// A slot and the pages for so many bytes, to one after the other.
    fn place(&self, len: usize, may_wait: bool) -> Option<(u16, Pages)> {
        let mut inner = self.lock();
        if !may_wait && inner.turn != inner.turns {
            return None;
        }
        let turn = inner.turns;
        inner.turns += 1;
        let mut told = false;
        loop {
            let place = if inner.turn == turn { inner.place(len) } else { None };
            // With nothing under way no place comes back: what is broken keeps its own.
            let none_comes = inner.turn == turn && (!may_wait || inner.under_way.is_empty());
            if place.is_some() || none_comes {
                inner.turn += 1;
                self.call_next(&inner);
                return place;
            }
            if !std::mem::replace(&mut told, true) && inner.wants_maker() {
                for _ in 0..MAKERS_FOR_WAITER {
                    self.filled.notify_one();
                }
            }
            inner = self.turn_of(turn).wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn turn_of(&self, turn: u64) -> &Condvar {
        &self.turns[usize::try_from(turn % TURNS as u64).expect("below 16")]
    }

    /// Tells the one whose turn it is to wait for a place, if there is one.
    fn call_next(&self, inner: &Inner) {
        if inner.turn != inner.turns {
            self.turn_of(inner.turn).notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Each change of it is whole in itself.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next write whose block is to be made, for a maker who comes for the first time or `again`.
    fn next(&self, again: bool) -> Option<Early> {
        let mut inner = self.lock();
        inner.busy -= usize::from(again);
        loop {
            if inner.may_work()
                && let Some(early) = inner.queue.pop_front()
            {
                self.queued.store(inner.queue.len(), Ordering::Relaxed);
                inner.busy += 1;
                return Some(early);
            }
            if inner.stop && inner.queue.is_empty() {
                return None;
            }
            inner.idle += 1;
            inner = self.filled.wait(inner).unwrap_or_else(PoisonError::into_inner);
            inner.idle -= 1;
        }
    }

    /// Makes the blocks of those writes that nobody has begun.
    fn make_of(&self, mut which: impl FnMut(&Early) -> bool) {
        while self.queued.load(Ordering::Relaxed) > 0 {
            let mut inner = self.lock();
            let Some(early) = inner.queue.iter().position(&mut which).and_then(|at| inner.queue.remove(at)) else {
                return;
            };
            self.queued.store(inner.queue.len(), Ordering::Relaxed);
            drop(inner);
            self.make(&early);
        }
    }

    fn make(&self, early: &Early) {
        let make = || early.volume.write_taken(&early.bytes, early.offset, early.to);
        let made = catch_unwind(AssertUnwindSafe(make));
        self.end(early, made.unwrap_or_else(|_| Err(Error::new(ErrorKind::Io, "the pool panicked"))));
    }

    fn end(&self, early: &Early, made: Result<()>) {
        let Early { sequence, slot, pages, volume, bytes, .. } = early;
        let block = early.block();
        let mut inner = self.lock();
        match made {
            Ok(()) => {
                self.file.clear(*slot);
                inner.give_back(*slot, *pages, bytes.len());
            }
            Err(e) => {
                inner.note_broken(volume.id, block, (*slot, *pages, bytes.len()), &e);
                volume.note_broken();
            }
        }
        inner.under_way.remove(sequence);
        self.call_next(&inner);
        drop(inner);
        // Behind the end of the slot: the next write to the block must not be undone by this one.
        volume.cells.redeem(block);
        self.done.notify_all();
    }
}

impl Inner {
    /// True if one more maker may work now.
    fn may_work(&self) -> bool {
        let waiters = usize::try_from((self.turns - self.turn) * MAKERS_FOR_WAITER).unwrap_or(usize::MAX);
        self.stop || self.busy < MAKERS_AT_EASE.saturating_add(waiters)
    }

    /// True if a maker waits who may make what is queued.
    fn wants_maker(&self) -> bool {
        self.idle > 0 && !self.queue.is_empty() && self.may_work()
    }

    /// A slot and the pages for so many bytes.
    fn place(&mut self, len: usize) -> Option<(u16, Pages)> {
        let count = len.div_ceil(PAGE);
        let rest = self.pages.len().checked_sub(count)?;
        let slot = self.slots.pop()?;
        let mut pages = [0; PAGES_OF_WRITE];
        pages.iter_mut().zip(self.pages.drain(rest..)).for_each(|(place, page)| *place = page);
        Some((slot, pages))
    }

    fn give_back(&mut self, slot: u16, pages: Pages, len: usize) {
        self.slots.push(slot);
        self.pages.extend(&pages[..len.div_ceil(PAGE)]);
    }

    fn note_broken(&mut self, device: DeviceId, block: u64, place: (u16, Pages, usize), error: &Error) {
        tracing::error!(
            "an acknowledged write to block {block} of device {device} could not be done, and is kept for the next start: \
             {error}"
        );
        self.broken.push(Broken { device, block, place, why: (error.kind(), error.to_string()) });
    }

    fn check(&self, which: impl Fn(&Broken) -> bool) -> Result<()> {
        match self.broken.iter().find(|broken| which(broken)) {
            None => Ok(()),
            Some(Broken { block, why: (kind, why), .. }) => Err(Error::new(
                *kind,
                format!(
                    "a write to block {block} was acknowledged and could not be done; a restart tries again: {why}"
                ),
            )),
        }
    }
}

/// Where the early writes stand that belong to an intent log.
pub(super) fn path_of(log: &Path) -> PathBuf {
    sibling(log, "early")
}

/// How many writes stand beside the log at `log` that go with it. Errors: `DoubtfulLog`, `Io`.
pub(super) fn count(log: &Path, owner: LogOwner) -> Result<u64> {
    let Some(bytes) = SharedFile::peek(&path_of(log), u64::MAX)? else { return Ok(0) };
    Ok(if parse_owner(&bytes)? == owner { parse_writes(&bytes)?.len() as u64 } else { 0 })
}

/// A maker's life, until [`EarlyWrites::stop`].
pub(super) fn run(backing: &Arc<Backing>) {
    let Some(writes) = &backing.early else { return };
    // Others wait for the blocks that it makes, writeback among them.
    shun_memory_pressure();
    let mut again = false;
    while let Some(early) = writes.next(again) {
        writes.make(&early);
        again = true;
    }
}
