//! What stands behind a block device whose thin device nobody has: every request fails.

use std::os::fd::RawFd;

use crate::device::BlockDevice;
use crate::error::{Error, ErrorKind, Result};
use crate::export::exporter::{DirectToken, Direction, Extents, Volume};
use crate::units::{ByteCount, DeviceId};

/// The volume of a device that a dead process left behind, until (or unless) an engine adopts it.
pub(in crate::export) struct LostVolume {
    id: DeviceId,
    size: ByteCount,
}

impl LostVolume {
    pub(in crate::export) fn new(id: DeviceId, size: ByteCount) -> Self {
        Self { id, size }
    }

    fn refuse<T>(&self) -> Result<T> {
        Err(Error::new(
            ErrorKind::Io,
            format!("device {}: a dead host left it behind and the pool does not know it: unmount it", self.id),
        ))
    }
}

impl BlockDevice for LostVolume {
    fn size(&self) -> u64 {
        self.size.0
    }

    fn read_at(&self, _buf: &mut [u8], _offset: u64) -> Result<()> {
        self.refuse()
    }

    fn write_at(&self, _buf: &[u8], _offset: u64) -> Result<()> {
        self.refuse()
    }

    fn discard(&self, _offset: u64, _len: u64) -> Result<()> {
        self.refuse()
    }

    fn write_zeroes(&self, _offset: u64, _len: u64) -> Result<()> {
        self.refuse()
    }

    fn flush(&self) -> Result<()> {
        self.refuse()
    }

    fn alignment(&self) -> usize {
        512
    }
}

impl Volume for LostVolume {
    fn begin_direct(
        &self,
        _direction: Direction,
        _offset: u64,
        _len: u32,
        _extents: &mut Extents,
    ) -> Option<DirectToken> {
        None
    }

    fn end_direct(&self, _token: DirectToken) {}

    fn data_fd(&self) -> RawFd {
        -1
    }
}
