//! Containers of the command line: names, mounts, and what stands in the way of removing one.

use crate::archive::{Member, Tar};
use crate::archive_pool::{Bench, Unmount};
use thinsnap::container::{ContainerName, Origin};
use thinsnap::error::{Error, ErrorKind};

fn name(text: &str) -> ContainerName {
    ContainerName::new(text).unwrap()
}

#[track_caller]
fn assert_error(result: Result<impl std::fmt::Debug, Error>, kind: ErrorKind, text: &str) {
    let error = result.expect_err("it must fail");
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(text), "{error}");
}

fn bench_with_image() -> Bench {
    let bench = Bench::new();
    let rootfs = bench.path().join("rootfs.tar");
    std::fs::write(&rootfs, Tar::default().add(Member::file("etc/motd", "of the image")).end()).unwrap();
    bench.import(&rootfs, "image:1").unwrap();
    bench
}

#[test]
fn names_of_containers_are_letters_digits_and_three_signs() {
    for good in ["a", "0", "web-1", "a_b.c", "A9", &"x".repeat(253)] {
        assert_eq!(ContainerName::new(good).unwrap().as_str(), good);
    }
    for bad in ["", "-a", ".", "..", ".a", "_a", "a/b", "../a", "a b", "a\n", "a\0", "ä", &"x".repeat(254)] {
        assert_error(ContainerName::new(bad), ErrorKind::InvalidArgument, "is not a name");
    }
}

#[test]
fn root_a_container_keeps_what_is_written_in_it_and_the_image_does_not_change() {
    let mut bench = bench_with_image();
    let (one, two, at) = (name("one"), name("two"), bench.mount_point());
    let image = Origin::Image("image:1".to_owned());
    let created = bench.containers().create(&one, &image).unwrap();
    assert_eq!((created.record.image.as_deref(), created.mounted_at.len()), (Some("image:1"), 0));
    bench.containers().mount(&one, &at).unwrap();
    let guard = Unmount(at.clone());
    std::fs::write(at.join("etc/motd"), "changed").unwrap();
    drop(guard);
    assert_eq!(bench.containers().unmount(&one).unwrap().mounted_at, Vec::<std::path::PathBuf>::new());
    bench.reopen();
    bench.containers().create(&two, &image).unwrap();
    for (container, text) in [(&one, "changed"), (&two, "of the image")] {
        bench.containers().mount(container, &at).unwrap();
        let guard = Unmount(at.clone());
        assert_eq!(std::fs::read_to_string(at.join("etc/motd")).unwrap(), text);
        drop(guard);
        bench.containers().unmount(container).unwrap();
    }
    let listed: Vec<String> =
        bench.containers().list().unwrap().into_iter().map(|container| container.record.name.to_string()).collect();
    assert_eq!(listed, ["one", "two"]);
    // The image's record goes; its layer stays for the containers, and goes with the last of them.
    assert_eq!(bench.images().remove("image:1").unwrap().layers_removed, 0);
    bench.containers().remove(&one).unwrap();
    assert_eq!(bench.images().prune().unwrap(), 0);
    bench.containers().remove(&two).unwrap();
    assert_eq!(bench.images().prune().unwrap(), 1);
    assert_eq!(bench.snapshots(), []);
}

#[test]
fn root_a_mounted_container_is_not_removed_and_the_error_says_where_it_is_mounted() {
    let bench = bench_with_image();
    let (web, at) = (name("web"), bench.mount_point());
    bench.containers().create(&web, &Origin::Image("image:1".to_owned())).unwrap();
    bench.containers().mount(&web, &at).unwrap();
    let guard = Unmount(at.clone());
    let shown = at.to_str().unwrap();
    assert_error(bench.containers().remove(&web), ErrorKind::InUse, shown);
    assert_error(bench.containers().mount(&web, &at), ErrorKind::InUse, shown);
    assert_eq!(bench.containers().get(&web).unwrap().mounted_at, std::slice::from_ref(&at));
    assert_eq!(bench.containers().list().unwrap()[0].mounted_at, std::slice::from_ref(&at));
    let open = std::fs::File::open(at.join("etc/motd")).unwrap();
    assert_error(bench.containers().unmount(&web), ErrorKind::InUse, "unmount container");
    drop(open);
    drop(guard);
    bench.containers().unmount(&web).unwrap();
    bench.containers().unmount(&web).unwrap();
    bench.containers().remove(&web).unwrap();
    assert_error(bench.containers().remove(&web), ErrorKind::NotFound, "no container");
}

#[test]
fn root_a_container_is_made_of_an_image_a_snapshot_or_nothing() {
    let bench = bench_with_image();
    let containers = bench.containers();
    let layer = bench.images().get("image:1").unwrap().top().unwrap().to_owned();
    let of_layer = containers.create(&name("of-layer"), &Origin::Snapshot(layer.clone())).unwrap();
    assert_eq!((of_layer.record.image, of_layer.record.parent), (None, Some(layer)));
    let empty = containers.create(&name("empty"), &Origin::Empty).unwrap();
    assert_eq!(empty.record.parent, None);
    let again = containers.create(&name("empty"), &Origin::Empty);
    assert_error(again, ErrorKind::AlreadyExists, "create container \"empty\"");
    assert_error(containers.create(&name("x"), &Origin::Image("none".into())), ErrorKind::NotFound, "no image");
    assert_error(containers.create(&name("x"), &Origin::Snapshot("none".into())), ErrorKind::NotFound, "none");
    let active = Origin::Snapshot(empty.record.key);
    assert_error(containers.create(&name("x"), &active), ErrorKind::NotCommitted, "create container \"x\"");
    let at = bench.mount_point();
    assert_error(containers.mount(&name("x"), &at), ErrorKind::NotFound, "no container");
    assert_error(containers.mount(&name("empty"), "mnt".as_ref()), ErrorKind::InvalidArgument, "not absolute");
    assert_error(containers.mount(&name("empty"), &at.join("none")), ErrorKind::NotFound, "none");
    let file = bench.path().join("rootfs.tar");
    assert_error(containers.mount(&name("empty"), &file), ErrorKind::InvalidArgument, "not a directory");
    assert_error(containers.unmount(&name("x")), ErrorKind::NotFound, "no container");
}
