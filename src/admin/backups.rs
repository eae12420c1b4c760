//! The ring of metadata backups in `ROOT/backup`: made at the start, in regular time, and before risky steps.
//!
//! A backup is a head of one kilobyte (a line of JSON) and the packed blocks, compressed. It is written under
//! another name, read back and audited, and only then gets its own: what is in the ring is whole. The oldest goes
//! when there are more than the configuration keeps. A disk that is full costs a backup and a warning, never the
//! service.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use thinsnap_pool::{FileDevice, Packed, audit, pack, unpack};

use crate::admin::metadata::MetadataReader;
use crate::admin::protocol::api;
use crate::config::BackupConfig;
use crate::error::{Error, ErrorKind, Result};

/// Bytes of the head: JSON, blanks, a line feed.
const HEAD: usize = 1024;
/// The version of what stands behind the head.
const VERSION: u32 = 1;
/// Compression level: three quarters of the smallest size, in a tenth of the time.
const LEVEL: i32 = 3;
const PREFIX: &str = "metadata-";
const SUFFIX: &str = ".tsbackup";
/// Backups that are not whole yet.
const YOUNG: &str = ".young";

/// What is known of a backup without unpacking it.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Head {
    version: u32,
    created_at: String,
    reason: String,
    identity: String,
    transaction_id: u64,
    state: u32,
    devices: u64,
    metadata_blocks_used: u64,
    metadata_blocks: u64,
}

/// Why a backup is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The service starts.
    Start,
    /// It is time.
    Interval,
    /// Somebody asked.
    Asked,
    /// Something risky follows.
    Before(&'static str),
}

impl Reason {
    fn text(self) -> String {
        match self {
            Self::Start => "start".to_owned(),
            Self::Interval => "interval".to_owned(),
            Self::Asked => "asked".to_owned(),
            Self::Before(step) => format!("before {step}"),
        }
    }
}

/// The ring of one root directory.
pub struct Backups {
    dir: PathBuf,
    count: usize,
    /// One backup at a time.
    making: Mutex<()>,
    /// Why the last one could not be made.
    failure: Mutex<Option<String>>,
}

impl Backups {
    /// The ring of `root`; nothing is touched.
    #[must_use]
    pub fn new(root: &Path, config: &BackupConfig) -> Self {
        Self { dir: root.join("backup"), count: config.count, making: Mutex::default(), failure: Mutex::default() }
    }

    /// Where the backups are.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Why the last backup could not be made; `None`: it was.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes a backup; by itself only if the metadata has changed since the last one. Errors: `Corrupt` if the
    /// metadata is not sound (the ring stays as it is), `NoSpace`.
    pub fn take(&self, metadata: &MetadataReader, reason: Reason) -> Result<Option<api::PoolBackup>> {
        let _one = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let made = self.make(metadata, reason).map_err(|error| error.doing("back up the metadata"));
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = made.as_ref().err().map(ToString::to_string);
        made
    }

    /// The same for a caller that goes on without: what failed is logged, and stands in the pool's status.
    pub fn try_take(&self, metadata: &MetadataReader, reason: Reason) {
        match self.take(metadata, reason) {
            Ok(Some(backup)) => tracing::info!(backup = backup.name, bytes = backup.bytes, "backed up the metadata"),
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "there is no new backup of the metadata"),
        }
    }

    fn make(&self, metadata: &MetadataReader, reason: Reason) -> Result<Option<api::PoolBackup>> {
        let doing = |error| Error::io(format!("write in {}", self.dir.display()), error);
        match std::fs::DirBuilder::new().mode(0o700).create(&self.dir) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(doing(error)),
            _ => self.sweep()?,
        }
        let now = jiff::Timestamp::now();
        let young = Young(self.dir.join(format!("{}{YOUNG}", std::process::id())));
        let mut file =
            OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&young.0).map_err(doing)?;
        let packed = metadata.read(&mut |device| {
            // A second try begins anew.
            file.set_len(0).and_then(|()| file.seek(SeekFrom::Start(HEAD as u64))).map_err(doing)?;
            let mut packer = zstd::Encoder::new(&mut file, LEVEL).map_err(doing)?;
            let packed = pack(device, &mut packer)?;
            packer.finish().map_err(doing)?;
            Ok(packed)
        })?;
        let head = head_of(&packed, now, reason);
        let newest = self.entries()?.pop();
        let unasked = matches!(reason, Reason::Start | Reason::Interval);
        if unasked && newest.is_some_and(|(_, newest)| newest.state == head.state && newest.identity == head.identity) {
            return Ok(None);
        }
        let mut line = serde_json::to_vec(&head)
            .map_err(|error| Error::with_source(ErrorKind::Internal, "write the head of a backup", error))?;
        line.resize(HEAD - 1, b' ');
        line.push(b'\n');
        file.write_all_at(&line, 0).map_err(doing)?;
        file.sync_all().map_err(doing)?;
        self.verify(&young.0, &packed)?;
        let stamp = now.strftime("%Y%m%dT%H%M%S%3fZ");
        let name = format!("{PREFIX}{stamp}{SUFFIX}");
        std::fs::rename(&young.0, self.dir.join(&name)).map_err(doing)?;
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(doing)?;
        let entries = self.entries()?;
        for (oldest, _) in entries.iter().take(entries.len().saturating_sub(self.count)) {
            std::fs::remove_file(self.dir.join(oldest)).map_err(doing)?;
        }
        Ok(Some(self.told(name, head)))
    }

    /// Reads a backup back: what cannot be laid out again, or is not sound then, is none.
    fn verify(&self, path: &Path, packed: &Packed) -> Result<()> {
        let device = self.lay_out(path)?;
        let report = audit(&device, &|_| ())?;
        if report.is_sound() && !report.incomplete && report.devices == packed.devices {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Corrupt, "the backup was read back and is not what was written")
            .advise("look at the kernel log (dmesg) for the disk below, and try again"))
    }

    /// The metadata of a backup file, on a file without a name beside it.
    fn lay_out(&self, path: &Path) -> Result<FileDevice> {
        let scratch = self.dir.join(format!("scratch-{}{YOUNG}", std::process::id()));
        let device = unpack_file(path, &scratch)?;
        std::fs::remove_file(&scratch).map_err(|error| Error::io(format!("remove {}", scratch.display()), error))?;
        Ok(device)
    }

    /// The metadata of the newest backup that can be read, on a file without a name.
    pub fn newest(&self) -> Result<Option<(String, FileDevice)>> {
        for (name, _) in self.entries()?.into_iter().rev() {
            match self.lay_out(&self.dir.join(&name)) {
                Ok(device) => return Ok(Some((name, device))),
                Err(error) => tracing::warn!(%error, backup = name, "a backup cannot be read"),
            }
        }
        Ok(None)
    }

    /// Lays the backup `name` out as the new file `to`. Errors: `NotFound`, `Corrupt`, `AlreadyExists`.
    pub fn unpack(&self, name: &str, to: &Path) -> Result<FileDevice> {
        let known = self.entries()?.into_iter().any(|(entry, _)| entry == name);
        if !known {
            return Err(Error::new(ErrorKind::NotFound, format!("no backup {name:?} in {}", self.dir.display()))
                .advise("thinsnap pool backup ls"));
        }
        unpack_file(&self.dir.join(name), to)
    }

    /// The backups, the oldest first.
    pub fn list(&self) -> Result<Vec<api::PoolBackup>> {
        Ok(self.entries()?.into_iter().map(|(name, head)| self.told(name, head)).collect())
    }

    fn told(&self, name: String, head: Head) -> api::PoolBackup {
        let bytes = std::fs::metadata(self.dir.join(&name)).map_or(0, |seen| seen.len());
        api::PoolBackup {
            name,
            bytes,
            created_at: head.created_at,
            reason: head.reason,
            identity: head.identity,
            transaction_id: head.transaction_id,
            devices: head.devices,
            metadata_blocks_used: head.metadata_blocks_used,
        }
    }

    /// Names and heads, the oldest first: the name is the time.
    fn entries(&self) -> Result<Vec<(String, Head)>> {
        let doing = || format!("list the backups in {}", self.dir.display());
        let entries = match std::fs::read_dir(&self.dir) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(|error| Error::io(doing(), error))?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| Error::io(doing(), error))?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if name.starts_with(PREFIX) && name.ends_with(SUFFIX) {
                match read_head(&entry.path()) {
                    Ok(head) => found.push((name, head)),
                    Err(error) => tracing::warn!(%error, backup = name, "a backup cannot be read"),
                }
            }
        }
        found.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(found)
    }

    /// Removes what a maker that died left behind.
    fn sweep(&self) -> Result<()> {
        let doing = || format!("clear {}", self.dir.display());
        for entry in std::fs::read_dir(&self.dir).map_err(|error| Error::io(doing(), error))? {
            let entry = entry.map_err(|error| Error::io(doing(), error))?;
            if entry.file_name().to_string_lossy().ends_with(YOUNG) {
                std::fs::remove_file(entry.path()).map_err(|error| Error::io(doing(), error))?;
            }
        }
        Ok(())
    }
}

/// A file that is removed when dropped, unless it got another name.
struct Young(PathBuf);

impl Drop for Young {
    fn drop(&mut self) {
        match std::fs::remove_file(&self.0) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(%error, file = %self.0.display(), "a backup that is not whole is left behind");
            }
            _ => {}
        }
    }
}

fn head_of(packed: &Packed, now: jiff::Timestamp, reason: Reason) -> Head {
    Head {
        version: VERSION,
        created_at: now.to_string(),
        reason: reason.text(),
        identity: packed.identity.iter().map(|byte| format!("{byte:02x}")).collect(),
        transaction_id: packed.transaction_id,
        state: packed.state,
        devices: packed.devices,
        metadata_blocks_used: packed.blocks,
        metadata_blocks: packed.metadata_blocks,
    }
}

fn read_head(path: &Path) -> Result<Head> {
    let doing = || format!("read the backup {}", path.display());
    let mut bytes = Vec::with_capacity(HEAD);
    let read = File::open(path).and_then(|file| file.take(HEAD as u64).read_to_end(&mut bytes));
    read.map_err(|error| Error::io(doing(), error))?;
    let head: Head =
        serde_json::from_slice(&bytes).map_err(|error| Error::with_source(ErrorKind::Corrupt, doing(), error))?;
    if head.version == VERSION {
        return Ok(head);
    }
    Err(Error::new(ErrorKind::Unsupported, format!("{}: version {} is not known", doing(), head.version)))
}

fn unpack_file(path: &Path, to: &Path) -> Result<FileDevice> {
    let doing = |error| Error::io(format!("read the backup {}", path.display()), error);
    read_head(path)?;
    let mut file = File::open(path).map_err(doing)?;
    file.seek(SeekFrom::Start(HEAD as u64)).map_err(doing)?;
    let mut stream = zstd::Decoder::new(file).map_err(doing)?;
    let mut made = false;
    let unpacked = unpack(&mut stream, |size| FileDevice::create(to, size).inspect(|_| made = true));
    unpacked.map_err(|error| {
        if made {
            // Not whole, and of no use to anybody.
            drop(std::fs::remove_file(to));
        }
        Error::from(error).doing(path.display())
    })
}
