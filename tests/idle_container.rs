//! What a pool takes of the disk: little for a container that is mounted and does nothing, and where it was told to.

// All of this is test code, helpers too: clippy lets tests unwrap.
#![cfg(test)]

mod support {
    pub(crate) mod leftovers;
    pub(crate) mod machine;
    pub(crate) mod process;
    #[expect(dead_code, reason = "this proof needs only some of the verbs")]
    pub(crate) mod proxy;
    #[expect(dead_code, reason = "this proof kills nothing")]
    pub(crate) mod service;
}

use nix::mount::{MsFlags, mount, umount};

use support::machine::is_able;
use support::proxy::Client;
use support::service::Service;

/// Containers: what the pool's metadata takes for all of them is counted too.
const CONTAINERS: u64 = 20;
/// What one may take of the pool, data and metadata together.
const BYTES_MAX: u64 = 256 << 10;

#[tokio::test]
async fn root_an_idle_container_takes_at_most_256_kib() {
    if !is_able("root_an_idle_container_takes_at_most_256_kib", &[]) {
        return;
    }
    let mut service = Service::start("");
    let mut client = Client::new(&service.socket(), "thinsnap");
    let point = service.dir().join("mount");
    std::fs::create_dir(&point).unwrap();
    let mount_at =
        |device: &std::path::Path| mount(Some(device), &point, Some("ext4"), MsFlags::MS_NOATIME, Some("discard"));
    let device = client.prepare("unpack", "").await.unwrap();
    mount_at(&device).unwrap();
    std::fs::write(point.join("file"), vec![7; 1 << 20]).unwrap();
    umount(&point).unwrap();
    client.commit("image", "unpack").await.unwrap();

    let taken = || service.status("/data/used_bytes") + service.status("/metadata/used_bytes");
    let before = taken();
    for number in 0..CONTAINERS {
        let device = client.prepare(&format!("container-{number}"), "image").await.unwrap();
        mount_at(&device).unwrap();
        umount(&point).unwrap();
        mount_at(&device).unwrap();
        umount(&point).unwrap();
    }
    client.cleanup().await.unwrap();
    let each = (taken() - before) / CONTAINERS;
    println!("an idle container takes {each} bytes of the pool");
    assert!(each <= BYTES_MAX, "{each} bytes");
    for number in 0..CONTAINERS {
        client.remove(&format!("container-{number}")).await.unwrap();
    }
    client.remove("image").await.unwrap();
    client.cleanup().await.unwrap();
    drop(client);
    service.stop_and_leave_nothing();
}

#[tokio::test]
async fn root_a_pool_in_a_file_that_was_named_is_served_by_the_first_start_and_by_the_next() {
    if !is_able("root_a_pool_in_a_file_that_was_named_is_served_by_the_first_start_and_by_the_next", &[]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("somewhere-else");
    std::fs::File::create(&data).unwrap();
    let mut service = Service::start(&format!("[pool]\ndata_device = {data:?}\n"));
    let mut client = Client::new(&service.socket(), "thinsnap");
    let taken = || std::os::unix::fs::MetadataExt::blocks(&data.metadata().unwrap());
    let before = taken();
    client.prepare("first", "").await.unwrap();
    client.commit("image", "first").await.unwrap();
    assert!(taken() > before, "the base device stands in the file");
    service.stop();
    service.up();
    let mut client = Client::new(&service.socket(), "thinsnap");
    client.prepare("container", "image").await.unwrap();
    for name in ["container", "image"] {
        client.remove(name).await.unwrap();
    }
    client.cleanup().await.unwrap();
    drop(client);
    service.stop_and_leave_nothing();
}
