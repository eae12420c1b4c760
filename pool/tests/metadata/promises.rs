//! What metadata promises, one promise a test.

use std::sync::Arc;

use crate::block_kind::Kind;
use crate::facts::golden;
use crate::judges::{assert_device_sound, assert_sound, assert_thin_check_accepts, thin_dump, thin_restore};
use crate::story::mappings;
use crate::surgeon::operate;
use thinsnap_pool::{
    BlockDevice, BlockSize, DataBlock, DataRun, DeviceId, ErrorKind, FormatOptions, MemoryDevice, Metadata, OpenMode,
    VirtualBlock, audit,
};

const IDENTITY: [u8; 16] = [0, 1, 2, 60, 62, 34, 38, 200, 255, 254, 10, 13, 9, 128, 127, 77];

fn id(number: u32) -> DeviceId {
    DeviceId::new(number).unwrap()
}

fn options(metadata_blocks: u64, data_blocks: u64) -> FormatOptions {
    FormatOptions { block_size: BlockSize::DEFAULT, data_blocks, metadata_blocks, identity: IDENTITY }
}

fn open(device: &Arc<MemoryDevice>) -> Metadata {
    Metadata::open(Arc::clone(device) as Arc<dyn BlockDevice>, OpenMode::ReadWrite).unwrap()
}

fn pool(metadata_blocks: u64, data_blocks: u64) -> (Arc<MemoryDevice>, Metadata) {
    let device = Arc::new(MemoryDevice::new(metadata_blocks * 4096));
    Metadata::format(&*device, &options(metadata_blocks, data_blocks)).unwrap();
    let metadata = open(&device);
    (device, metadata)
}

/// Commits, gives freed data blocks back, and returns how many blocks were written.
fn commit(device: &MemoryDevice, metadata: &mut Metadata) -> usize {
    let Some(frozen) = metadata.freeze().unwrap() else { return 0 };
    frozen.write(device).unwrap();
    let written = frozen.block_count();
    let freed = metadata.committed(frozen);
    metadata.release_data(&freed);
    written
}

fn write(metadata: &mut Metadata, device: u32, start: u64, len: u64) -> DataRun {
    let run = metadata.reserve_data(len).unwrap();
    assert_eq!(run.len, len);
    metadata.insert(id(device), VirtualBlock(start), run).unwrap();
    run
}

#[test]
fn a_new_pool_is_empty_and_every_judge_accepts_it() {
    for (metadata_blocks, data_blocks) in [(512, 0), (512, 1), (512, 16_320), (512, 16_321), (20_000, 5_000_000)] {
        let (device, metadata) = pool(metadata_blocks, data_blocks);
        assert_eq!((metadata.device_count().unwrap(), metadata.time(), metadata.transaction_id()), (0, 0, 0));
        assert_eq!(metadata.identity(), IDENTITY);
        assert_eq!((metadata.data_space().total, metadata.data_space().used), (data_blocks, 0));
        let bitmaps = data_blocks.div_ceil(16_320) + metadata_blocks.div_ceil(16_320);
        let tree = if data_blocks.div_ceil(16_320) > 168 { 3 } else { 1 };
        assert_eq!(metadata.metadata_space().0.used, 6 + tree + bitmaps);
        assert_device_sound(&*device, "new");
        assert_thin_check_accepts(&device.to_bytes(), "new");
    }
}

#[test]
fn a_device_that_holds_something_is_not_formatted() {
    let (device, _) = pool(512, 100);
    let before = device.to_bytes();
    let error = Metadata::format(&*device, &options(512, 100)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert_eq!(device.to_bytes(), before);
}

#[test]
fn sizes_that_cannot_work_are_refused() {
    let device = MemoryDevice::new(4096 * 1000);
    for (metadata_blocks, data_blocks) in [(511, 10), (1001, 10), (4_161_601, 10), (512, 1 << 41), (512, 16_320 * 300)]
    {
        let error = Metadata::format(&device, &options(metadata_blocks, data_blocks)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{metadata_blocks} {data_blocks}");
    }
    let nothing: Arc<dyn BlockDevice> = Arc::new(device);
    assert_eq!(Metadata::open(nothing, OpenMode::ReadOnly).err().unwrap().kind(), ErrorKind::NotFound);
}

/// Six more than the kernel needs would be no loss; more than that would show in every flush.
#[test]
fn one_new_mapping_costs_eight_blocks() {
    let (device, mut metadata) = pool(1024, 10_000);
    metadata.create_thin(id(0)).unwrap();
    commit(&device, &mut metadata);
    write(&mut metadata, 0, 5, 1);
    assert_eq!(commit(&device, &mut metadata), 8);
    assert_eq!(commit(&device, &mut metadata), 0, "nothing changed");
}

/// The second test of the shadow rule: a block made in this generation may have been shared in it.
#[test]
fn a_snapshot_of_an_uncommitted_device_keeps_its_mappings() {
    let (device, mut metadata) = pool(1024, 10_000);
    metadata.create_thin(id(0)).unwrap();
    let old = write(&mut metadata, 0, 0, 10);
    metadata.create_snap(id(1), id(0)).unwrap();
    let new = write(&mut metadata, 0, 3, 1);
    let mapping = |metadata: &Metadata, device, block| metadata.lookup(id(device), VirtualBlock(block)).unwrap();
    assert_eq!(mapping(&metadata, 0, 3).unwrap().block, new.start);
    assert_eq!(mapping(&metadata, 1, 3).unwrap().block, old.start.plus(3));
    assert_eq!((mapping(&metadata, 1, 3).unwrap().time, mapping(&metadata, 0, 3).unwrap().time), (0, 1));
    commit(&device, &mut metadata);
    assert_device_sound(&*device, "snapshot within a generation");
    assert_thin_check_accepts(&device.to_bytes(), "snapshot within a generation");
}

#[test]
fn a_snapshot_costs_the_same_whatever_it_shares() {
    let (device, mut metadata) = pool(8192, 200_000);
    metadata.create_thin(id(0)).unwrap();
    let small = {
        commit(&device, &mut metadata);
        metadata.create_snap(id(1), id(0)).unwrap();
        commit(&device, &mut metadata)
    };
    write(&mut metadata, 0, 0, 100_000);
    commit(&device, &mut metadata);
    metadata.create_snap(id(2), id(0)).unwrap();
    assert_eq!(commit(&device, &mut metadata), small);
    let usage = metadata.usage(id(2)).unwrap();
    assert_eq!((usage.exclusive.0, usage.written.0, usage.mapped.0), (0, 0, 100_000 * 65_536));
    assert!(metadata.delta(id(0), id(2)).unwrap().is_empty());
}

#[test]
fn appending_fills_leaves_to_two_thirds_and_runs_fill_them_whole() {
    let (device, mut metadata) = pool(8192, 200_000);
    metadata.create_thin(id(0)).unwrap();
    commit(&device, &mut metadata);
    let before = metadata.metadata_space().0.used;
    for block in 0..25_200 {
        write(&mut metadata, 0, block, 1);
    }
    commit(&device, &mut metadata);
    let one_by_one = metadata.metadata_space().0.used - before;
    assert!(one_by_one <= 25_200 / 168 + 4, "{one_by_one} blocks");
    metadata.create_thin(id(1)).unwrap();
    commit(&device, &mut metadata);
    let before = metadata.metadata_space().0.used;
    write(&mut metadata, 1, 0, 25_200);
    commit(&device, &mut metadata);
    let at_once = metadata.metadata_space().0.used - before;
    assert!(at_once <= 25_200 / 252 + 3, "{at_once} blocks");
    assert_device_sound(&*device, "appended");
}

#[test]
fn a_generation_on_its_way_is_not_disturbed_by_the_next() {
    let (device, mut metadata) = pool(1024, 10_000);
    metadata.create_thin(id(0)).unwrap();
    let first = write(&mut metadata, 0, 0, 300);
    let frozen = metadata.freeze().unwrap().unwrap();
    assert!(!metadata.dirty());
    let second = write(&mut metadata, 0, 100, 1);
    metadata.create_snap(id(1), id(0)).unwrap();
    metadata.remove_range(id(0), VirtualBlock(0)..VirtualBlock(50)).unwrap();
    frozen.write(&*device).unwrap();
    assert!(metadata.committed(frozen).is_empty());

    let state = open(&device);
    assert_eq!(state.devices().unwrap().len(), 1);
    assert_eq!(mappings(&state, id(0)).len(), 300);
    assert_eq!(state.lookup(id(0), VirtualBlock(100)).unwrap().unwrap().block, first.start.plus(100));
    assert_device_sound(&*device, "first generation");

    commit(&device, &mut metadata);
    let state = open(&device);
    assert_eq!(state.lookup(id(1), VirtualBlock(100)).unwrap().unwrap().block, second.start);
    assert_eq!((mappings(&state, id(0)).len(), mappings(&state, id(1)).len()), (250, 300));
    assert_device_sound(&*device, "second generation");
}

#[test]
fn freed_data_blocks_are_told_by_the_commit_and_wait_for_their_release() {
    let (device, mut metadata) = pool(1024, 10);
    metadata.create_thin(id(0)).unwrap();
    write(&mut metadata, 0, 0, 10);
    commit(&device, &mut metadata);
    assert_eq!(metadata.remove_range(id(0), VirtualBlock(2)..VirtualBlock(5)).unwrap(), 3);
    let space = metadata.data_space();
    assert_eq!((space.used, space.available, space.pending), (7, 0, 3));
    let error = metadata.reserve_data(1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfDataSpace);
    let frozen = metadata.freeze().unwrap().unwrap();
    frozen.write(&*device).unwrap();
    let freed = metadata.committed(frozen);
    assert_eq!(freed, [DataRun { start: DataBlock(2), len: 3 }]);
    assert_eq!(metadata.data_space().available, 0, "the owner may want to discard them first");
    metadata.release_data(&freed);
    assert_eq!(metadata.reserve_data(9).unwrap(), freed[0]);
}

#[test]
fn only_reserved_blocks_can_be_mapped() {
    let (_, mut metadata) = pool(512, 100);
    metadata.create_thin(id(0)).unwrap();
    let used = write(&mut metadata, 0, 0, 2);
    let beyond = DataRun { start: DataBlock(99), len: 2 };
    let free = DataRun { start: DataBlock(50), len: 1 };
    for run in [used, beyond, free] {
        assert_eq!(metadata.insert(id(0), VirtualBlock(9), run).unwrap_err().kind(), ErrorKind::Invalid);
    }
    metadata.reserve_exactly(free).unwrap();
    assert_eq!(metadata.reserve_exactly(free).unwrap_err().kind(), ErrorKind::Invalid);
    metadata.insert(id(0), VirtualBlock(9), free).unwrap();
    assert_eq!(metadata.lookup(id(0), VirtualBlock(9)).unwrap().unwrap().block, DataBlock(50));
    assert!(metadata.insert(id(0), VirtualBlock(u64::MAX), DataRun { start: DataBlock(60), len: 1 }).is_err());
    assert_eq!(metadata.insert(id(7), VirtualBlock(0), free).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn full_metadata_refuses_new_work_and_still_deletes() {
    let (device, mut metadata) = pool(512, 100_000);
    let empty = metadata.metadata_space().0.used;
    metadata.create_thin(id(0)).unwrap();
    commit(&device, &mut metadata);
    let mut snapshots = 0;
    let refused = loop {
        snapshots += 1;
        if let Err(error) = metadata.create_snap(id(snapshots), id(snapshots - 1)) {
            break error;
        }
        let start = u64::from(snapshots) * 7919 % 5000;
        if let Some(error) = (0..5).find_map(|n| {
            let run = metadata.reserve_data(1).unwrap();
            let error = metadata.insert(id(snapshots), VirtualBlock(start + 300 * n), run).err()?;
            metadata.release_data(&[run]);
            Some(error)
        }) {
            break error;
        }
        commit(&device, &mut metadata);
        assert!(snapshots < 10_000, "it must run full some time");
    };
    assert_eq!(refused.kind(), ErrorKind::OutOfMetadataSpace, "{refused}");
    commit(&device, &mut metadata);
    let (space, reserve) = metadata.metadata_space();
    assert_eq!(reserve, 51);
    assert!(space.available >= reserve, "the reserve is left: {space:?}");
    assert!(snapshots > 50, "most of the metadata was used before that: {snapshots} snapshots");
    assert_device_sound(&*device, "full");
    for device_id in metadata.devices().unwrap().into_iter().map(|device| device.0) {
        while !metadata.delete_step(device_id, 64).unwrap() {
            commit(&device, &mut metadata);
        }
        commit(&device, &mut metadata);
    }
    assert_eq!(metadata.metadata_space().0.used, empty, "as if nothing had been");
    assert_device_sound(&*device, "empty again");
    assert_thin_check_accepts(&device.to_bytes(), "empty again");
}

#[test]
fn a_large_device_goes_step_by_step_and_each_step_can_be_committed() {
    let (device, mut metadata) = pool(8192, 300_000);
    metadata.create_thin(id(0)).unwrap();
    for n in 0..1000 {
        write(&mut metadata, 0, n * 200, 100);
    }
    commit(&device, &mut metadata);
    metadata.create_snap(id(1), id(0)).unwrap();
    // The first half becomes the snapshot's own.
    for n in 0..500 {
        write(&mut metadata, 1, n * 200, 100);
    }
    commit(&device, &mut metadata);
    let mut steps = 0;
    while !metadata.delete_step(id(1), 50).unwrap() {
        steps += 1;
        let left = metadata.find_device(id(1)).unwrap().unwrap().mapped_blocks;
        assert!(left > 49_000, "shared leaves stay until the end: {left}");
        commit(&device, &mut metadata);
        assert_device_sound(&*device, "between steps");
    }
    assert!(steps >= 3, "{steps} steps");
    commit(&device, &mut metadata);
    assert_thin_check_accepts(&device.to_bytes(), "deleted");
    assert_eq!(metadata.data_space().used, 100_000);
    assert!(metadata.delete_step(id(1), 50).unwrap(), "deleting an absent device is a success");
}

#[test]
fn the_clock_stops_before_it_runs_into_the_data_block() {
    let (device, mut metadata) = pool(512, 100);
    metadata.create_thin(id(0)).unwrap();
    commit(&device, &mut metadata);
    let mut image = device.to_bytes();
    operate(&mut image, Kind::Superblock, 0, 44, &[0xfe, 0xff, 0xff, 0]);
    let device = Arc::new(MemoryDevice::from_bytes(image));
    let mut metadata = open(&device);
    metadata.create_snap(id(1), id(0)).unwrap();
    assert_eq!(metadata.time(), (1 << 24) - 1);
    assert_eq!(metadata.create_snap(id(2), id(0)).unwrap_err().kind(), ErrorKind::Unsupported);
    write(&mut metadata, 1, 0, 1);
    commit(&device, &mut metadata);
    assert_device_sound(&*device, "at the end of time");
}

#[test]
fn growth_gives_space_and_keeps_what_is_there() {
    let device = Arc::new(MemoryDevice::new(40_000 * 4096));
    Metadata::format(&*device, &options(512, 10)).unwrap();
    let mut metadata = open(&device);
    metadata.create_thin(id(0)).unwrap();
    write(&mut metadata, 0, 0, 10);
    commit(&device, &mut metadata);
    assert_eq!(metadata.grow_data(9).unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(metadata.grow_metadata(40_001).unwrap_err().kind(), ErrorKind::Invalid);
    metadata.grow_data(40_000).unwrap();
    metadata.grow_metadata(40_000).unwrap();
    assert_eq!(write(&mut metadata, 0, 10, 20_000).start, DataBlock(10));
    commit(&device, &mut metadata);
    assert_device_sound(&*device, "grown");
    assert_thin_check_accepts(&device.to_bytes(), "grown");
    let metadata = open(&device);
    assert_eq!((metadata.data_space().total, metadata.metadata_space().0.total), (40_000, 40_000));
    assert_eq!(mappings(&metadata, id(0)).len(), 20_010);
}

/// Entries beyond the end of the map mean nothing, and must not come alive when the map grows over them.
#[test]
fn stale_bits_beyond_the_end_do_not_come_alive_on_growth() {
    let mut image = golden("03").image;
    operate(&mut image, Kind::Bitmap, 35, 16 + 512, &[0xff, 0xff]);
    let device = Arc::new(MemoryDevice::from_bytes(image));
    let mut metadata = open(&device);
    metadata.grow_data(4096).unwrap();
    commit(&device, &mut metadata);
    assert_device_sound(&*device, "grown over stale bits");
    assert_eq!(open(&device).data_space().used, 13);
}

#[test]
fn a_held_metadata_snapshot_is_kept_while_the_pool_goes_on() {
    let pool = golden("08");
    let held = thin_dump(&pool.image, &["-m"]);
    let device = Arc::new(MemoryDevice::from_bytes(pool.image));
    let mut metadata = open(&device);
    assert_eq!(metadata.held_root().map(|block| block.0), Some(31));
    for round in 0..20 {
        write(&mut metadata, 0, round * 3, 2);
        metadata.create_snap(id(100 + u32::try_from(round).unwrap()), id(2)).unwrap();
        commit(&device, &mut metadata);
        assert_device_sound(&*device, "with a held snapshot");
    }
    for device_id in metadata.devices().unwrap().into_iter().map(|device| device.0) {
        assert!(metadata.delete_step(device_id, 10).unwrap());
    }
    commit(&device, &mut metadata);
    assert_device_sound(&*device, "with nothing but a held snapshot");
    assert_thin_check_accepts(&device.to_bytes(), "with nothing but a held snapshot");
    assert_eq!(metadata.data_space().used, 25, "what the held snapshot maps");
    assert_eq!(thin_dump(&device.to_bytes(), &["-m"]), held);
}

#[test]
fn a_block_under_a_held_snapshot_is_nobodys_own() {
    let device = Arc::new(MemoryDevice::from_bytes(golden("08").image));
    let metadata = open(&device);
    let usage = metadata.usage(id(0)).unwrap();
    let freed = {
        let mut metadata = open(&device);
        let before = metadata.data_space().used;
        assert!(metadata.delete_step(id(0), 100).unwrap());
        before - metadata.data_space().used
    };
    assert_eq!(usage.exclusive.0, freed * metadata.block_size().bytes());
}

#[test]
fn needs_check_is_set_on_the_last_commit_and_stops_writers() {
    let (device, mut metadata) = pool(512, 100);
    metadata.create_thin(id(3)).unwrap();
    commit(&device, &mut metadata);
    assert!(!metadata.needs_check());
    Metadata::mark_needs_check(&*device).unwrap();
    let below = Arc::clone(&device) as Arc<dyn BlockDevice>;
    assert_eq!(Metadata::open(Arc::clone(&below), OpenMode::ReadWrite).err().unwrap().kind(), ErrorKind::NeedsCheck);
    let mut reader = Metadata::open(below, OpenMode::ReadOnly).unwrap();
    assert!(reader.needs_check());
    assert_eq!(reader.device_count().unwrap(), 1);
    assert_eq!(reader.create_thin(id(4)).unwrap_err().kind(), ErrorKind::ReadOnly);
    assert_eq!(reader.reserve_data(1).unwrap_err().kind(), ErrorKind::ReadOnly);
    let report = audit(&*device, &|_| ()).unwrap();
    assert!(report.needs_check && report.is_sound());
}

#[test]
fn a_change_that_fails_half_way_ends_all_changes() {
    let mut image = golden("05").image;
    // A leaf of the device's tree that opening does not read.
    let leaf = crate::surgeon::live_blocks(&image)
        .into_iter()
        .find(|&block| crate::surgeon::kind_of(&image, block) == Some(Kind::Node) && image[block * 4096 + 16] > 100)
        .unwrap();
    image[leaf * 4096 + 100] ^= 1;
    let device = Arc::new(MemoryDevice::from_bytes(image.clone()));
    let mut metadata = open(&device);
    let error = metadata.remove_range(id(0), VirtualBlock(0)..VirtualBlock(1 << 20)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains(&format!("metadata block {leaf}")), "{error}");
    assert!(error.to_string().contains("mapping tree"), "{error}");
    let error = metadata.create_thin(id(1)).and_then(|()| metadata.freeze().map(drop)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ReadOnly);
    assert_eq!(device.to_bytes(), image);
}

#[test]
fn a_pool_rewritten_by_thin_restore_opens_again() {
    let (device, mut metadata) = pool(2048, 50_000);
    metadata.create_thin(id(0)).unwrap();
    for n in 0..300 {
        write(&mut metadata, 0, n * 31 % 4001, 7);
    }
    for n in 1..10 {
        metadata.create_snap(id(n), id(n - 1)).unwrap();
        write(&mut metadata, n, u64::from(n) * 50, 20);
    }
    metadata.set_transaction_id(0, 42).unwrap();
    commit(&device, &mut metadata);
    let Some(xml) = thin_dump(&device.to_bytes(), &[]) else { return };
    let restored = Arc::new(MemoryDevice::from_bytes(thin_restore(&xml, 2048 * 4096).unwrap()));
    let mut again = open(&restored);
    assert_eq!((again.time(), again.transaction_id()), (9, 42));
    for (device_id, details) in metadata.devices().unwrap() {
        assert_eq!(again.find_device(device_id).unwrap(), Some(details));
        assert_eq!(mappings(&again, device_id), mappings(&metadata, device_id));
    }
    for n in 0..400 {
        write(&mut again, 5, n, 1);
    }
    commit(&restored, &mut again);
    assert_sound(&restored.to_bytes(), "restored");
    assert_thin_check_accepts(&restored.to_bytes(), "restored");
}

#[test]
fn the_mark_of_a_pool_that_a_kernel_was_given_is_passed_by_and_taken_off() {
    let (device, mut metadata) = pool(512, 100);
    metadata.create_thin(id(1)).unwrap();
    write(&mut metadata, 1, 0, 5);
    commit(&device, &mut metadata);
    drop(metadata);
    let plain = device.to_bytes();
    let mut image = plain.clone();
    operate(&mut image, Kind::Superblock, 0, 355, &[1]);
    assert_sound(&image, "marked");
    assert_thin_check_accepts(&image, "marked");
    let device = Arc::new(MemoryDevice::from_bytes(image));
    drop(open(&device));
    let settled = Metadata::open_settled(Arc::clone(&device) as Arc<dyn BlockDevice>).unwrap();
    assert_eq!(settled.data_space().used, 5);
    assert!(device.to_bytes() == plain, "nothing was lost, so that nothing but the mark is changed");
}
