//! What we make on disk: whose it is, who may read it; and what strangers may have put in its place.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use tempfile::TempDir;
use thinsnap::config::run_dir_of;

use crate::stranger::NOBODY;
use crate::support::leftovers::clear;
use crate::support::process::wait_until;
use crate::{can_run, mode};

const THINSNAP: &str = env!("CARGO_BIN_EXE_thinsnap");

/// A root directory, its run directory, and whatever serves them; all gone when dropped.
struct Place {
    dir: TempDir,
    run_dir: PathBuf,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("ts-").tempdir().unwrap();
        let run_dir = run_dir_of(&dir.path().join("root"));
        Self { dir, run_dir }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// Runs a command of ours on the root, with a umask that takes nothing away.
    fn run(&self, words: &str) -> Output {
        let line = format!("umask 0; exec {THINSNAP} --engine embedded --root {} {words}", self.root().display());
        Command::new("timeout").args(["--signal=KILL", "60", "sh", "-c", &line]).output().unwrap()
    }

    /// Runs a command that must be refused; returns what it says.
    fn refused(&self, words: &str) -> String {
        let output = self.run(words);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{words}: {said}");
        said
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        clear(&self.run_dir);
        clear(self.dir.path());
        // Whatever stands there: a directory, or a link that a test has put.
        let _ = fs::remove_dir_all(&self.run_dir);
        let _ = fs::remove_file(&self.run_dir);
    }
}

/// Everything below a directory that others than root may read or write, or that is not root's.
fn too_open(dir: &Path) -> Vec<String> {
    let walk = walkdir::WalkDir::new(dir).same_file_system(true).into_iter();
    let entries = walk.filter_map(Result::ok).filter(|entry| !entry.file_type().is_symlink());
    let wrong = entries.filter_map(|entry| {
        let meta = entry.metadata().ok()?;
        // What the connections' own rights guard, and its name says so: only the service's socket is for a group.
        let allowed = if meta.file_type().is_socket() && entry.file_name() == "thinsnap.sock" { 0o660 } else { 0o700 };
        let bits = meta.mode() & 0o7777;
        let is_wrong = bits & !allowed != 0 || meta.uid() != 0;
        is_wrong.then(|| format!("{}: {bits:o}, user {}", entry.path().display(), meta.uid()))
    });
    wrong.collect()
}

#[test]
fn root_all_that_a_service_makes_is_roots_alone() {
    if !can_run("modes and owners") {
        return;
    }
    let place = Place::new();
    let socket = place.dir.path().join("thinsnap.sock");
    let line = format!(
        "umask 0; exec {THINSNAP} --engine embedded --root {} --socket {} serve --size 1G",
        place.root().display(),
        socket.display()
    );
    let mut daemon = Kill(
        Command::new("sh")
            .args(["-c", &line])
            .stderr(fs::File::create(place.dir.path().join("log")).unwrap())
            .spawn()
            .unwrap(),
    );
    let layer = place.dir.path().join("layer.tar");
    let tar = Command::new("tar").args(["-cf"]).arg(&layer).args(["-C", "/etc", "hostname"]).status().unwrap();
    assert!(tar.success());
    wait_until("the service to answer", Duration::from_secs(60), || place.run("pool status").status.success());
    for words in [
        format!("image import {} --name it", layer.display()),
        "snapshot prepare a".to_owned(),
        "container create c --image it".to_owned(),
        "pool check".to_owned(),
        "pool status".to_owned(),
    ] {
        let output = place.run(&words);
        assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(too_open(&place.root()), Vec::<String>::new());
    assert_eq!(too_open(&place.run_dir), Vec::<String>::new());
    assert_eq!(mode(&socket), 0o660);
    assert_eq!((mode(&place.root()), mode(&place.run_dir)), (0o700, 0o700));
    let made = walkdir::WalkDir::new(place.root()).into_iter().count();
    assert!(made > 4, "only {made} files below the root were looked at");
    nix::sys::signal::kill(daemon.pid(), nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(daemon.0.wait().unwrap().success());
}

/// Kills the service if a test fails before it ends.
struct Kill(std::process::Child);

impl Kill {
    fn pid(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(i32::try_from(self.0.id()).unwrap())
    }
}

impl Drop for Kill {
    fn drop(&mut self) {
        // Errors if it is dead already, as it should be.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn root_a_directory_or_a_link_of_another_user_is_refused() {
    if !can_run("directories of another user") {
        return;
    }
    let (place, elsewhere) = (Place::new(), TempDir::new().unwrap());
    // The root directory is another user's.
    fs::create_dir(place.root()).unwrap();
    chown(place.root(), Some(NOBODY), Some(NOBODY)).unwrap();
    assert!(place.refused("pool create --size 1G").contains("belongs to user 65534"));
    assert_eq!(fs::read_dir(place.root()).unwrap().count(), 0, "something was made in another user's directory");
    fs::remove_dir(place.root()).unwrap();
    // It is another user's link to a directory of ours.
    symlink(elsewhere.path(), place.root()).unwrap();
    std::os::unix::fs::lchown(place.root(), Some(NOBODY), Some(NOBODY)).unwrap();
    assert!(place.refused("pool create --size 1G").contains("the link"));
    assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    // It is our own link: an administrator has moved it.
    std::os::unix::fs::lchown(place.root(), Some(0), Some(0)).unwrap();
    assert!(place.run("pool create --size 1G").status.success());
    assert_eq!(mode(elsewhere.path()), 0o700);
    // The run directory: the pool is there, and everything else is refused until it is gone.
    let run_dir = run_dir_of(&place.root());
    fs::create_dir_all(run_dir.parent().unwrap()).unwrap();
    let _gone = fs::remove_dir_all(&run_dir);
    fs::create_dir(&run_dir).unwrap();
    chown(&run_dir, Some(NOBODY), Some(NOBODY)).unwrap();
    assert!(place.refused("pool status").contains("belongs to user 65534"));
    fs::remove_dir(&run_dir).unwrap();
    symlink(elsewhere.path(), &run_dir).unwrap();
    std::os::unix::fs::lchown(&run_dir, Some(NOBODY), Some(NOBODY)).unwrap();
    assert!(place.refused("pool status").contains("the link"));
    fs::remove_file(&run_dir).unwrap();
    assert!(place.run("pool status").status.success());
    assert!(!run_dir.exists(), "it goes with a clean end");
}

#[test]
fn root_a_link_in_the_place_of_a_file_of_ours_is_not_followed() {
    if !can_run("links in the way") {
        return;
    }
    let place = Place::new();
    assert!(place.run("pool create --size 1G").status.success());
    let precious = place.dir.path().join("precious");
    fs::write(&precious, "precious").unwrap();
    fs::create_dir_all(&place.run_dir).unwrap();
    for link in [
        place.run_dir.join("host.lock"),
        place.run_dir.join("host.log"),
        place.run_dir.join("intent.log"),
        place.root().join("pool/data"),
        place.root().join("pool/metadata"),
        place.root().join("store.redb"),
    ] {
        let aside = link.with_extension("aside");
        let was_there = fs::rename(&link, &aside).is_ok();
        symlink(&precious, &link).unwrap();
        let output = place.run("pool status");
        assert!(!output.status.success(), "{} was followed", link.display());
        assert_eq!(fs::read_to_string(&precious).unwrap(), "precious", "{}", link.display());
        fs::remove_file(&link).unwrap();
        if was_there {
            fs::rename(&aside, &link).unwrap();
        }
    }
    let output = place.run("pool status");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
