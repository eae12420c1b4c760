//! A machine that runs: engine, store and snapshotter on recorded disks.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use thinsnap::config::{Profile, SnapshotterConfig};
use thinsnap::snapshot::{FsType, Name, Space};
use thinsnap::snapshotter::{Parts, Snapshotter};
use thinsnap::store::Store;
use thinsnap_pool::{
    BlockDevice, BlockSize, ByteCount, DiskImage, EmbeddedOptions, EmbeddedPool, FormatOptions, MemoryDevice, Metadata,
    OpenMode, PowerSupply, ThinPool,
};

use crate::direct_exporter::DirectExporter;
use crate::disks::Disks;
use crate::files::Files;
use crate::model::{Model, SharedModel, lock};
use crate::tokens::{BLOCK, FOREIGN, index};
use crate::watched::WatchedPool;

/// Size of a snapshot's file system.
pub(crate) const SNAPSHOT_SIZE: ByteCount = ByteCount(16 << 20);
/// No commit comes by the clock, so that a story is the same however fast it is told.
const NO_CLOCK: Duration = Duration::from_secs(100_000);

pub(crate) fn space() -> Space {
    Space::new("s").unwrap()
}

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// Disks of a new machine: a pool of `data_blocks`, and a store without a byte.
pub(crate) fn new_disks(data_blocks: u64) -> Vec<DiskImage> {
    let metadata = MemoryDevice::new(2 << 20);
    let options =
        FormatOptions { block_size: BlockSize::DEFAULT, data_blocks, metadata_blocks: 512, identity: [7; 16] };
    Metadata::format(&metadata, &options).unwrap();
    let data = vec![FOREIGN; index(data_blocks * BLOCK)];
    vec![data.into(), metadata.to_bytes().into(), DiskImage::default()]
}

/// An engine that remembers next to nothing of its metadata, so that everything is read from the disk again and again.
pub(crate) const TINY_CACHE: ByteCount = ByteCount(64 << 10);

/// Opens the engine. Errors are findings.
pub(crate) fn open_engine(
    disks: &Disks,
    exporter: &Arc<DirectExporter>,
    metadata_cache: ByteCount,
) -> Result<Arc<EmbeddedPool>, String> {
    let device: Arc<dyn BlockDevice> = disks.metadata.clone();
    let metadata = Metadata::open(device.clone(), OpenMode::ReadWrite).map_err(|e| e.to_string())?;
    let options = EmbeddedOptions { metadata_cache, ..EmbeddedOptions::default() };
    let engine = EmbeddedPool::with_options(metadata, device, disks.data.clone(), exporter.clone() as _, &options)
        .map_err(|e| e.to_string())?;
    engine.set_commit_period(NO_CLOCK);
    Ok(Arc::new(engine))
}

/// The store and the snapshotter over it.
pub(crate) struct Service {
    pub(crate) store: Store,
    pub(crate) snapshotter: Arc<Snapshotter>,
}

impl Service {
    pub(crate) fn open(disks: &Disks, pool: Arc<dyn ThinPool>, files: Arc<Files>) -> Result<Self, String> {
        let store = Store::with_backend(disks.for_redb()).map_err(|e| e.to_string())?;
        let config = SnapshotterConfig {
            profiles: BTreeMap::new(),
            default_profile: Profile { fs: FsType::Ext4, size: SNAPSHOT_SIZE },
            data_floor: thinsnap::config::Share::Bytes(ByteCount(0)),
            metadata_floor: thinsnap::config::Share::Bytes(ByteCount(0)),
            work_dir: PathBuf::from("/nonexistent"),
        };
        let parts = Parts { filesystems: files, reclaim_threads: 0 };
        let snapshotter = Snapshotter::open_with(pool, store.clone(), config, parts).map_err(|e| e.to_string())?;
        Ok(Self { store, snapshotter })
    }
}

/// A machine on which a story is told.
pub(crate) struct Machine {
    pub(crate) disks: Disks,
    exporter: Arc<DirectExporter>,
    metadata_cache: ByteCount,
    pub(crate) pool: Arc<WatchedPool>,
    pub(crate) files: Arc<Files>,
    pub(crate) model: SharedModel,
    pub(crate) service: Option<Service>,
}

impl Machine {
    /// A new machine whose store, if it has one, was made before the recording.
    pub(crate) fn new(data_blocks: u64, with_service: bool, metadata_cache: ByteCount) -> Self {
        let mut images = new_disks(data_blocks);
        if with_service {
            let making = Disks::new(images.clone());
            drop(Store::with_backend(making.for_redb()).unwrap());
            images = making.supply.now();
        }
        let disks = Disks::new(images);
        let exporter = DirectExporter::new();
        let engine = open_engine(&disks, &exporter, metadata_cache).unwrap();
        let model: SharedModel = Arc::new(Mutex::new(Model::new(disks.supply.clone(), data_blocks)));
        let files = Arc::new(Files::new(exporter.clone(), Some(model.clone())));
        let pool = Arc::new(WatchedPool { engine, model: model.clone(), files: files.clone() });
        let service = with_service.then(|| Service::open(&disks, pool.clone(), files.clone()).unwrap());
        Self { disks, exporter, metadata_cache, pool, files, model, service }
    }

    /// Stops in order and starts again.
    pub(crate) fn restart(&mut self) -> Result<(), String> {
        self.files.unmount_all();
        let with_service = self.service.take().is_some();
        let (done, span) = Model::timed(&self.disks.supply.clone(), true, || self.pool.engine.close());
        lock(&self.model).flushed(span);
        done.map_err(|e| e.to_string())?;
        let engine = open_engine(&self.disks, &self.exporter, self.metadata_cache)?;
        self.pool = Arc::new(WatchedPool { engine, model: self.model.clone(), files: self.files.clone() });
        if with_service {
            self.service = Some(Service::open(&self.disks, self.pool.clone(), self.files.clone())?);
        }
        Ok(())
    }

    pub(crate) fn supply(&self) -> &Arc<PowerSupply> {
        &self.disks.supply
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.files.unmount_all();
    }
}
