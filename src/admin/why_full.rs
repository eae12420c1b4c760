//! `pool why-full`: who holds the space, and what the deletion of each gives back.
//!
//! The pool says what each device holds alone (one walk over a view of its metadata); the records say who the device
//! is. Deleting a container may give back little, because its image's layers stay: so beside each single snapshot
//! stand the **leaf chains**, a leaf with all ancestors that nothing else is made of.

use std::collections::{BTreeMap, HashMap, HashSet};

use thinsnap_pool::{DeviceId, Holding, Holdings, holdings};

use crate::admin::backend::Backend;
use crate::admin::pool_verbs::{mode_name, space};
use crate::admin::protocol::api;
use crate::error::Result;
use crate::image::SPACE;
use crate::snapshot::{Kind, Name, Snapshot};
use crate::store::{Limbo, Records};

/// A snapshot that has a device of its own.
struct Known {
    space: String,
    snapshot: Snapshot,
    children: usize,
}

/// Measures the pool. Reads only, so that it works in a full one. `report` gets the progress.
pub(super) fn why_full(backend: &Backend, report: &(dyn Fn(api::Progress) + Sync)) -> Result<api::PoolWhyFullReport> {
    let snapshotter = backend.snapshotter();
    let known = known(backend)?;
    let chains = chains(&known);
    let groups: Vec<(DeviceId, u32)> = chains
        .iter()
        .zip(0_u32..)
        .flat_map(|(chain, number)| chain.iter().map(move |at| (*at, number)))
        .map(|(at, number)| (known[at].snapshot.device, number))
        .collect();
    let measured: Holdings = backend.metadata().read(&mut |device| {
        Ok(holdings(device, &groups, &|step| {
            report(api::Progress {
                stage: "adding up who holds what".to_owned(),
                done: step.checked_blocks,
                total: step.used_blocks,
                unit: "blocks".to_owned(),
            });
        })?)
    })?;
    let limbo: HashSet<DeviceId> = snapshotter.store().read()?.limbo()?.into_iter().collect();
    let ahead: HashSet<DeviceId> = snapshotter.devices_ahead().into_iter().collect();
    let users = Users::of(backend)?;
    let by_device: HashMap<DeviceId, &Known> = known.iter().map(|known| (known.snapshot.device, known)).collect();
    let status = snapshotter.pool().status()?;
    // Ids that are kept ready for new snapshots stand in limbo too, without a device.
    let nature = |id: DeviceId| match () {
        () if ahead.contains(&id) => "ahead",
        () if limbo.contains(&id) => "limbo",
        () => "base",
    };
    let leaving: Vec<&Holding> = measured.devices.iter().filter(|held| nature(held.id) == "limbo").collect();
    let exclusive: u64 = measured.devices.iter().map(|held| held.exclusive.0).sum();
    let mut holders: Vec<api::SpaceHolder> = measured
        .devices
        .iter()
        .map(|held| match by_device.get(&held.id) {
            Some(known) => users.holder(held, known),
            None => nameless(held, nature(held.id)),
        })
        .collect();
    holders.sort_by(|a, b| b.frees_bytes.cmp(&a.frees_bytes).then(a.device.cmp(&b.device)));
    let mut leaf_chains: Vec<api::SpaceChain> = measured
        .groups
        .iter()
        .filter_map(|(number, frees)| Some((chains.get(usize::try_from(*number).ok()?)?, frees)))
        .map(|(chain, frees)| api::SpaceChain {
            space: known[chain[0]].space.clone(),
            snapshots: chain.iter().map(|at| known[*at].snapshot.name.as_str().to_owned()).collect(),
            frees_bytes: frees.0,
        })
        .collect();
    leaf_chains.sort_by(|a, b| b.frees_bytes.cmp(&a.frees_bytes).then(a.snapshots.cmp(&b.snapshots)));
    Ok(api::PoolWhyFullReport {
        mode: mode_name(status.mode).to_owned(),
        reason: status.reason.clone(),
        data: Some(space(status.data)),
        metadata: Some(space(status.metadata)),
        metadata_reserve_bytes: status.metadata_reserve.0,
        below: status.room.below.map(space),
        shared_bytes: status.data.used.0.saturating_sub(exclusive).saturating_sub(measured.held.0),
        limbo_devices: leaving.len() as u64,
        limbo_bytes: leaving.iter().map(|held| held.exclusive.0).sum(),
        returning_bytes: status.room.returning.0,
        unpunched_bytes: status.room.unpunched.0,
        held_bytes: measured.held.0,
        waiting_writes: status.room.waiting_writes,
        waiting_bytes: status.room.waiting.0,
        holders,
        chains: leaf_chains,
    })
}

/// Every snapshot with a device of its own; a view shows its parent's.
fn known(backend: &Backend) -> Result<Vec<Known>> {
    let snapshotter = backend.snapshotter();
    let reader = snapshotter.store().read()?;
    let mut known = Vec::new();
    for space in snapshotter.spaces()? {
        let mut children: HashMap<Name, usize> = HashMap::new();
        let mut found = Vec::new();
        reader.snapshots(&space, &mut |snapshot| {
            if let Some(parent) = &snapshot.parent {
                *children.entry(parent.clone()).or_default() += 1;
            }
            if snapshot.kind != Kind::View {
                found.push(snapshot);
            }
        })?;
        known.extend(found.into_iter().map(|snapshot| Known {
            space: space.as_str().to_owned(),
            children: children.get(&snapshot.name).copied().unwrap_or(0),
            snapshot,
        }));
    }
    Ok(known)
}

/// The leaf chains of more than one snapshot, leaf first: its ancestors as long as each has a single child.
fn chains(known: &[Known]) -> Vec<Vec<usize>> {
    let places: HashMap<(&str, &Name), usize> =
        known.iter().enumerate().map(|(at, known)| ((known.space.as_str(), &known.snapshot.name), at)).collect();
    let parent_of = |at: usize| {
        let parent = known[at].snapshot.parent.as_ref()?;
        places.get(&(known[at].space.as_str(), parent)).copied().filter(|parent| known[*parent].children == 1)
    };
    let leaves = (0..known.len()).filter(|at| known[*at].children == 0);
    leaves
        .map(|leaf| std::iter::successors(Some(leaf), |at| parent_of(*at)).collect::<Vec<_>>())
        .filter(|chain| chain.len() > 1)
        .collect()
}

/// Which container or which images a snapshot of ours belongs to.
struct Users {
    containers: HashMap<String, String>,
    images: BTreeMap<String, Vec<String>>,
}

impl Users {
    fn of(backend: &Backend) -> Result<Self> {
        let containers = backend.containers().list()?;
        let containers = containers.into_iter().map(|c| (c.record.key, c.record.name.as_str().to_owned())).collect();
        let mut images: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for image in backend.images().list()? {
            for layer in image.layers {
                images.entry(layer.chain_id).or_default().push(image.name.clone());
            }
        }
        Ok(Self { containers, images })
    }

    fn holder(&self, held: &Holding, known: &Known) -> api::SpaceHolder {
        let name = known.snapshot.name.as_str();
        let ours = known.space == SPACE;
        api::SpaceHolder {
            kind: match known.snapshot.kind {
                Kind::Active => "active",
                Kind::View => "view",
                Kind::Committed => "committed",
            }
            .to_owned(),
            space: Some(known.space.clone()),
            name: Some(name.to_owned()),
            container: self.containers.get(name).filter(|_| ours).cloned(),
            images: self.images.get(name).filter(|_| ours).cloned().unwrap_or_default(),
            children: known.children as u64,
            ..nameless(held, "")
        }
    }
}

fn nameless(held: &Holding, kind: &str) -> api::SpaceHolder {
    api::SpaceHolder {
        device: held.id.get(),
        kind: kind.to_owned(),
        mapped_bytes: held.mapped.0,
        frees_bytes: held.exclusive.0,
        frees_metadata_bytes: held.metadata.0,
        ..api::SpaceHolder::default()
    }
}
