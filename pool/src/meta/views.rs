//! Keeps a committed generation readable on the disk while others follow it.
//!
//! Somebody who reads the metadata beside the pool (a check, a backup) starts at a durable superblock. All that it
//! reaches stays as it is until a later commit has freed it and the allocator has handed it out again. So it is
//! enough not to hand out again what commits free, from before the superblock was read until the reader is done:
//! trees and space maps alike stay whole, nothing is written for it, and nothing is left behind by a reader or a
//! pool that dies. The price is metadata that comes free later; where that is short, the view is given up and its
//! reader is told.

use crate::error::{Error, ErrorKind, Result};
use crate::format::{Block, SUPERBLOCK, Superblock, marked_logged};
use crate::meta::metadata::Metadata;

/// Errors with `Corrupt` unless the bytes are a sound block 0.
pub(crate) fn check_superblock(bytes: &[u8]) -> Result<()> {
    Superblock::decode(SUPERBLOCK, block_of(bytes)?).map(|_| ())
}

/// A sound block 0 without the mark of an intent log. Errors: `Corrupt`.
pub(crate) fn without_log(bytes: &[u8]) -> Result<Vec<u8>> {
    Ok(marked_logged(block_of(bytes)?, false).to_vec())
}

fn block_of(bytes: &[u8]) -> Result<&Block> {
    bytes.try_into().map_err(|_| Error::new(ErrorKind::Corrupt, format!("{} bytes are no superblock", bytes.len())))
}

impl Metadata {
    /// Begins a view under a number that no other one has. A superblock that is durable after this call is whole
    /// until the view ends.
    pub fn begin_view(&mut self, number: u64) {
        self.views.insert(number);
        self.transaction.keep_freed(true);
    }

    /// Ends a view. True: everything was kept until now. False: it was given up, or is not known.
    pub fn end_view(&mut self, number: u64) -> bool {
        let whole = self.views.remove(&number);
        if self.views.is_empty() {
            self.transaction.keep_freed(false);
        }
        whole
    }

    /// Gives up all views for want of room. True if that made blocks available.
    pub fn give_up_views(&mut self) -> bool {
        self.views.clear();
        self.transaction.keep_freed(false)
    }
}
