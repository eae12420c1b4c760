//! A block device of the host as the laws use it.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use crate::host_tools::run;
use crate::support::stage::OpenDisk;

/// What direct I/O wants of memory.
const ALIGNMENT: usize = 4096;

/// A block device, read and written past the page cache.
pub(crate) struct Disk(File);

impl Disk {
    pub(crate) fn open(path: &Path) -> Self {
        let writable = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(path);
        let file = writable.or_else(|_| OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path));
        Self(file.unwrap())
    }
}

impl Disk {
    /// Writes, unless there is no room.
    pub(crate) fn try_write(&self, buf: &[u8], offset: u64) -> std::io::Result<()> {
        let mut memory = Vec::new();
        let bytes = aligned(&mut memory, buf.len());
        bytes.copy_from_slice(buf);
        self.0.write_all_at(bytes, offset)
    }

    /// Zeroes, unless there is no room.
    pub(crate) fn try_zero(&self, offset: u64, len: u64) -> std::io::Result<()> {
        let zero = FallocateFlags::FALLOC_FL_ZERO_RANGE;
        Ok(fallocate(&self.0, zero, i64::try_from(offset).unwrap(), i64::try_from(len).unwrap())?)
    }
}

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
        self.try_write(buf, offset).unwrap();
    }

    fn discard(&self, offset: u64, len: u64) {
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match fallocate(&self.0, punch, i64::try_from(offset).unwrap(), i64::try_from(len).unwrap()) {
            // That asks for zeroes, which not every block device has.
            Err(Errno::EOPNOTSUPP) => {}
            done => return done.unwrap(),
        }
        let range = [offset.to_string(), len.to_string()];
        let device = format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd());
        let arguments = ["--force", "--offset", &range[0], "--length", &range[1], &device];
        run("blkdiscard", arguments);
    }

    fn zero(&self, offset: u64, len: u64) {
        self.try_zero(offset, len).unwrap();
    }

    fn flush(&self) {
        self.0.sync_all().unwrap();
    }
}
