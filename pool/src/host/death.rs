//! Notices that a process is dead, or about to be.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::device::is_living;

/// How often a watcher looks at a process that is killed but whose end the kernel does not tell yet, because one of its
/// threads is still inside the kernel.
const LOOK: Duration = Duration::from_millis(200);

/// A process whose end is awaited.
pub(super) struct Watched {
    pid: u32,
    handle: Option<OwnedFd>,
}

/// Why a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Woken {
    /// The process is dead or dying.
    Dead,
    /// The bell rang.
    Bell,
    /// The deadline came.
    Deadline,
}

impl Watched {
    /// Watches a process of this moment.
    pub(super) fn new(pid: u32) -> io::Result<Self> {
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let number = number.ok_or_else(|| io::Error::other(format!("{pid} is no process id")))?;
        match pidfd_open(number, PidfdFlags::empty()) {
            Ok(handle) => Ok(Self { pid, handle: Some(handle) }),
            Err(rustix::io::Errno::SRCH) => Ok(Self { pid, handle: None }),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Waits for its death or until `bell` can be read.
    pub(super) fn wait(&self, bell: &impl AsFd, deadline: Option<Instant>) -> io::Result<Woken> {
        loop {
            let Some(handle) = &self.handle else { return Ok(Woken::Dead) };
            let left = deadline.map_or(LOOK, |at| at.saturating_duration_since(Instant::now()));
            let mut fds =
                [PollFd::new(handle.as_fd(), PollFlags::POLLIN), PollFd::new(bell.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::try_from(LOOK.min(left)).unwrap_or(PollTimeout::MAX)) {
                Ok(0) if !is_living(self.pid, None) => return Ok(Woken::Dead),
                Ok(0) if left.is_zero() => return Ok(Woken::Deadline),
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) if fds[1].any().unwrap_or(true) => return Ok(Woken::Bell),
                Ok(_) => return Ok(Woken::Dead),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}
