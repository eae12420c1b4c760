//! The same with a process and SIGKILL, on files: eight writers, and a journal of what was acknowledged to them.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use thinsnap_pool::{
    Access, BlockDevice, BlockSize, ByteCount, CreateOptions, DeviceId, EmbeddedOptions, EmbeddedPool, PoolPaths,
    ThinPool, open_embedded,
};

use crate::direct_exporter::DirectExporter;
use crate::ground::BLOCK;
use crate::judges::{assert_sound, assert_thin_check_accepts};
use crate::random::Random;

const DIR: &str = "INTENT_LOG_DIR";
const WRITERS: u32 = 8;
const BLOCKS: u64 = 24;
const KILLS: usize = 12;
const WAIT: Duration = Duration::from_secs(60);
/// Where in a block the stamp of a write stands: the rest must be zero or from the same place.
const SKIP: u64 = 4096;

fn id(number: u32) -> DeviceId {
    DeviceId::new(number).unwrap()
}

fn open(dir: &Path, exporter: &Arc<DirectExporter>) -> Arc<EmbeddedPool> {
    let options = EmbeddedOptions {
        intent_log: Some(dir.join("intent.log")),
        intent_log_records: Some(256),
        ..EmbeddedOptions::default()
    };
    let exporter: Arc<dyn thinsnap_pool::Exporter> = Arc::clone(exporter) as _;
    // The kernel gives the locks of a killed process back a moment after the process is gone.
    let deadline = Instant::now() + WAIT;
    loop {
        match open_embedded(&PoolPaths::in_dir(dir), Arc::clone(&exporter), &options) {
            Err(e) if e.kind() == thinsnap_pool::ErrorKind::InUse && Instant::now() < deadline => {
                std::thread::yield_now();
            }
            opened => return opened.unwrap(),
        }
    }
}

/// What the journal of one writer says of a block: the last acknowledged stamp, and one that was perhaps cut off.
#[derive(Clone, Copy, Default)]
struct Known {
    sure: u64,
    perhaps: Option<u64>,
}

fn journal(dir: &Path, writer: u32) -> PathBuf {
    dir.join(format!("journal-{writer}"))
}

/// Entries of 24 bytes: 1 before the call and 2 behind it, block, stamp (0: emptied).
fn read_journal(dir: &Path, writer: u32) -> Vec<Known> {
    let mut known = vec![Known::default(); usize::try_from(BLOCKS).unwrap()];
    let bytes = std::fs::read(journal(dir, writer)).unwrap_or_default();
    for entry in bytes.chunks_exact(24) {
        let word = |at: usize| u64::from_le_bytes(entry[at * 8..at * 8 + 8].try_into().unwrap());
        let block = &mut known[usize::try_from(word(1)).unwrap()];
        match word(0) {
            1 => block.perhaps = Some(word(2)),
            _ => *block = Known { sure: word(2), perhaps: None },
        }
    }
    known
}

fn note(journal: &mut File, kind: u64, block: u64, stamp: u64) {
    let entry: Vec<u8> = [kind, block, stamp].iter().flat_map(|word| word.to_le_bytes()).collect();
    journal.write_all(&entry).unwrap();
}

/// Compares every device with its journal, and settles in the journal what was cut off.
fn verify(dir: &Path, pool: &EmbeddedPool, exporter: &DirectExporter) {
    for writer in 0..WRITERS {
        pool.activate(id(writer), ByteCount(BLOCKS * BLOCK), Access::ReadWrite).unwrap();
        let volume = exporter.open(id(writer));
        let mut journal = OpenOptions::new().append(true).create(true).open(journal(dir, writer)).unwrap();
        for (block, known) in (0..).zip(read_journal(dir, writer)) {
            let mut bytes = vec![0; usize::try_from(BLOCK).unwrap()];
            volume.read_at(&mut bytes, block * BLOCK).unwrap();
            let stamp = &bytes[usize::try_from(SKIP).unwrap()..][..512];
            let found = u64::from_le_bytes(stamp[..8].try_into().unwrap());
            assert!(stamp.chunks_exact(8).all(|word| word == found.to_le_bytes()), "writer {writer}, block {block}");
            let rest = bytes[..4096].iter().chain(&bytes[4608..]).all(|&byte| byte == 0);
            assert!(rest, "writer {writer}, block {block}: it shows another's bytes");
            let right = found == known.sure || Some(found) == known.perhaps;
            assert!(right, "writer {writer}, block {block}: {found}, not {} or {:?}", known.sure, known.perhaps);
            note(&mut journal, 2, block, found);
        }
    }
}

fn write_for_ever(dir: &Path, volume: &dyn BlockDevice, writer: u32) {
    let mut random = Random::new(u64::from(std::process::id()) << 8 | u64::from(writer));
    let mut journal = OpenOptions::new().append(true).open(journal(dir, writer)).unwrap();
    loop {
        let block = random.below(BLOCKS);
        let stamp = if random.chance(30) { 0 } else { 1 + random.below(u64::MAX - 1) };
        note(&mut journal, 1, block, stamp);
        match (stamp, random.chance(50)) {
            (0, true) => volume.discard(block * BLOCK, BLOCK),
            (0, false) => volume.write_zeroes(block * BLOCK, BLOCK),
            _ => volume.write_at(&stamp.to_le_bytes().repeat(64), block * BLOCK + SKIP),
        }
        .unwrap();
        note(&mut journal, 2, block, stamp);
        if random.chance(2) {
            volume.flush().unwrap();
        }
    }
}

/// The process that is killed: looks at what its predecessor left, then writes until the end.
#[test]
#[ignore = "started by another test"]
fn the_process_that_is_killed() {
    let dir = PathBuf::from(std::env::var_os(DIR).unwrap());
    let exporter = DirectExporter::new();
    let pool = open(&dir, &exporter);
    verify(&dir, &pool, &exporter);
    std::fs::write(dir.join("writing"), b"").unwrap();
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (volume, dir) = (exporter.open(id(writer)), &dir);
            scope.spawn(move || write_for_ever(dir, &*volume, writer));
        }
    });
}

struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // Ended already, if the test went well.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn eight_writers_of_a_process_that_is_killed_again_and_again_lose_nothing() {
    let dir = tempfile::tempdir_in(std::env::var_os("TMPDIR").unwrap_or_else(|| "/var/tmp".into())).unwrap();
    thinsnap_pool::create(&CreateOptions {
        paths: PoolPaths::in_dir(dir.path()),
        data_size: Some(ByteCount(u64::from(WRITERS) * BLOCKS * 3 * BLOCK)),
        metadata_size: Some(ByteCount(4 << 20)),
        block_size: BlockSize::DEFAULT,
    })
    .unwrap();
    let exporter = DirectExporter::new();
    let pool = open(dir.path(), &exporter);
    for writer in 0..WRITERS {
        pool.create_thin(id(writer)).unwrap();
    }
    pool.close().unwrap();
    drop(pool);

    let mut random = Random::new(5);
    let mut replayed = 0;
    for round in 0..KILLS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "processes::the_process_that_is_killed", "--ignored", "--nocapture"])
            .env(DIR, dir.path())
            .stdout(Stdio::null())
            .spawn()
            .map(Killed)
            .unwrap();
        let deadline = Instant::now() + WAIT;
        while !dir.path().join("writing").exists() {
            assert!(child.0.try_wait().unwrap().is_none(), "round {round}: the process found something wrong");
            assert!(Instant::now() < deadline, "round {round}: the process does not begin");
            std::thread::yield_now();
        }
        std::fs::remove_file(dir.path().join("writing")).unwrap();
        // Shorter and longer than the period of commits.
        let until = Instant::now() + Duration::from_millis(random.pick(&[20, 150, 400, 1300]));
        while Instant::now() < until {
            assert!(child.0.try_wait().unwrap().is_none(), "round {round}: the process ended by itself");
            std::thread::park_timeout(until - Instant::now());
        }
        child.0.kill().unwrap();
        child.0.wait().unwrap();
        let log = thinsnap_pool::parse_intent_log(&std::fs::read(dir.path().join("intent.log")).unwrap()).unwrap();
        replayed += log.changes.len();
    }
    let exporter = DirectExporter::new();
    let pool = open(dir.path(), &exporter);
    verify(dir.path(), &pool, &exporter);
    pool.close().unwrap();
    drop(pool);
    println!("{KILLS} kills, {replayed} changes in the logs");
    assert!(replayed > 100, "the kills met empty logs: {replayed} changes");
    let image = std::fs::read(dir.path().join("metadata")).unwrap();
    assert_sound(&image, "after all kills");
    assert_thin_check_accepts(&image, "after all kills");
}
