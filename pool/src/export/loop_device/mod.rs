//! Loop devices with direct I/O on the files of an export.
mod attach;
mod configure;
mod sysfs;

pub(super) use attach::{AttachOptions, LoopDevice};
pub(super) use sysfs::{Users, binding, devices_below};
