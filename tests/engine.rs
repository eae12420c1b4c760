//! Who serves a pool: chosen at the start, kept while devices are in use, changed when nobody uses any.

// All of this is test code, helpers too: clippy lets tests unwrap.
#![cfg(test)]

mod support {
    pub(crate) mod leftovers;
    pub(crate) mod machine;
    pub(crate) mod packages;
    pub(crate) mod process;
    pub(crate) mod proxy;
    pub(crate) mod service;
}

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount, umount2};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use thinsnap_pool::{Engine, choose_engine};

use support::leftovers::left_of;
use support::machine::is_able;
use support::packages::thin_check_is_silent;
use support::process::{must_say, wait_until};
use support::proxy::Client;
use support::service::Service;

const THINSNAP: &str = env!("CARGO_BIN_EXE_thinsnap");
/// Exit status of a command that finds its object in use.
const IN_USE: Option<i32> = Some(5);

fn can_run(test: &str) -> bool {
    if let Err(error) = choose_engine(Engine::Kernel) {
        println!("SKIPPED: {test}: {error}");
        return false;
    }
    is_able(test, &["thin_check", "dmsetup"])
}

/// A snapshot that is mounted, with a file in it.
struct Mounted {
    point: PathBuf,
}

impl Mounted {
    fn new(device: &Path, point: &Path) -> Self {
        fs::create_dir_all(point).unwrap();
        mount(Some(device), point, Some("ext4"), MsFlags::empty(), None::<&str>).unwrap();
        Self { point: point.to_owned() }
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        let mut file = File::create(self.point.join(name)).unwrap();
        file.write_all(bytes).unwrap();
        file.sync_all().unwrap();
    }

    fn assert_has(&self, name: &str, bytes: &[u8]) {
        assert!(fs::read(self.point.join(name)).unwrap() == bytes, "{name} has other bytes");
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if umount(&self.point).is_err() {
            let _ = umount2(&self.point, MntFlags::MNT_DETACH);
        }
    }
}

fn engine_of(service: &Service) -> (String, String) {
    let status = service.thinsnap("pool status");
    let word = |name: &str| status[name].as_str().unwrap().to_owned();
    (word("engine"), word("engine_why"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make test-kernel runs it: it needs a kernel with dm-thin"]
async fn root_a_pool_changes_its_engine_when_nobody_uses_it_and_never_under_a_mount() {
    if !can_run("root_a_pool_changes_its_engine_when_nobody_uses_it_and_never_under_a_mount") {
        return;
    }
    let bytes: Vec<u8> = (0..1 << 20).map(|n: u32| n.to_le_bytes()[(n % 3) as usize]).collect();
    let mut service = Service::start("[default]\nsize = '512M'\n");
    assert_eq!(engine_of(&service).0, "embedded");
    let mut client = Client::new(&service.socket(), "thinsnap");
    let point = service.dir().join("mounted");
    let device = client.prepare("web", "").await.unwrap();
    let mounted = Mounted::new(&device, &point);
    mounted.write("first", &bytes);

    // The other engine by its name, while devices are in use: refused, and nothing is disturbed.
    let mut other = ["kernel", "embedded"].into_iter();
    let mut serving = "embedded";
    let mut mounted = Some(mounted);
    for round in 0..2 {
        let wanted = other.next().unwrap();
        service.stop();
        service.set_engine(wanted);
        let (status, said) = service.refuses();
        assert_eq!(status, IN_USE, "{said}");
        assert!(said.contains(&format!("the {serving} engine serves 1 of its devices")), "{said}");
        mounted.as_ref().unwrap().write(&format!("round-{round}"), &bytes);

        // Without a service the metadata is read by way of who serves it.
        let mut check = Command::new(THINSNAP);
        let report = must_say(check.args(["--json", "pool", "check", "--root"]).arg(service.root()));
        let report: Value = serde_json::from_str(&report).unwrap();
        assert_eq!(report["sound"].as_bool(), Some(true), "{report:#}");

        // `auto` goes on with the one that lives, also after a kill.
        service.set_engine("auto");
        service.up();
        assert_eq!(engine_of(&service).0, serving);
        service.kill();
        service.up();
        assert_eq!(engine_of(&service).0, serving);
        assert_eq!(client.mounts("web").await.unwrap(), device_of(&point));
        mounted.as_ref().unwrap().assert_has("first", &bytes);

        // And when nobody uses a device, the other one takes the pool over.
        drop(mounted.take());
        service.stop();
        service.set_engine(wanted);
        service.up();
        assert_eq!(engine_of(&service).0, wanted);
        serving = wanted;
        let again = Mounted::new(&client.mounts("web").await.unwrap(), &point);
        again.assert_has("first", &bytes);
        again.assert_has(&format!("round-{round}"), &bytes);
        mounted = Some(again);
    }
    drop(mounted);
    service.stop_and_leave_nothing();
    thin_check_is_silent(&service.metadata());
}

/// The device that is mounted on a directory.
fn device_of(point: &Path) -> PathBuf {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table.lines().find(|line| line.split(' ').nth(4).is_some_and(|p| Path::new(p) == point)).unwrap();
    PathBuf::from(line.split(" - ").nth(1).unwrap().split(' ').nth(1).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make test-kernel runs it: it needs a kernel with dm-thin"]
async fn root_the_kernel_gets_what_a_killed_pool_host_had_acknowledged() {
    if !can_run("root_the_kernel_gets_what_a_killed_pool_host_had_acknowledged") {
        return;
    }
    let bytes = vec![0x5a; 3 << 20];
    let mut service = Service::start("[default]\nsize = '512M'\n");
    let mut client = Client::new(&service.socket(), "thinsnap");
    let point = service.dir().join("mounted");
    let mounted = Mounted::new(&client.prepare("web", "").await.unwrap(), &point);
    mounted.write("file", &bytes);
    let host = service.host().unwrap();
    service.kill();
    kill(host, Signal::SIGKILL).unwrap();
    drop(mounted);
    wait_until("the pool-host to be gone", Duration::from_secs(30), || service.host().is_none());
    service.set_engine("kernel");
    service.up();
    assert_eq!(engine_of(&service).0, "kernel");
    let mounted = Mounted::new(&client.mounts("web").await.unwrap(), &point);
    mounted.assert_has("file", &bytes);
    drop(mounted);
    service.stop_and_leave_nothing();
    thin_check_is_silent(&service.metadata());
}

/// `doctor`'s check of this name.
fn doctor(engine: &str, name: &str) -> Value {
    let mut command = Command::new(THINSNAP);
    let output = command.args(["--json", "--engine", engine, "doctor"]).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    report["checks"].as_array().unwrap().iter().find(|check| check["name"] == name).unwrap().clone()
}

#[test]
fn doctor_says_which_engine_it_would_be_and_what_the_other_one_needs() {
    let asked = doctor("embedded", "engine");
    assert!(asked["found"].as_str().unwrap().starts_with("embedded, as it was asked for"), "{asked}");
    let auto = doctor("auto", "engine");
    let Err(error) = choose_engine(Engine::Kernel) else {
        assert!(auto["found"].as_str().unwrap().starts_with("kernel: the kernel serves thin pools"), "{auto}");
        return;
    };
    assert!(auto["found"].as_str().unwrap().starts_with("embedded"), "{auto}");
    let dm = doctor("auto", "dm-thin");
    assert!(dm["found"].as_str().unwrap().contains(&error.to_string()), "{dm}");
    let missing = doctor("kernel", "engine");
    assert_eq!(missing["state"].as_str(), Some("missing"), "{missing}");
    assert!(missing["fix"].as_str().is_some_and(|fix| !fix.is_empty()), "{missing}");
}

#[test]
fn an_engine_that_the_machine_cannot_have_is_refused_with_the_next_step_and_nothing_is_served() {
    let Err(error) = choose_engine(Engine::Kernel) else {
        println!("SKIPPED: an_engine_that_the_machine_cannot_have…: this kernel has dm-thin");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new("timeout")
        .args(["--signal=KILL", "60", THINSNAP, "serve", "--engine", "kernel", "--size", "1G", "--root"])
        .arg(dir.path().join("root"))
        .arg("--socket")
        .arg(dir.path().join("socket"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("choose the kernel engine") && said.contains(&error.to_string()), "{said}");
    assert!(!dir.path().join("socket").exists());
    assert_eq!(left_of(dir.path()), Vec::<String>::new());
}

#[test]
fn a_word_that_is_no_engine_is_refused_with_the_words_that_are() {
    let output = Command::new(THINSNAP).args(["--engine", "dm", "doctor"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("auto, kernel or embedded"));
}

/// As a SIGKILL leaves it that meets the service while it holds the pool still and another thread of it waits for a device
/// of the pool: that thread cannot end, so that the process keeps its locks, and nobody takes its place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make test-kernel runs it: it needs a kernel with dm-thin"]
async fn root_a_pool_goes_on_when_the_thread_that_stopped_it_has_ended_and_not_before() {
    if !can_run("root_a_pool_goes_on_when_the_thread_that_stopped_it_has_ended_and_not_before") {
        return;
    }
    let mut service = Service::start("[default]\nsize = '512M'\n");
    service.stop();
    service.set_engine("kernel");
    service.up();
    let mut client = Client::new(&service.socket(), "thinsnap");
    let device = client.prepare("web", "").await.unwrap();
    let mounted = Mounted::new(&device, &service.dir().join("mounted"));
    let devices = must_say(Command::new("dmsetup").arg("ls"));
    let pool = devices.split_whitespace().find(|name| name.ends_with("-pool")).unwrap();
    let is_stopped = || must_say(Command::new("dmsetup").args(["info", pool])).contains("SUSPENDED");

    let (told, hear) = std::sync::mpsc::channel();
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let owner = std::thread::spawn(move || {
        told.send(nix::unistd::gettid().to_string()).unwrap();
        ended.recv().unwrap_err();
    });
    let thread = hear.recv().unwrap();
    let mut watcher = Command::new(THINSNAP);
    watcher.args(["resume-orphan", pool, "--process", &std::process::id().to_string(), "--thread", &thread]);
    let mut watcher = watcher.spawn().unwrap();
    must_say(Command::new("dmsetup").args(["suspend", "--noflush", "--nolockfs", pool]));
    for _ in 0..5 {
        std::thread::park_timeout(Duration::from_millis(100));
        assert!(is_stopped() && watcher.try_wait().unwrap().is_none(), "its owner lives");
    }
    drop(end);
    owner.join().unwrap();
    wait_until("the pool to go on", Duration::from_secs(20), || !is_stopped());
    assert!(watcher.wait().unwrap().success());
    mounted.write("later", b"all is well");

    drop(mounted);
    client.remove("web").await.unwrap();
    drop(client);
    service.stop_and_leave_nothing();
}
