//! Snapshots made ahead: who gets them, when they go, and what a crash leaves of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use thinsnap::snapshot::{Labels, Name};
use thinsnap::snapshotter::Snapshotter;
use thinsnap::store::{Records, Store};
use thinsnap_pool::DeviceId;

use crate::concurrency::start;
use crate::crash_world::Machine;
use crate::{name, space};

/// Waits until as many spares stand ready.
fn spares(snapshotter: &Snapshotter, count: usize) -> Vec<DeviceId> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let found = snapshotter.devices_ahead();
        if found.len() == count {
            return found;
        }
        assert!(Instant::now() < deadline, "{found:?} stand ready, not {count}");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

fn image(snapshotter: &Snapshotter, key: &str) -> Name {
    snapshotter.prepare(&space(), &name("unpacking"), None, Labels::new()).unwrap();
    snapshotter.commit(&space(), &name(key), &name("unpacking"), Labels::new(), None).unwrap();
    name(key)
}

fn container(snapshotter: &Snapshotter, key: &str, image: &Name) -> DeviceId {
    snapshotter.prepare(&space(), &name(key), Some(image), Labels::new()).unwrap();
    snapshotter.stat(&space(), &name(key)).unwrap().device
}

/// An image that two containers were made of, and the device that stands ready for the third.
fn used_twice(snapshotter: &Snapshotter) -> (Name, DeviceId) {
    let image = image(snapshotter, "image");
    container(snapshotter, "one", &image);
    container(snapshotter, "two", &image);
    (image, spares(snapshotter, 1)[0])
}

fn world() -> (Machine, Arc<Snapshotter>, Store) {
    let machine = Machine::default();
    let (snapshotter, store) = start(&machine);
    (machine, snapshotter, store)
}

#[test]
fn the_third_container_of_an_image_finds_its_snapshot_made() {
    let (machine, snapshotter, store) = world();
    let image = image(&snapshotter, "image");
    container(&snapshotter, "one", &image);
    snapshotter.cleanup().unwrap();
    assert_eq!(snapshotter.devices_ahead(), [], "layers are unpacked one on the other, each once");
    container(&snapshotter, "two", &image);
    for key in ["three", "four"] {
        let spare = spares(&snapshotter, 1)[0];
        assert!(!store.read().unwrap().owned_devices().unwrap().contains(&spare), "no record names it");
        assert_eq!(snapshotter.limbo_len().unwrap(), 0, "and yet nobody is to delete it");
        assert_eq!(container(&snapshotter, key, &image), spare);
        assert!(store.read().unwrap().owned_devices().unwrap().contains(&spare));
    }
    let spare = spares(&snapshotter, 1)[0];
    snapshotter.cleanup().unwrap();
    let mut owned = store.read().unwrap().owned_devices().unwrap();
    owned.insert(spare);
    assert_eq!(machine.devices(), owned, "what records need, and the spare");
}

#[test]
fn another_size_is_not_served_by_a_spare() {
    let (_machine, snapshotter, _store) = world();
    let (image, spare) = used_twice(&snapshotter);
    let larger = Labels::from([("containerd.io/snapshot/max-size".to_owned(), (2u64 << 30).to_string())]);
    snapshotter.prepare(&space(), &name("large"), Some(&image), larger).unwrap();
    let large = snapshotter.stat(&space(), &name("large")).unwrap();
    assert_ne!(large.device, spare);
    assert_eq!(large.size.0, 2 << 30);
    assert_eq!(snapshotter.devices_ahead(), [spare]);
}

#[test]
fn a_spare_goes_with_its_image_and_with_the_fifth_one_used_after_it() {
    let (machine, snapshotter, store) = world();
    let images: Vec<Name> = (0..5).map(|number| image(&snapshotter, &format!("image {number}"))).collect();
    for (number, image) in images.iter().enumerate() {
        for round in 0..2 {
            let key = format!("{number} {round}");
            container(&snapshotter, &key, image);
            snapshotter.remove(&space(), &name(&key)).unwrap();
        }
        spares(&snapshotter, (number + 1).min(4));
    }
    for (number, image) in images.iter().enumerate() {
        snapshotter.remove(&space(), image).unwrap();
        spares(&snapshotter, 4 - number);
    }
    snapshotter.cleanup().unwrap();
    assert_eq!(machine.devices(), store.read().unwrap().owned_devices().unwrap(), "only the base device");
    assert_eq!(snapshotter.limbo_len().unwrap(), 0);
}

#[test]
fn a_spare_that_a_crash_leaves_is_deleted_at_the_next_start() {
    let (machine, snapshotter, _) = world();
    let (_, spare) = used_twice(&snapshotter);
    assert!(machine.devices().contains(&spare));
    let again = machine.copy();
    let (snapshotter, store) = start(&again);
    assert_eq!(snapshotter.recovered().limbo_queued, 1);
    snapshotter.cleanup().unwrap();
    assert_eq!(again.devices(), store.read().unwrap().owned_devices().unwrap());
}

#[test]
fn a_spare_whose_device_has_gone_is_not_handed_out() {
    let (machine, snapshotter, _store) = world();
    let (image, spare) = used_twice(&snapshotter);
    snapshotter.pool().deactivate(spare).unwrap();
    assert_ne!(container(&snapshotter, "three", &image), spare);
    snapshotter.cleanup().unwrap();
    assert!(!machine.devices().contains(&spare), "nobody needs it");
}
