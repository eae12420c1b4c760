//! Reads one device out of a pool that is too damaged to open: what is lost stays a hole, and is told.

use std::sync::Arc;

use crate::device::{AlignedBuffer, BlockDevice};
use crate::error::{Error, ErrorKind, Result};
use crate::meta::{Metadata, OpenMode};
use crate::repair::mend::mend;
use crate::repair::report::{BlockRange, DeviceOutcome};
use crate::repair::roots::Hints;
use crate::units::{ByteCount, DeviceId, VirtualBlock};

/// Virtual blocks whose mappings are looked up at a time.
const STRETCH: u64 = 16_384;
/// Where a block cannot be read as a whole, it is read in pieces of this size.
const PAGE: usize = 4096;

/// Why bytes of a rescued device are not to be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Gap {
    /// Their mappings are lost: a hole stands in their place, also where nothing was ever written.
    Lost,
    /// Their mappings may be older than they should be.
    Doubtful,
    /// The data device does not give them: a hole stands in their place.
    Unreadable,
}

/// A range of a rescued device that is not what it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct GapRange {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// Why.
    pub gap: Gap,
}

/// What was rescued.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Rescued {
    /// Size of the file.
    pub size: ByteCount,
    /// Bytes that were mapped and could be read.
    pub read: ByteCount,
    /// What is missing, ascending.
    pub gaps: Vec<GapRange>,
    /// Mappings that the device had by its record and that were not found.
    pub missing_mappings: u64,
}

/// Where the bytes go: only what is not zero is written, in order.
pub trait Sink {
    /// Writes bytes at an offset. Errors: `OutOfDataSpace`, `Io`.
    fn put(&mut self, bytes: &[u8], offset: u64) -> Result<()>;
}

/// Reads device `id` of the metadata on `source` and the data on `data` into `sink`. `scratch` takes the mended
/// metadata: as large as `source`, its content does not matter. Nothing is written to `source` or `data`. `size`:
/// how large the device is; `None`: as far as it is mapped. Errors: `NotFound` if there is no such device, `Corrupt`.
pub fn rescue(
    source: &dyn BlockDevice,
    scratch: Arc<dyn BlockDevice>,
    data: &dyn BlockDevice,
    id: DeviceId,
    size: Option<ByteCount>,
    hints: &Hints<'_>,
    sink: &mut dyn Sink,
) -> Result<Rescued> {
    let report = mend(source, &*scratch, hints)?;
    let metadata = Metadata::open(scratch, OpenMode::ReadOnly)?;
    if metadata.find_device(id)?.is_none() {
        let known: Vec<String> = metadata.devices()?.iter().take(20).map(|(id, _)| id.to_string()).collect();
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("rescue device {id}: it is not in the metadata; the first that are: {}", known.join(", ")),
        ));
    }
    let outcome = report.devices.iter().find(|outcome| outcome.id == u64::from(id.get()));
    if outcome.is_some_and(|outcome| outcome.gone) {
        return Err(Error::new(ErrorKind::Corrupt, format!("rescue device {id}: nothing of its mappings is left")));
    }
    Reading { metadata: &metadata, data, id, block: metadata.block_size().bytes() }.run(size, outcome, sink)
}

struct Reading<'a> {
    metadata: &'a Metadata,
    data: &'a dyn BlockDevice,
    id: DeviceId,
    block: u64,
}

impl Reading<'_> {
    fn run(&self, size: Option<ByteCount>, outcome: Option<&DeviceOutcome>, sink: &mut dyn Sink) -> Result<Rescued> {
        let end = self.end()?;
        let size = size.map_or(end * self.block, |size| size.0);
        let mut rescued = Rescued {
            size: ByteCount(size),
            read: ByteCount(0),
            gaps: Vec::new(),
            missing_mappings: outcome.map_or(0, DeviceOutcome::lost_count),
        };
        if let Some(outcome) = outcome {
            rescued.gaps.extend(outcome.lost.iter().filter_map(|range| self.gap(range, size, Gap::Lost)));
            rescued.gaps.extend(outcome.doubtful.iter().filter_map(|range| self.gap(range, size, Gap::Doubtful)));
        }
        let mut buffer = AlignedBuffer::zeroed(usize::try_from(self.block).unwrap_or(PAGE));
        let mut start = 0;
        while start < end.min(size.div_ceil(self.block)) {
            let stretch = VirtualBlock(start)..VirtualBlock(start + STRETCH);
            for run in self.metadata.lookup_range(self.id, stretch)? {
                for step in 0..run.len {
                    let at = (run.start.0 + step) * self.block;
                    if at < size {
                        let len = usize::try_from((size - at).min(self.block)).unwrap_or(PAGE);
                        let from = (run.mapping.block.0 + step) * self.block;
                        self.copy(&mut buffer[..len], from, at, sink, &mut rescued)?;
                    }
                }
            }
            start += STRETCH;
        }
        rescued.gaps.sort_by_key(|gap| gap.start);
        Ok(rescued)
    }

    /// The block behind the last one that is mapped.
    fn end(&self) -> Result<u64> {
        let (mut low, mut high) = (0, u64::MAX);
        // The mappings are in order: half the rest holds none, or it does not.
        while low < high {
            let middle = low + (high - low) / 2;
            if self.metadata.first_mapped(self.id, VirtualBlock(middle)..VirtualBlock(u64::MAX))?.is_some() {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }

    fn gap(&self, range: &BlockRange, size: u64, gap: Gap) -> Option<GapRange> {
        let start = range.start.saturating_mul(self.block);
        let end = range.end.map_or(size, |end| end.saturating_mul(self.block)).min(size);
        (start < end).then(|| GapRange { start, len: end - start, gap })
    }

    fn copy(&self, buffer: &mut [u8], from: u64, at: u64, sink: &mut dyn Sink, rescued: &mut Rescued) -> Result<()> {
        if self.data.read_at(buffer, from).is_ok() {
            rescued.read.0 += buffer.len() as u64;
            return put_unless_zero(buffer, at, sink);
        }
        for (nr, page) in buffer.chunks_mut(PAGE).enumerate() {
            let offset = (nr * PAGE) as u64;
            if self.data.read_at(page, from + offset).is_ok() {
                rescued.read.0 += page.len() as u64;
                put_unless_zero(page, at + offset, sink)?;
                continue;
            }
            let len = page.len() as u64;
            match rescued.gaps.last_mut() {
                Some(last) if last.gap == Gap::Unreadable && last.start + last.len == at + offset => last.len += len,
                _ => rescued.gaps.push(GapRange { start: at + offset, len, gap: Gap::Unreadable }),
            }
        }
        Ok(())
    }
}

fn put_unless_zero(bytes: &[u8], offset: u64, sink: &mut dyn Sink) -> Result<()> {
    if bytes.iter().all(|&byte| byte == 0) { Ok(()) } else { sink.put(bytes, offset) }
}
