//! The contract between an engine's volumes and the ways to show them to the host.
//!
//! An exporter turns a [`Volume`] into a block device of the host. It serves most requests without
//! blocking: it asks the volume where the bytes are ([`Volume::begin_direct`]) and does the I/O on the
//! data descriptor itself; only what needs a new block, a copy or a commit goes through the blocking
//! calls of [`BlockDevice`], on a worker thread.

use std::os::fd::{OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::device::BlockDevice;
use crate::error::{Error, ErrorKind, Result};
use crate::thin_pool::Access;
use crate::units::{ByteCount, DeviceId};

/// Most extents that one direct request may fall into; a request with more takes the blocking way.
pub const EXTENTS_MAX: usize = 20;

/// Which way the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the device to the caller.
    Read,
    /// From the caller to the device.
    Write,
}

/// A piece of a request: where it stands on the data descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Offset on the data descriptor in bytes; `None` reads as zeroes (never in a write).
    pub offset: Option<u64>,
    /// Bytes.
    pub len: u32,
}

/// The pieces of one request, in order, adjacent ones merged; no heap.
#[derive(Debug, Clone, Copy)]
pub struct Extents {
    len: usize,
    list: [Extent; EXTENTS_MAX],
}

impl Default for Extents {
    fn default() -> Self {
        Self { len: 0, list: [Extent { offset: None, len: 0 }; EXTENTS_MAX] }
    }
}

impl Extents {
    /// Appends a piece, merged with the last one where they touch. False: no room, nothing was appended.
    #[must_use]
    pub fn push(&mut self, piece: Extent) -> bool {
        if let Some(last) = self.len.checked_sub(1).map(|i| &mut self.list[i]) {
            let touches = match (last.offset, piece.offset) {
                (None, None) => true,
                (Some(a), Some(b)) => a + u64::from(last.len) == b,
                _ => false,
            };
            if touches {
                last.len += piece.len;
                return true;
            }
        }
        if self.len == EXTENTS_MAX {
            return false;
        }
        self.list[self.len] = piece;
        self.len += 1;
        true
    }

    /// The pieces.
    #[must_use]
    pub fn as_slice(&self) -> &[Extent] {
        &self.list[..self.len]
    }
}

/// Permission to do one direct request; must be given back with [`Volume::end_direct`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct DirectToken {
    /// First virtual block that the request holds.
    pub first_block: u64,
    /// Virtual blocks that it holds.
    pub blocks: u32,
}

/// What to do with writes that find no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct NoSpace {
    /// How long such a write waits for room before it gets ENOSPC; zero: no longer than for what is on its way
    /// back already.
    pub wait: Duration,
    /// Most bytes of waiting writes in memory; a write beyond gets ENOSPC at once.
    pub memory: ByteCount,
}

impl Default for NoSpace {
    fn default() -> Self {
        Self { wait: Duration::ZERO, memory: ByteCount(128 << 20) }
    }
}

/// What a write that found no room may hope for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outlook {
    /// Room is on its way back; [`Exporter::room_changed`] tells when it is worth another try.
    Coming,
    /// Nothing is on its way; if there is room again, [`Exporter::room_changed`] tells.
    None,
    /// The layer below is full. It has room again without telling anybody.
    Silent,
}

/// A thin device of an engine, as an exporter sees it.
pub trait Volume: BlockDevice {
    /// As `write_at`, but never waits for room: `OutOfDataSpace` and `OutOfMetadataSpace` come at once. Then nothing
    /// is held, and the call may be repeated.
    fn write_now(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.write_at(buf, offset)
    }

    /// As `write_zeroes`, but never waits for room; see [`Volume::write_now`].
    fn write_zeroes_now(&self, offset: u64, len: u64) -> Result<()> {
        self.write_zeroes(offset, len)
    }

    /// Acknowledges a write that would have to wait for a copy, if it is certain that it can be done soon and that it
    /// survives the death of this process. Unless it `may_wait` for others before it, the call never blocks. False: nothing
    /// was done, use [`Volume::write_now`]. True: the caller may be answered; a read sees the bytes, and a flush covers
    /// them.
    fn write_early(self: Arc<Self>, _buf: &[u8], _offset: u64, _may_wait: bool) -> bool {
        false
    }

    /// Flushes, if that is likely to be over before a thread that sleeps could have been woken for it. It covers all changes
    /// that were answered before, those of `write_early` too, and after an error no flush succeeds. `None`: nothing was done,
    /// use `flush`.
    fn flush_at_hand(&self) -> Option<Result<()>> {
        None
    }

    /// What to hope for after one of the two answered `error`; starts what brings room if there is such a thing.
    fn outlook(&self, _error: &Error) -> Outlook {
        Outlook::None
    }

    /// If every byte of the request stands on the data descriptor as it is (or reads as zeroes), fills
    /// `extents` and returns a token that keeps the mapping in place; never blocks, never allocates.
    /// `None`: use the blocking calls.
    fn begin_direct(&self, direction: Direction, offset: u64, len: u32, extents: &mut Extents) -> Option<DirectToken>;

    /// Ends a direct request, whether its I/O succeeded or not.
    fn end_direct(&self, token: DirectToken);

    /// The descriptor that the extents are offsets of.
    fn data_fd(&self) -> RawFd;
}

/// A block device that the host still shows, left behind by a process that died while it served it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orphan {
    /// The thin device behind it.
    pub id: DeviceId,
    /// The size that the host sees.
    pub size: ByteCount,
    /// Whether the host may write.
    pub access: Access,
    /// It was being detached, and waits for its last opener.
    pub leaving: bool,
}

/// Shows volumes to the host as block devices.
///
/// An exporter that takes over from a dead process begins with the block devices of its predecessor: the engine asks
/// for them ([`Exporter::orphans`]), gives each its volume again ([`Exporter::adopt`]), and lets the requests
/// come ([`Exporter::resume`]), those first that the predecessor read and never answered.
pub trait Exporter: Send + Sync {
    /// Shows `volume` as a block device of `size` bytes; returns its path. Errors: `InUse` if `id` is
    /// shown already, `Unsupported` if the host lacks what is needed (says what).
    fn attach(&self, id: DeviceId, volume: Arc<dyn Volume>, size: ByteCount, access: Access) -> Result<PathBuf>;

    /// The block devices of a dead predecessor, ascending by id; empty if there was none.
    fn orphans(&self) -> Vec<Orphan> {
        Vec::new()
    }

    /// Puts `volume` behind an orphan; requests reach it after [`Exporter::resume`]. Errors: `NotFound` if `id` is
    /// no orphan.
    fn adopt(&self, id: DeviceId, _volume: Arc<dyn Volume>) -> Result<()> {
        Err(Error::new(ErrorKind::NotFound, format!("adopt device {id}: no predecessor left it behind")))
    }

    /// Serves the orphans from here on and has the kernel send again what was not answered. An orphan that nobody
    /// adopted answers with I/O errors. Called once, after the last [`Exporter::adopt`]; without a predecessor it
    /// does nothing.
    fn resume(&self) -> Result<()> {
        Ok(())
    }

    /// What keeps the block devices waiting, instead of failing, while nobody serves them: whoever holds these when
    /// this process dies can give them to a successor. Errors: `Unsupported` if the kernel or this exporter has no way
    /// to go on after a death.
    fn descriptors(&self) -> Result<Vec<OwnedFd>> {
        Err(Error::new(ErrorKind::Unsupported, "keep the block devices beyond this process"))
    }

    /// Takes no more requests, ends those under way, and leaves everything in place for a successor that has the
    /// [`Exporter::descriptors`]: nothing is detached, then or when the exporter is dropped.
    fn hand_over(&self) -> Result<()> {
        Err(Error::new(ErrorKind::Unsupported, "hand the block devices over"))
    }

    /// Tells the host that the device is larger.
    fn resize(&self, id: DeviceId, size: ByteCount) -> Result<()>;

    /// Takes the block device away: at once, or when its last opener closes it. True: it is gone at
    /// return. After it is gone the exporter has dropped its `Arc` of the volume. Absent is a success.
    fn detach(&self, id: DeviceId) -> Result<bool>;

    /// The path of the block device, if it is shown (also while it waits for its last opener).
    fn path(&self, id: DeviceId) -> Option<PathBuf>;

    /// The devices shown, ascending, with true for those that some process has open or mounted.
    fn attached(&self) -> Vec<(DeviceId, bool)>;

    /// True if the device is shown and some process has it open or mounted. Looks at this one only.
    fn is_used(&self, id: DeviceId) -> bool {
        self.attached().contains(&(id, true))
    }

    /// How many devices are shown. The same for one as for a thousand, unlike [`Exporter::attached`], which looks
    /// who has them open.
    fn count(&self) -> usize {
        self.attached().len()
    }

    /// Room may have appeared, or what was on its way back has come: waiting writes are worth a try.
    fn room_changed(&self) {}

    /// Writes that wait for room, and the bytes that they hold.
    fn waiting(&self) -> (u64, ByteCount) {
        (0, ByteCount(0))
    }

    /// What to do with writes that find no room, from here on.
    fn set_no_space(&self, _policy: NoSpace) {}

    /// Detaches everything and takes down what stands behind it. Errors: `InUse` if a device is open.
    fn shutdown(&self) -> Result<()>;
}
