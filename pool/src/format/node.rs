//! A btree node: keys ascending, and with each key a child or a value.
//!
//! Nodes are decoded once and used as two vectors. The header's own `max_entries` is kept, because a node of
//! another writer may have a smaller one and is judged by it.

use std::ops::Range;

use crate::error::{Error, ErrorKind, Result};
use crate::format::bytes::{Block, put_u32, put_u64, u32_at, u64_at, zeroed_block};
use crate::format::checksum::{BlockKind, seal, verify};
use crate::units::{METADATA_BLOCK_SIZE, MetaBlock};

const HEADER: usize = 32;
const FLAG_INTERNAL: u32 = 1;
const FLAG_LEAF: u32 = 2;
/// Bytes of a value in an internal node: the location of a child.
const CHILD_SIZE: usize = 8;

/// A fixed-size value of a leaf.
pub(crate) trait Value: Copy {
    /// Bytes on disk.
    const SIZE: usize;
    /// From exactly `SIZE` bytes.
    fn load(bytes: &[u8]) -> Self;
    /// Into exactly `SIZE` bytes.
    fn store(self, bytes: &mut [u8]);
}

impl Value for u64 {
    const SIZE: usize = 8;

    fn load(bytes: &[u8]) -> Self {
        u64_at(bytes, 0)
    }

    fn store(self, bytes: &mut [u8]) {
        put_u64(bytes, 0, self);
    }
}

impl Value for u32 {
    const SIZE: usize = 4;

    fn load(bytes: &[u8]) -> Self {
        u32_at(bytes, 0)
    }

    fn store(self, bytes: &mut [u8]) {
        put_u32(bytes, 0, self);
    }
}

/// Most entries of a node whose values have `value_size` bytes: what fits, rounded down to a multiple of three.
pub(crate) const fn entries_max(value_size: usize) -> usize {
    (METADATA_BLOCK_SIZE - HEADER) / (8 + value_size) / 3 * 3
}

/// A decoded node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    internal: bool,
    max_entries: usize,
    value_size: usize,
    keys: Vec<u64>,
    values: Vec<u8>,
}

impl Node {
    /// A leaf without entries.
    pub(crate) fn empty_leaf(value_size: usize) -> Self {
        Self { internal: false, max_entries: entries_max(value_size), value_size, keys: Vec::new(), values: Vec::new() }
    }

    /// An internal node without children, to be filled at once.
    pub(crate) fn empty_internal() -> Self {
        Self { internal: true, ..Self::empty_leaf(CHILD_SIZE) }
    }

    /// Errors with `Corrupt` (block and field) unless checksum, header and key order are sound.
    pub(crate) fn decode(number: MetaBlock, block: &Block) -> Result<Self> {
        verify(BlockKind::Node, number, block)?;
        let corrupt = |what: String| Err(Error::new(ErrorKind::Corrupt, format!("metadata block {number}: {what}")));
        let internal = match u32_at(block, 4) {
            FLAG_INTERNAL => true,
            FLAG_LEAF => false,
            other => return corrupt(format!("flags of the btree node are {other:#x}, neither internal nor leaf")),
        };
        let field = |at: usize| usize::try_from(u32_at(block, at)).expect("usize has at least 32 bits");
        let (len, max_entries, value_size) = (field(16), field(20), field(24));
        let size = value_size
            .checked_add(8)
            .and_then(|entry| entry.checked_mul(max_entries))
            .and_then(|entries| entries.checked_add(HEADER));
        if value_size == 0 || max_entries == 0 || size.is_none_or(|size| size > METADATA_BLOCK_SIZE) {
            return corrupt(format!("max_entries {max_entries} of value_size {value_size} do not fit a btree node"));
        }
        if len > max_entries {
            return corrupt(format!("nr_entries {len} of the btree node are above max_entries {max_entries}"));
        }
        if internal && (value_size != CHILD_SIZE || len == 0) {
            return corrupt(format!("an internal btree node has value_size {value_size} and nr_entries {len}"));
        }
        let keys: Vec<u64> = block[HEADER..HEADER + 8 * len].chunks_exact(8).map(u64::load).collect();
        if let Some(at) = keys.windows(2).position(|pair| pair[0] >= pair[1]) {
            return corrupt(format!("keys {} and {} of the btree node are out of order", keys[at], keys[at + 1]));
        }
        let values_at = HEADER + 8 * max_entries;
        let values = block[values_at..values_at + value_size * len].to_vec();
        Ok(Self { internal, max_entries, value_size, keys, values })
    }

    /// The sealed block; unused slots are zero.
    pub(crate) fn encode(&self, number: MetaBlock) -> Box<Block> {
        let mut block = zeroed_block();
        let field = |value: usize| u32::try_from(value).expect("bounded by the size of a block");
        put_u32(&mut block[..], 4, if self.internal { FLAG_INTERNAL } else { FLAG_LEAF });
        put_u32(&mut block[..], 16, field(self.keys.len()));
        put_u32(&mut block[..], 20, field(self.max_entries));
        put_u32(&mut block[..], 24, field(self.value_size));
        for (bytes, key) in block[HEADER..].chunks_exact_mut(8).zip(&self.keys) {
            bytes.copy_from_slice(&key.to_le_bytes());
        }
        let values_at = HEADER + 8 * self.max_entries;
        block[values_at..values_at + self.values.len()].copy_from_slice(&self.values);
        seal(BlockKind::Node, number, &mut block);
        block
    }

    /// True if the values are locations of children.
    pub(crate) fn is_internal(&self) -> bool {
        self.internal
    }

    /// Bytes of a value.
    pub(crate) fn value_size(&self) -> usize {
        self.value_size
    }

    /// Entries in use.
    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Entries that fit, by the node's own header.
    pub(crate) fn max_entries(&self) -> usize {
        self.max_entries
    }

    /// Fewest entries unless the node is the root of its tree.
    pub(crate) fn min_entries(&self) -> usize {
        self.max_entries / 3
    }

    /// True if a node that is no root may not stay like this.
    pub(crate) fn is_underfull(&self) -> bool {
        self.len() < self.min_entries()
    }

    /// All keys.
    pub(crate) fn keys(&self) -> &[u64] {
        &self.keys
    }

    /// The largest entry whose key is at most `key`.
    pub(crate) fn lower_bound(&self, key: u64) -> Option<usize> {
        self.keys.partition_point(|&k| k <= key).checked_sub(1)
    }

    /// The entries whose keys lie in `keys`.
    pub(crate) fn span(&self, keys: &Range<u64>) -> Range<usize> {
        self.keys.partition_point(|&k| k < keys.start)..self.keys.partition_point(|&k| k < keys.end)
    }

    /// Value `index`; `V` must be what the tree holds, which its reader has checked.
    pub(crate) fn value<V: Value>(&self, index: usize) -> V {
        debug_assert_eq!(V::SIZE, self.value_size, "the reader of a node checks its value size");
        V::load(&self.values[index * V::SIZE..(index + 1) * V::SIZE])
    }

    /// Location of child `index` of an internal node.
    pub(crate) fn child(&self, index: usize) -> MetaBlock {
        MetaBlock(self.value(index))
    }

    /// Locations of all children of an internal node, or the values of a leaf of u64 values.
    pub(crate) fn words(&self) -> impl Iterator<Item = u64> + '_ {
        self.values.chunks_exact(8).map(u64::load)
    }

    /// Replaces value `index`.
    pub(crate) fn set_value<V: Value>(&mut self, index: usize, value: V) {
        value.store(&mut self.values[index * V::SIZE..(index + 1) * V::SIZE]);
    }

    /// Replaces key `index`; the caller keeps the order.
    pub(crate) fn set_key(&mut self, index: usize, key: u64) {
        self.keys[index] = key;
    }

    /// Appends an entry; the caller keeps the order and, in the end, the limit.
    pub(crate) fn push<V: Value>(&mut self, key: u64, value: V) {
        self.keys.push(key);
        let at = self.values.len();
        self.values.resize(at + V::SIZE, 0);
        value.store(&mut self.values[at..]);
    }

    /// Drops the entries of `range`.
    pub(crate) fn remove(&mut self, range: Range<usize>) {
        self.values.drain(range.start * self.value_size..range.end * self.value_size);
        self.keys.drain(range);
    }

    /// Moves the entries from `at` on into a new node of the same kind.
    pub(crate) fn split_off(&mut self, at: usize) -> Self {
        Self { keys: self.keys.split_off(at), values: self.values.split_off(at * self.value_size), ..*self }
    }

    /// Appends all entries of `other`, a right neighbour of the same kind.
    pub(crate) fn append(&mut self, other: &Self) {
        self.keys.extend_from_slice(&other.keys);
        self.values.extend_from_slice(&other.values);
    }

    /// A node of the same kind without entries, with room for `capacity` of them.
    pub(crate) fn emptied(&self, capacity: usize) -> Self {
        Self { keys: Vec::with_capacity(capacity), values: Vec::with_capacity(capacity * self.value_size), ..*self }
    }

    /// Appends a run of entries of another node of the same kind.
    pub(crate) fn extend(&mut self, other: &Self, range: Range<usize>) {
        self.values.extend_from_slice(&other.values[range.start * self.value_size..range.end * self.value_size]);
        self.keys.extend_from_slice(&other.keys[range]);
    }

    /// Bytes that the node takes in memory.
    pub(crate) fn memory_bytes(&self) -> usize {
        size_of::<Self>() + 8 * self.keys.capacity() + self.values.capacity()
    }

    /// Gives back the room that is left of a batch of entries, if it is worth the copy.
    pub(crate) fn trim_memory(&mut self) {
        if self.keys.capacity() - self.keys.len() > self.keys.len() / 8 {
            self.keys.shrink_to_fit();
            self.values.shrink_to_fit();
        }
    }

    /// Gives the node the header that we write: the most entries that fit.
    pub(crate) fn widen(&mut self) {
        self.max_entries = entries_max(self.value_size);
    }
}

#[cfg(test)]
mod tests {
    use super::{Node, entries_max};
    use crate::format::bytes::{put_u32, put_u64, zeroed_block};
    use crate::format::checksum::{BlockKind, seal};
    use crate::format::details::DeviceDetails;
    use crate::format::mapping::Mapping;
    use crate::units::{DataBlock, MetaBlock};

    #[test]
    fn limits_are_those_of_the_format() {
        assert_eq!([8, 4, 16, 24].map(entries_max), [252, 336, 168, 126]);
    }

    #[test]
    fn the_bottom_leaf_of_the_worked_example_is_met_byte_for_byte() {
        let mut leaf = Node::empty_leaf(8);
        for (key, block, time) in [(0, 0, 0), (1, 9, 1), (2, 10, 1), (3, 3, 0)] {
            leaf.push(key, Mapping { block: DataBlock(block), time }.pack());
        }
        let block = leaf.encode(MetaBlock(38));
        assert_eq!(block[4..8], [2, 0, 0, 0]);
        assert_eq!(block[8..16], [38, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(block[16..28], [4, 0, 0, 0, 0xfc, 0, 0, 0, 8, 0, 0, 0]);
        assert_eq!(block[0x800..0x810], [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 9, 0, 0, 0, 0]);
        assert_eq!(Node::decode(MetaBlock(38), &block).unwrap(), leaf);
    }

    #[test]
    fn the_values_of_a_details_leaf_start_behind_room_for_126_keys() {
        let mut leaf = Node::empty_leaf(24);
        leaf.push(0, DeviceDetails { mapped_blocks: 9, transaction_id: 0, creation_time: 0, snapshotted_time: 1 });
        let block = leaf.encode(MetaBlock(40));
        assert_eq!(block[1040], 9);
        assert_eq!(block[1040 + 20], 1);
    }

    #[test]
    fn hostile_headers_are_refused() {
        let sealed = |change: &dyn Fn(&mut [u8])| {
            let mut leaf = Node::empty_leaf(8);
            leaf.push(1, 1u64);
            leaf.push(2, 2u64);
            let mut block = leaf.encode(MetaBlock(7));
            change(&mut block[..]);
            seal(BlockKind::Node, MetaBlock(7), &mut block);
            Node::decode(MetaBlock(7), &block)
        };
        assert!(sealed(&|_| ()).is_ok());
        assert!(sealed(&|b| put_u32(b, 4, 3)).is_err());
        assert!(sealed(&|b| put_u32(b, 16, 253)).is_err());
        assert!(sealed(&|b| put_u32(b, 20, u32::MAX)).is_err());
        assert!(sealed(&|b| put_u32(b, 24, u32::MAX)).is_err());
        assert!(sealed(&|b| put_u32(b, 24, 0)).is_err());
        assert!(sealed(&|b| put_u64(b, 40, 1)).is_err(), "equal keys");
        assert!(
            sealed(&|b| {
                put_u32(b, 4, 1);
                put_u32(b, 16, 0);
            })
            .is_err(),
            "an internal node without children"
        );
        assert!(Node::decode(MetaBlock(7), &zeroed_block()).is_err());
    }

    #[test]
    fn a_smaller_max_entries_of_another_writer_is_kept() {
        let mut block = zeroed_block();
        put_u32(&mut block[..], 4, 2);
        put_u32(&mut block[..], 16, 1);
        put_u32(&mut block[..], 20, 249);
        put_u32(&mut block[..], 24, 8);
        put_u64(&mut block[..], 32, 5);
        put_u64(&mut block[..], 32 + 8 * 249, 77);
        seal(BlockKind::Node, MetaBlock(3), &mut block);
        let node = Node::decode(MetaBlock(3), &block).unwrap();
        assert_eq!((node.len(), node.max_entries(), node.min_entries(), node.value::<u64>(0)), (1, 249, 83, 77));
        assert_eq!(node.encode(MetaBlock(3)), block);
    }
}
