//! One request on its way through the ring, and what a completion belongs to.

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

/// One request.
#[derive(Default)]
pub(super) struct Slot {
    pub(super) unique: u64,
    /// True while the kernel reads a request into it.
    pub(super) armed: bool,
    pub(super) moving: Option<Moving>,
}
