//! Opens a pool that anybody may have written: judges the superblock, loads counts and devices.
//!
//! What other writers are known to keep loosely is recomputed (hints, nr_allocated) or ignored (version, sizes at
//! format time). What would lead the allocator onto live blocks is refused: everything that the superblock or an
//! index names must have a count.

use std::sync::Arc;

use crate::device::BlockDevice;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{
    Bitmap, DeviceDetails, IndexEntry, OVERFLOW, SUPERBLOCK, SpaceMapRoot, Superblock, TreeKind, decode_index,
    index_sequence,
};
use crate::meta::bitset::Bitset;
use crate::meta::btree::{ALL_KEYS, Flow, walk};
use crate::meta::counts::Counts;
use crate::meta::metadata::{Device, Metadata, OpenMode};
use crate::meta::transaction::{Transaction, read_block};
use crate::units::{
    BlockSize, DATA_BLOCKS_MAX, DeviceId, METADATA_BLOCK_SIZE, METADATA_BLOCKS_MAX, MetaBlock, SECTOR_SIZE,
};

fn corrupt(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Corrupt, what)
}

/// The pool on `device`; see [`Metadata::open`].
pub(in crate::meta) fn open(device: Arc<dyn BlockDevice>, mode: OpenMode) -> Result<Metadata> {
    read_pool(device, mode).map_err(|e| e.doing("open the metadata"))
}

/// The pool on `device` at the moment of its held snapshot; see [`Metadata::open_held`].
pub(in crate::meta) fn open_held(device: Arc<dyn BlockDevice>) -> Result<Metadata> {
    let before = read_block(&*device, SUPERBLOCK)?;
    let opened = read_held(&device);
    // Counts that belong together have been read only if nothing was committed meanwhile; and what looks like damage
    // in metadata that somebody changes is none.
    if read_block(&*device, SUPERBLOCK)? != before {
        return Err(moved_on());
    }
    opened.map_err(|e| e.doing("open the metadata at its held snapshot"))
}

fn read_held(device: &Arc<dyn BlockDevice>) -> Result<Metadata> {
    let mut metadata = read_pool(Arc::clone(device), OpenMode::ReadOnly)?;
    let live = &metadata.superblock;
    if live.held_root == 0 {
        return Err(Error::new(ErrorKind::NotFound, "superblock: no metadata snapshot is held"));
    }
    let place = MetaBlock(live.held_root);
    let held = Superblock::decode(place, &*read_block(&**device, place)?)?;
    if (held.mapping_root, held.details_root) != (live.mapping_root, live.details_root) {
        return Err(moved_on());
    }
    // The snapshot's own references are no devices'.
    for root in [held.mapping_root, held.details_root] {
        metadata.transaction.metadata.dec(root)?;
    }
    Ok(metadata)
}

fn moved_on() -> Error {
    Error::new(ErrorKind::InUse, "the pool has moved on from its held snapshot: take a new one")
}

fn read_pool(device: Arc<dyn BlockDevice>, mode: OpenMode) -> Result<Metadata> {
    let superblock = read_superblock(&*device, mode)?;
    let block_size = BlockSize::from_bytes(u64::from(superblock.data_block_sectors) * SECTOR_SIZE)
        .map_err(|e| Error::with_source(ErrorKind::Corrupt, "superblock: data_block_size", e))?;
    check_sizes(&*device, &superblock)?;

    let metadata_map = superblock.metadata_map;
    let empty = Counts::new("data", 0);
    let mut transaction = Transaction::new(Arc::clone(&device), Counts::new("metadata", metadata_map.nr_blocks), empty);
    let (metadata_index, sequence) = load_metadata_counts(&mut transaction, metadata_map)?;
    check_counted(&transaction, &superblock, &metadata_index)?;
    let data_index = load_data_counts(&mut transaction, superblock.data_map)?;

    let mut metadata = Metadata::assemble(superblock, block_size, mode, transaction);
    metadata.metadata_index = metadata_index;
    metadata.sequence = sequence;
    metadata.data_index = data_index;
    load_devices(&mut metadata)?;
    Ok(metadata)
}

fn read_superblock(device: &dyn BlockDevice, mode: OpenMode) -> Result<Superblock> {
    if device.size() < METADATA_BLOCK_SIZE as u64 {
        return Err(Error::new(ErrorKind::NotFound, "the device is smaller than a superblock"));
    }
    let block = read_block(device, SUPERBLOCK)?;
    if block.iter().all(|&byte| byte == 0) {
        return Err(Error::new(ErrorKind::NotFound, "block 0 is all zero: there is no pool yet"));
    }
    let superblock = Superblock::decode(SUPERBLOCK, &block)?;
    let unsupported = |field: &str, flags: u32| {
        Err(Error::new(ErrorKind::Unsupported, format!("superblock: {field} {flags:#x} are not known to this build")))
    };
    if superblock.incompat_flags != 0 {
        return unsupported("incompat_flags", superblock.incompat_flags);
    }
    if mode == OpenMode::ReadWrite {
        if superblock.foreign_compat_ro() != 0 {
            return unsupported("compat_ro_flags", superblock.foreign_compat_ro());
        }
        if superblock.needs_check() {
            return Err(Error::new(ErrorKind::NeedsCheck, "superblock: the needs_check flag is set"));
        }
    }
    Ok(superblock)
}

fn check_sizes(device: &dyn BlockDevice, superblock: &Superblock) -> Result<()> {
    let limit = METADATA_BLOCKS_MAX.min(device.size() / METADATA_BLOCK_SIZE as u64);
    let (metadata, data) = (superblock.metadata_map, superblock.data_map);
    if metadata.nr_blocks == 0 || metadata.nr_blocks > limit {
        return Err(corrupt(format!(
            "superblock: nr_blocks {} of the metadata space map, the device has room for {limit}",
            metadata.nr_blocks
        )));
    }
    // Every data bitmap is a metadata block of its own.
    if data.nr_blocks > DATA_BLOCKS_MAX || data.bitmaps() >= metadata.nr_blocks {
        return Err(corrupt(format!(
            "superblock: nr_blocks {} of the data space map need more bitmaps than the metadata has blocks",
            data.nr_blocks
        )));
    }
    Ok(())
}

fn read_bitmap(transaction: &Transaction, entry: IndexEntry) -> Result<Bitmap> {
    if entry.block == 0 || entry.block >= transaction.metadata.total() {
        return Err(corrupt(format!("bitmap block {} is outside the metadata", entry.block)));
    }
    let block = MetaBlock(entry.block);
    Bitmap::decode(block, &*read_block(transaction.device(), block)?)
}

fn load_bitmap(counts: &mut Counts, number: usize, bitmap: &Bitmap) {
    let start = number as u64 * bitmap.entries.len() as u64;
    // Entries beyond the end of the map mean nothing; the last bitmap is written anew when the map grows.
    for (block, &count) in (start..counts.total()).zip(&bitmap.entries) {
        if count > 0 {
            counts.load(block, u32::from(count));
        }
    }
}

/// The entries of an overflow tree, checked against the map that they belong to.
fn overflow_entries(transaction: &Transaction, kind: TreeKind, root: u64, counts: &Counts) -> Result<Vec<(u64, u32)>> {
    let mut entries = Vec::new();
    walk(transaction, kind, MetaBlock(root), &ALL_KEYS, &mut |node, span| {
        for index in span {
            let (block, count) = (node.keys()[index], node.value::<u32>(index));
            let stored = counts.get(block)?;
            if stored != u32::from(OVERFLOW) || count < u32::from(OVERFLOW) {
                return Err(corrupt(format!(
                    "{}: block {block} has count {count}, its bitmap entry says {stored}",
                    kind.name()
                )));
            }
            entries.push((block, count));
        }
        Ok(Flow::Continue)
    })?;
    if entries.len() as u64 != counts.overflow() {
        return Err(corrupt(format!(
            "{}: {} entries, but {} bitmap entries that say three or more",
            kind.name(),
            entries.len(),
            counts.overflow()
        )));
    }
    Ok(entries)
}

fn load_metadata_counts(transaction: &mut Transaction, map: SpaceMapRoot) -> Result<(Vec<IndexEntry>, u32)> {
    let index_block = MetaBlock(map.bitmap_root);
    let bitmaps = transaction.metadata.bitmaps();
    let block = read_block(transaction.device(), index_block)?;
    let index = decode_index(index_block, &block, bitmaps)?;
    for (number, &entry) in index.iter().enumerate() {
        let bitmap = read_bitmap(transaction, entry)
            .map_err(|e| e.doing(format_args!("metadata index {index_block}: entry {number}")))?;
        load_bitmap(&mut transaction.metadata, number, &bitmap);
    }
    let entries = overflow_entries(transaction, TreeKind::MetadataOverflow, map.ref_count_root, &transaction.metadata)?;
    for (block, count) in entries {
        transaction.metadata.load(block, count);
    }
    Ok((index, index_sequence(&block)))
}

/// Everything that the superblock and the metadata index name must be counted as used.
fn check_counted(transaction: &Transaction, superblock: &Superblock, index: &[IndexEntry]) -> Result<()> {
    let named = [
        ("superblock", 0),
        ("data_mapping_root", superblock.mapping_root),
        ("device_details_root", superblock.details_root),
        ("bitmap_root of the data space map", superblock.data_map.bitmap_root),
        ("ref_count_root of the data space map", superblock.data_map.ref_count_root),
        ("bitmap_root of the metadata space map", superblock.metadata_map.bitmap_root),
        ("ref_count_root of the metadata space map", superblock.metadata_map.ref_count_root),
        // Block 0 stands for "none" here, and is counted anyway.
        ("held_root", superblock.held_root),
    ];
    let bitmaps = index.iter().map(|entry| ("bitmap of the metadata space map", entry.block));
    for (field, block) in named.into_iter().chain(bitmaps) {
        if transaction.metadata.get(block).map_err(|e| e.doing(format_args!("superblock: {field}")))? == 0 {
            return Err(corrupt(format!("superblock: {field} is metadata block {block}, whose reference count is 0")));
        }
    }
    Ok(())
}

fn load_data_counts(transaction: &mut Transaction, map: SpaceMapRoot) -> Result<Vec<IndexEntry>> {
    let mut index: Vec<IndexEntry> = Vec::new();
    let mut seen = Bitset::new(transaction.metadata.total());
    walk(transaction, TreeKind::DataIndex, MetaBlock(map.bitmap_root), &ALL_KEYS, &mut |node, span| {
        for at in span {
            let (key, entry) = (node.keys()[at], node.value::<IndexEntry>(at));
            let sound = key == index.len() as u64 && key < map.bitmaps();
            if !sound || transaction.metadata.get(entry.block)? == 0 || !seen.insert(entry.block) {
                return Err(corrupt(format!(
                    "data index tree: entry {key} names metadata block {}: out of order, named twice, or not counted",
                    entry.block
                )));
            }
            index.push(entry);
        }
        Ok(Flow::Continue)
    })?;
    if index.len() as u64 != map.bitmaps() {
        return Err(corrupt(format!(
            "data index tree: {} entries for the {} bitmaps of {} data blocks",
            index.len(),
            map.bitmaps(),
            map.nr_blocks
        )));
    }
    // The index is real, so the size that the superblock claims is paid for in blocks.
    let mut counts = Counts::new("data", map.nr_blocks);
    for (number, &entry) in index.iter().enumerate() {
        let bitmap =
            read_bitmap(transaction, entry).map_err(|e| e.doing(format_args!("data index tree: entry {number}")))?;
        load_bitmap(&mut counts, number, &bitmap);
    }
    for (block, count) in overflow_entries(transaction, TreeKind::DataOverflow, map.ref_count_root, &counts)? {
        counts.load(block, count);
    }
    transaction.data = counts;
    Ok(index)
}

fn load_devices(metadata: &mut Metadata) -> Result<()> {
    let id_of = |key: u64| {
        u32::try_from(key)
            .ok()
            .and_then(|id| DeviceId::new(id).ok())
            .ok_or_else(|| corrupt(format!("device id {key} needs more than 24 bits")))
    };
    let transaction = &metadata.transaction;
    let mut roots = Vec::new();
    let top = MetaBlock(metadata.superblock.mapping_root);
    walk(transaction, TreeKind::Top, top, &ALL_KEYS, &mut |node, span| {
        for at in span {
            let (id, root) = (id_of(node.keys()[at])?, node.value::<u64>(at));
            if root == 0 || transaction.metadata.get(root)? == 0 {
                return Err(corrupt(format!(
                    "top mapping tree: device {id} has its root at metadata block {root}, which is not counted"
                )));
            }
            roots.push((id, MetaBlock(root)));
        }
        Ok(Flow::Continue)
    })?;
    let mut details = Vec::new();
    let root = MetaBlock(metadata.superblock.details_root);
    walk(transaction, TreeKind::Details, root, &ALL_KEYS, &mut |node, span| {
        for at in span {
            details.push((id_of(node.keys()[at])?, node.value::<DeviceDetails>(at)));
        }
        Ok(Flow::Continue)
    })?;
    if let Some((left, right)) = roots.iter().zip(&details).find(|(root, record)| root.0 != record.0) {
        return Err(corrupt(format!(
            "device {} is in only one of top mapping tree and device details tree",
            left.0.min(right.0)
        )));
    }
    if roots.len() != details.len() {
        return Err(corrupt(format!(
            "{} devices in the top mapping tree, {} in the device details tree",
            roots.len(),
            details.len()
        )));
    }
    metadata.devices =
        roots.into_iter().zip(details).map(|((id, root), (_, details))| (id, Device { root, details })).collect();
    Ok(())
}
