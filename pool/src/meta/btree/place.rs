//! Where a reader stands in a tree: the block, the keys that may be below it, and the way down to it.
//!
//! Invariant: every node is met through [`Place::visit`], which holds it to the keys its parent promised and to a
//! greatest depth. Hence a walk over hostile metadata ends: no node can be met twice in one tree, because its
//! keys would have to lie in two disjoint ranges.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::format::{Node, TreeKind};
use crate::meta::transaction::Transaction;
use crate::units::MetaBlock;

/// Every key that a tree of ours may hold.
pub(crate) const ALL_KEYS: Range<u64> = 0..u64::MAX;

/// A node's location, what may be in it, and its parent.
pub(crate) struct Place<'a> {
    /// The tree's kind.
    pub(crate) kind: TreeKind,
    /// Where the node stands.
    pub(crate) block: MetaBlock,
    /// The keys that its parent leaves to it.
    pub(crate) bounds: Range<u64>,
    above: Option<&'a Place<'a>>,
    depth: usize,
}

impl<'a> Place<'a> {
    /// The root of a tree.
    pub(crate) fn root(kind: TreeKind, block: MetaBlock) -> Self {
        Self { kind, block, bounds: ALL_KEYS, above: None, depth: 0 }
    }

    /// A node somewhere in a tree, without the way to it.
    pub(crate) fn at(kind: TreeKind, block: MetaBlock, bounds: Range<u64>) -> Self {
        Self { bounds, ..Self::root(kind, block) }
    }

    /// Child `index` of `node`, which stands here.
    pub(crate) fn child(&'a self, node: &Node, index: usize) -> Self {
        let keys = node.keys();
        let end = keys.get(index + 1).copied().unwrap_or(self.bounds.end);
        self.below(node.child(index), keys[index]..end)
    }

    /// A child at `block` that holds keys of `bounds` only.
    pub(crate) fn below(&'a self, block: MetaBlock, bounds: Range<u64>) -> Self {
        Self { kind: self.kind, block, bounds, above: Some(self), depth: self.depth + 1 }
    }

    /// The node that stands here. Errors: `Corrupt` (block, field and path), `Io`.
    pub(crate) fn visit(&self, transaction: &Transaction) -> Result<Arc<Node>> {
        let node = transaction.read(self.kind, self.block).map_err(|e| e.doing(self))?;
        let keys = node.keys();
        let (first, last) = (keys.first().copied(), keys.last().copied());
        let problem = if self.depth >= TreeKind::DEPTH_MAX {
            format!("the tree is deeper than {} levels", TreeKind::DEPTH_MAX)
        } else if first.is_some_and(|k| k < self.bounds.start) || last.is_some_and(|k| k >= self.bounds.end) {
            format!(
                "keys {}..={} are outside {}..{}, which the parent leaves to the node",
                first.unwrap_or(0),
                last.unwrap_or(0),
                self.bounds.start,
                self.bounds.end
            )
        } else if keys.is_empty() && self.above.is_some() {
            "nr_entries is 0 in a node that is no root".to_owned()
        } else {
            return Ok(node);
        };
        Err(Error::new(ErrorKind::Corrupt, format!("{self}: metadata block {}: {problem}", self.block)))
    }
}

impl fmt::Display for Place<'_> {
    /// Tree and path, root first: `mapping tree 50 > 38`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.above {
            None => write!(f, "{} {}", self.kind.name(), self.block),
            Some(above) => write!(f, "{above} > {}", self.block),
        }
    }
}
