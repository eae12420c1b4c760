//! Decides what a request does to one block: pure, no I/O, no locks.
//!
//! Invariant: a plan never writes into a block that another device may see.

use crate::embedded::chunk::Entry;
use crate::export::Direction;
use crate::format::Mapping;
use crate::mutation::Mutation;
use crate::units::DataBlock;

/// What to do with one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plan {
    /// Ask the tree first.
    LookUp,
    /// A hole is read: zeroes.
    ReadZeroes,
    /// The bytes are where the mapping says.
    Remap(DataBlock),
    /// A hole is written: a new block; unless the whole of it is written the rest must read as zeroes.
    Provision,
    /// A block that a snapshot may see is written: a new block; unless the whole of it is written the rest
    /// is copied from the old one.
    BreakSharing(DataBlock),
}

/// `snapshotted_time` is the clock at the last snapshot taken of the device, or at its creation.
pub(super) fn plan(entry: Entry, snapshotted_time: u32, direction: Direction) -> Plan {
    match (direction, entry) {
        (_, Entry::Unknown) => Plan::LookUp,
        (Direction::Read, Entry::Hole) => Plan::ReadZeroes,
        (Direction::Write, Entry::Hole) => Plan::Provision,
        (Direction::Read, Entry::Mapped(mapping)) => Plan::Remap(mapping.block),
        (Direction::Write, Entry::Mapped(mapping)) if may_be_shared(mapping, snapshotted_time) => {
            Plan::BreakSharing(mapping.block)
        }
        (Direction::Write, Entry::Mapped(mapping)) => Plan::Remap(mapping.block),
    }
}

/// dm-thin's rule: what was mapped before the last snapshot may be in it. It may call a block shared that
/// is not (its snapshot was deleted), never the other way round.
fn may_be_shared(mapping: Mapping, snapshotted_time: u32) -> bool {
    mapping.time < snapshotted_time && !Mutation::KeepSharing.is_on()
}

#[cfg(test)]
mod tests {
    use super::{Plan, plan};
    use crate::embedded::chunk::Entry;
    use crate::export::Direction;
    use crate::format::Mapping;
    use crate::units::DataBlock;

    #[test]
    fn only_a_block_mapped_since_the_last_snapshot_is_written_in_place() {
        let mapped = |time| Entry::Mapped(Mapping { block: DataBlock(9), time });
        assert_eq!(plan(mapped(4), 5, Direction::Write), Plan::BreakSharing(DataBlock(9)));
        assert_eq!(plan(mapped(5), 5, Direction::Write), Plan::Remap(DataBlock(9)));
        assert_eq!(plan(mapped(6), 5, Direction::Write), Plan::Remap(DataBlock(9)));
        assert_eq!(plan(mapped(4), 5, Direction::Read), Plan::Remap(DataBlock(9)));
    }

    #[test]
    fn holes_read_as_zeroes_and_are_provisioned_by_writes() {
        assert_eq!(plan(Entry::Hole, 5, Direction::Read), Plan::ReadZeroes);
        assert_eq!(plan(Entry::Hole, 5, Direction::Write), Plan::Provision);
        assert_eq!(plan(Entry::Unknown, 5, Direction::Read), Plan::LookUp);
        assert_eq!(plan(Entry::Unknown, 5, Direction::Write), Plan::LookUp);
    }
}
