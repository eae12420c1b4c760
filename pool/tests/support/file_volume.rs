//! A volume that is a plain file: what an exporter does, without a pool below it.

use std::os::fd::RawFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use thinsnap_pool::{
    BlockDevice, DirectToken, Direction, Error, ErrorKind, Extent, Extents, FileDevice, Result, Volume,
};

/// Pieces that a granted request is cut at, so that most requests have several extents.
const PIECE: u64 = 64 * 1024;

/// How a [`FileVolume`] answers.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Behaviour {
    /// Every n-th request of a kind is not granted and takes the blocking way; 0: all are granted.
    pub(crate) refuse_every: u64,
    /// Flushes are done at hand.
    pub(crate) flush_at_hand: bool,
}

/// Marks the token of a direct write.
const WRITES: u64 = 1 << 63;

/// A file as a volume; counts what is asked of it.
pub(crate) struct FileVolume {
    file: FileDevice,
    behaviour: Behaviour,
    asked: AtomicU64,
    /// Direct requests under way.
    pub(crate) held: AtomicI64,
    /// Flushes so far.
    pub(crate) flushes: AtomicU64,
    /// Changes that are done.
    pub(crate) changes: AtomicU64,
    /// Of those, the ones before a flush that succeeded.
    pub(crate) durable: AtomicU64,
    /// True: flushes fail.
    pub(crate) broken: AtomicBool,
    /// True: writes fail with [`ErrorKind::OutOfDataSpace`].
    pub(crate) full: AtomicBool,
    /// True: the next write takes the blocking way, and there it waits for the gate.
    pub(crate) hold: AtomicBool,
    pub(crate) gate: Mutex<()>,
    /// Set when the volume is dropped.
    pub(crate) dropped: Arc<AtomicBool>,
}

impl FileVolume {
    /// A new sparse file of `size` bytes.
    pub(crate) fn create(path: &Path, size: u64, behaviour: Behaviour) -> Result<Self> {
        Ok(Self {
            file: FileDevice::create(path, size)?,
            behaviour,
            asked: AtomicU64::new(0),
            held: AtomicI64::new(0),
            flushes: AtomicU64::new(0),
            changes: AtomicU64::new(0),
            durable: AtomicU64::new(0),
            broken: AtomicBool::new(false),
            full: AtomicBool::new(false),
            hold: AtomicBool::new(false),
            gate: Mutex::default(),
            dropped: Arc::default(),
        })
    }

    fn changed(&self, done: Result<()>) -> Result<()> {
        self.changes.fetch_add(1, Ordering::SeqCst);
        done
    }
}

impl Drop for FileVolume {
    fn drop(&mut self) {
        self.dropped.store(true, Ordering::SeqCst);
    }
}

impl BlockDevice for FileVolume {
    fn size(&self) -> u64 {
        self.file.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.file.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        if self.full.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::OutOfDataSpace, "write: the volume plays full"));
        }
        drop(self.gate.lock().unwrap());
        self.changed(self.file.write_at(buf, offset))
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.changed(self.file.discard(offset, len))
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.changed(self.file.write_zeroes(offset, len))
    }

    fn flush(&self) -> Result<()> {
        let changes = self.changes.load(Ordering::SeqCst);
        self.flushes.fetch_add(1, Ordering::SeqCst);
        if self.broken.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Io, "flush: the volume plays broken"));
        }
        self.file.flush()?;
        self.durable.fetch_max(changes, Ordering::SeqCst);
        Ok(())
    }

    fn alignment(&self) -> usize {
        self.file.alignment()
    }
}

impl Volume for FileVolume {
    fn begin_direct(&self, direction: Direction, offset: u64, len: u32, extents: &mut Extents) -> Option<DirectToken> {
        let asked = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        let refused = self.behaviour.refuse_every != 0 && asked.is_multiple_of(self.behaviour.refuse_every);
        let blocking = || self.full.load(Ordering::SeqCst) || self.hold.swap(false, Ordering::SeqCst);
        if refused || (direction == Direction::Write && blocking()) {
            return None;
        }
        let end = offset + u64::from(len);
        let mut at = offset;
        while at < end {
            let piece = u32::try_from((at / PIECE + 1) * PIECE - at).ok()?.min(u32::try_from(end - at).ok()?);
            if !extents.push(Extent { offset: Some(at), len: piece }) {
                return None;
            }
            at += u64::from(piece);
        }
        self.held.fetch_add(1, Ordering::SeqCst);
        let mark = if direction == Direction::Write { WRITES } else { 0 };
        Some(DirectToken { first_block: (offset / PIECE) | mark, blocks: len.div_ceil(64 * 1024) })
    }

    fn flush_at_hand(&self) -> Option<Result<()>> {
        self.behaviour.flush_at_hand.then(|| self.flush())
    }

    fn end_direct(&self, token: DirectToken) {
        if token.first_block & WRITES != 0 {
            self.changes.fetch_add(1, Ordering::SeqCst);
        }
        self.held.fetch_sub(1, Ordering::SeqCst);
    }

    fn data_fd(&self) -> RawFd {
        self.file.raw_fd().expect("a file has a descriptor")
    }
}
