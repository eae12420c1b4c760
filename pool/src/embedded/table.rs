//! Where the blocks of an active volume stand, as far as it is known: read without a lock, forgotten for want of room.
//!
//! An entry is changed only under the metadata mutex, so that it never says less than the tree, unless it says
//! nothing; it is trusted only by a holder of the block's cell, so that it does not change under a reader.

use std::ops::Range;
use std::sync::Arc;

use crate::embedded::chunk::{CHUNK, CHUNK_LEN, Entry, Run};
use crate::embedded::mapping_cache::MappingCache;
use crate::embedded::mapping_index::{CHUNKS_MAX, MappingIndex};
use crate::format::Mapping;
use crate::meta::MappedRun;

/// Blocks that a table can hold: 32 TiB of 64 KiB blocks.
pub(super) const TABLE_BLOCKS_MAX: u64 = CHUNKS_MAX * CHUNK;

pub(super) struct Table {
    cache: Arc<MappingCache>,
    index: Arc<MappingIndex>,
    number: u32,
}

impl Table {
    /// A table that knows nothing, in the memory that all volumes share.
    pub(super) fn new(cache: Arc<MappingCache>) -> Self {
        let index = Arc::new(MappingIndex::new());
        let number = cache.enroll(&index);
        Self { cache, index, number }
    }

    /// What is known of a block.
    pub(super) fn get(&self, block: u64) -> Entry {
        match self.index.find(block / CHUNK) {
            Some(slot) => self.cache.read(slot, place(block)),
            None => Entry::Unknown,
        }
    }

    /// Takes the chunk of a block as the tree has it: its mapped blocks, ascending. The caller holds the metadata mutex.
    pub(super) fn fill(&self, chunk: u64, mapped: &[MappedRun]) {
        let runs: Vec<Run> = mapped
            .iter()
            .map(|run| Run { start: place(run.start.0), len: length(run.len), mapping: run.mapping })
            .collect();
        self.cache.fill(self.number, chunk, &runs);
    }

    /// Says that blocks stand side by side, from `mapping` on. What is not known stays unknown: it is looked up when
    /// asked for. The caller holds the metadata mutex.
    pub(super) fn set(&self, first: u64, blocks: u64, mapping: Mapping) {
        for (chunk, range, skipped) in chunks_of(first, blocks) {
            let mapping = Mapping { block: mapping.block.plus(skipped), ..mapping };
            self.cache.lay(self.number, chunk, range, Some(mapping));
        }
    }

    /// Says that a range holds no mapping; as [`set`](Self::set).
    pub(super) fn clear(&self, first: u64, blocks: u64) {
        for (chunk, range, _) in chunks_of(first, blocks) {
            self.cache.lay(self.number, chunk, range, None);
        }
    }

    /// Forgets what it knew of a range, so that it is looked up again. The caller holds the metadata mutex.
    pub(super) fn forget(&self, first: u64, blocks: u64) {
        for (chunk, ..) in chunks_of(first, blocks).filter(|(chunk, ..)| self.index.find(*chunk).is_some()) {
            self.cache.forget(self.number, chunk);
        }
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        self.cache.retire(self.number);
    }
}

/// The chunks of a range of blocks: which of its blocks are meant, and how many of the range lie before it.
fn chunks_of(first: u64, blocks: u64) -> impl Iterator<Item = (u64, Range<u16>, u64)> {
    let end = first + blocks;
    (first / CHUNK..end.div_ceil(CHUNK)).map(move |chunk| {
        let start = first.max(chunk * CHUNK);
        let stop = end.min((chunk + 1) * CHUNK);
        (chunk, place(start)..place(start) + length(stop - start), start - first)
    })
}

fn place(block: u64) -> u16 {
    u16::try_from(block % CHUNK).expect("below 512")
}

fn length(blocks: u64) -> u16 {
    u16::try_from(blocks).unwrap_or(CHUNK_LEN).min(CHUNK_LEN)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{TABLE_BLOCKS_MAX, Table, chunks_of};
    use crate::embedded::chunk::{CHUNK, Entry};
    use crate::embedded::mapping_cache::MappingCache;
    use crate::format::Mapping;
    use crate::meta::MappedRun;
    use crate::units::{ByteCount, DataBlock, VirtualBlock};

    fn table() -> Table {
        Table::new(Arc::new(MappingCache::new(ByteCount(1 << 20))))
    }

    fn at(block: u64) -> Mapping {
        Mapping { block: DataBlock(block), time: 3 }
    }

    #[test]
    fn what_was_filled_is_found_and_the_rest_is_unknown() {
        let table = table();
        for block in [0, 511, 512, CHUNK * 1024, TABLE_BLOCKS_MAX - 1] {
            let chunk = block / CHUNK;
            table.forget(block, 1);
            assert_eq!(table.get(block), Entry::Unknown);
            table.fill(chunk, &[MappedRun { start: VirtualBlock(block), len: 1, mapping: at(9) }]);
            assert_eq!(table.get(block), Entry::Mapped(at(9)));
            assert_eq!(table.get(block ^ 1), Entry::Hole);
            table.clear(block, 1);
            assert_eq!(table.get(block), Entry::Hole);
            table.set(block, 1, at(0));
            assert_eq!(table.get(block), Entry::Mapped(at(0)));
        }
        assert_eq!(table.get(CHUNK * 5), Entry::Unknown);
        assert_eq!(table.get(TABLE_BLOCKS_MAX), Entry::Unknown);
        table.set(CHUNK * 5, 1, at(1));
        assert_eq!(table.get(CHUNK * 5), Entry::Unknown, "of its neighbours nothing is known");
    }

    #[test]
    fn clearing_a_range_touches_nothing_beside_it() {
        let table = table();
        (0..4).for_each(|chunk| table.fill(chunk, &[]));
        table.set(500, 1100, at(7000));
        table.clear(510, 1000);
        assert_eq!(table.get(499), Entry::Hole);
        assert_eq!(table.get(509), Entry::Mapped(at(7009)));
        assert_eq!(table.get(510), Entry::Hole);
        assert_eq!(table.get(1509), Entry::Hole);
        assert_eq!(table.get(1510), Entry::Mapped(at(8010)));
        table.forget(1510, 1);
        assert_eq!(table.get(1510), Entry::Unknown);
        assert_eq!(table.get(1600), Entry::Hole, "a chunk further on");
    }

    #[test]
    fn a_range_is_cut_at_the_chunks() {
        let parts: Vec<_> = chunks_of(500, 600).collect();
        assert_eq!(parts, [(0, 500..512, 0), (1, 0..512, 12), (2, 0..76, 524)]);
        assert_eq!(chunks_of(512, 0).count(), 0);
        assert_eq!(chunks_of(511, 1).collect::<Vec<_>>(), [(0, 511..512, 0)]);
    }
}
