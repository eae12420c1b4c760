//! Prepare: a new active snapshot.
//!
//! Order, and with it the crash argument: the id stands in limbo before the pool makes the device; it
//! leaves limbo in the transaction that writes the record. A crash in between leaves an id in limbo.

use std::path::PathBuf;

use thinsnap_pool::{Access, ByteCount, DeviceId, Mutation};

use crate::error::{Error, ErrorKind, Result};
use crate::snapshot::{FsType, Kind, Labels, Mount, Name, Snapshot, Space};
use crate::snapshotter::claims::DeviceHold;
use crate::snapshotter::labels::{check_labels, now_ns, wanted_size};
use crate::snapshotter::mounts::mounts_of;
use crate::snapshotter::snapshotter::Snapshotter;
use crate::snapshotter::spares::Parent;
use crate::snapshotter::take::TAKE_LABEL;
use crate::store::{Pending, REF_LABEL, Records, Rows};

/// What a new snapshot or view is made of.
pub(super) struct Origin {
    pub(super) device: DeviceId,
    pub(super) size: ByteCount,
    pub(super) fs: FsType,
    /// Nobody deletes or deactivates it meanwhile.
    _hold: DeviceHold,
}

impl Snapshotter {
    /// New active snapshot of `parent` (committed), or of the base device. Returns its mounts.
    ///
    /// Errors: `AlreadyExists` if the key is taken, or if the labels ask for a snapshot by its ref and a
    /// committed one of the same parent has it; `NotFound`, `NotCommitted` for the parent; `NoSpace`.
    pub fn prepare(&self, space: &Space, key: &Name, parent: Option<&Name>, labels: Labels) -> Result<Vec<Mount>> {
        let labels = check_labels(labels)?;
        let _claim = self.claims.key(space, key);
        self.refuse_taken(space, key)?;
        if let Some(old) = labels.get(TAKE_LABEL).cloned() {
            return self.take(space, key, parent, labels, &old);
        }
        if let Some(reference) = labels.get(REF_LABEL)
            && let Some(name) = self.store.read()?.find_by_ref(space, reference, parent)?
        {
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                format!("prepare {:?}: {:?} has the content that {REF_LABEL} asks for", key.as_str(), name.as_str()),
            ));
        }
        self.admit()?;

        let origin = self.origin(space, parent)?;
        let size = wanted_size(&labels, origin.size, self.profile(space).size);
        let of_parent = parent.filter(|_| size == origin.size).map(|name| Parent {
            space: space.clone(),
            name: name.clone(),
            device: origin.device,
            size,
            fs: origin.fs,
        });
        let (reserved, spare) = match of_parent.as_ref().and_then(|parent| self.spares.take(parent.device)) {
            Some((reserved, path)) => (reserved, Some(path)),
            None => (self.ids.take(&self.store, &self.reclaimer)?, None),
        };
        let id = reserved.id();
        let created_ns = now_ns();
        let snapshot = Snapshot {
            name: key.clone(),
            parent: parent.cloned(),
            kind: Kind::Active,
            labels,
            created_ns,
            updated_ns: created_ns,
            device: id,
            size,
            fs: origin.fs,
            usage: None,
        };
        if Mutation::RecordBeforePool.is_on() {
            self.insert(space, snapshot.clone(), true)?;
        }
        let shown = match spare {
            Some(path) => Some(path),
            None => self.pool.create_active(id, origin.device, size, written_by_mount(origin.fs))?,
        };
        let grows = size > origin.size;
        let path = match shown {
            None if !grows && !Mutation::RecordBeforePool.is_on() => self.activate_recorded(space, &snapshot)?,
            shown => {
                let path = match shown {
                    Some(path) => path,
                    None => self.pool.activate(id, size, Access::ReadWrite)?,
                };
                if grows {
                    self.filesystems.grow(origin.fs, &path).map_err(|e| e.doing(format!("grow {:?}", key.as_str())))?;
                }
                if !Mutation::RecordBeforePool.is_on() {
                    self.insert(space, snapshot.clone(), true)?;
                }
                path
            }
        };
        reserved.used();
        self.count_change();
        self.write_early(&snapshot, &path);
        if let Some(parent) = of_parent {
            self.spares.prepared(parent);
        }
        Ok(mounts_of(&snapshot, path))
    }

    /// Writes the record of a device that is in the pool, and activates it meanwhile. After an error the device is in
    /// limbo.
    fn activate_recorded(&self, space: &Space, snapshot: &Snapshot) -> Result<PathBuf> {
        let id = snapshot.device;
        let recorded = self.begin_insert(space, snapshot.clone(), true)?;
        let path = self.pool.activate(id, snapshot.size, Access::ReadWrite);
        recorded.wait()?;
        let (space, name) = (space.clone(), snapshot.name.clone());
        path.map_err(Error::from).or_else(|error| {
            self.store.write(move |txn| {
                let snapshot = txn.get_snapshot(&space, &name)?;
                txn.drop_snapshot(&space, &snapshot);
                txn.enter_limbo(id);
                Ok(())
            })?;
            Err(error)
        })
    }

    /// Errors with `AlreadyExists`; the transaction that inserts asks again.
    pub(super) fn refuse_taken(&self, space: &Space, key: &Name) -> Result<()> {
        match self.store.read()?.find_snapshot(space, key)? {
            None => Ok(()),
            Some(_) => Err(Error::new(
                ErrorKind::AlreadyExists,
                format!("snapshot {:?} exists already in {space}", key.as_str()),
            )),
        }
    }

    /// The committed parent's device, or the base device of the space's profile.
    pub(super) fn origin(&self, space: &Space, parent: Option<&Name>) -> Result<Origin> {
        let Some(parent) = parent else {
            let profile = self.profile(space);
            let device = self.base(profile.fs, profile.size)?;
            return Ok(Origin { device, size: profile.size, fs: profile.fs, _hold: self.claims.hold(device) });
        };
        let mut found = committed(&self.store.read()?, space, parent)?;
        loop {
            let hold = self.claims.hold(found.device);
            // Between the look and the hold it may have been removed and made anew.
            let again = committed(&self.store.read()?, space, parent)?;
            if again.device == hold.id() {
                return Ok(Origin { device: again.device, size: again.size, fs: again.fs, _hold: hold });
            }
            found = again;
        }
    }

    /// Writes a new record, if its parent is still what it was. A snapshot's own device leaves limbo.
    pub(super) fn insert(&self, space: &Space, snapshot: Snapshot, own_device: bool) -> Result<()> {
        self.begin_insert(space, snapshot, own_device)?.wait()
    }

    fn begin_insert(&self, space: &Space, snapshot: Snapshot, own_device: bool) -> Result<Pending<()>> {
        let space = space.clone();
        self.store.begin(move |txn| {
            if let Some(parent) = &snapshot.parent {
                committed(txn, &space, parent)?;
            }
            if own_device {
                txn.leave_limbo(snapshot.device);
            }
            txn.insert_snapshot(&space, &snapshot)
        })
    }
}

/// How many of a device's first bytes its mount writes, and waits for: ext4 its superblock. XFS writes its log first,
/// which stands elsewhere.
pub(super) fn written_by_mount(fs: FsType) -> ByteCount {
    match fs {
        FsType::Ext4 => ByteCount(4096),
        FsType::Xfs => ByteCount(0),
    }
}

/// Errors: `NotFound`, `NotCommitted`.
pub(super) fn committed(rows: &impl Rows, space: &Space, parent: &Name) -> Result<Snapshot> {
    let snapshot = rows.get_snapshot(space, parent).map_err(|e| e.doing("find the parent"))?;
    match snapshot.kind {
        Kind::Committed => Ok(snapshot),
        Kind::Active | Kind::View => Err(Error::new(
            ErrorKind::NotCommitted,
            format!("snapshot {:?} is not committed: it cannot be a parent", parent.as_str()),
        )),
    }
}
