//! What is mounted where, as the kernel tells it in mountinfo.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, makedev, minor};

use crate::error::{Error, Result};

/// One line of mountinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// The device number of the file system, as stat(2) tells it in `st_dev`.
    pub device: u64,
    /// Which directory of the file system is seen there; `/` unless it is a bind mount.
    pub root: PathBuf,
    /// Where.
    pub target: PathBuf,
    /// File system type.
    pub fs: String,
    /// What was mounted.
    pub source: PathBuf,
}

/// The mounts that this process sees, in the kernel's order.
pub fn mounts() -> Result<Vec<MountEntry>> {
    read(Path::new("/proc/self/mountinfo"))
}

/// Where the block device `source` is mounted, as this process sees it.
pub fn targets_of(source: &Path) -> Result<Vec<PathBuf>> {
    let device = device_number(source)?;
    Ok(mounts()?.into_iter().filter(|m| m.device == device).map(|m| m.target).collect())
}

/// The number of a block device's node.
pub(crate) fn device_number(node: &Path) -> Result<u64> {
    let meta = fs::metadata(node).map_err(|e| Error::io(format!("look at {}", node.display()), e))?;
    Ok(meta.rdev())
}

pub(crate) fn read(file: &Path) -> Result<Vec<MountEntry>> {
    let text = fs::read(file).map_err(|e| Error::io(format!("read {}", file.display()), e))?;
    Ok(text.split(|&b| b == b'\n').filter_map(parse).collect())
}

/// `36 35 98:0 /root /target options optional… - type source options`; a line of another shape is none
/// of a block device's.
fn parse(line: &[u8]) -> Option<MountEntry> {
    let fields: Vec<&[u8]> = line.split(|&b| b == b' ').collect();
    let dash = fields.iter().skip(6).position(|f| *f == b"-")? + 6;
    let (major, minor) = std::str::from_utf8(fields.get(2)?).ok()?.split_once(':')?;
    Some(MountEntry {
        device: makedev(major.parse().ok()?, minor.parse().ok()?),
        root: unescape(fields.get(3)?),
        target: unescape(fields.get(4)?),
        fs: String::from_utf8_lossy(fields.get(dash + 1)?).into_owned(),
        source: unescape(fields.get(dash + 2)?),
    })
}

/// Blanks, tabs, newlines and backslashes stand as three octal digits.
fn unescape(text: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, tail)) = rest.split_first() {
        let code = (first == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        rest = if code.is_some() { &tail[3..] } else { tail };
        bytes.push(code.unwrap_or(first));
    }
    PathBuf::from(OsString::from_vec(bytes))
}

impl std::fmt::Display for MountEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({}:{}) on {}", self.fs, major(self.device), minor(self.device), self.target.display())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{makedev, parse};

    #[test]
    fn a_line_with_optional_fields_and_escapes_is_read() {
        let line = b"41 28 7:3 / /mnt/a\\040b\\134c rw,noatime shared:7 master:1 - ext4 /dev/loop3 rw,discard";
        let entry = parse(line).unwrap();
        assert_eq!(entry.device, makedev(7, 3));
        assert_eq!(entry.target, Path::new("/mnt/a b\\c"));
        assert_eq!((entry.fs.as_str(), entry.source.as_path()), ("ext4", Path::new("/dev/loop3")));
    }

    #[test]
    fn a_line_without_optional_fields_is_read_and_a_cut_one_is_skipped() {
        assert_eq!(parse(b"22 28 0:20 / /proc rw - proc proc rw").unwrap().fs, "proc");
        assert!(parse(b"22 28 0:20 / /proc rw").is_none());
        assert!(parse(b"").is_none());
    }
}
