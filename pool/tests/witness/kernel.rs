//! The kernel's dm-thin as a player, driven by dmsetup on loop devices.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use thinsnap_pool::{DeviceId, PoolPaths};

use crate::truth::{BLOCK, Counts, DEVICE_SIZE, Player, SECTOR};

/// Runs a program to its end; what it printed, or a panic with all that it said.
pub(crate) fn run<A: AsRef<OsStr>>(program: &str, arguments: &[A]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|e| panic!("start {program}: {e}"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let arguments: Vec<_> = arguments.iter().map(|a| a.as_ref().to_string_lossy()).collect();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {}: {said}{errors}", arguments.join(" "), output.status);
    said
}

/// A loop device on a file; detached when dropped.
pub(crate) struct Loop {
    pub(crate) path: PathBuf,
}

impl Loop {
    pub(crate) fn attach(file: &Path) -> Self {
        let said = run("losetup", &["--find", "--show", "--direct-io=on", file.to_str().unwrap()]);
        Self { path: PathBuf::from(said.trim_end()) }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.path).status();
    }
}

/// A device of device-mapper; removed when dropped.
pub(crate) struct Mapped {
    pub(crate) name: String,
}

impl Mapped {
    /// Makes a device with a name of its own.
    pub(crate) fn create(kind: &str, table: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("thinsnap-test-{}-{kind}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        run("dmsetup", &["create", &name, "--table", table]);
        Self { name }
    }

    pub(crate) fn path(&self) -> PathBuf {
        Path::new("/dev/mapper").join(&self.name)
    }

    pub(crate) fn message(&self, words: &str) {
        run("dmsetup", &["message", &self.name, "0", words]);
    }

    /// The words after the name of the target.
    pub(crate) fn status(&self) -> Vec<String> {
        let said = run("dmsetup", &["status", &self.name]);
        said.split_whitespace().skip(3).map(str::to_owned).collect()
    }

    fn suspend(&self) {
        run("dmsetup", &["suspend", &self.name]);
    }

    fn resume(&self) {
        run("dmsetup", &["resume", &self.name]);
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let _ = Command::new("dmsetup").args(["remove", "--retry", &self.name]).status();
    }
}

/// A pool that the kernel serves. The order of the fields is the order in which it is taken down.
pub(crate) struct Kernel {
    thins: BTreeMap<DeviceId, (File, Mapped)>,
    pool: Mapped,
    paths: PoolPaths,
    metadata: Loop,
    data: Loop,
}

fn pool_table(metadata: &Loop, data: &Loop, paths: &PoolPaths) -> String {
    let sectors = paths.data.metadata().unwrap().len() / SECTOR;
    let (metadata, data) = (metadata.path.display(), data.path.display());
    format!("0 {sectors} thin-pool {metadata} {data} {} 0 1 error_if_no_space", BLOCK / SECTOR)
}

impl Kernel {
    /// Opens a pool with these devices.
    pub(crate) fn open(paths: &PoolPaths, devices: &[DeviceId]) -> Self {
        let (metadata, data) = (Loop::attach(&paths.metadata), Loop::attach(&paths.data));
        let pool = Mapped::create("pool", &pool_table(&metadata, &data, paths));
        let mut player = Self { thins: BTreeMap::new(), pool, paths: paths.clone(), metadata, data };
        let status = player.pool.status();
        assert!(!status.iter().any(|word| word == "needs_check" || word == "ro"), "the kernel says {status:?}");
        for id in devices {
            player.activate(*id);
        }
        player
    }

    fn activate(&mut self, id: DeviceId) {
        let table = format!("0 {} thin {} {id}", DEVICE_SIZE / SECTOR, self.pool.path().display());
        let thin = Mapped::create("thin", &table);
        let file = OpenOptions::new().read(true).write(true).open(thin.path()).unwrap();
        self.thins.insert(id, (file, thin));
    }

    pub(crate) fn metadata_device(&self) -> PathBuf {
        self.metadata.path.clone()
    }

    pub(crate) fn data_device(&self) -> PathBuf {
        self.data.path.clone()
    }

    /// Holds the committed metadata for readers beside the pool; it stays held when the pool is closed.
    pub(crate) fn hold_metadata(&self) {
        self.pool.message("reserve_metadata_snap");
    }

    pub(crate) fn release_metadata(&self) {
        self.pool.message("release_metadata_snap");
    }
}

impl Player for Kernel {
    fn name(&self) -> &'static str {
        "the kernel"
    }

    fn create(&mut self, id: DeviceId) {
        self.pool.message(&format!("create_thin {id}"));
        self.activate(id);
    }

    fn snap(&mut self, id: DeviceId, origin: DeviceId) {
        let (file, thin) = &self.thins[&origin];
        file.sync_all().unwrap();
        thin.suspend();
        self.pool.message(&format!("create_snap {id} {origin}"));
        thin.resume();
        self.activate(id);
    }

    fn delete(&mut self, id: DeviceId) {
        self.thins.remove(&id);
        self.pool.message(&format!("delete {id}"));
    }

    fn write(&mut self, id: DeviceId, offset: u64, bytes: &[u8]) {
        self.thins[&id].0.write_all_at(bytes, offset).unwrap();
    }

    fn discard(&mut self, id: DeviceId, offset: u64, len: u64) {
        let (file, thin) = &self.thins[&id];
        file.sync_all().unwrap();
        let (offset, len) = (offset.to_string(), len.to_string());
        run("blkdiscard", &["--offset", &offset, "--length", &len, thin.path().to_str().unwrap()]);
    }

    fn flush(&mut self, id: DeviceId) {
        self.thins[&id].0.sync_all().unwrap();
    }

    fn read(&mut self, id: DeviceId) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(DEVICE_SIZE).unwrap()];
        self.thins[&id].0.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    fn grow(&mut self, data: u64, metadata: u64) {
        for (path, size, device) in
            [(&self.paths.data, data, &self.data), (&self.paths.metadata, metadata, &self.metadata)]
        {
            OpenOptions::new().write(true).open(path).unwrap().set_len(size).unwrap();
            run("losetup", &["--set-capacity", device.path.to_str().unwrap()]);
        }
        let table = pool_table(&self.metadata, &self.data, &self.paths);
        self.pool.suspend();
        run("dmsetup", &["reload", &self.pool.name, "--table", &table]);
        self.pool.resume();
    }

    fn step_transaction(&mut self, from: u64) {
        self.pool.message(&format!("set_transaction_id {from} {}", from + 1));
    }

    fn counts(&mut self) -> Counts {
        for (file, _) in self.thins.values() {
            file.sync_all().unwrap();
        }
        let status = self.pool.status();
        let (used, total) = status[2].split_once('/').unwrap();
        let mapped = |thin: &Mapped| thin.status()[0].parse::<u64>().unwrap() / (BLOCK / SECTOR);
        Counts {
            transaction: status[0].parse().unwrap(),
            data_used: used.parse().unwrap(),
            data_total: total.parse().unwrap(),
            mapped: self.thins.iter().map(|(id, (_, thin))| (*id, mapped(thin))).collect(),
        }
    }

    fn close(self: Box<Self>) {
        let Self { thins, pool, metadata, data, .. } = *self;
        for (file, thin) in thins.into_values() {
            file.sync_all().unwrap();
            drop((file, thin));
        }
        let path = pool.path();
        drop(pool);
        assert!(!path.exists(), "the kernel's pool is still there");
        drop((metadata, data));
    }
}
