//! Applies a layer: entry by entry onto a root directory, with whiteouts hiding what lower layers hold.
//!
//! Three rules decide what a tree looks like afterwards. A directory over a directory merges and takes the new attributes;
//! anything else replaces what is there, as a whole. Whiteouts hide lower layers only, wherever in the archive they
//! stand. Directories get their times when all else is done.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fstatat, makedev, mkdirat, mknodat};
use nix::unistd::{LinkatFlags, linkat, symlinkat};

use crate::config::Limits;
use crate::error::{Error, Result};
use crate::image::apply::attributes::{set_on_name, set_on_open, set_time, set_time_on_open};
use crate::image::apply::content::{BUFFER_SIZE, write_content};
use crate::image::apply::failure::failure;
use crate::image::apply::prune::{Laid, Pruned, is, prune, prune_content};
use crate::image::apply::root::{Missing, Parent, Place, Root, c_name, place};
use crate::image::tar::{ArchiveSource, Entry, EntryKind, TarReader, bad_entry};

/// Prefix of a name that hides the rest of it.
const WHITEOUT: &[u8] = b".wh.";
/// Prefix of names that AUFS kept for itself.
const WHITEOUT_META: &[u8] = b".wh..wh.";
/// The name that hides all that lower layers hold in its directory.
const WHITEOUT_OPAQUE: &[u8] = b".wh..wh..opq";

/// What was laid down.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::image) struct Applied {
    /// Entries of the archive.
    pub(in crate::image) entries: u64,
    /// Bytes of content.
    pub(in crate::image) bytes: u64,
    /// Extended attributes that the file system does not know.
    pub(in crate::image) xattrs_passed_over: u64,
}

/// Lays the whole archive down on the directory `root`. Errors name the entry; what was laid down before stays.
pub(in crate::image) fn unpack<R: ArchiveSource>(
    reader: &mut TarReader<R>,
    root: BorrowedFd<'_>,
    limits: &Limits,
) -> Result<Applied> {
    let root = Root::new(root).map_err(|errno| Error::io("open the root directory of a layer", errno.into()))?;
    let mut unpacker = Unpacker {
        root,
        laid: Laid::default(),
        waiting: Vec::new(),
        waiting_bytes: 0,
        waiting_bytes_max: limits.directory_bytes,
        buffer: vec![0; BUFFER_SIZE],
        applied: Applied::default(),
    };
    while let Some(entry) = reader.next_entry()? {
        unpacker.apply(&entry, reader)?;
    }
    unpacker.finish()
}

struct Unpacker {
    root: Root,
    laid: Laid,
    /// Directories that get their times at the end.
    waiting: Vec<Waiting>,
    waiting_bytes: u64,
    waiting_bytes_max: u64,
    buffer: Vec<u8>,
    applied: Applied,
}

/// A directory that gets its time at the end.
struct Waiting {
    path: Box<[u8]>,
    mtime: (i64, u32),
}

/// What a removal leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keep {
    Nothing,
    /// What this layer has laid down.
    Laid,
}

impl Unpacker {
    fn apply<R: ArchiveSource>(&mut self, entry: &Entry, reader: &mut TarReader<R>) -> Result<()> {
        self.applied.entries += 1;
        let (parent_path, name) = match place(&entry.path).map_err(|reason| entry.bad(reason))? {
            Place::Root => return self.apply_root(entry),
            Place::In { parent, name } => (parent, name),
        };
        if is_metadata(&parent_path, &name) {
            return Ok(());
        }
        if parent_path.split(|b| *b == b'/').any(|component| component.starts_with(WHITEOUT)) {
            return Err(entry.bad("a directory on its path is named like a whiteout"));
        }
        if name.starts_with(WHITEOUT) {
            return self.hide(entry, &parent_path, &name);
        }
        let parent = self.root.parent(&entry.path, &parent_path, Missing::Create)?;
        let parent = parent.ok_or_else(|| entry.bad("its directory is missing"))?;
        let name = c_name(&name);
        match entry.kind {
            EntryKind::File => {
                let file = self.put(entry, &parent, &name, "create the file", |at, name| {
                    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                    openat(at, name.as_c_str(), flags, Mode::from_bits_truncate(0o600))
                })?;
                let file = File::from(file);
                write_content(&file, entry, reader, &mut self.buffer)?;
                self.applied.bytes += entry.size;
                self.applied.xattrs_passed_over += set_on_open(&file, entry, false)?;
                set_time_on_open(&file, entry)?;
            }
            EntryKind::Directory => self.apply_directory(entry, &parent, &name)?,
            EntryKind::HardLink => self.apply_hard_link(entry, &parent, &name)?,
            EntryKind::Symlink => {
                let target = c_name(&entry.link);
                self.put(entry, &parent, &name, "create the symlink", |at, name| {
                    symlinkat(target.as_c_str(), at, name.as_c_str())
                })?;
                self.applied.xattrs_passed_over += set_on_name(parent.as_fd(), &name, entry, true)?;
            }
            EntryKind::CharDevice => self.apply_node(entry, &parent, &name, SFlag::S_IFCHR)?,
            EntryKind::BlockDevice => self.apply_node(entry, &parent, &name, SFlag::S_IFBLK)?,
            EntryKind::Fifo => self.apply_node(entry, &parent, &name, SFlag::S_IFIFO)?,
        }
        self.laid.add(parent.ino(), name.to_bytes());
        Ok(())
    }

    /// `./`: the attributes of the root itself.
    fn apply_root(&mut self, entry: &Entry) -> Result<()> {
        if entry.kind != EntryKind::Directory {
            return Err(entry.bad("it would replace the root directory"));
        }
        let directory =
            open_directory(self.root.as_fd(), c".").map_err(|errno| failure(&entry.path, "open it", errno))?;
        self.applied.xattrs_passed_over += set_on_open(&directory, entry, true)?;
        self.wait(entry)
    }

    fn apply_directory(&mut self, entry: &Entry, parent: &Rc<Parent>, name: &CString) -> Result<()> {
        let make = |at: BorrowedFd<'_>, name: &CString| mkdirat(at, name.as_c_str(), Mode::from_bits_truncate(0o700));
        let merged = match make(parent.as_fd(), name) {
            Ok(()) => false,
            Err(Errno::EEXIST) if is_directory(parent.as_fd(), name) => true,
            Err(Errno::EEXIST) => {
                self.put(entry, parent, name, "create the directory", make)?;
                false
            }
            Err(errno) => return Err(failure(&entry.path, "create the directory", errno)),
        };
        let directory =
            open_directory(parent.as_fd(), name).map_err(|errno| failure(&entry.path, "open the directory", errno))?;
        self.applied.xattrs_passed_over += set_on_open(&directory, entry, merged)?;
        self.wait(entry)
    }

    fn apply_node(&mut self, entry: &Entry, parent: &Rc<Parent>, name: &CString, kind: SFlag) -> Result<()> {
        let device = makedev(u64::from(entry.device.0), u64::from(entry.device.1));
        self.put(entry, parent, name, "create the device or fifo", |at, name| {
            mknodat(at, name.as_c_str(), kind, Mode::from_bits_truncate(0o600), device)
        })?;
        self.applied.xattrs_passed_over += set_on_name(parent.as_fd(), name, entry, false)?;
        Ok(())
    }

    /// A second name for a file of this layer or a lower one, or for a symlink, which is not followed. Its attributes are
    /// the file's: what the link's header repeats is not applied, since some programs leave half of it out.
    fn apply_hard_link(&mut self, entry: &Entry, parent: &Rc<Parent>, name: &CString) -> Result<()> {
        let target = format!("its target {}", crate::image::tar::shown(&entry.link));
        let (from_path, from_name) = match place(&entry.link) {
            Ok(Place::In { parent, name }) => (parent, c_name(&name)),
            Ok(Place::Root) => return Err(entry.bad(format!("{target} is the root directory"))),
            Err(_) => return Err(entry.bad(format!("{target} holds \"..\""))),
        };
        let missing = || entry.bad(format!("{target} is not there"));
        let from = self.root.parent(&entry.path, &from_path, Missing::Leave)?.ok_or_else(missing)?;
        let found = match fstatat(from.as_fd(), from_name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => return Err(missing()),
            found => found.map_err(|errno| failure(&entry.path, "look at the link's target", errno))?,
        };
        if is(&found, SFlag::S_IFDIR) {
            return Err(entry.bad(format!("{target} is a directory")));
        }
        if from.ino() == parent.ino() && from_name == *name {
            return Err(entry.bad("it is a hard link to itself"));
        }
        self.put(entry, parent, name, "create the hard link", |at, name| {
            linkat(from.as_fd(), from_name.as_c_str(), at, name.as_c_str(), LinkatFlags::empty())
        })
    }

    /// Makes something at a name; what is there is removed first, with all that is below it.
    fn put<T>(
        &mut self,
        entry: &Entry,
        parent: &Rc<Parent>,
        name: &CString,
        doing: &str,
        make: impl Fn(BorrowedFd<'_>, &CString) -> std::result::Result<T, Errno>,
    ) -> Result<T> {
        match make(parent.as_fd(), name) {
            Err(Errno::EEXIST) => {
                self.remove(entry, parent, name, Keep::Nothing)?;
                make(parent.as_fd(), name).map_err(|errno| failure(&entry.path, doing, errno))
            }
            made => made.map_err(|errno| failure(&entry.path, doing, errno)),
        }
    }

    fn remove(&mut self, entry: &Entry, parent: &Rc<Parent>, name: &CString, keep: Keep) -> Result<()> {
        let laid = match keep {
            Keep::Nothing => None,
            Keep::Laid => Some(&self.laid),
        };
        let pruned = prune(parent.as_fd(), parent.ino(), name, laid)
            .map_err(|errno| failure(&entry.path, "remove what it replaces", errno))?;
        match pruned {
            Pruned::Ways => self.root.forget(),
            Pruned::Nothing | Pruned::Files => {}
        }
        Ok(())
    }

    /// Applies a whiteout: nothing is laid down, and nothing that this layer has laid down goes.
    fn hide(&mut self, entry: &Entry, parent_path: &[u8], name: &[u8]) -> Result<()> {
        let hidden = &name[WHITEOUT.len()..];
        if name != WHITEOUT_OPAQUE && matches!(hidden, b"" | b"." | b"..") {
            return Err(entry.bad("it is a whiteout that names nothing"));
        }
        // What is not there needs no hiding.
        let Some(parent) = self.root.parent(&entry.path, parent_path, Missing::Leave)? else { return Ok(()) };
        if name == WHITEOUT_OPAQUE {
            self.root.forget();
            return prune_content(parent.as_fd(), parent.ino(), &self.laid)
                .map_err(|errno| failure(&entry.path, "empty the directory", errno));
        }
        self.remove(entry, &parent, &c_name(hidden), Keep::Laid)
    }

    fn wait(&mut self, entry: &Entry) -> Result<()> {
        // The same directory may come any number of times, so the value itself counts too, and its place in the heap.
        self.waiting_bytes += (entry.path.len() + 2 * size_of::<Waiting>()) as u64;
        if self.waiting_bytes > self.waiting_bytes_max {
            let reason = format!("the layer's directories take more than {} bytes of memory", self.waiting_bytes_max);
            return Err(entry.bad(Limits::over("directory_bytes", reason)));
        }
        self.waiting.push(Waiting { path: entry.path.clone().into_boxed_slice(), mtime: entry.mtime });
        Ok(())
    }

    /// Gives the directories their times. A later entry of the same directory comes later, and wins.
    fn finish(mut self) -> Result<Applied> {
        for Waiting { path, mtime } in std::mem::take(&mut self.waiting) {
            let failed = |errno| failure(&path, "set the directory's time", errno);
            match place(&path).map_err(|reason| bad_entry(&path, reason))? {
                Place::Root => set_time(self.root.as_fd(), c".", mtime).map_err(failed)?,
                Place::In { parent, name } => {
                    // It may be gone: replaced by a later entry, or hidden.
                    let Some(parent) = self.root.parent(&path, &parent, Missing::Leave)? else { continue };
                    let name = c_name(&name);
                    if is_directory(parent.as_fd(), &name) {
                        set_time(parent.as_fd(), &name, mtime).map_err(failed)?;
                    }
                }
            }
        }
        Ok(self.applied)
    }
}

/// True for names that AUFS kept for itself, and for what is below them.
fn is_metadata(parent_path: &[u8], name: &[u8]) -> bool {
    let on_path = parent_path.split(|b| *b == b'/').any(|component| component.starts_with(WHITEOUT_META));
    on_path || (name.starts_with(WHITEOUT_META) && name != WHITEOUT_OPAQUE)
}

fn is_directory(parent: BorrowedFd<'_>, name: &CString) -> bool {
    fstatat(parent, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW).is_ok_and(|stat| is(&stat, SFlag::S_IFDIR))
}

fn open_directory(at: BorrowedFd<'_>, name: &std::ffi::CStr) -> std::result::Result<File, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(at, name, flags, Mode::empty()).map(|fd: OwnedFd| File::from(fd))
}
