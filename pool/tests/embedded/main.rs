//! What only the embedded engine can be asked: its data path, full pools, failing disks, many threads.

// All of this is test code, helpers too: clippy lets tests unwrap.
#![cfg(test)]

#[path = "../support"]
mod support {
    pub(crate) mod direct_exporter;
    pub(crate) mod faulty_device;
    pub(crate) mod random;
}
mod failing;
mod ground;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ground::{BLOCK, Ground, bytes, id, read};
use support::direct_exporter::DirectExporter;
use support::random::Random;
use thinsnap_pool::{
    Access, BlockSize, ByteCount, CreateOptions, Direction, ErrorKind, Extents, MemoryDevice, PoolMode, PoolPaths,
    ThinPool,
};

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
