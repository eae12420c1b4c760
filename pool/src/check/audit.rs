//! Checks everything that metadata promises: checksums, trees, every count, hints, records, the clock.
//!
//! Independent of the code that writes metadata: only the layout of single blocks is shared with it. References
//! are counted by walking every tree once (a node reached again is counted and not entered again), then compared
//! with what the space maps say.

use std::collections::{BTreeMap, HashMap};

use crate::check::preload::preload;
use crate::check::reader::{Reader, read_superblock};
use crate::check::report::{Finding, Report, Severity};
use crate::check::tally::Tally;
use crate::check::trees::Summary;
use crate::device::BlockDevice;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Block, DeviceDetails, SUPERBLOCK, Superblock, TreeKind};
use crate::units::{
    BlockSize, DATA_BLOCKS_MAX, METADATA_BLOCK_SIZE, METADATA_BLOCKS_MAX, MetaBlock, SECTOR_SIZE, TIME_MAX,
};

/// How far an audit has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Metadata blocks checked.
    pub checked_blocks: u64,
    /// Metadata blocks in use, as the superblock says: about what there is to check.
    pub used_blocks: u64,
}

/// Called every so many blocks.
const PROGRESS_STEP: u64 = 256;

/// The state of one audit.
pub(in crate::check) struct Audit<'a> {
    pub(in crate::check) reader: Reader<'a>,
    pub(in crate::check) superblock: Superblock,
    pub(in crate::check) report: Report,
    pub(in crate::check) metadata: Tally,
    pub(in crate::check) data: Tally,
    /// What is below each node that was entered.
    pub(in crate::check) seen: HashMap<MetaBlock, Summary>,
    /// The way to where the search stands.
    pub(in crate::check) path: Vec<MetaBlock>,
    /// DumpSource tree that is, for people.
    pub(in crate::check) place: String,
    progress: &'a dyn Fn(Progress),
    checked_blocks: u64,
    /// Blocks that were read before the walk.
    head_start: u64,
}

/// Devices of the live or of the held trees: root and record, each if it is there.
type Devices = BTreeMap<u64, (Option<MetaBlock>, Option<DeviceDetails>)>;

/// Checks the metadata on `device`, also with the needs_check flag. What is wrong stands in the report. Errors:
/// `NotFound` if there is no pool, `Io` if block 0 cannot be read.
pub fn audit(device: &dyn BlockDevice, progress: &dyn Fn(Progress)) -> Result<Report> {
    audit_used(device, progress).map(|(report, _)| report)
}

/// The same, and which metadata blocks are in use: each with the number of its references. Nothing is in use where
/// the superblock says nothing to begin with.
pub(crate) fn audit_used(device: &dyn BlockDevice, progress: &dyn Fn(Progress)) -> Result<(Report, Tally)> {
    let mut report = Report::default();
    let (superblock, block) = match read_superblock(device) {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::Corrupt => {
            report.incomplete = true;
            report.add(finding(Severity::Damage, Some(SUPERBLOCK), "superblock", error.to_string()));
            return Ok((report, Tally::new(0)));
        }
        Err(error) => return Err(error.doing("check the metadata")),
    };
    report.needs_check = superblock.needs_check();
    if !judge_superblock(device, &superblock, &block, &mut report) {
        report.incomplete = true;
        return Ok((report, Tally::new(0)));
    }
    let mut reader = Reader::new(device, superblock.metadata_map.nr_blocks);
    // Reading is most of the work: it is half of the way, and the walk the other half.
    let used_blocks = superblock.metadata_map.nr_allocated;
    let nodes = preload(&reader, &superblock, &|read| {
        progress(Progress { checked_blocks: read, used_blocks: 2 * used_blocks.max(read) });
    });
    let head_start = nodes.len() as u64;
    reader.offer(nodes);
    let mut audit = Audit {
        reader,
        metadata: Tally::new(superblock.metadata_map.nr_blocks),
        data: Tally::new(superblock.data_map.nr_blocks),
        superblock,
        report,
        seen: HashMap::new(),
        path: Vec::new(),
        place: String::new(),
        progress,
        checked_blocks: 0,
        head_start,
    };
    audit.run();
    Ok((audit.report, audit.metadata))
}

fn finding(severity: Severity, block: Option<MetaBlock>, path: &str, what: String) -> Finding {
    Finding { severity, block, path: path.to_owned(), what }
}

/// False if what the superblock says leaves nothing to check against.
fn judge_superblock(device: &dyn BlockDevice, superblock: &Superblock, block: &Block, report: &mut Report) -> bool {
    let mut add = |severity, what: String| report.add(finding(severity, Some(SUPERBLOCK), "superblock", what));
    if superblock.needs_check() {
        add(Severity::Note, "flags: needs_check is set".to_owned());
    }
    let odd = [
        (superblock.flags & !1 != 0, format!("flags {:#x} beyond needs_check", superblock.flags)),
        (superblock.version != 2, format!("version {}, 2 is usual", superblock.version)),
        (superblock.foreign_compat() != 0, format!("compat_flags {:#x}", superblock.foreign_compat())),
        (
            superblock.is_logged(),
            "compat_ro_flags: marked as having an intent log; no kernel serves the pool before that is drained"
                .to_owned(),
        ),
        (superblock.metadata_block_sectors != 8, format!("metadata_block_size {}", superblock.metadata_block_sectors)),
        (
            superblock.metadata_nr_blocks > superblock.metadata_map.nr_blocks,
            format!("metadata_nr_blocks {} above the map's", superblock.metadata_nr_blocks),
        ),
        (block[96..192].iter().any(|&b| b != 0), "bytes behind the root of the data space map".to_owned()),
        (block[224..320].iter().any(|&b| b != 0), "bytes behind the root of the metadata space map".to_owned()),
        (block[364..].iter().any(|&b| b != 0), "bytes behind the last field".to_owned()),
    ];
    for (_, what) in odd.into_iter().filter(|(odd, _)| *odd) {
        add(Severity::Note, what);
    }
    let limit = METADATA_BLOCKS_MAX.min(device.size() / METADATA_BLOCK_SIZE as u64);
    let (metadata, data) = (superblock.metadata_map, superblock.data_map);
    let wrong = [
        (
            superblock.foreign_compat_ro() != 0,
            format!("compat_ro_flags {:#x} are not known", superblock.foreign_compat_ro()),
        ),
        (superblock.time > TIME_MAX, format!("time {} needs more than 24 bits", superblock.time)),
        (
            BlockSize::from_bytes(u64::from(superblock.data_block_sectors) * SECTOR_SIZE).is_err(),
            format!("data_block_size {} sectors", superblock.data_block_sectors),
        ),
    ];
    for (_, what) in wrong.into_iter().filter(|(wrong, _)| *wrong) {
        add(Severity::Damage, what);
    }
    let fatal = [
        (superblock.incompat_flags != 0, format!("incompat_flags {:#x} are not known", superblock.incompat_flags)),
        (
            metadata.nr_blocks == 0 || metadata.nr_blocks > limit,
            format!("nr_blocks {} of the metadata space map, the device has room for {limit}", metadata.nr_blocks),
        ),
        (
            data.nr_blocks > DATA_BLOCKS_MAX || data.bitmaps() >= metadata.nr_blocks,
            format!("nr_blocks {} of the data space map need more bitmaps than there are blocks", data.nr_blocks),
        ),
    ];
    let mut usable = true;
    for (_, what) in fatal.into_iter().filter(|(fatal, _)| *fatal) {
        add(Severity::Damage, what);
        usable = false;
    }
    usable
}

impl Audit<'_> {
    fn run(&mut self) {
        self.metadata.add(SUPERBLOCK.0);
        let live = (self.superblock.mapping_root, self.superblock.details_root);
        self.tree(TreeKind::Top, live.0, "top mapping tree");
        self.tree(TreeKind::Details, live.1, "device details tree");
        let devices = self.devices("", live.0, live.1);
        if self.superblock.held_root != 0 {
            self.held();
        }
        self.data_map();
        self.metadata_map();
        self.report.devices = devices.len() as u64;
        self.report.mappings = self
            .seen
            .values()
            .filter(|summary| summary.kind == TreeKind::Mapping && summary.height == 0)
            .map(|summary| summary.entries)
            .sum();
        self.report.metadata_used = self.metadata.used();
        self.report.data_used = self.data.used();
        if !self.report.incomplete {
            self.compare_allocated();
            if self.superblock.held_root == 0 {
                self.judge_ownership(&devices);
            }
        }
        (self.progress)(Progress { checked_blocks: self.checked_blocks, used_blocks: self.checked_blocks });
    }

    /// Adds a finding about `block`, at the place where the search stands.
    pub(in crate::check) fn add(&mut self, severity: Severity, block: impl Into<Option<MetaBlock>>, what: String) {
        let mut path = self.place.clone();
        for (nr, block) in self.path.iter().enumerate() {
            path.push_str(&format!("{}{block}", if nr == 0 { " " } else { " > " }));
        }
        self.report.add(Finding { severity, block: block.into(), path, what });
    }

    /// Adds a block that cannot be read: what lies below it is not counted, so counts cannot be compared.
    pub(in crate::check) fn unreadable(&mut self, block: MetaBlock, error: &Error) {
        self.report.incomplete = true;
        self.add(Severity::Damage, block, error.to_string());
    }

    /// Tells that one more block was checked.
    pub(in crate::check) fn step(&mut self) {
        self.checked_blocks += 1;
        if self.checked_blocks.is_multiple_of(PROGRESS_STEP) {
            let used_blocks = self.superblock.metadata_map.nr_allocated.max(self.checked_blocks);
            (self.progress)(Progress {
                checked_blocks: self.head_start + self.checked_blocks,
                used_blocks: self.head_start + used_blocks,
            });
        }
    }

    fn held(&mut self) {
        let number = MetaBlock(self.superblock.held_root);
        self.place = "held superblock".to_owned();
        self.metadata.add(number.0);
        self.step();
        match self.reader.block(number).and_then(|block| Superblock::decode(number, &block)) {
            Err(error) => self.unreadable(number, &error),
            Ok(held) => {
                if held.held_root != 0 || held.data_map.bitmap_root != 0 || held.metadata_map.bitmap_root != 0 {
                    self.add(Severity::Note, number, "held_root or a map root is not zero".to_owned());
                }
                if held.time > self.superblock.time {
                    let what = format!("time {} is later than the pool's {}", held.time, self.superblock.time);
                    self.add(Severity::Damage, number, what);
                }
                self.tree(TreeKind::Top, held.mapping_root, "held top mapping tree");
                self.tree(TreeKind::Details, held.details_root, "held device details tree");
                self.devices("held ", held.mapping_root, held.details_root);
            }
        }
    }

    /// Lists the devices of a pair of trees and compares records with trees.
    fn devices(&mut self, prefix: &str, top: u64, details: u64) -> Devices {
        let mut devices = Devices::new();
        let roots = self.reader.leaves(TreeKind::Top, MetaBlock(top), &mut |leaf| {
            for index in 0..leaf.len() {
                devices.entry(leaf.keys()[index]).or_default().0 = Some(MetaBlock(leaf.value(index)));
            }
            Ok(())
        });
        let records = self.reader.leaves(TreeKind::Details, MetaBlock(details), &mut |leaf| {
            for index in 0..leaf.len() {
                devices.entry(leaf.keys()[index]).or_default().1 = Some(leaf.value(index));
            }
            Ok(())
        });
        if roots.and(records).is_err() {
            // The search has told already what is wrong with these trees.
            return devices;
        }
        self.path.clear();
        let time = self.superblock.time;
        for (&id, &(root, record)) in &devices {
            self.place = format!("{prefix}device {id}");
            let (root, record) = match (root, record) {
                (Some(root), Some(record)) => (root, record),
                (root, _) => {
                    let there = if root.is_some() { "top mapping tree" } else { "device details tree" };
                    self.add(Severity::Damage, None, format!("the device is in the {there} only"));
                    continue;
                }
            };
            if let Some(entries) = self.seen.get(&root).map(|summary| summary.entries)
                && entries != record.mapped_blocks
            {
                let what = format!("mapped_blocks is {}, its tree holds {entries}", record.mapped_blocks);
                self.add(Severity::Damage, None, what);
            }
            let (created, snapshotted) = (record.creation_time, record.snapshotted_time);
            if created > snapshotted || snapshotted > time {
                let what = format!(
                    "creation_time {created}, snapshotted_time {snapshotted}, pool's time {time} are not in this order"
                );
                self.add(Severity::Damage, None, what);
            }
        }
        self.place.clear();
        devices
    }

    fn compare_allocated(&mut self) {
        self.place = "superblock".to_owned();
        self.path.clear();
        let pairs = [
            ("data", self.superblock.data_map.nr_allocated, self.data.used()),
            ("metadata", self.superblock.metadata_map.nr_allocated, self.metadata.used()),
        ];
        for (name, stored, counted) in pairs.into_iter().filter(|pair| pair.1 != pair.2) {
            let what = format!("nr_allocated {stored} of the {name} space map, {counted} blocks are in use");
            self.add(Severity::Note, SUPERBLOCK, what);
        }
    }

    fn judge_ownership(&mut self, devices: &Devices) {
        for (&id, &(root, record)) in devices {
            if let (Some(root), Some(record)) = (root, record) {
                self.ownership(id, root, record.snapshotted_time);
            }
        }
    }
}
