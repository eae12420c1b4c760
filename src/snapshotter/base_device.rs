//! Base devices: one for each file system and size, formatted once, the origin of everything.

use thinsnap_pool::{Access, ByteCount, DeviceId};

use crate::error::{Error, ErrorKind, Result};
use crate::fs::size_min;
use crate::snapshot::FsType;
use crate::snapshotter::snapshotter::Snapshotter;
use crate::store::Records;

impl Snapshotter {
    /// The base device of a file system and size, made on first need. A crash half-way leaves an id in
    /// limbo and no record: the next call makes another. Errors: `InvalidArgument` for a size that the
    /// file system cannot have, `Unsupported` if mkfs is missing.
    pub(super) fn base(&self, fs: FsType, size: ByteCount) -> Result<DeviceId> {
        if let Some(id) = self.store.read()?.find_base(fs, size)? {
            return Ok(id);
        }
        // One maker at a time; the others wait for its device.
        let _making = self.bases.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(id) = self.store.read()?.find_base(fs, size)? {
            return Ok(id);
        }
        let doing = format!("make the {} base device of {size}", fs.as_str());
        if size < size_min(fs) || !size.0.is_multiple_of(4096) {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("{doing}: the size must be a multiple of 4 KiB and at least {}", size_min(fs)),
            ));
        }
        // Also for a view, which takes no room otherwise.
        self.admit()?;
        let reserved = self.ids.take(&self.store, &self.reclaimer)?;
        let id = reserved.id();
        self.pool.create_thin(id)?;
        let path = self.pool.activate(id, size, Access::ReadWrite)?;
        self.filesystems.make(fs, &path, size).map_err(|e| e.doing(&doing))?;
        if self.put_away_soon(id)?.is_none() {
            return Err(Error::new(ErrorKind::InUse, format!("{doing}: a process keeps device {id} open"))
                .advise("try again; `thinsnap doctor` says which process it is"));
        }
        self.store.write(move |txn| {
            txn.leave_limbo(id);
            txn.set_base(fs, size, id)
        })?;
        reserved.used();
        tracing::info!("{doing}: it is device {id}");
        Ok(id)
    }
}
