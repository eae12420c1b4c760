//! Lays metadata out anew on an empty device: trees from the leaves up, then both space maps, block 0 last.
//!
//! Nothing is read and nothing is overwritten, so there is no transaction: until block 0 is written the device holds
//! no pool, and once it is, a whole one. A node that would be equal to one that is there is that one: devices that
//! had nodes in common have them in common again, and every count follows from who points to whom.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use crate::check::Tally;
use crate::device::BlockDevice;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{
    Bitmap, Block, DeviceDetails, ENTRIES_PER_BITMAP, IndexEntry, Mapping, Node, OVERFLOW, SUPERBLOCK, SpaceMapRoot,
    Superblock, TreeKind, Value, encode_index, entries_max,
};
use crate::repair::leaves::Leaves;
use crate::units::{DATA_BLOCKS_MAX, METADATA_BLOCK_SIZE, METADATA_BLOCKS_MAX, MetaBlock, TIME_MAX};

/// Bytes of one write, at most.
const WRITE_MAX: usize = 1 << 20;

/// What the superblock of the new metadata says, besides what is found out while it is built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::repair) struct Frame {
    pub(in crate::repair) identity: [u8; 16],
    pub(in crate::repair) flags: u32,
    pub(in crate::repair) version: u32,
    pub(in crate::repair) time: u32,
    pub(in crate::repair) transaction_id: u64,
    pub(in crate::repair) data_block_sectors: u32,
    pub(in crate::repair) data_blocks: u64,
    pub(in crate::repair) metadata_blocks: u64,
    /// Commits before this state; see [`encode_index`].
    pub(in crate::repair) sequence: u32,
}

/// Metadata that is being laid out.
pub(in crate::repair) struct Builder<'a> {
    device: &'a dyn BlockDevice,
    frame: Frame,
    metadata: Tally,
    data: Tally,
    next: u64,
    run: Vec<u8>,
    run_start: u64,
    /// Nodes by what they hold: two keyed hashes, so that nobody can make two contents meet.
    stored: HashMap<(u64, u64), MetaBlock>,
    hashers: (RandomState, RandomState),
    devices: Vec<(u64, MetaBlock, DeviceDetails)>,
}

impl<'a> Builder<'a> {
    /// A builder on `device`, whose content does not matter but for block 0, which must not hold a pool. Errors:
    /// `Invalid` if the frame is no pool's, or larger than the device.
    pub(in crate::repair) fn new(device: &'a dyn BlockDevice, frame: Frame) -> Result<Self> {
        let room = (device.size() / METADATA_BLOCK_SIZE as u64).min(METADATA_BLOCKS_MAX);
        let wrong = if frame.metadata_blocks > room {
            format!("{} metadata blocks do not fit a device of {room}", frame.metadata_blocks)
        } else if frame.data_blocks > DATA_BLOCKS_MAX
            || frame.data_blocks.div_ceil(ENTRIES_PER_BITMAP) >= frame.metadata_blocks
        {
            format!("{} data blocks are too many for {} of metadata", frame.data_blocks, frame.metadata_blocks)
        } else if frame.time > TIME_MAX {
            format!("time {} needs more than 24 bits", frame.time)
        } else {
            String::new()
        };
        if !wrong.is_empty() {
            return Err(Error::new(ErrorKind::Invalid, format!("lay out metadata: {wrong}")));
        }
        let mut metadata = Tally::new(frame.metadata_blocks);
        metadata.add(SUPERBLOCK.0);
        let data = Tally::new(frame.data_blocks);
        Ok(Self {
            device,
            frame,
            metadata,
            data,
            next: 1,
            run: Vec::new(),
            run_start: 1,
            stored: HashMap::new(),
            hashers: (RandomState::new(), RandomState::new()),
            devices: Vec::new(),
        })
    }

    /// Moves the clock on by one, so that no mapping is of its time; at its end it stays. Returns it.
    pub(in crate::repair) fn tick(&mut self) -> u32 {
        self.frame.time = (self.frame.time + 1).min(TIME_MAX);
        self.frame.time
    }

    /// Data blocks of the pool.
    pub(in crate::repair) fn data_blocks(&self) -> u64 {
        self.frame.data_blocks
    }

    /// The device that was added last.
    pub(in crate::repair) fn last_device(&self) -> Option<u64> {
        self.devices.last().map(|device| device.0)
    }

    fn place(&mut self) -> Result<MetaBlock> {
        if self.next >= self.frame.metadata_blocks {
            return Err(Error::new(
                ErrorKind::OutOfMetadataSpace,
                format!(
                    "lay out metadata: it needs more than the {} blocks that there are",
                    self.frame.metadata_blocks
                ),
            ));
        }
        self.next += 1;
        Ok(MetaBlock(self.next - 1))
    }

    /// Writes the block that was placed last, or follows on the one written last.
    fn write(&mut self, block: MetaBlock, bytes: &Block) -> Result<()> {
        let end = self.run_start + (self.run.len() / METADATA_BLOCK_SIZE) as u64;
        if block.0 != end || self.run.len() >= WRITE_MAX {
            self.flush_run()?;
            self.run_start = block.0;
        }
        self.run.extend_from_slice(&bytes[..]);
        Ok(())
    }

    fn flush_run(&mut self) -> Result<()> {
        if !self.run.is_empty() {
            self.device.write_at(&self.run, self.run_start * METADATA_BLOCK_SIZE as u64)?;
            self.run.clear();
        }
        Ok(())
    }

    fn put(&mut self, node: &Node) -> Result<MetaBlock> {
        let block = self.place()?;
        self.write(block, &node.encode(block))?;
        Ok(block)
    }

    /// A node that may be there already; true if it is new, so that its entries are to be counted.
    fn store(&mut self, node: &Node) -> Result<(MetaBlock, bool)> {
        // Block 0 is no node's place: the bytes stand for the content alone.
        let bytes = node.encode(SUPERBLOCK);
        let key = (self.hashers.0.hash_one(&bytes[..]), self.hashers.1.hash_one(&bytes[..]));
        if let Some(&block) = self.stored.get(&key) {
            return Ok((block, false));
        }
        let block = self.put(node)?;
        self.stored.insert(key, block);
        Ok((block, true))
    }

    /// A leaf of a mapping tree. Errors: `Invalid` if a mapping leaves the pool or its time.
    pub(in crate::repair) fn mapping_leaf(&mut self, entries: &[(u64, Mapping)]) -> Result<MetaBlock> {
        let mut node = Node::empty_leaf(TreeKind::Mapping.value_size());
        for &(key, mapping) in entries {
            if mapping.block.0 >= self.frame.data_blocks || mapping.time > self.frame.time {
                return Err(Error::new(
                    ErrorKind::Invalid,
                    format!(
                        "block {key} is mapped to data block {} at time {}; the pool has {} blocks and stands at {}",
                        mapping.block, mapping.time, self.frame.data_blocks, self.frame.time
                    ),
                ));
            }
            node.push(key, mapping.pack());
        }
        let (block, new) = self.store(&node)?;
        if new {
            for (_, mapping) in entries {
                self.data.add(mapping.block.0);
            }
        }
        Ok(block)
    }

    /// An internal node over children that are there.
    pub(in crate::repair) fn internal(&mut self, children: &[(u64, MetaBlock)]) -> Result<MetaBlock> {
        let mut node = Node::empty_internal();
        children.iter().for_each(|&(key, block)| node.push(key, block.0));
        let (block, new) = self.store(&node)?;
        if new {
            children.iter().for_each(|&(_, child)| {
                self.metadata.add(child.0);
            });
        }
        Ok(block)
    }

    /// The levels above a row of leaves; the row itself if it is one.
    pub(in crate::repair) fn above(&mut self, mut row: Vec<(u64, MetaBlock)>) -> Result<MetaBlock> {
        while row.len() > 1 {
            let mut higher = Vec::new();
            for piece in even_pieces(&row, entries_max(8)) {
                higher.push((piece[0].0, self.internal(piece)?));
            }
            row = higher;
        }
        Ok(row.first().expect("a tree has at least one leaf").1)
    }

    /// A whole tree of entries in order, its nodes filled.
    fn tree<V: Value>(&mut self, entries: &[(u64, V)]) -> Result<MetaBlock> {
        let mut row = Vec::new();
        for piece in even_pieces(entries, entries_max(V::SIZE)) {
            let mut leaf = Node::empty_leaf(V::SIZE);
            piece.iter().for_each(|&(key, value)| leaf.push(key, value));
            row.push((piece[0].0, self.put(&leaf)?));
        }
        if row.is_empty() {
            row.push((0, self.put(&Node::empty_leaf(V::SIZE))?));
        }
        self.above(row)
    }

    /// Begins the mapping tree of a device; its entries are then pushed in order.
    pub(in crate::repair) fn leaves(&self) -> Leaves {
        Leaves::default()
    }

    /// Adds a device whose tree is there; ids go up. `mapped_blocks` is believed.
    pub(in crate::repair) fn device(&mut self, id: u64, root: MetaBlock, details: DeviceDetails) {
        debug_assert!(self.devices.last().is_none_or(|last| last.0 < id), "devices come in order");
        self.devices.push((id, root, details));
    }

    /// Writes what is left and makes it a pool. Returns how many metadata blocks it takes.
    pub(in crate::repair) fn finish(mut self) -> Result<u64> {
        let devices = std::mem::take(&mut self.devices);
        let roots: Vec<(u64, u64)> = devices.iter().map(|&(id, root, _)| (id, root.0)).collect();
        let records: Vec<(u64, DeviceDetails)> = devices.into_iter().map(|(id, _, details)| (id, details)).collect();
        roots.iter().for_each(|&(_, root)| {
            self.metadata.add(root);
        });
        let mut superblock =
            Superblock::new(self.frame.identity, self.frame.data_block_sectors, self.frame.metadata_blocks);
        superblock.flags = self.frame.flags;
        superblock.version = self.frame.version;
        superblock.time = self.frame.time;
        superblock.transaction_id = self.frame.transaction_id;
        superblock.mapping_root = self.root(&roots)?;
        superblock.details_root = self.root(&records)?;
        superblock.data_map = self.data_map()?;
        superblock.metadata_map = self.metadata_map()?;
        self.flush_run()?;
        self.device.flush()?;
        self.device.write_at(&superblock.encode(SUPERBLOCK)[..], 0)?;
        self.device.flush()?;
        Ok(self.next)
    }

    fn root<V: Value>(&mut self, entries: &[(u64, V)]) -> Result<u64> {
        let root = self.tree(entries)?;
        self.metadata.add(root.0);
        Ok(root.0)
    }

    fn data_map(&mut self) -> Result<SpaceMapRoot> {
        let data = std::mem::replace(&mut self.data, Tally::new(0));
        let mut entries = Vec::new();
        for (number, counts) in data.bitmaps().enumerate() {
            let block = self.place()?;
            self.metadata.add(block.0);
            self.write(block, &Bitmap::encode(block, counts))?;
            entries.push((number as u64, index_entry(block, counts)));
        }
        let bitmap_root = self.root(&entries)?;
        let ref_count_root = self.root(&data.at_least(u32::from(OVERFLOW)))?;
        Ok(SpaceMapRoot { nr_blocks: data.len(), nr_allocated: data.used(), bitmap_root, ref_count_root })
    }

    /// Last of all: it counts its own blocks. They have one owner each, so the overflow tree, which is made first,
    /// does not change by them; then all have their places, and only then are the bitmaps filled in.
    fn metadata_map(&mut self) -> Result<SpaceMapRoot> {
        let ref_count_root = self.root(&self.metadata.at_least(u32::from(OVERFLOW)))?;
        let bitmaps = self.metadata.bitmaps().count();
        let index_block = self.place()?;
        let places: Vec<MetaBlock> = (0..bitmaps).map(|_| self.place()).collect::<Result<_>>()?;
        for block in places.iter().chain([&index_block]) {
            self.metadata.add(block.0);
        }
        let metadata = std::mem::replace(&mut self.metadata, Tally::new(0));
        let mut entries = Vec::new();
        for (counts, &block) in metadata.bitmaps().zip(&places) {
            entries.push(index_entry(block, counts));
        }
        self.write(index_block, &encode_index(index_block, &entries, self.frame.sequence))?;
        for (counts, &block) in metadata.bitmaps().zip(&places) {
            self.write(block, &Bitmap::encode(block, counts))?;
        }
        let (nr_blocks, nr_allocated) = (metadata.len(), metadata.used());
        Ok(SpaceMapRoot { nr_blocks, nr_allocated, bitmap_root: index_block.0, ref_count_root })
    }
}

fn index_entry(block: MetaBlock, counts: &[u8]) -> IndexEntry {
    let used = counts.iter().filter(|&&count| count != 0).count() as u64;
    let first_free = counts.iter().position(|&count| count == 0).unwrap_or(counts.len());
    let small = |value: u64| u32::try_from(value).expect("at most 16,320");
    IndexEntry { block: block.0, nr_free: small(ENTRIES_PER_BITMAP - used), none_free_before: small(first_free as u64) }
}

/// Cuts entries into as few pieces of at most `max` as there can be, even to one entry: none is below a third.
fn even_pieces<T>(entries: &[T], max: usize) -> impl Iterator<Item = &[T]> {
    let count = entries.len().div_ceil(max);
    (0..count).map(move |nr| &entries[entries.len() * nr / count..entries.len() * (nr + 1) / count])
}
