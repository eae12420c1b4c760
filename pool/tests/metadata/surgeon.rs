//! Changes single fields of metadata and seals the block again, as damage does that no checksum sees.

use std::ops::Range;

const BLOCK: usize = 4096;

/// What a block is; each kind has its own salt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Superblock,
    Node,
    Index,
    Bitmap,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Superblock, Self::Node, Self::Index, Self::Bitmap];

    fn salt(self) -> u32 {
        match self {
            Self::Superblock => 160_774,
            Self::Node => 121_107,
            Self::Index => 160_478,
            Self::Bitmap => 240_779,
        }
    }
}

fn bytes_of(block: usize) -> Range<usize> {
    block * BLOCK..(block + 1) * BLOCK
}

fn sum(image: &[u8], block: usize) -> u32 {
    !crc32c::crc32c(&image[block * BLOCK + 4..(block + 1) * BLOCK])
}

/// The u64 at byte `at` of a block.
pub(crate) fn u64_at(image: &[u8], block: usize, at: usize) -> u64 {
    u64::from_le_bytes(image[block * BLOCK + at..][..8].try_into().unwrap())
}

/// What a sound block is.
pub(crate) fn kind_of(image: &[u8], block: usize) -> Option<Kind> {
    let stored = u32::from_le_bytes(image[bytes_of(block)][..4].try_into().unwrap());
    Kind::ALL.into_iter().find(|kind| sum(image, block) ^ kind.salt() == stored)
}

/// Puts bytes into a block and seals it.
pub(crate) fn operate(image: &mut [u8], kind: Kind, block: usize, at: usize, bytes: &[u8]) {
    image[block * BLOCK + at..][..bytes.len()].copy_from_slice(bytes);
    let sum = sum(image, block) ^ kind.salt();
    image[bytes_of(block)][..4].copy_from_slice(&sum.to_le_bytes());
}

/// Blocks with a count above zero, by the first metadata bitmap: all of a small pool.
pub(crate) fn live_blocks(image: &[u8]) -> Vec<usize> {
    let block = |number: u64| usize::try_from(number).unwrap();
    let index = block(u64_at(image, 0, 192 + 16));
    let bitmap = block(u64_at(image, index, 16));
    let entries = &image[bytes_of(bitmap)][16..];
    (0..image.len() / BLOCK).filter(|n| entries[n / 4] >> (2 * (n % 4)) & 3 != 0).collect()
}
