//! Watches the room of a pool: logs when it crosses a watermark, and grows it in steps up to its cap.
//!
//! The watcher sleeps inside the pool: [`ThinPool::wait_status`] returns when something it does not know has
//! happened, with each new block if need be, so that a fast writer finds the pool grown and not the wall.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use thinsnap_pool::{ByteCount, PoolMode, PoolStatus, Steady, ThinPool};

use crate::config::{AutoExtend, RoomConfig, Watermarks, part};
use crate::error::{Error, Result};

/// Longest sleep: the file system below does not tell when it fills up.
const SLEEP_MAX: Duration = Duration::from_secs(5);
/// Pause after the pool could not be asked or grown.
const RETRY: Duration = Duration::from_secs(2);
/// A level is left downwards when so many percent less are in use.
const HYSTERESIS: u8 = 5;

/// How full one kind of space is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Normal,
    Warn,
    Critical,
    Full,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Warn => "warn",
            Self::Critical => "critical",
            Self::Full => "full",
        }
    }

    /// Percent in use from which on it is at least this level.
    fn mark(self, marks: Watermarks) -> u8 {
        match self {
            Self::Normal => 0,
            Self::Warn => marks.warn,
            Self::Critical => marks.critical,
            Self::Full => 100,
        }
    }
}

/// Used and free of one kind: what can still be had, which may be less than what the pool has.
#[derive(Debug, Clone, Copy)]
struct Gauge {
    used: ByteCount,
    room: ByteCount,
}

impl Gauge {
    fn whole(self) -> ByteCount {
        ByteCount(self.used.0.saturating_add(self.room.0))
    }

    fn percent(self) -> u8 {
        let whole = u128::from(self.whole().0);
        let percent = (u128::from(self.used.0) * 100).checked_div(whole).unwrap_or(100);
        u8::try_from(percent).unwrap_or(100)
    }

    /// The level, if it was `before`.
    fn level(self, before: Level, marks: Watermarks) -> Level {
        let percent = self.percent();
        let reached = |percent: u8| {
            [Level::Full, Level::Critical, Level::Warn]
                .into_iter()
                .find(|level| percent >= level.mark(marks))
                .unwrap_or(Level::Normal)
        };
        let now = reached(percent);
        if now >= before { now } else { now.max(reached(percent.saturating_add(HYSTERESIS)).min(before)) }
    }

    /// The room within which nothing is news at a level: from the least to the most.
    fn steady(self, level: Level, marks: Watermarks, also_at: Option<u8>) -> (ByteCount, ByteCount) {
        let whole = self.whole();
        let next = [Level::Warn, Level::Critical, Level::Full].into_iter().find(|next| *next > level);
        let up = next.map(|next| next.mark(marks)).into_iter().chain(also_at).min();
        let least = up.map_or(0, |up| part(whole, 100 - up).0 + 1);
        let most = match level {
            Level::Normal => u64::MAX,
            _ => part(whole, 100 - level.mark(marks).saturating_sub(HYSTERESIS)).0,
        };
        (ByteCount(least.min(self.room.0)), ByteCount(most.max(self.room.0)))
    }
}

/// The watcher of one pool; it ends when dropped.
pub struct RoomWatch {
    pool: Arc<dyn ThinPool>,
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
    ended: mpsc::Receiver<()>,
}

#[derive(Default)]
struct Stop {
    wanted: AtomicBool,
    lock: Mutex<()>,
    bell: Condvar,
}

impl Stop {
    fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::SeqCst)
    }

    /// Sleeps until the time is over or the end is wanted.
    fn pause(&self, time: Duration) {
        let deadline = Instant::now() + time;
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while let (false, Some(left)) = (self.is_wanted(), deadline.checked_duration_since(Instant::now())) {
            guard = self.bell.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl RoomWatch {
    /// Starts to watch `pool`, and tells it what to do with writes that find no room.
    pub fn start(pool: Arc<dyn ThinPool>, config: RoomConfig) -> Result<Self> {
        let stop = Arc::new(Stop::default());
        let (end, ended) = mpsc::channel();
        let mut watcher = Watcher {
            pool: Arc::clone(&pool),
            config,
            stop: Arc::clone(&stop),
            data: Level::Normal,
            metadata: Level::Normal,
            refused: None,
        };
        let thread = std::thread::Builder::new()
            .name("room-watch".to_owned())
            .spawn(move || {
                watcher.run();
                // Dropped at the end: whoever waits for it hears of it.
                drop(end);
            })
            .map_err(|e| Error::io("start the thread that watches the pool's room", e))?;
        Ok(Self { pool, stop, thread: Some(thread), ended })
    }
}

impl Drop for RoomWatch {
    fn drop(&mut self) {
        {
            let _guard = self.stop.lock.lock().unwrap_or_else(PoisonError::into_inner);
            self.stop.wanted.store(true, Ordering::SeqCst);
        }
        self.stop.bell.notify_all();
        // It may be about to sleep in the pool when the first interrupt comes.
        while self.ended.recv_timeout(Duration::from_millis(20)) == Err(mpsc::RecvTimeoutError::Timeout) {
            if let Err(error) = self.pool.interrupt_waits() {
                tracing::debug!(%error, "cannot interrupt the watcher of the pool's room");
            }
        }
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that watches the pool's room panicked");
        }
    }
}

struct Watcher {
    pool: Arc<dyn ThinPool>,
    config: RoomConfig,
    stop: Arc<Stop>,
    data: Level,
    metadata: Level,
    /// When growth was refused last, and why.
    refused: Option<(Instant, String)>,
}

impl Watcher {
    fn run(&mut self) {
        let mut lost = false;
        while !self.stop.is_wanted() {
            let asked = self.round();
            match asked {
                Ok(()) => lost = false,
                Err(_) if self.stop.is_wanted() => return,
                Err(error) => {
                    if !std::mem::replace(&mut lost, true) {
                        tracing::warn!(%error, "the pool's room cannot be watched; it is tried again");
                    }
                    self.stop.pause(RETRY);
                }
            }
        }
    }

    /// Looks, speaks, grows, sleeps.
    fn round(&mut self) -> Result<()> {
        let mut status = self.pool.status()?;
        self.tell_policy(&status)?;
        if self.grow(&status) {
            status = self.pool.status()?;
            self.tell_policy(&status)?;
        }
        self.speak(&status);
        let steady = self.steady(&status);
        self.pool.wait_status(&steady, SLEEP_MAX)?;
        Ok(())
    }

    fn gauges(status: &PoolStatus) -> (Gauge, Gauge) {
        let data = Gauge { used: status.data.used, room: status.data_room() };
        let used = ByteCount(status.metadata.used.0.min(status.metadata.total.0));
        (data, Gauge { used, room: status.metadata_room() })
    }

    fn speak(&mut self, status: &PoolStatus) {
        let (data, metadata) = Self::gauges(status);
        let marks = self.config.watermarks;
        let mut now = data.level(self.data, marks);
        if status.mode == PoolMode::OutOfDataSpace {
            now = Level::Full;
        }
        let below = status.room.below.map(|below| below.free().0);
        for (space, before, now, gauge) in [
            ("data", self.data, now, data),
            ("metadata", self.metadata, metadata.level(self.metadata, marks), metadata),
        ] {
            if before == now {
                continue;
            }
            let (used_percent, room_bytes) = (gauge.percent(), gauge.room.0);
            let (level, was) = (now.name(), before.name());
            let waiting = status.room.waiting_writes;
            match now {
                Level::Normal => {
                    tracing::info!(space, level, was, used_percent, room_bytes, below_free_bytes = below, "watermark");
                }
                Level::Warn | Level::Critical => {
                    tracing::warn!(space, level, was, used_percent, room_bytes, below_free_bytes = below, "watermark");
                }
                Level::Full => tracing::error!(
                    space,
                    level,
                    was,
                    used_percent,
                    room_bytes,
                    below_free_bytes = below,
                    waiting,
                    "watermark"
                ),
            }
        }
        self.data = now;
        self.metadata = metadata.level(self.metadata, marks);
    }

    fn steady(&self, status: &PoolStatus) -> Steady {
        let (data, metadata) = Self::gauges(status);
        let marks = self.config.watermarks;
        // The room of a pool over a full file system says nothing about its own percentage: growth is looked at
        // with every news.
        let grows = |extend: Option<AutoExtend>, total: ByteCount| {
            extend.filter(|extend| total < extend.cap && self.refused.is_none()).map(|extend| extend.at)
        };
        Steady {
            mode: status.mode,
            data_room: data.steady(self.data, marks, grows(self.config.extend_data, status.data.total)),
            metadata_room: metadata.steady(
                self.metadata,
                marks,
                grows(self.config.extend_metadata, status.metadata.total),
            ),
            writes_wait: status.room.waiting_writes > 0,
        }
    }

    /// Writes wait as long as configured; longer while the pool can still grow.
    fn tell_policy(&self, status: &PoolStatus) -> Result<()> {
        let can_grow = self.refused.is_none()
            && (self.config.extend_data.is_some_and(|extend| status.data.total < extend.cap)
                || self.config.extend_metadata.is_some_and(|extend| status.metadata.total < extend.cap));
        let policy = self.config.policy(can_grow);
        // Each time: the host may be another one than the last time.
        Ok(self.pool.set_no_space(policy)?)
    }

    /// Grows by one step what is past its mark. True: something grew.
    fn grow(&mut self, status: &PoolStatus) -> bool {
        if self.refused.as_ref().is_some_and(|(when, _)| when.elapsed() < RETRY) {
            return false;
        }
        let waits = status.room.waiting_writes > 0 || status.mode == PoolMode::OutOfDataSpace;
        let data = self.config.extend_data.and_then(|extend| {
            step(
                extend,
                status.data.used,
                status.data.total,
                waits && !status.room.full_below,
                status.block_size.bytes(),
            )
        });
        let metadata_used = ByteCount(status.metadata.total.0.saturating_sub(status.metadata_room().0));
        let metadata = self
            .config
            .extend_metadata
            .and_then(|extend| step(extend, metadata_used, status.metadata.total, false, 4096));
        if data.is_none() && metadata.is_none() {
            self.refused = None;
            return false;
        }
        match self.pool.grow(data, metadata) {
            Ok(()) => {
                self.refused = None;
                let (data_bytes, metadata_bytes) = (data.map(|size| size.0), metadata.map(|size| size.0));
                tracing::info!(data_bytes, metadata_bytes, "auto-extend: the pool has grown");
                true
            }
            Err(error) => {
                let why = error.to_string();
                if self.refused.as_ref().is_none_or(|(_, before)| *before != why) {
                    tracing::error!(%error, "auto-extend: the pool cannot grow; it is tried again");
                }
                self.refused = Some((Instant::now(), why));
                false
            }
        }
    }
}

/// The next size, if one is due: in whole units, at most the cap.
fn step(extend: AutoExtend, used: ByteCount, total: ByteCount, due: bool, unit: u64) -> Option<ByteCount> {
    let past = part(total, extend.at) <= used;
    if !(past || due) {
        return None;
    }
    let wanted = total.0.saturating_add(extend.step.of(total).0.max(unit)).min(extend.cap.0);
    let size = ByteCount(wanted / unit * unit);
    (size > total).then_some(size)
}

#[cfg(test)]
mod tests {
    use super::{Gauge, Level, step};
    use crate::config::{AutoExtend, Share, Watermarks};
    use thinsnap_pool::ByteCount;

    const MARKS: Watermarks = Watermarks { warn: 80, critical: 95 };

    fn gauge(used: u64) -> Gauge {
        Gauge { used: ByteCount(used * 1000), room: ByteCount((100 - used) * 1000) }
    }

    #[test]
    fn a_level_is_left_downwards_only_with_some_distance() {
        let mut level = Level::Normal;
        let seen = [79, 80, 79, 76, 75, 74, 95, 91, 90, 89, 100, 96, 95, 94, 50].map(|used| {
            level = gauge(used).level(level, MARKS);
            level
        });
        use Level::{Critical, Full, Normal, Warn};
        assert_eq!(
            seen,
            [
                Normal, Warn, Warn, Warn, Warn, Normal, Critical, Critical, Critical, Warn, Full, Full, Full, Critical,
                Normal
            ]
        );
    }

    #[test]
    fn what_is_no_news_ends_where_the_level_changes() {
        for before in [Level::Normal, Level::Warn, Level::Critical] {
            for used in 0..100 {
                let now = gauge(used).level(before, MARKS);
                let (least, most) = gauge(used).steady(now, MARKS, None);
                for other in 0..=100 {
                    let same = gauge(other).level(now, MARKS) == now;
                    let room = gauge(other).room;
                    let quiet = least <= room && room <= most;
                    assert!(same || !quiet, "{used} → {other}: {now:?} was left without a word");
                }
            }
        }
        // Growth wants to hear earlier.
        assert_eq!(gauge(10).steady(Level::Normal, MARKS, Some(50)).0, ByteCount(50_001));
    }

    #[test]
    fn a_step_ends_at_the_cap_in_whole_blocks() {
        let extend = AutoExtend { at: 80, step: Share::Percent(20), cap: ByteCount(1150) };
        assert_eq!(step(extend, ByteCount(799), ByteCount(1000), false, 100), None);
        assert_eq!(step(extend, ByteCount(800), ByteCount(1000), false, 100), Some(ByteCount(1100)));
        assert_eq!(step(extend, ByteCount(0), ByteCount(900), true, 100), Some(ByteCount(1000)));
        assert_eq!(step(extend, ByteCount(1100), ByteCount(1100), true, 100), None);
    }
}
