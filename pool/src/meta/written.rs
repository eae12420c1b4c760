//! What one device has written, read from the disk alone: its own tree and the way to it, no counts, no other device.
//!
//! Invariant: it reads nothing but what the superblock that it is given reaches. Beside a pool that goes on changing
//! the caller must see the same superblock again afterwards, else what was read may be of different times.

use std::sync::Arc;

use crate::device::BlockDevice;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{DeviceDetails, Mapping, Superblock, TreeKind};
use crate::meta::btree::{ALL_KEYS, Flow, lookup, walk};
use crate::meta::transaction::Transaction;
use crate::units::{ByteCount, DeviceId, MetaBlock, SECTOR_SIZE};

/// Bytes mapped since the device was made, as [`DeviceUsage::written`](crate::status::DeviceUsage) has it, in the
/// generation of `superblock`. Errors: `NotFound`, `Corrupt`, `Io`.
pub(crate) fn written_on(device: Arc<dyn BlockDevice>, superblock: &Superblock, id: DeviceId) -> Result<ByteCount> {
    let transaction = Transaction::uncounted(device);
    let key = u64::from(id.get());
    let [top, details] = [superblock.mapping_root, superblock.details_root].map(MetaBlock);
    let root = lookup::<u64>(&transaction, TreeKind::Top, top, key)?;
    let details = lookup::<DeviceDetails>(&transaction, TreeKind::Details, details, key)?;
    let (Some(root), Some(details)) = (root, details) else {
        return Err(Error::new(ErrorKind::NotFound, format!("there is no device {id}")));
    };
    let mut written = 0_u64;
    walk(&transaction, TreeKind::Mapping, MetaBlock(root), &ALL_KEYS, &mut |node, _| {
        written += node.words().filter(|&word| Mapping::unpack(word).time >= details.creation_time).count() as u64;
        Ok(Flow::Continue)
    })?;
    let block = u64::from(superblock.data_block_sectors) * SECTOR_SIZE;
    Ok(ByteCount(written.saturating_mul(block)))
}
