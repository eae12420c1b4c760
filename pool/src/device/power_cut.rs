//! Devices that remember every write and flush, and can tell what a power cut would have left.
//!
//! Several devices share one [`PowerSupply`], which numbers their events in one row. [`PowerSupply::after`] walks
//! along that row; [`Cut::images`] gives the disks after the events so far: what was flushed is there; of what was
//! not, each 512-byte sector of each write is there or not, as the caller chooses: writes may be lost and torn, a
//! sector is old or new. Two writes of one sector reach the disk in their order or the later one alone.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::device::block_device::{BlockDevice, check_range};
use crate::device::image::{DiskImage, PAGE, Page, index, parts};
use crate::error::Result;
use crate::units::SECTOR_SIZE;

/// All eight sectors of a piece.
const WHOLE: u8 = u8::MAX;

/// What a change does to one page, or to the length.
#[derive(Debug, Clone)]
enum Content {
    /// The whole page; `None`: zeroes.
    Page(Option<Page>),
    /// Bytes from a place in the page on.
    Bytes(Arc<[u8]>),
    /// Zeroes from a place in the page on, this many.
    Zeroes(usize),
    /// The device's length becomes this.
    Length(u64),
}

/// A part of a write within one page of 4 KiB, or a change of length: what a cut loses, keeps, or tears.
#[derive(Debug, Clone)]
pub struct Piece {
    /// Which device, in the order of their making.
    pub device: usize,
    /// Number of the event that it is part of.
    pub event: usize,
    /// Byte offset on the device.
    pub offset: u64,
    content: Content,
}

impl Piece {
    fn apply(&self, image: &mut DiskImage, sectors: u8) {
        let page = index(self.offset / PAGE as u64);
        let start = index(self.offset % PAGE as u64);
        match &self.content {
            Content::Length(len) if sectors != 0 => image.set_len(*len),
            Content::Length(_) => {}
            Content::Page(content) if sectors == WHOLE => image.put_page(page, content.clone()),
            Content::Page(content) => {
                let mut bytes = DiskImage::zeroed(PAGE as u64);
                bytes.put_page(0, content.clone());
                torn(image, page, 0, &bytes.to_bytes(), sectors);
            }
            Content::Bytes(bytes) => torn(image, page, start, bytes, sectors),
            Content::Zeroes(len) => torn(image, page, start, &vec![0; *len], sectors),
        }
    }

    /// True for a change of length, which no sector tears.
    #[must_use]
    pub fn is_length(&self) -> bool {
        matches!(self.content, Content::Length(_))
    }
}

/// Writes the sectors of `bytes` whose bits are set in the mask of the page's sectors.
fn torn(image: &mut DiskImage, page: usize, start: usize, bytes: &[u8], sectors: u8) {
    if sectors == 0 {
        return;
    }
    image.reach((page * PAGE + start + bytes.len()) as u64);
    image.change(page, start, start + bytes.len(), |old| {
        for (number, (old, new)) in old.iter_mut().zip(bytes).enumerate() {
            if sectors >> ((start + number) / index(SECTOR_SIZE)) & 1 == 1 {
                *old = *new;
            }
        }
    });
}

#[derive(Debug, Clone)]
enum Event {
    Change(Vec<Piece>),
    Flush { device: usize },
}

#[derive(Default)]
struct Recording {
    /// Content at the start of the recording, one image a device.
    first: Vec<DiskImage>,
    /// What a reader sees.
    current: Vec<DiskImage>,
    events: Vec<Event>,
    /// Position behind the last flush.
    flushed: usize,
    /// The devices whose users write in no order of their own.
    unordered: Vec<usize>,
}

/// What several devices hang on: one row of events, one moment of failure.
#[derive(Default)]
pub struct PowerSupply {
    recording: Mutex<Recording>,
}

impl PowerSupply {
    /// A supply without devices.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Adds a device with this content, durably.
    #[must_use]
    pub fn device(self: &Arc<Self>, content: impl Into<DiskImage>) -> PowerCutDevice {
        let mut recording = self.lock();
        let content = content.into();
        recording.first.push(content.clone());
        recording.current.push(content);
        PowerCutDevice { number: recording.current.len() - 1, supply: Arc::clone(self) }
    }

    /// The same of a device whose user writes between two flushes in an order that differs from run to run, that of
    /// a hash table: the recording brings such writes into one order, which no cut can tell from the other.
    #[must_use]
    pub fn unordered_device(self: &Arc<Self>, content: impl Into<DiskImage>) -> PowerCutDevice {
        let device = self.device(content);
        self.lock().unordered.push(device.number);
        device
    }

    /// Events so far: a cut may come after 0 …= this many of them.
    #[must_use]
    pub fn events(&self) -> usize {
        self.lock().events.len()
    }

    /// Events up to the last flush of any device, it included.
    #[must_use]
    pub fn flushed(&self) -> usize {
        self.lock().flushed
    }

    /// What a reader sees of each device, as after the death of the process alone.
    #[must_use]
    pub fn now(&self) -> Vec<DiskImage> {
        self.lock().current.clone()
    }

    /// The cut before the first event; [`Cut::advance`] moves it on.
    #[must_use]
    pub fn before_all(&self) -> Cut {
        let recording = self.lock();
        let mut events = recording.events.clone();
        in_order(&mut events, &recording.unordered);
        Cut { durable: recording.first.clone(), pending: Vec::new(), events, at: 0 }
    }

    /// The cut behind the first `events` events.
    #[must_use]
    pub fn after(&self, events: usize) -> Cut {
        let mut cut = self.before_all();
        while cut.at < events && cut.advance() {}
        cut
    }

    fn change(&self, device: usize, offset: u64, contents: Vec<(u64, Content)>) {
        let mut recording = self.lock();
        let event = recording.events.len();
        let pieces: Vec<Piece> = contents
            .into_iter()
            .map(|(skip, content)| Piece { device, event, offset: offset + skip, content })
            .collect();
        for piece in &pieces {
            piece.apply(&mut recording.current[device], WHOLE);
        }
        recording.events.push(Event::Change(pieces));
    }

    fn flush(&self, device: usize) {
        let mut recording = self.lock();
        recording.events.push(Event::Flush { device });
        recording.flushed = recording.events.len();
    }

    fn lock(&self) -> MutexGuard<'_, Recording> {
        self.recording.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sorts the writes of unordered devices that stand side by side in the row and touch different pages.
fn in_order(events: &mut [Event], unordered: &[usize]) {
    let place = |event: &Event| match event {
        Event::Change(pieces) => pieces
            .first()
            .filter(|piece| !piece.is_length() && unordered.contains(&piece.device))
            .map(|piece| (piece.device, piece.offset)),
        Event::Flush { .. } => None,
    };
    let pages = |event: &Event| -> Vec<u64> {
        let Event::Change(pieces) = event else { return Vec::new() };
        pieces.iter().map(|piece| piece.offset / PAGE as u64).collect()
    };
    let mut start = 0;
    while start < events.len() {
        let Some((device, _)) = place(&events[start]) else {
            start += 1;
            continue;
        };
        let mut seen = std::collections::BTreeSet::new();
        let mut end = start;
        while end < events.len()
            && place(&events[end]).is_some_and(|(other, _)| other == device)
            && pages(&events[end]).into_iter().all(|page| seen.insert(page))
        {
            end += 1;
        }
        events[start..end].sort_by_key(place);
        for (number, event) in events.iter_mut().enumerate().take(end).skip(start) {
            if let Event::Change(pieces) = event {
                pieces.iter_mut().for_each(|piece| piece.event = number);
            }
        }
        start = end.max(start + 1);
    }
}

/// The moment behind some events of a recording.
pub struct Cut {
    durable: Vec<DiskImage>,
    pending: Vec<Piece>,
    events: Vec<Event>,
    at: usize,
}

impl Cut {
    /// Events before the cut.
    #[must_use]
    pub fn events(&self) -> usize {
        self.at
    }

    /// Moves on by one event. False: there is none.
    pub fn advance(&mut self) -> bool {
        match self.events.get(self.at) {
            None => return false,
            Some(Event::Change(pieces)) => self.pending.extend(pieces.iter().cloned()),
            Some(Event::Flush { device }) => {
                for piece in self.pending.iter().filter(|piece| piece.device == *device) {
                    piece.apply(&mut self.durable[*device], WHOLE);
                }
                self.pending.retain(|piece| piece.device != *device);
            }
        }
        self.at += 1;
        true
    }

    /// What no flush covers, in the order of the writes.
    #[must_use]
    pub fn pending(&self) -> &[Piece] {
        &self.pending
    }

    /// The disks, if of each pending piece the sectors survive whose bits are set, the first sector of the page
    /// being the lowest bit. Pieces without a mask are lost.
    #[must_use]
    pub fn images(&self, survivors: &[u8]) -> Vec<DiskImage> {
        let mut images = self.durable.clone();
        for (piece, &sectors) in self.pending.iter().zip(survivors) {
            if sectors != 0 {
                piece.apply(&mut images[piece.device], sectors);
            }
        }
        images
    }
}

/// A device on a [`PowerSupply`].
pub struct PowerCutDevice {
    number: usize,
    supply: Arc<PowerSupply>,
}

impl PowerCutDevice {
    /// Changes the length, as of a file.
    pub fn set_len(&self, len: u64) {
        self.supply.change(self.number, 0, vec![(0, Content::Length(len))]);
    }

    fn zero(&self, offset: u64, len: u64) -> Result<()> {
        check_range(&"power cut device", self.size(), offset, len)?;
        let contents = parts(offset, index(len)).map(|(_, start, end, at)| {
            let whole = end - start == PAGE;
            (at as u64, if whole { Content::Page(None) } else { Content::Zeroes(end - start) })
        });
        self.supply.change(self.number, offset, contents.collect());
        Ok(())
    }
}

impl BlockDevice for PowerCutDevice {
    fn size(&self) -> u64 {
        self.supply.lock().current[self.number].len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let recording = self.supply.lock();
        let image = &recording.current[self.number];
        check_range(&"power cut device", image.len(), offset, buf.len() as u64)?;
        image.read(buf, offset);
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        check_range(&"power cut device", self.size(), offset, buf.len() as u64)?;
        let contents = parts(offset, buf.len()).map(|(_, start, end, at)| {
            let bytes = &buf[at..at + (end - start)];
            let content = match <&[u8; PAGE]>::try_from(bytes) {
                Ok(page) => Content::Page(Page::of(page)),
                Err(_) => Content::Bytes(bytes.into()),
            };
            (at as u64, content)
        });
        self.supply.change(self.number, offset, contents.collect());
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.zero(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.zero(offset, len)
    }

    fn flush(&self) -> Result<()> {
        self.supply.flush(self.number);
        Ok(())
    }

    /// As on a sparse file: what was never written, or punched since, is known.
    fn known_zero(&self, offset: u64, len: u64) -> bool {
        let recording = self.supply.lock();
        let mut bytes = vec![0; index(len)];
        recording.current[self.number].read(&mut bytes, offset);
        bytes.iter().all(|&byte| byte == 0)
    }

    fn grow(&self, size: u64) -> Result<()> {
        self.set_len(size);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::PowerSupply;
    use crate::device::BlockDevice;

    #[test]
    fn a_cut_keeps_what_was_flushed_and_tears_what_was_not() {
        let supply = PowerSupply::new();
        let device = supply.device(vec![0; 4096]);
        device.write_at(&[1; 1024], 0).unwrap();
        device.flush().unwrap();
        device.write_at(&[2; 1024], 512).unwrap();

        let torn = supply.after(supply.events()).images(&[0b100]).remove(0).to_bytes();
        assert_eq!(torn[..1024], [1; 1024]);
        assert_eq!(torn[1024..1536], [2; 512]);
        let nothing = supply.after(1).images(&[0]).remove(0).to_bytes();
        assert!(nothing.iter().all(|&byte| byte == 0), "not flushed, not there");
    }

    #[test]
    fn a_flush_of_one_device_says_nothing_about_another() {
        let supply = PowerSupply::new();
        let (one, other) = (supply.device(vec![0; 512]), supply.device(vec![0; 512]));
        one.write_at(&[1; 512], 0).unwrap();
        other.write_at(&[2; 512], 0).unwrap();
        other.flush().unwrap();
        let cut = supply.after(supply.events());
        assert_eq!(cut.pending().len(), 1);
        let images = cut.images(&[]);
        assert_eq!((images[0].to_bytes()[0], images[1].to_bytes()[0]), (0, 2));
    }

    #[test]
    fn a_torn_page_is_old_or_new_in_each_sector_and_length_is_lost_or_kept() {
        let supply = PowerSupply::new();
        let device = supply.device(vec![1; 4096]);
        device.grow(8192).unwrap();
        device.write_at(&[2; 8192], 0).unwrap();
        let cut = supply.after(supply.events());
        let torn = cut.images(&[0, 0b1000_0001, 0]).remove(0);
        assert_eq!(torn.len(), 4096);
        let bytes = torn.to_bytes();
        assert!(bytes[..512].iter().chain(&bytes[3584..]).all(|&byte| byte == 2));
        assert!(bytes[512..3584].iter().all(|&byte| byte == 1));
        assert_eq!(cut.images(&[0, 0, 0xff]).remove(0).len(), 8192, "a write behind the end makes it longer");
    }

    #[test]
    fn writes_side_by_side_have_one_order_whatever_order_they_came_in() {
        let offsets = |order: [u64; 3]| {
            let supply = PowerSupply::new();
            let device = supply.unordered_device(vec![0; 16_384]);
            order.iter().for_each(|page| device.write_at(&[1; 4096], page * 4096).unwrap());
            device.write_at(&[2; 4096], 0).unwrap();
            supply.after(4).pending().iter().map(|piece| (piece.event, piece.offset)).collect::<Vec<_>>()
        };
        assert_eq!(offsets([2, 0, 1]), offsets([1, 2, 0]));
        assert_eq!(offsets([2, 0, 1])[3], (3, 0), "a second write of a page stays behind the first");
    }
}
