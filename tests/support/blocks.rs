//! Reading and writing a block device past the page cache, 4 KiB at a time.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// What direct I/O wants everything to be aligned to.
pub(crate) const BLOCK: usize = 4096;

/// Opens a file or device for direct I/O.
pub(crate) fn open(path: &Path, write: bool) -> io::Result<File> {
    OpenOptions::new().read(true).write(write).custom_flags(libc::O_DIRECT).open(path)
}

/// Writes block `index`, filled with `word`.
pub(crate) fn write(file: &File, index: u64, word: u64) -> io::Result<()> {
    let mut room = vec![0; 2 * BLOCK];
    let start = room.as_ptr().align_offset(BLOCK);
    for piece in room[start..start + BLOCK].chunks_exact_mut(8) {
        piece.copy_from_slice(&word.to_le_bytes());
    }
    file.write_all_at(&room[start..start + BLOCK], index * BLOCK as u64)
}

/// The word that fills block `index`; an error if the block is not filled with one word.
pub(crate) fn read(file: &File, index: u64) -> io::Result<u64> {
    let mut room = vec![0; 2 * BLOCK];
    let start = room.as_ptr().align_offset(BLOCK);
    file.read_exact_at(&mut room[start..start + BLOCK], index * BLOCK as u64)?;
    let words: Vec<u64> = room[start..start + BLOCK]
        .chunks_exact(8)
        .map(|piece| u64::from_le_bytes(piece.try_into().expect("a piece has 8 bytes")))
        .collect();
    if words.iter().all(|word| *word == words[0]) {
        return Ok(words[0]);
    }
    let text = format!("block {index} is torn: it begins with {:#x} and ends with {:#x}", words[0], words[511]);
    Err(io::Error::new(io::ErrorKind::InvalidData, text))
}
