//! Inserts a sorted batch in one descent: each leaf that it meets is copied, filled and split once.
//!
//! A node that overflows is cut into even pieces, except when the batch only appends: then all pieces but the
//! last two are full, and the last has at least the third that a node must have.

use crate::error::Result;
use crate::format::{Node, TreeKind, Value};
use crate::meta::btree::place::Place;
use crate::meta::transaction::Transaction;
use crate::units::MetaBlock;

/// What an insertion did.
#[derive(Debug)]
pub(crate) struct Inserted<V> {
    /// The tree's root.
    pub(crate) root: MetaBlock,
    /// Keys that the tree did not have.
    pub(crate) added: u64,
    /// Values that were replaced.
    pub(crate) replaced: Vec<V>,
}

/// Inserts `items`, strictly ascending by key and not empty; a key that is there gets the new value.
/// Errors: `OutOfMetadataSpace`, `Corrupt`, `Io`; the tree is then half changed.
pub(crate) fn insert<V: Value>(
    transaction: &mut Transaction,
    kind: TreeKind,
    root: MetaBlock,
    items: &[(u64, V)],
) -> Result<Inserted<V>> {
    debug_assert!(items.windows(2).all(|pair| pair[0].0 < pair[1].0), "the caller sorts the batch");
    let mut root = transaction.shadow(kind, root)?;
    let mut insertion = Insertion { transaction, added: 0, replaced: Vec::new() };
    let mut siblings = insertion.below(&Place::root(kind, root), items)?;
    while !siblings.is_empty() {
        let first = insertion.transaction.read(kind, root)?.keys()[0];
        let mut above = Node::empty_internal();
        above.push(first, root.0);
        siblings.iter().for_each(|&(key, block)| above.push(key, block.0));
        root = insertion.transaction.new_node(Node::empty_internal())?;
        siblings = insertion.store(root, above, Growth::Append)?;
    }
    Ok(Inserted { root, added: insertion.added, replaced: insertion.replaced })
}

/// Where the entries of an overflowing node came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Growth {
    Append,
    Anywhere,
}

struct Insertion<'a, V> {
    transaction: &'a mut Transaction,
    added: u64,
    replaced: Vec<V>,
}

impl<V: Value> Insertion<'_, V> {
    /// Inserts below a writable node. Returns the new right neighbours that it needs: first key and block.
    fn below(&mut self, place: &Place<'_>, items: &[(u64, V)]) -> Result<Vec<(u64, MetaBlock)>> {
        let node = place.visit(self.transaction)?;
        if node.is_internal() {
            self.internal(place, &node, items)
        } else {
            let (merged, growth) = self.merge(&node, items);
            self.store(place.block, merged, growth)
        }
    }

    fn internal(&mut self, place: &Place<'_>, node: &Node, items: &[(u64, V)]) -> Result<Vec<(u64, MetaBlock)>> {
        let mut out = node.emptied(node.len() + 1);
        let mut copied = 0;
        let mut growth = Growth::Anywhere;
        let mut rest = items;
        while let Some(&(key, _)) = rest.first() {
            let index = node.lower_bound(key).unwrap_or(0);
            let end = node.keys().get(index + 1).copied().unwrap_or(place.bounds.end);
            let (chunk, later) = rest.split_at(rest.partition_point(|item| item.0 < end));
            // A key below all others lowers the first key on the whole path.
            let start = node.keys()[index].min(key);
            let child = self.transaction.shadow(place.kind, node.child(index))?;
            let siblings = self.below(&place.below(child, start..end), chunk)?;
            out.extend(node, copied..index);
            out.push(start, child.0);
            siblings.iter().for_each(|&(key, block)| out.push(key, block.0));
            copied = index + 1;
            if copied == node.len() && out.len() == node.len() + siblings.len() {
                growth = Growth::Append;
            }
            rest = later;
        }
        out.extend(node, copied..node.len());
        self.store(place.block, out, growth)
    }

    fn merge(&mut self, node: &Node, items: &[(u64, V)]) -> (Node, Growth) {
        let mut out = node.emptied(node.len() + items.len());
        let appends = node.keys().last().is_none_or(|&last| last < items[0].0);
        let mut copied = 0;
        for &(key, value) in items {
            let at = copied + node.keys()[copied..].partition_point(|&k| k < key);
            out.extend(node, copied..at);
            copied = at;
            if node.keys().get(at) == Some(&key) {
                self.replaced.push(node.value(at));
                copied += 1;
            } else {
                self.added += 1;
            }
            out.push(key, value);
        }
        out.extend(node, copied..node.len());
        (out, if appends { Growth::Append } else { Growth::Anywhere })
    }

    /// Stores content of any length at a writable block and as many new neighbours as it needs.
    fn store(&mut self, block: MetaBlock, mut content: Node, growth: Growth) -> Result<Vec<(u64, MetaBlock)>> {
        if content.len() > content.max_entries() {
            content.widen();
        }
        let sizes = piece_sizes(content.len(), content.max_entries(), growth);
        let mut pieces = Vec::with_capacity(sizes.len());
        for size in sizes.into_iter().skip(1).rev() {
            pieces.push(content.split_off(content.len() - size));
        }
        self.transaction.replace(block, content);
        let mut siblings = Vec::with_capacity(pieces.len());
        for piece in pieces.into_iter().rev() {
            siblings.push((piece.keys()[0], self.transaction.new_node(piece)?));
        }
        Ok(siblings)
    }
}

/// How `len` entries are cut into nodes of at most `max`: every piece has at least max / 3 unless there is only one.
fn piece_sizes(len: usize, max: usize, growth: Growth) -> Vec<usize> {
    let count = len.div_ceil(max).max(1);
    match growth {
        Growth::Append => {
            let mut sizes = vec![max; count];
            let last = len - max * (count - 1);
            sizes[count - 1] = last;
            if count > 1 && last < max / 3 {
                sizes[count - 2] -= max / 3 - last;
                sizes[count - 1] = max / 3;
            }
            sizes
        }
        Growth::Anywhere => (0..count).map(|i| len * (i + 1) / count - len * i / count).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::{Growth, piece_sizes};

    #[test]
    fn pieces_are_legal_for_every_length() {
        for max in [126, 168, 252, 336] {
            for len in 0..6 * max {
                for growth in [Growth::Append, Growth::Anywhere] {
                    let sizes = piece_sizes(len, max, growth);
                    assert_eq!(sizes.iter().sum::<usize>(), len);
                    assert!(sizes.iter().all(|&size| size <= max));
                    assert!(sizes.len() == 1 || sizes.iter().all(|&size| size >= max / 3), "{len} {sizes:?}");
                }
            }
        }
    }

    #[test]
    fn appending_leaves_full_nodes_behind() {
        assert_eq!(piece_sizes(253, 252, Growth::Append), [169, 84]);
        assert_eq!(piece_sizes(253, 252, Growth::Anywhere), [126, 127]);
        assert_eq!(piece_sizes(1000, 252, Growth::Append), [252, 252, 252, 244]);
    }
}
