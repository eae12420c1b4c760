//! The system calls on files and disks that neither std nor nix offer in safe form.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

mod ioctls {
    // Numbers from linux/fs.h: group 0x12, no size encoded except in BLKGETSIZE64.
    nix::ioctl_read_bad!(blksszget, nix::request_code_none!(0x12, 104), libc::c_int);
    nix::ioctl_read!(blkgetsize64, 0x12, 114, usize);
    nix::ioctl_write_ptr_bad!(blkdiscard, nix::request_code_none!(0x12, 119), [u64; 2]);
    nix::ioctl_write_ptr_bad!(blkzeroout, nix::request_code_none!(0x12, 127), [u64; 2]);
}

/// Size of a disk in bytes.
pub(super) fn disk_size(disk: &File) -> io::Result<u64> {
    let mut size = 0_usize;
    // SAFETY: the descriptor is open for the call, and BLKGETSIZE64 writes one u64 (the size of usize on the
    // 64-bit machines that the crate is built for) to the address of a live local.
    unsafe { ioctls::blkgetsize64(disk.as_raw_fd(), &raw mut size) }?;
    Ok(size as u64)
}

/// Logical block size of a disk in bytes.
pub(super) fn disk_sector(disk: &File) -> io::Result<usize> {
    let mut sector: libc::c_int = 0;
    // SAFETY: the descriptor is open for the call, and BLKSSZGET writes one int to the address of a live local.
    unsafe { ioctls::blksszget(disk.as_raw_fd(), &raw mut sector) }?;
    usize::try_from(sector).map_err(io::Error::other)
}

/// Waits until what was written to the file has reached what is below it, without a flush of that. Errors: also those
/// of earlier writes that nobody has been told of.
pub(crate) fn write_back(file: &File) -> io::Result<()> {
    let all = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: the descriptor is open for the call, which takes numbers only; a length of 0 is all of the file.
    nix::errno::Errno::result(unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, all) })?;
    Ok(())
}

/// Discards a range of a disk.
pub(super) fn disk_discard(disk: &File, offset: u64, len: u64) -> io::Result<()> {
    // SAFETY: the descriptor is open for the call, and BLKDISCARD reads two u64 from a live array.
    unsafe { ioctls::blkdiscard(disk.as_raw_fd(), &[offset, len]) }?;
    Ok(())
}

/// Zeroes a range of a disk, by unmapping it where that reads as zeroes.
pub(super) fn disk_zero(disk: &File, offset: u64, len: u64) -> io::Result<()> {
    // SAFETY: the descriptor is open for the call, and BLKZEROOUT reads two u64 from a live array.
    unsafe { ioctls::blkzeroout(disk.as_raw_fd(), &[offset, len]) }?;
    Ok(())
}

/// The alignment that direct I/O on the file needs (of offsets, lengths and addresses alike); `None` if
/// the file system has no direct I/O or does not tell.
pub(super) fn direct_alignment(file: &File) -> Option<usize> {
    // SAFETY: statx is plain old data; all zeroes is a valid value of it.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open, the path is an empty C string (the descriptor itself is meant, by
    // AT_EMPTY_PATH), and the kernel fills one statx at the address of a live local.
    let answer = unsafe {
        libc::statx(file.as_fd().as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN, &raw mut stat)
    };
    if answer != 0 || stat.stx_mask & libc::STATX_DIOALIGN == 0 {
        return None;
    }
    usize::try_from(stat.stx_dio_offset_align.max(stat.stx_dio_mem_align)).ok().filter(|&align| align > 0)
}

/// A file mapped for reading and writing, shared with its other users; unmapped when dropped.
pub(super) struct Mapping {
    start: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the mapping is memory of this process until it is dropped, and all access to it is atomic.
unsafe impl Send for Mapping {}
// SAFETY: as for `Send`.
unsafe impl Sync for Mapping {}

/// Maps the first `words` 64-bit words of a file, every page of it at once. The caller has made sure that the file is
/// that long, and lets nobody make it shorter: access beyond its end would kill the process.
pub(super) fn map_shared(file: &File, words: usize) -> io::Result<Mapping> {
    let len = NonZeroUsize::new(words * 8).ok_or(io::ErrorKind::InvalidInput)?;
    let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: the kernel chooses an address range that nothing else uses, and the descriptor is open for the call.
    let start = unsafe { mmap(None, len, prot, MapFlags::MAP_SHARED | MapFlags::MAP_POPULATE, file, 0) }?;
    Ok(Mapping { start: start.cast(), words })
}

impl Mapping {
    pub(super) fn words(&self) -> &[AtomicU64] {
        // SAFETY: the range was mapped for reading and writing with this length, at a page's alignment, and stays
        // so as long as `self`; every value of its bytes is an `AtomicU64`, and nothing here accesses it otherwise.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.words) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `map_shared`, and no reference into it outlives `self`.
        if let Err(errno) = unsafe { munmap(self.start.cast(), self.words * 8) } {
            tracing::error!("unmap {} bytes: {errno}", self.words * 8);
        }
    }
}
