//! containerd's messages, service and client, generated from api/snapshots.proto and api/mount.proto.

#[expect(
    missing_docs,
    unreachable_pub,
    clippy::allow_attributes,
    clippy::doc_markdown,
    reason = "generated; the words are in api/*.proto"
)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/containerd_api.rs"));
}

pub use generated::containerd::services::snapshots::v1 as snapshots_api;
pub use generated::containerd::types as mount_api;
