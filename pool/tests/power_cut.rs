//! The power goes: after any event of a story, with any part of what was not flushed.
//!
//! What must hold then: every flushed sector is there; a sector that was not flushed is old or new, never
//! another device's and never an earlier owner's; a device whose creation returned exists, one whose
//! deletion returned does not; the metadata passes its judges.

mod support {
    pub mod direct_exporter;
    #[expect(dead_code, reason = "the tests of the metadata use the rest")]
    pub mod judges;
    pub mod random;
}

use std::collections::BTreeMap;
use std::sync::Arc;

use support::direct_exporter::DirectExporter;
use support::judges::{assert_sound, assert_thin_check_accepts};
use support::random::Random;
use thinsnap_pool::{
    Access, BlockDevice, BlockSize, ByteCount, CutImage, DeviceId, EmbeddedPool, ErrorKind, FormatOptions,
    MemoryDevice, Metadata, OpenMode, PowerSupply, ThinPool,
};

const BLOCK: u64 = 64 * 1024;
const SECTOR: u64 = 512;
const SECTORS_PER_BLOCK: u64 = BLOCK / SECTOR;
const DEVICE_BLOCKS: u64 = 6;
const SECTORS: u64 = DEVICE_BLOCKS * SECTORS_PER_BLOCK;
const POOL_BLOCKS: u64 = 24;

/// When an operation was called and when it returned, in events of the power supply.
#[derive(Clone, Copy, Debug)]
struct Span {
    start: usize,
    end: usize,
}

/// A sector's content is a token: the number of the write that made it, 0 for zeroes.
#[derive(Clone, Copy)]
struct Change {
    span: Span,
    first: u64,
    sectors: u64,
    token: u64,
}

struct History {
    born: Span,
    dead: Option<Span>,
    base: Vec<u64>,
    changes: Vec<Change>,
}

impl History {
    fn now(&self) -> Vec<u64> {
        let mut tokens = self.base.clone();
        for change in &self.changes {
            let start = usize::try_from(change.first).unwrap();
            tokens[start..start + usize::try_from(change.sectors).unwrap()].fill(change.token);
        }
        tokens
    }
}

struct Story {
    supply: Arc<PowerSupply>,
    exporter: Arc<DirectExporter>,
    pool: EmbeddedPool,
    random: Random,
    devices: BTreeMap<DeviceId, History>,
    /// The operations that make durable what returned before them.
    flushes: Vec<Span>,
    next: u64,
}

impl Story {
    fn new(seed: u64) -> Self {
        let metadata = MemoryDevice::new(2 << 20);
        let options = FormatOptions {
            block_size: BlockSize::DEFAULT,
            data_blocks: POOL_BLOCKS,
            metadata_blocks: 512,
            identity: [7; 16],
        };
        Metadata::format(&metadata, &options).unwrap();
        let supply = PowerSupply::new();
        let metadata: Arc<dyn BlockDevice> = Arc::new(supply.device(metadata.to_bytes()));
        // Another's bytes wherever nobody has written yet.
        let data = Arc::new(supply.device(vec![0xa5; usize::try_from(POOL_BLOCKS * BLOCK).unwrap()]));
        let exporter = DirectExporter::new();
        let pool = open(metadata, data, &exporter);
        let random = Random::new(seed);
        Self { supply, exporter, pool, random, devices: BTreeMap::new(), flushes: Vec::new(), next: 1 }
    }

    fn timed<T>(&self, work: impl FnOnce(&Self) -> T) -> (T, Span) {
        let start = self.supply.events();
        let done = work(self);
        (done, Span { start, end: self.supply.events() })
    }

    fn some_device(&mut self) -> Option<DeviceId> {
        let alive: Vec<DeviceId> =
            self.devices.iter().filter(|(_, history)| history.dead.is_none()).map(|(id, _)| *id).collect();
        (!alive.is_empty()).then(|| self.random.pick(&alive))
    }

    fn step(&mut self) {
        let Some(id) = self.some_device() else { return self.create() };
        match self.random.below(100) {
            0..55 => self.write(id),
            55..62 => self.discard(id),
            62..74 => self.flush(id),
            74..80 => self.create(),
            80..91 => self.snapshot(id),
            _ => self.delete(id),
        }
    }

    fn write(&mut self, id: DeviceId) {
        let first = self.random.below(SECTORS);
        let longest = self.random.pick(&[1, 8, 8, 64, 300]);
        let sectors = (1 + self.random.below(longest)).min(SECTORS - first);
        let token = self.next;
        self.next += 1;
        let bytes: Vec<u8> = token.to_le_bytes().repeat(usize::try_from(sectors * SECTOR / 8).unwrap());
        let (done, span) = self.timed(|story| {
            story.pool.activate(id, ByteCount(SECTORS * SECTOR), Access::ReadWrite).unwrap();
            story.exporter.open(id).write_at(&bytes, first * SECTOR)
        });
        match done {
            Ok(()) => self.devices.get_mut(&id).unwrap().changes.push(Change { span, first, sectors, token }),
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::OutOfDataSpace, "{e}");
                self.delete(id);
            }
        }
    }

    fn discard(&mut self, id: DeviceId) {
        let first_block = self.random.below(DEVICE_BLOCKS);
        let blocks = 1 + self.random.below(DEVICE_BLOCKS - first_block);
        let ((), span) = self.timed(|story| {
            story.pool.activate(id, ByteCount(SECTORS * SECTOR), Access::ReadWrite).unwrap();
            story.exporter.open(id).discard(first_block * BLOCK, blocks * BLOCK).unwrap();
        });
        let (first, sectors) = (first_block * SECTORS_PER_BLOCK, blocks * SECTORS_PER_BLOCK);
        self.devices.get_mut(&id).unwrap().changes.push(Change { span, first, sectors, token: 0 });
    }

    fn flush(&mut self, id: DeviceId) {
        let ((), span) = self.timed(|story| story.pool.flush(id).unwrap());
        // The flush of an inactive device has nothing to make durable.
        if self.pool.active_path(id).unwrap().is_some() {
            self.flushes.push(span);
        }
    }

    fn create(&mut self) {
        let id = self.new_id();
        let ((), born) = self.timed(|story| story.pool.create_thin(id).unwrap());
        let base = vec![0; usize::try_from(SECTORS).unwrap()];
        self.devices.insert(id, History { born, dead: None, base, changes: Vec::new() });
        self.flushes.push(born);
    }

    fn snapshot(&mut self, origin: DeviceId) {
        let id = self.new_id();
        let ((), born) = self.timed(|story| story.pool.create_snap(id, origin).unwrap());
        let base = self.devices[&origin].now();
        self.devices.insert(id, History { born, dead: None, base, changes: Vec::new() });
        self.flushes.push(born);
    }

    fn delete(&mut self, id: DeviceId) {
        let ((), span) = self.timed(|story| story.pool.delete(id).unwrap());
        self.devices.get_mut(&id).unwrap().dead = Some(span);
        self.flushes.push(span);
    }

    fn new_id(&mut self) -> DeviceId {
        DeviceId::new(u32::try_from(self.devices.len()).unwrap()).unwrap()
    }

    /// Opens what a cut behind `events` events left, and compares.
    fn check_cut(&self, events: usize, images: Vec<CutImage>, thoroughly: bool) {
        let [metadata, data] = <[CutImage; 2]>::try_from(images).unwrap();
        assert_sound(&metadata, &format!("cut after {events} events"));
        if thoroughly {
            assert_thin_check_accepts(&metadata, &format!("cut after {events} events"));
        }
        // Hung on a supply of its own for its knowledge of holes.
        let after = PowerSupply::new();
        let exporter = DirectExporter::new();
        let pool = open(Arc::new(after.device(metadata)), Arc::new(after.device(data)), &exporter);
        let found = pool.devices().unwrap();
        let durable = self.flushes.iter().filter(|flush| flush.end <= events).map(|flush| flush.start).max();
        for (id, history) in &self.devices {
            let may = history.born.start < events && history.dead.is_none_or(|dead| events < dead.end);
            let must = history.born.end <= events && history.dead.is_none_or(|dead| events <= dead.start);
            let there = found.contains(id);
            assert!(there || !must, "device {id} is gone");
            assert!(!there || may, "device {id} is there");
            if there {
                let tokens = read_tokens(&pool, &exporter, *id);
                check_tokens(*id, history, &tokens, durable.unwrap_or(0), events);
            }
        }
        assert!(found.iter().all(|id| self.devices.contains_key(id)));
        if thoroughly {
            check_nothing_old_shows(&pool, &exporter);
        }
    }
}

fn open(
    metadata_device: Arc<dyn BlockDevice>,
    data: Arc<dyn BlockDevice>,
    exporter: &Arc<DirectExporter>,
) -> EmbeddedPool {
    let metadata = Metadata::open(Arc::clone(&metadata_device), OpenMode::ReadWrite).unwrap();
    EmbeddedPool::new(metadata, metadata_device, data, Arc::clone(exporter) as _).unwrap()
}

/// The token of each sector; panics if a sector does not hold one token throughout.
fn read_tokens(pool: &EmbeddedPool, exporter: &DirectExporter, id: DeviceId) -> Vec<u64> {
    let mut bytes = vec![0; usize::try_from(SECTORS * SECTOR).unwrap()];
    pool.activate(id, ByteCount(SECTORS * SECTOR), Access::ReadWrite).unwrap();
    exporter.open(id).read_at(&mut bytes, 0).unwrap();
    let sectors = bytes.chunks_exact(usize::try_from(SECTOR).unwrap());
    sectors
        .enumerate()
        .map(|(number, sector)| {
            let token: [u8; 8] = sector[..8].try_into().unwrap();
            assert!(sector.chunks_exact(8).all(|word| word == token), "device {id}: sector {number} is mixed");
            u64::from_le_bytes(token)
        })
        .collect()
}

fn check_tokens(id: DeviceId, history: &History, tokens: &[u64], durable: usize, events: usize) {
    for (number, &token) in tokens.iter().enumerate() {
        let sector = number as u64;
        let touching: Vec<&Change> = history
            .changes
            .iter()
            .filter(|change| change.first <= sector && sector < change.first + change.sectors)
            .collect();
        let flushed = touching.iter().rposition(|change| change.span.end <= durable);
        let sure = flushed.map_or(history.base[number], |at| touching[at].token);
        let later = &touching[flushed.map_or(0, |at| at + 1)..];
        let dying = history.dead.is_some_and(|dead| dead.start < events);
        let right = token == sure
            || later.iter().any(|change| change.span.start < events && change.token == token)
            || (dying && token == 0);
        assert!(right, "device {id}: sector {sector} holds {token}, flushed was {sure}");
    }
}

/// Writes one sector into every block that the pool still has and sees zeroes around each.
fn check_nothing_old_shows(pool: &EmbeddedPool, exporter: &DirectExporter) {
    let id = DeviceId::new(1_000_000).unwrap();
    pool.create_thin(id).unwrap();
    pool.activate(id, ByteCount(POOL_BLOCKS * BLOCK), Access::ReadWrite).unwrap();
    let volume = exporter.open(id);
    for block in 0..POOL_BLOCKS {
        if let Err(e) = volume.write_at(&[0x77; 512], block * BLOCK + 4096) {
            assert_eq!(e.kind(), ErrorKind::OutOfDataSpace, "{e}");
            break;
        }
        let mut bytes = vec![0; usize::try_from(BLOCK).unwrap()];
        volume.read_at(&mut bytes, block * BLOCK).unwrap();
        assert!(bytes[4096..4608].iter().all(|&byte| byte == 0x77));
        assert!(
            bytes[..4096].iter().chain(&bytes[4608..]).all(|&byte| byte == 0),
            "a new block shows its last owner's bytes"
        );
    }
}

#[test]
fn a_power_cut_loses_nothing_that_was_flushed_and_mixes_nothing() {
    let mut cuts = 0;
    for seed in [1, 2, 3, 4] {
        let mut story = Story::new(seed);
        for _ in 0..90 {
            story.step();
        }
        let events = story.supply.events();
        let mut random = Random::new(seed ^ 0xdead);
        for cut in 0..=events {
            // Nothing of what was not flushed survives, all of it does, or each sector by chance.
            for survival in [0, 100, random.pick(&[10, 50, 90])] {
                let images = story.supply.cut(cut, || random.chance(survival));
                let thoroughly = cuts % 23 == 0;
                cuts += 1;
                let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    story.check_cut(cut, images, thoroughly);
                }));
                assert!(checked.is_ok(), "seed {seed}: cut after {cut} of {events} events, {survival} % survive");
            }
        }
    }
    assert!(cuts > 1_000, "{cuts} cuts are too few to mean anything");
}
