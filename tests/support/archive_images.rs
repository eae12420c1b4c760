//! Images made by other programs than ours: umoci makes them, skopeo changes their form.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs a program; panics with what it said if it fails.
pub(crate) fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {said}", arguments.join(" "));
}

/// True if the programs are there; else says so.
pub(crate) fn have(programs: &[&str]) -> bool {
    let missing: Vec<&&str> =
        programs.iter().filter(|program| Command::new(program).arg("--version").output().is_err()).collect();
    if !missing.is_empty() {
        println!("SKIPPED: needs {missing:?} (apt-get install skopeo umoci)");
    }
    missing.is_empty()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Makes an OCI layout in `dir` with an image `it` of four layers that do to each other all that layers do. Returns the
/// layout and umoci's own idea of the tree.
pub(crate) fn umoci_image(dir: &Path) -> (PathBuf, PathBuf) {
    let layout = dir.join("layout");
    let image = format!("{}:it", text(&layout));
    run("umoci", &["init", "--layout", text(&layout)]);
    run("umoci", &["new", "--image", &image]);
    let steps: [&dyn Fn(&Path); 4] = [&first_layer, &second_layer, &third_layer, &fourth_layer];
    for (i, step) in steps.iter().enumerate() {
        let bundle = dir.join(format!("bundle-{i}"));
        run("umoci", &["unpack", "--image", &image, text(&bundle)]);
        step(&bundle.join("rootfs"));
        run("umoci", &["repack", "--image", &image, text(&bundle)]);
        std::fs::remove_dir_all(&bundle).unwrap();
    }
    let opaque = dir.join("opaque");
    std::fs::create_dir(&opaque).unwrap();
    std::fs::write(opaque.join("only"), "this").unwrap();
    run("umoci", &["insert", "--image", &image, "--opaque", text(&opaque), "/srv/tree"]);
    run("umoci", &["insert", "--image", &image, "--whiteout", "/srv/gone"]);
    let bundle = dir.join("theirs");
    run("umoci", &["unpack", "--image", &image, text(&bundle)]);
    (layout, bundle.join("rootfs"))
}

fn first_layer(root: &Path) {
    for directory in ["bin", "usr/lib", "srv/tree/deep/deeper", "srv/gone", "etc", "dev", "var/changes"] {
        std::fs::create_dir_all(root.join(directory)).unwrap();
    }
    symlink("usr/lib", root.join("lib")).unwrap();
    symlink("/usr/lib", root.join("lib-absolute")).unwrap();
    symlink("../../../../etc", root.join("usr/lib/up")).unwrap();
    std::fs::write(root.join("usr/lib/libc.so"), vec![7; 300_000]).unwrap();
    std::fs::write(root.join("srv/tree/a"), "a").unwrap();
    std::fs::write(root.join("srv/tree/deep/deeper/b"), "b").unwrap();
    std::fs::write(root.join("srv/gone/c"), "c").unwrap();
    std::fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n").unwrap();
    std::fs::write(root.join("bin/su"), "su").unwrap();
    std::fs::set_permissions(root.join("bin/su"), PermissionsExt::from_mode(0o4755)).unwrap();
    std::os::unix::fs::chown(root.join("etc"), Some(12), Some(34)).unwrap();
    std::fs::write(root.join("bin/ping"), "ping").unwrap();
    let capability = b"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    xattr::set(root.join("bin/ping"), "security.capability", capability).unwrap();
    xattr::set(root.join("etc/passwd"), "user.note", b"one\ntwo=three").unwrap();
    run("mknod", &[text(&root.join("dev/null")), "c", "1", "3"]);
    run("mknod", &[text(&root.join("dev/fifo")), "p"]);
    std::fs::write(root.join("var/changes/directory-to-symlink"), "").unwrap();
    std::fs::create_dir(root.join("var/changes/d")).unwrap();
    std::fs::write(root.join("var/changes/d/inside"), "x").unwrap();
    symlink("/etc", root.join("var/changes/s")).unwrap();
    std::fs::write(root.join("var/changes").join("n".repeat(255)), "long").unwrap();
}

fn second_layer(root: &Path) {
    // A second name for a file of the layer below.
    std::fs::hard_link(root.join("usr/lib/libc.so"), root.join("usr/lib/libc.so.6")).unwrap();
    std::fs::remove_file(root.join("srv/tree/a")).unwrap();
    std::fs::remove_dir_all(root.join("var/changes/d")).unwrap();
    symlink("/usr", root.join("var/changes/d")).unwrap();
    std::fs::remove_file(root.join("var/changes/s")).unwrap();
    std::fs::create_dir(root.join("var/changes/s")).unwrap();
    std::fs::write(root.join("var/changes/s/now-a-directory"), "").unwrap();
    xattr::remove(root.join("etc/passwd"), "user.note").unwrap();
}

fn third_layer(root: &Path) {
    std::fs::remove_file(root.join("var/changes/d")).unwrap();
    std::fs::create_dir(root.join("var/changes/d")).unwrap();
    std::fs::write(root.join("var/changes/d/back"), "again").unwrap();
    std::fs::set_permissions(root.join("usr/lib"), PermissionsExt::from_mode(0o1775)).unwrap();
    std::fs::write(root.join("etc/passwd"), "changed").unwrap();
    let mut long = root.join("srv/tree");
    for _ in 0..20 {
        long.push("l".repeat(100));
    }
    std::fs::create_dir_all(&long).unwrap();
    std::fs::write(long.join("deep"), "deep").unwrap();
}

fn fourth_layer(root: &Path) {
    std::fs::remove_dir_all(root.join("srv/tree/deep")).unwrap();
    std::fs::write(root.join("srv/tree/deep"), "a file in the place of a directory").unwrap();
    std::os::unix::fs::lchown(root.join("lib"), Some(5), Some(6)).unwrap();
}
