//! The record of truth: snapshots, limbo, the pool's identity; one redb file.
//!
//! Readers take a [`Reader`] and never wait; writers hand a closure to [`Store::write`] and return when
//! its changes are durable. Rooms above keep their own JSON records in tables of their own.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase, StorageBackend};

use crate::error::{Error, ErrorKind, Result};
use crate::store::codec;
use crate::store::committer::{Committer, Pending};
use crate::store::redb_error::storage_error;
use crate::store::rows::{Reader, Rows};
use crate::store::schema::{META, META_SCHEMA, SCHEMA_VERSION};
use crate::store::txn::Txn;

/// Page cache of redb in bytes: some 30,000 records, instead of redb's default of 1 GiB.
const CACHE_BYTES: usize = 32 << 20;

/// The store; one process at a time. Clones share it.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    // Before `db`, so that the committer has stopped when redb closes the file.
    committer: Committer,
    db: Arc<Database>,
}

impl Store {
    /// Opens or creates the file (mode 0600). Errors: `InUse` if another process has it, `Corrupt`,
    /// `Unsupported` if a newer build wrote it.
    pub fn open(path: &Path) -> Result<Self> {
        let doing = format!("open the store {}", path.display());
        match std::fs::symlink_metadata(path) {
            Ok(_) => Self::open_file(path),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Self::make(path),
            Err(e) => Err(Error::io("look at it", e)),
        }
        .map_err(|e| e.doing(&doing))
    }

    fn open_file(path: &Path) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)
            .map_err(|e| Error::io("open it", e))?;
        let backend = FileBackend::new(file).map_err(|e| storage_error("lock it", e))?;
        let db = Self::builder().create_with_backend(backend).map_err(|e| storage_error("read it", e))?;
        Self::with_database(db)
    }

    /// Makes a store beside its place and moves it there when it is whole: a file that a crash leaves half made
    /// could not be told from a damaged one.
    fn make(path: &Path) -> Result<Self> {
        let young = young_path(path);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let file = options.open(&young);
        let file = file.map_err(|e| Error::io(format!("make {}", young.display()), e))?;
        let rest = file.try_clone().map_err(|e| Error::io("make it", e))?;
        // redb locks what it opens, which is too late for emptying it.
        rest.try_lock().map_err(|e| match e {
            TryLockError::WouldBlock => Error::new(ErrorKind::InUse, "another process makes it").advise("try again"),
            TryLockError::Error(e) => Error::io(format!("lock {}", young.display()), e),
        })?;
        // Alone with the file: is it still the young one, or has its maker finished it meanwhile?
        let same = |seen: std::fs::Metadata| rest.metadata().is_ok_and(|ours| ours.ino() == seen.ino());
        if !std::fs::symlink_metadata(&young).is_ok_and(same) {
            return Err(Error::new(ErrorKind::InUse, "another process has just made it").advise("try again"));
        }
        // What an earlier try left.
        rest.set_len(0).map_err(|e| Error::io(format!("empty {}", young.display()), e))?;
        let backend = FileBackend::new(file).map_err(|e| storage_error("make it", e))?;
        let db = Self::builder().create_with_backend(backend).map_err(|e| storage_error("make it", e))?;
        let store = Self::with_database(db)?;
        std::fs::rename(&young, path).map_err(|e| Error::io(format!("rename {}", young.display()), e))?;
        // The name must survive a power cut as surely as what is in the file.
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent).and_then(|dir| dir.sync_all()).map_err(|e| Error::io("make its name durable", e))?;
        Ok(store)
    }

    /// A store on another medium, for tests that cut its power.
    pub fn with_backend(backend: impl StorageBackend) -> Result<Self> {
        let db = Self::builder().create_with_backend(backend).map_err(|e| storage_error("open the store", e))?;
        Self::with_database(db)
    }

    fn builder() -> redb::Builder {
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES);
        builder
    }

    fn with_database(db: Database) -> Result<Self> {
        let db = Arc::new(db);
        let store = Self { inner: Arc::new(Inner { committer: Committer::start(db.clone())?, db }) };
        let version = store.read()?.row(META, META_SCHEMA)?;
        match version.map(|bytes| codec::decode::<u32>(&bytes)).transpose()? {
            None => store.write(|txn| {
                txn.put(META, META_SCHEMA, codec::encode(&SCHEMA_VERSION)?);
                Ok(())
            })?,
            Some(SCHEMA_VERSION) => {}
            Some(version) => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("the store has layout {version}; this build knows {SCHEMA_VERSION}"),
                )
                .advise("use the build that wrote it, or a newer one"));
            }
        }
        Ok(store)
    }

    /// The store as it is at this moment.
    pub fn read(&self) -> Result<Reader> {
        let txn = self.inner.db.begin_read().map_err(|e| storage_error("read the store", e))?;
        Ok(Reader::new(txn))
    }

    /// Runs `closure` in a transaction, alone and as a whole: returns when its changes are durable; if it
    /// fails, nothing has changed. It may be committed together with others' changes.
    pub fn write<T, F>(&self, closure: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut Txn<'_>) -> Result<T> + Send + 'static,
    {
        self.begin(closure)?.wait()
    }

    /// As [`write`](Self::write), for a caller that has something else to do before he waits.
    pub(crate) fn begin<T, F>(&self, closure: F) -> Result<Pending<T>>
    where
        T: Send + 'static,
        F: FnOnce(&mut Txn<'_>) -> Result<T> + Send + 'static,
    {
        self.inner.committer.submit(closure)
    }

    /// True after a commit that failed: what is on disk may be the state before it or after it, so nobody
    /// may act on what readers see, above all not delete a device. Only opening the store again tells.
    #[must_use]
    pub fn is_uncertain(&self) -> bool {
        self.inner.committer.is_uncertain()
    }
}

/// Where a store stands while it is made.
fn young_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    PathBuf::from(name)
}

#[cfg(test)]
mod tests;
