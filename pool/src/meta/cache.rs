//! Decoded nodes that are equal to the disk, kept as long as there is room.
//!
//! Nodes of the running and of the frozen generation are not here: they are not on disk yet and must not be
//! dropped. Replacement is second chance: a hit costs a hash look-up and a flag, no list is relinked.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use crate::format::Node;
use crate::units::{ByteCount, MetaBlock};

/// Bytes that are kept unless somebody says otherwise: four thousand nodes, the leaves of about a million mappings.
const BYTES_DEFAULT: ByteCount = ByteCount(16 << 20);
/// What a node costs beside its entries: counts of its owners, its place here, what the allocator keeps for itself.
const OVERHEAD_BYTES: usize = 128;

/// Spreads block numbers over a hash table; they are ours, so nobody can choose colliding ones to any gain.
#[derive(Default)]
pub(crate) struct BlockHasher(u64);

impl Hasher for BlockHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        // 2^64 / golden ratio; the swap brings the well-mixed upper half to where the table looks.
        self.0 = (self.0 ^ value).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(32);
    }
}

/// A hash map keyed by metadata blocks.
pub(crate) type BlockMap<V> = HashMap<MetaBlock, V, BuildHasherDefault<BlockHasher>>;

#[derive(Debug)]
struct Slot {
    block: MetaBlock,
    node: Arc<Node>,
    used: bool,
}

impl Slot {
    fn bytes(&self) -> usize {
        self.node.memory_bytes() + OVERHEAD_BYTES
    }
}

/// The cache.
#[derive(Debug)]
pub(crate) struct NodeCache {
    slots: Vec<Slot>,
    places: BlockMap<usize>,
    hand: usize,
    bytes: usize,
    bytes_max: usize,
}

impl Default for NodeCache {
    fn default() -> Self {
        let bytes_max = limit(BYTES_DEFAULT);
        Self { slots: Vec::new(), places: BlockMap::default(), hand: 0, bytes: 0, bytes_max }
    }
}

fn limit(most: ByteCount) -> usize {
    usize::try_from(most.0).unwrap_or(usize::MAX)
}

impl NodeCache {
    /// Keeps at most so many bytes from here on; the node that was asked for last is always kept.
    pub(crate) fn set_limit(&mut self, most: ByteCount) {
        self.bytes_max = limit(most);
        self.make_room(0);
    }

    /// Bytes that are kept.
    pub(crate) fn bytes(&self) -> ByteCount {
        ByteCount(self.bytes as u64)
    }

    /// The node of a block, if it is here.
    pub(crate) fn find(&mut self, block: MetaBlock) -> Option<Arc<Node>> {
        let slot = &mut self.slots[*self.places.get(&block)?];
        slot.used = true;
        Some(Arc::clone(&slot.node))
    }

    /// Keeps a node, perhaps in the place of some that were not asked for lately.
    pub(crate) fn insert(&mut self, block: MetaBlock, mut node: Arc<Node>) {
        if let Some(own) = Arc::get_mut(&mut node) {
            own.trim_memory();
        }
        self.remove(block);
        let slot = Slot { block, node, used: false };
        self.make_room(slot.bytes());
        self.bytes += slot.bytes();
        self.places.insert(block, self.slots.len());
        self.slots.push(slot);
    }

    fn make_room(&mut self, wanted: usize) {
        // A round clears every flag at most once, so this ends.
        while self.bytes + wanted > self.bytes_max && !self.slots.is_empty() {
            // The newest stands at the end of the row, and then where the hand has just been: it comes last.
            if self.hand + 1 >= self.slots.len() {
                self.hand = 0;
            }
            let slot = &mut self.slots[self.hand];
            if !std::mem::take(&mut slot.used) {
                let block = slot.block;
                self.remove(block);
            }
            self.hand += 1;
        }
    }

    /// Forgets a block that is about to be used for something else.
    pub(crate) fn remove(&mut self, block: MetaBlock) {
        if let Some(place) = self.places.remove(&block) {
            self.bytes -= self.slots.swap_remove(place).bytes();
            if let Some(moved) = self.slots.get(place) {
                self.places.insert(moved.block, place);
            }
            if self.hand >= self.slots.len() {
                self.hand = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{NodeCache, OVERHEAD_BYTES};
    use crate::format::Node;
    use crate::units::{ByteCount, MetaBlock};
    use std::sync::Arc;

    fn leaf(entries: u64) -> Arc<Node> {
        let mut node = Node::empty_leaf(8);
        (0..entries).for_each(|key| node.push(key, key));
        Arc::new(node)
    }

    fn assert_consistent(cache: &NodeCache) {
        assert!(cache.slots.iter().enumerate().all(|(at, slot)| cache.places[&slot.block] == at));
        assert_eq!(cache.slots.len(), cache.places.len());
        assert_eq!(
            cache.bytes,
            cache.slots.iter().map(|slot| slot.node.memory_bytes() + OVERHEAD_BYTES).sum::<usize>()
        );
    }

    #[test]
    fn the_cache_is_bounded_and_keeps_what_is_asked_for() {
        let mut cache = NodeCache::default();
        cache.set_limit(ByteCount(100_000));
        let wanted = MetaBlock(3);
        cache.insert(wanted, leaf(252));
        for block in 10..1000 {
            cache.insert(MetaBlock(block), leaf(block % 253));
            assert!(cache.bytes().0 <= 100_000);
            assert!(cache.find(wanted).is_some(), "asked for after every insertion");
        }
        assert!(cache.bytes().0 > 90_000, "room is used");
        assert_consistent(&cache);
        cache.remove(wanted);
        assert!(cache.find(wanted).is_none());
        cache.set_limit(ByteCount(10_000));
        assert!(cache.bytes().0 <= 10_000);
        assert_consistent(&cache);
    }

    #[test]
    fn the_newest_nodes_outlive_the_oldest() {
        let mut cache = NodeCache::default();
        cache.set_limit(ByteCount(100_000));
        for block in 1..1000 {
            cache.insert(MetaBlock(block), leaf(252));
            for newer in block.saturating_sub(5).max(1)..=block {
                // Looked for without asking for it, which would keep it.
                assert!(cache.places.contains_key(&MetaBlock(newer)), "{newer} is gone when {block} comes");
            }
        }
        assert_consistent(&cache);
    }

    #[test]
    fn a_node_that_was_filled_in_a_batch_gives_its_spare_memory_back() {
        let mut cache = NodeCache::default();
        let mut node = Node::empty_leaf(8).emptied(10_000);
        node.push(1, 1u64);
        cache.insert(MetaBlock(1), Arc::new(node));
        assert!(cache.bytes().0 < 300, "{}", cache.bytes());
    }

    #[test]
    fn a_limit_below_one_node_keeps_the_last_one() {
        let mut cache = NodeCache::default();
        cache.set_limit(ByteCount(0));
        for block in 1..10 {
            cache.insert(MetaBlock(block), leaf(9));
            assert!(cache.find(MetaBlock(block)).is_some());
            assert!(cache.find(MetaBlock(block - 1)).is_none());
        }
        assert_consistent(&cache);
    }
}
