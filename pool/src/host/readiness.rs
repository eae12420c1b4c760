//! How a host tells the process that started it whether its start went well.
//!
//! The starter gives a pipe as standard output. One message goes through it; then the pipe is closed, and standard
//! output is the log like standard error.

use std::fs::File;
use std::io::{stderr, stdout};
use std::os::fd::AsFd;

use nix::unistd::dup2_stdout;

use crate::error::{Error, Result};
use crate::host::protocol::{Failure, send};

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
