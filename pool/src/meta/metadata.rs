//! The pool's metadata as one value: devices, mappings, counts, and how a generation of changes is committed.
//!
//! The owner keeps it behind one mutex and holds that for tree edits only, never across data I/O. A commit
//! is three steps, of which only the first and the last need the mutex:
//! 1. [`Metadata::freeze`] closes the running generation: it brings the space maps up to date and hands out what
//!    must be written. Changes after it belong to the next generation.
//! 2. The owner flushes the data device and has [`Frozen`](crate::meta::Frozen) write its blocks, in any order, flush, write
//!    its superblock, flush.
//! 3. [`Metadata::committed`] tells that the generation is durable. Metadata blocks freed in it may be used
//!    again; data blocks freed in it are handed to the owner, who discards them if it likes and gives them
//!    back with [`Metadata::release_data`].
//!
//! Invariants: a block that the newest durable superblock, or a frozen one on its way, can reach is never
//! written; a block freed in a generation is not handed out before that generation is durable; at most one
//! generation is frozen at a time.
//!
//! Space and existence are checked before a change begins, so an operation that fails for want of them has changed
//! nothing. A change that fails half-way (damage or an I/O error met in the middle of a tree) leaves trees and
//! counts at odds: from then on the value answers look-ups only, and nothing more can be committed. The disk still
//! holds the last commit; opening it again is the way on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::device::BlockDevice;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{DeviceDetails, IndexEntry, Mapping, Superblock};
use crate::meta::counts::Counts;
use crate::meta::transaction::Transaction;
use crate::units::{BlockSize, ByteCount, DataBlock, DeviceId, METADATA_BLOCK_SIZE, MetaBlock, VirtualBlock};

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

impl SpaceCounts {
    fn of(counts: &Counts) -> Self {
        Self { used: counts.used(), total: counts.total(), available: counts.available(), pending: counts.pending() }
    }
}

/// A device as the running generation sees it.
#[derive(Debug, Clone, Copy)]
pub(in crate::meta) struct Device {
    /// Root of its mapping tree.
    pub(in crate::meta) root: MetaBlock,
    /// Its record; written to the details tree at the freeze.
    pub(in crate::meta) details: DeviceDetails,
}

/// The metadata of one pool.
pub struct Metadata {
    /// Clock, transaction id and roots of the running generation; the map roots are filled in at the freeze.
    pub(in crate::meta) superblock: Superblock,
    pub(in crate::meta) block_size: BlockSize,
    pub(in crate::meta) mode: OpenMode,
    pub(in crate::meta) transaction: Transaction,
    pub(in crate::meta) devices: BTreeMap<DeviceId, Device>,
    /// Devices whose record differs from the details tree.
    pub(in crate::meta) details_changed: BTreeSet<DeviceId>,
    pub(in crate::meta) data_index: Vec<IndexEntry>,
    pub(in crate::meta) metadata_index: Vec<IndexEntry>,
    /// Commits so far, as far as the index block tells; 0 in a pool that others wrote.
    pub(in crate::meta) sequence: u32,
    /// Readers beside the pool, by number.
    pub(in crate::meta) views: BTreeSet<u64>,
    /// True if something changed since the last freeze.
    pub(in crate::meta) changed: bool,
    /// True while a generation is on its way to the disk.
    pub(in crate::meta) frozen: bool,
    /// True while the reserve may be used for anything.
    pub(in crate::meta) spends_reserve: bool,
    /// What went wrong in the middle of a change, if anything did.
    pub(in crate::meta) torn: Option<String>,
}

impl Metadata {
    pub(in crate::meta) fn assemble(
        superblock: Superblock,
        block_size: BlockSize,
        mode: OpenMode,
        transaction: Transaction,
    ) -> Self {
        Self {
            superblock,
            block_size,
            mode,
            transaction,
            devices: BTreeMap::new(),
            details_changed: BTreeSet::new(),
            data_index: Vec::new(),
            metadata_index: Vec::new(),
            sequence: 0,
            views: BTreeSet::new(),
            changed: false,
            frozen: false,
            spends_reserve: false,
            torn: None,
        }
    }

    /// Reads superblock, counts and devices; nothing is written. Errors: `Corrupt` (which block, which field),
    /// `Unsupported` (flags), `NeedsCheck`, `NotFound` if block 0 is all zero.
    pub fn open(device: Arc<dyn BlockDevice>, mode: OpenMode) -> Result<Self> {
        crate::meta::open::open(device, mode)
    }

    /// Reads, for looking only, a pool that somebody else changes meanwhile (the kernel), at the moment of the metadata
    /// snapshot that the caller has just had it take: the trees stay until the snapshot is released, and the counts
    /// are read here and now. Errors: `InUse` if the pool has changed since, so that a new snapshot is needed; `NotFound`
    /// if none is held; others as [`open`](Self::open).
    pub fn open_held(device: Arc<dyn BlockDevice>) -> Result<Self> {
        crate::meta::open::open_held(device)
    }

    /// Size of a data block.
    #[must_use]
    pub fn block_size(&self) -> BlockSize {
        self.block_size
    }

    /// The superblock's uuid field.
    #[must_use]
    pub fn identity(&self) -> [u8; 16] {
        self.superblock.identity
    }

    /// The snapshot clock.
    #[must_use]
    pub fn time(&self) -> u32 {
        self.superblock.time
    }

    /// The volume manager's number.
    #[must_use]
    pub fn transaction_id(&self) -> u64 {
        self.superblock.transaction_id
    }

    /// True if the pool carries the needs_check flag; it is then open for reading only.
    #[must_use]
    pub fn needs_check(&self) -> bool {
        self.superblock.needs_check()
    }

    /// Compare-and-set. Errors: `Invalid` unless it stands at `from`, `ReadOnly`.
    pub fn set_transaction_id(&mut self, from: u64, to: u64) -> Result<()> {
        self.check_writable("set the transaction id")?;
        let now = self.superblock.transaction_id;
        if now != from {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("set the transaction id from {from} to {to}: the pool stands at {now}"),
            ));
        }
        self.superblock.transaction_id = to;
        self.changed = true;
        Ok(())
    }

    /// Gives a pool without an identity one. Errors: `Invalid` if it has one, `ReadOnly`.
    pub fn set_identity(&mut self, identity: [u8; 16]) -> Result<()> {
        self.check_writable("set the identity")?;
        if self.superblock.identity != [0; 16] {
            return Err(Error::new(ErrorKind::Invalid, "set the identity: the pool has another one, which stays"));
        }
        self.superblock.identity = identity;
        self.changed = true;
        Ok(())
    }

    /// The held metadata snapshot's block, if one is held.
    #[must_use]
    pub fn held_root(&self) -> Option<MetaBlock> {
        (self.superblock.held_root != 0).then_some(MetaBlock(self.superblock.held_root))
    }

    /// Data space.
    #[must_use]
    pub fn data_space(&self) -> SpaceCounts {
        SpaceCounts::of(&self.transaction.data)
    }

    /// Metadata space, and the blocks kept back as reserve: min(4096, total / 10), at least 16.
    #[must_use]
    pub fn metadata_space(&self) -> (SpaceCounts, u64) {
        (SpaceCounts::of(&self.transaction.metadata), self.reserve())
    }

    /// True if something changed since the last freeze.
    #[must_use]
    pub fn dirty(&self) -> bool {
        self.changed
    }

    /// True while a generation is on its way to the disk: from a freeze to `committed`.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.frozen
    }

    /// Keeps at most so many bytes of nodes that stand on the disk, 16 MiB unless this says otherwise.
    pub fn limit_cache(&mut self, most: ByteCount) {
        self.transaction.cache().set_limit(most);
    }

    /// Bytes of nodes that are kept, and of those that must be until a commit has written them.
    pub fn cached(&mut self) -> (ByteCount, ByteCount) {
        let uncommitted = (self.transaction.uncommitted() * METADATA_BLOCK_SIZE) as u64;
        (self.transaction.cache().bytes(), ByteCount(uncommitted))
    }

    /// Lets every change use the reserve: for one who repeats changes that were possible before.
    pub fn spend_reserve(&mut self, spend: bool) {
        self.spends_reserve = spend;
    }

    /// What went wrong in the middle of a change: from then on nothing can be changed or committed.
    #[must_use]
    pub fn torn(&self) -> Option<&str> {
        self.torn.as_deref()
    }

    /// Errors with `ReadOnly` if the pool was opened so or a change has failed half-way.
    pub(in crate::meta) fn check_writable(&self, doing: &str) -> Result<()> {
        if let Some(torn) = &self.torn {
            return Err(Error::new(
                ErrorKind::ReadOnly,
                format!("{doing}: an earlier change failed half-way ({torn}); open the pool again"),
            ));
        }
        match self.mode {
            OpenMode::ReadWrite => Ok(()),
            OpenMode::ReadOnly => {
                Err(Error::new(ErrorKind::ReadOnly, format!("{doing}: the metadata is open for reading only")))
            }
        }
    }

    /// Runs a change whose conditions have been checked: from here on a failure means trees and counts at odds.
    pub(in crate::meta) fn alter<T>(&mut self, change: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.changed = true;
        change(self).inspect_err(|error| self.torn = Some(error.to_string()))
    }
}
