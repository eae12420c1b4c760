//! One member of a tar archive, with all its headers folded together.

use crate::error::{Error, ErrorKind};
use crate::image::tar::sparse::Fragment;

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) enum EntryKind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// One member of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::image) struct Entry {
    pub(in crate::image) kind: EntryKind,
    /// As the archive spells it: not empty, no NUL; may be absolute, may hold `..`.
    pub(in crate::image) path: Vec<u8>,
    /// Target of a hard link or symlink: no NUL; empty for the others.
    pub(in crate::image) link: Vec<u8>,
    /// Permissions with setuid, setgid and sticky: 12 bits.
    pub(in crate::image) mode: u32,
    /// Never `u32::MAX`, which chown(2) takes for "leave it".
    pub(in crate::image) uid: u32,
    /// Never `u32::MAX`.
    pub(in crate::image) gid: u32,
    /// Seconds since the epoch, and nanoseconds in 0..1e9.
    pub(in crate::image) mtime: (i64, u32),
    /// Major and minor number of a device.
    pub(in crate::image) device: (u32, u32),
    /// Names and values, by name.
    pub(in crate::image) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Bytes of the file that comes of it.
    pub(in crate::image) size: u64,
    /// Where its content goes; `None`: all of it from 0 on. The rest of the file is a hole.
    pub(in crate::image) fragments: Option<Vec<Fragment>>,
    /// Offset of its first header in the archive.
    pub(in crate::image) header_at: u64,
}

impl Entry {
    /// A `BadArchive` error that names this entry.
    pub(in crate::image) fn bad(&self, reason: impl std::fmt::Display) -> Error {
        bad_entry(&self.path, reason)
    }
}

/// A `BadArchive` error that names an entry by its path.
pub(in crate::image) fn bad_entry(path: &[u8], reason: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::BadArchive, format!("archive entry {}: {reason}", shown(path)))
}

/// A path from an archive, for a person: quoted, control characters escaped, of a length that fits a line.
pub(in crate::image) fn shown(path: &[u8]) -> String {
    const CHARS_MAX: usize = 160;
    let text = String::from_utf8_lossy(path);
    match text.char_indices().nth(CHARS_MAX) {
        Some((at, _)) => format!("{:?}… ({} bytes)", &text[..at], path.len()),
        None => format!("{text:?}"),
    }
}
