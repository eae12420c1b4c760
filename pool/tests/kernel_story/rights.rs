//! What a host must have and grant: without it the engine says what is missing, and what to do.

use std::process::{Command, Output};

use thinsnap_pool::{Engine, ErrorKind, choose_engine, open_kernel};

use crate::host_tools::run;
use crate::support::kernel_stage::KernelDir;
use crate::turn;

/// Where the process that [`tried_with`] starts finds its pool.
const POOL: &str = "THINSNAP_POOL_WITHOUT_RIGHTS";
const TEST: &str = "kernel_story::rights::root_a_process_without_rights_says_what_it_was_told";
/// The kernel asks this program for modules.
const MODPROBE: &str = "/proc/sys/kernel/modprobe";

/// What opening the pool says in a process with fewer rights.
fn tried_with(dir: &KernelDir, rights: &[&str]) -> String {
    let program = std::env::current_exe().unwrap();
    let Output { stdout, stderr, .. } = Command::new("setpriv")
        .args(rights)
        .arg(program)
        .args(["--exact", TEST, "--ignored", "--nocapture"])
        .env(POOL, dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&stdout).into_owned();
    said.lines()
        .find_map(|line| line.split_once("it says: "))
        .unwrap_or_else(|| panic!("{said}{}", String::from_utf8_lossy(&stderr)))
        .1
        .to_owned()
}

#[test]
#[ignore = "make test-kernel runs it: it needs a kernel with dm-thin"]
fn root_who_may_not_command_device_mapper_is_told_who_may() {
    let Some(_turn) = turn() else { return };
    let dir = KernelDir::new();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    for rights in [
        &["--reuid=65534", "--regid=65534", "--clear-groups"][..],
        // Root of a container that is not privileged: the node opens, and every command is refused.
        &["--bounding-set=-sys_admin"][..],
    ] {
        let said = tried_with(&dir, rights);
        assert!(said.starts_with("Denied "), "{rights:?}: {said}");
        assert!(said.contains("root with the capability CAP_SYS_ADMIN"), "{rights:?}: {said}");
    }
    dir.open().close().unwrap();
}

/// No test by itself: what [`tried_with`] starts.
#[test]
#[ignore = "make test-kernel runs it: it needs a kernel with dm-thin"]
fn root_a_process_without_rights_says_what_it_was_told() {
    let Some(dir) = std::env::var_os(POOL) else { return };
    let paths = thinsnap_pool::PoolPaths::in_dir(dir.as_ref());
    let options = thinsnap_pool::KernelOptions {
        run_dir: std::path::Path::new(&dir).join("run"),
        ..thinsnap_pool::KernelOptions::default()
    };
    let error = open_kernel(&paths, &options).err().expect("it is refused");
    println!("\nit says: {:?} {error}", error.kind());
}

#[test]
#[ignore = "make test-kernel runs it: it needs a kernel with dm-thin"]
fn root_a_kernel_without_the_modules_says_which_to_load() {
    let Some(_turn) = turn() else { return };
    // Not on a machine that others use too.
    if std::env::var_os("THINSNAP_VM").is_none() {
        println!("SKIPPED: it takes the kernel's modules away, which it does in a virtual machine only");
        return;
    }
    let dir = KernelDir::new();
    let helper = std::fs::read_to_string(MODPROBE).unwrap();
    let refused = || {
        let chosen = choose_engine(Engine::Auto).unwrap();
        assert!(!chosen.kernel, "{}", chosen.why);
        let error = open_kernel(&dir.paths(), &dir.options()).err().expect("it is refused");
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        error.to_string()
    };
    std::fs::write(MODPROBE, "/nonexistent").unwrap();
    run("rmmod", ["dm_thin_pool"]);
    assert!(refused().contains("modprobe dm_thin_pool"), "{}", refused());
    run("rmmod", ["dm_flakey"]);
    run("rmmod", ["dm_log_writes"]);
    run("rmmod", ["dm_persistent_data"]);
    run("rmmod", ["dm_bio_prison"]);
    run("rmmod", ["dm_bufio"]);
    run("rmmod", ["dm_mod"]);
    assert!(refused().contains("modprobe dm_mod"), "{}", refused());
    std::fs::write(MODPROBE, helper.trim()).unwrap();
    // With somebody who loads modules it needs no more than that.
    run("modprobe", ["dm_flakey"]);
    dir.open().close().unwrap();
}
