//! Stories that are killed at every event, and long ones with kills, power cuts and orderly ends by chance.

use thinsnap_pool::{Access, ByteCount, DeviceId, ThinPool};

use crate::ground::{BLOCK, Ground};
use crate::random::Random;
use crate::story::Story;

/// More blocks than the devices of a story hold at most together with what waits for a commit.
const BLOCKS: u64 = 90;

/// Plays a story until it is killed, then goes on, kills twice more, and judges. False: it ended before its kill.
fn killed_once(seed: u64, events: usize, behind: bool) -> bool {
    let mut story = Story::new(seed, BLOCKS, 128);
    story.ground.kill_in(events, behind);
    let died = (0..60).any(|_| !story.step());
    // Two kills in a row with little, or nothing, between them.
    story.kill();
    story.ground.kill_in(3, behind);
    for _ in 0..3 {
        story.step();
    }
    story.kill();
    story.ground.assert_sound(&format!("killed at event {events}"), events.is_multiple_of(20));
    died
}

#[test]
fn what_was_acknowledged_survives_a_kill_at_every_event() {
    let mut kills = 0;
    for seed in [1, 2, 3] {
        for behind in [false, true] {
            let mut events = 0;
            loop {
                let story = || killed_once(seed, events, behind);
                let died = std::panic::catch_unwind(std::panic::AssertUnwindSafe(story));
                assert!(died.is_ok(), "seed {seed}: killed at event {events}, behind it: {behind}");
                if !died.unwrap() {
                    break;
                }
                events += 1;
                kills += 1;
            }
        }
    }
    println!("{kills} kills");
    assert!(kills > 300, "{kills} kills are too few to mean anything");
}

#[test]
fn random_stories_with_kills_and_power_cuts_agree_with_a_plain_model() {
    let rounds = std::env::var("INTENT_LOG_ROUNDS").map_or(80, |rounds| rounds.parse().unwrap());
    let (mut cut_off, mut full, mut early) = (0, 0, 0);
    for seed in [11, 12, 13] {
        // Few blocks: it runs full now and then.
        let mut story = Story::new(seed, 26, 128);
        for round in 0..rounds {
            let played = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                if story.random.chance(40) {
                    let (events, behind) = (story.random.below(60), story.random.chance(50));
                    story.ground.kill_in(usize::try_from(events).unwrap(), behind);
                }
                for _ in 0..story.random.below(30) {
                    story.step();
                }
                match story.random.below(10) {
                    0..5 => story.kill(),
                    5..9 => {
                        if !story.ground.is_dead() {
                            story.cut_power();
                        }
                    }
                    _ => {
                        story.kill();
                        story.reopen();
                    }
                }
                story.ground.assert_sound("between two lives", round % 10 == 0);
            }));
            assert!(played.is_ok(), "seed {seed}: round {round}");
        }
        cut_off += story.cut_off;
        full += story.full;
        early += story.early;
    }
    println!("{cut_off} calls were cut off, {full} found no room, {early} writes were acknowledged early");
    let wild = cut_off > 10 && full > 0 && early > 20;
    assert!(wild, "the stories are too tame: {cut_off}, {full}, {early}");
}

#[test]
fn a_flush_in_the_next_life_covers_what_the_dead_one_wrote_without_flushing() {
    let id = DeviceId::new(1).unwrap();
    let open = |ground: &Ground| {
        ground.pool().activate(id, ByteCount(4 * BLOCK), Access::ReadWrite).unwrap();
        ground.exporter.open(id)
    };
    let mut survived = 0;
    // Killed at each event of a commit, the one behind its superblock's write among them.
    for events in 0..10 {
        let mut random = Random::new(events);
        let mut ground = Ground::new(40, 128);
        ground.pool().create_thin(id).unwrap();
        let volume = open(&ground);
        volume.write_at(&[7; 4096], BLOCK).unwrap();
        ground.kill_in(usize::try_from(events).unwrap(), true);
        survived += u32::from(volume.flush().is_ok());
        drop(volume);
        ground.kill_and_start();
        // As the kernel sends it again: nothing was written in this life.
        open(&ground).flush().unwrap();
        ground.cut_power(&mut random, 0);
        let mut bytes = [0; 4096];
        open(&ground).read_at(&mut bytes, BLOCK).unwrap();
        assert!(bytes == [7; 4096], "killed behind event {events}");
    }
    assert!((1..10).contains(&survived), "a commit has fewer events than were tried: {survived}");
}
