//! A device that is shown, as those who serve its requests see it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::error::{Error, ErrorKind, Result};
use crate::export::exporter::Volume;
use crate::export::work::errand::errno_of;
use crate::thin_pool::Access;
use crate::units::{ByteCount, DeviceId};

/// A device with its size.
pub(in crate::export) struct Node {
    pub(in crate::export) id: DeviceId,
    pub(in crate::export) volume: Arc<dyn Volume>,
    pub(in crate::export) access: Access,
    /// What offsets and lengths must be multiples of.
    pub(in crate::export) alignment: u64,
    size: AtomicU64,
    /// Something may have been changed through it.
    changed: AtomicBool,
}

impl Node {
    pub(in crate::export) fn new(id: DeviceId, volume: Arc<dyn Volume>, size: ByteCount, access: Access) -> Self {
        let alignment = volume.alignment() as u64;
        Self { id, volume, access, alignment, size: AtomicU64::new(size.0), changed: AtomicBool::new(false) }
    }

    /// One that somebody before this process may have written to without a flush behind it.
    pub(in crate::export) fn inherited(id: DeviceId, volume: Arc<dyn Volume>, size: ByteCount, access: Access) -> Self {
        Self { changed: AtomicBool::new(true), ..Self::new(id, volume, size, access) }
    }

    /// Notes that a request is about to change what it holds.
    pub(in crate::export) fn note_change(&self) {
        // Nearly always true already: a read that all loops share.
        if !self.changed.load(Ordering::Relaxed) {
            self.changed.store(true, Ordering::Release);
        }
    }

    /// False while nothing can have been written: a flush has nothing to do then.
    pub(in crate::export) fn was_changed(&self) -> bool {
        self.changed.load(Ordering::Acquire)
    }

    /// Flushes on the caller's thread if that is not for long; the errno, 0 for success.
    pub(in crate::export) fn flush_at_hand(&self) -> Option<i32> {
        let done = self.volume.flush_at_hand()?;
        Some(done.map_or_else(
            |e| {
                tracing::warn!(kind = ?e.kind(), "flush device {}: {e}", self.id);
                errno_of(e.kind())
            },
            |()| 0,
        ))
    }

    pub(in crate::export) fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    pub(in crate::export) fn set_size(&self, size: u64) {
        self.size.store(size, Ordering::Release);
    }

    /// True if a device of `size` bytes that is shown as this one is would be the same, or a larger one.
    pub(in crate::export) fn is_same(&self, volume: &Arc<dyn Volume>, size: ByteCount, access: Access) -> bool {
        std::ptr::addr_eq(Arc::as_ptr(&self.volume), Arc::as_ptr(volume))
            && self.access == access
            && self.size() <= size.0
    }

    /// Errors with `Invalid` unless the device may grow to `size`.
    pub(in crate::export) fn check_growth(&self, size: ByteCount) -> Result<()> {
        let step = self.alignment.max(512);
        if size.0 >= self.size() && size.0.is_multiple_of(step) {
            return Ok(());
        }
        let (id, now) = (self.id, self.size());
        Err(Error::new(
            ErrorKind::Invalid,
            format!("resize device {id} from {now} to {}: it must grow, by a multiple of {step}", size.0),
        ))
    }
}

/// The logical block size of a device with this volume, 512 to 4096 bytes. Errors: `Invalid` if `size` is no multiple.
pub(in crate::export) fn block_size_of(id: DeviceId, volume: &dyn Volume, size: ByteCount) -> Result<u32> {
    let block_size = u32::try_from(volume.alignment().max(512)).unwrap_or(u32::MAX);
    if size.0 == 0 || !size.0.is_multiple_of(u64::from(block_size)) || block_size > 4096 {
        return Err(Error::new(
            ErrorKind::Invalid,
            format!("show device {id}: its size {} is no multiple of its block size {block_size}", size.0),
        ));
    }
    Ok(block_size)
}
