//! The connections that a host serves, and how a newcomer outlasts the calls of a client that died.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::host::protocol::{Answer, Outcome};

/// Longest wait for the calls of clients that died; the longest of those is a flush on a slow disk.
const DEAD_WAIT: Duration = Duration::from_secs(20);
/// How long a client that is connected may still turn out to be dying: its sockets are closed some time after its locks.
const LIVING_WAIT: Duration = Duration::from_millis(200);

/// Connections that are served.
pub(super) struct Connections {
    pub(super) streams: BTreeMap<u64, (Arc<UnixStream>, JoinHandle<()>)>,
    /// Of those, the ones with a call that only looks on and may last.
    lasting: BTreeSet<u64>,
    /// Those whose thread is about to end.
    pub(super) ended: Vec<JoinHandle<()>>,
    pub(super) next: u64,
    /// When the last one ended.
    pub(super) idle_since: Instant,
    /// Told when a connection ends or its call is one that lasts.
    pub(super) changed: Arc<Condvar>,
}

impl Connections {
    pub(super) fn new() -> Self {
        Self {
            streams: BTreeMap::new(),
            lasting: BTreeSet::new(),
            ended: Vec::new(),
            next: 0,
            idle_since: Instant::now(),
            changed: Arc::default(),
        }
    }

    /// True while a call of a client older than `number` may still be done, seen `waited` after it was asked first.
    fn may_act_before(&self, number: u64, waited: Duration) -> bool {
        self.streams
            .range(..number)
            .any(|(n, (stream, _))| !self.lasting.contains(n) && (waited < LIVING_WAIT || has_gone(stream)))
    }
}

/// True if the client at the other end is gone: its end of the socket is closed, which is told unasked.
fn has_gone(stream: &UnixStream) -> bool {
    let mut asked = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    poll(&mut asked, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

pub(super) fn lock(connections: &Mutex<Connections>) -> MutexGuard<'_, Connections> {
    connections.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where a connection stands among the others.
pub(super) struct Place {
    pub(super) number: u64,
    pub(super) connections: Arc<Mutex<Connections>>,
}

impl Place {
    /// Waits until every older connection has ended, belongs to a client that lives, or has only a call that lasts. A dead
    /// client's connection ends with the calls that it had sent: whoever comes after it must not meet them half done.
    pub(super) fn outlast_others(&self) -> Answer {
        let asked = Instant::now();
        let mut connections = lock(&self.connections);
        let changed = Arc::clone(&connections.changed);
        loop {
            let waited = asked.elapsed();
            if !connections.may_act_before(self.number, waited) {
                return Answer::Done;
            }
            if waited >= DEAD_WAIT {
                tracing::warn!("a call of a client that died is still under way after {waited:?}: not waited for");
                return Answer::Done;
            }
            let until = if waited < LIVING_WAIT { LIVING_WAIT } else { DEAD_WAIT };
            connections = changed.wait_timeout(connections, until - waited).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Does a call that may last, which nobody has to wait for.
    pub(super) fn lasting(&self, call: impl FnOnce() -> Outcome) -> Outcome {
        let note = |lasts: bool| {
            let mut connections = lock(&self.connections);
            if lasts {
                connections.lasting.insert(self.number);
            } else {
                connections.lasting.remove(&self.number);
            }
            connections.changed.notify_all();
        };
        note(true);
        let outcome = call();
        note(false);
        outcome
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, Mutex};
    use std::time::Instant;

    use super::{Connections, DEAD_WAIT, LIVING_WAIT, Place, lock};

    /// A table with connection 0 in it, the place of connection 1, and the client's end of connection 0.
    fn two() -> (Arc<Mutex<Connections>>, Place, UnixStream) {
        let (served, client) = UnixStream::pair().unwrap();
        let mut connections = Connections::new();
        connections.streams.insert(0, (Arc::new(served), std::thread::spawn(|| ())));
        let table = Arc::new(Mutex::new(connections));
        (Arc::clone(&table), Place { number: 1, connections: table }, client)
    }

    #[test]
    fn the_last_call_of_a_dead_client_is_outlasted() {
        let (table, place, client) = two();
        drop(client);
        let done = Arc::new(AtomicBool::new(false));
        let call = std::thread::spawn({
            let done = Arc::clone(&done);
            move || {
                // Longer than the wait for those that live.
                let started = Instant::now();
                while started.elapsed() < LIVING_WAIT * 2 {
                    std::thread::yield_now();
                }
                done.store(true, Ordering::SeqCst);
                let mut connections = lock(&table);
                connections.streams.remove(&0);
                connections.changed.notify_all();
            }
        });
        place.outlast_others();
        assert!(done.load(Ordering::SeqCst), "the call was still under way");
        call.join().unwrap();
    }

    #[test]
    fn a_client_that_lives_keeps_nobody_waiting() {
        let (_table, place, _client) = two();
        let asked = Instant::now();
        place.outlast_others();
        assert!(asked.elapsed() < DEAD_WAIT / 2, "it waited {:?}", asked.elapsed());
    }
}
