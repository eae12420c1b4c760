//! Pools that go from one engine to the other and back, and what each finds.

use thinsnap_pool::{DeviceId, ErrorKind};

use crate::embedded::Embedded;
use crate::kernel::Kernel;
use crate::support::random::Random;
use crate::truth::{BLOCK, Player, SECTOR, Truth};

/// Handovers of a run, unless `THINSNAP_HANDOVERS` says otherwise.
const HANDOVERS: u64 = 100;
const STEPS_MAX: u64 = 12;

fn kernel(truth: &Truth) -> Box<dyn Player> {
    Box::new(Kernel::open(&truth.paths(), &truth.ids()))
}

fn embedded(truth: &Truth) -> Box<dyn Player> {
    Box::new(Embedded::open(&truth.paths()))
}

/// Snapshots, broken sharing, discards, deletions and more room: the work of one engine.
fn tell_a_story(truth: &mut Truth, player: &mut dyn Player) {
    let base = truth.create(player);
    truth.write(player, base, 0, 6 * BLOCK);
    let first = truth.snap(player, base);
    truth.write(player, base, 2 * BLOCK + SECTOR, 3 * SECTOR);
    truth.write(player, first, BLOCK, 2 * BLOCK);
    let second = truth.snap(player, first);
    let third = truth.snap(player, second);
    truth.discard(player, first, 0, 2);
    truth.discard(player, second, 4, 1);
    truth.write(player, second, 20 * BLOCK - SECTOR, 2 * SECTOR);
    truth.delete(player, third);
    truth.step_transaction(player);
    truth.grow(player);
    let late = truth.snap(player, second);
    truth.write(player, late, 4 * BLOCK, BLOCK);
    truth.delete(player, base);
    player.flush(late);
}

type Open = fn(&Truth) -> Box<dyn Player>;

/// Each engine tells the story; the other reads it, goes on with it and hands it back.
fn there_and_back(open: [Open; 2]) {
    let mut truth = Truth::new();
    let mut counts = None;
    for (turn, open) in open.iter().cycle().take(5).enumerate() {
        let story = format!("turn {turn}");
        let mut player = open(&truth);
        let found = truth.verify(&mut *player, &story);
        if let Some(counts) = counts.take() {
            assert_eq!(found, counts, "{story}: {} counts differently", player.name());
        }
        if turn < 4 {
            tell_a_story(&mut truth, &mut *player);
            // Room for the next story.
            for id in truth.ids().into_iter().rev().skip(4).collect::<Vec<DeviceId>>() {
                truth.delete(&mut *player, id);
            }
        }
        counts = Some(truth.verify(&mut *player, &story));
        player.close();
        truth.judge(&story);
    }
}

#[test]
#[ignore = "needs a kernel with dm-thin: make test-kernel"]
fn the_kernel_reads_what_the_embedded_engine_wrote_and_hands_it_back() {
    there_and_back([embedded, kernel]);
}

#[test]
#[ignore = "needs a kernel with dm-thin: make test-kernel"]
fn the_embedded_engine_reads_what_the_kernel_wrote_and_hands_it_back() {
    there_and_back([kernel, embedded]);
}

#[test]
#[ignore = "needs a kernel with dm-thin: make test-kernel"]
fn a_pool_goes_to_and_fro_between_the_engines_and_nothing_differs() {
    let handovers = std::env::var("THINSNAP_HANDOVERS").map_or(HANDOVERS, |n| n.parse().unwrap());
    let seed = std::env::var("THINSNAP_SEED").map_or(1, |n| n.parse().unwrap());
    let mut random = Random::new(seed);
    let mut truth = Truth::new();
    let mut counts = None;
    for turn in 0..handovers {
        let story = format!("THINSNAP_SEED={seed}, handover {turn}");
        let mut player = if turn % 2 == 0 { embedded(&truth) } else { kernel(&truth) };
        let found = truth.verify(&mut *player, &story);
        if let Some(counts) = counts.take() {
            assert_eq!(found, counts, "{story}: {} counts differently", player.name());
        }
        for _ in 0..=random.below(STEPS_MAX) {
            truth.step(&mut *player, &mut random);
        }
        counts = Some(truth.verify(&mut *player, &story));
        player.close();
        truth.judge(&story);
    }
    println!("{handovers} handovers, {} devices at the end, seed {seed}", truth.devices.len());
}

#[test]
#[ignore = "needs a kernel with dm-thin: make test-kernel"]
fn a_metadata_snapshot_that_the_kernel_holds_stays_held_through_the_embedded_engine() {
    let mut truth = Truth::new();
    let mut player = Kernel::open(&truth.paths(), &[]);
    tell_a_story(&mut truth, &mut player);
    player.hold_metadata();
    Box::new(player).close();
    truth.judge("held");

    let mut player = embedded(&truth);
    truth.verify(&mut *player, "held");
    tell_a_story(&mut truth, &mut *player);
    player.close();
    truth.judge("held, written to");

    let mut player = Kernel::open(&truth.paths(), &truth.ids());
    truth.verify(&mut player, "held, back");
    player.release_metadata();
    truth.step_transaction(&mut player);
    Box::new(player).close();
    truth.judge("released");
}

#[test]
#[ignore = "needs a kernel with dm-thin: make test-kernel"]
fn the_kernel_finds_all_that_was_flushed_when_the_embedded_engine_dies() {
    let mut random = Random::new(7);
    for round in 0..6 {
        let mut truth = Truth::new();
        let mut player = embedded(&truth);
        tell_a_story(&mut truth, &mut *player);
        for id in truth.ids() {
            player.flush(id);
        }
        let flushed = truth.devices.clone();
        let mut unflushed: Vec<(DeviceId, u64, Vec<u8>)> = Vec::new();
        for _ in 0..random.below(12) {
            let ids = truth.ids();
            let id = random.pick(&ids);
            let sectors = 1 + random.below(BLOCK / SECTOR);
            let offset = random.below(20 * BLOCK / SECTOR) * SECTOR;
            unflushed.push((id, offset, truth.write(&mut *player, id, offset, sectors * SECTOR)));
        }
        // The files as they are: what a killed process leaves behind.
        let copy = truth.copy(&format!("dead-{round}"));
        let metadata = std::fs::read(&copy.metadata).unwrap();
        crate::support::judges::assert_thin_check_accepts(&metadata, "of the dead");
        let mut witness = Kernel::open(&copy, &truth.ids());
        for id in truth.ids() {
            let found = witness.read(id);
            let sector = usize::try_from(SECTOR).unwrap();
            for (at, found) in found.chunks(sector).enumerate() {
                let start = at * sector;
                let newer = unflushed.iter().filter(|(of, offset, bytes)| {
                    let from = usize::try_from(*offset).unwrap();
                    *of == id && (from..from + bytes.len()).contains(&start)
                });
                let newer =
                    newer.map(|(_, offset, bytes)| &bytes[start - usize::try_from(*offset).unwrap()..][..sector]);
                let mut known = newer.chain(std::iter::once(&flushed[&id][start..start + sector]));
                assert!(
                    known.any(|bytes| bytes == found),
                    "round {round}: device {id}, sector {at} is neither old nor new"
                );
            }
        }
        Box::new(witness).close();
        crate::support::judges::assert_thin_check_accepts(&std::fs::read(&copy.metadata).unwrap(), "after the witness");
        player.close();
    }
}

#[test]
#[ignore = "needs a kernel with dm-thin: make test-kernel"]
fn a_pool_that_the_kernel_serves_is_in_use_to_the_embedded_engine() {
    let truth = Truth::new();
    let player = Kernel::open(&truth.paths(), &[]);
    let exporter = crate::support::direct_exporter::DirectExporter::new();
    let devices = thinsnap_pool::PoolPaths { metadata: player.metadata_device(), data: player.data_device() };
    let refused = thinsnap_pool::open_embedded(&devices, exporter, &thinsnap_pool::EmbeddedOptions::default());
    let error = refused.err().expect("the kernel has these devices");
    assert_eq!(error.kind(), ErrorKind::InUse, "{error}");
    Box::new(player).close();
}
