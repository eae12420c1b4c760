//! A disk's content in memory as shared pages: a copy costs little, and a change copies one page.

use std::sync::Arc;

/// Bytes of a page.
pub(super) const PAGE: usize = 4096;

/// One page that is not all zero, and what it adds to the fingerprint.
#[derive(Debug, Clone)]
pub(super) struct Page {
    bytes: Arc<[u8; PAGE]>,
    hash: u64,
}

impl Page {
    /// `None`: all bytes are zero.
    pub(super) fn of(bytes: &[u8; PAGE]) -> Option<Self> {
        let hash = hash(bytes)?;
        Some(Self { bytes: Arc::new(*bytes), hash })
    }
}

/// The content of a device of any length, as pages that copies of it share.
#[derive(Debug, Clone, Default)]
pub struct DiskImage {
    pages: Vec<Option<Page>>,
    len: u64,
    /// Over pages and their places.
    sum: u64,
}

impl DiskImage {
    /// `len` zero bytes.
    #[must_use]
    pub fn zeroed(len: u64) -> Self {
        let mut image = Self::default();
        image.set_len(len);
        image
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// True without a byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Makes it longer, by zeroes, or shorter.
    pub fn set_len(&mut self, len: u64) {
        let pages = index(len.div_ceil(PAGE as u64));
        while self.pages.len() > pages {
            self.put(self.pages.len() - 1, None);
            self.pages.pop();
        }
        self.pages.resize(pages, None);
        let shorter = len < self.len;
        self.len = len;
        let rest = index(len) % PAGE;
        if shorter && rest > 0 {
            self.change(pages - 1, rest, PAGE, |bytes| bytes.fill(0));
        }
    }

    /// Fills `buf` from `offset`, zeroes behind the end.
    pub fn read(&self, buf: &mut [u8], offset: u64) {
        for (number, start, end, at) in parts(offset, buf.len()) {
            let piece = &mut buf[at..at + (end - start)];
            match self.pages.get(number) {
                Some(Some(page)) => piece.copy_from_slice(&page.bytes[start..end]),
                Some(None) | None => piece.fill(0),
            }
        }
    }

    /// Writes `buf` at `offset`; a write behind the end makes it longer, as on a file.
    pub fn write(&mut self, buf: &[u8], offset: u64) {
        self.reach(offset + buf.len() as u64);
        for (number, start, end, at) in parts(offset, buf.len()) {
            let piece = &buf[at..at + (end - start)];
            self.change(number, start, end, |bytes| bytes.copy_from_slice(piece));
        }
    }

    /// Zeroes a range.
    pub fn zero(&mut self, offset: u64, len: u64) {
        self.reach(offset + len);
        for (number, start, end, _) in parts(offset, index(len)) {
            self.change(number, start, end, |bytes| bytes.fill(0));
        }
    }

    /// The bytes of a page of 4096; `None` if they are all zero. The address names the content as long as
    /// the value is kept.
    #[must_use]
    pub fn page(&self, number: usize) -> Option<&Arc<[u8; 4096]>> {
        self.pages.get(number)?.as_ref().map(|page| &page.bytes)
    }

    /// All bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; index(self.len)];
        self.read(&mut bytes, 0);
        bytes
    }

    /// A number that equal contents share and different ones do not, but for one chance in 2^64.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        mix(self.sum ^ mix(self.len))
    }

    /// Puts a page in its place, as a write or a zeroing of the whole of it does.
    pub(super) fn put_page(&mut self, number: usize, page: Option<Page>) {
        self.reach((number as u64 + 1) * PAGE as u64);
        self.put(number, page);
    }

    /// Changes the bytes `start..end` of a page.
    pub(super) fn change(&mut self, number: usize, start: usize, end: usize, change: impl FnOnce(&mut [u8])) {
        let mut bytes = self.page(number).map_or([0; PAGE], |page| **page);
        change(&mut bytes[start..end]);
        self.put(number, Page::of(&bytes));
    }

    /// Makes it at least `len` bytes long.
    pub(super) fn reach(&mut self, len: u64) {
        if self.len < len {
            self.set_len(len);
        }
    }

    fn put(&mut self, number: usize, page: Option<Page>) {
        let share = |page: &Option<Page>| page.as_ref().map_or(0, |page| mix(page.hash ^ mix(number as u64)));
        let slot = &mut self.pages[number];
        self.sum = self.sum.wrapping_sub(share(slot)).wrapping_add(share(&page));
        *slot = page;
    }
}

impl From<Vec<u8>> for DiskImage {
    fn from(bytes: Vec<u8>) -> Self {
        let mut image = Self::zeroed(bytes.len() as u64);
        image.write(&bytes, 0);
        image
    }
}

/// The pages that a range touches: number, first and end byte in it, and where in the range they begin.
pub(super) fn parts(offset: u64, len: usize) -> impl Iterator<Item = (usize, usize, usize, usize)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let place = offset + at as u64;
        let start = index(place % PAGE as u64);
        let end = (start + len - at).min(PAGE);
        let part = (at < len).then(|| (index(place / PAGE as u64), start, end, at));
        at += end - start;
        part
    })
}

/// `None`: all zero.
fn hash(bytes: &[u8; PAGE]) -> Option<u64> {
    let mut sum = 0_u64;
    let mut any = 0;
    let (words, _) = bytes.as_chunks::<8>();
    for word in words {
        let word = u64::from_le_bytes(*word);
        any |= word;
        sum = (sum.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    (any != 0).then(|| mix(sum))
}

/// splitmix64's last step: every bit of the answer depends on every bit of the number.
fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// An offset in memory.
pub(super) fn index(offset: u64) -> usize {
    usize::try_from(offset).expect("a device in memory is smaller than the address space")
}

#[cfg(test)]
mod tests {
    use super::DiskImage;

    #[test]
    fn an_image_reads_as_it_was_written_and_copies_go_their_own_way() {
        let mut model = vec![0_u8; 20_000];
        let mut image = DiskImage::zeroed(20_000);
        for (offset, len, byte) in [(0, 1, 1), (4095, 2, 2), (5000, 9000, 3), (12_288, 4096, 4), (19_999, 1, 5)] {
            model[offset..offset + len].fill(byte);
            image.write(&vec![byte; len], offset as u64);
        }
        let before = image.clone();
        model[4000..6000].fill(0);
        image.zero(4000, 2000);
        assert_eq!(image.to_bytes(), model);
        assert_ne!(before.to_bytes(), model);
        assert_ne!(before.fingerprint(), image.fingerprint());
        assert_eq!(DiskImage::from(model).fingerprint(), image.fingerprint());
    }

    #[test]
    fn what_was_cut_off_comes_back_as_zeroes() {
        let mut image = DiskImage::from(vec![7; 10_000]);
        image.set_len(5000);
        image.set_len(10_000);
        let bytes = image.to_bytes();
        assert!(bytes[..5000].iter().all(|&byte| byte == 7) && bytes[5000..].iter().all(|&byte| byte == 0));
        image.zero(0, 5000);
        assert_eq!(image.fingerprint(), DiskImage::zeroed(10_000).fingerprint());
        assert!(image.page(0).is_none() && image.page(99).is_none());
    }
}
