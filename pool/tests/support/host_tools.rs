//! Programs of the host that tests of exported devices use, and guards that leave nothing behind.

use std::ffi::OsStr;
use std::fs::read_to_string;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use thinsnap_pool::{ErrorKind, Result};

/// Runs a program to its end; its standard output, or a panic with all that it said.
pub(crate) fn run<A: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = A>) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|e| panic!("start {program}: {e}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{program} ended with {}: {text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// A filesystem mounted by the test.
pub(crate) struct Mounted {
    pub(crate) at: PathBuf,
    mounted: bool,
}

impl Mounted {
    pub(crate) fn mount(device: &Path, at: &Path, options: &str) -> Self {
        std::fs::create_dir_all(at).unwrap();
        run("mount", [OsStr::new("-o"), OsStr::new(options), device.as_os_str(), at.as_os_str()]);
        Self { at: at.to_path_buf(), mounted: true }
    }

    pub(crate) fn tmpfs(at: &Path, size: &str) -> Self {
        std::fs::create_dir_all(at).unwrap();
        let options = format!("size={size}");
        run(
            "mount",
            ["-t".as_ref(), "tmpfs".as_ref(), "-o".as_ref(), OsStr::new(&options), "tmpfs".as_ref(), at.as_os_str()],
        );
        Self { at: at.to_path_buf(), mounted: true }
    }

    pub(crate) fn unmount(mut self) {
        self.mounted = false;
        run("umount", [&self.at]);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.mounted {
            let _ = Command::new("umount").arg("-l").arg(&self.at).status();
        }
    }
}

/// Loop devices bound to files below `dir`, and mounts there.
pub(crate) fn leftovers(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/sys/block").unwrap().flatten() {
        let file = read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
        if Path::new(file.trim_end()).starts_with(dir) {
            found.push(format!("{}: {}", entry.file_name().to_string_lossy(), file.trim_end()));
        }
    }
    let table = read_to_string("/proc/self/mountinfo").unwrap();
    found.extend(table.lines().filter(|l| l.contains(dir.to_str().unwrap())).map(str::to_owned));
    found
}

/// Waits for what another thread or the kernel does on its own, by looking at it again and again.
pub(crate) fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "in vain waited until {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// What `open` gives as soon as nobody has the files: a program that another test starts holds ours between its fork and
/// its exec.
pub(crate) fn when_free<T>(mut open: impl FnMut() -> Result<T>) -> T {
    let mut found = None;
    eventually("the pool is free", || match open() {
        Err(e) if e.kind() == ErrorKind::InUse => false,
        opened => found.replace(opened.unwrap()).is_none(),
    });
    found.unwrap()
}
