//! Copies metadata that another process is changing, so that the copy is one committed state.
//!
//! A committed block is overwritten only after a later commit has freed it, and every commit rewrites the
//! superblock. So while the superblock stays the same, all that it reaches stays the same: it is read again
//! after each piece, and the copy starts anew when it has changed. It is not enough to compare at the end:
//! two commits may bring the roots back to the same places.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use crate::device::{AlignedBuffer, BlockDevice, FileDevice};
use crate::error::{Error, ErrorKind, Result};
use crate::units::METADATA_BLOCK_SIZE;

/// Bytes of a piece: read in a fraction of the time that a commit's flushes take.
const PIECE: usize = 1 << 20;
/// Copies that are begun before giving up: a pool under full load commits several times a second.
const ATTEMPTS: u32 = 50;

/// Copies the metadata at `source` into the new file `copy`, whose name is gone when this returns: the copy
/// lives as long as the device. Errors: `InUse` if the pool commits faster than it can be copied.
pub fn live_copy(source: &Path, copy: &Path) -> Result<FileDevice> {
    let doing = || format!("copy the metadata {}", source.display());
    let file = File::open(source).map_err(|e| Error::io(doing(), e))?;
    let end = lseek(&file, 0, Whence::SeekEnd).map_err(|e| Error::io(doing(), e.into()))?;
    let size = u64::try_from(end).map_err(|_| Error::new(ErrorKind::Invalid, doing()))?;
    let device = FileDevice::create(copy, size)?;
    std::fs::remove_file(copy).map_err(|e| Error::io(doing(), e))?;
    let mut piece = AlignedBuffer::zeroed(PIECE);
    for _ in 0..ATTEMPTS {
        if fill(&device, &file, size, &mut piece).map_err(|e| e.doing(doing()))? {
            return Ok(device);
        }
    }
    Err(Error::new(ErrorKind::InUse, format!("{}: it changed {ATTEMPTS} times before it was read to its end", doing())))
}

/// Copies all of `file`. False: the superblock changed meanwhile. What an earlier attempt left in the copy
/// does no harm: whatever the superblock reaches is written over, and nothing else is looked at.
fn fill(device: &FileDevice, file: &File, size: u64, piece: &mut [u8]) -> Result<bool> {
    let superblock = read_superblock(file)?;
    let mut at = 0;
    while let Some(start) = next_data(file, at)?.filter(|start| *start < size) {
        // Whole pieces from whole places: the copy may be written directly.
        at = start - start % PIECE as u64;
        let len = usize::try_from((size - at).min(PIECE as u64)).unwrap_or(PIECE);
        let piece = &mut piece[..len];
        file.read_exact_at(piece, at).map_err(|e| Error::io(format!("read at {at}"), e))?;
        device.write_at(piece, at)?;
        if read_superblock(file)? != superblock {
            return Ok(false);
        }
        at += len as u64;
    }
    Ok(true)
}

fn read_superblock(file: &File) -> Result<[u8; METADATA_BLOCK_SIZE]> {
    let mut block = [0; METADATA_BLOCK_SIZE];
    file.read_exact_at(&mut block, 0).map_err(|e| Error::io("read the superblock", e))?;
    Ok(block)
}

/// Where the next bytes stand that were ever written; `None`: there are none. Metadata is allocated in full
/// and mostly never written.
fn next_data(file: &File, at: u64) -> Result<Option<u64>> {
    let from = i64::try_from(at).map_err(|_| Error::new(ErrorKind::Invalid, format!("seek to {at}")))?;
    match lseek(file, from, Whence::SeekData) {
        Ok(found) => Ok(u64::try_from(found).ok()),
        Err(Errno::ENXIO) => Ok(None),
        // A disk, or a file system that does not tell: all of it is data.
        Err(Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(Some(at)),
        Err(errno) => Err(Error::io(format!("seek to {at}"), errno.into())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::{PIECE, live_copy};
    use crate::device::BlockDevice;
    use crate::error::ErrorKind;

    #[test]
    fn a_copy_has_every_byte_and_no_name() {
        let dir = tempfile::tempdir().unwrap();
        let (source, copy) = (dir.path().join("m"), dir.path().join("copy"));
        let file = std::fs::File::create(&source).unwrap();
        file.set_len(5 * PIECE as u64 + 4096).unwrap();
        for at in [0, 3 * PIECE as u64 + 8192, 5 * PIECE as u64] {
            file.write_all_at(&[7; 4096], at).unwrap();
        }
        let device = live_copy(&source, &copy).unwrap();
        assert!(!copy.exists());
        let mut bytes = vec![0; 5 * PIECE + 4096];
        device.read_at(&mut bytes, 0).unwrap();
        assert!(bytes == std::fs::read(&source).unwrap(), "the copy differs");
    }

    #[test]
    fn metadata_that_never_stands_still_is_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("m");
        std::fs::write(&source, vec![1; 2 * PIECE]).unwrap();
        let writer = std::fs::OpenOptions::new().write(true).open(&source).unwrap();
        let stop = std::sync::atomic::AtomicBool::new(false);
        let outcome = std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut generation = 0_u64;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    generation += 1;
                    writer.write_all_at(&generation.to_le_bytes(), 0).unwrap();
                }
            });
            let outcome = live_copy(&source, &dir.path().join("copy"));
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            outcome
        });
        assert_eq!(outcome.err().expect("it never stands still").kind(), ErrorKind::InUse);
        assert!(!dir.path().join("copy").exists());
    }

    #[test]
    fn a_missing_file_is_not_found_and_nothing_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let copy = dir.path().join("copy");
        let outcome = live_copy(&dir.path().join("m"), &copy);
        assert_eq!(outcome.err().expect("nothing to copy").kind(), ErrorKind::NotFound);
        assert!(!copy.exists());
    }
}
