//! A pool and a store's disk in memory that die together after a given number of steps.
//!
//! A step is one change of the pool, one formatting, or one flush of the store's disk. After the last
//! granted step everything fails, as for a process that is gone; what the store had not flushed is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;
use thinsnap::error::Result as ServiceResult;
use thinsnap::fs::Filesystems;
use thinsnap::snapshot::FsType;
use thinsnap_pool::{
    Access, BlockSize, ByteCount, ChangedRange, DeviceId, DeviceUsage, Error, ErrorKind, PoolMode, PoolStatus, Result,
    Space, ThinPool,
};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many steps the process still lives.
#[derive(Debug, Clone)]
pub(crate) struct Fuse(Arc<Mutex<u64>>);

impl Fuse {
    pub(crate) fn new(steps: u64) -> Self {
        Self(Arc::new(Mutex::new(steps)))
    }

    pub(crate) fn endless() -> Self {
        Self::new(u64::MAX)
    }

    /// From here on, this many steps.
    pub(crate) fn shorten(&self, steps: u64) {
        *lock(&self.0) = steps;
    }

    pub(crate) fn is_blown(&self) -> bool {
        *lock(&self.0) == 0
    }

    fn alive(&self) -> Result<()> {
        if self.is_blown() { Err(Error::new(ErrorKind::Unavailable, "the process is gone")) } else { Ok(()) }
    }

    fn step(&self) -> Result<()> {
        self.alive()?;
        *lock(&self.0) -= 1;
        Ok(())
    }
}

/// What the machine remembers: survives the process.
#[derive(Debug, Clone, Default)]
pub(crate) struct Machine {
    disk: Arc<Mutex<Vec<u8>>>,
    pool: Arc<Mutex<PoolState>>,
}

#[derive(Debug, Default)]
struct PoolState {
    /// Each device and whether a file system was made on it or on its origin.
    devices: BTreeMap<DeviceId, bool>,
    active: BTreeMap<DeviceId, Access>,
    transaction_id: u64,
}

impl Machine {
    pub(crate) fn devices(&self) -> BTreeSet<DeviceId> {
        lock(&self.pool).devices.keys().copied().collect()
    }

    pub(crate) fn active(&self) -> usize {
        lock(&self.pool).active.len()
    }

    /// As a reboot does.
    pub(crate) fn deactivate_all(&self) {
        lock(&self.pool).active.clear();
    }

    /// The same pool over another machine's store.
    pub(crate) fn with_disk_of(self, other: &Self) -> Self {
        Self { disk: Arc::new(Mutex::new(lock(&other.disk).clone())), pool: self.pool }
    }

    /// A machine in the same state that goes its own way.
    pub(crate) fn copy(&self) -> Self {
        let pool = lock(&self.pool);
        let pool = PoolState {
            devices: pool.devices.clone(),
            active: pool.active.clone(),
            transaction_id: pool.transaction_id,
        };
        Self { disk: Arc::new(Mutex::new(lock(&self.disk).clone())), pool: Arc::new(Mutex::new(pool)) }
    }
}

#[derive(Debug)]
struct Seen {
    bytes: Vec<u8>,
    unflushed: Vec<(usize, Vec<u8>)>,
}

/// The store's disk in one life of the process.
#[derive(Debug)]
pub(crate) struct Disk {
    durable: Arc<Mutex<Vec<u8>>>,
    /// What this life sees; the writes that no flush has covered.
    seen: Mutex<Seen>,
    fuse: Fuse,
}

impl Disk {
    pub(crate) fn new(machine: &Machine, fuse: Fuse) -> Self {
        let seen = lock(&machine.disk).clone();
        Self { durable: machine.disk.clone(), seen: Mutex::new(Seen { bytes: seen, unflushed: Vec::new() }), fuse }
    }
}

fn gone(error: Error) -> io::Error {
    io::Error::other(error)
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(lock(&self.seen).bytes.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap();
        let seen = lock(&self.seen);
        let bytes = seen.bytes.get(start..start + out.len());
        out.copy_from_slice(bytes.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.fuse.alive().map_err(gone)?;
        let len = usize::try_from(len).unwrap();
        lock(&self.seen).bytes.resize(len, 0);
        lock(&self.durable).resize(len, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.fuse.step().map_err(gone)?;
        let mut durable = lock(&self.durable);
        for (offset, bytes) in lock(&self.seen).unflushed.drain(..) {
            // A later set_len may have cut it off.
            if offset + bytes.len() <= durable.len() {
                durable[offset..offset + bytes.len()].copy_from_slice(&bytes);
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.fuse.alive().map_err(gone)?;
        let start = usize::try_from(offset).unwrap();
        let mut seen = lock(&self.seen);
        seen.bytes[start..start + data.len()].copy_from_slice(data);
        seen.unflushed.push((start, data.to_vec()));
        Ok(())
    }
}

type Hook = Box<dyn Fn() + Send + Sync>;

/// The pool in one life of the process.
pub(crate) struct MemoryPool {
    machine: Machine,
    fuse: Fuse,
    /// Called after every change: somebody else's turn.
    after: Mutex<Option<Hook>>,
}

impl MemoryPool {
    pub(crate) fn new(machine: &Machine, fuse: Fuse) -> Self {
        Self { machine: machine.clone(), fuse, after: Mutex::new(None) }
    }

    pub(crate) fn set_after(&self, hook: Option<Hook>) {
        *lock(&self.after) = hook;
    }

    fn change<T>(&self, work: impl FnOnce(&mut PoolState) -> Result<T>) -> Result<T> {
        self.fuse.step()?;
        let result = work(&mut lock(&self.machine.pool));
        // Taken out while it runs: what it does may change the pool in its turn.
        let hook = lock(&self.after).take();
        if let Some(hook) = hook {
            hook();
            lock(&self.after).get_or_insert(hook);
        }
        result
    }

    fn look<T>(&self, work: impl FnOnce(&PoolState) -> Result<T>) -> Result<T> {
        self.fuse.alive()?;
        work(&lock(&self.machine.pool))
    }
}

fn absent(id: DeviceId) -> Error {
    Error::new(ErrorKind::NotFound, format!("device {id} does not exist"))
}

fn taken(id: DeviceId) -> Error {
    Error::new(ErrorKind::AlreadyExists, format!("device {id} exists"))
}

fn node(id: DeviceId) -> PathBuf {
    PathBuf::from(format!("/memory/{id}"))
}

impl ThinPool for MemoryPool {
    fn create_thin(&self, id: DeviceId) -> Result<()> {
        self.change(|pool| match pool.devices.insert(id, false) {
            None => Ok(()),
            Some(_) => Err(taken(id)),
        })
    }

    fn create_snap(&self, id: DeviceId, origin: DeviceId) -> Result<()> {
        self.change(|pool| {
            let formatted = *pool.devices.get(&origin).ok_or_else(|| absent(origin))?;
            match pool.devices.insert(id, formatted) {
                None => Ok(()),
                Some(_) => Err(taken(id)),
            }
        })
    }

    fn delete(&self, id: DeviceId) -> Result<()> {
        self.change(|pool| {
            pool.devices.remove(&id);
            pool.active.remove(&id);
            Ok(())
        })
    }

    fn activate(&self, id: DeviceId, _size: ByteCount, access: Access) -> Result<PathBuf> {
        self.change(|pool| {
            if !pool.devices.contains_key(&id) {
                return Err(absent(id));
            }
            match pool.active.insert(id, access) {
                Some(other) if other != access => Err(Error::new(ErrorKind::InUse, "active with other access")),
                _ => Ok(node(id)),
            }
        })
    }

    fn deactivate(&self, id: DeviceId) -> Result<bool> {
        self.change(|pool| {
            pool.active.remove(&id);
            Ok(true)
        })
    }

    fn active_path(&self, id: DeviceId) -> Result<Option<PathBuf>> {
        self.look(|pool| Ok(pool.active.contains_key(&id).then(|| node(id))))
    }

    fn flush(&self, _id: DeviceId) -> Result<()> {
        self.fuse.alive()
    }

    fn usage(&self, id: DeviceId) -> Result<DeviceUsage> {
        self.written(id).map(|written| DeviceUsage { written, ..DeviceUsage::default() })
    }

    fn written(&self, id: DeviceId) -> Result<ByteCount> {
        self.look(|pool| pool.devices.get(&id).map(|_| ByteCount(0)).ok_or_else(|| absent(id)))
    }

    fn delta(&self, _from: DeviceId, _to: DeviceId) -> Result<Vec<ChangedRange>> {
        Ok(Vec::new())
    }

    fn devices(&self) -> Result<Vec<DeviceId>> {
        self.look(|pool| Ok(pool.devices.keys().copied().collect()))
    }

    fn status(&self) -> Result<PoolStatus> {
        self.look(|pool| {
            let space = Space { used: ByteCount(0), total: ByteCount(1 << 40) };
            Ok(PoolStatus {
                identity: [9; 16],
                engine: "memory".into(),
                mode: PoolMode::Write,
                reason: None,
                block_size: BlockSize::DEFAULT,
                data: space,
                metadata: space,
                metadata_reserve: ByteCount(0),
                transaction_id: pool.transaction_id,
                time: 0,
                devices: pool.devices.len() as u64,
                active_devices: pool.active.len() as u64,
                metadata_snapshot: false,
                room: thinsnap_pool::Room::default(),
            })
        })
    }

    fn set_transaction_id(&self, from: u64, to: u64) -> Result<()> {
        self.change(|pool| {
            if pool.transaction_id != from {
                return Err(Error::new(ErrorKind::Invalid, "transaction id"));
            }
            pool.transaction_id = to;
            Ok(())
        })
    }

    fn grow(&self, _data: Option<ByteCount>, _metadata: Option<ByteCount>) -> Result<()> {
        Ok(())
    }
}

/// File systems without bytes; that a device was formatted is remembered in the pool.
pub(crate) struct MemoryFilesystems {
    pub(crate) machine: Machine,
    pub(crate) fuse: Fuse,
}

impl Filesystems for MemoryFilesystems {
    fn make(&self, _fs: FsType, device: &Path, _size: ByteCount) -> ServiceResult<()> {
        self.fuse.step()?;
        let id = device.file_name().unwrap().to_str().unwrap().parse().unwrap();
        let id = DeviceId::new(id)?;
        let mut pool = lock(&self.machine.pool);
        assert_eq!(pool.active.get(&id), Some(&Access::ReadWrite), "mkfs on an inactive device");
        pool.devices.insert(id, true);
        Ok(())
    }

    fn grow(&self, _fs: FsType, _device: &Path) -> ServiceResult<()> {
        Ok(self.fuse.step()?)
    }

    fn needs_replay(&self, _fs: FsType, _device: &Path) -> ServiceResult<bool> {
        Ok(false)
    }

    fn replay(&self, _fs: FsType, _device: &Path) -> ServiceResult<()> {
        Ok(self.fuse.step()?)
    }

    fn sync_mounted(&self, _device: &Path) -> ServiceResult<bool> {
        Ok(false)
    }

    fn limit_dirty(&self, _device: &Path, _max: ByteCount) -> ServiceResult<()> {
        Ok(())
    }
}

/// True if every device of the pool stands on a formatted base.
pub(crate) fn all_formatted(machine: &Machine) -> bool {
    lock(&machine.pool).devices.values().all(|&formatted| formatted)
}
