//! What is kept about an image: a name, where its chain of snapshots ends, and its configuration.

use serde::{Deserialize, Serialize};

/// The space that images and containers of the command line live in. One space, because a snapshot's parent
/// must be in its own space; no containerd plugin has this name, so no containerd ever lists, or collects, them.
pub const SPACE: &str = "local";

/// An image in the pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// The name it is known by, for instance `docker.io/library/debian:12`.
    pub name: String,
    /// Digest of the manifest it came with, if it came with one.
    pub manifest_digest: Option<String>,
    /// Digest of its configuration, the image id; `None` for a plain root file system.
    pub config_digest: Option<String>,
    /// `linux/amd64`.
    pub platform: String,
    /// Its layers, the lowest first. Never empty.
    pub layers: Vec<LayerRecord>,
    /// Nanoseconds since the epoch, UTC, of the import.
    pub created_ns: i64,
    /// Its configuration (OCI image config, JSON); `{}` for a plain root file system.
    pub config: String,
}

/// A layer of an image in the pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// Name of the committed snapshot in [`SPACE`]: the OCI chain id.
    pub chain_id: String,
    /// Digest of the unpacked layer.
    pub diff_id: String,
    /// Bytes of the packed layer as it came.
    pub packed_bytes: u64,
}

impl ImageRecord {
    /// Name of the snapshot that containers of this image are made of.
    #[must_use]
    pub fn top(&self) -> Option<&str> {
        self.layers.last().map(|layer| layer.chain_id.as_str())
    }
}
