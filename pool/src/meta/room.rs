//! Whether a change and the commit after it will find their metadata blocks, decided before the change begins.
//!
//! A commit cannot be refused half-way, so room for it is kept at all times: an operation goes ahead only if what
//! is available covers its own worst case, the worst case of the commit after it, and (unless it gives space
//! back) the reserve, on which deletions live when everything else is full.

use crate::error::{Error, ErrorKind, Result};
use crate::format::entries_max;
use crate::meta::metadata::Metadata;

/// Levels of any tree of ours, generously: five levels of nodes filled to a third hold 10^9 mappings.
const LEVELS: u64 = 5;
/// Children of a node, and entries of a mapping leaf.
const FANOUT: u64 = entries_max(8) as u64;
const MIN_FANOUT: u64 = FANOUT / 3;
const RESERVE_MAX: u64 = 4096;
const RESERVE_MIN: u64 = 16;

/// What a change may need at most.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::meta) struct Demand {
    /// Metadata blocks that it allocates itself.
    pub(in crate::meta) blocks: u64,
    /// Data blocks whose count it may change.
    pub(in crate::meta) data_changes: u64,
    /// Metadata blocks whose count it may raise to three or more, or lower from there.
    pub(in crate::meta) metadata_changes: u64,
    /// Devices whose record it changes.
    pub(in crate::meta) devices: u64,
    /// Bitmaps that it adds.
    pub(in crate::meta) bitmaps: u64,
}

/// Whether the reserve may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::meta) enum Reserve {
    /// The change uses space: the reserve stays.
    Keep,
    /// The change gives space back: the reserve is there for it.
    Use,
}

impl Demand {
    /// One entry of the top tree written or removed, and its details.
    pub(in crate::meta) fn device() -> Self {
        Self { blocks: 2 * LEVELS + 2, metadata_changes: LEVELS * FANOUT, devices: 1, ..Self::default() }
    }

    /// `count` mappings side by side inserted in a tree that may be shared to the last leaf.
    pub(in crate::meta) fn insert(count: u64) -> Self {
        let copied_leaves = count / MIN_FANOUT + 2;
        let new_leaves = count / (FANOUT / 2) + 1;
        let internal = 2 * LEVELS + (copied_leaves + new_leaves) / MIN_FANOUT * 2;
        let device = Self::device();
        Self {
            blocks: device.blocks + copied_leaves + new_leaves + internal,
            data_changes: count + copied_leaves * FANOUT,
            metadata_changes: device.metadata_changes + internal * FANOUT,
            ..device
        }
    }

    /// `edges` ranges removed that hold `count` mappings in all: copies at both edges and of their neighbours.
    pub(in crate::meta) fn remove(edges: u64, count: u64) -> Self {
        let device = Self::device();
        Self {
            blocks: device.blocks + 4 * LEVELS * edges,
            data_changes: count.saturating_add(4 * FANOUT * edges),
            metadata_changes: device.metadata_changes + 4 * LEVELS * FANOUT * edges,
            ..device
        }
    }
}

/// Blocks that changing `changes` entries of a tree of at most `entries` may take: each leaf is copied and may be
/// split or take from a neighbour.
fn tree_worst_case(changes: u64, entries: u64, min_entries: u64) -> u64 {
    if changes == 0 {
        return 0;
    }
    let leaves = changes.min(entries / min_entries + 1);
    2 * leaves + 2 * leaves / MIN_FANOUT + LEVELS
}

impl Metadata {
    /// Blocks kept back: min(4096, total / 10), at least 16.
    pub(in crate::meta) fn reserve(&self) -> u64 {
        (self.transaction.metadata.total() / 10).clamp(RESERVE_MIN, RESERVE_MAX)
    }

    /// Blocks that the next commit may take at most if `demand` is done before it.
    fn commit_worst_case(&self, demand: &Demand) -> u64 {
        let (data, metadata) = (&self.transaction.data, &self.transaction.metadata);
        let data_bitmaps = data.bitmaps() as u64 + demand.bitmaps;
        let moved = data_bitmaps.min(data.touched_count() + demand.data_changes + demand.bitmaps);
        let data_changes = data.overflow_changes().saturating_add(demand.data_changes);
        let metadata_changes = metadata.overflow_changes() + demand.metadata_changes;
        let changed_devices = self.details_changed.len() as u64 + demand.devices;
        moved
            + tree_worst_case(moved, data_bitmaps, 56)
            + tree_worst_case(data_changes, data.overflow().saturating_add(data_changes), 112)
            + tree_worst_case(changed_devices, self.devices.len() as u64 + changed_devices, 42)
            + metadata.bitmaps() as u64
            + demand.bitmaps
            + 1
            + tree_worst_case(metadata_changes, metadata.overflow() + metadata_changes, 112)
    }

    /// Errors with `OutOfMetadataSpace` unless `demand` and the commit after it are sure to find their blocks.
    pub(in crate::meta) fn check_room(&self, doing: &str, demand: &Demand, reserve: Reserve) -> Result<()> {
        let kept = match reserve {
            Reserve::Keep => self.reserve(),
            Reserve::Use => 0,
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
