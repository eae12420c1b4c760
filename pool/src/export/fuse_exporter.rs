//! Shows volumes as loop devices over the files of a private FUSE filesystem.
//!
//! A device is shown in three steps: a file appears in the filesystem, a loop device is bound to the file, and the
//! path of the loop device is handed out. It is taken away in the reverse order, and the last step, dropping the
//! volume, waits until the kernel has released the file: whoever has the loop device open keeps all of it alive.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};
use crate::export::alive::Alive;
use crate::export::exporter::{Exporter, NoSpace, Orphan, Volume};
use crate::export::fuse::{MountState, Nodes, Serving, Session, abort_mount, detach_mount, make_dir, mount_state};
use crate::export::loop_device::{AttachOptions, LoopDevice, devices_below};
use crate::export::options::{ExportOptions, LOOKERS_WAIT, RELEASE_WAIT, canonical};
use crate::export::users::Users;
use crate::export::work::{Node, block_size_of};
use crate::thin_pool::Access;
use crate::units::{ByteCount, DeviceId};

/// How long the kernel may take to begin a connection that it has mounted.
const INIT_WAIT: Duration = Duration::from_secs(30);
/// Dead mounts that may lie over each other at one directory.
const STALE_MOUNTS_MAX: usize = 16;

/// How far a device is on its way.
pub(super) enum Shown {
    /// The loop device is being bound.
    Coming,
    /// It can be used.
    Here(LoopDevice),
    /// It waits for its last opener.
    Going(LoopDevice),
}

impl Shown {
    /// The kernel's name of a device that can be used. `None`: it is being bound, or whoever it waits for has it open.
    fn name_here(&self) -> Option<String> {
        match self {
            Self::Here(device) => Some(device.name()),
            Self::Coming | Self::Going(_) => None,
        }
    }
}

/// One FUSE filesystem with a file per device, and a loop device on each file.
///
/// Locks: `shown` is held for moments only, never while a file or device is opened.
pub struct FuseExporter {
    pub(super) dir: PathBuf,
    pub(super) nodes: Arc<Nodes>,
    pub(super) shown: Mutex<BTreeMap<DeviceId, Shown>>,
    /// Held while a loop device is found and bound, so that our own threads do not race for the free ones.
    pub(super) binding: Mutex<()>,
    pub(super) serving: Mutex<Service>,
    pub(super) worker_threads: usize,
    pub(super) alive: Option<Arc<Alive>>,
    /// What a predecessor left behind, until [`Exporter::resume`].
    pub(super) orphans: Vec<Orphan>,
}

/// Who answers the kernel.
pub(super) enum Service {
    /// This process does.
    Running(Serving),
    /// Nobody yet: the connection was taken over, and its devices are being adopted.
    Waiting(Session),
    /// A successor does, or will.
    HandedOver,
    /// Nobody: the filesystem is unmounted.
    Ended,
}

impl FuseExporter {
    /// Takes away what a dead exporter left at the same directory, mounts, and starts serving. Errors: `InUse`
    /// if a living exporter serves the directory, `Unsupported` if the kernel has no FUSE or no loop devices.
    pub fn start(options: ExportOptions) -> Result<Self> {
        options.check()?;
        let dir = canonical(&options.dir)?;
        let alive = options.acquire_alive(|dying| {
            if dying {
                // It may wait for an answer from its own filesystem, which nobody will give any more.
                abort_mount(&dir)?;
            }
            Ok(())
        })?;
        clear_stale(&dir)?;
        make_dir(&dir)?;
        let session = Session::mount(&dir, options.event_threads)?;
        let nodes = Arc::new(Nodes::default());
        nodes.lot.set_policy(options.no_space);
        let serving = Serving::start(session, &nodes, options.worker_threads, alive.as_ref()).and_then(|serving| {
            match nodes.agreement(Instant::now() + INIT_WAIT) {
                Some(_) => Ok(serving),
                None => Err(Error::new(ErrorKind::Unsupported, "begin the FUSE connection: the kernel did not agree")),
            }
        });
        let serving = match serving {
            Ok(serving) => serving,
            Err(error) => {
                detach_mount(&dir)?;
                return Err(error);
            }
        };
        Ok(Self {
            dir,
            nodes,
            shown: Mutex::new(BTreeMap::new()),
            binding: Mutex::new(()),
            serving: Mutex::new(Service::Running(serving)),
            worker_threads: options.worker_threads,
            alive,
            orphans: Vec::new(),
        })
    }

    pub(super) fn service(&self) -> MutexGuard<'_, Service> {
        self.serving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn shown(&self) -> MutexGuard<'_, BTreeMap<DeviceId, Shown>> {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        // Devices whose last opener has closed them since somebody last looked, or that somebody else took away.
        shown.retain(|id, state| matches!(state, Shown::Coming) || self.nodes.is_present(*id));
        shown
    }

    /// As [`FuseExporter::shown`], up to date for one device: the same for one as for a thousand.
    fn shown_for(&self, id: DeviceId) -> MutexGuard<'_, BTreeMap<DeviceId, Shown>> {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let was_here = matches!(shown.get(&id), Some(Shown::Here(_) | Shown::Going(_)));
        if was_here && !self.nodes.is_present(id) {
            shown.remove(&id);
        }
        shown
    }

    fn file(&self, id: DeviceId) -> PathBuf {
        self.dir.join(id.to_string())
    }

    fn bind(&self, id: DeviceId, access: Access, block_size: u32) -> Result<LoopDevice> {
        let path = self.file(id);
        let writable = access == Access::ReadWrite;
        let file = OpenOptions::new()
            .read(true)
            .write(writable)
            .open(&path)
            .map_err(|e| Error::io(format!("open {}", path.display()), e))?;
        let _one_at_a_time = self.binding.lock().unwrap_or_else(PoisonError::into_inner);
        LoopDevice::attach(&AttachOptions { file: &file, path: &path, access, block_size })
    }

    /// Keeps a device that waits for its last opener. False: it is not that volume, or too late.
    fn revive(
        &self,
        id: DeviceId,
        volume: &Arc<dyn Volume>,
        size: ByteCount,
        access: Access,
    ) -> Result<Option<PathBuf>> {
        let device = match self.shown_for(id).get(&id) {
            Some(Shown::Going(device)) => device.clone(),
            _ => return Ok(None),
        };
        let same = self.nodes.find_device(id).is_some_and(|node| node.is_same(volume, size, access));
        if !same || !device.keep()? {
            return Ok(None);
        }
        if !self.nodes.stay(id) {
            return Ok(None);
        }
        let path = device.path();
        self.shown_for(id).insert(id, Shown::Here(device));
        self.resize(id, size)?;
        Ok(Some(path))
    }
}

impl Exporter for FuseExporter {
    fn attach(&self, id: DeviceId, volume: Arc<dyn Volume>, size: ByteCount, access: Access) -> Result<PathBuf> {
        let block_size = block_size_of(id, &*volume, size)?;
        if let Some(path) = self.revive(id, &volume, size, access)? {
            return Ok(path);
        }
        {
            if !matches!(*self.service(), Service::Running(_)) {
                return Err(Error::new(ErrorKind::Unavailable, format!("show device {id}: the exporter is shut down")));
            }
            let mut shown = self.shown_for(id);
            match shown.get(&id) {
                None => {}
                Some(Shown::Going(device)) => {
                    return Err(Error::new(
                        ErrorKind::InUse,
                        format!("show device {id}: {} still waits for its last opener", device.path().display()),
                    ));
                }
                Some(Shown::Coming | Shown::Here(_)) => {
                    return Err(Error::new(ErrorKind::InUse, format!("show device {id}: it is shown already")));
                }
            }
            shown.insert(id, Shown::Coming);
        }
        self.nodes.insert(Node::new(id, volume, size, access));
        match self.bind(id, access, block_size) {
            Ok(device) => {
                let path = device.path();
                self.nodes.bound(id, device.clone());
                self.shown_for(id).insert(id, Shown::Here(device));
                Ok(path)
            }
            Err(error) => {
                self.nodes.leave(id);
                if !self.nodes.wait_gone(id, Instant::now() + RELEASE_WAIT) {
                    tracing::error!("the file of device {id} is still open after its loop device was refused");
                }
                self.shown_for(id).remove(&id);
                Err(error.doing(format!("show device {id}")))
            }
        }
    }

    fn resize(&self, id: DeviceId, size: ByteCount) -> Result<()> {
        let device = match self.shown_for(id).get(&id) {
            Some(Shown::Here(device)) => device.clone(),
            _ => return Err(Error::new(ErrorKind::NotFound, format!("resize device {id}: it is not shown"))),
        };
        let node = self
            .nodes
            .find_device(id)
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("resize device {id}: it has gone")))?;
        node.check_growth(size)?;
        node.set_size(size.0);
        drop(node);
        // The kernel asks for the size again before the loop driver reads what the kernel knows.
        let path = self.file(id);
        File::open(&path)
            .and_then(|file| file.metadata())
            .map_err(|e| Error::io(format!("look at {}", path.display()), e))?;
        device.resize()
    }

    fn detach(&self, id: DeviceId) -> Result<bool> {
        let (device, is_new) = {
            let mut shown = self.shown_for(id);
            match shown.get(&id) {
                None => return Ok(true),
                Some(Shown::Coming) => {
                    return Err(Error::new(ErrorKind::InUse, format!("take device {id} away: it is being shown")));
                }
                Some(Shown::Going(device)) => (device.clone(), false),
                Some(Shown::Here(device)) => {
                    let device = device.clone();
                    shown.insert(id, Shown::Going(device.clone()));
                    (device, true)
                }
            }
        };
        if is_new {
            self.nodes.leave(id);
            if let Err(error) = device.detach() {
                if self.nodes.stay(id) {
                    self.shown_for(id).insert(id, Shown::Here(device));
                }
                return Err(error.doing(format!("take device {id} away")));
            }
        }
        // Mostly nobody has it open, and it has let its file go: then nobody need be looked for.
        let wait = match device.is_bound() {
            true if Users::look().contains(&device.name()) => Duration::ZERO,
            true => LOOKERS_WAIT,
            false => RELEASE_WAIT,
        };
        let gone = self.nodes.wait_gone(id, Instant::now() + wait)
            || (!device.is_bound() && self.nodes.wait_gone(id, Instant::now() + RELEASE_WAIT));
        drop(self.shown_for(id));
        Ok(gone)
    }

    fn path(&self, id: DeviceId) -> Option<PathBuf> {
        match self.shown_for(id).get(&id)? {
            Shown::Coming => None,
            Shown::Here(device) | Shown::Going(device) => Some(device.path()),
        }
    }

    fn attached(&self) -> Vec<(DeviceId, bool)> {
        let list: Vec<_> = self.shown().iter().map(|(id, state)| (*id, state.name_here())).collect();
        let users = Users::look();
        list.into_iter().map(|(id, name)| (id, name.is_none_or(|name| users.contains(&name)))).collect()
    }

    fn is_used(&self, id: DeviceId) -> bool {
        let name = self.shown_for(id).get(&id).map(Shown::name_here);
        name.is_some_and(|name| name.is_none_or(|name| Users::look().contains(&name)))
    }

    fn count(&self) -> usize {
        self.nodes.count()
    }

    fn room_changed(&self) {
        self.nodes.lot.ring();
    }

    fn waiting(&self) -> (u64, ByteCount) {
        self.nodes.lot.waiting()
    }

    fn set_no_space(&self, policy: NoSpace) {
        self.nodes.lot.set_policy(policy);
    }

    fn orphans(&self) -> Vec<Orphan> {
        self.orphans.clone()
    }

    fn adopt(&self, id: DeviceId, volume: Arc<dyn Volume>) -> Result<()> {
        self.adopt_orphan(id, volume)
    }

    fn resume(&self) -> Result<()> {
        self.serve_orphans()
    }

    fn descriptors(&self) -> Result<Vec<OwnedFd>> {
        match &*self.service() {
            Service::Running(serving) if self.can_resend() => serving.descriptors(),
            Service::Running(_) => Err(Error::new(
                ErrorKind::Unsupported,
                "keep the block devices beyond this process: the kernel's FUSE cannot send requests again (Linux 6.9 can)",
            )),
            _ => Err(Error::new(ErrorKind::Unavailable, "keep the block devices beyond this process: nobody serves")),
        }
    }

    fn hand_over(&self) -> Result<()> {
        self.stop_for_successor()
    }

    fn shutdown(&self) -> Result<()> {
        let ids: Vec<DeviceId> = self.shown().keys().copied().collect();
        let mut open = Vec::new();
        for id in ids {
            if !self.detach(id)? {
                open.push(id.to_string());
            }
        }
        if !open.is_empty() {
            return Err(Error::new(
                ErrorKind::InUse,
                format!("shut the exporter down: devices {} are open", open.join(", ")),
            ));
        }
        let mut service = self.service();
        if matches!(*service, Service::Running(_)) {
            // The kernel may still hold the last file for a moment after its release, so the plain way can be busy.
            detach_mount(&self.dir)?;
            *service = Service::Ended;
        }
        Ok(())
    }
}

impl Drop for FuseExporter {
    /// If devices are still open, everything stays for a successor that has the descriptors; without one they see I/O
    /// errors from here on.
    fn drop(&mut self) {
        let runs = matches!(*self.service(), Service::Running(_));
        if runs && let Err(error) = self.shutdown() {
            tracing::error!("{error}; they stay as they are");
        }
    }
}

/// Takes away the mounts and loop devices of a dead exporter.
pub(super) fn clear_stale(dir: &Path) -> Result<()> {
    for _ in 0..STALE_MOUNTS_MAX {
        match mount_state(dir)? {
            MountState::Free => return Ok(()),
            MountState::Alive => {
                return Err(Error::new(
                    ErrorKind::InUse,
                    format!("{} is the mount of a living exporter", dir.display()),
                ));
            }
            MountState::Dead => {
                for (number, file) in devices_below(dir) {
                    let device = LoopDevice::known(number, file);
                    let path = device.path();
                    if Users::look().contains(&device.name()) {
                        tracing::error!(
                            "{} is mounted and its host is dead: unmount it, its I/O fails",
                            path.display()
                        );
                    }
                    device.detach()?;
                }
                detach_mount(dir)?;
            }
        }
    }
    Err(Error::new(ErrorKind::Io, format!("{}: dead mounts keep coming back", dir.display())))
}
