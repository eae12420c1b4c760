//! A device in memory that counts what is asked of it and fails on command.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use thinsnap_pool::{BlockDevice, Error, ErrorKind, MemoryDevice, Result};

/// Memory with switches.
pub struct FaultyDevice {
    memory: MemoryDevice,
    /// Writes answer that the file system is full.
    pub full: AtomicBool,
    /// Flushes fail.
    pub flush_fails: AtomicBool,
    /// The next flush fails.
    pub flush_fails_once: AtomicBool,
    /// So many reads succeed, then they fail.
    pub reads_left: AtomicU64,
    /// Reads panic instead of failing.
    pub panics: AtomicBool,
    /// Calls of `read_at`.
    pub reads: AtomicU64,
    /// Calls of `write_at`.
    pub writes: AtomicU64,
    /// Calls of `discard`.
    pub discards: AtomicU64,
}

impl FaultyDevice {
    /// A device that works.
    pub fn new(memory: MemoryDevice) -> Self {
        Self {
            memory,
            full: AtomicBool::new(false),
            flush_fails: AtomicBool::new(false),
            flush_fails_once: AtomicBool::new(false),
            reads_left: AtomicU64::new(u64::MAX),
            panics: AtomicBool::new(false),
            reads: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            discards: AtomicU64::new(0),
        }
    }

    /// The content.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.memory.to_bytes()
    }
}

impl BlockDevice for FaultyDevice {
    fn size(&self) -> u64 {
        self.memory.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        let left = self.reads_left.load(Ordering::SeqCst);
        self.reads_left.store(left.saturating_sub(1), Ordering::SeqCst);
        if left == 0 {
            if self.panics.load(Ordering::SeqCst) {
                // Unwinds as a panic does, without its report in the output.
                std::panic::resume_unwind(Box::new("told to panic"));
            }
            return Err(Error::io("read", std::io::Error::from_raw_os_error(5)));
        }
        self.memory.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.writes.fetch_add(1, Ordering::SeqCst);
        if self.full.load(Ordering::SeqCst) {
            return Err(Error::io("write", std::io::Error::from_raw_os_error(28)));
        }
        self.memory.write_at(buf, offset)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.discards.fetch_add(1, Ordering::SeqCst);
        self.memory.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.memory.write_zeroes(offset, len)
    }

    fn flush(&self) -> Result<()> {
        if self.flush_fails.load(Ordering::SeqCst) || self.flush_fails_once.swap(false, Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Io, "flush: the disk does not answer"));
        }
        self.memory.flush()
    }

    fn grow(&self, size: u64) -> Result<()> {
        self.memory.grow(size)
    }
}
