//! The files of a layout, by name: of a directory, or of a tar that is read in place.
//!
//! Names come from documents of others, so they are resolved beneath the directory, or looked up in the tar's own list;
//! either way nothing outside is ever opened.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Seek};
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use crate::config::Limits;
use crate::error::{Error, ErrorKind, Result};
use crate::image::blob::Blob;
use crate::image::tar::{ArchiveSource, EndMark, EntryKind, TarReader};

/// Bytes of a member's name in an archive of images: names are held in memory, and programs write a digest or two.
const MEMBER_NAME_MAX: usize = 1024;

/// Symlinks followed from one member to another; `docker save` writes one.
const ALIASES_MAX: usize = 8;

/// The files of a layout.
#[derive(Debug)]
pub(super) enum Files {
    Directory(File),
    Archive { file: Arc<File>, members: HashMap<String, Member> },
}

/// A member of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Member {
    /// Offset and length.
    File(u64, u64),
    /// Another name for the member of this path.
    Alias(String),
}

/// What an archive looks like.
#[derive(Debug)]
pub(super) enum Looks {
    /// Its members are the files of a layout, as far as names tell.
    Layout(Files),
    /// It is a root file system.
    RootFs,
}

impl Files {
    /// The files of a directory.
    pub(super) fn of_directory(path: &Path) -> Result<Self> {
        let open = File::open(path).map_err(|error| Error::io(format!("open {}", path.display()), error))?;
        Ok(Self::Directory(open))
    }

    /// The file of a name, if there is one.
    pub(super) fn find(&self, name: &str) -> Result<Option<Blob>> {
        match self {
            Self::Directory(directory) => find_in_directory(directory, name),
            Self::Archive { file, members } => {
                let mut path = normal(name.as_bytes());
                for _ in 0..ALIASES_MAX {
                    match members.get(&path) {
                        None => return Ok(None),
                        Some(Member::Alias(target)) => path.clone_from(target),
                        Some(Member::File(offset, len)) => {
                            return Ok(Some(Blob::new(name.to_owned(), Arc::clone(file), *offset, *len)));
                        }
                    }
                }
                Err(Error::new(ErrorKind::BadArchive, format!("{name:?} is a symlink that leads in circles")))
            }
        }
    }

    /// The file of a name. Errors with `BadArchive` if it is missing.
    pub(super) fn get(&self, name: &str) -> Result<Blob> {
        self.find(name)?.ok_or_else(|| {
            Error::new(ErrorKind::BadArchive, format!("the archive has no {name:?}"))
                .advise("the archive is not whole: fetch it again, with all layers")
        })
    }
}

/// Lists the members of a plain tar, unless its first member shows that it is a root file system.
pub(super) fn look_into(file: &Arc<File>, limits: &Limits) -> Result<Looks> {
    let failed = |error| Error::io("read an archive", error);
    let len = file.metadata().map_err(failed)?.len();
    let mut source = file.try_clone().map_err(failed)?;
    source.rewind().map_err(failed)?;
    // Headers are read one by one with jumps between them: a small buffer wastes less.
    let mut tar = TarReader::new(BufReader::with_capacity(8 << 10, source), EndMark::Required, limits);
    let mut members = HashMap::new();
    let mut first = true;
    while let Some(entry) = tar.next_entry()? {
        let path = normal(&entry.path);
        if path.is_empty() {
            continue;
        }
        if first && !is_layout_name(&path) {
            return Ok(Looks::RootFs);
        }
        first = false;
        let member = match entry.kind {
            EntryKind::File if entry.fragments.is_some() => {
                return Err(entry.bad("a sparse file in an archive of images"));
            }
            EntryKind::File => {
                if tar.content_at() + tar.content_left() > len {
                    return Err(entry.bad("the archive ends before it does: it was cut off"));
                }
                Member::File(tar.content_at(), tar.content_left())
            }
            EntryKind::HardLink => Member::Alias(normal(&entry.link)),
            EntryKind::Symlink => {
                let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
                Member::Alias(normal(&[directory.as_bytes(), b"/", &entry.link].concat()))
            }
            EntryKind::Directory => continue,
            EntryKind::CharDevice | EntryKind::BlockDevice | EntryKind::Fifo => return Ok(Looks::RootFs),
        };
        if path.len().max(entry.link.len()) > MEMBER_NAME_MAX {
            return Err(entry.bad(format!("a name of more than {MEMBER_NAME_MAX} bytes in an archive of images")));
        }
        if members.len() >= limits.members {
            let reason = format!("more than {} members in an archive of images", limits.members);
            return Err(Error::new(ErrorKind::BadArchive, Limits::over("members", reason)));
        }
        members.insert(path, member);
    }
    if members.contains_key("oci-layout") || members.contains_key("manifest.json") {
        return Ok(Looks::Layout(Files::Archive { file: Arc::clone(file), members }));
    }
    Ok(Looks::RootFs)
}

/// True if the first member says that it may be a layout.
pub(super) fn may_be_layout<R: ArchiveSource>(source: R, limits: &Limits) -> Result<bool> {
    let mut tar = TarReader::new(source, EndMark::Required, limits);
    while let Some(entry) = tar.next_entry()? {
        let path = normal(&entry.path);
        if !path.is_empty() {
            return Ok(is_layout_name(&path));
        }
    }
    Ok(false)
}

impl ArchiveSource for BufReader<File> {
    fn skip(&mut self, bytes: u64) -> std::io::Result<()> {
        let bytes = i64::try_from(bytes).map_err(|_| std::io::ErrorKind::UnexpectedEof)?;
        self.seek_relative(bytes)
    }
}

/// Names at the top of an OCI layout or of `docker save`: few, and none of them is a root file system's.
fn is_layout_name(path: &str) -> bool {
    let top = path.split('/').next().unwrap_or_default();
    let id = top.split('.').next().unwrap_or_default();
    let is_id = id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit());
    is_id || matches!(top, "blobs" | "index.json" | "oci-layout" | "manifest.json" | "repositories")
}

/// A path without `.`, `..` and empty components; `..` at the top stays there.
fn normal(path: &[u8]) -> String {
    let path = String::from_utf8_lossy(path);
    let mut components: Vec<&str> = Vec::new();
    for component in path.split('/') {
        match component {
            "" | "." => {}
            ".." => drop(components.pop()),
            name => components.push(name),
        }
    }
    components.join("/")
}

fn find_in_directory(directory: &File, name: &str) -> Result<Option<Blob>> {
    // A fifo in the place of a file must not make us wait for its writer.
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let file = match openat2(directory, name, OpenHow::new().flags(flags).resolve(resolve)) {
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(None),
        Err(Errno::EXDEV | Errno::ELOOP) => {
            return Err(Error::new(ErrorKind::BadArchive, format!("{name:?} leads out of the layout's directory")));
        }
        opened => File::from(opened.map_err(|errno| Error::io(format!("open {name:?}"), errno.into()))?),
    };
    let metadata = file.metadata().map_err(|error| Error::io(format!("look at {name:?}"), error))?;
    if !metadata.is_file() {
        return Err(Error::new(ErrorKind::BadArchive, format!("{name:?} is not a file")));
    }
    Ok(Some(Blob::new(name.to_owned(), Arc::new(file), 0, metadata.len())))
}
