//! The door through which workers and the owner reach an event loop.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::export::alive::Alive;
use crate::export::fuse::node::Nodes;
use crate::export::fuse::workers::{Home, JobSender};

/// Requests of one loop that may be under way at once.
pub(super) const SLOTS: usize = 32;

/// What a loop needs from its owner.
#[derive(Clone)]
pub(super) struct LoopParts {
    pub(super) device: Arc<OwnedFd>,
    /// What must stay open as long as an operation of the loop may be under way.
    pub(super) alive: Option<Arc<Alive>>,
    pub(super) nodes: Arc<Nodes>,
    pub(super) jobs: JobSender,
    pub(super) mailbox: Arc<Mailbox>,
}

/// One loop's door.
pub(super) struct Mailbox {
    returned: Mutex<Vec<usize>>,
    returned_count: AtomicUsize,
    /// True while the loop has no slot left to read requests into.
    starving: AtomicBool,
    stop: AtomicBool,
    bell: EventFd,
}

impl Mailbox {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            returned: Mutex::new(Vec::with_capacity(SLOTS)),
            returned_count: AtomicUsize::new(0),
            starving: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            bell: EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?,
        })
    }

    fn ring(&self) {
        if let Err(errno) = self.bell.write(1) {
            tracing::error!("cannot wake an event loop: {errno}");
        }
    }

    /// What wakes the loop.
    pub(super) fn bell(&self) -> &EventFd {
        &self.bell
    }

    /// Takes back what workers returned. `hungry`: from now on ring the bell for each.
    pub(super) fn collect(&self, hungry: bool) -> Vec<usize> {
        self.starving.store(hungry, Ordering::SeqCst);
        // After the store: a slot returned before it is counted here, one after it rings the bell.
        if self.returned_count.load(Ordering::SeqCst) == 0 {
            return Vec::new();
        }
        let mut returned = self.returned.lock().unwrap_or_else(PoisonError::into_inner);
        self.returned_count.fetch_sub(returned.len(), Ordering::SeqCst);
        std::mem::take(&mut returned)
    }

    /// Silences the bell. True: the loop shall end.
    pub(super) fn answer_bell(&self) -> bool {
        if let Err(errno) = self.bell.read() {
            tracing::debug!("the bell of an event loop was silent: {errno}");
        }
        self.stop.load(Ordering::SeqCst)
    }

    /// Asks the loop to end after the requests under way.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        self.ring();
    }
}

impl Home for Mailbox {
    fn give_back(&self, slot: usize) {
        let mut returned = self.returned.lock().unwrap_or_else(PoisonError::into_inner);
        returned.push(slot);
        self.returned_count.fetch_add(1, Ordering::SeqCst);
        drop(returned);
        if self.starving.load(Ordering::SeqCst) {
            self.ring();
        }
    }
}
