//! Who waits for news of a pool hears of them from the kernel.

use std::time::{Duration, Instant};

use thinsnap_pool::{Access, ByteCount, DeviceId, PoolMode, PoolStatus, Steady, ThinPool};

use crate::support::disk::Disk;
use crate::support::kernel_stage::KernelDir;
use crate::support::stage::{BLOCK, OpenDisk};
use crate::turn;

const SIZE: ByteCount = ByteCount(512 * BLOCK);
/// Shorter than the time after which the engine looks by itself.
const SOON: Duration = Duration::from_secs(4);
const LONG: Duration = Duration::from_secs(60);

/// No news as long as so much data is free.
fn steady(mode: PoolMode, least: u64) -> Steady {
    let any = (ByteCount(0), ByteCount(u64::MAX));
    Steady { mode, data_room: (ByteCount(least), any.1), metadata_room: any, writes_wait: false }
}

/// What a wait tells that begins before `work`, and how long after that.
fn told(pool: &dyn ThinPool, steady: &Steady, work: impl FnOnce()) -> (PoolStatus, Duration) {
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| pool.wait_status(steady, LONG).unwrap());
        // The wait has begun when the kernel knows its bound; a wait that begins later sees the news at once.
        work();
        let begun = Instant::now();
        (waiting.join().unwrap(), begun.elapsed())
    })
}

#[test]
#[ignore = "make test-kernel runs it: it needs a kernel with dm-thin"]
fn root_the_kernel_tells_of_a_pool_that_fills_and_of_other_modes() {
    let Some(_turn) = turn() else { return };
    let dir = KernelDir::new();
    let pool = dir.open();
    let id = DeviceId::new(1).unwrap();
    pool.create_thin(id).unwrap();
    let path = pool.activate(id, SIZE, Access::ReadWrite).unwrap();
    let disk = Disk::open(&path);
    let total = pool.status().unwrap().data.total.0;

    let (status, after) = told(&*pool, &steady(PoolMode::Write, total / 2), || {
        disk.write(&vec![1; usize::try_from(total / 2 + BLOCK).unwrap()], 0);
    });
    assert!(status.data.free().0 < total / 2, "{status:?}");
    assert!(after < SOON, "it was told {after:?} after the write");

    let (status, after) = told(&*pool, &steady(PoolMode::Write, 0), || {
        assert!(disk.try_write(&vec![2; usize::try_from(total / 2).unwrap()], total / 2 + BLOCK).is_err());
    });
    assert_eq!(status.mode, PoolMode::OutOfDataSpace);
    assert!(after < SOON, "it was told {after:?} after the write");

    // An interruption ends it too, and the deadline does.
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| pool.wait_status(&steady(PoolMode::OutOfDataSpace, 0), LONG).unwrap());
        while !waiting.is_finished() {
            pool.interrupt_waits().unwrap();
            std::thread::yield_now();
        }
    });
    let begun = Instant::now();
    pool.wait_status(&steady(PoolMode::OutOfDataSpace, 0), Duration::from_millis(100)).unwrap();
    assert!((Duration::from_millis(100)..SOON).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    drop(disk);
    pool.close().unwrap();
}
