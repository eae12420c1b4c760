//! How the embedded engine shows its devices: chosen at the start, kept while they are in use.

// All of this is test code, helpers too: clippy lets tests unwrap.
#![cfg(test)]

mod support {
    pub(crate) mod leftovers;
    pub(crate) mod machine;
    pub(crate) mod process;
    pub(crate) mod proxy;
    pub(crate) mod service;
}

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::mount::{MsFlags, mount, umount};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use thinsnap_pool::{Export, choose_export};

use support::leftovers::left_of;
use support::machine::is_able;
use support::process::wait_until;
use support::proxy::Client;
use support::service::Service;

const THINSNAP: &str = env!("CARGO_BIN_EXE_thinsnap");

fn doctor(export: &str) -> Value {
    let mut command = Command::new(THINSNAP);
    let output = command.args(["--json", "--engine", "embedded", "--export", export, "doctor"]).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    report["checks"].as_array().unwrap().iter().find(|check| check["name"] == "export").unwrap().clone()
}

#[test]
fn doctor_says_how_devices_would_be_shown_and_what_ublk_needs() {
    let fuse = doctor("fuse");
    assert!(fuse["found"].as_str().unwrap().starts_with("FUSE and loop devices: FUSE was asked for"), "{fuse}");
    let auto = doctor("auto");
    match choose_export(Export::Ublk) {
        // By name also where it is not fit to be chosen.
        Ok(choice) if choice.why.starts_with("ublk was asked for") => {
            assert!(auto["found"].as_str().unwrap().contains("FUSE and loop devices: ublk is there, but"), "{auto}");
            assert!(auto["fix"].as_str().unwrap().contains("Linux 6.16"), "{auto}");
        }
        Ok(_) => assert!(auto["found"].as_str().unwrap().starts_with("ublk: the kernel has ublk"), "{auto}"),
        Err(error) => {
            assert!(auto["found"].as_str().unwrap().contains("FUSE and loop devices: ublk is not to be had"), "{auto}");
            assert!(auto["fix"].as_str().unwrap().contains("modprobe ublk_drv"), "{auto}");
            let asked = doctor("ublk");
            assert_eq!(asked["state"].as_str(), Some("missing"), "{asked}");
            assert!(asked["found"].as_str().unwrap().contains(&error.to_string()), "{asked}");
        }
    }
}

#[test]
fn an_export_that_the_machine_cannot_have_is_refused_with_the_next_step() {
    let Err(error) = choose_export(Export::Ublk) else {
        println!("SKIPPED: an_export_that_the_machine_cannot_have…: this kernel has ublk");
        return;
    };
    if !is_able("an_export_that_the_machine_cannot_have…", &[]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new("timeout")
        .args(["--signal=KILL", "60", THINSNAP, "serve", "--engine", "embedded", "--export", "ublk", "--size", "1G"])
        .arg("--root")
        .arg(dir.path().join("root"))
        .arg("--socket")
        .arg(dir.path().join("socket"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("choose ublk for the export") && said.contains(&error.to_string()), "{said}");
    assert!(!dir.path().join("socket").exists());
    assert_eq!(left_of(dir.path()), Vec::<String>::new());
}

#[test]
fn a_word_that_is_no_export_is_refused_with_the_words_that_are() {
    let output = Command::new(THINSNAP).args(["--export", "nbd", "doctor"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("auto, ublk or fuse"));
}

/// From the next start on, the service is told to show devices so.
fn set_export(service: &Service, export: &str) {
    let text = format!("export = '{export}'\n[default]\nsize = '512M'\n");
    fs::write(service.dir().join("thinsnap.toml"), text).unwrap();
}

fn is_ublk(device: &Path) -> bool {
    device.file_name().unwrap().to_string_lossy().starts_with("ublkb")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn root_devices_in_use_stay_as_they_are_shown_and_change_when_nobody_uses_them() {
    const TEST: &str = "root_devices_in_use_stay_as_they_are_shown_and_change_when_nobody_uses_them";
    let loaded = Command::new("modprobe").args(["-q", "ublk_drv"]).status();
    if let Err(error) = choose_export(Export::Ublk) {
        println!("SKIPPED: {TEST}: {error} (modprobe: {loaded:?})");
        return;
    }
    if !is_able(TEST, &[]) {
        return;
    }
    let mut service = Service::start("export = 'fuse'\n[default]\nsize = '512M'\n");
    service.set_engine("embedded");
    let mut client = Client::new(&service.socket(), "thinsnap");
    let point = service.dir().join("mounted");
    fs::create_dir_all(&point).unwrap();
    let device = client.prepare("web", "").await.unwrap();
    assert!(!is_ublk(&device), "{}", device.display());
    mount(Some(&device), &point, Some("ext4"), MsFlags::empty(), None::<&str>).unwrap();
    fs::write(point.join("first"), "by FUSE").unwrap();

    // Another wish: the living host goes on as it is, for new devices too.
    set_export(&service, "ublk");
    service.stop();
    service.up();
    assert_eq!(client.mounts("web").await.unwrap(), device);
    assert!(!is_ublk(&client.prepare("other", "").await.unwrap()));
    umount(&point).unwrap();
    service.stop();
    service.up();
    let device = client.mounts("web").await.unwrap();
    assert!(is_ublk(&device), "{}", device.display());
    mount(Some(&device), &point, Some("ext4"), MsFlags::empty(), None::<&str>).unwrap();
    assert_eq!(fs::read(point.join("first")).unwrap(), b"by FUSE");

    // Service and host are killed together and nobody holds anything: the devices wait for whoever comes.
    set_export(&service, "fuse");
    let host = service.host().unwrap();
    service.kill();
    kill(host, Signal::SIGKILL).unwrap();
    wait_until("the pool-host to be gone", Duration::from_secs(30), || service.host().is_none());
    let writing = std::thread::spawn({
        let point = point.clone();
        move || {
            fs::write(point.join("second"), "while nobody served")?;
            fs::File::open(point.join("second"))?.sync_all()
        }
    });
    service.up();
    writing.join().unwrap().unwrap();
    assert_eq!(client.mounts("web").await.unwrap(), device);
    assert_eq!(fs::read(point.join("second")).unwrap(), b"while nobody served");
    umount(&point).unwrap();
    service.stop();
    service.up();
    let device = client.mounts("web").await.unwrap();
    assert!(!is_ublk(&device), "{}", device.display());
    mount(Some(&device), &point, Some("ext4"), MsFlags::empty(), None::<&str>).unwrap();
    assert_eq!(fs::read(point.join("second")).unwrap(), b"while nobody served");
    umount(&point).unwrap();
    service.stop_and_leave_nothing();
    assert_eq!(fs::read_dir("/sys/class/ublk-char").unwrap().count(), 0, "a ublk device is left");
}
