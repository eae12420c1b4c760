//! A block device's number, and the node by which it can be opened.

use std::fmt;
use std::fs::{DirBuilder, read_to_string};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use nix::sys::stat::{Mode, SFlag, major, makedev, minor, mknod};

use crate::error::{Error, ErrorKind, Result};

/// Major and minor number; written `254:3`, as in tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct DeviceNumber {
    pub(super) major: u32,
    pub(super) minor: u32,
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl FromStr for DeviceNumber {
    type Err = ();

    fn from_str(text: &str) -> std::result::Result<Self, ()> {
        let (major, minor) = text.split_once(':').ok_or(())?;
        Ok(Self { major: major.parse().map_err(|_| ())?, minor: minor.parse().map_err(|_| ())? })
    }
}

impl DeviceNumber {
    /// The number of the block device at `path`. Errors: `NotFound`, `Invalid` if it is none.
    pub(super) fn of(path: &Path) -> Result<Self> {
        let seen = path.metadata().map_err(|e| Error::io(format!("look at {}", path.display()), e))?;
        if !seen.file_type().is_block_device() {
            return Err(Error::new(ErrorKind::Invalid, format!("{} is no block device", path.display())));
        }
        Self::from_raw(seen.rdev())
    }

    fn from_raw(number: u64) -> Result<Self> {
        let part = |value: u64| {
            u32::try_from(value)
                .map_err(|e| Error::with_source(ErrorKind::Invalid, format!("device number {number:#x}"), e))
        };
        Ok(Self { major: part(major(number))?, minor: part(minor(number))? })
    }

    fn is_at(self, path: &Path) -> bool {
        path.symlink_metadata().is_ok_and(|seen| {
            seen.file_type().is_block_device() && Self::from_raw(seen.rdev()).is_ok_and(|number| number == self)
        })
    }

    /// The node in `/dev`, or one made in `run_dir` where nobody makes nodes (a container with a `/dev` of its own).
    /// Errors: `NotFound` if there is no such device.
    pub(super) fn node(self, run_dir: &Path) -> Result<PathBuf> {
        let facts = format!("/sys/dev/block/{self}/uevent");
        let text = read_to_string(&facts).map_err(|e| {
            Error::with_source(ErrorKind::NotFound, format!("block device {self}: it is not there (any more)"), e)
        })?;
        if let Some(name) = text.lines().find_map(|line| line.strip_prefix("DEVNAME=")) {
            let node = Path::new("/dev").join(name);
            if self.is_at(&node) {
                return Ok(node);
            }
        }
        let dir = run_dir.join("nodes");
        let node = dir.join(self.to_string());
        if self.is_at(&node) {
            return Ok(node);
        }
        let doing = |e| Error::io(format!("make the node {} of a block device", node.display()), e);
        DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(doing)?;
        let number = makedev(u64::from(self.major), u64::from(self.minor));
        match mknod(&node, SFlag::S_IFBLK, Mode::S_IRUSR | Mode::S_IWUSR, number) {
            // Another thread was faster.
            Err(nix::errno::Errno::EEXIST) if self.is_at(&node) => Ok(node),
            made => made.map(|()| node.clone()).map_err(|errno| doing(errno.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::DeviceNumber;

    #[test]
    fn a_number_is_written_as_it_is_read() {
        for text in ["7:0", "254:1048575", "8:16"] {
            assert_eq!(text.parse::<DeviceNumber>().unwrap().to_string(), text);
        }
        for text in ["", "7", "7:", "/dev/sda", "7:-1", "7:1:2"] {
            assert!(text.parse::<DeviceNumber>().is_err(), "{text} was taken");
        }
    }
}
