//! Who holds what: for every device, and for groups of them, what their deletion gives back.
//!
//! Every node and every leaf is read once, however many devices share it. Nodes are taken by their height above
//! the leaves, roots first: when a node is read, all who reach it are known. A block is given back with a device if
//! nobody else reaches a leaf that maps it, and with a group if nobody outside the group does; so one label a node
//! for each of the two questions is enough, which becomes "several" where two different ones meet.

use std::collections::{BTreeMap, HashMap};

use crate::check::audit::Progress;
use crate::check::reader::{Reader, read_superblock};
use crate::device::BlockDevice;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{
    Bitmap, DeviceDetails, ENTRIES_PER_BITMAP, IndexEntry, Mapping, SpaceMapRoot, Superblock, TreeKind,
};
use crate::status::{Holding, Holdings};
use crate::units::{ByteCount, DeviceId, METADATA_BLOCK_SIZE, MetaBlock, SECTOR_SIZE};

/// Two or more, or none that may be named.
const SEVERAL: u32 = u32::MAX;
/// The held metadata snapshot, which is no device.
const HELD: u32 = u32::MAX - 1;
/// Called every so many blocks.
const PROGRESS_STEP: u64 = 256;

/// Who reaches a node or a block: a device, and a group; `SEVERAL` if it is more than one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Owner {
    device: u32,
    group: u32,
}

impl Owner {
    fn join(&mut self, other: Self) {
        if self.device != other.device {
            self.device = SEVERAL;
        }
        if self.group != other.group {
            self.group = SEVERAL;
        }
    }
}

/// Blocks that deletion gives back, by who is deleted.
#[derive(Default)]
struct Tally {
    data: HashMap<u32, u64>,
    nodes: HashMap<u32, u64>,
    groups: HashMap<u32, u64>,
}

impl Tally {
    fn data_block(&mut self, owner: Owner) {
        *self.data.entry(owner.device).or_default() += 1;
        *self.groups.entry(owner.group).or_default() += 1;
    }
}

/// Measures the pool whose metadata stands on `device`; `groups` names the group of each device that is in one.
/// Errors: `NotFound` (no pool), `Corrupt`, `Io`.
pub fn holdings(device: &dyn BlockDevice, groups: &[(DeviceId, u32)], progress: &dyn Fn(Progress)) -> Result<Holdings> {
    measure(device, groups, progress).map_err(|e| e.doing("measure what each device holds"))
}

fn measure(device: &dyn BlockDevice, groups: &[(DeviceId, u32)], progress: &dyn Fn(Progress)) -> Result<Holdings> {
    let (superblock, _) = read_superblock(device)?;
    let reader = Reader::new(device, superblock.metadata_map.nr_blocks);
    let group_of: HashMap<u32, u32> = groups.iter().map(|(id, group)| (id.get(), *group)).collect();
    let roots = roots(&reader, superblock.mapping_root)?;
    let mut walk = Walk {
        reader: &reader,
        shared: Shared::read(&reader, superblock.data_map)?,
        levels: Vec::new(),
        heights: HashMap::new(),
        blocks: HashMap::new(),
        tally: Tally::default(),
        data_blocks: superblock.data_map.nr_blocks,
        nodes: 0,
        expected: superblock.metadata_map.nr_allocated,
        progress,
    };
    for &(id, root) in &roots {
        let group = group_of.get(&id).copied().unwrap_or(SEVERAL);
        walk.enter(root, Owner { device: id, group })?;
    }
    if superblock.held_root != 0 {
        let number = MetaBlock(superblock.held_root);
        let held = Superblock::decode(number, &*reader.block(number)?)?;
        for (_, root) in self::roots(&reader, held.mapping_root)? {
            walk.enter(root, Owner { device: HELD, group: SEVERAL })?;
        }
    }
    walk.run()?;
    let block_size = u64::from(superblock.data_block_sectors) * SECTOR_SIZE;
    let data = |blocks: Option<&u64>| ByteCount(blocks.copied().unwrap_or(0).saturating_mul(block_size));
    let mapped = mapped_blocks(&reader, superblock.details_root)?;
    let mut devices = Vec::with_capacity(roots.len());
    for (id, _) in roots {
        devices.push(Holding {
            id: DeviceId::new(id)?,
            mapped: data(mapped.get(&id)),
            exclusive: data(walk.tally.data.get(&id)),
            metadata: ByteCount(walk.tally.nodes.get(&id).copied().unwrap_or(0) * METADATA_BLOCK_SIZE as u64),
        });
    }
    let mut names: Vec<u32> = groups.iter().map(|(_, group)| *group).collect();
    names.sort_unstable();
    names.dedup();
    Ok(Holdings {
        devices,
        groups: names.into_iter().map(|group| (group, data(walk.tally.groups.get(&group)))).collect(),
        held: data(walk.tally.data.get(&HELD)),
        nodes: walk.nodes,
    })
}

/// The devices of a top tree with the roots of their mapping trees, ascending.
fn roots(reader: &Reader<'_>, top: u64) -> Result<Vec<(u32, MetaBlock)>> {
    let mut roots = Vec::new();
    reader.leaves(TreeKind::Top, MetaBlock(top), &mut |leaf| {
        for index in 0..leaf.len() {
            let id = u32::try_from(leaf.keys()[index]).ok().filter(|&id| id < HELD);
            let id = id.ok_or_else(|| Error::new(ErrorKind::Corrupt, "a device id above 24 bits"))?;
            roots.push((id, MetaBlock(leaf.value(index))));
        }
        Ok(())
    })?;
    Ok(roots)
}

fn mapped_blocks(reader: &Reader<'_>, details: u64) -> Result<BTreeMap<u32, u64>> {
    let mut mapped = BTreeMap::new();
    reader.leaves(TreeKind::Details, MetaBlock(details), &mut |leaf| {
        for index in 0..leaf.len() {
            if let Ok(id) = u32::try_from(leaf.keys()[index]) {
                mapped.insert(id, leaf.value::<DeviceDetails>(index).mapped_blocks);
            }
        }
        Ok(())
    })?;
    Ok(mapped)
}

/// Data blocks with two references or more: only for these must it be remembered who reached them.
struct Shared(Vec<u64>);

impl Shared {
    fn read(reader: &Reader<'_>, map: SpaceMapRoot) -> Result<Self> {
        let mut entries = Vec::new();
        reader.leaves(TreeKind::DataIndex, MetaBlock(map.bitmap_root), &mut |leaf| {
            entries.extend((0..leaf.len()).map(|at| leaf.value::<IndexEntry>(at).block));
            Ok(())
        })?;
        let words = usize::try_from(map.nr_blocks.div_ceil(64)).unwrap_or(usize::MAX);
        let mut shared = Self(vec![0; words]);
        for (number, &block) in (0_u64..).zip(&entries) {
            let bitmap = Bitmap::decode(MetaBlock(block), &*reader.block(MetaBlock(block))?)?;
            for (at, _) in (0_u64..).zip(&bitmap.entries).filter(|(_, count)| **count > 1) {
                let data = number * ENTRIES_PER_BITMAP + at;
                if data < map.nr_blocks {
                    shared.0[word(data)] |= 1 << (data % 64);
                }
            }
        }
        Ok(shared)
    }

    fn holds(&self, block: u64) -> bool {
        self.0[word(block)] & (1 << (block % 64)) != 0
    }
}

fn word(block: u64) -> usize {
    usize::try_from(block / 64).expect("the bits are in memory")
}

struct Walk<'a> {
    reader: &'a Reader<'a>,
    shared: Shared,
    /// Nodes that wait, by their height above the leaves, each with who reaches it.
    levels: Vec<BTreeMap<u64, Owner>>,
    heights: HashMap<MetaBlock, usize>,
    /// Data blocks with several references that were reached.
    blocks: HashMap<u64, Owner>,
    tally: Tally,
    data_blocks: u64,
    nodes: u64,
    expected: u64,
    progress: &'a dyn Fn(Progress),
}

impl Walk<'_> {
    /// Levels between a node and its leaves, by its first children.
    fn height(&mut self, root: MetaBlock) -> Result<usize> {
        let mut path = Vec::new();
        let mut block = root;
        let mut height = loop {
            if let Some(&known) = self.heights.get(&block) {
                break known;
            }
            if path.len() > TreeKind::DEPTH_MAX {
                return Err(Error::new(ErrorKind::Corrupt, format!("metadata block {root}: the tree is too deep")));
            }
            let node = self.reader.node(TreeKind::Mapping, block)?;
            if !node.is_internal() || node.len() == 0 {
                self.heights.insert(block, 0);
                break 0;
            }
            path.push(block);
            block = node.child(0);
        };
        for block in path.into_iter().rev() {
            height += 1;
            self.heights.insert(block, height);
        }
        Ok(height)
    }

    fn enter(&mut self, root: MetaBlock, owner: Owner) -> Result<()> {
        let height = self.height(root)?;
        if self.levels.len() <= height {
            self.levels.resize_with(height + 1, BTreeMap::new);
        }
        self.reach(height, root, owner);
        Ok(())
    }

    fn reach(&mut self, height: usize, block: MetaBlock, owner: Owner) {
        self.levels[height].entry(block.0).and_modify(|known| known.join(owner)).or_insert(owner);
    }

    fn run(&mut self) -> Result<()> {
        for height in (0..self.levels.len()).rev() {
            for (block, owner) in std::mem::take(&mut self.levels[height]) {
                self.node(height, MetaBlock(block), owner)?;
            }
        }
        for owner in std::mem::take(&mut self.blocks).into_values() {
            self.tally.data_block(owner);
        }
        (self.progress)(Progress { checked_blocks: self.nodes, used_blocks: self.nodes });
        Ok(())
    }

    fn node(&mut self, height: usize, block: MetaBlock, owner: Owner) -> Result<()> {
        self.nodes += 1;
        if self.nodes.is_multiple_of(PROGRESS_STEP) {
            (self.progress)(Progress { checked_blocks: self.nodes, used_blocks: self.expected.max(self.nodes) });
        }
        *self.tally.nodes.entry(owner.device).or_default() += 1;
        let node = self.reader.node(TreeKind::Mapping, block)?;
        if node.is_internal() != (height > 0) {
            let what = format!("metadata block {block}: its leaves are not {height} levels below");
            return Err(Error::new(ErrorKind::Corrupt, what));
        }
        for index in 0..node.len() {
            if node.is_internal() {
                self.reach(height - 1, node.child(index), owner);
                continue;
            }
            let data = Mapping::unpack(node.value(index)).block.0;
            if data >= self.data_blocks {
                let what = format!("metadata block {block}: a mapping to data block {data} beyond the pool's end");
                return Err(Error::new(ErrorKind::Corrupt, what));
            }
            if self.shared.holds(data) {
                self.blocks.entry(data).and_modify(|known| known.join(owner)).or_insert(owner);
            } else {
                self.tally.data_block(owner);
            }
        }
        Ok(())
    }
}
