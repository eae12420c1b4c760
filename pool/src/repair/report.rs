//! What a repair found, took back and could not save: exactly which device, which blocks, how many bytes.

use crate::error::{Error, ErrorKind};
use crate::units::{ByteCount, MetaBlock};

/// Blocks of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct BlockRange {
    /// First virtual block.
    pub start: u64,
    /// The one behind the last; `None`: to the end of the device.
    pub end: Option<u64>,
}

/// What became of one device.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct DeviceOutcome {
    /// Its number.
    pub id: u64,
    /// Mappings that its record says it had; `None`: its record is lost.
    pub mapped_before: Option<u64>,
    /// Mappings that it has.
    pub mapped_after: u64,
    /// What may have been mapped in them is lost: they read as zeroes.
    pub lost: Vec<BlockRange>,
    /// What is mapped in them is at odds with the space map: it may be older than it should be.
    pub doubtful: Vec<BlockRange>,
    /// Nothing of it could be found: it is there, and empty.
    pub gone: bool,
    /// Its record was made anew.
    pub record_rebuilt: bool,
}

impl DeviceOutcome {
    /// True if every byte of the device is what it was.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.lost.is_empty()
            && self.doubtful.is_empty()
            && !self.gone
            && self.mapped_before.is_none_or(|before| before == self.mapped_after)
            && !(self.record_rebuilt && self.mapped_before.is_none() && self.lost_count() > 0)
    }

    /// Mappings that it had and has no more.
    #[must_use]
    pub fn lost_count(&self) -> u64 {
        self.mapped_before.map_or(0, |before| before.saturating_sub(self.mapped_after))
    }
}

/// What a repair does, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
pub struct RepairReport {
    /// Where the roots come from, in words.
    pub roots: String,
    /// Other states that could have been chosen, the newest first.
    pub candidates: Vec<String>,
    /// Metadata blocks of which a flipped bit was taken back.
    pub corrected: Vec<MetaBlock>,
    /// Metadata blocks that were needed and could not be read.
    pub unreadable: Vec<MetaBlock>,
    /// Nodes that nothing pointed to any more and that were found again.
    pub found_again: u64,
    /// Devices that are not what they were; every other one is.
    pub devices: Vec<DeviceOutcome>,
    /// Devices in all.
    pub device_count: u64,
    /// Device numbers of which nothing is known, if some may be missing.
    pub lost_ids: Vec<BlockRange>,
    /// The needs_check flag was set and goes.
    pub needs_check_cleared: bool,
    /// A metadata snapshot was held and goes.
    pub snapshot_released: bool,
    /// Size of a data block.
    pub block_size: ByteCount,
    /// Metadata blocks in use afterwards.
    pub metadata_blocks: u64,
}

impl RepairReport {
    /// True if nothing is lost and nothing is doubtful.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.devices.iter().all(DeviceOutcome::is_whole) && self.lost_ids.is_empty()
    }

    /// Bytes whose mappings are known to be lost.
    #[must_use]
    pub fn lost(&self) -> ByteCount {
        let blocks: u64 = self.devices.iter().map(DeviceOutcome::lost_count).sum();
        ByteCount(blocks.saturating_mul(self.block_size.0))
    }
}

/// The error of a repair that found nothing to begin with.
pub(in crate::repair) fn hopeless(why: impl Into<String>) -> Error {
    Error::new(ErrorKind::Corrupt, format!("repair the metadata: {}", why.into()))
}
