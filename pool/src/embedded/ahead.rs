//! Takes room in the data file ahead of the blocks that are handed out next.
//!
//! A write into a hole has the file system find a place for it, and has the file for itself until it is on the disk:
//! writes and reads of all devices wait for each other. What has its room already is written side by side, and lies in
//! one piece. Nothing depends on it: where no room is taken, a write finds its own.

use std::sync::{Mutex, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use crate::device::BlockDevice;

/// Bytes taken at first, or after a pause.
const STEP_MIN: u64 = 4 << 20;
/// Most bytes taken at once: a tenth of a second of writing.
const STEP_MAX: u64 = 64 << 20;
/// Room is taken only where the file system below has this many times as much: what is scarce is for those who write.
const SPARE: u64 = 16;
/// Steps that follow each other faster than this become larger.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Window {
    /// Bytes of the data device that have their room: up to here, from wherever blocks are handed out.
    start: u64,
    end: u64,
    step: u64,
    taken: Option<Instant>,
    /// Blocks in it were emptied since.
    holed: bool,
}

/// The room ahead of the allocator.
#[derive(Default)]
pub(super) struct Ahead {
    window: Mutex<Window>,
}

impl Ahead {
    /// Blocks up to byte `next` of `total` were handed out. One caller at a time takes room, the others go on.
    pub(super) fn handed_out(&self, data: &dyn BlockDevice, next: u64, total: u64) {
        let mut window = match self.window.try_lock() {
            Ok(window) => window,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        let inside = window.step > 0 && (window.start..=window.end).contains(&next);
        if inside && window.end - next >= (window.step / 2).min(total.saturating_sub(next)) {
            return;
        }
        let start = if inside && !window.holed { window.end } else { next };
        let follows = window.taken.is_some_and(|taken| taken.elapsed() < PAUSE);
        let step = if follows { (2 * window.step).clamp(STEP_MIN, STEP_MAX) } else { STEP_MIN };
        let len = step.min(total.saturating_sub(start));
        let has_room = data.room_below().is_some_and(|below| below.usable.min(below.free) / SPARE >= len);
        if len == 0 || !has_room {
            return;
        }
        if let Err(e) = data.take_room(start, len) {
            tracing::debug!("no room is taken ahead: {e}");
            return;
        }
        *window = Window { start: next, end: start + len, step, taken: Some(Instant::now()), holed: false };
    }

    /// True if these bytes have their room for certain; false also where somebody takes room just now.
    pub(super) fn covers(&self, start: u64, end: u64) -> bool {
        self.window.try_lock().is_ok_and(|window| !window.holed && window.start <= start && end <= window.end)
    }

    /// These bytes have given their room back.
    pub(super) fn emptied(&self, start: u64, end: u64) {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        window.holed |= start < window.end && window.start < end;
    }

    /// Forgets what was taken, for somebody who gives it back. Returns where it lies: first byte and the one behind
    /// the last.
    pub(super) fn forget(&self) -> (u64, u64) {
        let window = std::mem::take(&mut *self.window.lock().unwrap_or_else(PoisonError::into_inner));
        (window.start, window.end)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::{Ahead, STEP_MAX, STEP_MIN};
    use crate::device::{BlockDevice, RoomBelow};
    use crate::error::Result;

    /// Writes down the room that it is asked for.
    struct Asked {
        free: u64,
        ranges: Mutex<Vec<(u64, u64)>>,
    }

    impl Asked {
        fn new(free: u64) -> Self {
            Self { free, ranges: Mutex::default() }
        }

        fn ranges(&self) -> Vec<(u64, u64)> {
            self.ranges.lock().unwrap().clone()
        }
    }

    impl BlockDevice for Asked {
        fn size(&self) -> u64 {
            1 << 40
        }
        fn read_at(&self, _buf: &mut [u8], _offset: u64) -> Result<()> {
            unreachable!("room is taken without reading")
        }
        fn write_at(&self, _buf: &[u8], _offset: u64) -> Result<()> {
            unreachable!("room is taken without writing")
        }
        fn discard(&self, _offset: u64, _len: u64) -> Result<()> {
            Ok(())
        }
        fn write_zeroes(&self, _offset: u64, _len: u64) -> Result<()> {
            Ok(())
        }
        fn flush(&self) -> Result<()> {
            Ok(())
        }
        fn room_below(&self) -> Option<RoomBelow> {
            Some(RoomBelow { free: self.free, usable: self.free, total: self.free, allocated: 0 })
        }
        fn take_room(&self, offset: u64, len: u64) -> Result<()> {
            self.ranges.lock().unwrap().push((offset, len));
            Ok(())
        }
    }

    #[test]
    fn room_is_taken_before_it_is_needed_and_in_growing_steps_that_touch() {
        let (data, ahead) = (Asked::new(1 << 40), Ahead::default());
        let block = 64 * 1024;
        for n in 1..=4096 {
            ahead.handed_out(&data, n * block, 1 << 40);
            let (offset, len) = *data.ranges().last().unwrap();
            assert!(offset + len >= n * block + STEP_MIN / 2 || offset + len >= n * block + len / 2);
        }
        let ranges = data.ranges();
        assert_eq!(ranges[0], (block, STEP_MIN));
        assert!(ranges.windows(2).all(|pair| pair[0].0 + pair[0].1 == pair[1].0), "{ranges:?}");
        assert_eq!(ranges.last().unwrap().1, STEP_MAX);
        assert!(ranges.len() < 16, "{ranges:?}");
        assert!(ahead.covers(4096 * block, 4097 * block));
        ahead.emptied(0, block);
        assert!(ahead.covers(4096 * block, 4097 * block));
        ahead.emptied(4096 * block, 4097 * block);
        assert!(!ahead.covers(4097 * block, 4098 * block), "what has holes is not counted on");
        let (_, end) = ahead.forget();
        assert!(!ahead.covers(end - block, end), "what was given back is not there");
    }

    #[test]
    fn the_end_of_the_pool_and_scarce_room_are_respected() {
        let data = Asked::new(1 << 40);
        let ahead = Ahead::default();
        let total = 1 << 20;
        for next in (0..=total).step_by(65536) {
            ahead.handed_out(&data, next, total);
        }
        assert_eq!(data.ranges(), [(0, total)]);
        let scarce = Asked::new(STEP_MIN * 15);
        Ahead::default().handed_out(&scarce, 0, 1 << 40);
        assert_eq!(scarce.ranges(), []);
    }

    #[test]
    fn an_allocator_that_begins_elsewhere_gets_room_there() {
        let (data, ahead) = (Asked::new(1 << 40), Ahead::default());
        ahead.handed_out(&data, 1 << 30, 1 << 40);
        ahead.handed_out(&data, 65536, 1 << 40);
        assert_eq!(data.ranges()[1].0, 65536);
        assert_eq!(ahead.forget().0, 65536);
        ahead.handed_out(&data, 2 * 65536, 1 << 40);
        assert_eq!(data.ranges().len(), 3, "what was given back is taken anew");
    }
}
