//! The command line through its binary: the contract that every command inherits, and each noun's claims.

// All of this is test code, helpers too: clippy lets tests unwrap.
#![cfg(test)]

mod support {
    pub(crate) mod leftovers;
    pub(crate) mod process;
    #[expect(dead_code, reason = "nothing is killed here")]
    pub(crate) mod service;
}

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use support::leftovers::{clear, left_of};
use support::process::engine;
use support::service::Service;
use thinsnap::config::run_dir_of;

/// The binary, deaf to the caller's environment.
fn thinsnap(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_thinsnap"))
        .args(args)
        .env_remove("THINSNAP_ROOT")
        .env_remove("THINSNAP_SOCKET")
        .env("THINSNAP_ENGINE", engine())
        .output()
        .expect("the binary runs")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

/// Every command, found by following the help of its noun: none can be forgotten.
fn commands() -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut open = vec![Vec::new()];
    while let Some(command) = open.pop() {
        let mut args: Vec<&str> = command.iter().map(String::as_str).collect();
        args.push("--help");
        let help = stdout(&thinsnap(&args));
        let listed = help.split("\nCommands:\n").nth(1).map(|rest| rest.split("\n\n").next().unwrap_or(rest));
        for line in listed.unwrap_or_default().lines() {
            // Continued descriptions stand further in.
            let Some(name) = line.strip_prefix("  ").filter(|rest| !rest.starts_with(' ')) else { continue };
            let name = name.split_whitespace().next().expect("a name");
            if name != "help" {
                open.push(command.iter().cloned().chain([name.to_owned()]).collect());
            }
        }
        found.push(command);
    }
    found
}

#[test]
fn every_help_ends_with_two_examples_and_the_exit_status() {
    let commands = commands();
    assert!(commands.len() > 20, "{commands:?}");
    for command in commands {
        let mut args: Vec<&str> = command.iter().map(String::as_str).collect();
        args.push("--help");
        let output = thinsnap(&args);
        assert!(output.status.success(), "{command:?}");
        let help = stdout(&output);
        let (_, tail) =
            help.split_once("EXAMPLES:\n").unwrap_or_else(|| panic!("{command:?} has no examples:\n{help}"));
        let (examples, status) = tail.split_once("\nEXIT STATUS:\n").unwrap_or_else(|| panic!("{command:?}:\n{help}"));
        assert_eq!(examples.lines().filter(|line| line.starts_with("  ")).count(), 2, "{command:?}:\n{examples}");
        assert!(examples.contains("thinsnap "), "{command:?}:\n{examples}");
        for code in ["0  done", "1  failed", "2  wrong usage", "3  damage found", "4  no space", "5  in use"] {
            assert!(status.contains(code), "{command:?}: {status}");
        }
    }
}

#[test]
fn every_command_refuses_an_unknown_option_with_status_2() {
    for command in commands() {
        let mut args: Vec<&str> = command.iter().map(String::as_str).collect();
        args.push("--no-such-option");
        let output = thinsnap(&args);
        assert_eq!(output.status.code(), Some(2), "{command:?}");
        assert!(stdout(&output).is_empty() && stderr(&output).contains("--no-such-option"), "{command:?}");
    }
}

#[test]
fn every_command_takes_json_and_root_and_socket() {
    for command in commands() {
        let mut args: Vec<&str> = command.iter().map(String::as_str).collect();
        args.push("--help");
        let help = stdout(&thinsnap(&args));
        for option in ["--json", "--root <DIR>", "--socket <PATH>"] {
            assert!(help.contains(option), "{command:?} lacks {option}");
        }
    }
}

#[test]
fn without_a_pool_every_question_is_answered_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("none");
    let root = root.to_str().unwrap();
    for question in [&["pool", "status"][..], &["snapshot", "ls"], &["image", "ls"], &["container", "ls"]] {
        let args: Vec<&str> = ["--root", root].iter().chain(question).copied().collect();
        let output = thinsnap(&args);
        assert_eq!(output.status.code(), Some(1), "{question:?}");
        let text = stderr(&output);
        assert!(text.starts_with("error: no pool in ") && text.contains("\n  try: thinsnap pool create"), "{text}");
        assert!(stdout(&output).is_empty());
    }
    assert!(!dir.path().join("none").exists(), "a question leaves nothing behind");
}

#[test]
fn a_socket_that_nobody_serves_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("no.sock");
    let output = thinsnap(&["--socket", socket.to_str().unwrap(), "pool", "status"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("no.sock") && stderr(&output).contains("try: start one"), "{}", stderr(&output));
}

#[test]
fn wrong_words_are_refused_before_anything_is_opened() {
    for args in [
        &["pool", "grow"][..],
        &["pool", "grow", "--data", "much"],
        &["snapshot", "prepare", "a", "--label", "novalue"],
        &["snapshot", "ls", "--space", ""],
        &["container", "create", "a", "--image", "x", "--snapshot", "y"],
        &["serve", "--block-size", "65K"],
        &["serve", "--log-format", "xml"],
    ] {
        let output = thinsnap(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
    }
}

#[test]
fn a_misspelt_field_of_the_configuration_is_refused_with_the_nearest() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("thinsnap.toml");
    std::fs::write(&file, "[pool]\nsise = '1G'\n").unwrap();
    let output = thinsnap(&["serve", "--config", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("unknown field `pool.sise`"), "{}", stderr(&output));
    assert!(stderr(&output).contains("try: did you mean `pool.size`?"), "{}", stderr(&output));
}

#[test]
fn doctor_says_for_each_thing_what_it_found() {
    let output = thinsnap(&["doctor", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    let checks = report["checks"].as_array().unwrap();
    for name in
        ["user", "fuse", "loop", "io_uring", "dm-thin", "mkfs.ext4", "direct I/O", "space", "containerd", "service"]
    {
        let check = checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("no check of {name}"));
        let state = check["state"].as_str().unwrap();
        assert!(["ok", "warning", "missing"].contains(&state));
        assert_eq!(check["fix"].is_null(), state == "ok", "{check}");
    }
    assert_eq!(output.status.success(), report["ready"].as_bool().unwrap());
}

#[test]
fn doctor_prints_a_containerd_configuration_for_the_socket_in_use() {
    let output = thinsnap(&["doctor", "--containerd-config", "--socket", "/run/x/y.sock"]);
    let table: toml::Table = toml::from_str(&stdout(&output)).unwrap();
    assert_eq!(table["proxy_plugins"]["thinsnap"]["address"].as_str(), Some("/run/x/y.sock"));
}

/// Loop devices and mounts need root.
fn can_run(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("SKIPPED: {test} needs root for loop devices and mounts");
    }
    root
}

/// A root directory without a service; whatever a test leaves of it goes with it.
struct Root(tempfile::TempDir);

impl Root {
    fn new() -> Self {
        Self(tempfile::Builder::new().prefix("ts-").tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn run(&self, args: &[&str]) -> Output {
        let args: Vec<&str> = ["--root", self.path().to_str().unwrap()].iter().chain(args).copied().collect();
        thinsnap(&args)
    }

    fn json(&self, args: &[&str]) -> Value {
        let args: Vec<&str> = ["--json"].iter().chain(args).copied().collect();
        let output = self.run(&args);
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        serde_json::from_str(&stdout(&output)).unwrap_or_else(|error| panic!("{args:?}: {error}: {}", stdout(&output)))
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        clear(&run_dir_of(self.path()));
        let _ = fs::remove_dir_all(run_dir_of(self.path()));
    }
}

/// The names of an object's fields.
fn fields(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn root_without_a_service_every_noun_works_in_this_process_and_leaves_nothing() {
    if !can_run("the command line's own service") {
        return;
    }
    let root = Root::new();
    let dir = root.path().to_str().unwrap();
    let made = thinsnap(&["pool", "create", dir, "--size", "4G", "--json"]);
    assert!(made.status.success(), "{}", stderr(&made));
    let made: Value = serde_json::from_str(&stdout(&made)).unwrap();
    assert_eq!((made["data_bytes"].as_u64(), made["block_size_bytes"].as_u64()), (Some(4 << 30), Some(65536)));
    let again = thinsnap(&["pool", "create", dir, "--size", "4G"]);
    assert_eq!(again.status.code(), Some(1));
    assert!(stderr(&again).contains("there is a pool in"), "{}", stderr(&again));

    root.json(&["snapshot", "prepare", "work"]);
    root.json(&["snapshot", "commit", "work", "base"]);
    let list = root.json(&["snapshot", "ls"]);
    assert_eq!(list["snapshots"][0]["name"], "base");
    assert_eq!(root.json(&["image", "ls"])["images"].as_array().unwrap().len(), 0);
    root.json(&["container", "create", "web", "--snapshot", "base"]);

    // A container that is mounted keeps its pool-host; the next command adopts it.
    let at = root.path().join("mnt");
    fs::create_dir(&at).unwrap();
    root.json(&["container", "mount", "web", at.to_str().unwrap()]);
    fs::write(at.join("file"), "kept").unwrap();
    let containers = root.json(&["container", "ls"]);
    assert_eq!(containers["containers"][0]["mounted_at"][0].as_str(), at.to_str());
    let busy = root.run(&["container", "rm", "web"]);
    assert_eq!(busy.status.code(), Some(5), "{}", stderr(&busy));
    assert!(stderr(&busy).contains("mnt"), "{}", stderr(&busy));
    root.json(&["container", "unmount", "web"]);
    root.json(&["container", "mount", "web", at.to_str().unwrap()]);
    assert_eq!(fs::read(at.join("file")).unwrap(), b"kept");
    root.json(&["container", "unmount", "web"]);
    assert_eq!(root.json(&["container", "rm", "web"])["removed"], "web");

    assert_eq!(root.json(&["pool", "check"])["sound"], true);
    assert_eq!(left_of(&run_dir_of(root.path())), Vec::<String>::new());
}

#[test]
fn root_a_snapshots_whole_life_through_the_service() {
    if !can_run("snapshot verbs") {
        return;
    }
    let mut service = Service::start("[default]\nsize = '512M'\n");
    let at = service.dir().join("mnt");
    fs::create_dir(&at).unwrap();
    let at = at.to_str().unwrap();

    let mounts = service.thinsnap("snapshot prepare work --label team=db --size 1G");
    assert_eq!(mounts["mounts"][0]["fs"], "ext4");
    let mounted = service.thinsnap(&format!("snapshot mount work {at}"));
    assert_eq!(mounted["source"], mounts["mounts"][0]["source"]);
    fs::write(Path::new(at).join("file"), vec![7; 3 << 20]).unwrap();
    assert_eq!(service.thinsnap("snapshot unmount work")["at"][0].as_str(), Some(at));
    assert!(service.thinsnap("snapshot usage work")["bytes"].as_u64().unwrap() >= 3 << 20);

    let record = service.thinsnap("snapshot commit work base --label kind=layer");
    assert_eq!(record["name"], "base");
    let stat = service.thinsnap("snapshot stat base");
    assert_eq!(stat, record);
    assert_eq!((stat["kind"].as_str(), stat["size_bytes"].as_u64()), (Some("committed"), Some(1 << 30)));
    assert_eq!(stat["labels"]["kind"], "layer");
    assert_eq!(
        fields(&stat),
        [
            "created_at",
            "device",
            "fs",
            "kind",
            "labels",
            "name",
            "parent",
            "size_bytes",
            "space",
            "updated_at",
            "usage_bytes"
        ]
    );

    service.thinsnap("snapshot view look --parent base");
    service.thinsnap(&format!("snapshot mount look {at}"));
    assert_eq!(fs::read(Path::new(at).join("file")).unwrap().len(), 3 << 20);
    assert!(fs::write(Path::new(at).join("new"), "x").is_err(), "a view cannot be written");
    service.thinsnap("snapshot unmount look");
    let tree = service.thinsnap("snapshot tree");
    assert_eq!((tree["snapshots"][0]["depth"].as_u64(), tree["snapshots"][1]["depth"].as_u64()), (Some(0), Some(1)));
    let committed = service.thinsnap("snapshot ls --filter kind==committed");
    assert_eq!(committed["snapshots"].as_array().unwrap().len(), 1);
    assert!(service.thinsnap("snapshot ls --space another")["snapshots"].as_array().unwrap().is_empty());

    let socket = service.socket();
    let refused = thinsnap(&["--socket", socket.to_str().unwrap(), "snapshot", "rm", "base"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("it has children"), "{}", stderr(&refused));
    let bad = thinsnap(&["--socket", socket.to_str().unwrap(), "snapshot", "ls", "--filter", "name~="]);
    assert_eq!(bad.status.code(), Some(2), "{}", stderr(&bad));
    service.thinsnap("snapshot rm look");
    assert_eq!(service.thinsnap("snapshot rm base")["removed"], "base");
    service.stop_and_leave_nothing();
}

#[test]
fn root_the_pools_verbs_through_the_service() {
    if !can_run("pool verbs") {
        return;
    }
    let mut service = Service::start("[default]\nsize = '512M'\n");
    service.thinsnap("snapshot prepare a");
    let status = service.thinsnap("pool status");
    assert_eq!((status["mode"].as_str(), status["snapshots_active"].as_u64()), (Some("write"), Some(1)));
    assert_eq!(
        fields(&status),
        [
            "active_devices",
            "advice",
            "below",
            "block_size_bytes",
            "data",
            "devices",
            "devices_ahead",
            "engine",
            "engine_why",
            "identity",
            "limbo",
            "metadata",
            "metadata_reserve_bytes",
            "metadata_snapshot",
            "mode",
            "reason",
            "returning_bytes",
            "root",
            "sharing",
            "snapshots_active",
            "snapshots_committed",
            "snapshots_view",
            "time",
            "transaction_id",
            "unpunched_bytes",
            "waiting_bytes",
            "waiting_writes",
            "warnings"
        ]
    );
    let grown = service.thinsnap("pool grow --data 20G");
    assert_eq!(grown["data"]["total_bytes"].as_u64(), Some(20 << 30));

    let report = service.thinsnap("pool check");
    assert_eq!((report["sound"].as_bool(), report["devices"].as_u64()), (Some(true), status["devices"].as_u64()));
    let xml = service.dir().join("pool.xml");
    service.thinsnap(&format!("pool dump --output {}", xml.display()));
    let xml = fs::read_to_string(xml).unwrap();
    assert!(xml.starts_with("<superblock ") && xml.trim_end().ends_with("</superblock>"), "{xml}");

    // In use by the pool-host: named as such, and what to do instead.
    let metadata = service.metadata();
    let busy = thinsnap(&["pool", "check", "--metadata", metadata.to_str().unwrap()]);
    assert_eq!(busy.status.code(), Some(5), "{}", stderr(&busy));
    assert!(stderr(&busy).contains("try: leave --metadata out"), "{}", stderr(&busy));

    // A copy with a wrong byte: damage, told with its block, and status 3.
    service.stop_and_leave_nothing();
    let copy = service.dir().join("copy");
    let mut bytes = fs::read(&metadata).unwrap();
    bytes[300] ^= 1;
    fs::write(&copy, bytes).unwrap();
    let damaged = thinsnap(&["pool", "check", "--metadata", copy.to_str().unwrap(), "--json"]);
    assert_eq!(damaged.status.code(), Some(3), "{}", stderr(&damaged));
    let report: Value = serde_json::from_str(&stdout(&damaged)).unwrap();
    assert_eq!((report["damaged"].as_bool(), report["findings"][0]["block"].as_u64()), (Some(true), Some(0)));
    let sound = thinsnap(&["pool", "check", "--metadata", metadata.to_str().unwrap()]);
    assert!(sound.status.success() && stdout(&sound).starts_with("sound: "), "{}", stdout(&sound));
}

#[test]
fn root_an_image_becomes_containers() {
    if !can_run("image and container verbs") {
        return;
    }
    let mut service = Service::start("[default]\nsize = '512M'\n");
    let tree = service.dir().join("tree");
    fs::create_dir_all(tree.join("etc")).unwrap();
    fs::write(tree.join("etc/motd"), "hello").unwrap();
    let archive = service.dir().join("root.tar");
    let file = fs::File::create(&archive).unwrap();
    let mut builder = tar::Builder::new(file);
    builder.append_dir_all(".", &tree).unwrap();
    builder.finish().unwrap();

    let imported = service.thinsnap(&format!("image import {} --name tiny", archive.display()));
    assert_eq!((imported["layers_applied"].as_u64(), imported["layers_present"].as_u64()), (Some(1), Some(0)));
    assert_eq!(service.thinsnap("image ls")["images"][0]["name"], "tiny");
    service.thinsnap("container create web --image tiny");
    let at = service.dir().join("mnt");
    fs::create_dir(&at).unwrap();
    service.thinsnap(&format!("container mount web {}", at.display()));
    assert_eq!(fs::read_to_string(at.join("etc/motd")).unwrap(), "hello");
    service.thinsnap("container unmount web");
    service.thinsnap("container rm web");
    assert_eq!(service.thinsnap("image rm tiny")["layers_removed"].as_u64(), Some(1));

    let socket = service.socket();
    for (words, status, text) in [
        (&["image", "import", "/no/such/archive"][..], 1, "find the archive"),
        (&["image", "rm", "nobody"], 1, "nobody"),
        (&["container", "create", "../x"], 2, "is not a name"),
        (&["container", "create", "y", "--image", "nobody"], 1, "nobody"),
        (&["container", "mount", "nobody", "/"], 1, "nobody"),
    ] {
        let args: Vec<&str> = ["--socket", socket.to_str().unwrap()].iter().chain(words).copied().collect();
        let refused = thinsnap(&args);
        assert_eq!(refused.status.code(), Some(status), "{words:?}: {}", stderr(&refused));
        assert!(stderr(&refused).contains(text), "{words:?}: {}", stderr(&refused));
    }
    service.stop_and_leave_nothing();
}
