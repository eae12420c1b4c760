//! The reference counts of one space map in memory, and the allocator that stands on them.
//!
//! Invariants:
//! - a block is *unavailable* while its count is above zero, while it is reserved, and from the moment its count
//!   falls to zero until the generation that freed it is durable;
//! - only available blocks are handed out, so no block that a durable superblock can reach is ever handed out.

use std::collections::HashMap;

use crate::error::{Error, ErrorKind, Result};
use crate::format::{ENTRIES_PER_BITMAP, OVERFLOW};
use crate::meta::bitset::Bitset;
use crate::mutation::Mutation;

/// A count of 255 or more stands in `large`.
const LARGE: u8 = u8::MAX;

/// Counts, allocator, and what changed since the last freeze.
#[derive(Debug)]
pub(crate) struct Counts {
    name: &'static str,
    small: Vec<u8>,
    large: HashMap<u64, u32>,
    unavailable: Bitset,
    used: u64,
    used_in: Vec<u32>,
    overflow: u64,
    cursor: u64,
    touched: Vec<bool>,
    touched_count: u64,
    overflow_changes: Vec<u64>,
    overflow_limit: usize,
    freed: Vec<u64>,
    frozen_freed: Vec<u64>,
}

fn at(block: u64) -> usize {
    usize::try_from(block).expect("block numbers of a pool fit the address space")
}

fn bitmap_of(block: u64) -> usize {
    at(block / ENTRIES_PER_BITMAP)
}

impl Counts {
    /// All counts zero. `name` is "data" or "metadata", for messages.
    pub(crate) fn new(name: &'static str, total: u64) -> Self {
        let mut counts = Self {
            name,
            small: vec![0; at(total)],
            large: HashMap::new(),
            unavailable: Bitset::new(total),
            used: 0,
            used_in: Vec::new(),
            overflow: 0,
            cursor: 0,
            touched: Vec::new(),
            touched_count: 0,
            overflow_changes: Vec::new(),
            overflow_limit: 4096,
            freed: Vec::new(),
            frozen_freed: Vec::new(),
        };
        counts.used_in.resize(counts.bitmaps(), 0);
        counts.touched.resize(counts.bitmaps(), false);
        counts
    }

    /// Blocks in all.
    pub(crate) fn total(&self) -> u64 {
        self.small.len() as u64
    }

    /// Blocks with a count above zero.
    pub(crate) fn used(&self) -> u64 {
        self.used
    }

    /// Blocks with a count of three or more.
    pub(crate) fn overflow(&self) -> u64 {
        self.overflow
    }

    /// Blocks that can be handed out at once.
    pub(crate) fn available(&self) -> u64 {
        self.unavailable.zeroes()
    }

    /// Blocks freed in generations that are not durable yet.
    pub(crate) fn pending(&self) -> u64 {
        (self.freed.len() + self.frozen_freed.len()) as u64
    }

    /// Bitmaps that the map has.
    pub(crate) fn bitmaps(&self) -> usize {
        self.small.len().div_ceil(at(ENTRIES_PER_BITMAP))
    }

    /// The count of a block. Errors with `Corrupt` beyond the end of the map.
    pub(crate) fn get(&self, block: u64) -> Result<u32> {
        self.check(block)?;
        Ok(self.count(block))
    }

    fn check(&self, block: u64) -> Result<()> {
        if block < self.total() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Corrupt,
            format!("{} block {block} is beyond the {} blocks of the pool", self.name, self.total()),
        ))
    }

    fn count(&self, block: u64) -> u32 {
        match self.small[at(block)] {
            LARGE => self.large.get(&block).copied().unwrap_or(u32::from(LARGE)),
            small => u32::from(small),
        }
    }

    /// Stores a count and keeps every sum that depends on it.
    fn set(&mut self, block: u64, before: u32, after: u32) {
        match u8::try_from(after) {
            Ok(small) if small < LARGE => {
                self.small[at(block)] = small;
                if before >= u32::from(LARGE) {
                    self.large.remove(&block);
                }
            }
            _ => {
                self.small[at(block)] = LARGE;
                self.large.insert(block, after);
            }
        }
        let bitmap = bitmap_of(block);
        if before == 0 && after > 0 {
            self.used += 1;
            self.used_in[bitmap] += 1;
        } else if before > 0 && after == 0 {
            self.used -= 1;
            self.used_in[bitmap] -= 1;
        }
        let overflow = u32::from(OVERFLOW);
        match (before >= overflow, after >= overflow) {
            (false, true) => self.overflow += 1,
            (true, false) => self.overflow -= 1,
            (true, true) | (false, false) => {}
        }
    }

    /// Notes that the bitmap and, from three on, the overflow tree must follow.
    fn note(&mut self, block: u64, before: u32, after: u32) {
        self.touch(bitmap_of(block));
        if before.max(after) >= u32::from(OVERFLOW) {
            self.overflow_changes.push(block);
            if self.overflow_changes.len() > self.overflow_limit {
                self.overflow_changes.sort_unstable();
                self.overflow_changes.dedup();
                self.overflow_limit = (2 * self.overflow_changes.len()).max(4096);
            }
        }
    }

    /// Marks a bitmap to be written with the next commit.
    pub(crate) fn touch(&mut self, bitmap: usize) {
        if !self.touched[bitmap] {
            self.touched[bitmap] = true;
            self.touched_count += 1;
        }
    }

    /// Takes a count from disk: no change, nothing to write.
    pub(crate) fn load(&mut self, block: u64, count: u32) {
        let before = self.count(block);
        self.set(block, before, count);
        if count > 0 {
            self.unavailable.insert(block);
        }
    }

    /// One more reference to a block that has one. Errors: `Corrupt`.
    pub(crate) fn inc(&mut self, block: u64) -> Result<u32> {
        self.check(block)?;
        let before = self.count(block);
        if before == 0 || before == u32::MAX {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("{} block {block} is referenced, but its reference count is {before}", self.name),
            ));
        }
        self.set(block, before, before + 1);
        self.note(block, before, before + 1);
        Ok(before + 1)
    }

    /// One reference less; at zero the block waits for the commit. Returns the count left. Errors: `Corrupt`.
    pub(crate) fn dec(&mut self, block: u64) -> Result<u32> {
        self.check(block)?;
        let before = self.count(block);
        if before == 0 {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("{} block {block} was referenced, but its reference count is 0", self.name),
            ));
        }
        self.set(block, before, before - 1);
        self.note(block, before, before - 1);
        if before == 1 && Mutation::ReuseInTransaction.is_on() {
            self.unavailable.remove(block);
        } else if before == 1 {
            self.freed.push(block);
        }
        Ok(before - 1)
    }

    /// Frees a block that was allocated in the running generation: no durable state has seen it, so it may be
    /// handed out again at once.
    pub(crate) fn free_unseen(&mut self, block: u64) {
        debug_assert_eq!(self.count(block), 1, "an unseen block has one owner");
        self.set(block, 1, 0);
        self.note(block, 1, 0);
        self.unavailable.remove(block);
    }

    /// A block with count 1, the next one after the last.
    pub(crate) fn allocate(&mut self) -> Option<u64> {
        let (block, _) = self.reserve(1)?;
        self.set(block, 0, 1);
        self.note(block, 0, 1);
        Some(block)
    }

    /// Reserves the next available blocks: start and length, at most `want` and at least one.
    pub(crate) fn reserve(&mut self, want: u64) -> Option<(u64, u64)> {
        let start = self
            .unavailable
            .first_absent(self.cursor..self.total())
            .or_else(|| self.unavailable.first_absent(0..self.cursor))?;
        let len = self.unavailable.absent_run(start, want.max(1));
        for block in start..start + len {
            self.unavailable.insert(block);
        }
        self.cursor = start + len;
        Some((start, len))
    }

    /// Reserves exactly these blocks. False, with nothing changed, unless all are available.
    pub(crate) fn claim(&mut self, start: u64, len: u64) -> bool {
        let inside = start.checked_add(len).is_some_and(|end| end <= self.total());
        if !inside || self.unavailable.absent_run(start, len) < len {
            return false;
        }
        for block in start..start + len {
            self.unavailable.insert(block);
        }
        true
    }

    /// Reserves the first available blocks from `from` on: start and length, at most `most`.
    pub(crate) fn claim_next(&mut self, from: u64, most: u64) -> Option<(u64, u64)> {
        let start = self.unavailable.first_absent(from..self.total())?;
        let len = self.unavailable.absent_run(start, most.max(1));
        for block in start..start + len {
            self.unavailable.insert(block);
        }
        Some((start, len))
    }

    /// True if the block is held by a reservation, and by nothing else.
    pub(crate) fn is_reserved(&self, block: u64) -> bool {
        block < self.total() && self.count(block) == 0 && self.unavailable.contains(block)
    }

    /// Turns a reservation into the first reference.
    pub(crate) fn adopt(&mut self, block: u64) {
        debug_assert!(self.is_reserved(block), "the caller has checked the reservation");
        self.set(block, 0, 1);
        self.note(block, 0, 1);
    }

    /// Makes a block without references available; one with references stays as it is.
    pub(crate) fn release(&mut self, block: u64) {
        if block < self.total() && self.count(block) == 0 {
            self.unavailable.remove(block);
        }
    }

    /// More blocks, all available. The last bitmap so far and every new one are to be written.
    pub(crate) fn grow(&mut self, total: u64) {
        let first = self.bitmaps().saturating_sub(1);
        self.small.resize(at(total), 0);
        self.unavailable.grow(total);
        let bitmaps = self.bitmaps();
        self.used_in.resize(bitmaps, 0);
        self.touched.resize(bitmaps, false);
        for bitmap in first..bitmaps {
            self.touch(bitmap);
        }
    }

    /// How many bitmaps are to be written.
    pub(crate) fn touched_count(&self) -> u64 {
        self.touched_count
    }

    /// True if the bitmap is to be written.
    pub(crate) fn is_touched(&self, bitmap: usize) -> bool {
        self.touched[bitmap]
    }

    /// An upper bound of the blocks whose overflow entry is to be written.
    pub(crate) fn overflow_changes(&self) -> u64 {
        self.overflow_changes.len() as u64
    }

    /// Blocks whose overflow entry may have changed since the last call, ascending, with their counts.
    pub(crate) fn take_overflow_changes(&mut self) -> Vec<(u64, u32)> {
        let mut blocks = std::mem::take(&mut self.overflow_changes);
        blocks.sort_unstable();
        blocks.dedup();
        blocks.into_iter().map(|block| (block, self.count(block))).collect()
    }

    /// The counts of one bitmap, each cut off at 255, and its hints: nr_free and none_free_before.
    pub(crate) fn bitmap(&self, bitmap: usize) -> (&[u8], u32, u32) {
        let per = at(ENTRIES_PER_BITMAP);
        let start = bitmap * per;
        let counts = &self.small[start..(start + per).min(self.small.len())];
        let full = u32::try_from(ENTRIES_PER_BITMAP).expect("16,320");
        let first_free = counts.iter().position(|&count| count == 0).unwrap_or(counts.len());
        (counts, full - self.used_in[bitmap], u32::try_from(first_free).expect("at most 16,320"))
    }

    /// Closes the generation: what it freed now waits for it to be durable, and nothing is touched.
    pub(crate) fn freeze(&mut self) {
        debug_assert!(self.frozen_freed.is_empty(), "one generation is frozen at a time");
        self.frozen_freed = std::mem::take(&mut self.freed);
        self.touched.fill(false);
        self.touched_count = 0;
        self.overflow_limit = 4096;
    }

    /// The blocks that the frozen generation freed.
    #[cfg(feature = "mutate")]
    pub(crate) fn frozen_freed(&self) -> &[u64] {
        &self.frozen_freed
    }

    /// The frozen generation is durable: the blocks that it freed, still unavailable.
    pub(crate) fn take_frozen_freed(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.frozen_freed)
    }
}

#[cfg(test)]
mod tests {
    use super::Counts;
    use crate::error::ErrorKind;

    #[test]
    fn a_freed_block_is_not_handed_out_before_its_generation_is_durable() {
        let mut counts = Counts::new("metadata", 2);
        let first = counts.allocate().unwrap();
        let second = counts.allocate().unwrap();
        counts.freeze();
        counts.take_frozen_freed();
        counts.dec(first).unwrap();
        assert_eq!((counts.allocate(), counts.pending()), (None, 1));
        counts.freeze();
        counts.dec(second).unwrap();
        assert_eq!((counts.allocate(), counts.pending()), (None, 2));
        for block in counts.take_frozen_freed() {
            counts.release(block);
        }
        assert_eq!(counts.allocate(), Some(first));
        assert_eq!(counts.allocate(), None);
    }

    #[test]
    fn allocation_goes_on_from_the_last_block_and_wraps_once() {
        let mut counts = Counts::new("data", 10);
        assert_eq!(counts.reserve(4), Some((0, 4)));
        counts.release(1);
        assert_eq!(counts.reserve(8), Some((4, 6)));
        assert_eq!(counts.reserve(8), Some((1, 1)));
        assert_eq!(counts.reserve(1), None);
    }

    #[test]
    fn counts_above_255_are_exact_and_the_sums_follow() {
        let mut counts = Counts::new("data", 3);
        counts.claim(1, 1);
        counts.adopt(1);
        for expected in 2..=1000 {
            assert_eq!(counts.inc(1).unwrap(), expected);
        }
        assert_eq!((counts.used(), counts.overflow()), (1, 1));
        assert_eq!(counts.take_overflow_changes(), [(1, 1000)]);
        for expected in (0..1000).rev() {
            assert_eq!(counts.dec(1).unwrap(), expected);
        }
        assert_eq!((counts.used(), counts.overflow(), counts.pending()), (0, 0, 1));
        assert_eq!(counts.take_overflow_changes(), [(1, 0)]);
    }

    #[test]
    fn a_reference_to_a_free_or_absent_block_is_corruption() {
        let mut counts = Counts::new("data", 3);
        assert_eq!(counts.dec(0).unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(counts.inc(0).unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(counts.inc(3).unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(counts.get(u64::MAX).unwrap_err().kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn a_claim_takes_all_or_nothing() {
        let mut counts = Counts::new("data", 8);
        assert!(counts.claim(2, 3));
        assert!(!counts.claim(0, 3));
        assert!(counts.claim(0, 2));
        assert!(!counts.claim(7, 2));
        assert!(!counts.claim(u64::MAX, 2));
        assert_eq!(counts.available(), 3);
    }

    #[test]
    fn growth_touches_the_last_bitmap_and_the_new_ones() {
        let mut counts = Counts::new("data", 16_321);
        counts.grow(16_320 * 3);
        assert_eq!([0, 1, 2].map(|b| counts.is_touched(b)), [false, true, true]);
        assert_eq!(counts.bitmap(2), (&vec![0u8; 16_320][..], 16_320, 0));
    }
}
