//! The ublk devices of one exporter: what is shown, what goes, and what a dead exporter left behind.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::stat::SFlag;

use crate::error::{Error, Result};
use crate::export::exporter::Orphan;
use crate::export::options::{RELEASE_WAIT, canonical};
use crate::export::ublk::channel::Channel;
use crate::export::ublk::control::{Control, device_numbers};
use crate::export::ublk::openers::claim;
use crate::export::ublk::place::{Place, block_name, char_name};
use crate::export::ublk::wire::STATE_DEAD;
use crate::export::work::{LostVolume, Node};
use crate::units::DeviceId;

/// How often devices that wait for their last opener are looked at: the kernel tells nobody of a close.
const LEAVER_LOOK: Duration = Duration::from_millis(200);
/// How soon the driver notices that a process died with every tag of a device under way; its own default is 30 s.
const REQUEST_TIMEOUT_MS: u32 = 1000;

/// How far a device is on its way.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::export) enum Stage {
    /// It can be used.
    Here,
    /// It waits for its last opener.
    Going,
    /// Nobody has it open, and it is being taken away.
    Taken,
}

/// A device that is shown.
pub(in crate::export) struct Shown {
    pub(in crate::export) stage: Stage,
    /// The driver's number.
    pub(in crate::export) number: u32,
    pub(in crate::export) path: PathBuf,
    pub(in crate::export) node: Arc<Node>,
    /// `None`: nobody serves it.
    pub(in crate::export) channel: Option<Arc<Channel>>,
}

#[derive(Default)]
pub(in crate::export) struct Table {
    pub(in crate::export) shown: BTreeMap<DeviceId, Option<Shown>>,
    /// Ends the leaver.
    pub(in crate::export) stop: bool,
}

/// The devices, as the exporter and its leaver share them.
pub(in crate::export) struct Devices {
    pub(in crate::export) place: Place,
    pub(in crate::export) control: Control,
    /// Held for moments only; `None` stands for a device that is being shown for the first time.
    pub(in crate::export) table: Mutex<Table>,
    pub(in crate::export) changed: Condvar,
}

/// True if this machine's ublk is fit for work, false if a death under load may stop its devices for good. Errors:
/// `Unsupported` or `Denied` if it has none that could be used.
pub(crate) fn probe_ublk() -> Result<bool> {
    Control::open().map(|control| control.hands_over())
}

/// True if a process that is dead, or lives, has left devices that belong to an exporter at this directory.
pub(crate) fn has_ublk_devices(dir: &Path) -> bool {
    let look = || -> Result<bool> { Ok(!ours(&Control::open()?, &Place::new(canonical(dir)?)).is_empty()) };
    look().unwrap_or(false)
}

/// Number, state and thin device of each device that belongs to the place.
fn ours(control: &Control, place: &Place) -> Vec<(u32, u16, DeviceId)> {
    let numbers = device_numbers().unwrap_or_else(|error| {
        tracing::error!("look for the devices of a predecessor: {error}");
        Vec::new()
    });
    numbers
        .into_iter()
        .filter_map(|number| {
            let info = control.info(number).ok()?;
            Some((number, info.state, place.id_of(info.marks)?))
        })
        .collect()
}

impl Devices {
    pub(in crate::export) fn new(place: Place, control: Control) -> Self {
        Self { place, control, table: Mutex::default(), changed: Condvar::new() }
    }

    pub(in crate::export) fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The table, as soon as a device is absent or at a stage that will do; after a while, as it is.
    pub(in crate::export) fn table_when(&self, id: DeviceId, will_do: impl Fn(Stage) -> bool) -> MutexGuard<'_, Table> {
        let deadline = Instant::now() + RELEASE_WAIT;
        let mut table = self.table();
        loop {
            let fits = table.shown.get(&id).and_then(Option::as_ref).is_none_or(|shown| will_do(shown.stage));
            let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|_| !fits) else { return table };
            table = self.changed.wait_timeout(table, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// What a dead exporter left at the same place: its devices come into the table, what it did not finish goes.
    pub(in crate::export) fn inherit(&self) -> Result<Vec<Orphan>> {
        let mut orphans = Vec::new();
        for (number, state, id) in ours(&self.control, &self.place) {
            if state == STATE_DEAD {
                tracing::warn!("the ublk device {number} was never shown, or was being taken away: letting it go");
                self.delete(number, None);
                continue;
            }
            let params = match self.control.params(number) {
                Ok(params) => params,
                Err(e) if e.raw_os_error() == Some(libc::ENODEV) => continue,
                Err(e) => return Err(Error::io(format!("look at the ublk device {number}"), e)),
            };
            let (size, access) = (params.size(), params.access());
            let leaving = self.place.is_leaving(id);
            let node = Arc::new(Node::new(id, Arc::new(LostVolume::new(id, size)), size, access));
            let stage = if leaving { Stage::Going } else { Stage::Here };
            let shown = Shown { stage, number, path: self.path(number)?, node, channel: None };
            self.table().shown.insert(id, Some(shown));
            orphans.push(Orphan { id, size, access, leaving });
        }
        let table = self.table();
        let living: Vec<_> = table.shown.iter().filter_map(|(&id, shown)| Some((id, shown.as_ref()?.number))).collect();
        drop(table);
        self.place.sweep(&living);
        orphans.sort_by_key(|orphan| orphan.id);
        Ok(orphans)
    }

    /// The character device's node.
    pub(in crate::export) fn char_device(&self, number: u32) -> Result<PathBuf> {
        let fail = |e: io::Error| Error::io(format!("find the node of the ublk device {number}"), e);
        let at = self.control.params(number).map_err(fail)?.char_number();
        self.place.node(&char_name(number), SFlag::S_IFCHR, at).map_err(fail)
    }

    /// Opens the character device of a device that nobody served before.
    pub(in crate::export) fn connect(&self, number: u32) -> Result<Arc<Channel>> {
        let path = self.char_device(number)?;
        Channel::open(&path).map(Arc::new).map_err(|e| Error::io(format!("open {}", path.display()), e))
    }

    /// The block device's node.
    pub(in crate::export) fn path(&self, number: u32) -> Result<PathBuf> {
        let fail = |e: io::Error| Error::io(format!("find the node of the block device {}", block_name(number)), e);
        let at = self.control.params(number).map_err(fail)?.disk_number();
        self.place.node(&block_name(number), SFlag::S_IFBLK, at).map_err(fail)
    }

    /// Takes a device out of the driver. Nobody has it open.
    pub(in crate::export) fn delete(&self, number: u32, channel: Option<&Channel>) {
        if let Err(error) = self.control.stop(number)
            && error.raw_os_error() != Some(libc::ENODEV)
        {
            tracing::error!("stop the ublk device {number}: {error}");
        }
        if channel.is_some_and(|channel| !channel.wait_let_go(Instant::now() + RELEASE_WAIT)) {
            tracing::error!("the ublk device {number} is stopped, and its requests have not come back");
        }
        if let Err(error) = self.control.delete(number) {
            tracing::error!("delete the ublk device {number}: {error}");
        }
    }

    /// Takes a device away that waits for its last opener, if it has none. True: it is gone.
    pub(in crate::export) fn take(&self, id: DeviceId) -> bool {
        let (number, path, channel) = {
            let mut table = self.table();
            match table.shown.get_mut(&id) {
                None => return true,
                Some(Some(shown)) if shown.stage == Stage::Going => {
                    shown.stage = Stage::Taken;
                    (shown.number, shown.path.clone(), shown.channel.clone())
                }
                Some(_) => return false,
            }
        };
        // Of a device that nobody serves it is not known what waits in it.
        let claimed = channel.as_deref().and_then(|channel| claim(&path, &block_name(number), channel));
        let gone = claimed.is_some();
        if gone {
            self.delete(number, channel.as_deref());
            drop(claimed);
            drop(channel);
            self.place.clear(id, number);
        }
        let shown = {
            let mut table = self.table();
            match table.shown.get_mut(&id) {
                Some(Some(shown)) if !gone => {
                    shown.stage = Stage::Going;
                    None
                }
                // It stays in the table until its volume is dropped: whoever sees it gone may rely on that.
                Some(shown) => shown.take(),
                None => None,
            }
        };
        if gone {
            drop(shown);
            self.table().shown.remove(&id);
        }
        self.changed.notify_all();
        gone
    }

    /// The life of the leaver.
    pub(in crate::export) fn leave(&self) {
        let mut table = self.table();
        while !table.stop {
            let going: Vec<DeviceId> = table
                .shown
                .iter()
                .filter(|(_, shown)| shown.as_ref().is_some_and(|shown| shown.stage == Stage::Going))
                .map(|(id, _)| *id)
                .collect();
            if going.is_empty() {
                table = self.changed.wait(table).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            // Not as often as something changes: whoever made it so has looked himself.
            let pause = self.changed.wait_timeout_while(table, LEAVER_LOOK, |table| !table.stop);
            table = pause.unwrap_or_else(PoisonError::into_inner).0;
            if table.stop {
                return;
            }
            drop(table);
            for id in going {
                self.take(id);
            }
            table = self.table();
        }
    }
}

/// Has the driver look every second whether the server of a device with every tag under way is dead; it has no other
/// way to notice that.
pub(in crate::export) fn notice_death_soon(number: u32) {
    let file = format!("/sys/block/{}/queue/io_timeout", block_name(number));
    if let Err(error) = std::fs::write(&file, REQUEST_TIMEOUT_MS.to_string()) {
        tracing::warn!("{file}: {error}; a death under full load may go unnoticed for 30 s");
    }
}
