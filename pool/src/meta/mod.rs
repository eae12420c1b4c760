//! Copy-on-write metadata: trees, counts, and the transaction that changes them.
mod bitset;
mod btree;
mod cache;
mod commit;
mod counts;
mod devices;
mod grow;
mod lost_data;
mod mappings;
mod metadata;
mod open;
mod room;
mod space_map;
mod transaction;
mod usage;
mod views;
mod written;

#[cfg(test)]
mod tests;

pub use crate::format::DeviceDetails;
pub(crate) use commit::write_served;
pub use commit::{Frozen, superblock_fingerprint};
pub use metadata::{DataRun, FormatOptions, MappedRun, Metadata, OpenMode, SpaceCounts};
pub(crate) use views::{check_superblock, without_log};
pub(crate) use written::written_on;
