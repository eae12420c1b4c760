//! Tells those who wait for room, or for a change of the pool's state, that it is time to look again.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError, Weak};
use std::time::Instant;

use crate::export::Exporter;

/// What has happened since the pool was opened.
#[derive(Default)]
struct Beats {
    count: u64,
    interrupts: u64,
    closed: bool,
}

/// Where the data path meets those who watch it.
pub(super) struct Pulse {
    beats: Mutex<Beats>,
    changed: Condvar,
    watchers: AtomicUsize,
    /// With fewer free data blocks than this the next reservation beats.
    low: AtomicU64,
    /// Blocks were made available so many times.
    released: AtomicU64,
    /// Weak: its volumes stand on the backing that this is a part of.
    exporter: Weak<dyn Exporter>,
}

impl Pulse {
    pub(super) fn new(exporter: Weak<dyn Exporter>) -> Self {
        Self {
            beats: Mutex::default(),
            changed: Condvar::new(),
            watchers: AtomicUsize::new(0),
            low: AtomicU64::new(0),
            released: AtomicU64::new(0),
            exporter,
        }
    }

    /// Room has appeared, or what was on its way back has come, or nothing will any more.
    pub(super) fn room_changed(&self) {
        self.released.fetch_add(1, Ordering::SeqCst);
        if let Some(exporter) = self.exporter.upgrade() {
            exporter.room_changed();
        }
        self.beat();
    }

    /// How often [`room_changed`](Self::room_changed) was told.
    pub(super) fn releases(&self) -> u64 {
        self.released.load(Ordering::SeqCst)
    }

    /// The state may differ from what a watcher knows.
    pub(super) fn beat(&self) {
        if self.watchers.load(Ordering::SeqCst) > 0 {
            self.beats.lock().unwrap_or_else(PoisonError::into_inner).count += 1;
            self.changed.notify_all();
        }
    }

    /// Blocks were reserved and so many are left. One relaxed load on the way of every new block.
    pub(super) fn reserved(&self, available: u64) {
        if available < self.low.load(Ordering::Relaxed) {
            self.low.store(0, Ordering::Relaxed);
            self.beat();
        }
    }

    /// Wakes every watcher, whatever he waits for.
    pub(super) fn interrupt(&self) {
        self.beats.lock().unwrap_or_else(PoisonError::into_inner).interrupts += 1;
        self.changed.notify_all();
    }

    /// The pool is being closed: what lasts ends now, and what would last ends at once.
    pub(super) fn close(&self) {
        self.beats.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.interrupt();
    }

    /// Counts the interrupts, for work that lasts; `None`: the pool is being closed.
    pub(super) fn interrupts(&self) -> Option<u64> {
        let beats = self.beats.lock().unwrap_or_else(PoisonError::into_inner);
        (!beats.closed).then_some(beats.interrupts)
    }

    /// Begins to watch: from here on no beat is missed.
    pub(super) fn watch(&self) -> Watch<'_> {
        self.watchers.fetch_add(1, Ordering::SeqCst);
        let beats = self.beats.lock().unwrap_or_else(PoisonError::into_inner);
        Watch { pulse: self, seen: beats.count, interrupts: beats.interrupts }
    }
}

/// One who watches.
pub(super) struct Watch<'a> {
    pulse: &'a Pulse,
    seen: u64,
    interrupts: u64,
}

impl Watch<'_> {
    /// Wants a beat when fewer data blocks than this are available.
    pub(super) fn below(&self, blocks: u64) {
        self.pulse.low.fetch_max(blocks, Ordering::Relaxed);
    }

    /// Waits for the next beat. False: it was the deadline, or an interrupt.
    pub(super) fn next(&mut self, deadline: Instant) -> bool {
        let mut beats = self.pulse.beats.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if beats.closed || beats.interrupts != self.interrupts {
                return false;
            }
            if beats.count != self.seen {
                self.seen = beats.count;
                return true;
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return false };
            beats = self.pulse.changed.wait_timeout(beats, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.pulse.watchers.fetch_sub(1, Ordering::SeqCst);
    }
}
