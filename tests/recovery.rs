//! Backups, restore, repair and rescue through the binary, on a pool with a container in it; killed, too.

// All of this is test code, helpers too: clippy lets tests unwrap.
#![cfg(test)]

mod support {
    pub(crate) mod leftovers;
    pub(crate) mod process;
    #[expect(dead_code, reason = "not every test kills, and not every one looks at the log")]
    pub(crate) mod service;
}

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;
use support::process::engine;
use support::service::Service;

const BLOCK: usize = 4096;

fn thinsnap(root: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_thinsnap"));
    command.arg("--root").arg(root).args(args).env_remove("THINSNAP_ROOT").env_remove("THINSNAP_SOCKET");
    command.env("THINSNAP_ENGINE", engine());
    command
}

fn run(root: &Path, args: &[&str]) -> Output {
    thinsnap(root, args).output().expect("the binary runs")
}

/// The JSON answer of a command that ends with `status`.
fn answer(root: &Path, args: &[&str], status: i32) -> Value {
    let output = run(root, &[args, &["--json"]].concat());
    assert_eq!(
        output.status.code(),
        Some(status),
        "{args:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
}

fn dump(root: &Path) -> String {
    let output = run(root, &["pool", "dump"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A pool with a container of some files, and nobody who serves it.
fn stopped() -> (Service, PathBuf) {
    let mut service = Service::start("[backup]\ncount = 5\n[default]\nsize = \"300M\"\n");
    let root = service.root();
    answer(&root, &["container", "create", "web"], 0);
    answer(&root, &["container", "create", "other"], 0);
    service.stop();
    (service, root)
}

fn metadata(root: &Path) -> PathBuf {
    root.join("pool/metadata")
}

/// Blocks of the metadata that are btree nodes, by their checksum.
fn nodes(image: &[u8]) -> Vec<usize> {
    let is_node = |block: &&[u8]| {
        let stored = u32::from_le_bytes(block[..4].try_into().unwrap());
        !crc32c::crc32c(&block[4..]) ^ 121_107 == stored
    };
    image.chunks(BLOCK).enumerate().filter(|(_, block)| is_node(block)).map(|(at, _)| at).collect()
}

/// Overwrites blocks of the metadata until the check finds it damaged; returns which block did it.
fn damage(root: &Path, skip: usize) -> usize {
    let image = fs::read(metadata(root)).unwrap();
    let file = fs::OpenOptions::new().write(true).open(metadata(root)).unwrap();
    for block in nodes(&image).into_iter().skip(skip) {
        file.write_all_at(&[0xdb; BLOCK], (block * BLOCK) as u64).unwrap();
        if run(root, &["pool", "check"]).status.code() == Some(3) {
            return block;
        }
        file.write_all_at(&image[block * BLOCK..(block + 1) * BLOCK], (block * BLOCK) as u64).unwrap();
    }
    panic!("no node is live");
}

#[test]
fn root_the_ring_is_filled_at_the_start_and_before_growth_and_puts_metadata_back() {
    let (mut service, root) = stopped();
    service.up();
    let grown = answer(&root, &["pool", "grow", "--data", "11G"], 0);
    assert_eq!(grown["data"]["total_bytes"], 11_u64 << 30);
    let made = answer(&root, &["pool", "backup", "now"], 0);
    let list = answer(&root, &["pool", "backup", "ls"], 0);
    let reasons: Vec<&str> =
        list["backups"].as_array().unwrap().iter().map(|b| b["reason"].as_str().unwrap()).collect();
    assert!(
        reasons.contains(&"start") && reasons.contains(&"before grow") && reasons.contains(&"asked"),
        "{reasons:?}"
    );
    println!("a backup of {} metadata blocks has {} bytes", made["metadata_blocks_used"], made["bytes"]);
    assert!(made["bytes"].as_u64().unwrap() < made["metadata_blocks_used"].as_u64().unwrap() * 4096);
    for _ in 0..6 {
        answer(&root, &["pool", "backup", "now"], 0);
    }
    assert_eq!(answer(&root, &["pool", "backup", "ls"], 0)["backups"].as_array().unwrap().len(), 5, "the ring is full");
    service.stop();

    let before = dump(&root);
    let name = answer(&root, &["pool", "backup", "now"], 0)["name"].as_str().unwrap().to_owned();
    damage(&root, 0);
    assert_eq!(run(&root, &["pool", "backup", "now"]).status.code(), Some(3), "damage pushes out no good backup");
    assert_eq!(run(&root, &["pool", "backup", "restore", &name]).status.code(), Some(2), "it wants --yes");
    let done = answer(&root, &["pool", "backup", "restore", &name, "--yes"], 0);
    assert!(Path::new(done["kept"].as_str().unwrap()).exists());
    assert_eq!(dump(&root), before);
    answer(&root, &["pool", "check"], 0);
    service.up();
    answer(&root, &["container", "rm", "web"], 0);
    service.stop_and_leave_nothing();
}

#[test]
fn root_a_dump_is_put_back_and_the_pool_goes_on() {
    let (mut service, root) = stopped();
    let before = dump(&root);
    let xml = root.join("pool.xml");
    fs::write(&xml, &before).unwrap();
    let xml = xml.to_str().unwrap();
    service.up();
    assert_eq!(run(&root, &["pool", "restore", xml, "--yes"]).status.code(), Some(5), "never over a pool in use");
    service.stop();
    fs::write(xml, dump(&root)).unwrap();
    let before = dump(&root);
    damage(&root, 0);
    answer(&root, &["pool", "restore", xml, "--yes"], 0);
    assert_eq!(dump(&root), before);
    service.up();
    answer(&root, &["container", "create", "third"], 0);
    service.stop();
    answer(&root, &["pool", "check"], 0);
}

#[test]
fn root_damage_is_told_then_repaired_and_records_and_pool_agree() {
    let (mut service, root) = stopped();
    for round in 0..3 {
        let block = damage(&root, round);
        let image = fs::read(metadata(&root)).unwrap();
        let told = answer(&root, &["pool", "repair", "--dry-run"], 3);
        assert_eq!(told["applied"], false);
        assert!(fs::read(metadata(&root)).unwrap() == image, "a dry run changes nothing");
        let output = run(&root, &["pool", "repair", "--apply", "--json"]);
        assert!(
            matches!(output.status.code(), Some(0 | 3)),
            "block {block}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let done: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(fs::read(done["kept"].as_str().unwrap()).unwrap() == image, "what was damaged is kept");
        let check = answer(&root, &["pool", "check"], 0);
        assert_eq!(check["sound"], true, "{check}");
        assert_eq!(answer(&root, &["pool", "repair", "--apply"], 0)["was_sound"], true);
        service.up();
        answer(&root, &["pool", "status"], 0);
        service.stop();
    }
}

#[test]
fn root_a_repair_that_is_killed_leaves_the_old_or_the_new() {
    let (mut service, root) = stopped();
    let block = damage(&root, 0);
    let damaged = fs::read(metadata(&root)).unwrap();
    let mut finished = 0;
    for step in 0..14_u64 {
        fs::write(metadata(&root), &damaged).unwrap();
        let mut repair = thinsnap(&root, &["pool", "repair", "--apply", "--json"])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // Not a state that is awaited: the moment of death, another one each time.
        std::thread::park_timeout(Duration::from_millis(10 + step * 15));
        repair.kill().unwrap();
        repair.wait().unwrap();
        let now = fs::read(metadata(&root)).unwrap();
        if now == damaged {
            let code = run(&root, &["pool", "repair", "--apply"]).status.code();
            assert!(matches!(code, Some(0 | 3)), "block {block} after a kill at {step}: {code:?}");
        } else {
            finished += 1;
        }
        answer(&root, &["pool", "check"], 0);
    }
    println!("14 repairs killed, {finished} of them behind the rename");
    service.up();
    answer(&root, &["container", "rm", "other"], 0);
    service.stop_and_leave_nothing();
}

#[test]
fn root_a_restore_that_is_killed_leaves_the_old_or_the_new() {
    let (_service, root) = stopped();
    let before = dump(&root);
    let xml = root.join("pool.xml");
    fs::write(&xml, &before).unwrap();
    for step in 0..12_u64 {
        let mut restore = thinsnap(&root, &["pool", "restore", xml.to_str().unwrap(), "--yes"])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::park_timeout(Duration::from_millis(10 + step * 15));
        restore.kill().unwrap();
        restore.wait().unwrap();
        assert_eq!(dump(&root), before, "killed at {step}");
        answer(&root, &["pool", "check"], 0);
    }
    answer(&root, &["pool", "restore", xml.to_str().unwrap(), "--yes"], 0);
}

#[test]
fn root_growth_that_is_killed_is_finished_by_the_next_one() {
    let (mut service, root) = stopped();
    for step in 0..6_u64 {
        let size = format!("{}M", 12_288 + step * 64);
        let mut grow =
            thinsnap(&root, &["pool", "grow", "--data", &size, "--metadata", &format!("{}M", 64 + 4 * step)])
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null())
                .spawn()
                .unwrap();
        std::thread::park_timeout(Duration::from_millis(20 + step * 40));
        grow.kill().unwrap();
        grow.wait().unwrap();
        let total = (12_288 + step * 64) << 20;
        support::process::wait_until(
            "the killed one's host to let go, or the growth to be done",
            Duration::from_secs(90),
            || run(&root, &["pool", "grow", "--data", &size]).status.success(),
        );
        // Who ends a host does not wait until the kernel has let go of its last file.
        support::process::wait_until("the pool to be free", Duration::from_secs(60), || {
            run(&root, &["pool", "status"]).status.success()
        });
        support::process::wait_until("the pool to have grown", Duration::from_secs(60), || {
            let output = run(&root, &["pool", "status", "--json"]);
            serde_json::from_slice::<Value>(&output.stdout).is_ok_and(|status| status["data"]["total_bytes"] == total)
        });
        support::process::wait_until("a clean check", Duration::from_secs(60), || {
            run(&root, &["pool", "check"]).status.success()
        });
    }
    service.up();
    service.stop_and_leave_nothing();
}

#[test]
fn root_a_device_is_rescued_from_a_pool_that_does_not_open() {
    let (_service, root) = stopped();
    let whole = root.join("whole.img");
    let done = answer(&root, &["rescue", "local/container/web", "--to", whole.to_str().unwrap()], 0);
    let number = done["device"].as_u64().unwrap().to_string();
    assert!(done["read"].as_u64().unwrap() > 0, "{done}");
    let check = Command::new("e2fsck").arg("-fn").arg(&whole).output().unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));

    answer(&root, &["pool", "backup", "now"], 0);
    // The superblock is gone: no service opens this.
    let file = fs::OpenOptions::new().write(true).open(metadata(&root)).unwrap();
    file.write_all_at(&[0xdb; BLOCK], 0).unwrap();
    let again = root.join("again.img");
    let map = root.join("again.map");
    answer(&root, &["rescue", &number, "--to", again.to_str().unwrap(), "--map", map.to_str().unwrap()], 0);
    let same = Command::new("cmp").args([&whole, &again]).output().unwrap();
    assert!(same.status.success(), "{}", String::from_utf8_lossy(&same.stdout));
    assert_eq!(fs::read_to_string(&map).unwrap().lines().count(), 1, "nothing is missing");
    assert_eq!(
        run(&root, &["rescue", &number, "--to", again.to_str().unwrap()]).status.code(),
        Some(1),
        "never over a file"
    );
    assert_eq!(run(&root, &["rescue", "9999", "--to", root.join("no").to_str().unwrap()]).status.code(), Some(1));
    assert!(!root.join("no").exists());
}

#[test]
fn records_without_a_device_are_found_by_the_check() {
    let (_service, root) = stopped();
    let xml = root.join("pool.xml");
    fs::write(&xml, dump(&root)).unwrap();
    let text = fs::read_to_string(&xml).unwrap();
    let last = text.rfind("  <device ").unwrap();
    let bare = format!("{}</superblock>\n", &text[..last]);
    let image = root.join("bare");
    fs::write(&xml, bare).unwrap();
    answer(&root, &["pool", "restore", xml.to_str().unwrap(), "--to", image.to_str().unwrap()], 0);
    // Behind the program's back: the pool of another day.
    let identity = &fs::read(metadata(&root)).unwrap()[16..32].to_vec();
    let mut bytes = fs::read(&image).unwrap();
    bytes[16..32].copy_from_slice(identity);
    let sum = !crc32c::crc32c(&bytes[4..BLOCK]) ^ 160_774;
    bytes[..4].copy_from_slice(&sum.to_le_bytes());
    fs::write(metadata(&root), &bytes).unwrap();
    let report = answer(&root, &["pool", "check"], 3);
    let finding = report["findings"].as_array().unwrap().iter().find(|f| f["severity"] == "damage").unwrap();
    assert!(finding["what"].as_str().unwrap().contains("is not in the pool"), "{finding}");
}
