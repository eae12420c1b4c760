//! Bytes to structs of the dm-thin format and back; no I/O.
mod bytes;
mod checksum;
mod correct;
mod details;
mod mapping;
mod node;
mod space_map;
mod superblock;
mod tree_kind;

pub(crate) use bytes::{Block, zeroed_block};
pub(crate) use correct::correct;
pub use details::DeviceDetails;
pub use mapping::Mapping;
pub(crate) use node::{Node, Value, entries_max};
pub(crate) use space_map::{
    Bitmap, ENTRIES_PER_BITMAP, INDEX_ENTRIES_MAX, IndexEntry, OVERFLOW, SpaceMapRoot, decode_index, encode_index,
    index_sequence,
};
pub(crate) use superblock::{FLAG_NEEDS_CHECK, SUPERBLOCK, Superblock, marked_logged, marked_served};
pub(crate) use tree_kind::TreeKind;
