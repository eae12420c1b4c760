//! Descriptors that a supervisor passed to this process when it started it.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use crate::error::{Error, ErrorKind, Result};

/// The first one, by convention.
const FIRST: RawFd = 3;
/// More than anybody passes.
const COUNT_MAX: RawFd = 1024;

static TAKEN: AtomicBool = AtomicBool::new(false);

/// The descriptors that `LISTEN_FDS` announces, with their names from `LISTEN_FDNAMES` (empty without one); none if
/// `LISTEN_PID` says that they are for another process. They are not inherited by children any more. Must be called
/// before the process opens anything by number; a second call gives nothing. Errors: `Invalid` if what is announced
/// is not there.
pub fn inherited_descriptors() -> Result<Vec<(String, OwnedFd)>> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<RawFd>().ok());
    let me = RawFd::try_from(std::process::id()).ok();
    if std::env::var_os("LISTEN_PID").is_some_and(|pid| !pid.is_empty()) && number("LISTEN_PID") != me {
        return Ok(Vec::new());
    }
    let count = number("LISTEN_FDS").unwrap_or(0).clamp(0, COUNT_MAX);
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Ok(Vec::new());
    }
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':').map(str::to_owned);
    let mut taken = Vec::new();
    for raw in FIRST..FIRST + count {
        if std::fs::symlink_metadata(format!("/proc/self/fd/{raw}")).is_err() {
            let text =
                format!("take the descriptors passed at the start: LISTEN_FDS is {count}, but {raw} is not open");
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        // SAFETY: the descriptor is open (just seen), the supervisor gave it to this process, and this is the one time
        // in the process's life that it is turned into an owned one.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))
            .map_err(|e| Error::io("keep a passed descriptor from children", e.into()))?;
        taken.push((names.next().unwrap_or_default(), fd));
    }
    Ok(taken)
}
