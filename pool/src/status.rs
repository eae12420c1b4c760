//! What a pool tells about itself: mode, space, counts, and the share of each device.

use std::collections::BTreeMap;

use crate::units::{BlockSize, ByteCount, DeviceId, VirtualBlock};

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

/// What stands between the free blocks of a pool and its writers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Room {
    /// The file system below a sparse data file; `None` where nothing below can fill up, or nothing tells.
    pub below: Option<Space>,
    /// The layer below refused a write for want of room, and has not taken one since.
    pub full_below: bool,
    /// Bytes that the data file holds there beyond the pool's own used bytes: free blocks not emptied yet, and those
    /// that are handed out next, which have their room already.
    pub unpunched: ByteCount,
    /// Bytes in blocks that were given back and are not handed out yet: they wait for a commit, or are
    /// being emptied.
    pub returning: ByteCount,
    /// Writes that wait for room.
    pub waiting_writes: u64,
    /// Bytes that they hold in memory.
    pub waiting: ByteCount,
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
    /// What writers meet beyond the free blocks.
    pub room: Room,
}

impl PoolStatus {
    /// Bytes that new blocks can take: the free ones, as far as the file system below has room for them.
    #[must_use]
    pub fn data_room(&self) -> ByteCount {
        let free = self.data.free();
        match self.room.below {
            Some(below) => free.min(ByteCount(below.free().0.saturating_add(self.room.unpunched.0))),
            None => free,
        }
    }

    /// Metadata bytes above the reserve.
    #[must_use]
    pub fn metadata_room(&self) -> ByteCount {
        ByteCount(self.metadata.free().0.saturating_sub(self.metadata_reserve.0))
    }
}

/// A state that a caller knows, and bounds within which a change is no news to him.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Steady {
    /// The mode.
    pub mode: PoolMode,
    /// Least and most of [`PoolStatus::data_room`].
    pub data_room: (ByteCount, ByteCount),
    /// Least and most of [`PoolStatus::metadata_room`].
    pub metadata_room: (ByteCount, ByteCount),
    /// Whether writes wait for room.
    pub writes_wait: bool,
}

impl Steady {
    /// True if `status` is no news.
    #[must_use]
    pub fn holds(&self, status: &PoolStatus) -> bool {
        let within = |value: ByteCount, (least, most): (ByteCount, ByteCount)| least <= value && value <= most;
        self.mode == status.mode
            && within(status.data_room(), self.data_room)
            && within(status.metadata_room(), self.metadata_room)
            && self.writes_wait == (status.room.waiting_writes > 0)
    }
}

/// What one thin device holds alone, and what a group of devices holds together and nobody else.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Holdings {
    /// Every device, ascending: bytes mapped, and bytes that deleting it gives back.
    pub devices: Vec<Holding>,
    /// For each group that was asked for: bytes that deleting all of its devices gives back.
    pub groups: Vec<(u32, ByteCount)>,
    /// Bytes that a held metadata snapshot alone keeps.
    pub held: ByteCount,
    /// Metadata blocks that were read.
    pub nodes: u64,
}

/// One device's part of [`Holdings`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Holding {
    /// The device.
    pub id: DeviceId,
    /// Bytes in mapped blocks.
    pub mapped: ByteCount,
    /// Bytes of data that deleting it gives back.
    pub exclusive: ByteCount,
    /// Bytes of metadata that deleting it gives back.
    pub metadata: ByteCount,
}

/// A committed state of the metadata that stays readable beside the pool until its view is ended.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MetadataView {
    /// Names the view when it is ended.
    pub number: u64,
    /// The superblock to start from: block 0 as it was; the one on the disk goes on changing.
    pub superblock: Vec<u8>,
    /// Other metadata blocks as they were, by number, which the engine does not keep on the disk. Within one process
    /// only: the engine that needs them has no host.
    #[serde(skip)]
    pub copies: BTreeMap<u64, Vec<u8>>,
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
