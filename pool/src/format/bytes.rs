//! A metadata block as bytes, and the little-endian integers at fixed places of it.

use crate::units::METADATA_BLOCK_SIZE;

/// The bytes of one metadata block.
pub(crate) type Block = [u8; METADATA_BLOCK_SIZE];

/// A block of zeroes on the heap.
pub(crate) fn zeroed_block() -> Box<Block> {
    Box::new([0; METADATA_BLOCK_SIZE])
}

/// The u32 at byte `at`; every place is a constant of the format and lies inside the block.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("a slice of four bytes"))
}

/// The u64 at byte `at`.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("a slice of eight bytes"))
}

/// Stores a u32 at byte `at`.
pub(crate) fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// Stores a u64 at byte `at`.
pub(crate) fn put_u64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}
