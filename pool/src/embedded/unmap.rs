//! Discard and write-zeroes: blocks lose their mappings and read as zeroes.
//!
//! Nothing is sent down here: the superblock on the disk still maps the blocks. They are emptied after the
//! commit that freed them is durable (`reclaim.rs`); the kernel's dm-thin discards before, and loses durable
//! bytes if the power goes in between.

use crate::device::AlignedBuffer;
use crate::embedded::plan::Plan;
use crate::embedded::volume::ThinVolume;
use crate::embedded::write::Patience;
use crate::error::{ErrorKind, Result};
use crate::export::Direction;
use crate::meta::Metadata;
use crate::units::VirtualBlock;

/// Blocks unmapped with the cells held at once: some hundred leaves of the tree under the mutex.
const STEP: u64 = 16 * 1024;
/// Zeroes for a piece of a mapped block are written from a buffer of at most this size.
const ZERO_PIECE: u64 = 1 << 20;

impl ThinVolume {
    /// Removes the mappings of a range of blocks.
    pub(super) fn unmap(&self, first: u64, blocks: u64) -> Result<()> {
        let end = first + blocks;
        let mut block = first;
        let mut most = STEP;
        while block < end {
            let step = (end - block).min(most);
            let _cells = self.take_alone(block, step);
            // Done again at the next start, the write would come back behind its discard.
            self.check_broken(block, step)?;
            let done = match self.unmap_step(block, step) {
                Err(e) if e.kind() == ErrorKind::OutOfMetadataSpace && self.backing.make_metadata_room()? => {
                    self.unmap_step(block, step)
                }
                done => done,
            };
            match done {
                Ok(()) => block += step,
                // What gives space back must get through: fewer leaves at once need fewer blocks.
                Err(e) if e.kind() == ErrorKind::OutOfMetadataSpace && step > 1 => most = step / 2,
                Err(e) => {
                    let end = block + step;
                    return Err(e.doing(format_args!("discard blocks {block}..{end} of device {}", self.id)));
                }
            }
        }
        Ok(())
    }

    fn unmap_step(&self, first: u64, blocks: u64) -> Result<()> {
        let mut metadata = self.backing.metadata_for(1)?;
        let range = VirtualBlock(first)..VirtualBlock(first + blocks);
        let own = if self.counts_own() { self.count_own_in(&metadata, range.clone())? } else { 0 };
        let removed = metadata.remove_range(self.id, range);
        match &removed {
            Ok(_) => {
                self.count_own(&metadata, -own);
                self.table.clear(first, blocks);
            }
            // Some of the range may be unmapped: the tree is asked again.
            Err(_) => {
                self.table.forget(first, blocks);
                self.count_own_again(&metadata);
            }
        }
        drop(metadata);
        if removed? > 0 {
            self.backing.commits.note_change();
        }
        Ok(())
    }

    fn count_own_in(&self, metadata: &Metadata, range: std::ops::Range<VirtualBlock>) -> Result<i64> {
        let runs = metadata.lookup_range(self.id, range)?;
        let own: u64 = runs.iter().filter(|run| self.is_own(run.mapping)).map(|run| run.len).sum();
        Ok(i64::try_from(own).unwrap_or(i64::MAX))
    }

    /// Makes a piece that covers no whole block read as zeroes; a hole does already.
    pub(super) fn zero_piece(&self, offset: u64, len: u64, patience: Patience) -> Result<()> {
        let size = self.block_bytes();
        let end = offset + len;
        let mut at = offset;
        let mut zeroes: Option<AlignedBuffer> = None;
        while at < end {
            let step = (size - at % size).min(end - at).min(ZERO_PIECE);
            if !self.is_hole(at / size)? {
                let piece = usize::try_from(step).expect("a piece of at most 1 MiB");
                let zeroes = zeroes.get_or_insert_with(|| AlignedBuffer::zeroed(piece));
                if zeroes.len() < piece {
                    *zeroes = AlignedBuffer::zeroed(piece);
                }
                // Written like any bytes: the block may be shared. If it became a hole since, a block of
                // zeroes is provisioned, which reads the same.
                self.write_blocks(&zeroes[..piece], at, patience)?;
            }
            at += step;
        }
        Ok(())
    }

    fn is_hole(&self, block: u64) -> Result<bool> {
        let _cell = self.share(block, 1);
        let entry = self.resolve(block, 1)?.get(block);
        Ok(self.plan(entry, Direction::Read) == Plan::ReadZeroes)
    }
}
