//! Whether a change and the commit after it will find their metadata blocks, decided before the change begins.
//!
//! A commit cannot be refused half-way, so room for it is kept at all times: an operation goes ahead only if what
//! is available covers its own worst case, the worst case of the commit after it, and (unless it gives space
//! back) the reserve, on which deletions live when everything else is full.

use crate::error::{Error, ErrorKind, Result};
use crate::format::{ENTRIES_PER_BITMAP, TreeKind, entries_max};
use crate::meta::counts::Counts;
use crate::meta::metadata::{Device, Metadata};

/// Children of an internal node, and entries of a mapping leaf.
const FANOUT: u64 = entries_max(8) as u64;
/// Fewest children of an internal node that is no root.
const FANOUT_MIN: u64 = FANOUT / 3;
const RESERVE_MAX: u64 = 4096;
const RESERVE_MIN: u64 = 16;

/// What a change may need at most.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::meta) struct Demand {
    /// Metadata blocks that it allocates itself.
    pub(in crate::meta) blocks: u64,
    /// Data bitmaps that it changes, besides those of `data_counts`.
    pub(in crate::meta) data_bitmaps: u64,
    /// Data blocks anywhere whose count it changes, perhaps to or from three and more.
    pub(in crate::meta) data_counts: u64,
    /// Metadata blocks whose count it changes to or from three and more.
    pub(in crate::meta) metadata_counts: u64,
    /// Devices whose record it changes.
    pub(in crate::meta) devices: u64,
    /// Bitmaps that it adds.
    pub(in crate::meta) new_bitmaps: u64,
}

/// Whether the reserve may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::meta) enum Reserve {
    /// The change uses space: the reserve stays.
    Keep,
    /// The change takes mappings away, and may have to copy nodes that others share: half of the reserve is there
    /// for it, so that a trim of one device leaves enough to delete another.
    Half,
    /// The change gives space back: the reserve is there for it.
    Use,
}

/// The largest tree that `entries` can make, nodes filled to a third.
#[derive(Debug, Clone, Copy)]
struct LargestTree {
    leaves: u64,
    levels: u64,
    nodes: u64,
}

impl LargestTree {
    fn of(kind: TreeKind, entries: u64) -> Self {
        let leaves = (entries / (entries_max(kind.value_size()) as u64 / 3)).max(1);
        let (mut levels, mut nodes, mut width) = (1, leaves, leaves);
        while width > 1 {
            width = (width / FANOUT_MIN).max(1);
            nodes += width;
            levels += 1;
        }
        Self { leaves, levels, nodes }
    }

    /// Blocks that changing entries in `leaves` of its leaves may take: each leaf and the way to it copied, and all
    /// of them split or evened out with a neighbour. What is made and dropped within a generation is used again, so
    /// it is never more than a whole new tree and the two nodes in hand.
    fn copies(self, leaves: u64) -> u64 {
        let leaves = leaves.min(self.leaves);
        (2 * leaves * self.levels + 1).min(self.nodes + 2)
    }
}

impl Metadata {
    /// Blocks kept back: min(4096, total / 10), at least 16.
    pub(in crate::meta) fn reserve(&self) -> u64 {
        (self.transaction.metadata.total() / 10).clamp(RESERVE_MIN, RESERVE_MAX)
    }

    /// One entry of the top tree written or removed, and its record.
    pub(in crate::meta) fn demand_device(&self) -> Demand {
        let top = LargestTree::of(TreeKind::Top, self.devices.len() as u64 + 1);
        // Only a held snapshot shares nodes of the top tree.
        let shared = if self.superblock.held_root == 0 { 0 } else { 2 * top.levels * FANOUT };
        Demand { blocks: top.copies(1), metadata_counts: shared, devices: 1, ..Demand::default() }
    }

    /// `count` mappings side by side inserted in a tree that may be shared to the last leaf.
    pub(in crate::meta) fn demand_insert(&self, device: &Device, count: u64) -> Demand {
        let mapped = device.details.mapped_blocks;
        let before = LargestTree::of(TreeKind::Mapping, mapped);
        let copied = (count / FANOUT_MIN + 2).min(before.leaves);
        let added = count / (FANOUT / 2) + 1;
        let blocks = before.copies(copied) + added + added / FANOUT_MIN + 1;
        let demand = self.demand_device();
        Demand {
            blocks: demand.blocks + blocks,
            data_bitmaps: count / ENTRIES_PER_BITMAP + 2,
            data_counts: (copied * FANOUT).min(mapped),
            metadata_counts: demand.metadata_counts + (copied * before.levels * FANOUT).min(before.nodes),
            ..demand
        }
    }

    /// `ranges` of keys removed that hold `count` mappings in all: copies at both edges, and of their neighbours.
    pub(in crate::meta) fn demand_remove(&self, device: &Device, ranges: u64, count: u64) -> Demand {
        let mapped = device.details.mapped_blocks;
        let before = LargestTree::of(TreeKind::Mapping, mapped);
        let demand = self.demand_device();
        Demand {
            blocks: demand.blocks + before.copies(4 * ranges),
            data_counts: count.saturating_add(4 * ranges * FANOUT).min(mapped),
            metadata_counts: demand.metadata_counts + (4 * ranges * before.levels * FANOUT).min(before.nodes),
            ..demand
        }
    }

    /// A device removed with all of a tree: nothing of that is copied, and only in the leaves that nobody else refers
    /// to do blocks lose a reference.
    pub(in crate::meta) fn demand_delete(&self, device: &Device, exclusive_leaves: u64) -> Demand {
        let mapped = device.details.mapped_blocks;
        let demand = self.demand_device();
        let nodes = LargestTree::of(TreeKind::Mapping, mapped).nodes;
        let data_counts = mapped.min(exclusive_leaves * FANOUT);
        Demand { data_counts, metadata_counts: demand.metadata_counts + nodes, ..demand }
    }

    /// Blocks that the next commit may take at most if `demand` is done before it.
    fn commit_worst_case(&self, demand: &Demand) -> u64 {
        let (data, metadata) = (&self.transaction.data, &self.transaction.metadata);
        let data_bitmaps = data.bitmaps() as u64 + demand.new_bitmaps;
        let moved =
            data_bitmaps.min(data.touched_count() + demand.data_bitmaps + demand.data_counts + demand.new_bitmaps);
        let index = LargestTree::of(TreeKind::DataIndex, data_bitmaps);
        // A tree of counts has at most the blocks in use, and grows by what is changed.
        let overflow = |counts: &Counts, kind, changes: u64| {
            let changes = counts.overflow_changes().saturating_add(changes);
            LargestTree::of(kind, (counts.overflow().saturating_add(changes)).min(counts.used())).copies(changes)
        };
        let records = self.details_changed.len() as u64 + demand.devices;
        let details = LargestTree::of(TreeKind::Details, self.devices.len() as u64 + records);
        let bitmaps_and_index = metadata.bitmaps() as u64 + demand.new_bitmaps + 1;
        moved
            + if moved > 0 { index.copies(moved) } else { 0 }
            + overflow(data, TreeKind::DataOverflow, demand.data_counts)
            + details.copies(records)
            + bitmaps_and_index
            + overflow(metadata, TreeKind::MetadataOverflow, demand.metadata_counts)
    }

    /// Errors with `OutOfMetadataSpace` unless `demand` and the commit after it are sure to find their blocks.
    pub(in crate::meta) fn check_room(&self, doing: &str, demand: &Demand, reserve: Reserve) -> Result<()> {
        let kept = match reserve {
            Reserve::Keep if !self.spends_reserve => self.reserve(),
            Reserve::Half if !self.spends_reserve => self.reserve() / 2,
            Reserve::Keep | Reserve::Half | Reserve::Use => 0,
        };
        let wanted = demand.blocks + self.commit_worst_case(demand) + kept;
        let metadata = &self.transaction.metadata;
        if metadata.available() >= wanted {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::OutOfMetadataSpace,
            format!(
                "{doing}: this and its commit may need {wanted} metadata blocks with the reserve, {} of {} are \
                 available and {} come free with the next commit",
                metadata.available(),
                metadata.total(),
                metadata.pending()
            ),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::LargestTree;
    use crate::format::TreeKind;

    #[test]
    fn the_largest_tree_has_nodes_filled_to_a_third() {
        let small = LargestTree::of(TreeKind::Mapping, 83);
        assert_eq!((small.leaves, small.levels, small.nodes, small.copies(9)), (1, 1, 1, 3));
        let two_levels = LargestTree::of(TreeKind::Mapping, 84 * 84);
        assert_eq!((two_levels.leaves, two_levels.levels, two_levels.nodes), (84, 2, 85));
        let three_levels = LargestTree::of(TreeKind::Mapping, 84 * 84 * 84);
        assert_eq!((three_levels.levels, three_levels.copies(1)), (3, 7));
    }
}
