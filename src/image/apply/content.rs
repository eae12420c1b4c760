//! Writes the content of a file, and leaves a hole where it is zeros: a block that is not written takes no pool space.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::error::Result;
use crate::image::apply::failure::io_failure;
use crate::image::tar::{ArchiveSource, Entry, Fragment, TarReader};

/// Zeros become a hole in pieces of this size, at multiples of it: the smallest data block of a pool. Smaller holes would
/// save nothing and scatter the file.
const HOLE_SIZE: usize = 64 << 10;

/// Bytes of one write: large enough that calls do not count, a multiple of [`HOLE_SIZE`].
pub(super) const BUFFER_SIZE: usize = 4 * HOLE_SIZE;

/// Writes the current entry's content into `file`, which is new and empty.
pub(super) fn write_content<R: ArchiveSource>(
    file: &File,
    entry: &Entry,
    reader: &mut TarReader<R>,
    buffer: &mut [u8],
) -> Result<()> {
    let whole = [Fragment { offset: 0, len: entry.size }];
    let fragments = entry.fragments.as_deref().unwrap_or(&whole);
    let mut end_written = 0;
    for fragment in fragments {
        let (mut at, end) = (fragment.offset, fragment.offset + fragment.len);
        while at < end {
            // Up to the next multiple of the buffer's size, so that pieces stand at multiples of theirs.
            let to_boundary = BUFFER_SIZE as u64 - at % BUFFER_SIZE as u64;
            let want = usize::try_from(to_boundary.min(end - at)).expect("at most the buffer's size");
            let filled = reader.read_content(&mut buffer[..want])?;
            if filled == 0 {
                return Err(entry.bad("its content ends early"));
            }
            let data = &buffer[..filled];
            let written =
                write_around_zeros(file, at, data).map_err(|e| io_failure(&entry.path, "write the file", e))?;
            end_written = written.unwrap_or(end_written);
            at += filled as u64;
        }
    }
    if end_written < entry.size {
        file.set_len(entry.size).map_err(|e| io_failure(&entry.path, "set the file's size", e))?;
    }
    Ok(())
}

/// Writes `data` at `offset` but for whole pieces of zeros; returns where the last write ended, if there was one.
fn write_around_zeros(file: &File, offset: u64, data: &[u8]) -> std::io::Result<Option<u64>> {
    static ZEROS: [u8; HOLE_SIZE] = [0; HOLE_SIZE];
    let phase = usize::try_from(offset % HOLE_SIZE as u64).expect("less than a piece");
    let (mut end_written, mut start, mut at) = (None, 0, 0);
    let mut write = |from: usize, to: usize| -> std::io::Result<()> {
        if from < to {
            file.write_all_at(&data[from..to], offset + from as u64)?;
            end_written = Some(offset + to as u64);
        }
        Ok(())
    };
    while at < data.len() {
        let piece = if at == 0 { HOLE_SIZE - phase } else { HOLE_SIZE };
        let next = data.len().min(at + piece);
        if next - at == HOLE_SIZE && data[at..next] == ZEROS {
            write(start, at)?;
            start = next;
        }
        at = next;
    }
    write(start, data.len())?;
    Ok(end_written)
}
