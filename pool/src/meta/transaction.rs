//! The running generation of changes: the only place that gives a writable node.
//!
//! A node is writable if it was made in this generation and has one owner. Everything else is copied first
//! ([`Transaction::shadow`]), so a block that a durable or a frozen superblock can reach is never changed, and
//! neither is one that was shared by a snapshot taken in this very generation.

use std::cell::RefCell;
use std::sync::Arc;

use crate::device::BlockDevice;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Block, Mapping, Node, TreeKind, zeroed_block};
use crate::meta::cache::{BlockMap, NodeCache};
use crate::meta::counts::Counts;
use crate::units::{METADATA_BLOCK_SIZE, MetaBlock};

/// Counts, nodes, and which of them belong to the running generation.
pub(crate) struct Transaction {
    device: Arc<dyn BlockDevice>,
    /// Metadata blocks and their counts.
    pub(crate) metadata: Counts,
    /// Data blocks and their counts.
    pub(crate) data: Counts,
    /// Nodes of the running generation; their locations are the private set.
    private: BlockMap<Arc<Node>>,
    /// Nodes of the generation that is on its way to the disk.
    frozen: BlockMap<Arc<Node>>,
    /// Behind a cell because a look-up changes nothing but what is remembered.
    cache: RefCell<NodeCache>,
    /// Freed and durable, but not handed out again while somebody reads beside the pool; `None`: nobody does.
    kept: Option<Vec<u64>>,
    /// False for a reader who has loaded no counts: what he reads is not held to them, and nothing can be changed.
    counted: bool,
}

/// Reads one metadata block. Errors: `Corrupt` beyond the device, `Io`.
pub(crate) fn read_block(device: &dyn BlockDevice, number: MetaBlock) -> Result<Box<Block>> {
    let size = METADATA_BLOCK_SIZE as u64;
    let offset = number.0.checked_mul(size).filter(|&at| at.saturating_add(size) <= device.size());
    let Some(offset) = offset else {
        return Err(Error::new(
            ErrorKind::Corrupt,
            format!("metadata block {number} is beyond the end of the metadata device"),
        ));
    };
    let mut block = zeroed_block();
    device.read_at(&mut block[..], offset).map_err(|e| e.doing(format!("read metadata block {number}")))?;
    Ok(block)
}

impl Transaction {
    /// A generation without changes on top of what the counts say.
    pub(crate) fn new(device: Arc<dyn BlockDevice>, metadata: Counts, data: Counts) -> Self {
        Self {
            device,
            metadata,
            data,
            private: BlockMap::default(),
            frozen: BlockMap::default(),
            cache: RefCell::default(),
            kept: None,
            counted: true,
        }
    }

    /// For reading trees of a pool whose counts nobody has loaded.
    pub(crate) fn uncounted(device: Arc<dyn BlockDevice>) -> Self {
        let none = |name| Counts::new(name, 0);
        Self { counted: false, ..Self::new(device, none("metadata"), none("data")) }
    }

    /// The device below.
    pub(crate) fn device(&self) -> &dyn BlockDevice {
        &*self.device
    }

    /// The node at `block`, as the running generation sees it. Errors: `Corrupt` unless it is a node of a
    /// `kind` tree, `Io`.
    pub(crate) fn read(&self, kind: TreeKind, block: MetaBlock) -> Result<Arc<Node>> {
        let node = self.read_any(block)?;
        let wanted = if node.is_internal() { node.value_size() } else { kind.value_size() };
        if node.value_size() != wanted {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "metadata block {block}: value_size {} in a leaf of the {}, which has {wanted}",
                    node.value_size(),
                    kind.name()
                ),
            ));
        }
        Ok(node)
    }

    fn read_any(&self, block: MetaBlock) -> Result<Arc<Node>> {
        if let Some(node) = self.private.get(&block).or_else(|| self.frozen.get(&block)) {
            return Ok(Arc::clone(node));
        }
        if let Some(node) = self.cache.borrow_mut().find(block) {
            return Ok(node);
        }
        if self.counted {
            self.check_counted(block)?;
        }
        let node = Arc::new(Node::decode(block, &*read_block(&*self.device, block)?)?);
        self.cache.borrow_mut().insert(block, Arc::clone(&node));
        Ok(node)
    }

    fn check_counted(&self, block: MetaBlock) -> Result<()> {
        if block.0 == 0 || block.0 >= self.metadata.total() {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("metadata block {block} is no place of a btree node (blocks are 1..{})", self.metadata.total()),
            ));
        }
        if self.metadata.get(block.0)? == 0 {
            // The allocator would hand the block out while a tree still points at it.
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("metadata block {block} is referenced, but its reference count is 0"),
            ));
        }
        Ok(())
    }

    /// Nodes that stand in memory alone until a commit has written them.
    pub(crate) fn uncommitted(&self) -> usize {
        self.private.len() + self.frozen.len()
    }

    /// What is kept of the disk.
    pub(crate) fn cache(&mut self) -> &mut NodeCache {
        self.cache.get_mut()
    }

    /// A new block for something that is no node, with one owner.
    pub(crate) fn allocate(&mut self) -> Result<MetaBlock> {
        let block = self.metadata.allocate().ok_or_else(|| {
            Error::new(
                ErrorKind::OutOfMetadataSpace,
                format!(
                    "allocate a metadata block: none of {} is available, {} come free with the next commit",
                    self.metadata.total(),
                    self.metadata.pending()
                ),
            )
        })?;
        let block = MetaBlock(block);
        self.cache.get_mut().remove(block);
        Ok(block)
    }

    /// A new node with one owner.
    pub(crate) fn new_node(&mut self, node: Node) -> Result<MetaBlock> {
        let block = self.allocate()?;
        self.private.insert(block, Arc::new(node));
        Ok(block)
    }

    /// A writable copy of the node at `block`, or `block` itself if it is writable already. The caller makes its
    /// parent point to the result.
    pub(crate) fn shadow(&mut self, kind: TreeKind, block: MetaBlock) -> Result<MetaBlock> {
        let count = self.metadata.get(block.0)?;
        if count == 1 && self.private.contains_key(&block) {
            return Ok(block);
        }
        let node = self.read(kind, block)?;
        let copy = self.allocate()?;
        if count > 1 {
            self.share_children(kind, &node)?;
        }
        self.metadata.dec(block.0)?;
        self.private.insert(copy, node);
        Ok(copy)
    }

    /// The children get a second parent: the copy that is about to be made.
    fn share_children(&mut self, kind: TreeKind, node: &Node) -> Result<()> {
        if node.is_internal() || kind == TreeKind::Top {
            for child in node.words() {
                self.metadata.inc(child)?;
            }
        } else if kind == TreeKind::Mapping {
            for value in node.words() {
                self.data.inc(Mapping::unpack(value).block.0)?;
            }
        }
        Ok(())
    }

    /// The writable node at `block`. Panics unless `shadow` or `new_node` gave the block in this generation.
    pub(crate) fn write(&mut self, block: MetaBlock) -> &mut Node {
        let node = self.private.get_mut(&block).expect("only blocks of the running generation are written");
        Arc::make_mut(node)
    }

    /// Gives a writable block a new content. Panics as `write` does.
    pub(crate) fn replace(&mut self, block: MetaBlock, node: Node) {
        let old = self.private.insert(block, Arc::new(node));
        assert!(old.is_some(), "only blocks of the running generation are written");
    }

    /// True if the block was made in this generation and has one owner.
    pub(crate) fn is_private(&self, block: MetaBlock) -> Result<bool> {
        Ok(self.private.contains_key(&block) && self.metadata.get(block.0)? == 1)
    }

    /// Gives up one reference to a node's block without looking at its children. Returns the count left.
    pub(crate) fn drop_node(&mut self, block: MetaBlock) -> Result<u32> {
        if self.is_private(block)? {
            self.private.remove(&block);
            self.metadata.free_unseen(block.0);
            return Ok(0);
        }
        self.metadata.dec(block.0)
    }

    /// From here on freed metadata blocks are kept back, or no longer. True if some came free.
    pub(crate) fn keep_freed(&mut self, keep: bool) -> bool {
        if keep {
            self.kept.get_or_insert_default();
            return false;
        }
        let kept = self.kept.take().unwrap_or_default();
        kept.iter().for_each(|&block| self.metadata.release(block));
        !kept.is_empty()
    }

    /// Closes the generation: its nodes can no longer be written. Returns them by location.
    pub(crate) fn freeze(&mut self) -> Vec<(MetaBlock, Arc<Node>)> {
        debug_assert!(self.frozen.is_empty(), "one generation is frozen at a time");
        self.frozen = std::mem::take(&mut self.private);
        self.metadata.freeze();
        self.data.freeze();
        self.frozen.iter().map(|(&block, node)| (block, Arc::clone(node))).collect()
    }

    /// The frozen generation is durable: its nodes are equal to the disk, and metadata that it freed may be used
    /// again. Returns the data blocks that it freed, ascending and still unavailable.
    pub(crate) fn committed(&mut self) -> Vec<u64> {
        let cache = self.cache.get_mut();
        for (block, node) in std::mem::take(&mut self.frozen) {
            // A block that the running generation has freed since is of no use in the cache.
            if self.metadata.get(block.0).is_ok_and(|count| count > 0) {
                cache.insert(block, node);
            }
        }
        let free = self.metadata.take_frozen_freed();
        match &mut self.kept {
            Some(kept) => kept.extend(free),
            None => free.into_iter().for_each(|block| self.metadata.release(block)),
        }
        let mut freed = self.data.take_frozen_freed();
        freed.sort_unstable();
        freed
    }
}
