//! Logs that are void, somebody else's, damaged, or of no use any more: what the next start does with them.

use std::path::Path;

use thinsnap_pool::{
    Access, ByteCount, DeviceId, ErrorKind, IntentLogState, ThinPool, discard_intent_log, intent_log_state,
    parse_intent_log,
};

use crate::ground::{BLOCK, Ground};

const IDENTITY: [u8; 16] = [7; 16];
const SIZE: ByteCount = ByteCount(8 * BLOCK);

/// Words of a slot of the header, and where each stands, as docs/format.md has it.
const SLOT_BYTES: usize = 14 * 8;
const SLOTS: [usize; 2] = [0, 512];

/// The log with `change` made to each sound slot and its checksum renewed.
pub(crate) fn with_headers(log: &[u8], change: impl Fn(&mut [u8])) -> Vec<u8> {
    let mut log = log.to_vec();
    for at in SLOTS {
        let slot = &mut log[at..at + SLOT_BYTES];
        if &slot[..8] != b"thinslog" {
            continue;
        }
        change(slot);
        seal(slot);
    }
    log
}

/// Renews the checksum in the last word.
fn seal(words: &mut [u8]) {
    let (words, last) = words.split_at_mut(words.len() - 8);
    let sum = crc32c::crc32c(words);
    last[..4].copy_from_slice(&sum.to_le_bytes());
    last[4..].copy_from_slice(&(!sum).to_le_bytes());
}

/// A file of early writes, as if it had been written before the machine was started anew.
pub(crate) fn early_of_another_boot(early: &[u8]) -> Vec<u8> {
    early_with(early, 32..48)
}

/// The same of another pool.
pub(crate) fn early_of_another_pool(early: &[u8]) -> Vec<u8> {
    early_with(early, 16..32)
}

fn early_with(early: &[u8], other: std::ops::Range<usize>) -> Vec<u8> {
    let mut early = early.to_vec();
    if let Some(header) = early.get_mut(..8 * 8) {
        header[other].fill(0xb0);
        seal(header);
    }
    early
}

/// The same log, as if it had been written before the machine was started anew.
pub(crate) fn of_another_boot(log: &[u8]) -> Vec<u8> {
    with_headers(log, |slot| slot[32..48].fill(0xb0))
}

fn of_another_pool(log: &[u8]) -> Vec<u8> {
    with_headers(log, |slot| slot[16..32].fill(0xaa))
}

fn id(number: u32) -> DeviceId {
    DeviceId::new(number).unwrap()
}

/// A pool with five acknowledged writes that only its log knows: no commit comes in between.
fn unflushed() -> Ground {
    let ground = Ground::new(40, 128);
    ground.pool().create_thin(id(1)).unwrap();
    ground.hold_flushes(true);
    ground.pool().activate(id(1), SIZE, Access::ReadWrite).unwrap();
    for block in 0..5 {
        ground.exporter.open(id(1)).write_at(&[7; 512], block * BLOCK).unwrap();
    }
    ground
}

/// A pool that was killed with acknowledged writes in its log, and that log.
fn killed() -> (Ground, Vec<u8>) {
    let mut ground = unflushed();
    let log = ground.kill();
    assert_eq!(parse_intent_log(&log).unwrap().changes.len(), 5);
    (ground, log)
}

/// How many of the five blocks hold what was written.
fn blocks_there(ground: &Ground) -> usize {
    ground.pool().activate(id(1), SIZE, Access::ReadWrite).unwrap();
    let volume = ground.exporter.open(id(1));
    let mut bytes = [0; 512];
    (0..5)
        .filter(|block| {
            volume.read_at(&mut bytes, block * BLOCK).unwrap();
            bytes == [7; 512]
        })
        .count()
}

#[test]
fn a_log_of_this_boot_and_pool_is_replayed_and_goes_with_an_orderly_end() {
    let (mut ground, log) = killed();
    ground.start(Some(&log)).unwrap();
    assert_eq!(blocks_there(&ground), 5);
    ground.close();
    ground.start(None).unwrap();
    assert_eq!(blocks_there(&ground), 5, "the replay was committed");
}

#[test]
fn a_log_of_another_boot_is_void() {
    let (mut ground, log) = killed();
    ground.start(Some(&of_another_boot(&log))).unwrap();
    assert_eq!(blocks_there(&ground), 0, "after a power cut nothing but what was flushed counts");
    assert_eq!(parse_intent_log(&std::fs::read(ground.log()).unwrap()).unwrap().changes.len(), 0);
}

#[test]
fn a_log_of_another_pool_is_set_aside() {
    let (mut ground, log) = killed();
    let other = of_another_pool(&log);
    ground.start(Some(&other)).unwrap();
    assert_eq!(blocks_there(&ground), 0);
    let name = format!("{}.of-{}", ground.log().display(), "aa".repeat(16));
    assert_eq!(std::fs::read(name).unwrap(), other, "it is kept as it was");
}

#[test]
fn a_damaged_log_stops_the_start_or_proves_to_be_the_same() {
    let (mut ground, log) = killed();
    let mut refused = 0;
    // All of the header and of the records in force, one byte at a time.
    for at in (0..112).chain(512..624).chain(1024..1040).chain(4096..4096 + 5 * 48) {
        let mut damaged = log.clone();
        damaged[at] ^= 0x40;
        match ground.start(Some(&damaged)) {
            Ok(()) => {
                assert_eq!(blocks_there(&ground), 5, "byte {at}");
                // As it was: the replay was not committed.
                let left = ground.kill();
                assert!(parse_intent_log(&left).is_ok());
                ground = killed().0;
            }
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::DoubtfulLog, "byte {at}: {e}");
                refused += 1;
            }
        }
    }
    assert!(refused >= 5 * 48, "{refused} of the damages were seen");
    for len in [0, 1000, 4096, log.len() - 1] {
        assert_eq!(ground.start(Some(&log[..len])).unwrap_err().kind(), ErrorKind::DoubtfulLog, "{len} bytes");
    }
    ground.start(Some(&log)).unwrap();
    assert_eq!(blocks_there(&ground), 5, "the refusals have changed nothing");
}

#[test]
fn a_log_that_builds_on_another_state_stops_the_start() {
    let (mut ground, log) = killed();
    // Somebody opens the pool without its log, and changes it.
    ground.start(None).unwrap();
    ground.pool().create_thin(id(2)).unwrap();
    ground.kill();
    let refused = ground.start(Some(&log)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::DoubtfulLog);
    assert!(refused.kind().advice().contains("discard-intent-log"), "{}", refused.kind().advice());
}

#[test]
fn an_empty_log_stops_nobody_whatever_became_of_the_pool() {
    let mut ground = Ground::new(40, 128);
    ground.pool().create_thin(id(1)).unwrap();
    let log = ground.kill();
    assert_eq!(parse_intent_log(&log).unwrap().changes.len(), 0);
    ground.start(None).unwrap();
    ground.pool().create_thin(id(2)).unwrap();
    ground.kill();
    ground.start(Some(&log)).unwrap();
    assert_eq!(ground.pool().devices().unwrap(), [id(1), id(2)]);
}

#[test]
fn tools_are_told_what_a_log_means_and_can_set_it_aside() {
    let (mut ground, log) = killed();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("intent.log");
    let state = |path: &Path| intent_log_state(path, IDENTITY).unwrap();
    assert_eq!(state(&path), IntentLogState::Nothing);
    assert_eq!(discard_intent_log(&path).unwrap_err().kind(), ErrorKind::NotFound);
    std::fs::write(&path, &log).unwrap();
    assert_eq!(state(&path), IntentLogState::Pending { records: 5 });
    assert_eq!(intent_log_state(&path, [1; 16]).unwrap(), IntentLogState::OtherPool);
    std::fs::write(&path, of_another_boot(&log)).unwrap();
    assert_eq!(state(&path), IntentLogState::OtherBoot);
    std::fs::write(&path, &log[..5000]).unwrap();
    assert!(matches!(state(&path), IntentLogState::Doubtful { why } if why.contains("5000 bytes")));

    let first = discard_intent_log(&path).unwrap();
    std::fs::write(&path, &log).unwrap();
    let second = discard_intent_log(&path).unwrap();
    assert!(first != second && first.exists() && second.exists() && !path.exists(), "none overwrites another");
    ground.start(Some(&log)).unwrap();
    assert_eq!(discard_intent_log(ground.log()).unwrap_err().kind(), ErrorKind::InUse, "its pool is served");
}

#[test]
fn a_pool_that_went_read_only_keeps_its_log_and_the_next_start_replays_it() {
    let mut ground = unflushed();
    // From here on the devices fail, as a dying disk does.
    ground.kill_in(0, false);
    ground.hold_flushes(false);
    ground.pool().flush(id(1)).unwrap_err();
    drop(ground.pool().close());
    assert!(ground.log().exists());
    ground.kill_and_start();
    assert_eq!(blocks_there(&ground), 5);
}
