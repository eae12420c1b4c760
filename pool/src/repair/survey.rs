//! Reads damaged metadata as far as it can be read: blocks with one flipped bit as they were, the rest not at all.

use std::cell::RefCell;
use std::collections::BTreeSet;

use crate::check::Reader;
use crate::device::BlockDevice;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{
    Bitmap, Block, ENTRIES_PER_BITMAP, INDEX_ENTRIES_MAX, IndexEntry, Node, Superblock, TreeKind, Value, correct,
    decode_index,
};
use crate::units::{METADATA_BLOCK_SIZE, METADATA_BLOCKS_MAX, MetaBlock};

/// What a space map says of each block: its entry 0 …= 3, or that nobody knows.
pub(in crate::repair) const UNKNOWN: u8 = u8::MAX;

/// The device, and what was taken back on it.
pub(in crate::repair) struct Survey<'a> {
    reader: Reader<'a>,
    blocks: u64,
    /// Blocks of which a bit was taken back.
    corrected: RefCell<BTreeSet<MetaBlock>>,
    /// Blocks that were needed and could not be read.
    unreadable: RefCell<BTreeSet<MetaBlock>>,
}

/// The entries of a tree that could be read, and the keys of which nothing is known.
#[derive(Debug)]
pub(in crate::repair) struct Sighted<V> {
    pub(in crate::repair) entries: Vec<(u64, V)>,
    pub(in crate::repair) lost: Vec<std::ops::Range<u64>>,
    pub(in crate::repair) seen: Vec<MetaBlock>,
}

impl<'a> Survey<'a> {
    /// A survey of all of a device that can be metadata.
    pub(in crate::repair) fn new(device: &'a dyn BlockDevice) -> Self {
        let blocks = METADATA_BLOCKS_MAX.min(device.size() / METADATA_BLOCK_SIZE as u64);
        Self {
            reader: Reader::new(device, blocks),
            blocks,
            corrected: RefCell::default(),
            unreadable: RefCell::default(),
        }
    }

    /// Metadata blocks that there can be.
    pub(in crate::repair) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Blocks of which a bit was taken back, ascending.
    pub(in crate::repair) fn corrected(&self) -> Vec<MetaBlock> {
        self.corrected.borrow().iter().copied().collect()
    }

    /// Blocks that were needed and could not be read, ascending.
    pub(in crate::repair) fn unreadable(&self) -> Vec<MetaBlock> {
        self.unreadable.borrow().iter().copied().collect()
    }

    /// One block, decoded; if that fails, decoded with a flipped bit taken back.
    pub(in crate::repair) fn read<T>(&self, number: MetaBlock, decode: impl Fn(&Block) -> Result<T>) -> Result<T> {
        let first = self.reader.block(number).and_then(|block| {
            decode(&block).or_else(|error| match correct(number, &block) {
                Some((_, fixed)) => {
                    let value = decode(&fixed)?;
                    self.corrected.borrow_mut().insert(number);
                    Ok(value)
                }
                None => Err(error),
            })
        });
        first.inspect_err(|_| {
            self.unreadable.borrow_mut().insert(number);
        })
    }

    /// A block as it is, for a search: one that cannot be read is none.
    pub(in crate::repair) fn raw(&self, number: MetaBlock) -> Option<Box<Block>> {
        self.reader.block(number).ok()
    }

    /// A sound node of any tree, for a search: nothing is taken back and nothing is told of others.
    pub(in crate::repair) fn peek(&self, number: MetaBlock) -> Option<Node> {
        Node::decode(number, &*self.raw(number)?).ok()
    }

    /// A node of a tree of that kind.
    pub(in crate::repair) fn node(&self, kind: TreeKind, number: MetaBlock) -> Result<Node> {
        if number.0 == 0 {
            return Err(Error::new(ErrorKind::Corrupt, "metadata block 0 is no node"));
        }
        self.read(number, |block| {
            let node = Node::decode(number, block)?;
            if !node.is_internal() && node.value_size() != kind.value_size() {
                let what = format!("metadata block {number}: it is no leaf of the {}", kind.name());
                return Err(Error::new(ErrorKind::Corrupt, what));
            }
            Ok(node)
        })
    }

    /// A superblock.
    pub(in crate::repair) fn superblock(&self, number: MetaBlock) -> Result<Superblock> {
        self.read(number, |block| Superblock::decode(number, block))
    }

    /// The entries of a small tree, all at once.
    pub(in crate::repair) fn entries<V: Value>(&self, kind: TreeKind, root: u64) -> Sighted<V> {
        let mut sighted = Sighted { entries: Vec::new(), lost: Vec::new(), seen: Vec::new() };
        self.below(kind, MetaBlock(root), 0..u64::MAX, 0, &mut sighted);
        sighted
    }

    /// The block behind the last one that a mapping tree maps, down its right edge; 0 where nothing is mapped, or
    /// nothing can be read.
    pub(in crate::repair) fn last_mapped(&self, root: u64) -> u64 {
        let mut block = MetaBlock(root);
        for _ in 0..TreeKind::DEPTH_MAX {
            let Ok(node) = self.node(TreeKind::Mapping, block) else { return 0 };
            match node.len() {
                0 => return 0,
                len if node.is_internal() => block = node.child(len - 1),
                len => return node.keys()[len - 1].saturating_add(1),
            }
        }
        0
    }

    fn below<V: Value>(
        &self,
        kind: TreeKind,
        block: MetaBlock,
        bounds: std::ops::Range<u64>,
        depth: usize,
        into: &mut Sighted<V>,
    ) {
        // A child's keys lie within its parent's: a circle ends, because none is entered with the same keys twice.
        let node = match self.node(kind, block) {
            Ok(node) if depth < TreeKind::DEPTH_MAX && fits(&node, &bounds) => node,
            _ => return into.lost.push(bounds),
        };
        into.seen.push(block);
        for index in 0..node.len() {
            let start = node.keys()[index];
            if node.is_internal() {
                let end = node.keys().get(index + 1).copied().unwrap_or(bounds.end);
                self.below(kind, node.child(index), start..end, depth + 1, into);
            } else {
                into.entries.push((start, node.value(index)));
            }
        }
    }

    /// What the metadata space map says of each block; what cannot be read is unknown.
    pub(in crate::repair) fn metadata_counts(&self, superblock: &Superblock) -> Vec<u8> {
        let map = superblock.metadata_map;
        let index = MetaBlock(map.bitmap_root);
        let entries = self.read(index, |block| decode_index(index, block, INDEX_ENTRIES_MAX)).unwrap_or_default();
        self.counts(map.nr_blocks, entries.into_iter().enumerate().map(|(at, entry)| (at as u64, entry)))
    }

    /// The same of the data space map.
    pub(in crate::repair) fn data_counts(&self, superblock: &Superblock) -> Vec<u8> {
        let map = superblock.data_map;
        let sighted = self.entries::<IndexEntry>(TreeKind::DataIndex, map.bitmap_root);
        self.counts(map.nr_blocks, sighted.entries.into_iter())
    }

    fn counts(&self, blocks: u64, entries: impl Iterator<Item = (u64, IndexEntry)>) -> Vec<u8> {
        let len = usize::try_from(blocks).unwrap_or(0);
        let per = usize::try_from(ENTRIES_PER_BITMAP).expect("16,320");
        let mut counts = vec![UNKNOWN; len];
        for (number, entry) in entries {
            let Some(start) = usize::try_from(number).ok().and_then(|n| n.checked_mul(per)).filter(|&at| at < len)
            else {
                continue;
            };
            let block = MetaBlock(entry.block);
            if let Ok(bitmap) = self.read(block, |bytes| Bitmap::decode(block, bytes)) {
                let end = (start + per).min(len);
                counts[start..end].copy_from_slice(&bitmap.entries[..end - start]);
            }
        }
        counts
    }
}

/// True if the node's keys lie within the bounds that its parent leaves to it.
pub(in crate::repair) fn fits(node: &Node, bounds: &std::ops::Range<u64>) -> bool {
    node.keys().first().is_none_or(|key| *key >= bounds.start) && node.keys().last().is_none_or(|key| *key < bounds.end)
}
