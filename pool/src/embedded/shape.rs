//! The shapes in which words hold a chunk's runs: a word a run, a word and a third, or a word a block.
//!
//! Words may be changing while they are read: then what is read means nothing, and must only not be out of bounds.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::embedded::chunk::{CHUNK_LEN, Entry, Run};
use crate::format::Mapping;
use crate::units::DataBlock;

/// Words of the shape with one word a block.
pub(super) const DENSE_WORDS: usize = CHUNK_LEN as usize;
/// From so many runs on a chunk has one word a block: it takes at most 12 bytes a run, and a change is one word.
const DENSE_RUNS: usize = 342;

// A short run: 44 bits of mapping, where it starts, and its length less one.
const PLACE_BITS: u32 = 9;
const PLACE: u64 = (1 << PLACE_BITS) - 1;
const SHORT_BLOCK_BITS: u32 = 26;
const SHORT_TIME_BITS: u32 = 18;
/// Bits of a short run's word.
pub(super) const SHORT_BITS: u32 = SHORT_BLOCK_BITS + SHORT_TIME_BITS + 2 * PLACE_BITS;

/// How a list of runs is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// So many runs, a word each: data blocks below 2^26 (4 TiB of 64 KiB), mapped before the pool's 2^18th snapshot.
    Short(usize),
    /// So many runs of any mappings, a word each, and one for the places of each three.
    Long(usize),
    /// A word a block: 0 is a hole, a mapping is stored plus 1.
    Dense,
}

/// Bits that a [`Shape`] takes in a word.
pub(super) const SHAPE_BITS: u32 = 11;
const COUNT: u64 = (1 << 9) - 1;
const LONG: u64 = 1 << 9;
const DENSE: u64 = 1 << 10;

impl Shape {
    /// The shape of a sorted list of runs.
    pub(super) fn of(runs: &[Run]) -> Self {
        match runs.len() {
            DENSE_RUNS.. => Self::Dense,
            count if runs.iter().all(|&run| short_word(run).is_some()) => Self::Short(count),
            count => Self::Long(count),
        }
    }

    /// Words that it takes.
    pub(super) const fn words(self) -> usize {
        match self {
            Self::Short(count) => count,
            Self::Long(count) => count + count.div_ceil(3),
            Self::Dense => DENSE_WORDS,
        }
    }

    /// Itself as [`SHAPE_BITS`] bits.
    pub(super) fn bits(self) -> u64 {
        match self {
            Self::Short(count) => count as u64,
            Self::Long(count) => LONG | count as u64,
            Self::Dense => DENSE,
        }
    }

    /// What [`bits`](Self::bits) meant; anything else means something too.
    pub(super) fn from_bits(bits: u64) -> Self {
        let count = usize::try_from(bits & COUNT).expect("9 bits");
        match (bits & DENSE != 0, bits & LONG != 0) {
            (true, _) => Self::Dense,
            (_, true) => Self::Long(count),
            _ => Self::Short(count),
        }
    }

    /// Writes the runs whose shape it is.
    pub(super) fn write(self, runs: &[Run], words: &[AtomicU64]) {
        let set = |at: usize, word: u64| words[at].store(word, Ordering::Relaxed);
        match self {
            Self::Short(_) => {
                for (at, &run) in runs.iter().enumerate() {
                    set(at, short_word(run).expect("its runs are short"));
                }
            }
            Self::Long(count) => {
                for (at, run) in runs.iter().enumerate() {
                    set(at, run.mapping.pack());
                }
                for (at, three) in runs.chunks(3).enumerate() {
                    set(
                        count + at,
                        three.iter().rev().fold(0, |word, run| word << (2 * PLACE_BITS) | place_bits(*run)),
                    );
                }
            }
            Self::Dense => {
                (0..DENSE_WORDS).for_each(|at| set(at, 0));
                for run in runs {
                    set_dense(words, run.start..run.end(), Some(run.mapping));
                }
            }
        }
    }

    /// Reads back what [`write`](Self::write) wrote, behind the runs that are there.
    pub(super) fn read(self, words: &[AtomicU64], runs: &mut Vec<Run>) {
        match self {
            Self::Short(count) | Self::Long(count) => runs.extend((0..count).map(|index| self.run(words, index))),
            Self::Dense => {
                for (at, word) in (0..CHUNK_LEN).zip(words) {
                    let Entry::Mapped(mapping) = dense_entry(word.load(Ordering::Relaxed)) else { continue };
                    let next = Run { start: at, len: 1, mapping };
                    match runs.last_mut() {
                        Some(run) if run.goes_on_with(next) => run.len += 1,
                        _ => runs.push(next),
                    }
                }
            }
        }
    }

    /// What the words say of block `at`; `None` if so many do not fit them.
    pub(super) fn find(self, words: &[AtomicU64], at: u16) -> Option<Entry> {
        if words.len() < self.words() {
            return None;
        }
        let count = match self {
            Self::Short(count) | Self::Long(count) => count,
            Self::Dense => return Some(dense_entry(words[usize::from(at)].load(Ordering::Relaxed))),
        };
        let (mut low, mut high) = (0, count);
        while low < high {
            let middle = low.midpoint(high);
            if self.run(words, middle).start <= at {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let Some(index) = low.checked_sub(1) else { return Some(Entry::Hole) };
        let run = self.run(words, index);
        let offset = at.checked_sub(run.start)?;
        Some(if offset < run.len { Entry::Mapped(run.mapping_of(at)) } else { Entry::Hole })
    }

    /// Run `index` of a list.
    fn run(self, words: &[AtomicU64], index: usize) -> Run {
        let word = words[index].load(Ordering::Relaxed);
        let Self::Long(count) = self else { return short_run(word) };
        let places = words[count + index / 3].load(Ordering::Relaxed) >> (index % 3 * 2 * PLACE_BITS as usize);
        placed(places, Mapping::unpack(word))
    }
}

/// A run in [`SHORT_BITS`] bits, if its mapping is small enough.
pub(super) fn short_word(run: Run) -> Option<u64> {
    let Mapping { block, time } = run.mapping;
    let is_short = block.0 >> SHORT_BLOCK_BITS == 0 && time >> SHORT_TIME_BITS == 0;
    is_short.then(|| (block.0 << SHORT_TIME_BITS | u64::from(time)) << (2 * PLACE_BITS) | place_bits(run))
}

/// The run that [`short_word`] made a word of.
pub(super) fn short_run(word: u64) -> Run {
    let mapping = word >> (2 * PLACE_BITS);
    let time = u32::try_from(mapping & ((1 << SHORT_TIME_BITS) - 1)).expect("18 bits");
    placed(word, Mapping { block: DataBlock(mapping >> SHORT_TIME_BITS), time })
}

fn place_bits(run: Run) -> u64 {
    u64::from(run.start) << PLACE_BITS | u64::from(run.len - 1)
}

/// The run at the place that the lowest bits say.
fn placed(bits: u64, mapping: Mapping) -> Run {
    let place = |bits: u64| u16::try_from(bits & PLACE).expect("9 bits");
    Run { start: place(bits >> PLACE_BITS), len: place(bits) + 1, mapping }
}

/// Says of blocks in the dense shape where they stand, from `first` on, or that they are holes.
pub(super) fn set_dense(words: &[AtomicU64], blocks: std::ops::Range<u16>, first: Option<Mapping>) {
    let Some(first) = first else {
        return blocks.for_each(|at| words[usize::from(at)].store(0, Ordering::Relaxed));
    };
    let run = Run { start: blocks.start, len: blocks.end - blocks.start, mapping: first };
    // The sum cannot run over: the topmost data block numbers would lie beyond the largest file.
    blocks.for_each(|at| words[usize::from(at)].store(run.mapping_of(at).pack() + 1, Ordering::Relaxed));
}

fn dense_entry(word: u64) -> Entry {
    word.checked_sub(1).map_or(Entry::Hole, |packed| Entry::Mapped(Mapping::unpack(packed)))
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::atomic::AtomicU64;

    use super::{DENSE_WORDS, SHORT_BITS, Shape, short_run, short_word};
    use crate::embedded::chunk::{CHUNK_LEN, Entry, Run};
    use crate::format::Mapping;
    use crate::units::DataBlock;

    /// Each shape that can hold `runs` says of every block what `model` does, and gives the runs back.
    pub(in crate::embedded) fn check_shapes(runs: &[Run], model: &[Entry]) {
        let count = runs.len();
        assert!(Shape::of(runs) == Shape::Dense || runs.len() < 342);
        let is_short = runs.iter().all(|&run| short_word(run).is_some());
        let shapes = [Shape::Long(count), Shape::Dense].into_iter().chain(is_short.then_some(Shape::Short(count)));
        for shape in shapes {
            let words: Vec<_> = (0..shape.words()).map(|_| AtomicU64::new(u64::MAX)).collect();
            shape.write(runs, &words);
            assert_eq!(Shape::from_bits(shape.bits()), shape);
            for (at, expected) in (0..CHUNK_LEN).zip(model) {
                assert_eq!(shape.find(&words, at), Some(*expected), "{shape:?}, block {at}");
            }
            let mut again = Vec::new();
            shape.read(&words, &mut again);
            assert_eq!(again, runs, "{shape:?}");
        }
    }

    #[test]
    fn a_short_run_holds_all_places_and_mappings_up_to_its_limits() {
        let run = |start, len, block, time| Run { start, len, mapping: Mapping { block: DataBlock(block), time } };
        let (block, time) = ((1 << 26) - 1, (1 << 18) - 1);
        for whole in [run(0, 1, 0, 0), run(511, 1, block, time), run(0, 512, block, 0), run(7, 300, 1, time)] {
            let word = short_word(whole).unwrap();
            assert_eq!(word >> SHORT_BITS, 0);
            assert_eq!(short_run(word), whole);
        }
        for long in [run(0, 1, block + 1, 0), run(0, 1, 0, time + 1)] {
            assert_eq!(short_word(long), None);
            assert_eq!(Shape::of(&[long]), Shape::Long(1));
        }
    }

    #[test]
    fn words_that_hold_anything_are_read_as_far_as_they_reach() {
        let noise: Vec<AtomicU64> = (0..DENSE_WORDS as u64)
            .map(|at| AtomicU64::new(at.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(17)))
            .collect();
        for bits in 0..1 << super::SHAPE_BITS {
            let shape = Shape::from_bits(bits);
            for at in (0..CHUNK_LEN).step_by(73) {
                let found = shape.find(&noise, at);
                assert!(shape.words() <= DENSE_WORDS || found.is_none(), "{shape:?} does not fit");
            }
        }
    }
}
