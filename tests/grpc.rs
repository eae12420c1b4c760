//! The service through its sockets: containerd's laws, the code of each wrong call, sizes, health, and how a
//! service comes and goes.

// All of this is test code, helpers too: clippy lets tests unwrap.
#![cfg(test)]

mod support {
    pub(crate) mod client;
    pub(crate) mod laws;
    pub(crate) mod leftovers;
    pub(crate) mod mount_laws;
    pub(crate) mod process;
    #[expect(dead_code, reason = "others look at the pool's files too")]
    pub(crate) mod service;
    pub(crate) mod socket_client;
}
// The laws name their rooms by these paths in every program that runs them.
use support::{client, laws, mount_laws, process};

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use thinsnap::config::run_dir_of;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use client::Client;
use laws::refused;
use support::leftovers::{clear, left_of};
use support::process::{engine, wait_until};
use support::service::Service;
use support::socket_client::{SocketClient, channel};

const THINSNAP: &str = env!("CARGO_BIN_EXE_thinsnap");

/// Small devices, so that a test's chain of hundreds costs little; XFS where the laws ask for it.
const CONFIG: &str = "[default]\nsize = '512M'\n[snapshotter.xfs]\nfs = 'xfs'\nsize = '512M'\n";

/// Loop devices and mounts need root.
fn can_run(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("SKIPPED: {test} needs root for loop devices and mounts");
    }
    root
}

fn serve(root: &Path, socket: &Path) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", "60", THINSNAP, "serve", "--size", "1G"]);
    command.arg("--engine").arg(engine());
    command.arg("--root").arg(root).arg("--socket").arg(socket).stdin(Stdio::null());
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn root_containerds_laws_hold_through_the_socket() {
    if !can_run("the contract through the socket") {
        return;
    }
    let mut service = Service::start(CONFIG);
    for space in ["ext4", "xfs"] {
        let scratch = service.dir().join(format!("laws-{space}"));
        fs::create_dir(&scratch).unwrap();
        laws::run(&SocketClient::new(&service.socket(), space), &scratch, |_| true);
    }
    service.stop_and_leave_nothing();
}

#[test]
fn root_every_wrong_call_gets_its_code() {
    if !can_run("codes") {
        return;
    }
    let mut service = Service::start(CONFIG);
    let client = SocketClient::new(&service.socket(), "codes");
    client.prepare("active", "", &[]).unwrap();
    client.prepare("k", "", &[]).unwrap();
    client.commit("layer", "k").unwrap();
    client.view("view", "layer", &[]).unwrap();

    let no_space = SocketClient::new(&service.socket(), "");
    let long = "x".repeat(5000);
    let answers: Vec<(&str, Code, Code)> = vec![
        ("no snapshotter: prepare", refused(no_space.prepare("a", "", &[])), Code::InvalidArgument),
        ("no snapshotter: view", refused(no_space.view("a", "", &[])), Code::InvalidArgument),
        ("no snapshotter: mounts", refused(no_space.mounts("a")), Code::InvalidArgument),
        ("no snapshotter: commit", refused(no_space.commit("a", "b")), Code::InvalidArgument),
        ("no snapshotter: remove", refused(no_space.remove("a")), Code::InvalidArgument),
        ("no snapshotter: stat", refused(no_space.stat("a")), Code::InvalidArgument),
        ("no snapshotter: update", refused(no_space.update("a", &[], &[])), Code::InvalidArgument),
        ("no snapshotter: list", refused(no_space.list(&[])), Code::InvalidArgument),
        ("no snapshotter: usage", refused(no_space.usage("a")), Code::InvalidArgument),
        ("no snapshotter: cleanup", refused(no_space.cleanup()), Code::InvalidArgument),
        ("empty key", refused(client.prepare("", "", &[])), Code::InvalidArgument),
        ("NUL in a key", refused(client.stat("a\0b")), Code::InvalidArgument),
        ("huge key", refused(client.prepare(&long, "", &[])), Code::InvalidArgument),
        ("huge label", refused(client.prepare("l", "", &[("k", &long)])), Code::InvalidArgument),
        ("absent parent", refused(client.prepare("p", "nowhere", &[])), Code::NotFound),
        ("active parent", refused(client.prepare("p", "active", &[])), Code::InvalidArgument),
        ("taken key", refused(client.prepare("layer", "", &[])), Code::AlreadyExists),
        ("absent", refused(client.mounts("nowhere")), Code::NotFound),
        ("mounts of a committed one", refused(client.mounts("layer")), Code::FailedPrecondition),
        ("commit of a view", refused(client.commit("n", "view")), Code::FailedPrecondition),
        ("commit to a taken name", refused(client.commit("layer", "active")), Code::AlreadyExists),
        ("commit of nothing", refused(client.commit("n", "nowhere")), Code::NotFound),
        ("remove with children", refused(client.remove("layer")), Code::FailedPrecondition),
        ("remove of nothing", refused(client.remove("nowhere")), Code::NotFound),
        ("update of the kind", refused(client.update("view", &[], &["kind"])), Code::InvalidArgument),
        ("update of nothing", refused(client.update("nowhere", &[], &[])), Code::NotFound),
        ("bad filter", refused(client.list(&["name~="])), Code::InvalidArgument),
        ("usage of nothing", refused(client.usage("nowhere")), Code::NotFound),
    ];
    for (call, got, expected) in answers {
        assert_eq!(got, expected, "{call}");
    }
    let refusal = client.remove("layer").unwrap_err();
    assert!(refusal.message.contains("remove") && refusal.message.contains("; try: "), "{}", refusal.message);
    service.stop_and_leave_nothing();
}

#[test]
fn root_messages_may_have_16_mebibytes_and_no_more() {
    if !can_run("message sizes") {
        return;
    }
    let mut service = Service::start(CONFIG);
    let client = SocketClient::new(&service.socket(), "sizes");
    // Over tonic's own default of 4 MiB: it is read, and refused for what it says.
    let refusal = client.list(&[&"x".repeat(15 << 20)]).unwrap_err();
    assert_eq!(refusal.code, Code::InvalidArgument, "{}", refusal.message);
    assert!(refusal.message.len() < 4096);
    let refusal = client.list(&[&"x".repeat(17 << 20)]).unwrap_err();
    assert_eq!(refusal.code, Code::OutOfRange, "{}", refusal.message);
    // The connection is none the worse for it.
    assert!(client.list(&[]).unwrap().is_empty());
    service.stop_and_leave_nothing();
}

#[test]
fn root_a_list_comes_in_batches_of_a_hundred() {
    if !can_run("batches") {
        return;
    }
    let mut service = Service::start(CONFIG);
    let client = SocketClient::new(&service.socket(), "batches");
    client.prepare("k", "", &[]).unwrap();
    client.commit("layer", "k").unwrap();
    let value = "v".repeat(4000);
    for number in 0..249 {
        client.view(&format!("view-{number}"), "layer", &[("number", &value)]).unwrap();
    }
    let sizes: Vec<usize> = client.list_batches(&[]).unwrap().iter().map(Vec::len).collect();
    assert_eq!(sizes, [100, 100, 50]);
    assert_eq!(client.list_batches(&["kind==committed"]).unwrap().concat().len(), 1);
    assert!(client.elsewhere("another").list(&[]).unwrap().is_empty());
    service.stop_and_leave_nothing();
}

#[test]
fn root_the_health_service_says_serving() {
    if !can_run("health") {
        return;
    }
    let mut service = Service::start(CONFIG);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut health = HealthClient::new(channel(&service.socket()));
        for name in ["", "containerd.services.snapshots.v1.Snapshots", "thinsnap.admin.v1.Admin"] {
            let request = HealthCheckRequest { service: name.to_owned() };
            // The pool is asked after the socket is open.
            let mut changes = health.watch(request).await.unwrap().into_inner();
            let serving = async {
                while let Some(answer) = changes.message().await.unwrap() {
                    if answer.status() == ServingStatus::Serving {
                        return;
                    }
                }
                panic!("{name:?} is never served");
            };
            tokio::time::timeout(Duration::from_secs(20), serving).await.unwrap();
        }
        let request = HealthCheckRequest { service: "no.such.Service".to_owned() };
        assert_eq!(health.check(request).await.unwrap_err().code(), Code::NotFound);
    });
    drop(runtime);
    service.stop_and_leave_nothing();
}

#[test]
fn root_a_second_service_is_refused_as_in_use() {
    if !can_run("a second service") {
        return;
    }
    let mut service = Service::start(CONFIG);
    let (root, other) = (service.dir().join("root"), service.dir().join("other"));

    let same_root = serve(&root, &service.dir().join("other.sock")).output().unwrap();
    assert_eq!(same_root.status.code(), Some(5), "{}", said(&same_root));
    assert!(said(&same_root).contains("try: "), "{}", said(&same_root));

    let same_socket = serve(&other, &service.socket()).output().unwrap();
    assert_eq!(same_socket.status.code(), Some(5), "{}", said(&same_socket));
    assert!(said(&same_socket).contains("another service answers there"), "{}", said(&same_socket));

    // The first one never noticed, and the second left no process and no socket.
    SocketClient::new(&service.socket(), "still").prepare("here", "", &[]).unwrap();
    assert!(!service.dir().join("other.sock").exists());
    assert_eq!(left_of(&run_dir_of(&other)), Vec::<String>::new());
    service.stop_and_leave_nothing();
}

#[test]
fn root_a_killed_services_socket_is_replaced_and_its_pool_host_adopted() {
    if !can_run("a killed service") {
        return;
    }
    let mut service = Service::start(CONFIG);
    SocketClient::new(&service.socket(), "kill").prepare("work", "", &[]).unwrap();
    let run_dir = run_dir_of(&service.dir().join("root"));
    let hosts = || support::process::processes_naming(&run_dir.display().to_string());
    let before = hosts();
    service.kill();
    assert!(service.socket().symlink_metadata().unwrap().file_type().is_socket(), "the dead one's socket is there");
    service.up();
    assert_eq!(hosts(), before, "the pool-host lives on");
    let mounts = SocketClient::new(&service.socket(), "kill").mounts("work").unwrap();
    assert_eq!(mounts.len(), 1);
    service.stop_and_leave_nothing();
    assert!(!service.socket().exists() && !run_dir.join("service.sock").exists());
}

#[test]
fn root_a_passed_socket_is_served_and_left_alone() {
    if !can_run("socket activation") {
        return;
    }
    let dir = tempfile::Builder::new().prefix("ts-").tempdir().unwrap();
    let (root, socket) = (dir.path().join("root"), dir.path().join("passed.sock"));
    let listener = UnixListener::bind(&socket).unwrap();
    // What systemd does: the socket as descriptor 3, and the pid of who may have it.
    let script = "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" serve --root \"$1\" --size 1G";
    let mut daemon = Command::new("sh")
        .args(["-c", script, THINSNAP])
        .arg(&root)
        .stdin(OwnedFd::from(listener))
        .stdout(Stdio::null())
        .stderr(fs::File::create(dir.path().join("log")).unwrap())
        .spawn()
        .unwrap();
    let made = SocketClient::new(&socket, "passed").prepare("a", "", &[]).map(|mounts| mounts.len());
    let pid = nix::unistd::Pid::from_raw(i32::try_from(daemon.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let status = daemon.wait().unwrap();
    let (left, link) = (left_of(&run_dir_of(&root)), socket.exists());
    clear(&run_dir_of(&root));
    let log = fs::read_to_string(dir.path().join("log")).unwrap();
    assert_eq!(made.unwrap(), 1, "{log}");
    assert!(status.success(), "{log}");
    assert_eq!(left, Vec::<String>::new(), "{log}");
    assert!(link, "a passed socket belongs to who passed it");
}

#[test]
fn root_a_stopping_service_finishes_its_calls() {
    if !can_run("graceful shutdown") {
        return;
    }
    let mut service = Service::start(CONFIG);
    let socket = service.socket();
    let client = SocketClient::new(&socket, "stop");
    client.prepare("warm", "", &[]).unwrap();
    let calls = std::thread::spawn(move || {
        let mut answered = Vec::new();
        for number in 0.. {
            let key = format!("k-{number}");
            match client.prepare(&key, "", &[]) {
                Ok(_) => answered.push(key),
                // Not begun, or not reached: never half done and unanswered.
                Err(failure) => return (answered, failure),
            }
        }
        unreachable!("the service ends")
    });
    wait_until("some calls", Duration::from_secs(20), || {
        SocketClient::new(&socket, "stop").list(&[]).unwrap().len() > 5
    });
    service.stop();
    let (answered, failure) = calls.join().unwrap();
    // Refused by who is not there, or never sent: hyper's client says which.
    assert!(matches!(failure.code, Code::Unavailable | Code::Cancelled), "{failure:?}");
    service.up();
    let there = SocketClient::new(&socket, "stop").list(&[]).unwrap();
    assert_eq!(there.len(), answered.len() + 1, "each call was answered as it was done");
    service.stop_and_leave_nothing();
}

#[test]
fn root_the_sockets_group_may_look_and_only_root_may_change() {
    if !can_run("peer credentials") {
        return;
    }
    let mut service = Service::start(&format!("{CONFIG}[socket]\nmode = '0666'\n"));
    fs::set_permissions(service.dir(), fs::Permissions::from_mode(0o755)).unwrap();
    // The program stands in a directory that others may not be able to reach.
    let program = service.dir().join("thinsnap");
    fs::copy(THINSNAP, &program).unwrap();
    let as_nobody = |words: &[&str]| {
        let mut command = Command::new(&program);
        command.arg("--socket").arg(service.socket()).args(words).uid(65534).gid(65534).output().unwrap()
    };
    let look = as_nobody(&["pool", "status"]);
    assert!(look.status.success(), "{}", said(&look));
    for change in [
        &["pool", "grow", "--data", "20G"][..],
        &["snapshot", "prepare", "x"],
        &["snapshot", "rm", "x"],
        &["image", "rm", "x"],
        &["container", "create", "x"],
        &["container", "rm", "x"],
    ] {
        let refused = as_nobody(change);
        assert_eq!(refused.status.code(), Some(1), "{change:?}");
        let text = said(&refused);
        assert!(text.contains("user 65534 may look but not change anything"), "{change:?}: {text}");
        assert!(text.contains("try: run the command as root"), "{change:?}: {text}");
    }
    service.stop_and_leave_nothing();
}

#[test]
fn root_garbage_on_the_socket_hurts_nobody() {
    if !can_run("garbage") {
        return;
    }
    use std::io::Write;
    let mut service = Service::start(CONFIG);
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff"] {
        let mut stream = UnixStream::connect(service.socket()).unwrap();
        // The service may hang up before it has all of it.
        let _ = stream.write_all(garbage);
    }
    SocketClient::new(&service.socket(), "after").prepare("a", "", &[]).unwrap();
    service.stop_and_leave_nothing();
}
