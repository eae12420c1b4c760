//! Group commit: one thread commits, everybody else waits for a round that began after he asked.
//!
//! Flushes that arrive while a round runs share the next one, however many they are. A change that nobody
//! flushes is committed at most [`COMMIT_PERIOD`] later.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::embedded::backing::Backing;
use crate::embedded::companion::Companion;
use crate::error::{Error, ErrorKind, Result};
use crate::mutation::Mutation;

/// How long a change may wait for its commit; dm-thin's period.
const COMMIT_PERIOD: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Rounds {
    /// The newest round that somebody waits for.
    wanted: u64,
    /// Rounds that ended, well or not.
    ended: u64,
    running: bool,
    /// The newest generation of the metadata that is durable.
    committed: u64,
    changed_at: Option<Instant>,
    /// The first round that failed, and why: all later ones fail too.
    failed: Option<(u64, ErrorKind, String)>,
    stop: bool,
    stopped: bool,
}

/// Where flushes and changes meet the committer.
#[derive(Default)]
pub(super) struct Commits {
    rounds: Mutex<Rounds>,
    asked: Condvar,
    ended: Condvar,
    /// True from the first change after a round began: keeps the mutex out of every later one.
    noted: AtomicBool,
    /// Milliseconds that a change may wait instead of [`COMMIT_PERIOD`], once somebody said so.
    period_ms: AtomicU64,
}

impl Commits {
    /// A mapping or a device changed in memory: it is committed within the period.
    pub(super) fn note_change(&self) {
        if !self.noted.swap(true, Ordering::AcqRel) {
            self.lock().changed_at = Some(Instant::now());
            self.asked.notify_one();
        }
    }

    /// Asks for a round that begins after the call, and waits for nothing.
    pub(super) fn ask(&self) {
        let mut rounds = self.lock();
        let round = rounds.ended + if rounds.running { 2 } else { 1 };
        rounds.wanted = rounds.wanted.max(round);
        self.asked.notify_one();
    }

    /// Returns when everything that completed before the call is durable. Errors: `Io` if that commit or an
    /// earlier one failed, `Unavailable` when the pool is closed.
    pub(super) fn wait_durable(&self) -> Result<()> {
        let mut rounds = self.lock();
        // A running round may have closed its generation before the caller's change.
        let round = rounds.ended + if rounds.running { 2 } else { 1 };
        rounds.wanted = rounds.wanted.max(round);
        self.asked.notify_one();
        if Mutation::AnswerFlushEarly.is_on() {
            return Ok(());
        }
        while rounds.ended < round && !rounds.stopped {
            rounds = self.ended.wait(rounds).unwrap_or_else(PoisonError::into_inner);
        }
        match &rounds.failed {
            Some((first, kind, reason)) if *first <= round => {
                Err(Error::new(*kind, format!("flush the pool: {reason}")))
            }
            _ if rounds.ended >= round => Ok(()),
            _ => Err(Error::new(ErrorKind::Unavailable, "flush the pool: it is closed")),
        }
    }

    /// Has a generation of the metadata committed soon, and waits for nothing.
    pub(super) fn want(&self, generation: u64) {
        self.want_in(&mut self.lock(), generation);
    }

    /// While a round runs it is left open whether that one closes the generation.
    fn want_in(&self, rounds: &mut Rounds, generation: u64) {
        if !rounds.running && rounds.committed < generation {
            rounds.wanted = rounds.wanted.max(rounds.ended + 1);
            self.asked.notify_one();
        }
    }

    /// Returns when a generation of the metadata is durable: with the round that runs, if that one closed it. Errors: as
    /// [`wait_durable`](Self::wait_durable).
    pub(super) fn wait_committed(&self, generation: u64) -> Result<()> {
        let mut rounds = self.lock();
        // The one after the next closes whatever there is.
        let last = rounds.ended + 2;
        while rounds.committed < generation && rounds.ended < last && !rounds.stopped {
            self.want_in(&mut rounds, generation);
            if Mutation::AnswerFlushEarly.is_on() {
                return Ok(());
            }
            rounds = self.ended.wait(rounds).unwrap_or_else(PoisonError::into_inner);
        }
        match &rounds.failed {
            _ if rounds.committed >= generation => Ok(()),
            Some((_, kind, reason)) => Err(Error::new(*kind, format!("commit the pool: {reason}"))),
            None => Err(Error::new(ErrorKind::Unavailable, "commit the pool: it is closed")),
        }
    }

    /// A generation is durable.
    pub(super) fn note_committed(&self, generation: u64) {
        self.lock().committed = generation;
    }

    /// Changes how long a change may wait for its commit.
    pub(super) fn set_period(&self, period: Duration) {
        self.period_ms.store(u64::try_from(period.as_millis()).unwrap_or(u64::MAX).max(1), Ordering::Relaxed);
    }

    fn period(&self) -> Duration {
        match self.period_ms.load(Ordering::Relaxed) {
            0 => COMMIT_PERIOD,
            told => Duration::from_millis(told),
        }
    }

    /// Asks the committer to end after a last round.
    pub(super) fn stop(&self) {
        self.lock().stop = true;
        self.asked.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Rounds> {
        self.rounds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next round: true if somebody waits for it, false if it is for the changes' sake;
    /// `None`: stop.
    fn next_round(&self) -> Option<bool> {
        let mut rounds = self.lock();
        loop {
            let flush = rounds.wanted > rounds.ended;
            let due = rounds.changed_at.map(|at| at + self.period());
            let now = Instant::now();
            if rounds.stop && !flush && due.is_none() {
                return None;
            }
            if flush || rounds.stop || due.is_some_and(|due| due <= now) {
                rounds.running = true;
                rounds.changed_at = None;
                // Before the generation is closed: a change that comes too late for it is noted again.
                self.noted.store(false, Ordering::Release);
                return Some(flush);
            }
            rounds = match due {
                Some(due) => self.asked.wait_timeout(rounds, due - now).unwrap_or_else(PoisonError::into_inner).0,
                None => self.asked.wait(rounds).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn end_round(&self, result: Result<()>) {
        let mut rounds = self.lock();
        rounds.running = false;
        rounds.ended += 1;
        if let Err(e) = result {
            let round = rounds.ended;
            rounds.failed.get_or_insert_with(|| (round, e.kind(), e.to_string()));
        }
        self.ended.notify_all();
    }
}

/// Marks the end of the committer however it ends, so that nobody waits for ever.
struct Ending<'a>(&'a Commits);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        let mut rounds = self.0.lock();
        rounds.stopped = true;
        if std::thread::panicking() {
            let round = rounds.ended + 1;
            let reason = "the committing thread panicked".to_owned();
            rounds.failed.get_or_insert((round, ErrorKind::Io, reason));
        }
        self.0.ended.notify_all();
    }
}

/// The committer's life: rounds until [`Commits::stop`].
pub(super) fn run(backing: &Arc<Backing>) {
    let commits = &backing.commits;
    let _ending = Ending(commits);
    let companion = Companion::start(backing);
    while let Some(flush) = commits.next_round() {
        commits.end_round(backing.commit(flush, companion.as_ref()));
    }
}
