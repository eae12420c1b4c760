//! The files of the FUSE filesystem: one per shown device, and who still has it open.
//!
//! Invariant: a volume is dropped on a thread that may block, never on an event loop, and only after the kernel has
//! released the last open file; the release comes after the answer of every request on that file.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Instant;

use crate::export::fuse::asking::Asking;
use crate::export::fuse::wire::{Attributes, ROOT_NODE};
use crate::export::loop_device::LoopDevice;
use crate::export::work::{Lot, Node};
use crate::units::DeviceId;

/// The node number: a function of the device alone, so that it means the same to every process that serves
/// this filesystem after another.
fn number_of(id: DeviceId) -> u64 {
    u64::from(id.get()) + ROOT_NODE + 1
}

fn attributes_of(node: &Node) -> Attributes {
    Attributes { node: number_of(node.id), size: node.size(), mode: libc::S_IFREG | 0o600 }
}

/// How far a file is on its way out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leaving {
    /// For its last release.
    Waiting,
    /// Its volume is being dropped.
    Dropping,
}

/// Which files the kernel has open, and which nodes leave when none is left.
#[derive(Default)]
struct Openings {
    /// Open files by node.
    counts: HashMap<u64, u64>,
    /// The node of each file that was opened here.
    handles: HashMap<u64, u64>,
    /// Nodes that a loop device has open since before this process served.
    inherited: HashSet<u64>,
    /// The loop device on a node, once it is bound.
    bound: HashMap<u64, LoopDevice>,
    leaving: HashMap<u64, Leaving>,
    next_handle: u64,
}

impl Openings {
    fn is_open(&self, number: u64) -> bool {
        self.counts.contains_key(&number) || self.inherited.contains(&number)
    }
}

/// What the kernel and the first server of a connection agreed on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::export) struct Agreement {
    /// The kernel sends unanswered requests again when it is asked to.
    pub(in crate::export) resend: bool,
}

/// All files of one filesystem.
///
/// The kernel's opens outlive the process that answered them. So handles have numbers that no other process gives
/// out, and a release of an unknown one says nothing by itself: the loop driver is asked whether it still has the file.
pub(in crate::export) struct Nodes {
    by_number: RwLock<HashMap<u64, Arc<Node>>>,
    openings: Mutex<Openings>,
    changed: Condvar,
    /// The writes on them that wait for room.
    pub(in crate::export) lot: Arc<Lot<Asking>>,
    agreement: OnceLock<Agreement>,
}

impl Default for Nodes {
    fn default() -> Self {
        // Random, so that the numbers of two processes never meet.
        let next_handle = RandomState::new().build_hasher().finish();
        Self {
            by_number: RwLock::default(),
            openings: Mutex::new(Openings { next_handle, ..Openings::default() }),
            changed: Condvar::new(),
            lot: Arc::default(),
            agreement: OnceLock::new(),
        }
    }
}

impl Nodes {
    fn openings(&self) -> MutexGuard<'_, Openings> {
        self.openings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a file.
    pub(in crate::export) fn insert(&self, node: Node) {
        let number = number_of(node.id);
        self.by_number.write().unwrap_or_else(PoisonError::into_inner).insert(number, Arc::new(node));
    }

    /// How many files there are.
    pub(in crate::export) fn count(&self) -> usize {
        self.by_number.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    pub(super) fn find(&self, number: u64) -> Option<Arc<Node>> {
        self.by_number.read().unwrap_or_else(PoisonError::into_inner).get(&number).cloned()
    }

    pub(in crate::export) fn find_device(&self, id: DeviceId) -> Option<Arc<Node>> {
        self.find(number_of(id))
    }

    /// What a file is like. Takes no share in its volume: the caller need not have the file open.
    pub(super) fn attributes(&self, number: u64) -> Option<Attributes> {
        self.by_number.read().unwrap_or_else(PoisonError::into_inner).get(&number).map(|node| attributes_of(node))
    }

    pub(super) fn attributes_of_name(&self, name: &[u8]) -> Option<Attributes> {
        let text = std::str::from_utf8(name).ok()?;
        let id = DeviceId::new(text.parse().ok()?).ok()?;
        // One name per file: "007" is not 7.
        if id.to_string() != text {
            return None;
        }
        self.attributes(number_of(id))
    }

    /// Node numbers and names, ascending.
    pub(super) fn list(&self) -> Vec<(u64, String)> {
        let nodes = self.by_number.read().unwrap_or_else(PoisonError::into_inner);
        let mut list: Vec<_> = nodes.iter().map(|(number, node)| (*number, node.id.to_string())).collect();
        list.sort_unstable();
        list
    }

    /// Notes what INIT settled.
    pub(super) fn begin(&self, resend: bool) {
        if self.agreement.set(Agreement { resend }).is_err() {
            tracing::warn!("the kernel began the connection twice");
        }
        drop(self.openings());
        self.changed.notify_all();
    }

    /// Notes that the connection began under another process, which could only be taken over if requests are sent again.
    pub(in crate::export) fn resume(&self) {
        self.begin(true);
    }

    /// What INIT settled, waiting for it until `deadline`.
    pub(in crate::export) fn agreement(&self, deadline: Instant) -> Option<Agreement> {
        let mut openings = self.openings();
        loop {
            if let Some(agreement) = self.agreement.get() {
                return Some(*agreement);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            openings = self.changed.wait_timeout(openings, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Counts an open file and gives it a number.
    pub(super) fn opened(&self, number: u64) -> u64 {
        let mut openings = self.openings();
        let handle = openings.next_handle;
        openings.next_handle = handle.wrapping_add(1);
        openings.handles.insert(handle, number);
        *openings.counts.entry(number).or_default() += 1;
        handle
    }

    /// Counts a release. True: the caller must now call [`Nodes::settle`] on a thread that may block.
    pub(super) fn released(&self, number: u64, handle: u64) -> bool {
        let mut openings = self.openings();
        if openings.handles.remove(&handle).is_none() {
            return openings.inherited.contains(&number);
        }
        if let Some(count) = openings.counts.get_mut(&number) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                openings.counts.remove(&number);
            }
        }
        !openings.is_open(number)
    }

    /// Notes that a loop device has the file.
    pub(in crate::export) fn bound(&self, id: DeviceId, device: LoopDevice) {
        self.openings().bound.insert(number_of(id), device);
    }

    /// As [`Nodes::bound`], for a loop device that a process before this one bound.
    pub(in crate::export) fn inherit(&self, id: DeviceId, device: LoopDevice) {
        let number = number_of(id);
        let mut openings = self.openings();
        openings.bound.insert(number, device);
        openings.inherited.insert(number);
    }

    /// Looks whether the file is to go: nobody has it open, and it leaves or its loop device has let it go.
    pub(super) fn settle(&self, number: u64) {
        let device = self.openings().bound.get(&number).cloned();
        // The loop driver forgets the file before it releases it.
        let is_bound = device.as_ref().map(LoopDevice::is_bound);
        {
            let mut openings = self.openings();
            if is_bound == Some(false) && openings.bound.get(&number) == device.as_ref() {
                openings.inherited.remove(&number);
                if !openings.is_open(number) {
                    openings.leaving.entry(number).or_insert(Leaving::Waiting);
                }
            }
        }
        self.finish(number);
    }

    /// Lets the file go as soon as nobody has it open; at once if so.
    pub(in crate::export) fn leave(&self, id: DeviceId) {
        let number = number_of(id);
        let unused = {
            let mut openings = self.openings();
            openings.leaving.entry(number).or_insert(Leaving::Waiting);
            !openings.is_open(number)
        };
        if unused {
            self.finish(number);
        }
    }

    /// Takes [`Nodes::leave`] back. False: too late, the volume is dropped or about to be.
    pub(in crate::export) fn stay(&self, id: DeviceId) -> bool {
        let number = number_of(id);
        let mut openings = self.openings();
        if openings.leaving.get(&number) == Some(&Leaving::Waiting) {
            openings.leaving.remove(&number);
        }
        !openings.leaving.contains_key(&number) && self.find(number).is_some()
    }

    /// True until the file is gone and its volume dropped.
    pub(in crate::export) fn is_present(&self, id: DeviceId) -> bool {
        self.holds(&self.openings(), number_of(id))
    }

    fn holds(&self, openings: &Openings, number: u64) -> bool {
        openings.is_open(number)
            || openings.leaving.contains_key(&number)
            || self.by_number.read().unwrap_or_else(PoisonError::into_inner).contains_key(&number)
    }

    /// Drops the volume of a file that nobody has open and that is to leave.
    fn finish(&self, number: u64) {
        {
            let mut openings = self.openings();
            if openings.is_open(number) || openings.leaving.get(&number) != Some(&Leaving::Waiting) {
                return;
            }
            openings.bound.remove(&number);
            openings.leaving.insert(number, Leaving::Dropping);
        }
        let gone = self.by_number.write().unwrap_or_else(PoisonError::into_inner).remove(&number);
        drop(gone);
        // Only here: whoever waits for the file to be gone may rely on the volume being dropped.
        self.openings().leaving.remove(&number);
        self.changed.notify_all();
    }

    /// Waits until the file is gone and its volume dropped. False: it was there at `deadline`.
    pub(in crate::export) fn wait_gone(&self, id: DeviceId, deadline: Instant) -> bool {
        let number = number_of(id);
        let mut openings = self.openings();
        loop {
            if !self.holds(&openings, number) {
                return true;
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return false };
            openings = self.changed.wait_timeout(openings, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
