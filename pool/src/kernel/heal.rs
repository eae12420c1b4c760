//! Puts right what a killed process left half-done among the devices of a pool.
//!
//! Each step of every verb leaves one of these: a device without a table (made, not set up), a next table that was not
//! put in place (growing), a suspended device (in the middle of a snapshot or of an exchange of tables), a metadata
//! snapshot that is held (reading). None of them needs to know which verb it was.

use crate::error::Result;
use crate::kernel::control::{Control, State};
use crate::kernel::live::LiveMetadata;
use crate::kernel::pool_device::PoolDevice;
use crate::kernel::thin_device::ThinDevices;

/// Heals the pool's own device, which has a table.
pub(super) fn heal_pool(control: &Control, name: &str, state: &State) -> Result<()> {
    set_right(control, name, state).map(drop)
}

/// Heals the pool's thin devices, and releases a metadata snapshot that nobody reads any more.
pub(super) fn heal_devices(pool: &PoolDevice, devices: &ThinDevices<'_>, live: &LiveMetadata) -> Result<()> {
    let mut healed = Vec::new();
    for id in devices.active()? {
        let Some(state) = devices.state(id)? else { continue };
        let name = devices.names.thin_name(id);
        if !state.has_table {
            pool.control.remove(&name)?;
            healed.push(format!("{name} removed, which was never set up"));
        } else if set_right(&pool.control, &name, &state)? {
            healed.push(format!("{name} resumed"));
        }
    }
    if live.release_left_over(pool)? {
        healed.push("the metadata snapshot released".to_owned());
    }
    if !healed.is_empty() {
        tracing::info!("an earlier process was cut short: {}", healed.join(", "));
    }
    Ok(())
}

/// True if there was something to do.
fn set_right(control: &Control, name: &str, state: &State) -> Result<bool> {
    if state.has_next_table {
        control.clear(name)?;
    }
    if state.suspended {
        control.resume(name)?;
    }
    Ok(state.has_next_table || state.suspended)
}
