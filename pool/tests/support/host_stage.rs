//! A pool in another process as a stage of the laws, with real block devices.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use nix::fcntl::{FallocateFlags, fallocate};
use thinsnap_pool::{DeviceId, HostClient, ThinPool};

use crate::host_process::HostDir;
use crate::host_tools::leftovers;
use crate::support::stage::{DATA_SIZE, OpenDisk, Stage};

/// What direct I/O wants of memory.
const ALIGNMENT: usize = 4096;

/// A pool in its directory and the client of its host.
pub(crate) struct HostStage {
    client: Option<HostClient>,
    dir: HostDir,
}

impl HostStage {
    pub(crate) fn new() -> Self {
        let dir = HostDir::new(DATA_SIZE, Duration::from_secs(600));
        Self { client: Some(dir.host()), dir }
    }
}

impl Stage for HostStage {
    fn pool(&self) -> &dyn ThinPool {
        self.client.as_ref().unwrap()
    }

    fn open(&self, _id: DeviceId, path: &Path) -> Box<dyn OpenDisk> {
        let writable = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(path);
        let file = writable.or_else(|_| OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path));
        Box::new(Disk(file.unwrap()))
    }

    fn reopen(&mut self) {
        HostDir::stop(&self.client.take().unwrap());
        assert_eq!(leftovers(self.dir.path()), Vec::<String>::new());
        self.client = Some(self.dir.host());
    }
}

impl Drop for HostStage {
    fn drop(&mut self) {
        drop(self.client.take());
    }
}

/// A block device, read and written past the page cache.
struct Disk(File);

/// A buffer of `len` bytes at an aligned address inside `memory`.
fn aligned(memory: &mut Vec<u8>, len: usize) -> &mut [u8] {
    memory.resize(len + ALIGNMENT, 0);
    let start = memory.as_ptr().align_offset(ALIGNMENT);
    &mut memory[start..start + len]
}

impl OpenDisk for Disk {
    fn read(&self, buf: &mut [u8], offset: u64) {
        let mut memory = Vec::new();
        let bytes = aligned(&mut memory, buf.len());
        self.0.read_exact_at(bytes, offset).unwrap();
        buf.copy_from_slice(bytes);
    }

    fn write(&self, buf: &[u8], offset: u64) {
        let mut memory = Vec::new();
        let bytes = aligned(&mut memory, buf.len());
        bytes.copy_from_slice(buf);
        self.0.write_all_at(bytes, offset).unwrap();
    }

    fn discard(&self, offset: u64, len: u64) {
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&self.0, punch, i64::try_from(offset).unwrap(), i64::try_from(len).unwrap()).unwrap();
    }

    fn zero(&self, offset: u64, len: u64) {
        let zero = FallocateFlags::FALLOC_FL_ZERO_RANGE;
        fallocate(&self.0, zero, i64::try_from(offset).unwrap(), i64::try_from(len).unwrap()).unwrap();
    }

    fn flush(&self) {
        self.0.sync_all().unwrap();
    }
}
