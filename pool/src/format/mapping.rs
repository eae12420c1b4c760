//! One entry of a bottom mapping tree: where a virtual block stands and when it was mapped.

use crate::units::{DataBlock, TIME_MAX};

/// The value of a mapping: a data block and the snapshot clock at its insertion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mapping {
    /// Where the block stands.
    pub block: DataBlock,
    /// The snapshot clock when the mapping was inserted, 24 bits.
    pub time: u32,
}

impl Mapping {
    /// The value as the leaf holds it: `block << 24 | time`.
    #[must_use]
    pub fn pack(self) -> u64 {
        (self.block.0 << 24) | u64::from(self.time & TIME_MAX)
    }

    /// The mapping that a leaf's value means.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "masked to 24 bits")]
    pub fn unpack(value: u64) -> Self {
        Self { block: DataBlock(value >> 24), time: (value & u64::from(TIME_MAX)) as u32 }
    }
}
