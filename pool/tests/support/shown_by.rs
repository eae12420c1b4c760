//! How the devices of this test run are shown: by FUSE, or by ublk where the kernel has it.

use std::path::Path;
use std::process::Command;

use thinsnap_pool::{ErrorKind, Export, choose_export};

/// The setting that chooses.
pub(crate) const TEST_EXPORT: &str = "THINSNAP_TEST_EXPORT";

/// What the setting asks for: a second run of the same tests where the kernel has ublk.
pub(crate) fn wanted_export() -> Export {
    match std::env::var(TEST_EXPORT).as_deref() {
        Err(_) | Ok("fuse") => Export::Fuse,
        Ok("ublk") => Export::Ublk,
        Ok(other) => panic!("{TEST_EXPORT} is {other:?}, neither fuse nor ublk"),
    }
}

/// True for a run on ublk devices.
pub(crate) fn by_ublk() -> bool {
    wanted_export() == Export::Ublk
}

/// Prints why a test cannot run, and returns true, unless this machine can show devices as the run wants it.
pub(crate) fn skipped_without_export() -> bool {
    let why = if !nix::unistd::geteuid().is_root() {
        "it needs root".to_owned()
    } else if by_ublk() {
        return skipped_without_ublk();
    } else if !Path::new("/dev/fuse").exists() || !Path::new("/dev/loop-control").exists() {
        "this machine has no FUSE or no loop devices".to_owned()
    } else {
        return false;
    };
    println!("SKIPPED: {why}");
    true
}

/// As [`skipped_without_export`], for a test of ublk alone. The module is loaded, if there is one.
pub(crate) fn skipped_without_ublk() -> bool {
    let loaded = Command::new("modprobe").args(["-q", "ublk_drv"]).status();
    match choose_export(Export::Ublk) {
        Ok(_) => false,
        Err(error) => {
            assert!(
                matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::Denied),
                "{error}; modprobe: {loaded:?}"
            );
            println!("SKIPPED: {error}");
            true
        }
    }
}

/// The ublk devices of this machine, and what is left of them.
pub(crate) fn ublk_devices() -> Vec<String> {
    let entries = std::fs::read_dir("/sys/class/ublk-char").into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
