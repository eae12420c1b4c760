//! Judges the nodes of mapping trees, each once however many devices share it.

use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use std::ops::Range;

use crate::check::Tally;
use crate::format::{Mapping, Node, Superblock, TreeKind, entries_max};
use crate::repair::mend::{entries_of, range};
use crate::repair::report::BlockRange;
use crate::repair::survey::{Survey, UNKNOWN, fits};
use crate::units::MetaBlock;

/// What is known of a node and all below it.
#[derive(Debug, Clone, Copy)]
pub(in crate::repair) struct Verdict {
    /// Everything below could be read and is as a tree must be.
    pub(in crate::repair) whole: bool,
    /// A leaf below is at odds with the data space map.
    pub(in crate::repair) doubtful: bool,
    /// Mappings below.
    pub(in crate::repair) entries: u64,
    height: usize,
    underfull: bool,
    first: u64,
    last: u64,
}

/// What is left of a tree: leaves with the keys that their parents leave to them, in order, and the keys whose nodes are lost.
#[derive(Debug, Default)]
pub(in crate::repair) struct Left {
    pub(in crate::repair) leaves: Vec<(Range<u64>, MetaBlock)>,
    pub(in crate::repair) entries: u64,
    pub(in crate::repair) lost: Vec<Range<u64>>,
}

/// The judge of one pool's mapping trees.
pub(in crate::repair) struct Judge<'a> {
    survey: &'a Survey<'a>,
    data_blocks: u64,
    time: u32,
    metadata_counts: Vec<u8>,
    data_counts: Vec<u8>,
    /// References from the leaves that were met, each once.
    references: Tally,
    verdicts: HashMap<MetaBlock, Option<Verdict>>,
    reached: HashSet<MetaBlock>,
    /// Whether any block is referred to more often than the space map says: asked when all trees are judged.
    contradictions: OnceCell<bool>,
}

impl<'a> Judge<'a> {
    pub(in crate::repair) fn new(survey: &'a Survey<'a>, superblock: &Superblock) -> Self {
        Self {
            survey,
            data_blocks: superblock.data_map.nr_blocks,
            time: superblock.time,
            metadata_counts: survey.metadata_counts(superblock),
            data_counts: survey.data_counts(superblock),
            references: Tally::new(superblock.data_map.nr_blocks),
            verdicts: HashMap::new(),
            reached: HashSet::new(),
            contradictions: OnceCell::new(),
        }
    }

    pub(in crate::repair) fn survey(&self) -> &'a Survey<'a> {
        self.survey
    }

    /// What the metadata space map says.
    pub(in crate::repair) fn metadata_counts(&self) -> &[u8] {
        &self.metadata_counts
    }

    /// Nodes that something leads to.
    pub(in crate::repair) fn reached(&self) -> &HashSet<MetaBlock> {
        &self.reached
    }

    /// Says that something leads to these nodes.
    pub(in crate::repair) fn reach<'b>(&mut self, blocks: impl Iterator<Item = &'b MetaBlock>) {
        self.reached.extend(blocks);
    }

    /// The verdict that was given before.
    pub(in crate::repair) fn verdict(&self, block: MetaBlock) -> Option<Verdict> {
        let mut verdict = self.verdicts.get(&block).copied().flatten()?;
        verdict.doubtful = self.any_doubt(block);
        Some(verdict)
    }

    /// Judges a tree; `None`: its root cannot be read.
    pub(in crate::repair) fn judge(&mut self, root: MetaBlock) -> Option<Verdict> {
        self.visit(root, 0)
    }

    fn visit(&mut self, block: MetaBlock, depth: usize) -> Option<Verdict> {
        if let Some(&verdict) = self.verdicts.get(&block) {
            return verdict;
        }
        // Until its verdict is found the node has none: a circle meets that and ends.
        self.verdicts.insert(block, None);
        if depth >= TreeKind::DEPTH_MAX {
            return None;
        }
        let node = self.survey.node(TreeKind::Mapping, block).ok()?;
        self.reached.insert(block);
        let verdict = if node.is_internal() { self.internal(&node, depth) } else { self.leaf(&node) };
        self.verdicts.insert(block, Some(verdict));
        Some(verdict)
    }

    fn leaf(&mut self, node: &Node) -> Verdict {
        let mut whole = node.max_entries() == entries_max(8);
        for (_, mapping) in entries_of(node) {
            whole &= self.is_possible(mapping);
            self.references.add(mapping.block.0);
        }
        Verdict { whole, doubtful: false, entries: node.len() as u64, ..outline(node) }
    }

    fn internal(&mut self, node: &Node, depth: usize) -> Verdict {
        let mut verdict = Verdict { whole: node.max_entries() == entries_max(8), ..outline(node) };
        let mut height = None;
        for index in 0..node.len() {
            let bounds = node.keys()[index]..node.keys().get(index + 1).copied().unwrap_or(u64::MAX);
            let Some(child) = self.visit(node.child(index), depth + 1) else {
                verdict.whole = false;
                continue;
            };
            let inside = child.first >= bounds.start && child.last < bounds.end;
            let even = *height.get_or_insert(child.height) == child.height;
            verdict.whole &= child.whole && !child.underfull && inside && even;
            verdict.entries += child.entries;
            verdict.last = verdict.last.max(child.last);
        }
        verdict.height = height.map_or(1, |height| height + 1);
        verdict
    }

    /// True if a mapping can be one of this pool's.
    pub(in crate::repair) fn is_possible(&self, mapping: Mapping) -> bool {
        mapping.block.0 < self.data_blocks && mapping.time <= self.time
    }

    /// True if a mapping of the leaf refers to a block more often than the data space map knows of.
    pub(in crate::repair) fn is_doubtful(&self, leaf: &Node) -> bool {
        leaf.words().map(|value| Mapping::unpack(value).block.0).any(|block| {
            let stored = usize::try_from(block).ok().and_then(|at| self.data_counts.get(at)).copied();
            match stored {
                // Three and more stand elsewhere.
                None | Some(UNKNOWN | 3) => false,
                Some(stored) => self.references.get(block) > u32::from(stored),
            }
        })
    }

    /// Only when all trees are judged: before that not all references are counted.
    fn any_doubt(&self, block: MetaBlock) -> bool {
        let mut ranges = Vec::new();
        self.doubtful(block, &mut ranges);
        !ranges.is_empty()
    }

    /// The keys of doubtful leaves below a node that can be read.
    pub(in crate::repair) fn doubtful(&self, block: MetaBlock, into: &mut Vec<BlockRange>) {
        if !self.has_contradictions() {
            return;
        }
        for (bounds, leaf) in self.leaves_of(block).leaves {
            match self.survey.node(TreeKind::Mapping, leaf) {
                Ok(node) if self.is_doubtful(&node) => into.push(range(&bounds)),
                _ => {}
            }
        }
    }

    /// True if any block is referred to more often than the space map says: one look at all of them spares a walk
    /// of every tree where there is none.
    fn has_contradictions(&self) -> bool {
        *self.contradictions.get_or_init(|| {
            (0..self.references.len()).zip(&self.data_counts).any(|(block, &stored)| {
                stored != UNKNOWN && stored != 3 && self.references.get(block) > u32::from(stored)
            })
        })
    }

    /// What is left of a tree.
    pub(in crate::repair) fn leaves_of(&self, root: MetaBlock) -> Left {
        let mut left = Left::default();
        self.gather(root, 0..u64::MAX, 0, &mut left);
        left
    }

    fn gather(&self, block: MetaBlock, bounds: Range<u64>, depth: usize, left: &mut Left) {
        let node = match self.survey.node(TreeKind::Mapping, block) {
            Ok(node) if depth < TreeKind::DEPTH_MAX && fits(&node, &bounds) => node,
            _ => return left.lost.push(bounds),
        };
        if !node.is_internal() {
            left.entries += node.len() as u64;
            return left.leaves.push((bounds, block));
        }
        for index in 0..node.len() {
            let start = node.keys()[index];
            let end = node.keys().get(index + 1).copied().unwrap_or(bounds.end);
            self.gather(node.child(index), start..end, depth + 1, left);
        }
    }
}

fn outline(node: &Node) -> Verdict {
    Verdict {
        whole: true,
        doubtful: false,
        entries: 0,
        height: 0,
        underfull: node.is_underfull(),
        first: node.keys().first().copied().unwrap_or(0),
        last: node.keys().last().copied().unwrap_or(0),
    }
}
