//! Which device ids are free, and which are in limbo.
//!
//! An id is reserved by putting it into **limbo**: the list of ids whose existence in the pool is
//! uncertain. It leaves limbo in the transaction that writes the record which needs it, or when the pool
//! has confirmed its deletion. An id in limbo or owned by a record is never handed out.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use thinsnap_pool::{DeviceId, Mutation};

use crate::error::{Error, ErrorKind, Result};
use crate::store::codec;
use crate::store::rows::Rows;
use crate::store::schema::{LIMBO, META, META_NEXT_DEVICE, OWNERS, device_key, device_of};
use crate::store::txn::Txn;

/// Ids 1 …= this one are handed out; 0 stays free for people's experiments with dmsetup.
const ID_LAST: u32 = (1 << 24) - 1;

/// What can be asked about limbo.
pub(crate) trait Limbo: Rows {
    /// The ids in limbo, ascending.
    fn limbo(&self) -> Result<Vec<DeviceId>> {
        let mut ids = Vec::new();
        self.walk(LIMBO, &[], &mut |key, _| {
            ids.push(device_of(key)?);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(ids)
    }

    /// True if the id is in limbo.
    fn in_limbo(&self, id: DeviceId) -> Result<bool> {
        Ok(self.row(LIMBO, &device_key(id))?.is_some())
    }
}

impl<R: Rows> Limbo for R {}

impl Txn<'_> {
    /// Puts `count` free ids into limbo and returns them; ids in `foreign` belong to somebody else. It
    /// goes round the 24 bits, so that an id comes back as late as possible. Errors: `NoSpace`.
    pub(crate) fn reserve_devices(&mut self, count: usize, foreign: &BTreeSet<DeviceId>) -> Result<Vec<DeviceId>> {
        let stored = self.row(META, META_NEXT_DEVICE)?.map(|bytes| codec::decode::<u32>(&bytes)).transpose()?;
        let mut candidate = stored.unwrap_or(1).clamp(1, ID_LAST);
        let mut ids = Vec::with_capacity(count);
        let mut looked_at = 0;
        while ids.len() < count {
            if looked_at == ID_LAST {
                return Err(Error::new(ErrorKind::NoSpace, "reserve a device id: all 16,777,215 are taken")
                    .advise("remove unused snapshots (thinsnap snapshot ls)"));
            }
            looked_at += 1;
            let id = DeviceId::new(candidate)?;
            candidate = if candidate == ID_LAST { 1 } else { candidate + 1 };
            let key = device_key(id);
            let taken =
                foreign.contains(&id) || self.row(LIMBO, &key)?.is_some() || self.any_with_prefix(OWNERS, &key)?;
            if !taken {
                if !Mutation::SkipLimbo.is_on() {
                    self.put(LIMBO, key, []);
                }
                ids.push(id);
            }
        }
        self.put(META, META_NEXT_DEVICE, codec::encode(&candidate)?);
        Ok(ids)
    }

    /// The device is no longer needed by a record: it is to be deleted.
    pub(crate) fn enter_limbo(&mut self, id: DeviceId) {
        self.put(LIMBO, device_key(id), []);
    }

    /// The device exists and a record of this transaction needs it, or it is known to be gone.
    pub(crate) fn leave_limbo(&mut self, id: DeviceId) {
        self.delete(LIMBO, device_key(id));
    }
}
