//! What a test could leave on the machine: mounts, loop devices and processes that belong to one directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, umount2};

use super::process::{kill_naming, processes_naming};

/// Mount points below `dir`, and mount points anywhere of loop devices on files below `dir`; the last made first.
fn mounts_of(dir: &Path) -> Vec<PathBuf> {
    let loops: Vec<String> = loops_of(dir).iter().map(|path| path.display().to_string()).collect();
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut found: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| {
            let point = line.split(' ').nth(4)?;
            let source = line.split(" - ").nth(1)?.split(' ').nth(1)?;
            (Path::new(point).starts_with(dir) || loops.iter().any(|l| l == source)).then(|| PathBuf::from(point))
        })
        .collect();
    found.reverse();
    found
}

/// Loop devices whose backing file lies below `dir`.
pub(crate) fn loops_of(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir("/sys/block") else { return Vec::new() };
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let backing = fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
            Path::new(backing.trim()).starts_with(dir).then(|| Path::new("/dev").join(entry.file_name()))
        })
        .collect()
}

/// Everything that still belongs to `dir`, in words; empty if nothing is left.
pub(crate) fn left_of(dir: &Path) -> Vec<String> {
    let mut left: Vec<String> = mounts_of(dir).iter().map(|path| format!("mount {}", path.display())).collect();
    left.extend(loops_of(dir).iter().map(|path| format!("loop device {}", path.display())));
    left.extend(processes_naming(&dir.display().to_string()).iter().map(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        format!("process {pid}: {}", String::from_utf8_lossy(&line).replace('\0', " "))
    }));
    left
}

/// Who keeps the loop devices on files below `dir`: mounts in the namespace of every process, and open files.
pub(crate) fn holders_of(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for device in loops_of(dir) {
        let device = device.display().to_string();
        found.push(device.clone());
        for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            let of = format!("{} {}", process.file_name().display(), name.trim_end());
            let table = fs::read_to_string(process.path().join("mountinfo")).unwrap_or_default();
            let mounts = table.lines().filter(|line| line.split(' ').any(|word| word == device));
            found.extend(mounts.map(|line| format!("  {of} sees {line}")));
            let files = fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
            let open =
                files.filter_map(|file| fs::read_link(file.path()).ok()).filter(|file| *file == Path::new(&device));
            found.extend(open.map(|_| format!("  {of} has it open")));
        }
    }
    found
}

/// Takes everything away that belongs to `dir`, users first, whatever state it is in.
pub(crate) fn clear(dir: &Path) {
    for point in mounts_of(dir).iter().filter(|point| !is_fuse(point)) {
        let _ = umount2(point, MntFlags::MNT_DETACH);
    }
    for device in loops_of(dir) {
        remove_above(&device);
        let _ = Command::new("losetup").arg("-d").arg(device).status();
    }
    kill_naming(&dir.display().to_string());
    for point in mounts_of(dir) {
        let _ = umount2(&point, MntFlags::MNT_DETACH);
    }
}

/// Takes the devices of device-mapper away that stand on a device.
fn remove_above(device: &Path) {
    let Some(name) = device.file_name() else { return };
    let holders = fs::read_dir(Path::new("/sys/block").join(name).join("holders"));
    for holder in holders.into_iter().flatten().flatten() {
        let above = Path::new("/dev").join(holder.file_name());
        remove_above(&above);
        let _ = Command::new("dmsetup").args(["remove", "--force"]).arg(above).status();
    }
}

/// True for a mount point of a FUSE file system: it goes last, the devices on it need it to let go.
fn is_fuse(point: &Path) -> bool {
    fs::read_to_string("/proc/self/mountinfo").unwrap_or_default().lines().any(|line| {
        line.split(' ').nth(4).is_some_and(|p| Path::new(p) == point)
            && line.split(" - ").nth(1).is_some_and(|rest| rest.starts_with("fuse"))
    })
}
