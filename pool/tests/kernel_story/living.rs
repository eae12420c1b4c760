//! The metadata of a pool is read while the kernel changes it.

use std::sync::atomic::{AtomicBool, Ordering};

use thinsnap_pool::{Access, ByteCount, DeviceId, ThinPool};

use crate::support::disk::Disk;
use crate::support::kernel_stage::KernelDir;
use crate::support::stage::{BLOCK, OpenDisk};
use crate::turn;

const SIZE: ByteCount = ByteCount(64 * BLOCK);

fn id(number: u32) -> DeviceId {
    DeviceId::new(number).unwrap()
}

#[test]
#[ignore = "make test-kernel runs it: it needs a kernel with dm-thin"]
fn root_usage_lists_and_differences_are_exact_while_others_write_and_flush() {
    let Some(_turn) = turn() else { return };
    let dir = KernelDir::new();
    let pool = dir.open();
    for number in [1, 2] {
        pool.create_thin(id(number)).unwrap();
    }
    let still = pool.activate(id(1), SIZE, Access::ReadWrite).unwrap();
    Disk::open(&still).write(&vec![1; 10 * 65536], 0);
    pool.create_snap(id(3), id(1)).unwrap();
    let path = pool.activate(id(3), SIZE, Access::ReadWrite).unwrap();
    Disk::open(&path).write(&vec![2; 2 * 65536], BLOCK);
    let busy = pool.activate(id(2), SIZE, Access::ReadWrite).unwrap();

    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Every write takes a block or gives one back, and every one is committed.
        let writer = scope.spawn(|| {
            let disk = Disk::open(&busy);
            let mut rounds = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                disk.write(&[3; 4096], rounds % 60 * BLOCK);
                disk.flush();
                if rounds % 60 == 59 {
                    disk.discard(0, 60 * BLOCK);
                }
                rounds += 1;
            }
            rounds
        });
        let blocks = |bytes: ByteCount| bytes.0 / BLOCK;
        for round in 0..30 {
            let usage = pool.usage(id(1)).unwrap();
            assert_eq!([usage.mapped, usage.exclusive, usage.shared, usage.written].map(blocks), [10, 2, 8, 10]);
            let usage = pool.usage(id(3)).unwrap();
            assert_eq!([usage.mapped, usage.exclusive, usage.shared, usage.written].map(blocks), [10, 2, 8, 2]);
            let changed = pool.delta(id(1), id(3)).unwrap();
            assert_eq!(changed.iter().map(|range| (range.start.0, range.len)).collect::<Vec<_>>(), [(1, 2)]);
            pool.create_snap(id(100 + round), id(2)).unwrap();
            assert_eq!(pool.devices().unwrap(), [id(1), id(2), id(3), id(100 + round)]);
            pool.delete(id(100 + round)).unwrap();
            assert!(!pool.status().unwrap().metadata_snapshot);
        }
        stop.store(true, Ordering::Relaxed);
        println!("the writer made {} writes meanwhile", writer.join().unwrap());
    });
    pool.close().unwrap();
}

#[test]
#[ignore = "make test-kernel runs it: it needs a kernel with dm-thin"]
fn root_somebody_elses_metadata_snapshot_is_left_alone_and_does_not_blind_us() {
    let Some(_turn) = turn() else { return };
    let dir = KernelDir::new();
    let pool = dir.open();
    pool.create_thin(id(1)).unwrap();
    pool.reserve_metadata_snapshot().unwrap();
    pool.create_thin(id(2)).unwrap();
    assert_eq!(pool.devices().unwrap(), [id(1), id(2)]);
    assert_eq!(pool.usage(id(2)).unwrap().mapped, ByteCount(0));
    drop(pool);
    let pool = dir.open();
    assert!(pool.status().unwrap().metadata_snapshot, "it was not ours to release");
    assert_eq!(pool.devices().unwrap(), [id(1), id(2)]);
    pool.release_metadata_snapshot().unwrap();
    assert!(!pool.status().unwrap().metadata_snapshot);
    pool.close().unwrap();
}

#[test]
#[ignore = "make test-kernel runs it: it needs a kernel with dm-thin"]
fn root_usage_is_exact_while_a_view_is_open_and_others_make_and_delete_snapshots() {
    let Some(_turn) = turn() else { return };
    let dir = KernelDir::new();
    let pool = dir.open();
    for number in [1, 2] {
        pool.create_thin(id(number)).unwrap();
    }
    let path = pool.activate(id(1), SIZE, Access::ReadWrite).unwrap();
    Disk::open(&path).write(&vec![1; 10 * 65536], 0);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Each message is a commit: nobody reads faster than these two write.
        let makers: Vec<_> = [10, 20]
            .map(|first| {
                let (pool, stop) = (&pool, &stop);
                scope.spawn(move || {
                    let mut made = 0_u64;
                    while !stop.load(Ordering::Relaxed) {
                        pool.create_snap(id(first), id(2)).unwrap();
                        pool.delete(id(first)).unwrap();
                        made += 1;
                    }
                    made
                })
            })
            .into();
        let mut seen = Vec::new();
        let mut whole = true;
        for _ in 0..30 {
            let Ok(view) = pool.begin_view() else { break };
            seen.extend(
                (0..3).map(|_| pool.usage(id(1)).map(|usage| [usage.mapped, usage.written].map(|b| b.0 / BLOCK))),
            );
            whole &= pool.end_view(view.number).unwrap_or(false);
        }
        stop.store(true, Ordering::Relaxed);
        println!("{:?} snapshots came and went", makers.into_iter().map(|m| m.join().unwrap()).collect::<Vec<_>>());
        let seen: Vec<_> = seen.into_iter().map(Result::unwrap).collect();
        assert_eq!(seen, vec![[10, 10]; 90]);
        assert!(whole, "a view was not whole to its end");
    });
    pool.close().unwrap();
}
