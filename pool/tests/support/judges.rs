//! thin_check, thin_dump and thin_restore of thin-provisioning-tools, as judges of what we write.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use thinsnap_pool::{BlockDevice, MemoryDevice, audit};

/// Where the 1.x tools are looked for if `THIN_TOOLS_11` does not say.
const TOOLS_11: &str = "/var/cache/thinsnap-tests/thin-tools-1.1/usr/sbin";

/// The folders of the tools at hand, each with a name: the ones in PATH, and 1.1 if it is there.
fn tool_folders() -> Vec<Option<PathBuf>> {
    let newer = std::env::var_os("THIN_TOOLS_11").map_or_else(|| PathBuf::from(TOOLS_11), PathBuf::from);
    let mut folders = vec![None];
    if newer.join("thin_check").exists() {
        folders.push(Some(newer));
    }
    folders
}

fn run(folder: Option<&Path>, tool: &str, arguments: &[&str]) -> Option<Output> {
    let program = folder.map_or_else(|| PathBuf::from(tool), |folder| folder.join(tool));
    match Command::new(&program).args(arguments).output() {
        Ok(output) => Some(output),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("SKIPPED: {} is not installed", program.display());
            None
        }
        Err(error) => panic!("{}: {error}", program.display()),
    }
}

/// Panics with the findings unless our own audit finds nothing worse than notes.
pub(crate) fn assert_sound(image: &[u8], story: &str) {
    assert_device_sound(&MemoryDevice::from_bytes(image.to_vec()), story);
}

/// The same of a device.
pub(crate) fn assert_device_sound(device: &dyn BlockDevice, story: &str) {
    let report = audit(device, &|_| ()).unwrap();
    let findings: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
    assert!(report.is_sound() && !report.incomplete, "{story}: {findings:#?}");
}

/// Panics with the judge's words unless every thin_check at hand accepts the metadata.
pub(crate) fn assert_thin_check_accepts(image: &[u8], story: &str) {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), image).unwrap();
    for folder in tool_folders() {
        if let Some(output) = run(folder.as_deref(), "thin_check", &[file.path().to_str().unwrap()]) {
            assert!(
                output.status.success(),
                "{story}: thin_check of {folder:?} says {}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
}

/// What `thin_dump` of PATH prints; `None` where it is not installed.
pub(crate) fn thin_dump(image: &[u8], arguments: &[&str]) -> Option<String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), image).unwrap();
    let mut all = arguments.to_vec();
    all.push(file.path().to_str().unwrap());
    let output = run(None, "thin_dump", &all)?;
    assert!(output.status.success(), "thin_dump: {}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

/// What `thin_dump` of 1.x prints; `None` where it is not at hand.
pub(crate) fn thin_dump_11(image: &[u8]) -> Option<String> {
    let folder = tool_folders().into_iter().flatten().next()?;
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), image).unwrap();
    let output = run(Some(&folder), "thin_dump", &[file.path().to_str().unwrap()])?;
    assert!(output.status.success(), "thin_dump: {}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

/// What `thin_restore` of PATH makes of a dump, on a device of `size` bytes.
pub(crate) fn thin_restore(xml: &str, size: usize) -> Option<Vec<u8>> {
    let (input, output) = (tempfile::NamedTempFile::new().unwrap(), tempfile::NamedTempFile::new().unwrap());
    fs::write(input.path(), xml).unwrap();
    fs::write(output.path(), vec![0; size]).unwrap();
    let done =
        run(None, "thin_restore", &["-i", input.path().to_str().unwrap(), "-o", output.path().to_str().unwrap()])?;
    assert!(done.status.success(), "thin_restore: {}", String::from_utf8_lossy(&done.stderr));
    Some(fs::read(output.path()).unwrap())
}

/// The metadata without the needs_check flag, by `thin_check --clear-needs-check-flag`, which checks first.
pub(crate) fn without_needs_check(image: &[u8]) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), image).unwrap();
    let output = run(None, "thin_check", &["--clear-needs-check-flag", file.path().to_str().unwrap()]);
    let output = output.expect("thin_check of thin-provisioning-tools is installed");
    assert!(output.status.success(), "thin_check: {}", String::from_utf8_lossy(&output.stderr));
    fs::read(file.path()).unwrap()
}
