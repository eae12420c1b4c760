//! What the kernel tells about loop devices without opening them.
//!
//! Opening is no way to look: an open device is in use, and an exclusive open would make a mount that happens at the
//! same moment fail.

use std::fs::{read_dir, read_to_string};
use std::path::{Path, PathBuf};

/// The file that a loop device is bound to, as the kernel names it.
pub(super) fn backing_file(number: u32) -> Option<PathBuf> {
    let text = read_to_string(format!("/sys/block/loop{number}/loop/backing_file")).ok()?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    // So the kernel marks a name that it could not look up meanwhile; the file is the same.
    Some(PathBuf::from(text.strip_suffix(" (deleted)").unwrap_or(text)))
}

/// What a bound loop device is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::export) struct Binding {
    /// Bytes.
    pub(in crate::export) size: u64,
    pub(in crate::export) read_only: bool,
    /// It lets its file go with its last opener.
    pub(in crate::export) autoclear: bool,
}

/// Reads what a loop device is like; `None` if it is not bound any more.
pub(in crate::export) fn binding(number: u32) -> Option<Binding> {
    let read = |name: &str| read_to_string(format!("/sys/block/loop{number}/{name}")).ok()?.trim().parse::<u64>().ok();
    Some(Binding { size: read("size")? * 512, read_only: read("ro")? != 0, autoclear: read("loop/autoclear")? != 0 })
}

/// Loop devices, with their files, bound to a file directly in `dir`, which must be an absolute path without symbolic links.
pub(in crate::export) fn devices_below(dir: &Path) -> Vec<(u32, PathBuf)> {
    let Ok(entries) = read_dir("/sys/block") else { return Vec::new() };
    entries
        .filter_map(|entry| number_of(entry.ok()?.file_name().to_str()?))
        .filter_map(|number| Some((number, backing_file(number)?)))
        .filter(|(_, file)| file.parent() == Some(dir))
        .collect()
}

/// N of `loopN`.
fn number_of(name: &str) -> Option<u32> {
    name.strip_prefix("loop")?.parse().ok()
}
