//! Walks a tree once: structure of every node, what its leaves say, and one reference for everything pointed to.

use std::ops::Range;

use crate::check::audit::Audit;
use crate::check::report::Severity;
use crate::format::{Mapping, Node, TreeKind, entries_max};
use crate::units::{DEVICE_ID_MAX, MetaBlock};

/// What is known of a node after it was entered, so that it need not be entered again.
#[derive(Debug, Clone, Copy)]
pub(in crate::check) struct Summary {
    /// The tree it was reached in.
    pub(in crate::check) kind: TreeKind,
    /// Levels between it and its leaves.
    pub(in crate::check) height: usize,
    /// Entries of all its leaves.
    pub(in crate::check) entries: u64,
    /// The latest time of a mapping below it.
    pub(in crate::check) newest: u32,
    first: u64,
    last: u64,
    underfull: bool,
}

/// Where a node hangs.
#[derive(Clone)]
struct Hook {
    bounds: Range<u64>,
    is_root: bool,
}

impl Audit<'_> {
    /// Walks a whole tree; findings say `place`.
    pub(in crate::check) fn tree(&mut self, kind: TreeKind, root: u64, place: &str) -> Option<Summary> {
        self.place = place.to_owned();
        self.path.clear();
        let summary = self.enter(kind, MetaBlock(root), &Hook { bounds: 0..u64::MAX, is_root: true });
        self.place.clear();
        summary
    }

    fn enter(&mut self, kind: TreeKind, block: MetaBlock, hook: &Hook) -> Option<Summary> {
        self.path.push(block);
        let summary = self.node(kind, block, hook);
        if let Some(summary) = summary {
            self.judge_hook(block, &summary, hook);
        }
        self.path.pop();
        summary
    }

    fn judge_hook(&mut self, block: MetaBlock, summary: &Summary, hook: &Hook) {
        if summary.entries > 0 && (summary.first < hook.bounds.start || summary.last >= hook.bounds.end) {
            let what = format!(
                "keys {}..={} are outside {}..{}, which the parent leaves to the node",
                summary.first, summary.last, hook.bounds.start, hook.bounds.end
            );
            self.add(Severity::Damage, block, what);
        }
        if summary.underfull && !hook.is_root {
            self.add(Severity::Damage, block, "nr_entries is less than a third of max_entries".to_owned());
        }
    }

    fn node(&mut self, kind: TreeKind, block: MetaBlock, hook: &Hook) -> Option<Summary> {
        let references = self.metadata.add(block.0);
        if block.0 == 0 || references.is_none() {
            self.report.incomplete = true;
            let what = format!("points to metadata block {block}, the metadata has 1..{}", self.metadata.len());
            self.add(Severity::Damage, None, what);
            return None;
        }
        if let Some(&seen) = self.seen.get(&block) {
            if seen.kind != kind {
                let what = format!("a node of the {} is in the {} too", seen.kind.name(), kind.name());
                self.add(Severity::Damage, block, what);
            }
            return Some(seen);
        }
        if references > Some(1) || self.path.len() > TreeKind::DEPTH_MAX {
            // Entered before and not finished, or not readable then: a circle, or damage that was told already.
            self.report.incomplete = true;
            if self.path[..self.path.len() - 1].contains(&block) || self.path.len() > TreeKind::DEPTH_MAX {
                self.add(Severity::Damage, block, "the node is below itself, or the tree is too deep".to_owned());
            }
            return None;
        }
        self.step();
        let node = match self.reader.node(kind, block) {
            Ok(node) => node,
            Err(error) => {
                self.unreadable(block, &error);
                return None;
            }
        };
        self.judge_header(block, &node);
        let mut summary = Summary {
            kind,
            height: 0,
            entries: 0,
            newest: 0,
            first: node.keys().first().copied().unwrap_or(0),
            last: node.keys().last().copied().unwrap_or(0),
            underfull: node.is_underfull(),
        };
        if node.is_internal() {
            self.children(kind, block, &node, hook, &mut summary);
        } else {
            summary.entries = node.len() as u64;
            self.leaf(kind, block, &node, &mut summary);
        }
        self.seen.insert(block, summary);
        Some(summary)
    }

    fn judge_header(&mut self, block: MetaBlock, node: &Node) {
        let max = node.max_entries();
        if !max.is_multiple_of(3) {
            self.add(Severity::Damage, block, format!("max_entries {max} is no multiple of three"));
        } else if max != entries_max(node.value_size()) {
            let what = format!("max_entries {max}, {} would fit", entries_max(node.value_size()));
            self.add(Severity::Note, block, what);
        }
    }

    fn children(&mut self, kind: TreeKind, block: MetaBlock, node: &Node, hook: &Hook, summary: &mut Summary) {
        let mut height = None;
        for index in 0..node.len() {
            let start = node.keys()[index];
            let end = node.keys().get(index + 1).copied().unwrap_or(hook.bounds.end);
            let Some(child) = self.enter(kind, node.child(index), &Hook { bounds: start..end, is_root: false }) else {
                continue;
            };
            if *height.get_or_insert(child.height) != child.height {
                self.add(Severity::Damage, block, format!("the leaves below child {index} are at another depth"));
            }
            summary.entries += child.entries;
            summary.newest = summary.newest.max(child.newest);
            summary.last = summary.last.max(child.last);
        }
        summary.height = height.unwrap_or(0) + 1;
    }

    fn leaf(&mut self, kind: TreeKind, block: MetaBlock, leaf: &Node, summary: &mut Summary) {
        match kind {
            TreeKind::Top => self.top_leaf(block, leaf),
            TreeKind::Mapping => self.mapping_leaf(block, leaf, summary),
            // Their entries are judged by those who collect them.
            TreeKind::Details | TreeKind::DataIndex | TreeKind::DataOverflow | TreeKind::MetadataOverflow => {}
        }
    }

    fn top_leaf(&mut self, block: MetaBlock, leaf: &Node) {
        for index in 0..leaf.len() {
            let id = leaf.keys()[index];
            if id > u64::from(DEVICE_ID_MAX) {
                self.add(Severity::Damage, block, format!("device id {id} needs more than 24 bits"));
            }
            let path = std::mem::take(&mut self.path);
            let place = std::mem::replace(&mut self.place, format!("device {id}: mapping tree"));
            self.enter(TreeKind::Mapping, MetaBlock(leaf.value(index)), &Hook { bounds: 0..u64::MAX, is_root: true });
            self.path = path;
            self.place = place;
        }
    }

    fn mapping_leaf(&mut self, block: MetaBlock, leaf: &Node, summary: &mut Summary) {
        for index in 0..leaf.len() {
            let mapping = Mapping::unpack(leaf.value(index));
            let key = leaf.keys()[index];
            summary.newest = summary.newest.max(mapping.time);
            if self.data.add(mapping.block.0).is_none() {
                let what =
                    format!("block {key} is mapped to data block {}, the pool has {}", mapping.block, self.data.len());
                self.add(Severity::Damage, block, what);
            }
            if mapping.time > self.superblock.time {
                let what = format!(
                    "block {key} was mapped at time {}, the pool's time is {}",
                    mapping.time, self.superblock.time
                );
                self.add(Severity::Damage, block, what);
            }
        }
    }
}
