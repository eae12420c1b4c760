//! What is refused, with the kind, what is wrong, and the next step.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::process::Command;

use thinsnap_pool::{
    Access, AdoptOptions, BlockSize, ByteCount, CreateOptions, DeviceId, EmbeddedOptions, Error, ErrorKind,
    KernelOptions, KernelPool, PoolMode, PoolPaths, ThinPool, create, open_embedded, open_kernel,
};

use crate::host_tools::{eventually, run};
use crate::support::direct_exporter::DirectExporter;
use crate::support::disk::Disk;
use crate::support::kernel_stage::KernelDir;
use crate::support::stage::{BLOCK, OpenDisk};
use crate::turn;

const SIZE: ByteCount = ByteCount(64 * BLOCK);

fn id(number: u32) -> DeviceId {
    DeviceId::new(number).unwrap()
}

fn kernel_error(dir: &KernelDir) -> Error {
    open_kernel(&dir.paths(), &dir.options()).err().expect("it is refused")
}

fn assert_says(error: &Error, kind: ErrorKind, word: &str) {
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(word), "{error}");
}

#[test]
#[ignore = "make test-kernel runs it: it needs a kernel with dm-thin"]
fn root_one_engine_at_a_time_has_the_pool() {
    let Some(_turn) = turn() else { return };
    let dir = KernelDir::new();
    let embedded = || open_embedded(&dir.paths(), DirectExporter::new(), &EmbeddedOptions::default());
    let pool = embedded().unwrap();
    assert_says(&kernel_error(&dir), ErrorKind::InUse, "has it");
    pool.close().unwrap();
    drop(pool);

    let pool = dir.open();
    assert_says(&kernel_error(&dir), ErrorKind::InUse, "another process of thinsnap");
    // Whatever directory the other one uses for its marks.
    let elsewhere = KernelOptions { run_dir: dir.path().join("elsewhere"), ..dir.options() };
    let error = open_kernel(&dir.paths(), &elsewhere).err().unwrap();
    assert_says(&error, ErrorKind::InUse, "another process of thinsnap");
    assert_says(&embedded().err().unwrap(), ErrorKind::InUse, "the kernel serves a pool on");
    // Also when the process that started it is gone: the kernel goes on.
    drop(pool);
    assert_says(&embedded().err().unwrap(), ErrorKind::InUse, "the kernel serves a pool on");
    dir.open().close().unwrap();
    embedded().unwrap().close().unwrap();
}

#[test]
#[ignore = "make test-kernel runs it: it needs a kernel with dm-thin"]
fn root_names_and_tables_of_others_are_left_alone() {
    let Some(_turn) = turn() else { return };
    let dir = KernelDir::new();
    let pool = dir.open();
    let prefix = KernelDir::prefix(&pool);
    let identity = pool.status().unwrap().identity;
    pool.create_thin(id(1)).unwrap();
    // A thin device's name.
    run("dmsetup", ["create", &format!("{prefix}1"), "--table", "0 8 error"]);
    assert_says(&pool.activate(id(1), SIZE, Access::ReadWrite).unwrap_err(), ErrorKind::InUse, "not ours");
    assert_says(&pool.delete(id(1)).unwrap_err(), ErrorKind::InUse, "not ours");
    run("dmsetup", ["remove", &format!("{prefix}1")]);

    // The pool runs, and a copy of its files is opened.
    let copy = tempfile::tempdir().unwrap();
    let copied = PoolPaths::in_dir(copy.path());
    for (from, to) in [(dir.paths().metadata, &copied.metadata), (dir.paths().data, &copied.data)] {
        std::fs::copy(from, to).unwrap();
    }
    let error = open_kernel(&copied, &dir.options()).err().unwrap();
    assert_says(&error, ErrorKind::InUse, "copy");
    pool.close().unwrap();

    // The pool's name.
    run("dmsetup", ["create", &format!("{prefix}pool"), "--table", "0 8 error"]);
    drop(pool);
    assert_says(&kernel_error(&dir), ErrorKind::InUse, "not this pool");
    run("dmsetup", ["remove", &format!("{prefix}pool")]);

    // Tables of others under our names and uuids.
    let digits: String = identity.iter().map(|byte| format!("{byte:02x}")).collect();
    let uuid = |end: &str| format!("THINSNAP-{digits}-{end}");
    run("dmsetup", ["create", &format!("{prefix}pool"), "--uuid", &uuid("pool"), "--table", "0 8 error"]);
    assert_says(&kernel_error(&dir), ErrorKind::Invalid, &format!("dmsetup remove {prefix}pool"));
    run("dmsetup", ["remove", &format!("{prefix}pool")]);
    let pool = dir.open();
    run("dmsetup", ["create", &format!("{prefix}1"), "--uuid", &uuid("1"), "--table", "0 8 error"]);
    let error = pool.activate(id(1), SIZE, Access::ReadWrite).unwrap_err();
    assert_says(&error, ErrorKind::Invalid, &format!("dmsetup remove {prefix}1"));
    run("dmsetup", ["remove", &format!("{prefix}1")]);
    pool.close().unwrap();
    drop(pool);

    // A file that another program has bound.
    let bound = run("losetup", ["--find", "--show", dir.paths().data.to_str().unwrap()]).trim().to_owned();
    assert_says(&kernel_error(&dir), ErrorKind::InUse, &bound);
    run("losetup", ["--detach", &bound]);
    dir.open().close().unwrap();
}

#[test]
#[ignore = "make test-kernel runs it: it needs a kernel with dm-thin"]
fn root_transaction_ids_are_compared() {
    let Some(_turn) = turn() else { return };
    let dir = KernelDir::new();
    let pool = dir.open();
    pool.set_transaction_id(0, 5).unwrap();
    assert_says(&pool.set_transaction_id(4, 6).unwrap_err(), ErrorKind::Invalid, "stands at 5, ahead");
    assert_says(&pool.set_transaction_id(7, 8).unwrap_err(), ErrorKind::Invalid, "stands at 5, behind");
    pool.close().unwrap();
}

#[test]
#[ignore = "make test-kernel runs it: it needs a kernel with dm-thin"]
fn root_a_pool_that_is_not_sound_is_not_given_to_the_kernel() {
    let Some(_turn) = turn() else { return };
    let dir = KernelDir::new();
    let metadata = OpenOptions::new().read(true).write(true).open(dir.paths().metadata).unwrap();
    let mut whole = vec![0; 4096];
    metadata.read_exact_at(&mut whole, 0).unwrap();
    let mut hurt = whole.clone();
    hurt[100] ^= 1;
    metadata.write_all_at(&hurt, 0).unwrap();
    assert_eq!(kernel_error(&dir).kind(), ErrorKind::Corrupt);
    metadata.write_all_at(&[0; 4096], 0).unwrap();
    assert_says(&kernel_error(&dir), ErrorKind::NotFound, "there is no pool yet");
    // The needs_check flag, sealed anew.
    let mut flagged = whole.clone();
    flagged[4] |= 1;
    let sum = !crc32c::crc32c(&flagged[4..]) ^ 160_774;
    flagged[..4].copy_from_slice(&sum.to_le_bytes());
    metadata.write_all_at(&flagged, 0).unwrap();
    assert_eq!(kernel_error(&dir).kind(), ErrorKind::NeedsCheck);
    metadata.write_all_at(&whole, 0).unwrap();
    // Data cut short.
    let data = OpenOptions::new().write(true).open(dir.paths().data).unwrap();
    let len = data.metadata().unwrap().len();
    data.set_len(len - 1).unwrap();
    assert_says(&kernel_error(&dir), ErrorKind::Corrupt, "cut short");
    data.set_len(len).unwrap();
    // Metadata cut short.
    let len = metadata.metadata().unwrap().len();
    let mut end = vec![0; 4096];
    metadata.read_exact_at(&mut end, len - 4096).unwrap();
    metadata.set_len(len - 4096).unwrap();
    assert_says(&kernel_error(&dir), ErrorKind::Corrupt, "the device has room for");
    metadata.write_all_at(&end, len - 4096).unwrap();
    dir.open().close().unwrap();
}

#[test]
#[ignore = "make test-kernel runs it: it needs a kernel with dm-thin"]
fn root_devices_that_are_too_small_or_somebody_elses_are_refused() {
    let Some(_turn) = turn() else { return };
    let dir = KernelDir::new();
    let small = dir.path().join("small");
    std::fs::File::create(&small).unwrap().set_len(16 << 10).unwrap();
    let bound = run("losetup", ["--find", "--show", small.to_str().unwrap()]).trim().to_owned();
    let data = dir.path().join("room");
    std::fs::File::create(&data).unwrap().set_len(16 << 20).unwrap();
    let made = create(&CreateOptions {
        paths: PoolPaths { metadata: bound.clone().into(), data },
        data_size: None,
        metadata_size: None,
        block_size: BlockSize::DEFAULT,
    });
    let error = made.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert!(error.to_string().contains("metadata"), "{error}");
    run("losetup", ["--detach", &bound]);

    // Data on a disk that another program of the host has.
    let paths = dir.paths();
    let disk = run("losetup", ["--find", "--show", paths.data.to_str().unwrap()]).trim().to_owned();
    run("dmsetup", ["create", "thinsnap-test-busy", "--table", &format!("0 8 linear {disk} 0")]);
    let on_disk = PoolPaths { data: disk.clone().into(), ..paths };
    let error = open_kernel(&on_disk, &dir.options()).err().unwrap();
    assert_says(&error, ErrorKind::InUse, "a volume manager");
    run("dmsetup", ["remove", "thinsnap-test-busy"]);
    open_kernel(&on_disk, &dir.options()).unwrap().close().unwrap();
    run("losetup", ["--detach", &disk]);
    dir.open().close().unwrap();
}

#[test]
#[ignore = "make test-kernel runs it: it needs a kernel with dm-thin"]
fn root_a_pool_that_vanishes_or_breaks_says_so() {
    let Some(_turn) = turn() else { return };
    let dir = KernelDir::new();
    let pool = dir.open();
    let name = format!("{}pool", KernelDir::prefix(&pool));
    pool.create_thin(id(1)).unwrap();
    // Its metadata device is taken from under it.
    let table = run("dmsetup", ["table", &name]);
    let devices: Vec<&str> = table.split_whitespace().skip(3).take(2).collect();
    run("dmsetup", ["remove", &name]);
    run("dmsetup", ["create", "thinsnap-test-frail", "--table", &format!("0 8192 linear {} 0", devices[0])]);
    let frail = run("dmsetup", ["info", "--columns", "--noheadings", "-o", "major,minor", "thinsnap-test-frail"]);
    let broken = table.replacen(devices[0], frail.trim(), 1);
    assert_says(&pool.create_thin(id(2)).unwrap_err(), ErrorKind::NotFound, "no such device");
    assert_eq!(pool.status().unwrap_err().kind(), ErrorKind::NotFound);

    run("dmsetup", ["create", &name, "--table", broken.trim()]);
    run("dmsetup", ["suspend", "--noflush", "--nolockfs", "thinsnap-test-frail"]);
    run("dmsetup", ["load", "thinsnap-test-frail", "--table", "0 8192 error"]);
    run("dmsetup", ["resume", "thinsnap-test-frail"]);
    let error = pool.create_thin(id(2)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Io | ErrorKind::ReadOnly | ErrorKind::NeedsCheck), "{error}");
    // The kernel tries to go back to the last commit, and cannot read it.
    let error = pool.create_thin(id(3)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Io | ErrorKind::ReadOnly | ErrorKind::NeedsCheck), "{error}");
    let line = run("dmsetup", ["status", "--noflush", &name]);
    if line.contains("Fail") {
        let status = pool.status().unwrap();
        assert_eq!(status.mode, PoolMode::Fail);
        assert!(status.reason.unwrap().contains("metadata device"));
    }
    drop(pool);
    run("dmsetup", ["remove", &name]);
    run("dmsetup", ["remove", "thinsnap-test-frail"]);
    for device in &devices {
        let number = device.split(':').nth(1).unwrap();
        run("losetup", ["--detach", &format!("/dev/loop{number}")]);
    }
    // What was committed is there.
    let pool = dir.open();
    assert_eq!(pool.devices().unwrap(), [id(1)]);
    pool.close().unwrap();
}

#[test]
#[ignore = "make test-kernel runs it: it needs a kernel with dm-thin"]
fn root_somebody_elses_pool_is_looked_at_before_it_is_changed() {
    let Some(_turn) = turn() else { return };
    let dir = KernelDir::new();
    let pool = dir.open();
    let name = format!("{}pool", KernelDir::prefix(&pool));
    pool.create_thin(id(5)).unwrap();
    let path = pool.activate(id(5), SIZE, Access::ReadWrite).unwrap();
    Disk::open(&path).write(&[4; 65536], 0);
    eventually("nobody has the device", || pool.deactivate(id(5)).unwrap());
    let table = run("dmsetup", ["table", &name]);
    // Somebody may look at it at this moment.
    let remove = || Command::new("dmsetup").args(["remove", &name]).status().unwrap();
    eventually("the pool is not the first engine's any more", || remove().success());
    run("dmsetup", ["create", "vg-pool-tpool", "--uuid", "LVM-xyz-tpool", "--table", table.trim()]);

    let options = AdoptOptions { run_dir: dir.run_dir(), changes: false };
    assert_says(&KernelPool::adopt("nothing", &options).err().unwrap(), ErrorKind::NotFound, "lvchange");
    run("dmsetup", ["create", "vg-pool", "--table", "0 8 error"]);
    assert_says(&KernelPool::adopt("vg-pool", &options).err().unwrap(), ErrorKind::Invalid, "-tpool");
    run("dmsetup", ["remove", "vg-pool"]);

    let before = std::fs::read(dir.paths().metadata).unwrap();
    let adopted = KernelPool::adopt("/dev/mapper/vg-pool-tpool", &options).unwrap();
    assert_eq!(adopted.devices().unwrap(), [id(5)]);
    assert_eq!(adopted.usage(id(5)).unwrap().exclusive, ByteCount(BLOCK));
    assert_eq!(adopted.status().unwrap().devices, 1);
    for error in [
        adopted.create_thin(id(6)).unwrap_err(),
        adopted.create_snap(id(6), id(5)).unwrap_err(),
        adopted.delete(id(5)).unwrap_err(),
        adopted.set_transaction_id(0, 1).unwrap_err(),
        adopted.activate(id(5), SIZE, Access::ReadWrite).unwrap_err(),
        adopted.reserve_metadata_snapshot().unwrap_err(),
    ] {
        assert_says(&error, ErrorKind::ReadOnly, "allow changes");
    }
    let path = adopted.activate(id(5), SIZE, Access::ReadOnly).unwrap();
    let mut bytes = [0; 4096];
    Disk::open(&path).read(&mut bytes, 0);
    assert!(bytes == [4; 4096]);
    assert!(adopted.deactivate(id(5)).unwrap());
    assert!(std::fs::read(dir.paths().metadata).unwrap() == before, "looking has changed the pool");

    adopted.allow_changes().unwrap();
    adopted.create_snap(id(6), id(5)).unwrap();
    assert_eq!(adopted.devices().unwrap(), [id(5), id(6)]);
    assert_eq!(adopted.grow(Some(ByteCount(1 << 30)), None).unwrap_err().kind(), ErrorKind::Unsupported);
    adopted.close().unwrap();
    assert!(run("dmsetup", ["ls"]).contains("vg-pool-tpool"), "the pool is its owner's");
    run("dmsetup", ["remove", "vg-pool-tpool"]);
    drop((pool, adopted));
    dir.open().close().unwrap();
}
