//! The door through which workers and the owner reach an event loop.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::export::work::arena::SLOTS;
use crate::export::work::workers::Home;

/// One loop's door; `T` is what comes through it.
pub(in crate::export) struct Mailbox<T> {
    returned: Mutex<Vec<T>>,
    returned_count: AtomicUsize,
    /// True while the loop waits for what comes through here.
    starving: AtomicBool,
    stop: AtomicBool,
    bell: EventFd,
}

impl<T> Mailbox<T> {
    pub(in crate::export) fn new() -> io::Result<Self> {
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
    pub(in crate::export) fn bell(&self) -> &EventFd {
        &self.bell
    }

    /// Takes what came. `hungry`: from now on ring the bell for each.
    pub(in crate::export) fn collect(&self, hungry: bool) -> Vec<T> {
        self.starving.store(hungry, Ordering::SeqCst);
        // After the store: what came before it is counted here, what comes after it rings the bell.
        if self.returned_count.load(Ordering::SeqCst) == 0 {
            return Vec::new();
        }
        let mut returned = self.returned.lock().unwrap_or_else(PoisonError::into_inner);
        self.returned_count.fetch_sub(returned.len(), Ordering::SeqCst);
        std::mem::take(&mut returned)
    }

    /// Silences the bell. True: the loop shall end.
    pub(in crate::export) fn answer_bell(&self) -> bool {
        if let Err(errno) = self.bell.read() {
            tracing::debug!("the bell of an event loop was silent: {errno}");
        }
        self.stop.load(Ordering::SeqCst)
    }

    /// Asks the loop to end after the requests under way.
    pub(in crate::export) fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        self.ring();
    }

    /// Brings something to the loop.
    pub(in crate::export) fn give(&self, thing: T) {
        let mut returned = self.returned.lock().unwrap_or_else(PoisonError::into_inner);
        returned.push(thing);
        self.returned_count.fetch_add(1, Ordering::SeqCst);
        drop(returned);
        if self.starving.load(Ordering::SeqCst) {
            self.ring();
        }
    }
}

impl Home for Mailbox<usize> {
    fn give_back(&self, slot: usize) {
        self.give(slot);
    }
}
