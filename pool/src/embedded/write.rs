//! Writes that need a new block: provisioning a hole, breaking the sharing of a block with a snapshot.
//!
//! The order within one request: take the cells alone, look up, reserve, write the data, map, let go,
//! acknowledge. Until the mapping is inserted nothing refers to the new blocks: a failure or a crash before
//! leaves the old mapping and its bytes. A mapping that is lost by a power cut before its commit takes the
//! bytes of an unflushed write with it, which is what a disk with a volatile cache may do.

use std::cell::Cell;

use crate::device::AlignedBuffer;
use crate::embedded::chunk::Entry;
use crate::embedded::plan::Plan;
use crate::embedded::volume::{Resolved, ThinVolume};
use crate::error::{ErrorKind, Result};
use crate::export::Direction;
use crate::format::Mapping;
use crate::meta::DataRun;
use crate::mutation::Mutation;
use crate::units::{DataBlock, VirtualBlock};

/// The rest of a block is read, merged and written in pieces of this size: whole blocks of the usual sizes.
const COPY_PIECE: u64 = 1 << 20;
/// Blocks up to this size are zeroed by writing them whole with the caller's piece in them: one write costs
/// less than a write and a change of the file's extents.
const COMPOSE_MAX: u64 = 128 * 1024;

/// Tries of a write that finds no room although some came back: others were faster each time.
const TRIES_MAX: usize = 16;

thread_local! {
    /// What this thread composes blocks in; kept, because memory is dearest when a device has to write much.
    static COMPOSED: Cell<AlignedBuffer> = Cell::default();
}

/// Whether a write that finds no room waits for what is on its way back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// It does, with its thread.
    Wait,
    /// It fails at once.
    None,
}

/// A block of a request and where it goes.
struct Target {
    block: VirtualBlock,
    /// Where it stood so far.
    before: Entry,
    plan: Plan,
    to: DataBlock,
    /// The part of the request that falls into the block.
    piece: std::ops::Range<usize>,
    /// Where the part begins in the block, in bytes.
    skip: u64,
}

impl Target {
    fn is_new(&self) -> bool {
        match self.plan {
            Plan::Provision | Plan::BreakSharing(_) => true,
            Plan::Remap(_) | Plan::ReadZeroes | Plan::LookUp => false,
        }
    }
}

impl ThinVolume {
    /// Writes `buf` at `offset`. Errors: `OutOfDataSpace`, `OutOfMetadataSpace`, `ReadOnly`, `Io`; what was mapped
    /// before stays as it was. The cells are not held while it waits for room.
    pub(super) fn write_blocks(&self, buf: &[u8], offset: u64, patience: Patience) -> Result<()> {
        let mut tries = 0;
        loop {
            let releases = self.backing.pulse.releases();
            let error = match self.write_alone(buf, offset) {
                Err(e) if matches!(e.kind(), ErrorKind::OutOfDataSpace | ErrorKind::OutOfMetadataSpace) => e,
                done => return done,
            };
            if patience == Patience::None {
                return Err(error);
            }
            let again = match error.kind() {
                ErrorKind::OutOfDataSpace => self.backing.make_room(releases)?,
                _ => self.backing.make_metadata_room()?,
            };
            if !again || tries == TRIES_MAX {
                if error.kind() == ErrorKind::OutOfDataSpace {
                    self.backing.out_of_space(&error);
                }
                return Err(error);
            }
            tries += 1;
        }
    }

    /// One try, with the cells of the blocks held alone.
    fn write_alone(&self, buf: &[u8], offset: u64) -> Result<()> {
        let (first, blocks) = self.blocks_of(offset, buf.len() as u64);
        let _cells = self.take_alone(first, blocks);
        self.check_broken(first, blocks)?;
        let resolved = self.resolve(first, blocks)?;
        let needed = resolved.entries().iter().filter(|&&entry| self.needs_block(entry)).count() as u64;
        let runs = self.backing.reserve(needed)?;
        self.write_to(buf, offset, &runs, &resolved)
    }

    /// Does a write that was acknowledged: to one shared block, whose cell the caller holds, with `to` reserved for it.
    /// Errors: as [`write_blocks`](Self::write_blocks).
    pub(super) fn write_taken(&self, buf: &[u8], offset: u64, to: DataRun) -> Result<()> {
        let (first, blocks) = self.blocks_of(offset, buf.len() as u64);
        let resolved = self.resolve(first, blocks).inspect_err(|_| self.backing.abandon(&[to]))?;
        // In a statement of its own: the mutex must not be held while the file system finds room.
        let total = self.backing.metadata_numbers().data_space().total;
        self.backing.take_room_behind(to, total);
        let mut releases = self.backing.pulse.releases();
        let mut done = self.write_to(buf, offset, &[to], &resolved);
        // It must not fail for want of what a commit brings. Who holds cells may wait for one.
        for _ in 0..TRIES_MAX {
            let again = match &done {
                Err(e) if e.kind() == ErrorKind::OutOfDataSpace => self.backing.make_room(releases)?,
                Err(e) if e.kind() == ErrorKind::OutOfMetadataSpace => self.backing.make_metadata_room()?,
                _ => return done,
            };
            if !again {
                return done;
            }
            releases = self.backing.pulse.releases();
            done = self.backing.reserve(1).and_then(|runs| self.write_to(buf, offset, &runs, &resolved));
        }
        done
    }

    /// Writes to the blocks as they are, and to those of `runs` where new ones are needed.
    fn write_to(&self, buf: &[u8], offset: u64, runs: &[DataRun], resolved: &Resolved) -> Result<()> {
        let targets = self.targets(buf.len(), offset, runs, resolved);
        if let Err(e) = self.write_data(buf, &targets) {
            if e.kind() == ErrorKind::OutOfDataSpace {
                self.backing.full_below();
            }
            self.backing.abandon(runs);
            return Err(e.doing(format_args!("write device {}", self.id)));
        }
        if !runs.is_empty() {
            self.map(&targets)?;
            self.backing.room_below();
        }
        Ok(())
    }

    fn needs_block(&self, entry: Entry) -> bool {
        match self.plan(entry, Direction::Write) {
            Plan::Provision | Plan::BreakSharing(_) => true,
            Plan::Remap(_) | Plan::ReadZeroes | Plan::LookUp => false,
        }
    }

    /// Gives each block of the request its place: the one it has, or the next reserved one.
    fn targets(&self, len: usize, offset: u64, runs: &[DataRun], resolved: &Resolved) -> Vec<Target> {
        let size = self.block_bytes();
        let mut reserved = runs.iter().flat_map(|run| (0..run.len).map(|i| run.start.plus(i)));
        let mut targets = Vec::new();
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let skip = at % size;
            let step = usize::try_from(size - skip).unwrap_or(len).min(len - done);
            let before = resolved.get(at / size);
            let plan = self.plan(before, Direction::Write);
            let to = match plan {
                Plan::Remap(block) => block,
                Plan::Provision | Plan::BreakSharing(_) | Plan::ReadZeroes | Plan::LookUp => {
                    reserved.next().expect("as many blocks were reserved as the same plans, under the same cells, need")
                }
            };
            targets.push(Target { block: VirtualBlock(at / size), before, plan, to, piece: done..done + step, skip });
            done += step;
        }
        targets
    }

    /// Writes the request to its places: what is adjacent there in one write, and around a piece of a new
    /// block what must be there too.
    fn write_data(&self, buf: &[u8], targets: &[Target]) -> Result<()> {
        let mut pending: Option<(u64, std::ops::Range<usize>)> = None;
        for target in targets {
            if !self.piece_is_enough(target)? {
                self.write_whole(target, &buf[target.piece.clone()])?;
                continue;
            }
            let place = self.backing.data_offset(target.to.0) + target.skip;
            pending = match pending {
                Some((start, piece)) if piece.end == target.piece.start && start + piece.len() as u64 == place => {
                    Some((start, piece.start..target.piece.end))
                }
                other => {
                    if let Some((start, piece)) = other {
                        self.backing.write_data(&buf[piece], start)?;
                    }
                    Some((place, target.piece.clone()))
                }
            };
        }
        match pending {
            Some((start, piece)) => self.backing.write_data(&buf[piece], start),
            None => Ok(()),
        }
    }

    /// True if the caller's bytes are all that must be written for this block: it is written whole, or in
    /// place, or the new block is a hole, or a large one that was zeroed here.
    fn piece_is_enough(&self, target: &Target) -> Result<bool> {
        let size = self.block_bytes();
        if !target.is_new() || target.piece.len() as u64 == size {
            return Ok(true);
        }
        if let Plan::BreakSharing(_) = target.plan {
            return Ok(false);
        }
        let place = self.backing.data_offset(target.to.0);
        if self.backing.data.known_zero(place, size) || Mutation::ShowOldBytes.is_on() {
            return Ok(true);
        }
        if size <= COMPOSE_MAX {
            return Ok(false);
        }
        let end = target.skip + target.piece.len() as u64;
        self.backing.data.write_zeroes(place, target.skip)?;
        self.backing.data.write_zeroes(place + end, size - end)?;
        Ok(true)
    }

    /// Writes all of a new block: the old bytes, or zeroes, with `piece` laid over them.
    fn write_whole(&self, target: &Target, piece: &[u8]) -> Result<()> {
        let size = self.block_bytes();
        let to = self.backing.data_offset(target.to.0);
        let (covered, covered_end) = (target.skip, target.skip + piece.len() as u64);
        let mut buffer = COMPOSED.take();
        if buffer.len() < length(size.min(COPY_PIECE)) {
            buffer = AlignedBuffer::zeroed(length(size.min(COPY_PIECE)));
        }
        let mut at = 0;
        while at < size {
            let len = (size - at).min(COPY_PIECE);
            let window = &mut buffer[..length(len)];
            let (start, end) = (covered.clamp(at, at + len), covered_end.clamp(at, at + len));
            if target.plan == Plan::Provision {
                window.fill(0);
            }
            if let Plan::BreakSharing(old) = target.plan {
                let from = self.backing.data_offset(old.0) + at;
                // Only what the caller does not bring; as one read unless that saves much.
                let (head, tail) = (start - at, at + len - end);
                if head + tail > 0 && end > start && head + tail <= len / 2 {
                    self.backing.data.read_at(&mut window[..length(head)], from)?;
                    self.backing.data.read_at(&mut window[length(len - tail)..], from + len - tail)?;
                } else if head + tail > 0 {
                    self.backing.data.read_at(window, from)?;
                }
            }
            if end > start {
                window[length(start - at)..length(end - at)]
                    .copy_from_slice(&piece[length(start - covered)..length(end - covered)]);
            }
            self.backing.write_data(window, to + at)?;
            at += len;
        }
        COMPOSED.set(buffer);
        Ok(())
    }

    /// Maps the new blocks of a request. This is the one place where a change of mapping is about to be
    /// acknowledged: at return the caller is told that his write is done.
    ///
    /// On an error the blocks mapped so far stay (their bytes are written), the others are given back.
    fn map(&self, targets: &[Target]) -> Result<()> {
        let runs = runs_of(targets);
        let mut metadata = self.backing.metadata_for(runs.len()).inspect_err(|_| {
            let all: Vec<DataRun> = runs.iter().map(|(_, run)| *run).collect();
            self.backing.abandon(&all);
        })?;
        for (i, (start, run)) in runs.iter().enumerate() {
            if let Err(e) = metadata.insert(self.id, *start, *run) {
                let rest: Vec<DataRun> = runs[i..].iter().map(|(_, run)| *run).collect();
                self.table.forget(start.0, run.len);
                drop(metadata);
                self.backing.abandon(&rest);
                self.backing.commits.note_change();
                return Err(e.doing(format_args!("write device {}", self.id)));
            }
            let of_run = targets.iter().filter(|target| (start.0..start.0 + run.len).contains(&target.block.0));
            let was_own = |target: &&Target| matches!(target.before, Entry::Mapped(old) if self.is_own(old));
            let own_before = of_run.filter(was_own).count() as u64;
            self.count_own(&metadata, i64::try_from(run.len - own_before).unwrap_or(i64::MAX));
            self.table.set(start.0, run.len, Mapping { block: run.start, time: metadata.time() });
        }
        drop(metadata);
        self.backing.commits.note_change();
        Ok(())
    }
}

/// The new blocks of a request as runs that are consecutive on both sides.
fn runs_of(targets: &[Target]) -> Vec<(VirtualBlock, DataRun)> {
    let mut runs: Vec<(VirtualBlock, DataRun)> = Vec::new();
    for target in targets.iter().filter(|target| target.is_new()) {
        match runs.last_mut() {
            Some((start, run)) if start.plus(run.len) == target.block && run.start.plus(run.len) == target.to => {
                run.len += 1;
            }
            _ => runs.push((target.block, DataRun { start: target.to, len: 1 })),
        }
    }
    runs
}

fn length(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a piece of at most 1 MiB")
}
