//! Serves a connection: its event loops and their workers, as one value that ends them.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::error::Result;
use crate::export::alive::Alive;
use crate::export::fuse::asking::Asking;
use crate::export::fuse::loop_parts::LoopParts;
use crate::export::fuse::node::Nodes;
use crate::export::fuse::ring_loop::RingLoop;
use crate::export::fuse::session::{Session, duplicate};
use crate::export::fuse::thread_loop::ThreadLoop;
use crate::export::residency::shun_memory_pressure;
use crate::export::work::{LoopThreads, Started, Workers};

/// The threads of one connection; ended and joined when dropped.
pub(in crate::export) struct Serving {
    devices: Vec<Arc<OwnedFd>>,
    _loops: LoopThreads<usize>,
    /// After the loops: a loop ends only when its last errand is done.
    _workers: Workers<Asking>,
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
        let mut loops = LoopThreads::default();
        let mut devices = Vec::new();
        let fds = session.into_fds();
        let alone = fds.len() == 1;
        for fd in fds {
            let device = Arc::new(fd);
            devices.push(Arc::clone(&device));
            let (alive, nodes, jobs) = (alive.cloned(), Arc::clone(nodes), workers.sender());
            loops.start(move |mailbox, started| {
                run_loop(LoopParts { device, alone, alive, nodes, jobs, mailbox }, &started);
            })?;
        }
        Ok(Self { devices, _loops: loops, _workers: workers })
    }

    /// Further descriptors of the connection.
    pub(in crate::export) fn descriptors(&self) -> Result<Vec<OwnedFd>> {
        self.devices.iter().map(|device| duplicate(device)).collect()
    }
}

/// The body of a loop's thread.
fn run_loop(parts: LoopParts, started: &Started) {
    shun_memory_pressure();
    let plain = parts.clone();
    match RingLoop::new(parts) {
        Ok(ring) => {
            started.tell(Ok(()));
            ring.run();
        }
        Err(error) => {
            tracing::warn!("io_uring cannot be used ({error}): the export works, but slower");
            match ThreadLoop::new(plain) {
                Ok(threads) => {
                    started.tell(Ok(()));
                    threads.run();
                }
                Err(error) => started.tell(Err(error)),
            }
        }
    }
}
