//! Commit: an active snapshot becomes a committed one.
//!
//! Unmounted, it is the rename of a record: the device is deactivated (which makes it durable) and stays
//! what it is. Still mounted, the file system is written out and the committed snapshot is a snapshot of
//! the device at that moment; the device itself goes to limbo and is deleted when its user lets go.
//! Either way the committed device is inactive, durable, and needs no journal replay before the record
//! says so. A crash before the record is written leaves the active snapshot as it was.

use thinsnap_pool::{Access, ByteCount, DeviceId};

use crate::error::{Error, ErrorKind, Result};
use crate::snapshot::{Kind, Labels, Name, Snapshot, Space, Usage};
use crate::snapshotter::ids::Reserved;
use crate::snapshotter::labels::{check_labels, now_ns};
use crate::snapshotter::snapshotter::Snapshotter;
use crate::store::{Records, Rows};

impl Snapshotter {
    /// Turns active `key` into committed `name` with these labels and no others. `parent` as in
    /// containerd's rebase: must be absent or the same.
    ///
    /// Errors: `AlreadyExists` (name), `NotFound` (key), `NotActive`, `InvalidArgument` for another
    /// parent, `Unsupported` for a rebase, `NoSpace` if a journal must be replayed and the pool is full.
    pub fn commit(&self, space: &Space, name: &Name, key: &Name, labels: Labels, parent: Option<&Name>) -> Result<()> {
        let labels = check_labels(labels)?;
        let _claim = self.claims.key(space, key);
        let active = committable(&self.store.read()?, space, name, key, parent)?;
        let _hold = self.claims.hold(active.device);
        let (bytes, copy) = match self.settle(&active)? {
            Some(bytes) => (bytes, None),
            None => {
                self.write_out(&active)?;
                (self.pool.written(active.device)?, Some(self.copy_mounted(&active)?))
            }
        };
        let device = copy.as_ref().map_or(active.device, Reserved::id);
        let committed_ns = now_ns();
        let committed = Snapshot {
            name: name.clone(),
            kind: Kind::Committed,
            labels,
            created_ns: committed_ns,
            updated_ns: committed_ns,
            device,
            usage: Some(Usage { bytes: bytes.0, inodes: 0 }),
            ..active.clone()
        };
        self.record(space, &active, committed)?;
        if let Some(copy) = copy {
            copy.used();
            self.reclaimer.delete(active.device);
            self.count_change();
        }
        Ok(())
    }

    /// Makes the unmounted device clean, durable and inactive; bytes that it has written. `None`: somebody has it open.
    fn settle(&self, active: &Snapshot) -> Result<Option<ByteCount>> {
        if let Some(path) = self.pool.active_path(active.device)? {
            // Mounted and torn file systems look alike here; being open tells them apart below.
            if !self.filesystems.needs_replay(active.fs, &path)? {
                // Surely not mounted for writing.
                return self.put_away_soon(active.device);
            }
            if !self.pool.deactivate(active.device)? {
                return Ok(None);
            }
        }
        // It was not active, as after a reboot, or its file system was torn away: look, and mend.
        self.replay_if_needed(active, active.device)
    }

    /// Replays the journal of an inactive device; bytes that it has written, if it is inactive again.
    fn replay_if_needed(&self, active: &Snapshot, device: DeviceId) -> Result<Option<ByteCount>> {
        let path = self.pool.activate(device, active.size, Access::ReadWrite)?;
        if self.filesystems.needs_replay(active.fs, &path)? {
            self.filesystems
                .replay(active.fs, &path)
                .map_err(|e| e.doing(format!("replay the journal of {:?}", active.name.as_str())))?;
        }
        self.put_away_soon(device)
    }

    /// Brings what a mounted file system holds in memory to its device.
    fn write_out(&self, active: &Snapshot) -> Result<()> {
        if let Some(path) = self.pool.active_path(active.device)? {
            // False: open but mounted nowhere, so the bytes on the device are all there is.
            self.filesystems.sync_mounted(&path)?;
        }
        Ok(())
    }

    /// A clean snapshot of a device that is in use.
    fn copy_mounted(&self, active: &Snapshot) -> Result<Reserved> {
        let reserved = self.ids.take(&self.store, &self.reclaimer)?;
        self.pool.create_snap(reserved.id(), active.device)?;
        if self.replay_if_needed(active, reserved.id())?.is_none() {
            return Err(Error::new(
                ErrorKind::InUse,
                format!("commit {:?}: a process has opened its new device {}", active.name.as_str(), reserved.id()),
            )
            .advise("try again; `thinsnap doctor` says which process it is"));
        }
        Ok(reserved)
    }

    /// The one transaction: the key goes, the name comes, a replaced device enters limbo.
    fn record(&self, space: &Space, active: &Snapshot, committed: Snapshot) -> Result<()> {
        let (space, key) = (space.clone(), active.name.clone());
        self.store.write(move |txn| {
            // Its labels may have been updated meanwhile, and with them its place in the indexes.
            let active = txn.get_snapshot(&space, &key)?;
            txn.drop_snapshot(&space, &active);
            if committed.device != active.device {
                txn.leave_limbo(committed.device);
                txn.enter_limbo(active.device);
            }
            txn.insert_snapshot(&space, &committed)
        })
    }
}

/// The checks of Commit in containerd's order.
fn committable(rows: &impl Rows, space: &Space, name: &Name, key: &Name, parent: Option<&Name>) -> Result<Snapshot> {
    if rows.find_snapshot(space, name)?.is_some() {
        return Err(Error::new(
            ErrorKind::AlreadyExists,
            format!("snapshot {:?} exists already in {space}", name.as_str()),
        ));
    }
    let active = rows.get_snapshot(space, key)?;
    match active.kind {
        Kind::Active => {}
        Kind::View | Kind::Committed => {
            return Err(Error::new(
                ErrorKind::NotActive,
                format!("snapshot {:?} is not active: it cannot be committed", key.as_str()),
            ));
        }
    }
    match (parent, &active.parent) {
        (None, _) => Ok(active),
        (Some(wanted), Some(has)) if wanted == has => Ok(active),
        (Some(wanted), Some(has)) => Err(Error::new(
            ErrorKind::InvalidArgument,
            format!("snapshot {:?} has parent {:?}, not {:?}", key.as_str(), has.as_str(), wanted.as_str()),
        )),
        (Some(wanted), None) => Err(Error::new(
            ErrorKind::Unsupported,
            format!("snapshot {:?} has no parent and cannot be rebased onto {:?}", key.as_str(), wanted.as_str()),
        )),
    }
}
