//! Volumes shown to the host: real loop devices, real filesystems on them, nothing left behind.

// All of this is test code, helpers too: clippy lets tests unwrap.
#![cfg(test)]

#[path = "support/export_stage.rs"]
mod export_stage;
#[path = "support/file_volume.rs"]
mod file_volume;
#[path = "support/host_tools.rs"]
mod host_tools;
#[path = "support/shown_by.rs"]
mod shown_by;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use export_stage::{Stage, begin, device};
use file_volume::{Behaviour, FileVolume};
use host_tools::{Mounted, eventually, leftovers, run};
use shown_by::{by_ublk, skipped_without_export, ublk_devices, wanted_export};
use thinsnap_pool::{
    Access, ByteCount, DeviceId, ErrorKind, ExportOptions, Exporter, FuseExporter, Result, Volume, begin_export,
    limit_dirty,
};

const MIB: u64 = 1 << 20;

/// True, with a word about it, where there is no filesystem whose words could be tried.
fn not_a_filesystem() -> bool {
    if by_ublk() {
        println!("SKIPPED: ublk has no filesystem");
    }
    by_ublk()
}

fn fio(device: &Path, arguments: &str) -> String {
    let mut all = vec![
        "--name=t".to_owned(),
        format!("--filename={}", device.display()),
        "--direct=1".into(),
        "--ioengine=libaio".into(),
        "--verify_state_save=0".into(),
    ];
    all.extend(arguments.split_whitespace().map(str::to_owned));
    run("fio", all)
}

fn verify_with_fio(behaviour: Behaviour, event_threads: usize) {
    let stage = Stage::with_threads(event_threads);
    let volume = stage.volume(1, 128 * MIB, behaviour);
    let path = stage.attach(1, &volume, 128 * MIB, Access::ReadWrite);
    fio(
        &path,
        "--rw=randwrite --bsrange=512-1200k --bs_unaligned=0 --blockalign=512 --size=128m --io_size=192m \
                --iodepth=16 --fsync=64 --verify=crc32c --verify_fatal=1 --randseed=7",
    );
    assert!(volume.flushes.load(Ordering::SeqCst) > 0, "fsync did not reach the volume");
    assert_eq!(volume.held.load(Ordering::SeqCst), 0, "a direct request was not given back");
    assert!(stage.exporter.detach(device(1)).unwrap());
    stage.finish();
}

#[test]
fn root_bytes_written_through_the_direct_way_are_read_back() {
    if !skipped_without_export() {
        verify_with_fio(Behaviour::default(), 1);
    }
}

#[test]
fn root_bytes_are_read_back_when_direct_and_blocking_requests_mix() {
    if !skipped_without_export() {
        verify_with_fio(Behaviour { refuse_every: 3, ..Behaviour::default() }, 1);
    }
}

#[test]
fn root_bytes_are_read_back_through_several_event_loops() {
    if !skipped_without_export() {
        verify_with_fio(Behaviour { refuse_every: 5, ..Behaviour::default() }, 2);
    }
}

#[test]
fn root_a_filesystem_lives_on_an_exported_device() {
    if skipped_without_export() {
        return;
    }
    let stage = Stage::new();
    let volume = stage.volume(7, 256 * MIB, Behaviour { refuse_every: 4, ..Behaviour::default() });
    let path = stage.attach(7, &volume, 256 * MIB, Access::ReadWrite);
    run("mkfs.ext4", [Path::new("-q"), &path]);
    let mounted = Mounted::mount(&path, &stage.path("mnt"), "discard");
    fs::write(mounted.at.join("file"), vec![0x5a; 20 << 20]).unwrap();
    fs::write(mounted.at.join("gone"), vec![1; 8 << 20]).unwrap();
    run("sync", ["-f".as_ref(), mounted.at.as_os_str()]);
    fs::remove_file(mounted.at.join("gone")).unwrap();
    run("fstrim", [&mounted.at]);
    assert_eq!(stage.exporter.attached(), [(device(7), true)]);
    mounted.unmount();
    assert_eq!(stage.exporter.attached(), [(device(7), false)]);
    run("e2fsck", [Path::new("-fn"), &path]);
    assert!(stage.exporter.detach(device(7)).unwrap());
    let path = stage.attach(7, &volume, 256 * MIB, Access::ReadOnly);
    let mounted = Mounted::mount(&path, &stage.path("mnt"), "ro");
    assert_eq!(fs::read(mounted.at.join("file")).unwrap(), vec![0x5a; 20 << 20]);
    mounted.unmount();
    stage.finish();
}

#[test]
fn root_discarded_and_zeroed_ranges_reach_the_volume() {
    if skipped_without_export() {
        return;
    }
    let (stage, _volume, path) = Stage::with_device(16 * MIB);
    fio(&path, "--rw=write --bs=1m --size=16m --buffer_pattern=0xff");
    run("blkdiscard", ["-o", "1048576", "-l", "2097152", path.to_str().unwrap()]);
    run("blkdiscard", ["-z", "-o", "8388608", "-l", "1048576", path.to_str().unwrap()]);
    assert!(stage.exporter.detach(device(1)).unwrap());
    let bytes = fs::read(stage.path("volume-1")).unwrap();
    let zero: Vec<usize> = (0..16).filter(|m| bytes[m << 20..(m + 1) << 20].iter().all(|b| *b == 0)).collect();
    assert_eq!(zero, [1, 2, 8], "MiB that read as zeroes");
    stage.finish();
}

#[test]
fn root_a_read_only_device_refuses_writes() {
    if skipped_without_export() {
        return;
    }
    let stage = Stage::new();
    let volume = stage.volume(1, 4 * MIB, Behaviour::default());
    let path = stage.attach(1, &volume, 4 * MIB, Access::ReadOnly);
    assert_eq!(fs::read_to_string(sys(&path, "ro")).unwrap(), "1\n");
    let refused = OpenOptions::new().write(true).open(&path).and_then(|file| {
        file.write_all_at(&[1; 4096], 0)?;
        file.sync_all()
    });
    assert!(refused.is_err());
    assert!(stage.exporter.detach(device(1)).unwrap());
    stage.finish();
}

fn sys(device: &Path, file: &str) -> PathBuf {
    Path::new("/sys/block").join(device.file_name().unwrap()).join(file)
}

#[test]
fn root_a_mounted_device_grows() {
    if skipped_without_export() {
        return;
    }
    let stage = Stage::new();
    let volume = stage.volume(1, 1024 * MIB, Behaviour::default());
    let path = stage.attach(1, &volume, 320 * MIB, Access::ReadWrite);
    // Not ext4, whose growing needs a capability that containers of tests lack.
    run("mkfs.xfs", [Path::new("-q"), &path]);
    let mut path = path;
    let mut mounted = Mounted::mount(&path, &stage.path("mnt"), "rw");
    match stage.exporter.resize(device(1), ByteCount(1024 * MIB)) {
        Ok(()) => {}
        // A ublk of before Linux 6.16 shows the device anew, and for that nobody may use it.
        Err(error) => {
            assert!(by_ublk() && error.kind() == ErrorKind::InUse, "{error}");
            fs::write(mounted.at.join("small"), b"still served").unwrap();
            mounted.unmount();
            stage.exporter.resize(device(1), ByteCount(1024 * MIB)).unwrap();
            path = stage.exporter.path(device(1)).unwrap();
            mounted = Mounted::mount(&path, &stage.path("mnt"), "rw");
        }
    }
    assert_eq!(fs::read_to_string(sys(&path, "size")).unwrap().trim(), (1024 * MIB / 512).to_string());
    run("xfs_growfs", [&mounted.at]);
    fs::write(mounted.at.join("large"), vec![3; 600 << 20]).unwrap();
    let smaller = stage.exporter.resize(device(1), ByteCount(320 * MIB)).unwrap_err();
    assert_eq!(smaller.kind(), ErrorKind::Invalid);
    mounted.unmount();
    run("xfs_repair", [Path::new("-n"), &path]);
    stage.finish();
}

#[test]
fn root_fifty_devices_come_and_go_side_by_side() {
    if skipped_without_export() {
        return;
    }
    let stage = Stage::new();
    std::thread::scope(|scope| {
        for lane in 0..10 {
            let stage = &stage;
            scope.spawn(move || {
                for round in 0..5 {
                    let id = lane * 10 + round;
                    let volume = stage.volume(id, 4 * MIB, Behaviour::default());
                    let dropped = Arc::clone(&volume.dropped);
                    let path = stage.attach(id, &volume, 4 * MIB, Access::ReadWrite);
                    drop(volume);
                    let file =
                        OpenOptions::new().read(true).write(true).custom_flags(libc::O_EXCL).open(&path).unwrap();
                    file.write_all_at(&[u8::try_from(id).unwrap(); 4096], 0).unwrap();
                    file.sync_all().unwrap();
                    drop(file);
                    assert!(stage.exporter.detach(device(id)).unwrap(), "device {id} is still open");
                    assert!(dropped.load(Ordering::SeqCst), "the volume of device {id} is still held");
                    let mut first = [0; 4096];
                    File::open(stage.path(&format!("volume-{id}"))).unwrap().read_exact_at(&mut first, 0).unwrap();
                    assert_eq!(first, [u8::try_from(id).unwrap(); 4096]);
                }
            });
        }
    });
    assert_eq!(stage.exporter.attached(), []);
    stage.finish();
}

#[test]
fn root_a_mounted_device_goes_when_it_is_unmounted() {
    if skipped_without_export() {
        return;
    }
    let stage = Stage::new();
    let volume = stage.volume(1, 64 * MIB, Behaviour::default());
    let dropped = Arc::clone(&volume.dropped);
    let path = stage.attach(1, &volume, 64 * MIB, Access::ReadWrite);
    drop(volume);
    run("mkfs.ext4", [Path::new("-q"), &path]);
    let mounted = Mounted::mount(&path, &stage.path("mnt"), "rw");
    assert!(!stage.exporter.detach(device(1)).unwrap());
    assert_eq!(stage.exporter.attached(), [(device(1), true)]);
    assert_eq!(stage.exporter.shutdown().unwrap_err().kind(), ErrorKind::InUse);
    fs::write(mounted.at.join("late"), b"still served").unwrap();
    mounted.unmount();
    eventually("the volume is dropped", || dropped.load(Ordering::SeqCst));
    // Whoever drops it tells the table next.
    eventually("the device is forgotten", || stage.exporter.attached().is_empty());
    assert_eq!(stage.exporter.path(device(1)), None);
    stage.finish();
}

/// A loop device keeps a limit when its file goes: eight numbers of one machine had one that nobody wanted.
#[test]
fn root_a_limit_of_dirty_pages_does_not_outlive_its_device() {
    if skipped_without_export() {
        return;
    }
    let (stage, volume, path) = Stage::with_device(64 * MIB);
    let strict = sys(&path, "bdi/strict_limit");
    if !strict.exists() {
        println!("SKIPPED: this kernel sets no strict limit on a device (it needs Linux 6.3)");
        return;
    }
    let set = || limit_dirty(&path, Some(ByteCount(32 * MIB))).unwrap();
    set();
    assert_eq!(fs::read_to_string(&strict).unwrap(), "1\n");
    let refused = limit_dirty(&path, Some(ByteCount(u64::MAX))).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Io, "{refused}");
    assert_eq!(fs::read_to_string(&strict).unwrap(), "0\n", "half a limit is left");
    if by_ublk() {
        // Nobody gets the device after this one.
        assert!(stage.exporter.detach(device(1)).unwrap());
        return stage.finish();
    }
    // In use, it is let go later; the limit goes now.
    set();
    let opened = File::open(&path).unwrap();
    assert!(!stage.exporter.detach(device(1)).unwrap());
    assert_eq!(fs::read_to_string(&strict).unwrap(), "0\n");
    drop(opened);
    eventually("the device is forgotten", || stage.exporter.attached().is_empty());
    // What a process that was killed leaves: the next one with this number is ours, unless another program is faster.
    set();
    let next = stage.attach(1, &volume, 64 * MIB, Access::ReadWrite);
    if next == path {
        assert_eq!(fs::read_to_string(&strict).unwrap(), "0\n");
    } else {
        limit_dirty(&path, None).unwrap();
    }
    assert!(stage.exporter.detach(device(1)).unwrap());
    stage.finish();
}

#[test]
fn root_a_device_that_waits_for_its_last_opener_can_be_kept() {
    if skipped_without_export() {
        return;
    }
    let (stage, volume, path) = Stage::with_device(64 * MIB);
    run("mkfs.ext4", [Path::new("-q"), &path]);
    let mounted = Mounted::mount(&path, &stage.path("mnt"), "rw");
    assert!(!stage.exporter.detach(device(1)).unwrap());
    let other = stage.volume(2, 64 * MIB, Behaviour::default());
    let refused =
        stage.exporter.attach(device(1), Arc::clone(&other) as Arc<dyn Volume>, ByteCount(64 * MIB), Access::ReadWrite);
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::InUse);
    assert_eq!(stage.attach(1, &volume, 64 * MIB, Access::ReadWrite), path);
    mounted.unmount();
    assert_eq!(stage.exporter.attached(), [(device(1), false)]);
    run("e2fsck", [Path::new("-fn"), &path]);
    assert!(stage.exporter.detach(device(1)).unwrap());
    stage.finish();
}

#[test]
fn root_a_full_volume_says_no_space_to_the_writer() {
    if skipped_without_export() {
        return;
    }
    let (stage, volume, path) = Stage::with_device(4 * MIB);
    volume.full.store(true, Ordering::SeqCst);
    let dd = Command::new("dd")
        .args(["if=/dev/zero", "bs=4096", "count=1", "oflag=direct", &format!("of={}", path.display())])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&dd.stderr).into_owned();
    assert!(!dd.status.success() && said.contains("No space left on device"), "dd said: {said}");
    assert!(stage.exporter.detach(device(1)).unwrap());
    stage.finish();
}

#[test]
fn root_a_second_device_with_the_same_id_is_refused() {
    if skipped_without_export() {
        return;
    }
    let stage = Stage::new();
    let volume = stage.volume(1, 4 * MIB, Behaviour::default());
    stage.attach(1, &volume, 4 * MIB, Access::ReadWrite);
    let again =
        stage.exporter.attach(device(1), Arc::clone(&volume) as Arc<dyn Volume>, ByteCount(4 * MIB), Access::ReadWrite);
    assert_eq!(again.unwrap_err().kind(), ErrorKind::InUse);
    assert!(stage.exporter.detach(device(2)).unwrap(), "an absent device is gone");
    stage.finish();
}

#[test]
fn root_what_the_filesystem_does_not_offer_is_refused_and_harms_nothing() {
    if skipped_without_export() || not_a_filesystem() {
        return;
    }
    let (stage, _volume, path) = Stage::with_device(4 * MIB);
    let dir = stage.path("export");
    let file = dir.join("1");
    assert!(File::create(dir.join("2")).is_err());
    assert!(fs::create_dir(dir.join("3")).is_err());
    assert!(fs::remove_file(&file).is_err());
    assert!(fs::rename(&file, dir.join("4")).is_err());
    assert!(fs::hard_link(&file, dir.join("5")).is_err());
    assert!(std::os::unix::fs::symlink("x", dir.join("6")).is_err());
    assert!(File::options().write(true).open(&file).unwrap().set_len(1).is_err());
    assert!(fs::metadata(dir.join("0x1")).is_err());
    assert!(fs::metadata(dir.join("01")).is_err());
    assert!(!Command::new("setfattr").args(["-n", "user.a", "-v", "b"]).arg(&file).status().is_ok_and(|s| s.success()));
    let names: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["1"]);
    assert_eq!(fs::metadata(&file).unwrap().len(), 4 * MIB);
    fio(&path, "--rw=randwrite --bs=4k --size=4m --verify=crc32c");
    stage.finish();
}

#[test]
fn root_a_living_exporter_keeps_its_directory_and_a_dead_one_is_cleared_away() {
    if skipped_without_export() {
        return;
    }
    let stage = Stage::new();
    let volume = stage.volume(1, 4 * MIB, Behaviour::default());
    stage.attach(1, &volume, 4 * MIB, Access::ReadWrite);
    if by_ublk() {
        // It would wait for a minute.
        return stage.finish();
    }
    let second = FuseExporter::start(ExportOptions::new(stage.path("export"))).map(drop);
    assert_eq!(second.unwrap_err().kind(), ErrorKind::InUse);
    stage.finish();

    let dir = tempfile::tempdir_in(std::env::var_os("TMPDIR").unwrap_or_else(|| "/var/tmp".into())).unwrap();
    let mut killed = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_process_that_is_killed", "--ignored", "--nocapture"])
        .env("EXPORT_TEST_DIR", dir.path())
        .spawn()
        .unwrap();
    eventually("the other process shows its device", || leftovers(dir.path()).len() == 2);
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert_eq!(leftovers(dir.path()).len(), 2, "a killed exporter leaves a mount and a loop device");
    let exporter = FuseExporter::start(ExportOptions::new(dir.path().join("export"))).unwrap();
    let left = leftovers(dir.path());
    exporter.shutdown().unwrap();
    assert_eq!(left.len(), 1, "only the new mount is there: {left:?}");
    assert_eq!(leftovers(dir.path()), Vec::<String>::new());
}

/// The other process of the test above.
#[test]
#[ignore = "started by another test"]
fn the_process_that_is_killed() {
    let dir = PathBuf::from(std::env::var_os("EXPORT_TEST_DIR").unwrap());
    let exporter = FuseExporter::start(ExportOptions::new(dir.join("export"))).unwrap();
    let volume = FileVolume::create(&dir.join("volume"), 4 * MIB, Behaviour::default()).unwrap();
    exporter.attach(device(1), Arc::new(volume), ByteCount(4 * MIB), Access::ReadWrite).unwrap();
    loop {
        std::thread::park();
    }
}
