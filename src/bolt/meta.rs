//! The two meta pages: which of them is the newest that is whole.
//!
//! Bolt writes them in turn, after everything that they point to is durable: a crash leaves the older one.

use crate::error::{Error, ErrorKind, Result};

/// Bytes before a page's content: number, flags, count, overflow.
pub(super) const PAGE_HEADER: usize = 16;
const META_LEN: usize = 64;
const CHECKSUM_AT: usize = 56;
const MAGIC: u32 = 0xed0c_daed;
const VERSION: u32 = 2;
/// Page sizes that bolt has had on any machine: 1 KiB to 16 MiB.
const PAGE_SIZE_SHIFTS: std::ops::RangeInclusive<u32> = 10..=24;

/// What a meta page says, as far as a reader needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) page_size: usize,
    /// First page of the bucket of all buckets.
    pub(super) root: u64,
    /// Pages below this one are in use or free; the rest of the file means nothing.
    pub(super) pages: u64,
    pub(super) transaction: u64,
}

/// The newest meta page that is whole. Errors: `Corrupt` if neither is, `Unsupported`.
pub(super) fn newest(bytes: &[u8]) -> Result<Meta> {
    let first = meta_at(bytes, 0);
    let found = match first {
        Ok(first) => {
            let second = meta_at(bytes, first.page_size).ok().filter(|second| second.page_size == first.page_size);
            second.filter(|second| second.transaction > first.transaction).unwrap_or(first)
        }
        // The second is as far on as a page is large, and only the first says how large that is.
        Err(error) => PAGE_SIZE_SHIFTS
            .map(|shift| 1_usize << shift)
            .find_map(|size| meta_at(bytes, size).ok().filter(|meta| meta.page_size == size))
            .ok_or(error)?,
    };
    Ok(found)
}

fn meta_at(bytes: &[u8], at: usize) -> Result<Meta> {
    let corrupt = |what: &str| Error::new(ErrorKind::Corrupt, format!("the meta page at byte {at}: {what}"));
    let meta = bytes
        .get(at + PAGE_HEADER..at + PAGE_HEADER + META_LEN)
        .ok_or_else(|| corrupt("the file ends before it: it is empty, or was cut short"))?;
    match le32(meta, 0) {
        Some(MAGIC) => {}
        Some(magic) if magic.swap_bytes() == MAGIC => {
            return Err(Error::new(ErrorKind::Unsupported, "it was written by a machine of the other byte order"));
        }
        _ => return Err(corrupt("it is not bolt's")),
    }
    let checksum = le64(meta, CHECKSUM_AT).ok_or_else(|| corrupt("it is cut short"))?;
    if checksum != fnv1a(&meta[..CHECKSUM_AT]) {
        return Err(corrupt("its checksum is wrong"));
    }
    let version = le32(meta, 4).unwrap_or_default();
    if version != VERSION {
        return Err(Error::new(ErrorKind::Unsupported, format!("it has version {version} of bolt's format")));
    }
    let page_size = le32(meta, 8).filter(|size| PAGE_SIZE_SHIFTS.into_iter().any(|shift| 1 << shift == *size));
    let page_size = page_size.and_then(|size| usize::try_from(size).ok());
    let (Some(page_size), Some(root), Some(pages), Some(transaction)) =
        (page_size, le64(meta, 16), le64(meta, 40), le64(meta, 48))
    else {
        return Err(corrupt("its page size is none"));
    };
    Ok(Meta { page_size, root, pages, transaction })
}

/// The number at `at`; `None` beyond the end.
pub(super) fn le16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().copied().map(u16::from_le_bytes)
}

/// The number at `at`; `None` beyond the end.
pub(super) fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().copied().map(u32::from_le_bytes)
}

/// The number at `at`; `None` beyond the end.
pub(super) fn le64(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().copied().map(u64::from_le_bytes)
}

/// FNV-1a, 64 bits: bolt's checksum.
pub(super) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}
