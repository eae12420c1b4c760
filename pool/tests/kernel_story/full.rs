//! Features of a pool, and what they mean when it is full.

use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::Duration;

use thinsnap_pool::{Access, ByteCount, DeviceId, Discards, KernelOptions, PoolFeatures, PoolMode, ThinPool, WhenFull};

use crate::host_tools::{eventually, run};
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
