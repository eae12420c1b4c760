//! A set of block numbers that finds its first gap quickly: a bit a block, and a bit a full word above it.

use std::ops::Range;

const BITS: u64 = 64;

/// Which blocks of 0..len are in the set.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bitset {
    len: u64,
    ones: u64,
    words: Vec<u64>,
    /// Bit w is set while word w has no gap, so a search passes 4096 blocks a step.
    full: Vec<u64>,
}

fn word_of(block: u64) -> usize {
    usize::try_from(block / BITS).expect("block numbers of a pool fit the address space")
}

fn words_for(len: u64) -> usize {
    word_of(len.next_multiple_of(BITS))
}

impl Bitset {
    /// All of 0..len absent.
    pub(crate) fn new(len: u64) -> Self {
        let mut set = Self::default();
        set.grow(len);
        set
    }

    /// More blocks, absent at first.
    pub(crate) fn grow(&mut self, len: u64) {
        let words = words_for(len);
        self.words.resize(words, 0);
        self.full.resize(words.div_ceil(64), 0);
        self.len = len;
    }

    /// Blocks not in the set.
    pub(crate) fn zeroes(&self) -> u64 {
        self.len - self.ones
    }

    pub(crate) fn contains(&self, block: u64) -> bool {
        self.words[word_of(block)] >> (block % BITS) & 1 == 1
    }

    /// Adds a block. True if it was absent.
    pub(crate) fn insert(&mut self, block: u64) -> bool {
        let at = word_of(block);
        let bit = 1 << (block % BITS);
        if self.words[at] & bit != 0 {
            return false;
        }
        self.words[at] |= bit;
        self.ones += 1;
        if self.words[at] == u64::MAX {
            self.full[at / 64] |= 1 << (at % 64);
        }
        true
    }

    /// Takes a block out. True if it was there.
    pub(crate) fn remove(&mut self, block: u64) -> bool {
        let at = word_of(block);
        let bit = 1 << (block % BITS);
        if self.words[at] & bit == 0 {
            return false;
        }
        self.words[at] &= !bit;
        self.ones -= 1;
        self.full[at / 64] &= !(1 << (at % 64));
        true
    }

    /// The first absent block of `range`.
    pub(crate) fn first_absent(&self, range: Range<u64>) -> Option<u64> {
        let end = range.end.min(self.len);
        if range.start >= end {
            return None;
        }
        let mut at = word_of(range.start);
        // Bits below the start count as present.
        let mut word = self.words[at] | ((1u64 << (range.start % BITS)) - 1);
        loop {
            if word != u64::MAX {
                let found = at as u64 * BITS + u64::from(word.trailing_ones());
                return (found < end).then_some(found);
            }
            at = self.next_not_full(at + 1)?;
            word = self.words[at];
        }
    }

    /// The first word from `at` on that has a gap.
    fn next_not_full(&self, at: usize) -> Option<usize> {
        if at >= self.words.len() {
            return None;
        }
        let mut group = at / 64;
        let mut bits = self.full[group] | ((1u64 << (at % 64)) - 1);
        loop {
            if bits != u64::MAX {
                let found = group * 64 + usize::try_from(bits.trailing_ones()).expect("at most 64");
                return (found < self.words.len()).then_some(found);
            }
            group += 1;
            bits = *self.full.get(group)?;
        }
    }

    /// How many blocks from `start` on are absent without a break, at most `limit`.
    pub(crate) fn absent_run(&self, start: u64, limit: u64) -> u64 {
        let end = start.saturating_add(limit).min(self.len);
        let mut at = start;
        while at < end {
            let left_in_word = BITS - at % BITS;
            let zeroes = u64::from((self.words[word_of(at)] >> (at % BITS)).trailing_zeros());
            at += zeroes.min(left_in_word);
            if zeroes < left_in_word {
                break;
            }
        }
        at.min(end) - start
    }
}

#[cfg(test)]
mod tests {
    use super::Bitset;
    use proptest::prelude::{any, prop, proptest};
    use std::collections::BTreeSet;

    #[test]
    fn a_full_set_has_no_gap_and_one_removal_makes_it_found() {
        let mut set = Bitset::new(10_000);
        (0..10_000).for_each(|b| assert!(set.insert(b)));
        assert_eq!((set.first_absent(0..10_000), set.zeroes()), (None, 0));
        assert!(set.remove(7_777));
        assert_eq!(set.first_absent(0..10_000), Some(7_777));
        assert_eq!(set.first_absent(7_778..10_000), None);
    }

    proptest! {
        #[test]
        fn gaps_and_runs_are_those_of_a_plain_set(
            len in 1u64..9_000,
            ops in prop::collection::vec((any::<bool>(), 0u64..9_000, 1u64..700), 0..40),
            probes in prop::collection::vec((0u64..9_000, 1u64..900), 20),
        ) {
            let mut set = Bitset::new(len);
            let mut model = BTreeSet::new();
            for (add, start, count) in ops {
                for block in start..(start + count).min(len) {
                    if add {
                        assert_eq!(set.insert(block), model.insert(block));
                    } else {
                        assert_eq!(set.remove(block), model.remove(&block));
                    }
                }
            }
            assert_eq!(set.zeroes(), len - model.len() as u64);
            for (start, limit) in probes {
                let gap = (start..len).find(|b| !model.contains(b));
                assert_eq!(set.first_absent(start..len), gap);
                let run = (start..(start + limit).min(len)).take_while(|b| !model.contains(b)).count() as u64;
                if start < len {
                    assert_eq!(set.absent_run(start, limit), run);
                    assert_eq!(set.contains(start), model.contains(&start));
                }
            }
        }
    }
}
