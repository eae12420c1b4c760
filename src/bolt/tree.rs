//! Buckets: trees of pages whose leaves hold values and further buckets.
//!
//! The bytes may be anything. Three bounds make every reading end, in memory in proportion to the file: a page is
//! visited once, entries together are no larger than the file, and nothing is nested deeper than [`DEPTH_MAX`].

use std::collections::{BTreeMap, HashSet};

use crate::bolt::meta::{Meta, PAGE_HEADER, le16, le32, le64};
use crate::error::{Error, ErrorKind, Result};

/// Pages above one another, and buckets in one another, together.
const DEPTH_MAX: u32 = 64;
/// Bytes of an entry of a branch or leaf, without what it points to.
const ENTRY: usize = 16;
/// Bytes before the inline page of a small bucket: root page, sequence.
const BUCKET_HEADER: usize = 16;
const FLAG_BRANCH: u16 = 0x01;
const FLAG_LEAF: u16 = 0x02;
/// The entry of a leaf is a bucket.
const ENTRY_IS_BUCKET: u32 = 0x01;

/// A bucket with all that is in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bucket {
    values: BTreeMap<Vec<u8>, Vec<u8>>,
    buckets: BTreeMap<Vec<u8>, Bucket>,
}

impl Bucket {
    /// The value under a key.
    #[must_use]
    pub fn value(&self, key: &[u8]) -> Option<&[u8]> {
        self.values.get(key).map(Vec::as_slice)
    }

    /// All values, ascending by key.
    pub fn values(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.values.iter().map(|(key, value)| (key.as_slice(), value.as_slice()))
    }

    /// The bucket under a key.
    #[must_use]
    pub fn bucket(&self, key: &[u8]) -> Option<&Bucket> {
        self.buckets.get(key)
    }

    /// All buckets, ascending by key.
    pub fn buckets(&self) -> impl Iterator<Item = (&[u8], &Bucket)> {
        self.buckets.iter().map(|(key, bucket)| (key.as_slice(), bucket))
    }
}

/// Reads everything that a meta page reaches. Errors: `Corrupt`, naming the page.
pub(super) fn read_tree(bytes: &[u8], meta: &Meta) -> Result<Bucket> {
    let mut reader = Reader { bytes, meta, visited: HashSet::new(), entry_bytes: 0 };
    let mut root = Bucket::default();
    reader.page(meta.root, &mut root, 0)?;
    Ok(root)
}

struct Reader<'a> {
    bytes: &'a [u8],
    meta: &'a Meta,
    visited: HashSet<u64>,
    /// Of all entries met so far: entries of a sound file do not overlap.
    entry_bytes: usize,
}

impl<'a> Reader<'a> {
    /// Reads a page and what is below it into `bucket`.
    fn page(&mut self, number: u64, bucket: &mut Bucket, depth: u32) -> Result<()> {
        let corrupt = |what: &str| Error::new(ErrorKind::Corrupt, format!("page {number}: {what}"));
        if number < 2 || number >= self.meta.pages {
            return Err(corrupt("it is not among the pages in use"));
        }
        if !self.visited.insert(number) {
            return Err(corrupt("it is named twice"));
        }
        let page = self.page_bytes(number).ok_or_else(|| corrupt("the file ends before it does"))?;
        if le64(page, 0) != Some(number) {
            return Err(corrupt("it has another number"));
        }
        self.content(page, bucket, depth).map_err(|error| error.doing(format!("page {number}")))
    }

    /// The bytes of a page with those that it overflows into; `None` if the file has not as many.
    fn page_bytes(&self, number: u64) -> Option<&'a [u8]> {
        let at = usize::try_from(number).ok()?.checked_mul(self.meta.page_size)?;
        let page = self.bytes.get(at..)?;
        let overflow = u64::from(le32(page, 12)?);
        if number.checked_add(overflow)? >= self.meta.pages {
            return None;
        }
        page.get(..usize::try_from(overflow).ok()?.checked_add(1)?.checked_mul(self.meta.page_size)?)
    }

    /// Reads the content of a page, one of its own or an inline one.
    fn content(&mut self, page: &'a [u8], bucket: &mut Bucket, depth: u32) -> Result<()> {
        let corrupt = |what: String| Error::new(ErrorKind::Corrupt, what);
        if depth >= DEPTH_MAX {
            return Err(corrupt(format!("more than {DEPTH_MAX} levels deep")));
        }
        let (Some(flags), Some(count)) = (le16(page, 8), le16(page, 10)) else {
            return Err(corrupt("it is cut short".to_owned()));
        };
        for n in 0..usize::from(count) {
            let at = PAGE_HEADER + n * ENTRY;
            let entry = page.get(at..).filter(|entry| entry.len() >= ENTRY);
            let entry = entry.ok_or_else(|| corrupt(format!("entry {n} lies outside")))?;
            match flags {
                FLAG_BRANCH => {
                    self.spend(ENTRY)?;
                    let below = le64(entry, 8).ok_or_else(|| corrupt(format!("entry {n} is cut short")))?;
                    self.page(below, bucket, depth + 1)?;
                }
                FLAG_LEAF => {
                    self.leaf_entry(entry, bucket, depth).map_err(|error| error.doing(format!("entry {n}")))?;
                }
                _ => return Err(corrupt(format!("it is neither branch nor leaf (flags {flags:#x})"))),
            }
        }
        Ok(())
    }

    /// `entry` goes on to the end of the page: keys and values lie behind the last entry, told from this one's start.
    fn leaf_entry(&mut self, entry: &'a [u8], bucket: &mut Bucket, depth: u32) -> Result<()> {
        let corrupt = |what: &str| Error::new(ErrorKind::Corrupt, what);
        let field = |at| le32(entry, at).and_then(|number| usize::try_from(number).ok());
        let outside = || corrupt("its key or value lies outside the page");
        let (Some(flags), Some(at), Some(key_len), Some(value_len)) = (le32(entry, 0), field(4), field(8), field(12))
        else {
            return Err(outside());
        };
        let behind = entry.get(at..).ok_or_else(outside)?;
        let key = behind.get(..key_len).ok_or_else(outside)?;
        let value = behind[key_len..].get(..value_len).ok_or_else(outside)?;
        self.spend(ENTRY + key_len)?;
        if bucket.values.contains_key(key) || bucket.buckets.contains_key(key) {
            return Err(corrupt("its key stands in the bucket twice"));
        }
        if flags & ENTRY_IS_BUCKET == 0 {
            self.spend(value_len)?;
            bucket.values.insert(key.to_vec(), value.to_vec());
            return Ok(());
        }
        let root = le64(value, 0).ok_or_else(|| corrupt("a bucket without a root"))?;
        let mut inner = Bucket::default();
        if root == 0 {
            // A small one stands in its entry.
            let page = value.get(BUCKET_HEADER..).ok_or_else(|| corrupt("a bucket that is cut short"))?;
            self.content(page, &mut inner, depth + 1)?;
        } else {
            self.page(root, &mut inner, depth + 1)?;
        }
        bucket.buckets.insert(key.to_vec(), inner);
        Ok(())
    }

    fn spend(&mut self, bytes: usize) -> Result<()> {
        self.entry_bytes = self.entry_bytes.saturating_add(bytes);
        if self.entry_bytes > self.bytes.len() {
            return Err(Error::new(ErrorKind::Corrupt, "its entries overlap"));
        }
        Ok(())
    }
}
