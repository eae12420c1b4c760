//! References counted during a search: a byte a block, larger numbers apart.

use std::collections::HashMap;

use crate::format::ENTRIES_PER_BITMAP;

/// How often each block of 0..len was referred to.
#[derive(Debug)]
pub(crate) struct Tally {
    small: Vec<u8>,
    large: HashMap<u64, u32>,
    used: u64,
}

impl Tally {
    /// Nothing counted yet.
    pub(crate) fn new(len: u64) -> Self {
        let len = usize::try_from(len).expect("block numbers of a pool fit the address space");
        Self { small: vec![0; len], large: HashMap::new(), used: 0 }
    }

    /// Blocks in all.
    pub(crate) fn len(&self) -> u64 {
        self.small.len() as u64
    }

    /// Blocks counted at least once.
    pub(crate) fn used(&self) -> u64 {
        self.used
    }

    /// How often a block was counted; 0 beyond the end.
    pub(crate) fn get(&self, block: u64) -> u32 {
        let small = usize::try_from(block).ok().and_then(|at| self.small.get(at)).copied().unwrap_or(0);
        if small == u8::MAX { self.large.get(&block).copied().unwrap_or(u32::from(small)) } else { u32::from(small) }
    }

    /// The counts, cut off at 255, in pieces of one bitmap each.
    pub(crate) fn bitmaps(&self) -> impl Iterator<Item = &[u8]> {
        self.small.chunks(usize::try_from(ENTRIES_PER_BITMAP).expect("16,320"))
    }

    /// Blocks that were counted `least` times or more, ascending.
    pub(crate) fn at_least(&self, least: u32) -> Vec<(u64, u32)> {
        (0..self.len()).map(|block| (block, self.get(block))).filter(|&(_, count)| count >= least).collect()
    }

    /// Counts a block once more; `None` beyond the end. Returns the count.
    pub(crate) fn add(&mut self, block: u64) -> Option<u32> {
        let small = self.small.get_mut(usize::try_from(block).ok()?)?;
        if *small == u8::MAX {
            let large = self.large.entry(block).or_insert(u32::from(u8::MAX));
            *large = large.saturating_add(1);
            return Some(*large);
        }
        if *small == 0 {
            self.used += 1;
        }
        *small += 1;
        Some(u32::from(*small))
    }
}

#[cfg(test)]
mod tests {
    use super::Tally;

    #[test]
    fn counts_above_a_byte_are_exact() {
        let mut tally = Tally::new(2);
        for expected in 1..=1000 {
            assert_eq!(tally.add(1), Some(expected));
            assert_eq!(tally.get(1), expected);
        }
        assert_eq!((tally.add(2), tally.get(2), tally.get(0), tally.used()), (None, 0, 0, 1));
    }
}
