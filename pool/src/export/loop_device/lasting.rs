//! A loop device on a file, made to outlive the process that binds it: a pool that the kernel serves stands on two.
//!
//! The loop driver keeps the very open file that it was given. If that file carries a lock (`flock`), the lock lasts as
//! long as the binding, whatever becomes of this process: nobody else opens the file for a pool meanwhile.

use std::fs::{File, read_dir};
use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::export::loop_device::attach::{AttachOptions, LoopDevice};
use crate::export::loop_device::sysfs::devices_below;
use crate::thin_pool::Access;

/// A loop device bound to a file.
#[derive(Debug, Clone)]
pub(crate) struct LastingLoop(LoopDevice);

impl LastingLoop {
    /// Binds a free loop device to `file`, for writing, with direct I/O. `path` is the file's path without symbolic
    /// links, `block_size` what direct I/O on it needs.
    pub(crate) fn bind(file: &File, path: &Path, block_size: u32) -> Result<Self> {
        LoopDevice::attach(&AttachOptions { file, path, access: Access::ReadWrite, block_size }).map(Self)
    }

    /// The loop device that is bound to the file at `path`, an absolute path without symbolic links.
    pub(crate) fn find(path: &Path) -> Option<Self> {
        let bound = devices_below(path.parent()?);
        let (number, file) = bound.into_iter().find(|(_, file)| file == path)?;
        Some(Self(LoopDevice::known(number, file)))
    }

    /// `/dev/loopN`.
    pub(crate) fn path(&self) -> PathBuf {
        self.0.path()
    }

    /// True if no other block device stands on it.
    pub(crate) fn is_idle(&self) -> bool {
        let holders = format!("/sys/block/loop{}/holders", self.0.number());
        read_dir(holders).is_ok_and(|mut holders| holders.next().is_none())
    }

    /// True while it is bound to the file.
    pub(crate) fn is_bound(&self) -> bool {
        self.0.is_bound()
    }

    /// Takes over the file's size.
    pub(crate) fn resize(&self) -> Result<()> {
        self.0.resize()
    }

    /// Lets the file go: at once if nobody has the device open, else with its last opener.
    pub(crate) fn detach(&self) -> Result<()> {
        self.0.detach()
    }
}
