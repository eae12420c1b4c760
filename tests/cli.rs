//! The command line through its binary: the contract that every command inherits, and each noun's claims.

use std::process::{Command, Output};

/// The binary, deaf to the caller's environment.
fn thinsnap(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_thinsnap"))
        .args(args)
        .env_remove("THINSNAP_ROOT")
        .env_remove("THINSNAP_SOCKET")
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
