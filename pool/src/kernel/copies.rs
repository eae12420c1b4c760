//! A metadata device that remembers what was read from it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::device::BlockDevice;
use crate::error::{Error, ErrorKind, Result};
use crate::units::METADATA_BLOCK_SIZE;

/// The device below, and a copy of each block that was read through here, the last reading of it.
pub(super) struct Copies {
    below: Arc<dyn BlockDevice>,
    blocks: Mutex<BTreeMap<u64, Vec<u8>>>,
}

impl Copies {
    pub(super) fn new(below: Arc<dyn BlockDevice>) -> Self {
        Self { below, blocks: Mutex::default() }
    }

    pub(super) fn forget(&self) {
        self.take();
    }

    /// The copies so far, by number of the block.
    pub(super) fn take(&self) -> BTreeMap<u64, Vec<u8>> {
        std::mem::take(&mut *self.blocks.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl BlockDevice for Copies {
    fn size(&self) -> u64 {
        self.below.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.below.read_at(buf, offset)?;
        let block = METADATA_BLOCK_SIZE as u64;
        // Metadata is read in whole blocks; of anything else there is nothing to keep.
        if offset.is_multiple_of(block) {
            let whole = (offset / block..).zip(buf.chunks_exact(METADATA_BLOCK_SIZE));
            let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
            blocks.extend(whole.map(|(number, bytes)| (number, bytes.to_vec())));
        }
        Ok(())
    }

    fn write_at(&self, _buf: &[u8], _offset: u64) -> Result<()> {
        refuse("write")
    }

    fn discard(&self, _offset: u64, _len: u64) -> Result<()> {
        refuse("discard")
    }

    fn write_zeroes(&self, _offset: u64, _len: u64) -> Result<()> {
        refuse("write")
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }
}

fn refuse(doing: &str) -> Result<()> {
    Err(Error::new(ErrorKind::ReadOnly, format!("{doing} metadata that the kernel serves")))
}
