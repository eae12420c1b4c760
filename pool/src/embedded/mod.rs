//! Engine 1: the data path in this process, on a metadata and a data device.
mod backing;
mod cells;
mod claims;
mod committer;
mod embedded_pool;
mod mode;
mod options;
mod plan;
mod reclaim;
mod table;
mod unmap;
mod view;
mod volume;
mod write;

pub use embedded_pool::EmbeddedPool;
pub use options::EmbeddedOptions;
