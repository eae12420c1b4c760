//! Waiting for the lock of a file whose holder was killed: the kernel lets it go some moments after the process.

use std::fs::{File, TryLockError, read_to_string};
use std::io;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// How often a waiter looks at who holds the lock.
const LOOK: Duration = Duration::from_millis(50);

/// Takes the exclusive lock on `file`, waiting until `deadline`. While somebody else has it, `meanwhile` is called: at
/// once and then many times a second; its error ends the wait. False: it was not free in time; the caller must close
/// `file` then, because the lock may still come.
pub(crate) fn lock_in_time(file: &File, deadline: Instant, mut meanwhile: impl FnMut() -> Result<()>) -> Result<bool> {
    let fail = |e: io::Error| Error::io("take the lock", e);
    match file.try_lock() {
        Ok(()) => return Ok(true),
        Err(TryLockError::WouldBlock) => {}
        Err(TryLockError::Error(e)) => return Err(fail(e)),
    }
    // The kernel tells nobody with a deadline that a lock is free. The thread has a descriptor of the same open file,
    // so what it locks is locked for the caller; it ends with the lock, or with the process.
    let (taken, waiting) = mpsc::channel();
    let waiter = file.try_clone().map_err(fail)?;
    std::thread::Builder::new()
        .name("pool-lock".into())
        .spawn(move || {
            if taken.send(waiter.lock()).is_err() {
                tracing::debug!("a lock came when nobody waited for it any more");
            }
        })
        .map_err(fail)?;
    loop {
        meanwhile()?;
        let Some(left) = deadline.checked_duration_since(Instant::now()) else { return Ok(false) };
        match waiting.recv_timeout(LOOK.min(left)) {
            Ok(locked) => return locked.map(|()| true).map_err(fail),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(fail(io::ErrorKind::Other.into())),
        }
    }
}

/// True unless the process is gone or on its way: a killed one may stand there for as long as one of its threads waits in
/// the kernel, the first one too. `started` tells it from a later process of the same number.
pub(crate) fn is_living(pid: u32, started: Option<u64>) -> bool {
    read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| lives(&stat, started))
}

/// What `/proc/PID/stat` says of the process' first thread.
fn lives(stat: &str, started: Option<u64>) -> bool {
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let number = |place: usize| fields.get(place - 2).and_then(|field| field.parse::<u64>().ok());
    let has = |place, bit| number(place).is_some_and(|bits| bits & bit != 0);
    let ended = matches!(fields.first().copied(), None | Some("" | "Z" | "X" | "x"));
    !ended && !has(FLAGS, EXITING) && !has(PENDING, KILLED) && (started.is_none() || started == number(STARTED))
}

/// Places in `/proc/PID/stat`, counted from 0: flags of the thread, signals that wait for it, time of its start.
const FLAGS: usize = 8;
const PENDING: usize = 30;
const STARTED: usize = 21;
/// `PF_EXITING`: it is inside its exit, and may wait there, for example to close a file of a server that is itself.
const EXITING: u64 = 1 << 2;
/// SIGKILL in a set of signals.
const KILLED: u64 = 1 << (libc::SIGKILL - 1);

/// When this process started, as [`is_living`] compares it.
pub(crate) fn started_at() -> Option<u64> {
    let stat = read_to_string("/proc/self/stat").ok()?;
    stat.rsplit(") ").next()?.split(' ').nth(STARTED - 2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{is_living, lives, lock_in_time, started_at};

    #[test]
    fn a_lock_that_is_let_go_comes_to_who_waits_for_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let held = file.reopen().unwrap();
        held.lock().unwrap();
        let mut held = Some(held);
        let mine = file.reopen().unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        let taken = lock_in_time(&mine, deadline, || {
            drop(held.take());
            Ok(())
        });
        assert!(taken.unwrap());
        assert!(file.reopen().unwrap().try_lock().is_err());
    }

    #[test]
    fn a_lock_that_stays_taken_is_given_up_at_the_deadline() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let held = file.reopen().unwrap();
        held.lock().unwrap();
        let mine = file.reopen().unwrap();
        let mut looks = 0;
        let deadline = Instant::now() + Duration::from_millis(120);
        assert!(
            !lock_in_time(&mine, deadline, || {
                looks += 1;
                Ok(())
            })
            .unwrap()
        );
        assert!(looks > 1);
    }

    #[test]
    fn a_process_is_told_from_its_successor_by_its_start() {
        let me = std::process::id();
        assert!(is_living(me, None) && is_living(me, started_at()));
        assert!(!is_living(me, started_at().map(|at| at + 1)));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id();
        while is_living(pid, None) {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(!is_living(pid, None));
    }

    #[test]
    fn a_killed_process_whose_first_thread_waits_in_the_kernel_lives_no_more() {
        let stat = |state: &str, flags: u32, pending: u32| {
            format!(
                "7 (a) b) {state} 1 7 7 0 -1 {flags} 0 0 0 0 0 0 0 0 20 0 9 0 4711 0 0 18446744073709551615 0 0 0 0 0 \
                 {pending} 0 4096 0"
            )
        };
        let (common, kill, terminate) = (0x40_0100, 1 << 8, 1 << 14);
        assert!(lives(&stat("S", common, 0), None) && lives(&stat("D", common, terminate), Some(4711)));
        assert!(!lives(&stat("D", common, 0), Some(4712)));
        // As such a thread was seen: it closes its files.
        assert!(!lives(&stat("D", 0x40_050c, 0), None));
        assert!(!lives(&stat("D", common, kill), None));
        assert!(!lives(&stat("Z", common, 0), None) && !lives("", None));
    }
}
