//! One call at a time on a device id: create, snapshot, delete, activate and deactivate exclude each other.

use std::collections::HashSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::units::DeviceId;

#[derive(Default)]
pub(crate) struct Claims {
    taken: Mutex<HashSet<DeviceId>>,
    given_back: Condvar,
}

/// The right to change some devices, until dropped.
pub(crate) struct Claim<'a> {
    claims: &'a Claims,
    ids: Vec<DeviceId>,
}

impl Claims {
    /// Waits until all of `ids` are free and takes them together: no order, no deadlock.
    pub(crate) fn claim(&self, ids: &[DeviceId]) -> Claim<'_> {
        let mut taken = self.lock();
        while ids.iter().any(|id| taken.contains(id)) {
            taken = self.given_back.wait(taken).unwrap_or_else(PoisonError::into_inner);
        }
        taken.extend(ids);
        Claim { claims: self, ids: ids.to_vec() }
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<DeviceId>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claim<'_> {
    /// Gives one of the ids back before the others.
    pub(super) fn give_back(&mut self, id: DeviceId) {
        self.ids.retain(|&held| held != id);
        self.claims.lock().remove(&id);
        self.claims.given_back.notify_all();
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut taken = self.claims.lock();
        for id in &self.ids {
            taken.remove(id);
        }
        self.claims.given_back.notify_all();
    }
}
