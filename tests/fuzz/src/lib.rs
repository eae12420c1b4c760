//! What strangers can send: a function a reader, which takes any bytes and must neither panic, hang nor swell.
mod archive_layer;
mod archive_layout;
#[path = "../../../pool/tests/support/block_kind.rs"]
mod block_kind;
mod config;
mod fake_pool;
mod filter;
mod host;
mod intent_log;
mod messages;
mod metadata;
mod scratch;
mod targets;

pub use archive_layer::archive_layer;
pub use archive_layout::archive_layout;
pub use config::config;
pub use filter::filter;
pub use host::{host_answers, host_requests};
pub use intent_log::intent_log;
pub use messages::{admin_messages, snapshot_messages};
pub use metadata::{btree_node, metadata_image, space_map, superblock};
pub use targets::{TARGETS, Target};
