//! Many callers at once: every answer is legal, nothing is lost, nothing leaks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use thinsnap::config::{Profile, SnapshotterConfig};
use thinsnap::error::{ErrorKind, Result};
use thinsnap::snapshot::{FsType, Kind, Labels, Name, Space};
use thinsnap::snapshotter::{Filter, LabelChange, Parts, Snapshotter};
use thinsnap::store::{Records, Store};
use thinsnap_pool::ByteCount;

use crate::crash_world::{Disk, Fuse, Machine, MemoryFilesystems, MemoryPool, all_formatted};

const CALLERS: u64 = 200;
const KEYS: u64 = 60;
const LENGTH: Duration = Duration::from_secs(4);

pub(crate) fn start(machine: &Machine) -> (Arc<Snapshotter>, Store) {
    let fuse = Fuse::endless();
    let store = Store::with_backend(Disk::new(machine, fuse.clone())).unwrap();
    let pool = Arc::new(MemoryPool::new(machine, fuse.clone()));
    let config = SnapshotterConfig {
        profiles: BTreeMap::new(),
        default_profile: Profile { fs: FsType::Ext4, size: ByteCount(1 << 30) },
        data_floor: thinsnap::config::Share::Bytes(ByteCount(0)),
        metadata_floor: thinsnap::config::Share::Bytes(ByteCount(0)),
        work_dir: PathBuf::from("/nonexistent"),
    };
    let filesystems = Arc::new(MemoryFilesystems { machine: machine.clone(), fuse });
    let parts = Parts { filesystems, reclaim_threads: 3 };
    (Snapshotter::open_with(pool, store.clone(), config, parts).unwrap(), store)
}

/// xorshift: the callers differ, the run is the same every time but for the schedule.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }

    fn name(&mut self) -> Name {
        Name::new(format!("key {}", self.below(KEYS))).unwrap()
    }
}

fn one_call(snapshotter: &Snapshotter, space: &Space, dice: &mut Dice) -> Result<()> {
    let (key, other) = (dice.name(), dice.name());
    let parent = (dice.below(2) == 0).then_some(&other);
    match dice.below(12) {
        0..=2 => snapshotter.prepare(space, &key, parent, Labels::new()).map(drop),
        3 => snapshotter.view(space, &key, parent, Labels::new()).map(drop),
        4 | 5 => snapshotter.commit(space, &other, &key, Labels::new(), None),
        6..=8 => snapshotter.remove(space, &key),
        9 => snapshotter.mounts(space, &key).map(drop),
        10 => {
            let change = LabelChange::Merge(vec![("a".into(), Some("b".into()))]);
            snapshotter.update(space, &key, change).and_then(|_| snapshotter.usage(space, &key)).map(drop)
        }
        _ => snapshotter.list(space, &[Filter::parse("kind==active").unwrap()]).map(drop),
    }
}

#[test]
fn two_hundred_callers_get_legal_answers_and_leak_nothing() {
    let machine = Machine::default();
    let (snapshotter, store) = start(&machine);
    let space = Space::new("s").unwrap();
    let (calls, done) = (AtomicU64::new(0), AtomicU64::new(0));
    let end = Instant::now() + LENGTH;
    std::thread::scope(|scope| {
        for caller in 0..CALLERS {
            let (snapshotter, space, calls, done) = (&snapshotter, &space, &calls, &done);
            scope.spawn(move || {
                let mut dice = Dice(caller * 7919 + 1);
                while Instant::now() < end {
                    calls.fetch_add(1, Ordering::Relaxed);
                    match one_call(snapshotter, space, &mut dice) {
                        Ok(()) => {
                            done.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(error) => {
                            let legal = [
                                ErrorKind::NotFound,
                                ErrorKind::AlreadyExists,
                                ErrorKind::HasChildren,
                                ErrorKind::NotActive,
                                ErrorKind::NotCommitted,
                            ];
                            assert!(legal.contains(&error.kind()), "{:?}: {error}", error.kind());
                        }
                    }
                }
            });
        }
    });
    println!("{calls:?} calls, {done:?} of them done");
    assert!(done.load(Ordering::Relaxed) > 1000, "the callers stood in each other's way");

    let owned = |store: &Store| store.read().unwrap().owned_devices().unwrap();
    snapshotter.cleanup().unwrap();
    assert_eq!(snapshotter.limbo_len().unwrap(), 0);
    let mut needed = owned(&store);
    needed.extend(snapshotter.devices_ahead());
    assert_eq!(machine.devices(), needed, "the pool holds what records need, and no more");
    assert!(all_formatted(&machine));

    // Children first, as the garbage collector does.
    loop {
        let all = snapshotter.list(&space, &[]).unwrap();
        if all.is_empty() {
            break;
        }
        let parents: BTreeSet<Name> = all.iter().filter_map(|s| s.parent.clone()).collect();
        for leaf in all.iter().filter(|s| !parents.contains(&s.name)) {
            snapshotter.remove(&space, &leaf.name).unwrap();
        }
    }
    snapshotter.cleanup().unwrap();
    assert_eq!(machine.devices().len(), 1, "the base device");
    assert_eq!(machine.active(), 0);
}

#[test]
fn one_base_device_is_made_however_many_ask_for_it_at_once() {
    let machine = Machine::default();
    let (snapshotter, _store) = start(&machine);
    let space = Space::new("s").unwrap();
    std::thread::scope(|scope| {
        for number in 0..32 {
            let (snapshotter, space) = (&snapshotter, &space);
            scope.spawn(move || {
                let key = Name::new(format!("{number}")).unwrap();
                snapshotter.prepare(space, &key, None, Labels::new()).unwrap();
            });
        }
    });
    assert_eq!(machine.devices().len(), 33);
    assert!(snapshotter.list(&space, &[]).unwrap().iter().all(|s| s.kind == Kind::Active));
}
