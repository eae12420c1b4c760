//! How an exporter works, whichever way it shows its devices.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::export::alive::Alive;
use crate::export::exporter::NoSpace;
use crate::export::fuse::make_dir;

/// How long a process that served before this one may take to be gone wholly.
pub(super) const BURIAL_WAIT: Duration = Duration::from_secs(60);
/// How long [`Exporter::detach`](crate::export::Exporter::detach) waits for openers that only look (a prober of udev)
/// before it says "later".
pub(super) const LOOKERS_WAIT: Duration = Duration::from_millis(500);
/// How long a block device that was taken away may take to be gone.
pub(super) const RELEASE_WAIT: Duration = Duration::from_secs(10);

/// How an exporter works.
#[derive(Debug, Clone)]
pub struct ExportOptions {
    /// A directory for this exporter alone; it is made if absent. FUSE hides it behind its mount.
    pub dir: PathBuf,
    /// Event loops, 1 …= 8.
    pub event_threads: usize,
    /// Threads for requests that must block (a new block, a copy, a flush), 1 …= 64.
    pub worker_threads: usize,
    /// What to do with writes that find no room, until [`Exporter::set_no_space`](crate::export::Exporter::set_no_space).
    pub no_space: NoSpace,
    /// A file whose lock says that a process may still touch the data; `None`: nobody takes over from a FUSE exporter,
    /// and a ublk exporter has one of its own beside `dir`.
    pub alive: Option<PathBuf>,
}

impl ExportOptions {
    /// The values that measured best on small machines, for the directory `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), event_threads: 1, worker_threads: 8, no_space: NoSpace::default(), alive: None }
    }

    /// Errors: `Invalid`.
    pub(super) fn check(&self) -> Result<()> {
        if (1..=8).contains(&self.event_threads) && (1..=64).contains(&self.worker_threads) {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Invalid,
            "start the exporter: it takes 1 to 8 event threads and 1 to 64 worker threads",
        ))
    }

    /// Waits until no process before this one can touch the data any more.
    pub(super) fn acquire_alive(&self, meanwhile: impl FnMut(bool) -> Result<()>) -> Result<Option<Arc<Alive>>> {
        let Some(path) = &self.alive else { return Ok(None) };
        Alive::acquire(path, BURIAL_WAIT, meanwhile).map(|alive| Some(Arc::new(alive)))
    }
}

/// The export directory as the kernel names it. Only what stands above it is looked at: looking through a mount that
/// is dead fails, and through one that nobody serves never ends.
pub(super) fn canonical(dir: &Path) -> Result<PathBuf> {
    let fail = |e: std::io::Error| Error::io(format!("find the export directory {}", dir.display()), e);
    let (Some(parent), Some(name)) = (dir.parent(), dir.file_name()) else {
        return Err(Error::new(ErrorKind::Invalid, format!("{} is no place for an export", dir.display())));
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    make_dir(parent)?;
    Ok(parent.canonicalize().map_err(fail)?.join(name))
}
