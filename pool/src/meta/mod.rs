//! Copy-on-write metadata: trees, counts, and the transaction that changes them.
mod metadata;

pub use metadata::{DataRun, DeviceDetails, FormatOptions, Frozen, MappedRun, Metadata, OpenMode, SpaceCounts};
