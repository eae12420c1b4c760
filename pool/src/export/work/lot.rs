//! Writes that found no room and wait for it, out of everybody's way.
//!
//! A write that cannot be done for want of room must keep neither a worker nor a slot: its bytes are copied into
//! bounded memory, and one thread of its own ([`keep`]) tries the waiting writes again, in their order, whenever
//! room may have appeared. The kernel has no answer for them yet, so a flush owes them nothing, and a process that
//! takes the connection over gets them sent again: writes that still wait when the lot is dropped are
//! deliberately not answered.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::device::AlignedBuffer;
use crate::error::{Error, ErrorKind, Result};
use crate::export::exporter::{NoSpace, Outlook};
use crate::export::work::asker::{Asker, Reply};
use crate::export::work::errand::{ByteRange, errno_of};
use crate::export::work::node::Node;
use crate::units::{ByteCount, DeviceId};

/// Most writes that wait: far fewer than the kernel lets be under way, so that other requests find a place.
const WRITES_MAX: usize = 256;
/// Most of them of one device: a loop device has 128 requests under way, as a ublk device, and its reads want some.
const WRITES_OF_DEVICE_MAX: usize = 96;
/// Longest wait for room that is on its way back, where nobody wants writes to wait longer than that.
const COMING_MAX: Duration = Duration::from_secs(60);
/// How often the layer below is asked again after it was full: it does not tell.
const SILENT_RETRY: Duration = Duration::from_millis(250);

/// Who waits for an answer.
pub(super) struct Waiter<A> {
    pub(super) asker: A,
    pub(super) node: Arc<Node>,
}

impl<A: Asker> Waiter<A> {
    /// The device is let go before the answer: right after it, it may be taken away.
    fn answer(self, reply: Reply<'_>) {
        let Self { asker, node } = self;
        drop(node);
        asker.answer(reply);
    }

    fn fail(self, doing: &str, error: &Error) {
        if lacks_room(error) {
            // Once a write: the pool's mode has told it for all.
            tracing::debug!("{doing} device {}: {error}", self.node.id);
        } else {
            tracing::warn!(kind = ?error.kind(), "{doing} device {}: {error}", self.node.id);
        }
        self.answer(Reply::Failed(errno_of(error.kind())));
    }
}

enum Work {
    Write { offset: u64, payload: AlignedBuffer },
    Zero(ByteRange),
}

impl Work {
    fn bytes(&self) -> u64 {
        match self {
            Self::Write { payload, .. } => payload.len() as u64,
            Self::Zero(_) => 0,
        }
    }
}

struct Parked<A> {
    waiter: Waiter<A>,
    work: Work,
    since: Instant,
    lack: ErrorKind,
}

impl<A: Asker> Parked<A> {
    fn attempt(&self) -> Result<()> {
        let volume = &self.waiter.node.volume;
        let done = catch_unwind(AssertUnwindSafe(|| match &self.work {
            Work::Write { offset, payload } => volume.write_now(payload, *offset),
            Work::Zero(range) => volume.write_zeroes_now(range.offset, range.len),
        }));
        // The volume broke a promise of its own; its caller must not wait for ever.
        done.unwrap_or_else(|_| Err(Error::new(ErrorKind::Io, "the pool panicked")))
    }

    fn finish(self, outcome: Result<()>) {
        match (outcome, &self.work) {
            (Ok(()), Work::Write { payload, .. }) => {
                let len = u32::try_from(payload.len()).expect("a request's payload is at most 1 MiB");
                self.waiter.answer(Reply::Wrote(len));
            }
            (Ok(()), Work::Zero(_)) => self.waiter.answer(Reply::Done),
            (Err(error), _) => self.waiter.fail("write to", &error),
        }
    }
}

struct Inner<A> {
    policy: NoSpace,
    waiting: VecDeque<Parked<A>>,
    /// Of those that wait and the one that is being tried.
    count: usize,
    bytes: u64,
    of_device: HashMap<DeviceId, usize>,
    /// The ring that the last pass began after.
    seen: u64,
    /// A write came in that missed a ring.
    again: bool,
    /// The layer below was full in the last pass.
    silent: bool,
    stop: bool,
}

impl<A> Default for Inner<A> {
    fn default() -> Self {
        Self {
            policy: NoSpace::default(),
            waiting: VecDeque::new(),
            count: 0,
            bytes: 0,
            of_device: HashMap::new(),
            seen: 0,
            again: false,
            silent: false,
            stop: false,
        }
    }
}

impl<A> Inner<A> {
    /// When a write gets its ENOSPC at the latest.
    fn deadline(&self, parked: &Parked<A>) -> Instant {
        parked.since + if self.policy.wait.is_zero() { COMING_MAX } else { self.policy.wait }
    }
}

/// The waiting writes of one exporter.
pub(in crate::export) struct Lot<A> {
    inner: Mutex<Inner<A>>,
    changed: Condvar,
    /// Counts the times that room may have appeared.
    rings: AtomicU64,
    count: AtomicU64,
}

impl<A> Default for Lot<A> {
    fn default() -> Self {
        Self { inner: Mutex::default(), changed: Condvar::new(), rings: AtomicU64::new(0), count: AtomicU64::new(0) }
    }
}

impl<A: Asker> Lot<A> {
    /// Room may have appeared.
    pub(in crate::export) fn ring(&self) {
        self.rings.fetch_add(1, Ordering::SeqCst);
        // A write that is parked after this look sees the new count of rings.
        if self.count.load(Ordering::SeqCst) > 0 {
            drop(self.lock());
            self.changed.notify_all();
        }
    }

    /// True if no write waits; each that did has been done then, or has failed.
    pub(in crate::export) fn is_empty(&self) -> bool {
        self.count.load(Ordering::SeqCst) == 0
    }

    /// Counts those that wait, and their bytes.
    pub(in crate::export) fn waiting(&self) -> (u64, ByteCount) {
        let inner = self.lock();
        (inner.count as u64, ByteCount(inner.bytes))
    }

    /// Holds for those that wait already, too.
    pub(in crate::export) fn set_policy(&self, policy: NoSpace) {
        let mut inner = self.lock();
        inner.policy = policy;
        inner.again = true;
        drop(inner);
        self.changed.notify_all();
    }

    /// Ends [`keep`]. Those that wait are not answered.
    pub(super) fn stop(&self) {
        self.lock().stop = true;
        self.changed.notify_all();
    }

    /// Writes and answers, at once or when there is room.
    pub(super) fn write(&self, waiter: Waiter<A>, offset: u64, payload: &[u8]) {
        let rings = self.rings.load(Ordering::SeqCst);
        match waiter.node.volume.write_now(payload, offset) {
            Ok(()) => {
                let len = u32::try_from(payload.len()).expect("a request's payload is at most 1 MiB");
                waiter.answer(Reply::Wrote(len));
            }
            Err(error) if lacks_room(&error) => self.park_or_fail(waiter, rings, &error, || {
                let mut copy = AlignedBuffer::zeroed(payload.len());
                copy.copy_from_slice(payload);
                Work::Write { offset, payload: copy }
            }),
            Err(error) => waiter.fail("write to", &error),
        }
    }

    /// Zeroes and answers, at once or when there is room.
    pub(super) fn write_zeroes(&self, waiter: Waiter<A>, range: ByteRange) {
        let rings = self.rings.load(Ordering::SeqCst);
        match waiter.node.volume.write_zeroes_now(range.offset, range.len) {
            Ok(()) => waiter.answer(Reply::Done),
            Err(error) if lacks_room(&error) => self.park_or_fail(waiter, rings, &error, || Work::Zero(range)),
            Err(error) => waiter.fail("zero in", &error),
        }
    }

    fn park_or_fail(&self, waiter: Waiter<A>, rings: u64, error: &Error, work: impl FnOnce() -> Work) {
        let outlook = waiter.node.volume.outlook(error);
        let id = waiter.node.id;
        let mut inner = self.lock();
        let worth =
            outlook == Outlook::Coming || !inner.policy.wait.is_zero() || self.rings.load(Ordering::SeqCst) != rings;
        let of_device = inner.of_device.get(&id).copied().unwrap_or_default();
        if !worth || inner.count >= WRITES_MAX || of_device >= WRITES_OF_DEVICE_MAX {
            drop(inner);
            return waiter.fail("write to", error);
        }
        let work = work();
        if inner.bytes + work.bytes() > inner.policy.memory.0 {
            drop(inner);
            return waiter.fail("write to", error);
        }
        inner.count += 1;
        inner.bytes += work.bytes();
        inner.of_device.insert(id, of_device + 1);
        self.count.store(inner.count as u64, Ordering::SeqCst);
        inner.again |= self.rings.load(Ordering::SeqCst) != rings;
        inner.silent |= outlook == Outlook::Silent;
        inner.waiting.push_back(Parked { waiter, work, since: Instant::now(), lack: error.kind() });
        drop(inner);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Inner<A>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a pass over the writes is due; `None`: stop.
    fn next_pass(&self) -> Option<u64> {
        let mut inner = self.lock();
        loop {
            if inner.stop {
                return None;
            }
            let rings = self.rings.load(Ordering::SeqCst);
            let now = Instant::now();
            let deadline = inner.waiting.iter().map(|parked| inner.deadline(parked)).min();
            let news = rings != inner.seen || inner.again || deadline.is_some_and(|deadline| deadline <= now);
            if news && !inner.waiting.is_empty() {
                (inner.seen, inner.again, inner.silent) = (rings, false, false);
                return Some(rings);
            }
            let Some(deadline) = deadline else {
                inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let mut pause = deadline - now;
            if inner.silent {
                pause = pause.min(SILENT_RETRY);
            }
            let (woken, waited) = self.changed.wait_timeout(inner, pause).unwrap_or_else(PoisonError::into_inner);
            inner = woken;
            inner.again |= waited.timed_out() && inner.silent;
        }
    }

    /// Takes the write at a place of the queue out, to try it. Only the keeper does, so places stay.
    fn take(&self, at: usize) -> Option<Parked<A>> {
        self.lock().waiting.remove(at)
    }

    fn put_back(&self, at: usize, parked: Parked<A>) {
        self.lock().waiting.insert(at, parked);
    }

    /// A write that was taken out waits no more.
    fn forget(&self, parked: &Parked<A>) {
        let mut inner = self.lock();
        inner.count -= 1;
        inner.bytes -= parked.work.bytes();
        let id = parked.waiter.node.id;
        if let Some(count) = inner.of_device.get_mut(&id) {
            *count -= 1;
            if *count == 0 {
                inner.of_device.remove(&id);
            }
        }
        self.count.store(inner.count as u64, Ordering::SeqCst);
    }

    fn pass(&self, rings: u64) {
        // One that finds no room ends the pass for all that lack the same: who came later does not overtake.
        let mut lacking: Vec<ErrorKind> = Vec::new();
        let mut at = 0;
        while let Some(mut parked) = self.take(at) {
            let (wait, expired) = {
                let inner = self.lock();
                (inner.policy.wait, inner.deadline(&parked) <= Instant::now())
            };
            if lacking.contains(&parked.lack) && !expired {
                self.put_back(at, parked);
                at += 1;
                continue;
            }
            let error = match parked.attempt() {
                Err(error) if lacks_room(&error) => error,
                done => {
                    self.forget(&parked);
                    parked.finish(done);
                    continue;
                }
            };
            let outlook = parked.waiter.node.volume.outlook(&error);
            let nothing_new = outlook != Outlook::Coming && self.rings.load(Ordering::SeqCst) == rings;
            if expired || (wait.is_zero() && nothing_new) {
                self.forget(&parked);
                parked.finish(Err(error));
                continue;
            }
            parked.lack = error.kind();
            lacking.push(error.kind());
            self.put_back(at, parked);
            at += 1;
            self.lock().silent |= outlook == Outlook::Silent;
        }
    }
}

/// The life of the thread that tries the waiting writes again, until [`Lot::stop`].
pub(super) fn keep<A: Asker>(lot: &Lot<A>) {
    while let Some(rings) = lot.next_pass() {
        lot.pass(rings);
    }
}

fn lacks_room(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::OutOfDataSpace | ErrorKind::OutOfMetadataSpace)
}
