//! What the deletion of devices gives back, foretold and then done.

use std::collections::BTreeMap;
use std::sync::Arc;

use thinsnap_pool::{
    BlockDevice, BlockSize, DeviceId, FormatOptions, Holdings, MemoryDevice, Metadata, OpenMode, VirtualBlock, holdings,
};

use crate::disk::{BLOCK, device};
use crate::support::random::Random;

const BLOCKS: u64 = 8192;

fn commit(metadata: &mut Metadata, device: &MemoryDevice) {
    if let Some(frozen) = metadata.freeze().unwrap() {
        frozen.write(device).unwrap();
        let freed = metadata.committed(frozen);
        metadata.release_data(&freed);
    }
}

fn copy(device: &MemoryDevice) -> (Arc<MemoryDevice>, Metadata) {
    let copy = Arc::new(MemoryDevice::from_bytes(device.to_bytes()));
    let metadata = Metadata::open(Arc::clone(&copy) as Arc<dyn BlockDevice>, OpenMode::ReadWrite).unwrap();
    (copy, metadata)
}

/// Data blocks that deleting all of `devices` gives back.
fn given_back(image: &MemoryDevice, devices: &[DeviceId]) -> u64 {
    let (device, mut metadata) = copy(image);
    let before = metadata.data_space().used;
    for &id in devices {
        while !metadata.delete_step(id, 64).unwrap() {
            commit(&mut metadata, &device);
        }
        commit(&mut metadata, &device);
    }
    before - metadata.data_space().used
}

#[test]
fn what_each_device_and_each_group_gives_back_is_what_its_deletion_frees() {
    for seed in 0..6 {
        let mut random = Random::new(seed);
        let memory = Arc::new(MemoryDevice::new(16 << 20));
        let options = FormatOptions {
            block_size: BlockSize::from_bytes(BLOCK).unwrap(),
            data_blocks: BLOCKS,
            metadata_blocks: 4096,
            identity: [3; 16],
        };
        Metadata::format(&*memory, &options).unwrap();
        let mut metadata = Metadata::open(Arc::clone(&memory) as Arc<dyn BlockDevice>, OpenMode::ReadWrite).unwrap();
        let mut parent_of: BTreeMap<u32, Option<u32>> = BTreeMap::new();
        for number in 1..=14_u32 {
            let origin = (number > 1).then(|| 1 + u32::try_from(random.below(u64::from(number - 1))).unwrap());
            match origin {
                None => metadata.create_thin(device(number)).unwrap(),
                Some(origin) => metadata.create_snap(device(number), device(origin)).unwrap(),
            }
            parent_of.insert(number, origin);
            for _ in 0..12 {
                let start = VirtualBlock(random.below(3000));
                let run = metadata.reserve_data(1 + random.below(60)).unwrap();
                metadata.insert(device(number), start, run).unwrap();
                let hole = random.below(3000);
                metadata
                    .remove_range(device(number), VirtualBlock(hole)..VirtualBlock(hole + random.below(30)))
                    .unwrap();
            }
            commit(&mut metadata, &memory);
        }
        // Three groups and some in none.
        let groups: Vec<(DeviceId, u32)> = (1..=14_u32)
            .filter_map(|number| Some((device(number), u32::try_from(random.below(4)).ok().filter(|&g| g < 3)?)))
            .collect();
        let told: Holdings = holdings(&*memory, &groups, &|_| ()).unwrap();
        assert_eq!(told.devices.len(), 14);
        for holding in &told.devices {
            let usage = metadata.usage(holding.id).unwrap();
            assert_eq!((holding.mapped, holding.exclusive), (usage.mapped, usage.exclusive), "device {}", holding.id);
            assert_eq!(holding.exclusive.0 / BLOCK, given_back(&memory, &[holding.id]), "device {}", holding.id);
        }
        for &(group, bytes) in &told.groups {
            let members: Vec<DeviceId> = groups.iter().filter(|(_, of)| *of == group).map(|(id, _)| *id).collect();
            assert_eq!(bytes.0 / BLOCK, given_back(&memory, &members), "group {group}: {members:?}");
        }
    }
}
