//! The connection to the kernel's FUSE: opening, mounting, taking down. Serving it is another room's work.
//!
//! The two are apart so that a connection may outlive the process that serves it: whoever holds its descriptors can
//! hand them to a successor ([`Session::from_fds`]), which asks the kernel to send again what was not answered.

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::statfs::statfs;
use nix::unistd::{getegid, geteuid};

use crate::error::{Error, ErrorKind, Result};
use crate::export::fuse::wire::resend_message;

/// What stands as the type in the mount table.
const FS_TYPE: &str = "fuse.thinsnap";
const DEVICE: &str = "/dev/fuse";
/// How long a mount may take to answer before it counts as one that nobody serves.
const ANSWER_WAIT: Duration = Duration::from_secs(5);

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
    pub(in crate::export) fn from_fds(fds: Vec<OwnedFd>) -> Self {
        Self { fds }
    }

    pub(in crate::export) fn into_fds(self) -> Vec<OwnedFd> {
        self.fds
    }

    /// Further descriptors of the same open files.
    pub(in crate::export) fn duplicate(&self) -> Result<Vec<OwnedFd>> {
        self.fds.iter().map(duplicate).collect()
    }

    /// Has the kernel send again, over any of the descriptors, what was read from the connection and never answered.
    pub(in crate::export) fn resend(&self) -> Result<()> {
        self.fds.first().map_or(Ok(()), resend)
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

/// One more descriptor of the same open file.
pub(super) fn duplicate(fd: &OwnedFd) -> Result<OwnedFd> {
    fd.try_clone().map_err(|e| Error::io("duplicate a descriptor of the FUSE connection", e))
}

/// Has the kernel send again, over any descriptor, what was read from the connection and never answered.
pub(in crate::export) fn resend(fd: &OwnedFd) -> Result<()> {
    match nix::unistd::write(fd, &resend_message()) {
        Ok(_) => Ok(()),
        Err(errno) => Err(Error::io("ask the kernel for the requests that were not answered", errno.into())),
    }
}

/// Says whether reads of the descriptor wait for a request. The setting belongs to the open file, which outlives
/// whoever set it.
pub(super) fn set_waiting(fd: &OwnedFd, waiting: bool) -> std::io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    let wanted = if waiting { flags - OFlag::O_NONBLOCK } else { flags | OFlag::O_NONBLOCK };
    if wanted != flags {
        fcntl(fd, FcntlArg::F_SETFL(wanted))?;
    }
    Ok(())
}

/// True while a descriptor's connection is mounted and was not given up.
pub(crate) fn is_connected(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    let polled = poll(&mut fds, PollTimeout::ZERO);
    let broken = PollFlags::POLLERR | PollFlags::POLLNVAL | PollFlags::POLLHUP;
    polled.is_ok() && !fds[0].revents().unwrap_or(broken).intersects(broken)
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

/// True if a filesystem of ours is the topmost mount at `dir`; asks nobody who serves it.
pub(in crate::export) fn is_mounted(dir: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let here =
        table.lines().rfind(|line| line.split(' ').nth(4).is_some_and(|point| Path::new(&unescape(point)) == dir));
    here.and_then(|line| line.split(" - ").nth(1)).is_some_and(|rest| rest.split(' ').next() == Some(FS_TYPE))
}

/// A path as the mount table writes it: space, tab, newline and backslash in octal.
fn unescape(point: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(point.to_owned(), |text, (code, meaning)| text.replace(code, meaning))
}

/// Looks at `dir`, which need not exist. If somebody holds the descriptors of a connection that nobody serves, this
/// would wait for ever; such a connection is given up.
pub(in crate::export) fn mount_state(dir: &Path) -> Result<MountState> {
    let (looked, look) = mpsc::channel();
    let path = dir.to_path_buf();
    let looker = std::thread::Builder::new()
        .name("pool-look".into())
        .spawn(move || {
            if looked.send(look_at(&path)).is_err() {
                tracing::debug!("nobody waited for a look at the export");
            }
        })
        .map_err(|e| Error::io("look at the export", e))?;
    let state = match look.recv_timeout(ANSWER_WAIT) {
        Ok(state) => state,
        Err(_) => {
            tracing::warn!("{} is a mount that nobody serves but somebody holds: giving it up", dir.display());
            abort_mount(dir)?;
            Ok(MountState::Dead)
        }
    };
    if looker.join().is_err() {
        tracing::error!("the look at the export panicked");
    }
    state
}

/// Ends a filesystem's connection: all that waits for an answer fails, and so does all that comes.
pub(in crate::export) fn abort_mount(dir: &Path) -> Result<()> {
    match umount2(dir, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_FORCE) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()), // not mounted
        Err(Errno::EBUSY) => Ok(()),                           // given up, and loop devices have files of it open
        Err(errno) => Err(Error::io(format!("give up the mount at {}", dir.display()), errno.into())),
    }
}

fn look_at(dir: &Path) -> Result<MountState> {
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
