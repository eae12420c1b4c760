//! Gives up one reference to a whole tree; what nobody else refers to is freed.

use crate::error::Result;
use crate::format::{Mapping, TreeKind};
use crate::meta::btree::place::Place;
use crate::meta::transaction::Transaction;

/// Gives up one reference to the node at `place`; with the last one its children and data blocks follow. Costs
/// nothing below a shared node. Errors: `Corrupt`, `Io`; the counts are then half changed.
pub(crate) fn release(transaction: &mut Transaction, place: &Place<'_>) -> Result<()> {
    if transaction.metadata.get(place.block.0)? > 1 {
        transaction.drop_node(place.block)?;
        return Ok(());
    }
    let node = place.visit(transaction)?;
    if node.is_internal() {
        for index in 0..node.len() {
            release(transaction, &place.child(&node, index))?;
        }
    } else if place.kind == TreeKind::Mapping {
        for value in node.words() {
            transaction.data.dec(Mapping::unpack(value).block.0).map_err(|e| e.doing(place))?;
        }
    }
    transaction.drop_node(place.block)?;
    Ok(())
}
