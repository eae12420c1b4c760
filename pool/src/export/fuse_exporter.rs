//! Shows volumes as loop devices over the files of a private FUSE filesystem.

use std::path::PathBuf;
use std::sync::Arc;

use crate::error::Result;
use crate::export::exporter::{Exporter, Volume};
use crate::thin_pool::Access;
use crate::units::{ByteCount, DeviceId};

/// How a [`FuseExporter`] works.
#[derive(Debug, Clone)]
pub struct FuseOptions {
    /// A directory for this exporter alone; it is made if absent and hidden behind the FUSE mount.
    pub dir: PathBuf,
    /// Event loops, 1 …= 8.
    pub event_threads: usize,
    /// Threads for requests that must block (a new block, a copy, a flush), 1 …= 64.
    pub worker_threads: usize,
}

impl FuseOptions {
    /// The values that measured best on small machines, for the directory `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), event_threads: 1, worker_threads: 8 }
    }
}

/// One FUSE filesystem with a file per device, and a loop device on each file.
pub struct FuseExporter {}

impl FuseExporter {
    /// Takes away what a dead exporter left at the same directory, mounts, and starts serving. Errors: `InUse`
    /// if a living exporter serves the directory, `Unsupported` if the kernel has no FUSE or no loop devices.
    pub fn start(_options: FuseOptions) -> Result<Self> {
        todo!()
    }
}

impl Exporter for FuseExporter {
    fn attach(&self, _id: DeviceId, _volume: Arc<dyn Volume>, _size: ByteCount, _access: Access) -> Result<PathBuf> {
        todo!()
    }

    fn resize(&self, _id: DeviceId, _size: ByteCount) -> Result<()> {
        todo!()
    }

    fn detach(&self, _id: DeviceId) -> Result<bool> {
        todo!()
    }

    fn path(&self, _id: DeviceId) -> Option<PathBuf> {
        todo!()
    }

    fn attached(&self) -> Vec<(DeviceId, bool)> {
        todo!()
    }

    fn shutdown(&self) -> Result<()> {
        todo!()
    }
}
