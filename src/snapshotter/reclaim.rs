//! Gives removed devices back to the pool, in the background.
//!
//! Remove only moves an id into limbo; what costs time happens here, on a few threads: deactivate, delete,
//! then forget the id. The order is the crash argument: an id leaves limbo after its device is gone, so
//! that a crash anywhere leaves at most an id in limbo, and deleting again is a success.
//!
//! A device that somebody still has open is tried again after a while that doubles; nobody waits for it.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use thinsnap_pool::{DeviceId, ErrorKind as PoolErrorKind, Mutation, Result as PoolResult, ThinPool};

use crate::error::{Error, ErrorKind, Result};
use crate::snapshotter::claims::Claims;
use crate::snapshotter::tripwire;
use crate::store::{Limbo, Records, Store};

/// Deletions that one commit of the store forgets.
const BATCH_MAX: usize = 16;
/// The first and the longest wait before a busy device is tried again.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(10);
/// A device that was tried so often before, for 12.7 seconds, is told to be in use.
const TELL_AFTER: u32 = 7;

/// What there is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Task {
    /// Delete a device in limbo and forget its id.
    Delete(DeviceId),
    /// Deactivate a device that views showed, if none does any more.
    Release(DeviceId),
    /// Move the pool's transaction id on.
    Stamp,
}

/// What came of a task until now.
#[derive(Debug, Clone, Copy, Default)]
struct Tries {
    count: u32,
    /// One has failed, and the log says so.
    failed: bool,
}

#[derive(Default)]
struct Queue {
    ready: VecDeque<Task>,
    running: HashSet<Task>,
    /// When to try again, what came of it, what.
    parked: Vec<(Instant, Tries, Task)>,
    stop: bool,
}

impl Task {
    fn device(self) -> Option<DeviceId> {
        match self {
            Self::Delete(id) | Self::Release(id) => Some(id),
            Self::Stamp => None,
        }
    }
}

impl Queue {
    /// True while a task of the same device is being worked on: the device is had alone, so this one waits
    /// its turn. It is not dropped: the running one may have looked before this one was asked for.
    fn is_busy(&self, task: Task) -> bool {
        self.running.iter().any(|other| other.device() == task.device())
    }

    /// Moves what can be worked on into the batch, one task for a device.
    fn take_ready(&mut self, batch: &mut Vec<(Task, Tries)>) {
        let mut later = VecDeque::new();
        while batch.len() < BATCH_MAX {
            let Some(task) = self.ready.pop_front() else { break };
            if batch.iter().any(|(other, _)| *other == task) {
                continue;
            }
            if self.is_busy(task) || batch.iter().any(|(other, _)| other.device() == task.device()) {
                later.push_back(task);
            } else {
                batch.push((task, Tries::default()));
            }
        }
        while let Some(task) = later.pop_back() {
            self.ready.push_front(task);
        }
    }
}

/// The queue and what its workers need.
pub(crate) struct Reclaimer {
    pool: Arc<dyn ThinPool>,
    store: Store,
    claims: Arc<Claims>,
    queue: Mutex<Queue>,
    changed: Condvar,
}

/// Owns the threads; they end with it.
pub(crate) struct Workers {
    reclaimer: Arc<Reclaimer>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// With no threads, nothing is reclaimed but inside [`Reclaimer::drain`].
    pub(crate) fn start(reclaimer: &Arc<Reclaimer>, threads: usize) -> Result<Self> {
        let mut workers = Self { reclaimer: reclaimer.clone(), threads: Vec::with_capacity(threads) };
        for number in 0..threads {
            let reclaimer = reclaimer.clone();
            let thread = std::thread::Builder::new()
                .name(format!("reclaim-{number}"))
                .spawn(move || reclaimer.work())
                .map_err(|e| Error::io("start a thread that reclaims devices", e))?;
            workers.threads.push(thread);
        }
        Ok(workers)
    }

    pub(crate) fn any(&self) -> bool {
        !self.threads.is_empty()
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.reclaimer.lock().stop = true;
        self.reclaimer.changed.notify_all();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread that reclaims devices panicked");
            }
        }
    }
}

impl Reclaimer {
    pub(crate) fn new(pool: Arc<dyn ThinPool>, store: Store, claims: Arc<Claims>) -> Self {
        Self { pool, store, claims, queue: Mutex::default(), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The device of an id in limbo is to go.
    pub(crate) fn delete(&self, id: DeviceId) {
        self.push(Task::Delete(id));
    }

    /// A view of the device has gone; perhaps it was the last.
    pub(crate) fn release(&self, id: DeviceId) {
        self.push(Task::Release(id));
    }

    /// Enough has changed for the tripwire to be set anew.
    pub(crate) fn stamp(&self) {
        self.push(Task::Stamp);
    }

    fn push(&self, task: Task) {
        self.lock().ready.push_back(task);
        self.changed.notify_one();
    }

    /// Waits until everything that was asked for before the call was tried once more. Devices that are
    /// still open stay in limbo.
    pub(crate) fn drain(&self, workers: bool) {
        let mut queue = self.lock();
        let parked: Vec<Task> = queue.parked.drain(..).map(|(_, _, task)| task).collect();
        queue.ready.extend(parked);
        if !workers {
            drop(queue);
            while let Some(batch) = self.next_batch(false) {
                self.run(&batch);
            }
            return;
        }
        self.changed.notify_all();
        let mut awaited: HashSet<Task> = queue.ready.iter().chain(queue.running.iter()).copied().collect();
        loop {
            let open: HashSet<Task> = queue.ready.iter().chain(queue.running.iter()).copied().collect();
            awaited.retain(|task| open.contains(task));
            if awaited.is_empty() || queue.stop {
                return;
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until the deletions that are to be done now have been tried, at most for `limit`. False: there were none.
    pub(crate) fn settle(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut queue = self.lock();
        let is_open = |queue: &Queue| {
            queue.ready.iter().chain(queue.running.iter()).any(|task| matches!(task, Task::Delete(_))) && !queue.stop
        };
        let any = is_open(&queue);
        while let (true, Some(left)) = (is_open(&queue), deadline.checked_duration_since(Instant::now())) {
            queue = self.changed.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        any
    }

    fn work(&self) {
        while let Some(batch) = self.next_batch(true) {
            self.run(&batch);
        }
    }

    /// The next tasks, each with what came of it before. `None`: the queue was stopped, or, if
    /// not to `wait`, is empty.
    fn next_batch(&self, wait: bool) -> Option<Vec<(Task, Tries)>> {
        let mut queue = self.lock();
        loop {
            if queue.stop {
                return None;
            }
            let now = Instant::now();
            let mut batch = Vec::new();
            let due = |q: &Queue| q.parked.iter().position(|(when, _, task)| *when <= now && !q.is_busy(*task));
            if let Some(due) = due(&queue) {
                let (_, tries, task) = queue.parked.swap_remove(due);
                batch.push((task, tries));
            }
            queue.take_ready(&mut batch);
            if !batch.is_empty() {
                queue.running.extend(batch.iter().map(|(task, _)| *task));
                return Some(batch);
            }
            if !wait {
                return None;
            }
            // A busy one is looked at again when the running one is done, which wakes this.
            let next = queue.parked.iter().filter(|(_, _, task)| !queue.is_busy(*task)).map(|(when, ..)| *when).min();
            queue = match next {
                Some(when) => {
                    let pause = when.saturating_duration_since(now);
                    self.changed.wait_timeout(queue, pause).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn run(&self, batch: &[(Task, Tries)]) {
        let mut gone = Vec::new();
        let mut again = Vec::new();
        for &(task, mut tries) in batch {
            let done = match task {
                Task::Delete(id) => self.try_delete(id, &mut gone),
                Task::Release(id) => self.try_release(id),
                Task::Stamp => tripwire::advance(&*self.pool, &self.store).map(|()| true),
            };
            match done {
                Ok(true) => {}
                Ok(false) => {
                    if tries.count == TELL_AFTER {
                        self.tell_waiting(task);
                    }
                    again.push((task, tries));
                }
                Err(error) => {
                    if !std::mem::replace(&mut tries.failed, true) {
                        tracing::warn!("reclaim: {error}; it is tried again");
                    }
                    again.push((task, tries));
                }
            }
        }
        if !gone.is_empty() {
            let ids = gone.clone();
            let forgotten = self.store.write(move |txn| {
                ids.iter().for_each(|id| txn.leave_limbo(*id));
                Ok(())
            });
            if let Err(error) = forgotten {
                tracing::warn!("forget deleted devices: {error}; it is tried again");
                again.extend(gone.into_iter().map(|id| (Task::Delete(id), Tries::default())));
            }
        }
        let mut queue = self.lock();
        for (task, _) in batch {
            queue.running.remove(task);
        }
        for (task, tries) in again {
            let pause = RETRY_FIRST.saturating_mul(1 << tries.count.min(16)).min(RETRY_LAST);
            queue.parked.push((Instant::now() + pause, Tries { count: tries.count + 1, ..tries }, task));
        }
        drop(queue);
        self.changed.notify_all();
    }

    /// Says what keeps the space of a removed snapshot.
    fn tell_waiting(&self, task: Task) {
        let Task::Delete(id) = task else { return };
        let path = self.pool.active_path(id).ok().flatten().unwrap_or_default();
        tracing::info!(
            device = %id,
            path = %path.display(),
            "a removed snapshot is still open, so its space is not given back: a mount of it in whichever namespace, or a \
             program that has the device"
        );
    }

    /// True: nothing is left to do, or the device is among the `gone`. False: it is in use.
    fn try_delete(&self, id: DeviceId, gone: &mut Vec<DeviceId>) -> Result<bool> {
        let Some(_alone) = self.claims.try_alone(id) else { return Ok(false) };
        if self.store.is_uncertain() {
            return Err(Error::new(ErrorKind::Unavailable, format!("delete device {id}: the store has failed")));
        }
        // A record may have claimed the id, or another worker may have deleted it.
        if !self.store.read()?.in_limbo(id)? {
            return Ok(true);
        }
        if Mutation::ForgetBeforeDelete.is_on() {
            self.store.write(move |txn| {
                txn.leave_limbo(id);
                Ok(())
            })?;
        }
        let in_use = |deleted: &PoolResult<()>| deleted.as_ref().is_err_and(|e| e.kind() == PoolErrorKind::InUse);
        let mut deleted = self.pool.delete(id);
        // Somebody has it open, or had until now: it goes when its last user does.
        if in_use(&deleted) && deactivate(&*self.pool, id)? {
            deleted = self.pool.delete(id);
        }
        if in_use(&deleted) {
            return Ok(false);
        }
        deleted?;
        gone.push(id);
        Ok(true)
    }

    fn try_release(&self, id: DeviceId) -> Result<bool> {
        let Some(_alone) = self.claims.try_alone(id) else { return Ok(false) };
        if !self.store.read()?.is_viewed(id)? {
            // Still open: it goes when its last user does.
            deactivate(&*self.pool, id)?;
        }
        Ok(true)
    }
}

fn deactivate(pool: &dyn ThinPool, id: DeviceId) -> Result<bool> {
    match pool.deactivate(id) {
        Ok(gone) => Ok(gone),
        Err(error) if error.kind() == PoolErrorKind::NotFound => Ok(true),
        Err(error) => Err(error.into()),
    }
}
