//! The embedded engine as a [`ThinPool`]: one verb a function, each durable when it returns.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::claims::Claims;
use crate::device::BlockDevice;
use crate::embedded::backing::Backing;
use crate::embedded::early::EarlyWrites;
use crate::embedded::early_file::EarlyWrite;
use crate::embedded::intent_log::boot_id;
use crate::embedded::ledger::Ledger;
use crate::embedded::options::EmbeddedOptions;
use crate::embedded::replay::{Recovered, recover};
use crate::embedded::volume::ThinVolume;
use crate::embedded::{committer, create, early, grow, reclaim, trim, view};
use crate::error::{Error, ErrorKind, Result};
use crate::export::{Exporter, NoSpace, Orphan};
use crate::meta::Metadata;
use crate::mutation::Mutation;
use crate::status::{ChangedRange, DeviceUsage, MetadataView, PoolStatus, Room, Space, Steady};
use crate::thin_pool::{Access, ThinPool};
use crate::units::{ByteCount, DeviceId, METADATA_BLOCK_SIZE};

/// Leaves of a deleted device that go at once: about 16,000 mappings, a few milliseconds under the mutex.
const DELETE_LEAVES: usize = 64;
/// Steps of a deletion between two commits: what they free is handed out again, and the old copies of what
/// they change do not fill the metadata.
const DELETE_STEPS_PER_COMMIT: usize = 16;

/// An active device.
struct Active {
    volume: Arc<ThinVolume>,
    /// It was deactivated and waits for its last opener.
    leaving: bool,
}

/// Joined by the pool that started them.
struct Threads {
    committer: JoinHandle<()>,
    reclaimer: JoinHandle<()>,
    trimmer: Option<JoinHandle<()>>,
    /// Those of the early writes.
    makers: Vec<JoinHandle<()>>,
}

/// Memory for the metadata of a pool, in bytes; see [`EmbeddedOptions::metadata_cache`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetadataMemory {
    /// Where the blocks of active devices stand.
    pub mappings: ByteCount,
    /// Nodes of the trees as they stand on the disk.
    pub nodes: ByteCount,
    /// Blocks of nodes that wait for a commit.
    pub uncommitted: ByteCount,
}

/// A pool whose blocks this process moves.
pub struct EmbeddedPool {
    pub(super) backing: Arc<Backing>,
    pub(super) exporter: Arc<dyn Exporter>,
    pub(super) claims: Claims,
    active: Mutex<BTreeMap<DeviceId, Active>>,
    growing: Mutex<()>,
    threads: Mutex<Option<Threads>>,
}

impl EmbeddedPool {
    /// Serves the pool that `metadata` (read from `metadata_device`) describes on `data`; active devices are
    /// shown by `exporter`. Errors: `Corrupt` if `data` is smaller than the pool.
    pub fn new(
        metadata: Metadata,
        metadata_device: Arc<dyn BlockDevice>,
        data: Arc<dyn BlockDevice>,
        exporter: Arc<dyn Exporter>,
    ) -> Result<Self> {
        Self::with_options(metadata, metadata_device, data, exporter, &EmbeddedOptions::default())
    }

    /// As [`new`](Self::new), with an intent log if `options` name one; devices that a dead predecessor left on
    /// `exporter` are served again, with all that it had acknowledged. Errors also: `DoubtfulLog`, `InUse`.
    pub fn with_options(
        mut metadata: Metadata,
        metadata_device: Arc<dyn BlockDevice>,
        data: Arc<dyn BlockDevice>,
        exporter: Arc<dyn Exporter>,
        options: &EmbeddedOptions,
    ) -> Result<Self> {
        // A predecessor that was killed may have written its last superblock without the flush behind it: a
        // flush that the kernel asks for again would find nothing to commit, and blocks that only the
        // superblock before still maps would be handed out.
        if !Mutation::SkipFlushAtOpen.is_on() {
            metadata_device.flush().map_err(|e| e.doing("open the pool: make its superblock durable"))?;
        }
        metadata.limit_cache(options.node_bytes());
        if options.intent_log.is_some() {
            metadata.set_logged(true);
        }
        let recovered = options
            .intent_log
            .as_ref()
            .map(|path| recover(path, options.intent_log_records, &mut metadata, &*metadata_device, &*data));
        let Recovered { log, freed } = recovered.transpose()?.unwrap_or_default();
        let (early, acknowledged) = open_early(options, metadata.identity())?;
        let blocks = metadata.data_space().total;
        let needed = blocks.saturating_mul(metadata.block_size().bytes());
        if data.size() < needed {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "open the pool: its {blocks} data blocks need {needed} bytes, the data device has {}: it was cut short",
                    data.size()
                ),
            ));
        }
        // Before the first record: from then on a kernel that served the pool would hand out blocks that the log says
        // are in use. A superblock that is committed before this line carries the mark too.
        if log.is_some() {
            metadata.write_logged(&*metadata_device).map_err(|e| e.doing("open the pool"))?;
        }
        let pool = Self {
            backing: Arc::new(Backing::new(
                Ledger::new(metadata, log),
                metadata_device,
                data,
                Arc::downgrade(&exporter),
                options,
                early,
            )),
            exporter,
            claims: Claims::default(),
            active: Mutex::default(),
            growing: Mutex::default(),
            threads: Mutex::default(),
        };
        pool.backing.reclaim.push(freed);
        if pool.backing.metadata()?.dirty() {
            pool.backing.commits.note_change();
        }
        let reclaimer = start("pool-reclaim", &pool.backing, reclaim::run)?;
        match start("pool-commit", &pool.backing, committer::run) {
            Ok(committer) => {
                *lock(&pool.threads) = Some(Threads { committer, reclaimer, trimmer: None, makers: Vec::new() })
            }
            Err(e) => {
                pool.backing.reclaim.stop();
                drop(reclaimer.join());
                return Err(e);
            }
        }
        if let Some(early) = &pool.backing.early {
            early.redo(&pool.backing, acknowledged);
            for number in 0..early::MAKERS {
                let maker = start(&format!("pool-early-{number}"), &pool.backing, early::run)?;
                if let Some(threads) = &mut *lock(&pool.threads) {
                    threads.makers.push(maker);
                }
            }
        }
        pool.adopt_orphans()?;
        let trimmer = start("pool-trim", &pool.backing, trim::run_once)?;
        if let Some(threads) = &mut *lock(&pool.threads) {
            threads.trimmer = Some(trimmer);
        }
        Ok(pool)
    }

    /// Puts volumes behind the block devices that a dead predecessor left, then lets their requests come. One that
    /// cannot be served answers with errors; the others need not suffer for it. One whose device never became durable
    /// (see `create`) goes: nobody was told of it.
    fn adopt_orphans(&self) -> Result<()> {
        let mut unborn = Vec::new();
        for orphan in self.exporter.orphans() {
            let id = orphan.id;
            match self.adopt(&orphan) {
                Ok(()) => tracing::info!(leaving = orphan.leaving, "adopted device {id}"),
                Err(e) if e.kind() == ErrorKind::NotFound => unborn.push(id),
                Err(e) => tracing::error!("the block device of device {id} answers with errors from here on: {e}"),
            }
        }
        self.exporter.resume().map_err(|e| e.doing("serve the devices of a predecessor"))?;
        for id in unborn {
            match self.exporter.detach(id) {
                Ok(true) => tracing::info!("took away the block device of device {id}, which was being made"),
                Ok(false) => tracing::warn!("the block device of device {id}, which is no device, is open"),
                Err(e) => tracing::error!("the block device of device {id}, which is no device, stays: {e}"),
            }
        }
        Ok(())
    }

    fn adopt(&self, orphan: &Orphan) -> Result<()> {
        let id = orphan.id;
        let doing = |e: Error| e.doing(format_args!("adopt device {id}"));
        let Some(details) = self.backing.metadata()?.find_device(id).map_err(doing)? else {
            return Err(Error::new(ErrorKind::NotFound, format!("adopt device {id}: there is no such device")));
        };
        let volume = ThinVolume::new(Arc::clone(&self.backing), id, details, orphan.size, orphan.access);
        let volume = Arc::new(volume.map_err(doing)?);
        self.exporter.adopt(id, Arc::clone(&volume) as _).map_err(doing)?;
        lock(&self.active).insert(id, Active { volume, leaving: orphan.leaving });
        Ok(())
    }

    /// Changes how long a change that nobody flushes may wait for its commit: a second, unless this says otherwise.
    pub fn set_commit_period(&self, period: Duration) {
        self.backing.commits.set_period(period);
    }

    /// Memory that is taken by what is known of the metadata. Errors: `Io` once a thread has panicked in the middle of a
    /// change.
    pub fn metadata_memory(&self) -> Result<MetadataMemory> {
        let (nodes, uncommitted) = self.backing.metadata()?.cached();
        Ok(MetadataMemory { mappings: self.backing.mappings.held(), nodes, uncommitted })
    }

    /// Returns when the blocks that durable commits freed are emptied and can be handed out again.
    pub fn settle(&self) {
        self.backing.reclaim.wait_idle();
    }

    /// Detaches all devices, commits, and ends the pool's threads. Errors: `InUse` if a device is open
    /// (nothing was changed), `Io` if the last commit failed.
    pub fn close(&self) -> Result<()> {
        self.exporter.shutdown()?;
        let ids: Vec<DeviceId> = std::mem::take(&mut *lock(&self.active)).into_keys().collect();
        let settled = ids.into_iter().try_for_each(|id| self.backing.settle(id));
        let flushed = settled.and(self.backing.flush());
        self.stop();
        flushed
    }

    /// Ends the committer before the reclaimer: its last commit may free blocks.
    fn stop(&self) {
        let Some(Threads { committer, reclaimer, trimmer, makers }) = lock(&self.threads).take() else { return };
        self.backing.pulse.close();
        if let Some(early) = &self.backing.early {
            early.stop();
        }
        for maker in makers {
            if maker.join().is_err() {
                tracing::error!("a thread of the early writes panicked");
            }
        }
        if trimmer.is_some_and(|trimmer| trimmer.join().is_err()) {
            tracing::error!("the thread that trims the pool panicked");
        }
        self.backing.commits.stop();
        let committed = committer.join();
        self.backing.reclaim.stop();
        if committed.and(reclaimer.join()).is_err() {
            tracing::error!("a thread of the pool panicked");
            return;
        }
        self.backing.give_back_ahead();
        self.remove_log();
    }

    /// After the last commit: takes the intent log away. It stays as long as a device is shown, which somebody is
    /// about to take over, and if the pool was not well; the early writes go and stay with it.
    fn remove_log(&self) {
        let done = self.backing.early.as_ref().is_none_or(EarlyWrites::is_done);
        if !done || self.backing.mode.check_changes().is_err() || self.exporter.count() > 0 {
            return;
        }
        if let Err(e) =
            self.backing.metadata().and_then(|mut metadata| metadata.remove_log(&*self.backing.metadata_device))
        {
            tracing::warn!("an empty intent log stays: {e}");
        }
        if let Some(Err(e)) = self.backing.early.as_ref().map(EarlyWrites::remove) {
            tracing::warn!("an empty file of early writes stays: {e}");
        }
    }

    /// The device is shown from here on.
    pub(super) fn enter(&self, id: DeviceId, volume: Arc<ThinVolume>) {
        lock(&self.active).insert(id, Active { volume, leaving: false });
    }

    /// The active device, unless its last opener has let it go.
    pub(super) fn find_active(&self, id: DeviceId) -> Option<(Arc<ThinVolume>, bool)> {
        let found = lock(&self.active).get(&id).map(|active| (Arc::clone(&active.volume), active.leaving))?;
        if found.1 && self.exporter.path(id).is_none() {
            lock(&self.active).remove(&id);
            return None;
        }
        Some(found)
    }

    /// Takes the block device away. False: its last opener will.
    fn detach(&self, id: DeviceId) -> Result<bool> {
        let gone = self.exporter.detach(id)?;
        let mut active = lock(&self.active);
        if gone {
            active.remove(&id);
        } else if let Some(active) = active.get_mut(&id) {
            active.leaving = true;
        }
        Ok(gone)
    }

    /// The state, for one who has counted the active devices.
    fn status_with(&self, active_devices: u64) -> Result<PoolStatus> {
        self.backing.look_below();
        let (waiting_writes, waiting) = self.exporter.waiting();
        let below = self.backing.data.room_below();
        let metadata = self.backing.metadata_numbers();
        let data = metadata.data_space();
        let (blocks, reserve) = metadata.metadata_space();
        let data_bytes = |blocks| ByteCount(self.backing.data_offset(blocks));
        let used = self.backing.data_offset(data.used);
        let metadata_bytes = |blocks: u64| ByteCount(blocks * METADATA_BLOCK_SIZE as u64);
        Ok(PoolStatus {
            identity: metadata.identity(),
            engine: "embedded".to_owned(),
            mode: self.backing.mode.now(),
            reason: self.backing.mode.reason(),
            block_size: self.backing.block_size,
            data: Space { used: data_bytes(data.used), total: data_bytes(data.total) },
            metadata: Space { used: metadata_bytes(blocks.used), total: metadata_bytes(blocks.total) },
            metadata_reserve: metadata_bytes(reserve),
            transaction_id: metadata.transaction_id(),
            time: metadata.time(),
            devices: metadata.device_count()?,
            active_devices,
            metadata_snapshot: metadata.held_root().is_some(),
            room: Room {
                below: below.map(|below| Space {
                    used: ByteCount(below.total.saturating_sub(below.free)),
                    total: ByteCount(below.total),
                }),
                full_below: self.backing.is_full_below(),
                unpunched: ByteCount(below.map_or(0, |below| below.allocated).saturating_sub(used)),
                // Neither used nor to be had: freed, or held back for a moment by a write or a trim.
                returning: data_bytes(data.total.saturating_sub(data.used + data.available)),
                waiting_writes,
                waiting,
            },
        })
    }
}

impl ThinPool for EmbeddedPool {
    fn create_thin(&self, id: DeviceId) -> Result<()> {
        let doing = |e: Error| e.doing(format_args!("create device {id}"));
        // Until it is durable: a change of a device that the last commit does not know could not be kept.
        let mut claim = self.claims.claim(&[id]);
        self.backing.change(|metadata| metadata.create_thin(id)).map_err(doing)?;
        if Mutation::GiveDeviceEarly.is_on() {
            claim.give_back(id);
        }
        self.backing.commit_changes().map_err(doing)
    }

    fn create_snap(&self, id: DeviceId, origin: DeviceId) -> Result<()> {
        let doing = |e: Error| e.doing(format_args!("create snapshot {id} of {origin}"));
        let mut claim = self.claims.claim(&[id, origin]);
        let create = || {
            self.backing.change(|metadata| {
                metadata.create_snap(id, origin)?;
                Ok(metadata.time())
            })
        };
        match self.find_active(origin) {
            Some((volume, _)) => volume.quiesced(create),
            None => self.backing.settle(origin).and_then(|()| create()).map(|_| ()),
        }
        .map_err(doing)?;
        // Snapshots of one origin that wait for the same commit need not wait for each other; the new device is
        // nobody's until it is durable, as in `create_thin`.
        claim.give_back(origin);
        self.backing.commit_changes().map_err(doing)
    }

    fn delete(&self, id: DeviceId) -> Result<()> {
        let doing = |e: Error| e.doing(format_args!("delete device {id}"));
        let _claim = self.claims.claim(&[id]);
        self.backing.mode.check_changes().map_err(doing)?;
        if self.find_active(id).is_some() && (self.exporter.is_used(id) || !self.detach(id).map_err(doing)?) {
            return Err(Error::new(ErrorKind::InUse, format!("delete device {id}: somebody has it open")));
        }
        // One that failed does not hinder: it goes with the device, once that is durable.
        drop(self.backing.settle(id));
        let mut leaves = DELETE_LEAVES;
        loop {
            for _ in 0..DELETE_STEPS_PER_COMMIT {
                match self.backing.change(|metadata| metadata.delete_step(id, leaves)) {
                    Ok(true) => {
                        self.backing.commit_changes().map_err(doing)?;
                        self.backing.early.iter().for_each(|early| early.forget(id));
                        return Ok(());
                    }
                    Ok(false) => {}
                    // Fewer leaves at once need fewer blocks, and each step gives some back.
                    Err(e) if e.kind() == ErrorKind::OutOfMetadataSpace && leaves > 1 => leaves /= 2,
                    Err(e) => return Err(doing(e)),
                }
            }
            self.backing.commit_changes().map_err(doing)?;
        }
    }

    fn activate(&self, id: DeviceId, size: ByteCount, access: Access) -> Result<PathBuf> {
        let doing = |e: Error| e.doing(format_args!("activate device {id}"));
        let in_use = |why: &str| Error::new(ErrorKind::InUse, format!("activate device {id}: {why}"));
        let _claim = self.claims.claim(&[id]);
        if let Some((volume, leaving)) = self.find_active(id) {
            if leaving {
                return Err(in_use("it was deactivated, and its last user has not closed it yet"));
            }
            if volume.access != access {
                return Err(in_use(match volume.access {
                    Access::ReadOnly => "it is active for reading",
                    Access::ReadWrite => "it is active for writing",
                }));
            }
            if size.0 > volume.size() {
                let before = volume.size();
                volume.grow_to(size).map_err(doing)?;
                // Refused, it must not pass for grown at the next try.
                self.exporter.resize(id, size).inspect_err(|_| volume.grow_back(before)).map_err(doing)?;
            }
            return self.exporter.path(id).ok_or_else(|| in_use("its block device has gone; deactivate it first"));
        }
        // What a life before this one of the device was acknowledged stands in its blocks, or is known as broken.
        drop(self.backing.settle(id));
        let details = self.backing.metadata()?.find_device(id).map_err(doing)?;
        let Some(details) = details else {
            return Err(Error::new(ErrorKind::NotFound, format!("activate device {id}: there is no such device")));
        };
        let volume = Arc::new(ThinVolume::new(Arc::clone(&self.backing), id, details, size, access).map_err(doing)?);
        let shown = Arc::clone(&volume);
        let path = self.exporter.attach(id, shown, size, access).map_err(doing)?;
        self.enter(id, volume);
        Ok(path)
    }

    fn create_active(
        &self,
        id: DeviceId,
        origin: DeviceId,
        size: ByteCount,
        ahead: ByteCount,
    ) -> Result<Option<PathBuf>> {
        create::create_active(self, id, origin, size, ahead)
            .map(Some)
            .map_err(|e| e.doing(format_args!("create snapshot {id} of {origin} and activate it")))
    }

    fn deactivate(&self, id: DeviceId) -> Result<bool> {
        let doing = |e: Error| e.doing(format_args!("deactivate device {id}"));
        let _claim = self.claims.claim(&[id]);
        if self.find_active(id).is_none() {
            return Ok(true);
        }
        let gone = self.detach(id).map_err(doing)?;
        // After the device is gone, so that what its closing wrote is covered too.
        self.backing.settle(id).and_then(|()| self.backing.flush()).map_err(doing)?;
        Ok(gone)
    }

    fn active_path(&self, id: DeviceId) -> Result<Option<PathBuf>> {
        Ok(self.find_active(id).and_then(|_| self.exporter.path(id)))
    }

    fn flush(&self, id: DeviceId) -> Result<()> {
        match self.find_active(id) {
            Some((volume, _)) => volume.flush(),
            None => Ok(()),
        }
    }

    fn usage(&self, id: DeviceId) -> Result<DeviceUsage> {
        self.backing.settle(id)?;
        self.backing.metadata()?.usage(id)
    }

    fn written(&self, id: DeviceId) -> Result<ByteCount> {
        self.backing.settle(id)?;
        match self.find_active(id) {
            Some((volume, _)) => volume.own_blocks().map(|blocks| ByteCount(self.backing.data_offset(blocks))),
            None => self.usage(id).map(|usage| usage.written),
        }
    }

    fn delta(&self, from: DeviceId, to: DeviceId) -> Result<Vec<ChangedRange>> {
        [from, to].into_iter().try_for_each(|id| self.backing.settle(id))?;
        self.backing.metadata()?.delta(from, to)
    }

    fn devices(&self) -> Result<Vec<DeviceId>> {
        Ok(self.backing.metadata()?.devices()?.into_iter().map(|(id, _)| id).collect())
    }

    fn status(&self) -> Result<PoolStatus> {
        self.status_with(self.exporter.count() as u64)
    }

    fn set_transaction_id(&self, from: u64, to: u64) -> Result<()> {
        self.backing.change(|metadata| metadata.set_transaction_id(from, to))?;
        self.backing.flush()
    }

    fn grow(&self, data: Option<ByteCount>, metadata: Option<ByteCount>) -> Result<()> {
        let _one = lock(&self.growing);
        self.backing.mode.check_changes().map_err(|e| e.doing("grow the pool"))?;
        // Metadata first: a larger data space needs more of it.
        metadata.map_or(Ok(()), |size| grow::grow_metadata(&self.backing, size))?;
        data.map_or(Ok(()), |size| grow::grow_data(&self.backing, size))?;
        self.backing.flush()?;
        self.backing.room_below();
        self.backing.leave_out_of_space();
        self.backing.pulse.room_changed();
        Ok(())
    }

    fn trim(&self) -> Result<ByteCount> {
        trim::trim(&self.backing)
    }

    fn set_no_space(&self, policy: NoSpace) -> Result<()> {
        self.exporter.set_no_space(policy);
        Ok(())
    }

    fn wait_status(&self, steady: &Steady, timeout: Duration) -> Result<PoolStatus> {
        let deadline = Instant::now() + timeout;
        let mut watch = self.backing.pulse.watch();
        loop {
            // At every commit: the devices are counted, which asks the whole system who uses them, for news only.
            let status = self.status_with(0)?;
            if !steady.holds(&status) {
                return self.status();
            }
            // New blocks take from what is available and from the room below alike.
            let spare = status.data_room().0.saturating_sub(steady.data_room.0.0) / self.backing.block_size.bytes();
            let available = self.backing.metadata()?.data_space().available;
            watch.below(available.saturating_sub(spare));
            if !watch.next(deadline) {
                return self.status();
            }
        }
    }

    fn interrupt_waits(&self) -> Result<()> {
        self.backing.pulse.interrupt();
        Ok(())
    }

    fn begin_view(&self) -> Result<MetadataView> {
        view::begin(&self.backing).map_err(|e| e.doing("view the metadata"))
    }

    fn end_view(&self, number: u64) -> Result<bool> {
        Ok(self.backing.metadata()?.end_view(number))
    }
}

impl Drop for EmbeddedPool {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The early writes of a pool with an intent log, and what a dead process had acknowledged. Where they cannot have their
/// room, writes wait for their copies.
fn open_early(options: &EmbeddedOptions, identity: [u8; 16]) -> Result<(Option<EarlyWrites>, Vec<EarlyWrite>)> {
    let Some(log) = &options.intent_log else { return Ok((None, Vec::new())) };
    match EarlyWrites::open(log, identity, boot_id()?) {
        Ok((early, acknowledged)) => Ok((Some(early), acknowledged)),
        Err(e) if e.kind() == ErrorKind::OutOfDataSpace => {
            tracing::warn!("first writes to shared blocks wait for the copy: {e}");
            Ok((None, Vec::new()))
        }
        Err(e) => Err(e),
    }
}

fn start(name: &str, backing: &Arc<Backing>, run: fn(&Arc<Backing>)) -> Result<JoinHandle<()>> {
    let backing = Arc::clone(backing);
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || run(&backing))
        .map_err(|e| Error::io(format!("start the thread {name}"), e))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The values are changed in one step each: a panic elsewhere leaves them whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
