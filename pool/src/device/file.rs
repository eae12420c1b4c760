//! A regular file or a disk as a device: direct I/O where the file system has it, locked for one user.
//!
//! - The path is opened once as a handle that cannot do I/O, looked at, and only then opened for use through
//!   that handle: what was looked at is what is used, and a FIFO or a character device is never opened.
//! - A symbolic link is followed to a disk (`/dev/disk/by-id/…`), never to a file: in a directory that
//!   somebody else may write, a link could lead a pool to any file.
//! - A user for writing holds the device alone (`flock` on a file, `O_EXCL` on a disk); the lock goes with
//!   the last reference to the open file, not with the process that took it.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statvfs::fstatvfs;
use nix::unistd::{Whence, lseek64};

use crate::device::block_device::{BlockDevice, RoomBelow, check_range};
use crate::device::buffer::AlignedBuffer;
use crate::device::linger::{is_living, lock_in_time};
use crate::device::sys;
use crate::error::{Error, ErrorKind, Result};

/// Zeroes are written from a buffer of this size where nothing better is there.
const ZERO_CHUNK: usize = 1 << 20;
/// Preallocated room is written up to here, which takes a second or so, and promised beyond.
const WRITTEN_MAX: u64 = 1 << 30;
/// Where the file system does not tell its alignment, a page fits every disk.
const ALIGNMENT_UNKNOWN: usize = 4096;

/// How long the lock of a killed process may outlive it: the kernel closes what it had open some moments later.
const LINGER_MAX: Duration = Duration::from_secs(3);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Regular,
    Disk,
}

/// A file or a disk, locked against other users.
pub struct FileDevice {
    file: File,
    path: PathBuf,
    kind: Kind,
    writable: bool,
    size: AtomicU64,
    /// 1 without direct I/O.
    alignment: usize,
    /// Keeps two writes off the alignment from writing back each other's edges.
    edges: Mutex<()>,
}

impl FileDevice {
    /// Opens for reading and writing, alone. Errors: `NotFound`, `InUse` (names the holder if /proc tells),
    /// `Denied`, `Invalid` if it is neither a file nor a disk.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_for(path, true)
    }

    /// Opens for reading, beside other readers and never beside a writer. Errors as [`open`](Self::open).
    pub fn open_read_only(path: &Path) -> Result<Self> {
        Self::open_for(path, false)
    }

    /// Opens beside whoever has it, without a lock: for a device that the kernel serves on this process's behalf, or
    /// for a look at one. A writer must know that nobody else writes where it writes. Errors as [`open`](Self::open).
    pub(crate) fn open_beside(path: &Path, writable: bool) -> Result<Self> {
        Self::open_with(path, writable, false)
    }

    /// The open file. Whoever keeps a duplicate of its descriptor keeps the lock.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Makes a sparse file of `size` bytes, readable by its owner only, and opens it like
    /// [`open`](Self::open). Errors: `AlreadyExists`, `NotFound` (the directory), `OutOfDataSpace`.
    pub fn create(path: &Path, size: u64) -> Result<Self> {
        let doing = || format!("create {} of {size} bytes", path.display());
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(|e| Error::io(doing(), e))?;
        let made = file.set_len(size).map_err(|e| Error::io(doing(), e)).and_then(|()| Self::open(path));
        if made.is_err() {
            // It is ours and empty; the error that is returned is the one that matters.
            drop(std::fs::remove_file(path));
        }
        made
    }

    /// The path that it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// True for a disk, false for a regular file.
    #[must_use]
    pub fn is_disk(&self) -> bool {
        self.kind == Kind::Disk
    }

    /// Makes the file itself durable: its size, its blocks, its name's inode.
    pub fn sync_all(&self) -> Result<()> {
        self.file.sync_all().map_err(|e| Error::io(format!("sync {}", self.path.display()), e))
    }

    fn open_for(path: &Path, writable: bool) -> Result<Self> {
        Self::open_with(path, writable, true)
    }

    fn open_with(path: &Path, writable: bool, locked: bool) -> Result<Self> {
        let doing = format!("open {}", path.display());
        let (handle, seen) = look_at(path).map_err(|e| e.doing(&doing))?;
        let kind = match seen.file_type() {
            kind if kind.is_file() => Kind::Regular,
            kind if kind.is_block_device() => Kind::Disk,
            _ => return Err(Error::new(ErrorKind::Invalid, format!("{doing}: neither a regular file nor a disk"))),
        };
        let exclusive = if locked && kind == Kind::Disk { libc::O_EXCL } else { 0 };
        let through = format!("/proc/self/fd/{}", handle.as_raw_fd());
        let open =
            |flags: i32| OpenOptions::new().read(true).write(writable).custom_flags(exclusive | flags).open(&through);
        let direct = open(libc::O_DIRECT);
        let buffered = matches!(&direct, Err(e) if e.raw_os_error() == Some(libc::EINVAL));
        let file = if buffered { open(0) } else { direct }.map_err(|e| match e.raw_os_error() {
            Some(libc::EBUSY) => Error::with_source(
                ErrorKind::InUse,
                format!("{doing}: another process or the kernel (a mount, a RAID, a volume manager) has the disk"),
                e,
            ),
            _ => Error::io(&doing, e),
        })?;
        if locked && kind == Kind::Regular {
            lock(&file, writable, &seen).map_err(|e| e.doing(&doing))?;
        }
        let alignment = match (buffered, kind) {
            (true, _) => 1,
            (false, Kind::Disk) => sys::disk_sector(&file).map_err(|e| Error::io(&doing, e))?,
            (false, Kind::Regular) => sys::direct_alignment(&file).unwrap_or(ALIGNMENT_UNKNOWN),
        };
        let device = Self {
            file,
            path: path.to_owned(),
            kind,
            writable,
            size: AtomicU64::new(0),
            alignment,
            edges: Mutex::new(()),
        };
        device.size.store(device.size_below().map_err(|e| Error::io(&doing, e))?, Ordering::Release);
        Ok(device)
    }

    /// The size that can be used in whole aligned blocks.
    fn size_below(&self) -> io::Result<u64> {
        let size = match self.kind {
            Kind::Regular => self.file.metadata()?.len(),
            Kind::Disk => sys::disk_size(&self.file)?,
        };
        // Writable: a write back of the last edge would make the file longer.
        let unit = if self.writable { self.alignment as u64 } else { 1 };
        Ok(size / unit * unit)
    }

    fn error(&self, verb: &str, offset: u64, len: u64, source: io::Error) -> Error {
        Error::io(format!("{verb} {}: {len} bytes at offset {offset}", self.path.display()), source)
    }

    fn check(&self, offset: u64, len: u64) -> Result<()> {
        check_range(&self.path.display(), self.size(), offset, len)
    }

    fn check_writable(&self, offset: u64, len: u64) -> Result<()> {
        if !self.writable {
            return Err(Error::new(
                ErrorKind::ReadOnly,
                format!("write {}: it was opened for reading", self.path.display()),
            ));
        }
        self.check(offset, len)
    }

    fn fits(&self, address: *const u8, offset: u64, len: usize) -> bool {
        let unit = self.alignment as u64;
        offset.is_multiple_of(unit)
            && (len as u64).is_multiple_of(unit)
            && address.addr().is_multiple_of(self.alignment)
    }

    /// The aligned range around a range.
    fn around(&self, offset: u64, len: usize) -> (u64, usize) {
        let unit = self.alignment as u64;
        let start = offset / unit * unit;
        let end = (offset + len as u64).next_multiple_of(unit);
        (start, usize::try_from(end - start).unwrap_or(usize::MAX))
    }

    /// Fills an aligned buffer; past the end of a file of odd length it stays zero.
    fn fill(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < buf.len() {
            match self.file.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => return Ok(()),
                Ok(count) => done += count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn write_bounced(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let (start, len) = self.around(offset, buf.len());
        let skip = usize::try_from(offset - start).map_err(io::Error::other)?;
        let mut bounce = AlignedBuffer::zeroed(len);
        let _edges = self.edges.lock().unwrap_or_else(PoisonError::into_inner);
        if len != buf.len() {
            let unit = self.alignment;
            self.fill(&mut bounce[..unit], start)?;
            let last = len - unit;
            if last > 0 {
                self.fill(&mut bounce[last..], start + last as u64)?;
            }
        }
        bounce[skip..skip + buf.len()].copy_from_slice(buf);
        self.file.write_all_at(&bounce, start)
    }

    fn write_zero_bytes(&self, offset: u64, len: u64) -> Result<()> {
        let zeroes = AlignedBuffer::zeroed(ZERO_CHUNK);
        let mut done = 0;
        while done < len {
            let step = usize::try_from(len - done).unwrap_or(ZERO_CHUNK).min(ZERO_CHUNK);
            self.write_at(&zeroes[..step], offset + done)?;
            done += step as u64;
        }
        Ok(())
    }

    fn punch(&self, offset: u64, len: u64) -> Result<bool> {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        self.allocate(flags, offset, len)
    }

    /// True if the file system did it, false if it cannot.
    fn allocate(&self, flags: FallocateFlags, offset: u64, len: u64) -> Result<bool> {
        match fallocate(&self.file, flags, signed(offset)?, signed(len)?) {
            Ok(()) => Ok(true),
            Err(nix::errno::Errno::EOPNOTSUPP | nix::errno::Errno::ENOSYS) => Ok(false),
            Err(e) => Err(self.error("take or give back room in", offset, len, e.into())),
        }
    }
}

impl BlockDevice for FileDevice {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let len = buf.len();
        self.check(offset, len as u64)?;
        let done = if self.fits(buf.as_ptr(), offset, len) {
            self.file.read_exact_at(buf, offset)
        } else {
            let (start, whole) = self.around(offset, len);
            let mut bounce = AlignedBuffer::zeroed(whole);
            self.fill(&mut bounce, start).and_then(|()| {
                let skip = usize::try_from(offset - start).map_err(io::Error::other)?;
                buf.copy_from_slice(&bounce[skip..skip + len]);
                Ok(())
            })
        };
        done.map_err(|e| self.error("read", offset, len as u64, e))
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.check_writable(offset, buf.len() as u64)?;
        if self.fits(buf.as_ptr(), offset, buf.len()) {
            self.file.write_all_at(buf, offset)
        } else {
            self.write_bounced(buf, offset)
        }
        .map_err(|e| self.error("write", offset, buf.len() as u64, e))
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.check_writable(offset, len)?;
        if len == 0 {
            return Ok(());
        }
        match self.kind {
            // What the file system cannot punch stays allocated: a discard is a hint.
            Kind::Regular => self.punch(offset, len).map(|_| ()),
            Kind::Disk => match sys::disk_discard(&self.file, offset, len) {
                Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
                done => done.map_err(|e| self.error("discard", offset, len, e)),
            },
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.check_writable(offset, len)?;
        if len == 0 {
            return Ok(());
        }
        match self.kind {
            Kind::Regular => {
                let keep = FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                if self.allocate(keep, offset, len)? || self.punch(offset, len)? {
                    return Ok(());
                }
                self.write_zero_bytes(offset, len)
            }
            Kind::Disk => match sys::disk_zero(&self.file, offset, len) {
                // Off the sector, or a driver without it.
                Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL)) => {
                    self.write_zero_bytes(offset, len)
                }
                done => done.map_err(|e| self.error("zero", offset, len, e)),
            },
        }
    }

    fn flush(&self) -> Result<()> {
        self.file.sync_data().map_err(|e| Error::io(format!("flush {}", self.path.display()), e))
    }

    fn known_zero(&self, offset: u64, len: u64) -> bool {
        if self.kind == Kind::Disk {
            return false;
        }
        let Ok(start) = i64::try_from(offset) else { return false };
        match lseek64(&self.file, start, Whence::SeekData) {
            Ok(data) => u64::try_from(data).is_ok_and(|data| data >= offset + len),
            // No data from here to the end of the file.
            Err(nix::errno::Errno::ENXIO) => true,
            Err(_) => false,
        }
    }

    fn room_below(&self) -> Option<RoomBelow> {
        if self.kind == Kind::Disk {
            return None;
        }
        // st_blocks counts in 512 bytes whatever the file system's block is.
        let allocated = self.file.metadata().ok()?.blocks().saturating_mul(512);
        if allocated >= self.size() {
            return None;
        }
        let below = fstatvfs(&self.file).ok()?;
        let bytes = |blocks: u64| blocks.saturating_mul(below.fragment_size());
        Some(RoomBelow {
            free: bytes(below.blocks_available()),
            usable: bytes(below.blocks_free()),
            total: bytes(below.blocks()),
            allocated,
        })
    }

    fn grow(&self, size: u64) -> Result<()> {
        let doing = format!("grow {} to {size} bytes", self.path.display());
        let below = self.size_below().map_err(|e| Error::io(&doing, e))?;
        if size < self.size() || (self.kind == Kind::Disk && size > below) {
            return Err(Error::new(ErrorKind::Invalid, format!("{doing}: it has {below} bytes")));
        }
        if self.kind == Kind::Regular && size > below {
            self.file.set_len(size).map_err(|e| Error::io(&doing, e))?;
        }
        let below = self.size_below().map_err(|e| Error::io(&doing, e))?;
        self.size.store(below, Ordering::Release);
        Ok(())
    }

    fn preallocate(&self, from: u64) -> Result<()> {
        let len = self.size().saturating_sub(from);
        if self.kind == Kind::Disk || len == 0 {
            return Ok(());
        }
        self.allocate(FallocateFlags::FALLOC_FL_KEEP_SIZE, from, len)?;
        // Blocks that are only promised are turned into real ones by the first write to each, and the flush
        // after it waits for the file system's journal: a commit takes milliseconds instead of less than one.
        self.write_zero_bytes(from, len.min(WRITTEN_MAX.saturating_sub(from)))?;
        self.flush()
    }

    fn take_room(&self, offset: u64, len: u64) -> Result<()> {
        self.check_writable(offset, len)?;
        if self.kind == Kind::Disk || len == 0 {
            return Ok(());
        }
        self.allocate(FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, len).map(drop)
    }

    fn raw_fd(&self) -> Option<RawFd> {
        Some(self.file.as_raw_fd())
    }

    fn alignment(&self) -> usize {
        self.alignment
    }
}

/// A handle on what stands at `path`, and what it is.
fn look_at(path: &Path) -> Result<(File, Metadata)> {
    let open = |flags: i32| OpenOptions::new().read(true).custom_flags(libc::O_PATH | flags).open(path);
    let look = |handle: File| handle.metadata().map(|seen| (handle, seen));
    let io_error = |e| Error::io("look at it", e);
    let (handle, seen) = open(libc::O_NOFOLLOW).and_then(look).map_err(io_error)?;
    if !seen.file_type().is_symlink() {
        return Ok((handle, seen));
    }
    let (handle, seen) = open(0).and_then(look).map_err(io_error)?;
    if !seen.file_type().is_block_device() {
        return Err(Error::new(
            ErrorKind::Invalid,
            "it is a symbolic link, and such are followed to disks only; give the path of the file itself",
        ));
    }
    Ok((handle, seen))
}

/// Locks a file: alone for a writer, beside others for a reader.
fn lock(file: &File, writable: bool, seen: &Metadata) -> Result<()> {
    let taken = if writable { file.try_lock() } else { file.try_lock_shared() };
    match taken {
        Ok(()) => Ok(()),
        Err(std::fs::TryLockError::WouldBlock) => {
            let holder = holder(seen);
            // A dead one is not named, or as a zombie.
            let lives = holder.as_ref().is_some_and(|(pid, _)| is_living(*pid, None));
            if writable && !lives && lock_in_time(file, Instant::now() + LINGER_MAX, || Ok(()))? {
                return Ok(());
            }
            let name = holder.map_or_else(|| "another process".to_owned(), |(_, name)| name);
            Err(Error::new(ErrorKind::InUse, format!("{name} has it")))
        }
        Err(std::fs::TryLockError::Error(e)) => Err(Error::io("lock it", e)),
    }
}

/// Who holds the lock on a file, from /proc/locks, and its name: `pool-host (process 17)`.
fn holder(seen: &Metadata) -> Option<(u32, String)> {
    let device = seen.dev();
    let wanted = format!("{:02x}:{:02x}:{}", nix::sys::stat::major(device), nix::sys::stat::minor(device), seen.ino());
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let line =
        locks.lines().find(|line| line.contains("FLOCK") && line.split_whitespace().any(|word| word == wanted))?;
    let pid = line.split_whitespace().find_map(|word| word.parse::<u32>().ok().filter(|&pid| pid > 0))?;
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some((pid, format!("{} (process {pid})", name.trim_end())))
}

fn signed(value: u64) -> Result<i64> {
    i64::try_from(value).map_err(|e| Error::with_source(ErrorKind::Invalid, format!("offset or length {value}"), e))
}

#[cfg(test)]
mod tests;
