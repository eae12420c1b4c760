//! What the kernel says of a pool, in one line of words.

use crate::error::{Error, ErrorKind, Result};
use crate::status::PoolMode;

/// Most metadata blocks that the kernel keeps back.
const RESERVE_MAX: u64 = 4096;

/// A pool's status line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PoolLine {
    /// It does at least something.
    Working(PoolReport),
    /// `Fail`: its metadata cannot be read or written; all I/O fails.
    Failed,
    /// `Error`: the kernel could not find out.
    Unknown,
}

/// The words of a pool that works. Counts are in blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PoolReport {
    pub(super) transaction_id: u64,
    /// Counts the blocks kept back as used.
    pub(super) metadata_used: u64,
    pub(super) metadata_total: u64,
    pub(super) data_used: u64,
    pub(super) data_total: u64,
    /// Metadata block of the held metadata snapshot.
    pub(super) held_root: Option<u64>,
    pub(super) mode: PoolMode,
    /// `discard_passdown`, `no_discard_passdown` or `ignore_discard`: what is done, whatever the table asks for.
    pub(super) discards: String,
    /// A write without room fails at once; otherwise it waits.
    pub(super) fails_without_space: bool,
    pub(super) needs_check: bool,
    /// Free metadata blocks below which the kernel raises an event; kernels before 5.2 do not tell.
    pub(super) metadata_low_water: Option<u64>,
}

impl PoolLine {
    /// Errors with `Unsupported` if the words are not those that are known.
    pub(super) fn parse(words: &str) -> Result<Self> {
        match words.trim_end() {
            "Fail" => Ok(Self::Failed),
            "Error" => Ok(Self::Unknown),
            line => read_report(line).map(Self::Working).ok_or_else(|| {
                Error::new(ErrorKind::Unsupported, format!("the status line of the pool is not understood: {line:?}"))
            }),
        }
    }
}

impl PoolReport {
    /// Metadata blocks that the kernel keeps back, and counts as used.
    pub(super) fn reserve(&self) -> u64 {
        RESERVE_MAX.min(self.metadata_total / 10)
    }

    /// Metadata blocks with a count above zero; in a pool that has gone into its reserve, at least so many.
    pub(super) fn metadata_counted(&self) -> u64 {
        self.metadata_used.saturating_sub(self.reserve())
    }

    /// True if a change of metadata finds no room.
    pub(super) fn metadata_full(&self) -> bool {
        self.metadata_used >= self.metadata_total
    }
}

fn read_report(line: &str) -> Option<PoolReport> {
    let mut words = line.split_whitespace();
    let pair = |word: &str| -> Option<(u64, u64)> {
        let (used, total) = word.split_once('/')?;
        Some((used.parse().ok()?, total.parse().ok()?))
    };
    let transaction_id = words.next()?.parse().ok()?;
    let (metadata_used, metadata_total) = pair(words.next()?)?;
    let (data_used, data_total) = pair(words.next()?)?;
    let held_root = match words.next()? {
        "-" => None,
        block => Some(block.parse().ok()?),
    };
    let mode = match words.next()? {
        "rw" => PoolMode::Write,
        "ro" => PoolMode::ReadOnly,
        "out_of_data_space" => PoolMode::OutOfDataSpace,
        _ => return None,
    };
    let discards = words.next()?;
    if !["discard_passdown", "no_discard_passdown", "ignore_discard"].contains(&discards) {
        return None;
    }
    let fails_without_space = match words.next()? {
        "error_if_no_space" => true,
        "queue_if_no_space" => false,
        _ => return None,
    };
    let needs_check = match words.next() {
        // Kernels before 4.2 end here.
        None | Some("-") => false,
        Some("needs_check") => true,
        Some(_) => return None,
    };
    let metadata_low_water = words.next().map(str::parse).transpose().ok()?;
    Some(PoolReport {
        transaction_id,
        metadata_used,
        metadata_total,
        data_used,
        data_total,
        held_root,
        mode,
        discards: discards.to_owned(),
        fails_without_space,
        needs_check,
        metadata_low_water,
    })
}

#[cfg(test)]
mod tests;
