//! Visits the leaves of a range of keys in order, each once.

use std::ops::Range;

use crate::error::Result;
use crate::format::{Node, TreeKind};
use crate::meta::btree::place::Place;
use crate::meta::transaction::Transaction;
use crate::units::MetaBlock;

/// Whether a walk goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    /// To the next leaf.
    Continue,
    /// No further.
    Stop,
}

/// Calls `leaf` with every leaf that has keys of `keys`, and with which of its entries these are (never none).
/// Errors: `Corrupt`, `Io`, and what `leaf` returns.
pub(crate) fn walk(
    transaction: &Transaction,
    kind: TreeKind,
    root: MetaBlock,
    keys: &Range<u64>,
    leaf: &mut dyn FnMut(&Node, Range<usize>) -> Result<Flow>,
) -> Result<Flow> {
    below(transaction, &Place::root(kind, root), keys, leaf)
}

fn below(
    transaction: &Transaction,
    place: &Place<'_>,
    keys: &Range<u64>,
    leaf: &mut dyn FnMut(&Node, Range<usize>) -> Result<Flow>,
) -> Result<Flow> {
    let node = place.visit(transaction)?;
    if !node.is_internal() {
        let span = node.span(keys);
        return if span.is_empty() { Ok(Flow::Continue) } else { leaf(&node, span) };
    }
    let first = node.lower_bound(keys.start).unwrap_or(0);
    for index in first..node.len() {
        if node.keys()[index] >= keys.end {
            break;
        }
        if below(transaction, &place.child(&node, index), keys, leaf)? == Flow::Stop {
            return Ok(Flow::Stop);
        }
    }
    Ok(Flow::Continue)
}

/// Entries below a place. Reads every leaf. Errors: `Corrupt`, `Io`.
pub(crate) fn count_entries(transaction: &Transaction, place: &Place<'_>) -> Result<u64> {
    let node = place.visit(transaction)?;
    if !node.is_internal() {
        return Ok(node.len() as u64);
    }
    let mut entries = 0;
    for index in 0..node.len() {
        entries += count_entries(transaction, &place.child(&node, index))?;
    }
    Ok(entries)
}
