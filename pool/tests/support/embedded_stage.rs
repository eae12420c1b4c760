//! The embedded engine in this process as a stage, on two files.

use std::path::Path;
use std::sync::Arc;

use thinsnap_pool::{BlockDevice, BlockSize, ByteCount, CreateOptions, DeviceId, EmbeddedPool, PoolPaths, ThinPool};

use crate::support::direct_exporter::{DirectExporter, Opened};
use crate::support::stage::{BLOCK, DATA_SIZE, OpenDisk, Stage};

/// The embedded engine in this process, on two files.
pub struct EmbeddedStage {
    dir: tempfile::TempDir,
    exporter: Arc<DirectExporter>,
    pool: Option<Arc<EmbeddedPool>>,
}

impl EmbeddedStage {
    /// Makes a pool in a directory of its own.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        thinsnap_pool::create(&CreateOptions {
            paths: PoolPaths::in_dir(dir.path()),
            data_size: Some(DATA_SIZE),
            metadata_size: Some(ByteCount(4 << 20)),
            block_size: BlockSize::from_bytes(BLOCK).unwrap(),
        })
        .unwrap();
        let mut stage = Self { dir, exporter: DirectExporter::new(), pool: None };
        stage.reopen();
        stage
    }
}

impl Stage for EmbeddedStage {
    fn pool(&self) -> &dyn ThinPool {
        &**self.pool.as_ref().unwrap()
    }

    fn open(&self, id: DeviceId, _path: &Path) -> Box<dyn OpenDisk> {
        Box::new(self.exporter.open(id))
    }

    fn reopen(&mut self) {
        if let Some(pool) = self.pool.take() {
            pool.close().unwrap();
        }
        let exporter = Arc::clone(&self.exporter);
        self.pool = Some(
            thinsnap_pool::open_embedded(
                &PoolPaths::in_dir(self.dir.path()),
                exporter,
                &thinsnap_pool::EmbeddedOptions::default(),
            )
            .unwrap(),
        );
    }
}

impl OpenDisk for Opened {
    fn read(&self, buf: &mut [u8], offset: u64) {
        self.read_at(buf, offset).unwrap();
    }

    fn write(&self, buf: &[u8], offset: u64) {
        self.write_at(buf, offset).unwrap();
    }

    fn discard(&self, offset: u64, len: u64) {
        BlockDevice::discard(&**self, offset, len).unwrap();
    }

    fn zero(&self, offset: u64, len: u64) {
        self.write_zeroes(offset, len).unwrap();
    }

    fn flush(&self) {
        BlockDevice::flush(&**self).unwrap();
    }
}
