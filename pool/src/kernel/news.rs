//! Waits for a change of a pool: for the kernel's word where it gives one, else by looking again and again.

use std::ops::ControlFlow;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use nix::sys::eventfd::EventFd;

use crate::error::{Error, Result};
use crate::kernel::events::Events;

/// Between two looks at what another thread of ours does.
pub(super) const SELDOM: Duration = Duration::from_millis(200);
/// Between two looks while the kernel is trusted to speak: of room that comes back, and of the file system below, it says
/// nothing.
const SILENCE: Duration = Duration::from_secs(5);
/// Between two looks at what the kernel is just about to do.
pub(super) const OFTEN: Duration = Duration::from_millis(2);

/// Longest time in which the kernel lets go what nobody uses any more.
pub(super) const LETTING_GO: Duration = Duration::from_secs(10);

/// Waits that can be ended from outside.
#[derive(Default)]
pub(super) struct News {
    interruptions: Mutex<Interruptions>,
    interrupted: Condvar,
}

#[derive(Default)]
struct Interruptions {
    count: u64,
    /// Rung at an interruption, one for each wait for the kernel's word.
    bells: Vec<Weak<EventFd>>,
}

impl News {
    /// Looks every `period` until `look` breaks off, the time is over, or [`interrupt`](Self::interrupt) is called; what
    /// was seen last.
    pub(super) fn wait<T>(
        &self,
        timeout: Duration,
        period: Duration,
        look: impl Fn() -> Result<ControlFlow<T, T>>,
    ) -> Result<T> {
        let deadline = Instant::now() + timeout;
        let before = self.interruptions();
        loop {
            let seen = match look()? {
                ControlFlow::Break(seen) => return Ok(seen),
                ControlFlow::Continue(seen) => seen,
            };
            let left = deadline.saturating_duration_since(Instant::now()).min(period);
            if self.pause(left, before) || Instant::now() >= deadline {
                return Ok(seen);
            }
        }
    }

    /// As [`wait`](Self::wait); looks when the kernel says that something has happened, and seldom besides.
    pub(super) fn wait_for_events<T>(
        &self,
        timeout: Duration,
        look: impl Fn() -> Result<ControlFlow<T, T>>,
    ) -> Result<T> {
        let deadline = Instant::now() + timeout;
        let events = Events::open()?;
        let bell = EventFd::new().map_err(|e| Error::io("make a bell for interruptions", e.into()))?;
        let bell = Arc::new(bell);
        let before = {
            let mut interruptions = self.lock();
            interruptions.bells.retain(|bell| bell.strong_count() > 0);
            interruptions.bells.push(Arc::downgrade(&bell));
            interruptions.count
        };
        loop {
            events.arm()?;
            let seen = match look()? {
                ControlFlow::Break(seen) => return Ok(seen),
                ControlFlow::Continue(seen) => seen,
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if self.interruptions() != before || left.is_zero() {
                return Ok(seen);
            }
            events.wait(&bell, left.min(SILENCE))?;
            // What comes in a rush, as devices do that are shown one after the other, is looked at once.
            self.pause(OFTEN, before);
        }
    }

    /// True if it was interrupted since the count was `before`, or is within `time`.
    fn pause(&self, time: Duration, before: u64) -> bool {
        let still = |interruptions: &mut Interruptions| interruptions.count == before;
        let (interruptions, _) =
            self.interrupted.wait_timeout_while(self.lock(), time, still).unwrap_or_else(PoisonError::into_inner);
        interruptions.count != before
    }

    /// How often waits were interrupted so far.
    pub(super) fn interruptions(&self) -> u64 {
        self.lock().count
    }

    /// Ends every wait that is under way.
    pub(super) fn interrupt(&self) {
        let mut interruptions = self.lock();
        interruptions.count += 1;
        for bell in interruptions.bells.drain(..).filter_map(|bell| bell.upgrade()) {
            // The one error is that it rings already.
            bell.write(1).ok();
        }
        drop(interruptions);
        self.interrupted.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Interruptions> {
        self.interruptions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::{News, SELDOM};
    use std::ops::ControlFlow;
    use std::time::{Duration, Instant};

    #[test]
    fn a_wait_ends_with_news_with_its_time_or_with_an_interruption() {
        let news = News::default();
        assert_eq!(news.wait(Duration::from_secs(60), SELDOM, || Ok(ControlFlow::Break(1))).unwrap(), 1);
        assert_eq!(news.wait(Duration::from_millis(1), SELDOM, || Ok(ControlFlow::Continue(2))).unwrap(), 2);
        let begun = Instant::now();
        std::thread::scope(|scope| {
            let waiting =
                scope.spawn(|| news.wait(Duration::from_secs(60), SELDOM, || Ok(ControlFlow::Continue(3))).unwrap());
            while !waiting.is_finished() {
                news.interrupt();
                std::thread::yield_now();
            }
            assert_eq!(waiting.join().unwrap(), 3);
        });
        assert!(begun.elapsed() < Duration::from_secs(30), "it was not interrupted");
    }
}
