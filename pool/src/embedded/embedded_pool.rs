//! The embedded engine as a [`ThinPool`]: one verb a function, each durable when it returns.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::claims::Claims;
use crate::device::BlockDevice;
use crate::embedded::backing::Backing;
use crate::embedded::life::Threads;
use crate::embedded::options::EmbeddedOptions;
use crate::embedded::volume::ThinVolume;
use crate::embedded::{create, grow, trim, view};
use crate::error::{Error, ErrorKind, Result};
use crate::export::{Exporter, NoSpace};
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
pub(super) struct Active {
    pub(super) volume: Arc<ThinVolume>,
    /// It was deactivated and waits for its last opener.
    pub(super) leaving: bool,
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
    pub(super) active: Mutex<BTreeMap<DeviceId, Active>>,
    pub(super) growing: Mutex<()>,
    pub(super) threads: Mutex<Option<Threads>>,
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
        self.backing.finish(id);
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
        // What was acknowledged before it was deactivated stands in its blocks then, or is known as broken.
        self.backing.finish(id);
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
        self.backing.finish(id);
        self.backing.metadata()?.usage(id)
    }

    fn written(&self, id: DeviceId) -> Result<ByteCount> {
        self.backing.finish(id);
        match self.find_active(id) {
            Some((volume, _)) => volume.own_blocks().map(|blocks| ByteCount(self.backing.data_offset(blocks))),
            None => self.usage(id).map(|usage| usage.written),
        }
    }

    fn delta(&self, from: DeviceId, to: DeviceId) -> Result<Vec<ChangedRange>> {
        [from, to].into_iter().for_each(|id| self.backing.finish(id));
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

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The values are changed in one step each: a panic elsewhere leaves them whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
