//! The kinds of metadata blocks by their checksums' salts, told apart without the pool's own readers.

/// What a block is; each kind has its own salt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Superblock,
    Node,
    Index,
    Bitmap,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::Superblock, Self::Node, Self::Index, Self::Bitmap];

    fn salt(self) -> u32 {
        match self {
            Self::Superblock => 160_774,
            Self::Node => 121_107,
            Self::Index => 160_478,
            Self::Bitmap => 240_779,
        }
    }

    /// The checksum of a block of this kind: its first four bytes, if it is sound.
    pub(crate) fn checksum(self, block: &[u8]) -> u32 {
        !crc32c::crc32c(&block[4..]) ^ self.salt()
    }

    /// What a sound block is.
    pub(crate) fn of(block: &[u8]) -> Option<Self> {
        let stored = u32::from_le_bytes(block[..4].try_into().expect("four bytes"));
        Self::ALL.into_iter().find(|kind| kind.checksum(block) == stored)
    }
}
