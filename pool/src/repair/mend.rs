//! Builds sound metadata from what is left of a damaged one, on another device.
//!
//! The damaged metadata is only read. Trees that are whole are copied node by node, so that what devices share stays
//! shared; a tree with a gap is told entry by entry. Counts, space maps and hints follow from the trees by
//! construction. What is lost is known from the keys of the pointer that led to it and from the device's record,
//! which says how many mappings there were; what the space map still counts and nothing points to is looked for.
//!
//! Nothing is guessed: nodes found again are taken back only if they do not overlap and make the record's number
//! whole; a leaf that is at odds with the space map is kept and told as doubtful.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use crate::check::{Severity, audit};
use crate::device::BlockDevice;
use crate::error::Result;
use crate::format::{DeviceDetails, FLAG_NEEDS_CHECK, Mapping, Node, SUPERBLOCK, Superblock, TreeKind};
use crate::repair::build::{Builder, Frame};
use crate::repair::orphans::Orphans;
use crate::repair::report::{BlockRange, DeviceOutcome, RepairReport, hopeless};
use crate::repair::roots::{Hints, find_superblock};
use crate::repair::survey::Survey;
use crate::repair::verdict::{Judge, Verdict};
use crate::units::{ByteCount, DEVICE_ID_MAX, METADATA_BLOCK_SIZE, MetaBlock, SECTOR_SIZE};

/// Repairs the metadata on `source`, which is only read, by laying out a sound one on `target`, whose content does
/// not matter. Errors: `Corrupt` if there is nothing to begin with, or what was built does not pass the audit;
/// `OutOfMetadataSpace` if `target` is too small.
pub fn mend(source: &dyn BlockDevice, target: &dyn BlockDevice, hints: &Hints) -> Result<RepairReport> {
    let survey = Survey::new(source);
    let found = find_superblock(source, &survey, hints)?;
    let superblock = found.superblock;
    let mut report = RepairReport {
        roots: found.told,
        candidates: found.candidates,
        needs_check_cleared: superblock.needs_check(),
        snapshot_released: superblock.held_root != 0,
        block_size: ByteCount(u64::from(superblock.data_block_sectors) * SECTOR_SIZE),
        ..RepairReport::default()
    };
    target.write_at(&[0; METADATA_BLOCK_SIZE], 0)?;
    let frame = Frame {
        identity: superblock.identity,
        flags: superblock.flags & !FLAG_NEEDS_CHECK,
        version: superblock.version,
        time: superblock.time,
        transaction_id: superblock.transaction_id,
        data_block_sectors: superblock.data_block_sectors,
        data_blocks: superblock.data_map.nr_blocks,
        metadata_blocks: superblock.metadata_map.nr_blocks,
        sequence: found.sequence.wrapping_add(1),
    };
    let mut mending = Mending {
        judge: Judge::new(&survey, &superblock),
        builder: Builder::new(target, frame)?,
        superblock: &superblock,
        copied: HashMap::new(),
        outcomes: Vec::new(),
        found_again: 0,
    };
    let (devices, lost_ids) = mending.collect();
    report.lost_ids = lost_ids;
    report.device_count = devices.len() as u64;
    // One pass that only judges: what is reached at all must be known before orphans can be told.
    for device in devices.values() {
        if let Some(root) = device.root {
            mending.judge.judge(root);
        }
    }
    let orphans = Orphans::new(&survey, mending.judge.metadata_counts(), mending.judge.reached(), found.backup_roots);
    let devices = orphans.assign_roots(devices, &mut mending.judge);
    // Where a record or a tree is not as it was, nobody can say which blocks are shared: all of them, then, by a
    // snapshot of every device at a time of its own. That costs a copy at the next write of each, and nothing else.
    let all_sound = devices.values().all(|device| mending.is_sound(device));
    let shared_at = if all_sound { None } else { Some(mending.builder.tick()) };
    for (id, device) in devices {
        mending.device(id, device, &orphans, shared_at)?;
    }
    report.devices = mending.outcomes;
    report.found_again = mending.found_again;
    report.metadata_blocks = mending.builder.finish()?;
    report.corrected = survey.corrected();
    report.unreadable = survey.unreadable();
    report.unreadable.retain(|block| !report.corrected.contains(block));
    let judged = audit(target, &|_| ())?;
    if !judged.is_sound() || judged.incomplete {
        let first = judged.findings.iter().find(|finding| finding.severity != Severity::Note);
        let first = first.map(ToString::to_string).unwrap_or_default();
        return Err(hopeless(format!("what was built does not pass the audit: {first}")));
    }
    Ok(report)
}

/// What is left of a device.
#[derive(Debug, Clone, Copy)]
pub(in crate::repair) struct Remains {
    pub(in crate::repair) root: Option<MetaBlock>,
    pub(in crate::repair) details: Option<DeviceDetails>,
}

struct Mending<'a> {
    judge: Judge<'a>,
    builder: Builder<'a>,
    superblock: &'a Superblock,
    /// Where nodes of whole trees went.
    copied: HashMap<MetaBlock, MetaBlock>,
    outcomes: Vec<DeviceOutcome>,
    found_again: u64,
}

pub(in crate::repair) fn range(keys: &Range<u64>) -> BlockRange {
    BlockRange { start: keys.start, end: (keys.end != u64::MAX).then_some(keys.end) }
}

impl Mending<'_> {
    /// Devices by both trees, and the ids of which nothing is known.
    fn collect(&mut self) -> (BTreeMap<u64, Remains>, Vec<BlockRange>) {
        let survey = self.judge.survey();
        let counts = self.judge.metadata_counts();
        let mut roots = survey.entries::<u64>(TreeKind::Top, self.superblock.mapping_root);
        let mut details = survey.entries::<DeviceDetails>(TreeKind::Details, self.superblock.details_root);
        Orphans::complete(survey, counts, TreeKind::Top, &mut roots);
        Orphans::complete(survey, counts, TreeKind::Details, &mut details);
        self.judge.reach(roots.seen.iter().chain(&details.seen));
        let mut devices: BTreeMap<u64, Remains> = BTreeMap::new();
        let absent = Remains { root: None, details: None };
        for (id, root) in roots.entries.into_iter().filter(|entry| entry.0 <= u64::from(DEVICE_ID_MAX)) {
            devices.entry(id).or_insert(absent).root = Some(MetaBlock(root));
        }
        for (id, record) in details.entries.into_iter().filter(|entry| entry.0 <= u64::from(DEVICE_ID_MAX)) {
            devices.entry(id).or_insert(absent).details = Some(record);
        }
        // An id is unknown only where both trees have a gap.
        let mut lost = Vec::new();
        for left in &roots.lost {
            for right in &details.lost {
                let both = left.start.max(right.start)..left.end.min(right.end);
                if !both.is_empty() {
                    lost.push(range(&both));
                }
            }
        }
        (devices, lost)
    }

    fn is_sound(&self, device: &Remains) -> bool {
        let (Some(root), Some(details)) = (device.root, device.details) else { return false };
        let clock =
            details.creation_time <= details.snapshotted_time && details.snapshotted_time <= self.superblock.time;
        match self.judge.verdict(root) {
            Some(Verdict { whole: true, doubtful: false, entries, .. }) => clock && entries == details.mapped_blocks,
            _ => false,
        }
    }

    fn device(&mut self, id: u64, device: Remains, orphans: &Orphans, shared_at: Option<u32>) -> Result<()> {
        let time = self.superblock.time;
        let mut outcome = DeviceOutcome {
            id,
            mapped_before: device.details.map(|details| details.mapped_blocks),
            mapped_after: 0,
            lost: Vec::new(),
            doubtful: Vec::new(),
            gone: false,
            record_rebuilt: device.details.is_none(),
        };
        let (root, mapped) = match device.root {
            None => {
                outcome.gone = outcome.mapped_before != Some(0);
                (self.builder.mapping_leaf(&[])?, 0)
            }
            Some(root) => match self.judge.verdict(root) {
                Some(verdict) if verdict.whole => {
                    if verdict.doubtful {
                        self.judge.doubtful(root, &mut outcome.doubtful);
                    }
                    (self.copy(root)?, verdict.entries)
                }
                _ => self.tell(root, outcome.mapped_before, orphans, &mut outcome)?,
            },
        };
        outcome.mapped_after = mapped;
        let told = outcome.gone || !outcome.lost.is_empty();
        if !told && outcome.mapped_before.is_some_and(|before| before != mapped) {
            // One of the two is not what it was, and nothing says which or where.
            outcome.doubtful = vec![range(&(0..u64::MAX))];
        }
        let record = device.details.unwrap_or(DeviceDetails {
            mapped_blocks: mapped,
            transaction_id: self.superblock.transaction_id,
            creation_time: time,
            snapshotted_time: time,
        });
        let snapshotted_time = shared_at.unwrap_or(record.snapshotted_time);
        let creation_time = record.creation_time.min(snapshotted_time);
        self.builder.device(
            id,
            root,
            DeviceDetails { mapped_blocks: mapped, snapshotted_time, creation_time, ..record },
        );
        if !outcome.is_whole() || outcome.record_rebuilt {
            self.outcomes.push(outcome);
        }
        Ok(())
    }

    /// Copies a whole tree; what was copied before is pointed to.
    fn copy(&mut self, block: MetaBlock) -> Result<MetaBlock> {
        if let Some(&copy) = self.copied.get(&block) {
            return Ok(copy);
        }
        let node = self.judge.survey().node(TreeKind::Mapping, block)?;
        let copy = if node.is_internal() {
            let mut children = Vec::with_capacity(node.len());
            for index in 0..node.len() {
                children.push((node.keys()[index], self.copy(node.child(index))?));
            }
            self.builder.internal(&children)?
        } else {
            self.builder.mapping_leaf(&entries_of(&node))?
        };
        self.copied.insert(block, copy);
        Ok(copy)
    }

    /// Tells what is left of a tree entry by entry, with nodes that were found again if they make it whole.
    fn tell(
        &mut self,
        root: MetaBlock,
        wanted: Option<u64>,
        orphans: &Orphans,
        outcome: &mut DeviceOutcome,
    ) -> Result<(MetaBlock, u64)> {
        let mut left = self.judge.leaves_of(root);
        if let Some(found) = orphans.fill(&left, wanted) {
            self.found_again += found.len() as u64;
            left.leaves.extend(found);
            left.leaves.sort_unstable_by_key(|leaf| leaf.0.start);
            left.lost.clear();
        }
        outcome.lost.extend(left.lost.iter().map(range));
        let mut tree = self.builder.leaves();
        for (bounds, block) in left.leaves {
            let node = self.judge.survey().node(TreeKind::Mapping, block)?;
            if self.judge.is_doubtful(&node) {
                outcome.doubtful.push(range(&bounds));
            }
            for (key, mapping) in entries_of(&node) {
                if self.judge.is_possible(mapping) {
                    tree.push(&mut self.builder, key, mapping)?;
                } else {
                    outcome.lost.push(range(&(key..key + 1)));
                }
            }
        }
        let count = tree.count();
        Ok((tree.finish(&mut self.builder)?, count))
    }
}

/// The mappings of a leaf.
pub(in crate::repair) fn entries_of(node: &Node) -> Vec<(u64, Mapping)> {
    node.keys().iter().copied().zip(node.words().map(Mapping::unpack)).collect()
}

/// Clears the needs_check flag of metadata that the audit finds sound, and says whether it was set. One sector is
/// written. Errors: `Corrupt` if the audit finds more than notes.
pub fn clear_needs_check(device: &dyn BlockDevice) -> Result<bool> {
    let report = audit(device, &|_| ())?;
    if !report.is_sound() || report.incomplete {
        return Err(hopeless("the flag needs_check stays: the audit finds damage or leaks"));
    }
    if !report.needs_check {
        return Ok(false);
    }
    let survey = Survey::new(device);
    let mut superblock = survey.superblock(SUPERBLOCK)?;
    superblock.flags &= !FLAG_NEEDS_CHECK;
    device.write_at(&superblock.encode(SUPERBLOCK)[..], 0)?;
    device.flush()?;
    Ok(true)
}
