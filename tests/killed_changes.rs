//! Changes in several steps, and a kill in the middle: of the service, of the pool-host, of both. What was asked for is
//! asked for again and succeeds, the pool is sound, and nothing is left over.
//!
//! THINSNAP_KILLS sets how often each change is killed (12).

// All of this is test code, helpers too: clippy lets tests unwrap.
#![cfg(test)]

#[path = "support/archive.rs"]
mod archive;
#[path = "support/archive_layout.rs"]
mod archive_layout;
mod support {
    pub(crate) mod dice;
    pub(crate) mod leftovers;
    pub(crate) mod process;
    pub(crate) mod service;
}

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use archive::{Member, Tar};
use archive_layout::{Packed, one_image};
use nix::sys::signal::{Signal, kill};
use support::dice::Dice;
use support::process::processes_naming;
use support::service::Service;

const THINSNAP: &str = env!("CARGO_BIN_EXE_thinsnap");

/// Longest time for a command whose service was killed.
const PATIENCE: Duration = Duration::from_secs(120);

fn can_run(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("SKIPPED: {test} needs root for loop devices and mounts");
    }
    root
}

fn kills() -> u64 {
    std::env::var("THINSNAP_KILLS").map_or(12, |count| count.parse().unwrap())
}

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Service,
    Host,
    Both,
    Command,
}

const VICTIMS: [Victim; 4] = [Victim::Service, Victim::Host, Victim::Both, Victim::Command];

/// A command line of ours; killed if the test fails before it ends.
struct Running(Child);

impl Running {
    fn start(service: &Service, words: &[&str]) -> Self {
        let mut command = Command::new(THINSNAP);
        command.arg("--socket").arg(service.socket()).args(words);
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    fn ends(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self.0.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "the command hangs after the kill");
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Errors if it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn kill_host(service: &Service) {
    let run_dir = service.host_socket().parent().unwrap().display().to_string();
    for pid in processes_naming(&run_dir) {
        // It may have ended by itself.
        let _ = kill(pid, Signal::SIGKILL);
    }
}

/// Starts the command, lets it come `after` far, kills the victim, and brings the service up again.
fn interrupt(service: &mut Service, words: &[&str], after: Duration, victim: Victim) {
    let mut command = Running::start(service, words);
    std::thread::park_timeout(after);
    match victim {
        Victim::Service => service.kill(),
        Victim::Host => kill_host(service),
        Victim::Both => {
            service.kill();
            kill_host(service);
        }
        // Its connection ends; the service goes on or stops, as the verb has it.
        Victim::Command => drop(command.0.kill()),
    }
    command.ends();
    if matches!(victim, Victim::Service | Victim::Both) {
        service.up();
    }
}

/// The audit finds nothing.
fn assert_sound(service: &Service, story: &str) {
    let report = service.thinsnap("pool check");
    assert_eq!(report["sound"], true, "{story}: {report:#}");
}

#[test]
fn root_a_grow_that_is_killed_is_done_when_it_is_asked_for_again() {
    if !can_run("kills during pool grow") {
        return;
    }
    let mut service = Service::start("[default]\nsize = '512M'\n");
    service.thinsnap("snapshot prepare witness");
    let mut dice = Dice::new(0x6707);
    let mut gib = 10;
    for round in 0..kills() {
        let victim = VICTIMS[usize::try_from(round % 4).unwrap()];
        let after = Duration::from_micros(dice.below(60_000) as u64);
        gib += 5;
        let story = format!("round {round}: {victim:?} killed after {after:?}, growing to {gib} GiB");
        let (data, metadata) = (format!("{gib}G"), format!("{}M", 60 + gib));
        let words = ["pool", "grow", "--data", &data, "--metadata", &metadata];
        interrupt(&mut service, &words, after, victim);
        // Done or not done: what there is is one of the two sizes, never a third.
        let there = service.status("/data/total_bytes");
        assert!([gib, gib - 5].contains(&(there >> 30)), "{story}: {there} bytes");
        service.thinsnap(&words.join(" "));
        assert_eq!(service.status("/data/total_bytes") >> 30, gib, "{story}");
        assert!(service.status("/metadata/total_bytes") >> 20 >= 60 + gib, "{story}");
        assert_sound(&service, &story);
    }
    service.thinsnap("snapshot rm witness");
    println!("{} kills during pool grow", kills());
    service.stop_and_leave_nothing();
}

#[test]
fn root_an_import_that_is_killed_is_done_when_it_is_asked_for_again() {
    if !can_run("kills during image import") {
        return;
    }
    let mut service = Service::start("[default]\nsize = '512M'\n");
    let mut dice = Dice::new(0x1390);
    let noise = |seed: u32| -> Vec<u8> {
        (0..500_000_u32).flat_map(|i| i.wrapping_mul(2_654_435_761).rotate_left(seed).to_le_bytes()).collect()
    };
    for round in 0..kills() {
        let victim = VICTIMS[usize::try_from(round % 4).unwrap()];
        let after = Duration::from_micros(dice.below(400_000) as u64);
        let story = format!("round {round}: {victim:?} killed after {after:?}");
        // Layers of its own for each round, so that none is there already; packed, so that it is spooled first.
        let seed = u32::try_from(round).unwrap();
        let layers: Vec<Packed> = (0..3)
            .map(|n| Packed::plain(Tar::default().add(Member::file(format!("f{n}-{round}"), noise(seed + n))).end()))
            .collect();
        let source: PathBuf = service.dir().join("image.tar.gz");
        fs::write(&source, archive::gzip(&one_image(&layers, |_, _| {}).tar())).unwrap();
        let path = source.display().to_string();
        interrupt(&mut service, &["image", "import", &path, "--name", "it"], after, victim);
        let imported = service.thinsnap(&format!("image import {path} --name it"));
        assert_eq!(imported["image"]["layers"].as_array().map(Vec::len), Some(3), "{story}: {imported:#}");
        // Three layers and nothing that a dead import works on.
        assert_eq!(service.status("/snapshots_committed"), 3, "{story}");
        assert_eq!(service.status("/snapshots_active"), 0, "{story}");
        assert_sound(&service, &story);
        service.thinsnap("image rm it");
        service.wait_for_limbo(PATIENCE);
        // The base device of the profile, and nothing else.
        assert_eq!(service.status("/devices"), 1, "{story}");
    }
    println!("{} kills during image import", kills());
    service.stop_and_leave_nothing();
}
