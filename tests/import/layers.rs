//! Images: layers of others laid down right, hostile ones refused, and imports that leave nothing behind when they fail.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use crate::archive::{Member, Tar};
use crate::archive_hostile::{Outcome, corpus};
use crate::archive_images::{have, run, umoci_image};
use crate::archive_pool::Bench;
use crate::archive_tree::{Times, assert_same, read_tree};
use tempfile::TempDir;
use thinsnap::error::{Error, ErrorKind};
use thinsnap::image::{AppliedLayer, Limits, apply_layer};

/// Lays an archive's bytes down on a directory.
fn lay_down(bytes: &[u8], root: &Path, limits: &Limits) -> Result<AppliedLayer, Error> {
    let archive = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(archive.path(), bytes).unwrap();
    let root = File::open(root).unwrap();
    apply_layer(archive.path(), root.as_fd(), limits)
}

fn full_text(error: &Error) -> String {
    error.to_string()
}

#[test]
fn root_hostile_archives_end_in_a_named_error_and_never_touch_anything_outside() {
    let dir = TempDir::new().unwrap();
    let canary = dir.path().join("canary");
    std::fs::create_dir(&canary).unwrap();
    std::fs::write(canary.join("bird"), "sings").unwrap();
    let before = read_tree(&canary, Times::Compared);
    let all = corpus(canary.to_str().unwrap());
    assert!(all.len() >= 200, "{} archives", all.len());
    let mut wrong = Vec::new();
    for (i, hostile) in all.iter().enumerate() {
        let root = dir.path().join(format!("root-{i}"));
        std::fs::create_dir(&root).unwrap();
        let laid = lay_down(&hostile.bytes, &root, &Limits::default());
        let fits = match (&laid, hostile.outcome) {
            (Err(error), Outcome::Refused(why)) => {
                error.kind() == ErrorKind::BadArchive && full_text(error).contains(why)
            }
            (Ok(_), Outcome::Inside(path)) => root.join(path).symlink_metadata().is_ok(),
            (Ok(_), Outcome::Without(path)) => root.join(path).symlink_metadata().is_err(),
            _ => false,
        };
        if !fits {
            wrong.push(format!(
                "{}: {:?}, not {:?}",
                hostile.name,
                laid.map_err(|e| (e.kind(), full_text(&e))),
                hostile.outcome
            ));
        }
        assert_same(&read_tree(&canary, Times::Compared), &before);
        std::fs::remove_dir_all(&root).unwrap();
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), all.len(), wrong.join("\n"));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "something beside the canary is left");
}

#[test]
fn root_a_layer_gets_every_attribute_that_its_archive_tells() {
    let dir = TempDir::new().unwrap();
    let capability = b"\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x0a\x00\x00\x00\x00\x00\x00\x00";
    let bytes = Tar::default()
        .add(Member::directory("./").mode(0o755).mtime(5))
        .add(
            Member::file("bin/tool", "x")
                .mode(0o6755)
                .owner(10, 20)
                .pax("SCHILY.xattr.security.capability", capability),
        )
        .add(Member::hard_link("bin/tool2", "bin/tool"))
        .add(Member::directory("bin").mode(0o1777).owner(3, 4).mtime(77))
        .add(Member::symlink("link", "/nowhere").owner(8, 9).pax("mtime", "123.456789012"))
        .add(Member::node(b'3', "null", (1, 3)).mode(0o666))
        .add(Member::node(b'4', "disk", (8, 300)).mode(0o660).owner(0, 6))
        .add(Member::node(b'6', "fifo", (0, 0)).mode(0o600))
        .add(Member::file("old", "x").pax("mtime", "-1.5").pax("SCHILY.xattr.user.a", "line\nline"))
        .add(Member::file("big-owner", "").pax("uid", "4294967294").pax("gid", "3000000000"))
        .end();
    lay_down(&bytes, dir.path(), &Limits::default()).unwrap();
    let tree = read_tree(dir.path(), Times::Compared);
    assert_eq!((tree[""].mode, tree[""].mtime), (0o755, (5, 0)));
    let tool = &tree["bin/tool"];
    assert_eq!((tool.mode, tool.owner, tool.links.clone()), (0o6755, (10, 20), Some(("bin/tool".to_owned(), 2))));
    assert_eq!(tool.xattrs["security.capability"], capability);
    assert_eq!((tree["bin"].mode, tree["bin"].owner, tree["bin"].mtime), (0o1777, (3, 4), (77, 0)));
    let link = &tree["link"];
    assert_eq!((link.owner, link.mtime, link.content.as_slice()), ((8, 9), (123, 456_789_012), &b"/nowhere"[..]));
    assert_eq!((tree["null"].kind, tree["null"].mode, tree["null"].content.as_slice()), ('c', 0o666, &b"259"[..]));
    assert_eq!((tree["disk"].kind, tree["disk"].mode, tree["disk"].owner), ('b', 0o660, (0, 6)));
    assert_eq!((tree["fifo"].kind, tree["fifo"].mode), ('p', 0o600));
    assert_eq!((tree["old"].mtime, tree["old"].xattrs["user.a"].as_slice()), ((-2, 500_000_000), &b"line\nline"[..]));
    assert_eq!(tree["big-owner"].owner, (4_294_967_294, 3_000_000_000));
}

#[test]
fn root_an_image_of_umoci_unpacks_to_the_tree_that_umoci_makes_of_it() {
    if !have(&["umoci", "skopeo"]) {
        return;
    }
    let bench = Bench::new();
    let (layout, theirs) = umoci_image(bench.path());
    let theirs = read_tree(&theirs, Times::OfFiles);
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let from = format!("oci:{}:it", text(&layout));
    let docker = bench.path().join("docker.tar");
    run("skopeo", &["copy", &from, &format!("docker-archive:{}:it:latest", text(&docker))]);
    let oci = bench.path().join("oci.tar");
    run(
        "skopeo",
        &[
            "copy",
            "--dest-compress-format",
            "zstd",
            "--dest-compress",
            &from,
            &format!("oci-archive:{}:it", text(&oci)),
        ],
    );
    let packed = bench.path().join("packed.tar.gz");
    std::fs::write(&packed, crate::archive::gzip(&std::fs::read(&docker).unwrap())).unwrap();

    let first = bench.import(&layout, "layout").unwrap();
    assert_eq!((first.layers_applied, first.layers_present), (6, 0));
    bench.look_into("layout", |root| assert_same(&read_tree(root, Times::OfFiles), &theirs));
    for (source, name) in [(&docker, "docker"), (&oci, "oci"), (&packed, "packed")] {
        let again = bench.import(source, name).unwrap();
        assert_eq!((again.layers_applied, again.layers_present), (0, 6), "{name}");
        assert_eq!(again.image.top(), first.image.top(), "{name}");
    }
    for name in ["layout", "docker", "oci"] {
        assert_eq!(bench.images().remove(name).unwrap().layers_removed, 0);
    }
    assert_eq!(bench.images().remove("packed").unwrap().layers_removed, 6);
    for (source, name) in [(&docker, "docker"), (&oci, "oci"), (&packed, "packed")] {
        assert_eq!(bench.import(source, name).unwrap().layers_applied, 6, "{name}");
        bench.look_into(name, |root| assert_same(&read_tree(root, Times::OfFiles), &theirs));
        assert_eq!(bench.images().remove(name).unwrap().layers_removed, 6, "{name}");
    }
    assert_eq!(bench.snapshots(), []);
}

#[test]
fn root_whiteouts_hide_lower_layers_only_wherever_they_stand() {
    let dir = TempDir::new().unwrap();
    let below = Tar::default()
        .add(Member::directory("d").pax("SCHILY.xattr.user.old", "1").pax("SCHILY.xattr.user.both", "1"))
        .add(Member::file("d/old", "old"))
        .add(Member::file("d/sub/old", "old"))
        .add(Member::file("d/gone/old", "old"))
        .add(Member::file("e/replaced", "old"))
        .add(Member::file("e/tree/old", "old"))
        .add(Member::symlink("e/way", "../d"))
        .end();
    let above = Tar::default()
        .add(Member::directory("d").pax("SCHILY.xattr.user.both", "2"))
        .add(Member::file("d/new", "new"))
        .add(Member::file("d/sub/new", "new"))
        .add(Member::file("e/replaced", "new"))
        .add(Member::file("e/tree/new", "new"))
        // All of them behind what they must not hide.
        .add(Member::file("d/.wh..wh..opq", ""))
        .add(Member::file("e/.wh.replaced", ""))
        .add(Member::file("e/.wh.tree", ""))
        .add(Member::file("e/.wh.way", ""))
        .add(Member::file("e/.wh.never-there", ""))
        .add(Member::file("nowhere/at/all/.wh.x", ""))
        .end();
    lay_down(&below, dir.path(), &Limits::default()).unwrap();
    lay_down(&above, dir.path(), &Limits::default()).unwrap();
    let tree = read_tree(dir.path(), Times::OfFiles);
    let paths: Vec<&str> = tree.keys().map(String::as_str).collect();
    assert_eq!(paths, ["", "d", "d/new", "d/sub", "d/sub/new", "e", "e/replaced", "e/tree", "e/tree/new"]);
    assert_eq!(tree["e/replaced"].content, b"new");
    let xattrs: Vec<(&str, &[u8])> = tree["d"].xattrs.iter().map(|(k, v)| (k.as_str(), v.as_slice())).collect();
    assert_eq!(xattrs, [("user.both", &b"2"[..])]);
}

#[test]
fn root_paths_longer_than_the_kernel_takes_are_made_and_removed() {
    let dir = TempDir::new().unwrap();
    // In components of one letter, three thousand deep, and of two hundred, 60 KiB long.
    for (component, depth) in [("a".to_owned(), 3000), ("b".repeat(200), 300)] {
        let path = vec![component.as_str(); depth].join("/");
        let make = Tar::default()
            .add(Member::file(format!("{path}/deep"), "deep"))
            .add(Member::hard_link("link", format!("{path}/deep")))
            .end();
        lay_down(&make, dir.path(), &Limits::default()).unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join("link")).unwrap(), "deep");
        let hide =
            Tar::default().add(Member::file(format!(".wh.{component}"), "")).add(Member::file(".wh.link", "")).end();
        lay_down(&hide, dir.path(), &Limits::default()).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let longer = Tar::default().add(Member::file(vec![path.as_str(); 20].join("/"), "")).end();
        let refused = lay_down(&longer, dir.path(), &Limits::default()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::BadArchive);
    }
}
