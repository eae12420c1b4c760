//! Costs of the metadata alone, in memory: each change by itself, short and long chains; a tebibyte opened.

use std::hint::black_box;
use std::io::Cursor;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use thinsnap_pool::{
    BlockDevice, BlockSize, DeviceId, FormatOptions, MemoryDevice, Metadata, OpenMode, RestoreOptions, VirtualBlock,
    restore,
};

const METADATA_BLOCKS: u64 = 16_384;
/// 100 GiB of 64 KiB blocks.
const DATA_BLOCKS: u64 = 1_638_400;
/// 6.25 GiB mapped in the origin.
const MAPPED: u64 = 100_000;
/// Changes between two commits, where each change is timed by itself.
const CHANGES: u64 = 64;
/// Blocks of a discard: 4 MiB.
const DISCARD: u64 = 64;

fn id(number: u32) -> DeviceId {
    DeviceId::new(number).expect("a small number")
}

fn commit(device: &MemoryDevice, metadata: &mut Metadata) {
    if let Some(frozen) = metadata.freeze().expect("a sound pool") {
        frozen.write(device).expect("memory");
        let freed = metadata.committed(frozen);
        metadata.release_data(&freed);
    }
}

fn insert(metadata: &mut Metadata, device: u32, start: u64, len: u64) {
    let mut done = 0;
    while done < len {
        let run = metadata.reserve_data(len - done).expect("space");
        metadata.insert(id(device), VirtualBlock(start + done), run).expect("space");
        done += run.len;
    }
}

/// A pool whose device `depth` is the last of a chain of snapshots, a block changed in each.
fn chain(depth: u32) -> (Arc<MemoryDevice>, Metadata) {
    let device = Arc::new(MemoryDevice::new(METADATA_BLOCKS * 4096));
    let options = FormatOptions {
        block_size: BlockSize::DEFAULT,
        data_blocks: DATA_BLOCKS,
        metadata_blocks: METADATA_BLOCKS,
        identity: [1; 16],
    };
    Metadata::format(&*device, &options).expect("sizes that work");
    let below = Arc::clone(&device) as Arc<dyn BlockDevice>;
    let mut metadata = Metadata::open(below, OpenMode::ReadWrite).expect("a new pool");
    metadata.create_thin(id(0)).expect("an empty pool");
    insert(&mut metadata, 0, 0, MAPPED);
    for number in 1..=depth {
        metadata.create_snap(id(number), id(number - 1)).expect("space");
        insert(&mut metadata, number, u64::from(number) * 199 % MAPPED, 1);
        commit(&device, &mut metadata);
    }
    (device, metadata)
}

/// A pool in use, and what is changed in it next.
struct Work {
    device: Arc<MemoryDevice>,
    metadata: Metadata,
    id: u32,
    changes: u64,
}

impl Work {
    /// A block of the mapped ones, each time another one.
    fn next_block(&mut self) -> u64 {
        self.changes += 1;
        self.changes * 7919 % MAPPED
    }

    fn commit(&mut self) {
        commit(&self.device, &mut self.metadata);
    }

    /// The time of `rounds` changes, without that of the commits between them.
    fn changes(&mut self, rounds: u64, mut change: impl FnMut(&mut Self, u64) -> Duration) -> Duration {
        let mut spent = Duration::ZERO;
        for round in 0..rounds {
            let block = self.next_block();
            spent += change(self, block);
            if round % CHANGES == CHANGES - 1 {
                self.commit();
            }
        }
        self.commit();
        spent
    }

    fn map(&mut self, block: u64) -> Duration {
        let start = Instant::now();
        insert(&mut self.metadata, self.id, block, 1);
        start.elapsed()
    }

    fn insert(&mut self, rounds: u64) -> Duration {
        // Far behind what is mapped, 50,000 holes; they are emptied when they are full.
        let holes = VirtualBlock(10 * MAPPED)..VirtualBlock(11 * MAPPED);
        let mut filled = 0;
        self.changes(rounds, |work, block| {
            filled += 1;
            if filled > MAPPED / 2 {
                work.metadata.remove_range(id(work.id), holes.start..holes.end).expect("a sound pool");
                work.commit();
                filled = 1;
            }
            work.map(holes.start.0 + block)
        })
    }

    fn snapshot(&mut self, rounds: u64) -> Duration {
        let new = id(self.id + 1);
        self.changes(rounds, |work, _| {
            let start = Instant::now();
            work.metadata.create_snap(new, id(work.id)).expect("space");
            let spent = start.elapsed();
            while !work.metadata.delete_step(new, 64).expect("a sound pool") {}
            spent
        })
    }

    fn commits(&mut self, rounds: u64) -> Duration {
        let mut spent = Duration::ZERO;
        for _ in 0..rounds {
            for _ in 0..CHANGES {
                let block = self.next_block();
                self.map(block);
            }
            let start = Instant::now();
            self.commit();
            spent += start.elapsed();
        }
        spent
    }

    fn discard(&mut self, rounds: u64) -> Duration {
        self.changes(rounds, |work, block| {
            let block = block.min(MAPPED - DISCARD);
            let start = Instant::now();
            work.metadata.remove_range(id(work.id), VirtualBlock(block)..VirtualBlock(block + DISCARD)).expect("space");
            let spent = start.elapsed();
            work.commit();
            insert(&mut work.metadata, work.id, block, DISCARD);
            spent
        })
    }
}

/// The time of so many rounds.
type Measure = fn(&mut Work, u64) -> Duration;

/// The metadata of a pool with one volume of 1 TiB, every block of it mapped.
fn tebibyte() -> Arc<MemoryDevice> {
    let blocks = (1_u64 << 40) / BlockSize::DEFAULT.bytes();
    let xml = format!(
        "<superblock uuid=\"\" time=\"0\" transaction=\"0\" version=\"2\" data_block_size=\"128\" \
         nr_data_blocks=\"{blocks}\"><device dev_id=\"1\" mapped_blocks=\"{blocks}\" transaction=\"0\" creation_time=\"0\" \
         snap_time=\"0\"><range_mapping origin_begin=\"0\" data_begin=\"0\" length=\"{blocks}\" time=\"0\"/></device></superblock>"
    );
    let device = Arc::new(MemoryDevice::new(72_000 * 4096));
    restore(&mut Cursor::new(xml), &*device, &RestoreOptions { identity: [1; 16] }).expect("a dump");
    device
}

fn benches(criterion: &mut Criterion) {
    let device = tebibyte();
    let mut group = criterion.benchmark_group("a tebibyte");
    group.bench_function("open", |bencher| {
        bencher.iter(|| {
            let below = Arc::clone(&device) as Arc<dyn BlockDevice>;
            black_box(Metadata::open(below, OpenMode::ReadWrite).expect("a sound pool"))
        });
    });
    group.finish();
    drop(device);
    for depth in [1, 500] {
        let (device, _) = chain(depth);
        let image = device.to_bytes();
        let fresh = || {
            let device = Arc::new(MemoryDevice::from_bytes(image.clone()));
            let below = Arc::clone(&device) as Arc<dyn BlockDevice>;
            (Arc::clone(&device), Metadata::open(below, OpenMode::ReadWrite).expect("a sound pool"))
        };
        let mut group = criterion.benchmark_group(format!("chain of {depth}"));

        let (_, metadata) = fresh();
        let mut block = 0;
        group.bench_function("look up a block", |bencher| {
            bencher.iter(|| {
                block = (block + 7919) % MAPPED;
                black_box(metadata.lookup(id(depth), VirtualBlock(block)).expect("a sound pool"))
            });
        });
        group.bench_function("open", |bencher| bencher.iter_batched(|| (), |()| fresh(), BatchSize::LargeInput));
        let work = || {
            let (device, metadata) = fresh();
            Work { device, metadata, id: depth, changes: 0 }
        };
        group.bench_function("break sharing of a block", |bencher| {
            let mut work = work();
            bencher.iter_custom(|rounds| work.changes(rounds, Work::map));
        });
        let each: [(&str, Measure); 4] = [
            ("insert a block", Work::insert),
            ("snapshot", Work::snapshot),
            ("commit of 64 changes", Work::commits),
            ("discard 64 blocks", Work::discard),
        ];
        for (name, run) in each {
            let mut work = work();
            group.bench_function(name, |bencher| bencher.iter_custom(|rounds| run(&mut work, rounds)));
        }
        group.bench_function("snapshot, first write, commit, delete, commit", |bencher| {
            let (device, mut metadata) = fresh();
            let new = depth + 1;
            bencher.iter(|| {
                metadata.create_snap(id(new), id(depth)).expect("space");
                insert(&mut metadata, new, 50_000, 1);
                commit(&device, &mut metadata);
                while !metadata.delete_step(id(new), 64).expect("a sound pool") {
                    commit(&device, &mut metadata);
                }
                commit(&device, &mut metadata);
            });
        });
        group.bench_function("append a run of 16 blocks", |bencher| {
            let (device, mut metadata) = fresh();
            let end = VirtualBlock(MAPPED);
            let mut next = MAPPED;
            bencher.iter(|| {
                insert(&mut metadata, depth, next, 16);
                next += 16;
                if next > MAPPED + 50_000 {
                    metadata.remove_range(id(depth), end..VirtualBlock(next)).expect("space");
                    commit(&device, &mut metadata);
                    next = MAPPED;
                }
            });
        });
        group.finish();
    }
}

criterion_group! {
    name = metadata;
    config = Criterion::default().sample_size(10).measurement_time(Duration::from_secs(1))
        .warm_up_time(Duration::from_millis(200));
    targets = benches
}
criterion_main!(metadata);
