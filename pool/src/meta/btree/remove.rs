//! Removes a range of keys: whole subtrees at once, then the nodes at the edges are filled up again.
//!
//! Invariant kept: every node but the root has a third of its entries, and an internal root has two children.

use std::ops::Range;

use crate::error::{Error, ErrorKind, Result};
use crate::format::{Mapping, Node, TreeKind};
use crate::meta::btree::lookup::span_is_empty;
use crate::meta::btree::place::Place;
use crate::meta::btree::release::release;
use crate::meta::btree::walk::count_entries;
use crate::meta::transaction::Transaction;
use crate::units::MetaBlock;

/// What a removal did.
#[derive(Debug)]
pub(crate) struct Removed {
    /// The tree's root.
    pub(crate) root: MetaBlock,
    /// Keys that went.
    pub(crate) count: u64,
}

/// Removes every key of `keys`; data blocks of removed mappings lose their reference. Errors:
/// `OutOfMetadataSpace`, `Corrupt`, `Io`; the tree is then half changed.
pub(crate) fn remove(
    transaction: &mut Transaction,
    kind: TreeKind,
    root: MetaBlock,
    keys: Range<u64>,
) -> Result<Removed> {
    if span_is_empty(transaction, kind, root, &keys)? {
        return Ok(Removed { root, count: 0 });
    }
    let mut root = transaction.shadow(kind, root)?;
    let mut removal = Removal { transaction, keys, count: 0 };
    removal.below(&Place::root(kind, root))?;
    let Removal { keys, count, .. } = removal;
    if transaction.read(kind, root)?.len() == 0 {
        transaction.replace(root, Node::empty_leaf(kind.value_size()));
        return Ok(Removed { root, count });
    }
    // Only the nodes at the two edges have lost entries without being dropped, and evening one out can take the
    // last spare entries of nothing but its own parents: when a pass finds nothing, nothing is left to do.
    while repair_path(transaction, kind, &mut root, keys.start)? || repair_path(transaction, kind, &mut root, keys.end)?
    {
    }
    Ok(Removed { root, count })
}

struct Removal<'a> {
    transaction: &'a mut Transaction,
    keys: Range<u64>,
    count: u64,
}

impl Removal<'_> {
    /// Removes below a writable node, which may be left underfull or empty.
    fn below(&mut self, place: &Place<'_>) -> Result<()> {
        let node = place.visit(self.transaction)?;
        let span = node.span(&self.keys);
        if !node.is_internal() {
            if place.kind == TreeKind::Mapping {
                for index in span.clone() {
                    let block = Mapping::unpack(node.value(index)).block;
                    self.transaction.data.dec(block.0).map_err(|e| e.doing(place))?;
                }
            }
            self.count += span.len() as u64;
            drop(node);
            self.transaction.write(place.block).remove(span);
            return Ok(());
        }
        let first = node.lower_bound(self.keys.start).unwrap_or(0);
        let mut out = node.emptied(node.len());
        out.extend(&node, 0..first);
        for index in first..span.end {
            if let Some(child) = self.child(place, &node, index)? {
                out.push(node.keys()[index], child.0);
            }
        }
        out.extend(&node, span.end.max(first)..node.len());
        drop(node);
        self.transaction.replace(place.block, out);
        Ok(())
    }

    /// Removes below child `index`. Returns where it stands now, or `None` if nothing is left of it.
    fn child(&mut self, place: &Place<'_>, node: &Node, index: usize) -> Result<Option<MetaBlock>> {
        let child = place.child(node, index);
        if self.keys.start <= child.bounds.start && child.bounds.end <= self.keys.end {
            self.count += count_entries(self.transaction, &child)?;
            release(self.transaction, &child)?;
            return Ok(None);
        }
        let content = child.visit(self.transaction)?;
        if !content.is_internal() && content.span(&self.keys).is_empty() {
            return Ok(Some(child.block));
        }
        drop(content);
        let copy = self.transaction.shadow(place.kind, child.block)?;
        self.below(&place.below(copy, child.bounds.clone()))?;
        if self.transaction.read(place.kind, copy)?.len() == 0 {
            self.transaction.drop_node(copy)?;
            return Ok(None);
        }
        Ok(Some(copy))
    }
}

/// Mends the first fault on the path to `key`: a root with a single child, or an underfull node. True if there
/// was one.
fn repair_path(transaction: &mut Transaction, kind: TreeKind, root: &mut MetaBlock, key: u64) -> Result<bool> {
    let mut path = Vec::new();
    let found = {
        let place = Place::root(kind, *root);
        let node = place.visit(transaction)?;
        if node.is_internal() && node.len() == 1 {
            let child = node.child(0);
            drop(node);
            // The old root is writable or at least has one owner; its reference to the child becomes the tree's.
            let writable = transaction.shadow(kind, *root)?;
            transaction.drop_node(writable)?;
            *root = child;
            return Ok(true);
        }
        find_underfull(transaction, &place, key, &mut path)?
    };
    if !found {
        return Ok(false);
    }
    *root = transaction.shadow(kind, *root)?;
    let mut parent = *root;
    let mut bounds = Place::root(kind, *root).bounds;
    let child_index = path.pop().expect("the path to an underfull node has at least one step");
    for index in path {
        let node = transaction.read(kind, parent)?;
        bounds = node.keys()[index]..node.keys().get(index + 1).copied().unwrap_or(bounds.end);
        let child = node.child(index);
        drop(node);
        let copy = transaction.shadow(kind, child)?;
        if copy != child {
            transaction.write(parent).set_value(index, copy.0);
        }
        parent = copy;
    }
    fill_up(transaction, &Place::at(kind, parent, bounds), child_index)?;
    Ok(true)
}

/// The steps to the first underfull node on the path to `key` that has a sibling.
fn find_underfull(transaction: &Transaction, place: &Place<'_>, key: u64, path: &mut Vec<usize>) -> Result<bool> {
    let node = place.visit(transaction)?;
    if !node.is_internal() {
        return Ok(false);
    }
    let index = node.lower_bound(key).unwrap_or(0);
    let child = place.child(&node, index);
    path.push(index);
    if node.len() > 1 && child.visit(transaction)?.is_underfull() {
        return Ok(true);
    }
    find_underfull(transaction, &child, key, path)
}

/// Merges child `index` of a writable node with its left (or only the right) neighbour, or evens the two out.
fn fill_up(transaction: &mut Transaction, parent: &Place<'_>, index: usize) -> Result<()> {
    let kind = parent.kind;
    let node = transaction.read(kind, parent.block)?;
    let right_index = index.max(1);
    let (left_place, right_place) = (parent.child(&node, right_index - 1), parent.child(&node, right_index));
    let (left, right) = (left_place.visit(transaction)?, right_place.visit(transaction)?);
    if left.is_internal() != right.is_internal() {
        return Err(Error::new(
            ErrorKind::Corrupt,
            format!(
                "{parent}: metadata blocks {} and {}: a leaf and an internal node side by side",
                left_place.block, right_place.block
            ),
        ));
    }
    let (left_block, right_block) = (left_place.block, right_place.block);
    let mut all = left.emptied(left.len() + right.len());
    all.widen();
    all.append(&left);
    all.append(&right);
    drop((node, left, right));
    let left_copy = transaction.shadow(kind, left_block)?;
    let right_copy = transaction.shadow(kind, right_block)?;
    if all.len() <= 2 * all.min_entries() {
        transaction.replace(left_copy, all);
        // The entries have moved to the left node, and with them the references that they hold.
        transaction.drop_node(right_copy)?;
        let node = transaction.write(parent.block);
        node.set_value(right_index - 1, left_copy.0);
        node.remove(right_index..right_index + 1);
    } else {
        let right = all.split_off(all.len() / 2);
        let first = right.keys()[0];
        transaction.replace(left_copy, all);
        transaction.replace(right_copy, right);
        let node = transaction.write(parent.block);
        node.set_value(right_index - 1, left_copy.0);
        node.set_value(right_index, right_copy.0);
        node.set_key(right_index, first);
    }
    Ok(())
}
