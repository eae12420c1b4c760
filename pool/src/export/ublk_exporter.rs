//! Shows volumes as block devices of the kernel's ublk driver.
//!
//! The driver keeps its devices when the process that served them dies: I/O waits, and the next process goes on, with
//! nothing to be handed to it. What it finds are devices with marks of ours ([`Place`]); it begins with them as a FUSE
//! exporter begins with the loop devices of its predecessor, and in the same order: the dead one must be gone wholly.
//!
//! The driver does not keep a device for its last opener. That is done here: a device that was taken away while
//! somebody has it open *goes*, and a thread (`leaver`) looks from time to time whether it can.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};
use crate::export::alive::Alive;
use crate::export::exporter::{Exporter, NoSpace, Orphan, Volume};
use crate::export::fuse::make_dir;
use crate::export::fuse_exporter::clear_stale;
use crate::export::options::{BURIAL_WAIT, ExportOptions, LOOKERS_WAIT, canonical};
use crate::export::ublk::{
    Asking, Channel, Control, Devices, Params, Place, Serving, Shown, Stage, block_name, notice_death_soon,
};
use crate::export::users::Users;
use crate::export::work::{Lot, Node, block_size_of};
use crate::thin_pool::Access;
use crate::units::{ByteCount, DeviceId};

/// How long the kernel may take to ask an event loop for requests.
const SERVE_WAIT: Duration = Duration::from_secs(30);
/// How often the kernel is asked whether a dead process has let go of its device: it tells nobody.
const BURIAL_LOOK: Duration = Duration::from_millis(10);

/// Who answers the kernel.
enum Service {
    /// This process does.
    Running(Serving),
    /// Nobody yet: devices of a dead one are being adopted.
    Waiting,
    /// A successor does, or will.
    HandedOver,
    /// Nobody: no device is left.
    Ended,
}

/// A ublk device for each volume. Needs `CAP_SYS_ADMIN`.
///
/// Locks: `serving` before `Devices::table`.
pub struct UblkExporter {
    devices: Arc<Devices>,
    lot: Arc<Lot<Asking>>,
    alive: Arc<Alive>,
    serving: Mutex<Service>,
    options: ExportOptions,
    orphans: Vec<Orphan>,
    /// Runs while this process serves.
    leaver: Mutex<Option<JoinHandle<()>>>,
}

impl UblkExporter {
    /// Starts serving at the directory. Devices that a dead exporter left there are [`Exporter::orphans`], and nobody
    /// is served before [`Exporter::resume`]; without any the exporter is ready. Errors: `Unsupported` if the kernel
    /// has no ublk for us, `InUse` if a living exporter serves the directory.
    pub fn begin(options: ExportOptions) -> Result<Self> {
        options.check()?;
        let dir = canonical(&options.dir)?;
        let doing = |e: Error| e.doing(format_args!("begin the export at {}", dir.display()));
        let own = options.alive.clone().unwrap_or_else(|| dir.with_extension("alive"));
        let alive = Arc::new(Alive::acquire(&own, BURIAL_WAIT, |_| Ok(())).map_err(doing)?);
        // A FUSE exporter may have been here before.
        clear_stale(&dir).map_err(doing)?;
        make_dir(&dir)?;
        let control = Control::open()?.hold(Arc::clone(&alive));
        let devices = Devices::new(Place::new(dir), control);
        let lot = Arc::new(Lot::default());
        lot.set_policy(options.no_space);
        let orphans = devices.inherit()?;
        let serving = Mutex::new(Service::Waiting);
        let leaver = Mutex::default();
        let exporter = Self { devices: Arc::new(devices), lot, alive, serving, options, orphans, leaver };
        if exporter.orphans.is_empty() {
            exporter.serve()?;
            exporter.start_leaver()?;
        }
        Ok(exporter)
    }

    fn service(&self) -> MutexGuard<'_, Service> {
        self.serving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self) -> Result<()> {
        let ExportOptions { event_threads, worker_threads, .. } = self.options;
        *self.service() = Service::Running(Serving::start(event_threads, worker_threads, &self.lot, &self.alive)?);
        Ok(())
    }

    /// Adds a device, has it served and shows it.
    fn show(&self, node: &Arc<Node>, block_size: u32) -> Result<Shown> {
        let Devices { place, control, .. } = &*self.devices;
        let id = node.id;
        let fail = |e: io::Error| Error::io("add a ublk device", e);
        let number = control.add(place.marks(id)).map_err(fail)?;
        let shown = || -> Result<Shown> {
            control
                .set_params(number, &Params::new(ByteCount(node.size()), node.access, block_size))
                .map_err(|e| Error::io(format!("describe the ublk device {number}"), e))?;
            let channel = self.devices.connect(number)?;
            self.serve_queue(&channel, node, number)?;
            control.start(number).map_err(|e| Error::io(format!("start the ublk device {number}"), e))?;
            notice_death_soon(number);
            let path = self.devices.path(number)?;
            Ok(Shown { stage: Stage::Here, number, path, node: Arc::clone(node), channel: Some(channel) })
        };
        shown().inspect_err(|_| self.devices.delete(number, None))
    }

    /// From here on the event loop has the device's requests.
    fn serve_queue(&self, channel: &Arc<Channel>, node: &Arc<Node>, number: u32) -> Result<()> {
        let served = match &*self.service() {
            Service::Running(serving) => serving.serve(channel, node, Instant::now() + SERVE_WAIT),
            _ => return Err(Error::new(ErrorKind::Unavailable, "the exporter is shut down")),
        };
        if !served {
            return Err(Error::new(
                ErrorKind::Io,
                format!("ask for the requests of the ublk device {number}: refused"),
            ));
        }
        channel.map().map_err(|e| Error::io(format!("map the requests of the ublk device {number}"), e))
    }

    /// Goes on with a device whose process is dead.
    fn recover(&self, number: u32, node: &Arc<Node>) -> Result<Arc<Channel>> {
        let control = &self.devices.control;
        let fail = |e: io::Error| Error::io(format!("go on with the ublk device {number}"), e);
        let deadline = Instant::now() + BURIAL_WAIT;
        self.until_not_busy(deadline, || match control.start_recovery(number) {
            // A process before this one began, and died before it asked for requests.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            other => other,
        })
        .map_err(fail)?;
        let char_device = self.devices.char_device(number)?;
        let channel = Arc::new(self.until_not_busy(deadline, || Channel::open(&char_device)).map_err(fail)?);
        self.serve_queue(&channel, node, number)?;
        control.end_recovery(number).map_err(fail)?;
        Ok(channel)
    }

    fn until_not_busy<T>(&self, deadline: Instant, mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        loop {
            match attempt() {
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                    let table = self.devices.table();
                    drop(self.devices.changed.wait_timeout(table, BURIAL_LOOK));
                }
                other => return other,
            }
        }
    }

    /// Keeps a device that waits for its last opener. `None`: it is not that volume, or too late.
    fn revive(
        &self,
        id: DeviceId,
        volume: &Arc<dyn Volume>,
        size: ByteCount,
        access: Access,
    ) -> Result<Option<PathBuf>> {
        let path = {
            let mut table = self.devices.table_when(id, |stage| stage != Stage::Taken);
            match table.shown.get_mut(&id) {
                Some(Some(shown)) if shown.stage == Stage::Going && shown.node.is_same(volume, size, access) => {
                    shown.stage = Stage::Here;
                    shown.path.clone()
                }
                _ => return Ok(None),
            }
        };
        self.devices.place.forget_leaving(id);
        self.resize(id, size)?;
        Ok(Some(self.path(id).unwrap_or(path)))
    }

    /// A device that goes stays. False: it has gone.
    fn keep(&self, id: DeviceId) -> bool {
        let mut table = self.devices.table_when(id, |stage| stage != Stage::Taken);
        let Some(Some(shown)) = table.shown.get_mut(&id) else { return false };
        shown.stage = Stage::Here;
        drop(table);
        self.devices.place.forget_leaving(id);
        true
    }

    /// Not before the devices of a predecessor are served: what waits in them is not known.
    fn start_leaver(&self) -> Result<()> {
        let devices = Arc::clone(&self.devices);
        let leaver = std::thread::Builder::new()
            .name("pool-leaver".into())
            .spawn(move || devices.leave())
            .map_err(|e| Error::io("start the thread of the devices that leave", e))?;
        *self.leaver.lock().unwrap_or_else(PoisonError::into_inner) = Some(leaver);
        Ok(())
    }

    fn stop_leaver(&self) {
        self.devices.table().stop = true;
        self.devices.changed.notify_all();
        let leaver = self.leaver.lock().unwrap_or_else(PoisonError::into_inner).take();
        if leaver.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread of the devices that leave panicked");
        }
    }
}

impl Exporter for UblkExporter {
    fn attach(&self, id: DeviceId, volume: Arc<dyn Volume>, size: ByteCount, access: Access) -> Result<PathBuf> {
        let block_size = block_size_of(id, &*volume, size)?;
        if let Some(path) = self.revive(id, &volume, size, access)? {
            return Ok(path);
        }
        {
            let mut table = self.devices.table();
            match table.shown.get(&id) {
                None => {}
                Some(Some(shown)) if matches!(shown.stage, Stage::Going | Stage::Taken) => {
                    return Err(Error::new(
                        ErrorKind::InUse,
                        format!("show device {id}: {} still waits for its last opener", shown.path.display()),
                    ));
                }
                Some(_) => {
                    return Err(Error::new(ErrorKind::InUse, format!("show device {id}: it is shown already")));
                }
            }
            table.shown.insert(id, None);
        }
        let shown = self.show(&Arc::new(Node::new(id, volume, size, access)), block_size);
        let mut table = self.devices.table();
        match shown {
            Ok(shown) => {
                let path = shown.path.clone();
                table.shown.insert(id, Some(shown));
                Ok(path)
            }
            Err(error) => {
                table.shown.remove(&id);
                Err(error.doing(format!("show device {id}")))
            }
        }
    }

    /// A device in use grows where the kernel can do that (Linux 6.16); one that nobody has open is shown anew.
    fn resize(&self, id: DeviceId, size: ByteCount) -> Result<()> {
        let (number, node) = match self.devices.table().shown.get(&id) {
            Some(Some(shown)) if shown.stage == Stage::Here => (shown.number, Arc::clone(&shown.node)),
            _ => return Err(Error::new(ErrorKind::NotFound, format!("resize device {id}: it is not shown"))),
        };
        node.check_growth(size)?;
        if node.size() == size.0 {
            return Ok(());
        }
        if self.devices.control.can_grow() {
            let before = node.size();
            node.set_size(size.0);
            return self.devices.control.grow(number, size.0).map_err(|e| {
                node.set_size(before);
                Error::io(format!("resize device {id}: tell the host"), e)
            });
        }
        let (volume, access) = (Arc::clone(&node.volume), node.access);
        drop(node);
        if !self.detach(id)? {
            // Unless it was closed meanwhile: then it is shown anew.
            if self.keep(id) {
                return Err(Error::new(
                    ErrorKind::InUse,
                    format!(
                        "resize device {id}: somebody has it open, and this kernel's ublk cannot grow a device in use \
                         (Linux 6.16 can): unmount it first, or use export = \"fuse\""
                    ),
                ));
            }
        }
        self.attach(id, volume, size, access).map(drop)
    }

    fn detach(&self, id: DeviceId) -> Result<bool> {
        let name = {
            let mut table = self.devices.table();
            match table.shown.get_mut(&id) {
                None => return Ok(true),
                Some(None) => {
                    return Err(Error::new(ErrorKind::InUse, format!("take device {id} away: it is being shown")));
                }
                Some(Some(shown)) => {
                    if shown.stage == Stage::Here {
                        // Before anybody hears that it goes: the next process must know it too.
                        self.devices
                            .place
                            .note_leaving(id)
                            .map_err(|e| Error::io(format!("take device {id} away: note it"), e))?;
                        shown.stage = Stage::Going;
                    }
                    block_name(shown.number)
                }
            }
        };
        if self.devices.take(id) {
            return Ok(true);
        }
        self.devices.changed.notify_all();
        let wait = if Users::look().contains(&name) { Duration::ZERO } else { LOOKERS_WAIT };
        let table = self.devices.table();
        let waited = self.devices.changed.wait_timeout_while(table, wait, |table| table.shown.contains_key(&id));
        Ok(!waited.unwrap_or_else(PoisonError::into_inner).0.shown.contains_key(&id))
    }

    fn path(&self, id: DeviceId) -> Option<PathBuf> {
        self.devices.table().shown.get(&id)?.as_ref().map(|shown| shown.path.clone())
    }

    fn attached(&self) -> Vec<(DeviceId, bool)> {
        let list: Vec<_> =
            self.devices.table().shown.iter().map(|(id, shown)| (*id, name_here(shown.as_ref()))).collect();
        let users = Users::look();
        list.into_iter().map(|(id, name)| (id, name.is_none_or(|name| users.contains(&name)))).collect()
    }

    fn is_used(&self, id: DeviceId) -> bool {
        let name = self.devices.table().shown.get(&id).map(|shown| name_here(shown.as_ref()));
        name.is_some_and(|name| name.is_none_or(|name| Users::look().contains(&name)))
    }

    fn count(&self) -> usize {
        self.devices.table().shown.len()
    }

    fn room_changed(&self) {
        self.lot.ring();
    }

    fn waiting(&self) -> (u64, ByteCount) {
        self.lot.waiting()
    }

    fn set_no_space(&self, policy: NoSpace) {
        self.lot.set_policy(policy);
    }

    fn orphans(&self) -> Vec<Orphan> {
        self.orphans.clone()
    }

    fn adopt(&self, id: DeviceId, volume: Arc<dyn Volume>) -> Result<()> {
        let Some(orphan) = self.orphans.iter().find(|orphan| orphan.id == id) else {
            return Err(Error::new(ErrorKind::NotFound, format!("adopt device {id}: no predecessor left it behind")));
        };
        if !matches!(*self.service(), Service::Waiting) {
            return Err(Error::new(ErrorKind::Invalid, format!("adopt device {id}: it is served already")));
        }
        if let Some(Some(shown)) = self.devices.table().shown.get_mut(&id) {
            shown.node = Arc::new(Node::new(id, volume, orphan.size, orphan.access));
        }
        Ok(())
    }

    fn resume(&self) -> Result<()> {
        if !matches!(*self.service(), Service::Waiting) {
            return Ok(());
        }
        self.serve()?;
        for Orphan { id, .. } in &self.orphans {
            let found = match self.devices.table().shown.get(id) {
                Some(Some(shown)) => Some((shown.number, Arc::clone(&shown.node))),
                _ => None,
            };
            let Some((number, node)) = found else { continue };
            // The others need not suffer for one; it goes on waiting, for the next process.
            match self.recover(number, &node) {
                Ok(channel) => {
                    if let Some(Some(shown)) = self.devices.table().shown.get_mut(id) {
                        shown.channel = Some(channel);
                    }
                }
                Err(error) => tracing::error!("the block device of device {id} stays without a server: {error}"),
            }
        }
        self.start_leaver()?;
        tracing::info!(devices = self.orphans.len(), "took over the export at {}", self.devices.place.dir().display());
        Ok(())
    }

    /// None: the driver keeps the devices, and whoever begins at the same directory finds them.
    fn descriptors(&self) -> Result<Vec<OwnedFd>> {
        match *self.service() {
            Service::Running(_) => Ok(Vec::new()),
            _ => Err(Error::new(ErrorKind::Unavailable, "keep the block devices beyond this process: nobody serves")),
        }
    }

    fn hand_over(&self) -> Result<()> {
        let mut service = self.service();
        match std::mem::replace(&mut *service, Service::HandedOver) {
            Service::Running(serving) => {
                self.stop_leaver();
                // Ends and joins the loops, after the last request that was begun.
                drop(serving);
                Ok(())
            }
            other => {
                *service = other;
                Err(Error::new(ErrorKind::Unavailable, "hand the export over: nobody serves it"))
            }
        }
    }

    fn shutdown(&self) -> Result<()> {
        let ids: Vec<DeviceId> = self.devices.table().shown.keys().copied().collect();
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
            *service = Service::Ended;
            self.devices.place.remove();
        }
        Ok(())
    }
}

/// The kernel's name of a device that can be used. `None`: it is being made, or whoever it waits for has it open.
fn name_here(shown: Option<&Shown>) -> Option<String> {
    shown.filter(|shown| shown.stage == Stage::Here).map(|shown| block_name(shown.number))
}

impl Drop for UblkExporter {
    /// If devices are still open, everything stays for a successor, and until it comes they wait.
    fn drop(&mut self) {
        let runs = matches!(*self.service(), Service::Running(_));
        if runs && let Err(error) = self.shutdown() {
            tracing::error!("{error}; they stay as they are");
        }
        self.stop_leaver();
    }
}
