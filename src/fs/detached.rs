//! A mount that stands in no directory tree: no path, no propagation, gone when its descriptor closes.
//!
//! A temporary mount at a path is copied into every mount namespace that is made meanwhile, and keeps
//! the device busy as long as that namespace lives; it also outlives a killed process. This one does
//! neither, so the service's own short mounts are all of this kind.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::AtFlags;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use crate::error::{Error, Result};
use crate::snapshot::{FsType, Mount};

/// A mounted file system that only this process can reach.
#[derive(Debug)]
pub struct Detached {
    root: OwnedFd,
}

impl Detached {
    /// Mounts `device` with mount(2)'s options. Errors: `InUse`, `NotFound`, `Denied`, `Internal`.
    pub fn open(fs: FsType, device: &Path, options: &[&str]) -> Result<Self> {
        Self::try_open(fs, device, options)
            .map(|root| Self { root })
            .map_err(|e| Error::io(format!("mount {} of {}", fs.as_str(), device.display()), e))
    }

    /// Mounts what a snapshot's verbs returned.
    pub fn of(mount: &Mount) -> Result<Self> {
        let options: Vec<&str> = mount.options.iter().map(String::as_str).collect();
        Self::open(mount.fs, &mount.source, &options)
    }

    fn try_open(fs: FsType, device: &Path, options: &[&str]) -> io::Result<OwnedFd> {
        let context = rustix::mount::fsopen(fs.as_str(), FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_set_string(&context, "source", device)?;
        let mut attributes = MountAttrFlags::empty();
        for option in options {
            match *option {
                "rw" | "relatime" => {}
                "ro" => {
                    attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
                    rustix::mount::fsconfig_set_flag(&context, "ro")?;
                }
                "noatime" => attributes |= MountAttrFlags::MOUNT_ATTR_NOATIME,
                "nodev" => attributes |= MountAttrFlags::MOUNT_ATTR_NODEV,
                "nosuid" => attributes |= MountAttrFlags::MOUNT_ATTR_NOSUID,
                "noexec" => attributes |= MountAttrFlags::MOUNT_ATTR_NOEXEC,
                other => match other.split_once('=') {
                    Some((key, value)) => rustix::mount::fsconfig_set_string(&context, key, value)?,
                    None => rustix::mount::fsconfig_set_flag(&context, other)?,
                },
            }
        }
        rustix::mount::fsconfig_create(&context)?;
        Ok(rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
    }

    /// A path by which this process reaches the root directory.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.root.as_raw_fd()))
    }

    /// Writes everything of the file system to its device.
    pub fn sync(&self) -> io::Result<()> {
        // A descriptor of fsmount is of the O_PATH kind, which syncfs refuses.
        let root = rustix::fs::openat(
            &self.root,
            ".",
            rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )?;
        Ok(rustix::fs::syncfs(root)?)
    }

    pub(crate) fn remove_dir(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.root, name, AtFlags::REMOVEDIR)?)
    }
}

impl AsFd for Detached {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
}
