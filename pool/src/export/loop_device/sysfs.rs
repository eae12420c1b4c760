//! What the kernel tells about loop devices without opening them.
//!
//! Opening is no way to look: an open device is in use, and an exclusive open would make a mount that happens at the
//! same moment fail.

use std::fs::{read_dir, read_to_string};
use std::path::{Path, PathBuf};

/// The file that a loop device is bound to, as the kernel names it.
pub(super) fn backing_file(number: u32) -> Option<PathBuf> {
    let text = read_to_string(format!("/sys/block/loop{number}/loop/backing_file")).ok()?;
    Some(PathBuf::from(text.strip_suffix('\n').unwrap_or(&text)))
}

/// Loop devices, with their files, bound to a file directly in `dir`, which must be an absolute path without symbolic links.
pub(in crate::export) fn devices_below(dir: &Path) -> Vec<(u32, PathBuf)> {
    let Ok(entries) = read_dir("/sys/block") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_prefix("loop")?.parse().ok())
        .filter_map(|number| Some((number, backing_file(number)?)))
        .filter(|(_, file)| file.parent() == Some(dir))
        .collect()
}

/// True if the device carries a mounted filesystem (in whichever namespace), swap, or another block device. Programs
/// that merely have it open are not seen.
pub(in crate::export) fn in_use(number: u32) -> bool {
    let name = format!("loop{number}");
    let held = read_dir(format!("/sys/block/{name}/holders")).is_ok_and(|mut holders| holders.next().is_some());
    held || has_filesystem(&name) || is_mounted_here(number, &name) || is_swap(&name)
}

/// Most filesystems have a directory of this form for each mounted device.
fn has_filesystem(name: &str) -> bool {
    read_dir("/sys/fs").is_ok_and(|types| types.flatten().any(|entry| entry.path().join(name).exists()))
}

fn is_mounted_here(number: u32, name: &str) -> bool {
    let device = format!("7:{number}");
    let source = format!("/dev/{name}");
    read_to_string("/proc/self/mountinfo").is_ok_and(|table| {
        table.lines().any(|line| {
            let (before, after) = line.split_once(" - ").unwrap_or((line, ""));
            before.split(' ').nth(2) == Some(&device) || after.split(' ').nth(1) == Some(&source)
        })
    })
}

fn is_swap(name: &str) -> bool {
    let source = format!("/dev/{name}");
    read_to_string("/proc/swaps").is_ok_and(|table| table.lines().any(|l| l.split_whitespace().next() == Some(&source)))
}
