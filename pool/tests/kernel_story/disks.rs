//! A pool on two disks that grow, fail their writes, or vanish when a test says so.

use std::path::{Path, PathBuf};
use std::process::Command;

use thinsnap_pool::{BlockSize, ByteCount, CreateOptions, EmbeddedOptions, KernelOptions, PoolPaths, create};

use crate::host_tools::run;
use crate::support::stage::BLOCK;

const SECTOR: u64 = 512;
/// Bytes of the files below: as far as a disk can grow.
const DATA_MAX: u64 = 64 << 20;
const METADATA_MAX: u64 = 8 << 20;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    Metadata,
    Data,
}

/// One disk: a linear mapping of a loop device, so that it can be exchanged under its user.
struct Frail {
    name: String,
    file: PathBuf,
    below: String,
    sectors: u64,
}

impl Frail {
    fn new(dir: &Path, name: &str, size: u64, most: u64) -> Self {
        let file = dir.join(name);
        std::fs::File::create(&file).unwrap().set_len(most).unwrap();
        let loop_arguments = ["--find", "--show", "--direct-io=on", file.to_str().unwrap()];
        let below = run("losetup", loop_arguments).trim().to_owned();
        let made = Self { name: format!("thinsnap-test-{name}"), file, below, sectors: size / SECTOR };
        run("dmsetup", ["create", &made.name, "--table", &made.linear()]);
        made
    }

    fn path(&self) -> PathBuf {
        Path::new("/dev/mapper").join(&self.name)
    }

    fn linear(&self) -> String {
        format!("0 {} linear {} 0", self.sectors, self.below)
    }

    fn load(&self, table: &str) {
        run("dmsetup", ["load", &self.name, "--table", table]);
        run("dmsetup", ["suspend", "--noflush", "--nolockfs", &self.name]);
        run("dmsetup", ["resume", &self.name]);
    }
}

impl Drop for Frail {
    fn drop(&mut self) {
        // Whoever stands on it goes first; a panic elsewhere leaves that to the next test's clean-up.
        let _ = Command::new("dmsetup").args(["remove", "--retry", &self.name]).output();
        let _ = Command::new("losetup").args(["--detach", &self.below]).output();
    }
}

/// A pool in blocks of [`BLOCK`] on two such disks.
pub(crate) struct Disks {
    metadata: Frail,
    data: Frail,
    dir: tempfile::TempDir,
}

impl Disks {
    pub(crate) fn new(data_blocks: u64, metadata_blocks: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let metadata = Frail::new(dir.path(), "metadata", metadata_blocks * 4096, METADATA_MAX);
        let data = Frail::new(dir.path(), "data", data_blocks * BLOCK, DATA_MAX);
        let made = Self { metadata, data, dir };
        create(&CreateOptions {
            paths: made.paths(),
            data_size: None,
            metadata_size: Some(ByteCount(metadata_blocks * 4096)),
            block_size: BlockSize::from_bytes(BLOCK).unwrap(),
        })
        .unwrap();
        made
    }

    pub(crate) fn paths(&self) -> PoolPaths {
        PoolPaths { metadata: self.metadata.path(), data: self.data.path() }
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.dir.path().join("intent.log")
    }

    pub(crate) fn kernel_options(&self) -> KernelOptions {
        KernelOptions { run_dir: self.dir.path().join("run"), intent_log: Some(self.log()), ..KernelOptions::default() }
    }

    pub(crate) fn embedded_options(&self) -> EmbeddedOptions {
        EmbeddedOptions { intent_log: Some(self.log()), ..EmbeddedOptions::default() }
    }

    /// The metadata as it stands on the disk.
    pub(crate) fn image(&self) -> Vec<u8> {
        let mut image = std::fs::read(&self.metadata.file).unwrap();
        image.truncate(usize::try_from(self.metadata.sectors * SECTOR).unwrap());
        image
    }

    /// Puts metadata in the place of that on the disk, which nobody uses.
    pub(crate) fn put_image(&self, image: &[u8]) {
        use thinsnap_pool::{BlockDevice, FileDevice};
        let disk = FileDevice::open(&self.metadata.path()).unwrap();
        disk.write_at(image, 0).unwrap();
        disk.flush().unwrap();
    }

    pub(crate) fn grow(&mut self, data_blocks: u64, metadata_blocks: u64) {
        self.data.sectors = data_blocks * BLOCK / SECTOR;
        self.metadata.sectors = metadata_blocks * 4096 / SECTOR;
        self.mend();
    }

    /// Both disks vanish, the metadata first: nothing that is on its way gets there.
    pub(crate) fn vanish(&self) {
        for disk in [&self.metadata, &self.data] {
            disk.load(&format!("0 {} error", disk.sectors));
        }
    }

    /// The disk reads, and fails every write.
    pub(crate) fn fail_writes(&self, which: Which) {
        let disk = if which == Which::Metadata { &self.metadata } else { &self.data };
        disk.load(&format!("0 {} flakey {} 0 0 3600 1 error_writes", disk.sectors, disk.below));
    }

    /// Both disks are well, and as large as they were asked to be.
    pub(crate) fn mend(&self) {
        for disk in [&self.metadata, &self.data] {
            disk.load(&disk.linear());
        }
    }
}
