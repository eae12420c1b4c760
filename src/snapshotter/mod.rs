//! containerd's verbs on thin devices.
mod admission;
mod base_device;
mod claims;
mod commit;
mod filter;
mod ids;
mod labels;
mod mounts;
mod prepare;
mod query;
mod reclaim;
mod recover;
mod remove;
#[expect(clippy::module_inception, reason = "the room's public noun has the room's name")]
mod snapshotter;
mod spares;
mod take;
mod tripwire;
mod unpacking;
mod view;

pub use filter::Filter;
pub use labels::LabelChange;
pub use recover::Recovered;
pub use snapshotter::{Parts, Snapshotter};
pub use take::TAKE_LABEL;
pub use unpacking::UNPACK_LABEL;
