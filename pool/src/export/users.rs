//! Who uses a block device: what the kernel tells without opening it.
//!
//! Opening is no way to look: an open device is in use, and an exclusive open would make a mount that happens at the
//! same moment fail.

use std::collections::BTreeSet;
use std::fs::{read_dir, read_to_string};

/// The block devices that carried a mounted filesystem (in whichever namespace) or swap at one moment. Programs that
/// merely have a device open are not seen.
pub(in crate::export) struct Users {
    /// As the kernel names them: `loop3`, `259:1`.
    names: BTreeSet<String>,
}

impl Users {
    /// Costs the same for one device and for a thousand.
    pub(in crate::export) fn look() -> Self {
        let mut names = BTreeSet::new();
        // Most filesystems have a directory of this form for each mounted device.
        for kind in read_dir("/sys/fs").into_iter().flatten().flatten() {
            for entry in read_dir(kind.path()).into_iter().flatten().flatten() {
                names.insert(entry.file_name().to_string_lossy().into_owned());
            }
        }
        let mut note = |name: Option<&str>| names.extend(name.map(str::to_owned));
        for line in read_to_string("/proc/self/mountinfo").unwrap_or_default().lines() {
            let (before, after) = line.split_once(" - ").unwrap_or((line, ""));
            note(before.split(' ').nth(2));
            note(after.split(' ').nth(1).and_then(|source| source.strip_prefix("/dev/")));
        }
        for line in read_to_string("/proc/swaps").unwrap_or_default().lines() {
            note(line.split_whitespace().next().and_then(|file| file.strip_prefix("/dev/")));
        }
        Self { names }
    }

    /// True if the device was in use, or another block device stands on it. `name` is as in `/sys/block`.
    pub(in crate::export) fn contains(&self, name: &str) -> bool {
        let number = read_to_string(format!("/sys/block/{name}/dev")).unwrap_or_default();
        let holders = format!("/sys/block/{name}/holders");
        self.names.contains(name)
            || self.names.contains(number.trim_end())
            || read_dir(holders).is_ok_and(|mut holders| holders.next().is_some())
    }
}
