//! The log cut between any two stores, and with any byte of it flipped.

use std::path::{Path, PathBuf};

use crate::device::{SharedFile, trace};
use crate::embedded::intent_format::{PAGE_WORDS, SLOT_WORDS, SLOTS, TAIL, parse_intent_log};
use crate::embedded::intent_log::IntentLog;
use crate::embedded::intent_record::IntentChange;
use crate::error::ErrorKind;
use crate::meta::DataRun;
use crate::units::{DataBlock, DeviceId, VirtualBlock};

const CAPACITY: u32 = 128;

/// A log, and what it should say to whoever finds one of the superblocks that may be on the disk.
struct Story {
    _dir: tempfile::TempDir,
    path: PathBuf,
    log: IntentLog,
    changes: Vec<IntentChange>,
    /// Fingerprint, and how many changes were made before.
    durable: (u64, usize),
    coming: Option<(u64, usize)>,
}

impl Story {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("intent.log");
        let log = IntentLog::create(&path, Some(CAPACITY), [7; 16], [9; 16], 1000).unwrap();
        trace::take();
        Self { _dir: dir, path, log, changes: Vec::new(), durable: (1000, 0), coming: None }
    }

    fn append(&mut self) {
        let number = self.changes.len() as u64;
        let device = DeviceId::new(3).unwrap();
        let change = match number % 3 {
            0 => IntentChange::Unmap { device, start: VirtualBlock(number), len: 5, removed: 2 },
            _ => {
                let run = DataRun { start: DataBlock(number * 2), len: 1 };
                IntentChange::Map { device, start: VirtualBlock(number), run }
            }
        };
        self.changes.push(change);
        self.log.append(&change);
    }

    fn freeze(&mut self) {
        let fingerprint = self.durable.0 + 1;
        self.coming = Some((fingerprint, self.changes.len()));
        self.log.open_epoch(fingerprint);
    }

    fn committed(&mut self) {
        self.durable = self.coming.take().unwrap();
        self.log.drop_older_epoch();
    }

    /// What each superblock that may be on the disk lacks.
    fn expected(&self) -> Vec<(u64, Vec<IntentChange>)> {
        let epochs = [Some(self.durable), self.coming];
        epochs.into_iter().flatten().map(|(print, made)| (print, self.changes[made..].to_vec())).collect()
    }
}

/// What a log says to who finds the superblock.
fn said(bytes: &[u8], fingerprint: u64) -> Result<Option<Vec<IntentChange>>, String> {
    let content = parse_intent_log(bytes).map_err(|e| e.to_string())?;
    Ok(content.since(fingerprint).map(|(_, changes)| changes.to_vec()))
}

/// Calls `judge` with the bytes after each store of `step`, and before the first.
fn at_each_store(story: &mut Story, step: fn(&mut Story), judge: impl Fn(&[u8])) {
    let mut bytes = std::fs::read(&story.path).unwrap();
    trace::take();
    step(story);
    judge(&bytes);
    for (at, value) in trace::take() {
        bytes[at * 8..at * 8 + 8].copy_from_slice(&value.to_le_bytes());
        judge(&bytes);
    }
    assert_eq!(bytes, std::fs::read(&story.path).unwrap(), "the row of stores is all that happened");
}

#[test]
fn a_kill_between_any_two_stores_leaves_a_log_that_says_old_or_new() {
    let mut story = Story::new();
    let append: fn(&mut Story) = Story::append;
    let mut steps = Vec::new();
    for _ in 0..6 {
        // More than the ring holds in all.
        steps.extend([append; 40]);
        steps.push(Story::freeze);
        steps.extend([append; 9]);
        steps.push(Story::committed);
    }
    for (number, step) in steps.into_iter().enumerate() {
        let before = story.expected();
        let after = std::cell::OnceCell::new();
        let mut states = Vec::new();
        {
            let states = std::cell::RefCell::new(&mut states);
            at_each_store(&mut story, step, |bytes| states.borrow_mut().push(bytes.to_vec()));
        }
        after.set(story.expected()).unwrap();
        for (cut, bytes) in states.iter().enumerate() {
            let sides = [&before, after.get().unwrap()];
            // A superblock that may be there on both sides of the step has its answer of before or after; one that
            // may be there on one side only is not there now, or the step is done.
            for (print, _) in sides.into_iter().flatten() {
                let answers: Vec<_> = sides
                    .into_iter()
                    .map(|side| side.iter().find(|(other, _)| other == print).map(|(_, changes)| changes.clone()))
                    .collect();
                let found = said(bytes, *print).unwrap_or_else(|e| panic!("step {number}, store {cut}: {e}"));
                assert!(answers.contains(&found), "step {number}, store {cut}, superblock {print}: {found:?}");
            }
        }
        assert!(states.len() > 2, "step {number} stored nothing");
    }
    assert!(story.changes.len() > 2 * CAPACITY as usize, "the ring was filled twice");
}

#[test]
fn no_flipped_byte_makes_a_log_say_something_else() {
    // In both states of the header, and with either slot in force.
    let stages: [fn(&mut Story); 4] = [|_| (), Story::freeze, Story::committed, Story::freeze];
    let mut story = Story::new();
    for stage in stages {
        (0..20).for_each(|_| story.append());
        stage(&mut story);
        (0..5).for_each(|_| story.append());
        let sound = std::fs::read(&story.path).unwrap();
        let mut refused = 0;
        for at in 0..sound.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut bytes = sound.clone();
                bytes[at] ^= flip;
                for (print, changes) in story.expected() {
                    match said(&bytes, print) {
                        Err(_) | Ok(None) => refused += 1,
                        Ok(Some(found)) => assert_eq!(found, changes, "byte {at} ^ {flip:#x}, superblock {print}"),
                    }
                }
            }
        }
        assert!(refused > 20 * 48, "every byte of a record in force matters");
    }
}

#[test]
fn a_log_of_any_other_length_is_doubtful() {
    let mut story = Story::new();
    story.append();
    let sound = std::fs::read(&story.path).unwrap();
    for len in [0, 1, 8, PAGE_WORDS * 8 - 1, PAGE_WORDS * 8, sound.len() - 48, sound.len() - 1] {
        assert_eq!(parse_intent_log(&sound[..len]).unwrap_err().kind(), ErrorKind::DoubtfulLog, "{len} bytes");
    }
    assert!(parse_intent_log(&[sound.as_slice(), &[0]].concat()).is_err());
    assert!(parse_intent_log(&vec![0; sound.len()]).is_err(), "zeroes are no log");
}

#[test]
fn a_tail_that_points_at_what_was_not_written_is_doubtful() {
    let mut story = Story::new();
    story.append();
    let sound = std::fs::read(&story.path).unwrap();
    let with_tail = |tail: u64, check: u64| {
        let mut bytes = sound.clone();
        bytes[TAIL * 8..TAIL * 8 + 8].copy_from_slice(&tail.to_le_bytes());
        bytes[TAIL * 8 + 8..TAIL * 8 + 16].copy_from_slice(&(!check).to_le_bytes());
        parse_intent_log(&bytes)
    };
    assert_eq!(with_tail(1, 1).unwrap().changes.len(), 1);
    assert_eq!(with_tail(1, 0).unwrap().changes.len(), 1, "killed between the two stores");
    for (tail, check) in [(2, 2), (2, 1), (0, 1), (200, 200), (u64::MAX, u64::MAX), (0, u64::MAX)] {
        assert!(with_tail(tail, check).is_err(), "tail {tail}, {check}");
    }
}

#[test]
fn a_log_goes_on_where_it_stopped_and_forgets_the_superblock_that_never_came() {
    let mut story = Story::new();
    story.append();
    story.freeze();
    story.append();
    let Story { _dir: dir, path, log, changes, durable, .. } = story;
    drop(log);
    let content = parse_intent_log(&std::fs::read(&path).unwrap()).unwrap();
    let (epoch, pending) = content.since(durable.0).unwrap();
    assert_eq!(pending, changes);
    let file = SharedFile::open(&path).unwrap().unwrap();
    let log = IntentLog::resume(file, content.header, content.tail, epoch).unwrap();
    let mut story = Story { _dir: dir, path, log, changes, durable, coming: None };
    assert_eq!(said(&std::fs::read(&story.path).unwrap(), durable.0 + 1), Ok(None));
    story.append();
    assert_eq!(said(&std::fs::read(&story.path).unwrap(), durable.0), Ok(Some(story.changes.clone())));
    assert_eq!(SharedFile::open(&story.path).err().unwrap().kind(), ErrorKind::InUse, "one user at a time");
}

#[test]
fn a_log_is_its_owners_alone_and_no_link_is_followed() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let story = Story::new();
    assert_eq!(story.path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let blocks = std::os::unix::fs::MetadataExt::blocks(&story.path.metadata().unwrap());
    assert!(blocks * 512 >= story.path.metadata().unwrap().len(), "all its room is taken");
    let link = story.path.with_file_name("link");
    symlink(&story.path, &link).unwrap();
    assert_eq!(SharedFile::open(&link).err().unwrap().kind(), ErrorKind::Invalid);
    assert_eq!(SharedFile::open(Path::new("/dev/null")).err().unwrap().kind(), ErrorKind::Invalid);
    assert!(SLOTS[0] + SLOT_WORDS <= SLOTS[1] && SLOTS[1] + SLOT_WORDS <= TAIL);
}
