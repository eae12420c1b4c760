//! Cuts the mappings of a device into leaves so that devices that hold the same come to the same leaves.
//!
//! A dump tells every device by itself; which leaves two of them shared is not in it. If leaves were filled one
//! after the other, one more mapping at the start would move the edges of all that follow. So an edge lies only
//! where the keys pass a multiple of [`WINDOW`]: behind a difference the edges soon meet again.

use crate::error::{Error, ErrorKind, Result};
use crate::format::{Mapping, entries_max};
use crate::repair::build::Builder;
use crate::units::MetaBlock;

/// Most entries of a leaf.
const LEAF_MAX: usize = entries_max(8);
/// A third of a leaf: three windows without a hole are a full one.
const WINDOW: u64 = LEAF_MAX as u64 / 3;
/// With more entries than this the next window may not fit.
const ENOUGH: usize = LEAF_MAX * 2 / 3;

/// The mapping tree of one device, its entries pushed in order.
#[derive(Debug, Default)]
pub(in crate::repair) struct Leaves {
    /// Written leaves: first key and place.
    row: Vec<(u64, MetaBlock)>,
    /// A full leaf that waits: the last one of all may be too small to stand by itself.
    waiting: Vec<(u64, Mapping)>,
    current: Vec<(u64, Mapping)>,
    count: u64,
}

impl Leaves {
    /// Appends an entry. Errors: `Invalid` unless its key is above all others, and what the builder meets.
    pub(in crate::repair) fn push(&mut self, builder: &mut Builder<'_>, key: u64, mapping: Mapping) -> Result<()> {
        let last = self.current.last().or(self.waiting.last()).map(|entry| entry.0);
        if last.is_some_and(|last| last >= key) || key == u64::MAX {
            let last = last.unwrap_or(0);
            return Err(Error::new(ErrorKind::Invalid, format!("block {key} comes after block {last}")));
        }
        let passes = self.current.last().is_some_and(|entry| entry.0 / WINDOW != key / WINDOW);
        if passes && self.current.len() > ENOUGH {
            self.end_leaf(builder)?;
        }
        self.current.push((key, mapping));
        self.count += 1;
        Ok(())
    }

    fn end_leaf(&mut self, builder: &mut Builder<'_>) -> Result<()> {
        let full = std::mem::replace(&mut self.waiting, std::mem::take(&mut self.current));
        self.write(builder, &full)
    }

    fn write(&mut self, builder: &mut Builder<'_>, entries: &[(u64, Mapping)]) -> Result<()> {
        if let Some(&(key, _)) = entries.first() {
            self.row.push((key, builder.mapping_leaf(entries)?));
        }
        Ok(())
    }

    /// Entries so far.
    pub(in crate::repair) fn count(&self) -> u64 {
        self.count
    }

    /// The root of the tree.
    pub(in crate::repair) fn finish(mut self, builder: &mut Builder<'_>) -> Result<MetaBlock> {
        if self.current.len() < LEAF_MAX / 3 && !self.waiting.is_empty() {
            let mut both = std::mem::take(&mut self.waiting);
            both.append(&mut self.current);
            if both.len() > LEAF_MAX {
                self.current = both.split_off(both.len() / 2);
            }
            self.waiting = both;
        }
        let (waiting, current) = (std::mem::take(&mut self.waiting), std::mem::take(&mut self.current));
        self.write(builder, &waiting)?;
        self.write(builder, &current)?;
        if self.row.is_empty() {
            return builder.mapping_leaf(&[]);
        }
        builder.above(self.row)
    }
}
