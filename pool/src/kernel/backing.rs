//! What a pool of ours stands on: disks as they are, files by way of loop devices.
//!
//! A file is locked before it is bound, and the loop device keeps the lock: while the kernel serves the pool, also
//! after this process has ended, the embedded engine cannot open the file. A disk is held by device-mapper itself.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::device::{BlockDevice, FileDevice, RoomBelow};
use crate::error::{Error, ErrorKind, Result};
use crate::export::LastingLoop;
use crate::kernel::device_number::DeviceNumber;
use crate::kernel::living::free_left_over;

/// Smallest block of a loop device.
const BLOCK_MIN: usize = 512;

/// A device below the pool, as the kernel sees it.
pub(super) struct Below {
    /// The file's path without symbolic links, or the disk's as it was given.
    path: PathBuf,
    /// The disk, or the loop device on the file.
    pub(super) node: PathBuf,
    pub(super) number: DeviceNumber,
    on_file: Option<LastingLoop>,
}

/// A device that nobody else uses, held until it is shown to the kernel.
pub(super) struct Claimed {
    pub(super) device: Arc<FileDevice>,
    path: PathBuf,
}

/// Takes a disk or a file for a pool that is not running. Errors: `NotFound`, `InUse`, `Denied`, `Invalid`.
pub(super) fn claim(path: &Path) -> Result<Claimed> {
    let real = path.canonicalize().map_err(|e| Error::io(format!("open {}", path.display()), e))?;
    free_left_over(path)?;
    let device = FileDevice::open(path)?;
    if let Some(bound) = LastingLoop::find(&real) {
        return Err(Error::new(
            ErrorKind::InUse,
            format!(
                "{0} is bound to {1} by another program: free it first (losetup --detach {1})",
                real.display(),
                bound.path().display()
            ),
        ));
    }
    let path = if device.is_disk() { path.to_owned() } else { real };
    Ok(Claimed { device: Arc::new(device), path })
}

impl Claimed {
    /// Gives the device to the kernel: a file gets a loop device, a disk is let go.
    pub(super) fn show(self) -> Result<Below> {
        let Self { device, path } = self;
        if device.is_disk() {
            return Below::new(path.clone(), path, None);
        }
        let block_size = u32::try_from(device.alignment().max(BLOCK_MIN))
            .map_err(|e| Error::with_source(ErrorKind::Unsupported, format!("direct I/O on {}", path.display()), e))?;
        let bound = LastingLoop::bind(device.file(), &path, block_size)?;
        Below::new(path, bound.path(), Some(bound))
    }
}

impl Below {
    fn new(path: PathBuf, node: PathBuf, on_file: Option<LastingLoop>) -> Result<Self> {
        Ok(Self { number: DeviceNumber::of(&node)?, path, node, on_file })
    }

    /// What the kernel sees of `path` already; `None` for a file without a loop device.
    pub(super) fn find(path: &Path) -> Result<Option<Self>> {
        let real = path.canonicalize().map_err(|e| Error::io(format!("open {}", path.display()), e))?;
        let disk = DeviceNumber::of(path);
        match (LastingLoop::find(&real), disk) {
            (_, Ok(_)) => Self::new(path.to_owned(), path.to_owned(), None).map(Some),
            (Some(bound), Err(_)) => Self::new(real, bound.path(), Some(bound)).map(Some),
            (None, Err(_)) => Ok(None),
        }
    }

    /// Bytes that the kernel sees.
    pub(super) fn size(&self) -> Result<u64> {
        FileDevice::open_beside(&self.node, false).map(|device| device.size())
    }

    /// The file or disk itself, to be emptied where the kernel uses it for nothing.
    pub(super) fn beside(&self) -> Result<FileDevice> {
        FileDevice::open_beside(&self.path, true)
    }

    /// The file or disk itself, for this process alone, when the kernel has let it go. Errors: `InUse`.
    pub(super) fn alone(&self) -> Result<FileDevice> {
        FileDevice::open(&self.path)
    }

    /// The room below a sparse file.
    pub(super) fn room(&self) -> Option<RoomBelow> {
        self.on_file.as_ref()?;
        FileDevice::open_beside(&self.path, false).ok()?.room_below()
    }

    /// Makes it at least `size` bytes large; a disk must have grown before. `filled`: what is new gets its room on the
    /// host's disk at once.
    pub(super) fn grow(&self, size: u64, filled: bool) -> Result<()> {
        let before = self.size()?;
        if size <= before {
            return Ok(());
        }
        let Some(bound) = &self.on_file else {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("grow {} to {size} bytes: it has {before}; make the disk larger first", self.path.display()),
            ));
        };
        // The kernel writes below `before` only, until the loop device takes the new size over.
        let file = FileDevice::open_beside(&self.path, true)?;
        if file.size() < size {
            file.grow(size)?;
        }
        if filled {
            file.preallocate(before)?;
        }
        file.sync_all()?;
        bound.resize()
    }

    /// Takes the loop device away, if there is one.
    pub(super) fn let_go(&self) -> Result<()> {
        self.on_file.as_ref().map_or(Ok(()), LastingLoop::detach)
    }

    /// True when no other block device stands on it, and the loop device that was let go has gone.
    pub(super) fn is_free(&self) -> bool {
        let holders = std::fs::read_dir(format!("/sys/dev/block/{}/holders", self.number));
        let held = holders.is_ok_and(|mut holders| holders.next().is_some());
        !held && self.on_file.as_ref().is_none_or(|bound| !bound.is_bound())
    }
}

/// The loop device that stands on the file at `path`, for a message about who has it.
pub(crate) fn loop_of(path: &Path) -> Option<PathBuf> {
    LastingLoop::find(&path.canonicalize().ok()?).map(|bound| bound.path())
}
