//! containerd's verbs on thin devices.
mod filter;
#[expect(clippy::module_inception, reason = "the room's public noun has the room's name")]
mod snapshotter;

pub use filter::Filter;
pub use snapshotter::{LabelChange, Recovered, Snapshotter};
