//! Reads the metadata of a pool while the kernel changes it.
//!
//! A metadata snapshot holds the trees of one moment: the kernel copies what it changes and frees none of them until
//! the snapshot is released. The counts are not in it. They are read at once after it was taken, and are those of the
//! same moment if the superblock is still the same afterwards; if it is not, a newer snapshot is taken, and after a few
//! tries the pool holds its requests back for as long as the counts are read (a few milliseconds for a TiB of data).
//!
//! A view gives a reader of his own all of that for as long as he likes: the snapshot stays held, and the counts are
//! handed to him as copies. It is begun in a pool that holds its requests back: the kernel takes a block before it has the
//! data for it, commits meanwhile, and maps the block after that, which an audit would call a leak.
//!
//! A pool that may not be changed has no snapshot taken: it is read as it is, and again if its superblock has
//! changed meanwhile.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::device::{BlockDevice, FileDevice};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Block, SUPERBLOCK, Superblock};
use crate::kernel::copies::Copies;
use crate::kernel::pool_device::PoolDevice;
use crate::meta::{Metadata, OpenMode, written_on};
use crate::status::MetadataView;
use crate::units::{ByteCount, DeviceId, METADATA_BLOCK_SIZE};

/// The message that has the kernel hold a metadata snapshot.
const RESERVE: &str = "reserve_metadata_snap";
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
    /// The superblock when it was last read.
    seen: Mutex<Option<Superblock>>,
    /// One reader takes and releases snapshots at a time; a view keeps its own for as long as it is open.
    viewed: Mutex<Option<OpenView>>,
}

/// A view that somebody reads.
struct OpenView {
    number: u64,
    kept: Kept,
}

/// What keeps a view whole.
enum Kept {
    /// The metadata snapshot with its copy of the superblock at this block.
    Snapshot(u64),
    /// Nothing but that the pool does not change: its superblock when the view was begun.
    Unchanged(Box<Block>),
}

impl LiveMetadata {
    /// `node` is the metadata device.
    pub(super) fn new(node: PathBuf, mark: PathBuf) -> Self {
        Self { node, mark, seen: Mutex::default(), viewed: Mutex::default() }
    }

    /// Opened anew each time: the device grows.
    pub(super) fn device(&self) -> Result<Arc<dyn BlockDevice>> {
        Ok(Arc::new(FileDevice::open_beside(&self.node, false)?))
    }

    /// The superblock of the last commit.
    pub(super) fn superblock(&self) -> Result<Superblock> {
        let (superblock, _) = read_superblock(&*self.device()?)?;
        *self.seen() = Some(superblock.clone());
        Ok(superblock)
    }

    /// The superblock of some commit, the last or one before it.
    pub(super) fn superblock_seen(&self) -> Result<Superblock> {
        let seen = self.seen().clone();
        seen.map_or_else(|| self.superblock(), Ok)
    }

    fn seen(&self) -> MutexGuard<'_, Option<Superblock>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads as `read` likes, all of it at one moment of the pool. Errors: `InUse` while a view is open, or another
    /// program holds the pool's snapshot.
    pub(super) fn at_one_moment<T>(&self, pool: &PoolDevice, read: impl FnOnce(&Metadata) -> Result<T>) -> Result<T> {
        let viewed = self.lock();
        if viewed.is_some() {
            return Err(Error::new(ErrorKind::InUse, "the pool's only metadata snapshot is kept for a view"));
        }
        let device = self.device()?;
        let (held, metadata) = self.held(pool, || Metadata::open_held(Arc::clone(&device)))?;
        finish(held, &metadata, read)
    }

    /// Has a snapshot taken at which `open` succeeds; it tells with `InUse` that the pool has moved on.
    fn held<'a, T>(&'a self, pool: &'a PoolDevice, open: impl Fn() -> Result<T>) -> Result<(Held<'a>, T)> {
        for _ in 0..SNAPSHOTS {
            self.mark()?;
            let (held, _) = self.hold(pool, pool.message(RESERVE))?;
            match open() {
                Ok(opened) => return Ok((held, opened)),
                Err(e) if e.kind() == ErrorKind::InUse => held.release()?,
                Err(e) => return Err(e),
            }
        }
        self.held_at_rest(pool, open)
    }

    /// The same in a pool that is stopped for it: then no block is taken that no tree refers to yet, as those are for
    /// which data is on its way.
    fn held_at_rest<'a, T>(&'a self, pool: &'a PoolDevice, open: impl Fn() -> Result<T>) -> Result<(Held<'a>, T)> {
        self.mark()?;
        let reserved = pool.stopped(|| Ok(pool.send(RESERVE).map(|_| open())));
        let (held, opened) = self.hold(pool, reserved.or_else(|e| self.unmark().and(Err(e)))?)?;
        // After an error the snapshot is released here, where the pool runs again.
        opened.map(|opened| (held, opened))
    }

    /// True while a view is open.
    pub(super) fn is_viewed(&self) -> bool {
        self.lock().is_some()
    }

    /// Begins a view. What the snapshot does not keep on the disk, the space maps, is copied at its moment, at which the
    /// pool is stopped: who audits the view must find no block that is taken and not yet mapped. A pool that takes no
    /// snapshot is shown as it is. Errors: `InUse` while another view is open.
    pub(super) fn begin_view(&self, pool: &PoolDevice, number: u64, untouched: bool) -> Result<MetadataView> {
        let mut viewed = self.lock();
        if viewed.is_some() {
            return Err(Error::new(ErrorKind::InUse, "another reader has a view of the metadata open"));
        }
        let device = Arc::new(Copies::new(self.device()?));
        let open = || {
            device.forget();
            Metadata::open_held(Arc::clone(&device) as Arc<dyn BlockDevice>)
        };
        let held =
            if untouched { Err(Error::new(ErrorKind::ReadOnly, "look only")) } else { self.held_at_rest(pool, open) };
        let kept = match held {
            Ok((held, metadata)) => {
                let root = metadata.held_root().map_or(0, |root| root.0);
                held.keep();
                Kept::Snapshot(root)
            }
            Err(e) if takes_no_snapshot(&e) => {
                device.forget();
                let (_, before) = read_superblock(&*self.device()?)?;
                Metadata::open(Arc::clone(&device) as Arc<dyn BlockDevice>, OpenMode::ReadOnly)?;
                Kept::Unchanged(before)
            }
            Err(e) => return Err(e),
        };
        let mut copies = device.take();
        let superblock = copies.remove(&0).unwrap_or_default();
        *viewed = Some(OpenView { number, kept });
        Ok(MetadataView { number, superblock, copies })
    }

    /// Ends a view; true: what it showed was whole all the time.
    pub(super) fn end_view(&self, pool: &PoolDevice, number: u64) -> Result<bool> {
        let mut viewed = self.lock();
        let Some(view) = viewed.take_if(|view| view.number == number) else { return Ok(false) };
        match view.kept {
            Kept::Snapshot(root) => {
                let whole = pool.report(false)?.held_root == Some(root);
                self.release_left_over(pool)?;
                Ok(whole)
            }
            Kept::Unchanged(before) => Ok(read_superblock(&*self.device()?)?.1 == before),
        }
    }

    /// Gives up a view that is open, for a pool that is about to be closed.
    pub(super) fn end_any_view(&self, pool: &PoolDevice) -> Result<()> {
        let number = self.lock().as_ref().map(|view| view.number);
        number.map_or(Ok(()), |number| self.end_view(pool, number).map(drop))
    }

    fn lock(&self) -> MutexGuard<'_, Option<OpenView>> {
        // Each change of it is one step.
        self.viewed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads without changing anything in the pool. Errors: `InUse` if it commits faster than it can be read.
    pub(super) fn untouched<T>(&self, read: impl FnMut(&Metadata) -> Result<T>) -> Result<T> {
        self.untouched_within(READINGS, read)
    }

    /// The same without a snapshot, which another reader has: a pool that commits too fast is stopped while it is read.
    pub(super) fn without_snapshot<T>(
        &self,
        pool: &PoolDevice,
        mut read: impl FnMut(&Metadata) -> Result<T>,
    ) -> Result<T> {
        match self.untouched_within(SNAPSHOTS, &mut read) {
            Err(e) if e.kind() == ErrorKind::InUse => pool.stopped(|| self.untouched_within(1, &mut read)),
            done => done,
        }
    }

    /// What a device has written by the last commit, from its own tree. Errors: `NotFound`; `InUse` if the pool commits
    /// faster than that can be read.
    pub(super) fn written(&self, id: DeviceId) -> Result<ByteCount> {
        self.beside(SNAPSHOTS, |device, superblock| written_on(Arc::clone(device), superblock, id))
    }

    fn untouched_within<T>(&self, readings: u32, mut read: impl FnMut(&Metadata) -> Result<T>) -> Result<T> {
        self.beside(readings, |device, _| {
            Metadata::open(Arc::clone(device), OpenMode::ReadOnly).and_then(|metadata| read(&metadata))
        })
    }

    /// Reads until the superblock is the same after it as before.
    fn beside<T>(
        &self,
        readings: u32,
        mut read: impl FnMut(&Arc<dyn BlockDevice>, &Superblock) -> Result<T>,
    ) -> Result<T> {
        let device = self.device()?;
        for _ in 0..readings {
            let (superblock, before) = read_superblock(&*device)?;
            let done = read(&device, &superblock);
            let (_, after) = read_superblock(&*device)?;
            // What looks like damage in metadata that has changed meanwhile is none.
            if before == after {
                return done;
            }
        }
        Err(Error::new(
            ErrorKind::InUse,
            format!(
                "read the metadata: it changed {readings} times before it was read to its end; try when less is written"
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

    /// Releases whatever snapshot a pool holds that was started just now: nobody can be reading it. True: there was one.
    pub(super) fn release_any(&self, pool: &PoolDevice) -> Result<bool> {
        let held = pool.report(false)?.held_root.is_some();
        if held {
            pool.message("release_metadata_snap")?;
        }
        if self.mark.exists() {
            self.unmark()?;
        }
        Ok(held)
    }

    /// What came of a reservation: the snapshot and what else there is, or the error. The mark stands.
    fn hold<'a, T>(&'a self, pool: &'a PoolDevice, reserved: Result<T>) -> Result<(Held<'a>, T)> {
        let held = Held { live: self, pool, released: false };
        match reserved {
            Ok(with) => Ok((held, with)),
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

    fn mark(&self) -> Result<()> {
        fs::write(&self.mark, b"").map_err(|e| Error::io(format!("mark {}", self.mark.display()), e))
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

    /// The snapshot stays, with its mark: a view has it.
    fn keep(self) {
        self.forget();
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

/// True if an attempt to hold a snapshot says that none can be had; then the pool does not change either, or another
/// program holds one and reads for itself.
pub(super) fn takes_no_snapshot(e: &Error) -> bool {
    matches!(e.kind(), ErrorKind::InUse | ErrorKind::ReadOnly | ErrorKind::NeedsCheck | ErrorKind::OutOfMetadataSpace)
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

/// The superblock of the pool whose metadata is at `path`, served or not.
pub(crate) fn superblock_of(path: &Path) -> Result<Superblock> {
    read_superblock(&FileDevice::open_beside(path, false)?).map(|(superblock, _)| superblock)
}
