//! Compares two mapping trees at the cost of their difference: what both point to is not read.

use std::collections::HashSet;
use std::ops::Range;

use crate::error::{Error, ErrorKind, Result};
use crate::format::TreeKind;
use crate::meta::btree::place::{ALL_KEYS, Place};
use crate::meta::transaction::Transaction;
use crate::units::MetaBlock;

/// A key at which two trees differ, and the values there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Difference {
    /// The key.
    pub(crate) key: u64,
    /// The first tree's value.
    pub(crate) from: Option<u64>,
    /// The second tree's value.
    pub(crate) to: Option<u64>,
}

/// The keys at which two mapping trees have different values, ascending.
///
/// Level by level: nodes at the same height above the leaves that both trees have in common are struck out on both
/// sides, the rest is expanded. A common node holds the same keys in both trees, and keys are unique within a tree,
/// so what is left on one side can only meet what is left on the other. Errors: `Corrupt`, `Io`.
pub(crate) fn diff(transaction: &Transaction, from: MetaBlock, to: MetaBlock) -> Result<Vec<Difference>> {
    if from == to {
        return Ok(Vec::new());
    }
    let mut sides = [Side::new(transaction, from)?, Side::new(transaction, to)?];
    loop {
        if sides[0].height == sides[1].height {
            let [a, b] = &mut sides;
            strike_out_common(&mut a.places, &mut b.places);
            if a.height == 0 {
                break;
            }
        }
        let height = sides[0].height.max(sides[1].height);
        for side in sides.iter_mut().filter(|side| side.height == height) {
            side.expand(transaction)?;
        }
    }
    let [from, to] = sides;
    let (from, to) = (from.entries(transaction)?, to.entries(transaction)?);
    let mut differences = Vec::new();
    let (mut left, mut right) = (from.into_iter().peekable(), to.into_iter().peekable());
    loop {
        // Absent entries sort behind all keys, of which none is u64::MAX.
        let key_of = |entry: Option<&(u64, u64)>| entry.map_or(u64::MAX, |&(key, _)| key);
        let key = key_of(left.peek()).min(key_of(right.peek()));
        if key == u64::MAX {
            return Ok(differences);
        }
        let from = left.next_if(|entry| entry.0 == key).map(|entry| entry.1);
        let to = right.next_if(|entry| entry.0 == key).map(|entry| entry.1);
        if from != to {
            differences.push(Difference { key, from, to });
        }
    }
}

/// The nodes of one tree at one height that the other tree may not have.
struct Side {
    places: Vec<(MetaBlock, Range<u64>)>,
    height: usize,
}

impl Side {
    fn new(transaction: &Transaction, root: MetaBlock) -> Result<Self> {
        let height = height(transaction, &Place::root(TreeKind::Mapping, root))?;
        Ok(Self { places: vec![(root, ALL_KEYS)], height })
    }

    /// One level down.
    fn expand(&mut self, transaction: &Transaction) -> Result<()> {
        let mut below = Vec::new();
        for (block, bounds) in std::mem::take(&mut self.places) {
            let place = Place::at(TreeKind::Mapping, block, bounds);
            let node = place.visit(transaction)?;
            if !node.is_internal() {
                return Err(uneven(&place));
            }
            for index in 0..node.len() {
                let child = place.child(&node, index);
                below.push((child.block, child.bounds.clone()));
            }
        }
        self.places = below;
        self.height -= 1;
        Ok(())
    }

    fn entries(self, transaction: &Transaction) -> Result<Vec<(u64, u64)>> {
        let mut entries = Vec::new();
        for (block, bounds) in self.places {
            let place = Place::at(TreeKind::Mapping, block, bounds);
            let node = place.visit(transaction)?;
            if node.is_internal() {
                return Err(uneven(&place));
            }
            entries.extend(node.keys().iter().copied().zip(node.words()));
        }
        Ok(entries)
    }
}

fn uneven(place: &Place<'_>) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!("{place}: metadata block {}: the leaves of the tree are not at one depth", place.block),
    )
}

fn height(transaction: &Transaction, place: &Place<'_>) -> Result<usize> {
    let node = place.visit(transaction)?;
    if node.is_internal() { Ok(1 + height(transaction, &place.child(&node, 0))?) } else { Ok(0) }
}

fn strike_out_common(a: &mut Vec<(MetaBlock, Range<u64>)>, b: &mut Vec<(MetaBlock, Range<u64>)>) {
    let in_b: HashSet<MetaBlock> = b.iter().map(|place| place.0).collect();
    let common: HashSet<MetaBlock> = a.iter().map(|place| place.0).filter(|block| in_b.contains(block)).collect();
    a.retain(|place| !common.contains(&place.0));
    b.retain(|place| !common.contains(&place.0));
}
