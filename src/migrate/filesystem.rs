//! Looks whether a device begins with the file system that its record names, and how large that is.

use crate::snapshot::FsType;

/// ext4's superblock and its fields: where they begin (source: the kernel's ext4.h).
const EXT4_SUPER: usize = 1024;
const EXT4_BLOCKS_LO: usize = 0x4;
const EXT4_LOG_BLOCK_SIZE: usize = 0x18;
const EXT4_MAGIC: usize = 0x38;
const EXT4_COMPAT: usize = 0x5c;
const EXT4_INCOMPAT: usize = 0x60;
const EXT4_BLOCKS_HI: usize = 0x150;
const EXT4_MAGIC_VALUE: u16 = 0xef53;
const EXT4_HAS_JOURNAL: u32 = 0x04;
const EXT4_NEEDS_RECOVERY: u32 = 0x04;
const EXT4_64BIT: u32 = 0x80;
const XFS_MAGIC: [u8; 4] = *b"XFSB";

/// What stands at the start of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) fs: FsType,
    /// Bytes that it takes of the device.
    pub(super) size: u64,
    /// Its journal holds changes that the rest of it lacks.
    pub(super) needs_replay: bool,
}

/// The file system that begins with `head` (4 KiB); `None` if it is none of ours, ext4 without a journal included.
pub(super) fn look(head: &[u8]) -> Option<Seen> {
    ext4(head.get(EXT4_SUPER..)?).or_else(|| xfs(head))
}

fn ext4(superblock: &[u8]) -> Option<Seen> {
    let word = |at: usize| superblock.get(at..)?.first_chunk().copied().map(u32::from_le_bytes);
    let magic = superblock.get(EXT4_MAGIC..)?.first_chunk().copied().map(u16::from_le_bytes)?;
    let incompat = word(EXT4_INCOMPAT)?;
    if magic != EXT4_MAGIC_VALUE || word(EXT4_COMPAT)? & EXT4_HAS_JOURNAL == 0 {
        return None;
    }
    let high = if incompat & EXT4_64BIT == 0 { 0 } else { word(EXT4_BLOCKS_HI)? };
    let blocks = u64::from(high) << 32 | u64::from(word(EXT4_BLOCKS_LO)?);
    let block = 1024_u64.checked_shl(word(EXT4_LOG_BLOCK_SIZE)?).filter(|block| (1024..=65536).contains(block))?;
    Some(Seen { fs: FsType::Ext4, size: blocks.checked_mul(block)?, needs_replay: incompat & EXT4_NEEDS_RECOVERY != 0 })
}

fn xfs(superblock: &[u8]) -> Option<Seen> {
    if superblock.get(..4)? != XFS_MAGIC {
        return None;
    }
    let block = superblock.get(4..)?.first_chunk().copied().map(u32::from_be_bytes)?;
    let blocks = superblock.get(8..)?.first_chunk().copied().map(u64::from_be_bytes)?;
    // Only a walk through its log could tell whether it is clean; it is replayed by the first mount.
    Some(Seen { fs: FsType::Xfs, size: blocks.checked_mul(u64::from(block))?, needs_replay: false })
}
