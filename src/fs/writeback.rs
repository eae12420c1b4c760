//! How many bytes the page cache holds back of a device before the kernel writes them.
//!
//! The kernel's own choice counts a whole machine's memory: a layer that is unpacked stands in the page cache until it is
//! unmounted, and only then all of it is written while everybody waits. With a limit on the device the kernel writes while
//! the files still come (source: the kernel's Documentation/ABI/testing/sysfs-class-bdi, since Linux 6.3).

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};
use thinsnap_pool::ByteCount;

use crate::error::{Error, Result};
use crate::fs::mountinfo::device_number;

/// Sets the limit of a block device, for whatever file system is on it; `None`: the kernel's own choice. Errors:
/// `NotFound` before Linux 6.3, `InvalidArgument` if the machine's memory allows all devices less than `max`.
pub(crate) fn limit_dirty(device: &Path, max: Option<ByteCount>) -> Result<()> {
    let bytes = max.map(|max| max.0.to_string());
    let settings: &[(&str, &str)] = match &bytes {
        // A device that has just begun to write has no share of the machine's pages yet: its least makes it one at once.
        Some(bytes) => &[("max_bytes", bytes), ("min_bytes", bytes), ("strict_limit", "1")],
        None => &[("strict_limit", "0"), ("min_ratio", "0"), ("max_ratio", "100")],
    };
    let number = device_number(device)?;
    let place = PathBuf::from(format!("/sys/dev/block/{}:{}/bdi", major(number), minor(number)));
    settings.iter().try_for_each(|(name, value)| {
        let file = place.join(name);
        fs::write(&file, value).map_err(|e| Error::io(format!("write {value} to {}", file.display()), e))
    })
}
