//! A flush that is begun before it is asked for covers what it must, and where there is no rhythm none is begun.

// All of this is test code, helpers too: clippy lets tests unwrap.
#![cfg(test)]

#[path = "support/export_stage.rs"]
mod export_stage;
#[path = "support/file_volume.rs"]
mod file_volume;
#[path = "support/host_tools.rs"]
mod host_tools;
#[path = "support/random.rs"]
mod random;
#[path = "support/shown_by.rs"]
mod shown_by;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use nix::fcntl::{FallocateFlags, fallocate};
use thinsnap_pool::{Access, NoSpace};

use export_stage::Stage;
use file_volume::{Behaviour, FileVolume};
use host_tools::eventually;
use random::Random;
use shown_by::{by_ublk, skipped_without_export};

const SIZE: u64 = 16 << 20;
const BLOCK: usize = 4096;
/// Rounds after which a rhythm is known.
const ROUNDS: u32 = 10;

/// Memory that direct I/O takes.
#[repr(align(4096))]
struct Block([u8; BLOCK]);

/// A device whose volume flushes at hand, and its user.
struct User {
    // Closed first: a device in use would outlive the stage of a test that fails.
    file: File,
    volume: Arc<FileVolume>,
    stage: Stage,
}

impl User {
    fn with_threads(event_threads: usize) -> Self {
        let stage = Stage::with_threads(event_threads);
        let behaviour = Behaviour { flush_at_hand: true, ..Behaviour::default() };
        let volume = stage.volume(1, SIZE, behaviour);
        let file = open(&stage.attach(1, &volume, SIZE, Access::ReadWrite));
        Self { stage, volume, file }
    }

    fn write(&self, at: u64) {
        self.file.write_all_at(&Block([1; BLOCK]).0, at * BLOCK as u64).unwrap();
    }

    /// Returns when the event loop has come to a later request: what it does ahead of one it has done.
    fn read(&self) {
        self.file.read_exact_at(&mut Block([0; BLOCK]).0, SIZE - BLOCK as u64).unwrap();
    }

    /// True if all changes are durable.
    fn is_durable(&self) -> bool {
        self.volume.durable.load(SeqCst) == self.volume.changes.load(SeqCst)
    }

    /// `ROUNDS` rounds of so many writes and a flush each.
    fn keep_rhythm(&self, rounds: &[u64]) {
        for _ in 0..ROUNDS {
            for writes in rounds {
                (0..*writes).for_each(|at| self.write(at));
                self.file.sync_data().unwrap();
            }
        }
    }

    fn finish(self) {
        drop(self.file);
        drop(self.volume);
        self.stage.finish();
    }
}

fn open(device: &Path) -> File {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(device).unwrap()
}

#[test]
fn root_a_flush_is_begun_ahead_once_the_rhythm_is_known() {
    if skipped_without_export() {
        return;
    }
    for rounds in [&[1][..], &[3], &[2, 1]] {
        let user = User::with_threads(1);
        user.write(0);
        user.read();
        assert!(!user.is_durable(), "no flush was asked for, ever");
        user.file.sync_data().unwrap();
        user.keep_rhythm(rounds);
        for (at, _) in (1..).zip(1..rounds[0]) {
            user.write(at);
            user.read();
            assert!(!user.is_durable(), "flushed after {at} writes of {rounds:?}");
        }
        user.write(0);
        user.read();
        assert!(user.is_durable(), "{rounds:?}: the flush waits to be asked for");
        let before = user.volume.flushes.load(SeqCst);
        user.file.sync_data().unwrap();
        assert_eq!(user.volume.flushes.load(SeqCst), before, "{rounds:?}: what is durable was flushed again");
        // One write more than usual: the flush ahead of it does not cover it.
        (0..rounds[rounds.len() - 1]).for_each(|at| user.write(at));
        user.file.sync_data().unwrap();
        (0..=rounds[0]).for_each(|at| user.write(at));
        user.file.sync_data().unwrap();
        assert!(user.is_durable(), "{rounds:?}: a flush was answered for a write that it does not cover");
        user.finish();
    }
}

#[test]
fn root_no_flush_is_begun_ahead_where_a_loop_does_not_see_every_change() {
    if skipped_without_export() {
        return;
    }
    if by_ublk() {
        println!("SKIPPED: each ublk device has one loop of its own");
        return;
    }
    let user = User::with_threads(2);
    user.keep_rhythm(&[1]);
    user.write(0);
    user.read();
    user.read();
    assert!(!user.is_durable());
    user.file.sync_data().unwrap();
    assert!(user.is_durable());
    user.finish();
}

#[test]
fn root_no_flush_is_begun_ahead_while_a_write_is_under_way() {
    if skipped_without_export() {
        return;
    }
    let user = User::with_threads(1);
    let gate = user.volume.gate.lock().unwrap();
    user.volume.hold.store(true, SeqCst);
    let under_way = || eventually("the other write is under way", || !user.volume.hold.load(SeqCst));
    nothing_is_flushed_ahead_of_another_write(&user, under_way, || drop(gate));
    user.finish();
}

#[test]
fn root_no_flush_is_begun_ahead_while_a_write_waits_for_room() {
    if skipped_without_export() {
        return;
    }
    let user = User::with_threads(1);
    let exporter = &user.stage.exporter;
    exporter.set_no_space(NoSpace { wait: Duration::from_secs(60), ..NoSpace::default() });
    user.volume.full.store(true, SeqCst);
    let under_way = || {
        eventually("the other write waits", || exporter.waiting().0 == 1);
        user.volume.full.store(false, SeqCst);
    };
    nothing_is_flushed_ahead_of_another_write(&user, under_way, || exporter.room_changed());
    user.finish();
}

/// A flush ahead would stand for the other write too, which comes after it.
fn nothing_is_flushed_ahead_of_another_write(user: &User, under_way: impl FnOnce(), go_on: impl FnOnce()) {
    std::thread::scope(|scope| {
        let other = scope.spawn(|| user.write(2000));
        under_way();
        user.keep_rhythm(&[1]);
        user.write(0);
        user.read();
        let durable = user.is_durable();
        go_on();
        other.join().unwrap();
        assert!(!durable, "flushed while a write was under way");
    });
    user.file.sync_data().unwrap();
    assert!(user.is_durable());
}

#[test]
fn root_a_flush_ahead_that_fails_is_told_to_who_asks_for_it() {
    if skipped_without_export() {
        return;
    }
    let user = User::with_threads(1);
    user.keep_rhythm(&[1]);
    user.volume.broken.store(true, SeqCst);
    user.write(0);
    let error = user.file.sync_data().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
    user.finish();
}

/// Writers that flush as they like: after each flush everything is durable that was done before it.
#[test]
fn root_a_flush_covers_what_was_done_before_it() {
    if skipped_without_export() {
        return;
    }
    let user = User::with_threads(1);
    for writers in 1..=3 {
        std::thread::scope(|scope| {
            for writer in 0..writers {
                let user = &user;
                scope.spawn(move || write_and_flush(user, writer, &mut Random::new(100 * writers + writer)));
            }
        });
    }
    user.finish();
}

fn write_and_flush(user: &User, writer: u64, random: &mut Random) {
    // Rhythms, some broken, so that flushes are expected rightly and wrongly.
    let mut rhythm = 1;
    for round in 0..400 {
        if random.chance(5) {
            rhythm = 1 + random.below(3);
        }
        let writes = if random.chance(10) { random.below(4) } else { rhythm };
        for _ in 0..writes {
            let at = writer * 512 + random.below(512);
            match random.below(20) {
                0 => {
                    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                    let offset = i64::try_from(at * BLOCK as u64).unwrap();
                    fallocate(&user.file, hole, offset, BLOCK as i64).unwrap();
                }
                1 => user.read(),
                _ => user.write(at),
            }
        }
        let done = user.volume.changes.load(SeqCst);
        user.file.sync_data().unwrap();
        let durable = user.volume.durable.load(SeqCst);
        assert!(durable >= done, "writer {writer}, round {round}: {done} changes were done, {durable} are durable");
    }
}
