//! Serves the requests of ublk devices: event loops and their workers, as one value that ends them.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use crate::error::Result;
use crate::export::alive::Alive;
use crate::export::residency::shun_memory_pressure;
use crate::export::ublk::asking::{Asking, Message};
use crate::export::ublk::channel::Channel;
use crate::export::ublk::queue_loop::QueueLoop;
use crate::export::work::{LoopThreads, Lot, Node, Workers};

/// The threads of an exporter; ended and joined when dropped, and the devices then wait for who serves them next.
pub(in crate::export) struct Serving {
    loops: LoopThreads<Message>,
    /// After the loops: a loop ends only when its last errand is done.
    _workers: Workers<Asking>,
}

impl Serving {
    pub(in crate::export) fn start(
        event_threads: usize,
        worker_threads: usize,
        lot: &Arc<Lot<Asking>>,
        alive: &Arc<Alive>,
    ) -> Result<Self> {
        let workers = Workers::start(worker_threads, Arc::clone(lot))?;
        let mut loops = LoopThreads::default();
        for _ in 0..event_threads {
            let (jobs, lot, alive) = (workers.sender(), Arc::clone(lot), Arc::clone(alive));
            loops.start(move |mailbox, started| {
                shun_memory_pressure();
                if let Err(error) = refuse_privilege() {
                    tracing::warn!("the kernel will look for partitions on the devices: {error}");
                }
                match QueueLoop::new(alive.raw_fd(), jobs, lot, mailbox) {
                    Ok(queues) => {
                        started.tell(Ok(()));
                        queues.run();
                    }
                    Err(error) => started.tell(Err(error)),
                }
            })?;
        }
        Ok(Self { loops, _workers: workers })
    }

    /// Serves a device from here on. False: the kernel refuses that, or it took too long.
    pub(in crate::export) fn serve(&self, channel: &Arc<Channel>, node: &Arc<Node>, deadline: Instant) -> bool {
        let Some(mailbox) = self.loops.mailbox(node.id.get() as usize) else { return false };
        mailbox.give(Message::Serve { channel: Arc::clone(channel), node: Arc::clone(node) });
        channel.wait_served(deadline)
    }
}

/// Takes the power over the system from this thread alone. The driver then has the kernel not read partition tables:
/// what stands on a device is its user's, as on a loop device; and a read while the device is being shown would wait
/// for ever, with everybody after it, if this process were killed meanwhile.
fn refuse_privilege() -> io::Result<()> {
    let mut sets = capabilities(None)?;
    sets.effective.remove(CapabilitySet::SYS_ADMIN);
    set_capabilities(None, sets)?;
    Ok(())
}
