//! Reads the metadata of a pool while the kernel changes it.
//!
//! A metadata snapshot holds the trees of one moment: the kernel copies what it changes and frees none of them until
//! the snapshot is released. The counts are not in it. They are read at once after it was taken, and are those of the
//! same moment if the superblock is still the same afterwards; if it is not, a newer snapshot is taken, and after a few
//! tries the pool holds its requests back for as long as the counts are read (a few milliseconds for a TiB of data).
//!
//! A pool that may not be changed has no snapshot taken: it is read as it is, and again if its superblock has
//! changed meanwhile.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::device::{BlockDevice, FileDevice};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Block, SUPERBLOCK, Superblock};
use crate::kernel::pool_device::PoolDevice;
use crate::meta::{Metadata, OpenMode};
use crate::units::METADATA_BLOCK_SIZE;

/// Snapshots taken before the pool is made to hold still.
const SNAPSHOTS: u32 = 3;
/// Readings of a pool that may not be changed before giving up.
const READINGS: u32 = 50;
/// Readings of a superblock that is being written just then.
const SUPERBLOCK_READINGS: u32 = 10;

/// The metadata of a running pool.
pub(super) struct LiveMetadata {
    node: PathBuf,
    /// Stands while a snapshot of ours is held, so that one whose holder was killed is known and released.
    mark: PathBuf,
    one: Mutex<()>,
}

impl LiveMetadata {
    /// `node` is the metadata device.
    pub(super) fn new(node: PathBuf, mark: PathBuf) -> Self {
        Self { node, mark, one: Mutex::default() }
    }

    /// Opened anew each time: the device grows.
    fn device(&self) -> Result<Arc<dyn BlockDevice>> {
        Ok(Arc::new(FileDevice::open_beside(&self.node, false)?))
    }

    /// The superblock of the last commit.
    pub(super) fn superblock(&self) -> Result<Superblock> {
        read_superblock(&*self.device()?).map(|(superblock, _)| superblock)
    }

    /// Reads as `read` likes, all of it at one moment of the pool.
    pub(super) fn at_one_moment<T>(&self, pool: &PoolDevice, read: impl FnOnce(&Metadata) -> Result<T>) -> Result<T> {
        let _one = self.one.lock().unwrap_or_else(PoisonError::into_inner);
        let device = self.device()?;
        for _ in 0..SNAPSHOTS {
            let held = self.hold(pool)?;
            match Metadata::open_held(Arc::clone(&device)) {
                Ok(metadata) => return finish(held, &metadata, read),
                Err(e) if e.kind() == ErrorKind::InUse => held.release()?,
                Err(e) => return Err(e),
            }
        }
        let (held, metadata) = pool.stopped(|| {
            let held = self.hold(pool)?;
            Metadata::open_held(Arc::clone(&device)).map(|metadata| (held, metadata))
        })?;
        finish(held, &metadata, read)
    }

    /// Reads without changing anything in the pool. Errors: `InUse` if it commits faster than it can be read.
    pub(super) fn untouched<T>(&self, mut read: impl FnMut(&Metadata) -> Result<T>) -> Result<T> {
        let device = self.device()?;
        for _ in 0..READINGS {
            let (_, before) = read_superblock(&*device)?;
            let done = Metadata::open(Arc::clone(&device), OpenMode::ReadOnly).and_then(|metadata| read(&metadata));
            let (_, after) = read_superblock(&*device)?;
            // What looks like damage in metadata that has changed meanwhile is none.
            if before == after {
                return done;
            }
        }
        Err(Error::new(
            ErrorKind::InUse,
            format!(
                "read the metadata: it changed {READINGS} times before it was read to its end; try when less is written"
            ),
        ))
    }

    /// Releases the snapshot that a killed process of ours held. True: there was one.
    pub(super) fn release_left_over(&self, pool: &PoolDevice) -> Result<bool> {
        if !self.mark.exists() {
            return Ok(false);
        }
        let held = pool.report(false)?.held_root.is_some();
        if held {
            pool.message("release_metadata_snap")?;
        }
        self.unmark()?;
        Ok(held)
    }

    fn hold<'a>(&'a self, pool: &'a PoolDevice) -> Result<Held<'a>> {
        fs::write(&self.mark, b"").map_err(|e| Error::io(format!("mark {}", self.mark.display()), e))?;
        let held = Held { live: self, pool, released: false };
        match pool.message("reserve_metadata_snap") {
            Ok(_) => Ok(held),
            Err(e) if e.kind() == ErrorKind::InUse => {
                // It is another's, and stays.
                held.forget();
                self.unmark()?;
                Err(e
                    .doing("another program holds the pool's only metadata snapshot (release_metadata_snap ends that)"))
            }
            Err(e) => Err(e),
        }
    }

    fn unmark(&self) -> Result<()> {
        fs::remove_file(&self.mark).map_err(|e| Error::io(format!("remove the mark {}", self.mark.display()), e))
    }
}

fn finish<T>(held: Held<'_>, metadata: &Metadata, read: impl FnOnce(&Metadata) -> Result<T>) -> Result<T> {
    let done = read(metadata)?;
    held.release()?;
    Ok(done)
}

/// The pool's metadata snapshot, held by us; released when dropped.
struct Held<'a> {
    live: &'a LiveMetadata,
    pool: &'a PoolDevice,
    released: bool,
}

impl Held<'_> {
    fn release(mut self) -> Result<()> {
        self.released = true;
        self.pool.message("release_metadata_snap")?;
        self.live.unmark()
    }

    fn forget(mut self) {
        self.released = true;
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if self.released {
            return;
        }
        // Also after a message that failed in doubt: there may be nothing to release.
        if let Err(e) = self.live.release_left_over(self.pool) {
            tracing::warn!("the pool {} keeps a metadata snapshot, which keeps deleted blocks: {e}", self.pool.name);
        }
    }
}

/// The superblock and its bytes.
pub(super) fn read_superblock(device: &dyn BlockDevice) -> Result<(Superblock, Box<Block>)> {
    let mut block: Box<Block> = Box::new([0; METADATA_BLOCK_SIZE]);
    let mut read = || device.read_at(&mut block[..], 0).and_then(|()| Superblock::decode(SUPERBLOCK, &block));
    let mut outcome = read();
    // A reader beside the kernel may meet the block half written.
    for _ in 1..SUPERBLOCK_READINGS {
        match &outcome {
            Err(e) if e.kind() == ErrorKind::Corrupt => outcome = read(),
            _ => break,
        }
    }
    let superblock = outcome.map_err(|e| match block.iter().all(|&byte| byte == 0) {
        true => Error::new(ErrorKind::NotFound, "block 0 of the metadata is all zero: there is no pool yet"),
        false => e,
    })?;
    Ok((superblock, block))
}

/// The identity of the pool whose metadata is at `path`, served or not.
pub(crate) fn identity_of(path: &Path) -> Result<[u8; 16]> {
    read_superblock(&FileDevice::open_beside(path, false)?).map(|(superblock, _)| superblock.identity)
}
