//! Reads metadata blocks of a bare device, verified, without any state of a pool.

use crate::check::preload::Nodes;
use crate::device::BlockDevice;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Block, Node, SUPERBLOCK, Superblock, TreeKind, zeroed_block};
use crate::units::{METADATA_BLOCK_SIZE, MetaBlock};

/// The device, and how many of its blocks are metadata.
pub(crate) struct Reader<'a> {
    device: &'a dyn BlockDevice,
    blocks: u64,
    nodes: Nodes,
}

impl<'a> Reader<'a> {
    /// A reader of the first `blocks` blocks.
    pub(crate) fn new(device: &'a dyn BlockDevice, blocks: u64) -> Self {
        Self { device, blocks, nodes: Nodes::new() }
    }

    /// Nodes that were read beforehand.
    pub(in crate::check) fn offer(&mut self, nodes: Nodes) {
        self.nodes = nodes;
    }

    /// One block as it is. Errors: `Corrupt` beyond the metadata, `Io`.
    pub(crate) fn block(&self, number: MetaBlock) -> Result<Box<Block>> {
        let size = METADATA_BLOCK_SIZE as u64;
        if number.0 >= self.blocks.min(self.device.size() / size) {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("metadata block {number} is beyond the {} blocks of the metadata", self.blocks),
            ));
        }
        let mut block = zeroed_block();
        self.device
            .read_at(&mut block[..], number.0 * size)
            .map_err(|e| e.doing(format_args!("read metadata block {number}")))?;
        Ok(block)
    }

    /// A node of a tree of that kind. Errors: `Corrupt`, `Io`.
    pub(crate) fn node(&self, kind: TreeKind, number: MetaBlock) -> Result<Node> {
        let node = match self.nodes.get(&number) {
            Some(node) => node.clone(),
            None => Node::decode(number, &*self.block(number)?)?,
        };
        if !node.is_internal() && node.value_size() != kind.value_size() {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "metadata block {number}: value_size {} in a leaf of the {}, which has {}",
                    node.value_size(),
                    kind.name(),
                    kind.value_size()
                ),
            ));
        }
        Ok(node)
    }

    /// The leaves of a tree in order. Errors: `Corrupt`, `Io`, and what `leaf` returns.
    pub(crate) fn leaves(
        &self,
        kind: TreeKind,
        root: MetaBlock,
        leaf: &mut dyn FnMut(&Node) -> Result<()>,
    ) -> Result<()> {
        // Keys must go up from leaf to leaf, so a circle ends at once.
        let mut last = None;
        self.leaves_below(kind, root, 0, &mut last, leaf)
    }

    fn leaves_below(
        &self,
        kind: TreeKind,
        block: MetaBlock,
        depth: usize,
        last: &mut Option<u64>,
        leaf: &mut dyn FnMut(&Node) -> Result<()>,
    ) -> Result<()> {
        let corrupt = |what: &str| {
            Err(Error::new(ErrorKind::Corrupt, format!("{}: metadata block {block}: {what}", kind.name())))
        };
        if depth >= TreeKind::DEPTH_MAX {
            return corrupt("the tree is too deep");
        }
        let node = self.node(kind, block).map_err(|e| e.doing(kind.name()))?;
        if node.is_internal() {
            for index in 0..node.len() {
                self.leaves_below(kind, node.child(index), depth + 1, last, leaf)?;
            }
            return Ok(());
        }
        match node.keys().first() {
            None if depth > 0 => return corrupt("nr_entries is 0 in a node that is no root"),
            Some(first) if last.is_some_and(|last| last >= *first) => return corrupt("keys are out of order"),
            None | Some(_) => {}
        }
        *last = node.keys().last().copied().or(*last);
        leaf(&node)
    }
}

/// The superblock of a device. Errors: `NotFound` if there is no pool, `Corrupt`, `Io`.
pub(crate) fn read_superblock(device: &dyn BlockDevice) -> Result<(Superblock, Box<Block>)> {
    if device.size() < METADATA_BLOCK_SIZE as u64 {
        return Err(Error::new(ErrorKind::NotFound, "the device is smaller than a superblock"));
    }
    let block = Reader::new(device, 1).block(SUPERBLOCK)?;
    if block.iter().all(|&byte| byte == 0) {
        return Err(Error::new(ErrorKind::NotFound, "block 0 is all zero: there is no pool"));
    }
    Ok((Superblock::decode(SUPERBLOCK, &block)?, block))
}
