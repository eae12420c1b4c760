//! Tells stories, cuts their power everywhere, judges what is left; on all processors, until enough was seen.

use std::collections::HashSet;
use std::env;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use thinsnap_pool::{Cut, DiskImage};

use crate::cuts::{Masks, subsets};
use crate::disks::METADATA;
use crate::expected::{Boundaries, Expected};
use crate::finding::Finding;
use crate::judge::{During, Judge};
use crate::judges::assert_thin_check_accepts;
use crate::model::lock;
use crate::random::Random;
use crate::recovery::recover;
use crate::story::{Story, has_service};
use crate::tally::Tally;

/// Different disks in the default run.
const STATES: u64 = 100_000;
/// Subsets at a cut, about.
const BUDGET: usize = 14;
/// One disk in so many is recovered with the full stack; is used up afterwards to see old bytes; is cut again
/// inside its recovery; is shown to thin_check.
const RECOVERED: u64 = 25;
const USED_UP: u64 = 200;
const CUT_AGAIN: u64 = 50;
const THIN_CHECKED: u64 = 1_000;

/// Names a disk, and decides by chance that follows from its content.
fn name_of(images: &[DiskImage]) -> u64 {
    images
        .iter()
        .fold(0, |sum: u64, image| (sum.rotate_left(21) ^ image.fingerprint()).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// One story under examination.
struct Examination {
    seed: u64,
    story: Story,
    boundaries: Boundaries,
    judge: Judge,
    tally: Tally,
}

impl Examination {
    fn of(seed: u64) -> Self {
        let story = Story::told(seed);
        let boundaries = Boundaries::of(&lock(&story.machine.model));
        Self { seed, story, boundaries, judge: Judge::new(has_service(seed)), tally: Tally::default() }
    }

    /// Cuts the power everywhere.
    fn run(mut self) -> Result<Tally, String> {
        let mut random = Random::new(self.seed ^ 0xdead);
        let mut cut = self.story.machine.supply().before_all();
        let end = self.story.machine.supply().events();
        let mut seen = HashSet::new();
        let model = self.story.machine.model.clone();
        let model = lock(&model);
        let mut expected = Expected::at(&model, 0);
        let mut signature = (usize::MAX, usize::MAX);
        loop {
            let now = self.boundaries.signature(cut.events());
            if signature != now {
                signature = now;
                expected = Expected::at(&model, cut.events());
                self.judge.turn_to(signature);
            }
            for masks in subsets(&cut, &mut random, BUDGET) {
                let images = cut.images(&masks);
                self.tally.built += 1;
                let name = name_of(&images);
                if !seen.insert((name, signature)) {
                    continue;
                }
                self.tally.judged += 1;
                if let Err(what) = self.examine(&images, &expected, name) {
                    return Err(self.report(&cut, masks, what, &expected));
                }
            }
            self.tally.cuts += 1;
            if cut.events() == end || !cut.advance() {
                break;
            }
        }
        self.tally.stories = 1;
        (self.tally.metadata_opened, self.tally.stores_opened) = self.judge.views.reads();
        Ok(self.tally)
    }

    /// Judges one disk; some of them more thoroughly.
    fn examine(&mut self, images: &[DiskImage], expected: &Expected<'_>, name: u64) -> Result<(), String> {
        self.judge.judge(images, expected, During::Story)?;
        if name % THIN_CHECKED == 1 {
            self.tally.thin_checked += 1;
            thin_check(images)?;
        }
        if name.is_multiple_of(RECOVERED) {
            self.tally.recovered += 1;
            let recording = recover(images, expected, has_service(self.seed), name.is_multiple_of(USED_UP))?;
            if name.is_multiple_of(CUT_AGAIN) {
                self.cut_again(recording, expected, name)?;
            }
        }
        Ok(())
    }

    /// The power goes a second time, while the recovery works.
    fn cut_again(&mut self, mut cut: Cut, expected: &Expected<'_>, name: u64) -> Result<(), String> {
        let mut random = Random::new(name);
        let every = 1 + random.below(5);
        while cut.advance() {
            if random.below(every) != 0 {
                continue;
            }
            for masks in subsets(&cut, &mut random, 4) {
                self.tally.second_cuts += 1;
                self.judge.judge(&cut.images(&masks), expected, During::Recovery).map_err(|e| {
                    format!("a second cut behind {} events of the recovery, {masks:?}: {e}", cut.events())
                })?;
            }
        }
        Ok(())
    }

    fn report(&mut self, cut: &Cut, masks: Masks, what: String, expected: &Expected<'_>) -> String {
        let service = has_service(self.seed);
        let by_judge = self.judge.judge(&cut.images(&masks), expected, During::Story).is_err();
        let finding = Finding { seed: self.seed, cut: cut.events(), masks, what };
        let finding = finding.minimised(|masks| {
            let images = cut.images(masks);
            if by_judge {
                self.judge.judge(&images, expected, During::Story)
            } else {
                recover(&images, expected, service, true).map(drop)
            }
        });
        finding.tell(&self.story, cut)
    }
}

fn thin_check(images: &[DiskImage]) -> Result<(), String> {
    let bytes = images[METADATA].to_bytes();
    std::panic::catch_unwind(|| assert_thin_check_accepts(&bytes, "a cut"))
        .map_err(|panic| panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "thin_check finds damage".into()))
}

fn number_from(variable: &str, otherwise: u64) -> u64 {
    env::var(variable).map_or(otherwise, |text| text.replace('_', "").parse().expect("a number"))
}

/// Explores until `states` different disks were judged. Panics with the first finding.
fn explore(first_seed: u64, states: u64) -> Tally {
    let started = Instant::now();
    let (next, judged) = (AtomicU64::new(first_seed), AtomicU64::new(0));
    let (total, findings) = (Mutex::new(Tally::default()), Mutex::new(Vec::new()));
    let work = || {
        while judged.load(Ordering::Relaxed) < states && findings.lock().unwrap().is_empty() {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            match std::panic::catch_unwind(|| Examination::of(seed).run()) {
                Ok(Ok(tally)) => {
                    judged.fetch_add(tally.judged, Ordering::Relaxed);
                    *total.lock().unwrap() += tally;
                }
                Ok(Err(finding)) => findings.lock().unwrap().push(finding),
                Err(_) => findings.lock().unwrap().push(format!("the story of seed {seed} panics")),
            }
        }
    };
    std::thread::scope(|scope| {
        let processors = std::thread::available_parallelism().map_or(2, usize::from);
        (0..processors).for_each(|_| drop(scope.spawn(work)));
    });
    let (total, findings) = (total.into_inner().unwrap(), findings.into_inner().unwrap());
    println!("{total}; seeds from {first_seed} on, {} s", started.elapsed().as_secs());
    assert!(findings.is_empty(), "{}", findings.join("\n\n"));
    total
}

/// Judges one disk of a story, with everything there is.
fn replay(line: &str) {
    let mut parts = line.split('/');
    let mut number = || parts.next().and_then(|part| part.parse::<u64>().ok()).expect("SEED/CUT/MASKS");
    let (seed, events) = (number(), usize::try_from(number()).unwrap());
    let hex = parts.next().unwrap_or_default();
    let masks: Masks =
        (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).expect("masks in hex")).collect();
    let mut examination = Examination::of(seed);
    let cut = examination.story.machine.supply().after(events);
    let model = examination.story.machine.model.clone();
    let model = lock(&model);
    let expected = Expected::at(&model, events);
    let images = cut.images(&masks);
    examination.judge.turn_to((0, 0));
    let judged = examination
        .judge
        .judge(&images, &expected, During::Story)
        .and_then(|()| thin_check(&images))
        .and_then(|()| recover(&images, &expected, has_service(seed), true))
        .and_then(|recording| examination.cut_again(recording, &expected, 1));
    let what = judged.err();
    let finding = Finding { seed, cut: events, masks, what: what.clone().unwrap_or_else(|| "all is right".into()) };
    println!("{}", finding.tell(&examination.story, &cut));
    assert!(what.is_none(), "the finding is still there");
}

#[test]
fn a_power_cut_anywhere_loses_nothing_that_was_promised_and_mixes_nothing() {
    if let Ok(line) = env::var("THINSNAP_EXPLORE") {
        return replay(&line);
    }
    let states = number_from("THINSNAP_EXPLORE_STATES", STATES);
    let total = explore(number_from("THINSNAP_EXPLORE_FIRST", 1), states);
    assert!(total.judged >= states, "{total}");
    assert!(total.recovered > states / 100 && total.second_cuts > states / 100, "{total}");
}

#[test]
fn a_story_is_the_same_each_time() {
    for seed in [3, 4] {
        let row = || {
            let story = Story::told(seed);
            let mut cut = story.machine.supply().before_all();
            let mut row = Vec::new();
            while cut.advance() {
                row.push(cut.pending().iter().map(|piece| (piece.device, piece.offset)).collect::<Vec<_>>());
            }
            (story.log.clone(), row)
        };
        let (first, second) = (row(), row());
        assert_eq!(first.0, second.0, "seed {seed}");
        assert!(first.1 == second.1, "seed {seed}: the rows of events differ");
    }
}
