//! A device in memory, for tests and for trying a change before it is made.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::device::block_device::{BlockDevice, check_range};
use crate::error::{Error, ErrorKind, Result};

/// Bytes in memory. Discarded ranges read as zeroes; flush has nothing to do.
pub struct MemoryDevice {
    bytes: RwLock<Vec<u8>>,
}

impl MemoryDevice {
    /// A device of `size` zero bytes.
    #[must_use]
    pub fn new(size: u64) -> Self {
        Self::from_bytes(vec![0; index(size)])
    }

    /// A device that holds `bytes`.
    #[must_use]
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self { bytes: RwLock::new(bytes) }
    }

    /// A copy of the content.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.read().clone()
    }

    fn read(&self) -> RwLockReadGuard<'_, Vec<u8>> {
        // A panic while the lock was held leaves bytes that are still bytes.
        self.bytes.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Vec<u8>> {
        self.bytes.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BlockDevice for MemoryDevice {
    fn size(&self) -> u64 {
        self.read().len() as u64
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let bytes = self.read();
        check_range(&"memory device", bytes.len() as u64, offset, buf.len() as u64)?;
        let start = index(offset);
        buf.copy_from_slice(&bytes[start..start + buf.len()]);
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        let mut bytes = self.write();
        check_range(&"memory device", bytes.len() as u64, offset, buf.len() as u64)?;
        let start = index(offset);
        bytes[start..start + buf.len()].copy_from_slice(buf);
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.write_zeroes(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        let mut bytes = self.write();
        check_range(&"memory device", bytes.len() as u64, offset, len)?;
        bytes[index(offset)..index(offset + len)].fill(0);
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn grow(&self, size: u64) -> Result<()> {
        let mut bytes = self.write();
        if size < bytes.len() as u64 {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("memory device: {size} bytes are less than the {} it has", bytes.len()),
            ));
        }
        bytes.resize(index(size), 0);
        Ok(())
    }
}

/// An offset that was checked against a size in memory.
fn index(offset: u64) -> usize {
    usize::try_from(offset).expect("a device in memory is smaller than the address space")
}
