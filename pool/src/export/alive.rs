//! The lock that says that a process may still touch the data of its pool.
//!
//! A killed process is not gone at once: what its rings had in flight may still land on the data device, over what a
//! successor wrote meanwhile. So whoever serves holds this lock, and every ring has the open file in its table: the
//! lock goes when the last of them is torn down, after the last operation. A successor touches nothing before that.
//!
//! Who waits for the lock holds another one, so that of several successors one waits at a time: what it does for a
//! dying predecessor meanwhile, nobody else can be serving already.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::device::{is_living, lock_in_time, started_at};
use crate::error::{Error, ErrorKind, Result};

/// Most bytes that are read of the file.
const TEXT_MAX: usize = 64;

/// The lock, held until the last reference to it is dropped and the last ring that has it is gone.
pub(super) struct Alive {
    file: File,
}

impl Alive {
    /// Waits for the lock at `path`, which is made if absent. While it is taken, `meanwhile` is called again and again,
    /// with true once its holder is dead or dying; its error ends the wait. Errors: `InUse` if it is not free after
    /// `wait`.
    pub(super) fn acquire(path: &Path, wait: Duration, mut meanwhile: impl FnMut(bool) -> Result<()>) -> Result<Self> {
        let doing = format!("take the lock {}", path.display());
        let open = |path: &Path| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
            options.open(path).map_err(|e| Error::io(&doing, e))
        };
        let deadline = Instant::now() + wait;
        let file = open(path)?;
        let turn = open(&path.with_extension("next"))?;
        if !lock_in_time(&turn, deadline, || Ok(())).map_err(|e| e.doing(&doing))? {
            return Err(Error::new(ErrorKind::InUse, format!("{doing}: another process is waiting for it")));
        }
        let taken = lock_in_time(&file, deadline, || meanwhile(!holder_lives(&file)));
        if !taken.map_err(|e| e.doing(&doing))? {
            let pid = holder(&file).map_or(0, |(pid, _)| pid);
            return Err(Error::new(
                ErrorKind::InUse,
                format!("{doing}: process {pid} serves the pool, or has died and is not gone yet"),
            ));
        }
        let text = format!("{} {}\n", std::process::id(), started_at().unwrap_or(0));
        file.set_len(0).and_then(|()| file.write_all_at(text.as_bytes(), 0)).map_err(|e| Error::io(&doing, e))?;
        Ok(Self { file })
    }

    /// For the tables of rings.
    pub(super) fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// Process and start time that the last holder has written down.
fn holder(file: &File) -> Option<(u32, u64)> {
    let mut text = [0; TEXT_MAX];
    let len = file.read_at(&mut text, 0).ok()?;
    let (pid, started) = std::str::from_utf8(&text[..len]).ok()?.trim_end().split_once(' ')?;
    Some((pid.parse().ok()?, started.parse().ok()?))
}

/// A holder that has not yet written itself down lives.
fn holder_lives(file: &File) -> bool {
    holder(file).is_none_or(|(pid, started)| is_living(pid, Some(started)))
}
