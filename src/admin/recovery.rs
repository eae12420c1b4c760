//! Restore, repair and rescue of a pool that nobody serves: what stands in `ROOT/pool` is locked, the new metadata is
//! built beside it, audited, made to agree with the records, and only then takes its place.
//!
//! Killed at any point: until the rename (on a disk: until the note) the old metadata is in its place and
//! untouched; after it, the new. What is left over is removed by the next try.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use thinsnap_pool::{
    BlockDevice, BlockSize, ByteCount, DeviceId, DeviceOutcome, FileDevice, Hints, IntentLogState, Needed, PoolPaths,
    RepairReport, Replacement, Rescued, RestoreOptions, Restored, Sink, audit, clear_needs_check, finish_replacement,
    holds_snapshot, identity_of, intent_log_state, mend, reconcile, replace_metadata, rescue, restore,
};

use crate::admin::backend::lock_root;
use crate::admin::backups::{Backups, Reason};
use crate::admin::metadata::MetadataReader;
use crate::admin::pool_files::{note_of, pool_paths_of};
use crate::admin::store_check::all_snapshots;
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::migrate::refuse_unfinished;
use crate::snapshot::{Name, Space};
use crate::store::{Records, Store};

/// A pool that this process has for itself.
pub struct LockedPool {
    root: PathBuf,
    paths: PoolPaths,
    backups: Backups,
    /// `None`: the records cannot be opened.
    store: Option<Store>,
    metadata: Arc<FileDevice>,
    intent_log: PathBuf,
}

/// A device that is not what it was, and whose it is.
#[derive(Debug, Clone, Serialize)]
pub struct AffectedDevice {
    /// Its snapshots, as SPACE/NAME.
    pub snapshots: Vec<String>,
    /// What became of it.
    #[serde(flatten)]
    pub outcome: DeviceOutcome,
}

/// What a repair did, or would do.
#[derive(Debug, Clone, Serialize)]
pub struct Mended {
    /// False: it was only tried.
    pub applied: bool,
    /// True: the metadata was sound before.
    pub was_sound: bool,
    /// What was done about the metadata.
    pub report: Option<RepairReport>,
    /// Devices that are not what they were, with their snapshots.
    pub affected: Vec<AffectedDevice>,
    /// Devices that the records need and that were made anew, empty, with their snapshots.
    pub emptied: Vec<String>,
    /// Where the old metadata is.
    pub kept: Option<PathBuf>,
    /// The backup that helped.
    pub backup: Option<String>,
}

/// What a restore did.
#[derive(Debug, Clone, Serialize)]
pub struct PutBack {
    /// Thin devices.
    pub devices: u64,
    /// Devices that the records need and that were made anew, empty, with their snapshots.
    pub emptied: Vec<String>,
    /// Where the old metadata is.
    pub kept: PathBuf,
}

/// Which device is to be rescued, and how.
#[derive(Debug, Clone)]
pub struct RescueRequest {
    /// A device's number, or a snapshot's SPACE/NAME.
    pub device: String,
    /// The file to make.
    pub to: PathBuf,
    /// Read the mappings of this backup instead of the pool's.
    pub backup: Option<String>,
    /// How large the device is, if no record tells.
    pub size: Option<ByteCount>,
    /// Size of a data block, if nothing else tells.
    pub block_size: Option<BlockSize>,
}

/// What was rescued.
#[derive(Debug, Clone, Serialize)]
pub struct RescueResult {
    /// The device's number.
    pub device: u32,
    /// What was read, and what is missing.
    #[serde(flatten)]
    pub rescued: Rescued,
}

impl LockedPool {
    /// Takes the pool of a configuration for this process alone. Errors: `InUse` if a service or a pool-host has
    /// it, `NotFound`.
    pub fn open(config: &Config) -> Result<Self> {
        let paths = pool_paths_of(&config.root);
        let store_file = config.root.join("store.redb");
        let store = if store_file.exists() {
            match lock_root(&config.root) {
                Ok(store) => Some(store),
                Err(error) if error.kind() == ErrorKind::InUse => return Err(in_use(error)),
                Err(error) => {
                    tracing::warn!(%error, "the records cannot be opened: going on without them");
                    None
                }
            }
        } else {
            None
        };
        store.as_ref().map_or(Ok(()), |store| refuse_unfinished(&store.read()?))?;
        finish_replacement(&note_of(&config.root))?;
        let metadata = FileDevice::open(&paths.metadata).map_err(|error| match error.kind() {
            thinsnap_pool::ErrorKind::InUse => in_use(error.into()),
            _ => error.into(),
        })?;
        Ok(Self {
            root: config.root.clone(),
            paths,
            backups: Backups::new(&config.root, &config.backup),
            store,
            metadata: Arc::new(metadata),
            intent_log: config.run_dir.join("intent.log"),
        })
    }

    /// Says what a repair would do: the same work, on a file without a name.
    pub fn try_repair(&self, block_size: Option<BlockSize>) -> Result<Mended> {
        let mut mended = self.begin()?;
        if mended.was_sound {
            return Ok(mended);
        }
        let scratch = self.scratch("trying")?;
        let (report, backup) = self.mend_into(&*scratch, block_size)?;
        self.tell(&mut mended, report, backup, &scratch)?;
        Ok(mended)
    }

    /// Repairs. Errors: `Corrupt` if nothing can be saved, `ReadOnly` while acknowledged writes wait in the intent
    /// log, `NoSpace`.
    pub fn repair(&self, block_size: Option<BlockSize>) -> Result<Mended> {
        let mut mended = self.begin()?;
        mended.applied = true;
        // The flag alone may go while the log matters: the log builds on the state, not on its flags.
        if mended.was_sound {
            let cleared = clear_needs_check(&*self.metadata)?;
            let report = RepairReport { needs_check_cleared: cleared, ..RepairReport::default() };
            mended.report = cleared.then_some(report);
            return Ok(mended);
        }
        self.check_intent_log("repair the pool")?;
        let new = self.new_file(self.metadata.size())?;
        let (report, backup) = self.mend_into(&*new, block_size)?;
        self.tell(&mut mended, report, backup, &new)?;
        mended.kept = Some(self.put(new, "damaged")?);
        Ok(mended)
    }

    /// Puts the metadata of thin_dump's XML in the pool's place. Errors: `InvalidArgument` names the place in the
    /// file, `ReadOnly` while acknowledged writes wait in the intent log.
    pub fn restore_dump(&self, input: &mut dyn BufRead) -> Result<PutBack> {
        self.check_intent_log("restore the metadata")?;
        let identity = self.identity()?;
        let new = self.new_file(self.metadata.size())?;
        restore(input, &*new, &RestoreOptions { identity })?;
        self.put_back(new)
    }

    /// Puts the metadata of a backup in the pool's place. Errors: as [`LockedPool::restore_dump`], `NotFound`.
    pub fn restore_backup(&self, name: &str) -> Result<PutBack> {
        self.check_intent_log("restore the metadata")?;
        let path = self.new_path()?;
        let new = Arc::new(self.backups.unpack(name, &path)?);
        let known = self.identity()?;
        if identity_of(&*new).is_some_and(|found| found != known && known != [0; 16]) {
            return Err(Error::new(ErrorKind::InvalidArgument, format!("{name} is a backup of another pool"))
                .advise("choose one of `thinsnap pool backup ls`"));
        }
        if new.size() < self.metadata.size() {
            new.grow(self.metadata.size())?;
        }
        self.put_back(new)
    }

    /// Reads one device into a new file. Nothing of the pool is changed. Errors: `NotFound`, `AlreadyExists` (the
    /// file), `Corrupt`.
    pub fn rescue(&self, request: &RescueRequest) -> Result<RescueResult> {
        let (id, size) = self.find(&request.device)?;
        let size = request.size.or(size);
        let scratch = self.scratch("rescue")?;
        let data = FileDevice::open_read_only(&self.paths.data)?;
        let newest = self.backups.newest()?.map(|(_, device)| device);
        let chosen = match &request.backup {
            Some(name) => {
                let path = self.root.join("backup").join(format!("rescue-{}.young", std::process::id()));
                let device = self.backups.unpack(name, &path)?;
                std::fs::remove_file(&path).map_err(|error| Error::io(format!("remove {}", path.display()), error))?;
                Some(device)
            }
            None => None,
        };
        let source: &dyn BlockDevice = match &chosen {
            Some(device) => device,
            None => &*self.metadata,
        };
        let hints = Hints {
            backup: newest.as_ref().map(|device| device as &dyn BlockDevice),
            block_size: request.block_size,
            data_size: Some(data.size()),
            identity: self.known_identity()?,
        };
        let mut file = SparseFile::create(&request.to)?;
        let rescued = rescue(source, scratch, &data, id, size, &hints, &mut file)?;
        file.finish(rescued.size.0)?;
        Ok(RescueResult { device: id.get(), rescued })
    }

    fn begin(&self) -> Result<Mended> {
        let was_sound = match audit(&*self.metadata, &|_| ()) {
            // A held snapshot is no damage, and goes only by laying the metadata out anew.
            Ok(report) => report.is_sound() && !report.incomplete && !holds_snapshot(&*self.metadata),
            // Block 0 is empty: perhaps all that is lost is the superblock.
            Err(error) if error.kind() == thinsnap_pool::ErrorKind::NotFound => false,
            Err(error) => return Err(error.into()),
        };
        Ok(Mended {
            applied: false,
            was_sound,
            report: None,
            affected: Vec::new(),
            emptied: Vec::new(),
            kept: None,
            backup: None,
        })
    }

    fn mend_into(
        &self,
        target: &dyn BlockDevice,
        block_size: Option<BlockSize>,
    ) -> Result<(RepairReport, Option<String>)> {
        let (name, backup) = self.backups.newest()?.unzip();
        let data_size = FileDevice::open_read_only(&self.paths.data).map(|data| data.size()).ok();
        let hints = Hints {
            backup: backup.as_ref().map(|device| device as &dyn BlockDevice),
            block_size,
            data_size,
            identity: self.known_identity()?,
        };
        Ok((mend(&*self.metadata, target, &hints)?, name))
    }

    /// Completes what a repair says with what the records know.
    fn tell(
        &self,
        mended: &mut Mended,
        report: RepairReport,
        backup: Option<String>,
        new: &Arc<FileDevice>,
    ) -> Result<()> {
        let owners = self.owners()?;
        let whose = |id: u64| {
            u32::try_from(id)
                .ok()
                .and_then(|id| DeviceId::new(id).ok())
                .and_then(|id| owners.get(&id).cloned())
                .unwrap_or_default()
        };
        mended.affected = report
            .devices
            .iter()
            .map(|outcome| AffectedDevice { snapshots: whose(outcome.id), outcome: outcome.clone() })
            .collect();
        mended.emptied = self.agree(new)?;
        mended.report = Some(report);
        mended.backup = backup;
        Ok(())
    }

    /// Makes new metadata agree with the records; returns what had to be made anew, by its names.
    fn agree(&self, new: &Arc<FileDevice>) -> Result<Vec<String>> {
        let Some(store) = &self.store else { return Ok(Vec::new()) };
        let reader = store.read()?;
        let needed = Needed { devices: reader.owned_devices()?, transaction_id: reader.transaction_id()? };
        let owners = self.owners()?;
        let device: Arc<dyn BlockDevice> = Arc::clone(new) as _;
        let made = reconcile(&device, &needed)?;
        let names = |id: &DeviceId| match owners.get(id) {
            Some(names) => format!("device {id} ({})", names.join(", ")),
            None => format!("device {id} (a base device)"),
        };
        Ok(made.iter().map(names).collect())
    }

    fn put_back(&self, new: Arc<FileDevice>) -> Result<PutBack> {
        let emptied = self.agree(&new)?;
        let report = audit(&*new, &|_| ())?;
        if !report.is_sound() || report.incomplete {
            let first = report.findings.first().map(ToString::to_string).unwrap_or_default();
            return Err(Error::new(ErrorKind::Corrupt, format!("what would be put back is not sound: {first}")));
        }
        let devices = report.devices;
        let kept = self.put(new, "replaced")?;
        Ok(PutBack { devices, emptied, kept })
    }

    /// Puts the new metadata in its place; returns where the old is.
    fn put(&self, new: Arc<FileDevice>, why: &str) -> Result<PathBuf> {
        // What was sound is also worth a place in the ring.
        let old = MetadataReader::Bare(Arc::clone(&self.metadata));
        if let Err(error) = self.backups.take(&old, Reason::Before("the metadata is replaced")) {
            tracing::info!(%error, "the old metadata is kept as it is, and not in the ring");
        }
        new.sync_all()?;
        let path = new.path().to_owned();
        drop(new);
        let stamp = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%S%3fZ");
        let kept = self.root.join("pool").join(format!("metadata.{why}-{stamp}"));
        let replacement = Replacement {
            metadata: self.paths.metadata.clone(),
            new: path,
            kept: kept.clone(),
            note: note_of(&self.root),
        };
        replace_metadata(&replacement, &self.metadata)?;
        Ok(kept)
    }

    fn new_path(&self) -> Result<PathBuf> {
        let path = self.root.join("pool").join("metadata.new");
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io(format!("remove {}", path.display()), error))
            }
            _ => Ok(path),
        }
    }

    /// A file for new metadata beside the old, all its room taken.
    fn new_file(&self, size: u64) -> Result<Arc<FileDevice>> {
        let path = self.new_path()?;
        let device = FileDevice::create(&path, size)?;
        device.preallocate(0).inspect_err(|_| drop(std::fs::remove_file(&path)))?;
        Ok(Arc::new(device))
    }

    /// A file without a name for what is only tried.
    fn scratch(&self, name: &str) -> Result<Arc<FileDevice>> {
        let path = self.root.join("pool").join(format!("metadata.{name}-{}", std::process::id()));
        let device = FileDevice::create(&path, self.metadata.size())?;
        std::fs::remove_file(&path).map_err(|error| Error::io(format!("remove {}", path.display()), error))?;
        Ok(Arc::new(device))
    }

    fn known_identity(&self) -> Result<Option<[u8; 16]>> {
        match &self.store {
            Some(store) => store.read()?.identity(),
            None => Ok(None),
        }
    }

    fn identity(&self) -> Result<[u8; 16]> {
        Ok(self.known_identity()?.or_else(|| identity_of(&*self.metadata)).unwrap_or_default())
    }

    /// Errors with `ReadOnly` while changes that were acknowledged are in no commit: to replace the metadata now
    /// would lose them for good.
    fn check_intent_log(&self, doing: &str) -> Result<()> {
        let refuse = |why: String| {
            Err(Error::new(ErrorKind::ReadOnly, format!("{doing}: {why}")).advise(
                "start the service once, so that they are committed; if it cannot start, \
                 `thinsnap pool discard-intent-log` gives them up",
            ))
        };
        match intent_log_state(&self.intent_log, self.identity()?)? {
            IntentLogState::Pending { records } => {
                refuse(format!("{records} acknowledged changes wait in {}", self.intent_log.display()))
            }
            IntentLogState::Doubtful { why } => refuse(format!("{}: {why}", self.intent_log.display())),
            _ => Ok(()),
        }
    }

    /// Snapshots by device, as SPACE/NAME.
    fn owners(&self) -> Result<BTreeMap<DeviceId, Vec<String>>> {
        let mut owners: BTreeMap<DeviceId, Vec<String>> = BTreeMap::new();
        if let Some(store) = &self.store {
            for (space, snapshot) in all_snapshots(&store.read()?)? {
                owners.entry(snapshot.device).or_default().push(format!("{space}/{}", snapshot.name));
            }
        }
        Ok(owners)
    }

    /// A device by number, or by its snapshot; the record tells its size.
    fn find(&self, device: &str) -> Result<(DeviceId, Option<ByteCount>)> {
        let number = device.parse::<u32>().ok();
        let Some(store) = &self.store else {
            let number = number.ok_or_else(|| {
                Error::new(ErrorKind::Corrupt, format!("find snapshot {device:?}: the records cannot be opened"))
                    .advise("name the device by its number")
            })?;
            return Ok((DeviceId::new(number)?, None));
        };
        let reader = store.read()?;
        if let Some(number) = number {
            let id = DeviceId::new(number)?;
            let known = all_snapshots(&reader)?.into_iter().find(|(_, snapshot)| snapshot.device == id);
            return Ok((id, known.map(|(_, snapshot)| snapshot.size)));
        }
        let (space, name) = device.split_once('/').unwrap_or(("local", device));
        let snapshot = reader.get_snapshot(&Space::new(space)?, &Name::new(name)?)?;
        Ok((snapshot.device, Some(snapshot.size)))
    }
}

/// Makes a new metadata file of `size` bytes of thin_dump's XML, apart from any pool. Errors: `AlreadyExists`,
/// `InvalidArgument` names the place in the XML.
pub fn restore_to_file(input: &mut dyn BufRead, to: &Path, size: ByteCount) -> Result<Restored> {
    let device = FileDevice::create(to, size.0)?;
    let identity = *uuid::Uuid::new_v4().as_bytes();
    let restored = restore(input, &device, &RestoreOptions { identity });
    restored.inspect_err(|_| drop(std::fs::remove_file(to))).map_err(Error::from)
}

/// Builds the new metadata file `to` from what is left on `file`, which is only read. Errors: `AlreadyExists`,
/// `Corrupt` if nothing can be saved.
pub fn repair_file(file: &Path, to: &Path, block_size: Option<BlockSize>) -> Result<RepairReport> {
    let source = FileDevice::open_read_only(file)?;
    let device = FileDevice::create(to, source.size())?;
    let hints = Hints { block_size, ..Hints::default() };
    mend(&source, &device, &hints).inspect_err(|_| drop(std::fs::remove_file(to))).map_err(Error::from)
}

fn in_use(error: Error) -> Error {
    error.advise("stop the service and unmount what is mounted: this works on a pool that nobody uses")
}

/// A new file with holes.
struct SparseFile {
    file: File,
    path: PathBuf,
    whole: bool,
}

impl SparseFile {
    fn create(path: &Path) -> Result<Self> {
        use std::os::unix::fs::OpenOptionsExt;
        let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let file = file.map_err(|error| Error::io(format!("make the file {}", path.display()), error))?;
        Ok(Self { file, path: path.to_owned(), whole: false })
    }

    fn finish(mut self, size: u64) -> Result<()> {
        let done = self.file.set_len(size).and_then(|()| self.file.sync_all());
        done.map_err(|error| Error::io(format!("write {}", self.path.display()), error))?;
        self.whole = true;
        Ok(())
    }
}

impl Drop for SparseFile {
    fn drop(&mut self) {
        if !self.whole
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(%error, file = %self.path.display(), "a file that is not whole is left behind");
        }
    }
}

impl Sink for SparseFile {
    fn put(&mut self, bytes: &[u8], offset: u64) -> thinsnap_pool::Result<()> {
        use std::os::unix::fs::FileExt;
        self.file
            .write_all_at(bytes, offset)
            .map_err(|error| thinsnap_pool::Error::io(format!("write {}", self.path.display()), error))
    }
}
