//! The threads of event loops, each with its door.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;

use crate::error::{Error, ErrorKind, Result};
use crate::export::work::mailbox::Mailbox;

/// Tells whether a loop has started.
pub(in crate::export) struct Started(Sender<io::Result<()>>);

impl Started {
    pub(in crate::export) fn tell(&self, outcome: io::Result<()>) {
        if self.0.send(outcome).is_err() {
            tracing::debug!("nobody waited for an event loop to start");
        }
    }
}

/// Stopped and joined when dropped, each after the requests under way; `T` comes through the doors.
pub(in crate::export) struct LoopThreads<T> {
    loops: Vec<(Arc<Mailbox<T>>, JoinHandle<()>)>,
}

impl<T> Default for LoopThreads<T> {
    fn default() -> Self {
        Self { loops: Vec::new() }
    }
}

impl<T: Send + 'static> LoopThreads<T> {
    /// Starts one more thread; `body` tells whether it could begin, and then runs until its mailbox is stopped.
    pub(in crate::export) fn start(
        &mut self,
        body: impl FnOnce(Arc<Mailbox<T>>, Started) + Send + 'static,
    ) -> Result<()> {
        let fail = |e: io::Error| Error::io("start an event loop of the exporter", e);
        let mailbox = Arc::new(Mailbox::new().map_err(fail)?);
        let door = Arc::clone(&mailbox);
        let (started, start) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name(format!("pool-loop-{}", self.loops.len()))
            .spawn(move || body(door, Started(started)))
            .map_err(fail)?;
        self.loops.push((mailbox, thread));
        start.recv().map_err(|_| Error::new(ErrorKind::Io, "start an event loop: it ended at once"))?.map_err(fail)
    }

    /// The door of one of them, chosen by a number; `None` if there is no thread.
    pub(in crate::export) fn mailbox(&self, number: usize) -> Option<&Arc<Mailbox<T>>> {
        self.loops.get(number.checked_rem(self.loops.len())?).map(|(mailbox, _)| mailbox)
    }
}

impl<T> Drop for LoopThreads<T> {
    fn drop(&mut self) {
        for (mailbox, _) in &self.loops {
            mailbox.stop();
        }
        for (_, thread) in self.loops.drain(..) {
            if thread.join().is_err() {
                tracing::error!("an event loop of the exporter panicked");
            }
        }
    }
}
