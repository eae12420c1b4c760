//! Replays that need a commit in the middle, killed at each step of it; logs that do not fit the metadata.

use std::path::Path;
use std::sync::{Arc, Mutex};

use crate::device::{BlockDevice, MemoryDevice};
use crate::embedded::intent_format::parse_intent_log;
use crate::embedded::intent_log::{IntentLog, boot_id};
use crate::embedded::intent_record::IntentChange;
use crate::embedded::replay::recover;
use crate::error::{ErrorKind, Result};
use crate::meta::{DataRun, FormatOptions, Metadata, OpenMode, superblock_fingerprint};
use crate::units::{BlockSize, DataBlock, DeviceId, VirtualBlock};

const CAPACITY: u32 = 1024;
/// Mappings of the device that is broken away from its snapshot, some hundred leaves of them.
const MAPPED: u64 = 40_000;
const DATA_BLOCKS: u64 = 60_000;

fn id(number: u32) -> DeviceId {
    DeviceId::new(number).unwrap()
}

/// What stood on the disk and in the log at one moment.
type Moment = (Vec<u8>, Vec<u8>);

/// A metadata device that keeps what a kill behind each event would leave.
struct Watched {
    inner: MemoryDevice,
    log: std::path::PathBuf,
    moments: Mutex<Vec<Moment>>,
}

impl Watched {
    fn note(&self) {
        self.moments.lock().unwrap().push((self.inner.to_bytes(), std::fs::read(&self.log).unwrap()));
    }
}

impl BlockDevice for Watched {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.inner.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.note();
        self.inner.write_at(buf, offset)?;
        self.note();
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.inner.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.inner.write_zeroes(offset, len)
    }

    fn flush(&self) -> Result<()> {
        self.note();
        Ok(())
    }
}

fn commit(device: &dyn BlockDevice, metadata: &mut Metadata) {
    if let Some(frozen) = metadata.freeze().unwrap() {
        frozen.write(device).unwrap();
        let freed = metadata.committed(frozen);
        metadata.release_data(&freed);
    }
}

fn insert(metadata: &mut Metadata, device: u32, start: u64, len: u64) {
    let run = metadata.reserve_data(len).unwrap();
    metadata.insert(id(device), VirtualBlock(start), run).unwrap();
}

/// A small metadata device with a large device and its snapshot.
fn crowded() -> Vec<u8> {
    let device = Arc::new(MemoryDevice::new(512 * 4096));
    let options = FormatOptions {
        block_size: BlockSize::DEFAULT,
        data_blocks: DATA_BLOCKS,
        metadata_blocks: 512,
        identity: [5; 16],
    };
    Metadata::format(&*device, &options).unwrap();
    let mut metadata = Metadata::open(Arc::clone(&device) as _, OpenMode::ReadWrite).unwrap();
    metadata.create_thin(id(0)).unwrap();
    for start in (0..MAPPED).step_by(1000) {
        insert(&mut metadata, 0, start, 1000);
        commit(&*device, &mut metadata);
    }
    metadata.create_snap(id(1), id(0)).unwrap();
    commit(&*device, &mut metadata);
    device.to_bytes()
}

/// Breaks one block of each leaf of both devices away from the other: each leaf is copied, and the old one is freed
/// by the second copy only, with the next commit.
fn changes() -> Vec<IntentChange> {
    let starts = (0..MAPPED).step_by(250);
    let maps = starts.clone().chain(starts).enumerate().map(|(number, start)| {
        let device = id(u32::from(number as u64 >= MAPPED / 250));
        let run = DataRun { start: DataBlock(MAPPED + number as u64), len: 1 };
        IntentChange::Map { device, start: VirtualBlock(start), run }
    });
    let device = id(0);
    maps.chain([IntentChange::Unmap { device, start: VirtualBlock(3), len: 10, removed: 10 }]).collect()
}

fn write_log(path: &Path, image: &[u8], changes: &[IntentChange]) {
    let print = superblock_fingerprint(&MemoryDevice::from_bytes(image.to_vec())).unwrap();
    let mut log = IntentLog::create(path, Some(CAPACITY), [5; 16], boot_id().unwrap(), print).unwrap();
    changes.iter().for_each(|change| log.append(change));
}

fn open(image: &[u8], log: &Path) -> (Arc<Watched>, Metadata) {
    let inner = MemoryDevice::from_bytes(image.to_vec());
    let device = Arc::new(Watched { inner, log: log.to_owned(), moments: Mutex::default() });
    let metadata = Metadata::open(Arc::clone(&device) as _, OpenMode::ReadWrite).unwrap();
    (device, metadata)
}

/// Every mapping of both devices, without the clock.
fn mappings(metadata: &Metadata) -> Vec<(u32, u64, u64)> {
    let mut all = Vec::new();
    for device in [0, 1] {
        for run in metadata.lookup_range(id(device), VirtualBlock(0)..VirtualBlock(MAPPED)).unwrap() {
            all.extend((0..run.len).map(|i| (device, run.start.0 + i, run.mapping.block.0 + i)));
        }
    }
    all
}

fn replayed(image: &[u8], log: &Path) -> (Vec<Moment>, Vec<(u32, u64, u64)>) {
    let (device, mut metadata) = open(image, log);
    let data = MemoryDevice::new(0);
    let recovered = recover(log, Some(CAPACITY), &mut metadata, &*device, &data).unwrap();
    assert!(recovered.log.is_some());
    let found = mappings(&metadata);
    let moments = std::mem::take(&mut *device.moments.lock().unwrap());
    (moments, found)
}

#[test]
fn a_replay_that_runs_out_of_metadata_commits_and_may_be_killed_anywhere_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("intent.log");
    let image = crowded();
    let changes = changes();
    write_log(&log, &image, &changes);
    let (moments, expected) = replayed(&image, &log);
    assert!(moments.len() > 6, "the replay found its room without a commit: {} events", moments.len());
    for change in &changes {
        if let IntentChange::Map { device, start, run } = change {
            let found = expected.iter().find(|(id, block, _)| *id == device.get() && *block == start.0);
            let gone = device.get() == 0 && (3..13).contains(&start.0);
            assert_eq!(found.map(|found| found.2), (!gone).then_some(run.start.0));
        }
    }
    for (number, (image, bytes)) in moments.iter().enumerate() {
        let again = dir.path().join(format!("{number}.log"));
        std::fs::write(&again, bytes).unwrap();
        let (inner, found) = replayed(image, &again);
        assert!(found == expected, "killed at event {number} of the replay");
        // And once more, in the replay after that.
        if let Some((image, bytes)) = inner.get(inner.len() / 2) {
            std::fs::write(&again, bytes).unwrap();
            assert!(replayed(image, &again).1 == expected, "killed twice, at event {number} first");
        }
    }
}

#[test]
fn a_log_that_does_not_fit_is_refused_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let image = crowded();
    let run = |start| DataRun { start: DataBlock(start), len: 2 };
    let cases = [
        ("an unknown device", IntentChange::Map { device: id(9), start: VirtualBlock(0), run: run(MAPPED) }),
        ("a block in use", IntentChange::Map { device: id(0), start: VirtualBlock(0), run: run(17) }),
        ("a block half in use", IntentChange::Map { device: id(0), start: VirtualBlock(0), run: run(MAPPED - 1) }),
        ("beyond the data", IntentChange::Map { device: id(0), start: VirtualBlock(0), run: run(DATA_BLOCKS - 1) }),
        ("an unmapping", IntentChange::Unmap { device: id(0), start: VirtualBlock(0), len: 9, removed: 8 }),
        ("a smaller pool", IntentChange::GrowData { blocks: 5 }),
        ("data that is not there", IntentChange::GrowData { blocks: DATA_BLOCKS + 5 }),
        ("metadata that is not there", IntentChange::GrowMetadata { blocks: 600 }),
    ];
    for (number, (what, change)) in cases.into_iter().enumerate() {
        let log = dir.path().join(format!("{number}.log"));
        write_log(&log, &image, &[change]);
        let before = std::fs::read(&log).unwrap();
        let (device, mut metadata) = open(&image, &log);
        let refused = recover(&log, Some(CAPACITY), &mut metadata, &*device, &MemoryDevice::new(0)).err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::DoubtfulLog, "{what}: {refused}");
        assert!(refused.to_string().contains(log.to_str().unwrap()), "{what}: {refused}");
        assert!(refused.to_string().contains("record 0"), "{what}: {refused}");
        assert!(device.moments.lock().unwrap().is_empty(), "{what}: something was written");
        assert_eq!(std::fs::read(&log).unwrap(), before, "{what}: the log is as it was");
    }
}

#[test]
fn a_log_for_another_superblock_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("intent.log");
    let image = crowded();
    write_log(&log, &image, &changes());
    let device = Arc::new(MemoryDevice::from_bytes(image));
    let mut metadata = Metadata::open(Arc::clone(&device) as _, OpenMode::ReadWrite).unwrap();
    metadata.create_thin(id(2)).unwrap();
    commit(&*device, &mut metadata);
    let refused = recover(&log, None, &mut metadata, &*device, &MemoryDevice::new(0)).err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::DoubtfulLog, "{refused}");
}

#[test]
fn a_mark_for_a_check_does_not_make_another_superblock_of_it() {
    let device = MemoryDevice::from_bytes(crowded());
    let before = superblock_fingerprint(&device).unwrap();
    Metadata::mark_needs_check(&device).unwrap();
    assert_eq!(superblock_fingerprint(&device).unwrap(), before);
}

#[test]
fn a_replay_keeps_the_log_as_it_is_for_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("intent.log");
    let image = crowded();
    let few = &changes()[..5];
    write_log(&log, &image, few);
    let (moments, first) = replayed(&image, &log);
    assert!(moments.is_empty(), "five changes need no commit");
    assert_eq!(parse_intent_log(&std::fs::read(&log).unwrap()).unwrap().changes, few);
    assert!(replayed(&image, &log).1 == first);
}
