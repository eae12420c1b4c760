//! An exporter that shows nothing: for one who opens a pool only to bring it in order.

use std::path::PathBuf;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::export::exporter::{Exporter, Volume};
use crate::thin_pool::Access;
use crate::units::{ByteCount, DeviceId};

/// Shows no device to anybody.
pub(crate) struct Unshown;

impl Exporter for Unshown {
    fn attach(&self, id: DeviceId, _volume: Arc<dyn Volume>, _size: ByteCount, _access: Access) -> Result<PathBuf> {
        Err(Error::new(
            ErrorKind::Unsupported,
            format!("attach device {id}: the pool was opened without a way to show it"),
        ))
    }

    fn resize(&self, _id: DeviceId, _size: ByteCount) -> Result<()> {
        Ok(())
    }

    fn detach(&self, _id: DeviceId) -> Result<bool> {
        Ok(true)
    }

    fn path(&self, _id: DeviceId) -> Option<PathBuf> {
        None
    }

    fn attached(&self) -> Vec<(DeviceId, bool)> {
        Vec::new()
    }

    fn shutdown(&self) -> Result<()> {
        Ok(())
    }
}
