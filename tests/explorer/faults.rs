//! Every call of every disk fails once, a few times, or until the disk is healed.
//!
//! What must hold: nobody panics; the mode only goes down, and says why; status always answers; an error names what was
//! being done and the cause; a flush that could not be done is not answered as done, nor any later one; after healing
//! a pool that is still in write mode goes on, and the others do so after a check and a new start; everything that was
//! flushed is there, and what was not is old or new.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use thinsnap_pool::{DiskImage, Metadata, OpenMode, PoolMode, ThinPool};

use crate::cuts::subsets;
use crate::disks::{Call, DATA, Fault, METADATA, STORE, Still, disk_name};
use crate::expected::Expected;
use crate::judge::{During, Judge};
use crate::model::lock;
use crate::random::Random;
use crate::recovery::recover;
use crate::story::Story;

/// Steps of a story; then the disks are healed for as many more.
const STEPS: usize = 22;
const STEPS_HEALED: usize = 8;
const UNTIL_HEALED: u64 = u64::MAX;

/// How a disk fails.
const WAYS: [(i32, bool); 4] = [(libc::EIO, false), (libc::ENOSPC, false), (libc::ENOMEM, false), (libc::EIO, true)];
const BURSTS: [u64; 3] = [1, 3, UNTIL_HEALED];

/// A story with a fault in it.
struct Trial {
    fault: Fault,
    story: Story,
    mode: PoolMode,
}

impl Trial {
    /// Errors with what is not as it must be.
    fn run(seed: u64, fault: Fault) -> Result<(), String> {
        let mut trial = Self { fault, story: Story::new(seed), mode: PoolMode::Write };
        let started = before_faults(&mut trial.story, seed, Some(fault));
        for _ in 0..if started { STEPS } else { 0 } {
            trial.story.step();
            trial.look()?;
        }
        if trial.story.machine.disks.faults.heal() == 0 {
            return Err("the fault never came: the story is not the same each time".into());
        }
        trial.judge_words()?;
        if started {
            trial.after_healing()?;
        }
        trial.reopen()
    }

    /// The ladder, and what status says.
    fn look(&mut self) -> Result<(), String> {
        let status = self.story.machine.pool.engine.status().map_err(|e| format!("status does not answer: {e}"))?;
        let (before, now) = (self.mode, status.mode);
        if now < before && before != PoolMode::OutOfDataSpace {
            return Err(format!("the mode went up from {before:?} to {now:?}"));
        }
        self.mode = now;
        if now >= PoolMode::ReadOnly {
            let reason = status.reason.ok_or("it degraded without a reason")?;
            self.names_the_cause(&reason)?;
        }
        let refused = |failure: &&String| failure.starts_with("ReadOnly");
        if now < PoolMode::ReadOnly
            && let Some(failure) = self.story.failures.iter().find(refused)
        {
            return Err(format!("{failure:?}, but the mode is {now:?}"));
        }
        if self.story.machine.disks.faults.hits() > 0 {
            self.judge_words()?;
        }
        Ok(())
    }

    fn names_the_cause(&self, text: &str) -> Result<(), String> {
        let disk = disk_name(self.fault.disk);
        let cause = self.fault.cause().to_string();
        if text.contains(&cause) && (text.contains(disk) || self.fault.disk == STORE) {
            return Ok(());
        }
        Err(format!("{text:?} does not name the {disk} disk and {cause:?}"))
    }

    /// Whoever fails because of a disk says which, and how; a full pool and a missing device may have other causes.
    fn judge_words(&self) -> Result<(), String> {
        let others =
            ["OutOfDataSpace: ", "OutOfMetadataSpace", "NotFound", "AlreadyExists", "InUse", "NoSpace", "Invalid"];
        let of_disk = |failure: &&String| !others.iter().any(|other| failure.starts_with(other));
        for failure in self.story.failures.iter().filter(of_disk) {
            // After the store has failed it says so, and what to do.
            let store_is_gone = failure.starts_with("Unavailable") && failure.contains("start the service again");
            if !store_is_gone {
                self.names_the_cause(failure)?;
            }
        }
        Ok(())
    }

    /// A pool that still takes changes, takes them; a failed one never says that something is durable.
    fn after_healing(&mut self) -> Result<(), String> {
        let stuck = self.mode >= PoolMode::ReadOnly;
        let flushes = lock(&self.story.machine.model).flushes.len();
        for _ in 0..STEPS_HEALED {
            self.story.step();
            self.look()?;
        }
        let flushed = lock(&self.story.machine.model).flushes.len() > flushes;
        if stuck && flushed {
            return Err("a pool that failed answers a flush".into());
        }
        if !stuck && self.mode >= PoolMode::ReadOnly {
            return Err("it degraded after the disks were healed".into());
        }
        Ok(())
    }

    /// The process is started again, as it is and after a power cut.
    fn reopen(&mut self) -> Result<(), String> {
        let service = self.story.machine.service.is_some();
        let supply = self.story.machine.supply().clone();
        let cut = supply.after(supply.events());
        let model = self.story.machine.model.clone();
        let model = lock(&model);
        let expected = Expected::at(&model, supply.events());
        let mut judge = Judge::suspect(service);
        let mut random = Random::new(self.fault.first);
        for masks in subsets(&cut, &mut random, 12) {
            judge
                .judge(&cut.images(&masks), &expected, During::Recovery)
                .map_err(|e| format!("after a power cut: {e}"))?;
        }
        let images = checked(supply.now())?;
        recover(&images, &expected, service, true).map(drop)
    }
}

/// As an operator does it: where the flag asks for a check, the check is made, and the flag taken away.
fn checked(mut images: Vec<DiskImage>) -> Result<Vec<DiskImage>, String> {
    let device = std::sync::Arc::new(Still(images[METADATA].clone()));
    let metadata = Metadata::open(device, OpenMode::ReadOnly).map_err(|e| format!("open for a check: {e}"))?;
    if metadata.needs_check() {
        images[METADATA] = crate::judges::without_needs_check(&images[METADATA].to_bytes()).into();
    }
    Ok(images)
}

/// Brings a story to where faults begin: at its beginning, or, for every other pair of seeds, at a new start in its
/// midst, where the metadata must be read again. False: it did not start.
fn before_faults(story: &mut Story, seed: u64, fault: Option<Fault>) -> bool {
    let restarts = seed / 2 % 2 == 1;
    if restarts {
        (0..STEPS).for_each(|_| story.step());
        story.failures.clear();
    }
    story.machine.disks.faults.arm(fault);
    !restarts || story.restart()
}

/// The faults to try: each call of each sort, the ways taking turns.
fn faults_of(seed: u64) -> Vec<Fault> {
    let mut story = Story::new(seed);
    assert!(before_faults(&mut story, seed, None));
    for _ in 0..STEPS {
        story.step();
    }
    let mut faults = Vec::new();
    for ((disk, call), calls) in story.machine.disks.faults.calls() {
        for first in 0..calls {
            let turn = faults.len();
            let (errno, short) = WAYS[turn % WAYS.len()];
            let count = BURSTS[turn / WAYS.len() % BURSTS.len()];
            faults.push(Fault { disk, call, first, count, errno, short: short && call == Call::Write });
        }
    }
    faults
}

fn try_all(seeds: std::ops::Range<u64>) {
    let all: Vec<(u64, Fault)> = seeds.flat_map(|seed| faults_of(seed).into_iter().map(move |f| (seed, f))).collect();
    let (next, findings) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some((seed, fault)) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
            let done = catch_unwind(AssertUnwindSafe(|| Trial::run(*seed, *fault)));
            let wrong = done.unwrap_or_else(|_| Err("somebody panics".into()));
            if let Err(what) = wrong {
                findings.lock().unwrap().push(format!("seed {seed}, {fault:?}: {what}"));
            }
        }
    };
    std::thread::scope(|scope| {
        let processors = std::thread::available_parallelism().map_or(2, usize::from);
        (0..processors).for_each(|_| drop(scope.spawn(work)));
    });
    let mut counts: BTreeMap<(&str, Call), u64> = BTreeMap::new();
    for (_, fault) in &all {
        *counts.entry((disk_name(fault.disk), fault.call)).or_default() += 1;
    }
    println!("{} faults tried: {counts:?}", all.len());
    for disk in [DATA, METADATA, STORE] {
        let tried = |call| counts.get(&(disk_name(disk), call)).copied().unwrap_or(0);
        assert!(tried(Call::Write) > 20 && tried(Call::Flush) > 5, "the stories ask too little of the disks");
    }
    let findings = findings.into_inner().unwrap();
    let shown: Vec<&String> = findings.iter().take(12).collect();
    assert!(findings.is_empty(), "{} of {} faults do harm: {shown:#?}", findings.len(), all.len());
}

#[test]
fn no_failing_disk_loses_what_was_promised_or_stops_the_pool_from_saying_why() {
    let count = std::env::var("THINSNAP_FAULT_SEEDS").map_or(4, |text| text.parse().expect("a number"));
    try_all(1..1 + count);
}
