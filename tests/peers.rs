//! Strangers on the machine: other users at our sockets, and in the way of our files.

// All of this is test code, helpers too: clippy lets tests unwrap.
#![cfg(test)]

mod support {
    pub(crate) mod client;
    pub(crate) mod leftovers;
    pub(crate) mod process;
    pub(crate) mod service;
    pub(crate) mod socket_client;
}
// The client names its rooms by these paths in every program that uses it.
use support::client;

#[path = "strangers/files.rs"]
mod files;
#[path = "strangers/stranger.rs"]
mod stranger;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use client::Client;
use stranger::{NOBODY, Stranger};
use support::service::Service;
use support::socket_client::SocketClient;
use tonic::Code;

/// Verbs of our own service that let others than root look. A verb that is not here is root's: a new one that answers
/// others must be put here on purpose, and into the configuration's comment on the socket.
const OPEN_TO_OTHERS: [&str; 7] =
    ["ServiceInfo", "PoolStatus", "SnapshotList", "SnapshotStat", "SnapshotUsage", "ImageList", "ContainerList"];

/// Another user needs root to become it.
pub(crate) fn can_run(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("SKIPPED: {test} needs root to play another user");
    }
    root
}

/// The verbs of a service, as its definition names them, in the form of gRPC's paths.
fn verbs(definition: &str) -> Vec<String> {
    let after = |line: &str, word: &str| line.trim().strip_prefix(word).map(str::to_owned);
    let package = definition.lines().find_map(|line| after(line, "package ")).unwrap();
    let service = definition.lines().find_map(|line| after(line, "service ")).unwrap();
    let (package, service) = (package.trim_end_matches(';'), service.trim_end_matches([' ', '{']));
    let verbs = definition.lines().filter_map(|line| after(line, "rpc "));
    verbs.map(|verb| format!("/{package}.{service}/{}", &verb[..verb.find('(').unwrap()])).collect()
}

/// Every verb of both services.
fn all_verbs() -> (Vec<String>, Vec<String>) {
    let (admin, snapshots) = (verbs(include_str!("../api/admin.proto")), verbs(include_str!("../api/snapshots.proto")));
    assert!(admin.len() >= 21 && snapshots.len() == 10, "{admin:?} {snapshots:?}");
    (admin, snapshots)
}

/// A service that lets everybody connect.
fn open_service(more: &str) -> Service {
    let service = Service::start(&format!("[default]\nsize = '512M'\n[socket]\nmode = '0666'\n{more}"));
    fs::set_permissions(service.dir(), fs::Permissions::from_mode(0o711)).unwrap();
    service
}

#[test]
fn root_another_user_is_refused_every_verb_that_is_not_open_to_all() {
    if !can_run("every verb as another user") {
        return;
    }
    let mut service = open_service("");
    let (admin, snapshots) = all_verbs();
    let words: Vec<&str> = admin.iter().chain(&snapshots).map(String::as_str).collect();
    let answers: BTreeMap<String, Code> = Stranger::new(&service).call(&service.socket(), &words);
    assert_eq!(answers.len(), words.len());
    let mut wrong = Vec::new();
    for (verb, code) in &answers {
        let is_open = admin.contains(verb) && OPEN_TO_OTHERS.iter().any(|open| verb.ends_with(&format!("/{open}")));
        if is_open == (*code == Code::PermissionDenied) {
            wrong.push(format!("{verb}: {code:?}, and open to all: {is_open}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    service.stop_and_leave_nothing();
}

#[test]
fn root_another_user_has_containerds_service_where_the_configuration_says_so() {
    if !can_run("containerd's service for another user") {
        return;
    }
    let mut service = open_service("snapshots = 'connected'\n");
    let (admin, snapshots) = all_verbs();
    let words: Vec<&str> = snapshots.iter().map(String::as_str).collect();
    let stranger = Stranger::new(&service);
    for (verb, code) in stranger.call(&service.socket(), &words) {
        // The messages are empty: there is something to complain about, but not who sends them.
        assert_ne!(code, Code::PermissionDenied, "{verb}");
        assert_ne!(code, Code::Unavailable, "{verb}");
    }
    let grow = admin.iter().find(|verb| verb.ends_with("/PoolGrow")).unwrap();
    assert_eq!(stranger.call(&service.socket(), &[grow])[grow], Code::PermissionDenied, "ours is root's all the same");
    service.stop_and_leave_nothing();
}

#[test]
fn root_a_user_who_takes_all_connections_takes_only_its_own() {
    if !can_run("a crowd of another user") {
        return;
    }
    let mut service = open_service("");
    let crowd = Stranger::new(&service).crowd(&service.socket(), 200);
    assert!(crowd.open <= 16, "{} of 200 connections were kept", crowd.open);
    let root = SocketClient::new(&service.socket(), "crowd");
    root.prepare("a", "", &[]).unwrap();
    assert_eq!(service.status("/snapshots_active"), 1);
    drop(crowd);
    root.remove("a").unwrap();
    service.stop_and_leave_nothing();
}

#[test]
fn root_slow_and_oversized_clients_hurt_nobody() {
    if !can_run("slow clients") {
        return;
    }
    let mut service = open_service("");
    // Half a greeting each, and then nothing for as long as the test lasts.
    let half = b"PRI * HTTP/2.0\r\n\r\nSM";
    let slow: Vec<UnixStream> = (0..300)
        .map(|n| {
            let mut stream = UnixStream::connect(service.socket()).unwrap();
            stream.write_all(&half[..n % half.len()]).unwrap();
            stream
        })
        .collect();
    let root = SocketClient::new(&service.socket(), "slow");
    let huge = "x".repeat(20 << 20);
    let refused = root.prepare(&huge, "", &[]).unwrap_err();
    assert!(matches!(refused.code, Code::OutOfRange | Code::ResourceExhausted | Code::Cancelled), "{refused:?}");
    let long = "x".repeat(1 << 20);
    assert_eq!(root.prepare(&long, "", &[]).unwrap_err().code, Code::InvalidArgument);
    assert_eq!(root.prepare("a", "", &[(&long, "v")]).unwrap_err().code, Code::InvalidArgument);
    root.prepare("a", "", &[]).unwrap();
    drop(slow);
    root.remove("a").unwrap();
    service.stop_and_leave_nothing();
}

/// Frames that a host must not answer, or must not believe.
const GARBAGE: [&[u8]; 5] = [
    b"\xff\xff\xff\xffmuch",
    b"\x0c\0\0\0notthepool!!",
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x0c\0\0\0thinpool\x01\0\0\0\x04\0\0\0\xff\xff\xff\xff",
    b"\0\0\0\0",
];

#[test]
fn root_the_pool_host_speaks_to_root_only_and_no_garbage_ends_it() {
    if !can_run("the host's socket") {
        return;
    }
    let mut service = open_service("");
    let socket = service.host_socket();
    assert_eq!(mode(&socket), 0o600);
    // Somebody opens the doors: the host still asks who comes.
    for path in [socket.as_path(), socket.parent().unwrap()] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let crowd = Stranger::new(&service).crowd(&socket, 50);
    assert_eq!(crowd.open, 0, "the host keeps connections of user {NOBODY}");
    drop(crowd);
    for garbage in GARBAGE {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        // The host may hang up before it has all of it.
        let _ = stream.write_all(garbage);
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        if let Err(error) = stream.read_to_end(&mut answer) {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{garbage:?}: the host hangs");
        }
    }
    SocketClient::new(&service.socket(), "after").prepare("a", "", &[]).unwrap();
    service.stop_and_leave_nothing();
}

/// Permission bits.
pub(crate) fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}
