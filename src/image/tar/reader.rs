//! Reads a tar archive member by member: framing, extended headers, and the content's bytes.
//!
//! The parser is our own because the framing is where archives lie. What a general one gives leniently is refused here: a
//! size that two headers tell differently without a rule, a record cut by a newline in a binary value, numbers cut to
//! 64 bits, extended headers of any size in memory, global headers that change what others see.
//!
//! Invariants: a pax `size` always wins over the block's; memory is bounded by [`Limits`]; whatever the bytes, the
//! answer is an entry, the end, or an error, never a panic.

use std::io::{self, BufRead, Read};

use crate::config::Limits;
use crate::error::{Error, ErrorKind, Result};
use crate::image::tar::entry::{Entry, EntryKind, bad_entry};
use crate::image::tar::fields::{check_no_content, device_of, kind_of, low_bits, once, one_name, owner, until_nul};
use crate::image::tar::header::{BLOCK_SIZE, Header, bad_block};
use crate::image::tar::pax::{self, Pax};
use crate::image::tar::sparse::{self, Fragment};

/// What an archive is read from.
pub(in crate::image) trait ArchiveSource: BufRead {
    /// Passes over bytes. `UnexpectedEof` if it ends before; a source that seeks need not notice.
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let mut left = bytes;
        while left > 0 {
            let ready = self.fill_buf()?.len();
            if ready == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let step = usize::try_from(left).unwrap_or(usize::MAX).min(ready);
            self.consume(step);
            left -= step as u64;
        }
        Ok(())
    }
}

impl ArchiveSource for &[u8] {}

/// Whether an archive must end with two blocks of zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) enum EndMark {
    /// Nothing else tells whether it is whole.
    Required,
    /// A digest tells whether it is whole, and some builders end with the last byte of content.
    Optional,
}

/// A tar archive being read.
pub(in crate::image) struct TarReader<R> {
    source: R,
    end_mark: EndMark,
    limits: Limits,
    /// Bytes of the archive that were taken from the source.
    at: u64,
    /// Content of the current entry that was not read yet.
    content_left: u64,
    /// Bytes from the end of the content to the next block.
    padding: u64,
    entries: u64,
    ended: bool,
}

/// The headers in front of a member, until the one that is the member.
#[derive(Default)]
struct Before {
    pax: Option<Pax>,
    long_path: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl<R: ArchiveSource> TarReader<R> {
    /// Reads nothing yet.
    pub(in crate::image) fn new(source: R, end_mark: EndMark, limits: &Limits) -> Self {
        let limits = limits.clone();
        Self { source, end_mark, limits, at: 0, content_left: 0, padding: 0, entries: 0, ended: false }
    }

    /// The source, standing behind what was read.
    pub(in crate::image) fn into_source(self) -> R {
        self.source
    }

    /// Offset in the archive of the current entry's unread content.
    pub(in crate::image) fn content_at(&self) -> u64 {
        self.at
    }

    /// Bytes of the current entry's unread content.
    pub(in crate::image) fn content_left(&self) -> u64 {
        self.content_left
    }

    /// The next member; passes over what is left of the current one. `None` at the end mark.
    pub(in crate::image) fn next_entry(&mut self) -> Result<Option<Entry>> {
        self.skip(self.content_left)?;
        self.content_left = 0;
        self.skip_padding()?;
        if self.ended {
            return Ok(None);
        }
        let header_at = self.at;
        let mut before = Before::default();
        loop {
            let block_at = self.at;
            let Some(block) = self.read_header_block(&before)? else {
                self.ended = true;
                return Ok(None);
            };
            let header = Header::parse(&block, block_at)?;
            let of_block = |reason: String| bad_block(block_at, &reason);
            match header.flag() {
                b'x' => {
                    let data = self.read_extended(&header, block_at)?;
                    let parsed = pax::parse(&data, &self.limits).map_err(of_block)?;
                    once(&mut before.pax, parsed).map_err(of_block)?;
                }
                b'g' => {
                    let data = self.read_extended(&header, block_at)?;
                    pax::check_global(&data).map_err(of_block)?;
                }
                b'L' => {
                    let data = self.read_extended(&header, block_at)?;
                    once(&mut before.long_path, until_nul(data)).map_err(of_block)?;
                }
                b'K' => {
                    let data = self.read_extended(&header, block_at)?;
                    once(&mut before.long_link, until_nul(data)).map_err(of_block)?;
                }
                _ => {
                    self.entries += 1;
                    if self.entries > self.limits.entries {
                        let reason = format!("more than {} entries", self.limits.entries);
                        return Err(of_block(Limits::over("entries", reason)));
                    }
                    return self.fold(&header, before, header_at).map(Some);
                }
            }
        }
    }

    /// Content of the current entry that is ready; empty at its end.
    pub(in crate::image) fn fill(&mut self) -> Result<&[u8]> {
        if self.content_left == 0 {
            return Ok(&[]);
        }
        let at = self.at;
        let ready = self.source.fill_buf().map_err(|error| source_error(error, at))?;
        if ready.is_empty() {
            return Err(truncated(at));
        }
        let len = usize::try_from(self.content_left).unwrap_or(usize::MAX).min(ready.len());
        Ok(&ready[..len])
    }

    /// Takes bytes that [`Self::fill`] gave.
    pub(in crate::image) fn consume(&mut self, bytes: usize) {
        self.source.consume(bytes);
        self.at += bytes as u64;
        self.content_left -= bytes as u64;
    }

    /// Reads the current entry's content into `buffer` until it is full or the content ends; returns how much.
    pub(in crate::image) fn read_content(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            let ready = self.fill()?;
            if ready.is_empty() {
                break;
            }
            let step = ready.len().min(buffer.len() - filled);
            buffer[filled..filled + step].copy_from_slice(&ready[..step]);
            self.consume(step);
            filled += step;
        }
        Ok(filled)
    }

    /// Folds the headers into an entry and sets the bounds of its content.
    fn fold(&mut self, header: &Header<'_>, before: Before, header_at: u64) -> Result<Entry> {
        let Before { pax, long_path, long_link } = before;
        let pax = pax.unwrap_or_default();
        let sparse_name = pax.sparse.as_ref().and_then(|sparse| sparse.name.clone());
        let path = one_name(sparse_name.or(pax.path), long_path, || header.path())
            .map_err(|reason| bad_block(header_at, &reason))?;
        let in_entry = |reason: String| bad_entry(&path, reason);
        let kind = kind_of(header.flag(), &path).map_err(in_entry)?;
        let link = match kind {
            EntryKind::HardLink | EntryKind::Symlink => {
                one_name(pax.link, long_link, || header.link().to_vec()).map_err(in_entry)?
            }
            EntryKind::File
            | EntryKind::CharDevice
            | EntryKind::BlockDevice
            | EntryKind::Directory
            | EntryKind::Fifo => Vec::new(),
        };
        for (what, name) in [("path", &path), ("link target", &link)] {
            let Limits { path_bytes, path_depth, .. } = self.limits;
            if name.len() > path_bytes {
                let reason = format!("its {what} is longer than {path_bytes} bytes");
                return Err(in_entry(Limits::over("path_bytes", reason)));
            }
            // The directories that it has us walk through, and its own name.
            let components = name.split(|b| *b == b'/').filter(|name| !matches!(*name, [] | [b'.']));
            if components.count() > path_depth + 1 {
                let reason = format!("its {what} leads through more than {path_depth} directories");
                return Err(in_entry(Limits::over("path_depth", reason)));
            }
        }
        let field = |name: &'static str| move |reason: String| format!("its field {name} {reason}");
        let block_size = header.size().map_err(field("size")).map_err(in_entry)?;
        let mut entry = Entry {
            kind,
            link,
            mode: low_bits(header.mode().map_err(field("mode")).map_err(in_entry)?),
            uid: owner(pax.uid, header.uid().map_err(field("uid"))).map_err(in_entry)?,
            gid: owner(pax.gid, header.gid().map_err(field("gid"))).map_err(in_entry)?,
            mtime: match pax.mtime {
                Some(mtime) => mtime,
                None => (header.mtime().map_err(field("mtime")).map_err(in_entry)?, 0),
            },
            device: device_of(kind, header).map_err(field("device")).map_err(in_entry)?,
            xattrs: pax.xattrs,
            size: 0,
            fragments: None,
            header_at,
            path: path.clone(),
        };
        if kind != EntryKind::File {
            check_no_content(kind, block_size, pax.size).map_err(in_entry)?;
            if header.flag() == b'S' || pax.sparse.is_some() {
                return Err(entry.bad("it is sparse, but not a file"));
            }
            return Ok(entry);
        }
        let mut map = None;
        if header.flag() == b'S' {
            if pax.sparse.is_some() {
                return Err(entry.bad("two sparse maps"));
            }
            let (fragments, real_size) = self.read_old_map(header, &entry)?;
            map = Some((fragments, real_size));
        }
        let content = pax.size.unwrap_or(block_size);
        if content > i64::MAX.unsigned_abs() - (1 << 20) {
            return Err(entry.bad("its size is out of range"));
        }
        self.content_left = content;
        self.padding = content.next_multiple_of(BLOCK_SIZE as u64) - content;
        if let Some(told) = pax.sparse {
            let real_size = told.real_size.ok_or_else(|| entry.bad("a sparse map without the file's size"))?;
            let fragments = if told.map_in_content { self.read_content_map(&entry)? } else { told.map };
            map = Some((fragments, real_size));
        }
        match map {
            None => entry.size = content,
            Some((fragments, real_size)) => {
                sparse::check(&fragments, real_size, self.content_left).map_err(|reason| entry.bad(reason))?;
                entry.size = real_size;
                entry.fragments = Some(fragments);
            }
        }
        Ok(entry)
    }

    /// The map of GNU's old sparse format: four fragments in the header, more in the blocks behind it.
    fn read_old_map(&mut self, header: &Header<'_>, entry: &Entry) -> Result<(Vec<Fragment>, u64)> {
        let (fields, mut more, real_size) =
            header.sparse().ok_or_else(|| entry.bad("a sparse file of GNU's in a header that is not GNU's"))?;
        let real_size = real_size.map_err(|reason| entry.bad(format!("its real size {reason}")))?;
        let mut map = Vec::new();
        sparse::push_old(fields, &mut map).map_err(|reason| entry.bad(format!("its sparse map {reason}")))?;
        while more {
            let mut block = [0; BLOCK_SIZE];
            if !self.read_block(&mut block)? {
                return Err(truncated(self.at));
            }
            sparse::push_old(&block[..504], &mut map)
                .map_err(|reason| entry.bad(format!("its sparse map {reason}")))?;
            if map.len() > self.limits.sparse_fragments {
                return Err(entry.bad(sparse::too_many(&self.limits)));
            }
            more = block[504] != 0;
        }
        Ok((map, real_size))
    }

    /// The map of pax format 1.0: lines of decimal numbers in front of the content, the first one their count, padded to a
    /// whole block.
    fn read_content_map(&mut self, entry: &Entry) -> Result<Vec<Fragment>> {
        let start = self.at;
        let count = self.read_line_number(entry)?;
        if count > self.limits.sparse_fragments as u64 {
            return Err(entry.bad(sparse::too_many(&self.limits)));
        }
        let mut numbers = Vec::new();
        for _ in 0..count * 2 {
            numbers.push(self.read_line_number(entry)?);
        }
        let used = self.at - start;
        let rest = used.next_multiple_of(BLOCK_SIZE as u64) - used;
        if rest > self.content_left {
            return Err(entry.bad("its sparse map is cut off"));
        }
        self.content_left -= rest;
        self.skip(rest)?;
        sparse::from_numbers(&numbers).map_err(|reason| entry.bad(reason))
    }

    fn read_line_number(&mut self, entry: &Entry) -> Result<u64> {
        const DIGITS_MAX: usize = 20;
        let mut text = Vec::with_capacity(DIGITS_MAX);
        loop {
            let byte = self.fill()?.first().copied();
            let byte = byte.ok_or_else(|| entry.bad("its sparse map is cut off"))?;
            self.consume(1);
            if byte == b'\n' {
                break;
            }
            text.push(byte);
            if text.len() > DIGITS_MAX {
                return Err(entry.bad("its sparse map holds no number"));
            }
        }
        sparse::decimal(&text).map_err(|reason| entry.bad(format!("its sparse map: {reason}")))
    }

    /// The content of an extended header, with its padding passed over.
    fn read_extended(&mut self, header: &Header<'_>, at: u64) -> Result<Vec<u8>> {
        let size = header.size().map_err(|reason| bad_block(at, &format!("field size {reason}")))?;
        if size > self.limits.header_bytes {
            let reason = format!("an extended header of {size} bytes; the limit is {}", self.limits.header_bytes);
            return Err(bad_block(at, &Limits::over("header_bytes", reason)));
        }
        let mut data = Vec::new();
        // Grows with what is there, not with what is promised.
        let read = (&mut self.source).take(size).read_to_end(&mut data);
        read.map_err(|error| source_error(error, self.at))?;
        self.at += data.len() as u64;
        if data.len() as u64 != size {
            return Err(truncated(self.at));
        }
        self.skip(size.next_multiple_of(BLOCK_SIZE as u64) - size)?;
        Ok(data)
    }

    /// The next header block, or `None` at the end of the archive.
    fn read_header_block(&mut self, before: &Before) -> Result<Option<[u8; BLOCK_SIZE]>> {
        let at = self.at;
        let mut block = [0; BLOCK_SIZE];
        let is_there = self.read_block(&mut block)?;
        if is_there && block.iter().any(|b| *b != 0) {
            return Ok(Some(block));
        }
        if before.pax.is_some() || before.long_path.is_some() || before.long_link.is_some() {
            return Err(bad_block(at, "the archive ends behind an extended header, without its entry"));
        }
        if !is_there {
            return match self.end_mark {
                EndMark::Optional => Ok(None),
                EndMark::Required => Err(bad_block(at, "the archive ends without its end mark: it was cut off")),
            };
        }
        // One block of zeros and nothing behind it is an end as well: some programs write it so.
        if self.read_block(&mut block)? && block.iter().any(|b| *b != 0) {
            return Err(bad_block(at, "one block of zeros inside the archive"));
        }
        Ok(None)
    }

    /// Fills a block; `false` if the source ends before its first byte.
    fn read_block(&mut self, block: &mut [u8; BLOCK_SIZE]) -> Result<bool> {
        let mut filled = 0;
        while filled < BLOCK_SIZE {
            let ready = self.source.fill_buf().map_err(|error| source_error(error, self.at))?;
            if ready.is_empty() {
                return if filled == 0 { Ok(false) } else { Err(truncated(self.at)) };
            }
            let step = ready.len().min(BLOCK_SIZE - filled);
            block[filled..filled + step].copy_from_slice(&ready[..step]);
            self.source.consume(step);
            self.at += step as u64;
            filled += step;
        }
        Ok(true)
    }

    /// Passes over the rest of the content's last block, which umoci leaves out at the end of an archive.
    fn skip_padding(&mut self) -> Result<()> {
        let padding = std::mem::take(&mut self.padding);
        match (self.source.skip(padding), self.end_mark) {
            (Ok(()), _) => self.at += padding,
            (Err(error), EndMark::Optional) if error.kind() == io::ErrorKind::UnexpectedEof => self.ended = true,
            (Err(error), _) => return Err(source_error(error, self.at)),
        }
        Ok(())
    }

    fn skip(&mut self, bytes: u64) -> Result<()> {
        self.source.skip(bytes).map_err(|error| source_error(error, self.at))?;
        self.at += bytes;
        Ok(())
    }
}

fn truncated(at: u64) -> Error {
    bad_block(at, "the archive ends in the middle of an entry")
}

/// An error of the source: one of ours that travelled as an `io::Error`, the end, or the layer below.
fn source_error(error: io::Error, at: u64) -> Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof if error.get_ref().is_none() => truncated(at),
        _ => from_io(error),
    }
}

/// Takes an error of ours out of an `io::Error` that it travelled in.
fn from_io(error: io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(ours) => ours,
        // Not the machine's: an unpacker found fault with its bytes.
        Err(error) if error.raw_os_error().is_none() => {
            Error::with_source(ErrorKind::BadArchive, "read an archive", error)
        }
        Err(error) => Error::io("read an archive", error),
    }
}
