//! How a volume is shown to the host as a block device.
mod exporter;

pub use exporter::{DirectToken, Direction, EXTENTS_MAX, Exporter, Extent, Extents, Volume};
