//! Owner, permissions, extended attributes and times of what an entry made.
//!
//! The order matters: chown(2) takes setuid, setgid and `security.capability` away, so the owner comes first; an access
//! list changes the permissions, so they come after the attributes; writing changes the time, so it comes last.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FchmodatFlags, Mode, UtimensatFlags, fchmod, fchmodat, futimens, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown, fchownat};
use xattr::FileExt;

use crate::error::Result;
use crate::image::apply::failure::{failure, io_failure};
use crate::image::tar::Entry;

/// Bytes of an attribute that every file system has room for: half of ext4's block.
const FITS_EVERYWHERE: usize = 2048;

/// Extended attributes that the file system does not know, and that were passed over for that.
pub(super) type PassedOver = u64;

/// Sets all that an entry tells on an open file or directory, but a directory's time: laying down its children changes it.
pub(super) fn set_on_open(file: &File, entry: &Entry, merged: bool) -> Result<PassedOver> {
    fchown(file, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
        .map_err(|errno| failure(&entry.path, "set the owner", errno))?;
    if merged {
        drop_others(file, entry)?;
    }
    let mut passed_over = 0;
    for (name, value) in &entry.xattrs {
        passed_over += allow_unknown(entry, name, value.len(), file.set_xattr(OsStr::from_bytes(name), value))?;
    }
    fchmod(file, mode(entry)).map_err(|errno| failure(&entry.path, "set the permissions", errno))?;
    Ok(passed_over)
}

/// Sets the time of an open file.
pub(super) fn set_time_on_open(file: &File, entry: &Entry) -> Result<()> {
    let time = time(entry.mtime);
    futimens(file, &time, &time).map_err(|errno| failure(&entry.path, "set the time", errno))
}

/// Sets all that an entry tells on what cannot be opened: a symlink, a device, a fifo.
pub(super) fn set_on_name(parent: BorrowedFd<'_>, name: &CString, entry: &Entry, is_link: bool) -> Result<PassedOver> {
    let name = name.as_c_str();
    let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
    fchownat(parent, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)
        .map_err(|errno| failure(&entry.path, "set the owner", errno))?;
    let mut passed_over = 0;
    if !entry.xattrs.is_empty() {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(parent, name, flags, Mode::empty())
            .map_err(|errno| failure(&entry.path, "open it for its attributes", errno))?;
        // The kernel sets attributes on open files or on paths; this path leads to the very inode, a symlink's too.
        let path = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
        for (attribute, value) in &entry.xattrs {
            let set = xattr::set_deref(&path, OsStr::from_bytes(attribute), value);
            passed_over += allow_unknown(entry, attribute, value.len(), set)?;
        }
    }
    if !is_link {
        fchmodat(parent, name, mode(entry), FchmodatFlags::NoFollowSymlink)
            .map_err(|errno| failure(&entry.path, "set the permissions", errno))?;
    }
    set_time(parent, name, entry.mtime).map_err(|errno| failure(&entry.path, "set the time", errno))?;
    Ok(passed_over)
}

/// Sets the time of a name, which is not followed.
pub(super) fn set_time(
    parent: BorrowedFd<'_>,
    name: &std::ffi::CStr,
    mtime: (i64, u32),
) -> std::result::Result<(), Errno> {
    let time = time(mtime);
    utimensat(parent, name, &time, &time, UtimensatFlags::NoFollowSymlink)
}

/// Takes away the attributes that a lower layer gave a directory and this entry does not: it tells them all. A label of the
/// host's security module is the host's.
fn drop_others(file: &File, entry: &Entry) -> Result<()> {
    let failed = |error| io_failure(&entry.path, "replace the extended attributes", error);
    for name in file.list_xattr().map_err(failed)? {
        let told = entry.xattrs.iter().any(|(told, _)| told == name.as_bytes());
        if !told && name != "security.selinux" {
            file.remove_xattr(&name).map_err(failed)?;
        }
    }
    Ok(())
}

/// An attribute that the file system has no place for is passed over and counted: it means nothing there.
fn allow_unknown(entry: &Entry, name: &[u8], value_len: usize, set: std::io::Result<()>) -> Result<PassedOver> {
    match set {
        Ok(()) => Ok(0),
        Err(error) if error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => {
            tracing::warn!(entry = %String::from_utf8_lossy(&entry.path), attribute = %String::from_utf8_lossy(name),
                "the file system does not know this extended attribute");
            Ok(1)
        }
        // ext4 keeps attributes in one block and says ENOSPC when they do not fit, however empty the disk is.
        Err(error) if error.raw_os_error() == Some(Errno::ENOSPC as i32) && value_len > FITS_EVERYWHERE => {
            let shown = String::from_utf8_lossy(name);
            Err(entry.bad(format!("its extended attribute {shown:?} is too large for the file system")))
        }
        Err(error) => Err(io_failure(
            &entry.path,
            &format!("set the extended attribute {:?}", String::from_utf8_lossy(name)),
            error,
        )),
    }
}

fn mode(entry: &Entry) -> Mode {
    Mode::from_bits_truncate(entry.mode)
}

fn time((seconds, nanoseconds): (i64, u32)) -> TimeSpec {
    TimeSpec::new(seconds, i64::from(nanoseconds))
}
