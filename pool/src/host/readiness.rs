//! How a host and the process that started it speak while it starts.
//!
//! The starter may give a socket as standard input, through which the descriptors come that a dead host left behind;
//! the host answers with a byte, so that the starter knows that this program understands them.
//! The starter gives a pipe as standard output. One message goes through it; then the pipe is closed, and standard
//! output is the log like standard error.

use std::fs::File;
use std::io::{self, Write, stderr, stdin, stdout};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::unistd::dup2_stdout;

use crate::error::{Error, Result};
use crate::host::descriptors::receive_descriptors;
use crate::host::protocol::{Failure, send};

/// The byte that says that the descriptors have arrived.
pub(super) const ARRIVED: u8 = b'!';
/// Longest wait for the descriptors: they were sent before the process was started.
const INHERITANCE_WAIT: Duration = Duration::from_secs(10);

/// Takes what the starter sends through standard input, if that is a socket.
pub(super) fn receive_inheritance() -> Result<Vec<OwnedFd>> {
    let doing = "take over the descriptors of a dead host";
    let fail = |e: io::Error| Error::io(doing, e);
    let input = File::from(stdin().as_fd().try_clone_to_owned().map_err(fail)?);
    if !input.metadata().map_err(fail)?.file_type().is_socket() {
        return Ok(Vec::new());
    }
    let mut starter = UnixStream::from(OwnedFd::from(input));
    starter.set_read_timeout(Some(INHERITANCE_WAIT)).map_err(fail)?;
    let descriptors = receive_descriptors(&starter).map_err(fail)?;
    // A starter that has died meanwhile does not matter: what it held is here too.
    if let Err(error) = starter.write_all(&[ARRIVED]) {
        tracing::warn!("nobody waits for the descriptors to arrive: {error}");
    }
    Ok(descriptors)
}

/// What goes through the pipe.
pub(super) type Report = std::result::Result<(), Failure>;

/// The way to tell; used up by telling.
pub(super) struct Readiness {
    pipe: Option<File>,
}

impl Readiness {
    /// Takes standard output over if somebody listens there, so that no other output mixes in.
    pub(super) fn new(supervised: bool) -> Result<Self> {
        if !supervised {
            return Ok(Self { pipe: None });
        }
        let pipe = stdout().as_fd().try_clone_to_owned().map_err(|e| Error::io("keep the pipe to the starter", e))?;
        dup2_stdout(stderr()).map_err(|e| Error::io("point standard output at the log", e.into()))?;
        Ok(Self { pipe: Some(File::from(pipe)) })
    }

    /// The host serves.
    pub(super) fn ready(self) {
        self.tell(&Ok(()));
    }

    /// The host ends with this error.
    pub(super) fn failed(self, error: &Error) {
        self.tell(&Err(Failure::from(error)));
    }

    fn tell(self, report: &Report) {
        let Some(mut pipe) = self.pipe else { return };
        if let Err(error) = send(&mut pipe, report) {
            // The starter died. The host is of use to the next one.
            tracing::warn!("nobody listens to whether the pool host is ready: {error}");
        }
    }
}
