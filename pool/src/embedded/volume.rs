//! An active thin device: reads, writes in place, and the direct way of the exporter.
//!
//! Two ways lead to the bytes. The direct way ([`Volume::begin_direct`]) takes no lock: it shares the cells
//! of the blocks, reads the table, and hands out where the bytes stand; the exporter does the I/O and gives
//! the cells back. The blocking way (the calls of [`BlockDevice`]) does whatever else there is; what changes
//! a mapping lives in `write.rs` and `unmap.rs`.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};

use crate::device::BlockDevice;
use crate::device::check_range;
use crate::embedded::backing::Backing;
use crate::embedded::cells::{CELLS, Cells, Exclusive, Shared};
use crate::embedded::chunk::{CHUNK, Entry};
use crate::embedded::plan::{Plan, plan};
use crate::embedded::table::{TABLE_BLOCKS_MAX, Table};
use crate::embedded::write::Patience;
use crate::error::{Error, ErrorKind, Result};
use crate::export::{DirectToken, Direction, Extent, Extents, Outlook, Volume};
use crate::format::Mapping;
use crate::meta::{DeviceDetails, Metadata};
use crate::status::PoolMode;
use crate::thin_pool::Access;
use crate::units::{ByteCount, DeviceId, VirtualBlock};

/// The count of own blocks before somebody asked for it.
const NOT_COUNTED: i64 = -1;

pub(super) struct ThinVolume {
    pub(super) id: DeviceId,
    pub(super) access: Access,
    pub(super) backing: Arc<Backing>,
    pub(super) cells: Cells,
    pub(super) table: Table,
    /// The clock at the last snapshot of the device; changed with all cells held.
    snapshotted_time: AtomicU32,
    creation_time: u32,
    size: AtomicU64,
    /// Blocks mapped since the device was created, once counted; changed under the metadata mutex.
    own_blocks: AtomicI64,
    /// A write to it failed after it was acknowledged: its block answers with errors.
    broken: AtomicBool,
}

impl ThinVolume {
    /// A volume of `size` bytes. Errors: `Invalid` if the size is no multiple of 512 or beyond the table.
    pub(super) fn new(
        backing: Arc<Backing>,
        id: DeviceId,
        details: DeviceDetails,
        size: ByteCount,
        access: Access,
    ) -> Result<Self> {
        check_size(&backing, size)?;
        let table = Table::new(Arc::clone(&backing.mappings));
        let broken = backing.early.as_ref().is_some_and(|early| early.is_broken(id));
        Ok(Self {
            id,
            access,
            backing,
            cells: Cells::new(),
            table,
            snapshotted_time: AtomicU32::new(details.snapshotted_time),
            creation_time: details.creation_time,
            size: AtomicU64::new(size.0),
            own_blocks: AtomicI64::new(NOT_COUNTED),
            broken: AtomicBool::new(broken),
        })
    }

    /// The same for a device that was made at this moment and has mapped this many blocks since.
    pub(super) fn newborn(self, own_blocks: u64) -> Self {
        Self { own_blocks: AtomicI64::new(i64::try_from(own_blocks).unwrap_or(NOT_COUNTED)), ..self }
    }

    /// Makes the volume larger; smaller sizes are left to the caller to refuse.
    pub(super) fn grow_to(&self, size: ByteCount) -> Result<()> {
        check_size(&self.backing, size)?;
        self.size.fetch_max(size.0, Ordering::AcqRel);
        Ok(())
    }

    /// Takes [`grow_to`](Self::grow_to) back: nobody was told of the larger size.
    pub(super) fn grow_back(&self, before: u64) {
        self.size.store(before, Ordering::Release);
    }

    /// Snapshots the device by `create`, which returns the new snapshot clock of the device. At that moment
    /// no request is in flight: what was acknowledged before is in the snapshot, and what begins after knows
    /// that its blocks are shared.
    pub(super) fn quiesced(&self, create: impl FnOnce() -> Result<u32>) -> Result<()> {
        let _nobody = self.take_alone(0, CELLS);
        self.backing.settle(self.id)?;
        let time = create()?;
        self.snapshotted_time.store(time, Ordering::Relaxed);
        Ok(())
    }

    /// Blocks mapped since the device was created: counted at the first call, kept up to date since.
    pub(super) fn own_blocks(&self) -> Result<u64> {
        let metadata = self.backing.metadata()?;
        let known = self.own_blocks.load(Ordering::Relaxed);
        if let Ok(known) = u64::try_from(known) {
            return Ok(known);
        }
        let counted = metadata.usage(self.id)?.written.0 / self.backing.block_size.bytes();
        self.own_blocks.store(i64::try_from(counted).unwrap_or(i64::MAX), Ordering::Relaxed);
        Ok(counted)
    }

    /// Corrects the count of own blocks. The caller holds the metadata mutex.
    pub(super) fn count_own(&self, _under: &Metadata, change: i64) {
        if self.counts_own() {
            self.own_blocks.fetch_add(change, Ordering::Relaxed);
        }
    }

    /// Lets the next caller of [`own_blocks`](Self::own_blocks) count anew.
    pub(super) fn count_own_again(&self, _under: &Metadata) {
        self.own_blocks.store(NOT_COUNTED, Ordering::Relaxed);
    }

    /// True if the count of own blocks is being kept.
    pub(super) fn counts_own(&self) -> bool {
        self.own_blocks.load(Ordering::Relaxed) != NOT_COUNTED
    }

    /// True if the mapping was made by this device, not inherited from its origin.
    pub(super) fn is_own(&self, mapping: Mapping) -> bool {
        mapping.time >= self.creation_time
    }

    /// From here on the way of every request is the one that looks for broken blocks.
    pub(super) fn note_broken(&self) {
        self.broken.store(true, Ordering::Release);
    }

    /// Errors if a write to one of the blocks failed after it was acknowledged. The caller holds their cells.
    pub(super) fn check_broken(&self, first: u64, blocks: u64) -> Result<()> {
        match &self.backing.early {
            Some(early) if self.broken.load(Ordering::Acquire) => early
                .check(self.id, first, blocks)
                .map_err(|e| Error::new(ErrorKind::Io, format!("device {}: {e}", self.id))),
            _ => Ok(()),
        }
    }

    /// The cells of a range, shared; what stands in their way is done first.
    pub(super) fn share(&self, first: u64, blocks: u64) -> Shared<'_> {
        self.help(first, blocks);
        self.cells.shared(first, blocks)
    }

    /// The cells of a range, alone; what stands in their way is done first.
    pub(super) fn take_alone(&self, first: u64, blocks: u64) -> Exclusive<'_> {
        self.help(first, blocks);
        self.cells.exclusive(first, blocks)
    }

    fn help(&self, first: u64, blocks: u64) {
        if let Some(early) = &self.backing.early {
            early.help(self, first, blocks);
        }
    }

    pub(super) fn block_bytes(&self) -> u64 {
        self.backing.block_size.bytes()
    }

    /// First block and number of blocks that a byte range touches.
    pub(super) fn blocks_of(&self, offset: u64, len: u64) -> (u64, u64) {
        let size = self.block_bytes();
        let first = offset / size;
        (first, (offset + len).div_ceil(size) - first)
    }

    /// What to do with a block of which that is known. The caller holds its cell.
    pub(super) fn plan(&self, entry: Entry, direction: Direction) -> Plan {
        plan(entry, self.snapshotted_time.load(Ordering::Relaxed), direction)
    }

    /// Where the blocks of a range stand: none is unknown. The caller holds their cells, so that it stays true; the
    /// table may forget it at any time. What it does not know is looked up, whole chunks at a time.
    pub(super) fn resolve(&self, first: u64, blocks: u64) -> Result<Resolved> {
        let mut entries: Vec<Entry> = (first..first + blocks).map(|block| self.table.get(block)).collect();
        let mut block = first;
        while block < first + blocks {
            let at = index(block - first);
            if entries[at] != Entry::Unknown {
                block += 1;
                continue;
            }
            let chunk = block / CHUNK;
            let end = (chunk + 1) * CHUNK;
            let metadata = self.backing.metadata()?;
            let runs = metadata.lookup_range(self.id, VirtualBlock(chunk * CHUNK)..VirtualBlock(end))?;
            self.table.fill(chunk, &runs);
            drop(metadata);
            let stop = end.min(first + blocks);
            entries[at..index(stop - first)].fill(Entry::Hole);
            for run in &runs {
                for block in run.start.0.max(block)..(run.start.0 + run.len).min(stop) {
                    let mapping = Mapping { block: run.mapping.block.plus(block - run.start.0), ..run.mapping };
                    entries[index(block - first)] = Entry::Mapped(mapping);
                }
            }
            block = end;
        }
        Ok(Resolved { first, entries })
    }

    /// Errors with `Invalid` past the end, `ReadOnly` on a volume or pool that takes no writes.
    pub(super) fn check_write(&self, offset: u64, len: u64) -> Result<()> {
        if self.access == Access::ReadOnly {
            return Err(Error::new(
                ErrorKind::ReadOnly,
                format!("write to device {}: it is active for reading", self.id),
            ));
        }
        self.backing.mode.check_changes()?;
        self.check(offset, len)
    }

    fn check(&self, offset: u64, len: u64) -> Result<()> {
        check_range(&format_args!("device {}", self.id), self.size(), offset, len)
    }

    fn read_blocks(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let (first, blocks) = self.blocks_of(offset, buf.len() as u64);
        let _cells = self.share(first, blocks);
        self.check_broken(first, blocks)?;
        let resolved = self.resolve(first, blocks)?;
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let (place, len) = self.run_in_place(&resolved, at, buf.len() - done);
            let piece = &mut buf[done..done + len];
            match place {
                Some(place) => self.backing.data.read_at(piece, place)?,
                None => piece.fill(0),
            }
            done += len;
        }
        Ok(())
    }

    /// The longest piece from `offset` on, at most `max` bytes, that stands in one place, or is all hole.
    fn run_in_place(&self, resolved: &Resolved, offset: u64, max: usize) -> (Option<u64>, usize) {
        let size = self.block_bytes();
        let place_of = |offset: u64| match self.plan(resolved.get(offset / size), Direction::Read) {
            Plan::Remap(block) => Some(self.backing.data_offset(block.0) + offset % size),
            Plan::ReadZeroes | Plan::LookUp | Plan::Provision | Plan::BreakSharing(_) => None,
        };
        let place = place_of(offset);
        let mut len = size - offset % size;
        while len < max as u64 && place_of(offset + len) == place.map(|place| place + len) {
            len += size;
        }
        (place, usize::try_from(len).unwrap_or(max).min(max))
    }

    fn extents(&self, direction: Direction, offset: u64, len: u32, extents: &mut Extents) -> bool {
        let size = self.block_bytes();
        let end = offset + u64::from(len);
        let mut at = offset;
        while at < end {
            let step = (size - at % size).min(end - at);
            let place = match self.plan(self.table.get(at / size), direction) {
                Plan::Remap(block) => Some(self.backing.data_offset(block.0) + at % size),
                Plan::ReadZeroes => None,
                Plan::LookUp | Plan::Provision | Plan::BreakSharing(_) => return false,
            };
            let Ok(step_len) = u32::try_from(step) else { return false };
            if !extents.push(Extent { offset: place, len: step_len }) {
                return false;
            }
            at += step;
        }
        true
    }
}

/// Where the blocks of a request stand, as long as their cells are held.
pub(super) struct Resolved {
    first: u64,
    entries: Vec<Entry>,
}

impl Resolved {
    /// What is known of a block of the range; never unknown.
    pub(super) fn get(&self, block: u64) -> Entry {
        self.entries[index(block - self.first)]
    }

    /// All blocks of the range.
    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }
}

fn index(blocks: u64) -> usize {
    usize::try_from(blocks).expect("a request has few blocks")
}

impl Volume for ThinVolume {
    fn write_now(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.write(buf, offset, Patience::None)
    }

    fn write_zeroes_now(&self, offset: u64, len: u64) -> Result<()> {
        self.zero(offset, len, Patience::None)
    }

    fn write_early(self: Arc<Self>, buf: &[u8], offset: u64, may_wait: bool) -> bool {
        let Some(early) = &self.backing.early else { return false };
        self.check_write(offset, buf.len() as u64).is_ok() && early.take(&self, buf, offset, may_wait)
    }

    fn flush_at_hand(&self) -> Option<Result<()>> {
        if self.backing.early.as_ref().is_some_and(|early| !early.is_done()) {
            return None;
        }
        self.backing.flush_at_hand()
    }

    fn outlook(&self, error: &Error) -> Outlook {
        self.backing.outlook(error)
    }

    fn begin_direct(&self, direction: Direction, offset: u64, len: u32, extents: &mut Extents) -> Option<DirectToken> {
        let allowed = match (direction, self.backing.mode.now()) {
            (_, PoolMode::Fail) | (Direction::Write, PoolMode::ReadOnly) => false,
            (Direction::Write, PoolMode::Write | PoolMode::OutOfDataSpace) => self.access == Access::ReadWrite,
            (Direction::Read, PoolMode::Write | PoolMode::OutOfDataSpace | PoolMode::ReadOnly) => true,
        };
        // Off the alignment a write is a read, a change and a write back: not for two at once.
        let unit = self.alignment() as u64;
        let aligned = offset.is_multiple_of(unit) && u64::from(len).is_multiple_of(unit);
        let whole = !self.broken.load(Ordering::Relaxed);
        if !allowed || !whole || !aligned || len == 0 || offset.checked_add(u64::from(len))? > self.size() {
            return None;
        }
        self.backing.data.raw_fd()?;
        let (first_block, blocks) = self.blocks_of(offset, u64::from(len));
        // A larger request would hold a cell twice over; it is cut up on the blocking way.
        if blocks > CELLS || !self.cells.try_shared(first_block, blocks) {
            return None;
        }
        if !extents.as_slice().is_empty() {
            *extents = Extents::default();
        }
        // Again, with the cells held: it is set before the cell of a broken block is let go.
        if self.broken.load(Ordering::Acquire) || !self.extents(direction, offset, len, extents) {
            self.cells.leave(first_block, blocks);
            return None;
        }
        Some(DirectToken { first_block, blocks: u32::try_from(blocks).ok()? })
    }

    fn end_direct(&self, token: DirectToken) {
        self.cells.leave(token.first_block, u64::from(token.blocks));
    }

    fn data_fd(&self) -> RawFd {
        // Without a descriptor `begin_direct` hands out nothing that could be used on this one.
        self.backing.data.raw_fd().unwrap_or(-1)
    }
}

impl BlockDevice for ThinVolume {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.check(offset, buf.len() as u64)?;
        if self.backing.mode.now() == PoolMode::Fail {
            let reason = self.backing.mode.reason().unwrap_or_default();
            return Err(Error::new(ErrorKind::Io, format!("read device {}: the pool has failed: {reason}", self.id)));
        }
        let mut done = 0;
        while done < buf.len() {
            let step = self.segment(offset + done as u64, buf.len() - done);
            self.read_blocks(&mut buf[done..done + step], offset + done as u64)?;
            done += step;
        }
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.write(buf, offset, Patience::Wait)
    }

    /// Whole blocks inside the range are unmapped and read as zeroes; the pieces at its edges stay.
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.check_write(offset, len)?;
        let size = self.block_bytes();
        let (first, end) = (offset.div_ceil(size), self.end_of_blocks(offset + len));
        self.unmap(first, end.saturating_sub(first))
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.zero(offset, len, Patience::Wait)
    }

    fn flush(&self) -> Result<()> {
        self.backing
            .settle(self.id)
            .and_then(|()| self.backing.flush())
            .map_err(|e| e.doing(format_args!("flush device {}", self.id)))
    }

    fn alignment(&self) -> usize {
        self.backing.data.alignment()
    }
}

impl ThinVolume {
    fn write(&self, buf: &[u8], offset: u64, patience: Patience) -> Result<()> {
        self.check_write(offset, buf.len() as u64)?;
        let mut done = 0;
        while done < buf.len() {
            let step = self.segment(offset + done as u64, buf.len() - done);
            self.write_blocks(&buf[done..done + step], offset + done as u64, patience)?;
            done += step;
        }
        Ok(())
    }

    fn zero(&self, offset: u64, len: u64, patience: Patience) -> Result<()> {
        self.check_write(offset, len)?;
        let size = self.block_bytes();
        let end = offset + len;
        let (first, last) = (offset.div_ceil(size), self.end_of_blocks(end));
        if first >= last {
            return self.zero_piece(offset, len, patience);
        }
        self.zero_piece(offset, first * size - offset, patience)?;
        self.unmap(first, last - first)?;
        self.zero_piece(last * size, end.saturating_sub(last * size), patience)
    }

    /// How much of a request is done with its cells held at once: less than all cells, so that the rest of
    /// the volume goes on.
    fn segment(&self, offset: u64, len: usize) -> usize {
        let size = self.block_bytes();
        let most = (SEGMENT_BYTES / size).max(1) * size;
        let step = most - offset % size;
        usize::try_from(step).unwrap_or(len).min(len)
    }

    /// The block behind the last whole block before `end`; the last block of a volume may be short.
    fn end_of_blocks(&self, end: u64) -> u64 {
        if end == self.size() { end.div_ceil(self.block_bytes()) } else { end / self.block_bytes() }
    }
}

/// The loop device's largest request is 1 MiB; callers inside the process may pass more.
const SEGMENT_BYTES: u64 = 4 << 20;

/// Errors with `Invalid` if the size is no multiple of 512 or beyond the table.
pub(super) fn check_size(backing: &Backing, size: ByteCount) -> Result<()> {
    if !size.0.is_multiple_of(512) || size.0 == 0 {
        return Err(Error::new(ErrorKind::Invalid, format!("device size {} is not a multiple of 512 above 0", size.0)));
    }
    let most = backing.block_size.bytes().saturating_mul(TABLE_BLOCKS_MAX);
    if size.0 > most {
        return Err(Error::new(
            ErrorKind::Invalid,
            format!("device size {size} is above {}, the most with this data block size", ByteCount(most)),
        ));
    }
    Ok(())
}
