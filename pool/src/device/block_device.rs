//! The contract of anything that can be read and written at an offset.

use std::os::fd::RawFd;

use crate::error::Result;

/// A byte-addressed device below the pool (file, disk, memory) or one made by it (a thin volume).
///
/// Reads and writes are whole or an error. A write is visible to later reads at once and survives a
/// power cut only after `flush`.
pub trait BlockDevice: Send + Sync {
    /// Size in bytes.
    fn size(&self) -> u64;
    /// Fills `buf` from `offset`. Errors: `Io`, `Invalid` past the end.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()>;
    /// Writes all of `buf` at `offset`. Errors: `Io`, `OutOfDataSpace`, `ReadOnly`, `Invalid` past the end.
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()>;
    /// Says that the bytes are no longer needed; what is read there afterwards is not defined, unless the
    /// implementation says so.
    fn discard(&self, offset: u64, len: u64) -> Result<()>;
    /// Makes the range read as zeroes, without storing them where that is possible.
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()>;
    /// Makes every write that completed before the call durable.
    fn flush(&self) -> Result<()>;
    /// The descriptor for direct I/O at the same offsets, if the device is a file or a disk.
    fn raw_fd(&self) -> Option<RawFd> {
        None
    }
    /// The alignment in bytes that offsets, lengths and buffers must have: 1 if there is none.
    fn alignment(&self) -> usize {
        1
    }
}
