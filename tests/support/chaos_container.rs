//! A mounted container under load that notices every wrong byte: fio with checksums, and files that come and go.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount, umount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::close;

use super::dice::Dice;
use super::process::{must, program, wait_until};

/// Bytes of the largest file that comes and goes.
const FILE_MAX: usize = 3 << 20;

/// How fio writes in a container.
#[derive(Clone, Copy)]
pub(crate) enum Style {
    /// Direct writes of one size, many at a time, a flush now and then.
    Direct,
    /// Direct writes of many sizes, flushed often.
    Flushing,
    /// Through the page cache.
    Cached,
}

impl Style {
    fn arguments(self) -> &'static str {
        match self {
            Self::Direct => "--direct=1 --ioengine=libaio --iodepth=8 --bs=4k --fsync=64",
            Self::Flushing => "--direct=1 --ioengine=libaio --iodepth=4 --bsrange=4k-128k --fsync=4",
            Self::Cached => "--direct=0 --ioengine=psync --bs=16k --fsync=32",
        }
    }
}

/// The container; unmounted when dropped, whatever happened.
pub(crate) struct Container {
    device: PathBuf,
    pub(crate) point: PathBuf,
    fio: Option<Child>,
    log: PathBuf,
    stop: Arc<AtomicBool>,
    churn: Option<JoinHandle<u64>>,
}

impl Container {
    /// Mounts `device` at `point` and puts it under load for `time`.
    pub(crate) fn run(device: PathBuf, point: PathBuf, style: Style, time: Duration, seed: u64) -> Self {
        fs::create_dir(&point).unwrap();
        mount(Some(&device), &point, Some("ext4"), MsFlags::MS_NOATIME, Some("discard")).unwrap();
        let log = point.with_extension("fio");
        let output = File::create(&log).unwrap();
        let mut fio = Command::new("fio");
        fio.arg("--name=chaos").arg(format!("--directory={}", point.display()));
        fio.args(
            "--rw=randwrite --size=48m --time_based --verify=crc32c --verify_fatal=1 --verify_state_save=0".split(' '),
        );
        fio.args(["--verify_backlog=512", "--allow_file_create=1", "--fallocate=none"]);
        fio.arg(format!("--runtime={}", time.as_secs())).arg(format!("--randseed={seed}"));
        fio.args(style.arguments().split(' '));
        fio.current_dir(point.parent().unwrap()).stdin(Stdio::null());
        let fio = fio.stdout(output.try_clone().unwrap()).stderr(output).spawn().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let apart = Arc::new(Barrier::new(2));
        let churn = std::thread::spawn({
            let (point, stop, apart) = (point.clone(), Arc::clone(&stop), Arc::clone(&apart));
            move || {
                have_files_of_my_own();
                apart.wait();
                churn(&point, &mut Dice::new(seed), &stop)
            }
        });
        // What the caller opens from now on is not held there.
        apart.wait();
        Self { device, point, fio: Some(fio), log, stop, churn: Some(churn) }
    }

    /// The load goes on until it is told to end, or met an error.
    pub(crate) fn assert_running(&mut self) {
        let ended = self.fio.as_mut().unwrap().try_wait().unwrap();
        assert!(ended.is_none(), "fio in {:?} ended: {ended:?}\n{}", self.point, self.said());
        assert!(!self.churn.as_ref().unwrap().is_finished(), "the files in {:?} went wrong", self.point);
    }

    /// Waits for the end of the load, which must not have met an error, unmounts and checks the file system. Returns how
    /// many files came and went.
    pub(crate) fn end(mut self) -> u64 {
        let mut status = None;
        let mut fio = self.fio.take().unwrap();
        wait_until("fio to end", Duration::from_secs(120), || {
            status = fio.try_wait().unwrap();
            status.is_some()
        });
        assert!(status.unwrap().success(), "fio in {:?}: {status:?}\n{}", self.point, self.said());
        self.stop.store(true, Ordering::SeqCst);
        let files = self.churn.take().unwrap().join().unwrap();
        umount(&self.point).unwrap();
        must(program("e2fsck").arg("-fn").arg(&self.device));
        files
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(mut fio) = self.fio.take() {
            let _ = fio.kill();
            let _ = fio.wait();
        }
        if let Some(churn) = self.churn.take() {
            let _ = churn.join();
            let _ = umount(&self.point);
        }
    }
}

/// Gives this thread a table of files of its own. A service that is started while a file of the container is open would
/// hold it until its exec; if it was removed by then, that closing waits for its data to be written, and so for the host
/// that is to be started. The others' files are closed in it: who reads a program's pipe to its end waits for all writers.
fn have_files_of_my_own() {
    unshare(CloneFlags::CLONE_FILES).unwrap();
    let entries: Vec<_> =
        fs::read_dir("/proc/thread-self/fd").unwrap().map(|entry| entry.unwrap().file_name()).collect();
    for fd in entries.iter().map(|name| name.to_str().unwrap().parse::<RawFd>().unwrap()).filter(|fd| *fd > 2) {
        match close(fd) {
            // The list itself was closed at its end.
            Ok(()) | Err(Errno::EBADF) => {}
            Err(errno) => panic!("close descriptor {fd}: {errno}"),
        }
    }
}

/// Writes files, reads them back, removes them and trims until told to stop; how many.
fn churn(point: &Path, dice: &mut Dice, stop: &AtomicBool) -> u64 {
    let mut files = 0;
    let mut kept: Vec<(PathBuf, Vec<u8>)> = Vec::new();
    while !stop.load(Ordering::SeqCst) {
        let word = dice.roll().to_le_bytes();
        let bytes = word.repeat((1 + dice.below(FILE_MAX)) / word.len());
        let path = point.join(format!("file-{files}"));
        let mut file = File::create(&path).unwrap();
        file.write_all(&bytes).unwrap();
        if dice.below(2) == 0 {
            file.sync_all().unwrap();
        }
        drop(file);
        kept.push((path, bytes));
        files += 1;
        if kept.len() > 4 {
            let (path, bytes) = kept.remove(dice.below(kept.len()));
            // Past the page cache, as far as it lets go.
            let file = File::open(&path).unwrap();
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
            assert!(fs::read(&path).unwrap() == bytes, "{} does not hold what was written", path.display());
            fs::remove_file(path).unwrap();
        }
        if files % 16 == 0 {
            must(program("fstrim").arg(point));
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
    files
}
