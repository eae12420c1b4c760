//! One request on its way through the ring: its small memory, and what a completion belongs to.

use crate::export::fuse::wire::{OUT_HEADER, WRITE_HEADER};
use crate::export::work::Moving;

/// What a completion belongs to, packed into its user data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    Request { slot: usize },
    Moved { slot: usize, extent: usize },
    Answered { slot: usize },
    Wake,
    Cancelled,
}

impl Event {
    pub(super) fn pack(self) -> u64 {
        let (kind, extent, slot) = match self {
            Self::Request { slot } => (0, 0, slot),
            Self::Moved { slot, extent } => (1, extent, slot),
            Self::Answered { slot } => (2, 0, slot),
            Self::Wake => (3, 0, 0),
            Self::Cancelled => (4, 0, 0),
        };
        kind << 32 | (extent as u64) << 16 | slot as u64
    }

    pub(super) fn unpack(data: u64) -> Self {
        let slot = usize::from(u16::try_from(data & 0xffff).expect("16 bits"));
        let extent = usize::from(u16::try_from(data >> 16 & 0xffff).expect("16 bits"));
        match data >> 32 {
            0 => Self::Request { slot },
            1 => Self::Moved { slot, extent },
            2 => Self::Answered { slot },
            3 => Self::Wake,
            _ => Self::Cancelled,
        }
    }
}

/// The small memory of one request; the kernel has pointers to it, so it stays where it is.
pub(super) struct Slot {
    pub(super) header: [u8; WRITE_HEADER],
    pub(super) read_pieces: [libc::iovec; 2],
    pub(super) answer_header: [u8; OUT_HEADER],
    pub(super) answer_write: [u8; 8],
    pub(super) answer_pieces: [libc::iovec; 2],
    pub(super) unique: u64,
    /// True while the kernel reads a request into it.
    pub(super) armed: bool,
    pub(super) moving: Option<Moving>,
}

impl Slot {
    pub(super) fn new() -> Self {
        let nowhere = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Self {
            header: [0; WRITE_HEADER],
            read_pieces: [nowhere; 2],
            answer_header: [0; OUT_HEADER],
            answer_write: [0; 8],
            answer_pieces: [nowhere; 2],
            unique: 0,
            armed: false,
            moving: None,
        }
    }
}
