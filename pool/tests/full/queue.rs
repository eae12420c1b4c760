//! Writes that wait for room, through real block devices: nobody stands behind them.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use thinsnap_pool::{Access, ByteCount, HostClient, HostKeeper, NoSpace, NoStore, PoolMode, StopOutcome, ThinPool};

use crate::disk::{BLOCK, Disk, device};
use crate::host_process::{HostDir, process};
use crate::host_tools::{eventually, leftovers};
use crate::shown_by::skipped_without_export;

/// 256 blocks.
const POOL: ByteCount = ByteCount(16 << 20);
const SIZE: ByteCount = ByteCount(64 << 20);
const LONG: Duration = Duration::from_secs(600);
/// Far above what is promised: the machine may be shared.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Blocks that are not there yet, none beside another: the kernel makes one request of neighbours.
fn place(n: u64) -> u64 {
    300 + 2 * n
}

fn queue_for(wait: Duration) -> NoSpace {
    NoSpace { wait, ..NoSpace::default() }
}

/// A pool whose last block is taken: by devices 1 and 2, of 192 and 64 blocks.
fn full_pool(client: &HostClient) -> (Disk, Disk) {
    let disks = [(1, 192), (2, 64)].map(|(id, blocks)| {
        client.create_thin(device(id)).unwrap();
        let disk = Disk::open(&client.activate(device(id), SIZE, Access::ReadWrite).unwrap());
        (0..blocks).for_each(|block| disk.write_block(block, 1).unwrap());
        disk
    });
    assert_eq!(client.status().unwrap().data.free(), ByteCount(0));
    disks.into()
}

fn end(dir: &HostDir, client: &HostClient) {
    HostDir::stop(client);
    assert_eq!(leftovers(dir.path()), Vec::<String>::new());
}

/// Times of one kind of request.
struct Times(&'static str, Vec<Duration>);

impl Times {
    fn take(&mut self, work: impl FnOnce()) {
        let begun = Instant::now();
        work();
        self.1.push(begun.elapsed());
    }

    fn judge(mut self) {
        self.1.sort_unstable();
        let at = |percent: usize| self.1[(self.1.len() - 1) * percent / 100];
        println!("{:<18} p50 {:>9.3?}  p99 {:>9.3?}  of {}", self.0, at(50), at(99), self.1.len());
        assert!(at(99) < AT_ONCE, "{} waited {:?} behind writes that wait for room", self.0, at(99));
    }
}

#[test]
fn root_nobody_waits_behind_writes_that_wait_for_room() {
    if skipped_without_export() {
        return;
    }
    const WAITING: u64 = 80;
    let dir = HostDir::new(POOL, LONG);
    let client = dir.host();
    client.set_no_space(queue_for(LONG)).unwrap();
    let (one, two) = full_pool(&client);
    client.create_thin(device(3)).unwrap();
    let mut times =
        ["read", "rewrite", "flush", "status", "list", "snapshot", "delete", "discard"].map(|name| Times(name, vec![]));
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WAITING)
            .map(|n| {
                scope.spawn({
                    let one = &one;
                    move || one.write_block(place(n), 7)
                })
            })
            .collect();
        eventually("all writes wait", || client.status().unwrap().room.waiting_writes == WAITING);
        let status = client.status().unwrap();
        assert_eq!((status.mode, status.room.waiting), (PoolMode::OutOfDataSpace, ByteCount(WAITING * BLOCK)));
        for round in 0..60_u64 {
            // Of the same device as the waiting writes, and of another one.
            let disk = if round % 2 == 0 { &one } else { &two };
            times[0].take(|| assert_eq!(disk.read_block(round), 1));
            times[1].take(|| disk.write_block(round, 1).unwrap());
            times[2].take(|| disk.flush());
            times[3].take(|| assert_eq!(client.status().unwrap().room.waiting_writes, WAITING));
            times[4].take(|| assert!(client.devices().unwrap().len() >= 3));
            times[5].take(|| client.create_snap(device(4), device(3)).unwrap());
            times[6].take(|| client.delete(device(4)).unwrap());
        }
        // Each block that comes back lets one writer go on, whoever gives it back.
        for block in 0..8 {
            times[7].take(|| two.discard(block, 1));
        }
        eventually("eight writes found room", || client.status().unwrap().room.waiting_writes == WAITING - 8);
        assert_eq!(client.status().unwrap().data.free(), ByteCount(0));
        client.grow(Some(ByteCount(2 * POOL.0)), None).unwrap();
        writers.into_iter().for_each(|writer| writer.join().unwrap().unwrap());
    });
    times.into_iter().for_each(Times::judge);
    assert_eq!(client.status().unwrap().mode, PoolMode::Write);
    (0..WAITING).for_each(|n| assert_eq!(one.read_block(place(n)), 7));
    (8..64).for_each(|block| assert_eq!(two.read_block(block), 1));
    drop((one, two));
    end(&dir, &client);
}

fn no_space(done: io::Result<()>) -> bool {
    done.is_err_and(|error| error.raw_os_error() == Some(libc::ENOSPC))
}

#[test]
fn root_a_write_without_room_is_told_at_once_or_at_its_deadline() {
    if skipped_without_export() {
        return;
    }
    let dir = HostDir::new(POOL, LONG);
    let client = dir.host();
    let (one, two) = full_pool(&client);
    let begun = Instant::now();
    assert!(no_space(one.write_block(300, 7)));
    println!("ENOSPC after {:?}", begun.elapsed());
    let wait = Duration::from_millis(400);
    client.set_no_space(queue_for(wait)).unwrap();
    let begun = Instant::now();
    assert!(no_space(one.write_block(300, 7)));
    assert!(begun.elapsed() >= wait, "it waited {:?}", begun.elapsed());
    // Beyond the bound of waiting bytes at once again.
    client.set_no_space(NoSpace { wait: LONG, memory: ByteCount(0) }).unwrap();
    assert!(no_space(one.write_block(300, 7)));
    // A shorter wait holds for those that wait already.
    client.set_no_space(queue_for(LONG)).unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| one.write_block(300, 7));
        eventually("it waits", || client.status().unwrap().room.waiting_writes == 1);
        client.set_no_space(queue_for(wait)).unwrap();
        assert!(no_space(writer.join().unwrap()));
    });
    // What is on its way back is waited for, also where nothing else is.
    client.set_no_space(NoSpace::default()).unwrap();
    two.discard(0, 64);
    (0..64).for_each(|n| one.write_block(300 + n, 8).unwrap());
    assert!(no_space(one.write_block(400, 8)));
    (0..64).for_each(|n| assert_eq!(one.read_block(300 + n), 8));
    drop((one, two));
    end(&dir, &client);
}

#[test]
fn root_more_writes_than_may_wait_leave_their_device_alive() {
    if skipped_without_export() {
        return;
    }
    let dir = HostDir::new(POOL, LONG);
    let client = dir.host();
    client.set_no_space(queue_for(LONG)).unwrap();
    let (one, two) = full_pool(&client);
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..160)
            .map(|n| {
                scope.spawn({
                    let one = &one;
                    move || one.write_block(place(n), 7)
                })
            })
            .collect();
        eventually("the bound is reached", || {
            let full = client.status().unwrap().room.waiting_writes == 96;
            full && writers.iter().filter(|writer| writer.is_finished()).count() == 64
        });
        let begun = Instant::now();
        assert_eq!(one.read_block(5), 1);
        one.write_block(5, 1).unwrap();
        assert!(begun.elapsed() < AT_ONCE, "a device with waiting writes stood still for {:?}", begun.elapsed());
        two.discard(0, 64);
        client.grow(Some(ByteCount(2 * POOL.0)), None).unwrap();
        let done: Vec<_> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
        assert_eq!(done.iter().filter(|done| done.is_ok()).count(), 96);
        assert!(done.into_iter().filter(Result::is_err).all(no_space));
    });
    drop((one, two));
    end(&dir, &client);
}

#[test]
fn root_two_writers_race_for_the_last_block_and_one_gets_it() {
    if skipped_without_export() {
        return;
    }
    let dir = HostDir::new(POOL, LONG);
    let client = dir.host();
    let (one, two) = full_pool(&client);
    for round in 0..50 {
        two.discard(round % 64, 1);
        let (a, b) = std::thread::scope(|scope| {
            let a = scope.spawn(|| one.write_block(300 + 2 * round, 3));
            let b = two.write_block(200 + 2 * round, 4);
            (a.join().unwrap(), b)
        });
        assert!(a.is_ok() != b.is_ok(), "round {round}: {a:?} {b:?}");
        // Whoever got it gives the place back, so that the next round has one again.
        if a.is_ok() {
            assert_eq!(one.read_block(300 + 2 * round), 3);
            one.discard(300 + 2 * round, 1);
            two.write_block(round % 64, 1).unwrap();
        } else {
            assert_eq!(two.read_block(200 + 2 * round), 4);
            two.discard(200 + 2 * round, 1);
            two.write_block(round % 64, 1).unwrap();
        }
    }
    drop((one, two));
    end(&dir, &client);
}

#[test]
fn root_a_caller_is_told_before_a_fast_writer_has_taken_the_last_block() {
    if skipped_without_export() {
        return;
    }
    let dir = HostDir::new(POOL, LONG);
    let client = dir.host();
    client.create_thin(device(1)).unwrap();
    let disk = Disk::open(&client.activate(device(1), SIZE, Access::ReadWrite).unwrap());
    let status = client.status().unwrap();
    let steady = thinsnap_pool::Steady {
        mode: status.mode,
        data_room: (ByteCount(POOL.0 / 2), ByteCount(u64::MAX)),
        metadata_room: (ByteCount(0), ByteCount(u64::MAX)),
        writes_wait: false,
    };
    std::thread::scope(|scope| {
        let told = scope.spawn(|| client.wait_status(&steady, LONG).unwrap());
        (0..64).for_each(|block| disk.write_block(block, 1).unwrap());
        assert!(!told.is_finished(), "nothing has happened yet");
        (64..140).for_each(|block| disk.write_block(block, 1).unwrap());
        let told = told.join().unwrap();
        assert!(told.data_room().0 < POOL.0 / 2, "{told:?}");
        let waiter = scope.spawn(|| client.wait_status(&steady_now(&client), LONG).unwrap());
        eventually("it is interrupted", || {
            client.interrupt_waits().unwrap();
            waiter.is_finished()
        });
    });
    drop(disk);
    end(&dir, &client);
}

fn steady_now(client: &HostClient) -> thinsnap_pool::Steady {
    let any = (ByteCount(0), ByteCount(u64::MAX));
    let mode = client.status().unwrap().mode;
    thinsnap_pool::Steady { mode, data_room: any, metadata_room: any, writes_wait: false }
}

/// The kernel was never answered for the waiting writes: it sends them to the next host.
#[test]
fn root_writes_that_wait_when_their_host_is_killed_are_done_by_the_next() {
    if skipped_without_export() {
        return;
    }
    let dir = HostDir::new(POOL, LONG);
    // As the service tells its hosts when it starts them: before the first request reaches them.
    std::fs::write(dir.path().join("no-space-wait-ms"), LONG.as_millis().to_string()).unwrap();
    let keeper = HostKeeper::start(dir.spawn_options(), Vec::new(), Arc::new(NoStore)).unwrap();
    let client = Arc::clone(keeper.client());
    let (one, two) = full_pool(&client);
    one.flush();
    two.flush();
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..20)
            .map(|n| {
                let one = &one;
                scope.spawn(move || one.write_block(place(n), 7))
            })
            .collect();
        eventually("they wait", || client.status().unwrap().room.waiting_writes == 20);
        // Several: a request that came twice would be counted twice, which only some of the deaths would show.
        for death in 1..=4 {
            kill(process(&client), Signal::SIGKILL).unwrap();
            // Until then the dying one may answer.
            eventually("the next host serves", || keeper.restarts() == death);
            eventually("they wait for the next host, each once", || {
                client.status().is_ok_and(|status| status.room.waiting_writes == 20)
            });
        }
        assert_eq!(two.read_block(63), 1);
        client.grow(Some(ByteCount(2 * POOL.0)), None).unwrap();
        writers.into_iter().for_each(|writer| writer.join().unwrap().unwrap());
    });
    (0..20).for_each(|n| assert_eq!(one.read_block(place(n)), 7));
    (0..192).for_each(|block| assert_eq!(one.read_block(block), 1));
    (0..64).for_each(|block| assert_eq!(two.read_block(block), 1));
    drop((one, two));
    eventually("the devices are gone", || {
        client.deactivate(device(1)).unwrap() && client.deactivate(device(2)).unwrap()
    });
    assert_eq!(keeper.close().unwrap(), StopOutcome::Stopping);
}
