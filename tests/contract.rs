//! containerd's laws of a snapshotter, over a model pool and over both engines.

// All of this is test code, helpers too: clippy lets tests unwrap.
#![cfg(test)]

#[path = "support/client.rs"]
mod client;
#[path = "support/direct_client.rs"]
mod direct_client;
#[path = "support/laws.rs"]
mod laws;
#[path = "support/model_pool.rs"]
mod model_pool;
#[path = "support/mount_laws.rs"]
mod mount_laws;
#[expect(dead_code, reason = "the laws only wait")]
#[path = "support/process.rs"]
mod process;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use client::Client;
use direct_client::DirectClient;
use model_pool::ModelPool;
use thinsnap::config::{Profile, SnapshotterConfig};
use thinsnap::error::ErrorKind;
use thinsnap::snapshot::{FsType, Labels, Name, Space};
use thinsnap::snapshotter::{Snapshotter, TAKE_LABEL};
use thinsnap::store::Store;
use thinsnap_pool::{
    Access, BlockSize, ByteCount, CreateOptions, EmbeddedOptions, ExportOptions, FuseExporter, KernelOptions,
    PoolPaths, ThinPool, create, open_embedded, open_kernel,
};
use tonic::Code;

const MIB: u64 = 1 << 20;

fn config(dir: &Path) -> SnapshotterConfig {
    let profile = |fs, size| Profile { fs, size: ByteCount(size) };
    SnapshotterConfig {
        profiles: BTreeMap::from([("xfs".to_owned(), profile(FsType::Xfs, 320 * MIB))]),
        default_profile: profile(FsType::Ext4, 128 * MIB),
        data_floor: thinsnap::config::Share::Bytes(ByteCount(MIB)),
        metadata_floor: thinsnap::config::Share::Bytes(ByteCount(4096)),
        work_dir: dir.join("work"),
    }
}

fn snapshotter(pool: Arc<dyn ThinPool>, dir: &Path) -> Arc<Snapshotter> {
    Snapshotter::open(pool, Store::open(&dir.join("store.redb")).unwrap(), config(dir)).unwrap()
}

/// One test at a time: a process that one of them starts holds, between fork and exec, whatever files the
/// others have open, and an unmount in that moment finds its file system busy.
static ALONE: Mutex<()> = Mutex::new(());

/// Loop devices and mounts need root.
fn can_run(test: &str) -> Option<MutexGuard<'static, ()>> {
    if nix::unistd::geteuid().is_root() {
        return Some(ALONE.lock().unwrap_or_else(PoisonError::into_inner));
    }
    println!("SKIPPED: {test} needs root for loop devices and mounts");
    None
}

fn model(dir: &Path) -> Arc<ModelPool> {
    let files = dir.join("devices");
    std::fs::create_dir(&files).unwrap();
    Arc::new(ModelPool::new(&files))
}

fn run_laws(snapshotter: Arc<Snapshotter>, space: &str, dir: &Path, wanted: impl Fn(&str) -> bool) {
    let scratch = dir.join("laws");
    std::fs::create_dir(&scratch).unwrap();
    laws::run(&DirectClient::new(snapshotter, space), &scratch, wanted);
}

/// Runs the laws over a model pool, and then the file systems' own checkers over every device.
fn run_over_model(space: &str, wanted: impl Fn(&str) -> bool) {
    let dir = tempfile::tempdir().unwrap();
    let pool = model(dir.path());
    run_laws(snapshotter(pool.clone(), dir.path()), space, dir.path(), wanted);
    let devices = pool.devices().unwrap();
    assert!(devices.len() > 10);
    for id in devices {
        assert!(pool.deactivate(id).unwrap(), "device {id} is still open");
        let mut magic = [0; 4];
        File::open(pool.file(id)).unwrap().read_exact(&mut magic).unwrap();
        let checker = if &magic == b"XFSB" { ["xfs_repair", "-n", "-f"].as_slice() } else { &["e2fsck", "-fn"] };
        let output = Command::new(checker[0]).args(&checker[1..]).arg(pool.file(id)).output().unwrap();
        let words = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "device {id}: {words}{}", String::from_utf8_lossy(&output.stderr));
        assert!(!words.contains("lost+found"), "a checker misses lost+found: {words}");
    }
}

#[test]
fn root_the_laws_hold_on_ext4_over_a_model_pool() {
    if let Some(_alone) = can_run("the contract over a model pool") {
        run_over_model("ext4", |_| true);
    }
}

#[test]
fn root_the_laws_hold_on_xfs_over_a_model_pool() {
    if let Some(_alone) = can_run("the contract on XFS") {
        // The long chain says nothing about XFS, and an XFS mount takes its time.
        run_over_model("xfs", |claim| !claim.contains("128"));
    }
}

#[test]
fn root_a_prepare_that_names_a_migrated_snapshot_gets_it_once() {
    let Some(_alone) = can_run("taking a snapshot over") else { return };
    let dir = tempfile::tempdir().unwrap();
    let pool = model(dir.path());
    let snapshotter = snapshotter(pool.clone(), dir.path());
    let space = Space::new("ext4").unwrap();
    let name = |text: &str| Name::new(text).unwrap();
    let labels = |old: &str| Labels::from([(TAKE_LABEL.to_owned(), old.to_owned()), ("a".to_owned(), "1".to_owned())]);
    for (key, committed) in [("one", "base"), ("two", "other")] {
        snapshotter.prepare(&space, &name(key), None, Labels::new()).unwrap();
        snapshotter.commit(&space, &name(committed), &name(key), Labels::new(), None).unwrap();
    }
    let old = Labels::from([("b".to_owned(), "2".to_owned())]);
    let mounts = snapshotter.prepare(&space, &name("ns/4/web"), Some(&name("base")), old).unwrap();
    let before = snapshotter.stat(&space, &name("ns/4/web")).unwrap();
    let devices = pool.devices().unwrap();
    let take = |key: &str, parent: &str, old: &str| {
        snapshotter.prepare(&space, &name(key), Some(&name(parent)), labels(old)).map_err(|error| error.kind())
    };
    assert_eq!(take("ns/9/web", "other", "ns/4/web"), Err(ErrorKind::InvalidArgument));
    assert_eq!(take("ns/9/web", "base", "ns/4/none"), Err(ErrorKind::NotFound));
    assert_eq!(take("ns/9/web", "base", "other"), Err(ErrorKind::NotActive));
    assert_eq!(take("base", "base", "ns/4/web"), Err(ErrorKind::AlreadyExists));
    assert_eq!(take("ns/9/web", "base", "ns/4/web").unwrap(), mounts);
    assert_eq!(take("ns/10/web", "base", "ns/4/web"), Err(ErrorKind::NotFound));
    let after = snapshotter.stat(&space, &name("ns/9/web")).unwrap();
    assert_eq!((after.device, after.created_ns, after.parent), (before.device, before.created_ns, before.parent));
    assert_eq!(after.labels, Labels::from([("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())]));
    assert_eq!(pool.devices().unwrap(), devices, "no device was made");
    snapshotter.remove(&space, &name("ns/9/web")).unwrap();
    snapshotter.remove(&space, &name("base")).unwrap();
}

/// A pool of 8 GiB in files below `dir`.
fn create_pool(dir: &Path) -> PoolPaths {
    let paths = PoolPaths::in_dir(&dir.join("pool"));
    create(&CreateOptions {
        paths: paths.clone(),
        data_size: Some(ByteCount(8 << 30)),
        metadata_size: None,
        block_size: BlockSize::DEFAULT,
    })
    .unwrap();
    paths
}

#[test]
fn root_the_laws_hold_over_the_embedded_engine() {
    if let Some(_alone) = can_run("the contract over the embedded engine") {
        let dir = tempfile::tempdir().unwrap();
        let paths = create_pool(dir.path());
        let exporter = Arc::new(FuseExporter::start(ExportOptions::new(dir.path().join("export"))).unwrap());
        let pool = open_embedded(&paths, exporter, &EmbeddedOptions::default()).unwrap();
        let snapshotter = snapshotter(pool.clone(), dir.path());
        run_laws(snapshotter, "ext4", dir.path(), |_| true);
        pool.close().unwrap();
    }
}

/// It took two tries, of which the second came up to ten seconds after the first.
#[test]
fn root_a_removed_device_is_given_back_by_the_first_cleanup_after_its_last_user_has_gone() {
    let Some(_alone) = can_run("a removed device in use") else { return };
    let dir = tempfile::tempdir().unwrap();
    let paths = create_pool(dir.path());
    let exporter = Arc::new(FuseExporter::start(ExportOptions::new(dir.path().join("export"))).unwrap());
    let pool = open_embedded(&paths, exporter, &EmbeddedOptions::default()).unwrap();
    let snapshotter = snapshotter(pool.clone(), dir.path());
    let client = DirectClient::new(snapshotter.clone(), "ext4");
    let user = File::open(&client.prepare("a", "", &[]).unwrap()[0].source).unwrap();
    client.remove("a").unwrap();
    client.cleanup().unwrap();
    assert_eq!(snapshotter.limbo_len().unwrap(), 1, "somebody has it open");
    drop(user);
    client.cleanup().unwrap();
    assert_eq!(snapshotter.limbo_len().unwrap(), 0);
    assert_eq!(pool.devices().unwrap().len(), 1, "only the base device");
    drop((client, snapshotter));
    pool.close().unwrap();
}

#[test]
#[ignore = "make test-kernel runs it: it needs a kernel with dm-thin"]
fn root_the_laws_hold_over_the_kernel_engine() {
    let Some(_alone) = can_run("the contract over the kernel engine") else { return };
    let dir = tempfile::tempdir().unwrap();
    let paths = create_pool(dir.path());
    let options = KernelOptions { run_dir: dir.path().join("run"), ..KernelOptions::default() };
    let pool = open_kernel(&paths, &options).unwrap();
    let snapshotter = snapshotter(pool.clone(), dir.path());
    run_laws(snapshotter, "ext4", dir.path(), |_| true);
    for id in pool.devices().unwrap() {
        assert!(pool.deactivate(id).unwrap(), "device {id} is still open");
    }
    pool.close().unwrap();
}

#[test]
fn root_a_pool_below_its_floor_takes_no_new_snapshot_but_does_everything_else() {
    let Some(_alone) = can_run("the floor") else { return };
    let dir = tempfile::tempdir().unwrap();
    let pool = model(dir.path());
    let snapshotter = snapshotter(pool.clone(), dir.path());
    let client = DirectClient::new(snapshotter, "ext4");
    client.prepare("active", "", &[]).unwrap();
    client.prepare("other", "", &[]).unwrap();
    pool.set_data_free(MIB - 1);
    // The pool's state may be as old as the admission says; what is promised is that it gets through.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
    let refusal = loop {
        match client.prepare("new", "", &[]) {
            Err(failure) => break failure,
            Ok(_) => client.remove("new").unwrap(),
        }
        assert!(std::time::Instant::now() < deadline, "the floor is never seen");
    };
    assert_eq!(refusal.code, Code::ResourceExhausted, "{}", refusal.message);
    client.commit("layer", "active").unwrap();
    client.view("view", "layer", &[]).unwrap();
    client.mounts("other").unwrap();
    client.remove("other").unwrap();
    client.cleanup().unwrap();
    assert_eq!(client.list(&[]).unwrap().len(), 2);
}

#[test]
fn root_nothing_is_left_in_the_pool_when_everything_was_removed() {
    let Some(_alone) = can_run("the clean end") else { return };
    let dir = tempfile::tempdir().unwrap();
    let pool = model(dir.path());
    let snapshotter = snapshotter(pool.clone(), dir.path());
    let client = DirectClient::new(snapshotter.clone(), "ext4");
    for round in 0..3 {
        client.prepare("a", "", &[]).unwrap();
        client.commit("layer", "a").unwrap();
        client.prepare("b", "layer", &[]).unwrap();
        client.view("c", "layer", &[]).unwrap();
        for key in ["b", "c", "layer"] {
            client.remove(key).unwrap();
        }
        client.cleanup().unwrap();
        assert_eq!(pool.devices().unwrap().len(), 1, "round {round}: only the base device");
        assert_eq!(pool.status().unwrap().active_devices, 0, "round {round}");
        assert_eq!(snapshotter.limbo_len().unwrap(), 0, "round {round}");
    }
}

#[test]
fn root_a_reopened_service_finds_its_snapshots_and_activates_them_on_demand() {
    let Some(_alone) = can_run("reopening") else { return };
    let dir = tempfile::tempdir().unwrap();
    let pool = model(dir.path());
    let first = snapshotter(pool.clone(), dir.path());
    let client = DirectClient::new(first, "ext4");
    client.prepare("a", "", &[]).unwrap();
    client.commit("layer", "a").unwrap();
    client.prepare("active", "layer", &[]).unwrap();
    client.view("view", "layer", &[]).unwrap();
    drop(client);
    for id in pool.devices().unwrap() {
        assert!(pool.deactivate(id).unwrap(), "as a reboot would");
    }
    let second = snapshotter(pool.clone(), dir.path());
    let client = DirectClient::new(second, "ext4");
    for key in ["active", "view"] {
        let mounts = client.mounts(key).unwrap();
        assert!(mounts[0].source.exists(), "{key}");
    }
    assert_eq!(client.list(&[]).unwrap().len(), 3);
}

/// A service killed between a view's device and its record, or between the record's end and the device's, left the
/// block device behind for ever.
#[test]
fn root_a_device_that_no_snapshot_shows_is_deactivated_at_the_next_start() {
    let Some(_alone) = can_run("devices left active") else { return };
    let dir = tempfile::tempdir().unwrap();
    let pool = model(dir.path());
    let first = snapshotter(pool.clone(), dir.path());
    let client = DirectClient::new(first, "ext4");
    client.prepare("a", "", &[]).unwrap();
    client.commit("layer", "a").unwrap();
    client.prepare("active", "layer", &[]).unwrap();
    client.view("view", "layer", &[]).unwrap();
    client.remove("view").unwrap();
    client.cleanup().unwrap();
    drop(client);

    let is_active = |id| pool.active_path(id).unwrap().is_some();
    let (shown, hidden): (Vec<_>, Vec<_>) = pool.devices().unwrap().into_iter().partition(|id| is_active(*id));
    assert_eq!((shown.len(), hidden.len()), (1, 2), "the active one; the layer and the base device");
    let size = config(dir.path()).default_profile.size;
    for id in &hidden {
        pool.activate(*id, size, Access::ReadOnly).unwrap();
    }

    snapshotter(pool.clone(), dir.path()).cleanup().unwrap();
    assert!(shown.iter().all(|id| is_active(*id)));
    assert!(!hidden.iter().any(|id| is_active(*id)));
}
