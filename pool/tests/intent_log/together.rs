//! Many writers on a small log; verbs that wait for their commit while others write, and the kill in between.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use thinsnap_pool::{Access, ByteCount, DeviceId, IntentChange, ThinPool, parse_intent_log};

use crate::ground::{BLOCK, Ground};
use crate::random::Random;

const WRITERS: u32 = 8;

fn id(number: u32) -> DeviceId {
    DeviceId::new(number).unwrap()
}

fn activate(ground: &Ground, number: u32, blocks: u64) -> crate::direct_exporter::Opened {
    ground.pool().activate(id(number), ByteCount(blocks * BLOCK), Access::ReadWrite).unwrap();
    ground.exporter.open(id(number))
}

/// Each writer fills its device block by block, each block with its number, and empties it again, until it is killed;
/// returns how many calls each had acknowledged.
fn write_until_killed(ground: &Ground, blocks: u64, rounds: u64) -> Vec<u64> {
    let done: Vec<AtomicU64> = (0..WRITERS).map(|_| AtomicU64::new(0)).collect();
    std::thread::scope(|scope| {
        for (writer, done) in (0..WRITERS).zip(&done) {
            let volume = activate(ground, writer, blocks);
            scope.spawn(move || {
                for call in 0..2 * blocks * rounds {
                    let block = call % blocks;
                    let written = if (call / blocks).is_multiple_of(2) {
                        volume.write_at(&call.to_le_bytes().repeat(64), block * BLOCK + 512)
                    } else {
                        volume.discard(block * BLOCK, BLOCK)
                    };
                    // What returns after the kill does not count, whatever it says.
                    if written.is_err() || ground.is_dead() {
                        return;
                    }
                    done.store(call + 1, Ordering::Relaxed);
                }
            });
        }
    });
    done.into_iter().map(AtomicU64::into_inner).collect()
}

#[test]
fn eight_writers_on_a_full_ring_lose_nothing_and_never_hang() {
    const BLOCKS: u64 = 12;
    let mut random = Random::new(99);
    let mut most = 0;
    for round in 0..12_u64 {
        let mut ground = Ground::new(u64::from(WRITERS) * BLOCKS * 4, 128);
        for writer in 0..WRITERS {
            ground.pool().create_thin(id(writer)).unwrap();
        }
        // The last ones die while they have gone round the ring several times.
        let events = if round == 0 { 1_000_000 } else { random.below(300 * round) };
        ground.kill_in(usize::try_from(events).unwrap(), random.chance(50));
        let done = write_until_killed(&ground, BLOCKS, 20);
        let log = ground.kill();
        most = most.max(parse_intent_log(&log).unwrap().tail);
        ground.start(Some(&log)).unwrap();
        for (writer, done) in (0..WRITERS).zip(done) {
            let volume = activate(&ground, writer, BLOCKS);
            for block in 0..BLOCKS {
                // The last acknowledged call on this block, and the one that was perhaps cut off.
                let last = (0..done).rev().find(|call| call % BLOCKS == block);
                let holds = |call: Option<u64>| {
                    call.filter(|call| (call / BLOCKS).is_multiple_of(2)).map_or([0; 8], u64::to_le_bytes)
                };
                let mut bytes = [0; 8];
                volume.read_at(&mut bytes, block * BLOCK + 512).unwrap();
                let cut_off = (done % BLOCKS == block).then_some(done);
                let right = bytes == holds(last) || cut_off.is_some_and(|call| bytes == holds(Some(call)));
                assert!(right, "round {round}: writer {writer}, block {block}: {bytes:?} after {done} calls");
            }
        }
        ground.assert_sound("after the replay", true);
    }
    assert!(most > 3 * 128, "the ring was not filled: {most} records");
}

#[test]
fn one_request_for_more_records_than_are_free_waits_for_a_commit() {
    let mut ground = Ground::new(700, 128);
    ground.pool().create_thin(id(1)).unwrap();
    ground.pool().create_thin(id(2)).unwrap();
    let (one, other) = (activate(&ground, 1, 600), activate(&ground, 2, 600));
    // Every second block belongs to the other device: no two data blocks of one stand side by side.
    for block in 0..300 {
        one.write_at(&[1; 512], block * 2 * BLOCK).unwrap();
    }
    for block in 0..300 {
        other.write_at(&[2; 512], block * 2 * BLOCK).unwrap();
    }
    // 64 blocks in one request, half of them new, again and again.
    for start in (0..512).step_by(64) {
        one.write_at(&vec![3; usize::try_from(64 * BLOCK).unwrap()], start * BLOCK).unwrap_or_else(|e| {
            assert_eq!(e.kind(), thinsnap_pool::ErrorKind::OutOfDataSpace, "{e}");
        });
    }
    drop((one, other));
    ground.kill_and_start();
    let other = activate(&ground, 2, 600);
    let mut bytes = [0; 512];
    for block in 0..300 {
        other.read_at(&mut bytes, block * 2 * BLOCK).unwrap();
        assert_eq!(bytes, [2; 512], "block {block}");
    }
}

#[test]
fn a_write_into_room_that_a_killed_grow_made_is_there() {
    let mut ground = Ground::new(4, 128);
    ground.pool().create_thin(id(1)).unwrap();
    let volume = activate(&ground, 1, 16);
    for block in 0..4 {
        volume.write_at(&[1; 512], block * BLOCK).unwrap();
    }
    ground.pool().flush(id(1)).unwrap();
    ground.hold_flushes(true);
    let pool = Arc::clone(ground.pool());
    std::thread::scope(|scope| {
        let growing = scope.spawn(move || pool.grow(Some(ByteCount(12 * BLOCK)), None));
        ground.wait_for_a_held_flush();
        // Not acknowledged, but there: the new blocks are handed out.
        volume.write_at(&[2; 512], 9 * BLOCK).unwrap();
        drop(volume);
        let log = ground.kill();
        growing.join().unwrap().unwrap_err();
        let changes = parse_intent_log(&log).unwrap().changes;
        assert!(changes.contains(&IntentChange::GrowData { blocks: 12 }), "{changes:?}");
        ground.start(Some(&log)).unwrap();
    });
    let mut bytes = [0; 512];
    activate(&ground, 1, 16).read_at(&mut bytes, 9 * BLOCK).unwrap();
    assert_eq!(bytes, [2; 512]);
    assert_eq!(ground.pool().status().unwrap().data.total, ByteCount(12 * BLOCK));
    ground.close();
    ground.assert_sound("after a grow that was cut off", true);
}

#[test]
fn a_write_beside_a_snapshot_or_a_deletion_that_was_killed_is_there() {
    let mut ground = Ground::new(40, 128);
    for number in [1, 5] {
        ground.pool().create_thin(id(number)).unwrap();
        let volume = activate(&ground, number, 8);
        (0..8).for_each(|block| volume.write_at(&[1; 512], block * BLOCK).unwrap());
    }
    ground.pool().flush(id(1)).unwrap();
    ground.hold_flushes(true);
    let pools = [Arc::clone(ground.pool()), Arc::clone(ground.pool())];
    let volume = activate(&ground, 1, 8);
    std::thread::scope(|scope| {
        let [one, other] = pools;
        let snapping = scope.spawn(move || one.create_snap(id(2), id(1)));
        ground.wait_for_a_held_flush();
        let deleting = scope.spawn(move || other.delete(id(5)));
        while ground.pool().devices().unwrap() != [id(1), id(2)] {
            std::thread::yield_now();
        }
        // Breaks sharing with a snapshot that nobody was told of; the second time, in place.
        for value in [2, 3] {
            volume.write_at(&[value; 512], BLOCK).unwrap();
        }
        volume.discard(2 * BLOCK, BLOCK).unwrap();
        drop(volume);
        let log = ground.kill();
        snapping.join().unwrap().unwrap_err();
        deleting.join().unwrap().unwrap_err();
        ground.start(Some(&log)).unwrap();
    });
    // The flush was held before any superblock: neither the snapshot nor the deletion has happened.
    assert_eq!(ground.pool().devices().unwrap(), [id(1), id(5)]);
    let expected: [u8; 4] = [1, 3, 0, 1];
    let volume = activate(&ground, 1, 8);
    for (block, value) in (0..).zip(expected) {
        let mut bytes = [9; 512];
        volume.read_at(&mut bytes, block * BLOCK).unwrap();
        assert_eq!(bytes, [value; 512], "block {block}");
    }
    drop(volume);
    // Both can be asked for again.
    ground.pool().create_snap(id(2), id(1)).unwrap();
    ground.pool().delete(id(5)).unwrap();
    ground.close();
    ground.assert_sound("after a snapshot that was cut off", true);
}

#[test]
fn a_device_belongs_to_nobody_until_its_creation_is_durable() {
    let ground = Ground::new(40, 128);
    ground.hold_flushes(true);
    let pools = [Arc::clone(ground.pool()), Arc::clone(ground.pool())];
    std::thread::scope(|scope| {
        let [one, other] = pools;
        let creating = scope.spawn(move || one.create_thin(id(1)));
        ground.wait_for_a_held_flush();
        let (done, activated) = std::sync::mpsc::channel();
        scope.spawn(move || done.send(other.activate(id(1), ByteCount(BLOCK), Access::ReadWrite)).unwrap());
        // Long enough for a call that waits for nothing.
        let early = activated.recv_timeout(std::time::Duration::from_millis(500));
        // First of all: a failure waits for both threads.
        ground.hold_flushes(false);
        assert!(early.is_err(), "the device is in memory and in no commit");
        creating.join().unwrap().unwrap();
        activated.recv().unwrap().unwrap();
    });
}
