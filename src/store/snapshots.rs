//! Snapshot records and the indexes beside them: children, refs, owners of devices.
//!
//! Every index is written in the same transaction as the record it serves, here and nowhere else.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use thinsnap_pool::{ByteCount, DeviceId};

use crate::error::{Error, ErrorKind, Result};
use crate::snapshot::{FsType, Kind, Name, Snapshot, Space};
use crate::store::codec;
use crate::store::rows::Rows;
use crate::store::schema::{
    BASES, CHILDREN, META, META_IDENTITY, META_TRANSACTION, OWNERS, Owner, REFS, SNAPSHOTS, base_key, device_of, key,
    owner_key, owner_prefix, prefix, snapshot_key,
};
use crate::store::txn::Txn;

/// The label by which a client asks for a snapshot that exists already (source: containerd).
pub const REF_LABEL: &str = "containerd.io/snapshot.ref";

/// What can be asked about snapshots; no answer costs more than its own length and a look-up.
pub trait Records: Rows {
    /// The record of `name`, if there is one.
    fn find_snapshot(&self, space: &Space, name: &Name) -> Result<Option<Snapshot>> {
        self.row(SNAPSHOTS, &snapshot_key(space, name))?.map(|bytes| codec::decode(&bytes)).transpose()
    }

    /// The record of `name`. Errors: `NotFound`.
    fn get_snapshot(&self, space: &Space, name: &Name) -> Result<Snapshot> {
        self.find_snapshot(space, name)?.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("snapshot {:?} does not exist in {space}", name.as_str()))
        })
    }

    /// The records of a space, ascending by name.
    fn snapshots(&self, space: &Space, each: &mut dyn FnMut(Snapshot)) -> Result<()> {
        self.walk_prefix(SNAPSHOTS, &prefix(&[space.as_str()]), &mut |_, value| {
            each(codec::decode(value)?);
            Ok(ControlFlow::Continue(()))
        })
    }

    /// True if a snapshot or view has `name` as its parent.
    fn has_children(&self, space: &Space, name: &Name) -> Result<bool> {
        self.any_with_prefix(CHILDREN, &prefix(&[space.as_str(), name.as_str()]))
    }

    /// The names of the snapshots and views that have `name` as their parent.
    fn children(&self, space: &Space, name: &Name) -> Result<Vec<Name>> {
        let below = prefix(&[space.as_str(), name.as_str()]);
        let mut names = Vec::new();
        self.walk_prefix(CHILDREN, &below, &mut |key, _| {
            names.push(Name::new(String::from_utf8_lossy(&key[below.len()..]))?);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(names)
    }

    /// A committed snapshot of `parent` that carries `reference` as its ref label.
    fn find_by_ref(&self, space: &Space, reference: &str, parent: Option<&Name>) -> Result<Option<Name>> {
        if reference.contains('\0') {
            return Ok(None);
        }
        let below = prefix(&[space.as_str(), reference, parent.map_or("", Name::as_str)]);
        let mut found = None;
        self.walk_prefix(REFS, &below, &mut |key, _| {
            found = Some(Name::new(String::from_utf8_lossy(&key[below.len()..]))?);
            Ok(ControlFlow::Break(()))
        })?;
        Ok(found)
    }

    /// The spaces that hold a snapshot: one look-up each.
    fn spaces_in_use(&self) -> Result<Vec<Space>> {
        let mut spaces: Vec<Space> = Vec::new();
        let mut from = Vec::new();
        loop {
            let mut next = None;
            self.walk(SNAPSHOTS, &from, &mut |key, _| {
                let end = key.iter().position(|&b| b == 0).unwrap_or(key.len());
                next = Some(Space::new(String::from_utf8_lossy(&key[..end]))?);
                Ok(ControlFlow::Break(()))
            })?;
            let Some(space) = next else { return Ok(spaces) };
            // One above the NUL that ends this space's part of the key.
            from = space.as_str().as_bytes().to_vec();
            from.push(1);
            spaces.push(space);
        }
    }

    /// True if a view shows the device.
    fn is_viewed(&self, device: DeviceId) -> Result<bool> {
        self.any_with_prefix(OWNERS, &owner_prefix(device, Owner::View))
    }

    /// Every device that a record needs.
    fn owned_devices(&self) -> Result<BTreeSet<DeviceId>> {
        let mut devices = BTreeSet::new();
        self.walk(OWNERS, &[], &mut |key, _| {
            devices.insert(device_of(key)?);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(devices)
    }

    /// Every device that an active snapshot or a view shows, or may be asked to show.
    fn shown_devices(&self) -> Result<BTreeSet<DeviceId>> {
        let mut devices = BTreeSet::new();
        self.walk(SNAPSHOTS, &[], &mut |_, value| {
            let snapshot: Snapshot = codec::decode(value)?;
            match snapshot.kind {
                Kind::Active | Kind::View => _ = devices.insert(snapshot.device),
                Kind::Committed => {}
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(devices)
    }

    /// The base device of a file system and size, if it is ready.
    fn find_base(&self, fs: FsType, size: ByteCount) -> Result<Option<DeviceId>> {
        self.row(BASES, &base_key(fs, size))?.map(|bytes| codec::decode(&bytes)).transpose()
    }

    /// The identity of the pool that the records speak of; `None` in a store that was never used.
    fn identity(&self) -> Result<Option<[u8; 16]>> {
        self.row(META, META_IDENTITY)?.map(|bytes| codec::decode(&bytes)).transpose()
    }

    /// The pool's transaction id when it was last copied.
    fn transaction_id(&self) -> Result<Option<u64>> {
        self.row(META, META_TRANSACTION)?.map(|bytes| codec::decode(&bytes)).transpose()
    }
}

impl<R: Rows> Records for R {}

/// What owns a view's or snapshot's device.
fn owner_of(kind: Kind) -> Owner {
    match kind {
        Kind::View => Owner::View,
        Kind::Active | Kind::Committed => Owner::Snapshot,
    }
}

/// The key in `refs`, if the snapshot belongs there.
fn ref_key(space: &Space, snapshot: &Snapshot) -> Option<Vec<u8>> {
    let reference = snapshot.labels.get(REF_LABEL)?;
    let wanted = snapshot.kind == Kind::Committed && !reference.contains('\0');
    let parent = snapshot.parent.as_ref().map_or("", Name::as_str);
    wanted.then(|| key(&[space.as_str(), reference, parent, snapshot.name.as_str()]))
}

impl Txn<'_> {
    /// Writes a new record and its indexes. Errors: `AlreadyExists`.
    pub(crate) fn insert_snapshot(&mut self, space: &Space, snapshot: &Snapshot) -> Result<()> {
        let row = snapshot_key(space, &snapshot.name);
        if self.row(SNAPSHOTS, &row)?.is_some() {
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                format!("snapshot {:?} exists already in {space}", snapshot.name.as_str()),
            ));
        }
        if let Some(parent) = &snapshot.parent {
            self.put(CHILDREN, key(&[space.as_str(), parent.as_str(), snapshot.name.as_str()]), []);
        }
        if let Some(reference) = ref_key(space, snapshot) {
            self.put(REFS, reference, []);
        }
        self.put(OWNERS, owner_key(snapshot.device, owner_of(snapshot.kind), &row), []);
        self.put(SNAPSHOTS, row, codec::encode(snapshot)?);
        Ok(())
    }

    /// Drops a record, as it was read in this transaction, and its indexes.
    pub(crate) fn drop_snapshot(&mut self, space: &Space, snapshot: &Snapshot) {
        let row = snapshot_key(space, &snapshot.name);
        if let Some(parent) = &snapshot.parent {
            self.delete(CHILDREN, key(&[space.as_str(), parent.as_str(), snapshot.name.as_str()]));
        }
        if let Some(reference) = ref_key(space, snapshot) {
            self.delete(REFS, reference);
        }
        self.delete(OWNERS, owner_key(snapshot.device, owner_of(snapshot.kind), &row));
        self.delete(SNAPSHOTS, row);
    }

    /// Names the base device of a file system and size; it has left limbo.
    pub(crate) fn set_base(&mut self, fs: FsType, size: ByteCount, device: DeviceId) -> Result<()> {
        self.put(BASES, base_key(fs, size), codec::encode(&device)?);
        self.put(OWNERS, owner_key(device, Owner::Base, &base_key(fs, size)), []);
        Ok(())
    }

    pub(crate) fn set_identity(&mut self, identity: [u8; 16]) -> Result<()> {
        self.put(META, META_IDENTITY, codec::encode(&identity)?);
        Ok(())
    }

    pub(crate) fn set_transaction_id(&mut self, id: u64) -> Result<()> {
        self.put(META, META_TRANSACTION, codec::encode(&id)?);
        Ok(())
    }
}
