//! A real containerd of each of Debian's releases unpacks, runs, commits and deletes images on our snapshotter.

// All of this is test code, helpers too: clippy lets tests unwrap.
#![cfg(test)]

mod support {
    pub(crate) mod containerd;
    pub(crate) mod leftovers;
    pub(crate) mod machine;
    pub(crate) mod packages;
    pub(crate) mod process;
    #[expect(dead_code, reason = "this proof stops the service, but does not kill it")]
    pub(crate) mod service;
}

#[path = "containerd_story/image.rs"]
mod image;
#[path = "containerd_story/story.rs"]
mod story;
#[path = "containerd_story/tree.rs"]
mod tree;

use std::path::PathBuf;
use std::time::Duration;

use image::StoryImage;
use story::Story;
use support::containerd::{Containerd, Release};
use support::machine::is_able;
use support::packages::thin_check_is_silent;
use support::service::Service;

/// Programs that make and check the image.
const PROGRAMS: [&str; 6] = ["umoci", "skopeo", "busybox", "setfattr", "setcap", "thin_check"];
/// Our name in containerd's configuration.
const PLUGIN: &str = "thinsnap";

#[test]
fn root_containerd_1_6_runs_commits_and_deletes_images() {
    a_whole_life(Release::V1_6);
}

#[test]
fn root_containerd_1_7_runs_commits_and_deletes_images() {
    a_whole_life(Release::V1_7);
}

#[test]
fn root_containerd_2_runs_commits_and_deletes_images() {
    a_whole_life(Release::V2);
}

#[test]
fn root_two_plugins_on_one_socket_have_a_size_and_a_file_system_each() {
    if !is_able("two plugins", &PROGRAMS) {
        return;
    }
    let mut service =
        Service::start("[snapshotter.small]\nsize = \"1G\"\n[snapshotter.wide]\nfs = \"xfs\"\nsize = \"20G\"\n");
    let image = StoryImage::build(&service.dir().join("image"));
    let plugins = ["small", "wide"];
    let containerd = Containerd::start(Release::V2, &service.dir().join("c"), &plugins, &service.socket());
    let stories = plugins.map(|plugin| Story { containerd: &containerd, plugin, image: &image, dir: service.dir() });
    let look = "grep ' / ' /proc/mounts | cut -d ' ' -f 3; df -k / | tail -1 | sed 's/  */ /g' | cut -d ' ' -f 2";
    let seen = stories.each_ref().map(|story| {
        story.import("1");
        story.tree_is_what_umoci_unpacks("1");
        let seen = story.run("1", "looks", look);
        let (fs, kib) = seen.trim().split_once('\n').expect("two lines");
        (fs.to_owned(), kib.parse::<u64>().expect("df tells KiB"))
    });
    // A file system keeps a part of its device for itself.
    assert!(seen[0].0 == "ext4" && (900 << 10..=1 << 20).contains(&seen[0].1), "small: {seen:?}");
    assert!(seen[1].0 == "xfs" && (19 << 20..=20 << 20).contains(&seen[1].1), "wide: {seen:?}");
    stories[0].start("1", "lives");
    let listed = stories.each_ref().map(|story| story.listed().iter().any(|(key, _, _)| key == "lives"));
    assert_eq!(listed, [true, false], "a plugin lists its own snapshots alone");
    stories[0].delete_everything();
    stories[1].delete_everything();
    service.wait_for_limbo(Duration::from_secs(30));
    assert_eq!(service.status("/devices"), 2, "a base device for each profile");
    drop(containerd);
    service.stop_and_leave_nothing();
    thin_check_is_silent(&service.metadata());
}

fn a_whole_life(release: Release) {
    if !is_able(&format!("{release:?}"), &PROGRAMS) {
        return;
    }
    let mut service = Service::start("");
    let dir = service.dir().to_path_buf();
    let image = StoryImage::build(&dir.join("image"));
    let mut containerd = Containerd::start(release, &dir.join("c"), &[PLUGIN], &service.socket());
    let story = Story { containerd: &containerd, plugin: PLUGIN, image: &image, dir: &dir };

    // The first snapshot brings the base device; what stands after its removal is what an empty pool holds.
    story.snapshots("prepare first");
    story.snapshots("rm first");
    containerd.collect_garbage();
    service.wait_for_limbo(Duration::from_secs(30));
    let empty = [service.status("/devices"), service.status("/data/used_bytes")];

    story.import("1");
    story.tree_is_what_umoci_unpacks("1");
    story.containers_share_the_image_and_nothing_else("1");
    a_small_change_costs_a_block(&story, &service);

    // The service goes and comes back under a running container, then containerd does.
    story.start("1", "web");
    containerd.exec("web", "write", "echo one > /kept");
    service.stop();
    containerd.exec("web", "alone", "echo two >> /kept; sync -f /; cat /data/large | sha256sum");
    service.up();
    assert_eq!(containerd.exec("web", "read", "cat /kept /starts"), "one\ntwo\nstarted\n");
    containerd.restart();
    assert_eq!(containerd.exec("web", "still", "cat /kept"), "one\ntwo\n");

    let story = Story { containerd: &containerd, plugin: PLUGIN, image: &image, dir: &dir };
    story.stop("web");
    containerd.ctr("tasks start -d web");
    assert_eq!(containerd.exec("web", "again", "cat /kept /starts"), "one\ntwo\nstarted\nstarted\n");
    story.stop("web");
    story.commit_of_a_stopped_container_is_a_layer("web", "1", "2");
    assert_eq!(story.run("2", "new", "cat /kept /starts /etc/layer"), "one\ntwo\nstarted\nstarted\nthree\n");
    story.commit_of_a_running_container_is_its_state_then("2", "3");

    story.delete_everything();
    service.wait_for_limbo(Duration::from_secs(30));
    let left = [service.status("/devices"), service.status("/data/used_bytes")];
    assert_eq!(left, empty, "devices and bytes of a pool that is empty again");
    assert_eq!(service.loops(), Vec::<PathBuf>::new());
    drop(containerd);
    service.stop_and_leave_nothing();
    thin_check_is_silent(&service.metadata());
}

/// A change of 4 KiB in a file of 64 MiB costs one data block of the pool, not a copy of the file; and
/// containerd is told so.
fn a_small_change_costs_a_block(story: &Story, service: &Service) {
    let top = &story.image.chain_ids("1")[1];
    assert!((64 << 20..80 << 20).contains(&story.usage(top)), "the layer with the large file: {}", story.usage(top));
    story.start("1", "small");
    let change = |n: u64| {
        let write = format!("dd if=/dev/urandom of=/data/large bs=4096 seek={} count=1 conv=notrunc,fsync", n << 10);
        story.containerd.exec("small", &format!("change-{n}"), &write);
    };
    // The first change also pays for the file system's own blocks: journal, inode, bitmap; and what the start
    // of the container wrote must not come later.
    change(0);
    story.containerd.exec("small", "settle", "sync -f /");
    // What the pool uses may shrink meanwhile: removed snapshots are taken apart in the background.
    let before = story.usage("small");
    (1..=8).for_each(change);
    let block = service.status("/block_size_bytes");
    let cost = (story.usage("small") - before) / block;
    // One for each change; a journal that goes on takes a new block now and then. A copied file would be 1,024.
    assert!((8..=16).contains(&cost), "8 changes of 4 KiB cost {cost} blocks of {block} bytes");
    assert!((8 * block..4 << 20).contains(&story.usage("small")), "usage of the container: {}", story.usage("small"));
    story.stop("small");
    story.containerd.ctr("containers rm small");
}
