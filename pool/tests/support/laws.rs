//! The contract of a thin pool, law by law: what every engine must do.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use thinsnap_pool::{Access, ByteCount, DeviceId, ErrorKind, PoolMode, ThinPool};

use crate::support::stage::{BLOCK, DATA_SIZE, OpenDisk, Stage};

/// A law: its claim, and the play that proves it on a new stage.
pub type Law = (&'static str, fn(&mut dyn Stage));

/// Size of the devices in the laws: 24 blocks and a half.
const SIZE: ByteCount = ByteCount(24 * BLOCK + BLOCK / 2);

/// All laws.
pub const LAWS: &[Law] = &[
    ("a new device reads as zeroes and holds nothing", a_new_device_reads_as_zeroes),
    ("what was written is read", what_was_written_is_read),
    ("a snapshot keeps its bytes when the origin is overwritten", a_snapshot_keeps_its_bytes),
    ("a snapshot can be written without its origin noticing", a_snapshot_can_be_written),
    ("a snapshot of an active origin holds all that was written before", a_snapshot_of_an_active_origin),
    ("a snapshot that is made active holds its origin's bytes and is its own", a_snapshot_made_active),
    ("an id can be taken once, and an origin must exist", ids_are_unique),
    ("deleting an absent device is a success", deleting_an_absent_device),
    ("deleting a snapshot leaves its origin alone and the other way round", deleting_leaves_others_alone),
    ("deleted blocks come back and show no old bytes to their next owner", deleted_blocks_come_back),
    ("a device that is open is not deleted", an_open_device_is_not_deleted),
    ("activating twice gives the same path", activating_twice),
    ("a device that is not there cannot be activated", activating_an_absent_device),
    ("an active device grows in place", an_active_device_grows),
    ("a device active for reading refuses to be active for writing", access_is_kept),
    ("deactivating waits for the last opener", deactivating_waits),
    ("discarded blocks read as zeroes and come back", discarded_blocks_come_back),
    ("zeroed ranges read as zeroes and nothing beside them changes", zeroed_ranges),
    ("usage tells exclusive from shared, written from inherited", usage_is_exact),
    ("delta names the blocks that differ", delta_names_differences),
    ("devices are listed in order", devices_are_listed),
    ("the transaction id changes by compare and set", transaction_id),
    ("the pool grows and never shrinks", the_pool_grows),
    ("everything is there after the pool was closed and opened", everything_is_durable),
    ("status counts blocks, devices and snapshots", status_counts),
];

/// Runs every law on a stage of its own and names those that do not hold.
pub fn run(new_stage: &dyn Fn() -> Box<dyn Stage>) {
    let mut broken = Vec::new();
    for (claim, law) in LAWS {
        let mut stage = new_stage();
        let held = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| law(&mut *stage)));
        if held.is_err() {
            broken.push(*claim);
        }
    }
    assert!(broken.is_empty(), "broken laws: {broken:#?}");
}

fn id(number: u32) -> DeviceId {
    DeviceId::new(number).unwrap()
}

fn activate(stage: &dyn Stage, device: DeviceId) -> (PathBuf, Box<dyn OpenDisk>) {
    let path = stage.pool().activate(device, SIZE, Access::ReadWrite).unwrap();
    let disk = stage.open(device, &path);
    (path, disk)
}

fn release(stage: &dyn Stage, device: DeviceId, disk: Box<dyn OpenDisk>) {
    drop(disk);
    wait_gone(stage, device);
}

/// Nobody has the device open any more; the kernel tells its server so a moment later.
fn wait_gone(stage: &dyn Stage, device: DeviceId) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !stage.pool().deactivate(device).unwrap() {
        assert!(Instant::now() < deadline, "nobody has device {device} open, and it stays");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// Bytes that differ at every place, in multiples of 4096 so that any disk takes them.
fn pattern(len: u64, seed: u8) -> Vec<u8> {
    (0..len).map(|i| u8::try_from((i / 512 + i % 251) % 256).unwrap() ^ seed).collect()
}

fn read(disk: &dyn OpenDisk, offset: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0xee; usize::try_from(len).unwrap()];
    disk.read(&mut bytes, offset);
    bytes
}

fn write_and_close(stage: &dyn Stage, device: DeviceId, bytes: &[u8], offset: u64) {
    let (_, disk) = activate(stage, device);
    disk.write(bytes, offset);
    release(stage, device, disk);
}

fn content(stage: &dyn Stage, device: DeviceId) -> Vec<u8> {
    let (_, disk) = activate(stage, device);
    let bytes = read(&*disk, 0, SIZE.0);
    release(stage, device, disk);
    bytes
}

fn mapped(pool: &dyn ThinPool, device: DeviceId) -> u64 {
    pool.usage(device).unwrap().mapped.0 / BLOCK
}

fn a_new_device_reads_as_zeroes(stage: &mut dyn Stage) {
    stage.pool().create_thin(id(1)).unwrap();
    assert!(content(stage, id(1)).iter().all(|&byte| byte == 0));
    assert_eq!(mapped(stage.pool(), id(1)), 0);
    assert_eq!(stage.pool().status().unwrap().data.used.0, 0);
}

fn what_was_written_is_read(stage: &mut dyn Stage) {
    stage.pool().create_thin(id(1)).unwrap();
    let (_, disk) = activate(stage, id(1));
    let mut model = vec![0; usize::try_from(SIZE.0).unwrap()];
    let pieces = [
        (0, 4096),
        (BLOCK - 4096, 8192),
        (3 * BLOCK, BLOCK),
        (5 * BLOCK + 4096, 3 * BLOCK),
        (0, 16 * BLOCK),
        (24 * BLOCK, BLOCK / 2),
    ];
    for (seed, (offset, len)) in pieces.into_iter().enumerate() {
        let bytes = pattern(len, u8::try_from(seed * 17 + 1).unwrap());
        disk.write(&bytes, offset);
        let offset = usize::try_from(offset).unwrap();
        model[offset..offset + bytes.len()].copy_from_slice(&bytes);
    }
    assert!(read(&*disk, 0, SIZE.0) == model);
    disk.flush();
    assert!(read(&*disk, 0, SIZE.0) == model);
}

fn a_snapshot_keeps_its_bytes(stage: &mut dyn Stage) {
    stage.pool().create_thin(id(1)).unwrap();
    let before = pattern(4 * BLOCK, 1);
    write_and_close(stage, id(1), &before, 0);
    stage.pool().create_snap(id(2), id(1)).unwrap();
    write_and_close(stage, id(1), &pattern(4096, 2), BLOCK + 8192);
    write_and_close(stage, id(1), &pattern(BLOCK, 3), 2 * BLOCK);

    assert!(content(stage, id(2))[..before.len()] == before);
    let mut after = before;
    let start = usize::try_from(BLOCK + 8192).unwrap();
    after[start..start + 4096].copy_from_slice(&pattern(4096, 2));
    let start = usize::try_from(2 * BLOCK).unwrap();
    after[start..start + usize::try_from(BLOCK).unwrap()].copy_from_slice(&pattern(BLOCK, 3));
    assert!(content(stage, id(1))[..after.len()] == after);
}

fn a_snapshot_can_be_written(stage: &mut dyn Stage) {
    stage.pool().create_thin(id(1)).unwrap();
    write_and_close(stage, id(1), &pattern(2 * BLOCK, 1), 0);
    stage.pool().create_snap(id(2), id(1)).unwrap();
    stage.pool().create_snap(id(3), id(2)).unwrap();
    let origin = content(stage, id(1));
    write_and_close(stage, id(2), &pattern(4096, 9), 4096);
    assert!(content(stage, id(1)) == origin);
    assert!(content(stage, id(3)) == origin);
    assert!(content(stage, id(2))[4096..8192] == pattern(4096, 9));
}

fn a_snapshot_of_an_active_origin(stage: &mut dyn Stage) {
    stage.pool().create_thin(id(1)).unwrap();
    let (_, disk) = activate(stage, id(1));
    disk.write(&pattern(3 * BLOCK, 1), 0);
    disk.flush();
    stage.pool().create_snap(id(2), id(1)).unwrap();
    disk.write(&pattern(3 * BLOCK, 2), 0);
    assert!(content(stage, id(2))[..usize::try_from(3 * BLOCK).unwrap()] == pattern(3 * BLOCK, 1));
    assert!(read(&*disk, 0, 3 * BLOCK) == pattern(3 * BLOCK, 2));
}

/// Makes 2 of 1 and sees to it that it is active.
fn create_active(stage: &dyn Stage, ahead: ByteCount) -> PathBuf {
    let shown = stage.pool().create_active(id(2), id(1), SIZE, ahead).unwrap();
    shown.unwrap_or_else(|| stage.pool().activate(id(2), SIZE, Access::ReadWrite).unwrap())
}

fn a_snapshot_made_active(stage: &mut dyn Stage) {
    const AHEAD: ByteCount = ByteCount(4096);
    stage.pool().create_thin(id(1)).unwrap();
    let before = pattern(3 * BLOCK, 1);
    write_and_close(stage, id(1), &before, 0);
    for ahead in [ByteCount(0), AHEAD] {
        let path = create_active(stage, ahead);
        assert_eq!(stage.pool().active_path(id(2)).unwrap().as_ref(), Some(&path));
        let disk = stage.open(id(2), &path);
        assert!(read(&*disk, 0, 3 * BLOCK) == before);
        disk.write(&pattern(4096, 2), 0);
        disk.flush();
        assert_eq!(stage.pool().written(id(2)).unwrap(), ByteCount(BLOCK));
        release(stage, id(2), disk);
        let usage = stage.pool().usage(id(2)).unwrap();
        assert_eq!((usage.written, usage.exclusive, usage.mapped.0), (ByteCount(BLOCK), ByteCount(BLOCK), 3 * BLOCK));
        let after = content(stage, id(2));
        assert!(after[..4096] == pattern(4096, 2) && after[4096..before.len()] == before[4096..]);
        assert!(content(stage, id(1))[..before.len()] == before);
        stage.pool().delete(id(2)).unwrap();
    }

    let kind = |id, origin| stage.pool().create_active(id, origin, SIZE, AHEAD).unwrap_err().kind();
    assert_eq!((kind(id(1), id(1)), kind(id(2), id(3))), (ErrorKind::AlreadyExists, ErrorKind::NotFound));

    let (_, disk) = activate(stage, id(1));
    disk.write(&pattern(4096, 3), 0);
    create_active(stage, AHEAD);
    disk.write(&pattern(4096, 4), 0);
    release(stage, id(1), disk);
    wait_gone(stage, id(2));
    assert!(content(stage, id(2))[..4096] == pattern(4096, 3), "what was written before, and no more");
}

fn ids_are_unique(stage: &mut dyn Stage) {
    let pool = stage.pool();
    pool.create_thin(id(1)).unwrap();
    assert_eq!(pool.create_thin(id(1)).unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(pool.create_snap(id(1), id(1)).unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(pool.create_snap(id(2), id(7)).unwrap_err().kind(), ErrorKind::NotFound);
    pool.create_snap(id(2), id(1)).unwrap();
    assert_eq!(pool.create_snap(id(2), id(1)).unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(pool.usage(id(9)).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(pool.written(id(9)).unwrap_err().kind(), ErrorKind::NotFound);
}

fn deleting_an_absent_device(stage: &mut dyn Stage) {
    stage.pool().delete(id(1)).unwrap();
    stage.pool().create_thin(id(1)).unwrap();
    stage.pool().delete(id(1)).unwrap();
    stage.pool().delete(id(1)).unwrap();
    assert!(stage.pool().devices().unwrap().is_empty());
}

fn deleting_leaves_others_alone(stage: &mut dyn Stage) {
    stage.pool().create_thin(id(1)).unwrap();
    write_and_close(stage, id(1), &pattern(5 * BLOCK, 1), 0);
    let bytes = content(stage, id(1));
    stage.pool().create_snap(id(2), id(1)).unwrap();
    stage.pool().create_snap(id(3), id(1)).unwrap();
    stage.pool().delete(id(2)).unwrap();
    assert!(content(stage, id(1)) == bytes);
    stage.pool().delete(id(1)).unwrap();
    assert!(content(stage, id(3)) == bytes);
    assert_eq!(stage.pool().status().unwrap().data.used.0, 5 * BLOCK);
}

fn deleted_blocks_come_back(stage: &mut dyn Stage) {
    // Three rounds of filling most of the pool: the third gets the blocks of the first.
    for round in 1..=3_u8 {
        for number in 0..10 {
            let device = id(u32::from(round) * 100 + number);
            stage.pool().create_thin(device).unwrap();
            let (_, disk) = activate(stage, device);
            for block in 0..24 {
                disk.write(&pattern(4096, round), block * BLOCK + 4096);
            }
            for block in 0..24 {
                let bytes = read(&*disk, block * BLOCK, BLOCK);
                assert!(bytes[4096..8192] == pattern(4096, round));
                assert!(
                    bytes[..4096].iter().chain(&bytes[8192..]).all(|&byte| byte == 0),
                    "old bytes in block {block}"
                );
            }
            release(stage, device, disk);
        }
        for number in 0..10 {
            stage.pool().delete(id(u32::from(round) * 100 + number)).unwrap();
        }
        assert_eq!(stage.pool().status().unwrap().data.used.0, 0);
    }
}

fn an_open_device_is_not_deleted(stage: &mut dyn Stage) {
    stage.pool().create_thin(id(1)).unwrap();
    let (_, disk) = activate(stage, id(1));
    assert_eq!(stage.pool().delete(id(1)).unwrap_err().kind(), ErrorKind::InUse);
    disk.write(&pattern(4096, 1), 0);
    release(stage, id(1), disk);
    stage.pool().delete(id(1)).unwrap();
}

fn activating_twice(stage: &mut dyn Stage) {
    stage.pool().create_thin(id(1)).unwrap();
    assert_eq!(stage.pool().active_path(id(1)).unwrap(), None);
    let path = stage.pool().activate(id(1), SIZE, Access::ReadWrite).unwrap();
    assert_eq!(stage.pool().activate(id(1), SIZE, Access::ReadWrite).unwrap(), path);
    assert_eq!(stage.pool().active_path(id(1)).unwrap(), Some(path));
    assert_eq!(stage.pool().status().unwrap().active_devices, 1);
    assert!(stage.pool().deactivate(id(1)).unwrap());
    assert!(stage.pool().deactivate(id(1)).unwrap());
    assert_eq!(stage.pool().active_path(id(1)).unwrap(), None);
}

fn activating_an_absent_device(stage: &mut dyn Stage) {
    let error = stage.pool().activate(id(1), SIZE, Access::ReadWrite).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    stage.pool().create_thin(id(1)).unwrap();
    let error = stage.pool().activate(id(1), ByteCount(1000), Access::ReadWrite).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

fn an_active_device_grows(stage: &mut dyn Stage) {
    stage.pool().create_thin(id(1)).unwrap();
    let (path, disk) = activate(stage, id(1));
    disk.write(&pattern(BLOCK / 2, 1), 24 * BLOCK);
    let larger = ByteCount(40 * BLOCK);
    let grown = stage.pool().activate(id(1), larger, Access::ReadWrite);
    let disk = if stage.grows_in_use() {
        assert_eq!(grown.unwrap(), path);
        disk
    } else {
        assert_eq!(grown.unwrap_err().kind(), ErrorKind::InUse);
        assert!(read(&*disk, 24 * BLOCK, BLOCK / 2) == pattern(BLOCK / 2, 1), "it is as it was");
        drop(disk);
        let path = stage.pool().activate(id(1), larger, Access::ReadWrite).unwrap();
        stage.open(id(1), &path)
    };
    disk.write(&pattern(BLOCK, 2), 39 * BLOCK);
    let tail = read(&*disk, 24 * BLOCK, 16 * BLOCK);
    assert!(tail[..usize::try_from(BLOCK / 2).unwrap()] == pattern(BLOCK / 2, 1));
    assert!(tail[usize::try_from(15 * BLOCK).unwrap()..] == pattern(BLOCK, 2));
    let between = usize::try_from(BLOCK / 2).unwrap()..usize::try_from(15 * BLOCK).unwrap();
    assert!(tail[between].iter().all(|&byte| byte == 0));
}

fn access_is_kept(stage: &mut dyn Stage) {
    stage.pool().create_thin(id(1)).unwrap();
    stage.pool().activate(id(1), SIZE, Access::ReadOnly).unwrap();
    let error = stage.pool().activate(id(1), SIZE, Access::ReadWrite).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse);
    assert!(stage.pool().deactivate(id(1)).unwrap());
    stage.pool().activate(id(1), SIZE, Access::ReadWrite).unwrap();
}

fn deactivating_waits(stage: &mut dyn Stage) {
    stage.pool().create_thin(id(1)).unwrap();
    let (_, disk) = activate(stage, id(1));
    assert!(!stage.pool().deactivate(id(1)).unwrap());
    disk.write(&pattern(4096, 5), 0);
    disk.flush();
    release(stage, id(1), disk);
    assert!(content(stage, id(1))[..4096] == pattern(4096, 5));
}

fn discarded_blocks_come_back(stage: &mut dyn Stage) {
    stage.pool().create_thin(id(1)).unwrap();
    let (_, disk) = activate(stage, id(1));
    disk.write(&pattern(8 * BLOCK, 1), 0);
    disk.discard(BLOCK + 4096, 4 * BLOCK);
    disk.flush();
    // Whole blocks only: 2, 3 and 4 lie inside the range.
    let bytes = read(&*disk, 0, 8 * BLOCK);
    let (start, end) = (usize::try_from(2 * BLOCK).unwrap(), usize::try_from(5 * BLOCK).unwrap());
    let whole = pattern(8 * BLOCK, 1);
    assert!(bytes[start..end].iter().all(|&byte| byte == 0));
    assert!(bytes[..usize::try_from(BLOCK).unwrap() + 4096] == whole[..usize::try_from(BLOCK).unwrap() + 4096]);
    assert!(bytes[usize::try_from(6 * BLOCK).unwrap()..] == whole[usize::try_from(6 * BLOCK).unwrap()..]);
    release(stage, id(1), disk);
    assert_eq!(mapped(stage.pool(), id(1)), 5);
    assert_eq!(stage.pool().status().unwrap().data.used.0, 5 * BLOCK);
}

fn zeroed_ranges(stage: &mut dyn Stage) {
    stage.pool().create_thin(id(1)).unwrap();
    let (_, disk) = activate(stage, id(1));
    let mut model = pattern(8 * BLOCK, 1);
    disk.write(&model, 0);
    disk.flush();
    stage.pool().create_snap(id(2), id(1)).unwrap();
    for (offset, len) in [(4096, 4096), (BLOCK + 4096, 3 * BLOCK), (6 * BLOCK, BLOCK)] {
        disk.zero(offset, len);
        model[usize::try_from(offset).unwrap()..usize::try_from(offset + len).unwrap()].fill(0);
    }
    assert!(read(&*disk, 0, 8 * BLOCK) == model);
    assert!(content(stage, id(2))[..model.len()] == pattern(8 * BLOCK, 1));
}

fn usage_is_exact(stage: &mut dyn Stage) {
    stage.pool().create_thin(id(1)).unwrap();
    write_and_close(stage, id(1), &pattern(10 * BLOCK, 1), 0);
    stage.pool().create_snap(id(2), id(1)).unwrap();
    write_and_close(stage, id(2), &pattern(4096, 2), 0);
    write_and_close(stage, id(2), &pattern(2 * BLOCK, 2), 12 * BLOCK);

    let blocks = |usage: thinsnap_pool::DeviceUsage| {
        [usage.mapped, usage.exclusive, usage.shared, usage.written].map(|bytes| bytes.0 / BLOCK)
    };
    assert_eq!(blocks(stage.pool().usage(id(1)).unwrap()), [10, 1, 9, 10]);
    assert_eq!(blocks(stage.pool().usage(id(2)).unwrap()), [12, 3, 9, 3]);
    assert_eq!(stage.pool().written(id(2)).unwrap().0, 3 * BLOCK);

    // The number kept for an active device follows what is written, overwritten and discarded.
    let (_, disk) = activate(stage, id(2));
    assert_eq!(stage.pool().written(id(2)).unwrap().0, 3 * BLOCK);
    disk.write(&pattern(4096, 3), 5 * BLOCK);
    disk.write(&pattern(4096, 3), 5 * BLOCK + 8192);
    disk.write(&pattern(4096, 3), 20 * BLOCK);
    disk.discard(8 * BLOCK, 5 * BLOCK);
    disk.flush();
    assert_eq!(stage.pool().written(id(2)).unwrap().0, 4 * BLOCK);
    assert_eq!(stage.pool().usage(id(2)).unwrap().written.0, 4 * BLOCK);

    assert_eq!(stage.pool().put_away(id(2)).unwrap(), None, "it is open");
    release(stage, id(2), disk);
    stage.pool().activate(id(2), SIZE, Access::ReadWrite).unwrap();
    assert_eq!(stage.pool().put_away(id(2)).unwrap(), Some(ByteCount(4 * BLOCK)));
    assert_eq!(stage.pool().active_path(id(2)).unwrap(), None);
}

fn delta_names_differences(stage: &mut dyn Stage) {
    stage.pool().create_thin(id(1)).unwrap();
    write_and_close(stage, id(1), &pattern(10 * BLOCK, 1), 0);
    stage.pool().create_snap(id(2), id(1)).unwrap();
    assert!(stage.pool().delta(id(1), id(2)).unwrap().is_empty());
    let (_, disk) = activate(stage, id(2));
    disk.write(&pattern(2 * BLOCK, 2), 3 * BLOCK);
    disk.discard(7 * BLOCK, BLOCK);
    disk.write(&pattern(4096, 2), 15 * BLOCK);
    disk.flush();
    release(stage, id(2), disk);
    let changed: Vec<_> = stage.pool().delta(id(1), id(2)).unwrap();
    let changed: Vec<_> = changed.iter().map(|range| (range.start.0, range.len, range.mapped)).collect();
    assert_eq!(changed, [(3, 2, true), (7, 1, false), (15, 1, true)]);
    let back: Vec<_> = stage.pool().delta(id(2), id(1)).unwrap();
    let back: Vec<_> = back.iter().map(|range| (range.start.0, range.len, range.mapped)).collect();
    assert_eq!(back, [(3, 2, true), (7, 1, true), (15, 1, false)]);
}

fn devices_are_listed(stage: &mut dyn Stage) {
    for number in [5, 1, 16_777_215, 3] {
        stage.pool().create_thin(id(number)).unwrap();
    }
    let listed: Vec<u32> = stage.pool().devices().unwrap().into_iter().map(DeviceId::get).collect();
    assert_eq!(listed, [1, 3, 5, 16_777_215]);
}

fn transaction_id(stage: &mut dyn Stage) {
    assert_eq!(stage.pool().status().unwrap().transaction_id, 0);
    stage.pool().set_transaction_id(0, 7).unwrap();
    assert_eq!(stage.pool().set_transaction_id(0, 8).unwrap_err().kind(), ErrorKind::Invalid);
    stage.reopen();
    assert_eq!(stage.pool().status().unwrap().transaction_id, 7);
}

fn the_pool_grows(stage: &mut dyn Stage) {
    let before = stage.pool().status().unwrap();
    assert_eq!(before.data.total, DATA_SIZE);
    let data = ByteCount(2 * DATA_SIZE.0);
    let metadata = ByteCount(2 * before.metadata.total.0);
    stage.pool().grow(Some(data), None).unwrap();
    stage.pool().grow(None, Some(metadata)).unwrap();
    stage.pool().grow(Some(data), Some(metadata)).unwrap();
    assert_eq!(stage.pool().grow(Some(DATA_SIZE), None).unwrap_err().kind(), ErrorKind::Invalid);
    stage.reopen();
    let after = stage.pool().status().unwrap();
    assert_eq!((after.data.total, after.metadata.total), (data, metadata));
    // More than the old data space fits.
    for number in 1..=18 {
        stage.pool().create_thin(id(number)).unwrap();
        write_and_close(stage, id(number), &pattern(16 * BLOCK, 1), 0);
    }
    assert!(stage.pool().status().unwrap().data.used > DATA_SIZE);
}

fn everything_is_durable(stage: &mut dyn Stage) {
    stage.pool().create_thin(id(1)).unwrap();
    write_and_close(stage, id(1), &pattern(6 * BLOCK, 1), BLOCK / 2);
    stage.pool().create_snap(id(2), id(1)).unwrap();
    write_and_close(stage, id(2), &pattern(4096, 2), BLOCK);
    stage.pool().create_thin(id(3)).unwrap();
    stage.pool().delete(id(3)).unwrap();
    let before = (content(stage, id(1)), content(stage, id(2)), stage.pool().status().unwrap());
    stage.reopen();
    let after = (content(stage, id(1)), content(stage, id(2)), stage.pool().status().unwrap());
    assert!(before.0 == after.0 && before.1 == after.1);
    assert_eq!(before.2.identity, after.2.identity);
    assert_eq!((before.2.data, before.2.time, before.2.devices), (after.2.data, after.2.time, after.2.devices));
}

fn status_counts(stage: &mut dyn Stage) {
    let status = stage.pool().status().unwrap();
    assert_eq!((status.mode, status.reason.clone(), status.devices, status.time), (PoolMode::Write, None, 0, 0));
    assert_eq!(status.block_size.bytes(), BLOCK);
    assert_ne!(status.identity, [0; 16]);
    stage.pool().create_thin(id(1)).unwrap();
    write_and_close(stage, id(1), &pattern(3 * BLOCK, 1), 0);
    stage.pool().create_snap(id(2), id(1)).unwrap();
    let status = stage.pool().status().unwrap();
    assert_eq!((status.devices, status.time, status.active_devices), (2, 1, 0));
    assert_eq!(status.data.used.0, 3 * BLOCK);
    assert!(status.metadata.used > ByteCount(0) && status.metadata_reserve > ByteCount(0));
    assert!(!status.metadata_snapshot);
    let glance = stage.pool().glance().unwrap();
    assert_eq!((glance.mode, glance.devices, glance.identity), (status.mode, status.devices, status.identity));
    assert!(
        glance.data.used >= status.data.used && glance.metadata.used >= status.metadata.used,
        "{glance:?} {status:?}"
    );
}
