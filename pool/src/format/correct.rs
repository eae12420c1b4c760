//! Takes one flipped bit back: a CRC-32C over 4 KiB tells which one it was.
//!
//! The checksum is linear: flipping a bit changes it by a value that depends on the bit's place only, and the values
//! of all 32,736 places and of the checksum's own 32 bits differ. A block with more damage than that looks like
//! another bit in one of 130,000 cases; the block number and all fields must fit then too.

use std::collections::HashMap;
use std::sync::OnceLock;

use crate::format::bytes::{Block, put_u32, u32_at};
use crate::format::checksum::{BlockKind, raw_checksum, verify};
use crate::units::{METADATA_BLOCK_SIZE, MetaBlock};

/// CRC-32C's polynomial, reflected.
const POLYNOMIAL: u32 = 0x82F6_3B78;

/// By how much a flipped bit changes the checksum, and which bit that is, counted from the start of the block.
fn places() -> &'static HashMap<u32, usize> {
    static PLACES: OnceLock<HashMap<u32, usize>> = OnceLock::new();
    PLACES.get_or_init(|| {
        let mut places = HashMap::with_capacity(METADATA_BLOCK_SIZE * 8);
        let mut change: [u32; 8] = std::array::from_fn(|bit| 1 << bit);
        for byte in (4..METADATA_BLOCK_SIZE).rev() {
            for (bit, change) in change.iter_mut().enumerate() {
                for _ in 0..8 {
                    *change = *change >> 1 ^ if *change & 1 == 1 { POLYNOMIAL } else { 0 };
                }
                places.insert(*change, byte * 8 + bit);
            }
        }
        places
    })
}

/// The block as it was before one of its bits was flipped, if that is what happened to it, and its kind. `None` also
/// for a sound block, and for one that could be two kinds.
pub(crate) fn correct(number: MetaBlock, block: &Block) -> Option<(BlockKind, Box<Block>)> {
    let (stored, raw) = (u32_at(block, 0), raw_checksum(block));
    let mut found = None;
    for kind in BlockKind::ALL {
        let difference = stored ^ raw ^ kind.salt();
        let mut fixed = Box::new(*block);
        if difference.count_ones() == 1 {
            put_u32(&mut fixed[..], 0, stored ^ difference);
        } else if let Some(&bit) = places().get(&difference) {
            fixed[bit / 8] ^= 1 << (bit % 8);
        } else {
            continue;
        }
        if verify(kind, number, &fixed).is_ok() && found.replace((kind, fixed)).is_some() {
            return None;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{correct, places};
    use crate::format::checksum::BlockKind;
    use crate::format::node::Node;
    use crate::units::MetaBlock;

    #[test]
    fn every_bit_changes_the_checksum_by_a_value_of_its_own() {
        assert_eq!(places().len(), 4092 * 8);
        assert!(places().keys().all(|change| change.count_ones() > 1), "none looks like a bit of the checksum itself");
    }

    #[test]
    fn every_flipped_bit_is_taken_back_and_two_are_not() {
        let mut leaf = Node::empty_leaf(8);
        (0..200u64).for_each(|key| leaf.push(key * 3, key << 24 | 7));
        let block = leaf.encode(MetaBlock(77));
        assert!(correct(MetaBlock(77), &block).is_none(), "nothing to take back");
        // By chance a bit may look like another one of another kind of block, and two bits like one.
        let (mut doubtful, mut mistaken) = (0, 0);
        for bit in 0..4096 * 8 {
            let mut damaged = block.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            match correct(MetaBlock(77), &damaged) {
                Some((kind, fixed)) => assert_eq!((kind, fixed == block), (BlockKind::Node, true), "bit {bit}"),
                None => doubtful += 1,
            }
            damaged[(bit / 8 + 1000) % 4096] ^= 4;
            mistaken += u32::from(correct(MetaBlock(77), &damaged).is_some());
        }
        assert!(doubtful <= 4 && mistaken <= 4, "{doubtful} bits were not taken back, {mistaken} pairs were");
        assert!(correct(MetaBlock(78), &block).is_none(), "a sound block of another place");
    }
}
