//! Anything that can be read and written at an offset.
mod block_device;
mod buffer;
mod dirty_limit;
mod file;
mod image;
mod linger;
mod memory;
mod power_cut;
mod shared_words;
mod sys;

pub(crate) use block_device::check_range;
pub use block_device::{BlockDevice, RoomBelow};
pub(crate) use buffer::AlignedBuffer;
pub use dirty_limit::limit_dirty;
pub use file::FileDevice;
pub use image::DiskImage;
pub(crate) use linger::{is_living, lock_in_time, started_at};
pub use memory::MemoryDevice;
pub use power_cut::{Cut, Piece, PowerCutDevice, PowerSupply};
#[cfg(test)]
pub(crate) use shared_words::trace;
pub(crate) use shared_words::{SharedFile, SharedWords};
pub(crate) use sys::write_back;
