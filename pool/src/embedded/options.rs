//! How an embedded pool is opened, beyond where it stands.

use std::path::PathBuf;

use crate::units::ByteCount;

/// What the opener of an embedded pool may choose; the default is a pool without an intent log.
#[derive(Debug, Clone)]
pub struct EmbeddedOptions {
    /// File that keeps acknowledged changes which no commit covers yet, so that they survive the death of this
    /// process. It belongs on a tmpfs and to this pool alone; it is made if it is absent.
    pub intent_log: Option<PathBuf>,
    /// Changes that the intent log holds between two commits; `None`: 65,536. A full log costs its writer a commit.
    pub intent_log_records: Option<u32>,
    /// Memory for what is known of the metadata: a quarter for nodes of the trees as they stand on the disk, the rest for
    /// where the blocks of active devices stand. What a commit has yet to write stands beside it, at most as much
    /// again: then its writers wait for the commit.
    pub metadata_cache: ByteCount,
}

/// The memory for metadata if nobody says otherwise: three million runs of blocks, and a thousand leaves.
pub const METADATA_CACHE_DEFAULT: ByteCount = ByteCount(64 << 20);

impl Default for EmbeddedOptions {
    fn default() -> Self {
        Self { intent_log: None, intent_log_records: None, metadata_cache: METADATA_CACHE_DEFAULT }
    }
}

impl EmbeddedOptions {
    /// Bytes for nodes of the trees.
    pub(super) fn node_bytes(&self) -> ByteCount {
        ByteCount(self.metadata_cache.0 / 4)
    }

    /// Bytes for where the blocks of active devices stand.
    pub(super) fn mapping_bytes(&self) -> ByteCount {
        ByteCount(self.metadata_cache.0 - self.node_bytes().0)
    }
}
