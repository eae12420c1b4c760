//! Features of a pool, and what they mean when it is full.

use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::Duration;

use thinsnap_pool::{
    Access, ByteCount, DeviceId, Discards, ErrorKind, KernelOptions, NoSpace, PoolFeatures, PoolMode, ThinPool,
    WhenFull,
};

use crate::host_tools::{eventually, run};
use crate::kernel_story::disks::Disks;
use crate::support::disk::Disk;
use crate::support::kernel_stage::KernelDir;
use crate::support::stage::{BLOCK, DATA_SIZE, OpenDisk};
use crate::turn;

fn id(number: u32) -> DeviceId {
    DeviceId::new(number).unwrap()
}

/// Writes one data block past the page cache, in a thread's own time.
fn write_block(path: &std::path::Path, block: u64) -> std::io::Result<()> {
    let file = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path)?;
    let memory = vec![3; 65536 + 4096];
    let start = memory.as_ptr().align_offset(4096);
    file.write_all_at(&memory[start..start + 65536], block * BLOCK)
}

#[test]
#[ignore = "make test-kernel runs it: it needs a kernel with dm-thin"]
fn root_a_full_pool_fails_writes_at_once_and_works_again_when_it_has_grown() {
    let Some(_turn) = turn() else { return };
    let dir = KernelDir::new();
    let pool = dir.open();
    pool.create_thin(id(1)).unwrap();
    let path = pool.activate(id(1), ByteCount(2 * DATA_SIZE.0), Access::ReadWrite).unwrap();
    let blocks = DATA_SIZE.0 / BLOCK;
    for block in 0..blocks {
        write_block(&path, block).unwrap();
    }
    assert_eq!(write_block(&path, blocks).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    let status = pool.status().unwrap();
    assert_eq!(status.mode, PoolMode::OutOfDataSpace);
    assert!(status.reason.unwrap().contains("fail"));
    // What is mapped is written, and devices come and go.
    write_block(&path, 0).unwrap();
    pool.create_snap(id(2), id(1)).unwrap();
    pool.delete(id(2)).unwrap();
    pool.grow(Some(ByteCount(2 * DATA_SIZE.0)), None).unwrap();
    write_block(&path, blocks).unwrap();
    let status = pool.status().unwrap();
    assert_eq!((status.mode, status.reason), (PoolMode::Write, None));
    pool.close().unwrap();
}

#[test]
#[ignore = "make test-kernel runs it: it needs a kernel with dm-thin"]
fn root_writes_wait_for_a_full_pool_to_grow_if_that_is_wanted() {
    let Some(_turn) = turn() else { return };
    let dir = KernelDir::new();
    let features = PoolFeatures { when_full: WhenFull::Wait, ..PoolFeatures::default() };
    let options = KernelOptions { features, ..dir.options() };
    let pool = thinsnap_pool::open_kernel(&dir.paths(), &options).unwrap();
    pool.create_thin(id(1)).unwrap();
    pool.create_thin(id(2)).unwrap();
    let path = pool.activate(id(1), ByteCount(2 * DATA_SIZE.0), Access::ReadWrite).unwrap();
    let blocks = DATA_SIZE.0 / BLOCK;
    for block in 0..blocks {
        write_block(&path, block).unwrap();
    }
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| write_block(&path, blocks));
        eventually("the pool is out of space", || pool.status().unwrap().mode == PoolMode::OutOfDataSpace);
        assert!(pool.status().unwrap().reason.unwrap().contains("wait"));
        // A snapshot of the device whose write waits is made all the same.
        pool.create_snap(id(3), id(1)).unwrap();
        assert!(!waiting.is_finished());
        pool.grow(Some(ByteCount(2 * DATA_SIZE.0)), None).unwrap();
        waiting.join().unwrap().unwrap();
    });
    let steady = thinsnap_pool::Steady {
        mode: PoolMode::OutOfDataSpace,
        data_room: (ByteCount(0), ByteCount(0)),
        metadata_room: (ByteCount(0), ByteCount(u64::MAX)),
        writes_wait: false,
    };
    assert_eq!(pool.wait_status(&steady, Duration::from_secs(60)).unwrap().mode, PoolMode::Write);
    pool.close().unwrap();
}

#[test]
#[ignore = "make test-kernel runs it: it needs a kernel with dm-thin"]
fn root_features_are_what_was_asked_for_and_change_while_it_runs() {
    let Some(_turn) = turn() else { return };
    let dir = KernelDir::new();
    let pool = dir.open();
    let name = format!("{}pool", KernelDir::prefix(&pool));
    let table = || run("dmsetup", ["table", &name]).trim().to_owned();
    assert!(table().ends_with(" 128 0 2 no_discard_passdown error_if_no_space"), "{}", table());
    let features =
        PoolFeatures { zero_new_blocks: false, discards: Discards::PassDown, when_full: WhenFull::Wait, low_water: 12 };
    pool.create_thin(id(1)).unwrap();
    let path = pool.activate(id(1), ByteCount(BLOCK), Access::ReadWrite).unwrap();
    pool.set_features(features).unwrap();
    assert!(table().ends_with(" 128 12 1 skip_block_zeroing"), "{}", table());
    Disk::open(&path).write(&[1; 4096], 0);
    drop(pool);
    // Who opens a pool that runs gives it the features that he wants.
    let pool = dir.open();
    assert!(table().ends_with(" 128 0 2 no_discard_passdown error_if_no_space"), "{}", table());
    pool.close().unwrap();
}

/// A block of a device that is opened for it, at a pool that may be full.
fn read_block(path: &std::path::Path, block: u64) -> u8 {
    let mut bytes = vec![0; 65536];
    Disk::open(path).read(&mut bytes, block * BLOCK);
    bytes[0]
}

#[test]
#[ignore = "make test-kernel runs it: it needs a kernel with dm-thin"]
fn root_at_zero_bytes_free_everything_but_new_blocks_goes_on() {
    let Some(_turn) = turn() else { return };
    let dir = KernelDir::new();
    let pool = dir.open();
    for number in [1, 2] {
        pool.create_thin(id(number)).unwrap();
    }
    let size = ByteCount(2 * DATA_SIZE.0);
    let path = pool.activate(id(1), size, Access::ReadWrite).unwrap();
    let other = pool.activate(id(2), size, Access::ReadWrite).unwrap();
    let blocks = DATA_SIZE.0 / BLOCK;
    for block in 0..blocks - 8 {
        write_block(&path, block).unwrap();
    }
    for block in 0..8 {
        write_block(&other, block).unwrap();
    }
    for wait in [Duration::ZERO, Duration::from_secs(20)] {
        pool.set_no_space(NoSpace { wait, ..NoSpace::default() }).unwrap();
        let waiting = std::thread::scope(|scope| {
            let writer = scope.spawn(|| write_block(&other, 100));
            eventually("the pool is out of space", || pool.status().unwrap().mode == PoolMode::OutOfDataSpace);
            let begun = std::time::Instant::now();
            let status = pool.status().unwrap();
            assert_eq!(status.data.free(), ByteCount(0));
            assert_eq!(status.data_room(), ByteCount(0));
            // Reads, writes in place, questions, snapshots and their deletion.
            assert_eq!(read_block(&path, 5), 3);
            // Device 1 has had snapshots: what it shared once is copied once more, which takes a block.
            write_block(&other, 5).unwrap();
            assert_eq!(pool.usage(id(1)).unwrap().mapped, ByteCount((blocks - 8) * BLOCK));
            pool.create_snap(id(9), id(1)).unwrap();
            pool.delete(id(9)).unwrap();
            assert!(begun.elapsed() < Duration::from_secs(15), "somebody waited behind the writer");
            assert!(!wait.is_zero() || writer.is_finished(), "it was to be told at once");
            // A discard makes the room that the writer needs, or a later one.
            Disk::open(&path).discard(0, BLOCK);
            let done = writer.join().unwrap();
            assert_eq!(done.is_ok(), !wait.is_zero(), "waits {wait:?}: {done:?}");
            done.is_ok()
        });
        if !waiting {
            eventually("there is room again", || write_block(&other, 100).is_ok());
        }
        // As full as before.
        Disk::open(&other).discard(100 * BLOCK, BLOCK);
        eventually("the block is taken again", || write_block(&path, 0).is_ok());
    }
    // Deletion makes room, and growth does; each without a restart.
    assert!(pool.deactivate(id(2)).unwrap());
    pool.delete(id(2)).unwrap();
    eventually("what was deleted can be written", || write_block(&path, blocks).is_ok());
    pool.grow(Some(ByteCount(2 * DATA_SIZE.0)), None).unwrap();
    for block in 0..blocks + 8 {
        write_block(&path, block).unwrap();
    }
    assert_eq!(pool.status().unwrap().mode, PoolMode::Write);
    pool.close().unwrap();
}

#[test]
#[ignore = "make test-kernel runs it: it needs a kernel with dm-thin"]
fn root_a_write_waits_no_longer_than_the_kernels_own_bound() {
    let Some(_turn) = turn() else { return };
    const BOUND: &str = "/sys/module/dm_thin_pool/parameters/no_space_timeout";
    let before = std::fs::read_to_string(BOUND).unwrap();
    std::fs::write(BOUND, "2").unwrap();
    let dir = KernelDir::new();
    let pool = dir.open();
    pool.set_no_space(NoSpace { wait: Duration::from_secs(3600), ..NoSpace::default() }).unwrap();
    pool.create_thin(id(1)).unwrap();
    let path = pool.activate(id(1), ByteCount(2 * DATA_SIZE.0), Access::ReadWrite).unwrap();
    let blocks = DATA_SIZE.0 / BLOCK;
    for block in 0..blocks {
        write_block(&path, block).unwrap();
    }
    let begun = std::time::Instant::now();
    let error = write_block(&path, blocks).unwrap_err();
    std::fs::write(BOUND, before.trim()).unwrap();
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    assert!(begun.elapsed() >= Duration::from_secs(1), "it waited");
    // From then on writers are told at once, until there is room.
    assert!(pool.status().unwrap().reason.unwrap().contains("fail"));
    pool.grow(Some(ByteCount(2 * DATA_SIZE.0)), None).unwrap();
    write_block(&path, blocks).unwrap();
    pool.close().unwrap();
}

#[test]
#[ignore = "make test-kernel runs it: it needs a kernel with dm-thin"]
fn root_metadata_that_is_full_loses_nothing_and_works_again() {
    let Some(_turn) = turn() else { return };
    let mut disks = Disks::new(256, 512);
    let pool = thinsnap_pool::open_kernel(&disks.paths(), &disks.kernel_options()).unwrap();
    pool.create_thin(id(1)).unwrap();
    let path = pool.activate(id(1), ByteCount(BLOCK), Access::ReadWrite).unwrap();
    write_block(&path, 0).unwrap();
    assert!(pool.deactivate(id(1)).unwrap());
    // Each device has a node of its own.
    let mut made = vec![id(1)];
    let error = loop {
        let next = id(u32::try_from(made.len()).unwrap() + 1);
        match pool.create_thin(next) {
            Ok(()) => made.push(next),
            Err(e) => break e,
        }
        assert!(made.len() < 512, "512 blocks hold no 512 devices");
    };
    let status = pool.status().unwrap();
    println!("{} devices, then {error}; {:?}, {:?}", made.len(), status.mode, status.reason);
    assert_eq!(status.mode, PoolMode::ReadOnly);
    let path = pool.activate(id(1), ByteCount(BLOCK), Access::ReadOnly).unwrap();
    assert_eq!(read_block(&path, 0), 3);
    assert!(pool.deactivate(id(1)).is_ok_and(|gone| gone) || pool.active_path(id(1)).unwrap().is_none());
    let refused = pool.delete(made[1]).unwrap_err();
    assert!(
        matches!(refused.kind(), ErrorKind::OutOfMetadataSpace | ErrorKind::NeedsCheck | ErrorKind::ReadOnly),
        "{refused}"
    );
    // Where the kernel has only stopped, growth is enough; where it went back to the last commit it wants a check.
    let grown = {
        disks.grow(256, 1024);
        pool.grow(None, Some(ByteCount(1024 * 4096)))
    };
    pool.close().ok();
    drop(pool);
    if disks.image()[4] & 1 == 1 {
        let disk = thinsnap_pool::FileDevice::open(&disks.paths().metadata).unwrap();
        assert!(thinsnap_pool::clear_needs_check(&disk).unwrap());
    } else {
        println!("growth: {grown:?}");
    }
    let pool = thinsnap_pool::open_kernel(&disks.paths(), &disks.kernel_options()).unwrap();
    pool.grow(None, Some(ByteCount(1024 * 4096))).unwrap();
    assert_eq!(pool.status().unwrap().mode, PoolMode::Write);
    let listed = pool.devices().unwrap();
    assert!(made.iter().all(|device| listed.contains(device)), "what was answered for was durable");
    let path = pool.activate(id(1), ByteCount(BLOCK), Access::ReadWrite).unwrap();
    assert_eq!(read_block(&path, 0), 3);
    pool.create_thin(id(2000)).unwrap();
    pool.close().unwrap();
    crate::support::judges::assert_thin_check_accepts(&disks.image(), "after full metadata");
}
