//! Finds the place of an entry beneath the root directory, as if the root were `/`.
//!
//! Invariant: every directory handed out lies in the root's own tree. A layer may lead its own paths through symlinks, also
//! absolute ones and ones with `..` (`/lib → usr/lib` is in every image); they are resolved inside the root, as they
//! would be in the container. The last component of a path is never resolved here: callers work on it by name with calls
//! that do not follow symlinks.

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstat, mkdirat};
use nix::unistd::{Gid, Uid, fchownat};

use crate::error::Result;
use crate::image::apply::failure::failure;

/// Directories kept open. Archives name the entries of a directory one after another, so few suffice, and the process
/// shares its limit of open files with others.
const PARENTS_MAX: usize = 128;

/// Symlinks followed in one path: the kernel's `MAXSYMLINKS`.
const SYMLINKS_MAX: usize = 40;

/// Paths from this length on are walked in steps: the kernel's `PATH_MAX`, NUL included.
const PATH_MAX: usize = 4096;

/// What to do about a directory that an entry's path goes through and that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    /// Make it: root's, 0755.
    Create,
    /// The entry has no place then.
    Leave,
}

/// A directory beneath the root.
#[derive(Debug)]
pub(super) struct Parent {
    fd: OwnedFd,
    ino: u64,
}

impl Parent {
    /// Its inode number: unlike its path it is one, whichever symlinks led to it.
    pub(super) fn ino(&self) -> u64 {
        self.ino
    }
}

impl AsFd for Parent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Where an entry goes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// It is the root itself.
    Root,
    /// A name in the directory of this path; neither has `.`, `..` or empty components.
    In { parent: Vec<u8>, name: Vec<u8> },
}

/// Splits a path of an archive, absolute or not. Errors with what is wrong with it.
pub(super) fn place(path: &[u8]) -> std::result::Result<Place, &'static str> {
    let mut components: Vec<&[u8]> = components(path).collect();
    if components.contains(&&b".."[..]) {
        return Err("its path holds \"..\"");
    }
    Ok(match components.pop() {
        None => Place::Root,
        Some(name) => Place::In { parent: components.join(&b'/'), name: name.to_vec() },
    })
}

fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|b| *b == b'/').filter(|component| !component.is_empty() && *component != b".")
}

/// The directory that a layer is laid down on.
pub(super) struct Root {
    fd: OwnedFd,
    /// Device and inode number.
    id: (u64, u64),
    parents: HashMap<Vec<u8>, Rc<Parent>>,
}

impl Root {
    /// `directory` is open and a directory.
    pub(super) fn new(directory: BorrowedFd<'_>) -> std::result::Result<Self, Errno> {
        let fd = openat(directory, ".", flags(), Mode::empty())?;
        let stat = fstat(&fd)?;
        Ok(Self { fd, id: (stat.st_dev, stat.st_ino), parents: HashMap::new() })
    }

    /// Forgets which path leads where: needed whenever a directory or symlink has been removed.
    pub(super) fn forget(&mut self) {
        self.parents.clear();
    }

    /// The directory at `path`, as [`place`] gives it, for the entry of the archive's path `entry`. `None` if it is not there and is to be left so.
    pub(super) fn parent(&mut self, entry: &[u8], path: &[u8], missing: Missing) -> Result<Option<Rc<Parent>>> {
        if let Some(known) = self.parents.get(path) {
            return Ok(Some(Rc::clone(known)));
        }
        let found = match self.open_at_once(path) {
            // EAGAIN: somebody renamed something while the kernel resolved a "..".
            Err(Errno::ENOENT | Errno::ENAMETOOLONG | Errno::EAGAIN) => self.walk(path, missing),
            found => found.map(Some),
        };
        let fd = match (found, missing) {
            (Ok(Some(fd)), _) => fd,
            (Ok(None), _) | (Err(Errno::ENOTDIR), Missing::Leave) => return Ok(None),
            (Err(errno), _) => return Err(failure(entry, "reach its directory", errno)),
        };
        let ino = fstat(&fd).map_err(|errno| failure(entry, "look at its directory", errno))?.st_ino;
        if self.parents.len() >= PARENTS_MAX {
            self.parents.clear();
        }
        let parent = Rc::new(Parent { fd, ino });
        self.parents.insert(path.to_vec(), Rc::clone(&parent));
        Ok(Some(parent))
    }

    /// One call for a path whose directories are all there.
    fn open_at_once(&self, path: &[u8]) -> std::result::Result<OwnedFd, Errno> {
        if path.is_empty() {
            return openat(&self.fd, ".", flags(), Mode::empty());
        }
        if path.len() >= PATH_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS | ResolveFlag::RESOLVE_NO_XDEV;
        openat2(&self.fd, path, OpenHow::new().flags(flags()).resolve(resolve))
    }

    /// Component by component: for paths that are too long for one call, or that lead through directories which are
    /// missing, perhaps behind a symlink.
    fn walk(&self, path: &[u8], missing: Missing) -> std::result::Result<Option<OwnedFd>, Errno> {
        let open = |at: BorrowedFd<'_>, name: &[u8]| {
            openat(at, name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
        };
        let mut current = openat(&self.fd, ".", flags(), Mode::empty())?;
        let mut ahead: Vec<Vec<u8>> = components(path).rev().map(<[u8]>::to_vec).collect();
        let mut symlinks = 0;
        while let Some(name) = ahead.pop() {
            if name == b".." {
                let stat = fstat(&current)?;
                if (stat.st_dev, stat.st_ino) != self.id {
                    current = openat(&current, "..", flags(), Mode::empty())?;
                }
                continue;
            }
            let next = match (open(current.as_fd(), &name), missing) {
                (Err(Errno::ENOENT), Missing::Leave) => return Ok(None),
                (Err(Errno::ENOENT), Missing::Create) => {
                    make_parent(current.as_fd(), &name)?;
                    open(current.as_fd(), &name)?
                }
                (next, _) => next?,
            };
            match SFlag::from_bits_truncate(fstat(&next)?.st_mode & SFlag::S_IFMT.bits()) {
                SFlag::S_IFDIR => current = next,
                SFlag::S_IFLNK => {
                    symlinks += 1;
                    if symlinks > SYMLINKS_MAX {
                        return Err(Errno::ELOOP);
                    }
                    let target = readlinkat(&next, "")?.into_vec();
                    if target.starts_with(b"/") {
                        current = openat(&self.fd, ".", flags(), Mode::empty())?;
                    }
                    ahead.extend(components(&target).rev().map(<[u8]>::to_vec));
                }
                _ => return Err(Errno::ENOTDIR),
            }
        }
        Ok(Some(current))
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// How directories are opened: as places, without permission to read them.
fn flags() -> OFlag {
    OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC
}

/// Makes a directory that an entry implies: mode and owner are set apart, past the umask and a setgid directory above.
fn make_parent(at: BorrowedFd<'_>, name: &[u8]) -> std::result::Result<(), Errno> {
    mkdirat(at, name, Mode::from_bits_truncate(0o755))?;
    fchownat(at, name, Some(Uid::from_raw(0)), Some(Gid::from_raw(0)), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    fchmodat(at, name, Mode::from_bits_truncate(0o755), FchmodatFlags::NoFollowSymlink)
}

/// A name for a system call. Names from archives hold no NUL: the reader saw to it.
pub(super) fn c_name(name: &[u8]) -> CString {
    CString::new(name).expect("the archive reader lets no NUL into a name")
}
