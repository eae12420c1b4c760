//! Where the blocks of an active volume stand: a table filled as they are looked up, read without a lock.
//!
//! Three levels: an idle volume costs 16 KiB, each 512 blocks in use 4 KiB more. An entry is changed only
//! under the metadata mutex, so that it never says less than the tree; it is trusted only by a holder of the
//! block's cell, so that it does not change under a reader.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::format::Mapping;

/// Blocks that are looked up together: 4 KiB of table, two or three leaves of the tree.
pub(super) const CHUNK: u64 = 512;
const MIDDLE: u64 = 1024;
const ROOT: u64 = 1024;
/// Blocks that a table can hold: 32 TiB of 64 KiB blocks.
pub(super) const TABLE_BLOCKS_MAX: u64 = ROOT * MIDDLE * CHUNK;

/// What the table knows of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    /// Nothing: look it up in the tree.
    Unknown,
    /// It is not mapped.
    Hole,
    /// It stands here.
    Mapped(Mapping),
}

// Stored as the packed mapping plus 2, so that a fresh chunk of zeroes is unknown. The sum cannot run over:
// the topmost data block numbers would lie beyond the largest file.
const UNKNOWN: u64 = 0;
const HOLE: u64 = 1;
const FIRST_MAPPING: u64 = 2;

type Chunk = Box<[AtomicU64]>;
type Middle = Box<[OnceLock<Chunk>]>;

pub(super) struct Table {
    root: Box<[OnceLock<Middle>]>,
}

impl Table {
    pub(super) fn new() -> Self {
        Self { root: (0..ROOT).map(|_| OnceLock::new()).collect() }
    }

    /// What is known of a block.
    pub(super) fn get(&self, block: u64) -> Entry {
        let Some(entry) = self.find(block) else { return Entry::Unknown };
        // Relaxed: the cell that the caller holds was taken with acquire, after the last change.
        match entry.load(Ordering::Relaxed) {
            UNKNOWN => Entry::Unknown,
            HOLE => Entry::Hole,
            stored => Entry::Mapped(Mapping::unpack(stored - FIRST_MAPPING)),
        }
    }

    /// Says where a block stands. The caller holds the metadata mutex.
    pub(super) fn set(&self, block: u64, mapping: Option<Mapping>) {
        let stored = mapping.map_or(HOLE, |mapping| mapping.pack() + FIRST_MAPPING);
        let chunk = self.root[part(block / CHUNK / MIDDLE)]
            .get_or_init(|| (0..MIDDLE).map(|_| OnceLock::new()).collect())[part(block / CHUNK % MIDDLE)]
        .get_or_init(|| (0..CHUNK).map(|_| AtomicU64::new(UNKNOWN)).collect());
        chunk[part(block % CHUNK)].store(stored, Ordering::Relaxed);
    }

    /// Says that a range holds no mapping. What is not in memory stays unknown: it is looked up when
    /// asked for. The caller holds the metadata mutex.
    pub(super) fn clear(&self, first: u64, blocks: u64) {
        self.store_range(first, blocks, HOLE);
    }

    /// Forgets what it knew of a range, so that it is looked up again. The caller holds the metadata mutex.
    pub(super) fn forget(&self, first: u64, blocks: u64) {
        self.store_range(first, blocks, UNKNOWN);
    }

    fn store_range(&self, first: u64, blocks: u64, stored: u64) {
        let end = first + blocks;
        let mut block = first;
        while block < end {
            let next = ((block / CHUNK + 1) * CHUNK).min(end);
            if self.find(block).is_some() {
                for entry in (block..next).filter_map(|block| self.find(block)) {
                    entry.store(stored, Ordering::Relaxed);
                }
            }
            block = next;
        }
    }

    fn find(&self, block: u64) -> Option<&AtomicU64> {
        let middle = self.root.get(part(block / CHUNK / MIDDLE))?.get()?;
        Some(&middle[part(block / CHUNK % MIDDLE)].get()?[part(block % CHUNK)])
    }
}

fn part(index: u64) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::{CHUNK, Entry, TABLE_BLOCKS_MAX, Table};
    use crate::format::Mapping;
    use crate::units::DataBlock;

    #[test]
    fn what_was_set_is_found_and_the_rest_is_unknown() {
        let table = Table::new();
        let mapping = Mapping { block: DataBlock(0), time: 0 };
        for block in [0, 511, 512, CHUNK * 1024, TABLE_BLOCKS_MAX - 1] {
            assert_eq!(table.get(block), Entry::Unknown);
            table.set(block, Some(mapping));
            assert_eq!(table.get(block), Entry::Mapped(mapping));
            table.set(block, None);
            assert_eq!(table.get(block), Entry::Hole);
        }
        assert_eq!(table.get(1), Entry::Unknown);
        assert_eq!(table.get(TABLE_BLOCKS_MAX), Entry::Unknown);
    }

    #[test]
    fn clearing_a_range_touches_nothing_beside_it() {
        let table = Table::new();
        let mapping = Mapping { block: DataBlock(77), time: 3 };
        for block in 500..1600 {
            table.set(block, Some(mapping));
        }
        table.clear(510, 1000);
        assert_eq!(table.get(509), Entry::Mapped(mapping));
        assert_eq!(table.get(510), Entry::Hole);
        assert_eq!(table.get(1509), Entry::Hole);
        assert_eq!(table.get(1510), Entry::Mapped(mapping));
        table.forget(1510, 1);
        assert_eq!(table.get(1510), Entry::Unknown);
    }
}
