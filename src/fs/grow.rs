//! Grows a file system to the size of its device.

use std::path::Path;

use crate::error::{Error, Result};
use crate::fs::mount::Mounted;
use crate::fs::tool::Tool;
use crate::snapshot::{FsType, Mount};

const RESIZE2FS: Tool = Tool { program: "resize2fs", package: "e2fsprogs" };
const XFS_GROWFS: Tool = Tool { program: "xfs_growfs", package: "xfsprogs" };

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
    let path = work_dir.join(format!("grow-{}", uuid::Uuid::new_v4()));
    std::fs::create_dir_all(&path).map_err(|e| Error::io(format!("make directory {}", path.display()), e))?;
    Ok(WorkDir { path })
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir(&self.path) {
            tracing::warn!("remove directory {}: {error}", self.path.display());
        }
    }
}
