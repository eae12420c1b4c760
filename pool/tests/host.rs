//! A pool in a process of its own: who starts it, who ends it, and what its clients see.

// All of this is test code, helpers too: clippy lets tests unwrap.
#![cfg(test)]

#[path = "support/host_process.rs"]
mod host_process;
#[path = "support/host_stage.rs"]
mod host_stage;
#[path = "support/host_tools.rs"]
mod host_tools;
#[path = "support/shown_by.rs"]
mod shown_by;
mod support {
    pub(crate) mod disk;
    pub(crate) mod laws;
    pub(crate) mod stage;
}

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use thinsnap_pool::{
    Access, ByteCount, ConnectOptions, DeviceId, ErrorKind, HostClient, StopOutcome, ThinPool, connect_or_spawn,
};

use host_process::{HostDir, be_the_host, dir_of_part, process};
use host_stage::HostStage;
use host_tools::{Mounted, eventually, leftovers, run};
use shown_by::{by_ublk, skipped_without_export};
use support::stage::Stage;

const POOL: ByteCount = ByteCount(256 << 20);
const SIZE: ByteCount = ByteCount(64 << 20);
const LONG: Duration = Duration::from_secs(600);

fn device(id: u32) -> DeviceId {
    DeviceId::new(id).unwrap()
}

fn is_alive(pid: u32) -> bool {
    // A zombie has ended.
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(") ").next().unwrap_or_default().starts_with('Z'))
}

fn is_pending(pid: u32, signal: Signal) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("ShdPnd:")).unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap() >> (signal as i32 - 1) & 1 == 1
}

#[test]
fn root_two_starters_at_once_get_one_host() {
    if skipped_without_export() {
        return;
    }
    let dir = HostDir::new(POOL, LONG);
    let pids: BTreeSet<u32> = std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..8).map(|_| scope.spawn(|| dir.host().info().pid)).collect();
        lanes.into_iter().map(|lane| lane.join().unwrap()).collect()
    });
    assert_eq!(pids.len(), 1);
    let mode = fs::metadata(dir.path().join("sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    HostDir::stop(&dir.host());
    assert_eq!(leftovers(dir.path()), Vec::<String>::new());
}

#[test]
fn root_calls_run_side_by_side() {
    if skipped_without_export() {
        return;
    }
    let dir = HostDir::new(POOL, LONG);
    let client = dir.host();
    std::thread::scope(|scope| {
        for lane in 0..40 {
            let client = &client;
            scope.spawn(move || {
                let (id, snap) = (device(2 * lane), device(2 * lane + 1));
                client.create_thin(id).unwrap();
                client.create_snap(snap, id).unwrap();
                assert_eq!(client.create_thin(id).unwrap_err().kind(), ErrorKind::AlreadyExists);
                client.delete(id).unwrap();
            });
        }
    });
    let snapshots: Vec<_> = (0..40).map(|lane| device(2 * lane + 1)).collect();
    assert_eq!(client.devices().unwrap(), snapshots);
    assert_eq!(client.status().unwrap().identity, client.info().identity);
    HostDir::stop(&client);
}

#[test]
fn root_a_killed_host_is_unavailable_and_the_next_one_clears_up() {
    if skipped_without_export() {
        return;
    }
    let dir = HostDir::new(POOL, LONG);
    let client = dir.host();
    client.create_thin(device(1)).unwrap();
    let path = client.activate(device(1), SIZE, Access::ReadWrite).unwrap();
    kill(process(&client), Signal::SIGKILL).unwrap();
    assert!(client.wait_gone(Instant::now() + LONG).unwrap());
    let error = client.status().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.kind().advice().contains("thinsnap serve"));
    let next = dir.host();
    assert_ne!(next.info().pid, client.info().pid);
    assert_eq!(next.devices().unwrap(), [device(1)]);
    // Nobody kept the FUSE connection; ublk devices wait for the next host by themselves.
    assert_eq!(next.active_path(device(1)).unwrap(), by_ublk().then_some(path));
    assert_eq!(client.devices().unwrap(), [device(1)], "an old client finds the new host");
    HostDir::stop(&next);
    assert_eq!(leftovers(dir.path()), Vec::<String>::new());
}

#[test]
fn root_a_host_outlives_the_process_that_started_it() {
    if skipped_without_export() {
        return;
    }
    let dir = HostDir::new(POOL, LONG);
    let mut starter = Command::new(std::env::current_exe().unwrap())
        .args(["the_starter_that_is_killed", "--exact", "--ignored", "--nocapture"])
        .env("HOST_TEST_DIR", dir.path())
        .env("HOST_TEST_ARGS", dir.spawn_options().args.join("\n".as_ref()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(starter.stdout.take().unwrap()).lines();
    let pid = lines.find_map(|line| line.unwrap().strip_prefix("host ").map(|pid| pid.parse::<u32>().unwrap()));
    starter.kill().unwrap();
    starter.wait().unwrap();
    let client = HostClient::connect(dir.connect_options()).unwrap();
    assert_eq!(Some(client.info().pid), pid);
    let stat = fs::read_to_string(format!("/proc/{}/stat", client.info().pid)).unwrap();
    let session = stat.rsplit(") ").next().unwrap().split(' ').nth(3).unwrap().to_owned();
    assert_eq!(session, client.info().pid.to_string(), "it leads a session of its own");
    HostDir::stop(&client);
}

/// The starter of the test above.
#[test]
#[ignore = "started by another test"]
fn the_starter_that_is_killed() {
    let dir = dir_of_part();
    let args = std::env::var("HOST_TEST_ARGS").unwrap().split('\n').map(Into::into).collect();
    let client = connect_or_spawn(&thinsnap_pool::SpawnOptions {
        connect: ConnectOptions {
            socket: dir.join("sock"),
            identity: None,
            handshake_timeout: LONG,
            patience: Duration::ZERO,
        },
        program: "/usr/bin/env".into(),
        args,
        run_dir: dir,
        start_timeout: LONG,
    })
    .unwrap();
    println!("host {}", client.info().pid);
    loop {
        std::thread::park();
    }
}

#[test]
fn root_a_host_without_clients_ends_by_itself() {
    if skipped_without_export() {
        return;
    }
    let dir = HostDir::new(POOL, Duration::from_millis(300));
    let client = dir.host();
    let pid = client.info().pid;
    client.create_thin(device(3)).unwrap();
    client.activate(device(3), SIZE, Access::ReadWrite).unwrap();
    drop(client);
    eventually("the host ends", || !is_alive(pid));
    assert_eq!(leftovers(dir.path()), Vec::<String>::new());
    assert!(!dir.path().join("sock").exists());
    let client = dir.host();
    assert_eq!(client.devices().unwrap(), [device(3)]);
    HostDir::stop(&client);
}

#[test]
fn root_a_host_stays_while_a_device_is_mounted() {
    if skipped_without_export() {
        return;
    }
    let dir = HostDir::new(POOL, Duration::from_millis(100));
    let client = dir.host();
    let pid = client.info().pid;
    client.create_thin(device(1)).unwrap();
    client.create_thin(device(2)).unwrap();
    let path = client.activate(device(1), SIZE, Access::ReadWrite).unwrap();
    let other = client.activate(device(2), SIZE, Access::ReadWrite).unwrap();
    run("mkfs.ext4", [Path::new("-q"), &path]);
    let mounted = Mounted::mount(&path, &dir.path().join("mnt"), "rw");
    assert_eq!(client.stop_if_idle().unwrap(), StopOutcome::Busy(vec![device(1)]));
    assert_eq!(client.active_path(device(2)).unwrap(), Some(other), "a refused stop changes nothing");
    kill(process(&client), Signal::SIGTERM).unwrap();
    eventually("the host has met the signal", || !is_pending(pid, Signal::SIGTERM));
    assert_eq!(client.stop_if_idle().unwrap(), StopOutcome::Busy(vec![device(1)]));
    drop(client);
    // Several times the time after which a host without clients tries to end.
    let enough = Instant::now() + Duration::from_millis(500);
    while Instant::now() < enough {
        fs::write(mounted.at.join("file"), vec![7; 1 << 20]).unwrap();
        run("sync", ["-f".as_ref(), mounted.at.as_os_str()]);
        assert!(is_alive(pid));
    }
    mounted.unmount();
    eventually("the host ends", || !is_alive(pid));
    assert_eq!(leftovers(dir.path()), Vec::<String>::new());
}

#[test]
fn root_sigterm_ends_a_host_whose_devices_nobody_has_open() {
    if skipped_without_export() {
        return;
    }
    let dir = HostDir::new(POOL, LONG);
    let client = dir.host();
    client.create_thin(device(1)).unwrap();
    client.activate(device(1), SIZE, Access::ReadWrite).unwrap();
    kill(process(&client), Signal::SIGTERM).unwrap();
    assert!(client.wait_gone(Instant::now() + LONG).unwrap());
    assert_eq!(leftovers(dir.path()), Vec::<String>::new());
}

#[test]
fn root_errors_of_the_start_reach_the_starter() {
    if skipped_without_export() {
        return;
    }
    let dir = HostDir::new(POOL, LONG);
    fs::write(dir.path().join("refuse"), "").unwrap();
    let error = connect_or_spawn(&dir.spawn_options()).map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NeedsCheck);
    assert!(error.to_string().contains("the test wants it refused"), "{error}");
    fs::remove_file(dir.path().join("refuse")).unwrap();
    fs::write(dir.path().join("die"), "").unwrap();
    let error = connect_or_spawn(&dir.spawn_options()).map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("last words"), "{error}");
    fs::remove_file(dir.path().join("die")).unwrap();
    fs::remove_dir_all(dir.path().join("pool")).unwrap();
    let error = connect_or_spawn(&dir.spawn_options()).map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert_eq!(leftovers(dir.path()), Vec::<String>::new());
}

#[test]
fn root_a_host_of_another_pool_or_version_is_not_adopted() {
    if skipped_without_export() {
        return;
    }
    let dir = HostDir::new(POOL, LONG);
    let client = dir.host();
    let mut options = dir.connect_options();
    options.identity = Some([9; 16]);
    assert_eq!(HostClient::connect(options).map(|_| ()).unwrap_err().kind(), ErrorKind::Invalid);
    let mut options = dir.connect_options();
    options.identity = Some(client.info().identity);
    HostClient::connect(options).map(|_| ()).unwrap();

    let socket = dir.path().join("old");
    let old = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let answer = std::thread::spawn(move || {
        let (mut stream, _) = old.accept().unwrap();
        let mut hello = [0; 16];
        stream.read_exact(&mut hello).unwrap();
        stream.write_all(&[4, 0, 0, 0, 99, 0, 0, 0]).unwrap();
    });
    let mut options = dir.connect_options();
    options.socket = socket;
    let error = HostClient::connect(options).map(|_| ()).unwrap_err();
    answer.join().unwrap();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("version 99"), "{error}");
    HostDir::stop(&client);
}

#[test]
fn root_bytes_that_are_no_call_end_their_connection_and_nothing_else() {
    if skipped_without_export() {
        return;
    }
    let dir = HostDir::new(POOL, LONG);
    let client = dir.host();
    let socket = dir.path().join("sock");
    let hello = [12, 0, 0, 0, b't', b'h', b'i', b'n', b'p', b'o', b'o', b'l', 3, 0, 0, 0];
    let unknown_call = [4, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
    let stories: [(&str, Vec<u8>); 5] = [
        ("no hello", vec![0xaa; 100]),
        ("a length without bounds", vec![0xff, 0xff, 0xff, 0xff, 1]),
        ("an unknown call", [hello.as_slice(), &unknown_call].concat()),
        ("a call cut short", [hello.as_slice(), &[200, 0, 0, 0, 1]].concat()),
        ("a call too long", [hello.as_slice(), &[0xff, 0xff, 0xff, 0x7f]].concat()),
    ];
    for (story, bytes) in stories {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.write_all(&bytes).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        // Reset where the host left bytes unread.
        let _ = stream.read_to_end(&mut rest);
        assert_eq!(client.devices().unwrap(), [], "after {story}");
    }
    // A client of another version reads ours.
    let mut stream = UnixStream::connect(&socket).unwrap();
    stream.write_all(&[12, 0, 0, 0, b't', b'h', b'i', b'n', b'p', b'o', b'o', b'l', 77, 0, 0, 0]).unwrap();
    let mut welcome = [0; 8];
    stream.read_exact(&mut welcome).unwrap();
    assert_eq!(welcome[4..], [4, 0, 0, 0]);
    drop(stream);
    HostDir::stop(&client);
}

#[test]
fn root_a_pool_in_another_process_keeps_the_laws() {
    if !skipped_without_export() {
        support::laws::run(&|| Box::new(HostStage::new()) as Box<dyn Stage>);
    }
}

/// The other process of these tests.
#[test]
#[ignore = "started by other tests"]
fn the_host_process() {
    be_the_host();
}
