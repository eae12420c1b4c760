//! What a pool holds, told without changing or locking anything: also of one that the kernel serves for another program.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use crate::device::{BlockDevice, FileDevice};
use crate::error::{Error, ErrorKind, Result};
use crate::kernel::loop_of;
use crate::meta::{Metadata, OpenMode, superblock_fingerprint};
use crate::repair::reconcile::device_ends;
use crate::units::{BlockSize, ByteCount, DeviceId, VirtualBlock};

/// Readings of a pool that changes meanwhile, before giving up.
const READINGS: u32 = 20;
/// Bytes from each device's start.
const HEAD_LEN: usize = 4096;

/// A pool at one moment.
#[derive(Debug, Clone)]
pub struct Inventory {
    /// The superblock's uuid field; all zero in a pool that other programs made.
    pub identity: [u8; 16],
    /// The volume manager's number.
    pub transaction_id: u64,
    /// Size of a data block.
    pub block_size: BlockSize,
    /// Data space in use.
    pub data_used: ByteCount,
    /// All data space.
    pub data_total: ByteCount,
    /// The devices, ascending by id.
    pub devices: Vec<InventoryDevice>,
}

/// A thin device of a pool.
#[derive(Debug, Clone)]
pub struct InventoryDevice {
    /// Its number.
    pub id: DeviceId,
    /// Its mapped blocks, shared ones included.
    pub mapped: ByteCount,
    /// The end of the last mapped block: the device cannot be smaller than a block less.
    pub end: ByteCount,
    /// The first 4 KiB of it; `None` where nothing is mapped.
    pub head: Option<Vec<u8>>,
}

/// Reads what a pool holds. Errors: `InUse` if it is changed faster than it can be read, `NeedsCheck`, `NotFound`,
/// `Corrupt`, also if one of the two devices is too small for the pool.
pub fn inventory(metadata: &Path, data: &Path) -> Result<Inventory> {
    let doing = |e: Error| e.doing(format_args!("look at the pool in {}", metadata.display()));
    let device: Arc<dyn BlockDevice> = Arc::new(FileDevice::open_beside(metadata, false).map_err(doing)?);
    let data = FileDevice::open_beside(data, false).map_err(doing)?;
    for _ in 0..READINGS {
        let before = superblock_fingerprint(&*device).map_err(doing)?;
        let found = read(&device, &data);
        // What looks like damage in metadata that has changed meanwhile is none.
        if superblock_fingerprint(&*device).is_ok_and(|after| after == before) {
            return found.map_err(doing);
        }
    }
    Err(doing(Error::new(ErrorKind::InUse, "it changed while it was read: stop who writes to its devices")))
}

/// Gives a pool that has none an identity, which tells it from any other; one that has this identity is left as it is.
/// Nothing else of the pool changes, and other programs do not look at the field. Errors: `Invalid` if it has another
/// one, `InUse`, `NeedsCheck`, `Corrupt`.
pub fn give_identity(metadata: &Path, data: &Path, identity: [u8; 16]) -> Result<()> {
    let doing = |e: Error| e.doing(format_args!("give the pool in {} an identity", metadata.display()));
    for path in [metadata, data] {
        if let Some(bound) = loop_of(path) {
            // Whoever serves the pool from there knows no lock on the file.
            let what = format!("{0} is bound to {1}: losetup --detach {1}", path.display(), bound.display());
            return Err(doing(Error::new(ErrorKind::InUse, what)));
        }
    }
    let device: Arc<dyn BlockDevice> = Arc::new(FileDevice::open(metadata).map_err(doing)?);
    let mut pool = Metadata::open(Arc::clone(&device), OpenMode::ReadWrite).map_err(doing)?;
    if pool.identity() == identity {
        return Ok(());
    }
    pool.set_identity(identity).map_err(doing)?;
    match pool.freeze().map_err(doing)? {
        Some(frozen) => frozen.write(&*device).map_err(doing),
        None => Ok(()),
    }
}

fn read(device: &Arc<dyn BlockDevice>, data: &FileDevice) -> Result<Inventory> {
    let pool = Metadata::open(Arc::clone(device), OpenMode::ReadOnly)?;
    if pool.needs_check() {
        return Err(Error::new(
            ErrorKind::NeedsCheck,
            "a change of it failed: check it first (thin_check, thin_repair)",
        ));
    }
    let block_size = pool.block_size();
    let bytes = |blocks: u64| ByteCount(blocks.saturating_mul(block_size.bytes()));
    let space = pool.data_space();
    if data.size() < bytes(space.total).0 {
        return Err(Error::new(
            ErrorKind::Corrupt,
            format!("its data has {} bytes, {} has {}", bytes(space.total).0, data.path().display(), data.size()),
        ));
    }
    let ends: BTreeMap<DeviceId, u64> = device_ends(&**device)?.into_iter().collect();
    let mut devices = Vec::new();
    for (id, details) in pool.devices()? {
        let head = match pool.lookup(id, VirtualBlock(0))? {
            Some(mapping) => {
                let mut head = vec![0; HEAD_LEN];
                data.read_at(&mut head, bytes(mapping.block.0).0)?;
                Some(head)
            }
            None => None,
        };
        let end = bytes(ends.get(&id).copied().unwrap_or(0));
        devices.push(InventoryDevice { id, mapped: bytes(details.mapped_blocks), end, head });
    }
    Ok(Inventory {
        identity: pool.identity(),
        transaction_id: pool.transaction_id(),
        block_size,
        data_used: bytes(space.used),
        data_total: bytes(space.total),
        devices,
    })
}

#[cfg(test)]
mod tests {
    use super::{give_identity, inventory};
    use crate::device::FileDevice;
    use crate::error::ErrorKind;
    use crate::meta::{FormatOptions, Metadata};
    use crate::units::{BlockSize, ByteCount};
    use std::path::PathBuf;

    /// A pool as other programs make them: without an identity.
    fn anonymous(dir: &tempfile::TempDir) -> [PathBuf; 2] {
        let paths = ["metadata", "data"].map(|name| dir.path().join(name));
        let metadata = FileDevice::create(&paths[0], 4 << 20).unwrap();
        FileDevice::create(&paths[1], 64 << 20).unwrap();
        let block_size = BlockSize::DEFAULT;
        let data_blocks = (64 << 20) / block_size.bytes();
        Metadata::format(
            &metadata,
            &FormatOptions { block_size, data_blocks, metadata_blocks: 1024, identity: [0; 16] },
        )
        .unwrap();
        paths
    }

    #[test]
    fn a_pool_gets_an_identity_once_and_is_else_what_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let [metadata, data] = anonymous(&dir);
        let before = inventory(&metadata, &data).unwrap();
        assert_eq!((before.identity, before.data_total), ([0; 16], ByteCount(64 << 20)));
        for _ in 0..2 {
            give_identity(&metadata, &data, [7; 16]).unwrap();
            let after = inventory(&metadata, &data).unwrap();
            assert_eq!((after.identity, after.transaction_id), ([7; 16], before.transaction_id));
            assert_eq!(after.data_used, before.data_used);
        }
        assert_eq!(give_identity(&metadata, &data, [8; 16]).unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(inventory(&metadata, &data).unwrap().identity, [7; 16]);
    }

    #[test]
    fn a_data_device_that_was_cut_short_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let [metadata, data] = anonymous(&dir);
        std::fs::File::options().write(true).open(&data).unwrap().set_len(1 << 20).unwrap();
        assert_eq!(inventory(&metadata, &data).unwrap_err().kind(), ErrorKind::Corrupt);
    }
}
