//! A random story of operations on metadata, told to the metadata and to a plain map side by side.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::{Just, Strategy, any, prop, prop_oneof};
use thinsnap_pool::{
    BlockDevice, BlockSize, ChangedRange, DataRun, DeviceId, ErrorKind, FormatOptions, Mapping, MemoryDevice, Metadata,
    OpenMode, VirtualBlock,
};

/// One step. Devices are picked among those that exist by a number, modulo.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    Create(u32),
    Snap(u32, usize),
    /// Device, first block, blocks.
    Insert(usize, u64, u64),
    /// Device, every how many blocks, how often: makes leaves that later removals thin out.
    Scatter(usize, u64, u64),
    /// Device, first block, blocks.
    Remove(usize, u64, u64),
    /// Device, leaves a step; commits between steps if the number is odd.
    Delete(usize, usize),
    SetTransactionId(u64),
    GrowData(u64),
    Commit,
    /// Closes a generation, goes on with the steps that follow, and lets it become durable at the next commit.
    Freeze,
    /// Without a commit: everything since the last one is gone.
    Reopen,
}

/// A strategy of one step; blocks are below `blocks`.
pub(crate) fn step(blocks: u64) -> impl Strategy<Value = Step> {
    let device = any::<usize>();
    prop_oneof![
        1 => (0u32..40).prop_map(Step::Create),
        2 => ((0u32..40), device).prop_map(|(id, origin)| Step::Snap(id, origin)),
        6 => (any::<usize>(), 0..blocks, 1u64..400).prop_map(|(d, start, len)| Step::Insert(d, start, len)),
        4 => (any::<usize>(), 0..blocks, 1u64..3).prop_map(|(d, start, len)| Step::Insert(d, start, len)),
        2 => (any::<usize>(), 2u64..40, 1u64..600).prop_map(|(d, every, n)| Step::Scatter(d, every, n)),
        4 => (any::<usize>(), 0..blocks, 1u64..700).prop_map(|(d, start, len)| Step::Remove(d, start, len)),
        1 => (any::<usize>(), 0..blocks, Just(u64::MAX)).prop_map(|(d, start, len)| Step::Remove(d, start, len)),
        1 => (any::<usize>(), 1usize..30).prop_map(|(d, budget)| Step::Delete(d, budget)),
        1 => any::<u64>().prop_map(Step::SetTransactionId),
        1 => (1u64..20_000).prop_map(Step::GrowData),
        3 => Just(Step::Commit),
        2 => Just(Step::Freeze),
        1 => Just(Step::Reopen),
    ]
}

/// A strategy of a story; it begins with a device that holds something, so that the other steps find one.
pub(crate) fn story(blocks: u64, steps: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(blocks), steps).prop_map(|mut steps| {
        steps.splice(0..0, [Step::Create(7), Step::Insert(0, 0, 400)]);
        steps
    })
}

/// What a device should hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ModelDevice {
    pub(crate) blocks: BTreeMap<u64, Mapping>,
    pub(crate) transaction_id: u64,
    pub(crate) creation_time: u32,
    pub(crate) snapshotted_time: u32,
}

/// What the pool should hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Model {
    pub(crate) devices: BTreeMap<DeviceId, ModelDevice>,
    pub(crate) time: u32,
    pub(crate) transaction_id: u64,
    pub(crate) data_blocks: u64,
}

/// Sees a commit: what is on the device before it, what will be written, and the state before and after.
pub(crate) type Watcher = Box<dyn FnMut(&[u8], &thinsnap_pool::Frozen, &Model, &Model)>;

/// Metadata, the device below it, and the models of the running, the frozen and the durable state.
pub(crate) struct Teller {
    pub(crate) device: Arc<MemoryDevice>,
    pub(crate) metadata: Metadata,
    pub(crate) now: Model,
    pub(crate) durable: Model,
    frozen: Option<(thinsnap_pool::Frozen, Model)>,
    durable_blocks: BTreeSet<u64>,
    frozen_blocks: BTreeSet<u64>,
    /// Operations that were refused for want of space.
    pub(crate) refused: usize,
    /// Called before a generation is written.
    pub(crate) watcher: Option<Watcher>,
}

/// Sizes of a story's pool.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) metadata_blocks: u64,
    pub(crate) data_blocks: u64,
}

impl Teller {
    /// A new pool.
    pub(crate) fn new(sizes: Sizes) -> Self {
        // Room to grow, and for a device larger than the pool that is on it.
        let device = Arc::new(MemoryDevice::new((sizes.metadata_blocks + 64) * 4096));
        let options = FormatOptions {
            block_size: BlockSize::DEFAULT,
            data_blocks: sizes.data_blocks,
            metadata_blocks: sizes.metadata_blocks,
            identity: *b"a story's pool..",
        };
        Metadata::format(&*device, &options).unwrap();
        let metadata = Metadata::open(Arc::clone(&device) as Arc<dyn BlockDevice>, OpenMode::ReadWrite).unwrap();
        let model = Model { data_blocks: sizes.data_blocks, ..Model::default() };
        Self {
            device,
            metadata,
            now: model.clone(),
            durable: model,
            frozen: None,
            durable_blocks: BTreeSet::new(),
            frozen_blocks: BTreeSet::new(),
            refused: 0,
            watcher: None,
        }
    }

    fn pick(&self, number: usize) -> Option<DeviceId> {
        let count = self.now.devices.len();
        (count > 0).then(|| *self.now.devices.keys().nth(number % count).unwrap())
    }

    /// Does one step on both sides.
    pub(crate) fn tell(&mut self, step: &Step) {
        match *step {
            Step::Create(id) => self.create(DeviceId::new(id).unwrap()),
            Step::Snap(id, origin) => {
                if let Some(origin) = self.pick(origin) {
                    self.snap(DeviceId::new(id).unwrap(), origin);
                }
            }
            Step::Insert(number, start, len) => {
                if let Some(id) = self.pick(number) {
                    self.insert(id, start, len);
                }
            }
            Step::Scatter(number, every, times) => {
                if let Some(id) = self.pick(number) {
                    (0..times).for_each(|n| self.insert(id, n * every, 1));
                }
            }
            Step::Remove(number, start, len) => {
                if let Some(id) = self.pick(number) {
                    self.remove(id, start, start.saturating_add(len));
                }
            }
            Step::Delete(number, budget) => {
                if let Some(id) = self.pick(number) {
                    self.delete(id, budget);
                }
            }
            Step::SetTransactionId(to) => {
                self.metadata.set_transaction_id(self.now.transaction_id, to).unwrap();
                assert!(to == u64::MAX || self.metadata.set_transaction_id(to + 1, 0).is_err());
                self.now.transaction_id = to;
            }
            Step::GrowData(more) => {
                let done = self.metadata.grow_data(self.now.data_blocks + more);
                if self.went_through(done) {
                    self.now.data_blocks += more;
                }
            }
            Step::Commit => self.commit(),
            Step::Freeze => self.freeze(),
            Step::Reopen => self.reopen(),
        }
    }

    /// True if done; false if refused for want of space, which must have changed nothing.
    fn went_through(&mut self, done: thinsnap_pool::Result<()>) -> bool {
        match done {
            Ok(()) => true,
            Err(error) if error.kind() == ErrorKind::OutOfMetadataSpace => {
                self.refused += 1;
                false
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn create(&mut self, id: DeviceId) {
        let done = self.metadata.create_thin(id);
        if self.now.devices.contains_key(&id) {
            assert_eq!(done.unwrap_err().kind(), ErrorKind::AlreadyExists);
        } else if self.went_through(done) {
            let time = self.now.time;
            let device = ModelDevice {
                transaction_id: self.now.transaction_id,
                creation_time: time,
                snapshotted_time: time,
                ..ModelDevice::default()
            };
            self.now.devices.insert(id, device);
        }
    }

    fn snap(&mut self, id: DeviceId, origin: DeviceId) {
        let done = self.metadata.create_snap(id, origin);
        if self.now.devices.contains_key(&id) {
            assert_eq!(done.unwrap_err().kind(), ErrorKind::AlreadyExists);
        } else if self.went_through(done) {
            self.now.time += 1;
            let time = self.now.time;
            let origin = self.now.devices.get_mut(&origin).unwrap();
            origin.snapshotted_time = time;
            let blocks = origin.blocks.clone();
            let transaction_id = self.now.transaction_id;
            let device = ModelDevice { blocks, transaction_id, creation_time: time, snapshotted_time: time };
            self.now.devices.insert(id, device);
        }
    }

    fn insert(&mut self, id: DeviceId, start: u64, len: u64) {
        let run = match self.metadata.reserve_data(len) {
            Ok(run) => run,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::OutOfDataSpace);
                assert_eq!(self.metadata.data_space().available, 0);
                self.refused += 1;
                return;
            }
        };
        self.assert_unused(run);
        let done = self.metadata.insert(id, VirtualBlock(start), run);
        if self.went_through(done) {
            let time = self.now.time;
            let device = self.now.devices.get_mut(&id).unwrap();
            for n in 0..run.len {
                device.blocks.insert(start + n, Mapping { block: run.start.plus(n), time });
            }
        } else {
            self.metadata.release_data(&[run]);
        }
    }

    /// What is handed out may not be referred to by the durable state, nor by one on its way. (If the running state
    /// referred to it, the audit would find a count too low.)
    fn assert_unused(&self, run: DataRun) {
        for used in [&self.durable_blocks, &self.frozen_blocks] {
            let reached = used.range(run.start.0..run.start.0 + run.len).next();
            assert!(reached.is_none(), "data block {reached:?} was handed out");
        }
    }

    fn remove(&mut self, id: DeviceId, start: u64, end: u64) {
        let keys: Vec<u64> = self.now.devices[&id].blocks.range(start..end).map(|(&key, _)| key).collect();
        match self.metadata.remove_range(id, VirtualBlock(start)..VirtualBlock(end)) {
            Ok(count) => {
                assert_eq!(count, keys.len() as u64);
                let device = self.now.devices.get_mut(&id).unwrap();
                device.blocks.retain(|key, _| !(start..end).contains(key));
            }
            Err(error) => assert!(!self.went_through(Err(error))),
        }
    }

    fn delete(&mut self, id: DeviceId, budget: usize) {
        loop {
            match self.metadata.delete_step(id, budget) {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) => {
                    assert!(!self.went_through(Err(error)));
                    self.resync(id);
                    return;
                }
            }
            self.resync(id);
            if budget % 2 == 1 {
                self.commit();
            }
        }
        self.now.devices.remove(&id);
    }

    /// A deletion that goes on step by step leaves fewer and fewer mappings, none of them changed.
    fn resync(&mut self, id: DeviceId) {
        let left = mappings(&self.metadata, id);
        let device = self.now.devices.get_mut(&id).unwrap();
        assert!(left.iter().all(|(key, mapping)| device.blocks.get(key) == Some(mapping)));
        device.blocks = left;
    }

    /// Closes a generation, unless one is on its way.
    fn freeze(&mut self) {
        if self.frozen.is_none()
            && let Some(frozen) = self.metadata.freeze().unwrap()
        {
            self.frozen_blocks = data_blocks(&self.now);
            self.frozen = Some((frozen, self.now.clone()));
        }
    }

    /// Writes the generation that is on its way.
    pub(crate) fn finish(&mut self) {
        if let Some((frozen, model)) = self.frozen.take() {
            if let Some(watcher) = &mut self.watcher {
                watcher(&self.device.to_bytes(), &frozen, &self.durable, &model);
            }
            frozen.write(&*self.device).unwrap();
            let freed = self.metadata.committed(frozen);
            self.durable = model;
            self.durable_blocks = std::mem::take(&mut self.frozen_blocks);
            self.metadata.release_data(&freed);
        }
    }

    /// Makes everything durable.
    pub(crate) fn commit(&mut self) {
        self.finish();
        self.freeze();
        self.finish();
    }

    /// Drops what is not durable.
    pub(crate) fn reopen(&mut self) {
        self.frozen = None;
        self.frozen_blocks.clear();
        let device = Arc::clone(&self.device) as Arc<dyn BlockDevice>;
        self.metadata = Metadata::open(device, OpenMode::ReadWrite).unwrap();
        self.now = self.durable.clone();
    }

    /// Compares everything that metadata tells with the model.
    pub(crate) fn compare(&self) {
        assert_model(&self.metadata, &self.now);
        let shared_blocks: Vec<BTreeSet<u64>> = self
            .now
            .devices
            .values()
            .map(|device| device.blocks.values().map(|mapping| mapping.block.0).collect())
            .collect();
        let size = BlockSize::DEFAULT.bytes();
        for (nr, (&id, device)) in self.now.devices.iter().enumerate() {
            let usage = self.metadata.usage(id).unwrap();
            let exclusive = shared_blocks[nr]
                .iter()
                .filter(|block| {
                    shared_blocks.iter().enumerate().all(|(other, set)| other == nr || !set.contains(block))
                })
                .count();
            let written = device.blocks.values().filter(|mapping| mapping.time >= device.creation_time).count();
            assert_eq!(usage.mapped.0, device.blocks.len() as u64 * size);
            assert_eq!(usage.exclusive.0, exclusive as u64 * size, "device {id}");
            assert_eq!(usage.shared.0, usage.mapped.0 - usage.exclusive.0);
            assert_eq!(usage.written.0, written as u64 * size);
        }
        let used: BTreeSet<u64> = shared_blocks.into_iter().flatten().collect();
        assert_eq!(self.metadata.data_space().used, used.len() as u64);
        let ids: Vec<DeviceId> = self.now.devices.keys().copied().collect();
        for pair in ids.windows(2) {
            let expected = model_delta(&self.now.devices[&pair[0]], &self.now.devices[&pair[1]]);
            assert_eq!(self.metadata.delta(pair[0], pair[1]).unwrap(), expected);
        }
    }
}

fn data_blocks(model: &Model) -> BTreeSet<u64> {
    model.devices.values().flat_map(|device| device.blocks.values().map(|mapping| mapping.block.0)).collect()
}

/// All mappings of a device.
pub(crate) fn mappings(metadata: &Metadata, id: DeviceId) -> BTreeMap<u64, Mapping> {
    let runs = metadata.lookup_range(id, VirtualBlock(0)..VirtualBlock(u64::MAX)).unwrap();
    runs.into_iter()
        .flat_map(|run| {
            (0..run.len)
                .map(move |n| (run.start.0 + n, Mapping { block: run.mapping.block.plus(n), time: run.mapping.time }))
        })
        .collect()
}

/// Panics unless metadata holds exactly what the model holds.
pub(crate) fn assert_model(metadata: &Metadata, model: &Model) {
    assert_eq!((metadata.time(), metadata.transaction_id()), (model.time, model.transaction_id));
    assert_eq!(metadata.data_space().total, model.data_blocks);
    let devices = metadata.devices().unwrap();
    assert_eq!(
        devices.iter().map(|device| device.0).collect::<Vec<_>>(),
        model.devices.keys().copied().collect::<Vec<_>>()
    );
    for (id, details) in devices {
        let expected = &model.devices[&id];
        assert_eq!(details.mapped_blocks, expected.blocks.len() as u64);
        assert_eq!(details.transaction_id, expected.transaction_id);
        assert_eq!(details.creation_time, expected.creation_time);
        assert_eq!(details.snapshotted_time, expected.snapshotted_time);
        assert_eq!(mappings(metadata, id), expected.blocks, "device {id}");
        for probe in (0..20).map(|n| n * 97) {
            assert_eq!(metadata.lookup(id, VirtualBlock(probe)).unwrap(), expected.blocks.get(&probe).copied());
        }
    }
}

fn model_delta(from: &ModelDevice, to: &ModelDevice) -> Vec<ChangedRange> {
    let keys: BTreeSet<u64> = from.blocks.keys().chain(to.blocks.keys()).copied().collect();
    let mut ranges: Vec<ChangedRange> = Vec::new();
    for key in keys {
        let (a, b) = (from.blocks.get(&key).map(|m| m.block), to.blocks.get(&key).map(|m| m.block));
        if a == b {
            continue;
        }
        match ranges.last_mut() {
            Some(range) if range.start.0 + range.len == key && range.mapped == b.is_some() => range.len += 1,
            _ => ranges.push(ChangedRange { start: VirtualBlock(key), len: 1, mapped: b.is_some() }),
        }
    }
    ranges
}
