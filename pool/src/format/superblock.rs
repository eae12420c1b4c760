//! Block 0: the clock, the roots of all trees, and the sizes. Writing it is the commit.

use crate::error::{Error, ErrorKind, Result};
use crate::format::bytes::{Block, put_u32, put_u64, u32_at, u64_at, zeroed_block};
use crate::format::checksum::{BlockKind, seal, verify};
use crate::format::space_map::SpaceMapRoot;
use crate::units::MetaBlock;

/// Where the live superblock stands.
pub(crate) const SUPERBLOCK: MetaBlock = MetaBlock(0);
/// Bit 0 of the flags: the pool may not be changed before it was checked.
pub(crate) const FLAG_NEEDS_CHECK: u32 = 1;
/// Bit of compat_ro_flags: an intent log may hold changes that this state lacks. No kernel knows the bit, so none writes
/// to the pool, while readers (thin_check, thin_dump) pass it by.
pub(crate) const COMPAT_RO_LOGGED: u32 = 1 << 24;
/// Bit of compat_flags: a kernel was given the pool and nobody has taken it back in order, so that there may be data blocks
/// that are counted and mapped by nobody. Everybody passes it by, and the kernel keeps it.
pub(crate) const COMPAT_SERVED: u32 = 1 << 24;

const MAGIC: u64 = 27_022_010;
const VERSION: u32 = 2;
const METADATA_BLOCK_SECTORS: u32 = 8;
const COMPAT_FLAGS: usize = 352;
const COMPAT_RO_FLAGS: usize = 356;

/// The fields of a superblock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Superblock {
    /// Bit 0 is needs_check; the others are kept as they are.
    pub(crate) flags: u32,
    /// The uuid field: our pools carry their identity there, others zeroes.
    pub(crate) identity: [u8; 16],
    /// 2; not checked by anyone.
    pub(crate) version: u32,
    /// The snapshot clock.
    pub(crate) time: u32,
    /// The volume manager's number.
    pub(crate) transaction_id: u64,
    /// The held copy of a superblock, 0 if there is none.
    pub(crate) held_root: u64,
    /// The data space map.
    pub(crate) data_map: SpaceMapRoot,
    /// The metadata space map.
    pub(crate) metadata_map: SpaceMapRoot,
    /// Root of the top mapping tree.
    pub(crate) mapping_root: u64,
    /// Root of the device details tree.
    pub(crate) details_root: u64,
    /// Sectors in a data block.
    pub(crate) data_block_sectors: u32,
    /// Sectors in a metadata block, 8.
    pub(crate) metadata_block_sectors: u32,
    /// Metadata blocks when the pool was formatted; stale after growth and read by nobody.
    pub(crate) metadata_nr_blocks: u64,
    /// Features that a reader and writer may ignore.
    pub(crate) compat_flags: u32,
    /// Features that a reader may ignore.
    pub(crate) compat_ro_flags: u32,
    /// Features that nobody may ignore.
    pub(crate) incompat_flags: u32,
}

impl Superblock {
    /// A superblock of a new pool, its roots still to be set.
    pub(crate) fn new(identity: [u8; 16], data_block_sectors: u32, metadata_nr_blocks: u64) -> Self {
        Self {
            flags: 0,
            identity,
            version: VERSION,
            time: 0,
            transaction_id: 0,
            held_root: 0,
            data_map: SpaceMapRoot::default(),
            metadata_map: SpaceMapRoot::default(),
            mapping_root: 0,
            details_root: 0,
            data_block_sectors,
            metadata_block_sectors: METADATA_BLOCK_SECTORS,
            metadata_nr_blocks,
            compat_flags: 0,
            compat_ro_flags: 0,
            incompat_flags: 0,
        }
    }

    /// Errors with `Corrupt` if checksum, number or magic are wrong. What the fields say is not judged here.
    pub(crate) fn decode(number: MetaBlock, block: &Block) -> Result<Self> {
        verify(BlockKind::Superblock, number, block)?;
        let magic = u64_at(block, 32);
        if magic != MAGIC {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("metadata block {number}: magic of the superblock is {magic}, dm-thin's is {MAGIC}"),
            ));
        }
        Ok(Self {
            flags: u32_at(block, 4),
            identity: block[16..32].try_into().expect("a slice of sixteen bytes"),
            version: u32_at(block, 40),
            time: u32_at(block, 44),
            transaction_id: u64_at(block, 48),
            held_root: u64_at(block, 56),
            data_map: SpaceMapRoot::load(&block[64..]),
            metadata_map: SpaceMapRoot::load(&block[192..]),
            mapping_root: u64_at(block, 320),
            details_root: u64_at(block, 328),
            data_block_sectors: u32_at(block, 336),
            metadata_block_sectors: u32_at(block, 340),
            metadata_nr_blocks: u64_at(block, 344),
            compat_flags: u32_at(block, COMPAT_FLAGS),
            compat_ro_flags: u32_at(block, COMPAT_RO_FLAGS),
            incompat_flags: u32_at(block, 360),
        })
    }

    /// The sealed block. All of it that means anything lies in the first sector, so a torn write is old or new.
    pub(crate) fn encode(&self, number: MetaBlock) -> Box<Block> {
        let mut block = zeroed_block();
        put_u32(&mut block[..], 4, self.flags);
        block[16..32].copy_from_slice(&self.identity);
        put_u64(&mut block[..], 32, MAGIC);
        put_u32(&mut block[..], 40, self.version);
        put_u32(&mut block[..], 44, self.time);
        put_u64(&mut block[..], 48, self.transaction_id);
        put_u64(&mut block[..], 56, self.held_root);
        self.data_map.store(&mut block[64..]);
        self.metadata_map.store(&mut block[192..]);
        put_u64(&mut block[..], 320, self.mapping_root);
        put_u64(&mut block[..], 328, self.details_root);
        put_u32(&mut block[..], 336, self.data_block_sectors);
        put_u32(&mut block[..], 340, self.metadata_block_sectors);
        put_u64(&mut block[..], 344, self.metadata_nr_blocks);
        put_u32(&mut block[..], COMPAT_FLAGS, self.compat_flags);
        put_u32(&mut block[..], COMPAT_RO_FLAGS, self.compat_ro_flags);
        put_u32(&mut block[..], 360, self.incompat_flags);
        seal(BlockKind::Superblock, number, &mut block);
        block
    }

    /// True if the pool may not be changed before it was checked.
    pub(crate) fn needs_check(&self) -> bool {
        self.flags & FLAG_NEEDS_CHECK != 0
    }

    /// True if an intent log may hold changes that this state lacks.
    pub(crate) fn is_logged(&self) -> bool {
        self.compat_ro_flags & COMPAT_RO_LOGGED != 0
    }

    /// Sets that mark, or takes it off.
    pub(crate) fn set_logged(&mut self, logged: bool) {
        self.compat_ro_flags = self.foreign_compat_ro() | if logged { COMPAT_RO_LOGGED } else { 0 };
    }

    /// True if a kernel was given the pool and nobody has taken it back in order.
    pub(crate) fn is_served(&self) -> bool {
        self.compat_flags & COMPAT_SERVED != 0
    }

    /// Takes that mark off.
    pub(crate) fn clear_served(&mut self) {
        self.compat_flags = self.foreign_compat();
    }

    /// Features that everybody may ignore, and that this build does not know.
    pub(crate) fn foreign_compat(&self) -> u32 {
        self.compat_flags & !COMPAT_SERVED
    }

    /// Features that forbid writing to everybody who does not know them, and that this build does not know.
    pub(crate) fn foreign_compat_ro(&self) -> u32 {
        self.compat_ro_flags & !COMPAT_RO_LOGGED
    }
}

/// A sound superblock with the mark of an intent log set or taken off, sealed; no other byte differs.
pub(crate) fn marked_logged(block: &Block, logged: bool) -> Box<Block> {
    marked(block, COMPAT_RO_FLAGS, COMPAT_RO_LOGGED, logged)
}

/// A sound superblock with the mark of a pool that a kernel serves set or taken off, sealed; no other byte differs.
pub(crate) fn marked_served(block: &Block, served: bool) -> Box<Block> {
    marked(block, COMPAT_FLAGS, COMPAT_SERVED, served)
}

fn marked(block: &Block, field: usize, bit: u32, set: bool) -> Box<Block> {
    let mut marked: Box<Block> = Box::new(*block);
    let others = u32_at(block, field) & !bit;
    put_u32(&mut marked[..], field, if set { others | bit } else { others });
    seal(BlockKind::Superblock, SUPERBLOCK, &mut marked);
    marked
}

#[cfg(test)]
mod tests {
    use super::{SUPERBLOCK, Superblock, marked_logged};
    use crate::format::bytes::u32_at;
    use crate::format::space_map::SpaceMapRoot;

    /// The superblock of the document's worked example, written by the kernel.
    #[test]
    fn the_superblock_of_the_worked_example_has_the_kernels_checksum() {
        let mut superblock = Superblock::new([0; 16], 128, 1024);
        superblock.time = 1;
        superblock.data_map = SpaceMapRoot { nr_blocks: 2048, nr_allocated: 13, bitmap_root: 41, ref_count_root: 5 };
        superblock.metadata_map =
            SpaceMapRoot { nr_blocks: 1024, nr_allocated: 11, bitmap_root: 42, ref_count_root: 2 };
        superblock.mapping_root = 37;
        superblock.details_root = 40;
        let block = superblock.encode(SUPERBLOCK);
        assert_eq!(u32_at(&block[..], 0), 0xaaa8_7495);
        assert_eq!(Superblock::decode(SUPERBLOCK, &block).unwrap(), superblock);
        assert!(block[364..].iter().all(|&b| b == 0));
    }

    #[test]
    fn the_mark_of_a_log_changes_nothing_but_itself_and_the_checksum() {
        let mut superblock = Superblock::new([7; 16], 128, 1024);
        superblock.compat_ro_flags = 2;
        let mut block = superblock.encode(SUPERBLOCK);
        // Bytes of another writer that no field tells.
        block[100] = 5;
        let plain = marked_logged(&block, false);
        let marked = marked_logged(&plain, true);
        let found = Superblock::decode(SUPERBLOCK, &marked).unwrap();
        assert!(found.is_logged() && found.foreign_compat_ro() == 2);
        assert_eq!((&marked[4..356], marked[100]), (&plain[4..356], 5));
        assert_eq!(marked[360..], plain[360..]);
        assert_eq!(marked_logged(&marked, false), plain);
    }
}
