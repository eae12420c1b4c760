//! The mappings of 512 neighbouring blocks as runs, and how runs are laid over each other.
//!
//! A chunk is looked up in the tree as a whole. `shape` says how words hold it.

use crate::format::Mapping;

/// Blocks that are looked up together: two or three leaves of the tree.
pub(super) const CHUNK: u64 = CHUNK_LEN as u64;
/// The same, as a place within a chunk.
pub(super) const CHUNK_LEN: u16 = 512;

/// What is known of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    /// Nothing: look it up in the tree.
    Unknown,
    /// It is not mapped.
    Hole,
    /// It stands here.
    Mapped(Mapping),
}

/// Blocks of a chunk that stand side by side on the data device too, mapped at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// First block, counted from the chunk's.
    pub(super) start: u16,
    /// Blocks, at least one.
    pub(super) len: u16,
    /// Where the first block stands.
    pub(super) mapping: Mapping,
}

impl Run {
    pub(super) fn end(self) -> u16 {
        self.start + self.len
    }

    /// Where block `at` of the chunk stands; it must lie in the run.
    pub(super) fn mapping_of(self, at: u16) -> Mapping {
        Mapping { block: self.mapping.block.plus(u64::from(at - self.start)), ..self.mapping }
    }

    fn part(self, start: u16, end: u16) -> Self {
        Self { start, len: end - start, mapping: self.mapping_of(start) }
    }

    pub(super) fn goes_on_with(self, next: Self) -> bool {
        self.end() == next.start
            && self.mapping.time == next.mapping.time
            && self.mapping.block.plus(u64::from(self.len)) == next.mapping.block
    }
}

/// Lays blocks from `start` to before `end` over sorted runs: mapped from `mapping` on, or holes.
pub(super) fn lay(runs: &mut Vec<Run>, start: u16, end: u16, mapping: Option<Mapping>) {
    let first = runs.partition_point(|run| run.end() <= start);
    let last = runs.partition_point(|run| run.start < end);
    let met = &runs[first..last];
    let head = met.first().filter(|run| run.start < start).map(|run| run.part(run.start, start));
    let tail = met.last().filter(|run| run.end() > end).map(|run| run.part(end, run.end()));
    let new = mapping.map(|mapping| Run { start, len: end - start, mapping });
    runs.splice(first..last, [head, new, tail].into_iter().flatten());
    runs.dedup_by(|next, run| {
        let joined = run.goes_on_with(*next);
        if joined {
            run.len += next.len;
        }
        joined
    });
}

#[cfg(test)]
mod tests {
    use super::{CHUNK_LEN, Entry, Run, lay};
    use crate::embedded::shape::tests::check_shapes;
    use crate::format::Mapping;
    use crate::units::DataBlock;
    use proptest::prelude::{prop, proptest};

    proptest! {
        #[test]
        fn runs_say_of_every_block_what_was_laid_last_in_every_shape(
            layers in prop::collection::vec((0u16..512, 1u16..200, 0u64..400, 0u32..3, 0u8..4), 0..60),
            far in 0u64..3,
        ) {
            let mut runs = Vec::new();
            let mut model = vec![Entry::Hole; usize::from(CHUNK_LEN)];
            for (start, len, block, time, kind) in layers {
                let end = (start + len).min(CHUNK_LEN);
                // Beyond the numbers that a short run holds: none, some or all.
                let block = block + if block % 2 < far { 1 << 30 } else { 0 };
                let mapping = (kind > 0).then_some(Mapping { block: DataBlock(block), time });
                lay(&mut runs, start, end, mapping);
                for at in start..end {
                    model[usize::from(at)] = mapping.map_or(Entry::Hole, |first| {
                        Entry::Mapped(Mapping { block: first.block.plus(u64::from(at - start)), ..first })
                    });
                }
            }
            assert!(runs.windows(2).all(|pair| pair[0].end() <= pair[1].start && !pair[0].goes_on_with(pair[1])));
            check_shapes(&runs, &model);
        }
    }

    #[test]
    fn a_run_that_is_cut_in_the_middle_leaves_both_ends() {
        let mapping = Mapping { block: DataBlock(100), time: 1 };
        let mut runs = vec![Run { start: 10, len: 20, mapping }];
        lay(&mut runs, 15, 18, None);
        let end = Mapping { block: DataBlock(108), time: 1 };
        assert_eq!(runs, [Run { start: 10, len: 5, mapping }, Run { start: 18, len: 12, mapping: end }]);
    }
}
