//! Who is busy with which key and which device, in memory.
//!
//! A **key** is claimed by one verb at a time; the next one waits, and then sees what the first has done:
//! of two Prepares of one key one wins and the other finds the key taken. A **device** is held by any
//! number of verbs that rely on it; deletion and deactivation want it alone and never wait for it.
//!
//! Order: a key first, then devices. Nobody who holds a device asks for a key.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use thinsnap_pool::DeviceId;

use crate::snapshot::{Name, Space};

/// How a device is used at the moment.
enum Use {
    /// By this many verbs that need it to stay.
    Held(u32),
    /// By the reclaimer alone.
    Alone,
}

/// All claims of a snapshotter.
#[derive(Default)]
pub(crate) struct Claims {
    keys: Mutex<HashSet<(Space, Name)>>,
    key_freed: Condvar,
    devices: Mutex<HashMap<DeviceId, Use>>,
    device_freed: Condvar,
}

/// A key that no other verb touches.
pub(crate) struct KeyClaim {
    claims: Arc<Claims>,
    key: (Space, Name),
}

/// A device that is neither deleted nor deactivated behind its user's back.
pub(crate) struct DeviceHold {
    claims: Arc<Claims>,
    id: DeviceId,
}

/// A device that nobody relies on, and nobody can while this lives.
pub(crate) struct DeviceAlone {
    claims: Arc<Claims>,
    id: DeviceId,
}

/// A panic inside these few lines would leave the sets as whole as they were.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Claims {
    /// Waits until no other verb has the key.
    pub(crate) fn key(self: &Arc<Self>, space: &Space, name: &Name) -> KeyClaim {
        let key = (space.clone(), name.clone());
        let mut keys = lock(&self.keys);
        while keys.contains(&key) {
            keys = self.key_freed.wait(keys).unwrap_or_else(PoisonError::into_inner);
        }
        keys.insert(key.clone());
        KeyClaim { claims: self.clone(), key }
    }

    /// Holds a device; waits while the reclaimer is at it.
    pub(crate) fn hold(self: &Arc<Self>, id: DeviceId) -> DeviceHold {
        let mut devices = lock(&self.devices);
        loop {
            match devices.get_mut(&id) {
                None => {
                    devices.insert(id, Use::Held(1));
                    break;
                }
                Some(Use::Held(count)) => {
                    *count += 1;
                    break;
                }
                Some(Use::Alone) => {
                    devices = self.device_freed.wait(devices).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
        DeviceHold { claims: self.clone(), id }
    }

    /// The device alone, unless somebody holds it.
    pub(crate) fn try_alone(self: &Arc<Self>, id: DeviceId) -> Option<DeviceAlone> {
        let mut devices = lock(&self.devices);
        if devices.contains_key(&id) {
            return None;
        }
        devices.insert(id, Use::Alone);
        Some(DeviceAlone { claims: self.clone(), id })
    }
}

impl Drop for KeyClaim {
    fn drop(&mut self) {
        lock(&self.claims.keys).remove(&self.key);
        self.claims.key_freed.notify_all();
    }
}

impl DeviceHold {
    pub(crate) fn id(&self) -> DeviceId {
        self.id
    }
}

impl Drop for DeviceHold {
    fn drop(&mut self) {
        let mut devices = lock(&self.claims.devices);
        if let Some(Use::Held(count)) = devices.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                devices.remove(&self.id);
            }
        }
    }
}

impl Drop for DeviceAlone {
    fn drop(&mut self) {
        lock(&self.claims.devices).remove(&self.id);
        self.claims.device_freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use thinsnap_pool::DeviceId;

    use super::Claims;
    use crate::snapshot::{Name, Space};

    #[test]
    fn a_key_has_one_user_at_a_time() {
        let claims = Arc::new(Claims::default());
        let inside = Arc::new(AtomicU32::new(0));
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let (claims, inside) = (claims.clone(), inside.clone());
                std::thread::spawn(move || {
                    for _ in 0..200 {
                        let _key = claims.key(&Space::new("s").unwrap(), &Name::new("k").unwrap());
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|t| t.join().unwrap());
    }

    #[test]
    fn a_held_device_is_never_had_alone_and_the_other_way_round() {
        let claims = Arc::new(Claims::default());
        let id = DeviceId::new(7).unwrap();
        let (one, two) = (claims.hold(id), claims.hold(id));
        assert!(claims.try_alone(id).is_none());
        drop(one);
        assert!(claims.try_alone(id).is_none());
        drop(two);
        let alone = claims.try_alone(id).unwrap();
        assert!(claims.try_alone(id).is_none());
        let waiting = {
            let claims = claims.clone();
            std::thread::spawn(move || claims.hold(id).id())
        };
        drop(alone);
        assert_eq!(waiting.join().unwrap(), id);
        assert!(claims.try_alone(id).is_some());
    }
}
