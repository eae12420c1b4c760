//! Bitmaps, index entries and root records: how the reference counts of a space map are stored.
//!
//! A bitmap holds 16,320 two-bit entries whose two bits stand in swapped order: the lower-numbered bit of a
//! byte is the high bit of the value. A value of 3 means "three or more, see the overflow tree".

use crate::error::{Error, ErrorKind, Result};
use crate::format::bytes::{Block, put_u32, put_u64, u32_at, u64_at, zeroed_block};
use crate::format::checksum::{BlockKind, seal, verify};
use crate::format::node::Value;
use crate::units::{METADATA_BLOCK_SIZE, MetaBlock};

/// Entries in a bitmap block: four to a byte after a header of 16 bytes.
pub(crate) const ENTRIES_PER_BITMAP: u64 = 16_320;
/// Entries of the one index block of the metadata space map.
pub(crate) const INDEX_ENTRIES_MAX: usize = 255;
/// The entry that says: the count is three or more and stands in the overflow tree.
pub(crate) const OVERFLOW: u8 = 3;

const HEADER: usize = 16;
/// Where the index block has its padding.
const SEQUENCE: usize = 4;

/// The counts of one bitmap block, an entry a byte, each 0..=3.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bitmap {
    /// 16,320 entries.
    pub(crate) entries: Vec<u8>,
}

impl Bitmap {
    /// Errors with `Corrupt` if checksum or number are wrong.
    pub(crate) fn decode(number: MetaBlock, block: &Block) -> Result<Self> {
        verify(BlockKind::Bitmap, number, block)?;
        let mut entries = Vec::with_capacity((METADATA_BLOCK_SIZE - HEADER) * 4);
        for &byte in &block[HEADER..] {
            for shift in [0, 2, 4, 6] {
                let pair = byte >> shift;
                entries.push((pair & 1) << 1 | (pair >> 1 & 1));
            }
        }
        Ok(Self { entries })
    }

    /// A sealed block of the counts that `counts` yields, each cut off at 3; missing ones are 0.
    pub(crate) fn encode(number: MetaBlock, counts: &[u8]) -> Box<Block> {
        let mut block = zeroed_block();
        for (byte, four) in block[HEADER..].iter_mut().zip(counts.chunks(4)) {
            for (place, &count) in four.iter().enumerate() {
                let value = count.min(OVERFLOW);
                *byte |= (value >> 1 | (value & 1) << 1) << (2 * place);
            }
        }
        seal(BlockKind::Bitmap, number, &mut block);
        block
    }
}

/// Where a bitmap stands and what an allocator may hope to find in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct IndexEntry {
    /// The bitmap block.
    pub(crate) block: u64,
    /// 16,320 less the entries with a count above zero, in the last, partly used bitmap too.
    pub(crate) nr_free: u32,
    /// No free entry stands before this one.
    pub(crate) none_free_before: u32,
}

impl Value for IndexEntry {
    const SIZE: usize = 16;

    fn load(bytes: &[u8]) -> Self {
        Self { block: u64_at(bytes, 0), nr_free: u32_at(bytes, 8), none_free_before: u32_at(bytes, 12) }
    }

    fn store(self, bytes: &mut [u8]) {
        put_u64(bytes, 0, self.block);
        put_u32(bytes, 8, self.nr_free);
        put_u32(bytes, 12, self.none_free_before);
    }
}

/// The first `wanted` entries of the metadata index block. Errors: `Corrupt`.
pub(crate) fn decode_index(number: MetaBlock, block: &Block, wanted: usize) -> Result<Vec<IndexEntry>> {
    verify(BlockKind::Index, number, block)?;
    if wanted > INDEX_ENTRIES_MAX {
        return Err(Error::new(
            ErrorKind::Corrupt,
            format!(
                "metadata block {number}: {wanted} bitmaps are more than the {INDEX_ENTRIES_MAX} of an index block"
            ),
        ));
    }
    Ok(block[HEADER..].chunks_exact(IndexEntry::SIZE).take(wanted).map(IndexEntry::load).collect())
}

/// How many commits came before, in the four bytes that dm-thin leaves as padding; 0 in what others wrote. Nothing
/// but a search for the newest state after the loss of the superblock looks at it.
pub(crate) fn index_sequence(block: &Block) -> u32 {
    u32_at(block, SEQUENCE)
}

/// A sealed index block of at most 255 entries.
pub(crate) fn encode_index(number: MetaBlock, entries: &[IndexEntry], sequence: u32) -> Box<Block> {
    assert!(entries.len() <= INDEX_ENTRIES_MAX, "the size of the metadata is bounded at open and at growth");
    let mut block = zeroed_block();
    put_u32(&mut block[..], SEQUENCE, sequence);
    for (bytes, entry) in block[HEADER..].chunks_exact_mut(IndexEntry::SIZE).zip(entries) {
        entry.store(bytes);
    }
    seal(BlockKind::Index, number, &mut block);
    block
}

/// How a superblock names a space map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct SpaceMapRoot {
    /// Blocks that the map counts.
    pub(crate) nr_blocks: u64,
    /// Blocks with a count above zero.
    pub(crate) nr_allocated: u64,
    /// Data map: root of the index tree. Metadata map: the index block.
    pub(crate) bitmap_root: u64,
    /// Root of the overflow tree.
    pub(crate) ref_count_root: u64,
}

impl SpaceMapRoot {
    /// From the first 32 bytes of a root record.
    pub(crate) fn load(bytes: &[u8]) -> Self {
        Self {
            nr_blocks: u64_at(bytes, 0),
            nr_allocated: u64_at(bytes, 8),
            bitmap_root: u64_at(bytes, 16),
            ref_count_root: u64_at(bytes, 24),
        }
    }

    /// Into the first 32 bytes of a root record.
    pub(crate) fn store(self, bytes: &mut [u8]) {
        put_u64(bytes, 0, self.nr_blocks);
        put_u64(bytes, 8, self.nr_allocated);
        put_u64(bytes, 16, self.bitmap_root);
        put_u64(bytes, 24, self.ref_count_root);
    }

    /// Bitmaps that the map has.
    pub(crate) fn bitmaps(self) -> u64 {
        self.nr_blocks.div_ceil(ENTRIES_PER_BITMAP)
    }
}

#[cfg(test)]
mod tests {
    use super::{Bitmap, ENTRIES_PER_BITMAP, IndexEntry, decode_index, encode_index, index_sequence};
    use crate::units::MetaBlock;

    #[test]
    fn the_lower_numbered_bit_is_the_high_bit_of_a_count() {
        let block = Bitmap::encode(MetaBlock(35), &[2, 1, 1, 1, 2, 2, 2, 2, 2, 1, 1, 1, 1]);
        assert_eq!(block[16..20], [0xa9, 0x55, 0xa9, 0x02]);
        let back = Bitmap::decode(MetaBlock(35), &block).unwrap();
        assert_eq!(back.entries[..14], [2, 1, 1, 1, 2, 2, 2, 2, 2, 1, 1, 1, 1, 0]);
        assert_eq!(back.entries.len() as u64, ENTRIES_PER_BITMAP);
    }

    #[test]
    fn the_metadata_bitmap_of_the_worked_example_is_met_byte_for_byte() {
        let mut counts = vec![0; 43];
        for block in [0, 2, 5].into_iter().chain(35..=42) {
            counts[block] = 1;
        }
        let block = Bitmap::encode(MetaBlock(36), &counts);
        assert_eq!(block[16..27], [0x22, 0x08, 0, 0, 0, 0, 0, 0, 0x80, 0xaa, 0x2a]);
    }

    #[test]
    fn a_count_above_two_is_stored_as_overflow() {
        let block = Bitmap::encode(MetaBlock(1), &[7, 255, 0]);
        assert_eq!(Bitmap::decode(MetaBlock(1), &block).unwrap().entries[..3], [3, 3, 0]);
    }

    #[test]
    fn an_index_block_keeps_its_entries() {
        let entries = [IndexEntry { block: 36, nr_free: 16_309, none_free_before: 1 }, IndexEntry::default()];
        let block = encode_index(MetaBlock(42), &entries, 9);
        assert_eq!(index_sequence(&block), 9);
        assert_eq!(block[16..32], [36, 0, 0, 0, 0, 0, 0, 0, 0xb5, 0x3f, 0, 0, 1, 0, 0, 0]);
        assert_eq!(decode_index(MetaBlock(42), &block, 2).unwrap(), entries);
        assert!(decode_index(MetaBlock(42), &block, 256).is_err());
    }
}
