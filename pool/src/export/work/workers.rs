//! Threads for requests that may block: a new block, a copy, a flush.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::error::{Error, Result};
use crate::export::exporter::Direction;
use crate::export::residency::shun_memory_pressure;
use crate::export::work::arena::Arena;
use crate::export::work::asker::{Asker, Reply};
use crate::export::work::errand::{Errand, Transfer, errno_of};
use crate::export::work::lot::{self, Lot, Waiter};

/// Where a slot goes back to when its request is answered.
pub(in crate::export) trait Home: Send + Sync {
    /// The slot is free.
    fn give_back(&self, slot: usize);
}

/// A slot lent to a worker; gives itself back.
pub(in crate::export) struct LentSlot {
    pub(in crate::export) slot: usize,
    pub(in crate::export) arena: Arc<Arena>,
    pub(in crate::export) home: Arc<dyn Home>,
}

impl Drop for LentSlot {
    fn drop(&mut self) {
        self.home.give_back(self.slot);
    }
}

/// One thing to do.
pub(in crate::export) enum Job<A> {
    /// Do it and answer who asked.
    Errand { asker: A, errand: Errand, slot: LentSlot },
    /// Something else that may block.
    Aside(Box<dyn FnOnce() + Send>),
}

struct Queue<A> {
    jobs: VecDeque<Job<A>>,
    open: bool,
}

struct Shared<A> {
    queue: Mutex<Queue<A>>,
    filled: Condvar,
    lot: Arc<Lot<A>>,
}

/// A fixed number of threads; joined when dropped, after the last job. The queue is bounded by the slots of the
/// event loops and the devices that are shown.
pub(in crate::export) struct Workers<A: Asker> {
    shared: Arc<Shared<A>>,
    threads: Vec<JoinHandle<()>>,
}

/// The side of [`Workers`] that takes jobs.
#[derive(Clone)]
pub(in crate::export) struct JobSender<A>(Arc<Shared<A>>);

impl<A> JobSender<A> {
    pub(in crate::export) fn send(&self, job: Job<A>) {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner).jobs.push_back(job);
        self.0.filled.notify_one();
    }
}

impl<A: Asker> Workers<A> {
    pub(in crate::export) fn start(threads: usize, lot: Arc<Lot<A>>) -> Result<Self> {
        let queue = Mutex::new(Queue { jobs: VecDeque::with_capacity(256), open: true });
        let shared = Arc::new(Shared { queue, filled: Condvar::new(), lot });
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
                lot::keep(&shared.lot);
            })
            .map_err(|e| Error::io("start the thread of the writes that wait for room", e))?;
        workers.threads.push(keeper);
        Ok(workers)
    }

    pub(in crate::export) fn sender(&self) -> JobSender<A> {
        JobSender(Arc::clone(&self.shared))
    }
}

impl<A: Asker> Drop for Workers<A> {
    fn drop(&mut self) {
        self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner).open = false;
        self.shared.filled.notify_all();
        self.shared.lot.stop();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a worker thread of the exporter panicked");
            }
        }
    }
}

fn next<A>(shared: &Shared<A>) -> Option<Job<A>> {
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

fn work<A: Asker>(shared: &Shared<A>) {
    shun_memory_pressure();
    while let Some(job) = next(shared) {
        match job {
            Job::Errand { asker, errand, slot } => {
                let done = catch_unwind(AssertUnwindSafe(|| run(&asker, errand, &slot, &shared.lot)));
                if done.is_err() {
                    // The volume broke a promise of its own. Its caller must not wait for ever; if the request
                    // was answered before the panic, this second answer does nothing.
                    asker.answer(Reply::Failed(libc::EIO));
                }
            }
            Job::Aside(call) => call(),
        }
    }
}

/// Does an errand and answers it. The errand's device is let go before the answer: right after it the device may be
/// taken away, and then nothing but the exporter's table may hold the volume.
///
/// A write that finds no room is parked, not waited for here: these threads and the slots are everybody's.
fn run<A: Asker>(asker: &A, errand: Errand, slot: &LentSlot, lot: &Lot<A>) {
    let (doing, outcome) = match errand {
        Errand::Transfer(transfer @ Transfer { direction: Direction::Write, .. }) => {
            // SAFETY: the slot was lent to this call alone; the kernel has no I/O on it while it is lent.
            let payload = unsafe { slot.arena.payload(slot.slot, transfer.len as usize) };
            if transfer.is_done_early(payload, true) {
                let len = transfer.len;
                drop(transfer);
                return asker.answer(Reply::Wrote(len));
            }
            let Transfer { node, offset, .. } = transfer;
            return lot.write(Waiter { asker: asker.clone(), node }, offset, payload);
        }
        Errand::WriteZeroes(node, range) => {
            return lot.write_zeroes(Waiter { asker: asker.clone(), node }, range);
        }
        Errand::Transfer(transfer) => {
            // SAFETY: the slot was lent to this call alone; the kernel has no I/O on it while it is lent.
            let payload = unsafe { slot.arena.payload(slot.slot, transfer.len as usize) };
            let outcome = transfer.node.volume.read_at(payload, transfer.offset);
            let id = transfer.node.id;
            drop(transfer);
            if outcome.is_ok() {
                return asker.answer(Reply::Bytes(payload));
            }
            (format!("read device {id}"), outcome)
        }
        Errand::Flush(node) => (format!("flush device {}", node.id), node.volume.flush()),
        Errand::Discard(node, range) => {
            (format!("discard in device {}", node.id), node.volume.discard(range.offset, range.len))
        }
    };
    match outcome {
        Ok(()) => asker.answer(Reply::Done),
        Err(error) => {
            tracing::warn!(kind = ?error.kind(), "{doing}: {error}");
            asker.answer(Reply::Failed(errno_of(error.kind())));
        }
    }
}
