//! The contract of anything that can be read and written at an offset.

use std::os::fd::RawFd;

use crate::error::{Error, ErrorKind, Result};

/// The room that a device finds below it where it takes room only as it is written to: a sparse file's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoomBelow {
    /// Bytes that the file system keeps for everybody.
    pub free: u64,
    /// Bytes that this process may still take: more than `free` where the file system keeps some for root.
    pub usable: u64,
    /// Bytes of the file system in all.
    pub total: u64,
    /// Bytes that the device holds there.
    pub allocated: u64,
}

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
    ///
    /// Off the device's [`alignment`](Self::alignment) the sectors at the edges may be read and written
    /// back whole: the caller keeps other writes to them away.
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()>;
    /// Says that the bytes are no longer needed; what is read there afterwards is not defined, unless the
    /// implementation says so.
    fn discard(&self, offset: u64, len: u64) -> Result<()>;
    /// Makes the range read as zeroes, without storing them where that is possible.
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()>;
    /// Makes every write that completed before the call durable.
    fn flush(&self) -> Result<()>;
    /// True if the range is known, without reading it, to read as zeroes: a hole of a sparse file.
    fn known_zero(&self, _offset: u64, _len: u64) -> bool {
        false
    }
    /// The room below; `None`: the device has all the room that it will ever need, or cannot tell.
    fn room_below(&self) -> Option<RoomBelow> {
        None
    }
    /// Makes the device `size` bytes large; what is new reads as zeroes on a file and is not defined on a
    /// disk, which must have grown already. Errors: `Invalid` (smaller than it is), `Unsupported`.
    fn grow(&self, size: u64) -> Result<()> {
        Err(Error::new(ErrorKind::Unsupported, format!("grow a device that cannot change its size to {size} bytes")))
    }
    /// Takes room below for everything from `from` on, which is not in use yet and reads as zeroes at return,
    /// so that no later write there meets a full file system or waits for it to find a place. What has its
    /// room already is left as it is. Errors: `OutOfDataSpace`.
    fn preallocate(&self, _from: u64) -> Result<()> {
        Ok(())
    }
    /// Takes room below for a range whose bytes stay as they are, so that writes there find it; what has its room already
    /// is left as it is. A hint: a device that has no use for it does nothing. Errors: `OutOfDataSpace`, `Io`.
    fn take_room(&self, _offset: u64, _len: u64) -> Result<()> {
        Ok(())
    }
    /// The descriptor for direct I/O at the same offsets, if the device is a file or a disk.
    fn raw_fd(&self) -> Option<RawFd> {
        None
    }
    /// The alignment in bytes that offsets, lengths and buffers must have to go down without a copy: 1 if
    /// there is none.
    fn alignment(&self) -> usize {
        1
    }
}

/// Errors with `Invalid` unless `offset..offset + len` lies within `size` bytes.
pub(crate) fn check_range(what: &dyn std::fmt::Display, size: u64, offset: u64, len: u64) -> Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => Err(Error::new(
            ErrorKind::Invalid,
            format!("{what}: {len} bytes at offset {offset} reach past its end at {size}"),
        )),
    }
}
