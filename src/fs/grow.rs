//! Grows a file system to the size of its device.

use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use crate::error::{Error, Result};
use crate::fs::mount::{Mounted, unmount};
use crate::fs::mountinfo::mounts;
use crate::fs::tool::Tool;
use crate::snapshot::{FsType, Mount};

const RESIZE2FS: Tool = Tool { program: "resize2fs", package: "e2fsprogs" };
const XFS_GROWFS: Tool = Tool { program: "xfs_growfs", package: "xfsprogs" };

/// What the temporary mount points are called.
const WORK_PREFIX: &str = "grow-";

/// Grows the clean, unmounted file system on `device`. `work_dir` is a directory of ours.
pub(crate) fn grow(fs: FsType, device: &Path, work_dir: &Path) -> Result<()> {
    match fs {
        // -f: the device is a snapshot of a clean one, which resize2fs cannot know: it would ask for
        // e2fsck after any mount since the last one.
        FsType::Ext4 => RESIZE2FS.run(&["-f"], device),
        FsType::Xfs => {
            // xfs_growfs accepts only a mount that it finds in its own mount table: it needs a path.
            let target = tempdir_in(work_dir)?;
            let what =
                Mount { fs, source: device.to_owned(), options: vec!["noatime".to_owned(), "nouuid".to_owned()] };
            let mounted = Mounted::at(&what, target.path())?;
            XFS_GROWFS.run(&["-d"], mounted.path())?;
            mounted.unmount()
        }
    }
}

/// Takes away what a process that was killed in [`grow`] has left in the work directory.
pub(crate) fn sweep(work_dir: &Path) -> Result<()> {
    for entry in mounts()?.iter().filter(|entry| is_ours(&entry.target, work_dir)) {
        tracing::info!("unmount {}, left by a process that was killed", entry.target.display());
        unmount(&entry.target)?;
    }
    let entries = match std::fs::read_dir(work_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io(format!("read directory {}", work_dir.display()), error)),
    };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| is_ours(path, work_dir)) {
        std::fs::remove_dir(&path).map_err(|e| Error::io(format!("remove directory {}", path.display()), e))?;
    }
    Ok(())
}

fn is_ours(path: &Path, work_dir: &Path) -> bool {
    path.parent() == Some(work_dir)
        && path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(WORK_PREFIX))
}

/// An empty directory that is removed with this value.
struct WorkDir {
    path: std::path::PathBuf,
}

impl WorkDir {
    fn path(&self) -> &Path {
        &self.path
    }
}

fn tempdir_in(work_dir: &Path) -> Result<WorkDir> {
    let path = work_dir.join(format!("{WORK_PREFIX}{}", uuid::Uuid::new_v4()));
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&path);
    made.map_err(|e| Error::io(format!("make directory {}", path.display()), e))?;
    Ok(WorkDir { path })
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir(&self.path) {
            tracing::warn!("remove directory {}: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{WORK_PREFIX, sweep};

    #[test]
    fn a_sweep_takes_our_directories_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        for name in [&format!("{WORK_PREFIX}1"), "other"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        sweep(dir.path()).unwrap();
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["other"]);
        sweep(&dir.path().join("absent")).unwrap();
    }
}
