//! Programs of other Debian suites, unpacked beside the system, and what they judge.

use std::path::{Path, PathBuf};

use super::process::{must, must_say, program};

/// Unpacks packages of a suite into the tests' cache; the folder that holds `usr/bin`.
pub(crate) fn fetched(suite: &str, packages: &[&str], folder: &str) -> PathBuf {
    let cache = std::env::var_os("THINSNAP_CACHE").unwrap_or_else(|| "/var/cache/thinsnap-tests".into());
    let folder = Path::new(&cache).join(folder);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fetch-deb.sh");
    must(program("sh").arg(script).arg(suite).args(packages).arg(&folder));
    folder
}

/// Both generations of thin_check find nothing to say about the metadata of a pool that nobody has open.
pub(crate) fn thin_check_is_silent(metadata: &Path) {
    let newer = fetched("trixie", &["thin-provisioning-tools"], "thin-tools-1.1").join("usr/sbin/thin_check");
    for judge in [Path::new("thin_check"), &newer] {
        let version = must_say(program(judge).arg("-V"));
        let output = program(judge).arg(metadata).output().expect("thin_check can be run");
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        // What 1.1 tells about a sound pool is progress; a complaint is an error status or a line with one.
        let complains = said.lines().any(|line| line.to_lowercase().contains("error") || line.contains("leak"));
        assert!(output.status.success() && !complains, "thin_check {version} of {}: {said}", metadata.display());
    }
}
