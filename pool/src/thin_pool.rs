//! The contract of a thin pool: what callers may ask, and what they may rely on.
//!
//! A pool holds **thin devices**, each a sparse array of data blocks known by a [`DeviceId`]. A device
//! is made empty (`create_thin`) or as a **snapshot** of another (`create_snap`), which shares all its
//! blocks until one side changes one. `activate` shows a device to the host as a block device,
//! `deactivate` takes it away.
//!
//! What every engine promises:
//! - every change is durable when the call returns, in the order of the calls;
//! - deleting what is not there is a success, so that recovery may repeat itself;
//! - a block handed to a new owner never shows an old owner's bytes;
//! - a write that was flushed is never lost; one that was not is old or new, never another's.
//!
//! A thin device's size is the caller's knowledge (dm-thin's metadata does not hold it), hence the
//! `size` of `activate`.

use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::export::NoSpace;
use crate::status::{ChangedRange, DeviceUsage, MetadataView, PoolStatus, Steady};
use crate::units::{ByteCount, DeviceId};

/// How an activated device may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Access {
    /// Writes are refused by the block device.
    ReadOnly,
    /// Reads, writes, discards.
    ReadWrite,
}

/// Thin devices that share data blocks. Engines implement it; callers never learn which.
pub trait ThinPool: Send + Sync {
    /// Creates an empty thin device. Errors: `AlreadyExists`, `OutOfMetadataSpace`, `ReadOnly`.
    fn create_thin(&self, id: DeviceId) -> Result<()>;

    /// Creates `id` as a snapshot of `origin`; an active origin is quiesced inside, and everything
    /// written to its block device before the call is in the snapshot. Errors: `AlreadyExists` (id),
    /// `NotFound` (origin), `OutOfMetadataSpace`, `ReadOnly`.
    fn create_snap(&self, id: DeviceId, origin: DeviceId) -> Result<()>;

    /// Deletes a device and gives its blocks back. An absent device is a success. Errors: `InUse` if
    /// it is active and somebody has it open, `ReadOnly`.
    fn delete(&self, id: DeviceId) -> Result<()>;

    /// Shows the device as a block device of `size` bytes (a multiple of 512) and returns its path. If
    /// it is active already: the same path; a larger `size` grows it in place (a ublk device before
    /// Linux 6.16 only while nobody has it open, else `InUse`, and the path may be another); a
    /// different `access` is `InUse`. Errors: `NotFound`, `InUse`, `Invalid`.
    fn activate(&self, id: DeviceId, size: ByteCount, access: Access) -> Result<PathBuf>;

    /// `create_snap`; an engine that can `activate` the new device, for reading and writing, while it becomes durable does so
    /// and returns its path. `None`: the caller is to activate it. `ahead` says how many of the first bytes the caller is
    /// about to write: an engine may give the new device blocks of its own for them at once. After an error all of it may
    /// have been done.
    fn create_active(
        &self,
        id: DeviceId,
        origin: DeviceId,
        _size: ByteCount,
        _ahead: ByteCount,
    ) -> Result<Option<PathBuf>> {
        self.create_snap(id, origin).map(|()| None)
    }

    /// Flushes the device and takes its block device away: at once, or, if somebody has it open, when
    /// the last opener closes it. An inactive device is a success. Returns true if it is gone at return. A limit of dirty
    /// pages ([`limit_dirty`](crate::limit_dirty)) goes with it, here and in `delete`.
    fn deactivate(&self, id: DeviceId) -> Result<bool>;

    /// Deactivates the device and tells what [`written`](Self::written) says of it then, each at the moment at which it
    /// costs the engine least; `None`: somebody has it open, and it is not gone at return. Errors: as both.
    fn put_away(&self, id: DeviceId) -> Result<Option<ByteCount>> {
        let written = self.written(id)?;
        Ok(self.deactivate(id)?.then_some(written))
    }

    /// The path of the block device if the device is active.
    fn active_path(&self, id: DeviceId) -> Result<Option<PathBuf>>;

    /// Makes everything written to the active device durable. An inactive device is a success.
    fn flush(&self, id: DeviceId) -> Result<()>;

    /// What the device holds; exact. Errors: `NotFound`.
    fn usage(&self, id: DeviceId) -> Result<DeviceUsage>;

    /// Bytes mapped since the device was created (`DeviceUsage::written`) without the cost of `usage`: a number kept in
    /// memory, or a walk through the device's own tree. Errors: `NotFound`.
    fn written(&self, id: DeviceId) -> Result<ByteCount>;

    /// The runs in which `to` differs from `from`, ascending; cost is proportional to the difference.
    fn delta(&self, from: DeviceId, to: DeviceId) -> Result<Vec<ChangedRange>>;

    /// All device ids, ascending.
    fn devices(&self) -> Result<Vec<DeviceId>>;

    /// The pool's state.
    fn status(&self) -> Result<PoolStatus>;

    /// As [`status`](Self::status) without a disk being asked: room that came free in the last second may be missing from
    /// it, and the clock may be behind.
    fn glance(&self) -> Result<PoolStatus> {
        self.status()
    }

    /// Compare-and-set of the transaction id. Errors: `Invalid` unless the pool stands at `from`.
    fn set_transaction_id(&self, from: u64, to: u64) -> Result<()>;

    /// Grows the data space to `data` and the metadata space to `metadata` bytes in all; `None` leaves
    /// one as it is. Errors: `Invalid` if smaller than now, `NeedsCheck`, `Unsupported`.
    fn grow(&self, data: Option<ByteCount>, metadata: Option<ByteCount>) -> Result<()>;

    /// Empties free blocks that still hold room below (a process that died between freeing and emptying left them):
    /// the bytes that were not holes. Errors: `Unsupported`, `ReadOnly`, `Unavailable` (interrupted).
    fn trim(&self) -> Result<ByteCount> {
        Err(Error::new(ErrorKind::Unsupported, "trim the pool: this engine cannot"))
    }

    /// What to do with writes that find no room, from here on and for those that wait already.
    fn set_no_space(&self, _policy: NoSpace) -> Result<()> {
        Ok(())
    }

    /// The pool's state as soon as it is news to somebody who knows `steady`, or else after `timeout` or
    /// `interrupt_waits`. A fast writer is noticed before it has taken the last block: free space is looked at with
    /// each new block.
    fn wait_status(&self, _steady: &Steady, _timeout: Duration) -> Result<PoolStatus> {
        Err(Error::new(ErrorKind::Unsupported, "wait for news of the pool: this engine has none"))
    }

    /// Ends every `wait_status` and `trim` that is under way, whosever it is.
    fn interrupt_waits(&self) -> Result<()> {
        Ok(())
    }

    /// Commits, then keeps what that superblock reaches as it is on the metadata device, for somebody who reads
    /// beside the pool. Ends with `end_view`, with the caller's connection, or when metadata runs short.
    /// Errors: `Unsupported`, and what a commit meets; a pool that takes no changes shows its last commit.
    fn begin_view(&self) -> Result<MetadataView> {
        Err(Error::new(ErrorKind::Unsupported, "view the metadata: this pool has no file of it"))
    }

    /// Ends a view. True: all that was read was whole. False: it was given up meanwhile; read again.
    fn end_view(&self, _number: u64) -> Result<bool> {
        Ok(false)
    }
}
