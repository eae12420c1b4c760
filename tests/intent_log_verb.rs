//! `pool discard-intent-log` through the binary: the way out when a log stops the start.

// All of this is test code, helpers too: clippy lets tests unwrap.
#![cfg(test)]

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use thinsnap::config::run_dir_of;

struct Root {
    dir: tempfile::TempDir,
}

impl Root {
    fn new() -> Self {
        let root = Self { dir: tempfile::tempdir().unwrap() };
        let made = root.thinsnap(&["pool", "create", "--size", "1G"]);
        assert!(made.status.success(), "{made:?}");
        root
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn thinsnap(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_thinsnap"))
            .arg("--root")
            .arg(self.path())
            .args(args)
            .env_remove("THINSNAP_ROOT")
            .env_remove("THINSNAP_SOCKET")
            .env("THINSNAP_ENGINE", "embedded")
            .output()
            .unwrap()
    }

    fn run_dir(&self) -> PathBuf {
        run_dir_of(self.path())
    }

    fn log(&self) -> PathBuf {
        self.run_dir().join("intent.log")
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        if let Err(e) = fs::remove_dir_all(self.run_dir()) {
            assert_eq!(e.kind(), std::io::ErrorKind::NotFound, "{e}");
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn root_a_doubtful_log_stops_the_start_and_the_verb_is_the_way_out() {
    let root = Root::new();
    let nothing = root.thinsnap(&["pool", "discard-intent-log"]);
    assert!(nothing.status.success() && text(&nothing.stdout).contains("nothing to discard"), "{nothing:?}");

    fs::DirBuilder::new().recursive(true).mode(0o700).create(root.run_dir()).unwrap();
    fs::write(root.log(), [0x5a; 9000]).unwrap();
    let refused = root.thinsnap(&["pool", "status"]);
    let said = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(3), "{said}");
    assert!(said.contains(root.log().to_str().unwrap()) && said.contains("discard-intent-log"), "{said}");

    let asked = root.thinsnap(&["pool", "discard-intent-log"]);
    let said = text(&asked.stderr);
    assert_eq!(asked.status.code(), Some(2), "{said}");
    assert!(said.contains("would be lost") && said.contains("--yes"), "{said}");
    assert!(root.log().exists(), "without --yes nothing is touched");

    let done = root.thinsnap(&["pool", "discard-intent-log", "--yes", "--json"]);
    assert!(done.status.success(), "{done:?}");
    let answer: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    let aside = PathBuf::from(answer["kept_as"].as_str().unwrap());
    assert_eq!(fs::read(aside).unwrap(), [0x5a; 9000], "it is set aside, not deleted");
    assert!(!root.log().exists());

    let status = root.thinsnap(&["pool", "status"]);
    assert!(status.status.success(), "{status:?}");
    assert!(!root.log().exists(), "the orderly end of the pool takes its log along");
}
