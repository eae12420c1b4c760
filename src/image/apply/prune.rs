//! Removes trees, wholly or but for what the running layer has laid down, with two open directories at most however deep
//! the tree is.

use std::collections::HashSet;
use std::ffi::CString;
use std::hash::{BuildHasher, RandomState};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

/// What the running layer has laid down, by directory and name: a whiteout hides what lower layers hold, never these.
///
/// Only a hash is kept, keyed at random, so that millions of entries stay small; a collision, which nobody can
/// bring about on purpose, would leave one hidden file visible.
#[derive(Default)]
pub(super) struct Laid {
    keys: RandomState,
    places: HashSet<u64>,
}

impl Laid {
    pub(super) fn add(&mut self, parent_ino: u64, name: &[u8]) {
        self.places.insert(self.keys.hash_one((parent_ino, name)));
    }

    pub(super) fn holds(&self, parent_ino: u64, name: &[u8]) -> bool {
        self.places.contains(&self.keys.hash_one((parent_ino, name)))
    }
}

/// What a removal found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pruned {
    /// There was nothing of that name.
    Nothing,
    /// Only files went: no path leads elsewhere than before.
    Files,
    /// A directory or symlink was there: what is known about paths may be wrong.
    Ways,
}

/// A directory being emptied, with the ones above it on a stack.
struct Level {
    name: CString,
    ino: u64,
    /// Names of directories in it that are still to be emptied.
    ahead: Vec<CString>,
    /// Something in it stays, so it stays.
    keep: bool,
}

/// Removes `name` in `parent`, and everything below it if it is a directory. What `laid` holds stays, with the
/// directories that lead to it; without `laid`, nothing stays.
pub(super) fn prune(
    parent: BorrowedFd<'_>,
    parent_ino: u64,
    name: &CString,
    laid: Option<&Laid>,
) -> Result<Pruned, Errno> {
    let stat = match fstatat(parent, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(Pruned::Nothing),
        stat => stat?,
    };
    let keep = laid.is_some_and(|laid| laid.holds(parent_ino, name.to_bytes()));
    if !is(&stat, SFlag::S_IFDIR) {
        if keep {
            return Ok(Pruned::Files);
        }
        unlinkat(parent, name.as_c_str(), UnlinkatFlags::NoRemoveDir)?;
        return Ok(if is(&stat, SFlag::S_IFLNK) { Pruned::Ways } else { Pruned::Files });
    }
    let (mut current, mut level) = enter(parent, name.clone(), keep, laid)?;
    let mut above: Vec<Level> = Vec::new();
    loop {
        if let Some(next) = level.ahead.pop() {
            let keep = laid.is_some_and(|laid| laid.holds(level.ino, next.to_bytes()));
            let (fd, below) = enter(current.as_fd(), next, keep, laid)?;
            above.push(std::mem::replace(&mut level, below));
            current = fd;
            continue;
        }
        let Some(mut up) = above.pop() else { break };
        let fd = openat(&current, "..", READ_DIR, Mode::empty())?;
        if fstat(&fd)?.st_ino != up.ino {
            // Somebody moved the directory while we were in it: nothing here is ours to remove.
            return Err(Errno::ESTALE);
        }
        current = fd;
        if level.keep {
            up.keep = true;
        } else {
            unlinkat(&current, level.name.as_c_str(), UnlinkatFlags::RemoveDir)?;
        }
        level = up;
    }
    if !level.keep {
        unlinkat(parent, name.as_c_str(), UnlinkatFlags::RemoveDir)?;
    }
    Ok(Pruned::Ways)
}

/// Removes what is in a directory, the directory itself stays. What `laid` holds stays.
pub(super) fn prune_content(directory: BorrowedFd<'_>, ino: u64, laid: &Laid) -> Result<(), Errno> {
    for (name, _) in names(&openat(directory, ".", READ_DIR, Mode::empty())?)? {
        prune(directory, ino, &name, Some(laid))?;
    }
    Ok(())
}

const READ_DIR: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// Opens a directory, removes what is no directory in it, and lists the directories.
fn enter(
    parent: BorrowedFd<'_>,
    name: CString,
    mut keep: bool,
    laid: Option<&Laid>,
) -> Result<(OwnedFd, Level), Errno> {
    let fd = openat(parent, name.as_c_str(), READ_DIR, Mode::empty())?;
    let ino = fstat(&fd)?.st_ino;
    let mut ahead = Vec::new();
    for (child, is_dir) in names(&fd)? {
        if is_dir {
            ahead.push(child);
        } else if laid.is_some_and(|laid| laid.holds(ino, child.to_bytes())) {
            keep = true;
        } else {
            unlinkat(&fd, child.as_c_str(), UnlinkatFlags::NoRemoveDir)?;
        }
    }
    Ok((fd, Level { name, ino, ahead, keep }))
}

/// Names in a directory, and which of them are directories. All are read before any is removed: removing while reading
/// makes some file systems pass over names.
fn names(fd: &OwnedFd) -> Result<Vec<(CString, bool)>, Errno> {
    let errno = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(nix::libc::EIO));
    let mut found = Vec::new();
    // This path leads to the open directory itself, whatever its name is by now.
    for child in std::fs::read_dir(format!("/proc/self/fd/{}", fd.as_raw_fd())).map_err(errno)? {
        let child = child.map_err(errno)?;
        let is_dir = child.file_type().map_err(errno)?.is_dir();
        let name = CString::new(child.file_name().into_vec()).expect("the kernel gives names without NUL");
        found.push((name, is_dir));
    }
    Ok(found)
}

/// True if the file is of this kind.
pub(super) fn is(stat: &FileStat, kind: SFlag) -> bool {
    stat.st_mode & SFlag::S_IFMT.bits() == kind.bits()
}
