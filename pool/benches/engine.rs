//! Costs of the engine: where a block stands; provisioning and breaking sharing with the intent log and without.

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use thinsnap_pool::{
    Access, BlockDevice, BlockSize, ByteCount, DeviceId, Direction, EmbeddedOptions, EmbeddedPool, Exporter, Extents,
    FileDevice, FormatOptions, MemoryDevice, Metadata, OpenMode, Result, ThinPool, Volume,
};

const BLOCK: u64 = 64 * 1024;
/// 256 MiB of data.
const DATA_BLOCKS: u64 = 4096;
const DEVICE_BLOCKS: u64 = 1024;

/// Shows the one volume of a measurement to the measurement.
#[derive(Default)]
struct Bench {
    shown: Mutex<Option<(DeviceId, Arc<dyn Volume>)>>,
}

impl Exporter for Bench {
    fn attach(&self, id: DeviceId, volume: Arc<dyn Volume>, _size: ByteCount, _access: Access) -> Result<PathBuf> {
        *self.shown.lock().expect("one thread") = Some((id, volume));
        Ok(PathBuf::new())
    }

    fn resize(&self, _id: DeviceId, _size: ByteCount) -> Result<()> {
        Ok(())
    }

    fn detach(&self, _id: DeviceId) -> Result<bool> {
        *self.shown.lock().expect("one thread") = None;
        Ok(true)
    }

    fn path(&self, _id: DeviceId) -> Option<PathBuf> {
        Some(PathBuf::new())
    }

    fn attached(&self) -> Vec<(DeviceId, bool)> {
        self.shown.lock().expect("one thread").iter().map(|(id, _)| (*id, false)).collect()
    }

    fn shutdown(&self) -> Result<()> {
        *self.shown.lock().expect("one thread") = None;
        Ok(())
    }
}

struct Pool {
    pool: EmbeddedPool,
    volume: Arc<dyn Volume>,
    next: u32,
}

fn id(number: u32) -> DeviceId {
    DeviceId::new(number).expect("a small number")
}

impl Pool {
    fn new(log: Option<PathBuf>) -> Self {
        Self::on(Arc::new(MemoryDevice::new(DATA_BLOCKS * BLOCK)), log)
    }

    /// With data in a file, as an exporter has it.
    fn in_file(path: &Path) -> Self {
        Self::on(Arc::new(FileDevice::create(path, DATA_BLOCKS * BLOCK).expect("room on the tmpfs")), None)
    }

    fn on(data: Arc<dyn BlockDevice>, log: Option<PathBuf>) -> Self {
        let device: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::new(4096 * 4096));
        let options = FormatOptions {
            block_size: BlockSize::DEFAULT,
            data_blocks: DATA_BLOCKS,
            metadata_blocks: 4096,
            identity: [1; 16],
        };
        Metadata::format(&*device, &options).expect("sizes that work");
        let metadata = Metadata::open(Arc::clone(&device), OpenMode::ReadWrite).expect("a new pool");
        let exporter = Arc::new(Bench::default());
        let options = EmbeddedOptions { intent_log: log, ..EmbeddedOptions::default() };
        let pool = EmbeddedPool::with_options(metadata, device, data, Arc::clone(&exporter) as _, &options)
            .expect("a pool in memory");
        pool.create_thin(id(0)).expect("space");
        pool.activate(id(0), ByteCount(DEVICE_BLOCKS * BLOCK), Access::ReadWrite).expect("it exists");
        let volume = exporter.shown.lock().expect("one thread").clone().expect("it was just attached").1;
        Self { pool, volume, next: 1 }
    }

    /// The time of `rounds` writes of `bytes` into blocks in scattered order, `prepare` called before each pass over
    /// the device.
    fn writes(&mut self, rounds: u64, bytes: &[u8], prepare: fn(&mut Self)) -> Duration {
        let mut spent = Duration::ZERO;
        for round in 0..rounds {
            if round % DEVICE_BLOCKS == 0 {
                prepare(self);
            }
            let block = round * 389 % DEVICE_BLOCKS;
            let start = Instant::now();
            self.volume.write_at(bytes, block * BLOCK).expect("space");
            spent += start.elapsed();
        }
        spent
    }

    fn empty(&mut self) {
        self.volume.discard(0, DEVICE_BLOCKS * BLOCK).expect("a sound pool");
        self.volume.flush().expect("memory");
    }

    fn share(&mut self) {
        if self.next > 1 {
            self.pool.delete(id(self.next - 1)).expect("nobody has it open");
        }
        self.pool.create_snap(id(self.next), id(0)).expect("space");
        self.next += 1;
    }
}

fn benches(criterion: &mut Criterion) {
    // On the file system of the real log.
    let dir = tempfile::tempdir_in("/dev/shm").expect("a tmpfs");
    let mut group = criterion.benchmark_group("where a block stands");
    // One run over the volume, and every block a run of its own.
    for (name, stride) in [("in one run", 1), ("scattered", 389)] {
        let pool = Pool::in_file(&dir.path().join(name));
        for round in 0..DEVICE_BLOCKS {
            pool.volume.write_at(&[1; 4096], round * stride % DEVICE_BLOCKS * BLOCK).expect("space");
        }
        let mut block = 0;
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                block = (block + 7919) % DEVICE_BLOCKS;
                let mut extents = Extents::default();
                let token = pool.volume.begin_direct(Direction::Read, block * BLOCK, 4096, &mut extents);
                pool.volume.end_direct(token.expect("it was written"));
                black_box(extents)
            });
        });
    }
    group.finish();
    for logged in [false, true] {
        let mut group = criterion.benchmark_group(if logged { "with the intent log" } else { "without a log" });
        let log = |name: &str| logged.then(|| dir.path().join(name));
        group.bench_function("provision a block, 64 KiB written", |bencher| {
            let mut pool = Pool::new(log("whole"));
            let bytes = vec![1; usize::try_from(BLOCK).expect("64 KiB")];
            bencher.iter_custom(|rounds| pool.writes(rounds, &bytes, Pool::empty));
        });
        group.bench_function("break sharing, 4 KiB written", |bencher| {
            let mut pool = Pool::new(log("sharing"));
            let whole = vec![1; usize::try_from(BLOCK).expect("64 KiB")];
            pool.writes(DEVICE_BLOCKS, &whole, |_| ());
            bencher.iter_custom(|rounds| pool.writes(rounds, &[2; 4096], Pool::share));
        });
        group.finish();
    }
}

criterion_group! {
    name = engine;
    config = Criterion::default().sample_size(20).measurement_time(Duration::from_secs(3))
        .warm_up_time(Duration::from_millis(500));
    targets = benches
}
criterion_main!(engine);
