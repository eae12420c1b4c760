//! Fill a small pool to its last block under eight writers with file systems on top, make room by some means, go on;
//! again and again. What was flushed is there, nothing hangs, and every file system is clean at the end.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use thinsnap_pool::{Access, ByteCount, HostClient, NoSpace, PoolMode, ThinPool};

use crate::disk::{BLOCK, Disk, device};
use crate::host_process::HostDir;
use crate::host_tools::{leftovers, run};
use crate::shown_by::skipped_without_export;
use crate::support::random::Random;

const MIB: u64 = 1 << 20;
const WRITERS: u32 = 8;
/// The devices that take and give back what is left beside the writers.
const BALLAST: [u32; 2] = [100, 101];
const POOL: u64 = 112 * MIB;
const POOL_MAX: u64 = 136 * MIB;
/// Each file system; together they are larger than the pool.
const SIZE: u64 = 64 * MIB;
/// Files of one writer.
const FILES: u64 = 12;
/// Nothing takes as long as this unless it hangs.
const CYCLE_MAX: Duration = Duration::from_secs(120);
/// Calls while the pool is full; far above what is promised, because the machine may be shared.
const AT_ONCE: Duration = Duration::from_secs(1);

/// How many cycles: the default fits a test run.
fn cycles() -> u64 {
    std::env::var("FILL_CYCLES").map_or(30, |text| text.parse().expect("FILL_CYCLES is a number"))
}

fn seed() -> u64 {
    std::env::var("FILL_SEED").map_or(1, |text| text.parse().expect("FILL_SEED is a number"))
}

/// What a file must hold: its length and the seed of its bytes.
#[derive(Clone, Copy)]
struct Content {
    len: u64,
    seed: u64,
}

impl Content {
    /// Pages that name their place, so that none can stand for another.
    fn bytes(self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(self.len).unwrap()];
        for (page, at) in bytes.chunks_mut(4096).zip(0_u64..) {
            page.fill(self.seed.to_le_bytes()[0]);
            page[..8].copy_from_slice(&self.seed.to_le_bytes());
            page[8..16].copy_from_slice(&at.to_le_bytes());
        }
        bytes
    }
}

/// One writer: its file system, and what it was told is durable.
struct Writer {
    id: u32,
    device: PathBuf,
    at: PathBuf,
    random: Random,
    durable: BTreeMap<u64, Content>,
    mounted: bool,
}

impl Writer {
    fn new(client: &HostClient, dir: &Path, id: u32) -> Self {
        client.create_thin(device(id)).unwrap();
        let path = client.activate(device(id), ByteCount(SIZE), Access::ReadWrite).unwrap();
        // The journal is written, not only promised: ext4 gives up its file system if that finds no room.
        let options = "-q -b 4096 -J size=4 -E nodiscard,lazy_itable_init=0,lazy_journal_init=0";
        run("mkfs.ext4", options.split(' ').map(Path::new).chain([path.as_path()]));
        let at = dir.join(format!("mnt-{id}"));
        fs::create_dir_all(&at).unwrap();
        let mut writer = Self {
            id,
            device: path,
            at,
            random: Random::new(u64::from(id) + 1000 * seed()),
            durable: BTreeMap::new(),
            mounted: false,
        };
        writer.mount();
        writer
    }

    fn mount(&mut self) {
        run("mount", [Path::new("-o"), Path::new("errors=remount-ro"), &self.device, &self.at]);
        self.mounted = true;
    }

    fn unmount(&mut self) {
        run("umount", [&self.at]);
        self.mounted = false;
    }

    /// Writes until it is told to stop or is told that there is no room. True: it met an error.
    fn work(&mut self, stop: &AtomicBool) -> bool {
        while !stop.load(Ordering::SeqCst) {
            let number = self.random.below(FILES);
            let content = Content { len: 4096 * (1 + self.random.below(300)), seed: self.random.below(u64::MAX) };
            // From here to a successful fsync the file holds anything.
            self.durable.remove(&number);
            match self.write(number, content) {
                Ok(()) => self.durable.insert(number, content),
                Err(error) => {
                    let known = [libc::ENOSPC, libc::EIO, libc::EROFS].map(Some);
                    assert!(known.contains(&error.raw_os_error()), "writer {}: {error}", self.id);
                    return true;
                }
            };
        }
        false
    }

    fn write(&mut self, number: u64, content: Content) -> std::io::Result<()> {
        let path = self.at.join(number.to_string());
        let mut options = OpenOptions::new();
        options.write(true).create(true);
        let mut file = if self.random.chance(50) { options.truncate(true) } else { &mut options }.open(path)?;
        file.write_all(&content.bytes())?;
        file.set_len(content.len)?;
        file.sync_all()
    }

    /// What was flushed is there.
    fn verify(&self) {
        for (number, content) in &self.durable {
            let path = self.at.join(number.to_string());
            let found = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            assert!(found == content.bytes(), "writer {}: file {number} lost flushed bytes", self.id);
        }
    }

    /// Deletes files and tells the pool.
    fn shrink(&mut self) {
        let doomed: Vec<u64> = (0..FILES).filter(|_| self.random.chance(60)).collect();
        for number in doomed {
            self.durable.remove(&number);
            match fs::remove_file(self.at.join(number.to_string())) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => assert_eq!(e.raw_os_error(), Some(libc::EROFS)),
                _ => {}
            }
        }
        let synced = File::open(&self.at).and_then(|dir| dir.sync_all());
        drop(synced);
        // A file system that has given up cannot be trimmed; it is mounted anew later.
        let _ = Command::new("fstrim").arg(&self.at).output().unwrap();
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if self.mounted {
            let _ = Command::new("umount").arg("-l").arg(&self.at).status();
        }
    }
}

/// Takes what is left of the pool but `leave`, with two devices.
fn load_ballast(client: &HostClient, leave: u64) {
    let free = client.status().unwrap().data.free().0.saturating_sub(leave) / BLOCK;
    for (id, blocks) in BALLAST.into_iter().zip([free / 2, free - free / 2]) {
        client.create_thin(device(id)).unwrap();
        let disk = Disk::open(&client.activate(device(id), ByteCount(POOL_MAX), Access::ReadWrite).unwrap());
        for block in 0..blocks {
            disk.write_block(block, 1).unwrap();
        }
        drop(disk);
        drop_device(client, id, false);
    }
}

fn drop_device(client: &HostClient, id: u32, delete: bool) {
    let deadline = Instant::now() + CYCLE_MAX;
    while !client.deactivate(device(id)).unwrap() {
        assert!(Instant::now() < deadline, "device {id} stays open");
        std::thread::park_timeout(Duration::from_millis(2));
    }
    if delete {
        client.delete(device(id)).unwrap();
    }
}

#[test]
fn root_cycles_of_a_pool_that_fills_up_and_gets_room_lose_no_flushed_byte() {
    if skipped_without_export() {
        return;
    }
    let begun = Instant::now();
    let dir = HostDir::new(ByteCount(POOL), Duration::from_secs(600));
    let client = dir.host();
    let mut random = Random::new(seed());
    let mut writers: Vec<Writer> = (1..=WRITERS).map(|id| Writer::new(&client, dir.path(), id)).collect();
    let mut told = Vec::new();
    let (mut refused, mut queued, mut full) = (0, 0, 0);
    let mut means: BTreeMap<&str, u64> = BTreeMap::new();
    let cycles = cycles();
    for cycle in 0..cycles {
        let cycle_begun = Instant::now();
        let wait = random.pick(&[Duration::ZERO, Duration::from_millis(150), Duration::from_secs(60)]);
        client.set_no_space(NoSpace { wait, ..NoSpace::default() }).unwrap();
        load_ballast(&client, MIB * (2 + random.below(8)));
        let stop = AtomicBool::new(false);
        let failed: Vec<bool> = std::thread::scope(|scope| {
            let lanes: Vec<_> = writers
                .iter_mut()
                .map(|writer| {
                    scope.spawn({
                        let stop = &stop;
                        move || writer.work(stop)
                    })
                })
                .collect();
            let deadline = Instant::now() + CYCLE_MAX;
            // Full: somebody waits, or was told.
            loop {
                let begun = Instant::now();
                let status = client.status().unwrap();
                told.push(begun.elapsed());
                full += u64::from(status.mode == PoolMode::OutOfDataSpace);
                let someone_waits = status.room.waiting_writes > 0;
                queued += u64::from(someone_waits);
                let ended = lanes.iter().filter(|lane| lane.is_finished()).count();
                if ended == lanes.len() || (wait >= Duration::from_secs(60) && someone_waits) {
                    break;
                }
                assert!(Instant::now() < deadline, "cycle {cycle}: the pool does not fill: {status:?}");
                std::thread::park_timeout(Duration::from_millis(5));
            }
            let mean = make_room(&client, &mut random);
            let room_made = Instant::now();
            *means.entry(mean).or_default() += 1;
            stop.store(true, Ordering::SeqCst);
            while lanes.iter().any(|lane| !lane.is_finished()) {
                // What was given back may not have been enough for all that wait.
                let waiting = client.status().unwrap().room.waiting_writes;
                if waiting > 0 && room_made.elapsed() > Duration::from_millis(500) {
                    BALLAST.iter().for_each(|id| drop_device(&client, *id, true));
                }
                // Or all that there is.
                if waiting > 0 && room_made.elapsed() > Duration::from_secs(1) {
                    client.set_no_space(NoSpace::default()).unwrap();
                }
                assert!(cycle_begun.elapsed() < CYCLE_MAX, "cycle {cycle}: writers hang after {mean}");
                std::thread::park_timeout(Duration::from_millis(2));
            }
            lanes.into_iter().map(|lane| lane.join().unwrap()).collect()
        });
        refused += failed.iter().filter(|failed| **failed).count();
        BALLAST.iter().for_each(|id| drop_device(&client, *id, true));
        for (number, writer) in writers.iter_mut().enumerate() {
            if random.chance(40) {
                writer.shrink();
            }
            // A file system that was refused a block may have given up; the others are read back now and then.
            if failed[number] || random.chance(10) {
                writer.unmount();
                writer.mount();
                writer.verify();
            }
        }
        assert!(cycle_begun.elapsed() < CYCLE_MAX, "cycle {cycle} took {:?}", cycle_begun.elapsed());
    }
    for mut writer in writers {
        writer.unmount();
        writer.mount();
        writer.verify();
        writer.unmount();
        run("e2fsck", [Path::new("-fn"), &writer.device]);
        drop_device(&client, writer.id, false);
    }
    HostDir::stop(&client);
    assert_eq!(leftovers(dir.path()), Vec::<String>::new());
    run("thin_check", [Path::new("-q"), &dir.path().join("pool/metadata")]);
    told.sort_unstable();
    let at = |percent: usize| told[(told.len() - 1) * percent / 100];
    println!(
        "{cycles} cycles in {:.1?}: {refused} writers refused, {queued} looks with waiting writes, {full} at a full \
         pool, room by {means:?}; status p50 {:.2?} p99 {:.2?}",
        begun.elapsed(),
        at(50),
        at(99)
    );
    assert!(at(99) < AT_ONCE, "status took {:?} at a full pool", at(99));
    assert!(full > 0 && refused > 0 && queued > 0, "the pool was never full");
}

/// By one of the ways there are.
fn make_room(client: &HostClient, random: &mut Random) -> &'static str {
    let total = client.status().unwrap().data.total.0;
    match random.below(4) {
        0 if total < POOL_MAX => {
            client.grow(Some(ByteCount(total + 2 * MIB)), None).unwrap();
            "grow"
        }
        0 | 1 => {
            client.delete(device(BALLAST[0])).unwrap();
            "remove"
        }
        2 => {
            let id = device(BALLAST[1]);
            let disk = Disk::open(&client.activate(id, ByteCount(POOL_MAX), Access::ReadWrite).unwrap());
            disk.discard(0, POOL_MAX / BLOCK);
            "discard"
        }
        _ => {
            BALLAST.iter().for_each(|id| client.delete(device(*id)).unwrap());
            "remove all"
        }
    }
}
