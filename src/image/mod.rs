//! Images: archives of others taken apart, checked, and laid down as chains of thin snapshots.
mod apply;
mod archive;
mod blob;
mod compression;
mod digest;
mod docker;
mod files;
mod images;
mod import;
mod inspect;
mod layer;
mod oci;
mod plan;
mod platform;
mod progress;
mod record;
mod tar;

pub use crate::config::Limits;
pub(crate) use images::image_record;
pub use images::{Images, ImportRequest, Imported, Removed};
pub use inspect::{Inspected, InspectedLayer, inspect};
pub use layer::{AppliedLayer, apply_layer};
pub use platform::Platform;
pub use progress::{Phase, Progress, ProgressFn};
pub use record::{ImageRecord, LayerRecord, SPACE};
