//! What the kernel tells by itself: that something of device-mapper has changed, whichever device it was.

use std::os::fd::AsFd;
use std::time::Duration;

use devicemapper::DM;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;

use crate::error::{Error, ErrorKind, Result};

/// An open file of device-mapper's of its own: events are counted for each.
pub(super) struct Events {
    dm: DM,
}

impl Events {
    pub(super) fn open() -> Result<Self> {
        let dm = DM::new();
        dm.map(|dm| Self { dm }).map_err(|e| Error::with_source(ErrorKind::Io, "listen to device-mapper", e))
    }

    /// From here on an event ends the next [`wait`](Self::wait): so arm, look, and wait then.
    pub(super) fn arm(&self) -> Result<()> {
        let armed = self.dm.arm_poll();
        armed.map(drop).map_err(|e| Error::with_source(ErrorKind::Io, "listen to device-mapper", e))
    }

    /// Waits for an event, for `bell`, or for the time to be over.
    pub(super) fn wait(&self, bell: &EventFd, timeout: Duration) -> Result<()> {
        // Rounded up, so that the last millisecond is waited for too.
        let timeout = i32::try_from(timeout.as_millis() + 1).unwrap_or(i32::MAX);
        let mut files =
            [PollFd::new(self.dm.file().as_fd(), PollFlags::POLLIN), PollFd::new(bell.as_fd(), PollFlags::POLLIN)];
        match poll(&mut files, PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX)) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(Error::io("wait for device-mapper", errno.into())),
        }
    }
}
