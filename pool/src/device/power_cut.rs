//! Devices that remember every write and flush, and can tell what a power cut would have left.
//!
//! Several devices share one [`PowerSupply`], which numbers their events in one row. [`PowerSupply::cut`]
//! gives the images after any event: what was flushed is there; of what was not, each 512-byte sector of
//! each write is there or not, as the caller chooses: writes may be reordered, lost and torn, a sector is
//! old or new.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::device::block_device::{BlockDevice, check_range};
use crate::error::Result;
use crate::units::SECTOR_SIZE;

#[derive(Debug)]
enum Event {
    Write { device: usize, offset: usize, bytes: Vec<u8> },
    Zero { device: usize, offset: usize, len: usize },
    Flush { device: usize },
}

#[derive(Default)]
struct Recording {
    /// Content at the start of the recording, one image a device.
    first: Vec<Vec<u8>>,
    /// What a reader sees.
    current: Vec<Vec<u8>>,
    events: Vec<Event>,
}

/// What several devices hang on: one row of events, one moment of failure.
#[derive(Default)]
pub struct PowerSupply {
    recording: Mutex<Recording>,
}

/// What a cut left on one device.
pub type CutImage = Vec<u8>;

impl PowerSupply {
    /// A supply without devices.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Adds a device that holds `bytes`, durably. Its images come in the order of the calls.
    #[must_use]
    pub fn device(self: &Arc<Self>, bytes: Vec<u8>) -> PowerCutDevice {
        let mut recording = self.lock();
        recording.first.push(bytes.clone());
        recording.current.push(bytes);
        PowerCutDevice { number: recording.current.len() - 1, supply: Arc::clone(self) }
    }

    /// Events so far: a cut may come after 0 …= this many of them.
    #[must_use]
    pub fn events(&self) -> usize {
        self.lock().events.len()
    }

    /// The image of each device after a cut behind the first `events` events. `survives` is asked for each
    /// sector of each write that no flush covers, in the order of the writes.
    #[must_use]
    pub fn cut(&self, events: usize, mut survives: impl FnMut() -> bool) -> Vec<CutImage> {
        let recording = self.lock();
        let events = &recording.events[..events];
        let mut images = recording.first.clone();
        let mut flushed = vec![0; images.len()];
        for (number, event) in events.iter().enumerate() {
            if let Event::Flush { device } = event {
                flushed[*device] = number;
            }
        }
        for (number, event) in events.iter().enumerate() {
            match event {
                Event::Flush { .. } => {}
                Event::Write { device, offset, bytes } => {
                    let image = &mut images[*device];
                    for (start, end) in sectors(*offset, bytes.len()) {
                        if number < flushed[*device] || survives() {
                            image[start..end].copy_from_slice(&bytes[start - offset..end - offset]);
                        }
                    }
                }
                Event::Zero { device, offset, len } => {
                    let image = &mut images[*device];
                    for (start, end) in sectors(*offset, *len) {
                        if number < flushed[*device] || survives() {
                            image[start..end].fill(0);
                        }
                    }
                }
            }
        }
        images
    }

    fn lock(&self) -> MutexGuard<'_, Recording> {
        self.recording.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A device on a [`PowerSupply`].
pub struct PowerCutDevice {
    number: usize,
    supply: Arc<PowerSupply>,
}

impl PowerCutDevice {
    fn zero(&self, offset: u64, len: u64) -> Result<()> {
        let mut recording = self.supply.lock();
        check_range(&"power cut device", recording.current[self.number].len() as u64, offset, len)?;
        let (offset, len) = (index(offset), index(len));
        recording.current[self.number][offset..offset + len].fill(0);
        recording.events.push(Event::Zero { device: self.number, offset, len });
        Ok(())
    }
}

impl BlockDevice for PowerCutDevice {
    fn size(&self) -> u64 {
        self.supply.lock().current[self.number].len() as u64
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let recording = self.supply.lock();
        let bytes = &recording.current[self.number];
        check_range(&"power cut device", bytes.len() as u64, offset, buf.len() as u64)?;
        buf.copy_from_slice(&bytes[index(offset)..index(offset) + buf.len()]);
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        let mut recording = self.supply.lock();
        check_range(&"power cut device", recording.current[self.number].len() as u64, offset, buf.len() as u64)?;
        let offset = index(offset);
        recording.current[self.number][offset..offset + buf.len()].copy_from_slice(buf);
        recording.events.push(Event::Write { device: self.number, offset, bytes: buf.to_vec() });
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.zero(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.zero(offset, len)
    }

    fn flush(&self) -> Result<()> {
        self.supply.lock().events.push(Event::Flush { device: self.number });
        Ok(())
    }

    /// As on a sparse file: what was never written, or punched since, is known.
    fn known_zero(&self, offset: u64, len: u64) -> bool {
        let recording = self.supply.lock();
        recording.current[self.number][index(offset)..index(offset + len)].iter().all(|&byte| byte == 0)
    }
}

/// The pieces of a range between sector boundaries.
fn sectors(offset: usize, len: usize) -> impl Iterator<Item = (usize, usize)> {
    let sector = index(SECTOR_SIZE);
    let end = offset + len;
    let mut at = offset;
    std::iter::from_fn(move || {
        let start = at;
        at = ((at / sector + 1) * sector).min(end);
        (start < end).then_some((start, at))
    })
}

/// An offset that was checked against a size in memory.
fn index(offset: u64) -> usize {
    usize::try_from(offset).expect("a device in memory is smaller than the address space")
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

        let mut sector = 0;
        let torn = supply.cut(supply.events(), || {
            sector += 1;
            sector == 2
        });
        assert_eq!(torn[0][..1024], [1; 1024]);
        assert_eq!(torn[0][1024..1536], [2; 512]);
        assert!(supply.cut(1, || false)[0].iter().all(|&byte| byte == 0), "not flushed, not there");
    }

    #[test]
    fn a_flush_of_one_device_says_nothing_about_another() {
        let supply = PowerSupply::new();
        let (one, other) = (supply.device(vec![0; 512]), supply.device(vec![0; 512]));
        one.write_at(&[1; 512], 0).unwrap();
        other.write_at(&[2; 512], 0).unwrap();
        other.flush().unwrap();
        let images = supply.cut(supply.events(), || false);
        assert_eq!((images[0][0], images[1][0]), (0, 2));
    }
}
