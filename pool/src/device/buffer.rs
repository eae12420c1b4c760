//! A byte buffer at an address that direct I/O accepts.

use std::ops::{Deref, DerefMut};

/// Direct I/O wants buffers at multiples of the logical block, at most a page on every disk known.
pub(crate) const BUFFER_ALIGNMENT: usize = 4096;

/// Zeroed bytes that begin at a multiple of 4096.
pub(crate) struct AlignedBuffer {
    // The heap block never moves: the vector is neither grown nor handed out.
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuffer {
    /// `len` zero bytes.
    pub(crate) fn zeroed(len: usize) -> Self {
        let bytes = vec![0; len + BUFFER_ALIGNMENT];
        let start = bytes.as_ptr().align_offset(BUFFER_ALIGNMENT);
        Self { bytes, start, len }
    }
}

impl Default for AlignedBuffer {
    fn default() -> Self {
        Self::zeroed(0)
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::{AlignedBuffer, BUFFER_ALIGNMENT};

    #[test]
    fn every_length_begins_at_a_page_and_is_zero() {
        for len in [0, 1, 511, 4096, 65_536, 65_537] {
            let buffer = AlignedBuffer::zeroed(len);
            assert_eq!(buffer.len(), len);
            assert_eq!(buffer.as_ptr().align_offset(BUFFER_ALIGNMENT), 0);
            assert!(buffer.iter().all(|&byte| byte == 0));
        }
    }
}
