//! The trees of a pool; each has its own kind of leaf.

/// Which tree a node belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TreeKind {
    /// Device id to the root of its mapping tree.
    Top,
    /// Virtual block to packed mapping.
    Mapping,
    /// Device id to details.
    Details,
    /// Number of a data bitmap to its index entry.
    DataIndex,
    /// Data block to a count of three or more.
    DataOverflow,
    /// Metadata block to a count of three or more.
    MetadataOverflow,
}

impl TreeKind {
    /// Levels of a tree, at most: with a third of 252 children a node, 11 levels hold more than 2^64 keys.
    pub(crate) const DEPTH_MAX: usize = 16;

    /// Bytes of a leaf's value.
    pub(crate) fn value_size(self) -> usize {
        match self {
            Self::Top | Self::Mapping => 8,
            Self::Details => 24,
            Self::DataIndex => 16,
            Self::DataOverflow | Self::MetadataOverflow => 4,
        }
    }

    /// What people call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Top => "top mapping tree",
            Self::Mapping => "mapping tree",
            Self::Details => "device details tree",
            Self::DataIndex => "data index tree",
            Self::DataOverflow => "data overflow tree",
            Self::MetadataOverflow => "metadata overflow tree",
        }
    }
}
