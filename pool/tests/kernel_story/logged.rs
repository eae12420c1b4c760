//! What the embedded engine's intent log keeps from the kernel, and how a pool gets over that.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use thinsnap_pool::{
    Access, ByteCount, DeviceId, EmbeddedPool, ErrorKind, Exporter, PoolPaths, ThinPool, drain, open_embedded,
    open_kernel,
};

use crate::host_tools::run;
use crate::kernel_story::disks::Disks;
use crate::support::direct_exporter::DirectExporter;
use crate::support::disk::Disk;
use crate::support::judges::{assert_sound, assert_thin_check_accepts};
use crate::support::stage::{BLOCK, OpenDisk};
use crate::turn;

const SIZE: ByteCount = ByteCount(16 * BLOCK);
/// Where the mark stands: the highest byte of compat_ro_flags.
const MARK: usize = 359;

fn id(number: u32) -> DeviceId {
    DeviceId::new(number).unwrap()
}

/// A pool with device 1 in which block 3 was written, acknowledged, and not committed.
struct Served {
    pool: Arc<EmbeddedPool>,
    exporter: Arc<DirectExporter>,
}

fn serve(disks: &Disks) -> Served {
    let exporter = DirectExporter::new();
    let shown: Arc<dyn Exporter> = Arc::clone(&exporter) as _;
    let pool = open_embedded(&disks.paths(), shown, &disks.embedded_options()).unwrap();
    pool.set_commit_period(std::time::Duration::from_secs(3600));
    pool.create_thin(id(1)).unwrap();
    pool.activate(id(1), SIZE, Access::ReadWrite).unwrap();
    exporter.open(id(1)).write_at(&[7; 65536], 3 * BLOCK).unwrap();
    Served { pool, exporter }
}

/// The disks as they are at this moment, in place of what the living engine goes on to make of them: a kill.
fn kill(disks: &Disks, served: Served) {
    let (image, log) = (disks.image(), std::fs::read(disks.log()).unwrap());
    let Served { pool, exporter } = served;
    drop(exporter);
    pool.close().unwrap();
    drop(pool);
    disks.put_image(&image);
    std::fs::write(disks.log(), log).unwrap();
}

fn plain_kernel_takes(paths: &PoolPaths) -> bool {
    let sectors = run("blockdev", ["--getsz", paths.data.to_str().unwrap()]);
    let (metadata, data) = (paths.metadata.display(), paths.data.display());
    let table = format!("0 {} thin-pool {metadata} {data} 128 0", sectors.trim());
    let made = Command::new("dmsetup").args(["create", "thinsnap-test-plain", "--table", &table]).output().unwrap();
    if made.status.success() {
        run("dmsetup", ["remove", "thinsnap-test-plain"]);
    }
    made.status.success()
}

fn kernel_reads_block_3(disks: &Disks) -> u8 {
    let pool = open_kernel(&disks.paths(), &disks.kernel_options()).unwrap();
    let path = pool.activate(id(1), SIZE, Access::ReadOnly).unwrap();
    let mut bytes = vec![0; 65536];
    Disk::open(&path).read(&mut bytes, 3 * BLOCK);
    pool.close().unwrap();
    assert!(bytes.iter().all(|&byte| byte == bytes[0]), "block 3 is of one piece");
    bytes[0]
}

#[test]
#[ignore = "make test-kernel runs it: it needs a kernel with dm-thin"]
fn root_no_kernel_takes_a_pool_whose_log_matters_and_every_checker_does() {
    let Some(_turn) = turn() else { return };
    let disks = Disks::new(256, 512);
    assert!(plain_kernel_takes(&disks.paths()));
    let served = serve(&disks);
    let image = disks.image();
    assert_eq!(image[MARK], 1, "the mark is there before the first record is");
    assert_sound(&image, "marked");
    assert_thin_check_accepts(&image, "marked");
    kill(&disks, served);
    assert!(!plain_kernel_takes(&disks.paths()), "the kernel would hand out blocks that are in use");
    // Without a word about the log nobody knows that it is safe.
    let blind = thinsnap_pool::KernelOptions { intent_log: None, ..disks.kernel_options() };
    let error = open_kernel(&disks.paths(), &blind).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::InUse, "{error}");

    let drained = drain(&disks.paths(), &disks.log()).unwrap();
    assert!(drained.marked && drained.records == 1, "{drained:?}");
    assert_eq!(drain(&disks.paths(), &disks.log()).unwrap(), thinsnap_pool::Drained::default());
    assert!(!disks.log().exists());
    assert_eq!(disks.image()[MARK], 0);
    assert!(plain_kernel_takes(&disks.paths()));
    assert_eq!(kernel_reads_block_3(&disks), 7);
}

#[test]
#[ignore = "make test-kernel runs it: it needs a kernel with dm-thin"]
fn root_opening_for_the_kernel_commits_what_a_killed_engine_had_acknowledged() {
    let Some(_turn) = turn() else { return };
    let disks = Disks::new(256, 512);
    kill(&disks, serve(&disks));
    assert_eq!(kernel_reads_block_3(&disks), 7, "it was acknowledged");
    assert!(!disks.log().exists());
    assert_thin_check_accepts(&disks.image(), "drained");
}

#[test]
#[ignore = "make test-kernel runs it: it needs a kernel with dm-thin"]
fn root_after_a_power_cut_the_mark_goes_and_what_was_not_flushed_with_it() {
    let Some(_turn) = turn() else { return };
    // The log is gone with its tmpfs; it is of another boot; a kill fell between mark and log.
    for what in ["gone", "of another boot"] {
        let disks = Disks::new(256, 512);
        kill(&disks, serve(&disks));
        match what {
            "gone" => std::fs::remove_file(disks.log()).unwrap(),
            _ => reboot(&disks.log()),
        }
        assert!(!plain_kernel_takes(&disks.paths()), "{what}");
        assert_eq!(kernel_reads_block_3(&disks), 0, "{what}: a void log is not replayed");
        assert_eq!(disks.image()[MARK], 0, "{what}");
        assert!(plain_kernel_takes(&disks.paths()), "{what}");
    }
}

/// Makes a log look as if it were written before the last boot: word 4 of both slots of its header, sealed anew.
fn reboot(log: &Path) {
    let mut bytes = std::fs::read(log).unwrap();
    for slot in [0, 512] {
        bytes[slot + 32] ^= 1;
        let seal = crc32c::crc32c(&bytes[slot..slot + 13 * 8]);
        let word = u64::from(seal) | u64::from(!seal) << 32;
        bytes[slot + 13 * 8..slot + 14 * 8].copy_from_slice(&word.to_le_bytes());
    }
    std::fs::write(log, bytes).unwrap();
}

#[test]
#[ignore = "make test-kernel runs it: it needs a kernel with dm-thin"]
fn root_a_living_engine_and_a_log_that_cannot_be_believed_keep_the_kernel_out() {
    let Some(_turn) = turn() else { return };
    let disks = Disks::new(256, 512);
    let served = serve(&disks);
    let error = open_kernel(&disks.paths(), &disks.kernel_options()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::InUse, "{error}");
    assert!(error.to_string().contains("stop the service"), "{error}");
    kill(&disks, served);

    let good = std::fs::read(disks.log()).unwrap();
    let mut bad = good.clone();
    // The only record.
    bad[4096 + 8] ^= 1;
    std::fs::write(disks.log(), &bad).unwrap();
    let before = disks.image();
    let error = open_kernel(&disks.paths(), &disks.kernel_options()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::DoubtfulLog, "{error}");
    assert!(error.to_string().contains("discard-intent-log"), "{error}");
    assert!(disks.image() == before && std::fs::read(disks.log()).unwrap() == bad, "nothing was changed");
    std::fs::write(disks.log(), &good).unwrap();
    assert_eq!(kernel_reads_block_3(&disks), 7);
}
