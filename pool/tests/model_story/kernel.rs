//! The same story with the kernel's dm-thin as the engine.

use std::path::Path;
use std::sync::Arc;

use thinsnap_pool::{
    BlockSize, ByteCount, CreateOptions, DeviceId, Error, ErrorKind, KernelOptions, PoolPaths, Result, open_kernel,
};

use crate::host_tools::leftovers;
use crate::support::disk::Disk;
use crate::support::kernel_stage::skipped_without_dm;
use crate::support::stage::OpenDisk;
use crate::{BLOCK, Ground, Habits, POOL_BLOCKS, Running, Shown, run};

struct InKernel {
    dir: tempfile::TempDir,
}

impl InKernel {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        thinsnap_pool::create(&CreateOptions {
            paths: PoolPaths::in_dir(dir.path()),
            data_size: Some(ByteCount(POOL_BLOCKS * BLOCK)),
            metadata_size: Some(ByteCount(4 << 20)),
            block_size: BlockSize::DEFAULT,
        })
        .unwrap();
        Self { dir }
    }
}

impl Ground for InKernel {
    fn open(&self) -> Running {
        let options = KernelOptions { run_dir: self.dir.path().join("run"), ..KernelOptions::default() };
        let pool = open_kernel(&PoolPaths::in_dir(self.dir.path()), &options).unwrap();
        let closed = Arc::clone(&pool);
        (pool, Box::new(move || closed.close().unwrap()))
    }

    fn disk(&self, _id: DeviceId, path: &Path) -> Box<dyn Shown> {
        Box::new(InHost(Disk::open(path)))
    }

    fn metadata_image(&self) -> Vec<u8> {
        std::fs::read(self.dir.path().join("metadata")).unwrap()
    }

    fn habits(&self) -> Habits {
        Habits { unit: 512, zeroes_unmap: false, ends_unmap: false, writes_are_whole: false }
    }
}

struct InHost(Disk);

fn told(done: std::io::Result<()>) -> Result<()> {
    done.map_err(|e| {
        assert_eq!(e.kind(), std::io::ErrorKind::StorageFull, "{e}");
        Error::with_source(ErrorKind::OutOfDataSpace, "write", e)
    })
}

impl Shown for InHost {
    fn read(&self, bytes: &mut [u8], offset: u64) {
        self.0.read(bytes, offset);
    }

    fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        told(self.0.try_write(bytes, offset))
    }

    fn zero(&self, offset: u64, len: u64) -> Result<()> {
        told(self.0.try_zero(offset, len))
    }

    fn discard(&self, offset: u64, len: u64) {
        self.0.discard(offset, len);
    }

    fn flush(&self) {
        self.0.flush();
    }
}

#[test]
#[ignore = "make test-kernel runs it: it needs a kernel with dm-thin"]
fn root_random_operations_in_the_kernel_agree_with_a_plain_model() {
    if skipped_without_dm() {
        return;
    }
    let steps = std::env::var("THINSNAP_MODEL_STEPS").map_or(2_500, |steps| steps.parse().unwrap());
    let mut full = 0;
    for seed in [21, 22, 23, 24] {
        let ground = InKernel::new();
        let mut story = run(&ground, seed, steps / 4);
        full += story.full;
        story.close();
        drop(story);
        assert_eq!(leftovers(ground.dir.path()), Vec::<String>::new());
    }
    println!("{steps} operations; a write found no room {full} times");
    assert!(full > 0, "the pool never ran full, the stories are too tame");
}
