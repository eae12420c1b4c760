//! A pool to play on: the laws ask only for this, so that every engine can be put under them.

use std::path::Path;

use thinsnap_pool::{ByteCount, DeviceId, ThinPool};

/// Data space of a stage.
pub const DATA_SIZE: ByteCount = ByteCount(16 << 20);
/// Data block size of a stage.
pub const BLOCK: u64 = 64 * 1024;

/// A new pool of [`DATA_SIZE`] in blocks of [`BLOCK`], and the host it is shown to.
pub trait Stage {
    /// The pool.
    fn pool(&self) -> &dyn ThinPool;
    /// Opens the block device of an active device.
    fn open(&self, id: DeviceId, path: &Path) -> Box<dyn OpenDisk>;
    /// False: a device that somebody has open cannot grow (ublk before Linux 6.16).
    fn grows_in_use(&self) -> bool {
        true
    }
    /// Closes the pool (no device is open) and opens it again.
    fn reopen(&mut self);
}

/// An open block device; closed when dropped.
pub trait OpenDisk {
    /// Fills `buf` from `offset`.
    fn read(&self, buf: &mut [u8], offset: u64);
    /// Writes `buf` at `offset`.
    fn write(&self, buf: &[u8], offset: u64);
    /// Discards a range.
    fn discard(&self, offset: u64, len: u64);
    /// Zeroes a range.
    fn zero(&self, offset: u64, len: u64);
    /// Flushes.
    fn flush(&self);
}
