//! The record of one thin device in the device details tree: 24 bytes.

use crate::format::bytes::{put_u32, put_u64, u32_at, u64_at};
use crate::format::node::Value;

/// What the device details tree holds of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceDetails {
    /// Entries in the device's mapping tree; exact.
    pub mapped_blocks: u64,
    /// The pool's transaction id when the device was made.
    pub transaction_id: u64,
    /// The clock when the device was made.
    pub creation_time: u32,
    /// The clock at the last snapshot taken of it, or at its creation.
    pub snapshotted_time: u32,
}

impl Value for DeviceDetails {
    const SIZE: usize = 24;

    fn load(bytes: &[u8]) -> Self {
        Self {
            mapped_blocks: u64_at(bytes, 0),
            transaction_id: u64_at(bytes, 8),
            creation_time: u32_at(bytes, 16),
            snapshotted_time: u32_at(bytes, 20),
        }
    }

    fn store(self, bytes: &mut [u8]) {
        put_u64(bytes, 0, self.mapped_blocks);
        put_u64(bytes, 8, self.transaction_id);
        put_u32(bytes, 16, self.creation_time);
        put_u32(bytes, 20, self.snapshotted_time);
    }
}
