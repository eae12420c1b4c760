//! Who may speak to a host: the user that it runs as, and root. The socket's mode says so too; this holds when
//! somebody has changed it.

use std::os::unix::net::UnixStream;

use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::geteuid;

use crate::error::{Error, ErrorKind, Result};

/// Errors with `Invalid` if the process at the other end belongs to another user, or if that cannot be told.
pub(super) fn check_peer(stream: &UnixStream) -> Result<()> {
    let peer = getsockopt(stream, sockopt::PeerCredentials).map_err(|e| Error::io("ask who connects", e.into()))?;
    if peer.uid() == 0 || peer.uid() == geteuid().as_raw() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Invalid,
        format!("process {} of user {} may not speak to the pool host", peer.pid(), peer.uid()),
    ))
}
