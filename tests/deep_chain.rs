//! A chain of five hundred snapshots works as one of two does: the last one reads what each layer wrote.

// All of this is test code, helpers too: clippy lets tests unwrap.
#![cfg(test)]

mod support {
    pub(crate) mod blocks;
    pub(crate) mod leftovers;
    pub(crate) mod machine;
    pub(crate) mod packages;
    pub(crate) mod process;
    #[expect(dead_code, reason = "this proof needs only some of the verbs")]
    pub(crate) mod proxy;
    #[expect(dead_code, reason = "this proof kills nothing")]
    pub(crate) mod service;
}

use nix::mount::{MsFlags, mount, umount};

use support::blocks;
use support::machine::is_able;
use support::packages::thin_check_is_silent;
use support::proxy::Client;
use support::service::Service;

/// Layers below the container.
const DEPTH: u64 = 500;
/// First block of 4 KiB that the layers write: at 1 GiB, where a new file system has nothing.
const FIRST: u64 = (1 << 30) / 4096;
/// Blocks of 4 KiB from one layer's mark to the next one's: in data blocks of their own.
const STEP: u64 = 16;

#[tokio::test]
async fn root_a_snapshot_on_five_hundred_others_reads_what_each_of_them_wrote() {
    if !is_able("root_a_snapshot_on_five_hundred_others_reads_what_each_of_them_wrote", &["thin_check"]) {
        return;
    }
    let mut service = Service::start("");
    let mut client = Client::new(&service.socket(), "thinsnap");
    let mut parent = String::new();
    for layer in 1..=DEPTH {
        let device = client.prepare("unpack", &parent).await.unwrap();
        let file = blocks::open(&device, true).unwrap();
        // One block of its own, and one that every layer overwrites.
        blocks::write(&file, FIRST + layer * STEP, layer).unwrap();
        blocks::write(&file, FIRST, layer).unwrap();
        file.sync_all().unwrap();
        drop(file);
        parent = format!("layer {layer}");
        client.commit(&parent, "unpack").await.unwrap();
    }

    let device = client.prepare("container", &parent).await.unwrap();
    let file = blocks::open(&device, true).unwrap();
    for layer in 1..=DEPTH {
        assert_eq!(blocks::read(&file, FIRST + layer * STEP).unwrap(), layer);
    }
    assert_eq!(blocks::read(&file, FIRST).unwrap(), DEPTH);
    blocks::write(&file, FIRST, 7777).unwrap();
    file.sync_all().unwrap();
    assert_eq!(blocks::read(&file, FIRST).unwrap(), 7777);
    drop(file);
    let point = service.dir().join("mount");
    std::fs::create_dir(&point).unwrap();
    mount(Some(&device), &point, Some("ext4"), MsFlags::empty(), None::<&str>).unwrap();
    assert_eq!(std::fs::read_dir(&point).unwrap().count(), 0, "an empty file system");
    umount(&point).unwrap();

    // Layers half-way down still hold their own state.
    for layer in [1, DEPTH / 2, DEPTH] {
        let view = client.view("look", &format!("layer {layer}")).await.unwrap();
        let file = blocks::open(&view, false).unwrap();
        assert_eq!(blocks::read(&file, FIRST).unwrap(), layer);
        assert_eq!(blocks::read(&file, FIRST + (layer + 1) * STEP).unwrap(), 0, "nothing of the layers above");
        drop(file);
        client.remove("look").await.unwrap();
    }

    client.remove("container").await.unwrap();
    for layer in (1..=DEPTH).rev() {
        client.remove(&format!("layer {layer}")).await.unwrap();
    }
    client.cleanup().await.unwrap();
    assert_eq!((service.status("/devices"), service.status("/limbo")), (1, 0), "the base device is left");
    drop(client);
    service.stop_and_leave_nothing();
    thin_check_is_silent(&service.metadata());
}
