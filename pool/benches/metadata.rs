//! Costs of the metadata alone, in memory: look-up, insertion, snapshot, commit, deletion; short and long chains.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use thinsnap_pool::{BlockDevice, BlockSize, DeviceId, FormatOptions, MemoryDevice, Metadata, OpenMode, VirtualBlock};

const METADATA_BLOCKS: u64 = 16_384;
/// 100 GiB of 64 KiB blocks.
const DATA_BLOCKS: u64 = 1_638_400;
/// 6.25 GiB mapped in the origin.
const MAPPED: u64 = 100_000;

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
    let run = metadata.reserve_data(len).expect("space");
    metadata.insert(id(device), VirtualBlock(start), run).expect("space");
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

fn benches(criterion: &mut Criterion) {
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
        group.bench_function("break sharing of a block", |bencher| {
            let (device, mut metadata) = fresh();
            let mut block = 0;
            bencher.iter_custom(|rounds| {
                let mut spent = std::time::Duration::ZERO;
                for round in 0..rounds {
                    block = (block + 7919) % MAPPED;
                    let start = std::time::Instant::now();
                    insert(&mut metadata, depth, block, 1);
                    spent += start.elapsed();
                    if round % 64 == 63 {
                        commit(&device, &mut metadata);
                    }
                }
                commit(&device, &mut metadata);
                spent
            });
        });
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
    config = Criterion::default().sample_size(10).measurement_time(std::time::Duration::from_secs(1))
        .warm_up_time(std::time::Duration::from_millis(200));
    targets = benches
}
criterion_main!(metadata);
