//! What only the embedded engine can be asked: its data path, full pools, failing disks, many threads.

mod support {
    pub mod direct_exporter;
    pub mod faulty_device;
    pub mod random;
}

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use support::direct_exporter::{DirectExporter, Opened};
use support::faulty_device::FaultyDevice;
use support::random::Random;
use thinsnap_pool::{
    Access, BlockDevice, BlockSize, ByteCount, CreateOptions, DeviceId, Direction, EmbeddedOptions, EmbeddedPool,
    ErrorKind, Extents, FormatOptions, MemoryDevice, Metadata, OpenMode, PoolMode, PoolPaths, ThinPool, Volume,
};

const BLOCK: u64 = 64 * 1024;

struct Ground {
    metadata: Arc<FaultyDevice>,
    data: Arc<FaultyDevice>,
    exporter: Arc<DirectExporter>,
    pool: Arc<EmbeddedPool>,
}

impl Ground {
    fn new(blocks: u64) -> Self {
        Self::with_block_size(blocks, BLOCK)
    }

    fn with_block_size(blocks: u64, block_size: u64) -> Self {
        let metadata = MemoryDevice::new(2 << 20);
        let options = FormatOptions {
            block_size: BlockSize::from_bytes(block_size).unwrap(),
            data_blocks: blocks,
            metadata_blocks: 512,
            identity: [7; 16],
        };
        Metadata::format(&metadata, &options).unwrap();
        let metadata = Arc::new(FaultyDevice::new(metadata));
        let bytes = vec![0xa5; usize::try_from(blocks * block_size).unwrap()];
        let data = Arc::new(FaultyDevice::new(MemoryDevice::from_bytes(bytes)));
        let exporter = DirectExporter::new();
        let pool = Self::open(&metadata, &data, &exporter);
        Self { metadata, data, exporter, pool }
    }

    fn open(
        metadata_device: &Arc<FaultyDevice>,
        data: &Arc<FaultyDevice>,
        exporter: &Arc<DirectExporter>,
    ) -> Arc<EmbeddedPool> {
        let device: Arc<dyn BlockDevice> = Arc::clone(metadata_device) as _;
        let metadata = Metadata::open(Arc::clone(&device), OpenMode::ReadWrite).unwrap();
        Arc::new(EmbeddedPool::new(metadata, device, Arc::clone(data) as _, Arc::clone(exporter) as _).unwrap())
    }

    fn device(&self, number: u32, size: u64) -> Opened {
        self.pool.create_thin(id(number)).unwrap();
        self.activate(number, size)
    }

    fn activate(&self, number: u32, size: u64) -> Opened {
        self.pool.activate(id(number), ByteCount(size), Access::ReadWrite).unwrap();
        self.exporter.open(id(number))
    }
}

fn id(number: u32) -> DeviceId {
    DeviceId::new(number).unwrap()
}

fn bytes(len: u64, value: u8) -> Vec<u8> {
    vec![value; usize::try_from(len).unwrap()]
}

fn read(volume: &dyn Volume, offset: u64, len: u64) -> Vec<u8> {
    let mut buf = bytes(len, 0xee);
    volume.read_at(&mut buf, offset).unwrap();
    buf
}

#[test]
fn writes_of_new_blocks_read_nothing_and_whole_blocks_copy_nothing() {
    let ground = Ground::new(64);
    let volume = ground.device(1, 32 * BLOCK);
    volume.write_at(&bytes(16 * BLOCK, 1), 0).unwrap();
    assert_eq!(ground.data.writes.load(Ordering::SeqCst), 1, "one write for a contiguous request");
    volume.write_at(&bytes(4096, 2), 20 * BLOCK + 8192).unwrap();
    assert_eq!(ground.data.writes.load(Ordering::SeqCst), 2);
    ground.pool.create_snap(id(2), id(1)).unwrap();
    volume.write_at(&bytes(4 * BLOCK, 3), 4 * BLOCK).unwrap();
    assert_eq!(ground.data.reads.load(Ordering::SeqCst), 0, "nothing was read so far");
    volume.write_at(&bytes(4096, 4), 2 * BLOCK).unwrap();
    assert_eq!(ground.data.reads.load(Ordering::SeqCst), 1, "one read for one piece of a shared block");
}

#[test]
fn a_piece_of_a_large_new_block_is_surrounded_by_zeroes_and_of_a_shared_one_by_the_old_bytes() {
    let block = 3 << 20;
    let ground = Ground::with_block_size(8, block);
    let volume = ground.device(1, 4 * block);
    volume.write_at(&bytes(1000, 1), block + 1_500_000).unwrap();
    let mut model = bytes(4 * block, 0);
    let at = |offset: u64| usize::try_from(offset).unwrap();
    model[at(block + 1_500_000)..at(block + 1_501_000)].fill(1);
    assert!(read(&*volume, 0, 4 * block) == model);
    ground.pool.create_snap(id(2), id(1)).unwrap();
    volume.write_at(&bytes(2_000_000, 2), block + 400_000).unwrap();
    let old = model.clone();
    model[at(block + 400_000)..at(block + 2_400_000)].fill(2);
    assert!(read(&*volume, 0, 4 * block) == model);
    assert!(read(&*ground.activate(2, 4 * block), 0, 4 * block) == old);
}

#[test]
fn the_direct_way_is_open_for_reads_and_for_writes_in_place_only() {
    let dir = tempfile::tempdir().unwrap();
    let paths = PoolPaths::in_dir(dir.path());
    thinsnap_pool::create(&CreateOptions {
        paths: paths.clone(),
        data_size: Some(ByteCount(64 * BLOCK)),
        metadata_size: Some(ByteCount(4 << 20)),
        block_size: BlockSize::DEFAULT,
    })
    .unwrap();
    let exporter = DirectExporter::new();
    let pool =
        thinsnap_pool::open_embedded(&paths, Arc::clone(&exporter) as _, &thinsnap_pool::EmbeddedOptions::default())
            .unwrap();
    pool.create_thin(id(1)).unwrap();
    pool.activate(id(1), ByteCount(32 * BLOCK), Access::ReadWrite).unwrap();
    let volume = exporter.open(id(1));
    let ask = |direction, offset, len| {
        let mut extents = Extents::default();
        let token = volume.begin_direct(direction, offset, len, &mut extents)?;
        volume.end_direct(token);
        Some(extents.as_slice().to_vec())
    };
    let len = u32::try_from(16 * BLOCK).unwrap();
    assert_eq!(ask(Direction::Read, 0, len), None, "not looked up yet");
    assert!(read(&*volume, 0, 16 * BLOCK).iter().all(|&byte| byte == 0));
    assert_eq!(ask(Direction::Read, 0, len).unwrap(), [thinsnap_pool::Extent { offset: None, len }]);
    assert_eq!(ask(Direction::Write, 0, len), None, "holes");
    volume.write_at(&bytes(16 * BLOCK, 1), 0).unwrap();
    let extents = ask(Direction::Write, 0, len).unwrap();
    assert_eq!(extents.len(), 1, "a sequential write is one run of data blocks: {extents:?}");
    assert_eq!(ask(Direction::Write, 1, 4096), None, "off the alignment");
    assert_eq!(ask(Direction::Read, 31 * BLOCK, len), None, "past the end");

    pool.create_snap(id(2), id(1)).unwrap();
    assert_eq!(ask(Direction::Write, 0, 4096), None, "shared");
    assert!(ask(Direction::Read, 0, 4096).is_some());
    volume.write_at(&bytes(4096, 2), 0).unwrap();
    assert!(ask(Direction::Write, 0, 4096).is_some(), "sharing is broken");
    assert_eq!(ask(Direction::Write, BLOCK, 4096), None, "the next block is still shared");
    pool.activate(id(2), ByteCount(32 * BLOCK), Access::ReadOnly).unwrap();
    let snapshot = exporter.open(id(2));
    assert!(read(&*snapshot, 0, 16 * BLOCK).iter().all(|&byte| byte == 1));
    assert_eq!(snapshot.write_at(&bytes(512, 1), 0).unwrap_err().kind(), ErrorKind::ReadOnly);
}

#[test]
fn a_full_pool_goes_on_reading_rewriting_deleting_and_discarding() {
    let ground = Ground::new(16);
    let volume = ground.device(1, 32 * BLOCK);
    let full = ground.device(2, 32 * BLOCK);
    volume.write_at(&bytes(8 * BLOCK, 1), 0).unwrap();
    full.write_at(&bytes(8 * BLOCK, 2), 0).unwrap();
    let error = volume.write_at(&bytes(4096, 3), 20 * BLOCK).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfDataSpace);
    let status = ground.pool.status().unwrap();
    assert_eq!(status.mode, PoolMode::OutOfDataSpace);
    assert!(status.reason.is_some());

    volume.write_at(&bytes(4096, 4), 4096).unwrap();
    assert!(read(&*volume, 4096, 4096) == bytes(4096, 4));
    assert!(read(&*volume, 20 * BLOCK, 4096) == bytes(4096, 0), "the failed write left nothing");
    ground.pool.create_snap(id(3), id(1)).unwrap();
    assert_eq!(volume.write_at(&bytes(512, 5), 0).unwrap_err().kind(), ErrorKind::OutOfDataSpace);

    // Freed in the running transaction: the write commits and finds the blocks.
    full.discard(0, 2 * BLOCK).unwrap();
    volume.write_at(&bytes(BLOCK, 5), 0).unwrap();
    volume.flush().unwrap();
    assert_eq!(ground.pool.status().unwrap().mode, PoolMode::Write);
    drop(full);
    ground.pool.delete(id(2)).unwrap();
    volume.write_at(&bytes(6 * BLOCK, 6), 20 * BLOCK).unwrap();
    assert!(read(&*volume, 20 * BLOCK, 6 * BLOCK) == bytes(6 * BLOCK, 6));
}

#[test]
fn a_full_pool_that_grows_takes_writes_again() {
    let ground = Ground::new(4);
    let volume = ground.device(1, 32 * BLOCK);
    volume.write_at(&bytes(4 * BLOCK, 1), 0).unwrap();
    assert_eq!(volume.write_at(&bytes(1, 1), 5 * BLOCK).unwrap_err().kind(), ErrorKind::OutOfDataSpace);
    ground.pool.grow(Some(ByteCount(8 * BLOCK)), None).unwrap();
    assert_eq!(ground.pool.status().unwrap().mode, PoolMode::Write);
    volume.write_at(&bytes(4 * BLOCK, 2), 5 * BLOCK).unwrap();
    assert!(read(&*volume, 5 * BLOCK, 4 * BLOCK) == bytes(4 * BLOCK, 2));
}

#[test]
fn a_full_file_system_below_is_out_of_data_space_until_a_write_finds_room() {
    let ground = Ground::new(64);
    let volume = ground.device(1, 32 * BLOCK);
    volume.write_at(&bytes(4 * BLOCK, 1), 0).unwrap();
    ground.data.full.store(true, Ordering::SeqCst);
    assert_eq!(volume.write_at(&bytes(BLOCK, 2), 8 * BLOCK).unwrap_err().kind(), ErrorKind::OutOfDataSpace);
    assert_eq!(ground.pool.status().unwrap().mode, PoolMode::OutOfDataSpace);
    volume.flush().unwrap();
    assert_eq!(ground.pool.status().unwrap().mode, PoolMode::OutOfDataSpace, "a commit alone makes no room below");
    assert!(read(&*volume, 8 * BLOCK, BLOCK) == bytes(BLOCK, 0));
    ground.data.full.store(false, Ordering::SeqCst);
    volume.write_at(&bytes(BLOCK, 3), 8 * BLOCK).unwrap();
    assert_eq!(ground.pool.status().unwrap().mode, PoolMode::Write);
    assert_eq!(ground.pool.status().unwrap().data.used.0, 5 * BLOCK, "the failed write holds no block");
}

#[test]
fn a_failed_commit_makes_the_pool_read_only_and_the_last_commit_opens_again() {
    let ground = Ground::new(64);
    let volume = ground.device(1, 32 * BLOCK);
    volume.write_at(&bytes(2 * BLOCK, 1), 0).unwrap();
    volume.flush().unwrap();
    let (metadata, data) = (ground.metadata.to_bytes(), ground.data.to_bytes());
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
    assert!(ground.metadata.to_bytes() == metadata, "nothing was committed");

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
    let options =
        EmbeddedOptions { intent_log: Some(dir.path().join("intent.log")), intent_log_records: Some(LOG_RECORDS) };
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

/// Mappings far apart cost a leaf each; snapshots make every leaf change cost a copy.
#[test]
fn a_pool_without_metadata_space_goes_on_reading_deleting_and_growing() {
    let ground = Ground::new(4096);
    let size = 400_000 * BLOCK;
    let volume = ground.device(1, size);
    let small = ground.device(0, BLOCK);
    small.write_at(&bytes(512, 1), 0).unwrap();
    drop(small);
    let full = (0..4000_u64).map(|number| volume.write_at(&bytes(512, 1), number * 97 * BLOCK)).find_map(Result::err);
    let full = match full {
        Some(e) => e,
        None => (2..4096).map(|number| ground.pool.create_thin(id(number))).find_map(Result::err).unwrap(),
    };
    assert_eq!(full.kind(), ErrorKind::OutOfMetadataSpace, "{full}");
    assert_eq!(ground.pool.status().unwrap().mode, PoolMode::Write);
    assert!(read(&*volume, 0, 512) == bytes(512, 1));
    volume.write_at(&bytes(512, 2), 0).unwrap();
    volume.flush().unwrap();
    ground.pool.delete(id(0)).unwrap();
    let total = ground.pool.status().unwrap().metadata.total;
    ground.pool.grow(None, Some(ByteCount(2 * total.0))).unwrap();
    volume.write_at(&bytes(512, 3), 399_999 * BLOCK).unwrap();
    ground.pool.create_snap(id(100_000), id(1)).unwrap();
    drop(volume);
    ground.pool.delete(id(1)).unwrap();
    ground.pool.close().unwrap();
    let image = MemoryDevice::from_bytes(ground.metadata.to_bytes());
    let report = thinsnap_pool::audit(&image, &|_| ()).unwrap();
    assert!(report.is_sound(), "{report:#?}");
}

#[test]
fn freed_blocks_are_discarded_after_their_commit_and_not_before() {
    let ground = Ground::new(64);
    let volume = ground.device(1, 32 * BLOCK);
    volume.write_at(&bytes(8 * BLOCK, 1), 0).unwrap();
    volume.flush().unwrap();
    volume.discard(0, 8 * BLOCK).unwrap();
    assert_eq!(ground.data.discards.load(Ordering::SeqCst), 0);
    drop(volume);
    ground.pool.close().unwrap();
    assert!(ground.data.discards.load(Ordering::SeqCst) > 0);
    assert!(!ground.data.to_bytes().contains(&1), "the bytes are gone");
}

#[test]
fn pools_of_many_devices_are_deleted_and_created_by_many_threads_at_once() {
    let ground = Ground::new(512);
    let threads: Vec<_> = (0..6_u32)
        .map(|thread| {
            let (pool, exporter) = (Arc::clone(&ground.pool), Arc::clone(&ground.exporter));
            std::thread::spawn(move || {
                for round in 0..15_u32 {
                    let (base, snap) = (id(thread * 1000 + round * 2), id(thread * 1000 + round * 2 + 1));
                    pool.create_thin(base).unwrap();
                    pool.activate(base, ByteCount(8 * BLOCK), Access::ReadWrite).unwrap();
                    let value = u8::try_from(thread * 16 + round).unwrap();
                    exporter.open(base).write_at(&bytes(8 * BLOCK, value), 0).unwrap();
                    pool.create_snap(snap, base).unwrap();
                    exporter.open(base).write_at(&bytes(4096, 0xff), 0).unwrap();
                    pool.delete(base).unwrap();
                    pool.activate(snap, ByteCount(8 * BLOCK), Access::ReadOnly).unwrap();
                    assert!(read(&*exporter.open(snap), 0, 8 * BLOCK) == bytes(8 * BLOCK, value));
                    assert!(pool.deactivate(snap).unwrap());
                    pool.delete(snap).unwrap();
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let status = ground.pool.status().unwrap();
    assert_eq!((status.devices, status.data.used.0, status.active_devices), (0, 0, 0));
}

/// Writers put rising numbers into pages; whoever looks at a snapshot must find each page whole, not older
/// than what was acknowledged before the snapshot and not newer than what was begun after it.
#[test]
fn snapshots_under_load_hold_what_was_acknowledged_and_tear_nothing() {
    const PAGES: u64 = 256;
    const PAGE: u64 = 4096;
    let ground = Ground::new(1024);
    let _active = ground.device(1, PAGES * PAGE);
    let begun: Arc<Vec<AtomicU64>> = Arc::new((0..PAGES).map(|_| AtomicU64::new(0)).collect());
    let acknowledged: Arc<Vec<AtomicU64>> = Arc::new((0..PAGES).map(|_| AtomicU64::new(0)).collect());
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..4_u64)
        .map(|writer| {
            let (begun, acknowledged, stop) = (Arc::clone(&begun), Arc::clone(&acknowledged), Arc::clone(&stop));
            let volume = ground.exporter.open(id(1));
            std::thread::spawn(move || {
                let mut random = Random::new(writer);
                let mut number = 0_u64;
                while !stop.load(Ordering::SeqCst) {
                    number += 1;
                    // Each writer has every fourth page: neighbours in a block belong to others.
                    let page = random.below(PAGES / 4) * 4 + writer;
                    let slot = usize::try_from(page).unwrap();
                    begun[slot].store(number, Ordering::SeqCst);
                    volume.write_at(&number.to_le_bytes().repeat(512), page * PAGE).unwrap();
                    acknowledged[slot].store(number, Ordering::SeqCst);
                }
            })
        })
        .collect();
    let load = |values: &[AtomicU64]| -> Vec<u64> { values.iter().map(|v| v.load(Ordering::SeqCst)).collect() };
    for snapshot in 2..60 {
        let before = load(&acknowledged);
        ground.pool.create_snap(id(snapshot), id(1)).unwrap();
        let after = load(&begun);
        let volume = ground.activate(snapshot, PAGES * PAGE);
        for page in 0..PAGES {
            let content = read(&*volume, page * PAGE, PAGE);
            let number: [u8; 8] = content[..8].try_into().unwrap();
            assert!(content.chunks_exact(8).all(|word| word == number), "page {page} is torn");
            let (number, slot) = (u64::from_le_bytes(number), usize::try_from(page).unwrap());
            assert!((before[slot]..=after[slot]).contains(&number), "page {page} holds {number}");
        }
        drop(volume);
        if snapshot % 2 == 0 {
            ground.pool.delete(id(snapshot)).unwrap();
        }
    }
    stop.store(true, Ordering::SeqCst);
    for writer in writers {
        writer.join().unwrap();
    }
    ground.pool.flush(id(1)).unwrap();
}
