//! Puts new metadata in the place of the old: whole or not at all, and the old is kept under another name.
//!
//! A file is replaced by a rename, which is the one moment at which it happens. A disk cannot be: there a note says
//! which file belongs on it, block 0 is emptied, the rest is copied, block 0 comes last, the note goes. Killed in
//! between, the pool is no pool until [`finish_replacement`] has read the note and copied again.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind as IoKind, Read, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::device::{AlignedBuffer, BlockDevice, FileDevice};
use crate::error::{Error, ErrorKind, Result};
use crate::units::METADATA_BLOCK_SIZE;

/// Bytes that are copied at a time.
const PIECE: usize = 1 << 20;
/// Longest note: two paths.
const NOTE_MAX: u64 = 16 << 10;

/// What goes where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replacement {
    /// The metadata: a file or a disk.
    pub metadata: PathBuf,
    /// The new metadata, a file; beside the old one if that is a file. It is gone afterwards.
    pub new: PathBuf,
    /// Where the old metadata is kept; must not exist.
    pub kept: PathBuf,
    /// The note, for a disk.
    pub note: PathBuf,
}

/// Replaces the metadata. `old` is the pool's lock: it was opened from `metadata` and nobody else has it. Errors:
/// `AlreadyExists` (the kept name), `OutOfDataSpace`, `Io`; the old metadata is in its place then, or a note is there.
pub fn replace_metadata(replacement: &Replacement, old: &FileDevice) -> Result<()> {
    let Replacement { metadata, new, kept, note } = replacement;
    sync_file(new)?;
    if !old.is_disk() {
        std::fs::hard_link(metadata, kept)
            .map_err(|e| Error::io(format!("keep {} as {}", metadata.display(), kept.display()), e))?;
        sync_dir(kept)?;
        std::fs::rename(new, metadata)
            .map_err(|e| Error::io(format!("move {} to {}", new.display(), metadata.display()), e))?;
        return sync_dir(metadata);
    }
    keep_copy(old, kept)?;
    write_note(note, new, metadata)?;
    copy_over(new, old)?;
    end(note, new)
}

/// Finishes a replacement on a disk that was cut short; nothing to do is a success. Returns true if there was one.
/// Errors: `InUse` if somebody has the disk, `Corrupt` if the note cannot be read.
pub fn finish_replacement(note: &Path) -> Result<bool> {
    let doing = || format!("finish the replacement that {} tells of", note.display());
    let mut text = String::new();
    match File::open(note).and_then(|file| file.take(NOTE_MAX).read_to_string(&mut text)) {
        Err(e) if e.kind() == IoKind::NotFound => return Ok(false),
        other => other.map_err(|e| Error::io(doing(), e))?,
    };
    let mut lines = text.lines();
    let (Some(new), Some(metadata), Some("end")) = (lines.next(), lines.next(), lines.next()) else {
        return Err(Error::new(ErrorKind::Corrupt, format!("{}: it is not whole", doing())));
    };
    let device = FileDevice::open(Path::new(metadata)).map_err(|e| e.doing(doing()))?;
    copy_over(Path::new(new), &device).map_err(|e| e.doing(doing()))?;
    end(note, Path::new(new)).map(|()| true)
}

fn sync_file(path: &Path) -> Result<()> {
    let synced = OpenOptions::new().write(true).open(path).and_then(|file| file.sync_all());
    synced.map_err(|e| Error::io(format!("sync {}", path.display()), e))
}

/// Makes a name durable.
fn sync_dir(path: &Path) -> Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(|e| Error::io(format!("sync the directory {}", dir.display()), e))
}

fn keep_copy(old: &FileDevice, kept: &Path) -> Result<()> {
    let copy = FileDevice::create(kept, old.size()).map_err(|e| e.doing("keep the old metadata"))?;
    let done = copy_blocks(old, &copy, 0).and_then(|()| copy.sync_all()).and_then(|()| sync_dir(kept));
    if done.is_err() {
        // Not whole, and the old metadata has not been touched.
        drop(std::fs::remove_file(kept));
    }
    done
}

/// Copies from `start` on; runs of zeroes are not written to a file that is empty there.
fn copy_blocks(from: &dyn BlockDevice, to: &dyn BlockDevice, start: u64) -> Result<()> {
    let mut piece = AlignedBuffer::zeroed(PIECE);
    let end = from.size().min(to.size());
    let mut at = start;
    while at < end {
        let len = usize::try_from((end - at).min(PIECE as u64 - at % PIECE as u64)).unwrap_or(PIECE);
        from.read_at(&mut piece[..len], at)?;
        if piece[..len].iter().any(|&byte| byte != 0) || !to.known_zero(at, len as u64) {
            to.write_at(&piece[..len], at)?;
        }
        at += len as u64;
    }
    to.flush()
}

fn write_note(note: &Path, new: &Path, metadata: &Path) -> Result<()> {
    let doing = || format!("write {}", note.display());
    let (Some(new), Some(metadata)) = (new.to_str(), metadata.to_str()) else {
        return Err(Error::new(ErrorKind::Invalid, format!("{}: a path is not UTF-8", doing())));
    };
    let young = note.with_extension("young");
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&young)
        .and_then(|mut file| {
            file.write_all(format!("{new}\n{metadata}\nend\n").as_bytes())?;
            file.sync_all()
        })
        .and_then(|()| std::fs::rename(&young, note));
    written.map_err(|e| Error::io(doing(), e))?;
    sync_dir(note)
}

/// The new metadata onto a disk. Until its last write the disk holds no pool.
fn copy_over(new: &Path, disk: &dyn BlockDevice) -> Result<()> {
    let new = FileDevice::open_read_only(new)?;
    let mut first = AlignedBuffer::zeroed(METADATA_BLOCK_SIZE);
    disk.write_at(&first, 0)?;
    disk.flush()?;
    copy_blocks(&new, disk, METADATA_BLOCK_SIZE as u64)?;
    new.read_at(&mut first, 0)?;
    disk.write_at(&first, 0)?;
    disk.flush()
}

fn end(note: &Path, new: &Path) -> Result<()> {
    std::fs::remove_file(note).map_err(|e| Error::io(format!("remove {}", note.display()), e))?;
    sync_dir(note)?;
    std::fs::remove_file(new).map_err(|e| Error::io(format!("remove {}", new.display()), e))
}

/// True if the path is a disk, through links.
#[must_use]
pub fn is_disk(path: &Path) -> bool {
    path.metadata().is_ok_and(|seen| seen.file_type().is_block_device())
}

#[cfg(test)]
mod tests {
    use super::{copy_over, finish_replacement, replace_metadata, write_note};
    use crate::device::{BlockDevice, FileDevice};
    use crate::error::ErrorKind;
    use crate::repair::replace::Replacement;

    fn filled(path: &std::path::Path, byte: u8) {
        std::fs::write(path, vec![byte; 3 << 20]).unwrap();
    }

    #[test]
    fn a_file_is_replaced_in_one_step_and_the_old_one_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        filled(&at("metadata"), 1);
        filled(&at("new"), 2);
        let replacement = Replacement { metadata: at("metadata"), new: at("new"), kept: at("old"), note: at("note") };
        replace_metadata(&replacement, &FileDevice::open(&at("metadata")).unwrap()).unwrap();
        assert_eq!((std::fs::read(at("metadata")).unwrap()[9], std::fs::read(at("old")).unwrap()[9]), (2, 1));
        assert!(!at("new").exists() && !at("note").exists());
        filled(&at("new"), 3);
        let error = replace_metadata(&replacement, &FileDevice::open(&at("metadata")).unwrap()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists, "what is kept is never overwritten");
        assert_eq!(std::fs::read(at("metadata")).unwrap()[9], 2);
    }

    #[test]
    fn a_copy_onto_a_disk_that_was_cut_short_is_finished() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        filled(&at("disk"), 1);
        filled(&at("new"), 2);
        assert!(!finish_replacement(&at("note")).unwrap(), "no note, nothing to do");
        write_note(&at("note"), &at("new"), &at("disk")).unwrap();
        // As far as it came: block 0 is empty, some blocks are new.
        let disk = FileDevice::open(&at("disk")).unwrap();
        disk.write_at(&[0; 4096], 0).unwrap();
        disk.write_at(&[2; 8192], 8192).unwrap();
        drop(disk);
        assert!(finish_replacement(&at("note")).unwrap());
        assert!(std::fs::read(at("disk")).unwrap().iter().all(|&byte| byte == 2));
        assert!(!at("note").exists() && !at("new").exists());
    }

    #[test]
    fn what_is_copied_onto_a_disk_is_all_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        filled(&at("disk"), 7);
        let mut bytes = vec![0; 3 << 20];
        bytes[5 << 18] = 9;
        std::fs::write(at("new"), &bytes).unwrap();
        copy_over(&at("new"), &FileDevice::open(&at("disk")).unwrap()).unwrap();
        assert!(std::fs::read(at("disk")).unwrap() == bytes);
    }
}
