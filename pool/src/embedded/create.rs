//! A snapshot that is shown at once: its commit runs while its block device is being set up.
//!
//! The crash argument. Neither the device nor its own copy of a block that is about to be written is recorded in the
//! intent log: nothing was acknowledged. A copy that is lost leaves the block that it was made of, with the same bytes.
//! Until the commit is durable nothing else of the device can be recorded, because all cells of the volume are shared: who
//! looks at a new block device (a partition scan, udev) is answered, a change of a mapping waits. Killed before the
//! commit, the device never was; its block device may be there, and the next process takes it away
//! (`EmbeddedPool::adopt_orphans`).

use std::path::PathBuf;
use std::sync::Arc;

use crate::device::AlignedBuffer;
use crate::embedded::backing::Backing;
use crate::embedded::cells::CELLS;
use crate::embedded::embedded_pool::EmbeddedPool;
use crate::embedded::volume::{ThinVolume, check_size};
use crate::error::{Error, ErrorKind, Result};
use crate::thin_pool::Access;
use crate::units::{ByteCount, DeviceId, VirtualBlock};

/// Blocks above this size are not copied ahead: that would cost more than it saves.
const COPY_MAX: u64 = 256 << 10;

/// As `ThinPool::create_active`.
pub(super) fn create_active(
    pool: &EmbeddedPool,
    id: DeviceId,
    origin: DeviceId,
    size: ByteCount,
    ahead: ByteCount,
) -> Result<PathBuf> {
    let backing = &pool.backing;
    check_size(backing, size)?;
    let mut claim = pool.claims.claim(&[id, origin]);
    let create = || {
        backing.change(|metadata| {
            metadata.create_snap(id, origin)?;
            Ok(metadata.time())
        })
    };
    match pool.find_active(origin) {
        Some((volume, _)) => volume.quiesced(create),
        None => backing.settle(origin).and_then(|()| create()).map(|_| ()),
    }?;
    // From here on the new device keeps what it shares as it is.
    claim.give_back(origin);
    let own_blocks = if ahead.0 > 0 { copy_first_block(backing, id)? } else { 0 };
    let (details, generation) = {
        let metadata = backing.metadata()?;
        (metadata.find_device(id)?, metadata.generation())
    };
    let details = details.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("device {id} was just made")))?;
    let volume = ThinVolume::new(Arc::clone(backing), id, details, size, Access::ReadWrite)?.newborn(own_blocks);
    let volume = Arc::new(volume);
    let no_change_yet = volume.cells.shared(0, CELLS);
    backing.commits.want(generation);
    let shown = pool.exporter.attach(id, Arc::clone(&volume) as _, size, Access::ReadWrite);
    if shown.is_ok() {
        pool.enter(id, Arc::clone(&volume));
    }
    // Also if it cannot be shown: until it is durable the device is nobody's.
    backing.commits.wait_committed(generation)?;
    drop(no_change_yet);
    shown
}

/// Gives a device that nobody can use yet its own copy of its first block; returns how many blocks it has of its own then.
/// Without room, and where there is nothing to copy, it goes on sharing. Errors: `ReadOnly`, `Io`.
fn copy_first_block(backing: &Backing, id: DeviceId) -> Result<u64> {
    let block = backing.block_size.bytes();
    let (mapping, reserved) = {
        let mut metadata = backing.metadata()?;
        match metadata.lookup(id, VirtualBlock(0))? {
            Some(mapping) if block <= COPY_MAX => (mapping, metadata.reserve_data(1)),
            _ => return Ok(0),
        }
    };
    let (Ok(run), Ok(len)) = (reserved, usize::try_from(block)) else { return Ok(0) };
    let mut buffer = AlignedBuffer::zeroed(len);
    let mapped = backing
        .data
        .read_at(&mut buffer, backing.data_offset(mapping.block.0))
        .and_then(|()| backing.write_data(&buffer, backing.data_offset(run.start.0)))
        .and_then(|()| backing.metadata()?.insert_newborn(id, VirtualBlock(0), run));
    match mapped {
        Ok(()) => Ok(1),
        Err(e) => {
            backing.abandon(&[run]);
            match e.kind() {
                ErrorKind::OutOfDataSpace | ErrorKind::OutOfMetadataSpace => Ok(0),
                _ => Err(e),
            }
        }
    }
}
