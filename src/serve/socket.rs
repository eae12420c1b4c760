//! The service's socket: bound with its rights in place, never over a living service, gone at the end.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::sockopt::AcceptConn;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, getsockopt, listen, socket,
};
use nix::unistd::{Gid, Group};
use thinsnap_pool::inherited_descriptors;

use crate::config::{SocketConfig, run_dir_of};
use crate::error::{Error, ErrorKind, Result};

/// The beginning of the names of stored descriptors.
const STORED_PREFIX: &str = "thinsnap-host-";
/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// A listening socket. Dropping it takes the file away, if it is still ours.
pub(super) struct Socket {
    path: PathBuf,
    // Device and inode of the file: another service may have put its own in its place.
    file: (u64, u64),
}

impl Drop for Socket {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path).is_ok_and(|meta| (meta.dev(), meta.ino()) == self.file);
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "the socket could not be removed");
        }
    }
}

/// What the supervisor passed to this process at its start.
pub(super) struct Passed {
    /// The socket to serve on, if the supervisor listens for us.
    pub(super) socket: Option<UnixListener>,
    /// What an earlier process of the service had stored under this name.
    pub(super) stored: Vec<OwnedFd>,
}

/// Sorts what was passed: descriptors named `stored`, at most one socket, and stored ones of another name (of a root
/// that this service does not serve any more), which are closed. Errors: `InvalidArgument` for anything else.
pub(super) fn passed(stored: &str) -> Result<Passed> {
    let mut passed = Passed { socket: None, stored: Vec::new() };
    for (name, fd) in inherited_descriptors()? {
        if name == stored {
            passed.stored.push(fd);
        } else if name.starts_with(STORED_PREFIX) {
            tracing::warn!(name, "the supervisor kept descriptors of another pool; they are let go");
        } else if passed.socket.is_none() && getsockopt(&fd, AcceptConn).is_ok_and(|listens| listens) {
            passed.socket = Some(UnixListener::from(fd));
        } else {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("take over what the supervisor passed: {name:?} is not one listening socket"),
            )
            .advise("the .socket unit must have one ListenStream= with an absolute path"));
        }
    }
    Ok(passed)
}

/// The name under which the descriptors of a root's pool-host are stored.
pub(super) fn stored_name(root: &Path) -> String {
    let run_dir = run_dir_of(root);
    let digest = run_dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    format!("{STORED_PREFIX}{digest}")
}

/// Binds. A file left by a dead service is replaced. Errors: `InUse` if a service answers there, `AlreadyExists`
/// if the file is no socket, `InvalidArgument` for an unknown group.
pub(super) fn listen_at(config: &SocketConfig) -> Result<(Socket, UnixListener)> {
    let path = &config.path;
    let doing = || format!("listen at {}", path.display());
    let dir = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(dir).map_err(|error| Error::io(format!("make the directory {}", dir.display()), error))?;
    let group = config.group.as_deref().map(gid_of).transpose()?;

    // Of two services that start at once and both see a dead file, the second must not remove the socket that the
    // first has just bound. Both hold this lock while they look, remove and bind.
    let dir_file = File::open(dir).map_err(|error| Error::io(doing(), error))?;
    let _lock =
        Flock::lock(dir_file, FlockArg::LockExclusive).map_err(|(_, errno)| Error::io(doing(), errno.into()))?;
    make_room(path)?;

    // Nobody can connect before listen(2), so the rights are in place before the first caller.
    let fd = stream_socket().map_err(|errno| Error::io(doing(), errno.into()))?;
    let address = UnixAddr::new(path).map_err(|errno| Error::io(doing(), errno.into()))?;
    bind(fd.as_raw_fd(), &address).map_err(|errno| Error::io(doing(), errno.into()))?;
    let meta = std::fs::symlink_metadata(path).map_err(|error| Error::io(doing(), error))?;
    let guard = Socket { path: path.clone(), file: (meta.dev(), meta.ino()) };
    if let Some(group) = group {
        nix::unistd::chown(path, None, Some(group))
            .map_err(|errno| Error::io(format!("give {} to group {group}", path.display()), errno.into()))?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(config.mode))
        .map_err(|error| Error::io(format!("set the mode of {}", path.display()), error))?;
    let backlog = Backlog::new(BACKLOG).map_err(|errno| Error::io(doing(), errno.into()))?;
    listen(&fd, backlog).map_err(|errno| Error::io(doing(), errno.into()))?;
    Ok((guard, UnixListener::from(fd)))
}

/// A second name for the socket, in the run directory of the root: the command line finds the service of a root
/// by it, whatever socket the service was given. Dropping it takes the link away.
pub(super) struct Link(PathBuf);

impl Link {
    /// Points `link` to `socket`, over whatever it pointed to.
    pub(super) fn make(link: PathBuf, socket: &Path) -> Result<Self> {
        let doing = || format!("link {} to {}", link.display(), socket.display());
        let fresh = link.with_extension("new");
        match std::fs::remove_file(&fresh) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(Error::io(doing(), error)),
            Ok(()) | Err(_) => {}
        }
        std::os::unix::fs::symlink(socket, &fresh).map_err(|error| Error::io(doing(), error))?;
        std::fs::rename(&fresh, &link).map_err(|error| Error::io(doing(), error))?;
        Ok(Self(link))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::debug!(%error, path = %self.0.display(), "the link to the socket could not be removed");
        }
    }
}

/// Removes a dead socket; leaves anything else alone.
fn make_room(path: &Path) -> Result<()> {
    let doing = || format!("listen at {}", path.display());
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io(doing(), error)),
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                format!("{}: there is a file, and it is no socket", doing()),
            )
            .advise("remove the file, or choose another --socket"));
        }
        Ok(_) => {}
    }
    let fd = stream_socket().map_err(|errno| Error::io(doing(), errno.into()))?;
    let address = UnixAddr::new(path).map_err(|errno| Error::io(doing(), errno.into()))?;
    match connect(fd.as_raw_fd(), &address) {
        Err(Errno::ECONNREFUSED) => std::fs::remove_file(path)
            .map_err(|error| Error::io(format!("remove the dead socket {}", path.display()), error)),
        // EAGAIN: alive, with a full backlog; the probe does not wait for it.
        Ok(()) | Err(Errno::EAGAIN) => {
            Err(Error::new(ErrorKind::InUse, format!("{}: another service answers there", doing()))
                .advise("stop the other service first, or choose another --socket"))
        }
        Err(errno) => Err(Error::io(doing(), errno.into())),
    }
}

fn stream_socket() -> nix::Result<OwnedFd> {
    socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)
}

fn gid_of(group: &str) -> Result<Gid> {
    if let Ok(number) = group.parse::<u32>() {
        return Ok(Gid::from_raw(number));
    }
    let found = Group::from_name(group).map_err(|errno| Error::io(format!("look up group {group}"), errno.into()))?;
    found.map(|group| group.gid).ok_or_else(|| {
        Error::new(ErrorKind::InvalidArgument, format!("field `socket.group`: there is no group {group:?}"))
            .advise("groupadd it, or name another in [socket] group")
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::path::Path;

    use super::{Link, listen_at};
    use crate::config::{SnapshotPeers, SocketConfig};
    use crate::error::ErrorKind;

    fn config(path: &Path) -> SocketConfig {
        SocketConfig { path: path.to_owned(), mode: 0o600, group: None, snapshots: SnapshotPeers::Root }
    }

    #[test]
    fn a_socket_has_its_rights_and_goes_away_with_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/er/s.sock");
        let (guard, _listener) = listen_at(&config(&path)).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        drop(guard);
        assert!(!path.exists());
    }

    #[test]
    fn a_dead_socket_is_replaced_and_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let (_guard, _listener) = listen_at(&config(&path)).unwrap();
        let refused = listen_at(&config(&path)).err().expect("a second listener");
        assert_eq!(refused.kind(), ErrorKind::InUse);
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("precious");
        std::fs::write(&path, "data").unwrap();
        let refused = listen_at(&config(&path)).err().expect("a file in the way");
        assert_eq!(refused.kind(), ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"data");
    }

    #[test]
    fn a_socket_that_another_service_put_in_our_place_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        let (guard, _listener) = listen_at(&config(&path)).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _theirs = UnixListener::bind(&path).unwrap();
        drop(guard);
        assert!(path.exists());
    }

    #[test]
    fn an_unknown_group_is_refused_before_anything_is_bound() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        let wrong = SocketConfig { group: Some("no-such-group-here".into()), ..config(&path) };
        assert_eq!(listen_at(&wrong).err().expect("no group").kind(), ErrorKind::InvalidArgument);
        assert!(!path.exists());
    }

    #[test]
    fn a_link_is_replaced_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("service.sock");
        std::os::unix::fs::symlink("/dead", &link).unwrap();
        let made = Link::make(link.clone(), Path::new("/alive")).unwrap();
        assert_eq!(std::fs::read_link(&link).unwrap(), Path::new("/alive"));
        drop(made);
        assert!(std::fs::symlink_metadata(&link).is_err());
    }
}
