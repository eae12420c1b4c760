//! Whose fault a failed system call is: the archive's, which asked for the impossible, or the machine's.

use nix::errno::Errno;

use crate::error::Error;
use crate::image::tar::{bad_entry, shown};

/// The error of a call that failed while the entry of this path was laid down. `doing` is a phrase: `create the file`.
pub(super) fn failure(entry: &[u8], doing: &str, errno: Errno) -> Error {
    match errno {
        Errno::ENAMETOOLONG
        | Errno::ELOOP
        | Errno::ENOTDIR
        | Errno::EISDIR
        | Errno::EFBIG
        | Errno::EINVAL
        | Errno::ENOENT
        | Errno::E2BIG
        | Errno::ERANGE
        | Errno::EMLINK
        | Errno::EXDEV => bad_entry(entry, format!("cannot {doing}: {}", errno.desc())),
        _ => Error::io(format!("{doing} for archive entry {}", shown(entry)), errno.into()),
    }
}

/// The same for an error of the standard library.
pub(super) fn io_failure(entry: &[u8], doing: &str, error: std::io::Error) -> Error {
    match error.raw_os_error() {
        Some(errno) => failure(entry, doing, Errno::from_raw(errno)),
        None => Error::io(format!("{doing} for archive entry {}", shown(entry)), error),
    }
}
