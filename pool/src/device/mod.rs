//! Anything that can be read and written at an offset.
mod block_device;

pub use block_device::BlockDevice;
