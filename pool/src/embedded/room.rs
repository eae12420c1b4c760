//! What becomes of a change that finds no room: what is on its way back is waited for, and the mode says what is not.

use std::sync::atomic::Ordering;

use crate::embedded::backing::Backing;
use crate::embedded::ledger::Ledger;
use crate::error::{Error, ErrorKind, Result};
use crate::export::Outlook;
use crate::status::PoolMode;

/// With less room than this the file system below passes for full: its own bookkeeping wants some.
const ROOM_BELOW_MIN: u64 = 1 << 20;
/// Tries of a change that finds no metadata block: each waits for a commit, and others may be faster.
const ROOM_TRIES: usize = 16;

impl Backing {
    /// After an operation ran out of data space: true if blocks were made available since `releases` was looked at,
    /// or if freed ones were waiting for a commit or for their discard and are usable at return, so that one more
    /// try makes sense.
    pub(super) fn make_room(&self, releases: u64) -> Result<bool> {
        let (pending, coming) = {
            let metadata = self.metadata()?;
            let pending = metadata.data_space().pending > 0;
            (pending, pending || !self.reclaim.is_idle())
        };
        if !coming {
            return Ok(self.pulse.releases() != releases);
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

    /// What a write that found no room may hope for. Asks for the commit that would bring it, and waits for
    /// nothing.
    pub(super) fn outlook(&self, error: &Error) -> Outlook {
        let Ok(mut metadata) = self.metadata() else { return Outlook::None };
        let (pending, coming) = match error.kind() {
            ErrorKind::OutOfDataSpace => {
                // Under the mutex: a commit hands what it freed to the reclaimer before it lets the mutex go.
                let pending = metadata.data_space().pending > 0;
                (pending, pending || !self.reclaim.is_idle())
            }
            ErrorKind::OutOfMetadataSpace => {
                let given_up = metadata.give_up_views();
                let pending = metadata.metadata_space().0.pending > 0;
                (pending || given_up, pending || given_up)
            }
            _ => return Outlook::None,
        };
        drop(metadata);
        if pending {
            self.commits.ask();
        }
        if coming {
            return Outlook::Coming;
        }
        if error.kind() == ErrorKind::OutOfMetadataSpace {
            self.pulse.beat();
            return Outlook::None;
        }
        self.out_of_space(error);
        if self.full_below.load(Ordering::Relaxed) { Outlook::Silent } else { Outlook::None }
    }

    /// Changes the metadata; if there is no room for it, commits and tries again. Errors: `ReadOnly`, `Io`,
    /// and what the change meets.
    pub(super) fn change<T>(&self, mut change: impl FnMut(&mut Ledger) -> Result<T>) -> Result<T> {
        self.mode.check_changes()?;
        for _ in 0..ROOM_TRIES {
            let done = change(&mut *self.metadata_for(1)?);
            match done {
                Err(e) if e.kind() == ErrorKind::OutOfMetadataSpace && self.make_metadata_room()? => {}
                done => return done,
            }
        }
        change(&mut *self.metadata_for(1)?)
    }

    /// Data space is exhausted: by the pool's own count, or, with free blocks left, on the file system below.
    pub(super) fn out_of_space(&self, error: &Error) {
        let reason = match self.full_below.load(Ordering::Relaxed) {
            true => format!("the file system below the data is full: {error}"),
            false => error.to_string(),
        };
        self.mode.change(PoolMode::OutOfDataSpace, &reason);
        self.pulse.beat();
    }

    /// A write to a block that the pool has was refused: the file system below is full.
    pub(super) fn full_below(&self) {
        self.full_below.store(true, Ordering::Relaxed);
    }

    /// True from such a write to the next that finds room.
    pub(super) fn is_full_below(&self) -> bool {
        self.mode.now() == PoolMode::OutOfDataSpace && self.full_below.load(Ordering::Relaxed)
    }

    /// Asks the file system below, which does not tell, whether there is room again.
    pub(super) fn look_below(&self) {
        if self.mode.now() != PoolMode::OutOfDataSpace || !self.full_below.load(Ordering::Relaxed) {
            return;
        }
        if self.data.room_below().is_some_and(|below| below.usable >= ROOM_BELOW_MIN.max(self.block_size.bytes())) {
            self.room_below();
            self.pulse.room_changed();
        }
    }

    /// A write got a new block, or blocks were emptied: room below is there again.
    pub(super) fn room_below(&self) {
        if self.mode.now() == PoolMode::OutOfDataSpace && self.full_below.swap(false, Ordering::Relaxed) {
            self.leave_out_of_space();
        }
    }

    /// Blocks were released or added: the pool leaves `out_of_data_space` if as many are available as were missed.
    pub(super) fn leave_out_of_space(&self) {
        if self.mode.now() != PoolMode::OutOfDataSpace || self.full_below.load(Ordering::Relaxed) {
            return;
        }
        let wanted = self.wanted.load(Ordering::Relaxed).max(1);
        if self.metadata().is_ok_and(|metadata| metadata.data_space().available >= wanted) {
            self.mode.change(PoolMode::Write, "there are free data blocks");
        }
    }
}
