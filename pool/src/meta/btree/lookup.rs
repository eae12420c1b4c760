//! Finds one key, or whether a range of keys has any.

use std::ops::Range;

use crate::error::Result;
use crate::format::{TreeKind, Value};
use crate::meta::btree::place::Place;
use crate::meta::btree::walk::{Flow, walk};
use crate::meta::transaction::Transaction;
use crate::units::MetaBlock;

/// The value of `key`, if the tree has it. Errors: `Corrupt`, `Io`.
pub(crate) fn lookup<V: Value>(
    transaction: &Transaction,
    kind: TreeKind,
    root: MetaBlock,
    key: u64,
) -> Result<Option<V>> {
    below(transaction, &Place::root(kind, root), key)
}

fn below<V: Value>(transaction: &Transaction, place: &Place<'_>, key: u64) -> Result<Option<V>> {
    let node = place.visit(transaction)?;
    if node.is_internal() {
        return match node.lower_bound(key) {
            Some(index) => below(transaction, &place.child(&node, index), key),
            None => Ok(None),
        };
    }
    Ok(node.keys().binary_search(&key).ok().map(|index| node.value(index)))
}

/// True if no key of `keys` is in the tree. Errors: `Corrupt`, `Io`.
pub(crate) fn span_is_empty(
    transaction: &Transaction,
    kind: TreeKind,
    root: MetaBlock,
    keys: &Range<u64>,
) -> Result<bool> {
    let mut empty = true;
    walk(transaction, kind, root, keys, &mut |_, _| {
        empty = false;
        Ok(Flow::Stop)
    })?;
    Ok(empty)
}
