//! The committer's second hand: flushes the data device while the committer flushes the metadata.
//!
//! Two flushes that are under way together cost hardly more than one: the kernel hands the disk a single one for both.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use crate::embedded::backing::Backing;
use crate::error::{Error, ErrorKind, Result};

/// A thread that flushes the data when it is asked to; joined when dropped.
pub(super) struct Companion {
    ask: Option<SyncSender<()>>,
    done: Receiver<Result<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Companion {
    /// `None` where it would be of no use (devices without a descriptor flush in no time, and those of tests keep
    /// their order), or where no thread can be had: then flushes come one after the other.
    pub(super) fn start(backing: &Arc<Backing>) -> Option<Self> {
        backing.data.raw_fd()?;
        let (ask, asked) = sync_channel(1);
        let (tell, done) = sync_channel(1);
        let backing = Arc::clone(backing);
        let thread = std::thread::Builder::new()
            .name("pool-data-flush".to_owned())
            .spawn(move || while asked.recv().is_ok() && tell.send(backing.flush_data()).is_ok() {});
        match thread {
            Ok(thread) => Some(Self { ask: Some(ask), done, thread: Some(thread) }),
            Err(e) => {
                tracing::warn!("commits take longer: the thread that flushes the data does not start: {e}");
                None
            }
        }
    }

    /// Flushes the data and does `other` at the same time. Returns both outcomes, the data's first.
    pub(super) fn flush_beside(&self, other: impl FnOnce() -> Result<()>) -> (Result<()>, Result<()>) {
        let asked = self.ask.as_ref().is_some_and(|ask| ask.send(()).is_ok());
        let other = other();
        let ended = || Error::new(ErrorKind::Io, "flush the data: the thread that does it has ended");
        let data = if asked { self.done.recv().unwrap_or_else(|_| Err(ended())) } else { Err(ended()) };
        (data, other)
    }
}

impl Drop for Companion {
    fn drop(&mut self) {
        self.ask = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that flushes the data panicked");
        }
    }
}
