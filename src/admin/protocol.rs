//! The admin service's messages, server and client, generated from api/admin.proto.

#[expect(
    missing_docs,
    unreachable_pub,
    clippy::allow_attributes,
    clippy::doc_markdown,
    reason = "generated; the words are in api/admin.proto"
)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/admin_api.rs"));
}

pub use generated::thinsnap::admin::v1 as api;
