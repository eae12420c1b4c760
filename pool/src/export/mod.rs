//! How a volume is shown to the host as a block device.
mod exporter;
mod fuse;
mod fuse_exporter;
mod loop_device;
mod residency;

pub use exporter::{DirectToken, Direction, EXTENTS_MAX, Exporter, Extent, Extents, NoSpace, Orphan, Outlook, Volume};
pub use fuse_exporter::{FuseExporter, FuseOptions};
pub(crate) use residency::keep_resident;
