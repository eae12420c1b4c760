//! Flushes of the data device, shared: who asks while one is running waits for the next, with all who ask meanwhile.
//!
//! Invariant: a flush that failed is the last. The kernel tells of lost writes once, and a later flush, or one that ran
//! at the same moment, would answer success for them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};

#[derive(Default)]
struct Rounds {
    begun: u64,
    ended: u64,
    failed: Option<(ErrorKind, String)>,
}

/// Where those who want the data durable meet.
#[derive(Default)]
pub(super) struct DataFlush {
    rounds: Mutex<Rounds>,
    ended: Condvar,
    /// The last one was over in less than [`QUICK`], and none runs.
    quick: AtomicBool,
}

/// What a thread that serves others may be away for.
const QUICK: Duration = Duration::from_micros(400);

impl DataFlush {
    /// True if a flush that began now would likely be over soon.
    pub(super) fn is_quick(&self) -> bool {
        self.quick.load(Ordering::Relaxed)
    }

    /// Returns when all that was written before the call is durable, by `flush` or by somebody else's that began after
    /// the call. Errors: that of the first flush that failed.
    pub(super) fn share(&self, flush: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut rounds = self.lock();
        // One that is running may have begun before the caller's write.
        let wanted = rounds.begun + 1;
        while rounds.failed.is_none() && rounds.ended < wanted && rounds.begun > rounds.ended {
            rounds = self.ended.wait(rounds).unwrap_or_else(PoisonError::into_inner);
        }
        if let Some((kind, reason)) = &rounds.failed {
            return Err(Error::new(*kind, format!("an earlier flush of the data failed: {reason}")));
        }
        if rounds.ended >= wanted {
            return Ok(());
        }
        rounds.begun += 1;
        drop(rounds);
        let mut running = Running { rounds: self, failed: Some((ErrorKind::Io, "its thread panicked".to_owned())) };
        self.quick.store(false, Ordering::Relaxed);
        let begun = Instant::now();
        let done = flush();
        self.quick.store(begun.elapsed() < QUICK, Ordering::Relaxed);
        running.failed = done.as_ref().err().map(|e| (e.kind(), e.to_string()));
        done
    }

    fn lock(&self) -> MutexGuard<'_, Rounds> {
        self.rounds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Marks the end of a round however it ends, so that nobody waits for ever.
struct Running<'a> {
    rounds: &'a DataFlush,
    failed: Option<(ErrorKind, String)>,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut rounds = self.rounds.lock();
        rounds.ended = rounds.begun;
        rounds.failed = self.failed.take();
        self.rounds.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::DataFlush;
    use crate::error::{Error, ErrorKind};

    #[test]
    fn who_asks_while_a_flush_runs_gets_one_that_began_later_and_shares_it() {
        let flush = DataFlush::default();
        let (begun, first_begins) = mpsc::channel();
        let (end, first_ends) = mpsc::channel::<()>();
        let (told, later) = mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let done = flush.share(move || {
                    begun.send(()).unwrap();
                    first_ends.recv().unwrap();
                    Ok(())
                });
                assert!(done.is_ok());
            });
            first_begins.recv().unwrap();
            for _ in 0..4 {
                let (flush, told) = (&flush, told.clone());
                scope.spawn(move || {
                    flush.share(|| told.send(()).map_err(|_| Error::new(ErrorKind::Io, "nobody counts"))).unwrap();
                });
            }
            assert!(later.try_recv().is_err(), "none of the others flushes before the first has ended");
            end.send(()).unwrap();
        });
        let flushes = later.try_iter().count();
        assert!((1..=4).contains(&flushes), "{flushes}");
    }

    #[test]
    fn after_a_flush_that_failed_none_succeeds() {
        let flush = DataFlush::default();
        flush.share(|| Ok(())).unwrap();
        assert_eq!(flush.share(|| Err(Error::new(ErrorKind::Io, "EIO"))).unwrap_err().kind(), ErrorKind::Io);
        let later = flush.share(|| unreachable!("the device is not asked again")).unwrap_err();
        assert_eq!(later.kind(), ErrorKind::Io);
        assert!(later.to_string().contains("EIO"), "{later}");
    }
}
