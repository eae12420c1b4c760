//! A host that dies under its devices: the next one goes on where it stopped, and nobody sees an error.

// All of this is test code, helpers too: clippy lets tests unwrap.
#![cfg(test)]

#[path = "support/host_process.rs"]
mod host_process;
#[path = "support/host_tools.rs"]
mod host_tools;
#[path = "support/shown_by.rs"]
mod shown_by;

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use thinsnap_pool::{Access, ByteCount, DescriptorStore, DeviceId, HostKeeper, StopOutcome, ThinPool};

use host_process::{HostDir, be_the_host};
use host_tools::{eventually, leftovers, run};
use shown_by::{by_ublk, skipped_without_export, ublk_devices};

const POOL: ByteCount = ByteCount(256 << 20);
const SIZE: ByteCount = ByteCount(64 << 20);
const LONG: Duration = Duration::from_secs(600);
const BLOCK: usize = 4096;

fn device(id: u32) -> DeviceId {
    DeviceId::new(id).unwrap()
}

/// Keeps descriptors as a supervisor does.
#[derive(Default)]
struct Shelf(Mutex<Vec<OwnedFd>>);

impl DescriptorStore for Shelf {
    fn keep(&self, descriptors: &[OwnedFd]) {
        *self.0.lock().unwrap() = descriptors.iter().map(|fd| fd.try_clone().unwrap()).collect();
    }

    fn forget(&self) {
        self.0.lock().unwrap().clear();
    }
}

/// A pool whose host is kept; everything goes, whatever the test does.
struct Kept {
    keeper: Option<HostKeeper>,
    shelf: Arc<Shelf>,
    dir: HostDir,
}

impl Kept {
    fn new() -> Self {
        let mut kept = Self { keeper: None, shelf: Arc::default(), dir: HostDir::new(POOL, LONG) };
        kept.keep();
        kept
    }

    /// Keeps the host that is there, or starts one from what is on the shelf.
    fn keep(&mut self) {
        let mut options = self.dir.spawn_options();
        options.connect.patience = Duration::from_secs(30);
        let stored = self.shelf.0.lock().unwrap().iter().map(|fd| fd.try_clone().unwrap()).collect();
        let keeper = HostKeeper::start(options, stored, Arc::clone(&self.shelf) as Arc<dyn DescriptorStore>);
        self.keeper = Some(keeper.unwrap_or_else(|e| panic!("{e}; log: {}", self.dir.log())));
    }

    fn pool(&self) -> &dyn ThinPool {
        &**self.keeper.as_ref().unwrap().client()
    }

    fn host(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.keeper.as_ref().unwrap().client().info().pid).unwrap())
    }

    /// Kills the host of this moment and waits for the next one.
    fn kill(&self) {
        let (host, restarts) = (self.host(), self.keeper.as_ref().unwrap().restarts());
        kill(host, Signal::SIGKILL).unwrap();
        eventually("the next host serves", || self.keeper.as_ref().unwrap().restarts() > restarts);
    }

    fn end(mut self) {
        let outcome = self.keeper.take().unwrap().close().unwrap();
        assert_eq!(outcome, StopOutcome::Stopping, "log: {}", self.dir.log());
        assert!(self.shelf.0.lock().unwrap().is_empty(), "the shelf is emptied when a host ends in order");
        assert_eq!(leftovers(self.dir.path()), Vec::<String>::new());
        assert!(!by_ublk() || ublk_devices().is_empty(), "left behind: {:?}", ublk_devices());
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let Some(keeper) = self.keeper.take() else { return };
        drop(keeper);
        self.shelf.forget();
        // Whatever waits for a host in this process must not wait for ever.
        let _ = umount2(&self.dir.path().join("export"), MntFlags::MNT_FORCE);
    }
}

/// A buffer that direct I/O takes, filled with one byte.
fn page(byte: u8) -> (Vec<u8>, usize) {
    let room = vec![byte; 2 * BLOCK];
    let start = room.as_ptr().align_offset(BLOCK);
    (room, start)
}

fn write_block(file: &File, index: u64, byte: u8) {
    let (room, start) = page(byte);
    file.write_all_at(&room[start..start + BLOCK], index * BLOCK as u64).unwrap();
}

fn read_block(file: &File, index: u64) -> u8 {
    let (mut room, start) = page(0);
    file.read_exact_at(&mut room[start..start + BLOCK], index * BLOCK as u64).unwrap();
    assert!(room[start..start + BLOCK].iter().all(|byte| *byte == room[start]), "block {index} is torn");
    room[start]
}

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(path).unwrap()
}

/// Kills the host `kills` times while `work` goes on; `work` gets the number of its round.
fn kill_under(kept: &Kept, kills: usize, work: impl Fn(u64) + Sync) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let mut round = 0;
            while !stop.load(Ordering::SeqCst) {
                work(round);
                round += 1;
            }
            round
        });
        for _ in 0..kills {
            std::thread::park_timeout(Duration::from_millis(60));
            kept.kill();
        }
        stop.store(true, Ordering::SeqCst);
        assert!(worker.join().unwrap() > 0);
    });
}

#[test]
fn root_every_acknowledged_write_is_there_after_kills_in_the_middle_of_writes_flushes_and_discards() {
    if skipped_without_export() {
        return;
    }
    let kept = Kept::new();
    let pool = kept.pool();
    pool.create_thin(device(1)).unwrap();
    let path = pool.activate(device(1), SIZE, Access::ReadWrite).unwrap();
    let file = open(&path);
    let blocks = SIZE.0 / BLOCK as u64;
    let words: Mutex<Vec<u8>> = Mutex::new(vec![0; usize::try_from(blocks).unwrap()]);
    kill_under(&kept, 6, |round| {
        let mut words = words.lock().unwrap();
        let index = round * 7919 % blocks;
        let byte = u8::try_from(round % 250).unwrap() + 1;
        write_block(&file, index, byte);
        words[usize::try_from(index).unwrap()] = byte;
        if round % 32 == 5 {
            file.sync_data().unwrap();
        }
        if round % 64 == 9 {
            // A whole data block of the pool.
            let first = index / 16 * 16;
            let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            let at = i64::try_from(first * BLOCK as u64).unwrap();
            fallocate(&file, punch, at, 65536).unwrap();
            words[usize::try_from(first).unwrap()..][..16].fill(0);
        }
        let look = round * 31 % blocks;
        assert_eq!(read_block(&file, look), words[usize::try_from(look).unwrap()], "block {look}");
    });
    for (index, byte) in words.lock().unwrap().iter().enumerate() {
        assert_eq!(read_block(&file, index as u64), *byte, "block {index}");
    }
    drop(file);
    kept.end();
}

#[test]
fn root_a_snapshot_keeps_its_bytes_when_the_host_is_killed_while_sharing_is_broken() {
    if skipped_without_export() {
        return;
    }
    let kept = Kept::new();
    let pool = kept.pool();
    pool.create_thin(device(1)).unwrap();
    let origin = open(&pool.activate(device(1), SIZE, Access::ReadWrite).unwrap());
    for index in 0..1024 {
        write_block(&origin, index * 4, 1);
    }
    pool.create_snap(device(2), device(1)).unwrap();
    kill_under(&kept, 5, |round| write_block(&origin, round * 13 % 4096, 2));
    let path = pool.activate(device(2), SIZE, Access::ReadOnly).unwrap();
    let snapshot = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path).unwrap();
    for index in 0..4096 {
        let wanted = u8::from(index % 4 == 0);
        assert_eq!(read_block(&snapshot, index), wanted, "block {index} of the snapshot");
    }
    drop(snapshot);
    drop(origin);
    kept.end();
}

#[test]
fn root_fifty_kills_quickly_in_a_row_leave_a_device_that_works() {
    if skipped_without_export() {
        return;
    }
    let kept = Kept::new();
    let pool = kept.pool();
    pool.create_thin(device(1)).unwrap();
    let file = open(&pool.activate(device(1), SIZE, Access::ReadWrite).unwrap());
    let mut last = None;
    for round in 0..50_u8 {
        write_block(&file, u64::from(round), round + 1);
        // Each one is another process, killed as soon as it is known.
        eventually("the next host is known", || Some(kept.host()) != last);
        last = Some(kept.host());
        kill(kept.host(), Signal::SIGKILL).unwrap();
        if round % 3 == 0 {
            assert_eq!(pool.devices().unwrap(), [device(1)]);
        }
    }
    for round in 0..50_u8 {
        assert_eq!(read_block(&file, u64::from(round)), round + 1);
    }
    drop(file);
    kept.end();
}

#[test]
fn root_devices_that_were_leaving_or_taken_away_meanwhile_go() {
    if skipped_without_export() {
        return;
    }
    let mut kept = Kept::new();
    for id in 1..=3 {
        kept.pool().create_thin(device(id)).unwrap();
    }
    let paths: Vec<_> = (1..=3).map(|id| kept.pool().activate(device(id), SIZE, Access::ReadWrite).unwrap()).collect();
    let leaving = open(&paths[0]);
    assert!(!kept.pool().deactivate(device(1)).unwrap(), "it is open");
    // Nobody serves from here on.
    let host = kept.host();
    drop(kept.keeper.take());
    kill(host, Signal::SIGKILL).unwrap();
    eventually("the host is dead", || !Path::new(&format!("/proc/{host}/stat")).exists() || is_zombie(host));
    if !by_ublk() {
        run("losetup", ["-d".as_ref(), paths[1].as_os_str()]);
    }
    kept.keep();
    if by_ublk() {
        // The driver takes nothing away by itself.
        assert!(kept.pool().deactivate(device(2)).unwrap());
    }
    write_block(&leaving, 7, 9);
    assert_eq!(read_block(&leaving, 7), 9);
    eventually("the device that was taken away is gone", || kept.pool().active_path(device(2)).unwrap().is_none());
    assert_eq!(kept.pool().active_path(device(3)).unwrap().as_ref(), Some(&paths[2]));
    drop(leaving);
    eventually("the device that was leaving is gone", || kept.pool().active_path(device(1)).unwrap().is_none());
    for id in 1..=3 {
        kept.pool().delete(device(id)).unwrap();
    }
    kept.end();
}

/// A killed host closes its files on its way out; a close that waited for an answer would keep it from ever being gone.
#[test]
fn root_a_file_of_the_export_is_closed_while_nobody_serves() {
    if skipped_without_export() {
        return;
    }
    if by_ublk() {
        println!("root_a_file_of_the_export_is_closed_while_nobody_serves: ublk shows no files");
        return;
    }
    let mut kept = Kept::new();
    kept.pool().create_thin(device(1)).unwrap();
    kept.pool().activate(device(1), SIZE, Access::ReadWrite).unwrap();
    let file = File::open(kept.dir.path().join("export/1")).unwrap();
    let host = kept.host();
    drop(kept.keeper.take());
    kill(host, Signal::SIGKILL).unwrap();
    eventually("the host is dead", || !Path::new(&format!("/proc/{host}/stat")).exists() || is_zombie(host));
    let closing = std::thread::spawn(move || drop(file));
    eventually("the file is closed", || closing.is_finished());
    kept.keep();
    assert!(kept.pool().deactivate(device(1)).unwrap());
    kept.pool().delete(device(1)).unwrap();
    kept.end();
}

fn is_zombie(pid: Pid) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
}

#[test]
fn root_of_two_successors_at_once_one_serves_and_nothing_is_lost() {
    if skipped_without_export() {
        return;
    }
    let mut kept = Kept::new();
    kept.pool().create_thin(device(1)).unwrap();
    let file = open(&kept.pool().activate(device(1), SIZE, Access::ReadWrite).unwrap());
    for round in 0..6_u8 {
        let writing = file.try_clone().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let writer = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                while !stop.load(Ordering::SeqCst) {
                    write_block(&writing, u64::from(round), round + 1);
                }
            }
        });
        let first = kept.host();
        kill(first, Signal::SIGKILL).unwrap();
        // The keeper dies while the next host is on its way: that one goes on, and the next keeper starts another.
        std::thread::park_timeout(Duration::from_millis(u64::from(round) * 8));
        let orphaned = kept.keeper.take();
        let second = std::thread::scope(|scope| {
            let ended = scope.spawn(move || drop(orphaned));
            kept.keep();
            ended.join().unwrap();
            kept.host()
        });
        assert_ne!(first, second);
        stop.store(true, Ordering::SeqCst);
        writer.join().unwrap();
        assert_eq!(read_block(&file, u64::from(round)), round + 1);
    }
    drop(file);
    kept.end();
}

#[test]
fn root_a_host_of_another_protocol_version_is_replaced_under_io() {
    if skipped_without_export() {
        return;
    }
    let mut kept = Kept::new();
    kept.pool().create_thin(device(1)).unwrap();
    let file = open(&kept.pool().activate(device(1), SIZE, Access::ReadWrite).unwrap());
    kill_under(&kept, 1, |round| write_block(&file, round % 4096, 5));
    let old = kept.host();
    drop(kept.keeper.take());
    // The words of a client that is 75 versions newer.
    let mut stream = UnixStream::connect(kept.dir.path().join("sock")).unwrap();
    let hello = [b"thinpool".as_slice(), &77_u32.to_le_bytes(), b"control1"].concat();
    say(&mut stream, &hello);
    let welcome = hear(&mut stream);
    assert_eq!(welcome[4..12], *b"control1");
    assert_eq!(welcome[12..16], old.as_raw().to_le_bytes());
    say(&mut stream, &[2]);
    assert_eq!(hear(&mut stream)[0], 1, "it does not hand over to who has no descriptors");
    say(&mut stream, &[1]);
    assert_eq!(hear(&mut stream), [0]);
    let mut count = [0];
    // The descriptors are lost here; the shelf has others of the same open file.
    stream.read_exact(&mut count).unwrap();
    assert_eq!(count, [u8::from(!by_ublk())], "ublk needs no descriptor for that");
    say(&mut stream, &[2]);
    assert_eq!(hear(&mut stream), [0]);
    eventually("the host has gone", || is_zombie(old) || !Path::new(&format!("/proc/{old}")).exists());
    let shelved = kept.shelf.0.lock().unwrap().iter().all(|fd| fd.as_fd().try_clone_to_owned().is_ok());
    assert!(shelved);
    kept.keep();
    assert_eq!(read_block(&file, 0), 5);
    let replaced = kept.keeper.as_ref().unwrap().replace().unwrap();
    assert!(replaced.stall < Duration::from_secs(30), "{replaced:?}");
    assert_eq!(read_block(&file, 0), 5);
    drop(file);
    kept.end();
}

fn say(stream: &mut UnixStream, frame: &[u8]) {
    stream.write_all(&u32::try_from(frame.len()).unwrap().to_le_bytes()).unwrap();
    stream.write_all(frame).unwrap();
}

fn hear(stream: &mut UnixStream) -> Vec<u8> {
    let mut len = [0; 4];
    stream.read_exact(&mut len).unwrap();
    let mut frame = vec![0; usize::try_from(u32::from_le_bytes(len)).unwrap()];
    stream.read_exact(&mut frame).unwrap();
    frame
}

/// The other process of these tests.
#[test]
#[ignore = "started by other tests"]
fn the_host_process() {
    be_the_host();
}
