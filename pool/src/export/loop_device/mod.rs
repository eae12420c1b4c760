//! Loop devices with direct I/O on the files of an export.
mod attach;
mod configure;
mod lasting;
mod sysfs;

pub(super) use attach::{AttachOptions, LoopDevice};
pub(crate) use lasting::LastingLoop;
pub(super) use sysfs::{binding, devices_below};
