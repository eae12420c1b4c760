//! A block device past the page cache, and what its users find in it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::{FallocateFlags, fallocate};
use thinsnap_pool::DeviceId;

pub(crate) const BLOCK: u64 = 64 << 10;

pub(crate) fn device(id: u32) -> DeviceId {
    DeviceId::new(id).unwrap()
}

/// An open block device.
pub(crate) struct Disk(File);

/// A buffer at an address that direct I/O takes.
fn aligned(memory: &mut Vec<u8>, len: usize) -> &mut [u8] {
    memory.resize(len + 4096, 0);
    let start = memory.as_ptr().align_offset(4096);
    &mut memory[start..start + len]
}

impl Disk {
    pub(crate) fn open(path: &Path) -> Self {
        Self(OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(path).unwrap())
    }

    pub(crate) fn write_block(&self, block: u64, value: u8) -> io::Result<()> {
        let mut memory = Vec::new();
        let bytes = aligned(&mut memory, usize::try_from(BLOCK).unwrap());
        bytes.fill(value);
        self.0.write_all_at(bytes, block * BLOCK)
    }

    /// The value of all of a block's bytes.
    pub(crate) fn read_block(&self, block: u64) -> u8 {
        let mut memory = Vec::new();
        let bytes = aligned(&mut memory, usize::try_from(BLOCK).unwrap());
        self.0.read_exact_at(bytes, block * BLOCK).unwrap();
        assert!(bytes.iter().all(|&byte| byte == bytes[0]), "block {block} is torn");
        bytes[0]
    }

    pub(crate) fn discard(&self, block: u64, blocks: u64) {
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let signed = |value: u64| i64::try_from(value).unwrap();
        fallocate(&self.0, punch, signed(block * BLOCK), signed(blocks * BLOCK)).unwrap();
    }

    pub(crate) fn flush(&self) {
        self.0.sync_all().unwrap();
    }
}
