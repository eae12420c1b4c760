//! Stat, List, Update, Usage: from the store's read side, which waits for nobody.

use std::collections::BTreeSet;

use crate::error::{Error, ErrorKind, Result};
use crate::snapshot::{Kind, Name, Snapshot, Space, Usage};
use crate::snapshotter::filter::Filter;
use crate::snapshotter::labels::{LabelChange, check_labels, now_ns};
use crate::snapshotter::snapshotter::Snapshotter;
use crate::store::Records;

impl Snapshotter {
    /// One record. Errors: `NotFound`.
    pub fn stat(&self, space: &Space, key: &Name) -> Result<Snapshot> {
        self.store.read()?.get_snapshot(space, key)
    }

    /// The records that match one of the filters (all, without filters), ascending by name. Never waits
    /// for other verbs.
    pub fn list(&self, space: &Space, filters: &[Filter]) -> Result<Vec<Snapshot>> {
        let reader = self.store.read()?;
        let matches = |snapshot: &Snapshot| filters.is_empty() || filters.iter().any(|f| f.matches(snapshot));
        let names: Option<BTreeSet<&str>> = filters.iter().map(Filter::exact_name).collect();
        let mut found = Vec::new();
        match names {
            Some(names) if !filters.is_empty() => {
                for name in names {
                    // A text that cannot be a name is the name of nothing.
                    let Ok(name) = Name::new(name) else { continue };
                    found.extend(reader.find_snapshot(space, &name)?.filter(&matches));
                }
            }
            _ => reader.snapshots(space, &mut |snapshot| {
                if matches(&snapshot) {
                    found.push(snapshot);
                }
            })?,
        }
        Ok(found)
    }

    /// Changes labels; returns the new record. Errors: `NotFound`, `InvalidArgument`.
    pub fn update(&self, space: &Space, key: &Name, change: LabelChange) -> Result<Snapshot> {
        let (space, key) = (space.clone(), key.clone());
        self.store.write(move |txn| {
            let old = txn.get_snapshot(&space, &key)?;
            let mut new = old.clone();
            new.labels = check_labels(change.apply(old.labels.clone()))?;
            new.updated_ns = now_ns();
            txn.drop_snapshot(&space, &old);
            txn.insert_snapshot(&space, &new)?;
            Ok(new)
        })
    }

    /// Resources of one snapshot without its parents: frozen for a committed one, live for an active one,
    /// nothing for a view. Errors: `NotFound`.
    pub fn usage(&self, space: &Space, key: &Name) -> Result<Usage> {
        let snapshot = self.stat(space, key)?;
        match snapshot.kind {
            Kind::View => Ok(Usage::default()),
            Kind::Committed => Ok(snapshot.usage.unwrap_or_default()),
            Kind::Active => match self.pool.written(snapshot.device) {
                Ok(bytes) => Ok(Usage { bytes: bytes.0, inodes: 0 }),
                Err(error) if error.kind() == thinsnap_pool::ErrorKind::NotFound => {
                    Err(Error::new(ErrorKind::NotFound, format!("snapshot {:?} was removed meanwhile", key.as_str())))
                }
                Err(error) => Err(error.into()),
            },
        }
    }

    /// All spaces that hold a snapshot or have a profile, ascending.
    pub fn spaces(&self) -> Result<Vec<Space>> {
        let mut spaces: BTreeSet<Space> = self.store.read()?.spaces_in_use()?.into_iter().collect();
        for name in self.config.profiles.keys() {
            spaces.insert(Space::new(name.as_str())?);
        }
        Ok(spaces.into_iter().collect())
    }
}
