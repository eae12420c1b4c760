//! Mounts a snapshot where the user stands: in this command's own mount namespace, not in the service's.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::admin::api;
use crate::error::{Error, ErrorKind, Result};
use crate::fs;
use crate::snapshot::{FsType, Mount};

/// A device and where it is, or was, mounted.
#[derive(Debug, Serialize)]
pub(crate) struct Mounted {
    pub(crate) source: String,
    pub(crate) at: Vec<String>,
}

/// Mounts the one device of `mounts` on `at`.
pub(crate) fn mount(mounts: &[api::Mount], at: &Path) -> Result<Mounted> {
    let mount = single(mounts)?;
    let fs = [FsType::Ext4, FsType::Xfs].into_iter().find(|fs| fs.as_str() == mount.fs).ok_or_else(|| {
        Error::new(ErrorKind::Unsupported, format!("the service answered the file system {:?}", mount.fs))
            .advise("use the command line of the service's own version")
    })?;
    fs::mount(&Mount { fs, source: PathBuf::from(&mount.source), options: mount.options.clone() }, at)?;
    Ok(Mounted { source: mount.source.clone(), at: vec![at.to_string_lossy().into_owned()] })
}

/// Unmounts the one device of `mounts` from everywhere, the newest mount first.
pub(crate) fn unmount(mounts: &[api::Mount]) -> Result<Mounted> {
    let source = &single(mounts)?.source;
    let mut places = fs::targets_of(Path::new(source))?;
    places.reverse();
    for place in &places {
        fs::unmount(place).map_err(|error| match error.kind() {
            ErrorKind::InUse => {
                error.advise(format!("end the processes that work in it: fuser -vm {}", place.display()))
            }
            _ => error,
        })?;
    }
    let at = places.iter().map(|place| place.to_string_lossy().into_owned()).collect();
    Ok(Mounted { source: source.clone(), at })
}

fn single(mounts: &[api::Mount]) -> Result<&api::Mount> {
    match mounts {
        [mount] => Ok(mount),
        other => Err(Error::new(ErrorKind::Internal, format!("the service answered {} mounts, not one", other.len()))),
    }
}
