//! How an import tells what it is doing, and how it is asked to stop.

use std::ops::ControlFlow;

/// What an import is busy with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// The archive is being read (and unpacked to the work directory if it is compressed as a whole).
    Opening,
    /// The layer is in the pool already: nothing to do.
    Present,
    /// The layer is being unpacked; bytes are packed bytes.
    Applying,
    /// The layer is being flushed and committed.
    Committing,
    /// The layer is in the pool.
    Done,
}

/// One report of an import. Reports of one layer come in the order of the phases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// What it is busy with.
    pub phase: Phase,
    /// Which layer, from 0; 0 while opening.
    pub layer: usize,
    /// How many layers there are; 0 while opening.
    pub layers: usize,
    /// The layer's diff id or blob digest, or the archive's file name while opening.
    pub what: String,
    /// Bytes read of `bytes_total`.
    pub bytes_done: u64,
    /// Bytes to read; 0 if unknown.
    pub bytes_total: u64,
}

/// Called with each report, about once a MiB; `Break` stops the import and cleans it up.
pub type ProgressFn<'a> = &'a (dyn Fn(&Progress) -> ControlFlow<()> + Sync);

/// Packed bytes between two reports of one layer: 1 MiB is a few reports a second on a slow disk.
pub(super) const REPORT_EVERY: u64 = 1 << 20;
