//! More data or metadata space: the device first, then the metadata that counts on it.

use crate::embedded::backing::Backing;
use crate::error::{Error, ErrorKind, Result};
use crate::units::{ByteCount, METADATA_BLOCK_SIZE, METADATA_BLOCKS_MAX};

/// Gives the pool data space of `size` bytes. Errors: `Invalid` if that is less than it has.
pub(super) fn grow_data(backing: &Backing, size: ByteCount) -> Result<()> {
    let blocks = size.0 / backing.block_size.bytes();
    let total = backing.metadata()?.data_space().total;
    check_growth("data", blocks, total)?;
    let bytes = backing.data_offset(blocks);
    if blocks > total {
        if backing.data.size() < bytes {
            backing.data.grow(bytes)?;
        }
        backing.change(|metadata| metadata.grow_data(blocks))?;
    }
    Ok(())
}

/// Gives the pool metadata space of `size` bytes. Errors: `Invalid` if that is less than it has, or more than the
/// format holds.
pub(super) fn grow_metadata(backing: &Backing, size: ByteCount) -> Result<()> {
    let blocks = size.0 / METADATA_BLOCK_SIZE as u64;
    let total = backing.metadata()?.metadata_space().0.total;
    check_growth("metadata", blocks, total)?;
    if blocks > METADATA_BLOCKS_MAX {
        return Err(Error::new(
            ErrorKind::Invalid,
            format!("grow the metadata to {blocks} blocks: the format ends at {METADATA_BLOCKS_MAX}"),
        ));
    }
    if blocks > total {
        let bytes = blocks * METADATA_BLOCK_SIZE as u64;
        if backing.metadata_device.size() < bytes {
            backing.metadata_device.grow(bytes)?;
        }
        backing.metadata_device.preallocate(total * METADATA_BLOCK_SIZE as u64)?;
        backing.change(|metadata| metadata.grow_metadata(blocks))?;
    }
    Ok(())
}

fn check_growth(what: &str, blocks: u64, total: u64) -> Result<()> {
    if blocks < total {
        return Err(Error::new(
            ErrorKind::Invalid,
            format!("grow the {what} to {blocks} blocks: it has {total}, and dm-thin's format cannot shrink"),
        ));
    }
    Ok(())
}
