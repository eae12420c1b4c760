//! An exporter that shows volumes to the test itself: no FUSE, no loop device, no root.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use thinsnap_pool::{Access, ByteCount, DeviceId, Error, ErrorKind, Exporter, Result, Volume};

struct Shown {
    volume: Arc<dyn Volume>,
    openers: usize,
    leaving: bool,
}

/// Devices that are shown, with their openers counted.
#[derive(Default)]
pub struct DirectExporter {
    shown: Arc<Mutex<BTreeMap<DeviceId, Shown>>>,
}

/// An opener of a shown device; closes it when dropped.
pub struct Opened {
    id: DeviceId,
    volume: Arc<dyn Volume>,
    shown: Arc<Mutex<BTreeMap<DeviceId, Shown>>>,
}

impl DirectExporter {
    /// An exporter that shows nothing yet.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Opens a device as a process would open its node.
    pub fn open(&self, id: DeviceId) -> Opened {
        let mut shown = self.shown.lock().unwrap();
        let device = shown.get_mut(&id).expect("the device is active");
        device.openers += 1;
        Opened { id, volume: Arc::clone(&device.volume), shown: Arc::clone(&self.shown) }
    }
}

impl Opened {
    /// Writes as a request of the host does: acknowledged early if the volume can, else when it is done.
    pub fn write_as_the_host(&self, buf: &[u8], offset: u64, may_wait: bool) -> Result<bool> {
        if Arc::clone(&self.volume).write_early(buf, offset, may_wait) {
            return Ok(true);
        }
        self.volume.write_now(buf, offset).map(|()| false)
    }
}

impl std::ops::Deref for Opened {
    type Target = dyn Volume;

    fn deref(&self) -> &Self::Target {
        &*self.volume
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        let mut shown = self.shown.lock().unwrap();
        if let Some(device) = shown.get_mut(&self.id) {
            device.openers -= 1;
            if device.leaving && device.openers == 0 {
                shown.remove(&self.id);
            }
        }
    }
}

impl Exporter for DirectExporter {
    fn attach(&self, id: DeviceId, volume: Arc<dyn Volume>, _size: ByteCount, _access: Access) -> Result<PathBuf> {
        let mut shown = self.shown.lock().unwrap();
        if shown.contains_key(&id) {
            return Err(Error::new(ErrorKind::InUse, format!("attach device {id}: it is shown already")));
        }
        shown.insert(id, Shown { volume, openers: 0, leaving: false });
        Ok(PathBuf::from(format!("direct/{id}")))
    }

    fn resize(&self, id: DeviceId, size: ByteCount) -> Result<()> {
        let shown = self.shown.lock().unwrap();
        let device = shown.get(&id).ok_or_else(|| Error::new(ErrorKind::NotFound, format!("resize device {id}")))?;
        assert_eq!(device.volume.size(), size.0, "the volume grows before the host is told");
        Ok(())
    }

    fn detach(&self, id: DeviceId) -> Result<bool> {
        let mut shown = self.shown.lock().unwrap();
        let Some(device) = shown.get_mut(&id) else { return Ok(true) };
        if device.openers > 0 {
            device.leaving = true;
            return Ok(false);
        }
        shown.remove(&id);
        Ok(true)
    }

    fn path(&self, id: DeviceId) -> Option<PathBuf> {
        self.shown.lock().unwrap().contains_key(&id).then(|| PathBuf::from(format!("direct/{id}")))
    }

    fn attached(&self) -> Vec<(DeviceId, bool)> {
        self.shown.lock().unwrap().iter().map(|(id, device)| (*id, device.openers > 0)).collect()
    }

    fn shutdown(&self) -> Result<()> {
        let mut shown = self.shown.lock().unwrap();
        if let Some((id, _)) = shown.iter().find(|(_, device)| device.openers > 0) {
            return Err(Error::new(ErrorKind::InUse, format!("shut down: device {id} is open")));
        }
        shown.clear();
        Ok(())
    }
}
