//! What a pool must hold, and the operations that both engines are given.

use std::collections::BTreeMap;
use std::path::Path;

use thinsnap_pool::{Access, ByteCount, DeviceId, ThinPool};

use crate::support::random::Random;
use crate::support::stage::{BLOCK, OpenDisk};

pub(super) const PAGE: u64 = 4096;
/// Data blocks of a device.
const BLOCKS: u64 = 24;
pub(super) const SIZE: ByteCount = ByteCount(BLOCKS * BLOCK);
const PAGES: u64 = SIZE.0 / PAGE;
const DEVICES_MAX: usize = 4;
const DATA_BLOCKS_MAX: u64 = 520;
const METADATA_BLOCKS_MAX: u64 = 1500;

/// How a device of a pool is opened, whoever serves it.
pub(super) type Open<'a> = &'a dyn Fn(DeviceId, &Path) -> Box<dyn OpenDisk>;

/// One operation; durable when it returns.
#[derive(Debug, Clone, Copy, serde::Serialize, serde::Deserialize)]
pub(super) enum Op {
    Create(DeviceId),
    Snap { id: DeviceId, origin: DeviceId },
    Delete(DeviceId),
    Write { id: DeviceId, page: u64, pages: u64, byte: u8 },
    Discard { id: DeviceId, block: u64, blocks: u64 },
    Grow { data: u64, metadata: u64 },
    Step { from: u64 },
}

impl Op {
    pub(super) fn perform(self, pool: &dyn ThinPool, open: Open<'_>) {
        let with = |id: DeviceId, work: &dyn Fn(&dyn OpenDisk)| {
            let path = pool.activate(id, SIZE, Access::ReadWrite).unwrap();
            let disk = open(id, &path);
            work(&*disk);
            drop(disk);
            assert!(pool.deactivate(id).unwrap(), "device {id} is gone");
        };
        match self {
            Self::Create(id) => pool.create_thin(id).unwrap(),
            Self::Snap { id, origin } => pool.create_snap(id, origin).unwrap(),
            Self::Delete(id) => pool.delete(id).unwrap(),
            Self::Write { id, page, pages, byte } => {
                let bytes = vec![byte; usize::try_from(pages * PAGE).unwrap()];
                with(id, &|disk| disk.write(&bytes, page * PAGE));
            }
            Self::Discard { id, block, blocks } => {
                with(id, &|disk| disk.discard(block * BLOCK, blocks * BLOCK));
            }
            Self::Grow { data, metadata } => {
                pool.grow(Some(ByteCount(data * BLOCK)), Some(ByteCount(metadata * PAGE))).unwrap();
            }
            Self::Step { from } => pool.set_transaction_id(from, from + 1).unwrap(),
        }
    }
}

/// Pages that are written one after the other until something breaks.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub(super) struct Storm {
    pub(super) id: DeviceId,
    pub(super) byte: u8,
    pub(super) pages: Vec<u64>,
}

impl Storm {
    /// Pages between two flushes.
    const BATCH: usize = 5;

    /// Writes until a call fails or all is written; `tell` hears how many pages were acknowledged, and how many of them
    /// flushed.
    pub(super) fn run(
        &self,
        write: &dyn Fn(&[u8], u64) -> bool,
        flush: &dyn Fn() -> bool,
        tell: &mut dyn FnMut(Progress),
    ) {
        let bytes = vec![self.byte; usize::try_from(PAGE).unwrap()];
        let mut progress = Progress::default();
        for (number, page) in (1..).zip(&self.pages) {
            if !write(&bytes, page * PAGE) {
                return;
            }
            progress.acknowledged = number;
            if number % Self::BATCH == 0 {
                if !flush() {
                    return;
                }
                progress.flushed = number;
            }
            tell(progress);
        }
    }
}

/// How far a storm had come, in pages of its list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Progress {
    pub(super) acknowledged: usize,
    pub(super) flushed: usize,
}

/// What the pool must hold: for each device, the byte that fills each page of it.
pub(super) struct Model {
    pub(super) devices: BTreeMap<DeviceId, Vec<u8>>,
    next: u32,
    pub(super) data_blocks: u64,
    pub(super) metadata_blocks: u64,
    pub(super) transaction: u64,
}

fn place(page: u64) -> usize {
    usize::try_from(page).unwrap()
}

impl Model {
    pub(super) fn new(data_blocks: u64, metadata_blocks: u64) -> Self {
        Self { devices: BTreeMap::new(), next: 0, data_blocks, metadata_blocks, transaction: 0 }
    }

    pub(super) fn ids(&self) -> Vec<DeviceId> {
        self.devices.keys().copied().collect()
    }

    fn new_id(&mut self) -> DeviceId {
        self.next += 1;
        DeviceId::new(self.next).unwrap()
    }

    fn choose(&mut self, random: &mut Random) -> Op {
        let ids = self.ids();
        if ids.is_empty() {
            return Op::Create(self.new_id());
        }
        let (id, room) = (random.pick(&ids), ids.len() < DEVICES_MAX);
        match random.below(20) {
            0 if room => Op::Create(self.new_id()),
            1..6 if room => Op::Snap { id: self.new_id(), origin: id },
            6..9 => Op::Delete(id),
            9..12 => {
                let block = random.below(BLOCKS - 6);
                Op::Discard { id, block, blocks: 1 + random.below(6) }
            }
            12 if self.data_blocks < DATA_BLOCKS_MAX && self.metadata_blocks < METADATA_BLOCKS_MAX => {
                Op::Grow { data: self.data_blocks + 4, metadata: self.metadata_blocks + 16 }
            }
            13 => Op::Step { from: self.transaction },
            _ => {
                let pages = 1 + random.below(40);
                let page = random.below(PAGES - pages);
                Op::Write { id, page, pages, byte: u8::try_from(1 + random.below(255)).unwrap() }
            }
        }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Create(id) => drop(self.devices.insert(id, vec![0; place(PAGES)])),
            Op::Snap { id, origin } => drop(self.devices.insert(id, self.devices[&origin].clone())),
            Op::Delete(id) => drop(self.devices.remove(&id)),
            Op::Write { id, page, pages, byte } => {
                self.devices.get_mut(&id).unwrap()[place(page)..place(page + pages)].fill(byte);
            }
            Op::Discard { id, block, blocks } => {
                let pages = BLOCK / PAGE;
                self.devices.get_mut(&id).unwrap()[place(block * pages)..place((block + blocks) * pages)].fill(0);
            }
            Op::Grow { data, metadata } => (self.data_blocks, self.metadata_blocks) = (data, metadata),
            Op::Step { from } => self.transaction = from + 1,
        }
    }

    /// The next operations of the story, which the model holds for done.
    pub(super) fn story(&mut self, random: &mut Random, count: u64) -> Vec<Op> {
        let mut ops = Vec::new();
        for _ in 0..count {
            let op = self.choose(random);
            self.apply(op);
            ops.push(op);
        }
        ops
    }

    /// Pages to write, each once, in an order that goes through new blocks, shared ones and old ones.
    pub(super) fn storm(&self, random: &mut Random, most: u64) -> Option<Storm> {
        let ids = self.ids();
        let id = (!ids.is_empty()).then(|| random.pick(&ids))?;
        let byte = u8::try_from(1 + random.below(255)).unwrap();
        let (start, step) = (random.below(PAGES), 1 + 2 * random.below(PAGES / 2));
        let mut pages: Vec<u64> = (0..most).map(|n| (start + n * step) % PAGES).collect();
        pages.sort_unstable();
        pages.dedup();
        for at in (1..pages.len()).rev() {
            pages.swap(at, usize::try_from(random.below(at as u64 + 1)).unwrap());
        }
        Some(Storm { id, byte, pages })
    }

    /// Takes over what a device holds after a storm that broke off, of which the first `sure` pages must be there;
    /// the others hold the old or the new byte, nothing else.
    pub(super) fn settle(&mut self, storm: &Storm, sure: usize, bytes: &[u8], story: &str) {
        let known = self.devices.get_mut(&storm.id).unwrap();
        for (number, &page) in storm.pages.iter().enumerate() {
            let found = bytes[place(page * PAGE)];
            let old = known[place(page)];
            assert!(
                found == storm.byte || (number >= sure && found == old),
                "{story}: page {page}, number {number} of a storm of which {sure} must be there, holds {found}, was {old}"
            );
            known[place(page)] = found;
        }
    }

    /// The bytes of a device.
    pub(super) fn bytes(&self, id: DeviceId) -> Vec<u8> {
        let mut bytes = vec![0; place(SIZE.0)];
        for (page, byte) in bytes.chunks_exact_mut(place(PAGE)).zip(&self.devices[&id]) {
            page.fill(*byte);
        }
        bytes
    }
}
