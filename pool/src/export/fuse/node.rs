//! The files of the FUSE filesystem: one per shown device, and who still has it open.
//!
//! Invariant: a volume is dropped on a thread that may block, never on an event loop, and only after the kernel has
//! released the last open file; the release comes after the answer of every request on that file.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Instant;

use crate::export::exporter::Volume;
use crate::export::fuse::lot::Lot;
use crate::export::fuse::wire::{Attributes, ROOT_NODE};
use crate::thin_pool::Access;
use crate::units::{ByteCount, DeviceId};

/// A file: a device with its size.
pub(in crate::export) struct Node {
    pub(in crate::export) id: DeviceId,
    pub(in crate::export) volume: Arc<dyn Volume>,
    pub(in crate::export) access: Access,
    /// What offsets and lengths must be multiples of.
    pub(super) alignment: u64,
    size: AtomicU64,
}

impl Node {
    pub(in crate::export) fn new(id: DeviceId, volume: Arc<dyn Volume>, size: ByteCount, access: Access) -> Self {
        let alignment = volume.alignment() as u64;
        Self { id, volume, access, alignment, size: AtomicU64::new(size.0) }
    }

    pub(in crate::export) fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    pub(in crate::export) fn set_size(&self, size: u64) {
        self.size.store(size, Ordering::Release);
    }

    /// The node number: a function of the device alone, so that it means the same to every process that serves
    /// this filesystem after another.
    fn number(id: DeviceId) -> u64 {
        u64::from(id.get()) + ROOT_NODE + 1
    }

    fn attributes(&self) -> Attributes {
        Attributes { node: Self::number(self.id), size: self.size(), mode: libc::S_IFREG | 0o600 }
    }
}

/// How far a file is on its way out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leaving {
    /// For its last release.
    Waiting,
    /// Its volume is being dropped.
    Dropping,
}

/// How many files the kernel has open, by node, and which nodes leave when that comes to none.
#[derive(Default)]
struct Openings {
    counts: HashMap<u64, u64>,
    leaving: HashMap<u64, Leaving>,
}

/// All files of one filesystem.
#[derive(Default)]
pub(in crate::export) struct Nodes {
    by_number: RwLock<HashMap<u64, Arc<Node>>>,
    openings: Mutex<Openings>,
    changed: Condvar,
    /// The writes on them that wait for room.
    pub(in crate::export) lot: Lot,
}

impl Nodes {
    fn openings(&self) -> MutexGuard<'_, Openings> {
        self.openings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a file.
    pub(in crate::export) fn insert(&self, node: Node) {
        let number = Node::number(node.id);
        self.by_number.write().unwrap_or_else(PoisonError::into_inner).insert(number, Arc::new(node));
    }

    pub(super) fn find(&self, number: u64) -> Option<Arc<Node>> {
        self.by_number.read().unwrap_or_else(PoisonError::into_inner).get(&number).cloned()
    }

    pub(in crate::export) fn find_device(&self, id: DeviceId) -> Option<Arc<Node>> {
        self.find(Node::number(id))
    }

    /// What a file is like. Takes no share in its volume: the caller need not have the file open.
    pub(super) fn attributes(&self, number: u64) -> Option<Attributes> {
        self.by_number.read().unwrap_or_else(PoisonError::into_inner).get(&number).map(|node| node.attributes())
    }

    pub(super) fn attributes_of_name(&self, name: &[u8]) -> Option<Attributes> {
        let text = std::str::from_utf8(name).ok()?;
        let id = DeviceId::new(text.parse().ok()?).ok()?;
        // One name per file: "007" is not 7.
        if id.to_string() != text {
            return None;
        }
        self.attributes(Node::number(id))
    }

    /// Node numbers and names, ascending.
    pub(super) fn list(&self) -> Vec<(u64, String)> {
        let nodes = self.by_number.read().unwrap_or_else(PoisonError::into_inner);
        let mut list: Vec<_> = nodes.iter().map(|(number, node)| (*number, node.id.to_string())).collect();
        list.sort_unstable();
        list
    }

    pub(super) fn opened(&self, number: u64) {
        *self.openings().counts.entry(number).or_default() += 1;
    }

    /// Counts a release. True: the caller must now call [`Nodes::finish`] on a thread that may block.
    pub(super) fn released(&self, number: u64) -> bool {
        let mut openings = self.openings();
        if let Some(count) = openings.counts.get_mut(&number) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                openings.counts.remove(&number);
            }
        }
        !openings.counts.contains_key(&number) && openings.leaving.contains_key(&number)
    }

    /// Lets the file go as soon as nobody has it open; at once if so.
    pub(in crate::export) fn leave(&self, id: DeviceId) {
        let number = Node::number(id);
        let unused = {
            let mut openings = self.openings();
            openings.leaving.entry(number).or_insert(Leaving::Waiting);
            !openings.counts.contains_key(&number)
        };
        if unused {
            self.finish(number);
        }
    }

    /// Takes [`Nodes::leave`] back. False: too late, the volume is dropped or about to be.
    pub(in crate::export) fn stay(&self, id: DeviceId) -> bool {
        let number = Node::number(id);
        let mut openings = self.openings();
        if openings.leaving.get(&number) == Some(&Leaving::Waiting) {
            openings.leaving.remove(&number);
        }
        !openings.leaving.contains_key(&number) && self.find(number).is_some()
    }

    /// True until the file is gone and its volume dropped.
    pub(in crate::export) fn is_present(&self, id: DeviceId) -> bool {
        self.holds(&self.openings(), Node::number(id))
    }

    fn holds(&self, openings: &Openings, number: u64) -> bool {
        openings.counts.contains_key(&number)
            || openings.leaving.contains_key(&number)
            || self.by_number.read().unwrap_or_else(PoisonError::into_inner).contains_key(&number)
    }

    /// Drops the volume of a file that nobody has open and that is to leave.
    pub(super) fn finish(&self, number: u64) {
        {
            let mut openings = self.openings();
            if openings.counts.contains_key(&number) || openings.leaving.get(&number) != Some(&Leaving::Waiting) {
                return;
            }
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
        let number = Node::number(id);
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
