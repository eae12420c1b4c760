//! The kernel engine as a stage, on two files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use thinsnap_pool::{
    BlockSize, ByteCount, CreateOptions, DeviceId, Engine, KernelOptions, KernelPool, PoolPaths, ThinPool,
    choose_engine,
};

use crate::host_tools::{leftovers, run};
use crate::support::disk::Disk;
use crate::support::stage::{BLOCK, DATA_SIZE, OpenDisk, Stage};

/// Says why a test of the kernel engine cannot run here, unless it can.
pub(crate) fn skipped_without_dm() -> bool {
    match choose_engine(Engine::Kernel) {
        Ok(_) => false,
        Err(e) => {
            println!("SKIPPED: {e} (make test-kernel runs it in a virtual machine)");
            true
        }
    }
}

/// A directory with a pool; whatever of it the kernel still has when the test ends is taken away.
pub(crate) struct KernelDir {
    dir: tempfile::TempDir,
}

impl KernelDir {
    pub(crate) fn new() -> Self {
        let made = Self { dir: tempfile::tempdir().unwrap() };
        thinsnap_pool::create(&CreateOptions {
            paths: made.paths(),
            data_size: Some(DATA_SIZE),
            metadata_size: Some(ByteCount(4 << 20)),
            block_size: BlockSize::from_bytes(BLOCK).unwrap(),
        })
        .unwrap();
        made
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn paths(&self) -> PoolPaths {
        PoolPaths::in_dir(self.dir.path())
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub(crate) fn options(&self) -> KernelOptions {
        KernelOptions { run_dir: self.run_dir(), ..KernelOptions::default() }
    }

    pub(crate) fn open(&self) -> Arc<KernelPool> {
        thinsnap_pool::open_kernel(&self.paths(), &self.options()).unwrap()
    }

    /// What stands between the pool's names in device-mapper: `thinsnap-abcdef012345-`.
    pub(crate) fn prefix(pool: &KernelPool) -> String {
        let identity = pool.status().unwrap().identity;
        let digits: String = identity.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        format!("thinsnap-{digits}-")
    }
}

impl Drop for KernelDir {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Tests run one after the other here, so that all of it is this one's.
            for name in run("dmsetup", ["ls"]).lines().filter_map(|line| line.split_whitespace().next()) {
                let _ = std::process::Command::new("dmsetup").args(["remove", "--force", name]).output();
            }
            for line in leftovers(self.path()) {
                let device = format!("/dev/{}", line.split(':').next().unwrap());
                let _ = std::process::Command::new("losetup").args(["--detach", &device]).output();
            }
            return;
        }
        assert_eq!(leftovers(self.path()), Vec::<String>::new());
    }
}

/// A pool that the kernel serves.
pub(crate) struct KernelStage {
    pool: Option<Arc<KernelPool>>,
    dir: KernelDir,
}

impl KernelStage {
    pub(crate) fn new() -> Self {
        let dir = KernelDir::new();
        Self { pool: Some(dir.open()), dir }
    }
}

impl Stage for KernelStage {
    fn pool(&self) -> &dyn ThinPool {
        &**self.pool.as_ref().unwrap()
    }

    fn open(&self, _id: DeviceId, path: &Path) -> Box<dyn OpenDisk> {
        Box::new(Disk::open(path))
    }

    fn reopen(&mut self) {
        self.pool.take().unwrap().close().unwrap();
        assert_eq!(leftovers(self.dir.path()), Vec::<String>::new());
        self.pool = Some(self.dir.open());
    }
}

impl Drop for KernelStage {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take()
            && !std::thread::panicking()
        {
            pool.close().unwrap();
        }
    }
}
