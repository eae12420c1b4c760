//! What the snapshotter asks of file systems, so that its tests can run on devices without bytes.

use std::path::{Path, PathBuf};

use thinsnap_pool::ByteCount;

use crate::error::Result;
use crate::fs::{grow, mkfs, replay};
use crate::snapshot::FsType;

/// Work on the file system of a block device.
pub trait Filesystems: Send + Sync {
    /// Makes an empty file system on a device of `size` bytes that reads as zeroes; its root is empty,
    /// root's, mode 0755. It is unmounted and clean at return. Errors: `Unsupported` with the package
    /// that is missing.
    fn make(&self, fs: FsType, device: &Path, size: ByteCount) -> Result<()>;

    /// Grows a clean, unmounted file system to the size of its device.
    fn grow(&self, fs: FsType, device: &Path) -> Result<()>;

    /// True if a read-only mount would lack what a journal holds.
    fn needs_replay(&self, fs: FsType, device: &Path) -> Result<bool>;

    /// Replays the journal of an unmounted file system.
    fn replay(&self, fs: FsType, device: &Path) -> Result<()>;

    /// Writes a mounted file system out, in whatever mount namespace it is. False: mounted nowhere.
    fn sync_mounted(&self, device: &Path) -> Result<bool>;

    /// Has the kernel write a device back when the page cache holds `max` bytes for it, until the device is taken down.
    /// Errors where the kernel cannot.
    fn limit_dirty(&self, device: &Path, max: ByteCount) -> Result<()>;
}

/// The host's own file systems.
#[derive(Debug)]
pub struct HostFilesystems {
    work_dir: PathBuf,
}

impl HostFilesystems {
    /// `work_dir`: a directory for temporary mount points, made when needed.
    #[must_use]
    pub fn new(work_dir: PathBuf) -> Self {
        Self { work_dir }
    }

    /// Takes away what a killed process has left in the work directory; the one user calls it at start.
    pub fn sweep(&self) -> Result<()> {
        grow::sweep(&self.work_dir)
    }
}

impl Filesystems for HostFilesystems {
    fn make(&self, fs: FsType, device: &Path, size: ByteCount) -> Result<()> {
        mkfs::make(fs, device, size)
    }

    fn grow(&self, fs: FsType, device: &Path) -> Result<()> {
        grow::grow(fs, device, &self.work_dir)
    }

    fn needs_replay(&self, fs: FsType, device: &Path) -> Result<bool> {
        replay::needs_replay(fs, device)
    }

    fn replay(&self, fs: FsType, device: &Path) -> Result<()> {
        replay::replay(fs, device)
    }

    fn sync_mounted(&self, device: &Path) -> Result<bool> {
        replay::sync_mounted(device)
    }

    fn limit_dirty(&self, device: &Path, max: ByteCount) -> Result<()> {
        Ok(thinsnap_pool::limit_dirty(device, Some(max))?)
    }
}
