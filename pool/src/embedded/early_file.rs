//! Writes that were acknowledged before they stand in their blocks, in memory that outlives the process.
//!
//! The file is a page of header, a table of slots and pages for bytes. A slot names up to [`PAGES_OF_WRITE`] pages that
//! hold the bytes of one write. Its last word puts it in force: it is stored behind all others, and made zero when the
//! write stands in its block. So a kill in the middle leaves a slot whose last word is zero, and nothing was
//! acknowledged; any other slot that is not sound was damaged. After a power cut the file is void, as the intent log is.

use std::path::Path;

use crate::device::{SharedFile, SharedWords};
use crate::embedded::intent_format::{LogOwner, PAGE_WORDS, halves, sixteen, word_at};
use crate::embedded::intent_log::{grown_up, young};
use crate::embedded::intent_record::seal;
use crate::error::{Error, ErrorKind, Result};
use crate::units::DeviceId;

/// Writes that may be under way, and pages for their bytes: 1 MiB.
pub(super) const SLOTS: u16 = 256;
/// Bytes of a page.
pub(super) const PAGE: usize = PAGE_WORDS * 8;
/// Pages of the largest write.
pub(super) const PAGES_OF_WRITE: usize = 4;

/// "thinearl" as the bytes of a little-endian word.
const MAGIC: u64 = u64::from_le_bytes(*b"thinearl");
const VERSION: u64 = 1;
const HEADER_WORDS: usize = 8;
const SLOT_WORDS: usize = 8;
/// Words of a slot before its seal.
const SLOT_HEAD: usize = 6;
const TABLE: usize = PAGE_WORDS;
const BYTES: usize = TABLE + SLOTS as usize * SLOT_WORDS;
const FILE_WORDS: usize = BYTES + SLOTS as usize * PAGE_WORDS;

/// Which pages hold the bytes of a write, in order.
pub(super) type Pages = [u16; PAGES_OF_WRITE];

/// A write as its slot says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EarlyWrite {
    pub(super) slot: u16,
    pub(super) pages: Pages,
    pub(super) sequence: u64,
    pub(super) device: DeviceId,
    /// First byte on the device.
    pub(super) offset: u64,
    pub(super) bytes: Vec<u8>,
}

/// The file, mapped.
pub(super) struct EarlyFile {
    words: SharedWords,
}

impl EarlyFile {
    /// Makes an empty one at `path`, in the place of what stands there. Errors: `OutOfDataSpace`, `Io`.
    pub(super) fn create(path: &Path, owner: LogOwner) -> Result<Self> {
        let make = || {
            let mut words = young(path, FILE_WORDS)?;
            let ([i0, i1], [b0, b1]) = (halves(owner.identity), halves(owner.boot));
            let head = [MAGIC, VERSION, i0, i1, b0, b1, owner.session];
            for (at, word) in head.into_iter().chain([seal(&head)]).enumerate() {
                words.store(at, word);
            }
            grown_up(&mut words, path)?;
            Ok(Self { words })
        };
        make().map_err(|e: Error| e.doing(format_args!("make the file of early writes {}", path.display())))
    }

    /// Goes on with a file that was read and believed.
    pub(super) fn resume(file: SharedFile) -> Result<Self> {
        file.map().map(|words| Self { words })
    }

    /// Puts a write of at most [`PAGES_OF_WRITE`] pages, and of whole words, into a slot and pages that nobody uses.
    pub(super) fn put(&self, slot: u16, pages: Pages, sequence: u64, device: DeviceId, offset: u64, bytes: &[u8]) {
        let mut sum = 0;
        for (page, part) in pages.into_iter().zip(bytes.chunks(PAGE)) {
            let start = BYTES + usize::from(page) * PAGE_WORDS;
            for (at, word) in part.chunks_exact(8).enumerate() {
                self.words.store(start + at, u64::from_le_bytes(word.try_into().expect("eight bytes")));
            }
            sum = crc32c::crc32c_append(sum, part);
        }
        let pages = pages.iter().rev().fold(0, |word, page| word << 16 | u64::from(*page));
        let head = [sequence, u64::from(device.get()), offset, bytes.len() as u64, pages, u64::from(sum)];
        let start = TABLE + usize::from(slot) * SLOT_WORDS;
        for (at, word) in head.into_iter().enumerate() {
            self.words.store(start + at, word);
        }
        self.words.publish(start + SLOT_HEAD, seal(&head));
    }

    /// The write of a slot stands in its block.
    pub(super) fn clear(&self, slot: u16) {
        self.words.publish(TABLE + usize::from(slot) * SLOT_WORDS + SLOT_HEAD, 0);
    }

    /// Takes the file away.
    pub(super) fn remove(&self) -> Result<()> {
        self.words.file().remove()
    }
}

fn words(bytes: &[u8], start: usize, count: usize) -> Vec<u64> {
    (start..start + count).filter_map(|at| word_at(bytes, at)).collect()
}

/// Reads the header alone: of another boot the rest means nothing, and may be torn. Errors: `DoubtfulLog` (what is wrong).
pub(super) fn parse_owner(bytes: &[u8]) -> Result<LogOwner> {
    if bytes.len() != FILE_WORDS * 8 {
        return Err(doubt(format!("it has {} bytes, not {}", bytes.len(), FILE_WORDS * 8)));
    }
    let header = words(bytes, 0, HEADER_WORDS);
    let &[magic, version, i0, i1, b0, b1, session, sum] = header.as_slice() else {
        return Err(doubt("it has no header"));
    };
    if magic != MAGIC || sum != seal(&header[..HEADER_WORDS - 1]) {
        return Err(doubt("its header is not sound"));
    }
    if version != VERSION {
        return Err(doubt(format!("it is of version {version}, this build knows {VERSION}")));
    }
    Ok(LogOwner { identity: sixteen(i0, i1), boot: sixteen(b0, b1), session })
}

/// Reads the writes, ascending by their sequence, behind a sound header. Errors: `DoubtfulLog` (what is wrong).
pub(super) fn parse_writes(bytes: &[u8]) -> Result<Vec<EarlyWrite>> {
    let mut writes = Vec::new();
    for slot in 0..SLOTS {
        let words = words(bytes, TABLE + usize::from(slot) * SLOT_WORDS, SLOT_HEAD + 1);
        if words.last() != Some(&0) {
            writes.push(decode(slot, &words, bytes).map_err(|why| doubt(format!("slot {slot}: {why}")))?);
        }
    }
    writes.sort_unstable_by_key(|write| write.sequence);
    Ok(writes)
}

fn decode(slot: u16, words: &[u64], file: &[u8]) -> std::result::Result<EarlyWrite, String> {
    let &[sequence, device, offset, len, pages, sum, sealed] = words else { return Err("it is cut short".to_owned()) };
    if sealed != seal(&words[..SLOT_HEAD]) {
        return Err("its checksum is wrong".to_owned());
    }
    let device = u32::try_from(device).map_err(|e| e.to_string())?;
    let device = DeviceId::new(device).map_err(|e| e.to_string())?;
    let len = usize::try_from(len).map_err(|e| e.to_string())?;
    if len == 0 || len > PAGES_OF_WRITE * PAGE {
        return Err(format!("{len} bytes are no early write"));
    }
    let mut bytes = Vec::with_capacity(len);
    let pages: Pages = std::array::from_fn(|number| u16::try_from(pages >> (16 * number) & 0xffff).unwrap_or_default());
    for page in &pages[..len.div_ceil(PAGE)] {
        let start = (BYTES + usize::from(*page) * PAGE_WORDS) * 8;
        let part = file.get(start..start + PAGE.min(len - bytes.len()));
        bytes.extend_from_slice(part.ok_or_else(|| format!("there is no page {page}"))?);
    }
    if u64::from(crc32c::crc32c(&bytes)) != sum {
        return Err("its bytes are not those that were written".to_owned());
    }
    Ok(EarlyWrite { slot, pages, sequence, device, offset, bytes })
}

fn doubt(why: impl Into<String>) -> Error {
    Error::new(ErrorKind::DoubtfulLog, why)
}

#[cfg(test)]
mod tests {
    use super::{EarlyFile, EarlyWrite, FILE_WORDS, LogOwner, PAGE, Pages, parse_owner, parse_writes};
    use crate::device::trace;
    use crate::error::Result;
    use crate::units::DeviceId;

    const OWNER: LogOwner = LogOwner { identity: [3; 16], boot: [4; 16], session: 5 };

    fn parse(bytes: &[u8]) -> Result<Vec<EarlyWrite>> {
        assert_eq!(parse_owner(bytes)?, OWNER);
        parse_writes(bytes)
    }

    fn write(slot: u16, pages: Pages, bytes: Vec<u8>) -> EarlyWrite {
        let device = DeviceId::new(0xff_fffe).unwrap();
        EarlyWrite { slot, pages, sequence: 9 - u64::from(slot), device, offset: 1 << 40, bytes }
    }

    fn put(file: &EarlyFile, write: &EarlyWrite) {
        file.put(write.slot, write.pages, write.sequence, write.device, write.offset, &write.bytes);
    }

    #[test]
    fn what_was_put_is_there_until_it_is_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("early");
        let file = EarlyFile::create(&path, OWNER).unwrap();
        let read = || parse(&std::fs::read(&path).unwrap()).unwrap();
        let whole: Vec<u8> = (0..4 * PAGE).map(|at| u8::try_from(at % 251).unwrap()).collect();
        let (small, large) = (write(2, [255, 0, 0, 0], vec![7; 512]), write(1, [9, 3, 200, 4], whole));
        put(&file, &small);
        put(&file, &large);
        assert_eq!(read(), [small.clone(), large]);
        file.clear(1);
        assert_eq!(read(), [small]);
        file.clear(2);
        assert_eq!(read(), []);
    }

    #[test]
    fn a_kill_between_any_two_stores_leaves_the_write_or_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("early");
        let file = EarlyFile::create(&path, OWNER).unwrap();
        let mut image = std::fs::read(&path).unwrap();
        assert_eq!(image.len(), FILE_WORDS * 8);
        trace::take();
        let first = write(0, [0, 1, 0, 0], vec![1; PAGE + 512]);
        let second = write(0, [1, 0, 0, 0], vec![2; 4096]);
        put(&file, &first);
        let until_put = trace::take();
        file.clear(0);
        put(&file, &second);
        let until_second = trace::take();
        let mut seen = vec![parse(&image).unwrap()];
        for (at, value) in until_put.iter().chain(&until_second) {
            image[at * 8..at * 8 + 8].copy_from_slice(&value.to_le_bytes());
            let now = parse(&image).unwrap();
            if seen.last() != Some(&now) {
                seen.push(now);
            }
        }
        assert_eq!(seen, [vec![], vec![first], vec![], vec![second]]);
    }

    #[test]
    fn no_flipped_bit_passes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("early");
        let file = EarlyFile::create(&path, OWNER).unwrap();
        put(&file, &write(0, [0; 4], (0..=255).cycle().take(512).collect()));
        let sound = std::fs::read(&path).unwrap();
        let meant = [0..8 * 8, 4096..4096 + 7 * 8, super::BYTES * 8..super::BYTES * 8 + 512];
        for at in meant.into_iter().flatten() {
            for bit in 0..8 {
                let mut bytes = sound.clone();
                bytes[at] ^= 1 << bit;
                assert!(parse(&bytes).is_err(), "bit {bit} of byte {at}");
            }
        }
        assert!(parse(&sound[..sound.len() - 8]).is_err());
    }
}
