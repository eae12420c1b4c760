//! Ten thousand random operations on thin devices against plain byte vectors: contents, mapped blocks and
//! written blocks must agree after every one, the metadata must pass its judges after every reopening.

// All of this is test code, helpers too: clippy lets tests unwrap.
#![cfg(test)]

#[path = "support/host_tools.rs"]
mod host_tools;
mod model_story {
    mod kernel;
}
mod support {
    pub mod direct_exporter;
    pub mod disk;
    #[expect(dead_code, reason = "the tests of the metadata use the rest")]
    pub mod judges;
    pub mod kernel_stage;
    pub mod random;
    pub mod stage;
}

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Weak};

use support::direct_exporter::DirectExporter;
use support::judges::{assert_sound, assert_thin_check_accepts};
use support::random::Random;
use thinsnap_pool::{
    Access, BlockDevice, BlockSize, ByteCount, CreateOptions, DeviceId, Direction, EmbeddedOptions, EmbeddedPool,
    ErrorKind, Extents, FormatOptions, METADATA_CACHE_DEFAULT, MemoryDevice, Metadata, OpenMode, PoolPaths, Result,
    ThinPool, Volume,
};

const BLOCK: u64 = 64 * 1024;
/// 24 blocks and a half, so that the last one is short.
const SIZE: u64 = 24 * BLOCK + BLOCK / 2;
/// Fewer blocks than the devices could hold: the pool runs full now and then.
const POOL_BLOCKS: u64 = 80;
const DEVICES_MAX: usize = 7;

/// What a device should be.
#[derive(Clone)]
struct Expected {
    bytes: Vec<u8>,
    mapped: BTreeSet<u64>,
    /// Mapped since the device was created.
    own: BTreeSet<u64>,
}

/// How a pool is opened, what of it the host sees and where its metadata is, so that the same story runs in memory, on
/// files, and in the kernel.
trait Ground {
    /// The pool, and what closes it.
    fn open(&self) -> Running;
    /// The block device that `activate` has shown at `path`.
    fn disk(&self, id: DeviceId, path: &Path) -> Box<dyn Shown>;
    fn metadata_image(&self) -> Vec<u8>;
    fn habits(&self) -> Habits;
}

type Running = (Arc<dyn ThinPool>, Box<dyn Fn()>);

/// What an engine is free to do in its own way.
#[derive(Clone, Copy)]
struct Habits {
    /// Smallest range that is read or written.
    unit: u64,
    /// Zeroing whole blocks unmaps them; else it is a write.
    zeroes_unmap: bool,
    /// A discard unmaps the short block at the end of a device.
    ends_unmap: bool,
    /// A write that finds no room has changed nothing.
    writes_are_whole: bool,
}

/// A block device of the host. Errors are `OutOfDataSpace` when there is no room.
trait Shown {
    fn read(&self, bytes: &mut [u8], offset: u64);
    fn write(&self, bytes: &[u8], offset: u64) -> Result<()>;
    fn zero(&self, offset: u64, len: u64) -> Result<()>;
    fn discard(&self, offset: u64, len: u64);
    fn flush(&self);
    /// As [`write`](Self::write), beside the engine, if that allows it just then.
    fn write_directly(&self, _bytes: &[u8], _offset: u64) -> bool {
        false
    }
    /// As [`read`](Self::read), beside the engine, if that allows it just then.
    fn read_directly(&self, _bytes: &mut [u8], _offset: u64) -> bool {
        false
    }
}

/// A device of the embedded engine, as an exporter has it.
struct Exported(support::direct_exporter::Opened);

impl Exported {
    fn open(exporter: &DirectExporter, id: DeviceId) -> Box<dyn Shown> {
        Box::new(Self(exporter.open(id)))
    }

    fn running(pool: Arc<EmbeddedPool>) -> Running {
        let closed = Arc::clone(&pool);
        (pool, Box::new(move || closed.close().unwrap()))
    }

    const HABITS: Habits = Habits { unit: 1, zeroes_unmap: true, ends_unmap: true, writes_are_whole: true };
}

impl Shown for Exported {
    fn read(&self, bytes: &mut [u8], offset: u64) {
        self.0.read_at(bytes, offset).unwrap();
    }

    fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.0.write_at(bytes, offset)
    }

    fn zero(&self, offset: u64, len: u64) -> Result<()> {
        self.0.write_zeroes(offset, len)
    }

    fn discard(&self, offset: u64, len: u64) {
        self.0.discard(offset, len).unwrap();
    }

    fn flush(&self) {
        self.0.flush().unwrap();
    }

    fn write_directly(&self, bytes: &[u8], offset: u64) -> bool {
        write_directly(&*self.0, bytes, offset)
    }

    fn read_directly(&self, bytes: &mut [u8], offset: u64) -> bool {
        read_directly(&*self.0, bytes, offset)
    }
}

struct Memory {
    exporter: Arc<DirectExporter>,
    metadata: Arc<MemoryDevice>,
    data: Arc<MemoryDevice>,
    metadata_cache: ByteCount,
    opened: RefCell<Weak<EmbeddedPool>>,
}

/// Four nodes, one segment of records of one size, and sixteen nodes that may wait for a commit.
const TINY_CACHE: ByteCount = ByteCount(64 << 10);

impl Memory {
    fn new(metadata_cache: ByteCount) -> Self {
        let metadata = Arc::new(MemoryDevice::new(2 << 20));
        let options = FormatOptions {
            block_size: BlockSize::DEFAULT,
            data_blocks: POOL_BLOCKS,
            metadata_blocks: 512,
            identity: [7; 16],
        };
        Metadata::format(&*metadata, &options).unwrap();
        // Never zero at the start: whatever reads as zero was zeroed.
        let data = MemoryDevice::from_bytes(vec![0xa5; usize::try_from(POOL_BLOCKS * BLOCK).unwrap()]);
        let (exporter, opened) = (DirectExporter::new(), RefCell::default());
        Self { exporter, metadata, data: Arc::new(data), metadata_cache, opened }
    }
}

impl Ground for Memory {
    fn open(&self) -> Running {
        let exporter = Arc::clone(&self.exporter);
        let device: Arc<dyn BlockDevice> = Arc::clone(&self.metadata) as _;
        let metadata = Metadata::open(Arc::clone(&device), OpenMode::ReadWrite).unwrap();
        let options = EmbeddedOptions { metadata_cache: self.metadata_cache, ..EmbeddedOptions::default() };
        let data = Arc::clone(&self.data) as _;
        let pool = Arc::new(EmbeddedPool::with_options(metadata, device, data, exporter, &options).unwrap());
        *self.opened.borrow_mut() = Arc::downgrade(&pool);
        Exported::running(pool)
    }

    fn disk(&self, id: DeviceId, _path: &Path) -> Box<dyn Shown> {
        Exported::open(&self.exporter, id)
    }

    fn metadata_image(&self) -> Vec<u8> {
        self.metadata.to_bytes()
    }

    fn habits(&self) -> Habits {
        Exported::HABITS
    }
}

struct Files {
    exporter: Arc<DirectExporter>,
    dir: tempfile::TempDir,
    metadata_cache: ByteCount,
}

impl Files {
    fn new(metadata_cache: ByteCount) -> Self {
        let dir = tempfile::tempdir().unwrap();
        thinsnap_pool::create(&CreateOptions {
            paths: PoolPaths::in_dir(dir.path()),
            data_size: Some(ByteCount(POOL_BLOCKS * BLOCK)),
            metadata_size: Some(ByteCount(4 << 20)),
            block_size: BlockSize::DEFAULT,
        })
        .unwrap();
        Self { exporter: DirectExporter::new(), dir, metadata_cache }
    }
}

impl Ground for Files {
    fn open(&self) -> Running {
        let exporter: Arc<DirectExporter> = Arc::clone(&self.exporter);
        let options = EmbeddedOptions { metadata_cache: self.metadata_cache, ..EmbeddedOptions::default() };
        let paths = PoolPaths::in_dir(self.dir.path());
        Exported::running(thinsnap_pool::open_embedded(&paths, exporter, &options).unwrap())
    }

    fn disk(&self, id: DeviceId, _path: &Path) -> Box<dyn Shown> {
        Exported::open(&self.exporter, id)
    }

    fn habits(&self) -> Habits {
        Exported::HABITS
    }

    fn metadata_image(&self) -> Vec<u8> {
        std::fs::read(self.dir.path().join("metadata")).unwrap()
    }
}

struct Story<'a> {
    ground: &'a dyn Ground,
    /// `None` only between a closing and the opening after it: the files are locked.
    open_pool: Option<Running>,
    /// Bytes to write, cut from anywhere.
    noise: Vec<u8>,
    random: Random,
    expected: BTreeMap<DeviceId, Expected>,
    next_id: u32,
    /// How often a write found no room, and how often the direct way was open.
    full: usize,
    direct: usize,
}

impl<'a> Story<'a> {
    fn new(ground: &'a dyn Ground, seed: u64) -> Self {
        let open_pool = Some(ground.open());
        let mut random = Random::new(seed);
        let noise = (0..1 << 20).map(|_| u8::try_from(random.below(256)).unwrap()).collect();
        Self { ground, open_pool, noise, random, expected: BTreeMap::new(), next_id: 0, full: 0, direct: 0 }
    }

    fn pool(&self) -> &dyn ThinPool {
        &*self.open_pool.as_ref().expect("the pool is open between the steps").0
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..46 => self.write(),
            46..62 => self.read(),
            62..70 => self.discard(),
            70..78 => self.zero(),
            78..82 => self.flush(),
            82..86 => self.create(),
            86..92 => self.snapshot(),
            92..95 => self.delete_some(),
            95..99 => self.compare_usage(),
            _ => self.reopen(),
        }
    }

    fn some_device(&mut self) -> Option<DeviceId> {
        let ids: Vec<DeviceId> = self.expected.keys().copied().collect();
        (!ids.is_empty()).then(|| self.random.pick(&ids))
    }

    /// A range of a device, more often than not on borders that matter.
    fn range(&mut self) -> (u64, u64) {
        let unit = self.random.pick(&[1, 512, 4096, 4096, BLOCK]).max(self.ground.habits().unit);
        let start = self.random.below(SIZE / unit) * unit;
        let longest = self.random.pick(&[4096, 16 * 1024, 2 * BLOCK, 6 * BLOCK]);
        let len = (self.random.below(longest / unit + 1) * unit).max(unit);
        (start, len.min(SIZE - start))
    }

    fn disk(&self, id: DeviceId) -> Box<dyn Shown> {
        let path = self.pool().activate(id, ByteCount(SIZE), Access::ReadWrite).unwrap();
        self.ground.disk(id, &path)
    }

    fn write(&mut self) {
        let Some(id) = self.some_device() else { return self.create() };
        let (offset, len) = self.range();
        let from = self.random.below(self.noise.len() as u64 - len);
        let bytes = self.noise[range_of(from, len)].to_vec();
        let disk = self.disk(id);
        if self.random.chance(50) && disk.write_directly(&bytes, offset) {
            self.direct += 1;
        } else if let Err(e) = disk.write(&bytes, offset) {
            assert_eq!(e.kind(), ErrorKind::OutOfDataSpace, "{e}");
            self.full += 1;
            if !self.ground.habits().writes_are_whole {
                return self.give_up(id, disk, &bytes, offset);
            }
            drop(disk);
            return self.make_room();
        }
        let device = self.expected.get_mut(&id).unwrap();
        device.bytes[range_of(offset, len)].copy_from_slice(&bytes);
        for block in offset / BLOCK..(offset + len).div_ceil(BLOCK) {
            device.mapped.insert(block);
            device.own.insert(block);
        }
    }

    fn read(&mut self) {
        let Some(id) = self.some_device() else { return };
        let (offset, len) = self.range();
        let mut bytes = vec![0xee; usize::try_from(len).unwrap()];
        let disk = self.disk(id);
        if self.random.chance(50) && disk.read_directly(&mut bytes, offset) {
            self.direct += 1;
        } else {
            disk.read(&mut bytes, offset);
        }
        assert!(bytes == self.expected[&id].bytes[range_of(offset, len)], "device {id}: {len} bytes at {offset}");
    }

    fn discard(&mut self) {
        let Some(id) = self.some_device() else { return };
        let (offset, len) = self.range();
        self.disk(id).discard(offset, len);
        self.expect_unmapped(id, offset, len);
    }

    fn zero(&mut self) {
        let Some(id) = self.some_device() else { return };
        let (offset, len) = self.range();
        let disk = self.disk(id);
        if let Err(e) = disk.zero(offset, len) {
            assert_eq!(e.kind(), ErrorKind::OutOfDataSpace, "{e}");
            self.full += 1;
            return self.give_up(id, disk, &vec![0; usize::try_from(len).unwrap()], offset);
        }
        let unmap = self.ground.habits().zeroes_unmap;
        let device = self.expected.get_mut(&id).unwrap();
        device.bytes[range_of(offset, len)].fill(0);
        // Pieces of mapped blocks were written, whole blocks were unmapped.
        for block in offset / BLOCK..(offset + len).div_ceil(BLOCK) {
            if !unmap {
                device.mapped.insert(block);
            }
            if device.mapped.contains(&block) {
                device.own.insert(block);
            }
        }
        if unmap {
            self.expect_unmapped(id, offset, len);
        }
    }

    /// A write that found no room may have done some of its work: old or new it must be, and then the device goes, and
    /// others until there is room.
    fn give_up(&mut self, id: DeviceId, disk: Box<dyn Shown>, new: &[u8], offset: u64) {
        let mut bytes = vec![0xee; new.len()];
        disk.read(&mut bytes, offset);
        let old = &self.expected[&id].bytes[range_of(offset, new.len() as u64)];
        assert!(bytes.iter().zip(old.iter().zip(new)).all(|(now, (old, new))| now == old || now == new));
        drop(disk);
        self.delete(id);
        self.make_room();
    }

    fn expect_unmapped(&mut self, id: DeviceId, offset: u64, len: u64) {
        let ends = self.ground.habits().ends_unmap;
        let device = self.expected.get_mut(&id).unwrap();
        let end = offset + len;
        let last = if ends && end == SIZE { end.div_ceil(BLOCK) } else { end / BLOCK };
        for block in offset.div_ceil(BLOCK)..last {
            device.mapped.remove(&block);
            device.own.remove(&block);
            device.bytes[range_of(block * BLOCK, BLOCK.min(SIZE - block * BLOCK))].fill(0);
        }
    }

    fn flush(&mut self) {
        let Some(id) = self.some_device() else { return };
        self.disk(id).flush();
    }

    fn create(&mut self) {
        if self.expected.len() >= DEVICES_MAX {
            return;
        }
        let id = self.new_id();
        self.pool().create_thin(id).unwrap();
        let bytes = vec![0; usize::try_from(SIZE).unwrap()];
        self.expected.insert(id, Expected { bytes, mapped: BTreeSet::new(), own: BTreeSet::new() });
    }

    fn snapshot(&mut self) {
        if self.expected.len() >= DEVICES_MAX {
            return self.delete_some();
        }
        let Some(origin) = self.some_device() else { return };
        let id = self.new_id();
        self.pool().create_snap(id, origin).unwrap();
        let copy = Expected { own: BTreeSet::new(), ..self.expected[&origin].clone() };
        self.expected.insert(id, copy);
    }

    fn delete_some(&mut self) {
        if let Some(id) = self.some_device() {
            self.delete(id);
        }
    }

    fn delete(&mut self, id: DeviceId) {
        self.pool().delete(id).unwrap();
        self.expected.remove(&id);
    }

    /// Deletes devices until the pool has a few free blocks.
    fn make_room(&mut self) {
        while self.pool().status().unwrap().data.free().0 < 12 * BLOCK && !self.expected.is_empty() {
            self.delete_some();
        }
    }

    fn new_id(&mut self) -> DeviceId {
        self.next_id += 1;
        DeviceId::new(self.next_id).unwrap()
    }

    fn compare_usage(&mut self) {
        let Some(id) = self.some_device() else { return };
        let device = &self.expected[&id];
        let usage = self.pool().usage(id).unwrap();
        assert_eq!(usage.mapped.0 / BLOCK, device.mapped.len() as u64, "mapped blocks of device {id}");
        assert_eq!(usage.written.0 / BLOCK, device.own.len() as u64, "written blocks of device {id}");
        assert_eq!(self.pool().written(id).unwrap(), usage.written);
    }

    fn reopen(&mut self) {
        self.close();
        let image = self.ground.metadata_image();
        assert_thin_check_accepts(&image, "after a reopening");
        assert_sound(&image, "after a reopening");
        self.open_pool = Some(self.ground.open());
        self.compare_all();
    }

    fn close(&mut self) {
        let (_, close) = self.open_pool.take().expect("the pool is open between the steps");
        close();
    }

    fn compare_all(&mut self) {
        let ids: Vec<DeviceId> = self.expected.keys().copied().collect();
        assert_eq!(self.pool().devices().unwrap(), ids);
        for id in ids {
            let mut bytes = vec![0xee; usize::try_from(SIZE).unwrap()];
            self.disk(id).read(&mut bytes, 0);
            let model = &self.expected[&id].bytes;
            let different = || bytes.iter().zip(model).position(|(a, b)| a != b);
            assert!(bytes == *model, "device {id} differs from its model at {:?}", different());
        }
    }
}

fn range_of(offset: u64, len: u64) -> std::ops::Range<usize> {
    usize::try_from(offset).unwrap()..usize::try_from(offset + len).unwrap()
}

/// The data file as an exporter has it.
fn data_file(volume: &dyn Volume) -> File {
    File::options().read(true).write(true).open(format!("/proc/self/fd/{}", volume.data_fd())).unwrap()
}

fn write_directly(volume: &dyn Volume, bytes: &[u8], offset: u64) -> bool {
    let mut extents = Extents::default();
    let len = u32::try_from(bytes.len()).unwrap();
    let Some(token) = volume.begin_direct(Direction::Write, offset, len, &mut extents) else { return false };
    let file = data_file(volume);
    let mut done = 0;
    for extent in extents.as_slice() {
        let end = done + usize::try_from(extent.len).unwrap();
        file.write_all_at(&bytes[done..end], extent.offset.expect("a write has a place for every byte")).unwrap();
        done = end;
    }
    assert_eq!(done, bytes.len());
    volume.end_direct(token);
    true
}

fn read_directly(volume: &dyn Volume, bytes: &mut [u8], offset: u64) -> bool {
    let mut extents = Extents::default();
    let len = u32::try_from(bytes.len()).unwrap();
    let Some(token) = volume.begin_direct(Direction::Read, offset, len, &mut extents) else { return false };
    let file = data_file(volume);
    let mut done = 0;
    for extent in extents.as_slice() {
        let end = done + usize::try_from(extent.len).unwrap();
        match extent.offset {
            Some(place) => file.read_exact_at(&mut bytes[done..end], place).unwrap(),
            None => bytes[done..end].fill(0),
        }
        done = end;
    }
    assert_eq!(done, bytes.len());
    volume.end_direct(token);
    true
}

fn run(ground: &dyn Ground, seed: u64, steps: usize) -> Story<'_> {
    let mut story = Story::new(ground, seed);
    for number in 0..steps {
        let step = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| story.step()));
        assert!(step.is_ok(), "seed {seed}: step {number} failed");
    }
    story.compare_all();
    story.reopen();
    story
}

#[test]
fn ten_thousand_random_operations_agree_with_a_plain_model() {
    for seed in [1, 2, 3, 4] {
        let ground = Memory::new(METADATA_CACHE_DEFAULT);
        let story = run(&ground, seed, 2_500);
        assert!(story.full > 0, "seed {seed}: the pool never ran full, the story is too tame");
    }
}

#[test]
fn a_pool_that_remembers_next_to_nothing_agrees_with_a_plain_model() {
    for seed in [5, 6] {
        let ground = Memory::new(TINY_CACHE);
        let story = run(&ground, seed, 2_500);
        let memory = ground.opened.borrow().upgrade().expect("the story keeps it open").metadata_memory().unwrap();
        drop(story);
        let known = memory.mappings.0 + memory.nodes.0;
        assert!(known <= TINY_CACHE.0, "{memory:?} is known to a pool that may keep {TINY_CACHE}");
    }
}

#[test]
fn random_operations_on_files_agree_with_a_plain_model() {
    for (metadata_cache, direct_min) in [(METADATA_CACHE_DEFAULT, 100), (TINY_CACHE, 10)] {
        let ground = Files::new(metadata_cache);
        let story = run(&ground, 11, 1_500);
        assert!(story.direct > direct_min, "the direct way was open {} times only", story.direct);
    }
}
