//! Reads bolt files, which containerd keeps its records in; never writes one.

mod file;
mod meta;
mod tree;

pub use file::BoltFile;
pub use tree::Bucket;
