//! The limbo rule, enumerated: every short history of verbs, a crash after every step of its last verb,
//! and a second crash after every step of the recovery from the first.
//!
//! What must hold at the end of each: pool and store fit together, what was acknowledged is there, the
//! verb that died has happened or not, and nothing is left in the pool that no record needs.

// All of this is test code, helpers too: clippy lets tests unwrap.
#![cfg(test)]

#[path = "crash/concurrency.rs"]
mod concurrency;
#[path = "support/crash_world.rs"]
mod crash_world;
#[path = "crash/spares.rs"]
mod spares;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Weak};

use crash_world::{Disk, Fuse, Machine, MemoryFilesystems, MemoryPool, all_formatted};
use thinsnap::config::{Profile, SnapshotterConfig};
use thinsnap::error::Result;
use thinsnap::snapshot::{FsType, Kind, Labels, Name, Space};
use thinsnap::snapshotter::{Parts, Snapshotter};
use thinsnap::store::{Records, Store};
use thinsnap_pool::{ByteCount, DeviceId};

/// Longest history of the default run; the long one goes to the five that were once done on paper.
const HISTORY_MAX: usize = 3;
const HISTORY_MAX_LONG: usize = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    /// A new active snapshot of nothing.
    PrepareBase,
    /// One of the newest committed snapshot.
    PrepareChild,
    View,
    /// The oldest active one.
    Commit,
    /// The oldest one without children.
    Remove,
    /// Waits for the reclaimer.
    Cleanup,
}

const VERBS: [Verb; 6] = [Verb::PrepareBase, Verb::PrepareChild, Verb::View, Verb::Commit, Verb::Remove, Verb::Cleanup];

/// What the client knows: each name with its kind and parent, in the order of their making.
type Known = Vec<(String, Kind, Option<String>)>;

/// One life of the service.
struct Life {
    snapshotter: Arc<Snapshotter>,
    store: Store,
    pool: Arc<MemoryPool>,
}

fn space() -> Space {
    Space::new("s").unwrap()
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn start(machine: &Machine, fuse: &Fuse) -> Result<Life> {
    let store = Store::with_backend(Disk::new(machine, fuse.clone()))?;
    let pool = Arc::new(MemoryPool::new(machine, fuse.clone()));
    let config = SnapshotterConfig {
        profiles: BTreeMap::new(),
        default_profile: Profile { fs: FsType::Ext4, size: ByteCount(1 << 30) },
        data_floor: thinsnap::config::Share::Bytes(ByteCount(0)),
        metadata_floor: thinsnap::config::Share::Bytes(ByteCount(0)),
        work_dir: PathBuf::from("/nonexistent"),
    };
    let filesystems = Arc::new(MemoryFilesystems { machine: machine.clone(), fuse: fuse.clone() });
    let parts = Parts { filesystems, reclaim_threads: 0 };
    let snapshotter = Snapshotter::open_with(pool.clone(), store.clone(), config, parts)?;
    Ok(Life { snapshotter, store, pool })
}

/// What the client would know after the verb; `None` if it makes no sense in this state.
fn expected(known: &Known, verb: Verb, number: usize) -> Option<Known> {
    let mut after = known.clone();
    let newest = known.iter().rev().find(|(_, kind, _)| *kind == Kind::Committed).map(|(name, ..)| name.clone());
    let fresh = format!("{number}");
    match verb {
        Verb::PrepareBase => after.push((fresh, Kind::Active, None)),
        Verb::PrepareChild => after.push((fresh, Kind::Active, Some(newest?))),
        Verb::View => after.push((fresh, Kind::View, Some(newest?))),
        Verb::Commit => {
            let at = after.iter().position(|(_, kind, _)| *kind == Kind::Active)?;
            let (_, _, parent) = after.remove(at);
            after.push((fresh, Kind::Committed, parent));
        }
        Verb::Remove => {
            let is_parent = |name: &String| known.iter().any(|(_, _, parent)| parent.as_ref() == Some(name));
            let at = after.iter().position(|(name, ..)| !is_parent(name))?;
            after.remove(at);
        }
        Verb::Cleanup => {}
    }
    Some(after)
}

fn perform(life: &Life, known: &Known, after: &Known, verb: Verb) -> Result<()> {
    let snapshotter = &life.snapshotter;
    let last = after.last();
    let gone = known.iter().find(|(name, ..)| after.iter().all(|(other, ..)| other != name));
    match (verb, last, gone) {
        (Verb::PrepareBase | Verb::PrepareChild, Some((key, _, parent)), _) => {
            let parent = parent.as_deref().map(name);
            snapshotter.prepare(&space(), &name(key), parent.as_ref(), Labels::new()).map(drop)
        }
        (Verb::View, Some((key, _, parent)), _) => {
            let parent = parent.as_deref().map(name);
            snapshotter.view(&space(), &name(key), parent.as_ref(), Labels::new()).map(drop)
        }
        (Verb::Commit, Some((to, ..)), Some((key, ..))) => {
            snapshotter.commit(&space(), &name(to), &name(key), Labels::new(), None)
        }
        (Verb::Remove, _, Some((key, ..))) => snapshotter.remove(&space(), &name(key)),
        (Verb::Cleanup, ..) => snapshotter.cleanup(),
        (verb, ..) => panic!("{verb:?} has nothing to work on"),
    }
}

/// The client's view of what the service holds.
fn listed(life: &Life) -> BTreeSet<(String, Kind2, Option<String>)> {
    let all = life.snapshotter.list(&space(), &[]).unwrap();
    all.into_iter()
        .map(|s| (s.name.as_str().to_owned(), Kind2(s.kind), s.parent.map(|p| p.as_str().to_owned())))
        .collect()
}

/// A kind that sorts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kind2(Kind);

impl Ord for Kind2 {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0 as u8).cmp(&(other.0 as u8))
    }
}

impl PartialOrd for Kind2 {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

fn as_set(known: &Known) -> BTreeSet<(String, Kind2, Option<String>)> {
    known.iter().map(|(name, kind, parent)| (name.clone(), Kind2(*kind), parent.clone())).collect()
}

fn owned(life: &Life) -> BTreeSet<DeviceId> {
    life.store.read().unwrap().owned_devices().unwrap()
}

/// Starts the service for good and looks whether everything is as it must be.
fn check(machine: &Machine, before: &Known, after: &Known, story: &str) {
    let life = start(machine, &Fuse::endless()).unwrap_or_else(|e| panic!("{story}: does not start: {e}"));
    let now = listed(&life);
    assert!(now == as_set(before) || now == as_set(after), "{story}: {now:?}");
    assert_eq!(life.snapshotter.recovered().foreign, 0, "{story}: a device that nobody knows");
    life.snapshotter.cleanup().unwrap();
    assert_eq!(machine.devices(), owned(&life), "{story}: after cleanup");
    assert!(all_formatted(machine), "{story}: a base without a file system");
    assert_eq!(life.snapshotter.limbo_len().unwrap(), 0, "{story}: limbo");
    // And it goes on working.
    let parent = now.iter().find(|(_, kind, _)| kind.0 == Kind::Committed).map(|(n, ..)| name(n));
    life.snapshotter.prepare(&space(), &name("next"), parent.as_ref(), Labels::new()).unwrap();
    assert!(machine.devices().is_superset(&owned(&life)), "{story}");
}

/// A new machine on which a history has happened, the last life still running.
fn replayed(history: &[Verb], fuse: &Fuse) -> (Machine, Life, Known) {
    let machine = Machine::default();
    let life = start(&machine, fuse).unwrap();
    let mut known = Known::new();
    for (number, &verb) in history.iter().enumerate() {
        let after = expected(&known, verb, number).unwrap();
        perform(&life, &known, &after, verb).unwrap();
        known = after;
    }
    (machine, life, known)
}

/// All histories of `len` verbs that make sense.
fn histories(len: usize) -> Vec<Vec<Verb>> {
    let mut all = vec![(Vec::new(), Known::new())];
    for number in 0..len {
        all = all
            .into_iter()
            .flat_map(|(history, known)| {
                VERBS.iter().filter_map(move |&verb| {
                    let after = expected(&known, verb, number)?;
                    Some(([history.as_slice(), &[verb]].concat(), after))
                })
            })
            .collect();
    }
    all.into_iter().map(|(history, _)| history).collect()
}

/// Crashes the last verb of a history after every one of its steps. Returns the number of crash points.
fn crash_everywhere(history: &[Verb]) -> u64 {
    let (&last, earlier) = history.split_last().unwrap();
    let mut points = 0;
    for step in 0.. {
        let fuse = Fuse::endless();
        let (machine, life, known) = replayed(earlier, &fuse);
        let after = expected(&known, last, earlier.len()).unwrap();
        fuse.shorten(step);
        let outcome = perform(&life, &known, &after, last);
        drop(life);
        // What was acknowledged has happened.
        let before = if outcome.is_ok() { &after } else { &known };
        points += 1 + crash_recovery(&machine, before, &after, &format!("{history:?}, crash after step {step}"));
        if !fuse.is_blown() {
            break;
        }
    }
    points
}

/// Crashes the recovery after every one of its steps.
fn crash_recovery(machine: &Machine, before: &Known, after: &Known, story: &str) -> u64 {
    let mut step = 0;
    loop {
        let machine = machine.copy();
        if step % 2 == 1 {
            machine.deactivate_all();
        }
        // The same crash again and again: what one unfinished start leaves must not add up.
        let mut died = false;
        for _ in 0..3 {
            let fuse = Fuse::new(step);
            died = start(&machine, &fuse).and_then(|life| life.snapshotter.cleanup()).is_err() || fuse.is_blown();
        }
        check(&machine, before, after, &format!("{story}, recovery crashes after step {step}"));
        if !died {
            return step;
        }
        step += 1;
    }
}

fn enumerate(len_max: usize) {
    let all: Vec<Vec<Verb>> = (1..=len_max).flat_map(histories).collect();
    let halves = [all.iter().step_by(2), all[1..].iter().step_by(2)];
    let points: u64 = std::thread::scope(|scope| {
        let runs: Vec<_> = halves
            .into_iter()
            .map(|half| scope.spawn(move || half.map(|history| crash_everywhere(history)).sum::<u64>()))
            .collect();
        runs.into_iter().map(|run| run.join().unwrap()).sum()
    });
    println!("{} histories, {points} crash points", all.len());
    assert!(points > 100 * len_max as u64, "the enumeration has lost its crashes");
}

#[test]
fn every_crash_in_every_short_history_leaves_pool_and_store_whole() {
    enumerate(HISTORY_MAX);
}

#[test]
#[ignore = "takes many minutes; run it when limbo, ids, reclaim or recover change"]
fn every_crash_in_every_history_of_five_verbs_leaves_pool_and_store_whole() {
    enumerate(HISTORY_MAX_LONG);
}

/// The reclaimer gets its turn after every step of every verb: what a live verb has claimed stays.
#[test]
fn a_running_reclaimer_never_deletes_what_a_live_verb_makes() {
    for history in (1..=HISTORY_MAX).flat_map(histories) {
        let machine = Machine::default();
        let life = start(&machine, &Fuse::endless()).unwrap();
        let other: Weak<Snapshotter> = Arc::downgrade(&life.snapshotter);
        life.pool.set_after(Some(Box::new(move || {
            other.upgrade().unwrap().cleanup().unwrap();
        })));
        let mut known = Known::new();
        for (number, &verb) in history.iter().enumerate() {
            let after = expected(&known, verb, number).unwrap();
            perform(&life, &known, &after, verb).unwrap();
            known = after;
            assert!(machine.devices().is_superset(&owned(&life)), "{history:?}: a device was taken away");
        }
        assert_eq!(listed(&life), as_set(&known), "{history:?}");
        life.pool.set_after(None);
    }
}

#[test]
fn an_older_pool_an_older_store_and_another_pool_are_refused() {
    let machine = Machine::default();
    let prepare = |machine: &Machine, key: &str| {
        let life = start(machine, &Fuse::endless()).unwrap();
        life.snapshotter.prepare(&space(), &name(key), None, Labels::new()).unwrap();
    };
    prepare(&machine, "one");
    let old = machine.copy();
    prepare(&machine, "two");
    prepare(&machine, "three");
    for (pool, disk, words) in [(&old, &machine, "pool is older"), (&machine, &old, "store is older")] {
        let mixed = pool.copy().with_disk_of(disk);
        let devices = mixed.devices();
        let error = start(&mixed, &Fuse::endless()).err().expect("mixed ages are accepted");
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(mixed.devices(), devices, "a refused start changes nothing");
    }
    let error = start(&machine.copy().with_disk_of(&Machine::default()), &Fuse::endless()).err();
    assert!(error.unwrap().to_string().contains("the store is new"));
    assert!(machine.active() > 0, "the snapshots of the untouched machine are still active");
}
