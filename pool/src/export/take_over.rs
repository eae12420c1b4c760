//! How an exporter goes on where a dead one stopped, and how it stops so that another one can go on.
//!
//! The order, and why: first the predecessor must be gone wholly (a late write of it would land over newer data), and
//! it can only go if somebody answers what it waits for itself ([`Attendant`]). Then the kernel is asked what there
//! is: its loop devices outlived the dead process, its memory did not. The engine puts volumes behind them; only then
//! requests are read, those first that were read before and never answered. Nothing here looks through the mount:
//! while nobody serves it, that would wait for ever.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::error::{Error, ErrorKind, Result};
use crate::export::exporter::{Orphan, Volume};
use crate::export::fuse::{Attendant, Nodes, Serving, Session, is_connected, is_mounted};
use crate::export::fuse_exporter::{FuseExporter, Service, Shown};
use crate::export::loop_device::{LoopDevice, binding, devices_below};
use crate::export::options::{ExportOptions, canonical};
use crate::export::work::{LostVolume, Node};
use crate::thin_pool::Access;
use crate::units::{ByteCount, DeviceId};

impl FuseExporter {
    /// [`FuseExporter::take_over`] if there are descriptors, else [`FuseExporter::start`].
    pub fn begin(options: ExportOptions, descriptors: Vec<OwnedFd>) -> Result<Self> {
        if descriptors.is_empty() { Self::start(options) } else { Self::take_over(options, descriptors) }
    }

    /// Takes over the connection of a dead exporter at the same directory: `descriptors` are what
    /// [`crate::export::Exporter::descriptors`] gave. Its devices are [`crate::export::Exporter::orphans`]; nobody is served before
    /// [`crate::export::Exporter::resume`]. Dropped before that, the exporter leaves everything as it was. Errors: `Invalid` if the
    /// descriptors are not of a filesystem at that directory, `InUse` if a process that served it is not gone.
    pub fn take_over(options: ExportOptions, descriptors: Vec<OwnedFd>) -> Result<Self> {
        options.check()?;
        let dir = canonical(&options.dir)?;
        let doing = format!("take over the export at {}", dir.display());
        if !descriptors.iter().all(|fd| is_connected(fd.as_fd())) || !is_mounted(&dir) {
            return Err(Error::new(ErrorKind::Invalid, format!("{doing}: its connection has ended")));
        }
        let session = Session::from_fds(descriptors);
        let mut attendant = None;
        let alive = options.acquire_alive(|dying| {
            if dying && attendant.is_none() {
                let nodes = Arc::new(Nodes::default());
                inherit(&dir, &nodes);
                attendant = Some(Attendant::start(&session, nodes)?);
            }
            Ok(())
        });
        drop(attendant);
        let alive = alive.map_err(|e| e.doing(&doing))?;
        for (number, file) in devices_below(&dir) {
            if binding(number).is_some_and(|binding| binding.size == 0) {
                // The predecessor died while it bound this one: nobody knows its path, and nothing can be on it.
                let device = LoopDevice::known(number, file);
                tracing::warn!("{} was never finished: letting it go", device.path().display());
                device.detach().map_err(|e| e.doing(&doing))?;
            }
        }
        // Once more: the predecessor may have finished binding a device on its way out.
        let nodes = Arc::new(Nodes::default());
        nodes.lot.set_policy(options.no_space);
        let found = inherit(&dir, &nodes);
        let mut shown = BTreeMap::new();
        let mut orphans = Vec::new();
        for (orphan, device) in found {
            shown.insert(orphan.id, if orphan.leaving { Shown::Going(device) } else { Shown::Here(device) });
            orphans.push(orphan);
        }
        tracing::info!(devices = orphans.len(), "took over the export at {}", dir.display());
        Ok(Self {
            dir,
            nodes,
            shown: Mutex::new(shown),
            binding: Mutex::new(()),
            serving: Mutex::new(Service::Waiting(session)),
            worker_threads: options.worker_threads,
            alive,
            orphans,
        })
    }

    pub(super) fn adopt_orphan(&self, id: DeviceId, volume: Arc<dyn Volume>) -> Result<()> {
        let Some(orphan) = self.orphans.iter().find(|orphan| orphan.id == id) else {
            return Err(Error::new(ErrorKind::NotFound, format!("adopt device {id}: no predecessor left it behind")));
        };
        if !matches!(*self.service(), Service::Waiting(_)) {
            return Err(Error::new(ErrorKind::Invalid, format!("adopt device {id}: it is served already")));
        }
        self.nodes.insert(Node::inherited(id, volume, orphan.size, orphan.access));
        Ok(())
    }

    pub(super) fn serve_orphans(&self) -> Result<()> {
        let mut service = self.service();
        let session = match &*service {
            Service::Waiting(session) => Session::from_fds(session.duplicate()?),
            // Nobody was there before.
            _ => return Ok(()),
        };
        // The kernel sends again only what it once agreed to send again. It is asked before anybody reads: it would send
        // again what a loop of ours had read by then, and the second of two equal writes could land over a newer one.
        self.nodes.resume();
        session.resend()?;
        *service = Service::Running(Serving::start(session, &self.nodes, self.worker_threads, self.alive.as_ref())?);
        Ok(())
    }

    pub(super) fn can_resend(&self) -> bool {
        self.nodes.agreement(Instant::now()).is_some_and(|agreement| agreement.resend)
    }

    pub(super) fn stop_for_successor(&self) -> Result<()> {
        if !self.can_resend() {
            // Requests that a loop has read and not yet looked at would never come again.
            return Err(Error::new(ErrorKind::Unsupported, "hand the export over: this kernel's FUSE has no resend"));
        }
        let mut service = self.service();
        match std::mem::replace(&mut *service, Service::HandedOver) {
            Service::Running(serving) => {
                // Ends and joins the loops, after the last request under way.
                drop(serving);
                Ok(())
            }
            other => {
                *service = other;
                Err(Error::new(ErrorKind::Unavailable, "hand the export over: nobody serves it"))
            }
        }
    }
}

/// Makes a file for each loop device that is bound below `dir`; until it is adopted, every request on it fails.
fn inherit(dir: &Path, nodes: &Nodes) -> Vec<(Orphan, LoopDevice)> {
    let mut found = Vec::new();
    for (number, file) in devices_below(dir) {
        let name = file.file_name().and_then(|name| name.to_str());
        let id = name.and_then(|name| name.parse().ok()).and_then(|id| DeviceId::new(id).ok());
        let Some((id, binding)) = id.zip(binding(number)) else { continue };
        let size = ByteCount(binding.size);
        let access = if binding.read_only { Access::ReadOnly } else { Access::ReadWrite };
        let device = LoopDevice::known(number, file);
        nodes.insert(Node::inherited(id, Arc::new(LostVolume::new(id, size)), size, access));
        nodes.inherit(id, device.clone());
        if binding.autoclear {
            nodes.leave(id);
        }
        found.push((Orphan { id, size, access, leaving: binding.autoclear }, device));
    }
    found.sort_by_key(|(orphan, _)| orphan.id);
    found
}
