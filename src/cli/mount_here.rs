//! Mounts a snapshot where the user stands: in this command's own mount namespace, not in the service's.

use std::path::Path;

use nix::mount::{MntFlags, MsFlags};
use serde::Serialize;

use crate::admin::api;
use crate::error::{Error, ErrorKind, Result};

/// A device and where it is, or was, mounted.
#[derive(Debug, Serialize)]
pub(crate) struct Mounted {
    pub(crate) source: String,
    pub(crate) at: Vec<String>,
}

/// Mounts the one device of `mounts` on `at`.
pub(crate) fn mount(mounts: &[api::Mount], at: &Path) -> Result<Mounted> {
    let mount = single(mounts)?;
    let mut flags = MsFlags::empty();
    let mut data = Vec::new();
    for option in &mount.options {
        match option.as_str() {
            "ro" => flags |= MsFlags::MS_RDONLY,
            "rw" => {}
            other => data.push(other),
        }
    }
    let data = data.join(",");
    nix::mount::mount(Some(mount.source.as_str()), at, Some(mount.fs.as_str()), flags, Some(data.as_str()))
        .map_err(|errno| Error::io(format!("mount {} on {}", mount.source, at.display()), errno.into()))?;
    Ok(Mounted { source: mount.source.clone(), at: vec![at.to_string_lossy().into_owned()] })
}

/// Unmounts the one device of `mounts` from everywhere, the newest mount first.
pub(crate) fn unmount(mounts: &[api::Mount]) -> Result<Mounted> {
    let source = &single(mounts)?.source;
    let table = std::fs::read_to_string("/proc/self/mountinfo")
        .map_err(|error| Error::io("read the table of mounts (/proc/self/mountinfo)", error))?;
    let mut places = places_of(&table, source);
    places.reverse();
    for place in &places {
        nix::mount::umount2(place.as_str(), MntFlags::UMOUNT_NOFOLLOW).map_err(|errno| {
            let error = Error::io(format!("unmount {place}"), errno.into());
            match error.kind() {
                ErrorKind::InUse => error.advise(format!("end the processes that work in it: fuser -vm {place}")),
                _ => error,
            }
        })?;
    }
    Ok(Mounted { source: source.clone(), at: places })
}

fn single(mounts: &[api::Mount]) -> Result<&api::Mount> {
    match mounts {
        [mount] => Ok(mount),
        other => Err(Error::new(ErrorKind::Internal, format!("the service answered {} mounts, not one", other.len()))),
    }
}

/// Mount points of `source`, the oldest first. A line is: id, parent, device, root, mount point, options,
/// optional fields, "-", type, source, options; blanks inside are written as `\040`.
fn places_of(table: &str, source: &str) -> Vec<String> {
    table
        .lines()
        .filter_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let found = after.split(' ').nth(1)?;
            (found == source).then(|| before.split(' ').nth(4).map(unescape)).flatten()
        })
        .collect()
}

fn unescape(field: &str) -> String {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(value) if byte == b'\\' => {
                bytes.push(value);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::places_of;

    #[test]
    fn the_places_of_a_device_are_read_from_the_kernels_table() {
        let table = "\
22 1 8:1 / / rw - ext4 /dev/sda1 rw
30 22 7:3 / /mnt/a\\040b rw,relatime shared:1 master:2 - ext4 /dev/loop3 rw
31 22 7:30 / /mnt/c rw - ext4 /dev/loop30 rw
32 22 7:3 / /mnt/d rw - ext4 /dev/loop3 rw
broken line
";
        assert_eq!(places_of(table, "/dev/loop3"), ["/mnt/a b", "/mnt/d"]);
    }
}
