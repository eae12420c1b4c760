//! The table of all targets: name and function.

use crate::archive_layer::archive_layer;
use crate::archive_layout::archive_layout;
use crate::config::config;
use crate::filter::filter;
use crate::host::{host_answers, host_requests};
use crate::intent_log::intent_log;
use crate::messages::{admin_messages, snapshot_messages};
use crate::metadata::{btree_node, metadata_image, space_map, superblock};

/// A reader of foreign bytes: its name, which is that of its program and of its folders, and the function.
pub type Target = (&'static str, fn(&[u8]));

/// All of them, sorted.
pub const TARGETS: &[Target] = &[
    ("admin_messages", admin_messages),
    ("archive_layer", archive_layer),
    ("archive_layout", archive_layout),
    ("btree_node", btree_node),
    ("config", config),
    ("filter", filter),
    ("host_answers", host_answers),
    ("host_requests", host_requests),
    ("intent_log", intent_log),
    ("metadata_image", metadata_image),
    ("snapshot_messages", snapshot_messages),
    ("space_map", space_map),
    ("superblock", superblock),
];
