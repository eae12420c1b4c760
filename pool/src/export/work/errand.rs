//! What requests ask for, once it is known which device they mean.

use std::sync::Arc;

use crate::error::ErrorKind;
use crate::export::exporter::Direction;
use crate::export::work::node::Node;

/// Granularity of discards that the host is told: the block of every filesystem worth discarding for.
pub(in crate::export) const DISCARD_STEP: u32 = 4096;

/// A range of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::export) struct ByteRange {
    pub(in crate::export) offset: u64,
    pub(in crate::export) len: u64,
}

/// Bytes to move between the kernel and a volume.
pub(in crate::export) struct Transfer {
    pub(in crate::export) node: Arc<Node>,
    pub(in crate::export) direction: Direction,
    pub(in crate::export) offset: u64,
    pub(in crate::export) len: u32,
}

impl Transfer {
    /// True if it is a write that the volume acknowledges before it is done; see [`Volume::write_early`].
    ///
    /// [`Volume::write_early`]: crate::export::Volume::write_early
    pub(in crate::export) fn is_done_early(&self, payload: &[u8], may_wait: bool) -> bool {
        self.direction == Direction::Write && Arc::clone(&self.node.volume).write_early(payload, self.offset, may_wait)
    }
}

/// A request that may block.
pub(in crate::export) enum Errand {
    /// [`Transfer`] that the volume did not grant to be done directly.
    Transfer(Transfer),
    /// Make everything written durable.
    Flush(Arc<Node>),
    /// Forget a range.
    Discard(Arc<Node>, ByteRange),
    /// Make a range read as zeroes.
    WriteZeroes(Arc<Node>, ByteRange),
}

/// The errno that the block layer shall see. It knows ENOSPC as such; of the others it makes an I/O error.
pub(in crate::export) fn errno_of(kind: ErrorKind) -> i32 {
    match kind {
        ErrorKind::OutOfDataSpace | ErrorKind::OutOfMetadataSpace => libc::ENOSPC,
        ErrorKind::ReadOnly => libc::EROFS,
        ErrorKind::Unsupported => libc::EOPNOTSUPP,
        ErrorKind::Invalid => libc::EINVAL,
        ErrorKind::Denied => libc::EPERM,
        ErrorKind::InUse => libc::EBUSY,
        ErrorKind::NotFound
        | ErrorKind::AlreadyExists
        | ErrorKind::NeedsCheck
        | ErrorKind::Corrupt
        | ErrorKind::Unavailable
        | ErrorKind::DoubtfulLog
        | ErrorKind::Io => libc::EIO,
    }
}
