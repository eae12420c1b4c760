//! Finds where to begin: the superblock, or, when that is lost, the newest whole state that stands on the disk.
//!
//! Every commit writes an index block of the metadata space map, which tells all blocks of that state; old ones stay
//! on the disk until they are used again. A state is whole if everything that its space map counts can be read. Its
//! trees are known by what their leaves hold, and by being below no other node. Which state is newest is told by the
//! number of the commit in the index block; where others wrote the pool, by the clock.

use std::collections::{BTreeMap, BTreeSet};

use crate::check::audit;
use crate::device::BlockDevice;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{
    Bitmap, Block, DeviceDetails, ENTRIES_PER_BITMAP, INDEX_ENTRIES_MAX, IndexEntry, Mapping, Node, SUPERBLOCK,
    SpaceMapRoot, Superblock, TreeKind, decode_index, index_sequence,
};
use crate::repair::orphans::roots_in;
use crate::repair::report::hopeless;
use crate::repair::survey::Survey;
use crate::units::{BlockSize, METADATA_BLOCK_SIZE, MetaBlock, SECTOR_SIZE};

/// States that are looked at in all, the newest first.
const STATES_MAX: usize = 64;

/// What is known from elsewhere when the superblock is lost.
#[derive(Default)]
pub struct Hints<'a> {
    /// The newest backup of the metadata.
    pub backup: Option<&'a dyn BlockDevice>,
    /// The size of a data block, if no backup tells it.
    pub block_size: Option<BlockSize>,
    /// Bytes of the data device.
    pub data_size: Option<u64>,
    /// The pool's identity, as the records know it.
    pub identity: Option<[u8; 16]>,
}

/// Where to begin.
pub(in crate::repair) struct Found {
    pub(in crate::repair) superblock: Superblock,
    pub(in crate::repair) told: String,
    pub(in crate::repair) candidates: Vec<String>,
    pub(in crate::repair) sequence: u32,
    pub(in crate::repair) backup_roots: BTreeMap<u64, MetaBlock>,
}

/// True if the fields leave something to work with.
fn is_usable(superblock: &Superblock, survey: &Survey<'_>) -> bool {
    let (metadata, data) = (superblock.metadata_map, superblock.data_map);
    let bytes = u64::from(superblock.data_block_sectors) * SECTOR_SIZE;
    (1..=survey.blocks()).contains(&metadata.nr_blocks)
        && data.bitmaps() < metadata.nr_blocks
        && superblock.incompat_flags == 0
        && BlockSize::from_bytes(bytes).is_ok()
}

/// The superblock, or the best that can be made in its place. Errors: `NotFound` (the device is empty), `Corrupt`.
pub(in crate::repair) fn find_superblock(
    device: &dyn BlockDevice,
    survey: &Survey<'_>,
    hints: &Hints<'_>,
) -> Result<Found> {
    let backup = hints.backup.map(Survey::new);
    let backup_superblock = backup.as_ref().and_then(|backup| backup.superblock(SUPERBLOCK).ok());
    let backup_roots = match (&backup, &backup_superblock) {
        (Some(backup), Some(superblock)) => roots_in(backup, superblock),
        _ => BTreeMap::new(),
    };
    let lost = match survey.superblock(SUPERBLOCK) {
        Ok(superblock) if is_usable(&superblock, survey) => {
            let index = MetaBlock(superblock.metadata_map.bitmap_root);
            let sequence = survey
                .read(index, |block| decode_index(index, block, INDEX_ENTRIES_MAX).map(|_| index_sequence(block)));
            let corrected = survey.corrected().contains(&SUPERBLOCK);
            let told = if corrected { "the superblock, one flipped bit taken back" } else { "the superblock" };
            return Ok(Found {
                superblock,
                told: told.to_owned(),
                candidates: Vec::new(),
                sequence: sequence.unwrap_or(0),
                backup_roots,
            });
        }
        Ok(_) => "the superblock's sizes are impossible".to_owned(),
        Err(error) if matches!(error.kind(), ErrorKind::Io) => return Err(error),
        Err(error) => error.to_string(),
    };
    let mut states = Vec::new();
    for (sequence, block) in index_blocks(survey).into_iter().take(STATES_MAX) {
        if let Some(superblock) = rebuild(device, survey, block, hints, backup_superblock.as_ref())? {
            states.push((sequence, superblock));
        }
    }
    // Numbered states come in order; of the others the clock and then the records tell which one is later.
    states.sort_by_key(|(sequence, superblock)| {
        std::cmp::Reverse((*sequence, superblock.time, superblock.transaction_id))
    });
    let describe = |(sequence, superblock): &(u32, Superblock)| {
        let commit = if *sequence == 0 { "not numbered".to_owned() } else { format!("commit {sequence}") };
        format!(
            "{commit}, time {}, {} data blocks in use, index at block {}",
            superblock.time, superblock.data_map.nr_allocated, superblock.metadata_map.bitmap_root
        )
    };
    let candidates: Vec<String> = states.iter().skip(1).map(describe).collect();
    let Some((sequence, superblock)) = states.first().cloned() else {
        return Err(hopeless(format!("{lost}; and no whole state was found on the device")));
    };
    let told = format!("{lost}; the newest whole state on the device: {}", describe(&(sequence, superblock.clone())));
    Ok(Found { superblock, told, candidates, sequence, backup_roots })
}

/// All sound index blocks, the newest first.
fn index_blocks(survey: &Survey<'_>) -> Vec<(u32, MetaBlock)> {
    let mut found = Vec::new();
    for block in (1..survey.blocks()).map(MetaBlock) {
        let Some(bytes) = survey.raw(block) else { continue };
        if decode_index(block, &bytes, INDEX_ENTRIES_MAX).is_ok() {
            found.push((index_sequence(&bytes), block));
        }
    }
    found.sort_unstable_by(|a, b| b.cmp(a));
    found
}

/// The roots of a state, by what their leaves hold.
#[derive(Default)]
struct Roots {
    mappings: Vec<MetaBlock>,
    details: Vec<MetaBlock>,
    index: Vec<MetaBlock>,
    overflow: Vec<MetaBlock>,
}

/// The superblock of the state that an index block belongs to; `None` unless the state is whole. Errors: `Invalid`
/// if the state is whole and only what the hints could tell is missing.
fn rebuild(
    device: &dyn BlockDevice,
    survey: &Survey<'_>,
    index_block: MetaBlock,
    hints: &Hints<'_>,
    backup: Option<&Superblock>,
) -> Result<Option<Superblock>> {
    let Some(bytes) = survey.raw(index_block) else { return Ok(None) };
    let entries = decode_index(index_block, &bytes, INDEX_ENTRIES_MAX)?;
    let used = entries.iter().take_while(|entry| entry.block != 0).count();
    let Some(live) = live_blocks(survey, &entries[..used]) else { return Ok(None) };
    let Some(roots) = roots_of(survey, &live) else { return Ok(None) };
    let (&[details], &[data_index]) = (&roots.details[..], &roots.index[..]) else { return Ok(None) };
    let Some(top) = top_of(survey, &roots.mappings) else { return Ok(None) };
    let &[one, other] = &roots.overflow[..] else { return Ok(None) };

    let sectors = match (hints.block_size, backup) {
        (Some(size), _) => size.sectors(),
        (None, Some(backup)) => backup.data_block_sectors,
        (None, None) => {
            return Err(Error::new(
                ErrorKind::Invalid,
                "repair the metadata: the superblock is lost and there is no backup: say the size of a data block",
            ));
        }
    };
    let (time, transaction_id) = clock_of(survey, &live, details);
    let bitmaps = survey.entries::<IndexEntry>(TreeKind::DataIndex, data_index.0).entries.len() as u64;
    let most = bitmaps * ENTRIES_PER_BITMAP;
    let least = bitmaps.saturating_sub(1) * ENTRIES_PER_BITMAP + u64::from(bitmaps > 0);
    let by_size = hints.data_size.map(|bytes| bytes / (u64::from(sectors) * SECTOR_SIZE));
    let told = backup.map(|backup| backup.data_map.nr_blocks).filter(|blocks| (least..=most).contains(blocks));
    let data_blocks = told.or(by_size).unwrap_or(most).clamp(least, most);
    let metadata_blocks = (used as u64 * ENTRIES_PER_BITMAP).min(survey.blocks());
    let identity = hints.identity.or(backup.map(|backup| backup.identity)).unwrap_or_default();
    let mut superblock = Superblock::new(identity, sectors, metadata_blocks);
    superblock.time = time;
    superblock.transaction_id = transaction_id.max(backup.map_or(0, |backup| backup.transaction_id));
    superblock.mapping_root = top.0;
    superblock.details_root = details.0;
    for (data_overflow, metadata_overflow) in [(one, other), (other, one)] {
        superblock.data_map = SpaceMapRoot {
            nr_blocks: data_blocks,
            nr_allocated: 0,
            bitmap_root: data_index.0,
            ref_count_root: data_overflow.0,
        };
        superblock.metadata_map = SpaceMapRoot {
            nr_blocks: metadata_blocks,
            nr_allocated: live.len() as u64,
            bitmap_root: index_block.0,
            ref_count_root: metadata_overflow.0,
        };
        let report = audit(&Overlay { below: device, superblock: superblock.encode(SUPERBLOCK) }, &|_| ())?;
        if report.is_sound() && !report.incomplete {
            superblock.data_map.nr_allocated = report.data_used;
            return Ok(Some(superblock));
        }
    }
    Ok(None)
}

/// The blocks that a space map counts; `None` unless all its bitmaps are sound.
fn live_blocks(survey: &Survey<'_>, entries: &[IndexEntry]) -> Option<BTreeSet<MetaBlock>> {
    let mut live = BTreeSet::new();
    for (number, entry) in (0u64..).zip(entries) {
        let block = MetaBlock(entry.block);
        let bitmap = Bitmap::decode(block, &*survey.raw(block)?).ok()?;
        let start = number * ENTRIES_PER_BITMAP;
        live.extend((start..).zip(&bitmap.entries).filter(|(_, count)| **count != 0).map(|(at, _)| MetaBlock(at)));
    }
    (!live.is_empty()).then_some(live)
}

/// Nodes that are below no other node. `None` if one of them leads to something that is not live.
fn roots_of(survey: &Survey<'_>, live: &BTreeSet<MetaBlock>) -> Option<Roots> {
    let mut nodes: BTreeMap<MetaBlock, Node> = BTreeMap::new();
    let mut below = BTreeSet::new();
    for &block in live.iter().filter(|block| block.0 != 0) {
        let Some(node) = survey.peek(block) else { continue };
        if node.is_internal() {
            below.extend((0..node.len()).map(|index| node.child(index)));
            nodes.insert(block, node);
        } else {
            // Of a leaf only the shape matters here.
            nodes.insert(block, Node::empty_leaf(node.value_size()));
        }
    }
    let mut roots = Roots::default();
    for &block in nodes.keys().filter(|block| !below.contains(block)) {
        let mut at = block;
        let mut size = None;
        for _ in 0..TreeKind::DEPTH_MAX {
            let node = nodes.get(&at)?;
            if !node.is_internal() {
                size = Some(node.value_size());
                break;
            }
            at = node.child(0);
        }
        match size? {
            8 => roots.mappings.push(block),
            24 => roots.details.push(block),
            16 => roots.index.push(block),
            4 => roots.overflow.push(block),
            _ => return None,
        }
    }
    Some(roots)
}

/// The tree whose values are the roots of all others.
fn top_of(survey: &Survey<'_>, mappings: &[MetaBlock]) -> Option<MetaBlock> {
    let tops: Vec<MetaBlock> = mappings
        .iter()
        .copied()
        .filter(|&root| {
            let named: BTreeSet<MetaBlock> = survey
                .entries::<u64>(TreeKind::Top, root.0)
                .entries
                .into_iter()
                .map(|(_, value)| MetaBlock(value))
                .collect();
            mappings.iter().all(|other| *other == root || named.contains(other))
        })
        .collect();
    match tops[..] {
        [top] => Some(top),
        _ => None,
    }
}

/// The latest time and transaction that anything in a state tells.
fn clock_of(survey: &Survey<'_>, live: &BTreeSet<MetaBlock>, details: MetaBlock) -> (u32, u64) {
    let records = survey.entries::<DeviceDetails>(TreeKind::Details, details.0).entries;
    let mut time = records.iter().map(|(_, record)| record.snapshotted_time).max().unwrap_or(0);
    let transaction = records.iter().map(|(_, record)| record.transaction_id).max().unwrap_or(0);
    for &block in live.iter().filter(|block| block.0 != 0) {
        if let Some(node) = survey.peek(block).filter(|node| !node.is_internal() && node.value_size() == 8) {
            // Places of roots, in the leaves of the top tree, look like mappings of block 0 at a time that is their
            // number.
            let mappings = node.words().map(Mapping::unpack).filter(|mapping| mapping.block.0 != 0);
            time = mappings.map(|mapping| mapping.time).max().unwrap_or(0).max(time);
        }
    }
    (time, transaction)
}

/// A device with another block 0.
struct Overlay<'a> {
    below: &'a dyn BlockDevice,
    superblock: Box<Block>,
}

impl BlockDevice for Overlay<'_> {
    fn size(&self) -> u64 {
        self.below.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.below.read_at(buf, offset)?;
        if offset == 0 {
            let len = buf.len().min(METADATA_BLOCK_SIZE);
            buf[..len].copy_from_slice(&self.superblock[..len]);
        }
        Ok(())
    }

    fn write_at(&self, _buf: &[u8], _offset: u64) -> Result<()> {
        Err(Error::new(ErrorKind::ReadOnly, "write to damaged metadata"))
    }

    fn discard(&self, _offset: u64, _len: u64) -> Result<()> {
        Err(Error::new(ErrorKind::ReadOnly, "discard damaged metadata"))
    }

    fn write_zeroes(&self, _offset: u64, _len: u64) -> Result<()> {
        Err(Error::new(ErrorKind::ReadOnly, "write to damaged metadata"))
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }
}
