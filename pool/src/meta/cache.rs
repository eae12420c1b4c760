//! Decoded nodes that are equal to the disk, kept as long as there is room.
//!
//! Nodes of the running and of the frozen generation are not here: they are not on disk yet and must not be
//! dropped. Replacement is second chance: a hit costs a hash look-up and a flag, no list is relinked.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use crate::format::Node;
use crate::units::MetaBlock;

/// Nodes kept: 4096 of about 4 KiB are 16 MiB, and hold the leaves of about a million mappings.
const CAPACITY: usize = 4096;

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

/// The cache.
#[derive(Debug, Default)]
pub(crate) struct NodeCache {
    slots: Vec<Slot>,
    places: BlockMap<usize>,
    hand: usize,
}

impl NodeCache {
    /// The node of a block, if it is here.
    pub(crate) fn find(&mut self, block: MetaBlock) -> Option<Arc<Node>> {
        let slot = &mut self.slots[*self.places.get(&block)?];
        slot.used = true;
        Some(Arc::clone(&slot.node))
    }

    /// Keeps a node, perhaps in the place of one that was not asked for lately.
    pub(crate) fn insert(&mut self, block: MetaBlock, node: Arc<Node>) {
        if let Some(&place) = self.places.get(&block) {
            self.slots[place].node = node;
            return;
        }
        let slot = Slot { block, node, used: false };
        if self.slots.len() < CAPACITY {
            self.places.insert(block, self.slots.len());
            self.slots.push(slot);
            return;
        }
        // Ends within two rounds: the first clears every flag.
        while std::mem::take(&mut self.slots[self.hand].used) {
            self.hand = (self.hand + 1) % CAPACITY;
        }
        self.places.remove(&self.slots[self.hand].block);
        self.places.insert(block, self.hand);
        self.slots[self.hand] = slot;
        self.hand = (self.hand + 1) % CAPACITY;
    }

    /// Forgets a block that is about to be used for something else.
    pub(crate) fn remove(&mut self, block: MetaBlock) {
        if let Some(place) = self.places.remove(&block) {
            self.slots.swap_remove(place);
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
    use super::{CAPACITY, NodeCache};
    use crate::format::Node;
    use crate::units::MetaBlock;
    use std::sync::Arc;

    #[test]
    fn the_cache_is_bounded_and_keeps_what_is_asked_for() {
        let mut cache = NodeCache::default();
        let node = Arc::new(Node::empty_leaf(8));
        let wanted = MetaBlock(3);
        cache.insert(wanted, Arc::clone(&node));
        for block in 10..10 + 3 * CAPACITY as u64 {
            cache.insert(MetaBlock(block), Arc::clone(&node));
            assert!(cache.find(wanted).is_some(), "asked for after every insertion");
        }
        assert_eq!((cache.slots.len(), cache.places.len()), (CAPACITY, CAPACITY));
        cache.remove(wanted);
        assert!(cache.find(wanted).is_none());
        assert!(cache.slots.iter().enumerate().all(|(at, slot)| cache.places[&slot.block] == at));
    }
}
