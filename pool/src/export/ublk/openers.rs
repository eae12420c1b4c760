//! Whether somebody has a block device open: the driver does not tell, and takes a device away under its users.
//!
//! Three looks, each for what the others cannot see. An exclusive open succeeds only if no filesystem, swap or other
//! device stands on it, and keeps them away while it lasts; the kernel lets a filesystem's claim go only after the last
//! of its bytes is written. Programs that merely have it open stand in `/proc` (those that this process can see). And
//! a closing program whose bytes are still on their way has requests under way.
//!
//! The device is opened for no longer than that, and nothing is read, written or flushed: a process that waited for a
//! device of its own could not be buried when it is killed.

use std::fs::{File, OpenOptions, read_dir, read_link};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::export::ublk::channel::Channel;

/// A device that nobody else has open, and that nobody can mount meanwhile.
pub(in crate::export) struct Claimed {
    _file: Option<File>,
}

/// Claims the block device at `path`, `name` in `/sys/block`. `None`: somebody has it open.
pub(in crate::export) fn claim(path: &Path, name: &str, channel: &Channel) -> Option<Claimed> {
    if is_open(name) {
        return None;
    }
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_EXCL | libc::O_NONBLOCK).open(path);
    let file = match opened {
        Ok(file) => Some(file),
        // It is gone already.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENXIO | libc::ENODEV)) => None,
        Err(e) => {
            if e.raw_os_error() != Some(libc::EBUSY) {
                tracing::warn!("look whether somebody has {} open: {e}", path.display());
            }
            return None;
        }
    };
    // Once more: who opened it between the two looks is seen by the second.
    (!is_open(name) && channel.is_idle()).then_some(Claimed { _file: file })
}

/// True if a process other than this one has the device open under its name.
fn is_open(name: &str) -> bool {
    let own = std::process::id().to_string();
    let Ok(processes) = read_dir("/proc") else { return false };
    processes.flatten().any(|process| {
        let number = process.file_name();
        let number = number.to_string_lossy();
        number.bytes().all(|byte| byte.is_ascii_digit()) && *number != own && has_open(&process.path(), name)
    })
}

fn has_open(process: &Path, name: &str) -> bool {
    let Ok(files) = read_dir(process.join("fd")) else { return false };
    files.flatten().any(|file| is_named(&read_link(file.path()), name))
}

fn is_named(link: &io::Result<std::path::PathBuf>, name: &str) -> bool {
    let Some(file) = link.as_ref().ok().and_then(|link| link.file_name()).and_then(|file| file.to_str()) else {
        return false;
    };
    file.strip_suffix(" (deleted)").unwrap_or(file) == name
}

#[cfg(test)]
mod tests {
    use super::is_named;

    #[test]
    fn a_descriptor_is_told_by_the_whole_name_of_its_device() {
        for (link, wanted) in [("/dev/ublkb1", true), ("/run/x/ublkb1 (deleted)", true), ("/dev/ublkb10", false)] {
            assert_eq!(is_named(&Ok(link.into()), "ublkb1"), wanted, "{link}");
        }
    }
}
