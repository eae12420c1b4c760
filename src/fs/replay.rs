//! Makes what stands on a device whole: writes a mounted file system out, replays a journal.
//!
//! A committed device must need no replay, because its views are read-only. A file system that is still
//! mounted at commit is written out with syncfs, snapshotted, and the *snapshot's* journal is replayed by
//! mounting it once. Freezing the mounted file system instead would spare the replay, but a service that
//! is killed between freeze and thaw would leave a container standing still for ever.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::fs::detached::Detached;
use crate::fs::mountinfo::{self, device_number};
use crate::snapshot::FsType;

/// ext4's superblock: where it begins, and the two fields that are read (source: the kernel's ext4.h).
const EXT4_SUPER_AT: u64 = 1024;
const EXT4_MAGIC: std::ops::Range<usize> = 0x38..0x3a;
const EXT4_INCOMPAT: std::ops::Range<usize> = 0x60..0x64;
const EXT4_MAGIC_VALUE: [u8; 2] = [0x53, 0xef];
/// The journal holds changes that the rest of the device lacks.
const EXT4_NEEDS_RECOVERY: u8 = 0x04;

/// True if the file system was not unmounted cleanly, or is mounted. A device without one needs nothing.
pub(crate) fn needs_replay(fs: FsType, device: &Path) -> Result<bool> {
    match fs {
        FsType::Ext4 => {
            let mut superblock = [0; 1024];
            File::open(device)
                .and_then(|file| file.read_exact_at(&mut superblock, EXT4_SUPER_AT))
                .map_err(|e| Error::io(format!("read the superblock of {}", device.display()), e))?;
            let is_ext4 = superblock[EXT4_MAGIC] == EXT4_MAGIC_VALUE;
            Ok(is_ext4 && superblock[EXT4_INCOMPAT][0] & EXT4_NEEDS_RECOVERY != 0)
        }
        // Only a walk through its log could tell: mounting it is as quick and surely right.
        FsType::Xfs => Ok(true),
    }
}

/// Replays the journal by mounting the device once, writable and out of everybody's sight.
pub(crate) fn replay(fs: FsType, device: &Path) -> Result<()> {
    let options: &[&str] = match fs {
        FsType::Ext4 => &["noatime"],
        // The origin with the same UUID is mounted, or may be any time.
        FsType::Xfs => &["noatime", "nouuid"],
    };
    let mounted = Detached::open(fs, device, options)?;
    mounted.sync().map_err(|e| Error::io(format!("write out {}", device.display()), e))
}

/// Writes the file system on `device` out, wherever it is mounted. False: it is mounted nowhere.
pub(crate) fn sync_mounted(device: &Path) -> Result<bool> {
    let number = device_number(device)?;
    if sync_one_of(number, Path::new("/"), Path::new("/proc/self/mountinfo"))? {
        return Ok(true);
    }
    // A container's mount often stands in a mount namespace of its own: reach it through one of the
    // processes that live there.
    let mut seen = HashSet::new();
    let processes = fs::read_dir("/proc").map_err(|e| Error::io("list processes", e))?;
    for process in processes.filter_map(std::result::Result::ok) {
        let here = process.path();
        let Ok(namespace) = fs::read_link(here.join("ns/mnt")) else { continue };
        if seen.insert(namespace) && sync_one_of(number, &here.join("root"), &here.join("mountinfo")).unwrap_or(false) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Syncs through the first mount of the device that can be opened: one superblock, one sync.
fn sync_one_of(number: u64, root: &Path, mountinfo: &Path) -> Result<bool> {
    for entry in mountinfo::read(mountinfo)?.iter().filter(|entry| entry.device == number) {
        let relative = entry.target.strip_prefix("/").unwrap_or(&entry.target);
        let target: PathBuf = root.join(relative);
        let Ok(place) = File::open(&target) else { continue };
        // Another file system may be mounted over it.
        if place.metadata().is_ok_and(|meta| meta.dev() == number) {
            rustix::fs::syncfs(&place)
                .map_err(|e| Error::io(format!("write out {}", target.display()), io::Error::from(e)))?;
            return Ok(true);
        }
    }
    Ok(false)
}
