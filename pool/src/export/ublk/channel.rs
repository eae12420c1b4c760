//! The character device of one ublk device: where its requests stand, and their bytes.
//!
//! What the event loop and the exporter say to each other about the device stands here too: the loop has asked for
//! requests, the loop has let it go.

use std::fs::{File, OpenOptions};
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use crate::export::ublk::wire::{DEPTH, IoDescriptor, bytes_of};

/// How far the event loop is with a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// It has not yet asked for requests.
    Coming,
    /// It has.
    Served,
    /// The kernel refused that.
    Refused,
    /// The kernel has taken the device away, and the loop has forgotten it.
    LetGo,
}

/// The open character device; one process at a time may have it open.
pub(in crate::export) struct Channel {
    file: File,
    descriptors: OnceLock<Descriptors>,
    stage: Mutex<Stage>,
    changed: Condvar,
    /// Requests that are not answered.
    under_way: AtomicUsize,
}

impl Channel {
    /// Errors: `EBUSY` while another process has it open.
    pub(in crate::export) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            file: OpenOptions::new().read(true).write(true).open(path)?,
            descriptors: OnceLock::new(),
            stage: Mutex::new(Stage::Coming),
            changed: Condvar::new(),
            under_way: AtomicUsize::new(0),
        })
    }

    /// Maps the descriptors of the requests. Not before the loop has asked for requests: a process that died between
    /// the two would leave the driver bound to its memory, and no successor could go on.
    pub(in crate::export) fn map(&self) -> io::Result<()> {
        let descriptors = Descriptors::map(&self.file)?;
        self.descriptors.set(descriptors).map_err(|_| io::Error::other("the descriptors are mapped already"))
    }

    /// The request of a tag; `None` before the descriptors are mapped, when no request can have come.
    pub(super) fn request(&self, tag: u16) -> Option<IoDescriptor> {
        self.descriptors.get()?.get(tag)
    }

    /// Copies the bytes of a write request.
    pub(super) fn take(&self, tag: u16, payload: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(payload, bytes_of(tag))
    }

    /// Copies the bytes for a read request.
    pub(super) fn give(&self, tag: u16, payload: &[u8]) -> io::Result<()> {
        self.file.write_all_at(payload, bytes_of(tag))
    }

    pub(super) fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    pub(super) fn begun(&self) {
        self.under_way.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn ended(&self) {
        self.under_way.fetch_sub(1, Ordering::SeqCst);
    }

    /// True if every request that came is answered.
    pub(in crate::export) fn is_idle(&self) -> bool {
        self.under_way.load(Ordering::SeqCst) == 0
    }

    pub(super) fn enter(&self, stage: Stage) {
        *self.stage() = stage;
        self.changed.notify_all();
    }

    /// Waits until the loop serves the device. False: it does not, or not in time.
    pub(super) fn wait_served(&self, deadline: Instant) -> bool {
        self.wait(deadline, |stage| stage != Stage::Coming) == Stage::Served
    }

    /// Waits until the loop has let the device go. False: not in time.
    pub(in crate::export) fn wait_let_go(&self, deadline: Instant) -> bool {
        self.wait(deadline, |stage| stage == Stage::LetGo) == Stage::LetGo
    }

    fn wait(&self, deadline: Instant, is_it: impl Fn(Stage) -> bool) -> Stage {
        let mut stage = self.stage();
        while !is_it(*stage) {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { break };
            stage = self.changed.wait_timeout(stage, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        *stage
    }

    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The driver's memory with a descriptor for each tag, mapped for reading.
struct Descriptors {
    start: NonNull<IoDescriptor>,
}

/// The driver maps whole pages only.
const MAPPED_BYTES: usize = (DEPTH as usize * size_of::<IoDescriptor>()).next_multiple_of(4096);

// SAFETY: the mapping is memory of this process until it is dropped; it is only read, and by volatile reads.
unsafe impl Send for Descriptors {}
// SAFETY: as for `Send`.
unsafe impl Sync for Descriptors {}

impl Descriptors {
    fn map(file: &File) -> io::Result<Self> {
        let len = NonZeroUsize::new(MAPPED_BYTES).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: the kernel chooses an address range that nothing else uses, and the descriptor is open for the call.
        let start = unsafe { mmap(None, len, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, file, 0) }?;
        Ok(Self { start: start.cast() })
    }

    fn get(&self, tag: u16) -> Option<IoDescriptor> {
        if tag >= DEPTH {
            return None;
        }
        // SAFETY: the tag is inside the mapping, which is page-aligned and holds plain numbers; the driver writes a
        // descriptor before it hands the tag out, and not again before the tag is given back.
        Some(unsafe { self.start.as_ptr().add(usize::from(tag)).read_volatile() })
    }
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `map` with this length, and nothing refers into it.
        if let Err(errno) = unsafe { munmap(self.start.cast(), MAPPED_BYTES) } {
            tracing::error!("unmap the descriptors of a ublk device: {errno}");
        }
    }
}
