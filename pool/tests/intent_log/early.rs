//! Writes that are acknowledged before their block is made: what a kill, a power cut, a bad disk and the verbs of the pool
//! find of them.

use thinsnap_pool::{
    Access, ByteCount, DeviceId, ErrorKind, IntentLogState, ThinPool, discard_intent_log, intent_log_state,
};

use crate::direct_exporter::Opened;
use crate::files::{early_of_another_boot, early_of_another_pool, with_headers};
use crate::ground::{BLOCK, Ground, early_beside};

const SIZE: ByteCount = ByteCount(8 * BLOCK);

fn id(number: u32) -> DeviceId {
    DeviceId::new(number).unwrap()
}

fn open(ground: &Ground, number: u32) -> Opened {
    ground.pool().activate(id(number), SIZE, Access::ReadWrite).unwrap();
    ground.exporter.open(id(number))
}

/// A pool with device 1, eight blocks of ones, all of them shared with its snapshot 2.
fn shared() -> (Ground, Opened) {
    let ground = Ground::new(90, 128);
    ground.pool().create_thin(id(1)).unwrap();
    let volume = open(&ground, 1);
    volume.write_at(&vec![1; usize::try_from(8 * BLOCK).unwrap()], 0).unwrap();
    ground.pool().create_snap(id(2), id(1)).unwrap();
    // Known from here on where its blocks stand.
    volume.read_at(&mut [0; 512], 0).unwrap();
    (ground, volume)
}

/// Panics unless a block holds `inside` from byte 4096 on, for `len` bytes, and ones around it.
fn assert_holds(volume: &Opened, block: u64, inside: u8, len: usize) {
    let mut found = vec![0; usize::try_from(BLOCK).unwrap()];
    volume.read_at(&mut found, block * BLOCK).unwrap();
    let mut expected = vec![1; found.len()];
    expected[4096..4096 + len].fill(inside);
    assert!(found == expected, "block {block}");
}

/// Writes early to the first `blocks` blocks, and dies before any of them is made.
fn killed_with(blocks: u64) -> Ground {
    let (mut ground, volume) = shared();
    ground.hold_all();
    for block in 0..blocks {
        let taken = volume.write_as_the_host(&[7; 8192], block * BLOCK + 4096, false);
        assert!(taken.unwrap(), "block {block} is shared, and all is at hand");
    }
    drop(volume);
    ground.kill();
    ground
}

#[test]
fn what_was_acknowledged_early_is_there_after_a_kill_and_goes_with_a_power_cut() {
    let mut ground = killed_with(5);
    let log = ground.log_left();
    let early = ground.early().clone();
    ground.start(Some(&log)).unwrap();
    for block in 0..8 {
        assert_holds(&open(&ground, 1), block, if block < 5 { 7 } else { 1 }, 8192);
        assert_holds(&open(&ground, 2), block, 1, 8192);
    }
    // The same file a second time, as if the kill had come before the first slot was cleared: nothing changes.
    let log = ground.kill();
    ground.early().clone_from(&early);
    ground.start(Some(&log)).unwrap();
    for block in 0..8 {
        assert_holds(&open(&ground, 1), block, if block < 5 { 7 } else { 1 }, 8192);
    }
    ground.close();
    ground.assert_sound("after an orderly end", true);

    let mut ground = killed_with(5);
    let log = ground.log_left();
    // Torn, as a file may be that a power cut met on a disk.
    let mut torn = early_of_another_boot(&early);
    *torn.last_mut().unwrap() ^= 1;
    torn[4096 + 16] ^= 1;
    *ground.early() = torn;
    ground.start(Some(&log)).unwrap();
    assert_holds(&open(&ground, 1), 0, 1, 8192);
    assert_eq!(intent_log_state(ground.log(), [7; 16]).unwrap(), IntentLogState::Pending { records: 0 });
}

#[test]
fn reads_flushes_snapshots_and_second_writes_find_what_was_acknowledged() {
    let (mut ground, volume) = shared();
    for block in 0..8 {
        assert!(volume.write_as_the_host(&[7; 4096], block * BLOCK + 4096, block % 2 == 0).unwrap());
        match block {
            0 => assert_holds(&volume, 0, 7, 4096),
            1 => assert!(!volume.write_as_the_host(&[8; 4096], BLOCK + 4096, false).unwrap(), "it is no first write"),
            2 => ground.pool().create_snap(id(3), id(1)).unwrap(),
            3 => volume.discard(3 * BLOCK, BLOCK).unwrap(),
            4 => assert_eq!(ground.pool().written(id(1)).unwrap(), ByteCount(7 * BLOCK), "a block is discarded"),
            _ => {}
        }
    }
    volume.flush().unwrap();
    assert_holds(&open(&ground, 3), 2, 7, 4096);
    assert_holds(&open(&ground, 3), 4, 1, 4096);
    drop(volume);
    ground.cut_power(&mut crate::random::Random::new(5), 0);
    let volume = open(&ground, 1);
    for block in [0, 2, 4, 5, 6, 7] {
        assert_holds(&volume, block, 7, 4096);
    }
    assert_holds(&volume, 1, 8, 4096);
    let mut discarded = [1; 512];
    volume.read_at(&mut discarded, 3 * BLOCK).unwrap();
    assert_eq!(discarded, [0; 512]);
}

#[test]
fn a_write_that_is_large_crosses_blocks_or_meets_no_shared_block_is_not_taken() {
    let (ground, volume) = shared();
    assert!(!volume.write_as_the_host(&[7; 20_480], 0, true).unwrap(), "more than four pages");
    assert!(!volume.write_as_the_host(&[7; 1024], 4 * BLOCK - 512, true).unwrap(), "two blocks");
    assert!(!volume.write_as_the_host(&[7; 512], 512, true).unwrap(), "it has a block of its own by now");
    assert!(Ok(false) != volume.write_as_the_host(&[7; 512], 8 * BLOCK, true).map_err(|e| e.kind()), "past the end");
    ground.pool().create_thin(id(5)).unwrap();
    assert!(!open(&ground, 5).write_as_the_host(&[7; 512], 0, true).unwrap(), "a hole");
}

#[test]
fn a_block_whose_copy_hangs_stands_in_nobodys_way_but_its_own() {
    // So many blocks apart have one cell between them.
    const APART: u64 = 1024;
    let mut ground = Ground::new(90, 128);
    ground.pool().create_thin(id(1)).unwrap();
    ground.pool().activate(id(1), ByteCount(3 * APART * BLOCK), Access::ReadWrite).unwrap();
    let volume = ground.exporter.open(id(1));
    for block in [0, APART, 2 * APART] {
        volume.write_at(&vec![1; usize::try_from(BLOCK).unwrap()], block * BLOCK).unwrap();
    }
    ground.pool().create_snap(id(2), id(1)).unwrap();
    for block in [0, APART, 2 * APART] {
        volume.read_at(&mut [0; 512], block * BLOCK).unwrap();
    }
    ground.hold_all();
    assert!(volume.write_as_the_host(&[7; 4096], 4096, false).unwrap());
    assert!(volume.write_as_the_host(&[7; 4096], APART * BLOCK + 4096, false).unwrap(), "another block of the cell");
    assert_holds(&volume, 2 * APART, 1, 4096);
    drop(volume);
    let log = ground.kill();
    ground.start(Some(&log)).unwrap();
    ground.pool().activate(id(1), ByteCount(3 * APART * BLOCK), Access::ReadWrite).unwrap();
    let volume = ground.exporter.open(id(1));
    for (block, inside) in [(0, 7), (APART, 7), (2 * APART, 1)] {
        assert_holds(&volume, block, inside, 4096);
    }
}

#[test]
fn hundreds_of_writers_at_once_get_their_places_one_after_the_other() {
    const BLOCKS: u64 = 700;
    let ground = Ground::new(3 * BLOCKS, 4096);
    ground.pool().create_thin(id(1)).unwrap();
    let size = ByteCount(BLOCKS * BLOCK);
    ground.pool().activate(id(1), size, Access::ReadWrite).unwrap();
    let volume = ground.exporter.open(id(1));
    volume.write_at(&vec![1; usize::try_from(size.0).unwrap()], 0).unwrap();
    ground.pool().create_snap(id(2), id(1)).unwrap();
    volume.read_at(&mut vec![0; usize::try_from(size.0).unwrap()], 0).unwrap();
    let next = std::sync::atomic::AtomicU64::new(0);
    let taken = std::sync::atomic::AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| {
                loop {
                    let block = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if block >= BLOCKS {
                        return;
                    }
                    let early = volume.write_as_the_host(&[7; 4096], block * BLOCK + 4096, true).unwrap();
                    taken.fetch_add(u64::from(early), std::sync::atomic::Ordering::Relaxed);
                }
            });
        }
    });
    assert!(taken.into_inner() > BLOCKS / 2, "most found all at hand");
    volume.flush().unwrap();
    for block in 0..BLOCKS {
        assert_holds(&volume, block, 7, 4096);
    }
}

#[test]
fn a_damaged_file_stops_the_start_and_another_pools_is_set_aside() {
    let mut ground = killed_with(1);
    let (log, early) = (ground.log_left(), ground.early().clone());
    for at in [0, 8, 4096, 4096 + 16, 4096 + 40] {
        let mut damaged = early.clone();
        damaged[at] ^= 0x40;
        *ground.early() = damaged;
        let refused = ground.start(Some(&log)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::DoubtfulLog, "byte {at}: {refused}");
    }
    *ground.early() = early[..early.len() - 8].to_vec();
    assert_eq!(ground.start(Some(&log)).unwrap_err().kind(), ErrorKind::DoubtfulLog, "cut short");
    let other = early_of_another_pool(&early);
    *ground.early() = other.clone();
    ground.start(Some(&log)).unwrap();
    let aside = format!("{}.of-{}", early_beside(ground.log()).display(), "b0".repeat(16));
    assert_eq!(std::fs::read(aside).unwrap(), other, "it is kept as it was");
    assert_holds(&open(&ground, 1), 0, 1, 8192);
}

#[test]
fn what_a_program_that_knows_no_early_writes_has_served_since_is_not_overwritten() {
    let mut ground = killed_with(2);
    let early = ground.early().clone();
    // Such a program writes zero where the two files agree.
    let log = with_headers(&ground.log_left(), |slot| slot[96..104].fill(0));
    ground.start(Some(&log)).unwrap();
    assert_holds(&open(&ground, 1), 0, 1, 8192);
    assert_eq!(std::fs::read(format!("{}.stale", early_beside(ground.log()).display())).unwrap(), early, "it is kept");
    // From here on they agree again.
    ground.hold_all();
    assert!(open(&ground, 1).write_as_the_host(&[8; 4096], 4096, true).unwrap());
    ground.kill_and_start();
    assert_holds(&open(&ground, 1), 0, 8, 4096);
}

#[test]
fn tools_count_what_was_acknowledged_early_and_give_it_up_when_told_to() {
    let mut ground = killed_with(3);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("intent.log");
    std::fs::write(&path, ground.log_left()).unwrap();
    std::fs::write(early_beside(&path), ground.early()).unwrap();
    let state = || intent_log_state(&path, [7; 16]).unwrap();
    assert_eq!(state(), IntentLogState::Pending { records: 3 });
    std::fs::write(early_beside(&path), [1; 64]).unwrap();
    assert!(matches!(state(), IntentLogState::Doubtful { .. }));
    discard_intent_log(&path).unwrap();
    assert_eq!(state(), IntentLogState::Nothing);
    assert!(!early_beside(&path).exists(), "what cannot be believed must not stop the next start");
}
