//! A small file mapped into memory as a row of 64-bit words: what was stored there outlives the process.
//!
//! A store costs no system call. If the process is killed between two stores, whoever opens the file next finds
//! the first and not the second: a killed thread stops between two instructions, and what it stored is in the page
//! cache. Nothing is promised about a power cut. The room is taken when the file is made, so that no store can meet
//! a full file system.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{Ordering, fence};

use nix::fcntl::{FallocateFlags, fallocate};

use crate::device::sys;
use crate::error::{Error, ErrorKind, Result};

/// A file that is to be mapped, locked for one user; the lock goes with the process.
pub(crate) struct SharedFile {
    file: File,
    path: PathBuf,
}

/// The words of a file, the lowest byte of each first; kept and locked until dropped.
pub(crate) struct SharedWords {
    mapping: sys::Mapping,
    file: SharedFile,
}

impl SharedFile {
    /// Opens a file that is there; `None` if it is not. Errors: `InUse` if another user has it, `Invalid` if it is
    /// no regular file, a symbolic link included.
    pub(crate) fn open(path: &Path) -> Result<Option<Self>> {
        let doing = || format!("open {}", path.display());
        // Without waiting: a FIFO in its place would wait for a writer.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = match OpenOptions::new().read(true).write(true).custom_flags(flags).open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) if e.raw_os_error() == Some(libc::ELOOP) => {
                return Err(Error::with_source(ErrorKind::Invalid, format!("{}: it is a symbolic link", doing()), e));
            }
            Err(e) => return Err(Error::io(doing(), e)),
        };
        let seen = file.metadata().map_err(|e| Error::io(doing(), e))?;
        if !seen.is_file() {
            return Err(Error::new(ErrorKind::Invalid, format!("{}: it is no regular file", doing())));
        }
        let this = Self { file, path: path.to_owned() };
        this.lock()?;
        // Whoever had it before may have renamed it between the opening and the lock.
        let there = path.symlink_metadata().map_err(|e| Error::io(doing(), e))?;
        if (there.dev(), there.ino()) != (seen.dev(), seen.ino()) {
            return Err(Error::new(ErrorKind::InUse, format!("{}: another file took its place just now", doing())));
        }
        Ok(Some(this))
    }

    /// Makes a file of `words` zero words, readable by its owner only. Errors: `AlreadyExists`,
    /// `OutOfDataSpace` if the file system has no room for all of it.
    pub(crate) fn create(path: &Path, words: usize) -> Result<Self> {
        let doing = || format!("make {} of {} bytes", path.display(), words * 8);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)
            .map_err(|e| Error::io(doing(), e))?;
        let this = Self { file, path: path.to_owned() };
        let len = i64::try_from(words * 8).map_err(|e| Error::with_source(ErrorKind::Invalid, doing(), e))?;
        let made = this.lock().and_then(|()| {
            fallocate(&this.file, FallocateFlags::empty(), 0, len).map_err(|e| Error::io(doing(), e.into()))
        });
        if let Err(e) = made {
            // It is ours and empty; the error that is returned is the one that matters.
            drop(std::fs::remove_file(path));
            return Err(e);
        }
        Ok(this)
    }

    fn lock(&self) -> Result<()> {
        match self.file.try_lock() {
            Ok(()) => Ok(()),
            Err(TryLockError::WouldBlock) => Err(Error::new(
                ErrorKind::InUse,
                format!("open {}: a process that serves the pool has it", self.path.display()),
            )),
            Err(TryLockError::Error(e)) => Err(Error::io(format!("lock {}", self.path.display()), e)),
        }
    }

    /// The content, or the first `most` bytes of it.
    pub(crate) fn read(&self, most: u64) -> Result<Vec<u8>> {
        read_all(&self.file, most).map_err(|e| Error::io(format!("read {}", self.path.display()), e))
    }

    /// The first `most` bytes of a file that somebody else may be using; `None` if there is none.
    pub(crate) fn peek(path: &Path, most: u64) -> Result<Option<Vec<u8>>> {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        match OpenOptions::new().read(true).custom_flags(flags).open(path) {
            Ok(file) => read_all(&file, most).map(Some),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
        .map_err(|e| Error::io(format!("read {}", path.display()), e))
    }

    /// Moves it to another name in the same file system, over what stands there.
    pub(crate) fn rename(&mut self, to: &Path) -> Result<()> {
        std::fs::rename(&self.path, to)
            .map_err(|e| Error::io(format!("rename {} to {}", self.path.display(), to.display()), e))?;
        to.clone_into(&mut self.path);
        Ok(())
    }

    /// Takes its name away.
    pub(crate) fn remove(&self) -> Result<()> {
        std::fs::remove_file(&self.path).map_err(|e| Error::io(format!("remove {}", self.path.display()), e))
    }

    /// Writes to the disk below, if there is one, what was stored so far.
    pub(crate) fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(|e| Error::io(format!("sync {}", self.path.display()), e))
    }

    /// Where it stands.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Maps all of it. The length must not change from here on.
    pub(crate) fn map(self) -> Result<SharedWords> {
        let doing = || format!("map {}", self.path.display());
        let len = self.file.metadata().map_err(|e| Error::io(doing(), e))?.len();
        let words = usize::try_from(len / 8).map_err(|e| Error::with_source(ErrorKind::Invalid, doing(), e))?;
        let mapping = sys::map_shared(&self.file, words).map_err(|e| Error::io(doing(), e))?;
        Ok(SharedWords { mapping, file: self })
    }
}

fn read_all(file: &File, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl SharedWords {
    /// Stores a word. Panics beyond the end.
    pub(crate) fn store(&self, at: usize, value: u64) {
        #[cfg(test)]
        trace::note(at, value);
        self.mapping.words()[at].store(value.to_le(), Ordering::Relaxed);
    }

    /// Stores a word behind everything that this thread stored before: who finds it, finds them.
    pub(crate) fn publish(&self, at: usize, value: u64) {
        #[cfg(test)]
        trace::note(at, value);
        self.mapping.words()[at].store(value.to_le(), Ordering::Release);
        // Nothing that comes later is stored before it either.
        fence(Ordering::SeqCst);
    }

    /// The file below.
    pub(crate) fn file(&self) -> &SharedFile {
        &self.file
    }

    /// The file below, to rename it.
    pub(crate) fn file_mut(&mut self) -> &mut SharedFile {
        &mut self.file
    }
}

/// What a thread stored, in order: tests cut the row anywhere.
#[cfg(test)]
pub(crate) mod trace {
    use std::cell::RefCell;

    thread_local! {
        static STORES: RefCell<Vec<(usize, u64)>> = const { RefCell::new(Vec::new()) };
    }

    pub(super) fn note(at: usize, value: u64) {
        STORES.with_borrow_mut(|stores| stores.push((at, value)));
    }

    /// The stores of this thread since the last call.
    pub(crate) fn take() -> Vec<(usize, u64)> {
        STORES.with_borrow_mut(std::mem::take)
    }
}
