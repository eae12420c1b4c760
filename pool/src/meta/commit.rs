//! Closes a generation, writes it, and learns that it is durable.
//!
//! The crash argument. Between two superblocks every block written is one that the older superblock cannot reach:
//! new nodes, bitmaps and the index go to blocks that were free in it, and stay free of its references because a
//! block that it reaches is unavailable until a newer superblock is durable. So until the superblock is written any
//! subset of the new blocks, in any order, whole or torn, changes nothing that the old one describes. The flush
//! before the superblock makes all of them durable first; the superblock itself means something in its first sector
//! only, so it is old or new, never a mixture. The flush behind it is the moment of truth: before it nobody is
//! told that the change is durable and no block that the old superblock needs is handed out.

use std::fmt;
use std::sync::Arc;

use crate::device::BlockDevice;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Block, FLAG_NEEDS_CHECK, Node, SUPERBLOCK, Superblock, TreeKind, marked_logged, marked_served};
use crate::meta::btree::{insert, remove};
use crate::meta::metadata::{DataRun, Metadata};
use crate::meta::transaction::read_block;
use crate::mutation::Mutation;
use crate::units::{DataBlock, METADATA_BLOCK_SIZE, MetaBlock};

/// Bytes of one write, at most: adjacent blocks are merged up to here.
const WRITE_MAX: usize = 1 << 20;

enum Content {
    Node(Arc<Node>),
    Sealed(Box<Block>),
}

/// One closed generation of changes: blocks, and the superblock that makes them the truth.
pub struct Frozen {
    /// Ascending, each block once.
    blocks: Vec<(MetaBlock, Content)>,
    superblock: Box<Block>,
}

impl fmt::Debug for Frozen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frozen").field("blocks", &self.blocks.len()).finish_non_exhaustive()
    }
}

impl Frozen {
    /// Writes the blocks, flushes, writes the superblock, flushes. The data device must have been flushed before.
    /// After an error nobody knows which superblock will be found on the disk: go on only after opening again.
    pub fn write(&self, device: &dyn BlockDevice) -> Result<()> {
        self.write_blocks(device)?;
        self.flush_blocks(device)?;
        self.write_superblock(device)
    }

    /// Writes the blocks, which no superblock on the disk reaches yet. They must be durable, and so must the data that
    /// they map, before [`write_superblock`](Self::write_superblock).
    pub(crate) fn write_blocks(&self, device: &dyn BlockDevice) -> Result<()> {
        let mut run: Vec<u8> = Vec::new();
        let mut start = MetaBlock(0);
        for (block, content) in &self.blocks {
            let end = start.0 + (run.len() / METADATA_BLOCK_SIZE) as u64;
            if !run.is_empty() && (block.0 != end || run.len() >= WRITE_MAX) {
                write_run(device, start, &run)?;
                run.clear();
            }
            if run.is_empty() {
                start = *block;
            }
            match content {
                Content::Node(node) => run.extend_from_slice(&node.encode(*block)[..]),
                Content::Sealed(bytes) => run.extend_from_slice(&bytes[..]),
            }
        }
        if run.is_empty() {
            return Ok(());
        }
        write_run(device, start, &run)
    }

    /// Makes what [`write_blocks`](Self::write_blocks) wrote durable.
    pub(crate) fn flush_blocks(&self, device: &dyn BlockDevice) -> Result<()> {
        if Mutation::SkipMetadataFlush.is_on() {
            return Ok(());
        }
        device.flush().map_err(|e| e.doing("flush the metadata before the superblock"))
    }

    /// Writes the superblock and flushes: at return the generation is the truth.
    pub(crate) fn write_superblock(&self, device: &dyn BlockDevice) -> Result<()> {
        write_run(device, SUPERBLOCK, &self.superblock[..])?;
        if Mutation::SkipLastFlush.is_on() {
            return Ok(());
        }
        device.flush().map_err(|e| e.doing("flush the superblock"))
    }

    /// Tells the superblock of this generation from that of any other; see [`superblock_fingerprint`].
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        fingerprint(&self.superblock)
    }

    /// Metadata blocks that the generation writes, the superblock included.
    #[must_use]
    pub fn block_count(&self) -> usize {
        self.blocks.len() + 1
    }
}

fn write_run(device: &dyn BlockDevice, start: MetaBlock, bytes: &[u8]) -> Result<()> {
    device
        .write_at(bytes, start.0 * METADATA_BLOCK_SIZE as u64)
        .map_err(|e| e.doing(format_args!("write metadata from block {start} on")))
}

impl Metadata {
    /// Closes the running generation; `None` if nothing changed. Errors: what a change can meet; nothing more can
    /// be committed then. Panics if one generation is frozen already.
    pub fn freeze(&mut self) -> Result<Option<Frozen>> {
        assert!(!self.frozen, "the caller tells of a commit before it freezes again");
        if !self.changed {
            return Ok(None);
        }
        self.check_writable("commit")?;
        let sealed = self
            .alter(|this| {
                let mut sealed = Vec::new();
                this.write_details()?;
                this.write_data_map(&mut sealed)?;
                this.write_metadata_map(&mut sealed)?;
                Ok(sealed)
            })
            .map_err(|e| e.doing("commit"))?;
        let nodes = self.transaction.freeze();
        let mut blocks: Vec<(MetaBlock, Content)> = nodes
            .into_iter()
            .map(|(block, node)| (block, Content::Node(node)))
            .chain(sealed.into_iter().map(|(block, bytes)| (block, Content::Sealed(bytes))))
            .collect();
        blocks.sort_unstable_by_key(|&(block, _)| block);
        debug_assert!(blocks.windows(2).all(|pair| pair[0].0 < pair[1].0), "a block has one content");
        self.changed = false;
        self.frozen = true;
        Ok(Some(Frozen { blocks, superblock: self.superblock.encode(SUPERBLOCK) }))
    }

    /// The frozen generation is durable. Returns the data blocks that it freed, as runs; they stay
    /// unavailable until `release_data`.
    pub fn committed(&mut self, frozen: Frozen) -> Vec<DataRun> {
        // Its nodes are shared with the transaction, which is about to keep them as equal to the disk.
        drop(frozen);
        self.frozen = false;
        let mut runs: Vec<DataRun> = Vec::new();
        for block in self.transaction.committed() {
            match runs.last_mut() {
                Some(run) if run.start.0 + run.len == block => run.len += 1,
                _ => runs.push(DataRun { start: DataBlock(block), len: 1 }),
            }
        }
        runs
    }

    /// What [`committed`](Self::committed) is about to return.
    #[cfg(feature = "mutate")]
    pub(crate) fn frozen_freed(&self) -> Vec<DataRun> {
        self.transaction.data.frozen_freed().iter().map(|&block| DataRun { start: DataBlock(block), len: 1 }).collect()
    }

    fn write_details(&mut self) -> Result<()> {
        let mut root = MetaBlock(self.superblock.details_root);
        let mut items = Vec::new();
        for id in std::mem::take(&mut self.details_changed) {
            let key = u64::from(id.get());
            match self.devices.get(&id) {
                Some(device) => items.push((key, device.details)),
                None => root = remove(&mut self.transaction, TreeKind::Details, root, key..key + 1)?.root,
            }
        }
        if !items.is_empty() {
            root = insert(&mut self.transaction, TreeKind::Details, root, &items)?.root;
        }
        self.superblock.details_root = root.0;
        Ok(())
    }

    /// Sets the needs_check flag in the superblock on `device`, whatever else it says, and makes that durable: for
    /// an owner whose commit failed and who cannot tell what the disk holds. Errors: `Corrupt`, `Io`.
    pub fn mark_needs_check(device: &dyn BlockDevice) -> Result<()> {
        let doing = "set needs_check";
        let block = read_block(device, SUPERBLOCK).map_err(|e| e.doing(doing))?;
        let mut superblock = Superblock::decode(SUPERBLOCK, &block).map_err(|e| e.doing(doing))?;
        superblock.flags |= FLAG_NEEDS_CHECK;
        write_run(device, SUPERBLOCK, &superblock.encode(SUPERBLOCK)[..]).map_err(|e| e.doing(doing))?;
        device.flush().map_err(|e| e.doing(doing))
    }

    /// True if the pool is marked as having an intent log: no kernel opens it for writing.
    #[must_use]
    pub fn is_logged(&self) -> bool {
        self.superblock.is_logged()
    }

    /// Marks every superblock from here on as that of a pool with an intent log, or as one without.
    pub(crate) fn set_logged(&mut self, logged: bool) {
        self.superblock.set_logged(logged);
    }

    /// Puts the mark of [`set_logged`](Self::set_logged) into the superblock that stands on `device`, durably, unless it
    /// is there already. No generation may be on its way. Errors: `Corrupt`, `Io`.
    pub(crate) fn write_logged(&self, device: &dyn BlockDevice) -> Result<()> {
        debug_assert!(!self.frozen, "the superblock on its way would overwrite this one");
        let logged = self.superblock.is_logged();
        let doing = |e: Error| e.doing(if logged { "mark the pool as logged" } else { "take the mark of a log off" });
        write_mark(device, logged, Superblock::is_logged, marked_logged).map_err(doing)
    }
}

/// Marks the superblock that stands on `device` as that of a pool which a kernel was given, or takes the mark off, durably,
/// unless it is so already. Errors: `Corrupt`, `Io`.
pub(crate) fn write_served(device: &dyn BlockDevice, served: bool) -> Result<()> {
    let doing = if served { "mark the pool as the kernel's" } else { "take the mark of the kernel off" };
    write_mark(device, served, Superblock::is_served, marked_served).map_err(|e| e.doing(doing))
}

fn write_mark(
    device: &dyn BlockDevice,
    wanted: bool,
    is_set: impl Fn(&Superblock) -> bool,
    marked: impl Fn(&Block, bool) -> Box<Block>,
) -> Result<()> {
    let block = read_block(device, SUPERBLOCK)?;
    if is_set(&Superblock::decode(SUPERBLOCK, &block)?) == wanted {
        return Ok(());
    }
    write_run(device, SUPERBLOCK, &marked(&block, wanted)[..])?;
    device.flush()
}

/// Which superblock stands on `device`: 64 bits of checksums over all that it says but its flags and the mark of an
/// intent log, so that one that was marked since, for a check or as logged, is still the same. Errors: `Corrupt`, `Io`.
pub fn superblock_fingerprint(device: &dyn BlockDevice) -> Result<u64> {
    let block = read_block(device, SUPERBLOCK)?;
    Superblock::decode(SUPERBLOCK, &block)?;
    Ok(fingerprint(&block))
}

fn fingerprint(superblock: &Block) -> u64 {
    // Behind csum and flags; what means something ends with the first sector. Each commit gives the metadata index a
    // new place, so a superblock differs from the one before and the one after.
    let unmarked = marked_logged(superblock, false);
    let said = &unmarked[8..512];
    u64::from(crc32c::crc32c(said)) | u64::from(crc32fast::hash(said)) << 32
}

/// Errors with `Invalid` if `bytes` of metadata do not hold `blocks`.
pub(in crate::meta) fn check_device_size(device: &dyn BlockDevice, blocks: u64, doing: &str) -> Result<()> {
    let there = device.size() / METADATA_BLOCK_SIZE as u64;
    if there >= blocks {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Invalid, format!("{doing}: {blocks} metadata blocks do not fit a device of {there}")))
}
