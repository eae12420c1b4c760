//! The numbers of a thin pool as types of their own, and every limit of the format.
//!
//! `DataBlock(7)` is not `VirtualBlock(7)`: what could be swapped cannot be.

use std::fmt;

use crate::error::{Error, ErrorKind, Result};

/// Bytes in a metadata block; the format knows no other size (source: dm-thin).
pub(crate) const METADATA_BLOCK_SIZE: usize = 4096;
/// Bytes in a sector, the unit of sizes in the superblock.
pub(crate) const SECTOR_SIZE: u64 = 512;
/// Most metadata blocks that the format can address: 255 bitmaps of 16,320 entries.
pub(crate) const METADATA_BLOCKS_MAX: u64 = 255 * 16_320;
/// Fewest metadata blocks that make a usable pool: 2 MiB.
pub(crate) const METADATA_BLOCKS_MIN: u64 = 512;
/// Data block numbers have 40 bits in a packed mapping.
pub(crate) const DATA_BLOCKS_MAX: u64 = 1 << 40;
/// The snapshot clock has 24 bits in a packed mapping.
pub(crate) const TIME_MAX: u32 = (1 << 24) - 1;
/// Device ids have 24 bits in every message and table.
pub(crate) const DEVICE_ID_MAX: u32 = (1 << 24) - 1;

/// The number of a thin device in its pool, 0 …= 16,777,215.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct DeviceId(u32);

impl DeviceId {
    /// Errors with `Invalid` if `id` needs more than 24 bits.
    pub fn new(id: u32) -> Result<Self> {
        if id > DEVICE_ID_MAX {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("device id {id} is above {DEVICE_ID_MAX}, the largest that dm-thin accepts"),
            ));
        }
        Ok(Self(id))
    }

    /// The plain number.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

macro_rules! block_number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        pub struct $name(pub u64);

        impl $name {
            /// The block `count` places further on.
            #[must_use]
            pub fn plus(self, count: u64) -> Self {
                Self(self.0 + count)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

block_number!(
    /// A data block of the pool, counted from the start of the data device.
    DataBlock
);
block_number!(
    /// A metadata block, counted in 4 KiB from the start of the metadata device.
    MetaBlock
);
block_number!(
    /// A block of a thin device, counted in data blocks from the start of the device.
    VirtualBlock
);

/// A size or an offset in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize)]
pub struct ByteCount(pub u64);

impl fmt::Display for ByteCount {
    /// One decimal and a binary unit, as people read it: `12.4 GiB`.
    #[expect(clippy::cast_precision_loss, reason = "one decimal is shown; 52 bits are plenty")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        if self.0 < 1024 {
            return write!(f, "{} B", self.0);
        }
        let mut value = self.0 as f64 / 1024.0;
        let mut unit = 0;
        while value >= 1024.0 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        write!(f, "{value:.1} {}", UNITS[unit])
    }
}

/// The size of a pool's data blocks: 64 KiB …= 1 GiB, a multiple of 64 KiB, not necessarily a power of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct BlockSize(u32);

impl BlockSize {
    /// 64 KiB, the default and the smallest.
    pub const DEFAULT: Self = Self(64 * 1024);

    /// Errors with `Invalid` outside 64 KiB …= 1 GiB or off a multiple of 64 KiB.
    pub fn from_bytes(bytes: u64) -> Result<Self> {
        const STEP: u64 = 64 * 1024;
        const MAX: u64 = 1 << 30;
        match u32::try_from(bytes) {
            Ok(b) if (STEP..=MAX).contains(&bytes) && bytes.is_multiple_of(STEP) => Ok(Self(b)),
            _ => Err(Error::new(
                ErrorKind::Invalid,
                format!("data block size {bytes} is not a multiple of 64 KiB between 64 KiB and 1 GiB"),
            )),
        }
    }

    /// Bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        u64::from(self.0)
    }

    /// 512-byte sectors, as the superblock holds it.
    #[must_use]
    pub fn sectors(self) -> u32 {
        self.0 / 512
    }

    /// How many blocks hold `bytes`, the last one perhaps in part.
    #[must_use]
    pub fn blocks_for(self, bytes: ByteCount) -> u64 {
        bytes.0.div_ceil(self.bytes())
    }
}
