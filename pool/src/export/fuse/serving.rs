//! Serves a connection: its event loops and their workers, as one value that ends them.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;

use crate::error::{Error, ErrorKind, Result};
use crate::export::alive::Alive;
use crate::export::fuse::asking::Asking;
use crate::export::fuse::loop_parts::LoopParts;
use crate::export::fuse::node::Nodes;
use crate::export::fuse::ring_loop::RingLoop;
use crate::export::fuse::session::{Session, duplicate, resend};
use crate::export::fuse::thread_loop::ThreadLoop;
use crate::export::residency::shun_memory_pressure;
use crate::export::work::{Mailbox, Workers};

/// The threads of one connection; ended and joined when dropped.
pub(in crate::export) struct Serving {
    devices: Vec<Arc<OwnedFd>>,
    loops: Vec<(Arc<Mailbox<usize>>, JoinHandle<()>)>,
    /// After the loops: a loop ends only when its last errand is done.
    workers: Workers<Asking>,
}

impl Serving {
    /// Starts one event loop for each descriptor of the connection.
    pub(in crate::export) fn start(
        session: Session,
        nodes: &Arc<Nodes>,
        worker_threads: usize,
        alive: Option<&Arc<Alive>>,
    ) -> Result<Self> {
        let workers = Workers::start(worker_threads, Arc::clone(&nodes.lot))?;
        let mut serving = Self { devices: Vec::new(), loops: Vec::new(), workers };
        for (number, fd) in session.into_fds().into_iter().enumerate() {
            let fail = |e: io::Error| Error::io("start an event loop of the exporter", e);
            let mailbox = Arc::new(Mailbox::new().map_err(fail)?);
            let device = Arc::new(fd);
            serving.devices.push(Arc::clone(&device));
            let parts = LoopParts {
                device,
                alive: alive.cloned(),
                nodes: Arc::clone(nodes),
                jobs: serving.workers.sender(),
                mailbox: Arc::clone(&mailbox),
            };
            let (started, start) = mpsc::channel();
            let thread = std::thread::Builder::new()
                .name(format!("pool-loop-{number}"))
                .spawn(move || run_loop(parts, &started))
                .map_err(fail)?;
            serving.loops.push((mailbox, thread));
            start
                .recv()
                .map_err(|_| Error::new(ErrorKind::Io, "start an event loop: it ended at once"))?
                .map_err(fail)?;
        }
        Ok(serving)
    }

    /// Further descriptors of the connection.
    pub(in crate::export) fn descriptors(&self) -> Result<Vec<OwnedFd>> {
        self.devices.iter().map(|device| duplicate(device)).collect()
    }

    /// Has the kernel send again what a server before this one did not answer.
    pub(in crate::export) fn resend(&self) -> Result<()> {
        self.devices.first().map_or(Ok(()), |device| resend(device))
    }
}

impl Drop for Serving {
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

/// The body of a loop's thread.
fn run_loop(parts: LoopParts, started: &Sender<io::Result<()>>) {
    shun_memory_pressure();
    let plain = parts.clone();
    let told = match RingLoop::new(parts) {
        Ok(ring) => {
            let told = started.send(Ok(()));
            ring.run();
            told
        }
        Err(error) => {
            tracing::warn!("io_uring cannot be used ({error}): the export works, but slower");
            match ThreadLoop::new(plain) {
                Ok(threads) => {
                    let told = started.send(Ok(()));
                    threads.run();
                    told
                }
                Err(error) => started.send(Err(error)),
            }
        }
    };
    if told.is_err() {
        tracing::debug!("nobody waited for an event loop to start");
    }
}
