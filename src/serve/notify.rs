//! Speaks to the supervisor (sd_notify): one datagram to the socket in NOTIFY_SOCKET.
//!
//! The supervisor can also keep descriptors: it passes them to the next process of the service, which is how a
//! pool-host's devices outlive the death of the host and of the service together.

use std::ffi::OsString;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use thinsnap_pool::DescriptorStore;

/// Sends `state`, for instance `READY=1`, if a supervisor listens. That it does not hear us is no reason to
/// stop serving: it is logged.
pub(super) fn notify(state: &str) {
    notify_with(state, &[]);
}

fn notify_with(state: &str, descriptors: &[OwnedFd]) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty()) else { return };
    if let Err(error) = send(&path, state, descriptors) {
        tracing::warn!(%error, state, "the supervisor could not be told");
    }
}

fn send(path: &OsString, state: &str, descriptors: &[OwnedFd]) -> std::io::Result<()> {
    let address = match path.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(path)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = vec![MaybeUninit::uninit(); SendAncillaryMessage::ScmRights(&borrowed).size()];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(std::io::Error::other("no room for descriptors in a message"));
    }
    sendmsg(&socket, &[IoSlice::new(state.as_bytes())], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The supervisor's store of descriptors, which drops by itself those whose connection has ended.
pub(super) struct SupervisorStore {
    name: String,
}

impl SupervisorStore {
    /// Descriptors are stored under `name`, by which the next process of the service knows them.
    pub(super) fn new(name: String) -> Self {
        Self { name }
    }
}

impl DescriptorStore for SupervisorStore {
    fn keep(&self, descriptors: &[OwnedFd]) {
        if !descriptors.is_empty() {
            notify_with(&format!("FDSTORE=1\nFDNAME={}", self.name), descriptors);
        }
    }

    fn forget(&self) {
        notify(&format!("FDSTOREREMOVE=1\nFDNAME={}", self.name));
    }
}
