//! Mounts: what a client mounts to see a snapshot; activates the device if need be.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use thinsnap_pool::{Access, ByteCount, DeviceId};

use crate::error::{Error, ErrorKind, Result};
use crate::snapshot::{FsType, Kind, Mount, Name, Snapshot, Space};
use crate::snapshotter::snapshotter::Snapshotter;
use crate::store::Records;

impl Snapshotter {
    /// Mounts of an active snapshot or view; the same at every call. After a reboot this is what brings
    /// the device back. Errors: `NotFound`, `NotActive` for a committed one.
    pub fn mounts(&self, space: &Space, key: &Name) -> Result<Vec<Mount>> {
        // Commit and Remove of the key wait: neither may deactivate what this has just activated.
        let _claim = self.claims.key(space, key);
        let snapshot = self.store.read()?.get_snapshot(space, key)?;
        let access = match snapshot.kind {
            Kind::Active => Access::ReadWrite,
            Kind::View => Access::ReadOnly,
            Kind::Committed => {
                return Err(Error::new(
                    ErrorKind::NotActive,
                    format!("snapshot {:?} is committed: it has no mounts", key.as_str()),
                )
                .advise("make a view or an active snapshot of it"));
            }
        };
        // A view's device is shared: the removal of another view must not take it away here.
        let _hold = self.claims.hold(snapshot.device);
        let path = self.pool.activate(snapshot.device, snapshot.size, access)?;
        Ok(mounts_of(&snapshot, path))
    }
}

/// How long a passing opener is waited for.
const OPENER_PATIENCE: Duration = Duration::from_millis(500);
/// How often to look; the pool tells nobody when the last opener goes.
const OPENER_INTERVAL: Duration = Duration::from_millis(2);

impl Snapshotter {
    /// Deactivates a device that is mounted nowhere; bytes that it has written. A passing opener is waited for: udev
    /// looks into every block device that appears, and again after every unmount. `None`: somebody stays.
    pub(super) fn put_away_soon(&self, id: DeviceId) -> Result<Option<ByteCount>> {
        let deadline = Instant::now() + OPENER_PATIENCE;
        loop {
            let written = self.pool.put_away(id)?;
            if written.is_some() || Instant::now() >= deadline {
                return Ok(written);
            }
            std::thread::park_timeout(OPENER_INTERVAL);
        }
    }
}

/// One mount of one block device, with the options that suit a thin device:
/// - `noatime`: reading a file must not break the sharing of its inode's block;
/// - `discard`: what the file system frees goes back to the pool;
/// - `nouuid`: every XFS snapshot has the UUID of its base;
/// - `norecovery`: a committed device needs none, and a read-only XFS would refuse to look.
pub(super) fn mounts_of(snapshot: &Snapshot, path: PathBuf) -> Vec<Mount> {
    let writable = snapshot.kind == Kind::Active;
    let options: &[&str] = match (snapshot.fs, writable) {
        (FsType::Ext4, true) => &["rw", "noatime", "discard"],
        (FsType::Ext4, false) => &["ro", "noatime"],
        (FsType::Xfs, true) => &["rw", "noatime", "discard", "nouuid"],
        (FsType::Xfs, false) => &["ro", "noatime", "nouuid", "norecovery"],
    };
    let options = options.iter().map(|&option| option.to_owned()).collect();
    vec![Mount { fs: snapshot.fs, source: path, options }]
}
