//! Nodes that the space map counts and nothing leads to: what hung below a node that is lost.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;

use crate::format::{Node, Superblock, TreeKind, Value};
use crate::repair::mend::Remains;
use crate::repair::survey::{Sighted, Survey, UNKNOWN, fits};
use crate::repair::verdict::{Judge, Left};
use crate::units::MetaBlock;

/// A tree that nothing leads to.
#[derive(Debug, Clone, Copy)]
struct Top {
    block: MetaBlock,
    entries: u64,
    /// References that the space map counts; 3 means three or more.
    count: u8,
}

/// Orphaned nodes of mapping trees.
pub(in crate::repair) struct Orphans {
    /// Leaves: first key, last key, entries, place.
    leaves: Vec<(u64, u64, u64, MetaBlock)>,
    /// Nodes that are below no other orphan.
    tops: Vec<(MetaBlock, u8)>,
    /// Where the devices had their roots when the backup was made.
    backup_roots: BTreeMap<u64, MetaBlock>,
}

/// A leaf of the top tree is shaped like a leaf of mappings; but its values are places of nodes, which as mappings
/// would all be of data block 0.
fn is_top_leaf(node: &Node, counts: &[u8]) -> bool {
    node.len() > 0
        && node.words().all(|value| {
            usize::try_from(value).ok().and_then(|at| counts.get(at)).is_some_and(|&count| count != 0) && value != 0
        })
}

impl Orphans {
    /// Looks through what the space map counts and `reached` lacks. Where the space map is lost itself, nothing is
    /// found: old nodes cannot be told from live ones then.
    pub(in crate::repair) fn new(
        survey: &Survey<'_>,
        counts: &[u8],
        reached: &HashSet<MetaBlock>,
        backup_roots: BTreeMap<u64, MetaBlock>,
    ) -> Self {
        let mut leaves = Vec::new();
        let mut tops: HashMap<MetaBlock, u8> = HashMap::new();
        let mut below: HashSet<MetaBlock> = HashSet::new();
        for (number, &count) in (0..).zip(counts) {
            let block = MetaBlock(number);
            if count == 0 || count == UNKNOWN || number == 0 || reached.contains(&block) {
                continue;
            }
            let Some(node) = survey.peek(block).filter(|node| node.value_size() == 8) else { continue };
            if node.is_internal() {
                below.extend((0..node.len()).map(|index| node.child(index)));
            } else if is_top_leaf(&node, counts) {
                continue;
            } else if let (Some(&first), Some(&last)) = (node.keys().first(), node.keys().last()) {
                leaves.push((first, last, node.len() as u64, block));
            }
            tops.insert(block, count);
        }
        leaves.sort_unstable();
        let tops = tops.into_iter().filter(|(block, _)| !below.contains(block)).collect();
        Self { leaves, tops, backup_roots }
    }

    /// Leaves that fit into the gaps of a tree; only if none overlaps another and with them the tree has as many
    /// mappings as its record says.
    pub(in crate::repair) fn fill(&self, left: &Left, wanted: Option<u64>) -> Option<Vec<(Range<u64>, MetaBlock)>> {
        let inside = |gap: &Range<u64>| {
            let gap = gap.clone();
            self.leaves.iter().filter(move |leaf| leaf.0 >= gap.start && leaf.1 < gap.end)
        };
        let mut found: Vec<_> = left.lost.iter().flat_map(inside).collect();
        found.sort_unstable();
        found.dedup();
        let entries: u64 = found.iter().map(|leaf| leaf.2).sum();
        let apart = found.windows(2).all(|pair| pair[0].1 < pair[1].0);
        let whole = wanted == Some(left.entries + entries) && !found.is_empty();
        (apart && whole).then(|| found.into_iter().map(|leaf| (leaf.0..leaf.1 + 1, leaf.3)).collect())
    }

    /// Gives devices whose root is lost the tree that can only be theirs: the one at the place where the backup has
    /// it, or the only one with as many mappings as their record says.
    pub(in crate::repair) fn assign_roots(
        &self,
        mut devices: BTreeMap<u64, Remains>,
        judge: &mut Judge<'_>,
    ) -> BTreeMap<u64, Remains> {
        let mut tops: Vec<Top> = Vec::new();
        for &(block, count) in &self.tops {
            if let Some(verdict) = judge.judge(block).filter(|verdict| verdict.whole) {
                tops.push(Top { block, entries: verdict.entries, count });
            }
        }
        let mut waiting: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for (&id, device) in devices.iter_mut().filter(|(_, device)| device.root.is_none()) {
            let Some(details) = device.details else { continue };
            let same = |top: &&Top| top.entries == details.mapped_blocks;
            let at = self.backup_roots.get(&id);
            match at.and_then(|at| tops.iter().filter(same).find(|top| top.block == *at)) {
                Some(top) => device.root = Some(top.block),
                None => waiting.entry(details.mapped_blocks).or_default().push(id),
            }
        }
        for (entries, ids) in waiting {
            let taken: HashSet<MetaBlock> = devices.values().filter_map(|device| device.root).collect();
            let fitting: Vec<&Top> =
                tops.iter().filter(|top| top.entries == entries && !taken.contains(&top.block)).collect();
            let [top] = fitting[..] else { continue };
            let owners = ids.len();
            if usize::from(top.count) == owners || (top.count >= 3 && owners >= 3) {
                for id in ids {
                    if let Some(device) = devices.get_mut(&id) {
                        device.root = Some(top.block);
                    }
                }
            }
        }
        devices
    }

    /// Finds leaves of a small tree again that hung below a lost node of it.
    pub(in crate::repair) fn complete<V: Value>(
        survey: &Survey<'_>,
        counts: &[u8],
        kind: TreeKind,
        sighted: &mut Sighted<V>,
    ) {
        if sighted.lost.is_empty() {
            return;
        }
        let seen: HashSet<MetaBlock> = sighted.seen.iter().copied().collect();
        let mut found: Vec<(u64, u64, MetaBlock, Node)> = Vec::new();
        for (number, &count) in (0..).zip(counts) {
            let block = MetaBlock(number);
            if count == 0 || count == UNKNOWN || number == 0 || seen.contains(&block) {
                continue;
            }
            let Some(node) = survey.peek(block) else { continue };
            let wanted = !node.is_internal()
                && node.value_size() == kind.value_size()
                && (kind != TreeKind::Top || is_top_leaf(&node, counts))
                && sighted.lost.iter().any(|gap| fits(&node, gap));
            if let (true, Some(&first), Some(&last)) = (wanted, node.keys().first(), node.keys().last()) {
                found.push((first, last, block, node));
            }
        }
        found.sort_unstable_by_key(|leaf| leaf.0);
        if found.is_empty() || found.windows(2).any(|pair| pair[0].1 >= pair[1].0) {
            return;
        }
        for (_, _, block, node) in found {
            sighted.seen.push(block);
            sighted.entries.extend((0..node.len()).map(|index| (node.keys()[index], node.value(index))));
        }
        sighted.entries.sort_unstable_by_key(|entry| entry.0);
        sighted.lost.clear();
    }
}

/// The roots of the devices in a backup.
pub(in crate::repair) fn roots_in(survey: &Survey<'_>, superblock: &Superblock) -> BTreeMap<u64, MetaBlock> {
    let sighted = survey.entries::<u64>(TreeKind::Top, superblock.mapping_root);
    sighted.entries.into_iter().map(|(id, root)| (id, MetaBlock(root))).collect()
}
