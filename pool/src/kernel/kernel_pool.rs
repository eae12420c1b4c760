//! A pool served by the kernel: opened, taken on from another program, reopened after a kill, closed.
//!
//! Nothing of it lives in this process. The kernel goes on serving when the process ends, in order or not; the next one
//! finds the pool by its name and uuid, heals what was half-done, and goes on. Only [`KernelPool::close`] takes it down.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::claims::Claims;
use crate::device::FileDevice;
use crate::error::{Error, ErrorKind, Result};
use crate::kernel::backing::Below;
use crate::kernel::control::Control;
use crate::kernel::heal::heal_devices;
use crate::kernel::live::{LiveMetadata, read_superblock, takes_no_snapshot};
use crate::kernel::names::Names;
use crate::kernel::news::{LETTING_GO, News, OFTEN};
use crate::kernel::opening::{Lock, attach, find_pool, lock, make_run_dir, start};
use crate::kernel::options::{AdoptOptions, KernelOptions, PoolFeatures};
use crate::kernel::pool_device::PoolDevice;
use crate::kernel::table::PoolTable;
use crate::kernel::thin_device::ThinDevices;
use crate::meta::{Metadata, write_served};
use crate::units::{BlockSize, DeviceId};

/// A pool whose blocks the kernel moves.
pub struct KernelPool {
    pub(super) pool: PoolDevice,
    pub(super) names: Names,
    pub(super) live: LiveMetadata,
    pub(super) block_size: BlockSize,
    pub(super) claims: Claims,
    /// What it stands on, data second; `None` for a pool that another program started.
    pub(super) below: Option<[Below; 2]>,
    /// Devices in a pool that is ours alone.
    pub(super) device_count: AtomicU64,
    /// Snapshots that the clock surely has room for, in a pool that is ours alone.
    pub(super) ticks_left: Mutex<u32>,
    changes: AtomicBool,
    run_dir: PathBuf,
    pub(super) growing: Mutex<()>,
    pub(super) news: News,
    /// Number of the next view.
    pub(super) views: AtomicU64,
    /// Keeps other processes of ours away from the same pool.
    lock: Lock,
}

impl KernelPool {
    /// Opens the pool on two disks or files, and has the kernel serve it unless it does already. Errors: `Unsupported` (no
    /// device-mapper, no thin target), `Denied`, `NotFound`, `InUse` (the devices, the pool, or its name belong to
    /// somebody else), `Corrupt`, `NeedsCheck`.
    pub fn open(metadata: &Path, data: &Path, options: &KernelOptions) -> Result<Self> {
        let control = Arc::new(Control::open()?);
        let lock = lock(metadata)?;
        make_run_dir(&options.run_dir)?;
        let (superblock, _) = read_superblock(&FileDevice::open_beside(metadata, false)?)?;
        let names = Names::new(superblock.identity, options.name.as_deref())?;
        let running = find_pool(&control, &names)?;
        let (number, below) = match &running {
            Some(state) => (state.number, attach(&control, &names, state, [metadata, data], options.features)?),
            None => start(&control, &names, [metadata, data], options.features)?,
        };
        let pool =
            PoolDevice { watcher: options.watcher.clone(), ..PoolDevice::new(control, names.pool_name(), number) };
        let block_size = pool.table()?.block_size;
        let node = below[0].node.clone();
        let opened = Self::assemble(pool, names, node, block_size, Some(below), options.run_dir.clone(), lock);
        heal_devices(&opened.pool, &opened.devices_shown(), &opened.live)?;
        // After a power cut the mark in the run directory is gone, and the snapshot is still in the metadata.
        if running.is_none() {
            match opened.live.release_any(&opened.pool) {
                Ok(false) => {}
                Ok(true) => {
                    tracing::info!(
                        "a metadata snapshot that was held when the pool stopped is released: nobody reads it"
                    );
                }
                // Metadata that is full takes no change but growth: the pool is of use all the same.
                Err(e) if takes_no_snapshot(&e) => {
                    tracing::warn!("the pool keeps a metadata snapshot, which keeps deleted blocks: {e}");
                }
                Err(e) => return Err(e),
            }
        }
        let count = opened.read(Metadata::device_count)?;
        opened.device_count.store(count, Ordering::Relaxed);
        Ok(opened)
    }

    /// Takes on a pool that another program started: a device of device-mapper, by its name or its path in
    /// `/dev/mapper`. For LVM that is the device whose name ends in `-tpool`. Nothing in it is changed before
    /// [`allow_changes`](Self::allow_changes), or `options.changes`. Errors: `NotFound` (it is not running), `Invalid`
    /// (it is no pool), `InUse`, `Unsupported`, `Denied`.
    pub fn adopt(device: &str, options: &AdoptOptions) -> Result<Self> {
        let doing = |e: Error| e.doing(format_args!("adopt the pool {device}"));
        Self::try_adopt(device.strip_prefix("/dev/mapper/").unwrap_or(device), options).map_err(doing)
    }

    fn try_adopt(name: &str, options: &AdoptOptions) -> Result<Self> {
        let control = Arc::new(Control::open()?);
        let Some(state) = control.state(name)? else {
            return Err(Error::new(
                ErrorKind::NotFound,
                "no such device of device-mapper is there: have its owner start it (LVM: lvchange --activate y)",
            ));
        };
        let pool = PoolDevice::new(control, name.to_owned(), state.number);
        let table = pool.table().map_err(|e| {
            e.doing("it is no thin pool; that of LVM's volume VG/POOL is the device whose name ends in -tpool")
        })?;
        make_run_dir(&options.run_dir)?;
        let node = table.metadata.node(&options.run_dir)?;
        let lock = lock(&node)?;
        let (superblock, _) = read_superblock(&FileDevice::open_beside(&node, false)?)?;
        // By the pool's own names, which its owner keeps; two crcs make a name of any length short.
        let stand_in = format!("{:08x}{:08x}", crc32c::crc32c(name.as_bytes()), crc32fast::hash(state.uuid.as_bytes()));
        let names = Names::new(superblock.identity, Some(&stand_in))?;
        let opened = Self::assemble(pool, names, node, table.block_size, None, options.run_dir.clone(), lock);
        if options.changes {
            opened.allow_changes()?;
        }
        Ok(opened)
    }

    fn assemble(
        pool: PoolDevice,
        names: Names,
        metadata: PathBuf,
        block_size: BlockSize,
        below: Option<[Below; 2]>,
        run_dir: PathBuf,
        lock: Lock,
    ) -> Self {
        let mark = run_dir.join(format!("{}.metadata-snapshot", names.pool_name()));
        Self {
            live: LiveMetadata::new(metadata, mark),
            changes: AtomicBool::new(below.is_some()),
            pool,
            names,
            block_size,
            claims: Claims::default(),
            below,
            device_count: AtomicU64::new(0),
            ticks_left: Mutex::default(),
            run_dir,
            growing: Mutex::default(),
            news: News::default(),
            views: AtomicU64::new(1),
            lock,
        }
    }

    /// The switch from looking to changing, for an adopted pool; heals what an earlier process of ours left half-done.
    pub fn allow_changes(&self) -> Result<()> {
        heal_devices(&self.pool, &self.devices_shown(), &self.live)?;
        self.changes.store(true, Ordering::Release);
        Ok(())
    }

    /// Errors with `ReadOnly` in an adopted pool that may only be looked at.
    pub(super) fn check_changes(&self) -> Result<()> {
        if self.changes.load(Ordering::Acquire) {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::ReadOnly,
            format!(
                "the pool {} belongs to another program and was adopted for looking; allow changes first",
                self.pool.name
            ),
        ))
    }

    /// The pool's devices that the host sees.
    pub(super) fn devices_shown(&self) -> ThinDevices<'_> {
        ThinDevices { pool: &self.pool, names: &self.names, run_dir: &self.run_dir }
    }

    /// Reads metadata of one moment.
    pub(super) fn read<T>(&self, read: impl Fn(&Metadata) -> Result<T>) -> Result<T> {
        if self.check_changes().is_err() {
            return self.live.untouched(read);
        }
        match self.live.at_one_moment(&self.pool, &read) {
            Err(e) if takes_no_snapshot(&e) => self.live.without_snapshot(&self.pool, &read),
            done => done,
        }
    }

    /// Gives the running pool other features.
    pub fn set_features(&self, features: PoolFeatures) -> Result<()> {
        self.check_changes()?;
        let _one = self.one_table();
        let table = self.pool.table()?;
        self.pool.reload(&PoolTable { features, ..table })
    }

    /// One change of the pool's table, or stop of the pool for the sake of its blocks, at a time.
    pub(super) fn one_table(&self) -> MutexGuard<'_, ()> {
        self.growing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the kernel hold a metadata snapshot, for programs that read the pool from its metadata device while it
    /// runs (`thin_dump --metadata-snapshot`). Usage, differences and lists of devices are not to be had from
    /// [`ThinPool`](crate::thin_pool::ThinPool) in a cheap way until it is released, and deleted blocks do not come back. Errors:
    /// `InUse` if one is held.
    pub fn reserve_metadata_snapshot(&self) -> Result<()> {
        self.check_changes()?;
        self.pool.message("reserve_metadata_snap").map(drop)
    }

    /// Releases the held metadata snapshot. Errors: `Invalid` if none is held.
    pub fn release_metadata_snapshot(&self) -> Result<()> {
        self.check_changes()?;
        self.pool.message("release_metadata_snap").map(drop)
    }

    /// Active devices that somebody has open, ascending.
    pub fn devices_in_use(&self) -> Result<Vec<DeviceId>> {
        let devices = self.devices_shown();
        let mut in_use = devices.active()?;
        let mut failed = Ok(());
        in_use.retain(|&id| match devices.state(id) {
            Ok(state) => state.is_some_and(|state| state.openers > 0),
            Err(e) => {
                failed = Err(e);
                false
            }
        });
        failed.map(|()| in_use)
    }

    /// Takes all devices away, and the pool with its loop devices unless it is another program's. Errors: `InUse` if a
    /// device is open (nothing was changed).
    pub fn close(&self) -> Result<()> {
        let devices = self.devices_shown();
        if let Some(id) = self.devices_in_use()?.first() {
            return Err(Error::new(ErrorKind::InUse, format!("close the pool: somebody has device {id} open")));
        }
        for id in devices.active()? {
            if !devices.hide(id)? {
                self.pool.control.keep(&self.names.thin_name(id))?;
                return Err(Error::new(ErrorKind::InUse, format!("close the pool: device {id} was opened just then")));
            }
        }
        self.pool.removals.finish_all();
        self.live.end_any_view(&self.pool)?;
        let Some(below) = &self.below else { return self.lock.give_back() };
        // Its state tells whether all is durable; taking the pool away commits too, and tells nobody.
        let committed = self.pool.commit().map(drop);
        let (control, name) = (&self.pool.control, &self.pool.name);
        // A device that its last opener closed a moment ago is out of sight before the pool has let it go.
        let remove = || Ok(if control.remove(name)? { ControlFlow::Break(true) } else { ControlFlow::Continue(false) });
        if !News::default().wait(LETTING_GO, OFTEN, remove)? {
            control.keep(name)?;
            return Err(Error::new(ErrorKind::InUse, format!("close the pool: another program has {name} open")));
        }
        for below in below {
            below.let_go()?;
        }
        // The pool, too, is out of sight before it has let its devices go; who opens them next must find them free.
        let free = || {
            let all = below.iter().all(Below::is_free);
            Ok(if all { ControlFlow::Break(true) } else { ControlFlow::Continue(false) })
        };
        if !News::default().wait(LETTING_GO, OFTEN, free)? {
            tracing::warn!("the devices below {name} are still held: another program has one of them open");
        } else if committed.is_ok()
            && let Err(e) = below[0].alone().and_then(|metadata| write_served(&metadata, false))
        {
            tracing::warn!("the next start looks for blocks that the kernel lost: {e}");
        }
        self.lock.give_back()?;
        committed
    }
}
