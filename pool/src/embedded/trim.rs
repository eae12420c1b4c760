//! Gives back the room that free blocks hold in the data file, or on a thin disk below.
//!
//! A freed block is emptied after its commit (`reclaim.rs`). A process that dies between the two leaves it free
//! with its room still taken: the pool is none the worse, the file system below is. A trim walks the free blocks,
//! keeps a few of them from being handed out at a time, and empties those that are not holes.

use std::sync::Arc;

use crate::embedded::backing::Backing;
use crate::error::{Error, ErrorKind, Result};
use crate::units::{ByteCount, DataBlock};

/// Bytes of free blocks that are held back at a time.
const STEP: u64 = 16 << 20;
/// Room in free blocks that is worth a trim when a pool is opened; file systems round up what they count.
const WORTH: u64 = 16 << 20;

/// Room that the data file holds beyond the blocks in use; `None` where that cannot be told.
pub(super) fn unpunched(backing: &Backing) -> Option<u64> {
    let below = backing.data.room_below()?;
    let used = backing.data_offset(backing.metadata().ok()?.data_space().used);
    Some(below.allocated.saturating_sub(used))
}

/// Empties free blocks; returns the bytes of those that were not holes before. Errors: `ReadOnly`, `Io`,
/// `Unavailable` if it was interrupted.
pub(super) fn trim(backing: &Backing) -> Result<ByteCount> {
    backing.mode.check_changes()?;
    backing.ahead.forget();
    let step = (STEP / backing.block_size.bytes()).max(1);
    let interrupts = backing.pulse.interrupts();
    let mut from = DataBlock(0);
    let mut emptied = 0;
    loop {
        if interrupts.is_none() || backing.pulse.interrupts() != interrupts {
            return Err(Error::new(ErrorKind::Unavailable, "trim the pool: interrupted; what is done is done"));
        }
        let end = backing.data_offset(backing.metadata()?.data_space().total);
        let start = backing.data_offset(from.0);
        if start >= end || backing.data.known_zero(start, end - start) {
            return Ok(ByteCount(emptied));
        }
        // Told before the blocks are taken: a writer that misses them waits instead of failing.
        let held = backing.reclaim.hold();
        let Some(run) = backing.metadata()?.reserve_next(from, step) else { return Ok(ByteCount(emptied)) };
        let (offset, len) = (backing.data_offset(run.start.0), backing.data_offset(run.len));
        if !backing.data.known_zero(offset, len) {
            backing.punch(&[run]);
            emptied += len;
        }
        backing.metadata()?.release_data(&[run]);
        // The order of the reclaimer: who sees nobody hold blocks back has heard of their release.
        backing.room_below();
        backing.pulse.room_changed();
        drop(held);
        from = run.start.plus(run.len);
    }
}

/// The life of the thread that an opened pool has for what a dead one left behind; ends by itself.
pub(super) fn run_once(backing: &Arc<Backing>) {
    let Some(left) = unpunched(backing).filter(|&left| left >= WORTH) else { return };
    match trim(backing) {
        Ok(emptied) if emptied.0 > 0 => {
            tracing::info!("emptied {emptied} of free blocks that an earlier process left behind");
        }
        Ok(_) => tracing::debug!("{} beyond the blocks in use, none of it in free blocks", ByteCount(left)),
        Err(e) if e.kind() == ErrorKind::Unavailable => {}
        Err(e) => tracing::warn!("free blocks keep their room on the data device: {e}"),
    }
}
