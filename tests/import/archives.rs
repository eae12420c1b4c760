//! Archives of images: the forms they come in, what is said when they are damaged, and that nothing is left of a failed import.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::archive::{Member, Tar, gzip, zstd};
use crate::archive_hostile::{Outcome, corpus};
use crate::archive_layout::{Layout, Packed, digest, host, old_docker_archive, one_image};
use crate::archive_pool::{Bench, request};
use serde_json::json;
use thinsnap::error::{Error, ErrorKind};
use thinsnap::image::{ImportRequest, Limits, Phase, Platform};
use thinsnap_pool::ByteCount;

/// A layer with one file, its content its own name.
fn layer(name: &str) -> Vec<u8> {
    Tar::default().add(Member::file(name, name)).end()
}

/// Bytes that do not pack.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let step = |state: &mut u64| {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        state.to_le_bytes()[3]
    };
    (0..len).map(|_| step(&mut state)).collect()
}

struct Files<'a>(&'a Bench);

impl Files<'_> {
    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn layout(&self, name: &str, layout: &Layout) -> PathBuf {
        let path = self.0.path().join(name);
        layout.write(&path);
        path
    }
}

fn import(bench: &Bench, request: &ImportRequest) -> Result<usize, Error> {
    let imported = bench.images().import(request, &|_| ControlFlow::Continue(()))?;
    Ok(imported.layers_applied)
}

#[track_caller]
fn assert_error(result: Result<impl std::fmt::Debug, Error>, kind: ErrorKind, text: &str) {
    let error = result.expect_err("it must fail");
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(text), "{error}");
}

#[test]
fn root_every_form_of_an_archive_is_told_by_its_content() {
    let bench = Bench::new();
    let files = Files(&bench);
    let layers =
        [Packed::plain(layer("a")), Packed::gzip(layer("b")), Packed { blob: zstd(&layer("c")), tar: layer("c") }];
    let layout = one_image(&layers, |_, _| {});
    let docker = old_docker_archive(&[layers[0].clone(), layers[1].clone(), layers[0].clone()]);
    let rootfs = layer("r");
    // Names that mislead on purpose.
    let sources = [
        ("directory", files.layout("directory", &layout), 3, "c"),
        ("plain", files.write("plain.tar.gz", &layout.tar()), 3, "c"),
        ("packed", files.write("packed.json", &gzip(&layout.tar())), 3, "c"),
        ("docker", files.write("docker.zst", &docker), 3, "b"),
        ("docker-packed", files.write("docker-packed", &zstd(&docker)), 3, "b"),
        ("rootfs", files.write("rootfs.gz", &rootfs), 1, "r"),
        ("rootfs-gzip", files.write("rootfs-gzip", &gzip(&rootfs)), 1, "r"),
        ("rootfs-zstd", files.write("rootfs-zstd", &zstd(&rootfs)), 1, "r"),
    ];
    for (name, source, count, file) in &sources {
        let imported = bench.import(source, name).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(imported.image.layers.len(), *count, "{name}");
        let content = bench.look_into(name, |root| std::fs::read_to_string(root.join(file)).unwrap());
        assert_eq!(content, *file, "{name}");
    }
    let names: Vec<String> = bench.images().list().unwrap().into_iter().map(|image| image.name).collect();
    let mut expected: Vec<&str> = sources.iter().map(|(name, ..)| *name).collect();
    expected.sort_unstable();
    assert_eq!(names, expected);
    for (name, ..) in &sources {
        bench.images().remove(name).unwrap();
    }
    assert_eq!(bench.snapshots(), [], "a layer without an image is left");
}

#[test]
fn root_an_image_gets_the_name_that_its_archive_tells_unless_one_is_given() {
    let bench = Bench::new();
    let files = Files(&bench);
    let docker = files.write("docker", &old_docker_archive(&[Packed::plain(layer("a"))]));
    let unnamed = |source: &Path| ImportRequest { name: None, ..request(source, "") };
    assert_eq!(import(&bench, &unnamed(&docker)).unwrap(), 1);
    assert_eq!(bench.images().get("old:1").unwrap().layers.len(), 1);
    let layout = files.layout("layout", &one_image(&[Packed::gzip(layer("a"))], |_, _| {}));
    assert_eq!(import(&bench, &unnamed(&layout)).unwrap(), 0);
    assert!(bench.images().get("it").unwrap().config_digest.is_some());
    let rootfs = files.write("rootfs", &layer("a"));
    assert_error(import(&bench, &unnamed(&rootfs)), ErrorKind::InvalidArgument, "tells no name");
    for bad in ["", "a b", "-x", "a\"b", "a\nb", &"x".repeat(256), "ü"] {
        assert_error(bench.import(&rootfs, bad), ErrorKind::InvalidArgument, "is not a name");
    }
    assert_error(bench.images().get("nowhere"), ErrorKind::NotFound, "no image");
    assert_error(bench.images().remove("nowhere"), ErrorKind::NotFound, "no image");
}

#[test]
fn root_the_platform_of_this_machine_is_taken_and_others_are_named_in_the_error() {
    let bench = Bench::new();
    let files = Files(&bench);
    let mut layout = Layout::default();
    let foreign = if host() == "amd64" { "s390x" } else { "amd64" };
    let ours = layout.image(("linux", host()), &[Packed::gzip(layer("ours"))], |_, _| {});
    let theirs = layout.image(("linux", foreign), &[Packed::gzip(layer("theirs"))], |_, _| {});
    let mut proof = layout.image(("unknown", "unknown"), &[Packed::gzip(layer("proof"))], |_, _| {});
    proof["annotations"] = json!({ "vnd.docker.reference.type": "attestation-manifest" });
    let index = layout.index(&[theirs.clone(), ours, proof]);
    let nested = layout.index(&[index]);
    let both = files.layout("both", &layout.clone().name(nested, "it").end());
    bench.import(&both, "ours").unwrap();
    assert!(bench.look_into("ours", |root| root.join("ours").exists()));
    let platform: Platform = format!("linux/{foreign}").parse().unwrap();
    import(&bench, &ImportRequest { platform: Some(platform), ..request(&both, "theirs") }).unwrap();
    assert!(bench.look_into("theirs", |root| root.join("theirs").exists()));
    assert_eq!(bench.images().get("theirs").unwrap().platform, format!("linux/{foreign}"));
    let only = files.layout("only", &layout.clone().name(theirs, "it").end());
    assert_error(bench.import(&only, "x"), ErrorKind::NotFound, &format!("it is for linux/{foreign}"));
    // Several images: one must be chosen.
    let mut layout = Layout::default();
    let one = layout.image(("linux", host()), &[Packed::gzip(layer("one"))], |_, _| {});
    let two = layout.image(("linux", host()), &[Packed::gzip(layer("two"))], |_, _| {});
    let two_digest = two["digest"].as_str().unwrap().to_owned();
    let several = files.layout("several", &layout.name(one, "one:1").name(two, "two:2").end());
    assert_error(bench.import(&several, "x"), ErrorKind::InvalidArgument, "one:1, two:2");
    let named = |reference: &str| ImportRequest { reference: Some(reference.to_owned()), ..request(&several, "x") };
    assert_error(import(&bench, &named("three")), ErrorKind::NotFound, "one:1, two:2");
    import(&bench, &named(&two_digest)).unwrap();
    assert!(bench.look_into("x", |root| root.join("two").exists()));
    // The same name again: the image is replaced, and the layers that nothing uses any more go.
    import(&bench, &named("one:1")).unwrap();
    assert!(bench.look_into("x", |root| root.join("one").exists() && !root.join("two").exists()));
    let two = digest(&layer("two"));
    assert!(bench.snapshots().iter().all(|snapshot| snapshot.name.as_str() != two));
}

/// A layout, what is wrong with it, and what is said about it.
struct Damaged(&'static str, Layout, ErrorKind, &'static str);

fn damaged_layouts() -> Vec<Damaged> {
    use ErrorKind::{BadArchive, Unsupported};
    let tar = Tar::default().add(Member::file("first", noise(300_000))).add(Member::file("last", "x")).end();
    let layers = [Packed::gzip(layer("below")), Packed::gzip(tar)];
    let blob_path = format!("blobs/{}", digest(&layers[1].blob).replace(':', "/"));
    let honest = one_image(&layers, |_, _| {});
    let with = |change: &dyn Fn(&mut Layout)| {
        let mut layout = honest.clone();
        change(&mut layout);
        layout
    };
    let index_is = |text: &str| with(&|layout| drop(layout.files.insert("index.json".to_owned(), text.into())));
    let config_path = honest.files.iter().find(|(_, bytes)| bytes.starts_with(b"{\"architecture")).unwrap().0.clone();
    let lying = |change: fn(&mut serde_json::Value, &mut serde_json::Value)| one_image(&layers, change);
    vec![
        Damaged(
            "a flipped byte in a layer",
            with(&|l| l.files.get_mut(&blob_path).unwrap()[2000] ^= 1),
            BadArchive,
            "its digest is",
        ),
        Damaged(
            "a layer cut off",
            with(&|l| l.files.get_mut(&blob_path).unwrap().truncate(1000)),
            BadArchive,
            "its descriptor tells",
        ),
        Damaged("a layer missing", with(&|l| drop(l.files.remove(&blob_path))), BadArchive, "the archive has no"),
        Damaged(
            "a wrong diff id",
            lying(|_, c| c["rootfs"]["diff_ids"][1] = json!(digest(b"other"))),
            BadArchive,
            "its diff id is",
        ),
        Damaged(
            "a diff id too few",
            lying(|_, c| drop(c["rootfs"]["diff_ids"].as_array_mut().unwrap().pop())),
            BadArchive,
            "2 layers",
        ),
        Damaged(
            "a diff id that is none",
            lying(|_, c| c["rootfs"]["diff_ids"][1] = json!("../../etc")),
            BadArchive,
            "not a digest",
        ),
        Damaged("a wrong size", lying(|m, _| m["layers"][1]["size"] = json!(7)), BadArchive, "its descriptor tells 7"),
        Damaged(
            "a digest that is a path",
            lying(|m, _| m["layers"][1]["digest"] = json!("sha256:../../../etc/passwd")),
            BadArchive,
            "",
        ),
        Damaged(
            "sha512",
            lying(|m, _| m["layers"][1]["digest"] = json!(format!("sha512:{}", "a".repeat(128)))),
            Unsupported,
            "sha256",
        ),
        Damaged(
            "an encrypted layer",
            lying(|m, _| m["layers"][1]["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar+gzip+encrypted")),
            Unsupported,
            "encrypted",
        ),
        Damaged(
            "not an image",
            lying(|m, _| {
                m["config"] =
                    json!({"mediaType": "application/vnd.cncf.helm.config.v1+json", "digest": digest(b""), "size": 0})
            }),
            Unsupported,
            "not a container image",
        ),
        Damaged(
            "no layers",
            lying(|m, c| {
                m["layers"] = json!([]);
                c["rootfs"]["diff_ids"] = json!([]);
            }),
            Unsupported,
            "without layers",
        ),
        Damaged(
            "a damaged configuration",
            with(&|l| l.files.get_mut(&config_path).unwrap()[3] ^= 1),
            BadArchive,
            "does not match its digest",
        ),
        Damaged("an index that is no JSON", index_is("{"), BadArchive, "index.json"),
        Damaged("an index nested without end", index_is(&"[".repeat(100_000)), BadArchive, "index.json"),
        Damaged(
            "an empty index",
            index_is(r#"{"schemaVersion":2,"manifests":[]}"#),
            ErrorKind::NotFound,
            "holds no image",
        ),
        Damaged(
            "a layout of the future",
            with(&|l| drop(l.files.insert("oci-layout".into(), br#"{"imageLayoutVersion":"2.0.0"}"#.to_vec()))),
            Unsupported,
            "2.0.0",
        ),
    ]
}

#[test]
fn root_a_damaged_image_is_refused_by_name_and_nothing_of_it_is_left() {
    let bench = Bench::new();
    let files = Files(&bench);
    for (i, Damaged(what, layout, kind, text)) in damaged_layouts().into_iter().enumerate() {
        for (form, source) in [
            ("directory", files.layout(&format!("layout-{i}"), &layout)),
            ("tar", files.write(&format!("tar-{i}"), &layout.tar())),
        ] {
            let error = bench.import(&source, "it").expect_err(what);
            assert!(error.kind() == kind && error.to_string().contains(text), "{what}, {form}: {error}");
            assert_eq!(bench.images().list().unwrap(), [], "{what}");
            let left: Vec<_> = bench.snapshots().into_iter().map(|snapshot| snapshot.name).collect();
            let below = digest(&layer("below"));
            assert!(left.iter().all(|name| name.as_str() == below), "{what}, {form}: {left:?}");
        }
    }
    assert_eq!(bench.images().prune().unwrap(), 1, "only the whole layer below was left");
    assert_eq!(bench.snapshots(), []);
}

#[test]
fn root_a_bomb_is_refused_by_its_ratio_and_by_the_total() {
    let bench = Bench::new();
    let files = Files(&bench);
    let tar = Tar::default().add(Member::file("zeros", vec![0; 64 << 20])).end();
    let layout = files.layout("layout", &one_image(&[Packed { blob: zstd(&tar), tar: tar.clone() }], |_, _| {}));
    let limits = |limits: Limits| ImportRequest { limits, ..request(&layout, "it") };
    let tight = Limits { ratio: 100, ratio_free: ByteCount(1 << 20), ..Limits::default() };
    assert_error(import(&bench, &limits(tight)), ErrorKind::BadArchive, "more than 100 times its size");
    let small = Limits { total: ByteCount(10 << 20), ..Limits::default() };
    assert_error(import(&bench, &limits(small)), ErrorKind::BadArchive, "unpacks to more than");
    let few = Limits { entries: 1, ..Limits::default() };
    let two = files.write("two", &Tar::default().add(Member::file("a", "")).add(Member::file("b", "")).end());
    assert_error(
        import(&bench, &ImportRequest { limits: few, ..request(&two, "x") }),
        ErrorKind::BadArchive,
        "more than 1 entries",
    );
    assert_eq!(bench.snapshots(), []);
    assert_eq!(import(&bench, &request(&layout, "it")).unwrap(), 1, "the default takes it");
}

#[test]
fn root_an_import_stops_when_asked_and_goes_on_where_it_stopped() {
    let bench = Bench::new();
    let files = Files(&bench);
    let tar = Tar::default().add(Member::file("noise", noise(8 << 20))).end();
    let layers = [Packed::gzip(layer("below")), Packed::gzip(tar)];
    let source = files.layout("layout", &one_image(&layers, |_, _| {}));
    let stopped = bench.images().import(&request(&source, "it"), &|progress| {
        let is_half = progress.layer == 1 && progress.phase == Phase::Applying && progress.bytes_done > 1 << 20;
        if is_half { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert_error(stopped, ErrorKind::Unavailable, "stopped as asked");
    assert_eq!(bench.snapshots().len(), 1, "only the whole layer is left");
    let seen = std::sync::Mutex::new(Vec::new());
    let imported = bench.images().import(&request(&source, "it"), &|progress| {
        assert!(progress.bytes_done <= progress.bytes_total || progress.bytes_total == 0);
        seen.lock().unwrap().push((progress.layer, progress.phase));
        ControlFlow::Continue(())
    });
    let imported = imported.unwrap();
    assert_eq!((imported.layers_applied, imported.layers_present), (1, 1));
    let mut seen = seen.into_inner().unwrap();
    seen.dedup();
    let phases = [(0, Phase::Present), (1, Phase::Applying), (1, Phase::Committing), (1, Phase::Done)];
    assert_eq!(seen, phases);
}

#[test]
fn root_two_imports_of_one_image_at_once_share_its_layers() {
    let bench = Bench::new();
    let files = Files(&bench);
    let layers: Vec<Packed> = ["a", "b", "c", "d"].map(|name| Packed::gzip(layer(name))).into();
    let source = files.layout("layout", &one_image(&layers, |_, _| {}));
    let failed = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for name in ["one", "two", "three"] {
            let (bench, source, failed) = (&bench, &source, &failed);
            scope.spawn(move || {
                for _ in 0..3 {
                    if let Err(error) = bench.import(source, name).and_then(|_| bench.images().remove(name)) {
                        println!("{name}: {error}");
                        failed.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    assert!(!failed.load(Ordering::Relaxed));
    bench.images().prune().unwrap();
    assert_eq!(bench.snapshots(), []);
}

#[test]
fn root_a_hostile_archive_leaves_nothing_in_the_pool() {
    let bench = Bench::new();
    let files = Files(&bench);
    let canary = bench.path().join("canary");
    std::fs::create_dir(&canary).unwrap();
    std::fs::write(canary.join("bird"), "sings").unwrap();
    for hostile in corpus(canary.to_str().unwrap()) {
        let source = files.write("hostile", &hostile.bytes);
        match (bench.import(&source, "hostile"), hostile.outcome) {
            (Ok(_), Outcome::Inside(_) | Outcome::Without(_)) => drop(bench.images().remove("hostile").unwrap()),
            (Err(error), Outcome::Refused(_)) => {
                assert_eq!(error.kind(), ErrorKind::BadArchive, "{}: {error}", hostile.name);
            }
            (imported, outcome) => panic!("{}: {imported:?}, not {outcome:?}", hostile.name),
        }
        assert_eq!(bench.snapshots(), [], "{}", hostile.name);
    }
    let left: Vec<_> = std::fs::read_dir(&canary).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["bird"]);
    assert_eq!(std::fs::read_to_string(canary.join("bird")).unwrap(), "sings");
}

#[test]
fn root_an_import_into_a_full_pool_says_so_and_gives_its_space_back() {
    let bench = Bench::with_pool_of(256 << 20);
    let files = Files(&bench);
    let large = files.write("large", &Tar::default().add(Member::file("noise", noise(400 << 20))).end());
    let small = files.write("small", &layer("small"));
    assert_error(bench.import(&large, "it"), ErrorKind::NoSpace, "no free data blocks");
    assert_eq!(bench.snapshots(), []);
    bench.below().snapshotter.cleanup().unwrap();
    // The pool's mode, and what is remembered of it, follow in a moment.
    let deadline = Instant::now() + Duration::from_secs(10);
    while let Err(error) = bench.import(&small, "it") {
        assert!(error.kind() == ErrorKind::NoSpace && Instant::now() < deadline, "{error}");
        std::thread::yield_now();
    }
    assert_eq!(bench.look_into("it", |root| std::fs::read_to_string(root.join("small")).unwrap()), "small");
}
