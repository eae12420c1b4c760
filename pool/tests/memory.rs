//! What a pool takes of memory, counted by the allocator, and what opening a large one reads.
#![expect(clippy::unwrap_used, reason = "what supports a test may panic where a test would")]

mod support {
    pub mod direct_exporter;
    #[expect(dead_code, reason = "other tests use the rest")]
    pub mod random;
}

use std::alloc::{GlobalAlloc, Layout, System};
use std::fmt::Write;
use std::io::Cursor;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use support::direct_exporter::{DirectExporter, Opened};
use support::random::Random;
use thinsnap_pool::{
    Access, BlockDevice, BlockSize, ByteCount, DeviceId, Direction, EmbeddedOptions, EmbeddedPool, Extents,
    FormatOptions, METADATA_CACHE_DEFAULT, MemoryDevice, Metadata, OpenMode, RestoreOptions, Result, ThinPool, Volume,
    restore,
};

/// Counts the bytes that are allocated at this moment.
struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator as it came; counting touches no memory of theirs.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(place, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on. Not by way of `alloc`: a large device's pages stay untouched.
        unsafe { System.alloc_zeroed(layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocated() -> usize {
    ALLOCATED.load(Ordering::Relaxed)
}

/// The allocator counts for all threads: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

const BLOCK: u64 = 64 * 1024;

/// Data that nobody looks at: it takes every write, reads as zeroes, and has a descriptor so that the direct way is open.
struct Blank(u64);

impl BlockDevice for Blank {
    fn size(&self) -> u64 {
        self.0
    }

    fn read_at(&self, buf: &mut [u8], _offset: u64) -> Result<()> {
        buf.fill(0);
        Ok(())
    }

    fn write_at(&self, _buf: &[u8], _offset: u64) -> Result<()> {
        Ok(())
    }

    fn discard(&self, _offset: u64, _len: u64) -> Result<()> {
        Ok(())
    }

    fn write_zeroes(&self, _offset: u64, _len: u64) -> Result<()> {
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn raw_fd(&self) -> Option<RawFd> {
        Some(std::io::stdin().as_raw_fd())
    }
}

/// Metadata that counts what is read of it.
struct Counted {
    device: MemoryDevice,
    reads: AtomicU64,
}

impl Counted {
    fn new(device: MemoryDevice) -> Arc<Self> {
        Arc::new(Self { device, reads: AtomicU64::new(0) })
    }

    fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }
}

impl BlockDevice for Counted {
    fn size(&self) -> u64 {
        self.device.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.device.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.device.write_at(buf, offset)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.device.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.device.write_zeroes(offset, len)
    }

    fn flush(&self) -> Result<()> {
        self.device.flush()
    }
}

fn id(number: u32) -> DeviceId {
    DeviceId::new(number).unwrap()
}

/// Metadata of a pool of `blocks` data blocks with one device, whose mappings are given as a dump has them.
fn restored(metadata_blocks: u64, blocks: u64, mapped: u64, mappings: &str) -> Arc<Counted> {
    let xml = format!(
        "<superblock uuid=\"\" time=\"0\" transaction=\"0\" version=\"2\" data_block_size=\"128\" \
         nr_data_blocks=\"{blocks}\"><device dev_id=\"1\" mapped_blocks=\"{mapped}\" transaction=\"0\" \
         creation_time=\"0\" snap_time=\"0\">{mappings}</device></superblock>"
    );
    let device = MemoryDevice::new(metadata_blocks * 4096);
    restore(&mut Cursor::new(xml), &device, &RestoreOptions { identity: [7; 16] }).unwrap();
    Counted::new(device)
}

struct Opening {
    pool: EmbeddedPool,
    exporter: Arc<DirectExporter>,
}

fn opened(device: &Arc<Counted>, data_blocks: u64, metadata_cache: ByteCount) -> Opening {
    let below: Arc<dyn BlockDevice> = Arc::clone(device) as _;
    let metadata = Metadata::open(Arc::clone(&below), OpenMode::ReadWrite).unwrap();
    let exporter = DirectExporter::new();
    let options = EmbeddedOptions { metadata_cache, ..EmbeddedOptions::default() };
    let data = Arc::new(Blank(data_blocks * BLOCK));
    let shown = Arc::clone(&exporter) as _;
    Opening { pool: EmbeddedPool::with_options(metadata, below, data, shown, &options).unwrap(), exporter }
}

impl Opening {
    fn activate(&self, number: u32, blocks: u64) -> Opened {
        self.pool.activate(id(number), ByteCount(blocks * BLOCK), Access::ReadWrite).unwrap();
        self.exporter.open(id(number))
    }
}

/// Where the direct way says that a block stands, if it says anything.
fn place(volume: &dyn Volume, block: u64) -> Option<u64> {
    let mut extents = Extents::default();
    let token = volume.begin_direct(Direction::Read, block * BLOCK, 4096, &mut extents)?;
    volume.end_direct(token);
    Some(extents.as_slice()[0].offset.expect("it is mapped") / BLOCK)
}

fn read(volume: &dyn Volume, block: u64) {
    volume.read_at(&mut [0; 4096], block * BLOCK).unwrap();
}

/// A terabyte, fully mapped: all bitmaps are read, of the trees of mappings nothing but what is asked for.
#[test]
fn a_tebibyte_opens_with_a_read_for_each_bitmap_and_a_byte_or_so_for_each_block() {
    let _alone = alone();
    const BLOCKS: u64 = (1 << 40) / BLOCK;
    let range = format!("<range_mapping origin_begin=\"0\" data_begin=\"0\" length=\"{BLOCKS}\" time=\"0\"/>");
    let device = restored(72_000, BLOCKS, BLOCKS, &range);
    let (reads, before) = (device.reads(), allocated());
    let opening = opened(&device, BLOCKS, METADATA_CACHE_DEFAULT);
    let (reads, taken) = (device.reads() - reads, allocated() - before);
    // 1,029 bitmaps of 16,320 blocks for the data, 5 for the metadata.
    assert!(reads <= 1_034 + 30, "{reads} blocks are read");
    assert!(taken as u64 <= BLOCKS * 5 / 4, "{taken} bytes are taken");

    let (reads, before) = (device.reads(), allocated());
    let volume = opening.activate(1, BLOCKS);
    assert_eq!(device.reads() - reads, 0, "to activate it reads nothing");
    let mut random = Random::new(1);
    for _ in 0..200 {
        let block = random.below(BLOCKS);
        let reads = device.reads();
        read(&*volume, block);
        assert!(device.reads() - reads <= 6, "a path to a leaf, and the two neighbours of that");
        assert_eq!(place(&*volume, block), Some(block));
    }
    for chunk in 0..BLOCKS / 512 {
        read(&*volume, chunk * 512);
    }
    let memory = opening.pool.metadata_memory().unwrap();
    assert_eq!(memory.mappings, ByteCount(0), "a chunk that is one run stands in its slot");
    let taken = (allocated() - before) as u64 - memory.nodes.0;
    assert!(taken <= 400 << 10, "{taken} bytes for 32,768 chunks, all of them known");
}

/// A device whose every block is an extent of its own.
fn scattered(blocks: u64, every: u64, data_blocks: u64) -> (Arc<Counted>, Vec<u64>) {
    let mut random = Random::new(7);
    let mut places: Vec<u64> = (0..blocks).collect();
    for at in (1..places.len()).rev() {
        places.swap(at, usize::try_from(random.below(at as u64 + 1)).unwrap());
    }
    let mut xml = String::new();
    for (block, place) in (0..).map(|n| n * every).zip(&places) {
        write!(xml, "<single_mapping origin_block=\"{block}\" data_block=\"{place}\" time=\"0\"/>").unwrap();
    }
    (restored(16_384, data_blocks, blocks, &xml), places)
}

#[test]
fn a_mapped_extent_costs_at_most_16_bytes_however_dense_they_lie() {
    let _alone = alone();
    const EXTENTS: u64 = 60_000;
    // Down to one in each chunk.
    for every in [1, 2, 3, 7, 20, 50, 52, 64, 74, 86, 103, 128, 171, 256, 512] {
        let (device, places) = scattered(EXTENTS, every, EXTENTS);
        let opening = opened(&device, EXTENTS, METADATA_CACHE_DEFAULT);
        let before = allocated();
        let volume = opening.activate(1, EXTENTS * every);
        let nodes = opening.pool.metadata_memory().unwrap().nodes.0;
        for block in (0..EXTENTS).map(|n| n * every) {
            if place(&*volume, block).is_none() {
                read(&*volume, block);
            }
        }
        let memory = opening.pool.metadata_memory().unwrap();
        let (given, nodes) = ((allocated() - before) as u64, memory.nodes.0 - nodes);
        let slots = EXTENTS * every / 512 * 8;
        let counted = memory.mappings.0 + nodes + slots;
        assert!(given.abs_diff(counted) <= counted / 10 + (16 << 10), "{memory:?}: the allocator has given {given}");
        let taken = (memory.mappings.0 + slots).max(given - nodes);
        // The last segment may have been begun for one record.
        let limit = 16 * EXTENTS + (64 << 10);
        let each = taken as f64 / EXTENTS as f64;
        println!("an extent in every {every} blocks: {each:.1} bytes each");
        assert!(taken <= limit, "an extent in every {every} blocks: {each} bytes each");
        for (n, expected) in (0..).zip(&places) {
            assert_eq!(place(&*volume, n * every), Some(*expected));
        }
    }
}

#[test]
fn a_cap_holds_under_work_on_five_times_as_much() {
    let _alone = alone();
    const EXTENTS: u64 = 200_000;
    const CAP: ByteCount = ByteCount(1 << 20);
    const DATA_BLOCKS: u64 = EXTENTS + 50_000;
    let (device, places) = scattered(EXTENTS, 3, DATA_BLOCKS);
    let opening = opened(&device, DATA_BLOCKS, CAP);
    let volume = opening.activate(1, EXTENTS * 3);
    let mut random = Random::new(3);
    let (mut most, mut cap_most) = (0, 0);
    let before = allocated();
    for step in 0..40_000 {
        let n = random.below(EXTENTS);
        if step % 8 == 0 {
            // A hole beside it gets a block, which the tree finds a leaf for.
            volume.write_at(&[1; 4096], (n * 3 + 1) * BLOCK).unwrap();
        }
        read(&*volume, n * 3);
        if let Some(found) = place(&*volume, n * 3) {
            assert_eq!(found, places[usize::try_from(n).unwrap()]);
        }
        most = most.max(allocated().saturating_sub(before) as u64);
        let memory = opening.pool.metadata_memory().unwrap();
        cap_most = cap_most.max(memory.mappings.0 + memory.nodes.0);
    }
    assert!(cap_most <= CAP.0, "{cap_most} bytes were kept");
    // Beside the cap: as much again for what waits for a commit, which is copied while it is written, and the slots.
    assert!(most <= 4 * CAP.0, "{most} bytes were taken");
}

#[test]
fn an_idle_volume_takes_less_than_a_quarter_of_64_kib() {
    let _alone = alone();
    const VOLUMES: u32 = 1_000;
    const SIZE_BLOCKS: u64 = (10 << 30) / BLOCK;
    let device = MemoryDevice::new(16_384 * 4096);
    let data_blocks = 100_000;
    let options =
        FormatOptions { block_size: BlockSize::DEFAULT, data_blocks, metadata_blocks: 16_384, identity: [7; 16] };
    Metadata::format(&device, &options).unwrap();
    let opening = opened(&Counted::new(device), data_blocks, METADATA_CACHE_DEFAULT);
    // A base device with what a file system of 10 GiB has: something in each of 80 groups.
    opening.pool.create_thin(id(0)).unwrap();
    let base = opening.activate(0, SIZE_BLOCKS);
    for group in 0..80 {
        base.write_at(&[1; 4096], group * SIZE_BLOCKS / 80 * BLOCK).unwrap();
    }
    drop(base);
    opening.pool.deactivate(id(0)).unwrap();
    for number in 1..=VOLUMES {
        opening.pool.create_snap(id(number), id(0)).unwrap();
    }
    let nodes = opening.pool.metadata_memory().unwrap().nodes.0;
    let before = allocated();
    let volumes: Vec<Opened> = (1..=VOLUMES)
        .map(|number| {
            let volume = opening.activate(number, SIZE_BLOCKS);
            // What a mount reads and writes: the start, the groups, a journal, the end.
            for group in 0..80 {
                read(&*volume, group * SIZE_BLOCKS / 80);
            }
            for block in [0, SIZE_BLOCKS / 2, SIZE_BLOCKS / 2 + 1] {
                volume.write_at(&[2; 4096], block * BLOCK).unwrap();
            }
            read(&*volume, SIZE_BLOCKS - 1);
            volume
        })
        .collect();
    opening.pool.flush(id(1)).unwrap();
    let memory = opening.pool.metadata_memory().unwrap();
    let taken = (allocated() - before) as u64 - memory.nodes.0.saturating_sub(nodes);
    let each = taken / u64::from(VOLUMES);
    assert!(each <= 16 << 10, "{each} bytes for an idle volume");
    drop(volumes);
}
