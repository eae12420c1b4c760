//! A bolt file that nobody else has: opened, locked, read whole.
//!
//! Bolt locks its file as long as a program has it open for writing. The shared lock that is held here keeps such a
//! program from starting until the [`BoltFile`] is dropped, so that what was read stays true meanwhile.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::bolt::meta::newest;
use crate::bolt::tree::{Bucket, read_tree};
use crate::error::{Error, ErrorKind, Result};

/// The largest file that is read: 10,000 snapshots with all their labels need some 20 MiB.
const FILE_MAX: u64 = 256 << 20;

/// A bolt file as it stands, locked against programs that would change it.
pub struct BoltFile {
    path: PathBuf,
    root: Bucket,
    /// Held, not read.
    _lock: File,
}

impl BoltFile {
    /// Reads the file's newest whole transaction; one that a crash cut short is as if it had never been. Errors:
    /// `NotFound`, `InUse` if a program has it open for writing, `Corrupt`, `Unsupported`.
    pub fn open(path: &Path) -> Result<Self> {
        let doing = format!("read the bolt file {}", path.display());
        Self::read(path).map_err(|error| error.doing(doing))
    }

    fn read(path: &Path) -> Result<Self> {
        // A FIFO must not make us wait for its writer.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
        let mut file = opened.map_err(|error| Error::io("open it", error))?;
        let seen = file.metadata().map_err(|error| Error::io("look at it", error))?;
        if !seen.is_file() {
            return Err(Error::new(ErrorKind::InvalidArgument, "it is no file"));
        }
        match file.try_lock_shared() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::new(ErrorKind::InUse, "a program has it open, containerd most likely")
                    .advise("stop it first: systemctl stop containerd"));
            }
            Err(TryLockError::Error(error)) => return Err(Error::io("lock it", error)),
        }
        // Asked again: before the lock it may have grown.
        let len = file.metadata().map_err(|error| Error::io("look at it", error))?.len();
        if len > FILE_MAX {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("it has {len} bytes; {FILE_MAX} are the most that are read"),
            ));
        }
        let mut bytes = Vec::new();
        file.by_ref().take(FILE_MAX).read_to_end(&mut bytes).map_err(|error| Error::io("read it", error))?;
        let root = read_tree(&bytes, &newest(&bytes)?)?;
        Ok(Self { path: path.to_owned(), root, _lock: file })
    }

    /// Where it stands.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The bucket of all buckets.
    #[must_use]
    pub fn root(&self) -> &Bucket {
        &self.root
    }
}

#[cfg(test)]
mod tests;
