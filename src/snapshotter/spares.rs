//! Snapshots made before somebody asks for them, of the images that containers are made of again and again.
//!
//! Who makes a second container of an image soon makes a third: from then on one snapshot of it stands ready, active, and
//! the next Prepare has only to write its record. That spares it what takes longest: setting a device up, in which
//! dm-thin waits for a grace period of RCU (13 to 17 of 20 ms where it was measured). A layer that is unpacked on another has no second
//! child, so that nothing is made for it.
//!
//! The crash argument is that of every new device: the id of a spare stands in limbo until a record names it. So a spare
//! that nobody takes, and one that a crash leaves, is deleted as all that stands in limbo.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

use thinsnap_pool::{Access, ByteCount, DeviceId, ThinPool};

use crate::error::{Error, ErrorKind, Result};
use crate::snapshot::{FsType, Name, Space};
use crate::snapshotter::claims::Claims;
use crate::snapshotter::ids::{Ids, Reserved};
use crate::snapshotter::prepare::{committed, written_by_mount};
use crate::snapshotter::reclaim::Reclaimer;
use crate::store::Store;

/// Most spares at a time, one for each parent.
const SPARES_MAX: usize = 4;
/// How many of the last Prepares' parents are remembered.
const RECENT_MAX: usize = 16;

/// A committed snapshot of which one more is to be made.
#[derive(Debug, Clone)]
pub(super) struct Parent {
    pub(super) space: Space,
    pub(super) name: Name,
    pub(super) device: DeviceId,
    pub(super) size: ByteCount,
    pub(super) fs: FsType,
}

/// An active device that no record names yet.
struct Spare {
    parent: DeviceId,
    reserved: Reserved,
}

#[derive(Default)]
struct State {
    /// Parents of the last Prepares, the latest last.
    recent: VecDeque<DeviceId>,
    wanted: VecDeque<Parent>,
    /// The parent of the spare in the making.
    making: Option<DeviceId>,
    /// The thread has not done yet what it began.
    busy: bool,
    /// The latest last.
    spares: Vec<Spare>,
    stop: bool,
}

impl State {
    fn is_provided(&self, parent: DeviceId) -> bool {
        self.making == Some(parent)
            || self.spares.iter().any(|spare| spare.parent == parent)
            || self.wanted.iter().any(|wanted| wanted.device == parent)
    }
}

struct Shared {
    pool: Arc<dyn ThinPool>,
    store: Store,
    claims: Arc<Claims>,
    ids: Arc<Ids>,
    reclaimer: Arc<Reclaimer>,
    state: Mutex<State>,
    changed: Condvar,
}

/// The spares, and the thread that makes them.
pub(super) struct Spares {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Spares {
    /// Without `background` none is ever made.
    pub(super) fn start(
        pool: Arc<dyn ThinPool>,
        store: Store,
        claims: Arc<Claims>,
        ids: Arc<Ids>,
        reclaimer: Arc<Reclaimer>,
        background: bool,
    ) -> Result<Self> {
        let (state, changed) = Default::default();
        let shared = Arc::new(Shared { pool, store, claims, ids, reclaimer, state, changed });
        let thread = background.then(|| {
            let shared = Arc::clone(&shared);
            Builder::new()
                .name("spares".to_owned())
                .spawn(move || shared.work())
                .map_err(|e| Error::io("start a thread that makes snapshots ahead", e))
        });
        Ok(Self { shared, thread: thread.transpose()? })
    }

    /// A spare of the parent, which the caller holds, with the path of its device. Its id is in limbo.
    pub(super) fn take(&self, parent: DeviceId) -> Option<(Reserved, PathBuf)> {
        let mut state = self.shared.lock();
        let at = state.spares.iter().position(|spare| spare.parent == parent)?;
        let spare = state.spares.remove(at);
        drop(state);
        let reserved = spare.reserved.claimed();
        // Its device is where the pool says now, if anywhere: a pool-host may have gone and come meanwhile.
        match self.shared.pool.active_path(reserved.id()) {
            Ok(path) => path.map(|path| (reserved, path)),
            Err(error) => {
                tracing::debug!("a snapshot made ahead is not used: {error}");
                None
            }
        }
    }

    /// A Prepare was made of this parent.
    pub(super) fn prepared(&self, parent: Parent) {
        if self.thread.is_none() {
            return;
        }
        let mut state = self.shared.lock();
        let before = state.recent.iter().position(|&device| device == parent.device);
        match before {
            Some(at) => drop(state.recent.remove(at)),
            None if state.recent.len() == RECENT_MAX => drop(state.recent.pop_front()),
            None => {}
        }
        state.recent.push_back(parent.device);
        if before.is_some() && !state.is_provided(parent.device) {
            state.wanted.push_back(parent);
            drop(state);
            self.shared.changed.notify_all();
        }
    }

    /// The parent has been removed: its spare goes, which keeps its blocks.
    pub(super) fn forget(&self, parent: DeviceId) {
        self.shared.forget(parent);
    }

    /// All spares go: the pool needs the room.
    pub(super) fn clear(&self) {
        let mut state = self.shared.lock();
        state.wanted.clear();
        state.recent.clear();
        let gone = std::mem::take(&mut state.spares);
        drop(state);
        drop(gone);
    }

    /// Waits until none is in the making, nor on its way to be deleted.
    pub(super) fn settle(&self) {
        let busy = |state: &mut State| state.busy;
        drop(self.shared.changed.wait_while(self.shared.lock(), busy).unwrap_or_else(PoisonError::into_inner));
    }

    /// The devices that stand ready.
    pub(super) fn devices(&self) -> Vec<DeviceId> {
        self.shared.lock().spares.iter().map(|spare| spare.reserved.id()).collect()
    }
}

impl Drop for Spares {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_all();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that makes snapshots ahead panicked");
        }
    }
}

/// Ends the work on a spare, however that went: who waits for it must not wait for ever.
struct Busy<'a>(&'a Shared);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        (state.making, state.busy) = (None, false);
        drop(state);
        self.0.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        loop {
            let idle = |state: &mut State| !state.stop && state.wanted.is_empty();
            let mut state = self.changed.wait_while(self.lock(), idle).unwrap_or_else(PoisonError::into_inner);
            if state.stop {
                return;
            }
            let Some(parent) = state.wanted.pop_front() else { continue };
            state.making = Some(parent.device);
            state.busy = true;
            drop(state);
            let _busy = Busy(self);
            match self.make(&parent) {
                Ok(reserved) => self.keep(&parent, reserved),
                // Whoever needs a snapshot of it meets the same error, and tells it.
                Err(error) => tracing::debug!("no snapshot of {:?} is made ahead: {error}", parent.name.as_str()),
            }
        }
    }

    fn keep(&self, parent: &Parent, reserved: Reserved) {
        let mut state = self.lock();
        // Whoever takes it may want the next one at once.
        state.making = None;
        state.spares.push(Spare { parent: parent.device, reserved });
        let surplus = (state.spares.len() > SPARES_MAX).then(|| state.spares.remove(0));
        drop(state);
        drop(surplus);
        // It may have been removed since it was looked at, by somebody who found no spare to forget.
        if self.is_gone(parent) {
            self.forget(parent.device);
        }
    }

    fn make(&self, parent: &Parent) -> Result<Reserved> {
        // It is neither deleted nor activated by others meanwhile.
        let _hold = self.claims.hold(parent.device);
        if self.is_gone(parent) {
            return Err(Error::new(ErrorKind::NotFound, "it was removed"));
        }
        let reserved = self.ids.take_ahead(&self.store, &self.reclaimer)?;
        let (id, size) = (reserved.id(), parent.size);
        if self.pool.create_active(id, parent.device, size, written_by_mount(parent.fs))?.is_none() {
            self.pool.activate(id, size, Access::ReadWrite)?;
        }
        Ok(reserved)
    }

    fn is_gone(&self, parent: &Parent) -> bool {
        let found = self.store.read().and_then(|reader| committed(&reader, &parent.space, &parent.name));
        found.map_or(true, |found| found.device != parent.device)
    }

    fn forget(&self, parent: DeviceId) {
        let mut state = self.lock();
        state.recent.retain(|&device| device != parent);
        state.wanted.retain(|wanted| wanted.device != parent);
        let gone: Vec<Spare> = state.spares.extract_if(.., |spare| spare.parent == parent).collect();
        drop(state);
        drop(gone);
    }
}
