//! Trees of three levels: internal nodes below the root are split, thinned out, merged, shared and given up.

use std::collections::BTreeMap;
use std::sync::Arc;

use thinsnap_pool::{BlockDevice, DeviceId, Mapping, MemoryDevice, Metadata, OpenMode, VirtualBlock};

use crate::facts::golden;
use crate::judges::{assert_device_sound, assert_thin_check_accepts};
use crate::story::mappings;

fn commit(device: &MemoryDevice, metadata: &mut Metadata, story: &str) {
    if let Some(frozen) = metadata.freeze().unwrap() {
        frozen.write(device).unwrap();
        let freed = metadata.committed(frozen);
        metadata.release_data(&freed);
    }
    assert_device_sound(device, story);
}

/// A small xorshift generator: the same story every time.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

const BLOCKS: u64 = 131_072;

/// Removes and inserts pieces of all sizes in a device until nothing is left.
fn wear_down(seed: u64, snapshot_every: usize) {
    let pool = golden("05");
    let device = Arc::new(MemoryDevice::from_bytes(pool.image));
    let below = Arc::clone(&device) as Arc<dyn BlockDevice>;
    let mut metadata = Metadata::open(below, OpenMode::ReadWrite).unwrap();
    let mut random = Random(seed);
    let id = DeviceId::new(0).unwrap();
    let mut model: BTreeMap<u64, Mapping> = mappings(&metadata, id);
    assert_eq!(model.len(), 70_000);
    let mut snapshots: Vec<(DeviceId, BTreeMap<u64, Mapping>)> = Vec::new();
    for round in 1..=120 {
        let len = 1 + random.below([3, 300, 4000, 30_000][round % 4]);
        let start = random.below(BLOCKS);
        let removed = metadata.remove_range(id, VirtualBlock(start)..VirtualBlock(start + len)).unwrap();
        let before = model.len();
        model.retain(|key, _| !(start..start + len).contains(key));
        assert_eq!(removed, (before - model.len()) as u64);
        // Later rounds give less than they take.
        let start = random.below(BLOCKS);
        let want = 1 + random.below(if round < 60 { 2000 } else { 40 });
        if let Ok(run) = metadata.reserve_data(want) {
            metadata.insert(id, VirtualBlock(start), run).unwrap();
            let time = metadata.time();
            model.extend((0..run.len).map(|n| (start + n, Mapping { block: run.start.plus(n), time })));
        }
        if round % snapshot_every == 0 {
            let snapshot = DeviceId::new(u32::try_from(round).unwrap()).unwrap();
            metadata.create_snap(snapshot, id).unwrap();
            snapshots.push((snapshot, model.clone()));
            if snapshots.len() > 2 {
                let (old, content) = snapshots.remove(0);
                assert_eq!(mappings(&metadata, old), content);
                while !metadata.delete_step(old, 40).unwrap() {
                    commit(&device, &mut metadata, "between two steps of a deletion");
                }
            }
        }
        if round % 3 == 0 {
            commit(&device, &mut metadata, &format!("round {round}"));
        }
        if round % 40 == 0 {
            assert_eq!(mappings(&metadata, id), model);
            assert_thin_check_accepts(&device.to_bytes(), &format!("round {round}"));
        }
    }
    for (snapshot, content) in &snapshots {
        assert_eq!(&mappings(&metadata, *snapshot), content);
    }
    while !model.is_empty() {
        let first = *model.keys().nth(usize::try_from(random.below(model.len() as u64)).unwrap()).unwrap();
        let range = first..first + 1 + random.below(9000);
        metadata.remove_range(id, VirtualBlock(range.start)..VirtualBlock(range.end)).unwrap();
        model.retain(|key, _| !range.contains(key));
        commit(&device, &mut metadata, "wearing down");
    }
    assert!(mappings(&metadata, id).is_empty());
    assert_thin_check_accepts(&device.to_bytes(), "nothing left");
}

#[test]
fn a_deep_tree_can_be_worn_down_to_nothing() {
    wear_down(1, usize::MAX);
}

#[test]
fn a_deep_tree_that_snapshots_share_can_be_worn_down_to_nothing() {
    wear_down(2, 17);
}

/// Growing by one key at a time from the front: every insertion lowers the first key on the whole path.
#[test]
fn a_tree_grows_backwards_to_three_levels() {
    let device = Arc::new(MemoryDevice::from_bytes(golden("05").image));
    let below = Arc::clone(&device) as Arc<dyn BlockDevice>;
    let mut metadata = Metadata::open(below, OpenMode::ReadWrite).unwrap();
    while !metadata.delete_step(DeviceId::new(0).unwrap(), 200).unwrap() {
        commit(&device, &mut metadata, "making room");
    }
    commit(&device, &mut metadata, "room");
    let id = DeviceId::new(1).unwrap();
    metadata.create_thin(id).unwrap();
    for block in (0..40_000).rev() {
        let run = metadata.reserve_data(1).unwrap();
        metadata.insert(id, VirtualBlock(block * 3), run).unwrap();
    }
    commit(&device, &mut metadata, "grown backwards");
    assert_thin_check_accepts(&device.to_bytes(), "grown backwards");
    assert_eq!(mappings(&metadata, id).len(), 40_000);
    for block in 0..40_000 {
        assert!(metadata.lookup(id, VirtualBlock(block * 3)).unwrap().is_some());
        assert!(metadata.lookup(id, VirtualBlock(block * 3 + 1)).unwrap().is_none());
    }
}
