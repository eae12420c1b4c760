//! Gives back the room that free blocks hold below a pool of the kernel's, which does not empty what it frees.
//!
//! The kernel lends nobody its free blocks, so they are emptied while the pool is stopped: then everything is committed,
//! no request is on its way, and no block changes hands. Which blocks are free is read anew at each stop; what is worth a
//! stop is found out before, beside the running pool. Between two stops requests get through for as long as the last one
//! took.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use crate::device::{BlockDevice, FileDevice};
use crate::error::{Error, ErrorKind, Result};
use crate::kernel::kernel_pool::KernelPool;
use crate::kernel::verbs::not_ours;
use crate::meta::{Metadata, OpenMode};
use crate::units::{ByteCount, DataBlock};

/// Longest time in which free blocks are emptied at one stop; reading the counts comes on top.
const STOP: Duration = Duration::from_millis(50);
/// Bytes that are emptied with one call.
const STEP: u64 = 16 << 20;

/// What one stop has done.
struct Stop {
    emptied: u64,
    /// Where the next one goes on.
    next: Option<DataBlock>,
}

impl KernelPool {
    /// Empties free blocks; returns the bytes of those that were not holes before. Of a disk nobody tells which are:
    /// all of them count. Errors: `Unsupported` (the pool is another program's), `Unavailable` (interrupted), `Io`.
    pub(super) fn trim_free(&self) -> Result<ByteCount> {
        self.check_changes()?;
        let Some([_, data]) = &self.below else { return Err(not_ours()) };
        let device = data.beside()?;
        let before = self.news.interruptions();
        let mut emptied = 0;
        let mut from = self.read(|metadata| Ok(self.next_worth(metadata, &device, DataBlock(0))))?;
        while let Some(start) = from {
            if self.news.interruptions() != before {
                return Err(Error::new(ErrorKind::Unavailable, "interrupted; what is done is done"));
            }
            let begun = Instant::now();
            let stop = {
                // The table that a growth has loaded must not come into force here.
                let _one = self.one_table();
                self.pool.stopped(|| self.empty_some(&device, start))?
            };
            emptied += stop.emptied;
            from = stop.next;
            if from.is_some() {
                let took = begun.elapsed();
                self.news.wait(took, took, || Ok(ControlFlow::Continue(())))?;
            }
        }
        Ok(ByteCount(emptied))
    }

    /// The first block of the next free run that is worth emptying.
    fn next_worth(&self, metadata: &Metadata, device: &FileDevice, from: DataBlock) -> Option<DataBlock> {
        self.next_run(metadata, device, from).map(|(start, _)| start)
    }

    /// The next free run, of at most [`STEP`] bytes, that is not known to be a hole: first block and blocks.
    fn next_run(&self, metadata: &Metadata, device: &FileDevice, mut from: DataBlock) -> Option<(DataBlock, u64)> {
        let block = self.block_size.bytes();
        let most = (STEP / block).max(1);
        let end = metadata.data_space().total * block;
        loop {
            let start = from.0 * block;
            if start >= end || device.known_zero(start, end - start) {
                return None;
            }
            let run = metadata.free_data(from, most)?;
            if !device.known_zero(run.start.0 * block, run.len * block) {
                return Some((run.start, run.len));
            }
            from = DataBlock(run.start.0 + run.len);
        }
    }

    /// Empties free blocks from `from` on, in a pool that is stopped.
    fn empty_some(&self, device: &FileDevice, from: DataBlock) -> Result<Stop> {
        let block = self.block_size.bytes();
        let metadata = Metadata::open(self.live.device()?, OpenMode::ReadOnly)?;
        let begun = Instant::now();
        let mut stop = Stop { emptied: 0, next: Some(from) };
        while let Some(at) = stop.next.filter(|_| begun.elapsed() < STOP) {
            let Some((start, len)) = self.next_run(&metadata, device, at) else {
                stop.next = None;
                break;
            };
            device.discard(start.0 * block, len * block)?;
            stop.emptied += len * block;
            stop.next = Some(DataBlock(start.0 + len));
        }
        Ok(stop)
    }
}
