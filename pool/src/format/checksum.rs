//! The checksum that opens every metadata block, and the block number that stands beside it.
//!
//! Checksum = R xor salt, R = CRC-32C over bytes 4..4096 without the final inversion. The salt tells the four
//! kinds of block apart, so a node read where a bitmap should be is found out here.

use crate::error::{Error, ErrorKind, Result};
use crate::format::bytes::{Block, put_u32, put_u64, u32_at, u64_at};
use crate::units::MetaBlock;

/// What a metadata block is, as far as its checksum knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BlockKind {
    /// Block 0 and the held copy.
    Superblock,
    /// A node of any btree.
    Node,
    /// The index block of the metadata space map.
    Index,
    /// A bitmap of either space map.
    Bitmap,
}

impl BlockKind {
    pub(crate) const ALL: [Self; 4] = [Self::Superblock, Self::Node, Self::Index, Self::Bitmap];

    pub(crate) fn salt(self) -> u32 {
        match self {
            Self::Superblock => 160_774,
            Self::Node => 121_107,
            Self::Index => 160_478,
            Self::Bitmap => 240_779,
        }
    }

    /// What people call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Superblock => "superblock",
            Self::Node => "btree node",
            Self::Index => "metadata index",
            Self::Bitmap => "bitmap",
        }
    }
}

/// The checksum without a salt.
pub(crate) fn raw_checksum(block: &Block) -> u32 {
    !crc32c::crc32c(&block[4..])
}

fn checksum(kind: BlockKind, block: &Block) -> u32 {
    raw_checksum(block) ^ kind.salt()
}

/// Stamps number and checksum: the last thing done to a block before it is written.
pub(crate) fn seal(kind: BlockKind, number: MetaBlock, block: &mut Block) {
    put_u64(block, 8, number.0);
    let sum = checksum(kind, block);
    put_u32(block, 0, sum);
}

/// Errors with `Corrupt` unless the block is a sound `kind` that belongs at `number`.
pub(crate) fn verify(kind: BlockKind, number: MetaBlock, block: &Block) -> Result<()> {
    let stored = u32_at(block, 0);
    let computed = checksum(kind, block);
    if stored != computed {
        let raw = computed ^ kind.salt();
        let other = BlockKind::ALL.into_iter().find(|k| stored == raw ^ k.salt());
        let hint = other.map_or(String::new(), |k| format!(", but it is a sound {}", k.name()));
        return Err(Error::new(
            ErrorKind::Corrupt,
            format!(
                "metadata block {number}: csum of the {} is {stored:#010x}, its content gives {computed:#010x}{hint}",
                kind.name()
            ),
        ));
    }
    let carried = u64_at(block, 8);
    if carried != number.0 {
        return Err(Error::new(
            ErrorKind::Corrupt,
            format!("metadata block {number}: blocknr of the {} says {carried}", kind.name()),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{BlockKind, checksum, seal, verify};
    use crate::error::ErrorKind;
    use crate::format::bytes::zeroed_block;
    use crate::units::MetaBlock;

    #[test]
    fn crc_of_the_digits_is_the_vector_of_the_format() {
        assert_eq!(!crc32c::crc32c(b"123456789"), 0x1CF9_6D7C);
    }

    #[test]
    fn a_zero_block_has_the_checksum_of_its_kind() {
        let zero = zeroed_block();
        assert_eq!(checksum(BlockKind::Superblock, &zero), 0x58cf_d397);
        assert_eq!(checksum(BlockKind::Node, &zero), 0x58cc_7e82);
        assert_eq!(checksum(BlockKind::Index, &zero), 0x58cf_d54f);
        assert_eq!(checksum(BlockKind::Bitmap, &zero), 0x58ce_0b1a);
    }

    #[test]
    fn a_sealed_block_verifies_and_a_flipped_bit_does_not() {
        let mut block = zeroed_block();
        block[100] = 7;
        seal(BlockKind::Bitmap, MetaBlock(9), &mut block);
        verify(BlockKind::Bitmap, MetaBlock(9), &block).unwrap();
        block[2000] ^= 1;
        assert_eq!(verify(BlockKind::Bitmap, MetaBlock(9), &block).unwrap_err().kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn a_block_of_another_kind_or_place_is_named_in_the_error() {
        let mut block = zeroed_block();
        seal(BlockKind::Node, MetaBlock(9), &mut block);
        let kind = verify(BlockKind::Bitmap, MetaBlock(9), &block).unwrap_err().to_string();
        assert!(kind.contains("metadata block 9") && kind.contains("it is a sound btree node"), "{kind}");
        let place = verify(BlockKind::Node, MetaBlock(8), &block).unwrap_err().to_string();
        assert!(place.contains("metadata block 8") && place.contains("says 9"), "{place}");
    }
}
