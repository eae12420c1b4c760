//! Mounts at a path, for people and for programs that need one; the service's own are detached.

use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags};

use crate::error::{Error, Result};
use crate::snapshot::Mount;

/// Mounts a snapshot at `target`, an existing directory. Errors: `InUse`, `NotFound`, `Denied`.
pub fn mount(mount: &Mount, target: &Path) -> Result<()> {
    let mut flags = MsFlags::empty();
    let mut data = Vec::new();
    for option in &mount.options {
        match option.as_str() {
            "rw" => {}
            "ro" => flags |= MsFlags::MS_RDONLY,
            "noatime" => flags |= MsFlags::MS_NOATIME,
            "relatime" => flags |= MsFlags::MS_RELATIME,
            "nodev" => flags |= MsFlags::MS_NODEV,
            "nosuid" => flags |= MsFlags::MS_NOSUID,
            "noexec" => flags |= MsFlags::MS_NOEXEC,
            other => data.push(other),
        }
    }
    let data = data.join(",");
    nix::mount::mount(Some(&mount.source), target, Some(mount.fs.as_str()), flags, Some(data.as_str()))
        .map_err(|e| Error::io(format!("mount {} on {}", mount.source.display(), target.display()), e.into()))
}

/// Unmounts what is mounted at `target`; symlinks are not followed. Errors: `InUse`,
/// `InvalidArgument` if nothing is mounted there.
pub fn unmount(target: &Path) -> Result<()> {
    nix::mount::umount2(target, MntFlags::UMOUNT_NOFOLLOW).map_err(|e| match e {
        nix::errno::Errno::EINVAL => Error::new(
            crate::error::ErrorKind::InvalidArgument,
            format!("unmount {}: it is no mount point", target.display()),
        ),
        other => Error::io(format!("unmount {}", target.display()), other.into()),
    })
}

/// A mount at a path that ends with this value.
#[derive(Debug)]
pub struct Mounted {
    target: PathBuf,
    mounted: bool,
}

impl Mounted {
    /// Mounts at `target`, an existing directory.
    pub fn at(what: &Mount, target: &Path) -> Result<Self> {
        mount(what, target)?;
        Ok(Self { target: target.to_owned(), mounted: true })
    }

    /// Where.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.target
    }

    /// Unmounts and tells whether that worked; on an error the mount stays and is tried again on drop.
    pub fn unmount(mut self) -> Result<()> {
        unmount(&self.target)?;
        self.mounted = false;
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if !self.mounted {
            return;
        }
        if let Err(error) = unmount(&self.target) {
            // Out of the tree at once; the device is let go when its last user is.
            tracing::warn!("{error}; detaching it");
            if let Err(error) = nix::mount::umount2(&self.target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
                tracing::error!("detach {}: {error}", self.target.display());
            }
        }
    }
}
