//! Seeds that are made, not kept: from the hostile archives of the tests, and one message of each kind.

use std::path::Path;

use prost::Message;
use thinsnap::admin::api as admin;
use thinsnap::grpc::snapshots_api as snapshots;

use crate::{archive, archive_hostile};

/// Larger seeds make a fuzzer slow.
const SEED_BYTES_MAX: usize = 16 << 10;

/// Writes all seeds that are made below `top`.
pub(crate) fn write_all(top: &Path) {
    for (number, hostile) in archive_hostile::corpus("/nowhere").iter().enumerate() {
        if hostile.bytes.len() < SEED_BYTES_MAX {
            write(top, "archive_layer", number, &[&[0], hostile.bytes.as_slice()].concat());
        }
    }
    for (number, calls) in snapshot_calls().iter().enumerate() {
        write(top, "snapshot_messages", number, calls);
    }
    for (number, calls) in admin_calls().iter().enumerate() {
        write(top, "admin_messages", number, calls);
    }
    for (number, frames) in host_frames().iter().enumerate() {
        write(top, "host_requests", number, frames);
    }
    for number in 0..9_u8 {
        // Bincode's number of each kind of answer, five times: for five questions.
        let piece = [&[16, 0, 0, 0, 0, 0, number], [0; 11].as_slice()].concat();
        write(top, "host_answers", usize::from(number), &[&[3], piece.repeat(5).as_slice()].concat());
    }
    write(top, "archive_layout", 0, &layout());
    for block in 0..24 {
        // Nothing replaced, and the first field of each kind of block replaced.
        write(top, "btree_node", usize::from(block), &[block % 3, block]);
        write(top, "space_map", usize::from(block), &[block % 3, block]);
        write(top, "metadata_image", usize::from(block), &[block % 3, block, 16, 0, 4, 1, 0, 0, 0]);
    }
    write(top, "intent_log", 0, &intent_log());
    write(top, "superblock", 0, &[0]);
    write(top, "config", 0, include_bytes!("../../dist/thinsnap.toml"));
}

fn write(top: &Path, target: &str, number: usize, bytes: &[u8]) {
    let dir = top.join(target);
    std::fs::create_dir_all(&dir).expect("a folder for the seeds");
    std::fs::write(dir.join(format!("{number:03}")), bytes).expect("a seed is written");
}

/// A call as the targets of messages read it.
fn call(verb: u8, message: &impl Message) -> Vec<u8> {
    let bytes = message.encode_to_vec();
    let len = u16::try_from(bytes.len()).expect("a small message").to_le_bytes();
    [&[verb], len.as_slice(), &bytes].concat()
}

fn snapshot_calls() -> Vec<Vec<u8>> {
    let s = || "s".to_owned();
    let label = || [("containerd.io/snapshot/max-size".to_owned(), "1073741824".to_owned())].into();
    let prepare = snapshots::PrepareSnapshotRequest {
        snapshotter: s(),
        key: "new".to_owned(),
        parent: "l".to_owned(),
        labels: label(),
    };
    let view = snapshots::ViewSnapshotRequest {
        snapshotter: s(),
        key: "see".to_owned(),
        parent: "l".to_owned(),
        labels: label(),
    };
    let commit = snapshots::CommitSnapshotRequest {
        snapshotter: s(),
        name: "done".to_owned(),
        key: "a".to_owned(),
        labels: label(),
        ..Default::default()
    };
    let remove = snapshots::RemoveSnapshotRequest { snapshotter: s(), key: "v".to_owned() };
    let info = snapshots::Info { name: "a".to_owned(), labels: label(), ..Default::default() };
    let mask = prost_types::FieldMask { paths: vec!["labels.x".to_owned(), "labels".to_owned()] };
    let update = snapshots::UpdateSnapshotRequest { snapshotter: s(), info: Some(info), update_mask: Some(mask) };
    let list = snapshots::ListSnapshotsRequest { snapshotter: s(), filters: vec!["name~=^a,kind==active".to_owned()] };
    vec![
        call(0, &prepare),
        call(1, &view),
        call(2, &commit),
        call(3, &remove),
        call(4, &update),
        call(5, &snapshots::MountsRequest { snapshotter: s(), key: "a".to_owned() }),
        call(6, &snapshots::StatSnapshotRequest { snapshotter: s(), key: "l".to_owned() }),
        call(7, &list),
        call(8, &snapshots::UsageRequest { snapshotter: s(), key: "a".to_owned() }),
        call(9, &snapshots::CleanupRequest { snapshotter: s() }),
        [call(0, &prepare), call(2, &commit), call(3, &remove), call(7, &list)].concat(),
    ]
}

fn admin_calls() -> Vec<Vec<u8>> {
    let request = || admin::SnapshotRequest { space: "s".to_owned(), name: "k".to_owned() };
    let container = || admin::ContainerRequest { name: "c".to_owned() };
    let prepare = admin::SnapshotPrepareRequest { space: "s".to_owned(), name: "k".to_owned(), ..Default::default() };
    vec![
        call(0, &admin::ServiceInfoRequest {}),
        call(1, &admin::PoolStatusRequest { sharing: true }),
        call(2, &admin::PoolGrowRequest { data_bytes: Some(1 << 40), metadata_bytes: None }),
        call(3, &admin::SnapshotListRequest::default()),
        call(4, &prepare),
        call(5, &prepare),
        call(6, &request()),
        call(8, &request()),
        call(9, &request()),
        call(10, &request()),
        call(12, &admin::ImageRequest { name: "i".to_owned() }),
        call(15, &container()),
        call(16, &container()),
    ]
}

/// Requests of every kind with their numbers as bincode writes them, framed; and a whole talk.
fn host_frames() -> Vec<Vec<u8>> {
    let frame = |body: &[u8]| [u32::try_from(body.len()).expect("small").to_le_bytes().as_slice(), body].concat();
    let mut all = vec![[&[1], frame(&[1, 0, 0, 0]).as_slice()].concat()];
    for verb in 0..14_u32 {
        let mut body = [0_u32.to_le_bytes(), verb.to_le_bytes()].concat();
        body.extend_from_slice(&[1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        for len in [8, 12, 16, 24] {
            all.push([&[1], frame(&body[..len]).as_slice()].concat());
        }
    }
    all
}

/// A log of two changes behind one header, in the notation of `intent_log`.
fn intent_log() -> Vec<u8> {
    let header = [u64::from_le_bytes(*b"thinslog"), 1 | 128 << 32, 1, 2, 3, 4, 2, 1, 77, 5, 0, 0, 0];
    let (no_header, tail) = ([0; 13], [7]);
    let map = [5, 10, 20, 3, 1 | 1 << 32];
    let unmap = [6, 10, 2, 2, 1 | 2 << 32];
    let words = [header.as_slice(), &no_header, &tail, &map, &unmap].concat();
    [vec![1], words.into_iter().flat_map(u64::to_le_bytes).collect()].concat()
}

/// An OCI layout of one layer in the notation of `archive_layout`.
fn layout() -> Vec<u8> {
    let layer = archive::Tar::default().add(archive::Member::file("a", "x")).end();
    let config = br#"b{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":["@0"]}}"#;
    let manifest = br##"b{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"@1","size":#1},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"@0","size":#0}]}"##;
    let index = br##"i{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"@2","size":#2,"annotations":{"org.opencontainers.image.ref.name":"it"},"platform":{"os":"linux","architecture":"amd64"}}]}"##;
    let version = br#"v{"imageLayoutVersion":"1.0.0"}"#;
    [&[b"b", layer.as_slice()].concat(), config.as_slice(), manifest, index, version].join(&0xff)
}
