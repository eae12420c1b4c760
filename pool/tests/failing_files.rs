//! Files and disks that fail for real: a limit on file sizes, a full file system, a disk with I/O errors.

// All of this is test code, helpers too: clippy lets tests unwrap.
#![cfg(test)]

#[path = "support/direct_exporter.rs"]
mod direct_exporter;
#[path = "support/host_tools.rs"]
mod host_tools;
#[path = "support/shown_by.rs"]
mod shown_by;

use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use direct_exporter::DirectExporter;
use host_tools::{Mounted, eventually, leftovers, when_free};
use shown_by::skipped_without_export;
use thinsnap_pool::{
    Access, BlockDevice, BlockSize, ByteCount, CreateOptions, DeviceId, DirectToken, Direction, EmbeddedOptions,
    EmbeddedPool, Error, ErrorKind, ExportOptions, Exporter, Extents, FileDevice, FuseExporter, MemoryDevice, PoolMode,
    PoolPaths, Result, ThinPool, Volume, create, open_embedded,
};

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 64 * 1024;

fn id(number: u32) -> DeviceId {
    DeviceId::new(number).unwrap()
}

fn bytes(len: u64, value: u8) -> Vec<u8> {
    vec![value; usize::try_from(len).unwrap()]
}

fn read(device: &dyn BlockDevice, offset: u64, len: u64) -> Vec<u8> {
    let mut buffer = bytes(len, 0xee);
    device.read_at(&mut buffer, offset).unwrap();
    buffer
}

/// Writes block after block until one is refused: how many were taken, and why the next was not.
fn write_until_refused(volume: &dyn Volume) -> (u64, Error) {
    let mut written = 0;
    loop {
        match volume.write_at(&bytes(BLOCK, 9), written * BLOCK) {
            Ok(()) => written += 1,
            Err(error) => return (written, error),
        }
    }
}

fn pool_on(paths: &PoolPaths, data: Option<u64>, metadata: Option<u64>) {
    create(&CreateOptions {
        paths: paths.clone(),
        data_size: data.map(ByteCount),
        metadata_size: metadata.map(ByteCount),
        block_size: BlockSize::DEFAULT,
    })
    .unwrap();
}

fn opened(paths: &PoolPaths) -> (Arc<EmbeddedPool>, Arc<DirectExporter>) {
    opened_with(paths, &EmbeddedOptions::default())
}

fn opened_with(paths: &PoolPaths, options: &EmbeddedOptions) -> (Arc<EmbeddedPool>, Arc<DirectExporter>) {
    let exporter = DirectExporter::new();
    (when_free(|| open_embedded(paths, exporter.clone(), options)), exporter)
}

/// Where files have real room and direct I/O.
fn dir() -> tempfile::TempDir {
    tempfile::tempdir_in(std::env::var_os("TMPDIR").unwrap_or_else(|| "/var/tmp".into())).unwrap()
}

const LIMITED: &str = "THINSNAP_TEST_LIMITED_DIR";
/// Above the metadata of the pool, in the midst of its data.
const LIMIT: u64 = 3 * MIB;

/// The other half of the test below; alone it has nothing to do.
#[test]
fn limited_writer() {
    let Some(dir) = std::env::var_os(LIMITED).map(PathBuf::from) else { return };
    let path = dir.join("file");
    let file = FileDevice::open(&path).unwrap();
    // Direct I/O, and a piece off its alignment: the kernel takes what is below the limit, then no more.
    for (offset, len) in [(LIMIT - MIB, 2 * MIB), (LIMIT - 700, 1400)] {
        let error = file.write_at(&bytes(len, 7), offset).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("File too large") && text.contains(path.to_str().unwrap()), "{text}");
        assert!(text.contains(&format!("{len} bytes at offset {offset}")), "{text}");
    }
    file.write_at(&bytes(MIB, 8), 0).unwrap();
    file.flush().unwrap();
    assert!(read(&file, 0, MIB) == bytes(MIB, 8));
    let beyond = read(&file, LIMIT, MIB);
    assert!(beyond.iter().all(|&byte| byte == 0), "nothing stands beyond the limit");

    let paths = PoolPaths::in_dir(&dir.join("pool"));
    let (pool, exporter) = opened(&paths);
    pool.create_thin(id(1)).unwrap();
    pool.activate(id(1), ByteCount(8 * MIB), Access::ReadWrite).unwrap();
    let volume = exporter.open(id(1));
    let (written, error) = write_until_refused(&*volume);
    assert_eq!(written, LIMIT / BLOCK, "{error}");
    assert!(error.to_string().contains("File too large") && error.to_string().contains("pool/data"), "{error}");
    volume.flush().unwrap();
    assert_eq!(pool.status().unwrap().mode, PoolMode::Write, "one block that cannot be written harms no other");
    volume.write_at(&bytes(BLOCK, 10), 0).unwrap();
    volume.flush().unwrap();
}

#[test]
fn a_limit_on_file_sizes_costs_the_write_that_meets_it_and_nothing_else() {
    let dir = dir();
    drop(FileDevice::create(&dir.path().join("file"), 8 * MIB).unwrap());
    let paths = PoolPaths::in_dir(&dir.path().join("pool"));
    pool_on(&paths, Some(8 * MIB), Some(2 * MIB));
    let done = Command::new("prlimit")
        .arg(format!("--fsize={LIMIT}"))
        .args(["sh", "-c", "trap '' XFSZ; exec \"$0\" --exact limited_writer"])
        .arg(std::env::current_exe().unwrap())
        .env(LIMITED, dir.path())
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));

    let (pool, exporter) = opened(&paths);
    pool.activate(id(1), ByteCount(8 * MIB), Access::ReadWrite).unwrap();
    let volume = exporter.open(id(1));
    assert!(read(&*volume, 0, BLOCK) == bytes(BLOCK, 10));
    assert!(read(&*volume, BLOCK, LIMIT - BLOCK) == bytes(LIMIT - BLOCK, 9));
    assert!(read(&*volume, LIMIT, BLOCK) == bytes(BLOCK, 0), "the write that failed left nothing");
    drop(volume);
    pool.close().unwrap();
    drop(pool);
    let metadata = when_free(|| FileDevice::open_read_only(&paths.metadata));
    assert!(thinsnap_pool::audit(&metadata, &|_| ()).unwrap().is_sound());
}

#[test]
fn root_a_full_file_system_costs_the_write_that_meets_it_and_heals_with_room() {
    if skipped_without_export() {
        return;
    }
    let dir = dir();
    let full = Mounted::tmpfs(&dir.path().join("full"), "6m");
    let paths = PoolPaths { metadata: dir.path().join("metadata"), data: full.at.join("data") };
    pool_on(&paths, Some(16 * MIB), Some(2 * MIB));
    let ballast = full.at.join("ballast");
    std::fs::write(&ballast, bytes(2 * MIB, 1)).unwrap();
    let (pool, exporter) = opened(&paths);
    pool.create_thin(id(1)).unwrap();
    pool.activate(id(1), ByteCount(16 * MIB), Access::ReadWrite).unwrap();
    let volume = exporter.open(id(1));
    let (written, error) = write_until_refused(&*volume);
    assert_eq!(error.kind(), ErrorKind::OutOfDataSpace, "{error}");
    assert!(error.to_string().contains(paths.data.to_str().unwrap()), "{error}");
    assert!((50..=64).contains(&written), "{written} blocks found room");
    let status = pool.status().unwrap();
    assert_eq!(status.mode, PoolMode::OutOfDataSpace, "{status:?}");
    volume.write_at(&bytes(BLOCK, 11), 0).unwrap();
    volume.flush().unwrap();
    std::fs::remove_file(&ballast).unwrap();
    volume.write_at(&bytes(BLOCK, 9), written * BLOCK).unwrap();
    assert_eq!(pool.status().unwrap().mode, PoolMode::Write);
    volume.flush().unwrap();
    assert!(read(&*volume, 0, BLOCK) == bytes(BLOCK, 11));
    assert!(read(&*volume, BLOCK, written * BLOCK) == bytes(written * BLOCK, 9));
    drop(volume);
    pool.close().unwrap();
    drop(pool);
    full.unmount();
}

#[test]
fn root_a_start_without_room_for_its_intent_log_is_refused_and_changes_nothing() {
    if skipped_without_export() {
        return;
    }
    let dir = dir();
    let full = Mounted::tmpfs(&dir.path().join("run"), "64k");
    let paths = PoolPaths::in_dir(&dir.path().join("pool"));
    pool_on(&paths, Some(8 * MIB), Some(2 * MIB));
    let before = std::fs::read(&paths.metadata).unwrap();
    let log = full.at.join("intent.log");
    let options = EmbeddedOptions { intent_log: Some(log.clone()), ..EmbeddedOptions::default() };
    let mut refused = None;
    eventually("the pool is free", || {
        let error = open_embedded(&paths, DirectExporter::new(), &options).err().unwrap();
        error.kind() != ErrorKind::InUse && refused.replace(error).is_none()
    });
    let error = refused.unwrap();
    assert_eq!(error.kind(), ErrorKind::OutOfDataSpace, "{error}");
    assert!(error.to_string().contains(log.to_str().unwrap()), "{error}");
    assert!(std::fs::read(&paths.metadata).unwrap() == before, "a refused start changes nothing");
    full.unmount();
    // With room it starts.
    std::fs::create_dir_all(log.parent().unwrap()).unwrap();
    let (pool, _) = opened_with(&paths, &options);
    pool.close().unwrap();
}

/// A disk in memory that fails on command, shown to the kernel.
struct FailingVolume {
    memory: MemoryDevice,
    reads_fail: AtomicBool,
    writes_fail: AtomicBool,
    flushes_fail: AtomicBool,
}

impl FailingVolume {
    fn new(size: u64) -> Arc<Self> {
        let works = || AtomicBool::new(false);
        Arc::new(Self {
            memory: MemoryDevice::new(size),
            reads_fail: works(),
            writes_fail: works(),
            flushes_fail: works(),
        })
    }
}

fn fails(switch: &AtomicBool) -> Result<()> {
    if switch.load(Ordering::SeqCst) { Err(Error::new(ErrorKind::Io, "told to fail")) } else { Ok(()) }
}

impl BlockDevice for FailingVolume {
    fn size(&self) -> u64 {
        self.memory.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        fails(&self.reads_fail)?;
        self.memory.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        fails(&self.writes_fail)?;
        self.memory.write_at(buf, offset)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        fails(&self.writes_fail)?;
        self.memory.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.discard(offset, len)
    }

    fn flush(&self) -> Result<()> {
        fails(&self.flushes_fail)
    }
}

impl Volume for FailingVolume {
    fn begin_direct(&self, _: Direction, _: u64, _: u32, _: &mut Extents) -> Option<DirectToken> {
        None
    }

    fn end_direct(&self, _token: DirectToken) {}

    fn data_fd(&self) -> RawFd {
        -1
    }
}

#[test]
fn root_io_errors_of_real_disks_are_named_and_nothing_flushed_is_lost() {
    if skipped_without_export() {
        return;
    }
    let dir = dir();
    let exporter = FuseExporter::start(ExportOptions::new(dir.path().join("export"))).unwrap();
    let (data, metadata) = (FailingVolume::new(16 * MIB), FailingVolume::new(4 * MIB));
    let show = |number, disk: &Arc<FailingVolume>| {
        exporter.attach(id(number), Arc::clone(disk) as _, ByteCount(disk.size()), Access::ReadWrite).unwrap()
    };
    let paths = PoolPaths { data: show(1, &data), metadata: show(2, &metadata) };
    pool_on(&paths, None, None);
    let (pool, shown) = opened(&paths);
    pool.create_thin(id(1)).unwrap();
    pool.activate(id(1), ByteCount(8 * MIB), Access::ReadWrite).unwrap();
    let volume = shown.open(id(1));
    volume.write_at(&bytes(MIB, 1), 0).unwrap();
    volume.flush().unwrap();

    let named = |error: &Error, path: &Path| {
        let text = error.to_string();
        assert!(text.contains("Input/output error") && text.contains(path.to_str().unwrap()), "{text}");
    };
    // The data: a failed write or read is the caller's alone.
    data.writes_fail.store(true, Ordering::SeqCst);
    named(&volume.write_at(&bytes(MIB, 2), 2 * MIB).unwrap_err(), &paths.data);
    data.writes_fail.store(false, Ordering::SeqCst);
    data.reads_fail.store(true, Ordering::SeqCst);
    named(&volume.read_at(&mut [0; 512], 0).unwrap_err(), &paths.data);
    data.reads_fail.store(false, Ordering::SeqCst);
    assert_eq!(pool.status().unwrap().mode, PoolMode::Write);
    volume.write_at(&bytes(MIB, 3), 2 * MIB).unwrap();
    volume.flush().unwrap();

    // A flush: nothing is durable any more until everything is read again.
    volume.write_at(&bytes(MIB, 4), 4 * MIB).unwrap();
    data.flushes_fail.store(true, Ordering::SeqCst);
    named(&volume.flush().unwrap_err(), &paths.data);
    data.flushes_fail.store(false, Ordering::SeqCst);
    named(&volume.flush().unwrap_err(), &paths.data);
    let status = pool.status().unwrap();
    assert_eq!(status.mode, PoolMode::ReadOnly);
    assert!(status.reason.unwrap().contains("Input/output error"));
    drop(volume);
    assert!(pool.close().is_err(), "the last commit failed");
    drop(pool);

    // A new start: what was flushed is there.
    let (pool, shown) = opened(&paths);
    pool.activate(id(1), ByteCount(8 * MIB), Access::ReadWrite).unwrap();
    let volume = shown.open(id(1));
    assert!(read(&*volume, 0, MIB) == bytes(MIB, 1));
    assert!(read(&*volume, 2 * MIB, MIB) == bytes(MIB, 3));

    // The metadata: the pool is to be checked, and the check finds the last commit whole.
    volume.write_at(&bytes(MIB, 5), 6 * MIB).unwrap();
    metadata.writes_fail.store(true, Ordering::SeqCst);
    named(&volume.flush().unwrap_err(), &paths.metadata);
    metadata.writes_fail.store(false, Ordering::SeqCst);
    let status = pool.status().unwrap();
    assert_eq!(status.mode, PoolMode::ReadOnly);
    assert!(status.reason.unwrap().contains(paths.metadata.to_str().unwrap()));
    drop(volume);
    assert!(pool.close().is_err());
    drop(pool);
    let device = FileDevice::open_read_only(&paths.metadata).unwrap();
    assert!(thinsnap_pool::audit(&device, &|_| ()).unwrap().is_sound());
    drop(device);

    assert!(exporter.detach(id(1)).unwrap() && exporter.detach(id(2)).unwrap());
    exporter.shutdown().unwrap();
    assert_eq!(leftovers(dir.path()), Vec::<String>::new());
}
