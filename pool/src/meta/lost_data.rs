//! Gives back data blocks that are counted and mapped by nobody, which a kernel leaves when its machine dies.
//!
//! dm-thin takes a data block before it has the data for it, commits meanwhile if anybody flushes, and maps the block after
//! that. If the power goes in between, nobody will ever get the block: thin_check tells of a leak. A pool that a kernel
//! is given is marked, and whoever opens it next and finds the mark looks for such blocks, once.

use std::collections::HashSet;
use std::sync::Arc;

use crate::device::BlockDevice;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Mapping, Superblock, TreeKind};
use crate::meta::bitset::Bitset;
use crate::meta::btree::Place;
use crate::meta::commit::write_served;
use crate::meta::metadata::{Metadata, OpenMode};
use crate::meta::transaction::read_block;
use crate::units::MetaBlock;

/// What the trees lead to.
struct Reached {
    data: Bitset,
    /// Nodes with several owners: they are entered once.
    shared: HashSet<MetaBlock>,
}

impl Metadata {
    /// As [`open`](Self::open) for writing. If a kernel was given the pool and nobody took it back in order, data blocks
    /// that are mapped by nobody are free again, durably, and the mark is taken off. What hinders that costs their space
    /// and nothing else: the pool opens all the same. Errors: as [`open`](Self::open).
    pub fn open_settled(device: Arc<dyn BlockDevice>) -> Result<Self> {
        let mut metadata = Self::open(Arc::clone(&device), OpenMode::ReadWrite)?;
        if !metadata.superblock.is_served() {
            return Ok(metadata);
        }
        match metadata.free_lost_data(&*device) {
            Ok(lost) => {
                tracing::info!(
                    lost,
                    "the kernel that served the pool was cut short: blocks that nobody maps are free again"
                );
                Ok(metadata)
            }
            Err(error) => {
                tracing::warn!("the kernel that served the pool was cut short, and blocks may be lost by it: {error}");
                Self::open(device, OpenMode::ReadWrite)
            }
        }
    }

    fn free_lost_data(&mut self, device: &dyn BlockDevice) -> Result<u64> {
        let total = self.transaction.data.total();
        let mut reached = Reached { data: Bitset::new(total), shared: HashSet::new() };
        self.reach_devices(MetaBlock(self.superblock.mapping_root), &mut reached)?;
        if let Some(held) = self.held_root() {
            let held = Superblock::decode(held, &*read_block(device, held)?)?;
            self.reach_devices(MetaBlock(held.mapping_root), &mut reached)?;
        }
        let mut lost = Vec::new();
        for block in (0..total).filter(|&block| !reached.data.contains(block)) {
            let count = self.transaction.data.get(block)?;
            if count > 0 {
                lost.push((block, count));
            }
        }
        self.superblock.clear_served();
        if !lost.is_empty() {
            self.alter(|this| {
                for &(block, count) in &lost {
                    for _ in 0..count {
                        this.transaction.data.dec(block)?;
                    }
                }
                Ok(())
            })?;
            if let Some(frozen) = self.freeze()? {
                frozen.write(device)?;
                let free = self.committed(frozen);
                self.release_data(&free);
            }
        }
        write_served(device, false)?;
        Ok(lost.len() as u64)
    }

    /// Notes what the devices of a top tree map.
    fn reach_devices(&self, top: MetaBlock, reached: &mut Reached) -> Result<()> {
        let mut roots = Vec::new();
        self.reach(&Place::root(TreeKind::Top, top), reached, &mut |_, root| {
            roots.push(MetaBlock(root));
            Ok(())
        })?;
        for root in roots {
            self.reach(&Place::root(TreeKind::Mapping, root), reached, &mut |data, value| {
                let block = Mapping::unpack(value).block.0;
                if block >= self.transaction.data.total() {
                    return Err(Error::new(ErrorKind::Corrupt, format!("data block {block} is beyond the pool's end")));
                }
                data.insert(block);
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Tells the values of a tree's leaves; what was entered before is passed by.
    fn reach(
        &self,
        place: &Place<'_>,
        reached: &mut Reached,
        tell: &mut dyn FnMut(&mut Bitset, u64) -> Result<()>,
    ) -> Result<()> {
        if self.transaction.metadata.get(place.block.0)? > 1 && !reached.shared.insert(place.block) {
            return Ok(());
        }
        let node = place.visit(&self.transaction)?;
        if node.is_internal() {
            return (0..node.len()).try_for_each(|index| self.reach(&place.child(&node, index), reached, tell));
        }
        node.words().try_for_each(|value| tell(&mut reached.data, value))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{Metadata, write_served};
    use crate::device::{BlockDevice, MemoryDevice};
    use crate::format::{SUPERBLOCK, Superblock};
    use crate::meta::transaction::read_block;
    use crate::meta::{FormatOptions, OpenMode};
    use crate::units::{BlockSize, DeviceId, VirtualBlock};

    const BLOCKS: u64 = 512;

    fn commit(device: &dyn BlockDevice, metadata: &mut Metadata) {
        let frozen = metadata.freeze().unwrap().unwrap();
        frozen.write(device).unwrap();
        let free = metadata.committed(frozen);
        metadata.release_data(&free);
    }

    #[test]
    fn blocks_that_a_kernel_took_and_never_mapped_are_free_again_and_no_other() {
        let device: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::new(BLOCKS * 4096));
        let options = FormatOptions {
            block_size: BlockSize::DEFAULT,
            data_blocks: 100,
            metadata_blocks: BLOCKS,
            identity: [1; 16],
        };
        Metadata::format(&*device, &options).unwrap();
        let mut metadata = Metadata::open(Arc::clone(&device), OpenMode::ReadWrite).unwrap();
        let [origin, snapshot] = [1, 2].map(|id| DeviceId::new(id).unwrap());
        metadata.create_thin(origin).unwrap();
        let run = metadata.reserve_data(10).unwrap();
        metadata.insert(origin, VirtualBlock(0), run).unwrap();
        metadata.create_snap(snapshot, origin).unwrap();
        // Breaks the sharing of one block: the leaves' other blocks have two owners each.
        let run = metadata.reserve_data(1).unwrap();
        metadata.insert(snapshot, VirtualBlock(3), run).unwrap();
        for _ in 0..3 {
            metadata.transaction.data.allocate().unwrap();
        }
        commit(&*device, &mut metadata);
        drop(metadata);

        let used = |metadata: &Metadata| metadata.data_space().used;
        let unmarked = Metadata::open_settled(Arc::clone(&device)).unwrap();
        assert_eq!(used(&unmarked), 14, "nobody looks where no kernel was");
        write_served(&*device, true).unwrap();
        let settled = Metadata::open_settled(Arc::clone(&device)).unwrap();
        let again = Metadata::open(Arc::clone(&device), OpenMode::ReadOnly).unwrap();
        assert_eq!([used(&settled), used(&again)], [11, 11]);
        assert!(!Superblock::decode(SUPERBLOCK, &read_block(&*device, SUPERBLOCK).unwrap()).unwrap().is_served());
        let mapped = |metadata: &Metadata, id| metadata.usage(id).unwrap().mapped;
        assert_eq!(mapped(&again, origin), mapped(&again, snapshot));
        // All that is free may be had.
        let mut settled = settled;
        assert_eq!(settled.reserve_data(100).map(|run| run.len).unwrap(), 89);
    }
}
