//! Waits for a change of a pool by looking at it again and again: the kernel tells of few changes by itself.

use std::ops::ControlFlow;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::Result;

/// Between two looks at a pool that works: a disk writes some hundred MiB meanwhile, and a look takes less than a
/// millisecond.
pub(super) const SELDOM: Duration = Duration::from_millis(200);
/// Between two looks at what the kernel is just about to do.
pub(super) const OFTEN: Duration = Duration::from_millis(2);

/// Longest time in which the kernel lets go what nobody uses any more.
pub(super) const LETTING_GO: Duration = Duration::from_secs(10);

/// Waits that can be ended from outside.
#[derive(Default)]
pub(super) struct News {
    interruptions: Mutex<u64>,
    interrupted: Condvar,
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
        let before = *self.lock();
        loop {
            let seen = match look()? {
                ControlFlow::Break(seen) => return Ok(seen),
                ControlFlow::Continue(seen) => seen,
            };
            let left = deadline.saturating_duration_since(Instant::now()).min(period);
            let (count, _) = self
                .interrupted
                .wait_timeout_while(self.lock(), left, |count| *count == before)
                .unwrap_or_else(PoisonError::into_inner);
            if *count != before || Instant::now() >= deadline {
                return Ok(seen);
            }
        }
    }

    /// How often waits were interrupted so far.
    pub(super) fn interruptions(&self) -> u64 {
        *self.lock()
    }

    /// Ends every wait that is under way.
    pub(super) fn interrupt(&self) {
        *self.lock() += 1;
        self.interrupted.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, u64> {
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
