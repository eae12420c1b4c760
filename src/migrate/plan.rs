//! Which snapshots can come along, and what becomes of the devices of the others.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use thinsnap_pool::{ByteCount, DeviceId, Inventory, InventoryDevice};

use crate::migrate::filesystem::look;
use crate::migrate::wanted::{Wanted, WantedFs};
use crate::snapshot::{FsType, Kind, LABEL_LEN_MAX, Labels, Name, Snapshot};
use crate::store::REF_LABEL;

/// Parents of parents; containerd's images have some hundred at most.
const CHAIN_MAX: usize = 10_000;

/// What a migration does.
#[derive(Debug, Clone, Default, Serialize)]
pub struct MigrationPlan {
    /// Snapshots that come along, parents before their children.
    pub snapshots: Vec<PlannedSnapshot>,
    /// Snapshots that cannot, and why.
    pub left_out: Vec<LeftOut>,
    /// Devices that nobody needs and that their program wanted gone: deleted once the pool is taken over.
    pub deleted: Vec<DeviceId>,
    /// Devices of the pool that no record names; they are left alone.
    pub unknown: Vec<DeviceId>,
}

/// A snapshot that comes along.
#[derive(Debug, Clone, Serialize)]
pub struct PlannedSnapshot {
    /// The record that is entered.
    #[serde(flatten)]
    pub record: Snapshot,
    /// Its device's blocks, shared ones included.
    pub mapped: ByteCount,
    /// What somebody should know about it.
    pub notes: Vec<String>,
}

/// A snapshot that cannot come along.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// Its key or name.
    pub name: String,
    /// Why.
    pub why: String,
}

/// Compares another program's records with what its pool holds. `going`: devices that it wanted gone.
#[must_use]
pub fn plan(wanted: Vec<Wanted>, going: &[DeviceId], pool: &Inventory) -> MigrationPlan {
    let devices: BTreeMap<DeviceId, &InventoryDevice> = pool.devices.iter().map(|device| (device.id, device)).collect();
    let mut planner =
        Planner { devices, block_size: pool.block_size.bytes(), planned: BTreeMap::new(), owners: BTreeMap::new() };
    let mut plan = MigrationPlan::default();
    let mut views = BTreeSet::new();
    let named: BTreeSet<DeviceId> = wanted.iter().filter_map(|one| one.device).collect();
    for (one, circular) in parents_first(wanted) {
        let name = one.name.clone();
        let view = (one.kind == Kind::View).then_some(one.device).flatten();
        let judged = if circular { Err("it is its own parent's parent".to_owned()) } else { planner.judge(one) };
        match judged {
            Ok(snapshot) => {
                views.extend(view);
                plan.snapshots.push(snapshot);
            }
            Err(why) => plan.left_out.push(LeftOut { name, why }),
        }
    }
    // The own device of a view that now shows its parent's, and what was on its way out before.
    let unneeded = views.into_iter().chain(going.iter().copied().filter(|id| !named.contains(id)));
    let deleted: BTreeSet<DeviceId> =
        unneeded.filter(|id| !planner.owners.contains_key(id) && planner.devices.contains_key(id)).collect();
    plan.unknown = planner
        .devices
        .keys()
        .copied()
        .filter(|id| !planner.owners.contains_key(id) && !deleted.contains(id))
        .collect();
    plan.deleted = deleted.into_iter().collect();
    plan
}

/// The snapshots, each behind its parent; true for one whose chain of parents has no end.
fn parents_first(wanted: Vec<Wanted>) -> Vec<(Wanted, bool)> {
    let parents: BTreeMap<String, Option<String>> =
        wanted.iter().map(|one| (one.name.clone(), one.parent.clone())).collect();
    let mut depths: BTreeMap<String, usize> = BTreeMap::new();
    for name in parents.keys() {
        // Up to the first whose depth is known, then down again.
        let mut chain = vec![name.clone()];
        let mut known = 0;
        while let Some(Some(parent)) = chain.last().and_then(|name| parents.get(name)) {
            if let Some(depth) = depths.get(parent) {
                known = depth + 1;
                break;
            }
            if chain.len() > CHAIN_MAX || chain.contains(parent) {
                known = CHAIN_MAX;
                break;
            }
            chain.push(parent.clone());
        }
        for (above, name) in chain.into_iter().rev().enumerate() {
            depths.entry(name).or_insert_with(|| known.saturating_add(above).min(CHAIN_MAX));
        }
    }
    let depth = |one: &Wanted| depths.get(&one.name).copied().unwrap_or(0);
    let mut sorted: Vec<(Wanted, bool)> = wanted
        .into_iter()
        .map(|one| {
            let circular = depth(&one) >= CHAIN_MAX;
            (one, circular)
        })
        .collect();
    sorted.sort_by(|(a, _), (b, _)| depth(a).cmp(&depth(b)).then_with(|| a.name.cmp(&b.name)));
    sorted
}

struct Planner<'a> {
    devices: BTreeMap<DeviceId, &'a InventoryDevice>,
    block_size: u64,
    planned: BTreeMap<String, Snapshot>,
    /// Whose a device is; a view owns none.
    owners: BTreeMap<DeviceId, String>,
}

impl Planner<'_> {
    /// The snapshot as it comes along, or why it cannot.
    fn judge(&mut self, mut one: Wanted) -> Result<PlannedSnapshot, String> {
        if let Some(trouble) = one.trouble.take() {
            return Err(trouble);
        }
        let name = Name::new(one.name.clone()).map_err(|error| error.to_string())?;
        if self.planned.contains_key(&one.name) {
            return Err("another one has its name".to_owned());
        }
        let parent = match &one.parent {
            None => None,
            Some(parent) => {
                Some(self.planned.get(parent).ok_or_else(|| format!("its parent {parent:?} stays behind"))?)
            }
        };
        if let Some(parent) = parent.filter(|parent| parent.kind != Kind::Committed) {
            return Err(format!("its parent {:?} is not committed", parent.name.as_str()));
        }
        check_labels(&one.labels)?;
        let WantedFs::Known(fs) = &one.fs else {
            let WantedFs::Other(fs) = &one.fs else { return Err("it has no file system".to_owned()) };
            return Err(format!("its file system is {fs}; ext4 and xfs can be served"));
        };
        let fs = *fs;
        let parent_name = parent.map(|parent| parent.name.clone());
        let (device, size) = match (one.kind, parent) {
            // A view shows its parent's device.
            (Kind::View, Some(parent)) => (parent.device, parent.size),
            (Kind::View, None) => return Err("it is a view of nothing: an empty file system".to_owned()),
            _ => (one.device.ok_or("its device has no number")?, one.size),
        };
        let found = *self.devices.get(&device).ok_or_else(|| format!("the pool has no device {device}"))?;
        if one.kind != Kind::View {
            if let Some(owner) = self.owners.get(&device) {
                return Err(format!("its device {device} is that of {owner:?}"));
            }
            self.look_at(found, fs, size, &mut one.notes)?;
            self.owners.insert(device, one.name.clone());
        }
        let record = Snapshot {
            name,
            parent: parent_name,
            kind: one.kind,
            labels: labels_of(&one),
            created_ns: one.created_ns,
            updated_ns: one.updated_ns,
            device,
            size,
            fs,
            usage: one.usage.or((one.kind == Kind::Committed).then(Default::default)),
        };
        self.planned.insert(one.name, record.clone());
        Ok(PlannedSnapshot { record, mapped: found.mapped, notes: one.notes })
    }

    /// Errors with what makes the device useless.
    fn look_at(
        &self,
        device: &InventoryDevice,
        fs: FsType,
        size: ByteCount,
        notes: &mut Vec<String>,
    ) -> Result<(), String> {
        if size.0 == 0 || !size.0.is_multiple_of(512) {
            return Err(format!("a device cannot have {} bytes", size.0));
        }
        if device.end.0.saturating_sub(self.block_size) >= size.0 && device.end.0 > 0 {
            return Err(format!("its device has blocks up to byte {}, beyond its size of {}", device.end.0, size.0));
        }
        let seen = device.head.as_deref().and_then(look);
        let seen = seen.ok_or_else(|| format!("no {} is on its device", fs.as_str()))?;
        if seen.fs != fs {
            return Err(format!("its device has {}, not {}", seen.fs.as_str(), fs.as_str()));
        }
        if seen.size > size.0 {
            return Err(format!("its file system has {} bytes, its device {}", seen.size, size.0));
        }
        if seen.needs_replay {
            notes.push("its journal holds changes; the first mount for writing lays them in".to_owned());
        }
        Ok(())
    }
}

fn check_labels(labels: &Labels) -> Result<(), String> {
    match labels.iter().find(|(key, value)| key.len() + value.len() > LABEL_LEN_MAX) {
        Some((key, _)) => Err(format!("its label {:?} is too long", key.chars().take(64).collect::<String>())),
        None => Ok(()),
    }
}

/// Its labels, and the one by which containerd asks for a layer that exists: the name that its user gave the layer, which
/// stands behind namespace and number in the name that the snapshotter knows.
fn labels_of(one: &Wanted) -> Labels {
    let mut labels = one.labels.clone();
    labels.retain(|_, value| !value.is_empty());
    let layer = one.name.splitn(3, '/').nth(2).filter(|layer| !layer.is_empty());
    if let Some(layer) = layer.filter(|_| one.kind == Kind::Committed) {
        labels.entry(REF_LABEL.to_owned()).or_insert_with(|| layer.to_owned());
    }
    labels
}

#[cfg(test)]
mod tests;
