//! What only ublk devices promise: their server may die under full load, and nobody has to hold anything for them.

// All of this is test code, helpers too: clippy lets tests unwrap.
#![cfg(test)]

#[path = "support/host_process.rs"]
mod host_process;
#[path = "support/host_tools.rs"]
mod host_tools;
#[path = "support/shown_by.rs"]
mod shown_by;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use thinsnap_pool::{Access, ByteCount, DeviceId, ErrorKind, HostKeeper, NoStore, StopOutcome, ThinPool};

use host_process::{HostDir, be_the_host};
use host_tools::{eventually, leftovers, run};
use shown_by::{skipped_without_ublk, ublk_devices};

const MIB: u64 = 1 << 20;
const POOL: ByteCount = ByteCount(512 * MIB);
const SIZE: ByteCount = ByteCount(64 * MIB);
const LONG: Duration = Duration::from_secs(600);
const BLOCK: usize = 4096;

fn device(id: u32) -> DeviceId {
    DeviceId::new(id).unwrap()
}

/// A pool whose host shows ublk devices and is kept.
struct Kept {
    keeper: Option<HostKeeper>,
    dir: HostDir,
}

impl Kept {
    fn new() -> Self {
        let mut kept = Self { keeper: None, dir: HostDir::by_ublk(POOL, LONG) };
        kept.keep();
        kept
    }

    fn keep(&mut self) {
        let mut options = self.dir.spawn_options();
        options.connect.patience = Duration::from_secs(60);
        let keeper = HostKeeper::start(options, Vec::new(), Arc::new(NoStore));
        self.keeper = Some(keeper.unwrap_or_else(|e| panic!("{e}; log: {}", self.dir.log())));
    }

    fn pool(&self) -> &dyn ThinPool {
        &**self.keeper.as_ref().unwrap().client()
    }

    fn host(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.keeper.as_ref().unwrap().client().info().pid).unwrap())
    }

    /// Kills the host and waits for the next one; how long nobody served.
    fn kill(&self) -> Duration {
        let restarts = self.keeper.as_ref().unwrap().restarts();
        let begun = Instant::now();
        kill(self.host(), Signal::SIGKILL).unwrap();
        while self.keeper.as_ref().unwrap().restarts() <= restarts {
            assert!(begun.elapsed() < Duration::from_secs(90), "no host serves; log: {}", self.dir.log());
            std::thread::park_timeout(Duration::from_millis(5));
        }
        begun.elapsed()
    }

    fn end(mut self) {
        let outcome = self.keeper.take().unwrap().close().unwrap();
        assert_eq!(outcome, StopOutcome::Stopping, "log: {}", self.dir.log());
        assert_eq!(leftovers(self.dir.path()), Vec::<String>::new());
        assert_eq!(ublk_devices(), Vec::<String>::new());
        assert!(!self.dir.path().join("export").exists(), "its directory goes with it");
    }
}

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(path).unwrap()
}

fn page(byte: u8) -> (Vec<u8>, usize) {
    let room = vec![byte; 2 * BLOCK];
    let start = room.as_ptr().align_offset(BLOCK);
    (room, start)
}

fn write_block(file: &File, index: u64, byte: u8) {
    let (room, start) = page(byte);
    file.write_all_at(&room[start..start + BLOCK], index * BLOCK as u64).unwrap();
}

fn read_block(file: &File, index: u64) -> u8 {
    let (mut room, start) = page(0);
    file.read_exact_at(&mut room[start..start + BLOCK], index * BLOCK as u64).unwrap();
    assert!(room[start..start + BLOCK].iter().all(|byte| *byte == room[start]), "block {index} is torn");
    room[start]
}

#[test]
fn root_fio_finds_every_byte_that_it_wrote_while_the_host_was_killed() {
    if skipped_without_ublk() {
        return;
    }
    let kept = Kept::new();
    kept.pool().create_thin(device(1)).unwrap();
    let path = kept.pool().activate(device(1), ByteCount(256 * MIB), Access::ReadWrite).unwrap();
    // More at once than the device has tags: whenever the host dies, some of them are with it, often all.
    let mut fio = Command::new("fio")
        .args(["--name=t", "--direct=1", "--ioengine=libaio", "--rw=randwrite", "--bsrange=4k-256k", "--size=256m"])
        .args(["--iodepth=192", "--fsync=200", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0"])
        .args(["--loops=3", "--randseed=11", "--output-format=terse"])
        .arg(format!("--filename={}", path.display()))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stalls = Vec::new();
    while fio.try_wait().unwrap().is_none() && stalls.len() < 8 {
        std::thread::park_timeout(Duration::from_millis(700));
        stalls.push(kept.kill());
    }
    let output = fio.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    println!("killed {} times; nobody served for {stalls:?}", stalls.len());
    assert!(stalls.len() >= 2, "fio was done before the second kill");
    assert!(stalls.iter().all(|stall| *stall < Duration::from_secs(25)), "a death went unnoticed: {stalls:?}");
    kept.end();
}

#[test]
fn root_many_devices_go_on_with_the_next_host() {
    if skipped_without_ublk() {
        return;
    }
    const DEVICES: u32 = 60;
    let kept = Kept::new();
    let files: Vec<File> = (0..DEVICES)
        .map(|id| {
            kept.pool().create_thin(device(id)).unwrap();
            open(&kept.pool().activate(device(id), SIZE, Access::ReadWrite).unwrap())
        })
        .collect();
    for round in 0..3_u8 {
        for (id, file) in (0_u8..).zip(&files) {
            write_block(file, u64::from(round), id.wrapping_mul(3).wrapping_add(round) | 1);
        }
        kept.kill();
    }
    for round in 0..3_u8 {
        for (id, file) in (0_u8..).zip(&files) {
            assert_eq!(read_block(file, u64::from(round)), id.wrapping_mul(3).wrapping_add(round) | 1, "device {id}");
        }
    }
    drop(files);
    kept.end();
}

#[test]
fn root_io_waits_for_a_host_that_comes_much_later() {
    if skipped_without_ublk() {
        return;
    }
    let mut kept = Kept::new();
    kept.pool().create_thin(device(1)).unwrap();
    let path = kept.pool().activate(device(1), SIZE, Access::ReadWrite).unwrap();
    let file = open(&path);
    write_block(&file, 5, 77);
    // Nobody keeps the host, and nothing of it: it dies without a successor.
    let host = kept.host();
    drop(kept.keeper.take());
    kill(host, Signal::SIGKILL).unwrap();
    let waiting = std::thread::spawn({
        let file = file.try_clone().unwrap();
        move || {
            write_block(&file, 6, 78);
            read_block(&file, 5)
        }
    });
    std::thread::park_timeout(Duration::from_secs(2));
    assert!(!waiting.is_finished(), "nobody serves, so nobody can have answered");
    assert_eq!(ublk_devices().len(), 1, "the driver keeps the device");
    kept.keep();
    assert_eq!(waiting.join().unwrap(), 77);
    assert_eq!(read_block(&file, 6), 78);
    assert_eq!(kept.pool().active_path(device(1)).unwrap(), Some(path));
    assert!(!kept.pool().deactivate(device(1)).unwrap(), "a process has it open");
    drop(file);
    eventually("the device that was leaving is gone", || kept.pool().active_path(device(1)).unwrap().is_none());
    kept.end();
}

#[test]
fn root_a_device_that_somebody_has_open_is_not_deleted_under_him() {
    if skipped_without_ublk() {
        return;
    }
    let kept = Kept::new();
    kept.pool().create_thin(device(1)).unwrap();
    let path = kept.pool().activate(device(1), SIZE, Access::ReadWrite).unwrap();
    let file = open(&path);
    assert_eq!(kept.pool().delete(device(1)).unwrap_err().kind(), ErrorKind::InUse);
    write_block(&file, 0, 9);
    kept.kill();
    assert_eq!(read_block(&file, 0), 9);
    drop(file);
    eventually("it is gone", || kept.pool().active_path(device(1)).unwrap().is_none());
    kept.pool().delete(device(1)).unwrap();
    // The driver's module can be unloaded again when nothing of ours is left.
    let users = || std::fs::read_to_string("/sys/module/ublk_drv/refcnt").map(|text| text.trim().to_owned());
    kept.end();
    eventually("nobody uses the driver", || users().is_ok_and(|count| count == "0"));
}

#[test]
fn root_a_partition_table_on_a_device_is_its_users_business() {
    if skipped_without_ublk() {
        return;
    }
    let kept = Kept::new();
    kept.pool().create_thin(device(1)).unwrap();
    let path = kept.pool().activate(device(1), SIZE, Access::ReadWrite).unwrap();
    let file = open(&path);
    let (mut room, start) = page(0);
    let sector = &mut room[start..start + BLOCK];
    // One partition of type 83 from sector 2048 on, as the MBR has it.
    sector[446..462].copy_from_slice(&[0, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 0x10, 0, 0]);
    sector[510..512].copy_from_slice(&[0x55, 0xaa]);
    file.write_all_at(sector, 0).unwrap();
    drop(file);
    assert!(kept.pool().deactivate(device(1)).unwrap());
    let path = kept.pool().activate(device(1), SIZE, Access::ReadWrite).unwrap();
    assert!(path.metadata().unwrap().file_type().is_block_device());
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    assert!(!Path::new(&format!("/sys/block/{name}/{name}p1")).exists());
    kept.end();
}

#[test]
fn root_nodes_are_made_where_nobody_else_makes_them() {
    if skipped_without_ublk() {
        return;
    }
    // A /dev of its own, as a container has it: the kernel's new nodes do not appear there.
    let script = r#"set -e
        mkdir -p "$1/dev"
        mount --make-rprivate /
        mount -t tmpfs dev "$1/dev"
        for node in null zero urandom random fuse ublk-control; do
            [ ! -e /dev/$node ] || cp -a /dev/$node "$1/dev/"
        done
        ln -s /proc/self/fd "$1/dev/fd"
        mount --move "$1/dev" /dev
        exec "$2" --exact the_exporter_without_nodes --ignored --nocapture"#;
    let dir = tempfile::tempdir_in(std::env::var_os("TMPDIR").unwrap_or_else(|| "/var/tmp".into())).unwrap();
    let program = std::env::current_exe().unwrap();
    let said = run(
        "env",
        [
            format!("UBLK_TEST_DIR={}", dir.path().display()).as_ref(),
            "unshare".as_ref(),
            "-m".as_ref(),
            "sh".as_ref(),
            "-c".as_ref(),
            script.as_ref(),
            "sh".as_ref(),
            dir.path().as_os_str(),
            program.as_os_str(),
        ],
    );
    assert!(said.contains("1 passed"), "{said}");
    assert_eq!(ublk_devices(), Vec::<String>::new());
}

/// The other process of the test above.
#[test]
#[ignore = "started by another test"]
fn the_exporter_without_nodes() {
    let dir = std::path::PathBuf::from(std::env::var_os("UBLK_TEST_DIR").unwrap());
    let host = HostDir::by_ublk(POOL, LONG);
    let client = host.host();
    client.create_thin(device(1)).unwrap();
    let path = client.activate(device(1), SIZE, Access::ReadWrite).unwrap();
    assert!(path.starts_with(host.path()), "{} is not ours; {}", path.display(), dir.display());
    let file = open(&path);
    write_block(&file, 1, 4);
    assert_eq!(read_block(&file, 1), 4);
    drop(file);
    assert!(client.deactivate(device(1)).unwrap());
    assert!(!path.exists());
    HostDir::stop(&client);
}

/// The other process of these tests.
#[test]
#[ignore = "started by other tests"]
fn the_host_process() {
    be_the_host();
}
