//! What the end-to-end tests need of a machine, and how they say that it is not there.

use std::fs::OpenOptions;

use thinsnap_pool::{Export, choose_export};

/// True if the test can run; else prints why not.
pub(crate) fn is_able(test: &str, programs: &[&str]) -> bool {
    let lacks = lacking(programs);
    if let Some(what) = &lacks {
        println!("SKIPPED: {test}: {what}");
    }
    lacks.is_none()
}

fn lacking(programs: &[&str]) -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root for loop devices and mounts".to_owned());
    }
    for device in ["/dev/fuse", "/dev/loop-control"] {
        if let Err(error) = OpenOptions::new().read(true).write(true).open(device) {
            return Some(format!("cannot open {device}: {error}"));
        }
    }
    if std::env::var("THINSNAP_EXPORT").is_ok_and(|export| export == "ublk")
        && let Err(error) = choose_export(Export::Ublk)
    {
        return Some(format!("devices are to be shown by ublk: {error}"));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there = |program: &str| std::env::split_paths(&path).any(|dir| dir.join(program).exists());
    let missing: Vec<_> = programs.iter().filter(|program| !is_there(program)).collect();
    (!missing.is_empty()).then(|| format!("{missing:?} are not installed (the Makefile names the packages)"))
}
