//! Threads for requests that may block: a new block, a copy, a flush.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use nix::sys::uio::writev;

use crate::error::{Error, Result};
use crate::export::exporter::Direction;
use crate::export::fuse::arena::Arena;
use crate::export::fuse::lot::{self, Lot, Waiter};
use crate::export::fuse::node::Nodes;
use crate::export::fuse::requests::{Errand, Transfer, errno_of};
use crate::export::fuse::wire::out_header;
use crate::export::residency::shun_memory_pressure;

/// Where a slot goes back to when its request is answered.
pub(super) trait Home: Send + Sync {
    /// The slot is free.
    fn give_back(&self, slot: usize);
}

/// A slot lent to a worker; gives itself back.
pub(super) struct LentSlot {
    pub(super) slot: usize,
    pub(super) arena: Arc<Arena>,
    pub(super) home: Arc<dyn Home>,
}

impl Drop for LentSlot {
    fn drop(&mut self) {
        self.home.give_back(self.slot);
    }
}

/// One thing to do.
pub(super) enum Job {
    /// Do it and answer the request `unique` on `device`.
    Errand { unique: u64, device: Arc<OwnedFd>, errand: Errand, slot: LentSlot },
    /// Call [`Nodes::settle`].
    Settle(u64),
}

struct Queue {
    jobs: VecDeque<Job>,
    open: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    filled: Condvar,
    nodes: Arc<Nodes>,
}

/// A fixed number of threads; joined when dropped, after the last job. The queue is bounded by the slots of the
/// event loops and the files of the filesystem.
pub(super) struct Workers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// The side of [`Workers`] that takes jobs.
#[derive(Clone)]
pub(super) struct JobSender(Arc<Shared>);

impl JobSender {
    pub(super) fn send(&self, job: Job) {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner).jobs.push_back(job);
        self.0.filled.notify_one();
    }
}

impl Workers {
    pub(super) fn start(threads: usize, nodes: Arc<Nodes>) -> Result<Self> {
        let queue = Mutex::new(Queue { jobs: VecDeque::with_capacity(256), open: true });
        let shared = Arc::new(Shared { queue, filled: Condvar::new(), nodes });
        let mut workers = Self { shared: Arc::clone(&shared), threads: Vec::new() };
        for number in 0..threads {
            let shared = Arc::clone(&shared);
            let thread = std::thread::Builder::new()
                .name(format!("pool-work-{number}"))
                .spawn(move || work(&shared))
                .map_err(|e| Error::io("start a worker thread of the exporter", e))?;
            workers.threads.push(thread);
        }
        let shared = Arc::clone(&workers.shared);
        let keeper = std::thread::Builder::new()
            .name("pool-waiters".to_owned())
            .spawn(move || {
                shun_memory_pressure();
                lot::keep(&shared.nodes.lot);
            })
            .map_err(|e| Error::io("start the thread of the writes that wait for room", e))?;
        workers.threads.push(keeper);
        Ok(workers)
    }

    pub(super) fn sender(&self) -> JobSender {
        JobSender(Arc::clone(&self.shared))
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner).open = false;
        self.shared.filled.notify_all();
        self.shared.nodes.lot.stop();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a worker thread of the exporter panicked");
            }
        }
    }
}

fn next(shared: &Shared) -> Option<Job> {
    let mut queue = shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        if let Some(job) = queue.jobs.pop_front() {
            return Some(job);
        }
        if !queue.open {
            return None;
        }
        queue = shared.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
    }
}

fn work(shared: &Shared) {
    shun_memory_pressure();
    while let Some(job) = next(shared) {
        match job {
            Job::Errand { unique, device, errand, slot } => {
                let done = catch_unwind(AssertUnwindSafe(|| run(unique, &device, errand, &slot, &shared.nodes.lot)));
                if done.is_err() {
                    // The volume broke a promise of its own. Its caller must not wait for ever; if the request
                    // was answered before the panic, the kernel refuses this second answer.
                    answer(&device, unique, libc::EIO, &[]);
                }
            }
            Job::Settle(node) => shared.nodes.settle(node),
        }
    }
}

/// Does an errand and answers it. The errand's file is let go before the answer: the kernel may release the file
/// right after it, and then nothing but the table may hold the volume.
///
/// A write that finds no room is parked, not waited for here: these threads and the slots are everybody's.
fn run(unique: u64, device: &Arc<OwnedFd>, errand: Errand, slot: &LentSlot, lot: &Lot) {
    let (doing, outcome) = match errand {
        Errand::Transfer(transfer @ Transfer { direction: Direction::Write, .. }) => {
            // SAFETY: the slot was lent to this call alone; the kernel has no I/O on it while it is lent.
            let payload = unsafe { slot.arena.payload(slot.slot, transfer.len as usize) };
            let Transfer { node, offset, .. } = transfer;
            return lot.write(Waiter { unique, device: Arc::clone(device), node }, offset, payload);
        }
        Errand::WriteZeroes(node, range) => {
            return lot.write_zeroes(Waiter { unique, device: Arc::clone(device), node }, range);
        }
        Errand::Transfer(transfer) => {
            // SAFETY: the slot was lent to this call alone; the kernel has no I/O on it while it is lent.
            let payload = unsafe { slot.arena.payload(slot.slot, transfer.len as usize) };
            let outcome = transfer.node.volume.read_at(payload, transfer.offset);
            let id = transfer.node.id;
            drop(transfer);
            if outcome.is_ok() {
                return answer(device, unique, 0, payload);
            }
            (format!("read device {id}"), outcome)
        }
        Errand::Flush(node) => (format!("flush device {}", node.id), node.volume.flush()),
        Errand::Discard(node, range) => {
            (format!("discard in device {}", node.id), node.volume.discard(range.offset, range.len))
        }
    };
    match outcome {
        Ok(()) => answer(device, unique, 0, &[]),
        Err(error) => {
            tracing::warn!(kind = ?error.kind(), "{doing}: {error}");
            answer(device, unique, errno_of(error.kind()), &[]);
        }
    }
}

/// Answers a request at once. The kernel refuses an answer only when the request was given up (ENOENT) or the
/// filesystem is gone; there is nobody to tell then.
pub(super) fn answer(device: &OwnedFd, unique: u64, errno: i32, body: &[u8]) {
    let header = out_header(unique, errno, body.len());
    let pieces = [IoSlice::new(&header), IoSlice::new(body)];
    if let Err(errno) = writev(device, &pieces[..if body.is_empty() { 1 } else { 2 }]) {
        tracing::debug!(fd = device.as_raw_fd(), "the kernel did not take an answer: {errno}");
    }
}
