//! What a pool tells about itself: mode, space, counts, and the share of each device.

use crate::units::{BlockSize, ByteCount, VirtualBlock};

/// What the pool still does, in degrading order; the order is used for comparisons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolMode {
    /// Everything works.
    Write,
    /// Writes that need a new data block get ENOSPC; everything else works.
    OutOfDataSpace,
    /// No change of metadata; reads work.
    ReadOnly,
    /// Nothing works.
    Fail,
}

/// Used and total space of one kind, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Space {
    /// Bytes in blocks with a count above zero.
    pub used: ByteCount,
    /// Bytes in all blocks.
    pub total: ByteCount,
}

impl Space {
    /// Bytes in free blocks.
    #[must_use]
    pub fn free(self) -> ByteCount {
        ByteCount(self.total.0.saturating_sub(self.used.0))
    }
}

/// The state of a pool at one moment.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PoolStatus {
    /// 16 random bytes, stamped into the superblock when the pool was made; zero in foreign pools.
    pub identity: [u8; 16],
    /// Which engine moves the blocks: `embedded` or `kernel`.
    pub engine: String,
    /// What the pool still does.
    pub mode: PoolMode,
    /// Why the mode is not `Write`, in words; `None` in `Write`.
    pub reason: Option<String>,
    /// Size of a data block.
    pub block_size: BlockSize,
    /// Data space.
    pub data: Space,
    /// Metadata space.
    pub metadata: Space,
    /// Metadata kept back so that deletions and commits always find room.
    pub metadata_reserve: ByteCount,
    /// The volume manager's number, changed only by compare-and-set.
    pub transaction_id: u64,
    /// The snapshot clock.
    pub time: u32,
    /// Thin devices in the pool.
    pub devices: u64,
    /// Thin devices that the host sees as block devices.
    pub active_devices: u64,
    /// True while a metadata snapshot is held.
    pub metadata_snapshot: bool,
}

/// A committed state of the metadata that stays readable beside the pool until its view is ended.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MetadataView {
    /// Names the view when it is ended.
    pub number: u64,
    /// The superblock to start from: block 0 as it was; the one on the disk goes on changing.
    pub superblock: Vec<u8>,
}

/// How much of the pool one thin device holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct DeviceUsage {
    /// Bytes in mapped blocks: `exclusive + shared`.
    pub mapped: ByteCount,
    /// Bytes that deleting the device would give back.
    pub exclusive: ByteCount,
    /// Bytes in blocks that another device maps too.
    pub shared: ByteCount,
    /// Bytes in blocks that were mapped since the device was created, that is: without what it
    /// inherited from its origin.
    pub written: ByteCount,
}

/// A run of virtual blocks whose mapping differs between two devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ChangedRange {
    /// First block of the run.
    pub start: VirtualBlock,
    /// Blocks in the run.
    pub len: u64,
    /// True if the second device maps these blocks, false if it has holes there.
    pub mapped: bool,
}
