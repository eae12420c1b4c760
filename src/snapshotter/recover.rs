//! The start: do pool and store belong together, and what did the last run leave in limbo?
//!
//! The checks come first and change nothing. Then ids in limbo without a device are forgotten, those with
//! one go to the reclaimer: recovery is the reclaimer's ordinary work. So do devices that are active although
//! no snapshot shows them: a view was killed before its record, or after it, and nobody else would deactivate them.

use std::collections::BTreeSet;

use thinsnap_pool::{DeviceId, ThinPool};

use crate::error::{Error, ErrorKind, Result};
use crate::snapshotter::tripwire;
use crate::store::{Limbo, Records, Store};

/// What recovery found and did at the start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Device ids in limbo without a device behind them, forgotten.
    pub limbo_drained: u64,
    /// Device ids in limbo with a device, being deleted in the background.
    pub limbo_queued: u64,
    /// Devices in the pool that no record of the store knows; they are left alone.
    pub foreign: u64,
}

/// What the snapshotter goes on with.
pub(crate) struct Found {
    pub(crate) recovered: Recovered,
    pub(crate) queued: Vec<DeviceId>,
    /// Active, but shown by no record.
    pub(crate) left_active: Vec<DeviceId>,
    pub(crate) foreign: BTreeSet<DeviceId>,
}

/// Errors with `Corrupt` if pool and store do not belong together, before anything is changed.
pub(crate) fn recover(pool: &dyn ThinPool, store: &Store) -> Result<Found> {
    let status = pool.status()?;
    let devices: BTreeSet<DeviceId> = pool.devices()?.into_iter().collect();
    let reader = store.read()?;
    match reader.identity()? {
        None => {
            adopt(status.identity, status.transaction_id, &devices, store)?;
        }
        Some(identity) if identity == status.identity => {
            tripwire::compare(status.transaction_id, reader.transaction_id()?.unwrap_or(0))?;
        }
        Some(identity) => {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "the store belongs to pool {}, this is pool {}",
                    uuid::Uuid::from_bytes(identity),
                    uuid::Uuid::from_bytes(status.identity)
                ),
            )
            .advise("check --root and --pool: one of them points to another installation"));
        }
    }

    let owned = reader.owned_devices()?;
    let lost: Vec<DeviceId> = owned.difference(&devices).copied().collect();
    if let Some(first) = lost.first() {
        return Err(Error::new(
            ErrorKind::Corrupt,
            format!("the pool lacks {} devices that the store needs; the first is device {first}", lost.len()),
        )
        .advise("run `thinsnap pool check`; if the pool was put back from a backup, put back the store of that time"));
    }

    let mut left_active = Vec::new();
    if status.active_devices > 0 {
        for id in owned.difference(&reader.shown_devices()?) {
            if pool.active_path(*id)?.is_some() {
                left_active.push(*id);
            }
        }
    }

    let limbo: BTreeSet<DeviceId> = reader.limbo()?.into_iter().collect();
    let absent: Vec<DeviceId> = limbo.difference(&devices).copied().collect();
    let queued: Vec<DeviceId> = limbo.intersection(&devices).copied().collect();
    let foreign: BTreeSet<DeviceId> =
        devices.iter().filter(|id| !owned.contains(id) && !limbo.contains(id)).copied().collect();
    let recovered = Recovered {
        limbo_drained: absent.len() as u64,
        limbo_queued: queued.len() as u64,
        foreign: foreign.len() as u64,
    };
    if !absent.is_empty() {
        // Nobody else makes devices in this pool, so what is absent stays absent.
        store.write(move |txn| {
            absent.iter().for_each(|id| txn.leave_limbo(*id));
            Ok(())
        })?;
    }
    if !foreign.is_empty() {
        tracing::warn!("{} devices of the pool are in no record of the store; they are left alone", foreign.len());
    }
    tripwire::advance(pool, store)?;
    Ok(Found { recovered, queued, left_active, foreign })
}

/// A new store takes a pool without devices; one with devices has lost its store.
fn adopt(identity: [u8; 16], transaction: u64, devices: &BTreeSet<DeviceId>, store: &Store) -> Result<()> {
    if !devices.is_empty() {
        return Err(Error::new(
            ErrorKind::Corrupt,
            format!("the store is new, but the pool holds {} devices: their records are elsewhere", devices.len()),
        )
        .advise("put back the store that belongs to this pool, or make a new pool"));
    }
    store.write(move |txn| {
        txn.set_identity(identity)?;
        txn.set_transaction_id(transaction)
    })
}
