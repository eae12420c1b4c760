//! `thinsnap pool restore`, `pool repair` and `rescue`: what is done to a pool that nobody uses.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, IsTerminal, Write};
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use thinsnap_pool::{BlockRange, BlockSize, ByteCount, DeviceOutcome, GapRange, RepairReport};

use crate::admin::{LockedPool, Mended, PutBack, RescueRequest, RescueResult, repair_file, restore_to_file};
use crate::cli::args::Global;
use crate::cli::backup::config_of;
use crate::cli::output::Output;
use crate::cli::render::{clean, count, size};
use crate::cli::serve::{block_size, size as parse_size};
use crate::error::{Error, ErrorKind, Result};

/// Metadata space of a file that is made of a dump, if nobody says otherwise.
const METADATA_SIZE_DEFAULT: ByteCount = ByteCount(64 << 20);

/// Options of `pool restore`.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// The dump: thin_dump's XML, ours or anyone's
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Make this new metadata file instead of touching the pool
    #[arg(long, value_name = "NEW")]
    to: Option<PathBuf>,
    /// Size of the new file [default: 64M]
    #[arg(long, value_name = "SIZE", value_parser = parse_size, requires = "to")]
    metadata_size: Option<ByteCount>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

/// Options of `pool repair`.
#[derive(Debug, Args)]
#[group(id = "how", required = true, multiple = false, args = ["dry_run", "apply", "to"])]
pub struct RepairArgs {
    /// Say what would be done and what would be lost; change nothing
    #[arg(long)]
    dry_run: bool,
    /// Repair; the old metadata is kept under a name that is told
    #[arg(long)]
    apply: bool,
    /// A bare metadata file or device, ours or anyone's, instead of the pool's
    #[arg(long, value_name = "FILE", requires = "to")]
    metadata: Option<PathBuf>,
    /// The new file that the repaired metadata is written to
    #[arg(long, value_name = "NEW", requires = "metadata")]
    to: Option<PathBuf>,
    /// Size of a data block: asked for if the superblock is lost and there is no backup
    #[arg(long, value_name = "SIZE", value_parser = block_size)]
    block_size: Option<BlockSize>,
}

/// Options of `rescue`.
#[derive(Debug, Clone, Args)]
pub struct RescueArgs {
    /// Number of a thin device, or SPACE/NAME of a snapshot
    #[arg(value_name = "DEVICE")]
    device: String,
    /// The file to make, with holes where nothing is
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// Write what is missing into this file: first byte, bytes, why
    #[arg(long, value_name = "FILE")]
    map: Option<PathBuf>,
    /// Use the mappings of this backup (see `pool backup ls`) instead of the pool's
    #[arg(long, value_name = "NAME")]
    backup: Option<String>,
    /// How large the device is, if no record tells
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    size: Option<ByteCount>,
    /// Size of a data block: asked for if the superblock is lost and there is no backup
    #[arg(long, value_name = "SIZE", value_parser = block_size)]
    block_size: Option<BlockSize>,
}

/// A new metadata file.
#[derive(Debug, Serialize)]
struct Made {
    file: PathBuf,
    devices: u64,
    mappings: u64,
    metadata_blocks_used: u64,
}

pub(crate) fn restore(args: &RestoreArgs, global: &Global, output: Output) -> Result<()> {
    let file = File::open(&args.file).map_err(|error| Error::io(format!("open {}", args.file.display()), error))?;
    let mut input = BufReader::new(file);
    if let Some(to) = &args.to {
        let made = restore_to_file(&mut input, to, args.metadata_size.unwrap_or(METADATA_SIZE_DEFAULT))?;
        let made = Made {
            file: to.clone(),
            devices: made.devices,
            mappings: made.mappings,
            metadata_blocks_used: made.metadata_blocks,
        };
        return output.answer(&made, |made| {
            format!(
                "made {}: {}, {}",
                made.file.display(),
                count(made.devices, "device"),
                count(made.mappings, "mapping")
            )
        });
    }
    let config = config_of(global)?;
    confirmed(args.yes, &format!("put metadata back in {}: what is not in the dump is lost", config.root.display()))?;
    let done = LockedPool::open(&config)?.restore_dump(&mut input)?;
    output.answer(&done, put_back_text)
}

pub(crate) fn repair(args: &RepairArgs, global: &Global, output: Output) -> Result<()> {
    if let (Some(file), Some(to)) = (&args.metadata, &args.to) {
        let report = repair_file(file, to, args.block_size)?;
        output.answer(&report, |report| {
            let mut text = format!("made {}\n", to.display());
            report_text(report, &|_| String::new(), &mut text);
            text
        })?;
        return judged(report.is_whole(), "repaired, but not everything could be saved");
    }
    let pool = LockedPool::open(&config_of(global)?)?;
    let mended = if args.apply { pool.repair(args.block_size)? } else { pool.try_repair(args.block_size)? };
    output.answer(&mended, mended_text)?;
    let whole = mended.report.as_ref().is_none_or(RepairReport::is_whole) && mended.emptied.is_empty();
    match (mended.applied, mended.was_sound) {
        (_, true) => Ok(()),
        (true, false) => judged(whole, "repaired, but not everything could be saved"),
        (false, false) => judged(false, "the metadata is damaged; nothing was changed"),
    }
}

pub(crate) fn rescue(args: &RescueArgs, global: &Global, output: Output) -> Result<()> {
    let request = RescueRequest {
        device: args.device.clone(),
        to: args.to.clone(),
        backup: args.backup.clone(),
        size: args.size,
        block_size: args.block_size,
    };
    // Opened first: a rescue may take long, and its map must have a place.
    let map = args.map.as_deref().map(|path| {
        let made = OpenOptions::new().write(true).create_new(true).open(path);
        made.map_err(|error| Error::io(format!("make the file {}", path.display()), error))
    });
    let map = map.transpose()?;
    let done = LockedPool::open(&config_of(global)?)?.rescue(&request)?;
    if let Some(mut map) = map {
        let written = map.write_all(map_text(&done.rescued.gaps).as_bytes()).and_then(|()| map.sync_all());
        written.map_err(|error| Error::io("write the map", error))?;
    }
    output.answer(&done, |done| rescued_text(done, args))?;
    judged(
        done.rescued.gaps.is_empty() && done.rescued.missing_mappings == 0,
        "rescued, but not everything could be read",
    )
}

/// Errors with `Corrupt`, status 3, unless all is well.
fn judged(well: bool, what: &str) -> Result<()> {
    if well { Ok(()) } else { Err(Error::new(ErrorKind::Corrupt, what)) }
}

/// Asks on a terminal; elsewhere the answer must have been given. Errors: `InvalidArgument`, `Unavailable` if it is no.
pub(crate) fn confirmed(yes: bool, what: &str) -> Result<()> {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err(Error::new(ErrorKind::InvalidArgument, format!("{what}?")).advise("say --yes"));
    }
    eprint!("{what}. Go on? [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).map_err(|error| Error::io("read the answer", error))?;
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Unavailable, "nothing was changed"))
}

pub(crate) fn put_back_text(done: &PutBack) -> String {
    let mut text =
        format!("put back: {}\nthe metadata before is {}\n", count(done.devices, "device"), done.kept.display());
    emptied_text(&done.emptied, &mut text);
    text
}

fn emptied_text(emptied: &[String], text: &mut String) {
    if emptied.is_empty() {
        return;
    }
    text.push_str("made anew, empty, because records need them; remove these snapshots:\n");
    for name in emptied {
        text.push_str(&format!("  {}\n", clean(name)));
    }
}

fn mended_text(mended: &Mended) -> String {
    let mut text = String::new();
    match (&mended.report, mended.was_sound, mended.applied) {
        (Some(_), true, _) => text.push_str("sound; the flag needs_check is cleared\n"),
        (None, true, _) => text.push_str("sound: there is nothing to repair\n"),
        (_, false, true) => text.push_str("REPAIRED\n"),
        (_, false, false) => text.push_str("DAMAGED; a repair would do this:\n"),
    }
    if let Some(report) = mended.report.as_ref().filter(|_| !mended.was_sound) {
        let whose = |id: u64| {
            let affected = mended.affected.iter().find(|affected| affected.outcome.id == id);
            affected.map_or(String::new(), |affected| affected.snapshots.join(", "))
        };
        report_text(report, &whose, &mut text);
    }
    emptied_text(&mended.emptied, &mut text);
    if let Some(kept) = &mended.kept {
        text.push_str(&format!("the damaged metadata is kept as {}\n", kept.display()));
    }
    text
}

fn report_text(report: &RepairReport, whose: &dyn Fn(u64) -> String, text: &mut String) {
    let mut line = |what: String| text.push_str(&format!("{what}\n"));
    line(format!("begins with: {}", clean(&report.roots)));
    for candidate in &report.candidates {
        line(format!("  an older state: {}", clean(candidate)));
    }
    if !report.corrected.is_empty() {
        line(format!("one flipped bit taken back in each of the metadata blocks {}", list(&report.corrected)));
    }
    if !report.unreadable.is_empty() {
        line(format!("lost metadata blocks: {}", list(&report.unreadable)));
    }
    if report.found_again > 0 {
        line(format!("{} found again below them", count(report.found_again, "node")));
    }
    if report.snapshot_released {
        line("the held metadata snapshot is released".to_owned());
    }
    if report.needs_check_cleared {
        line("the flag needs_check is cleared".to_owned());
    }
    if report.is_whole() {
        line(format!("nothing is lost: all of {} are what they were", count(report.device_count, "device")));
    } else {
        line(format!("LOST: {} in mappings that are known to have been there", size(report.lost().0)));
    }
    for range in &report.lost_ids {
        line(format!("  devices {}: whether there were any is not known", range_text(range, 1)));
    }
    for outcome in &report.devices {
        line(format!("  {}", outcome_text(outcome, &whose(outcome.id), report.block_size.0)));
    }
}

/// The first twenty, in a row.
fn list<T: std::fmt::Display>(items: &[T]) -> String {
    items.iter().take(20).map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn outcome_text(outcome: &DeviceOutcome, whose: &str, block_size: u64) -> String {
    let mut text = format!("device {}", outcome.id);
    if !whose.is_empty() {
        text.push_str(&format!(" ({})", clean(whose)));
    }
    if outcome.gone {
        let before = outcome.mapped_before.unwrap_or(0);
        return format!("{text}: nothing could be saved of {}; it is there, and empty", size(before * block_size));
    }
    if outcome.lost_count() > 0 {
        text.push_str(&format!(": {} lost", size(outcome.lost_count() * block_size)));
    }
    let ranges = |ranges: &[BlockRange]| {
        ranges.iter().take(20).map(|range| range_text(range, block_size)).collect::<Vec<_>>().join(", ")
    };
    if !outcome.lost.is_empty() {
        text.push_str(&format!("; lost are bytes {}", ranges(&outcome.lost)));
    }
    if !outcome.doubtful.is_empty() {
        text.push_str(&format!("; perhaps older than they should be are bytes {}", ranges(&outcome.doubtful)));
    }
    if outcome.record_rebuilt {
        text.push_str("; its record was made anew");
    }
    text
}

fn range_text(range: &BlockRange, unit: u64) -> String {
    let start = range.start.saturating_mul(unit);
    range.end.map_or_else(|| format!("{start}…end"), |end| format!("{start}…{}", end.saturating_mul(unit)))
}

fn gap_name(gap: &GapRange) -> &'static str {
    match gap.gap {
        thinsnap_pool::Gap::Lost => "lost",
        thinsnap_pool::Gap::Doubtful => "doubtful",
        thinsnap_pool::Gap::Unreadable => "unreadable",
    }
}

fn map_text(gaps: &[GapRange]) -> String {
    let mut text = "# first byte, bytes, why\n".to_owned();
    for gap in gaps {
        text.push_str(&format!("{} {} {}\n", gap.start, gap.len, gap_name(gap)));
    }
    text
}

fn rescued_text(done: &RescueResult, args: &RescueArgs) -> String {
    let rescued = &done.rescued;
    let mut text = format!(
        "device {} in {}: {} of mapped data read, the file is {} large\n",
        done.device,
        args.to.display(),
        size(rescued.read.0),
        size(rescued.size.0)
    );
    for gap in rescued.gaps.iter().take(20) {
        text.push_str(&format!("{}: {} bytes at {}\n", gap_name(gap), gap.len, gap.start));
    }
    if rescued.gaps.len() > 20 {
        text.push_str(&format!("and {} more; --map FILE has all of them\n", rescued.gaps.len() - 20));
    }
    if rescued.missing_mappings > 0 {
        text.push_str(&format!("{} are lost\n", count(rescued.missing_mappings, "mapping")));
    }
    text
}
