//! How a volume is shown to the host as a block device.
mod alive;
mod exporter;
mod fuse;
mod fuse_exporter;
mod loop_device;
mod options;
mod passed;
mod residency;
mod take_over;
mod ublk;
mod ublk_exporter;
mod unshown;
mod users;
mod work;

pub use exporter::{DirectToken, Direction, EXTENTS_MAX, Exporter, Extent, Extents, NoSpace, Orphan, Outlook, Volume};
pub(crate) use fuse::is_connected;
pub use fuse_exporter::FuseExporter;
pub(crate) use loop_device::LastingLoop;
pub use options::ExportOptions;
pub use passed::inherited_descriptors;
pub(crate) use residency::{keep_resident, shun_memory_pressure};
pub(crate) use ublk::{has_ublk_devices, probe_ublk};
pub use ublk_exporter::UblkExporter;
pub(crate) use unshown::Unshown;
