//! How many bytes the page cache holds back of a block device before the kernel writes them.
//!
//! The kernel's own choice counts a whole machine's memory: what is written to a device stands in the page cache until it is
//! synced, and only then all of it is written while everybody waits. With a limit the kernel writes while more still comes
//! (source: the kernel's Documentation/ABI/testing/sysfs-class-bdi, since Linux 6.3).
//!
//! The limit belongs to the device's name. A loop device keeps it when its file goes, and whoever has the device next would
//! write under it; so those who bind loop devices take it away at both ends.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};

use crate::error::{Error, Result};
use crate::units::ByteCount;

/// Sets the limit of the block device at `node`, for whatever file system is on it; `None`: takes it away, if there is one.
/// Errors: `NotFound` before Linux 6.3, `Io` if the machine's memory allows all devices less than `max`; then
/// there is no limit.
pub fn limit_dirty(node: &Path, max: Option<ByteCount>) -> Result<()> {
    let number = fs::metadata(node).map_err(|e| Error::io(format!("look at {}", node.display()), e))?.rdev();
    let place = PathBuf::from(format!("/sys/dev/block/{}:{}/bdi", major(number), minor(number)));
    let Some(max) = max else { return free(&place) };
    let bytes = max.0.to_string();
    // A device that has just begun to write has no share of the machine's pages yet: its least makes it one at once.
    set(&place, &[("strict_limit", "1"), ("max_bytes", &bytes), ("min_bytes", &bytes)]).inspect_err(|_| {
        if let Err(error) = free(&place) {
            tracing::debug!("half a limit of dirty pages is left: {error}");
        }
    })
}

/// What tells of a limit is set first and taken away last: a process killed in between leaves nothing that is not found.
fn free(place: &Path) -> Result<()> {
    let file = place.join("strict_limit");
    let strict = fs::read(&file).map_err(|e| Error::io(format!("read {}", file.display()), e))?;
    if strict.trim_ascii() == b"0" {
        return Ok(());
    }
    set(place, &[("min_ratio", "0"), ("max_ratio", "100"), ("strict_limit", "0")])
}

fn set(place: &Path, settings: &[(&str, &str)]) -> Result<()> {
    settings.iter().try_for_each(|(name, value)| {
        let file = place.join(name);
        fs::write(&file, value).map_err(|e| Error::io(format!("write {value} to {}", file.display()), e))
    })
}
