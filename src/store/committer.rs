//! Lets many writers share one durable commit.
//!
//! One thread owns the write side of redb. It takes whatever jobs have gathered while the last commit
//! was being flushed, runs them one after the other inside one transaction, commits it, and only then
//! answers: 200 callers pay for a handful of flushes. A job's answer waits for the commit even if the
//! job failed, because what it saw may have been a neighbour's uncommitted change.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use redb::Database;

use crate::error::{Error, ErrorKind, Result};
use crate::store::redb_error::storage_error;
use crate::store::txn::Txn;

/// Most jobs in one commit; bounds how long the first of them waits.
const BATCH_MAX: usize = 256;
/// Most jobs that wait; more callers block in `submit`.
const QUEUE_MAX: usize = 1024;

/// Why a commit failed, in a form that every job of the batch can be told.
type Outcome = std::result::Result<bool, (ErrorKind, String, Option<String>)>;

trait Job: Send {
    /// Runs the closure and lays its changes into the batch if it succeeded. True if anything changed.
    fn run(&mut self, batch: &redb::WriteTransaction) -> Result<bool>;
    /// Tells the caller.
    fn answer(self: Box<Self>, outcome: &Outcome);
}

struct Call<F, T> {
    closure: Option<F>,
    result: Option<Result<T>>,
    reply: SyncSender<Result<T>>,
}

impl<F, T> Job for Call<F, T>
where
    F: FnOnce(&mut Txn<'_>) -> Result<T> + Send,
    T: Send,
{
    fn run(&mut self, batch: &redb::WriteTransaction) -> Result<bool> {
        let Some(closure) = self.closure.take() else { return Ok(false) };
        let mut txn = Txn::new(batch);
        // A panicking closure is one caller's defect: the others' commits must go on.
        let result = catch_unwind(AssertUnwindSafe(|| closure(&mut txn))).unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Internal, "change the store: the change panicked; see the log"))
        });
        let changed = match &result {
            Ok(_) => txn.apply(),
            Err(_) => Ok(false),
        };
        self.result = Some(result);
        changed
    }

    fn answer(self: Box<Self>, outcome: &Outcome) {
        let answer = match (outcome, self.result) {
            (Ok(_), Some(result)) => result,
            (Ok(_), None) => Err(Error::new(ErrorKind::Internal, "change the store: the change did not run")),
            (Err((kind, text, advice)), _) => {
                let error = Error::new(*kind, text.clone());
                Err(match advice {
                    Some(advice) => error.advise(advice),
                    None => error,
                })
            }
        };
        // The caller waits for exactly this; if it is gone (a panic up there), nobody misses the answer.
        drop(self.reply.send(answer));
    }
}

/// The write side of a store: a queue and the thread behind it.
pub(crate) struct Committer {
    jobs: Option<SyncSender<Box<dyn Job>>>,
    uncertain: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Committer {
    pub(crate) fn start(db: Arc<Database>) -> Result<Self> {
        let (jobs, queue) = sync_channel(QUEUE_MAX);
        let uncertain = Arc::new(AtomicBool::new(false));
        let flag = uncertain.clone();
        let thread = std::thread::Builder::new()
            .name("store-committer".into())
            .spawn(move || commit_batches(&db, &queue, &flag))
            .map_err(|e| Error::io("start the thread that commits the store", e))?;
        Ok(Self { jobs: Some(jobs), uncertain, thread: Some(thread) })
    }

    pub(crate) fn is_uncertain(&self) -> bool {
        self.uncertain.load(Ordering::Acquire)
    }

    /// Has `closure` run in a transaction.
    pub(crate) fn submit<T, F>(&self, closure: F) -> Result<Pending<T>>
    where
        T: Send + 'static,
        F: FnOnce(&mut Txn<'_>) -> Result<T> + Send + 'static,
    {
        let (reply, answer) = sync_channel(1);
        let job = Box::new(Call { closure: Some(closure), result: None, reply });
        self.jobs.as_ref().ok_or_else(stopped)?.send(job).map_err(|_| stopped())?;
        Ok(Pending { answer })
    }
}

fn stopped() -> Error {
    Error::new(ErrorKind::Unavailable, "change the store: its committer has stopped")
}

/// A change that is on its way.
#[must_use = "only waiting for it tells whether it was made"]
pub(crate) struct Pending<T> {
    answer: Receiver<Result<T>>,
}

impl<T> Pending<T> {
    /// Returns when the changes are durable.
    pub(crate) fn wait(self) -> Result<T> {
        self.answer.recv().map_err(|_| stopped())?
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that commits the store panicked");
        }
    }
}

fn commit_batches(db: &Database, queue: &Receiver<Box<dyn Job>>, uncertain: &AtomicBool) {
    while let Ok(first) = queue.recv() {
        let mut batch = vec![first];
        while batch.len() < BATCH_MAX {
            match queue.try_recv() {
                Ok(job) => batch.push(job),
                Err(_) => break,
            }
        }
        let outcome =
            commit(db, &mut batch, uncertain).map_err(|e| (e.kind(), e.to_string(), e.advice().map(str::to_owned)));
        for job in batch {
            job.answer(&outcome);
        }
    }
}

fn commit(db: &Database, batch: &mut [Box<dyn Job>], uncertain: &AtomicBool) -> Result<bool> {
    if uncertain.load(Ordering::Acquire) {
        return Err(Error::new(ErrorKind::Unavailable, "change the store: an earlier commit failed")
            .advise("see the log for the cause, mend it, and start the service again"));
    }
    let txn = db.begin_write().map_err(|e| storage_error("begin a transaction of the store", e))?;
    let mut changed = false;
    for job in batch {
        changed |= job.run(&txn)?;
    }
    if !changed {
        txn.abort().map_err(|e| storage_error("end a transaction of the store", e))?;
        return Ok(false);
    }
    txn.commit().map_err(|e| {
        uncertain.store(true, Ordering::Release);
        tracing::error!("a commit of the store failed; no more changes are taken: {e}");
        storage_error("commit the store", e)
    })?;
    Ok(true)
}
