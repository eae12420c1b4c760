//! Makes metadata that was put back agree with the records that need it.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::device::BlockDevice;
use crate::error::Result;
use crate::format::{SUPERBLOCK, TreeKind};
use crate::meta::{Metadata, OpenMode};
use crate::repair::survey::Survey;
use crate::units::{BlockSize, DeviceId, SECTOR_SIZE};

/// What the records say of the pool.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Needed {
    /// Devices that they name.
    pub devices: BTreeSet<DeviceId>,
    /// The transaction id that they saw last.
    pub transaction_id: Option<u64>,
}

/// Gives the metadata on `device`, which nobody serves, what the records need: an empty device in the place of each
/// that is missing, so that what is left of it can be removed in order, and their transaction id. Returns the devices
/// that it made. Errors: `NeedsCheck`, `Corrupt`, `OutOfMetadataSpace`.
pub fn reconcile(device: &Arc<dyn BlockDevice>, needed: &Needed) -> Result<Vec<DeviceId>> {
    let mut metadata = Metadata::open(Arc::clone(device), OpenMode::ReadWrite)?;
    let there: BTreeSet<DeviceId> = metadata.devices()?.into_iter().map(|(id, _)| id).collect();
    let missing: Vec<DeviceId> = needed.devices.difference(&there).copied().collect();
    for id in &missing {
        metadata.create_thin(*id)?;
    }
    if let Some(wanted) = needed.transaction_id.filter(|wanted| *wanted != metadata.transaction_id()) {
        metadata.set_transaction_id(metadata.transaction_id(), wanted)?;
    }
    if let Some(frozen) = metadata.freeze()? {
        frozen.write(&**device)?;
        metadata.committed(frozen);
    }
    Ok(missing)
}

/// The identity in the superblock, also of damaged metadata; `None` if it cannot be read.
pub fn identity_of(device: &dyn BlockDevice) -> Option<[u8; 16]> {
    Survey::new(device).superblock(SUPERBLOCK).ok().map(|superblock| superblock.identity)
}

/// True if a metadata snapshot is held.
pub fn holds_snapshot(device: &dyn BlockDevice) -> bool {
    Survey::new(device).superblock(SUPERBLOCK).is_ok_and(|superblock| superblock.held_root != 0)
}

/// The size of a data block, as the superblock has it. Errors: `Corrupt`.
pub fn block_size_of(device: &dyn BlockDevice) -> Result<BlockSize> {
    let superblock = Survey::new(device).superblock(SUPERBLOCK)?;
    BlockSize::from_bytes(u64::from(superblock.data_block_sectors) * SECTOR_SIZE)
}

/// The devices of sound metadata, with the number of the block behind the last that each has mapped.
pub fn device_ends(device: &dyn BlockDevice) -> Result<Vec<(DeviceId, u64)>> {
    let survey = Survey::new(device);
    let superblock = survey.superblock(SUPERBLOCK)?;
    let roots = survey.entries::<u64>(TreeKind::Top, superblock.mapping_root);
    let mut ends = Vec::with_capacity(roots.entries.len());
    for (id, root) in roots.entries {
        let Ok(id) = u32::try_from(id).map_err(|_| ()).and_then(|id| DeviceId::new(id).map_err(|_| ())) else {
            continue;
        };
        ends.push((id, survey.last_mapped(root)));
    }
    Ok(ends)
}
