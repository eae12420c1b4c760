//! The mappings of 512 neighbouring blocks as runs: laid over each other, packed into words, found again.
//!
//! A chunk is looked up in the tree as a whole and takes one of four shapes, the smallest that holds it: all hole, one
//! run over all of it (both fit the chunk's slot), a sorted list of runs at 12 bytes a run, or one word a block.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::format::Mapping;
use crate::units::DataBlock;

/// Blocks that are looked up together: two or three leaves of the tree.
pub(super) const CHUNK: u64 = DENSE_WORDS as u64;
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

    fn goes_on_with(self, next: Self) -> bool {
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

/// Words that a list of `runs` runs takes: a mapping each, and half a word for where it lies.
pub(super) const fn packed_words(runs: usize) -> usize {
    runs + runs.div_ceil(2)
}

/// Words of the shape with one word a block.
pub(super) const DENSE_WORDS: usize = 512;

/// Writes a sorted list of runs into at least [`packed_words`] words.
pub(super) fn pack(runs: &[Run], words: &[AtomicU64]) {
    let (mappings, places) = words.split_at(runs.len());
    for (word, run) in mappings.iter().zip(runs) {
        word.store(run.mapping.pack(), Ordering::Relaxed);
    }
    let place = |run: &Run| u64::from(run.start) << 16 | u64::from(run.len);
    for (word, pair) in places.iter().zip(runs.chunks(2)) {
        let second = pair.get(1).map_or(0, place);
        word.store(place(&pair[0]) | second << 32, Ordering::Relaxed);
    }
}

/// Run `index` of `count` packed ones.
fn packed_run(words: &[AtomicU64], count: usize, index: usize) -> Run {
    let half = words[count + index / 2].load(Ordering::Relaxed) >> (index % 2 * 32);
    let place = |bits: u64| u16::try_from(bits & 0xffff).expect("16 bits");
    let mapping = Mapping::unpack(words[index].load(Ordering::Relaxed));
    Run { start: place(half >> 16), len: place(half), mapping }
}

/// Reads back what [`pack`] wrote.
pub(super) fn unpack(words: &[AtomicU64], count: usize, runs: &mut Vec<Run>) {
    runs.extend((0..count).map(|index| packed_run(words, count, index)));
}

/// What `count` packed runs say of block `at`; `None` if so many do not fit the words. The words may be changing: then
/// the answer means nothing.
pub(super) fn find_packed(words: &[AtomicU64], count: usize, at: u16) -> Option<Entry> {
    if count > DENSE_WORDS || words.len() < packed_words(count) {
        return None;
    }
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low.midpoint(high);
        if packed_run(words, count, middle).start <= at {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    let Some(index) = low.checked_sub(1) else { return Some(Entry::Hole) };
    let run = packed_run(words, count, index);
    let offset = at.checked_sub(run.start)?;
    if offset >= run.len {
        return Some(Entry::Hole);
    }
    let block = DataBlock(run.mapping.block.0.checked_add(u64::from(offset))?);
    Some(Entry::Mapped(Mapping { block, ..run.mapping }))
}

// A block of the dense shape: 0 is a hole, a mapping is stored plus 1. The sum cannot run over: the topmost data block
// numbers would lie beyond the largest file.

/// The word of one block in the dense shape.
pub(super) fn dense_word(mapping: Option<Mapping>) -> u64 {
    mapping.map_or(0, |mapping| mapping.pack() + 1)
}

/// What a word of the dense shape says.
pub(super) fn dense_entry(word: u64) -> Entry {
    word.checked_sub(1).map_or(Entry::Hole, |packed| Entry::Mapped(Mapping::unpack(packed)))
}

/// Writes runs as one word a block.
pub(super) fn spread(runs: &[Run], words: &[AtomicU64]) {
    words.iter().for_each(|word| word.store(0, Ordering::Relaxed));
    for run in runs {
        for at in run.start..run.end() {
            words[usize::from(at)].store(dense_word(Some(run.mapping_of(at))), Ordering::Relaxed);
        }
    }
}

/// Reads back what [`spread`] wrote.
pub(super) fn gather(words: &[AtomicU64], runs: &mut Vec<Run>) {
    for (at, word) in (0..CHUNK_LEN).zip(words) {
        let Entry::Mapped(mapping) = dense_entry(word.load(Ordering::Relaxed)) else { continue };
        let next = Run { start: at, len: 1, mapping };
        match runs.last_mut() {
            Some(run) if run.goes_on_with(next) => run.len += 1,
            _ => runs.push(next),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::{
        CHUNK_LEN, DENSE_WORDS, Entry, Run, dense_entry, find_packed, gather, lay, pack, packed_words, spread, unpack,
    };
    use crate::format::Mapping;
    use crate::units::DataBlock;
    use proptest::prelude::{prop, proptest};
    use std::sync::atomic::Ordering;

    fn words(count: usize) -> Vec<AtomicU64> {
        (0..count).map(|_| AtomicU64::new(u64::MAX)).collect()
    }

    proptest! {
        #[test]
        fn every_shape_says_of_every_block_what_was_laid_last(
            layers in prop::collection::vec((0u16..512, 1u16..200, 0u64..400, 0u32..3, 0u8..4), 0..60),
        ) {
            let mut runs = Vec::new();
            let mut model = vec![Entry::Hole; usize::from(CHUNK_LEN)];
            for (start, len, block, time, kind) in layers {
                let end = (start + len).min(CHUNK_LEN);
                let mapping = (kind > 0).then_some(Mapping { block: DataBlock(block), time });
                lay(&mut runs, start, end, mapping);
                for at in start..end {
                    model[usize::from(at)] = mapping.map_or(Entry::Hole, |first| {
                        Entry::Mapped(Mapping { block: first.block.plus(u64::from(at - start)), ..first })
                    });
                }
            }
            assert!(runs.windows(2).all(|pair| pair[0].end() <= pair[1].start && !pair[0].goes_on_with(pair[1])));

            let packed = words(packed_words(runs.len()));
            pack(&runs, &packed);
            let dense = words(DENSE_WORDS);
            spread(&runs, &dense);
            for (at, expected) in (0..CHUNK_LEN).zip(&model) {
                assert_eq!(find_packed(&packed, runs.len(), at), Some(*expected));
                assert_eq!(dense_entry(dense[usize::from(at)].load(Ordering::Relaxed)), *expected);
            }
            let (mut again, mut gathered) = (Vec::new(), Vec::new());
            unpack(&packed, runs.len(), &mut again);
            gather(&dense, &mut gathered);
            assert_eq!((again, gathered), (runs.clone(), runs));
        }
    }

    #[test]
    fn words_that_hold_anything_are_read_as_far_as_they_reach() {
        let noise: Vec<AtomicU64> = (0..DENSE_WORDS as u64)
            .map(|at| AtomicU64::new(at.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(17)))
            .collect();
        for count in [0, 1, 300, 341, 342, 512, 65_535] {
            for at in 0..CHUNK_LEN {
                let found = find_packed(&noise, count, at);
                assert!(count <= 341 || found.is_none(), "{count} runs do not fit");
            }
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
