//! Takes devices away and waits until they are out of sight, not until the kernel has taken them apart.
//!
//! A device without openers is out of sight at the very beginning of its removal: from then on nobody can open it, so
//! what has reached the pool is all that ever will. Taking it apart then costs the kernel some grace periods, tens of
//! milliseconds that nobody need wait for: the name is free for the next device at once. Only who wants the thin device
//! itself deleted, or the pool closed, waits until it is over.

use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

use crate::error::{Error, ErrorKind, Result};
use crate::kernel::control::Control;
use crate::kernel::news::OFTEN;

/// Removals that are under way; waits for them when dropped.
#[derive(Default)]
pub(super) struct Removals {
    running: Mutex<Vec<(String, JoinHandle<()>)>>,
}

impl Removals {
    /// Takes a device away: at once, or when its last opener closes it. True: it is out of sight at return.
    pub(super) fn remove(&self, control: &Arc<Control>, name: &str) -> Result<bool> {
        let (tell, told) = sync_channel(1);
        let (worker, device) = (Arc::clone(control), name.to_owned());
        let thread = Builder::new()
            .name("dm-removal".to_owned())
            // Whoever saw the device vanish listens no more.
            .spawn(move || drop(tell.send(worker.remove(&device))))
            .map_err(|e| Error::io(format!("remove {name}: start a thread"), e))?;
        self.keep(name, thread);
        loop {
            match told.recv_timeout(OFTEN) {
                Ok(removed) => return removed,
                Err(RecvTimeoutError::Timeout) if control.state(name)?.is_none() => return Ok(true),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Error::new(ErrorKind::Io, format!("remove {name}: the thread for it panicked")));
                }
            }
        }
    }

    /// Waits until the kernel has taken apart what was taken away under this name.
    pub(super) fn finish(&self, name: &str) {
        let taken: Vec<_> = self.lock().extract_if(.., |(other, _)| other == name).collect();
        join(taken);
    }

    /// Waits until the kernel has taken apart all that was taken away: it holds the pool until then, and with it what is
    /// below, whose last reference goes with the thread that gives it up.
    pub(super) fn finish_all(&self) {
        let taken = std::mem::take(&mut *self.lock());
        join(taken);
    }

    fn keep(&self, name: &str, thread: JoinHandle<()>) {
        let mut running = self.lock();
        running.retain(|(_, other)| !other.is_finished());
        running.push((name.to_owned(), thread));
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(String, JoinHandle<()>)>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Removals {
    fn drop(&mut self) {
        self.finish_all();
    }
}

fn join(threads: Vec<(String, JoinHandle<()>)>) {
    for (_, thread) in threads {
        // A panic has been told to the one who waited for it.
        drop(thread.join());
    }
}
