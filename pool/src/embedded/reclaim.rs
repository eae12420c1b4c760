//! Empties the data blocks that durable commits freed, then gives them back to the allocator.
//!
//! A thread of its own: a deleted device may free a million blocks, and no flush should wait for their
//! holes. Between commit and release the blocks belong to nobody. If the process dies in between they are
//! free with old bytes in them; whoever gets them zeroes what he does not write.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::embedded::backing::Backing;
use crate::meta::DataRun;

/// Runs that are emptied before they are released together: keeps writers that wait for room moving.
const BATCH: usize = 1024;

#[derive(Default)]
struct Queue {
    freed: VecDeque<DataRun>,
    busy: bool,
    /// Those who hold free blocks back for a moment.
    holders: usize,
    stop: bool,
    stopped: bool,
}

/// The queue between committer and reclaimer.
#[derive(Default)]
pub(super) struct Reclaim {
    queue: Mutex<Queue>,
    pushed: Condvar,
    idle: Condvar,
}

impl Reclaim {
    /// Takes over blocks that a durable commit freed.
    pub(super) fn push(&self, freed: Vec<DataRun>) {
        if freed.is_empty() {
            return;
        }
        self.lock().freed.extend(freed);
        self.pushed.notify_one();
    }

    /// True if nothing waits and nothing is being emptied.
    pub(super) fn is_idle(&self) -> bool {
        let queue = self.lock();
        queue.freed.is_empty() && !queue.busy && queue.holders == 0
    }

    /// Returns when every block pushed before is released (or never will be).
    pub(super) fn wait_idle(&self) {
        let mut queue = self.lock();
        while !queue.stopped && (queue.busy || queue.holders > 0 || !queue.freed.is_empty()) {
            queue = self.idle.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The caller is about to hold free blocks back: until the value is dropped, whoever finds none waits for them.
    pub(super) fn hold(&self) -> Held<'_> {
        self.lock().holders += 1;
        Held(self)
    }

    /// Asks the reclaimer to end when the queue is empty.
    pub(super) fn stop(&self) {
        self.lock().stop = true;
        self.pushed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_batch(&self) -> Option<Vec<DataRun>> {
        let mut queue = self.lock();
        queue.busy = false;
        loop {
            if !queue.freed.is_empty() {
                let count = queue.freed.len().min(BATCH);
                queue.busy = true;
                return Some(merged(queue.freed.drain(..count).collect()));
            }
            self.idle.notify_all();
            if queue.stop {
                return None;
            }
            queue = self.pushed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Free blocks are held back.
pub(super) struct Held<'a>(&'a Reclaim);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.lock().holders -= 1;
        self.0.idle.notify_all();
    }
}

/// The same blocks in as few runs as there are: a hole costs the file system about the same however long it is.
fn merged(mut runs: Vec<DataRun>) -> Vec<DataRun> {
    runs.sort_unstable_by_key(|run| run.start);
    let mut merged: Vec<DataRun> = Vec::with_capacity(runs.len());
    for run in runs {
        match merged.last_mut() {
            Some(last) if last.start.0 + last.len == run.start.0 => last.len += run.len,
            _ => merged.push(run),
        }
    }
    merged
}

/// Marks the end of the reclaimer however it ends, so that nobody waits for ever.
struct Ending<'a>(&'a Reclaim);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.lock().stopped = true;
        self.0.idle.notify_all();
    }
}

/// The reclaimer's life: batches until [`Reclaim::stop`].
pub(super) fn run(backing: &Arc<Backing>) {
    let _ending = Ending(&backing.reclaim);
    while let Some(batch) = backing.reclaim.next_batch() {
        backing.punch(&batch);
        match backing.metadata() {
            Ok(mut metadata) => metadata.release_data(&batch),
            // Fail mode: nothing is handed out any more.
            Err(_) => return,
        }
        backing.room_below();
        backing.leave_out_of_space();
        // Before the batch passes for done: who sees the reclaimer idle has heard of what it released.
        backing.pulse.room_changed();
    }
}
