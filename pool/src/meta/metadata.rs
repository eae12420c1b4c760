//! The pool's metadata as one value: devices, mappings, counts, and how a generation of changes is committed.
//!
//! The owner keeps it behind one mutex and holds that for tree edits only, never across data I/O. A commit
//! is three steps, of which only the first and the last need the mutex:
//! 1. [`Metadata::freeze`] closes the running generation: it brings the space maps up to date, seals every
//!    changed block, and hands out what must be written. Changes after it belong to the next generation.
//! 2. The owner flushes the data device, then calls [`Frozen::write`] (blocks, flush, superblock, flush).
//! 3. [`Metadata::committed`] tells that the generation is durable. Metadata blocks freed in it may be used
//!    again; data blocks freed in it are handed to the owner, who discards them if it likes and gives them
//!    back with [`Metadata::release_data`].
//!
//! Invariants: a block that the newest durable superblock, or a frozen one on its way, can reach is never
//! written; a block freed in a generation is not handed out before that generation is durable; at most one
//! generation is frozen at a time.

use std::ops::Range;
use std::sync::Arc;

use crate::device::BlockDevice;
use crate::error::Result;
use crate::format::Mapping;
use crate::status::{ChangedRange, DeviceUsage};
use crate::units::{BlockSize, DataBlock, DeviceId, MetaBlock, VirtualBlock};

/// How a new pool is laid out.
#[derive(Debug, Clone, Copy)]
pub struct FormatOptions {
    /// Size of a data block.
    pub block_size: BlockSize,
    /// Data blocks in the pool.
    pub data_blocks: u64,
    /// Metadata blocks in the pool.
    pub metadata_blocks: u64,
    /// 16 bytes stamped into the superblock's uuid field.
    pub identity: [u8; 16],
}

/// What the opener means to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// Read only; accepts needs_check and compat_ro flags.
    ReadOnly,
    /// Change; refuses needs_check (`NeedsCheck`) and unknown compat_ro flags (`Unsupported`).
    ReadWrite,
}

/// What the device details tree holds of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceDetails {
    /// Entries in the device's mapping tree.
    pub mapped_blocks: u64,
    /// The pool's transaction id when the device was made.
    pub transaction_id: u64,
    /// The snapshot clock when the device was made.
    pub creation_time: u32,
    /// The clock at the last snapshot taken of it, or at its creation.
    pub snapshotted_time: u32,
}

/// A run of data blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataRun {
    /// First block.
    pub start: DataBlock,
    /// Blocks in the run.
    pub len: u64,
}

/// A run of virtual blocks mapped to consecutive data blocks at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MappedRun {
    /// First virtual block.
    pub start: VirtualBlock,
    /// Blocks in the run.
    pub len: u64,
    /// The mapping of the first block.
    pub mapping: Mapping,
}

/// Used, total and pending blocks of one space map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpaceCounts {
    /// Blocks with a count above zero.
    pub used: u64,
    /// All blocks.
    pub total: u64,
    /// Blocks that can be handed out at once.
    pub available: u64,
    /// Blocks that become available with the next commit.
    pub pending: u64,
}

/// One closed generation of changes: sealed blocks and the superblock that makes them the truth.
#[derive(Debug)]
pub struct Frozen {
    _private: (),
}

impl Frozen {
    /// Writes the blocks, flushes, writes the superblock, flushes. The data device must have been flushed before.
    pub fn write(&self, _device: &dyn BlockDevice) -> Result<()> {
        todo!()
    }
}

/// The metadata of one pool.
pub struct Metadata {
    _private: (),
}

impl Metadata {
    /// Writes an empty pool onto `device`. Errors: `Invalid` (sizes), `AlreadyExists` if block 0 is not zero.
    pub fn format(_device: &dyn BlockDevice, _options: &FormatOptions) -> Result<()> {
        todo!()
    }

    /// Reads superblock and counts. Errors: `Corrupt` (which block, which field), `Unsupported` (flags),
    /// `NeedsCheck`, `NotFound` if block 0 is all zero.
    pub fn open(_device: Arc<dyn BlockDevice>, _mode: OpenMode) -> Result<Self> {
        todo!()
    }

    /// Size of a data block.
    pub fn block_size(&self) -> BlockSize {
        todo!()
    }

    /// The superblock's uuid field.
    pub fn identity(&self) -> [u8; 16] {
        todo!()
    }

    /// The snapshot clock.
    pub fn time(&self) -> u32 {
        todo!()
    }

    /// The volume manager's number.
    pub fn transaction_id(&self) -> u64 {
        todo!()
    }

    /// Compare-and-set. Errors: `Invalid` unless it stands at `from`.
    pub fn set_transaction_id(&mut self, _from: u64, _to: u64) -> Result<()> {
        todo!()
    }

    /// The held metadata snapshot's block, if one is held.
    pub fn held_root(&self) -> Option<MetaBlock> {
        todo!()
    }

    /// Data space.
    pub fn data_space(&self) -> SpaceCounts {
        todo!()
    }

    /// Metadata space, and the blocks kept back as reserve: min(4096, total / 10), at least 16.
    pub fn metadata_space(&self) -> (SpaceCounts, u64) {
        todo!()
    }

    /// Number of devices.
    pub fn device_count(&self) -> Result<u64> {
        todo!()
    }

    /// All devices, ascending.
    pub fn devices(&self) -> Result<Vec<(DeviceId, DeviceDetails)>> {
        todo!()
    }

    /// A device's details, or `None`.
    pub fn find_device(&self, _id: DeviceId) -> Result<Option<DeviceDetails>> {
        todo!()
    }

    /// New, empty device. Errors: `AlreadyExists`, `OutOfMetadataSpace`.
    pub fn create_thin(&mut self, _id: DeviceId) -> Result<()> {
        todo!()
    }

    /// New device sharing all of `origin`; the clock goes up by one. The caller has quiesced the origin. Errors:
    /// `AlreadyExists`, `NotFound`, `OutOfMetadataSpace`, `Unsupported` when the clock is at its end.
    pub fn create_snap(&mut self, _id: DeviceId, _origin: DeviceId) -> Result<()> {
        todo!()
    }

    /// Removes about `leaf_budget` leaves of the device's mappings, the device itself last. True: it is gone
    /// (or was absent). Every state in between can be committed.
    pub fn delete_step(&mut self, _id: DeviceId, _leaf_budget: usize) -> Result<bool> {
        todo!()
    }

    /// The mapping of one block.
    pub fn lookup(&self, _id: DeviceId, _block: VirtualBlock) -> Result<Option<Mapping>> {
        todo!()
    }

    /// The mappings of a range, as runs, ascending, clipped to the range; gaps are holes.
    pub fn lookup_range(&self, _id: DeviceId, _range: Range<VirtualBlock>) -> Result<Vec<MappedRun>> {
        todo!()
    }

    /// Reserves up to `want` consecutive data blocks (at least one). A reservation lives in memory only: it
    /// ends with `insert` or `release_data`, or with the process. Errors: `OutOfDataSpace` when nothing is
    /// available; `data_space().pending` tells whether a commit would help.
    pub fn reserve_data(&mut self, _want: u64) -> Result<DataRun> {
        todo!()
    }

    /// Gives reserved or committed-free blocks back to the allocator.
    pub fn release_data(&mut self, _runs: &[DataRun]) {
        todo!()
    }

    /// Maps `run.len` virtual blocks from `start` on to the reserved `run`, at the current time. Mappings
    /// replaced lose their reference. Errors: `NotFound`, `OutOfMetadataSpace` (nothing changed).
    pub fn insert(&mut self, _id: DeviceId, _start: VirtualBlock, _run: DataRun) -> Result<()> {
        todo!()
    }

    /// Removes the mappings of a range; returns how many there were.
    pub fn remove_range(&mut self, _id: DeviceId, _range: Range<VirtualBlock>) -> Result<u64> {
        todo!()
    }

    /// Grows the data space to `blocks` in all.
    pub fn grow_data(&mut self, _blocks: u64) -> Result<()> {
        todo!()
    }

    /// Grows the metadata space to `blocks` in all; the device is already that large.
    pub fn grow_metadata(&mut self, _blocks: u64) -> Result<()> {
        todo!()
    }

    /// Exact usage of a device in blocks, as bytes; walks its tree once.
    pub fn usage(&self, _id: DeviceId) -> Result<DeviceUsage> {
        todo!()
    }

    /// Where two devices differ; skips what they share.
    pub fn delta(&self, _from: DeviceId, _to: DeviceId) -> Result<Vec<ChangedRange>> {
        todo!()
    }

    /// True if something changed since the last freeze.
    pub fn dirty(&self) -> bool {
        todo!()
    }

    /// Closes the running generation; `None` if nothing changed. Panics if one is frozen already.
    pub fn freeze(&mut self) -> Result<Option<Frozen>> {
        todo!()
    }

    /// The frozen generation is durable. Returns the data blocks that it freed, as runs; they stay
    /// unavailable until `release_data`.
    pub fn committed(&mut self, _frozen: Frozen) -> Vec<DataRun> {
        todo!()
    }
}
