//! What a completion in the ring of a ublk loop belongs to, packed into its user data.

/// The kinds of completions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// A tag of the device at a place came back.
    Fetched { place: usize, tag: u16 },
    /// A part of a transfer has moved.
    Moved { slot: usize, extent: usize },
    /// Somebody rang.
    Wake,
}

const KIND_SHIFT: u32 = 56;

impl Event {
    pub(super) fn pack(self) -> u64 {
        let (kind, high, low) = match self {
            Self::Fetched { place, tag } => (0, place as u64, u64::from(tag)),
            Self::Moved { slot, extent } => (1, slot as u64, extent as u64),
            Self::Wake => (2, 0, 0),
        };
        kind << KIND_SHIFT | high << 16 | low
    }

    pub(super) fn unpack(data: u64) -> Self {
        let low = u16::try_from(data & 0xffff).expect("16 bits");
        let high = usize::try_from((data & ((1 << KIND_SHIFT) - 1)) >> 16).expect("40 bits");
        match data >> KIND_SHIFT {
            0 => Self::Fetched { place: high, tag: low },
            1 => Self::Moved { slot: high, extent: low.into() },
            _ => Self::Wake,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Event;

    #[test]
    fn an_event_comes_out_as_it_went_in() {
        for event in [Event::Fetched { place: 70_000, tag: 127 }, Event::Moved { slot: 31, extent: 19 }, Event::Wake] {
            assert_eq!(Event::unpack(event.pack()), event);
        }
    }
}
