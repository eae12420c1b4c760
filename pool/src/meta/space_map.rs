//! Brings both space maps on disk up to the counts in memory, as part of closing a generation.
//!
//! The metadata map describes itself: writing it moves its own blocks, which changes counts. With the counts in
//! memory this ends by itself. First everything else that allocates metadata is finished. Then the overflow tree is
//! brought up to date; its nodes have counts of 0 and 1 only, so that makes no new overflow work. Then the index
//! block moves, and last every bitmap that covers a changed count: each moves at most once, so the loop ends, and
//! only when no count changes any more are the bitmaps filled in.

use crate::error::Result;
use crate::format::{Bitmap, Block, IndexEntry, OVERFLOW, TreeKind, encode_index};
use crate::meta::btree::{insert, lookup, remove};
use crate::meta::metadata::Metadata;
use crate::units::MetaBlock;

/// A sealed block that is no node, and where it goes.
pub(in crate::meta) type SealedBlock = (MetaBlock, Box<Block>);

impl Metadata {
    /// Writes changed data counts into new bitmaps, the index tree and the overflow tree.
    pub(in crate::meta) fn write_data_map(&mut self, sealed: &mut Vec<SealedBlock>) -> Result<()> {
        let changes = self.transaction.data.take_overflow_changes();
        let root = MetaBlock(self.superblock.data_map.ref_count_root);
        self.superblock.data_map.ref_count_root = self.write_overflow(TreeKind::DataOverflow, root, &changes)?.0;

        self.data_index.resize(self.transaction.data.bitmaps(), IndexEntry::default());
        let mut entries = Vec::new();
        for bitmap in 0..self.data_index.len() {
            if !self.transaction.data.is_touched(bitmap) {
                continue;
            }
            let location = self.transaction.allocate()?;
            let old = self.data_index[bitmap].block;
            if old != 0 {
                self.transaction.metadata.dec(old)?;
            }
            let (counts, nr_free, none_free_before) = self.transaction.data.bitmap(bitmap);
            sealed.push((location, Bitmap::encode(location, counts)));
            let entry = IndexEntry { block: location.0, nr_free, none_free_before };
            self.data_index[bitmap] = entry;
            entries.push((bitmap as u64, entry));
        }
        if !entries.is_empty() {
            let root = MetaBlock(self.superblock.data_map.bitmap_root);
            let inserted = insert(&mut self.transaction, TreeKind::DataIndex, root, &entries)?;
            self.superblock.data_map.bitmap_root = inserted.root.0;
        }
        self.superblock.data_map.nr_blocks = self.transaction.data.total();
        self.superblock.data_map.nr_allocated = self.transaction.data.used();
        Ok(())
    }

    /// Writes changed metadata counts, those that this itself changes included. Nothing may be allocated after it.
    pub(in crate::meta) fn write_metadata_map(&mut self, sealed: &mut Vec<SealedBlock>) -> Result<()> {
        loop {
            let changes = self.transaction.metadata.take_overflow_changes();
            if changes.is_empty() {
                break;
            }
            let root = MetaBlock(self.superblock.metadata_map.ref_count_root);
            let root = self.write_overflow(TreeKind::MetadataOverflow, root, &changes)?;
            self.superblock.metadata_map.ref_count_root = root.0;
        }

        let index_block = self.transaction.allocate()?;
        let old = self.superblock.metadata_map.bitmap_root;
        if old != 0 {
            self.transaction.metadata.dec(old)?;
        }
        let mut moved = vec![false; self.transaction.metadata.bitmaps()];
        self.metadata_index.resize(moved.len(), IndexEntry::default());
        while let Some(bitmap) = (0..moved.len()).find(|&b| self.transaction.metadata.is_touched(b) && !moved[b]) {
            let location = self.transaction.allocate()?;
            let old = std::mem::replace(&mut self.metadata_index[bitmap].block, location.0);
            if old != 0 {
                self.transaction.metadata.dec(old)?;
            }
            moved[bitmap] = true;
        }
        for bitmap in (0..moved.len()).filter(|&b| moved[b]) {
            let location = MetaBlock(self.metadata_index[bitmap].block);
            let (counts, nr_free, none_free_before) = self.transaction.metadata.bitmap(bitmap);
            sealed.push((location, Bitmap::encode(location, counts)));
            self.metadata_index[bitmap] = IndexEntry { block: location.0, nr_free, none_free_before };
        }
        self.sequence = self.sequence.wrapping_add(1);
        sealed.push((index_block, encode_index(index_block, &self.metadata_index, self.sequence)));
        self.superblock.metadata_map.bitmap_root = index_block.0;
        self.superblock.metadata_map.nr_blocks = self.transaction.metadata.total();
        self.superblock.metadata_map.nr_allocated = self.transaction.metadata.used();
        Ok(())
    }

    /// Makes an overflow tree hold the counts of `changes` that are three or more, and none of the others.
    fn write_overflow(&mut self, kind: TreeKind, mut root: MetaBlock, changes: &[(u64, u32)]) -> Result<MetaBlock> {
        let mut kept = Vec::new();
        for &(block, count) in changes {
            let before = lookup::<u32>(&self.transaction, kind, root, block)?;
            if count < u32::from(OVERFLOW) {
                if before.is_some() {
                    root = remove(&mut self.transaction, kind, root, block..block + 1)?.root;
                }
            } else if before != Some(count) {
                kept.push((block, count));
            }
        }
        if !kept.is_empty() {
            root = insert(&mut self.transaction, kind, root, &kept)?.root;
        }
        Ok(root)
    }
}
