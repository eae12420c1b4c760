//! The three disks of a machine on one power supply, and faults on command.

use std::fmt;
use std::io;
use std::sync::Arc;

use redb::StorageBackend;
use thinsnap_pool::{BlockDevice, DiskImage, PowerCutDevice, PowerSupply, Result};

pub(crate) const DATA: usize = 0;
pub(crate) const METADATA: usize = 1;
pub(crate) const STORE: usize = 2;

pub(crate) fn disk_name(number: usize) -> &'static str {
    ["data", "metadata", "store"][number]
}

/// The store's disk as redb wants it.
pub(crate) struct StoreDisk(Arc<PowerCutDevice>);

/// The disks of one machine, in the order of their numbers.
pub(crate) struct Disks {
    pub(crate) supply: Arc<PowerSupply>,
    pub(crate) data: Arc<PowerCutDevice>,
    pub(crate) metadata: Arc<PowerCutDevice>,
    pub(crate) store: Arc<PowerCutDevice>,
}

impl Disks {
    pub(crate) fn new(images: Vec<DiskImage>) -> Self {
        let supply = PowerSupply::new();
        let [data, metadata, store] = <[DiskImage; 3]>::try_from(images).unwrap();
        Self {
            data: Arc::new(supply.device(data)),
            metadata: Arc::new(supply.device(metadata)),
            store: Arc::new(supply.unordered_device(store)),
            supply,
        }
    }

    pub(crate) fn for_redb(&self) -> StoreDisk {
        StoreDisk(self.store.clone())
    }
}

impl fmt::Debug for StoreDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoreDisk")
    }
}

fn told(error: thinsnap_pool::Error) -> io::Error {
    io::Error::other(error)
}

impl StorageBackend for StoreDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.size())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_at(out, offset).map_err(|_| io::Error::from(io::ErrorKind::UnexpectedEof))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.flush().map_err(told)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_at(data, offset).map_err(told)
    }
}

/// A disk that is only looked at.
pub(crate) struct Still(pub(crate) DiskImage);

fn refuse<T>() -> Result<T> {
    Err(thinsnap_pool::Error::new(thinsnap_pool::ErrorKind::ReadOnly, "a disk that is only looked at"))
}

impl BlockDevice for Still {
    fn size(&self) -> u64 {
        self.0.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        assert!(offset + buf.len() as u64 <= self.0.len(), "read past the end");
        self.0.read(buf, offset);
        Ok(())
    }

    fn write_at(&self, _buf: &[u8], _offset: u64) -> Result<()> {
        refuse()
    }

    fn discard(&self, _offset: u64, _len: u64) -> Result<()> {
        refuse()
    }

    fn write_zeroes(&self, _offset: u64, _len: u64) -> Result<()> {
        refuse()
    }

    fn flush(&self) -> Result<()> {
        refuse()
    }
}
