//! The run directory's end: what a service and its pool-host made there goes with the last of them.
//!
//! Only who holds the root's lock (its open store) may begin or end anything here, so that nobody who starts finds
//! his directory gone under him.

use std::io::ErrorKind as IoKind;
use std::path::Path;

/// Files of ours that mean nothing once no pool-host lives.
const FILES: [&str; 6] = ["host.lock", "host.log", "host.log.old", "host.alive", "host.next", "service.sock"];
/// Directories of ours, empty by then.
const DIRS: [&str; 3] = ["export", "work", NODES];
/// Device nodes that the kernel engine made where nobody else makes any.
const NODES: &str = "nodes";

/// Takes the directory away, with what is known to be ours in it; anything else keeps it. The pool-host is gone and the
/// caller holds the root's lock.
pub(super) fn remove(run_dir: &Path) {
    let log = |path: &Path, error: &std::io::Error| match error.kind() {
        IoKind::NotFound => {}
        // Somebody's file is in it, or a mount that waits for its last user: it is theirs to say when.
        _ => tracing::debug!(%error, path = %path.display(), "left in the run directory"),
    };
    for path in FILES.map(|name| run_dir.join(name)) {
        if let Err(error) = std::fs::remove_file(&path) {
            log(&path, &error);
        }
    }
    for node in std::fs::read_dir(run_dir.join(NODES)).into_iter().flatten().flatten() {
        if let Err(error) = std::fs::remove_file(node.path()) {
            log(&node.path(), &error);
        }
    }
    for path in DIRS.map(|name| run_dir.join(name)).iter().map(|path| path.as_path()).chain([run_dir]) {
        if let Err(error) = std::fs::remove_dir(path) {
            log(path, &error);
        }
    }
}

/// Takes the directory away if no pool-host came to anything in it: it has a starter's lock at most, and the log of a host
/// that ended before it was alive, whose last words were told to whoever started it. What else stands in it belongs to a pool-host, dead or alive, or to the kernel's pool. The caller holds the
/// root's lock.
pub(super) fn remove_unused(run_dir: &Path) {
    let Ok(mut entries) = std::fs::read_dir(run_dir) else { return };
    let is_unused = entries.all(|entry| {
        entry.is_ok_and(|entry| {
            let file = entry.metadata().is_ok_and(|file| file.is_file());
            file && (entry.file_name() == "host.lock" || entry.file_name() == "host.log")
        })
    });
    if is_unused {
        remove(run_dir);
    }
}

#[cfg(test)]
mod tests {
    use super::{remove, remove_unused};

    #[test]
    fn a_refused_start_leaves_nothing_and_takes_nothing_of_others() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = dir.path().join("run");
        let begin = || {
            std::fs::create_dir_all(&run_dir).unwrap();
            std::fs::write(run_dir.join("host.lock"), "").unwrap();
            std::fs::write(run_dir.join("host.log"), "").unwrap();
        };
        for said in ["", "error: why it did not start"] {
            begin();
            std::fs::write(run_dir.join("host.log"), said).unwrap();
            remove_unused(&run_dir);
            assert!(!run_dir.exists(), "{said:?}");
        }
        for name in ["host.alive", "intent.log"] {
            begin();
            std::fs::write(run_dir.join(name), "").unwrap();
            remove_unused(&run_dir);
            assert!(run_dir.join("host.lock").exists() && run_dir.join(name).exists(), "{name}");
            std::fs::remove_dir_all(&run_dir).unwrap();
        }
    }

    #[test]
    fn what_is_ours_goes_and_what_is_not_stays() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = dir.path().join("run");
        std::fs::create_dir_all(run_dir.join("export")).unwrap();
        std::fs::write(run_dir.join("host.log"), "log").unwrap();
        std::fs::write(run_dir.join("intent.log"), "acknowledged changes").unwrap();
        remove(&run_dir);
        let left: Vec<_> = std::fs::read_dir(&run_dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["intent.log"]);
        std::fs::remove_file(run_dir.join("intent.log")).unwrap();
        remove(&run_dir);
        assert!(!run_dir.exists());
        remove(&run_dir);
    }
}
