//! A pool outlives the process that opened it, and what a killed process left half-done is put right.

use std::fs;

use thinsnap_pool::{Access, ByteCount, DeviceId, ErrorKind, PoolMode, ThinPool};

use crate::host_tools::{Mounted, leftovers, run};
use crate::support::disk::Disk;
use crate::support::kernel_stage::KernelDir;
use crate::support::stage::{BLOCK, OpenDisk};
use crate::turn;

const SIZE: ByteCount = ByteCount(64 * BLOCK);

fn id(number: u32) -> DeviceId {
    DeviceId::new(number).unwrap()
}

#[test]
#[ignore = "make test-kernel runs it: it needs a kernel with dm-thin"]
fn root_a_pool_goes_on_without_its_process_and_is_found_again() {
    let Some(_turn) = turn() else { return };
    let dir = KernelDir::new();
    let pool = dir.open();
    pool.create_thin(id(1)).unwrap();
    let path = pool.activate(id(1), SIZE, Access::ReadWrite).unwrap();
    let disk = Disk::open(&path);
    disk.write(&[7; 4096], 0);
    drop(pool);

    // Nobody of ours is there, and the device works.
    disk.write(&[8; 4096], 4096);
    disk.flush();
    let pool = dir.open();
    assert_eq!(pool.active_path(id(1)).unwrap(), Some(path.clone()));
    assert_eq!(pool.activate(id(1), SIZE, Access::ReadWrite).unwrap(), path);
    assert_eq!(pool.status().unwrap().devices, 1);
    assert_eq!(pool.close().unwrap_err().kind(), ErrorKind::InUse);
    let mut bytes = [0; 8192];
    disk.read(&mut bytes, 0);
    assert!(bytes[..4096] == [7; 4096] && bytes[4096..] == [8; 4096]);
    drop(disk);
    pool.close().unwrap();
    assert_eq!(leftovers(dir.path()), Vec::<String>::new());
}

#[test]
#[ignore = "make test-kernel runs it: it needs a kernel with dm-thin"]
fn root_what_a_kill_left_half_done_is_put_right() {
    let Some(_turn) = turn() else { return };
    let dir = KernelDir::new();
    let pool = dir.open();
    for number in 1..=3 {
        pool.create_thin(id(number)).unwrap();
        pool.activate(id(number), SIZE, Access::ReadWrite).unwrap();
    }
    let prefix = KernelDir::prefix(&pool);
    let hex: String = pool.status().unwrap().identity.iter().map(|byte| format!("{byte:02x}")).collect();
    drop(pool);

    // In the middle of a snapshot; of growing; of activating; of reading; of the pool's own growth.
    run("dmsetup", ["suspend", "--noflush", "--nolockfs", &format!("{prefix}1")]);
    let next = run("dmsetup", ["table", &format!("{prefix}2")]).replace("0 8192 thin", "0 16384 thin");
    run("dmsetup", ["load", &format!("{prefix}2"), "--table", next.trim()]);
    run("dmsetup", ["create", &format!("{prefix}9"), "--notable", "--uuid", &format!("THINSNAP-{hex}-9")]);
    let mark = dir.run_dir().join(format!("{prefix}pool.metadata-snapshot"));
    fs::write(&mark, "").unwrap();
    run("dmsetup", ["message", &format!("{prefix}pool"), "0", "reserve_metadata_snap"]);
    run("dmsetup", ["suspend", "--noflush", "--nolockfs", &format!("{prefix}pool")]);

    let pool = dir.open();
    let status = pool.status().unwrap();
    assert_eq!((status.mode, status.metadata_snapshot, status.active_devices), (PoolMode::Write, false, 3));
    assert!(!mark.exists());
    for number in 1..=3 {
        let path = pool.active_path(id(number)).unwrap().unwrap();
        let disk = Disk::open(&path);
        disk.write(&[1; 4096], 0);
        disk.flush();
    }
    assert_eq!(pool.active_path(id(9)).unwrap(), None);
    assert!(!run("dmsetup", ["info", &format!("{prefix}2")]).contains("INACTIVE"));
    pool.close().unwrap();
}

#[test]
#[ignore = "make test-kernel runs it: it needs a kernel with dm-thin"]
fn root_a_start_that_was_cut_short_is_begun_again() {
    let Some(_turn) = turn() else { return };
    let dir = KernelDir::new();
    let pool = dir.open();
    let prefix = KernelDir::prefix(&pool);
    let hex: String = pool.status().unwrap().identity.iter().map(|byte| format!("{byte:02x}")).collect();
    drop(pool);
    // The pool's device is made and not set up; the files are bound and locked.
    run("dmsetup", ["remove", &format!("{prefix}pool")]);
    run("dmsetup", ["create", &format!("{prefix}pool"), "--notable", "--uuid", &format!("THINSNAP-{hex}-pool")]);
    assert_eq!(leftovers(dir.path()).len(), 2);
    let pool = dir.open();
    pool.create_thin(id(1)).unwrap();
    assert_eq!(leftovers(dir.path()).len(), 2);
    pool.close().unwrap();
}

#[test]
#[ignore = "make test-kernel runs it: it needs a kernel with dm-thin"]
fn root_a_snapshot_of_a_mounted_device_has_all_that_was_synced() {
    let Some(_turn) = turn() else { return };
    let dir = KernelDir::new();
    let pool = dir.open();
    pool.create_thin(id(1)).unwrap();
    let path = pool.activate(id(1), ByteCount(12 << 20), Access::ReadWrite).unwrap();
    run("mkfs.ext4", ["-q", path.to_str().unwrap()]);
    let mounted = Mounted::mount(&path, &dir.path().join("a"), "noatime");
    fs::write(mounted.at.join("file"), vec![5; 100_000]).unwrap();
    run("sync", ["-f", mounted.at.to_str().unwrap()]);
    pool.create_snap(id(2), id(1)).unwrap();
    fs::write(mounted.at.join("file"), vec![6; 100_000]).unwrap();
    let path = pool.activate(id(2), ByteCount(12 << 20), Access::ReadWrite).unwrap();
    let snapshot = Mounted::mount(&path, &dir.path().join("b"), "noatime");
    assert!(fs::read(snapshot.at.join("file")).unwrap() == vec![5; 100_000]);
    snapshot.unmount();
    mounted.unmount();
    pool.close().unwrap();
}

#[test]
#[ignore = "make test-kernel runs it: it needs a kernel with dm-thin"]
fn root_unmapped_blocks_show_an_external_device() {
    let Some(_turn) = turn() else { return };
    let dir = KernelDir::new();
    let image = dir.path().join("image");
    fs::write(&image, vec![9; 3 * 65536]).unwrap();
    let external = run("losetup", ["--find", "--show", "--read-only", image.to_str().unwrap()]).trim().to_owned();
    let pool = dir.open();
    pool.create_thin(id(1)).unwrap();
    let path = pool.activate_over(id(1), SIZE, Access::ReadWrite, external.as_ref()).unwrap();
    let disk = Disk::open(&path);
    disk.write(&[1; 4096], BLOCK + 4096);
    let mut bytes = vec![0; 4 * 65536];
    disk.read(&mut bytes, 0);
    assert!(bytes[..65536 + 4096].iter().all(|&byte| byte == 9));
    assert!(bytes[65536 + 4096..65536 + 8192].iter().all(|&byte| byte == 1));
    assert!(bytes[65536 + 8192..3 * 65536].iter().all(|&byte| byte == 9));
    assert!(bytes[3 * 65536..].iter().all(|&byte| byte == 0));
    // It grows, and the device below stays.
    pool.activate(id(1), ByteCount(2 * SIZE.0), Access::ReadWrite).unwrap();
    disk.read(&mut bytes[..4096], 0);
    assert!(bytes[..4096].iter().all(|&byte| byte == 9));
    drop(disk);
    pool.close().unwrap();
    run("losetup", ["--detach", &external]);
}
