//! Decides what a request of a ublk device asks for; no I/O.

use std::sync::Arc;

use crate::export::exporter::Direction;
use crate::export::ublk::wire::{IoDescriptor, Operation};
use crate::export::work::{ByteRange, Errand, Node, PAYLOAD_MAX, Transfer};
use crate::thin_pool::Access;

/// What to do about a request.
pub(super) enum Decision {
    /// Answer with an errno, 0 for success.
    Status(i32),
    /// It needs a slot.
    Work(Work),
}

/// What a request with a slot asks for.
pub(super) enum Work {
    Transfer(Transfer),
    Errand(Errand),
}

pub(super) fn decide(node: &Arc<Node>, request: &IoDescriptor) -> Decision {
    let operation = request.operation();
    if operation == Operation::Flush {
        return Decision::Work(Work::Errand(Errand::Flush(Arc::clone(node))));
    }
    let changes = operation != Operation::Read;
    if changes && node.access == Access::ReadOnly {
        return Decision::Status(libc::EROFS);
    }
    let (Some(offset), len) = (request.offset(), request.len()) else { return Decision::Status(libc::EINVAL) };
    if offset.checked_add(len).is_none_or(|end| end > node.size()) {
        return Decision::Status(libc::EIO);
    }
    if !offset.is_multiple_of(node.alignment) || !len.is_multiple_of(node.alignment) {
        return Decision::Status(libc::EINVAL);
    }
    if len == 0 {
        return Decision::Status(0);
    }
    let range = ByteRange { offset, len };
    let direction = match operation {
        Operation::Read => Direction::Read,
        Operation::Write => Direction::Write,
        Operation::Discard => return errand(Errand::Discard(Arc::clone(node), range)),
        Operation::WriteZeroes => return errand(Errand::WriteZeroes(Arc::clone(node), range)),
        Operation::Flush | Operation::Other(_) => return Decision::Status(libc::EOPNOTSUPP),
    };
    match u32::try_from(len) {
        Ok(len) if len as usize <= PAYLOAD_MAX => {
            Decision::Work(Work::Transfer(Transfer { node: Arc::clone(node), direction, offset, len }))
        }
        _ => Decision::Status(libc::EINVAL),
    }
}

fn errand(errand: Errand) -> Decision {
    Decision::Work(Work::Errand(errand))
}
