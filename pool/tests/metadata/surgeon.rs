//! Changes single fields of metadata and seals the block again, as damage does that no checksum sees.

use std::ops::Range;

use crate::block_kind::Kind;

const BLOCK: usize = 4096;

fn bytes_of(block: usize) -> Range<usize> {
    block * BLOCK..(block + 1) * BLOCK
}

/// The u64 at byte `at` of a block.
pub(crate) fn u64_at(image: &[u8], block: usize, at: usize) -> u64 {
    u64::from_le_bytes(image[block * BLOCK + at..][..8].try_into().unwrap())
}

/// What a sound block is.
pub(crate) fn kind_of(image: &[u8], block: usize) -> Option<Kind> {
    Kind::of(&image[bytes_of(block)])
}

/// Puts bytes into a block and seals it.
pub(crate) fn operate(image: &mut [u8], kind: Kind, block: usize, at: usize, bytes: &[u8]) {
    image[block * BLOCK + at..][..bytes.len()].copy_from_slice(bytes);
    let sum = kind.checksum(&image[bytes_of(block)]);
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
