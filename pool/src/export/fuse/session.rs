//! The connection to the kernel's FUSE: opening, mounting, taking down. Serving it is another room's work.
//!
//! The two are apart so that a connection may outlive the process that serves it: whoever holds its descriptors can
//! hand them to a successor ([`Session::from_fds`]), which asks the kernel to send again what was not answered.

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::statfs;
use nix::unistd::{getegid, geteuid};

use crate::error::{Error, ErrorKind, Result};

/// What stands as the type in the mount table.
const FS_TYPE: &str = "fuse.thinsnap";
const DEVICE: &str = "/dev/fuse";

nix::ioctl_read!(clone_connection, 229, 0, u32);

/// Descriptors of one FUSE connection, one for each event loop. A request is answered on the descriptor that it was
/// read from.
pub(in crate::export) struct Session {
    fds: Vec<OwnedFd>,
}

impl Session {
    /// Opens a connection with `count` descriptors and mounts it at `dir`. The kernel's first requests wait in it
    /// until somebody serves.
    pub(in crate::export) fn mount(dir: &Path, count: usize) -> Result<Self> {
        let first = open_device()?;
        let options = format!(
            "fd={},rootmode={:o},user_id={},group_id={}",
            first.as_raw_fd(),
            libc::S_IFDIR | 0o700,
            geteuid(),
            getegid()
        );
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_NOATIME;
        mount(Some("thinsnap"), dir, Some(FS_TYPE), flags, Some(options.as_str()))
            .map_err(|e| Error::io(format!("mount the export filesystem at {}", dir.display()), e.into()))?;
        let mut session = Self { fds: vec![first] };
        for _ in 1..count {
            match session.clone_first() {
                Ok(fd) => session.fds.push(fd),
                Err(error) => {
                    detach_mount(dir)?;
                    return Err(error);
                }
            }
        }
        Ok(session)
    }

    /// Takes over a mounted connection from whoever held its descriptors.
    #[expect(dead_code, reason = "the way in for a successor of a killed host")]
    pub(in crate::export) fn from_fds(fds: Vec<OwnedFd>) -> Self {
        Self { fds }
    }

    pub(in crate::export) fn into_fds(self) -> Vec<OwnedFd> {
        self.fds
    }

    fn clone_first(&self) -> Result<OwnedFd> {
        let fd = open_device()?;
        let mut source = u32::try_from(self.fds[0].as_raw_fd()).expect("an open descriptor is not negative");
        // SAFETY: the ioctl reads one u32 through the pointer, which is valid for the call.
        unsafe { clone_connection(fd.as_raw_fd(), &raw mut source) }
            .map_err(|e| Error::io("open the FUSE connection once more", e.into()))?;
        Ok(fd)
    }
}

fn open_device() -> Result<OwnedFd> {
    let opened = OpenOptions::new().read(true).write(true).custom_flags(libc::O_CLOEXEC).open(DEVICE);
    opened.map(OwnedFd::from).map_err(|e| match e.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => Error::with_source(
            ErrorKind::Unsupported,
            format!("open {DEVICE}: this kernel or container has no FUSE (load the module fuse, pass the device in)"),
            e,
        ),
        _ => Error::io(format!("open {DEVICE}"), e),
    })
}

/// What stands at a mount point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::export) enum MountState {
    /// No mount.
    Free,
    /// A mount that nobody serves.
    Dead,
    /// A mount that answers.
    Alive,
}

/// Looks at `dir`, which need not exist.
pub(in crate::export) fn mount_state(dir: &Path) -> Result<MountState> {
    let fail = |e: Errno| Error::io(format!("look at {}", dir.display()), e.into());
    match statfs(dir) {
        Err(Errno::ENOTCONN | Errno::ECONNABORTED) => Ok(MountState::Dead),
        Err(Errno::ENOENT) => Ok(MountState::Free),
        Err(errno) => Err(fail(errno)),
        Ok(_) => {
            // A directory's device differs from its parent's exactly where something is mounted on it.
            let here = File::open(dir).and_then(|d| d.metadata()).map_err(|e| Error::io("look at the export", e))?;
            let above = dir.join("..").metadata().map_err(|e| Error::io("look above the export", e))?;
            Ok(if here.dev() == above.dev() { MountState::Free } else { MountState::Alive })
        }
    }
}

/// Makes the directory, for its owner alone.
pub(in crate::export) fn make_dir(dir: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|e| Error::io(format!("make the export directory {}", dir.display()), e))
}

/// Takes the filesystem out of sight; it ends with its last open file.
pub(in crate::export) fn detach_mount(dir: &Path) -> Result<()> {
    match umount2(dir, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()), // not mounted
        Err(errno) => Err(Error::io(format!("unmount {}", dir.display()), errno.into())),
    }
}
