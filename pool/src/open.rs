//! Makes and opens pools on files and disks: the one room that knows engines, formats and exporters.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::device::{AlignedBuffer, BlockDevice, FileDevice};
use crate::embedded::{EmbeddedOptions, EmbeddedPool, IntentLogState, intent_log_state_for};
use crate::error::{Error, ErrorKind, Result};
use crate::export::Exporter;
use crate::kernel::{KernelOptions, KernelPool, loop_of, probe, serves, withdraw};
use crate::meta::{FormatOptions, Metadata, OpenMode, superblock_fingerprint};
use crate::units::{BlockSize, ByteCount, DeviceId, METADATA_BLOCK_SIZE, METADATA_BLOCKS_MAX, METADATA_BLOCKS_MIN};

mod drain;
mod export;

pub use drain::{Drained, drain};
pub use export::{Export, ExportChoice, begin_export, choose_export};

/// Bytes of metadata for each data block: what dm-thin's documentation has always recommended.
const METADATA_BYTES_PER_DATA_BLOCK: u64 = 48;
/// Metadata blocks of a small pool, if nobody says how many: 64 MiB. Each device that was written to has tree nodes
/// of its own, however little it holds; in 2 MiB some hundred containers would be the end.
const METADATA_BLOCKS_DEFAULT_MIN: u64 = 16_384;
/// The start of a device that must be zero for it to pass as empty: every file system, partition table and
/// volume manager has its mark there.
const MARK_BYTES: usize = 1 << 20;

/// Where a pool stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolPaths {
    /// The metadata: a file or a disk.
    pub metadata: PathBuf,
    /// The data: a file or a disk.
    pub data: PathBuf,
}

impl PoolPaths {
    /// A pool on two files in a directory: `DIR/metadata` and `DIR/data`.
    #[must_use]
    pub fn in_dir(dir: &Path) -> Self {
        Self { metadata: dir.join("metadata"), data: dir.join("data") }
    }
}

/// What a new pool is to be.
#[derive(Debug, Clone)]
pub struct CreateOptions {
    /// Where; a path that does not exist becomes a file.
    pub paths: PoolPaths,
    /// Data space; `None`: all of a disk or file that exists.
    pub data_size: Option<ByteCount>,
    /// Metadata space; `None`: 48 bytes for each data block, at least 64 MiB, or all of a disk.
    pub metadata_size: Option<ByteCount>,
    /// Size of a data block.
    pub block_size: BlockSize,
}

/// Makes a pool: sparse data, metadata with all its room taken, so that a commit never meets a full file
/// system. On an error nothing is left behind. Errors: `AlreadyExists` if there is a pool or anything else,
/// `Invalid` (sizes), `InUse`, `OutOfDataSpace`.
pub fn create(options: &CreateOptions) -> Result<()> {
    let mut undo = Undo::default();
    try_create(options, &mut undo)
        .inspect(|()| undo.keep())
        .map_err(|e| e.doing(format_args!("create the pool in {}", options.paths.metadata.display())))
}

/// Opens a pool for this process alone; active devices are shown by `exporter`, those of a dead predecessor among
/// them. Nothing is written before the first change, or the first that a predecessor's intent log holds; only that a log
/// is in use is marked in the superblock, which keeps the kernel away. Errors:
/// `NotFound`, `InUse`, `Corrupt` (superblock, or files cut short), `NeedsCheck`, `Unsupported`.
pub fn open_embedded(
    paths: &PoolPaths,
    exporter: Arc<dyn Exporter>,
    options: &EmbeddedOptions,
) -> Result<Arc<EmbeddedPool>> {
    let doing = |e: Error| e.doing(format_args!("open the pool in {}", paths.metadata.display()));
    let device: Arc<dyn BlockDevice> = Arc::new(open_for_embedded(&paths.metadata).map_err(doing)?);
    let data: Arc<dyn BlockDevice> = Arc::new(open_for_embedded(&paths.data).map_err(doing)?);
    let metadata = Metadata::open_settled(Arc::clone(&device)).map_err(doing)?;
    EmbeddedPool::with_options(metadata, device, data, exporter, options).map(Arc::new).map_err(doing)
}

/// What the intent log at `log` means for the pool at `paths`. Damaged metadata hinders nobody from asking: then a log
/// of any pool counts. Errors: `InUse` if the pool is being served, `NotFound`, `Io`.
pub fn intent_log_of(paths: &PoolPaths, log: &Path) -> Result<IntentLogState> {
    let device: Arc<dyn BlockDevice> = Arc::new(FileDevice::open_read_only(&paths.metadata)?);
    let fingerprint = superblock_fingerprint(&*device).ok();
    let identity = Metadata::open(device, OpenMode::ReadOnly).ok().map(|metadata| metadata.identity());
    intent_log_state_for(log, identity, fingerprint)
}

/// Opens a pool for the kernel to serve, after [`drain`]ing what a killed embedded engine may have left. The kernel goes on
/// when this process ends; [`KernelPool::close`] takes the pool down. Errors: as [`open_embedded`], `InUse` and
/// `DoubtfulLog` as [`drain`], and `Unsupported` if this kernel has no device-mapper or no thin pools.
pub fn open_kernel(paths: &PoolPaths, options: &KernelOptions) -> Result<Arc<KernelPool>> {
    let doing = |e: Error| e.doing(format_args!("open the pool in {} for the kernel", paths.metadata.display()));
    // Not before it is certain that the kernel can take over.
    probe().map_err(doing)?;
    options.intent_log.as_ref().map_or(Ok(()), |log| drain(paths, log).map(drop)).map_err(doing)?;
    KernelPool::open(&paths.metadata, &paths.data, options).map(Arc::new).map_err(doing)
}

/// True if the kernel serves the pool, whoever told it to: the process may have ended long ago.
pub fn kernel_serves(paths: &PoolPaths, options: &KernelOptions) -> Result<bool> {
    serves(&paths.metadata, options)
        .map_err(|e| e.doing(format_args!("look whether the kernel serves the pool in {}", paths.metadata.display())))
}

/// Gets the pool from the kernel, for the embedded engine: takes it down in order if the kernel serves it and nobody
/// has a device of it open, and takes away what a killed opener left half-done. Returns the devices that are open; if
/// there are any, the kernel goes on. Errors: `InUse` if another process commands the pool.
pub fn withdraw_from_kernel(paths: &PoolPaths, options: &KernelOptions) -> Result<Vec<DeviceId>> {
    withdraw([&paths.metadata, &paths.data], options)
        .map_err(|e| e.doing(format_args!("take the pool in {} from the kernel", paths.metadata.display())))
}

/// Who moves the blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// The kernel where it can, else a process of ours.
    Auto,
    /// The kernel's dm-thin.
    Kernel,
    /// A process of ours.
    Embedded,
}

/// The engine for a pool, and why it is that one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineChoice {
    /// True: the kernel; false: a process of ours.
    pub kernel: bool,
    /// For people: what decided it, and what to install for the other one.
    pub why: String,
}

/// Decides by what this machine can do. Errors, for [`Engine::Kernel`] only: `Unsupported`, `Denied`.
pub fn choose_engine(wanted: Engine) -> Result<EngineChoice> {
    let embedded = |why: String| Ok(EngineChoice { kernel: false, why });
    if wanted == Engine::Embedded {
        return embedded("the embedded engine was asked for".to_owned());
    }
    match probe() {
        Ok(version) => {
            let why = format!("the kernel serves thin pools (target thin-pool {version})");
            Ok(EngineChoice { kernel: true, why })
        }
        Err(e) if wanted == Engine::Auto && matches!(e.kind(), ErrorKind::Unsupported | ErrorKind::Denied) => {
            embedded(format!("the kernel engine is not to be had: {e}"))
        }
        Err(e) => Err(e.doing("choose the kernel engine")),
    }
}

/// Opens a device for this process alone; says so if the kernel engine is who has it.
fn open_for_embedded(path: &Path) -> Result<FileDevice> {
    FileDevice::open(path).map_err(|e| match loop_of(path) {
        Some(bound) if e.kind() == ErrorKind::InUse => e.doing(format_args!(
            "the kernel serves a pool on {} ({}): close it there first",
            path.display(),
            bound.display()
        )),
        _ => e,
    })
}

fn try_create(options: &CreateOptions, undo: &mut Undo) -> Result<()> {
    let PoolPaths { metadata, data } = &options.paths;
    let block_size = options.block_size.bytes();
    // A pool that is there is named as such before its data is found to be something.
    if metadata.symlink_metadata().is_ok() {
        drop(open_empty(metadata, None, 1)?);
    }
    for path in [metadata, data] {
        undo.make_parent(path)?;
    }
    let data_device = undo.open_or_make(data, options.data_size, block_size)?;
    let data_size = options.data_size.map_or(data_device.size(), |size| size.0);
    let data_blocks = data_size / block_size;
    if data_blocks == 0 {
        return Err(Error::new(
            ErrorKind::Invalid,
            format!("data space of {data_size} bytes holds no block of {block_size}"),
        ));
    }
    let wanted = options.metadata_size.unwrap_or_else(|| default_metadata_size(data_blocks));
    let there = metadata.symlink_metadata().is_ok();
    let asked = if there { options.metadata_size } else { Some(wanted) };
    let metadata_device = undo.open_or_make(metadata, asked, METADATA_BLOCK_SIZE as u64)?;
    let whole_disk = metadata_device.is_disk() && options.metadata_size.is_none();
    if !whole_disk && metadata_device.size() < wanted.0 {
        metadata_device.grow(wanted.0.next_multiple_of(METADATA_BLOCK_SIZE as u64))?;
    }
    let metadata_size = if whole_disk { metadata_device.size() } else { wanted.0 };
    let metadata_blocks = (metadata_size / METADATA_BLOCK_SIZE as u64).min(METADATA_BLOCKS_MAX);
    if metadata_blocks < METADATA_BLOCKS_MIN {
        return Err(Error::new(
            ErrorKind::Invalid,
            format!(
                "metadata space of {metadata_size} bytes is below {}, the least that makes a usable pool",
                ByteCount(METADATA_BLOCKS_MIN * METADATA_BLOCK_SIZE as u64)
            ),
        ));
    }
    metadata_device.preallocate(0)?;
    let identity = random_identity()?;
    undo.formatting(metadata);
    Metadata::format(
        &metadata_device,
        &FormatOptions { block_size: options.block_size, data_blocks, metadata_blocks, identity },
    )?;
    // The data file first: a pool whose metadata is there but whose data is not would be refused as damaged.
    data_device.sync_all()?;
    sync_parent(data)?;
    metadata_device.sync_all()?;
    sync_parent(metadata)
}

fn default_metadata_size(data_blocks: u64) -> ByteCount {
    let block = METADATA_BLOCK_SIZE as u64;
    let blocks = data_blocks.saturating_mul(METADATA_BYTES_PER_DATA_BLOCK).div_ceil(block);
    ByteCount(blocks.clamp(METADATA_BLOCKS_DEFAULT_MIN, METADATA_BLOCKS_MAX) * block)
}

/// What a failed create takes back.
#[derive(Default)]
struct Undo {
    files: Vec<PathBuf>,
    dirs: Vec<PathBuf>,
    /// A device that was there before, empty, and perhaps is half formatted.
    formatted: Option<PathBuf>,
    kept: bool,
}

impl Undo {
    fn keep(&mut self) {
        self.kept = true;
    }

    fn formatting(&mut self, path: &Path) {
        if !self.files.iter().any(|made| made == path) {
            self.formatted = Some(path.to_owned());
        }
    }

    /// Makes the directory of a path, private to its owner, with what is missing above it.
    fn make_parent(&mut self, path: &Path) -> Result<()> {
        let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) else { return Ok(()) };
        let missing: Vec<&Path> =
            dir.ancestors().take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists()).collect();
        for dir in missing.into_iter().rev() {
            std::fs::DirBuilder::new()
                .mode(0o700)
                .create(dir)
                .map_err(|e| Error::io(format!("make the directory {}", dir.display()), e))?;
            self.dirs.push(dir.to_owned());
        }
        Ok(())
    }

    /// Opens an empty device that is there, or makes a file of `size`.
    fn open_or_make(&mut self, path: &Path, size: Option<ByteCount>, unit: u64) -> Result<FileDevice> {
        if path.symlink_metadata().is_ok() {
            return open_empty(path, size, unit);
        }
        let Some(size) = size else {
            return Err(Error::new(ErrorKind::Invalid, format!("{} does not exist: say its size", path.display())));
        };
        let device = FileDevice::create(path, size.0.next_multiple_of(unit))?;
        self.files.push(path.to_owned());
        Ok(device)
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        let warn = |path: &Path, e: std::io::Error| {
            tracing::warn!("{} is left behind by a pool that could not be made: {e}", path.display());
        };
        if let Some(path) = &self.formatted {
            let wiped = OpenOptions::new().write(true).open(path).and_then(|disk| {
                std::os::unix::fs::FileExt::write_all_at(&disk, &[0; METADATA_BLOCK_SIZE], 0)?;
                disk.sync_data()
            });
            wiped.unwrap_or_else(|e| warn(path, e));
        }
        for file in &self.files {
            std::fs::remove_file(file).unwrap_or_else(|e| warn(file, e));
        }
        for dir in self.dirs.iter().rev() {
            std::fs::remove_dir(dir).unwrap_or_else(|e| warn(dir, e));
        }
    }
}

/// Opens a disk or file that exists and refuses it unless its start is zero.
fn open_empty(path: &Path, size: Option<ByteCount>, unit: u64) -> Result<FileDevice> {
    let device = FileDevice::open(path)?;
    let len = device.size().min(MARK_BYTES as u64);
    let mut start = AlignedBuffer::zeroed(usize::try_from(len).unwrap_or(MARK_BYTES));
    device.read_at(&mut start, 0)?;
    if start.iter().any(|&byte| byte != 0) {
        let what = match Metadata::open(Arc::new(device), OpenMode::ReadOnly) {
            Ok(_) => "it holds a pool already",
            Err(_) => "it is not empty: wipe it first (wipefs --all) if nobody needs what it holds",
        };
        return Err(Error::new(ErrorKind::AlreadyExists, format!("{}: {what}", path.display())));
    }
    let needed = size.map_or(0, |size| size.0.next_multiple_of(unit));
    if device.size() < needed {
        device.grow(needed)?;
    }
    Ok(device)
}

fn random_identity() -> Result<[u8; 16]> {
    let mut identity = [0; 16];
    File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut identity))
        .map_err(|e| Error::io("read /dev/urandom for the pool's identity", e))?;
    Ok(identity)
}

/// Makes the name of a new file durable.
fn sync_parent(path: &Path) -> Result<()> {
    if path.metadata().is_ok_and(|seen| seen.file_type().is_block_device()) {
        return Ok(());
    }
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|e| Error::io(format!("sync the directory {}", dir.display()), e))
}
