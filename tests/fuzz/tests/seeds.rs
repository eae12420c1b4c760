//! Every seed and every old finding of the fuzzer, read again: no panic, no hang, whatever compiler and machine.

// All of this is test code, helpers too: clippy lets tests unwrap.
#![cfg(test)]

#[path = "../../support/archive.rs"]
mod archive;
#[path = "../../support/archive_hostile.rs"]
#[expect(dead_code, reason = "what comes of an archive is for other tests")]
mod archive_hostile;
#[path = "../../support/archive_tricks.rs"]
mod archive_tricks;
#[path = "../made_seeds.rs"]
mod made_seeds;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use thinsnap_fuzz::TARGETS;

/// Tells a copy of this program which target it is to run.
const TARGET: &str = "THINSNAP_TEST_FUZZ_TARGET";
/// Tells it where the seeds are that are made.
const MADE: &str = "THINSNAP_TEST_FUZZ_SEEDS";

/// Longest time for all files of one target.
const PATIENCE: Duration = Duration::from_secs(120);

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files of a target, kept and made.
fn files(target: &str, made: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = [here().join("seeds"), here().join("regressions"), made.to_owned()]
        .iter()
        .filter_map(|top| fs::read_dir(top.join(target)).ok())
        .flat_map(|entries| entries.map(|entry| entry.unwrap().path()))
        .collect();
    files.sort();
    files
}

/// The copy of this program that reads the files of one target; does nothing in a test run of its own.
#[test]
fn a_target_reads_its_files() {
    let Ok(name) = std::env::var(TARGET) else { return };
    let (_, run) = TARGETS.iter().find(|(target, _)| *target == name).unwrap();
    for file in files(&name, Path::new(&std::env::var(MADE).unwrap())) {
        println!("{}", file.display());
        run(&fs::read(file).unwrap());
    }
}

/// Kills the child if a test fails before it ends.
struct Reader(Child);

impl Drop for Reader {
    fn drop(&mut self) {
        // Errors if it is dead already, as it should be.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn root_every_seed_and_every_old_finding_is_read_without_a_panic_or_a_hang() {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED: layers of images hold owners and devices, which only root makes");
        return;
    }
    let dir = TempDir::new().unwrap();
    let made = dir.path().join("seeds");
    made_seeds::write_all(&made);
    for (target, _) in TARGETS {
        let count = files(target, &made).len();
        assert!(count > 0, "{target} has no seed");
        // One process each: what lives as long as it (a host, a store) goes with it, and a hang is ended.
        let scratch = dir.path().join(target);
        fs::create_dir(&scratch).unwrap();
        let log = dir.path().join(format!("{target}.log"));
        let mut reader = Reader(
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "a_target_reads_its_files", "--nocapture"])
                .env(TARGET, target)
                .env(MADE, &made)
                .env("TMPDIR", &scratch)
                .stdout(fs::File::create(&log).unwrap())
                .stderr(fs::File::options().append(true).open(&log).unwrap())
                .spawn()
                .unwrap(),
        );
        let started = Instant::now();
        let status = loop {
            match reader.0.try_wait().unwrap() {
                Some(status) => break Some(status),
                None if started.elapsed() > PATIENCE => break None,
                None => std::thread::park_timeout(Duration::from_millis(20)),
            }
        };
        let said = fs::read_to_string(&log).unwrap();
        let end = &said[said.len().saturating_sub(4000)..];
        assert!(status.is_some(), "{target} hangs; the last file below is the one:\n{end}");
        assert!(status.unwrap().success(), "{target} fails; the last file below is the one:\n{end}");
        println!("{target}: {count} files");
    }
}
