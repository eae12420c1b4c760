//! Devices below the engine that fail: nothing acknowledged is lost, and the pool says why it stopped.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use thinsnap_pool::{
    Access, BlockDevice, ByteCount, EmbeddedOptions, EmbeddedPool, ErrorKind, MemoryDevice, Metadata, OpenMode,
    PoolMode, ThinPool,
};

use crate::ground::{BLOCK, Ground, bytes, id, read};
use crate::support::direct_exporter::{DirectExporter, Opened};
use crate::support::faulty_device::FaultyDevice;

#[test]
fn a_failed_commit_makes_the_pool_read_only_and_the_last_commit_opens_again() {
    let ground = Ground::new(64);
    let volume = ground.device(1, 32 * BLOCK);
    volume.write_at(&bytes(2 * BLOCK, 1), 0).unwrap();
    volume.flush().unwrap();
    let superblock = ground.metadata.to_bytes()[..4096].to_vec();
    volume.write_at(&bytes(BLOCK, 2), 4 * BLOCK).unwrap();
    ground.data.flush_fails.store(true, Ordering::SeqCst);
    assert_eq!(volume.flush().unwrap_err().kind(), ErrorKind::Io);
    ground.data.flush_fails.store(false, Ordering::SeqCst);
    assert!(volume.flush().is_err(), "a flush that failed once is not trusted again");
    let status = ground.pool.status().unwrap();
    assert_eq!(status.mode, PoolMode::ReadOnly);
    assert!(status.reason.unwrap().contains("does not answer"));
    assert_eq!(volume.write_at(&bytes(512, 3), 0).unwrap_err().kind(), ErrorKind::ReadOnly);
    assert_eq!(ground.pool.create_thin(id(2)).unwrap_err().kind(), ErrorKind::ReadOnly);
    assert!(read(&*volume, 0, 2 * BLOCK) == bytes(2 * BLOCK, 1));
    let (metadata, data) = (ground.metadata.to_bytes(), ground.data.to_bytes());
    assert!(metadata[..4096] == superblock, "nothing was committed");

    let metadata = Arc::new(FaultyDevice::new(MemoryDevice::from_bytes(metadata)));
    let data = Arc::new(FaultyDevice::new(MemoryDevice::from_bytes(data)));
    let exporter = DirectExporter::new();
    let pool = Ground::open(&metadata, &data, &exporter);
    pool.activate(id(1), ByteCount(32 * BLOCK), Access::ReadWrite).unwrap();
    assert!(read(&*exporter.open(id(1)), 0, 2 * BLOCK) == bytes(2 * BLOCK, 1));
}

#[test]
fn a_failed_write_of_metadata_marks_the_pool_for_a_check() {
    let ground = Ground::new(64);
    let volume = ground.device(1, 32 * BLOCK);
    volume.write_at(&bytes(BLOCK, 1), 0).unwrap();
    ground.metadata.flush_fails_once.store(true, Ordering::SeqCst);
    assert_eq!(volume.flush().unwrap_err().kind(), ErrorKind::Io);
    let image = MemoryDevice::from_bytes(ground.metadata.to_bytes());
    assert_eq!(Metadata::open(Arc::new(image), OpenMode::ReadWrite).err().unwrap().kind(), ErrorKind::NeedsCheck);
    let image = MemoryDevice::from_bytes(ground.metadata.to_bytes());
    assert!(thinsnap_pool::audit(&image, &|_| ()).unwrap().is_sound(), "the last commit is whole");
}

#[test]
fn a_flush_is_at_hand_when_nothing_but_the_data_has_to_be_flushed() {
    let ground = Ground::new(64);
    let volume = ground.device(1, 32 * BLOCK);
    volume.write_at(&bytes(2 * BLOCK, 1), 0).unwrap();
    // Memory is quick; the thread may have been kept from its processor.
    let quick = || {
        volume.flush().unwrap();
        volume.write_at(&bytes(512, 2), 0).unwrap();
        volume.flush_at_hand().is_some_and(|done| done.is_ok())
    };
    assert!((0..1000).any(|_| quick()), "a block that is written in place needs no commit");
    volume.write_at(&bytes(BLOCK, 3), 8 * BLOCK).unwrap();
    assert!(volume.flush_at_hand().is_none(), "a mapping waits for its commit");
    assert!((0..1000).any(|_| quick()));
    ground.data.flush_fails.store(true, Ordering::SeqCst);
    // Slow or not, it is told once, and then the pool takes no writes.
    let failed = volume.flush_at_hand().unwrap_or_else(|| volume.flush()).unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::Io);
    assert_eq!(ground.pool.status().unwrap().mode, PoolMode::ReadOnly);
    assert!(volume.flush_at_hand().is_none() && volume.flush().is_err(), "it is not trusted again");
}

#[test]
fn an_acknowledged_write_whose_old_block_cannot_be_read_is_kept_and_done_by_a_later_start() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("intent.log");
    let options = EmbeddedOptions { intent_log: Some(log.clone()), ..EmbeddedOptions::default() };
    let ground = Ground::new(64);
    ground.pool.close().unwrap();
    let open = |exporter: &Arc<DirectExporter>| {
        let device: Arc<dyn BlockDevice> = Arc::clone(&ground.metadata) as _;
        let metadata = Metadata::open(Arc::clone(&device), OpenMode::ReadWrite).unwrap();
        let data = Arc::clone(&ground.data) as Arc<dyn BlockDevice>;
        EmbeddedPool::with_options(metadata, device, data, Arc::clone(exporter) as _, &options).unwrap()
    };
    let exporter = DirectExporter::new();
    let activate = |pool: &EmbeddedPool, exporter: &DirectExporter, number| {
        pool.activate(id(number), ByteCount(4 * BLOCK), Access::ReadWrite).unwrap();
        exporter.open(id(number))
    };
    let pool = open(&exporter);
    pool.create_thin(id(1)).unwrap();
    let volume = activate(&pool, &exporter, 1);
    volume.write_at(&bytes(4 * BLOCK, 1), 0).unwrap();
    pool.create_snap(id(2), id(1)).unwrap();
    read(&*volume, 0, 512);

    ground.data.reads_left.store(0, Ordering::SeqCst);
    assert!(volume.write_as_the_host(&bytes(4096, 7), BLOCK, false).unwrap());
    let failed = volume.flush().unwrap_err();
    assert!(failed.to_string().contains("a restart tries again"), "{failed}");
    ground.data.reads_left.store(u64::MAX, Ordering::SeqCst);
    // The block answers with errors, whatever is asked of it; the others go on.
    assert_eq!(volume.read_at(&mut [0; 512], BLOCK).unwrap_err().kind(), ErrorKind::Io);
    assert_eq!(volume.write_at(&[2; 512], 2 * BLOCK - 512).unwrap_err().kind(), ErrorKind::Io);
    assert_eq!(volume.discard(0, 4 * BLOCK).unwrap_err().kind(), ErrorKind::Io);
    assert!(read(&*volume, 0, BLOCK) == bytes(BLOCK, 1));
    volume.write_at(&[3; 512], 0).unwrap();
    // Nobody gets a copy in which the write is missing, and no flush says that it is safe.
    assert!(pool.create_snap(id(3), id(1)).is_err() && volume.flush().is_err());
    assert_eq!(pool.status().unwrap().mode, PoolMode::Write, "other devices need not suffer");
    pool.create_snap(id(4), id(2)).unwrap();
    drop(volume);
    assert!(pool.close().is_err());
    assert!(log.exists(), "the log stays as long as something waits beside it");

    drop(pool);
    // A start in which it cannot be done either serves all but its block.
    ground.data.reads_left.store(0, Ordering::SeqCst);
    let pool = open(&exporter);
    ground.data.reads_left.store(u64::MAX, Ordering::SeqCst);
    let volume = activate(&pool, &exporter, 1);
    assert_eq!(volume.read_at(&mut [0; 512], BLOCK).unwrap_err().kind(), ErrorKind::Io);
    assert!(read(&*volume, 2 * BLOCK, BLOCK) == bytes(BLOCK, 1));
    drop(volume);
    assert!(pool.close().is_err() && log.exists());
    drop(pool);
    let pool = open(&exporter);
    let volume = activate(&pool, &exporter, 1);
    let mut expected = bytes(BLOCK, 1);
    expected[..4096].fill(7);
    assert!(read(&*volume, BLOCK, BLOCK) == expected);
    volume.flush().unwrap();
    drop(volume);
    // Deleted with its device, it hinders nobody.
    ground.data.reads_left.store(0, Ordering::SeqCst);
    assert!(activate(&pool, &exporter, 4).write_as_the_host(&bytes(512, 9), 0, true).unwrap());
    pool.flush(id(4)).unwrap_err();
    pool.delete(id(4)).unwrap();
    ground.data.reads_left.store(u64::MAX, Ordering::SeqCst);
    pool.close().unwrap();
    assert!(!log.exists());
}

/// A pool with a device of several leaves, of which nothing is in memory.
fn nothing_in_memory() -> (Ground, Opened) {
    let mut ground = Ground::new(600);
    let volume = ground.device(1, 560 * BLOCK);
    for block in 0..560 {
        volume.write_at(&bytes(512, 1), block * BLOCK).unwrap();
    }
    volume.flush().unwrap();
    drop(volume);
    ground.pool.close().unwrap();
    ground.pool = Ground::open(&ground.metadata, &ground.data, &ground.exporter);
    let volume = ground.activate(1, 560 * BLOCK);
    (ground, volume)
}

/// Discards the first leaf. It is looked at before the change begins; in the midst of the change a neighbour is read,
/// to be evened out with it, and that is the read that fails: each try lets one more succeed and stay in memory.
fn fail_in_the_midst(ground: &Ground, mut discard: impl FnMut() -> bool) {
    for reads in 0..20 {
        ground.metadata.reads_left.store(reads.min(1), Ordering::SeqCst);
        assert!(discard(), "the change needed {reads} reads and none in its midst");
        if ground.pool.status().unwrap().mode != PoolMode::Write {
            return;
        }
    }
    panic!("no read of the change lies in its midst");
}

#[test]
fn a_read_error_in_the_midst_of_a_change_makes_the_pool_read_only_and_says_why() {
    let (ground, volume) = nothing_in_memory();
    fail_in_the_midst(&ground, || match volume.discard(0, 200 * BLOCK) {
        Ok(()) => false,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Io, "{error}");
            assert!(error.to_string().contains("Input/output error"), "{error}");
            true
        }
    });
    let status = ground.pool.status().unwrap();
    assert_eq!(status.mode, PoolMode::ReadOnly);
    assert!(status.reason.as_ref().unwrap().contains("Input/output error"), "{status:?}");
    ground.metadata.reads_left.store(u64::MAX, Ordering::SeqCst);
    for error in [volume.flush().unwrap_err(), ground.pool.create_thin(id(2)).unwrap_err()] {
        assert!(error.to_string().contains("Input/output error"), "{error}");
    }
    assert!(read(&*volume, 500 * BLOCK, 512) == bytes(512, 1), "reading goes on");
    let image = MemoryDevice::from_bytes(ground.metadata.to_bytes());
    assert!(thinsnap_pool::audit(&image, &|_| ()).unwrap().is_sound(), "the last commit is whole");
}

/// Records in the smallest intent log.
const LOG_RECORDS: u32 = 128;

#[test]
fn a_commit_that_a_full_intent_log_forces_may_fail_and_nothing_acknowledged_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let options = EmbeddedOptions {
        intent_log: Some(dir.path().join("intent.log")),
        intent_log_records: Some(LOG_RECORDS),
        ..EmbeddedOptions::default()
    };
    let ground = Ground::new(200);
    ground.pool.close().unwrap();
    let open = || {
        let device: Arc<dyn BlockDevice> = Arc::clone(&ground.metadata) as _;
        let metadata = Metadata::open(Arc::clone(&device), OpenMode::ReadWrite).unwrap();
        let (data, exporter) = (Arc::clone(&ground.data) as _, DirectExporter::new());
        let shown = Arc::clone(&exporter) as _;
        let pool = EmbeddedPool::with_options(metadata, device, data, shown, &options).unwrap();
        // Nobody but the full log commits.
        pool.set_commit_period(Duration::from_secs(10_000));
        (pool, exporter)
    };
    let (pool, exporter) = open();
    pool.create_thin(id(1)).unwrap();
    pool.activate(id(1), ByteCount(200 * BLOCK), Access::ReadWrite).unwrap();
    let volume = exporter.open(id(1));
    ground.data.flush_fails.store(true, Ordering::SeqCst);
    let written = (0..200).take_while(|&block| volume.write_at(&bytes(BLOCK, 1), block * BLOCK).is_ok()).count() as u64;
    assert!((1..=u64::from(LOG_RECORDS)).contains(&written), "{written} writes found room in the log");
    let error = volume.write_at(&bytes(BLOCK, 2), 190 * BLOCK).unwrap_err();
    assert!(error.to_string().contains("does not answer"), "{error}");
    let status = pool.status().unwrap();
    assert_eq!(status.mode, PoolMode::ReadOnly);
    assert!(status.reason.unwrap().contains("does not answer"));
    drop((volume, exporter, pool));

    ground.data.flush_fails.store(false, Ordering::SeqCst);
    let (pool, exporter) = open();
    pool.activate(id(1), ByteCount(200 * BLOCK), Access::ReadWrite).unwrap();
    let volume = exporter.open(id(1));
    assert!(read(&*volume, 0, written * BLOCK) == bytes(written * BLOCK, 1), "an acknowledged write is gone");
    assert!(read(&*volume, 190 * BLOCK, BLOCK) == bytes(BLOCK, 0));
    volume.flush().unwrap();
}

#[test]
fn a_pool_that_failed_says_so_and_why() {
    let (ground, volume) = nothing_in_memory();
    ground.metadata.panics.store(true, Ordering::SeqCst);
    fail_in_the_midst(&ground, || {
        let discard = std::panic::AssertUnwindSafe(|| volume.discard(0, 200 * BLOCK));
        !matches!(std::panic::catch_unwind(discard), Ok(Ok(())))
    });
    ground.metadata.reads_left.store(u64::MAX, Ordering::SeqCst);
    let status = ground.pool.status().unwrap();
    assert_eq!((status.mode, status.devices), (PoolMode::Fail, 1));
    assert!(status.reason.unwrap().contains("panicked"));
    assert_eq!(volume.flush().unwrap_err().kind(), ErrorKind::Io);
    assert_eq!(volume.write_at(&bytes(512, 1), 0).unwrap_err().kind(), ErrorKind::Io);
}
