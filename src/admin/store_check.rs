//! Compares the records with the pool's metadata: devices that one of the two lacks, sizes that do not fit.

use std::collections::BTreeMap;

use thinsnap_pool::{BlockDevice, DeviceId, Severity, block_size_of, device_ends, identity_of};

use crate::admin::protocol::api;
use crate::error::Result;
use crate::snapshot::{Snapshot, Space};
use crate::store::{Limbo, Reader, Records};

/// Every snapshot of every space.
pub(super) fn all_snapshots(store: &Reader) -> Result<Vec<(Space, Snapshot)>> {
    let mut all = Vec::new();
    for space in store.spaces_in_use()? {
        store.snapshots(&space, &mut |snapshot| all.push((space.clone(), snapshot)))?;
    }
    Ok(all)
}

/// What is wrong between the records and the sound metadata on `device`.
///
/// Both go on changing while they are read, the records first, by a moment: a device that is made or removed in
/// between is in limbo, before and after, and nothing is said of those.
pub fn judge_store(store: &Reader, device: &dyn BlockDevice) -> Result<Vec<api::Finding>> {
    let mut findings = Vec::new();
    let mut add = |severity: Severity, path: String, what: String| {
        findings.push(api::Finding { severity: severity.to_string(), block: None, path, what });
    };
    let ends: BTreeMap<DeviceId, u64> = device_ends(device)?.into_iter().collect();
    let block_size = block_size_of(device)?.bytes();
    if let (Some(known), Some(found)) = (store.identity()?, identity_of(device))
        && known != found
    {
        let what = format!("they belong to pool {}", uuid::Uuid::from_bytes(known));
        add(Severity::Damage, format!("records of pool {}", uuid::Uuid::from_bytes(found)), what);
        return Ok(findings);
    }
    let mut snapshots: BTreeMap<DeviceId, Vec<String>> = BTreeMap::new();
    for (space, snapshot) in all_snapshots(store)? {
        let name = format!("{space}/{}", snapshot.name);
        if let Some(end) = ends.get(&snapshot.device).map(|end| end.saturating_mul(block_size))
            && end.saturating_sub(block_size) >= snapshot.size.0
            && end > 0
        {
            let what = format!(
                "device {} is mapped up to byte {end}, the record says {} bytes",
                snapshot.device, snapshot.size.0
            );
            add(Severity::Damage, format!("record {name}"), what);
        }
        snapshots.entry(snapshot.device).or_default().push(name);
    }
    let limbo = store.limbo()?;
    let owned = store.owned_devices()?;
    for id in owned.iter().filter(|id| !ends.contains_key(id)) {
        let whose = snapshots.get(id).map_or_else(|| "a base device".to_owned(), |names| names.join(", "));
        add(Severity::Damage, format!("record {whose}"), format!("its device {id} is not in the pool"));
    }
    for id in ends.keys().filter(|id| !owned.contains(id) && !limbo.contains(id)) {
        add(Severity::Note, format!("device {id}"), "no record names it; it is left alone".to_owned());
    }
    for id in &limbo {
        add(Severity::Note, format!("device {id}"), "it is in limbo: its deletion is on its way".to_owned());
    }
    Ok(findings)
}
