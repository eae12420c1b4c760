//! Lays out a new pool, and makes one larger.

use std::sync::Arc;

use crate::device::{BlockDevice, MemoryDevice};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{ENTRIES_PER_BITMAP, Node, SUPERBLOCK, Superblock, TreeKind};
use crate::meta::commit::{Frozen, check_device_size};
use crate::meta::counts::Counts;
use crate::meta::metadata::{FormatOptions, Metadata, OpenMode};
use crate::meta::room::{Demand, Reserve};
use crate::meta::transaction::{Transaction, read_block};
use crate::units::{DATA_BLOCKS_MAX, METADATA_BLOCKS_MAX, METADATA_BLOCKS_MIN};

impl Metadata {
    /// Writes an empty pool onto `device`. Block 0 comes last, so a pool that was not finished is no pool. Errors:
    /// `Invalid` (sizes), `AlreadyExists` if block 0 is not zero, `OutOfMetadataSpace`, `Io`.
    pub fn format(device: &dyn BlockDevice, options: &FormatOptions) -> Result<()> {
        let doing = "format the metadata";
        let (data_blocks, metadata_blocks) = (options.data_blocks, options.metadata_blocks);
        if !(METADATA_BLOCKS_MIN..=METADATA_BLOCKS_MAX).contains(&metadata_blocks) {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "{doing}: {metadata_blocks} metadata blocks are not between {METADATA_BLOCKS_MIN} and \
                     {METADATA_BLOCKS_MAX}"
                ),
            ));
        }
        if data_blocks > DATA_BLOCKS_MAX || data_blocks.div_ceil(ENTRIES_PER_BITMAP) > metadata_blocks / 2 {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("{doing}: {data_blocks} data blocks are too many for {metadata_blocks} metadata blocks"),
            ));
        }
        check_device_size(device, metadata_blocks, doing)?;
        if read_block(device, SUPERBLOCK)?.iter().any(|&byte| byte != 0) {
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                format!("{doing}: block 0 is not zero, so there may be a pool already"),
            ));
        }
        Self::lay_out(options).and_then(|frozen| frozen.write(device)).map_err(|e| e.doing(doing))
    }

    /// The first generation of a pool: everything that an empty one has.
    fn lay_out(options: &FormatOptions) -> Result<Frozen> {
        // A pool that is being made has nothing to read: an empty device stands in for the one below.
        let nothing = Arc::new(MemoryDevice::new(0));
        let mut metadata_counts = Counts::new("metadata", 0);
        metadata_counts.grow(options.metadata_blocks);
        let mut data_counts = Counts::new("data", 0);
        data_counts.grow(options.data_blocks);
        let mut transaction = Transaction::new(nothing, metadata_counts, data_counts);
        let first = transaction.allocate()?;
        debug_assert_eq!(first, SUPERBLOCK, "the first block of a new map is block 0");
        let superblock = Superblock::new(options.identity, options.block_size.sectors(), options.metadata_blocks);
        let mut metadata = Self::assemble(superblock, options.block_size, OpenMode::ReadWrite, transaction);
        let mut leaf = |kind: TreeKind| metadata.transaction.new_node(Node::empty_leaf(kind.value_size()));
        metadata.superblock.metadata_map.ref_count_root = leaf(TreeKind::MetadataOverflow)?.0;
        metadata.superblock.data_map.bitmap_root = leaf(TreeKind::DataIndex)?.0;
        metadata.superblock.data_map.ref_count_root = leaf(TreeKind::DataOverflow)?.0;
        metadata.superblock.mapping_root = leaf(TreeKind::Top)?.0;
        metadata.superblock.details_root = leaf(TreeKind::Details)?.0;
        metadata.changed = true;
        Ok(metadata.freeze()?.expect("a new pool has something to write"))
    }

    /// Grows the data space to `blocks` in all. Errors: `Invalid` if that is fewer, `OutOfMetadataSpace`,
    /// `ReadOnly`.
    pub fn grow_data(&mut self, blocks: u64) -> Result<()> {
        let now = self.transaction.data.total();
        let doing = format!("grow the data space from {now} to {blocks} blocks");
        self.check_growth(&doing, now, blocks, DATA_BLOCKS_MAX)?;
        if blocks == now {
            return Ok(());
        }
        let bitmaps = blocks.div_ceil(ENTRIES_PER_BITMAP) - now.div_ceil(ENTRIES_PER_BITMAP);
        self.check_room(&doing, &Demand { new_bitmaps: bitmaps + 1, ..Demand::default() }, Reserve::Keep)?;
        self.alter(|this| {
            this.transaction.data.grow(blocks);
            Ok(())
        })
    }

    /// Grows the metadata space to `blocks` in all; the device is already that large. Errors: `Invalid` if that is
    /// fewer, or more than the device or the format holds, `ReadOnly`.
    pub fn grow_metadata(&mut self, blocks: u64) -> Result<()> {
        let now = self.transaction.metadata.total();
        let doing = format!("grow the metadata space from {now} to {blocks} blocks");
        self.check_growth(&doing, now, blocks, METADATA_BLOCKS_MAX)?;
        check_device_size(self.transaction.device(), blocks, &doing)?;
        if blocks == now {
            return Ok(());
        }
        // No room is asked for: the new blocks themselves are available at once, also to the bitmaps they need.
        self.alter(|this| {
            this.transaction.metadata.grow(blocks);
            Ok(())
        })
    }

    fn check_growth(&self, doing: &str, now: u64, wanted: u64, limit: u64) -> Result<()> {
        self.check_writable(doing)?;
        if wanted < now || wanted > limit {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("{doing}: a pool never shrinks, and the format ends at {limit}"),
            ));
        }
        Ok(())
    }
}
